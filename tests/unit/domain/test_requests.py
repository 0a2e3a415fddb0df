"""Canonical requests: derived from the fields of each operation, to the byte as the journal has always kept them."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from spotledger.domain.accounts import Coin
from spotledger.domain.books import Subject
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    OpenHouseAccount,
    Operation,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.domain.requests import REQUESTS

KNOWN = Subject(Coin("usdt", 8), 4_000_025_000_000, None)
UNKNOWN = Subject()
THEN_MS = 1_600_000_000_000
ALICE = '"customer":"alice","account":"spot","coin":"usdt"'
UNITS = '"units":"4000025000000"'
MEANT = {"customer": "alice", "coin": "usdt", "epoch": 3}

#: Each operation, what the rules know of its amount, and the text of its request after the format and the operation.
KEPT = [
    (ListCoin("k", "btc", 8), UNKNOWN, '"coin":"btc","scale":8'),
    (RegisterCustomer("k", "alice"), UNKNOWN, '"customer":"alice"'),
    (OpenHouseAccount("k", "treasury"), UNKNOWN, '"name":"treasury","may_be_negative":false'),
    (Deposit("k", "@fees", "usdt", "1"), KNOWN, f'"customer":"@fees","account":"house","coin":"usdt",{UNITS}'),
    (Deposit("k", "alice", "usdt", "1.50"), UNKNOWN, f'{ALICE},"amount":"1.5"'),
    (
        Deposit("k", "alice", "usdt", "1", "spot", "in", THEN_MS),
        KNOWN,
        f'{ALICE},"reference":"in","happened_ms":{THEN_MS},{UNITS}',
    ),
    (
        Freeze("k", "alice", "usdt", "1", "spot", "o", THEN_MS),
        KNOWN,
        f'{ALICE},"reference":"o","expires_ms":{THEN_MS},{UNITS}',
    ),
    (Unfreeze("k", "4711"), KNOWN, '"hold":"4711"'),
    (Unfreeze("k", HoldKey("h"), "1.50", **MEANT), UNKNOWN, '"hold":{"key":"h"},"amount":"1.5"'),
    (Unfreeze("k", "4711", "1.50"), KNOWN, f'"hold":"4711","coin":"usdt",{UNITS}'),
    (Withdraw("k", "1", "alice", "usdt", happened_ms=THEN_MS), KNOWN, f'{ALICE},"happened_ms":{THEN_MS},{UNITS}'),
    (Withdraw("k", "1", hold="7", reference="x"), KNOWN, f'"hold":"7","reference":"x","coin":"usdt",{UNITS}'),
    (Withdraw("k", "1.0", hold=HoldKey("h"), **MEANT), UNKNOWN, '"hold":{"key":"h"},"amount":"1"'),
    (
        Transfer("k", "alice", "bob", "usdt", "1", "wallet", reference="r"),
        KNOWN,
        '"from":{"customer":"alice","account":"wallet"},"to":{"customer":"bob","account":"spot"},"coin":"usdt",'
        f'"reference":"r",{UNITS}',
    ),
    (
        Transfer("k", "alice", "@treasury", "usdt", "1"),
        KNOWN,
        '"from":{"customer":"alice","account":"spot"},"to":{"customer":"@treasury","account":"house"},"coin":"usdt",'
        f"{UNITS}",
    ),
    (Reverse("k", 12, "why", **MEANT), UNKNOWN, '"seq":12,"reason":"why"'),
    (Expire("12"), KNOWN, '"hold":"12"'),
]


@pytest.mark.parametrize(("operation", "subject", "kept"), KEPT)
def test_request_is_kept_to_the_byte_as_ever(operation: Operation, subject: Subject, kept: str) -> None:
    """Names, order and values are those of the journals that exist; preconditions are no part of a request."""
    made = json.dumps(REQUESTS[type(operation)](operation, subject), separators=(",", ":"))
    assert made == f'{{"format":1,"op":"{operation.kind}",{kept}}}'


def test_every_operation_without_parts_has_its_request_derived() -> None:
    """Only settlements and posts write their requests themselves; the table above has each of the others."""
    assert set(REQUESTS) == set(get_args(Operation)) - {Settle, Post} == {type(operation) for operation, _, _ in KEPT}
