"""The bodies that ask for an operation: read in one pass, and refused as their structs say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spotledger.domain.fields import KEY, SCALE, fields_of
from spotledger.domain.operations import (
    OPERATIONS,
    Deposit,
    Described,
    HoldKey,
    Operation,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
)
from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator.bodies import decode
from spotledger.http.operator.fields import SCHEMAS
from spotledger.http.operator.operation_bodies import BODIES, RELEASE_BODY, OperationBody, example_of, path_of

SETTLE = example_of(Settle)
BAD = [
    pytest.param(Deposit, b"[]", "body", id="list"),
    pytest.param(Deposit, b"1", "body", id="number"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b"}', "amount", id="missing"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b","amount":"1","key":"k"}', "key", id="key"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b","amount":"1","self":"k"}', "self", id="self"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b","amount":"1","coin":"b"}', "coin", id="twice"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b","amount":"1","c\\u006fin":"b"}', "coin", id="twice, escaped"),
    pytest.param(Deposit, b'{"customer":"a","coin":"b","amount":1}', "amount", id="value"),
    pytest.param(Unfreeze, b'{"hold":null}', "hold", id="no hold"),
    pytest.param(Unfreeze, b'{"hold":{"key":"k","x":1}}', "hold", id="hold with another name"),
    pytest.param(Unfreeze, b'{"hold":{"key":"k","key":"l"}}', "key", id="hold with its key twice"),
    pytest.param(Transfer, b'{"from_customer":"a","to":{"customer":"b"},"coin":"c"}', "from_customer", id="flat"),
    pytest.param(
        Transfer,
        b'{"from":{"customer":"a"},"to":{"customer":"b"},"from_customer":"c","coin":"d","amount":"1"}',
        "from_customer",
        id="flat as well",
    ),
    pytest.param(
        Transfer, b'{"from":[],"to":{"customer":"b"},"coin":"d","amount":"1"}', "from", id="an end that is a list"
    ),
    pytest.param(
        Transfer, b'{"from":{"customer":"a","x":1},"to":{},"coin":"d","amount":"1"}', "from.x", id="an unknown field"
    ),
    pytest.param(Settle, json.dumps({**SETTLE, "buyer": None}).encode(), "buyer", id="no side"),
    pytest.param(Settle, json.dumps({**SETTLE, "buyer": {}}).encode(), "buyer.hold", id="a side without a hold"),
    pytest.param(Settle, json.dumps({**SETTLE, "seller": {"hold": "7", "fee": []}}).encode(), "seller.fee", id="fee"),
    pytest.param(
        Settle, json.dumps({**SETTLE, "seller": {"hold": "7", "dust": {"coin": "X", "amount": "0"}}}).encode(),
        "seller.dust.coin", id="dust",
    ),
]  # fmt: skip


def read(body: OperationBody, text: bytes, *of_path: str) -> Operation:
    """Make the operation that *text* asks for, as a call does."""
    return body.make("k", decode(text, body.struct), *of_path)


@pytest.mark.parametrize(("kind", "body", "field"), BAD)
def test_body_of_another_form_is_refused_with_its_field(kind: type[Described], body: bytes, field: str) -> None:
    """What is unknown, missing, wrong or there twice is named, with the object that it is in."""
    with pytest.raises(InvalidRequest) as refused:
        read(BODIES[kind], body)
    assert refused.value.details["field"] == field


@pytest.mark.parametrize("body", [b"", b"{", b'{"customer":"\xff"}', b'{"scale":1e999}x', b"{" * 2000])
def test_body_that_is_no_json_is_malformed(body: bytes) -> None:
    """Cut short, not in UTF-8, or nested without end."""
    with pytest.raises(MalformedRequest):
        read(BODIES[Deposit], body)


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)
def test_example_of_each_operation_asks_for_it(kind: type[Described]) -> None:
    """The example in the documents is read without a complaint, with blanks and without."""
    for separators in ((",", ":"), (" , ", " : ")):
        text = json.dumps(example_of(kind), separators=separators, ensure_ascii=False)
        assert isinstance(read(BODIES[kind], text.encode()), kind)


def test_example_is_made_of_the_required_fields_unless_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new operation has an example, too; the ends of a transfer are objects."""
    for kind in (Deposit, Transfer):
        monkeypatch.setattr(kind, "example", None)
    assert example_of(Deposit) == {"customer": "alice", "coin": "usdt", "amount": "100.50"}
    assert example_of(Transfer) == {
        "from": {"customer": "alice"}, "to": {"customer": "alice"}, "coin": "usdt", "amount": "100.50",
    }  # fmt: skip


def test_colons_in_texts_are_no_names() -> None:
    """A reference with colons passes; a name that is lost behind one is found all the same."""
    body = b'{"customer":"a","coin":"b","amount":"1","reference":"a:b:c"%b}'
    assert read(BODIES[Deposit], body % b"").reference == "a:b:c"  # type: ignore[union-attr]
    with pytest.raises(InvalidRequest, match="twice"):
        read(BODIES[Deposit], body % b',"amount":"1"')


def test_release_takes_its_hold_from_the_path_alone() -> None:
    """A body that names another hold beside the one in the path is refused."""
    assert read(RELEASE_BODY, b'{"amount":"2"}', "7") == Unfreeze("k", "7", "2")
    with pytest.raises(InvalidRequest) as refused:
        read(RELEASE_BODY, b'{"hold":"8"}', "7")
    assert refused.value.details["field"] == "hold"


def test_parts_of_a_body_become_those_of_the_operation() -> None:
    """Holds by id or key, sides, fees and ends are what the rules expect."""
    operation: Any = read(BODIES[Settle], json.dumps(SETTLE).encode())
    assert operation.buyer.hold == HoldKey("order-7")
    assert (operation.buyer.fee.coin, operation.seller.dust) == ("btc", None)
    assert type(operation.seller) is SettleSide
    moved: Any = read(BODIES[Transfer], json.dumps(example_of(Transfer)).encode())
    assert (moved.from_account, moved.to_account) == ("wallet", "spot")


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)
def test_each_operation_has_its_path_its_scope_and_a_schema_of_each_field(kind: type[Described]) -> None:
    """Whatever has a class is derived whole: nothing is left to be added beside it."""
    assert path_of(kind) == f"/v1/{kind.collection}"
    for field in fields_of(kind):
        assert field.parts is not None or field.form in SCHEMAS
    assert SCALE in SCHEMAS
    assert KEY in SCHEMAS
