"""What a token that may only write cannot do, by whatever call: pay out of a house account."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support_operator import Api, operator_api

HOUSE = ("@fees", "@dust", "@external", "@treasury", "@receivable:alice")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger whose house account @fees has 0.001 btc and 0.1 usdt."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        made.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "2"})
        made.must("/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "60"}, "buy")
        made.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "1"}, "sell")
        made.must("/v1/settlements", fill())
        yield made


def fill() -> dict[str, Any]:
    """Return a fill with a fee on both sides."""
    return {
        "base": "btc",
        "quote": "usdt",
        "base_amount": "0.5",
        "quote_amount": "50",
        "buyer": {"hold": {"key": "buy"}, "fee": {"coin": "btc", "amount": "0.001"}},
        "seller": {"hold": {"key": "sell"}, "fee": {"coin": "usdt", "amount": "0.1"}},
    }


def payments(house: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Return each way to pay out of the account *house*: its path, its name in a batch, and its body."""
    usdt = {"coin": "usdt", "amount": "0.05"}
    to_alice = {"customer": "alice", "account": "spot"}
    seller = {"hold": {"key": "sell"}, "customer": house}
    return [
        ("/v1/withdrawals", "withdraw", {"customer": house, **usdt}),
        ("/v1/withdrawals", "withdraw", {"hold": {"key": "sell"}, "customer": house, **usdt}),
        ("/v1/transfers", "transfer", {"from": {"customer": house}, "to": to_alice, **usdt}),
        ("/v1/transfers", "transfer", {"from": {"customer": house, "account": "house"}, "to": to_alice, **usdt}),
        ("/v1/holds", "freeze", {"customer": house, **usdt}),
        ("/v1/settlements", "settle", {**fill(), "seller": seller}),
        ("/v1/settlements", "settle", {**fill(), "seller": {**seller, "fee": {"coin": "usdt", "amount": "-0.05"}}}),
    ]


def balances(api: Api) -> list[Any]:
    """Return what everybody has."""
    return [api.balances(owner) for owner in ("@fees", "@dust", "@external", "alice", "bob")]


@pytest.mark.parametrize("house", HOUSE)
def test_who_may_only_write_pays_out_of_no_house_account_by_any_call(api: Api, house: str) -> None:
    """In a single call, a batch, a chain and an atomic batch: it is refused, or that operation of the batch is."""
    token = api.must("/v1/tokens", {"scopes": ["ledger:write"]})["token"]
    before = balances(api)[:2]
    for number, (path, op, body) in enumerate(payments(house)):
        single = api.post(path, body, token=token)
        assert single.status_code in (403, 422), (path, body, single.text)
        harmless = {"op": "deposit", "key": f"d{number}", "customer": "alice", "coin": "usdt", "amount": "1"}
        paying = {"op": op, "key": f"p{number}", **body}
        for batch in (
            {"operations": [harmless, paying]},
            {"operations": [{**harmless, "chain": "c"}, {**paying, "chain": "c"}]},
            {"operations": [harmless, paying], "atomic": True},
        ):
            answer = api.post("/v1/batches", batch, token=token)
            if answer.status_code == 200:  # it names a hold, and that is not of the house account
                assert op in ("settle", "withdraw")
                assert "code" in answer.json()["results"][1], answer.text
            else:
                assert answer.status_code in (403, 422), (batch, answer.text)
    assert balances(api)[:2] == before


@pytest.mark.parametrize("scopes", [["ledger:write", "ledger:control"], ["admin"]])
def test_who_may_also_control_pays_out_of_a_house_account(api: Api, scopes: list[str]) -> None:
    """Of those that are not the ledger's own."""
    token = api.must("/v1/tokens", {"scopes": scopes})["token"]
    path, _, body = payments("@fees")[0]
    assert api.post(path, body, token=token).status_code == 200
    for house in ("@external", "@receivable:alice"):
        path, _, body = payments(house)[0]
        assert api.post(path, body, token=token).json()["code"] == "house_account_reserved"


@pytest.mark.parametrize("scope", ["ledger:read", "ledger:control", "keys:write", "metrics:read"])
def test_batch_takes_no_operation_that_the_token_may_not_do_by_itself(api: Api, scope: str) -> None:
    """A token that may not write can neither deposit by a single call nor in a batch, an empty one included."""
    token = api.must("/v1/tokens", {"scopes": [scope]})["token"]
    seq = api.seq
    deposit = {"customer": "alice", "coin": "usdt", "amount": "1"}
    refused = [
        api.post("/v1/deposits", deposit, token=token),
        api.post("/v1/batches", {"operations": [{"op": "deposit", "key": "k", **deposit}]}, token=token),
        api.post("/v1/batches", {"operations": []}, token=token),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in refused] == [(403, "scope_missing")] * 3
    assert api.seq == seq


def test_first_token_of_a_ledger_has_every_scope(api: Api) -> None:
    """The token in operator.token may do everything, control included."""
    [first] = api.get("/v1/tokens").json()["tokens"]
    assert first["scopes"] == ["ledger:read", "ledger:write", "ledger:control", "keys:write", "metrics:read", "admin"]
