"""Reversing an earlier entry, once, with a reason; shortfalls become a receivable that later deposits repay."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

import support_core
from spotledger.domain import rules
from spotledger.domain.accounts import (
    EXTERNAL,
    FEES,
    FIRST_HOUSE_ACCOUNTS,
    Account,
    Balance,
    HouseAccount,
    receivable_of,
)
from spotledger.domain.books import Line, State
from spotledger.domain.journal import Entry
from spotledger.domain.operations import CoinAmount, HoldKey, Reverse, SettleSide
from spotledger.errors import (
    AlreadyReversed,
    HouseShort,
    IdempotencyConflict,
    InsufficientAvailable,
    InvalidRequest,
    UnknownEntry,
)
from spotledger.ledger.ledger import Ledger, Receipt
from support_books import check_books

COIN = 10**8


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in which ann and bob have 1000 btc each."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        yield ledger
    check_books(tmp_path)


def _has(ledger: Ledger, customer: str) -> Balance:
    return ledger.balances(support_core.spot(customer))["btc"]


def _owes(ledger: Ledger, customer: str) -> int:
    return -ledger.balances(receivable_of(customer)).get("btc", Balance(0, 0)).available


def test_reversed_deposit_goes_back_to_the_outside_world(ledger: Ledger) -> None:
    """Its entry names the one it reverses and the reason."""
    deposit = ledger.deposit("ann", "btc", "5", key="d")
    outside = ledger.balances(EXTERNAL)["btc"].available
    receipt = ledger.reverse(deposit.seq, "booked for the wrong customer", key="r")
    assert _has(ledger, "ann") == Balance(1000 * COIN, 0)
    assert ledger.balances(EXTERNAL)["btc"].available == outside + 5 * COIN
    assert receipt.entry.request["seq"] == deposit.seq
    assert receipt.entry.request["reason"] == "booked for the wrong customer"
    assert ledger.reversal_of(deposit.seq) == receipt.seq


def test_shortfall_is_owed_and_repaid_first_by_later_deposits(ledger: Ledger) -> None:
    """What the customer spent is booked to the receivable; later deposits repay it first."""
    deposit = ledger.deposit("ann", "btc", "5", key="d")
    ledger.withdraw("1003", customer="ann", coin="btc", key="w")
    ledger.reverse(deposit.seq, "chargeback", key="r")
    assert (_has(ledger, "ann").available, _owes(ledger, "ann")) == (0, 3 * COIN)
    ledger.deposit("ann", "btc", "2", key="d2")
    assert (_has(ledger, "ann").available, _owes(ledger, "ann")) == (0, 1 * COIN)
    ledger.deposit("ann", "btc", "2", key="d3", account="wallet")
    assert _owes(ledger, "ann") == 0
    assert [entry.key for entry in ledger.statement("ann")][-3:] == ["r", "d2", "d3"]


def test_reversed_repayment_is_owed_again(ledger: Ledger) -> None:
    """A deposit that repaid what was owed is reversed like any other: the customer owes it again."""
    deposit = ledger.deposit("ann", "btc", "5", key="d")
    ledger.withdraw("1005", customer="ann", coin="btc", key="w")
    ledger.reverse(deposit.seq, "chargeback", key="r")
    repayment = ledger.deposit("ann", "btc", "7", key="d2")
    assert (_has(ledger, "ann").available, _owes(ledger, "ann")) == (2 * COIN, 0)
    ledger.reverse(repayment.seq, "chargeback too", key="r2")
    assert (_has(ledger, "ann").available, _owes(ledger, "ann")) == (0, 5 * COIN)


def test_reversal_never_touches_freeze_or_a_hold(ledger: Ledger) -> None:
    """What is held stays held, even where the customer then owes."""
    deposit = ledger.deposit("ann", "btc", "5", key="d")
    ledger.freeze("ann", "btc", "1004", key="f")
    ledger.reverse(deposit.seq, "chargeback", key="r")
    assert _has(ledger, "ann") == Balance(0, 1004 * COIN)
    assert _owes(ledger, "ann") == 4 * COIN
    assert ledger.holds("ann")[0].remaining == 1004 * COIN


def test_reversed_withdrawal_out_of_a_hold_returns_to_available(ledger: Ledger) -> None:
    """The hold stays as used as it was."""
    ledger.freeze("ann", "btc", "10", key="f")
    withdrawal = ledger.withdraw("4", hold=HoldKey("f"), key="w")
    ledger.reverse(withdrawal.seq, "bounced", key="r")
    assert _has(ledger, "ann") == Balance(994 * COIN, 6 * COIN)
    assert ledger.holds("ann")[0].remaining == 6 * COIN


def test_reversed_transfer_comes_back_and_the_receiver_owes_what_is_gone(ledger: Ledger) -> None:
    """The sender has all of it again; the receiver owes what was spent of it."""
    transfer = ledger.transfer("ann", "bob", "btc", "500", key="t")
    ledger.withdraw("1400", customer="bob", coin="btc", key="w")
    ledger.reverse(transfer.seq, "sent in error", key="r")
    assert _has(ledger, "ann").available == 1000 * COIN
    assert (_has(ledger, "bob").available, _owes(ledger, "bob")) == (0, 400 * COIN)


def _trade(ledger: Ledger) -> Receipt:
    ledger.list_coin("usdt", 8, key="list:usdt")
    ledger.deposit("bob", "usdt", "300", key="seed:usdt")
    ledger.freeze("bob", "usdt", "250", key="bid")
    ledger.freeze("ann", "btc", "2", key="ask")
    buyer = SettleSide(HoldKey("bid"), release="rest", fee=CoinAmount("btc", "0.002"))
    seller = SettleSide(HoldKey("ask"), fee=CoinAmount("btc", "0.001"))
    return ledger.settle("btc", "usdt", "1", "200", buyer, seller, key="fill")


def test_reversed_settlement_undoes_both_sides_and_the_fees(ledger: Ledger) -> None:
    """Both have what they had, what came out of holds being available again; the fees are given back."""
    fill = _trade(ledger)
    ledger.reverse(fill.seq, "trade broken", key="r")
    assert ledger.balances(support_core.spot("bob")) == {
        "btc": Balance(1000 * COIN, 0),
        "usdt": Balance(300 * COIN, 0),
    }
    assert sum(_has(ledger, "ann")) == 1000 * COIN
    assert ledger.balances(FEES)["btc"] == Balance(0, 0)


class _PoorHouse:
    """Books in which the fees of a fill are not there any more; no operation of today can lead to them."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    def entry(self, seq: int) -> Entry | None:
        return self._entry

    def reversal_of(self, seq: int) -> int | None:
        return None

    def house_account(self, name: str) -> HouseAccount | None:
        return FIRST_HOUSE_ACCOUNTS.get(name)

    def line(self, account: Account, coin: str) -> Line:
        return Line(account, coin, 0 if account == FEES else 10**12)


def test_reversal_that_would_take_the_house_below_zero_is_refused(ledger: Ledger) -> None:
    """The house's fees are never below zero, whatever will be able to take from them one day."""
    fill = _trade(ledger)
    operation = Reverse("r", fill.seq, "trade broken")
    books = cast(State, _PoorHouse(fill.entry))
    with pytest.raises(HouseShort):
        rules.decide(operation, rules.subject_of(operation, books), books, 99, 0)


def test_entry_is_reversed_at_most_once_also_after_sealing_and_a_restart(tmp_path: Path) -> None:
    """The second reversal is refused whether the first is in memory, sealed, or read again at a start."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        deposit = ledger.deposit("ann", "btc", "5", key="d")
        first, second = ledger.execute([Reverse("r1", deposit.seq, "x"), Reverse("r2", deposit.seq, "x")])
        assert isinstance(first, Receipt)
        assert isinstance(second, AlreadyReversed)
        for _ in range(3):
            support_core.fill(ledger, 9, prefix=f"fill{ledger.head.seq}")
            with pytest.raises(AlreadyReversed):
                ledger.reverse(deposit.seq, "x", key=f"r:{ledger.head.seq}")
    with support_core.open_small(tmp_path) as ledger:
        with pytest.raises(AlreadyReversed):
            ledger.reverse(deposit.seq, "x", key="later")
        assert ledger.reverse(deposit.seq, "x", key="r1").replayed
    check_books(tmp_path)


def test_what_cannot_be_reversed_is_refused_and_not_kept(ledger: Ledger) -> None:
    """A freeze, a listing, a reversal and a kept refusal are none of the four kinds."""
    freeze = ledger.freeze("ann", "btc", "1", key="f")
    deposit = ledger.deposit("ann", "btc", "1", key="d")
    reversal = ledger.reverse(deposit.seq, "x", key="r")
    with pytest.raises(InsufficientAvailable) as kept:
        ledger.withdraw("9999", customer="ann", coin="btc", key="w")
    assert kept.value.seq == ledger.head.seq
    for seq in (1, freeze.seq, reversal.seq, kept.value.seq):
        with pytest.raises(InvalidRequest):
            ledger.reverse(seq, "x", key="wrong")
    with pytest.raises(UnknownEntry):
        ledger.reverse(10_000, "x", key="wrong")
    assert ledger.entry_of_key("wrong") is None


def test_same_key_with_another_reason_is_a_conflict(ledger: Ledger) -> None:
    """The reason is part of the request."""
    deposit = ledger.deposit("ann", "btc", "1", key="d")
    ledger.reverse(deposit.seq, "x", key="r")
    with pytest.raises(IdempotencyConflict) as conflict:
        ledger.reverse(deposit.seq, "y", key="r")
    assert conflict.value.details["field"] == "reason"
