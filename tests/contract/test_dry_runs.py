"""Writes that are only tried, and writes with a latest time, on every store."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.operations import (
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    Leg,
    ListCoin,
    OpenHouseAccount,
    Operation,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import ChainFailed, InsufficientAvailable, Refused, TooLate
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from support_core import fill, spot


def all_kinds(head: int) -> list[Operation]:
    """Return operations of each kind, later ones leaning on earlier ones, with refusals and a repeat among them."""
    return [
        ListCoin("list", "usdt.e", 6),
        RegisterCustomer("register", "cy"),
        OpenHouseAccount("open", "treasury", may_be_negative=True),
        Deposit("in", "cy", "usdt.e", "10"),
        Freeze("bid", "cy", "usdt.e", "4", reference="order 1"),
        Freeze("ask", "ann", "btc", "2"),
        Settle(
            *("fill", "btc", "usdt.e", "1", "3"),
            SettleSide(HoldKey("bid"), CoinAmount("btc", "0.1"), "rest"),
            SettleSide(str(head + 6)),
            fee_account="@treasury",
        ),
        Unfreeze("free", HoldKey("ask"), "0.5"),
        Withdraw("out", "0.5", hold=HoldKey("ask")),
        Withdraw("too-much", "9999", "ann", "btc"),
        Transfer("move", "ann", "bob", "btc", "1"),
        Post("gift", [Leg("@treasury", "btc", "-2"), Leg("bob", "btc", "1.5"), Leg("cy", "btc", "0.5")]),
        Withdraw("house-short", "1", "@dust", "btc"),
        Reverse("back", head + 4, "oops"),
        Deposit("nobody", "dee", "btc", "1"),
        Deposit("in", "cy", "usdt.e", "10.0"),
    ]


def shown(outcomes: list[Outcome]) -> list[Any]:
    """Return all that *outcomes* say."""
    return [
        (outcome.code, outcome.message, outcome.details, outcome.seq, outcome.replayed)
        if isinstance(outcome, Refused)
        else tuple(outcome)
        for outcome in outcomes
    ]


def picture(ledger: Ledger) -> Any:
    """Return what reads say."""
    balances = [ledger.balances(spot(name)) for name in ("ann", "bob", "cy")]
    return ledger.head, balances, ledger.holds("ann"), ledger.holds("cy"), dict(ledger.coins), ledger.customers()


@pytest.mark.parametrize("apart", [0, 20])
@pytest.mark.parametrize("chain", [None, "x"])
def test_dry_run_says_what_the_write_then_says_and_leaves_nothing(ledger: Ledger, apart: int, chain: Any) -> None:
    """Entries, balances, holds, refusals and repeats are as they would be; no key is used, and it can be done again."""
    fill(ledger, apart)
    operations = all_kinds(ledger.head.seq)
    if chain:
        operations = [one for one in operations[:-1] if one.key not in ("too-much", "nobody")]
    chains = None if chain is None else [chain] * len(operations)
    before = picture(ledger)
    tried = [shown(ledger.execute(operations, chains=chains, dry_run=True)) for _ in range(2)]
    assert picture(ledger) == before
    assert [ledger.entry_of_key(one.key) for one in operations] == [None] * len(operations)
    assert tried[0] == tried[1] == shown(ledger.execute(operations, chains=chains))
    assert sum(isinstance(outcome, Receipt) for outcome in ledger.execute(operations, dry_run=True)) >= 10


def test_dry_run_of_what_was_done_is_marked_as_a_repeat(ledger: Ledger) -> None:
    """A known key gets its kept result, and other content is a conflict."""
    first = ledger.deposit("ann", "btc", "1", key="d")
    again = ledger.deposit("ann", "btc", "1.0", key="d", dry_run=True)
    assert (again.seq, again.replayed) == (first.seq, True)
    (conflict,) = ledger.execute([Deposit("d", "ann", "btc", "2")], dry_run=True)
    assert isinstance(conflict, Refused)
    assert conflict.code == "idempotency_conflict"


def test_dry_run_raises_what_the_call_would(ledger: Ledger) -> None:
    """A refusal that would be kept is not: its key can still be used."""
    with pytest.raises(InsufficientAvailable) as refused:
        ledger.freeze("ann", "btc", "9999", key="f", dry_run=True)
    assert refused.value.seq == ledger.head.seq + 1
    assert not ledger.freeze("ann", "btc", "1", key="f").replayed


def test_dry_run_does_not_lose_a_hold_that_is_due(place: Any) -> None:
    """It counts with the expiries that a write would book before it, and they are booked by the next one."""
    with place.open() as ledger:
        ledger.list_coin("btc", 8, key="b")
        ledger.register_customer("ann", key="a")
        ledger.deposit("ann", "btc", "1", key="d")
        hold = ledger.freeze("ann", "btc", "1", key="h", expires_ms=place.clock.now_ms + 5).seq
        place.clock.now_ms += 5
        for _ in range(3):
            assert ledger.withdraw("1", customer="ann", coin="btc", key="w", dry_run=True).seq == hold + 2
        assert ledger.hold(hold).due  # type: ignore[union-attr]
        assert ledger.withdraw("1", customer="ann", coin="btc", key="w").seq == hold + 2
    place.check()


def test_write_after_its_latest_time_is_refused_and_not_kept(place: Any) -> None:
    """In time to the millisecond it is booked, later not; the key is unused, and the time is no part of the request."""
    with place.open() as ledger:
        ledger.list_coin("btc", 8, key="b")
        ledger.register_customer("ann", key="a")
        now_ms, head = place.clock.now_ms, ledger.head.seq
        with pytest.raises(TooLate) as refused:
            ledger.deposit("ann", "btc", "1", key="d", not_after_ms=now_ms - 1)
        assert (refused.value.seq, refused.value.details["field"]) == (None, "not_after_ms")
        assert (ledger.head.seq, ledger.entry_of_key("d")) == (head, None)
        first = ledger.deposit("ann", "btc", "1", key="d", not_after_ms=now_ms)
        assert "not_after_ms" not in first.entry.request
        place.clock.now_ms += 10_000
        again = ledger.deposit("ann", "btc", "1", key="d", not_after_ms=now_ms)
        assert (again.seq, again.replayed) == (first.seq, True), "a known key is answered whatever the time"
        assert ledger.deposit("ann", "btc", "1", key="d").replayed
    place.check()


def test_chain_with_one_that_is_too_late_keeps_nothing(ledger: Ledger) -> None:
    """Not even a refusal before it, which would be kept otherwise: the whole chain came too late."""
    head, late_ms = ledger.head, 1_600_000_000_000
    chain = [Withdraw("w", "9999", "ann", "btc"), Deposit("d", "ann", "btc", "1", not_after_ms=late_ms)]
    outcomes = ledger.execute(chain, atomic=True)
    assert [type(outcome) for outcome in outcomes] == [ChainFailed, TooLate]
    assert [outcome.seq for outcome in outcomes] == [None, None]
    assert ledger.head == head


@pytest.mark.parametrize(
    "operation",
    [
        ListCoin("k", "doge", 8, 1_600_000_000_000),
        RegisterCustomer("k", "cy", 1_600_000_000_000),
        OpenHouseAccount("k", "treasury", not_after_ms=1_600_000_000_000),
        Post("k", [Leg("ann", "btc", "-1"), Leg("bob", "btc", "1")], not_after_ms=1_600_000_000_000),
        Freeze("k", "ann", "btc", "1", not_after_ms=1_600_000_000_000),
        Unfreeze("k", HoldKey("h"), not_after_ms=1_600_000_000_000),
        Withdraw("k", "1", "ann", "btc", not_after_ms=1_600_000_000_000),
        Transfer("k", "ann", "bob", "btc", "1", not_after_ms=1_600_000_000_000),
        Settle(
            *("k", "btc", "doge", "1", "1", SettleSide("1"), SettleSide("2")),
            not_after_ms=1_600_000_000_000,
        ),
        Reverse("k", 4, "oops", not_after_ms=1_600_000_000_000),
    ],
    ids=lambda operation: operation.kind,
)
def test_every_write_has_a_latest_time(ledger: Ledger, operation: Operation) -> None:
    """Whatever is asked for, and before anything else is said about it."""
    (outcome,) = ledger.execute([operation])
    assert isinstance(outcome, TooLate)
