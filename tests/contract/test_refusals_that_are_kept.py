"""Which refusals use up their key, on every store: those whose cause is the customer's own balance or hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spotledger.domain.operations import (
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
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger, Receipt
from support_core import fill

MOST = "6" * 30


def _legs(source: str, target: str, amount: str = "1") -> list[Leg]:
    return [Leg(source, "btc", f"-{amount}"), Leg(target, "btc", amount)]


def _reversal_of_what_is_gone(ledger: Ledger) -> Operation:
    paid = ledger.transfer("ann", "@dust", "btc", "1", key="paid")
    ledger.withdraw("1", customer="@dust", coin="btc", key="gone")
    return Reverse("k", paid.seq, "oops")


def _next(ledger: Ledger) -> int:
    return ledger.head.seq + 1


#: What is refused, by its code, and what then lets the same request pass.
PASSES_LATER: list[tuple[str, Callable[[Ledger], Operation], list[Operation]]] = [
    ("unknown_customer", lambda _: Deposit("k", "cy", "btc", "1"), [RegisterCustomer("r", "cy")]),
    ("unknown_coin", lambda _: Deposit("k", "ann", "usdt.e", "1.50"), [ListCoin("l", "usdt.e", 6)]),
    ("unknown_customer", lambda _: Transfer("k", "ann", "cy", "btc", "1"), [RegisterCustomer("r", "cy")]),
    ("unknown_hold", lambda _: Unfreeze("k", HoldKey("f")), [Freeze("f", "ann", "btc", "1")]),
    ("unknown_hold", lambda ledger: Withdraw("k", "1", hold=str(_next(ledger))), [Freeze("f", "ann", "btc", "1")]),
    ("unknown_entry", lambda ledger: Reverse("k", _next(ledger), "late"), [Deposit("d", "ann", "btc", "1")]),
    ("unknown_house_account", lambda _: Deposit("k", "@vault", "btc", "1"), [OpenHouseAccount("o", "vault")]),
    ("unknown_customer", lambda _: Post("k", _legs("ann", "cy")), [RegisterCustomer("r", "cy")]),
    ("unknown_house_account", lambda _: Post("k", _legs("ann", "@vault")), [OpenHouseAccount("o", "vault")]),
    ("insufficient_available", lambda _: Post("k", _legs("@dust", "ann")), [Deposit("d", "@dust", "btc", "1")]),
    ("insufficient_available", lambda _: Freeze("k", "@dust", "btc", "1"), [Deposit("d", "@dust", "btc", "1")]),
    ("insufficient_available", lambda _: Withdraw("k", "1", "@dust", "btc"), [Deposit("d", "@dust", "btc", "1")]),
    ("house_short", lambda ledger: _reversal_of_what_is_gone(ledger), [Deposit("d", "@dust", "btc", "1")]),
    (
        "balance_too_large",
        lambda ledger: ledger.deposit("ann", "btc", MOST, key="much") and Deposit("k", "ann", "btc", MOST),
        [Withdraw("w", MOST, "ann", "btc")],
    ),
]


def refused(ledger: Ledger, operation: Operation) -> Refused:
    """Return the refusal of *operation*."""
    (outcome,) = ledger.execute([operation])
    assert isinstance(outcome, Refused)
    return outcome


@pytest.mark.parametrize("apart", [0, 20])
@pytest.mark.parametrize(("code", "asked", "remedy"), PASSES_LATER, ids=[row[0] for row in PASSES_LATER])
def test_refusal_with_another_cause_leaves_the_key_unused(
    ledger: Ledger, code: str, asked: Any, remedy: list[Operation], apart: int
) -> None:
    """Nothing is kept of it, and the same request under the same key passes once its cause is gone."""
    operation = asked(ledger)
    head = ledger.head.seq
    for _ in range(2):
        refusal = refused(ledger, operation)
        assert (refusal.code, refusal.seq, refusal.replayed) == (code, None, False)
    assert (ledger.head.seq, ledger.entry_of_key("k")) == (head, None)
    assert all(isinstance(outcome, Receipt) for outcome in ledger.execute(remedy))
    fill(ledger, apart)
    outcomes = ledger.execute([operation, operation])
    assert [isinstance(outcome, Receipt) and outcome.replayed for outcome in outcomes] == [False, True]


def test_deposit_passes_in_the_group_that_registers_its_customer(ledger: Ledger) -> None:
    """Once-only holds inside one group: refused before the registration, booked after it, and then a repeat."""
    deposit = Deposit("0x" + "ab" * 32, "cy", "btc", "1")
    outcomes = ledger.execute([deposit, RegisterCustomer("r", "cy"), deposit, deposit])
    assert [getattr(outcome, "code", "done") for outcome in outcomes] == ["unknown_customer", "done", "done", "done"]
    assert outcomes[3].replayed


@pytest.mark.parametrize(
    ("code", "before", "operation", "remedy"),
    [
        ("insufficient_available", [], Withdraw("k", "2000", "ann", "btc"), Deposit("d", "ann", "btc", "5000")),
        ("insufficient_available", [], Post("k", _legs("ann", "bob", "2000")), Deposit("d", "ann", "btc", "5000")),
        ("hold_short", [Freeze("f", "ann", "btc", "1")], Unfreeze("k", HoldKey("f"), "2"), None),
        (
            "hold_closed",
            [Freeze("f", "ann", "btc", "1"), Unfreeze("u", HoldKey("f"))],
            Unfreeze("k", HoldKey("f")),
            None,
        ),
    ],
)
def test_refusal_by_the_own_balance_or_hold_is_kept(
    ledger: Ledger, code: str, before: list[Operation], operation: Operation, remedy: Operation | None
) -> None:
    """A stray duplicate gets the first answer, whatever was booked meanwhile."""
    ledger.execute(before)
    first = refused(ledger, operation)
    assert (first.code, first.seq, first.replayed) == (code, ledger.head.seq, False)
    if remedy is not None:
        ledger.execute([remedy])
    fill(ledger, 20)
    again = refused(ledger, operation)
    assert (again.code, again.seq, again.replayed) == (code, first.seq, True)


def test_chain_whose_cause_is_not_kept_leaves_all_keys_unused(ledger: Ledger) -> None:
    """The chain passes under the same keys once the customer is there."""
    chain = [Deposit("a", "ann", "btc", "1"), Transfer("b", "ann", "cy", "btc", "1")]
    head = ledger.head.seq
    outcomes = ledger.execute(chain, atomic=True)
    assert [(outcome.code, outcome.seq) for outcome in outcomes] == [("chain_failed", None), ("unknown_customer", None)]
    assert ledger.head.seq == head
    ledger.register_customer("cy", key="r")
    assert all(isinstance(outcome, Receipt) for outcome in ledger.execute(chain, atomic=True))
