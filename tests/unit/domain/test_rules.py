"""The rules on books made of dictionaries: what each operation posts, and the order of refusals."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, ZERO, Account, Balance, Coin
from spotledger.domain.amounts import UNITS_LIMIT
from spotledger.domain.books import Decision, Line
from spotledger.domain.journal import Entry, Hold, Posting
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.domain.rules import decide, subject_of
from spotledger.errors import InvalidAmount, LedgerCorrupt, Refused

ANN = Account("ann", "spot")
NOW_MS = 1_650_000_000_000
SEQ = 50


class Books:
    """Books as they stand: bitcoin of scale 8, ann with 10 available, two open holds, one closed and one expired."""

    debtors: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.coins = {"btc": Coin("btc", 8), "whole": Coin("whole", 0)}
        self.registered = {"ann", "bob"}
        self.balances = {(ANN, "btc"): Balance(10 * 10**8, 5 * 10**8), (EXTERNAL, "btc"): Balance(-15 * 10**8, 0)}
        self.holds = {
            7: Hold(7, ANN, "btc", 3 * 10**8, 2 * 10**8, None, None, 1),
            8: Hold(8, ANN, "btc", 10**8, 0, None, None, 1, closed_seq=12),
            9: Hold(9, ANN, "btc", 3 * 10**8, 3 * 10**8, None, NOW_MS, 1),
        }
        self.keys = {"opened-7": 7}
        self.lines: dict[tuple[Account, str], Line] = {}

    def coin(self, name: str) -> Coin | None:
        return self.coins.get(name)

    def has_customer(self, customer: str) -> bool:
        return customer in self.registered

    def line(self, account: Account, coin: str) -> Line:
        """Return one line for all who ask, with the balance that the books have now."""
        line = self.lines.setdefault((account, coin), Line(account, coin))
        line.available, line.freeze = self.balances.get((account, coin), ZERO)
        return line

    def hold(self, hold_id: int) -> Hold | None:
        return self.holds.get(hold_id)

    def hold_id_of_key(self, key: str) -> int | None:
        return self.keys.get(key)

    def entry(self, seq: int) -> Entry | None:
        return None

    def reversal_of(self, seq: int) -> int | None:
        return None


@pytest.fixture
def books() -> Books:
    """Return the books."""
    return Books()


def decided(operation: Any, books: Books, now_ms: int = NOW_MS - 1) -> Decision:
    """Return what *operation* does to *books*, after checking the invariants of every decision."""
    decision = decide(operation, subject_of(operation, books), books, SEQ, now_ms)
    assert sum(posting.units for posting in decision.postings) == 0
    after = {}
    for account, coin, side, units, _ in decision.postings:
        available, freeze = after.get((account, coin), books.balances.get((account, coin), ZERO))
        after[account, coin] = (available + units, freeze) if side == "available" else (available, freeze + units)
    assert {after[:2]: after[2:] for after in decision.balances} == after
    return decision


def code_of(operation: Any, books: Books, now_ms: int = NOW_MS - 1) -> str:
    """Return the code of the refusal of *operation*."""
    with pytest.raises(Refused) as refused:
        decide(operation, subject_of(operation, books), books, SEQ, now_ms)
    assert refused.value.details.get("field") or refused.value.code == "chain_failed"
    return refused.value.code


# --- what is posted -------------------------------------------------------------------------------


def test_deposit_posts_from_outside_to_available(books: Books) -> None:
    """A deposit is owed to the outside world, and the customer's balance rises by as much."""
    decision = decided(Deposit("k", "ann", "btc", "1"), books)
    assert decision.postings == (
        Posting(EXTERNAL, "btc", "available", -(10**8)),
        Posting(ANN, "btc", "available", 10**8),
    )
    assert decision.balances[1] == (ANN, "btc", 11 * 10**8, 5 * 10**8)
    assert decision.holds == ()


def test_freeze_opens_a_hold_with_its_position_as_id(books: Books) -> None:
    """Available falls, freeze rises, the total stays, and the hold's id is the seq of the entry."""
    decision = decided(Freeze("k", "ann", "btc", "10", reference="r", expires_ms=NOW_MS), books)
    assert decision.postings[1] == Posting(ANN, "btc", "freeze", 10 * 10**8, SEQ)
    assert decision.balances == ((ANN, "btc", 0, 15 * 10**8),)
    assert decision.holds == (Hold(SEQ, ANN, "btc", 10**9, 10**9, "r", NOW_MS, NOW_MS - 1),)


@pytest.mark.parametrize("hold", ["7", HoldKey("opened-7")])
def test_unfreeze_of_a_part_leaves_the_hold_open(books: Books, hold: Any) -> None:
    """A part goes back to available and the rest stays in the hold, however it is named."""
    decision = decided(Unfreeze("k", hold, "0.5"), books)
    assert decision.postings == (
        Posting(ANN, "btc", "freeze", -(5 * 10**7), 7),
        Posting(ANN, "btc", "available", 5 * 10**7),
    )
    assert [(after.remaining, after.state) for after in decision.holds] == [(15 * 10**7, "open")]


@pytest.mark.parametrize("amount", [None, "2", "2.00"])
def test_unfreeze_of_all_closes_the_hold(books: Books, amount: str | None) -> None:
    """Without an amount, or with all that remains, the hold is closed by this entry."""
    after = decided(Unfreeze("k", "7", amount), books).holds[0]
    assert (after.remaining, after.closed_seq) == (0, SEQ)


def test_withdraw_from_a_hold_goes_from_freeze_to_outside(books: Books) -> None:
    """The second step of a withdrawal never touches available."""
    decision = decided(Withdraw("k", "2", hold="7"), books)
    assert {posting.account for posting in decision.postings} == {ANN, EXTERNAL}
    assert (ANN, "btc", 10 * 10**8, 3 * 10**8) in decision.balances


def test_withdraw_at_once_takes_available_to_the_last_unit(books: Books) -> None:
    """All that is available can be withdrawn, but not one unit more, whatever is in freeze."""
    assert decided(Withdraw("k", "10", "ann", "btc"), books).balances[0][2] == 0
    assert code_of(Withdraw("k", "10.00000001", "ann", "btc"), books) == "insufficient_available"


def test_transfer_moves_between_customers_and_kinds(books: Books) -> None:
    """Available falls in one account and rises in the other; the outside world is not involved."""
    decision = decided(Transfer("k", "ann", "bob", "btc", "10", to_account="fiat"), books)
    assert [line.account for line in decision.postings] == [ANN, Account("bob", "fiat")]


def test_expire_frees_what_remains_from_its_time_on(books: Books) -> None:
    """A hold can expire at its millisecond; an attempt before that is damage."""
    decision = decided(Expire("9"), books, NOW_MS)
    assert decision.holds[0].remaining == 0
    with pytest.raises(LedgerCorrupt):
        decide(Expire("9"), subject_of(Expire("9"), books), books, SEQ, NOW_MS - 1)
    with pytest.raises(LedgerCorrupt):
        decide(Expire("7"), subject_of(Expire("7"), books), books, SEQ, NOW_MS)


def test_listing_and_registering_post_nothing(books: Books) -> None:
    """A listing and a registration are entries without postings, and happen once."""
    assert decided(ListCoin("k", "eth", 18), books) == Decision()
    assert decided(RegisterCustomer("k", "cy"), books) == Decision()
    assert code_of(ListCoin("k", "btc", 8), books) == "coin_already_listed"
    assert code_of(RegisterCustomer("k", "ann"), books) == "customer_already_registered"


# --- why it is refused, and in what order ---------------------------------------------------------

PRECEDENCE = [
    (Deposit("k", "nobody", "nix", "0.000000000000000001"), "unknown_coin"),
    (Deposit("k", "nobody", "btc", "0.000000001"), "invalid_amount"),
    (Deposit("k", "nobody", "btc", "9" * 38), "invalid_amount"),
    (Deposit("k", "nobody", "btc", "1"), "unknown_customer"),
    (Freeze("k", "nobody", "nix", "99", expires_ms=1_600_000_000_000), "unknown_coin"),
    (Freeze("k", "nobody", "btc", "99", expires_ms=1_600_000_000_000), "unknown_customer"),
    (Freeze("k", "ann", "btc", "99", expires_ms=1_600_000_000_000), "invalid_request"),
    (Freeze("k", "ann", "btc", "99", expires_ms=NOW_MS - 1), "invalid_request"),
    (Freeze("k", "ann", "btc", "99", expires_ms=NOW_MS), "insufficient_available"),
    (Freeze("k", "ann", "btc", "1", account="wallet"), "insufficient_available"),
    (Freeze("k", "ann", "whole", "1"), "insufficient_available"),
    (Unfreeze("k", "77", "0.000000001"), "unknown_hold"),
    (Unfreeze("k", HoldKey("never")), "unknown_hold"),
    (Unfreeze("k", "7", "0.000000001"), "invalid_amount"),
    (Unfreeze("k", "8", "99"), "hold_closed"),
    (Unfreeze("k", "7", "2.00000001"), "hold_short"),
    (Withdraw("k", "1", "nobody", "nix"), "unknown_coin"),
    (Withdraw("k", "1", "nobody", "btc"), "unknown_customer"),
    (Withdraw("k", "11", "ann", "btc"), "insufficient_available"),
    (Withdraw("k", "1", hold="77"), "unknown_hold"),
    (Withdraw("k", "1", hold="8"), "hold_closed"),
    (Withdraw("k", "99", hold="7"), "hold_short"),
    (Transfer("k", "nobody", "ghost", "nix", "1"), "unknown_coin"),
    (Transfer("k", "nobody", "ann", "btc", "99"), "unknown_customer"),
    (Transfer("k", "ann", "ghost", "btc", "99"), "unknown_customer"),
    (Transfer("k", "ann", "bob", "btc", "99"), "insufficient_available"),
]


@pytest.mark.parametrize(("operation", "code"), PRECEDENCE)
def test_refusals_come_in_the_documented_order(books: Books, operation: Any, code: str) -> None:
    """Of several reasons the first in the documented order is given, and the books stay unchanged."""
    before = (dict(books.balances), dict(books.holds))
    assert code_of(operation, books) == code
    assert (books.balances, books.holds) == before


@pytest.mark.parametrize("operation", [Unfreeze("k", "9"), Unfreeze("k", "9", "99"), Withdraw("k", "1", hold="9")])
def test_hold_past_its_time_is_expired_whatever_remains(books: Books, operation: Any) -> None:
    """From its millisecond on a hold is expired, also after the ledger has released it."""
    assert code_of(operation, books, NOW_MS) == "hold_expired"
    books.holds[9] = books.holds[9].after(0, 40)
    assert code_of(operation, books, NOW_MS + 5) == "hold_expired"


def test_refusal_says_what_would_have_passed(books: Books) -> None:
    """The refusal has the exact amount that is available."""
    for operation, name, text in (
        (Freeze("k", "ann", "btc", "99"), "available", "10.00"),
        (Unfreeze("k", "7", "99"), "remaining", "2.00"),
    ):
        with pytest.raises(Refused) as refused:
            decide(operation, subject_of(operation, books), books, SEQ, 1)
        assert refused.value.details[name] == text
        assert text in refused.value.message


def test_subject_of_an_amount_that_does_not_fit_is_not_kept(books: Books) -> None:
    """More decimals than the coin has are invalid, and the refusal is not kept."""
    with pytest.raises(InvalidAmount) as refused:
        subject_of(Deposit("k", "ann", "whole", "1.0"), books)
    assert not refused.value.kept


# --- the limit ------------------------------------------------------------------------------------


def test_deposit_up_to_the_limit_passes_and_beyond_is_refused(books: Books) -> None:
    """The largest balance is 10**38 - 1 units, on the customer's side as on the outside world's."""
    top = str(UNITS_LIMIT - 1)
    assert decided(Deposit("k", "ann", "whole", top), books).balances[1][2] == UNITS_LIMIT - 1
    books.balances[ANN, "whole"] = Balance(1, 0)
    assert code_of(Deposit("k", "ann", "whole", top), books) == "balance_too_large"
    books.balances = {(EXTERNAL, "whole"): Balance(-1, 0)}
    assert code_of(Deposit("k", "bob", "whole", top), books) == "balance_too_large"


def test_what_is_in_freeze_can_always_go_back(books: Books) -> None:
    """The sum of both sides stays below the limit, so that an unfreeze or expiry never fails because of its size."""
    half = UNITS_LIMIT // 2
    books.balances[ANN, "whole"] = Balance(half, half - 1)
    books.holds[9] = Hold(9, ANN, "whole", half - 1, half - 1, None, NOW_MS, 1)
    assert code_of(Deposit("k", "ann", "whole", "1"), books) == "balance_too_large"
    assert decided(Unfreeze("k", "9"), books).balances[0][2] == UNITS_LIMIT - 1
    assert decided(Expire("9"), books, NOW_MS).balances[0][2] == UNITS_LIMIT - 1


def test_books_that_contradict_themselves_are_named(books: Books) -> None:
    """A hold with more than is in freeze would take freeze below zero: the ledger stops instead."""
    books.balances[ANN, "btc"] = Balance(0, 10**8)
    with pytest.raises(LedgerCorrupt):
        decided(Unfreeze("k", "7"), books)
