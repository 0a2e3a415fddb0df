"""Posts over HTTP: many legs in one entry, judged together, refused whole with the leg named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import support_books
from spotledger.client.operator.operations import Leg, Post
from spotledger.domain.operations import Leg as LedgerLeg, Post as LedgerPost
from spotledger.errors import InvalidRequest
from spotledger.ledger.group import checked_chains, end_of_cut, weight_of
from support_audit import audited
from support_operator import Api, operator_api

POST = "/v1/postings"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger in which alice has 100 usdt, and @treasury 50."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        made.must("/v1/house-accounts", {"name": "treasury"})
        made.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "50"})
        yield made
    support_books.check_books(tmp_path / "data")
    assert not audited(tmp_path / "data").findings


def leg(customer: str, amount: str, coin: str = "usdt", **more: str) -> dict[str, str]:
    return {"customer": customer, "coin": coin, "amount": amount, **more}


def usdt(api: Api, owner: str, **params: str) -> str:
    return api.balances(owner, **params)["usdt"]["available"]


def refused(api: Api, legs: object, key: str | None = None) -> tuple[str, str, bool]:
    """Post what must be refused; return code and field of the problem, and whether it is kept."""
    answer = api.post(POST, {"legs": legs}, key)
    assert answer.status_code == 422, answer.text
    return answer.json()["code"], answer.json()["field"], "seq" in answer.json()


def test_post_moves_each_leg_and_shows_in_each_history(api: Api) -> None:
    """One entry with a posting for each leg, the reason and the reference."""
    legs = [leg("@treasury", "-7.5"), leg("alice", "5"), leg("bob", "2.5", account="wallet")]
    written = api.must(POST, {"legs": legs, "reason": "airdrop", "reference": "drop-1"}, "p")
    postings = written["entry"]["postings"]
    assert [(line["customer"], line["account"], line["amount"]) for line in postings] == [
        ("@treasury", "house", "-7.50"), ("alice", "spot", "5.00"), ("bob", "wallet", "2.50"),
    ]  # fmt: skip
    assert (usdt(api, "@treasury"), usdt(api, "alice"), usdt(api, "bob", account="wallet")) == (
        "42.50",
        "105.00",
        "2.50",
    )
    for owner in ("@treasury", "alice", "bob"):
        last = api.get(f"/v1/customers/{owner}/entries").json()["entries"][-1]
        assert (last["kind"], last["request"]["reason"], last["request"]["reference"]) == ("post", "airdrop", "drop-1")
    again = api.post(POST, {"legs": legs, "reason": "airdrop", "reference": "drop-1"}, "p")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == written


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"legs": [leg("@treasury", "-1"), leg("alice", "0.5"), leg("bob", "0.5")]}, "legs"),
        ({"legs": [leg("@treasury", "-1"), leg("bob", "1")]}, "legs[1].customer"),
        ({"legs": [leg("@treasury", "-1"), leg("alice", "1", account="fiat")]}, "legs[1].account"),
        ({"legs": [leg("@treasury", "-2"), leg("alice", "2")]}, "legs[0].amount"),
        ({"legs": [leg("@treasury", "-1", "btc"), leg("alice", "1", "btc")]}, "legs[0].coin"),
        ({"reason": "interest"}, "reason"),
        ({"reference": "r"}, "reference"),
    ],
)
def test_same_key_with_other_legs_is_a_conflict_that_names_the_field(
    api: Api, change: dict[str, Any], field: str
) -> None:
    """Written with other digits it is the same request."""
    body = {"legs": [leg("@treasury", "-1"), leg("alice", "1.0")]}
    api.must(POST, body, "p")
    same = api.post(POST, {"legs": [leg("@treasury", "-1.00"), leg("alice", "1", account="spot")]}, "p")
    assert same.headers["idempotency-replayed"] == "true"
    other = api.post(POST, {**body, **change}, "p")
    assert (other.status_code, other.json()["field"]) == (409, field)


def test_account_is_judged_by_what_all_legs_do_to_it(api: Api) -> None:
    """What a leg takes may come from a later one of the same account and coin; another account's does not count."""
    api.must(POST, {"legs": [leg("alice", "-130"), leg("bob", "100"), leg("alice", "30")]})
    assert (usdt(api, "alice"), usdt(api, "bob")) == ("0.00", "100.00")
    legs = [leg("bob", "-101"), leg("bob", "1", account="wallet"), leg("alice", "100")]
    assert refused(api, legs) == ("insufficient_available", "legs[0].amount", True)


def test_conversion_sums_to_zero_for_each_coin(api: Api) -> None:
    """Two coins in one entry; what is left over of one of them is named."""
    api.must("/v1/deposits", {"customer": "@treasury", "coin": "btc", "amount": "1"})
    legs = [
        leg("alice", "-40"), leg("@treasury", "40"), leg("alice", "0.001", "btc"), leg("@treasury", "-0.001", "btc"),
    ]  # fmt: skip
    api.must(POST, {"legs": legs})
    assert api.balances("alice")["btc"]["available"] == "0.001"
    answer = api.post(POST, {"legs": [*legs, leg("bob", "0.00000001", "btc")]}, "left-over")
    problem = answer.json()
    assert (problem["code"], problem["coin"], problem["sum"], "seq" in problem) == (
        "legs_unbalanced", "btc", "0.00000001", False,
    )  # fmt: skip
    api.must(POST, {"legs": legs}, "left-over")


@pytest.mark.parametrize(
    ("bad", "code", "field"),
    [
        (leg("nobody", "1"), "unknown_customer", "legs[1].customer"),
        (leg("alice", "1", "nix"), "unknown_coin", "legs[1].coin"),
        (leg("@bank", "1"), "unknown_house_account", "legs[1].customer"),
        (leg("@external", "1"), "house_account_reserved", "legs[1].customer"),
        (leg("@receivable:bob", "1"), "house_account_reserved", "legs[1].customer"),
        (leg("@fees", "1", account="spot"), "invalid_request", "legs[1].account"),
        (leg("alice", "0.000000001"), "invalid_amount", "legs[1].amount"),
        (leg("alice", "0"), "invalid_amount", "legs[1].amount"),
        (leg("alice", "-0.0"), "invalid_amount", "legs[1].amount"),
        (leg("alice", "+1"), "invalid_amount", "legs[1].amount"),
        (leg("alice", "--1"), "invalid_amount", "legs[1].amount"),
        (leg("alice", 1), "invalid_amount", "legs[1].amount"),  # type: ignore[arg-type]
        (leg("alice", "9" * 30), "balance_too_large", "legs[1].amount"),
        ({"customer": "alice", "coin": "usdt"}, "invalid_request", "legs[1].amount"),
        (leg("alice", "1", extra="x"), "invalid_request", "legs[1].extra"),
        (7, "invalid_request", "legs"),
    ],
)
def test_refusal_names_the_leg_and_moves_nothing(api: Api, bad: Any, code: str, field: str) -> None:
    """The whole post is refused, whatever the other legs would do, and its key stays unused."""
    other = {"customer": "@treasury", "coin": "usdt", "amount": "-1"}
    if code == "balance_too_large":
        api.must("/v1/house-accounts", {"name": "credit", "may_be_negative": True})
        other = leg("@credit", "-" + "9" * 30)
    seq = api.seq
    assert refused(api, [other, bad]) == (code, field, False)
    assert api.seq == seq
    assert usdt(api, "@treasury") == "50.00"


def test_house_account_that_is_short_leaves_the_key_unused(api: Api) -> None:
    """The leg that takes is named, and the same post passes later."""
    legs = [leg("alice", "51"), leg("@treasury", "-51")]
    assert refused(api, legs, "p") == ("insufficient_available", "legs[1].amount", False)
    api.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "1"})
    api.must(POST, {"legs": legs}, "p")


@pytest.mark.parametrize("count", [0, 1, 1_001])
def test_post_of_too_few_or_too_many_legs_is_refused(api: Api, count: int) -> None:
    """2 to 1,000 pass."""
    assert refused(api, [leg("alice", "1")] * count) == ("invalid_request", "legs", False)
    assert refused(api, {"a": 1})[:2] == ("invalid_request", "legs")


def test_post_of_a_thousand_legs_passes_alone_and_in_a_batch(api: Api) -> None:
    """However long the names and amounts are."""
    names = [f"{number:064}" for number in range(999)]
    for start in range(0, len(names), 100):
        for name in names[start : start + 100]:
            api.must("/v1/customers", {"customer": name})
    legs = [leg("alice", "-9.99"), *(leg(name, "0.01000000", account="wallet") for name in names)]
    written = api.must(POST, {"legs": legs})
    assert len(written["entry"]["postings"]) == 1_000
    operations = [{"op": "post", "key": f"b{number}", "legs": legs} for number in range(3)]
    results = api.must("/v1/batches", {"operations": operations})["results"]
    assert [len(result["balances"]) for result in results] == [1_000] * 3
    assert usdt(api, names[-1], account="wallet") == "0.04"


def test_post_is_reversed_like_a_transfer(api: Api) -> None:
    """What a customer no longer has is owed; what a house account no longer has refuses the reversal."""
    posted = api.must(POST, {"legs": [leg("@treasury", "-10"), leg("bob", "6"), leg("@dust", "4")]})["seq"]
    api.must("/v1/withdrawals", {"customer": "bob", "coin": "usdt", "amount": "5"})
    api.must(
        "/v1/transfers", {"from": {"customer": "@dust"}, "to": {"customer": "alice"}, "coin": "usdt", "amount": "1"}
    )
    answer = api.post("/v1/reversals", {"seq": posted, "reason": "mistake"}, "undo")
    assert answer.json()["code"] == "house_short"
    api.must(
        "/v1/transfers", {"from": {"customer": "alice"}, "to": {"customer": "@dust"}, "coin": "usdt", "amount": "1"}
    )
    api.must("/v1/reversals", {"seq": posted, "reason": "mistake"}, "undo")
    found = api.get("/v1/customers/bob/balances").json()
    assert (found["balances"]["usdt"]["available"], found["owes"]) == ("0.00", {"usdt": "5.00"})
    assert usdt(api, "@treasury") == "50.00"


def test_post_that_debits_a_house_account_needs_the_scope_for_controls(api: Api) -> None:
    """One that only credits it does not."""
    token = api.must("/v1/tokens", {"scopes": ["ledger:write"]})["token"]
    assert api.post(POST, {"legs": [leg("@treasury", "-1"), leg("alice", "1")]}, token=token).status_code == 403
    assert api.post(POST, {"legs": [leg("@treasury", "1"), leg("alice", "-1")]}, token=token).status_code == 200
    both = api.must("/v1/tokens", {"scopes": ["ledger:write", "ledger:control"]})["token"]
    assert api.post(POST, {"legs": [leg("@treasury", "-1"), leg("alice", "1")]}, token=both).status_code == 200


def test_legs_of_a_chain_are_bounded(api: Api) -> None:
    """10,000 at most, in one chain or in an atomic batch; others are cut into groups."""
    legs = [LedgerLeg("alice", "usdt", "1"), LedgerLeg("bob", "usdt", "-1")] * 500
    posts = [LedgerPost(f"p{number}", legs) for number in range(11)]
    with pytest.raises(InvalidRequest, match="legs"):
        checked_chains(posts, None, True)
    with pytest.raises(InvalidRequest, match="legs"):
        checked_chains(posts, ["x"] * 11, False)
    checked_chains(posts, ["x"] * 10 + ["y"], False)
    assert weight_of(posts) == 11 + 11 * 25
    assert end_of_cut(0, posts, None, 64) == 2
    assert end_of_cut(0, posts, None, 1) == 1
    assert end_of_cut(0, posts, ["x"] * 5 + [None] * 6, 64) == 5


def test_client_sends_amounts_of_legs_as_text() -> None:
    """A leg is a part of the body, and only what was given of it."""
    body = Post("k", [Leg("alice", "usdt", "-1"), Leg("@fees", "usdt", "1")], reason="why").body()
    assert body == {"legs": [leg("alice", "-1"), leg("@fees", "1")], "reason": "why"}
