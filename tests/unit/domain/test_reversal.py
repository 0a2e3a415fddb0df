"""Reversals alone: what is taken back, what is owed, and which entries cannot be reversed."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import DUST, EXTERNAL, FEES, FIRST_HOUSE_ACCOUNTS, Account, HouseAccount, receivable_of
from spotledger.domain.books import Line
from spotledger.domain.journal import AVAILABLE, FREEZE, Entry, Posting
from spotledger.domain.operations import Reverse
from spotledger.domain.reversal import Target, reverse
from spotledger.errors import AlreadyReversed, HouseShort, InvalidRequest, UnknownEntry
from support_core import moved

ANN, BOB = Account("ann", "spot"), Account("bob", "spot")
SEQ, NOW_MS = 9, 1


class Books:
    """Balances in a dictionary; a reversal asks for nothing else."""

    def __init__(self, balances: dict[tuple[Account, str], tuple[int, int]]) -> None:
        self.balances = balances

    def line(self, account: Account, coin: str) -> Line:
        return Line(account, coin, *self.balances.get((account, coin), (0, 0)))

    def house_account(self, name: str) -> HouseAccount | None:
        return FIRST_HOUSE_ACCOUNTS.get(name)


def entry(kind: str, *postings: Posting, **more: Any) -> Entry:
    """Return the entry 5 of *kind* with *postings*."""
    lines = dict.fromkeys((posting.account, posting.coin) for posting in postings)
    balances = tuple((account, coin, 0, 0) for account, coin in lines)
    return Entry(5, kind, "key", 1, {}, moved(postings, balances), balances, **more)


def reversed_by_rules(target: Entry | None, books: Books, reversed_by: int | None = None) -> dict[Any, int]:
    """Reverse *target*; return the units posted by account and coin, having checked that they add up to zero."""
    operation: Any = Reverse("undo", 5, "a mistake")
    state: Any = books
    decision = reverse(operation, Target(target, reversed_by), state, SEQ, NOW_MS)
    assert all(posting.side == AVAILABLE for posting in decision.postings)
    assert decision.holds == ()
    coins = {posting.coin for posting in decision.postings}
    assert all(sum(it.units for it in decision.postings if it.coin == coin) == 0 for coin in coins)
    return {(posting.account, posting.coin): posting.units for posting in decision.postings}


DEPOSIT = entry("deposit", Posting(EXTERNAL, "btc", AVAILABLE, -100), Posting(ANN, "btc", AVAILABLE, 100))


def test_reversal_takes_back_all_where_there_is_enough() -> None:
    """A deposit that is still there goes back to the outside world, to the unit."""
    assert reversed_by_rules(DEPOSIT, Books({(ANN, "btc"): (100, 0)})) == {
        (EXTERNAL, "btc"): 100,
        (ANN, "btc"): -100,
    }


@pytest.mark.parametrize("available", [0, 1, 99])
def test_reversal_books_what_is_short_as_owed(available: int) -> None:
    """What the customer no longer has available is owed; what is in freeze stays there."""
    posted = reversed_by_rules(DEPOSIT, Books({(ANN, "btc"): (available, 1_000)}))
    assert posted.get((ANN, "btc"), 0) == -available
    assert posted[receivable_of("ann"), "btc"] == available - 100


def test_reversal_of_a_withdrawal_from_a_hold_returns_to_available() -> None:
    """Money that left from freeze comes back as available: a closed hold is never opened again."""
    withdrawal = entry("withdraw", Posting(ANN, "btc", FREEZE, -70, 3), Posting(EXTERNAL, "btc", AVAILABLE, 70))
    posted = reversed_by_rules(withdrawal, Books({(EXTERNAL, "btc"): (-500, 0)}))
    assert posted == {(ANN, "btc"): 70, (EXTERNAL, "btc"): -70}


def test_reversal_nets_both_sides_of_one_account() -> None:
    """What an entry moved between freeze and available of one account is not taken back twice."""
    fill = entry(
        "settle",
        Posting(ANN, "btc", FREEZE, -100, 3),
        Posting(ANN, "btc", AVAILABLE, 40),
        Posting(BOB, "btc", AVAILABLE, 60),
    )
    assert reversed_by_rules(fill, Books({(BOB, "btc"): (60, 0)})) == {(ANN, "btc"): 60, (BOB, "btc"): -60}


@pytest.mark.parametrize("house", [FEES, DUST])
def test_reversal_of_fees_that_are_gone_is_refused(house: Account) -> None:
    """The house owes nobody: a fee that was paid out already is not taken below zero."""
    fill = entry("settle", Posting(ANN, "btc", FREEZE, -10, 3), Posting(house, "btc", AVAILABLE, 10))
    with pytest.raises(HouseShort):
        reversed_by_rules(fill, Books({(house, "btc"): (9, 0)}))


def test_reversal_of_what_cannot_be_reversed_is_refused() -> None:
    """An entry that is missing, reversed before, of another kind or itself a refusal is named as that."""
    books = Books({(ANN, "btc"): (100, 0)})
    with pytest.raises(UnknownEntry):
        reversed_by_rules(None, books)
    with pytest.raises(AlreadyReversed) as refused:
        reversed_by_rules(DEPOSIT, books, reversed_by=7)
    assert refused.value.details["by"] == 7
    for kind in ("reverse", "freeze", "unfreeze", "expire", "list_coin", "register_customer"):
        with pytest.raises(InvalidRequest, match=kind):
            reversed_by_rules(entry(kind), books)
    with pytest.raises(InvalidRequest, match="refusal"):
        reversed_by_rules(entry("deposit", refusal={"code": "unknown_coin"}), books)
