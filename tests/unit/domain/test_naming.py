"""What an operation names, read from its fields."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import Account
from spotledger.domain.naming import ACCOUNTS_OF, HOLDS_OF, LOCATING
from spotledger.domain.operations import (
    OPERATIONS,
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    OpenHouseAccount,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)

ALICE = Account("alice", "spot")


@pytest.mark.parametrize(
    ("operation", "accounts"),
    [
        (RegisterCustomer("k", "alice"), (ALICE,)),
        (Deposit("k", "alice", "usdt", "1"), (ALICE,)),
        (Freeze("k", "alice", "usdt", "1", "wallet"), (Account("alice", "wallet"),)),
        (Withdraw("k", "1", "alice", "usdt"), (ALICE,)),
        (Withdraw("k", "1", "alice", "usdt", hold="7"), ()),
        (Withdraw("k", "1", hold="7"), ()),
        (Deposit("k", "@treasury", "usdt", "1"), (Account("@treasury", "house"),)),
        (Transfer("k", "alice", "bob", "usdt", "1", to_account="fiat"), (ALICE, Account("bob", "fiat"))),
    ],
)
def test_accounts_are_those_that_an_operation_names_itself(operation: Any, accounts: tuple[Account, ...]) -> None:
    """Each customer comes with the account beside it; what is named beside a hold is a precondition."""
    assert ACCOUNTS_OF[type(operation)](operation) == accounts


def test_operations_without_accounts_of_their_own_have_no_reader() -> None:
    """A hold and an entry have their accounts, and a listing has none."""
    assert set(OPERATIONS) - ACCOUNTS_OF.keys() == {ListCoin, OpenHouseAccount, Unfreeze, Settle, Reverse}


@pytest.mark.parametrize(
    ("operation", "holds"),
    [
        (Deposit("k", "alice", "usdt", "1"), ()),
        (Unfreeze("k", "7"), ("7",)),
        (Withdraw("k", "1", hold=HoldKey("a")), (HoldKey("a"),)),
        (Withdraw("k", "1", "alice", "usdt"), ()),
        (Settle("k", "btc", "usdt", "1", "2", SettleSide("7"), SettleSide(HoldKey("b"))), ("7", HoldKey("b"))),
        (Expire("9"), ("9",)),
    ],
)
def test_holds_are_those_of_the_operation_or_of_its_sides(operation: Operation, holds: tuple[Any, ...]) -> None:
    """By their ids or by the keys that opened them, the buyer's first."""
    read = HOLDS_OF.get(type(operation))
    assert (() if read is None else read(operation)) == holds


def test_operations_that_name_holds_or_entries_are_located() -> None:
    """Their positions become plain numbers."""
    assert LOCATING.keys() == {Unfreeze, Withdraw, Settle, Reverse}
