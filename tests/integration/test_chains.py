"""Chains and atomic groups: all of it or nothing, with the cause named and kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import support_core
from spotledger.domain.accounts import Balance
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import (
    ChainFailed,
    ChainPartlyKnown,
    InsufficientAvailable,
    InvalidAmount,
    InvalidRequest,
    Refused,
    UnknownHold,
)
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from support_books import check_books

COIN = 10**8


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in which ann and bob have 1000 btc each."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        yield ledger
    check_books(tmp_path)


def _kinds(outcomes: list[Outcome]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


def _too_much(key: str = "w") -> Operation:
    return Withdraw(key, "5000", customer="ann", coin="btc")


def test_chain_that_fails_does_nothing_and_keeps_its_cause(ledger: Ledger) -> None:
    """The failing one is kept with its cause, the others point to it, and what is outside the chain is done."""
    before = ledger.balances(support_core.spot("ann"))
    operations = [
        Deposit("a", "ann", "btc", "1"),
        Freeze("b", "ann", "btc", "2"),
        _too_much(),
        Unfreeze("c", HoldKey("b")),
    ]
    operations.append(Deposit("after", "bob", "btc", "7"))
    outcomes = ledger.execute(operations, chains=["x", "x", "x", "x", None])
    assert _kinds(outcomes) == [ChainFailed, ChainFailed, InsufficientAvailable, ChainFailed, Receipt]
    assert ledger.balances(support_core.spot("ann")) == before
    assert ledger.holds("ann") == []
    seqs = [outcome.seq for outcome in outcomes]
    assert seqs == list(range(seqs[0] or 0, (seqs[0] or 0) + 5))
    assert outcomes[0].details["cause_key"] == "w"  # type: ignore[union-attr]
    assert outcomes[0].details["cause_code"] == "insufficient_available"  # type: ignore[union-attr]


def test_failed_chain_sent_again_gets_the_same_answers(ledger: Ledger) -> None:
    """Even if it could be done now, its keys are used."""
    operations = [Deposit("a", "ann", "btc", "1"), _too_much()]
    first = ledger.execute(operations, atomic=True)
    ledger.deposit("ann", "btc", "9000", key="rich")
    again = ledger.execute(operations, atomic=True)
    assert [outcome.seq for outcome in again] == [outcome.seq for outcome in first]
    assert all(isinstance(outcome, Refused) and outcome.replayed for outcome in again)


def test_chain_done_sent_again_is_a_repeat(ledger: Ledger) -> None:
    """Each of its operations answers as it did, and nothing moves."""
    operations = [Freeze("a", "ann", "btc", "1"), Unfreeze("b", HoldKey("a"))]
    first = ledger.execute(operations, atomic=True)
    again = ledger.execute(operations, atomic=True)
    assert _kinds(first) == [Receipt, Receipt]
    assert [(o.seq, o.replayed) for o in again] == [(o.seq, True) for o in first]


def test_chain_of_known_and_new_keys_is_refused_whole_and_keeps_nothing(ledger: Ledger) -> None:
    """Half a chain is never done; the new keys stay free."""
    ledger.deposit("ann", "btc", "1", key="a")
    head = ledger.head.seq
    outcomes = ledger.execute([Deposit("a", "ann", "btc", "1"), Deposit("b", "ann", "btc", "1")], atomic=True)
    assert _kinds(outcomes) == [ChainPartlyKnown, ChainPartlyKnown]
    assert ledger.head.seq == head
    assert ledger.entry_of_key("b") is None


def test_key_twice_in_a_chain_is_refused_and_keeps_nothing(ledger: Ledger) -> None:
    """Each operation of a chain needs a key of its own."""
    head = ledger.head.seq
    outcomes = ledger.execute([Deposit("a", "ann", "btc", "1")] * 2, atomic=True)
    assert _kinds(outcomes) == [InvalidRequest, InvalidRequest]
    assert ledger.head.seq == head


def test_chain_with_an_operation_wrong_in_itself_keeps_nothing(ledger: Ledger) -> None:
    """Mended, the chain may be sent again under the same keys."""
    head = ledger.head.seq
    wrong = [Deposit("a", "ann", "btc", "1"), Deposit("b", "ann", "btc", "0.000000001")]
    assert _kinds(ledger.execute(wrong, atomic=True)) == [ChainFailed, InvalidAmount]
    assert ledger.head.seq == head
    mended = [wrong[0], Deposit("b", "ann", "btc", "0.00000001")]
    assert _kinds(ledger.execute(mended, atomic=True)) == [Receipt, Receipt]


def test_undone_chain_leaves_no_trace_for_later_operations(ledger: Ledger) -> None:
    """A coin, a customer, a hold and a key of an undone chain do not exist for what follows in the same group."""
    operations: list[Operation] = [
        ListCoin("coin", "eth", 18),
        RegisterCustomer("carol", "carol"),
        Freeze("held", "ann", "btc", "1"),
        _too_much(),
        Unfreeze("free", HoldKey("held")),
        Deposit("eth", "ann", "eth", "1"),
        Deposit("c", "carol", "btc", "1"),
    ]
    outcomes = ledger.execute(operations, chains=["x"] * 4 + [None] * 3)
    assert [getattr(outcome, "code", "done") for outcome in outcomes[4:]] == [
        "unknown_hold",
        "unknown_coin",
        "unknown_customer",
    ]
    assert isinstance(outcomes[4], UnknownHold)
    assert "eth" not in ledger.coins
    assert not ledger.has_customer("carol")


def test_neighbouring_chains_stand_for_themselves(ledger: Ledger) -> None:
    """One chain's failure is nothing to the next, and the same text further on is another chain."""
    operations = [
        Deposit("a", "ann", "btc", "1"),
        _too_much("w1"),
        Deposit("b", "ann", "btc", "1"),
        Deposit("c", "bob", "btc", "1"),
    ]
    outcomes = ledger.execute(operations, chains=["x", "x", "y", "x"])
    assert _kinds(outcomes) == [ChainFailed, InsufficientAvailable, Receipt, Receipt]
    assert ledger.balances(support_core.spot("ann"))["btc"] == Balance(1001 * COIN, 0)


def test_chain_longer_than_allowed_is_refused_before_anything_is_done(ledger: Ledger) -> None:
    """1,001 operations in one chain are too many; the message says how many would pass."""
    operations = [Deposit(f"d{n}", "ann", "btc", "1") for n in range(1001)]
    with pytest.raises(InvalidRequest, match="1000"):
        ledger.execute(operations, atomic=True)
    assert ledger.entry_of_key("d0") is None


class _CountedKey(str):
    """A key that counts how often it is compared with another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        _CountedKey.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize("twice", [False, True])
def test_longest_chain_of_known_and_new_keys_is_refused_without_comparing_each_with_each(
    ledger: Ledger, twice: bool
) -> None:
    """A wrong chain costs no more than a right one: the work grows with its length, not with the cube of it."""
    ledger.deposit("ann", "btc", "1", key="key:0")
    numbers = [*range(999), 998 if twice else 999]
    operations = [Deposit(_CountedKey(f"key:{number}"), "ann", "btc", "1") for number in numbers]
    _CountedKey.compared = 0
    outcomes = ledger.execute(operations, atomic=True)
    assert set(_kinds(outcomes)) == {InvalidRequest if twice else ChainPartlyKnown}
    assert _CountedKey.compared < 20_000


@pytest.mark.parametrize("chains", [[], ["x"], ["x", "x", "x"]])
def test_chains_of_another_length_than_the_operations_are_refused(ledger: Ledger, chains: list[str]) -> None:
    """One value per operation; nothing is done where there are fewer or more."""
    head = ledger.head.seq
    with pytest.raises(InvalidRequest, match="2, one per operation, would pass") as refused:
        ledger.execute([Deposit("a", "ann", "btc", "1"), Deposit("b", "ann", "btc", "1")], chains=chains)
    assert refused.value.details["field"] == "chains"
    assert ledger.head.seq == head


def test_expiry_asked_for_by_a_caller_is_refused(ledger: Ledger) -> None:
    """It is the ledger's own: under its key a caller could keep a hold from ever expiring, or stop all writing."""
    hold = ledger.freeze("ann", "btc", "1", key="f", expires_ms=2_000_000_000_000).seq
    for hold_id in (hold, hold + 1):
        with pytest.raises(InvalidRequest, match="expire"):
            ledger.execute([Deposit("d", "ann", "btc", "1"), Expire(str(hold_id))])
    assert ledger.head.seq == hold
    assert ledger.deposit("ann", "btc", "1", key="d").seq == hold + 1
