"""Posting: the one place where balances change; and the checks of holds that the rules share."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account, receivable_of
from spotledger.domain.amounts import UNITS_LIMIT
from spotledger.domain.books import post, usable_hold
from spotledger.domain.journal import AVAILABLE, FREEZE, Hold, Posting
from spotledger.domain.operations import Unfreeze
from spotledger.errors import BalanceTooLarge, HoldClosed, HoldExpired, LedgerCorrupt, UnknownHold

ANN = Account("ann", "spot")


class Books:
    """One balance for every account and coin."""

    def __init__(self, available: int, freeze: int = 0) -> None:
        self.standing = (available, freeze)

    def balance(self, line: tuple[Account, str]) -> tuple[int, int]:
        return self.standing


NAMED = Unfreeze("k", "7")
STATE: Any = None  # nothing is asked of it without a precondition


def posted(books: Any, *lines: Posting) -> dict[Any, tuple[int, int]]:
    """Post *lines*; return the balances after them, having checked that both forms of them agree."""
    decision = post(books, lines)
    assert {(it.account, it.coin): (it.available, it.freeze) for it in decision.balances} == decision.after
    return dict(decision.after)


def test_lines_of_one_account_add_up() -> None:
    """Several lines of one account and coin see each other, on either side."""
    lines = [Posting(ANN, "btc", AVAILABLE, -7), Posting(ANN, "btc", FREEZE, 7, 1), Posting(ANN, "btc", FREEZE, -2, 1)]
    assert posted(Books(10, 1), *lines) == {(ANN, "btc"): (3, 6)}


def test_lines_of_no_units_are_left_out() -> None:
    """A line of zero units is no posting, and names no balance."""
    assert posted(Books(10), Posting(ANN, "btc", AVAILABLE, 0)) == {}


@pytest.mark.parametrize("side", [AVAILABLE, FREEZE])
def test_balance_below_zero_is_damage(side: str) -> None:
    """The rules refuse before it comes to that: here it is a broken invariant, not a refusal."""
    with pytest.raises(LedgerCorrupt):
        posted(Books(10, 10), Posting(ANN, "btc", side, -11))
    assert posted(Books(10, 10), Posting(ANN, "btc", side, -10))


@pytest.mark.parametrize("account", [EXTERNAL, receivable_of("ann")])
def test_balance_of_what_is_owed_may_be_negative_down_to_the_limit(account: Account) -> None:
    """The outside world and what customers owe go below zero on the available side, short of 10**38 units."""
    assert posted(Books(0), Posting(account, "btc", AVAILABLE, 1 - UNITS_LIMIT))
    with pytest.raises(BalanceTooLarge):
        posted(Books(0), Posting(account, "btc", AVAILABLE, -UNITS_LIMIT))
    with pytest.raises(LedgerCorrupt):
        posted(Books(0), Posting(account, "btc", FREEZE, -1))


def test_limit_of_a_balance_counts_both_sides() -> None:
    """Available and freeze together stay below the limit, so that a hold can always be released."""
    assert posted(Books(UNITS_LIMIT - 3, 1), Posting(ANN, "btc", AVAILABLE, 1))
    with pytest.raises(BalanceTooLarge):
        posted(Books(UNITS_LIMIT - 3, 1), Posting(ANN, "btc", AVAILABLE, 2))


def hold(remaining: int = 5, expires_ms: int | None = 1_000) -> Hold:
    """Return the hold 7 with *remaining* units."""
    return Hold(7, ANN, "btc", 5, remaining, None, expires_ms, 1, None if remaining else 8)


def test_hold_past_its_time_is_expired_even_when_it_is_closed() -> None:
    """Whether the ledger has let a hold expire already makes no difference to the answer."""
    for remaining in (5, 0):
        with pytest.raises(HoldExpired):
            usable_hold(NAMED, hold(remaining), STATE, 1_000)
    assert usable_hold(NAMED, hold(), STATE, 999) == hold()
    with pytest.raises(HoldClosed):
        usable_hold(NAMED, hold(0), STATE, 999)
    with pytest.raises(UnknownHold):
        usable_hold(NAMED, None, STATE, 999)
