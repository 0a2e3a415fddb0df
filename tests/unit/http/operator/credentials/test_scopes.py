"""The scope that each operation needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from spotledger import paths
from spotledger.domain.operations import (
    OPERATIONS,
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    OpenHouseAccount,
    Operation,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import ScopeMissing
from spotledger.http.operator.credentials.scopes import SCOPE_OF, check_scopes, scopes_of
from spotledger.http.operator.operation_bodies import path_of
from spotledger.security.tokens import SCOPES
from support_operator import operator_api

WRITER = ("ledger:write",)
CONTROLLER = ("ledger:write", "ledger:control")


def paid_by_house(operation: Any, field: str) -> Operation:
    """Return *operation* with a house account in *field*."""
    account = field.replace("customer", "account")
    return replace(operation, **{field: "@treasury", account: None})  # type: ignore[no-any-return]


def test_every_operation_that_can_be_asked_for_has_a_scope() -> None:
    """A new operation is not forgotten: the table has each one but the ledger's own."""
    assert SCOPE_OF.keys() == set(get_args(Operation)) - {Expire}
    assert set(SCOPE_OF.values()) <= set(SCOPES)


@pytest.mark.parametrize(
    ("operation", "payer"),
    [
        (Withdraw("k", "1", "alice", "usdt"), "customer"),
        (Freeze("k", "alice", "usdt", "1"), "customer"),
        (Transfer("k", "alice", "bob", "usdt", "1"), "from_customer"),
    ],
)
def test_payment_of_a_house_account_needs_control_as_well(operation: Operation, payer: str) -> None:
    """The same operation passes for a customer; for a house account it needs two scopes, or admin."""
    check_scopes([operation], WRITER)
    assert scopes_of(operation) == WRITER
    of_house = paid_by_house(operation, payer)
    assert scopes_of(of_house) == CONTROLLER
    for scopes in (WRITER, ("ledger:control",), ("ledger:read", "keys:write", "metrics:read"), ()):
        with pytest.raises(ScopeMissing):
            check_scopes([of_house], scopes)
    for scopes in (CONTROLLER, ("admin",), SCOPES):
        check_scopes([of_house], scopes)


def test_one_operation_beyond_the_scopes_refuses_all() -> None:
    """Among operations that may be done, the one that may not is found wherever it stands."""
    harmless: list[Operation] = [Deposit("k", "alice", "usdt", "1"), Unfreeze("k", "1")]
    for place in range(3):
        operations = [*harmless]
        operations.insert(place, paid_by_house(Withdraw("k", "1", "alice", "usdt"), "customer"))
        with pytest.raises(ScopeMissing, match="ledger:control"):
            check_scopes(operations, WRITER)


def test_opening_a_house_account_needs_control_alone() -> None:
    """It moves no money, and is not for who writes."""
    assert scopes_of(OpenHouseAccount("k", "treasury")) == ("ledger:control",)
    with pytest.raises(ScopeMissing, match="ledger:control"):
        check_scopes([OpenHouseAccount("k", "treasury")], WRITER)


def test_payment_to_a_house_account_needs_no_control() -> None:
    """What a house account receives is no payment of it."""
    assert scopes_of(paid_by_house(Deposit("k", "alice", "usdt", "1"), "customer")) == WRITER
    assert scopes_of(paid_by_house(Transfer("k", "alice", "bob", "usdt", "1"), "to_customer")) == WRITER
    sides = SettleSide(HoldKey("a")), SettleSide(HoldKey("b"))
    assert scopes_of(Settle("k", "btc", "usdt", "1", "1", *sides)) == WRITER


def test_every_single_call_asks_for_the_scope_of_its_operation(tmp_path: Path) -> None:
    """The scope of a path is the one of the table, so a single call and a batch cannot differ."""
    with operator_api(tmp_path / "data") as api:
        scopes = {
            route.path: call.scope for route in api.app.routes for name, call in route.calls.items() if call.write
        }
    asked = {path_of(kind): SCOPE_OF[kind] for kind in OPERATIONS}
    ledger = {**asked, paths.HOLD_RELEASE: "ledger:write", paths.BATCHES: "ledger:write"}
    assert {path: scope for path, scope in scopes.items() if scope in CONTROLLER} == ledger
