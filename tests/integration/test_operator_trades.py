"""Settlements, reversals and releases over HTTP: exact, once, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from support_operator import Api, operator_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger in which alice may buy btc from bob: her hold is "buy", his is "sell"."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        made.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "2"})
        made.must("/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "60", "reference": "order-1"}, "buy")
        made.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "1", "reference": "order-2"}, "sell")
        yield made


def fill(**changes: Any) -> dict[str, Any]:
    """Return a fill of half a btc at 100 usdt each, with a fee on both sides; *changes* by name."""
    body: dict[str, Any] = {
        "base": "btc",
        "quote": "usdt",
        "base_amount": "0.5",
        "quote_amount": "50",
        "buyer": {"hold": {"key": "buy"}, "fee": {"coin": "btc", "amount": "0.001"}, "release": "rest"},
        "seller": {"hold": {"key": "sell"}, "fee": {"coin": "usdt", "amount": "0.1"}},
    }
    return {**body, **changes}


def test_settlement_moves_both_sides_and_both_fees(api: Api) -> None:
    """One fill is one entry: the holds pay, each side receives less its fee, the better price is freed."""
    answer = api.must("/v1/settlements", fill())
    assert api.balances("alice")["btc"] == {"available": "0.499", "freeze": "0.00"}
    assert api.balances("alice")["usdt"] == {"available": "50.00", "freeze": "20.00"}
    assert api.balances("bob")["usdt"] == {"available": "49.90", "freeze": "0.00"}
    assert api.balances("bob")["btc"] == {"available": "1.00", "freeze": "0.50"}
    assert {coin: api.balances("@fees")[coin]["available"] for coin in ("btc", "usdt")} == {
        "btc": "0.001",
        "usdt": "0.10",
    }
    entry = answer["entry"]
    sums: dict[str, Decimal] = {}
    for posting in entry["postings"]:
        sums[posting["coin"]] = sums.get(posting["coin"], Decimal()) + Decimal(posting["amount"])
    assert sums == {"usdt": 0, "btc": 0}
    assert [hold["remaining"] for hold in entry["holds"]] == ["0.00", "0.50"]
    assert entry["request"]["buyer"] == {
        "hold": {"key": "buy"},
        "fee": {"coin": "btc", "amount": "0.001"},
        "release": "rest",
    }


def test_settlement_sent_again_is_the_same_and_changed_names_the_field(api: Api) -> None:
    """A repeat is marked; another fee under the same key is a conflict, and nothing moves."""
    first = api.post("/v1/settlements", fill(), "fill-1")
    again = api.post("/v1/settlements", fill(), "fill-1")
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    other = api.post("/v1/settlements", fill(quote_amount="51"), "fill-1")
    assert (other.status_code, other.json()["field"]) == (409, "quote_amount")


def test_settlement_of_holds_named_by_id_is_the_same_as_by_key(api: Api) -> None:
    """A hold is named by its id or by the key that opened it."""
    holds = {c: api.get(f"/v1/customers/{c}/holds").json()["holds"][-1]["hold"] for c in ("alice", "bob")}
    api.must("/v1/settlements", fill(buyer={"hold": holds["alice"]}, seller={"hold": holds["bob"]}))
    assert api.balances("alice")["btc"]["available"] == "0.50"


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"quote_amount": "61"}, 422, "hold_short", "buyer.hold"),
        ({"base_amount": "1.1"}, 422, "hold_short", "seller.hold"),
        ({"buyer": {"hold": "999"}}, 422, "unknown_hold", "buyer.hold"),
        ({"buyer": {"hold": {"key": "sell"}}}, 422, "invalid_request", "buyer.hold"),
        ({"buyer": {"hold": {"key": "buy"}, "fee": {"coin": "shib", "amount": "1"}}}, 422, "invalid_request", None),
        ({"buyer": {}}, 422, "invalid_request", "buyer.hold"),
        ({"buyer": "buy"}, 422, "invalid_request", "buyer"),
        ({"buyer": {"hold": {"key": "buy"}, "fee": {"coin": "btc"}}}, 422, "invalid_request", "buyer.fee.amount"),
        ({"buyer": {"hold": {"key": "buy"}, "fee": {"coin": "btc", "amount": 1}}}, 422, "invalid_amount", None),
        ({"buyer": {"hold": {"key": "buy"}, "release": "all"}}, 422, "invalid_amount", "buyer.release"),
        ({"buyer": {"hold": {"key": 7}}}, 422, "invalid_request", "buyer.hold.key"),
        ({"quote": "btc"}, 422, "invalid_request", "quote"),
        ({"base": "doge"}, 422, "unknown_coin", "base"),
        ({"price": "100"}, 422, "invalid_request", "price"),
        ({"quote_amount": "50.000000001"}, 422, "invalid_amount", "quote_amount"),
    ],
)
def test_settlement_with_something_wrong_is_refused_whole(
    api: Api, changes: dict[str, Any], status: int, code: str, field: str | None
) -> None:
    """What cannot be done wholly is not done at all, and the field is named."""
    before = [api.balances(name) for name in ("alice", "bob", "@fees")]
    answer = api.post("/v1/settlements", fill(**changes))
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert field is None or answer.json()["field"] == field
    assert [api.balances(name) for name in ("alice", "bob", "@fees")] == before


def test_hold_is_used_in_parts_by_many_settlements(api: Api) -> None:
    """Fills take parts of a hold until it is closed; one more is refused."""
    for number in range(5):
        part = fill(base_amount="0.1", quote_amount="12", buyer={"hold": {"key": "buy"}})
        api.must("/v1/settlements", {**part, "seller": {"hold": {"key": "sell"}}}, f"part-{number}")
    refused = api.post("/v1/settlements", fill())
    assert refused.json()["code"] == "hold_closed"


def test_reversal_undoes_a_settlement_once_with_its_reason(api: Api) -> None:
    """What came out of holds returns to available, the fees go back, and the entry is linked with its reason."""
    seq = api.must("/v1/settlements", fill())["seq"]
    entry = api.must("/v1/reversals", {"seq": seq, "reason": "bad price"})["entry"]
    assert entry["request"] == {"op": "reverse", "seq": seq, "reason": "bad price"}
    assert api.balances("alice")["usdt"] == {"available": "100.00", "freeze": "20.00"}
    assert api.balances("@fees")["btc"]["available"] == "0.00"
    again = api.post("/v1/reversals", {"seq": seq, "reason": "bad price"})
    assert (again.status_code, again.json()["code"], again.json()["by"]) == (422, "already_reversed", entry["seq"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seq": 1}, "reason"),
        ({"seq": 1, "reason": None}, "reason"),
        ({"seq": 1, "reason": ""}, "reason"),
        ({"seq": "1", "reason": "x"}, "seq"),
        ({"seq": 0, "reason": "x"}, "seq"),
        ({"seq": 1.5, "reason": "x"}, "seq"),
        ({"seq": True, "reason": "x"}, "seq"),
        ({"seq": 2**63, "reason": "x"}, "seq"),
        ({"seq": 1, "reason": "listings cannot be reversed"}, "seq"),
    ],
)
def test_reversal_with_something_wrong_is_refused_by_name(api: Api, body: dict[str, Any], field: str) -> None:
    """A reversal names an entry that can be reversed, and says why."""
    answer = api.post("/v1/reversals", body)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_release_by_the_key_that_opened_the_hold_frees_it(api: Api) -> None:
    """A release names its hold like every other call does."""
    api.must("/v1/releases", {"hold": {"key": "buy"}, "amount": "10"})
    api.must("/v1/releases", {"hold": {"key": "buy"}})
    assert api.balances("alice")["usdt"] == {"available": "100.00", "freeze": "20.00"}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"customer":"alice","coin":"usdt","amount":"1","amount":"1000"}', "amount"),
        (b'{"customer":"alice","coin":"usdt","amount":"1","am\\u006funt":"1000"}', "amount"),
        (b'{"customer":"bob", "customer":"alice","coin":"usdt","amount":"1"}', "customer"),
        (b'{"customer":"alice","coin":"usdt","amount":"1","account":"spot","account":"spot"}', "account"),
    ],
)
def test_name_that_stands_twice_is_refused(api: Api, body: bytes, name: str) -> None:
    """An amount sent twice is refused: its meaning would depend on the reader."""
    seq = api.seq
    answer = api.post("/v1/deposits", body)
    assert (answer.status_code, answer.json()["field"], api.seq) == (422, name, seq)


def test_defaults_and_escapes_that_are_sent_are_not_taken_for_names(api: Api) -> None:
    """Only names are counted once: quotation marks in values, sent defaults and blanks are as good as ever."""
    body = b'{ "customer" : "alice", "coin":"usdt", "amount":"1", "account":"spot", "reference":"a \\"b\\": c" }'
    assert api.post("/v1/deposits", body).status_code == 200
    key_twice = b'{"hold":{"key":"buy","key":"sell"},"amount":"1"}'
    assert api.post("/v1/withdrawals", key_twice).json()["field"] == "key"
