"""Rebates and fee accounts of fills over HTTP: a negative fee is paid by the fee account, judged on the net."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import support_books
from support_audit import audited
from support_operator import Api, operator_api

FILL = {"base": "btc", "quote": "usdt", "base_amount": "1", "quote_amount": "50"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger in which alice buys with the hold bid, and bob sells with the hold ask."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        made.must("/v1/deposits", {"customer": "bob", "coin": "btc", "amount": "10"})
        made.must("/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "80"}, "bid")
        made.must("/v1/holds", {"customer": "bob", "coin": "btc", "amount": "5"}, "ask")
        yield made
    support_books.check_books(tmp_path / "data")
    assert not audited(tmp_path / "data").findings


def fill(buyer: tuple[str, str] | None, seller: tuple[str, str] | None, **more: Any) -> dict[str, Any]:
    """Return a fill with these fees: coin and amount."""
    sides: dict[str, Any] = {"buyer": {"hold": {"key": "bid"}}, "seller": {"hold": {"key": "ask"}}}
    for side, fee in (("buyer", buyer), ("seller", seller)):
        if fee is not None:
            sides[side]["fee"] = {"coin": fee[0], "amount": fee[1]}
    return {**FILL, **sides, **more}


def available(api: Api, owner: str, coin: str) -> str:
    return api.balances(owner)[coin]["available"]


def test_rebate_in_the_coin_received_comes_on_top(api: Api) -> None:
    """The taker's fee pays the maker's rebate within one fill, although @fees had nothing before."""
    api.must("/v1/settlements", fill(("usdt", "0.05"), ("usdt", "-0.01")))
    assert (available(api, "bob", "usdt"), available(api, "@fees", "usdt")) == ("50.01", "0.04")
    assert api.balances("alice")["usdt"] == {"available": "20.00", "freeze": "49.95"}


def test_rebate_in_the_coin_paid_becomes_available_and_costs_the_hold_nothing(api: Api) -> None:
    """The hold pays the price alone."""
    api.must("/v1/deposits", {"customer": "@fees", "coin": "usdt", "amount": "1"})
    written = api.must("/v1/settlements", fill(("usdt", "-0.25"), None))
    assert api.balances("alice")["usdt"] == {"available": "20.25", "freeze": "50.00"}
    assert available(api, "@fees", "usdt") == "0.75"
    assert written["entry"]["request"]["buyer"]["fee"] == {"coin": "usdt", "amount": "-0.25"}


def test_release_of_the_rest_beside_a_rebate_frees_what_the_price_leaves(api: Api) -> None:
    """Nothing of the hold is kept back for a fee that is none."""
    api.must("/v1/deposits", {"customer": "@fees", "coin": "usdt", "amount": "1"})
    body = fill(("usdt", "-1"), None)
    body["buyer"]["release"] = "rest"
    api.must("/v1/settlements", body)
    assert api.balances("alice")["usdt"] == {"available": "51.00", "freeze": "20.00"}


@pytest.mark.parametrize("coin", ["usdt", "btc"])
def test_fill_whose_rebates_the_fee_account_cannot_pay_is_refused_and_not_kept(api: Api, coin: str) -> None:
    """It names what the account has, and passes under the same key once there is enough."""
    body = fill((coin, "-0.02"), (coin, "0.01"))
    answer = api.post("/v1/settlements", body, "fill")
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "fees_short", "fee_account")
    assert "seq" not in answer.json()
    api.must("/v1/deposits", {"customer": "@fees", "coin": coin, "amount": "0.01"})
    api.must("/v1/settlements", body, "fill")
    assert available(api, "@fees", coin) == "0.00"


def test_fee_account_of_the_fill_gets_the_fees_of_both_sides(api: Api) -> None:
    """@fees gets nothing, and the request keeps which account it was."""
    api.must("/v1/house-accounts", {"name": "desk-7"})
    body = fill(("btc", "0.1"), ("usdt", "0.5"), fee_account="@desk-7")
    written = api.must("/v1/settlements", body, "fill")
    assert (available(api, "@desk-7", "btc"), available(api, "@desk-7", "usdt")) == ("0.10", "0.50")
    assert available(api, "@fees", "btc") == "0.00"
    assert written["entry"]["request"]["fee_account"] == "@desk-7"
    conflict = api.post("/v1/settlements", fill(("btc", "0.1"), ("usdt", "0.5")), "fill")
    assert (conflict.status_code, conflict.json()["field"]) == (409, "fee_account")


def test_fee_account_that_may_be_negative_pays_any_rebate(api: Api) -> None:
    """A marketing budget is settled later."""
    api.must("/v1/house-accounts", {"name": "promo", "may_be_negative": True})
    api.must("/v1/settlements", fill(("btc", "-0.5"), None, fee_account="@promo"))
    assert (available(api, "@promo", "btc"), available(api, "alice", "btc")) == ("-0.50", "1.50")


@pytest.mark.parametrize(
    ("fee_account", "code"),
    [
        ("@bank", "unknown_house_account"),
        ("@external", "house_account_reserved"),
        ("@receivable:alice", "house_account_reserved"),
        ("alice", "invalid_request"),
        ("", "invalid_request"),
        (7, "invalid_request"),
    ],
)
def test_fee_account_that_is_none_is_refused(api: Api, fee_account: object, code: str) -> None:
    """It is an open house account that is not the ledger's own."""
    answer = api.post("/v1/settlements", fill(None, None, fee_account=fee_account))
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, code, "fee_account")


@pytest.mark.parametrize("amount", ["-0", "-0.0", "--1", "+1", "-", "-1e3", "- 1"])
def test_fee_of_another_form_is_refused(api: Api, amount: str) -> None:
    """A minus sign precedes an amount above zero; dust has none."""
    assert api.post("/v1/settlements", fill(("btc", amount), None)).json()["field"] == "buyer.fee.amount"
    body = fill(None, None)
    body["buyer"]["dust"] = {"coin": "btc", "amount": "-0.1"}
    assert api.post("/v1/settlements", body).json()["field"] == "buyer.dust.amount"


def test_fill_with_a_rebate_is_reversed(api: Api) -> None:
    """The fee account gets the rebate back, and gives the fee back."""
    api.must("/v1/settlements", fill(("usdt", "0.05"), ("usdt", "-0.01")), "fill")
    seq = api.seq
    api.must("/v1/reversals", {"seq": seq, "reason": "wrong price"})
    assert (available(api, "@fees", "usdt"), available(api, "bob", "usdt")) == ("0.00", "0.00")
    assert available(api, "alice", "usdt") == "70.05"


def test_fee_in_a_third_coin_is_a_post_in_the_same_chain(api: Api) -> None:
    """The fill and the fee in the exchange's own coin happen both or not at all."""
    api.must("/v1/coins", {"coin": "own", "scale": 8})
    api.must("/v1/deposits", {"customer": "alice", "coin": "own", "amount": "1"})
    for amount, passes in (("2", False), ("1", True)):
        legs = [{"customer": "alice", "coin": "own", "amount": f"-{amount}"}]
        legs.append({"customer": "@fees", "coin": "own", "amount": amount})
        operations = [
            {"op": "settle", "key": f"fill-{amount}", "chain": "t", **fill(None, None)},
            {"op": "post", "key": f"fee-{amount}", "chain": "t", "legs": legs, "reference": f"fill-{amount}"},
        ]
        results = api.must("/v1/batches", {"operations": operations})["results"]
        assert ["code" not in result for result in results] == [passes, passes]
    assert (available(api, "@fees", "own"), available(api, "alice", "btc")) == ("1.00", "1.00")
