"""Writes and reads of the operator API: exact, once, in one order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spotledger.domain.operations import CoinAmount, Settle, SettleSide, Withdraw
from support_operator import Api, operator_api


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        yield made


ALICE_USDT = {"customer": "alice", "coin": "usdt"}
WRITES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("/v1/coins", {"coin": "doge", "scale": 8}, {"scale": 7}, "scale"),
    ("/v1/customers", {"customer": "carol"}, {"customer": "dave"}, "customer"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1.50"}, {"amount": "1.51"}, "amount"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1"}, {"customer": "bob"}, "customer"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1"}, {"coin": "btc"}, "coin"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1"}, {"account": "wallet"}, "account"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1"}, {"reference": "tx-1"}, "reference"),
    ("/v1/deposits", {**ALICE_USDT, "amount": "1"}, {"happened_ms": 1_700_000_000_000}, "happened_ms"),
    ("/v1/holds", {**ALICE_USDT, "amount": "5", "reference": "order-1"}, {"reference": "order-2"}, "reference"),
    ("/v1/holds/{hold}/release", {"amount": "5"}, {"amount": "6"}, "amount"),
    ("/v1/holds/{hold}/release", {}, {"amount": "20"}, "amount"),
    ("/v1/withdrawals", {**ALICE_USDT, "amount": "5"}, {"amount": "5.00000001"}, "amount"),
    ("/v1/withdrawals", {"hold": {"key": "first-hold"}, "amount": "5"}, {"amount": "4"}, "amount"),
    (
        "/v1/transfers",
        {"from": {"customer": "alice"}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "5"},
        {"to": {"customer": "bob", "account": "wallet"}},
        "to",
    ),
    ("/v1/keys", {"customer": "alice", "permissions": ["read"]}, {"permissions": ["read", "trade"]}, "permissions"),
    ("/v1/tokens", {"scopes": ["ledger:read"]}, {"label": "other"}, "label"),
]


def path_of(api: Api, path: str) -> str:
    return path.replace("{hold}", str(api.get("/v1/customers/alice/holds").json()["holds"][0]["hold"]))


def without_secrets(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, **{name: None for name in ("secretkey", "token") if name in answer}}


@pytest.mark.parametrize(("path", "body", "change", "field"), WRITES, ids=lambda value: str(value)[:30])
def test_write_repeated_answers_as_the_first_time_and_changed_is_a_conflict(
    api: Api, path: str, body: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    """The same key and content answer the same, marked; the same key with other content names the field."""
    path = path_of(api, path)
    first = api.post(path, body, "K!~")
    assert first.status_code == 200, first.text
    assert "idempotency-replayed" not in first.headers
    seq, balances = api.seq, api.balances("alice")
    again = api.post(path, body, "K!~")
    assert again.status_code == 200
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == without_secrets(first.json())
    other = api.post(path, {**body, **change}, "K!~")
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert other.json()["field"].split(".")[0] == field
    assert (api.seq, api.balances("alice")) == (seq, balances)


def test_write_repeated_with_an_amount_written_otherwise_is_the_same(api: Api) -> None:
    """1.5 and 1.50 are one amount, and a default is the same as its name."""
    first = api.must("/v1/deposits", {**ALICE_USDT, "amount": "1.5"}, "k")
    again = api.post("/v1/deposits", {**ALICE_USDT, "amount": "1.50", "account": "spot", "reference": None}, "k")
    assert again.json() == first


def test_write_sent_many_times_at_once_is_booked_once(api: Api) -> None:
    """Equal requests in flight together are one entry; one answer is the first, the others are repeats."""

    async def send() -> list[httpx2.Response]:

        posts = (
            api.http.post("/v1/deposits", json={**ALICE_USDT, "amount": "1"}, headers=api.headers("once"))
            for _ in range(40)
        )
        return await asyncio.gather(*posts)

    answers = api.run(send())
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert api.balances("alice")["usdt"] == {"available": "101.00", "freeze": "20.00"}


def test_key_sent_at_once_for_access_keys_makes_one(api: Api) -> None:
    """Equal key creations in flight together make one access key, whose secret is in one answer."""
    body = {"customer": "alice", "permissions": ["read"]}

    async def send() -> list[httpx2.Response]:

        posts = (api.http.post("/v1/keys", json=body, headers=api.headers("once")) for _ in range(10))
        return await asyncio.gather(*posts)

    answers = [answer.json() for answer in api.run(send())]
    assert len({answer["accesskey"] for answer in answers}) == 1
    assert sum(answer["secretkey"] is not None for answer in answers) == 1
    assert len(api.get("/v1/keys").json()["keys"]) == 1


def test_deposit_answer_has_seq_entry_postings_and_balances(api: Api) -> None:
    """A write answers with where it stands, what was posted, and what is there after it."""
    answer = api.must(
        "/v1/deposits",
        {**ALICE_USDT, "amount": "0.5", "reference": "tx 9", "happened_ms": 1_700_000_000_000},
        "deposit-1",
    )
    [token_id] = [token["token_id"] for token in api.get("/v1/tokens").json()["tokens"]]
    booked_ms = answer["entry"].pop("booked_ms")
    assert abs(booked_ms - api.clock()) < 60_000
    assert answer == {
        "seq": 9,
        "epoch": 1,
        "entry": {
            "seq": 9,
            "epoch": 1,
            "actor": f"token:{token_id}",
            "actor_label": "operator.token",
            "kind": "deposit",
            "key": "deposit-1",
            "request": {
                "op": "deposit",
                **ALICE_USDT,
                "account": "spot",
                "amount": "0.50",
                "reference": "tx 9",
                "happened_ms": 1_700_000_000_000,
            },
            "happened_ms": 1_700_000_000_000,
            "postings": [
                {
                    "customer": "@external",
                    "account": "house",
                    "coin": "usdt",
                    "side": "available",
                    "amount": "-0.50",
                    "after": "-120.50",
                },
                {
                    "customer": "alice",
                    "account": "spot",
                    "coin": "usdt",
                    "side": "available",
                    "amount": "0.50",
                    "after": "100.50",
                },
            ],
        },
        "balances": [
            {"customer": "@external", "account": "house", "coin": "usdt", "available": "-120.50", "freeze": "0.00"},
            {"customer": "alice", "account": "spot", "coin": "usdt", "available": "100.50", "freeze": "20.00"},
        ],
    }


def test_hold_lives_from_freeze_to_its_last_unit(api: Api) -> None:
    """A hold is opened, used in parts by release and withdrawal, and stays readable when nothing remains."""
    body = {**ALICE_USDT, "amount": "10", "reference": "order-7", "expires_ms": api.clock() + 3_600_000}
    opened = api.must("/v1/holds", body)
    hold = opened["hold"]
    assert hold == str(opened["seq"])
    assert opened["entry"]["postings"][1]["hold"] == hold
    part = api.must(f"/v1/holds/{hold}/release", {"amount": "2.5"})
    assert "hold" not in part
    assert part["entry"]["holds"] == [{"hold": hold, "remaining": "7.50"}]
    api.must("/v1/withdrawals", {"hold": hold, "amount": "3"})
    found = api.get("/v1/customers/alice/holds", state="open").json()["holds"][-1]
    assert (found["hold"], found["amount"], found["remaining"], found["state"]) == (hold, "10.00", "4.50", "open")
    assert (found["reference"], found["expires_ms"]) == ("order-7", body["expires_ms"])
    last = api.must(f"/v1/holds/{hold}/release", {})
    found = api.get("/v1/customers/alice/holds", state="closed").json()["holds"][-1]
    assert (found["hold"], found["remaining"], found["closed_seq"]) == (hold, "0.00", last["seq"])
    assert api.balances("alice")["usdt"] == {"available": "97.00", "freeze": "20.00"}


def test_release_without_a_body_frees_all(api: Api) -> None:
    """An empty body asks for nothing special."""
    assert api.post(path_of(api, "/v1/holds/{hold}/release"), b"").status_code == 200
    assert api.balances("alice")["usdt"] == {"available": "120.00", "freeze": "0.00"}


def test_transfer_between_accounts_of_one_customer_keeps_the_sum(api: Api) -> None:
    """A transfer moves from one account to another, and reads say which account they are of."""
    ends = {"from": {"customer": "alice"}, "to": {"customer": "alice", "account": "wallet"}}
    api.must("/v1/transfers", {**ends, "coin": "usdt", "amount": "40.00000001"})
    assert api.balances("alice")["usdt"]["available"] == "59.99999999"
    assert api.balances("alice", account="wallet")["usdt"]["available"] == "40.00000001"
    assert api.balances("alice", account="fiat")["usdt"]["available"] == "0.00"


@pytest.mark.parametrize(
    ("coin", "amount"),
    [
        ("shib", "99999999999999999999.999999999999999999"),
        ("shib", "0.000000000000000001"),
        ("whole", "9" * 38),
        ("whole", "9223372036854775808"),
        ("usdt", "18446744073.70955162"),
    ],
)
def test_amount_beyond_64_bits_comes_back_as_it_was_sent(api: Api, coin: str, amount: str) -> None:
    """Amounts are exact to the last digit, on the way in, in the entry, and in the balance; and can be sent back."""
    answer = api.must("/v1/deposits", {"customer": "bob", "coin": coin, "amount": amount})
    assert answer["entry"]["request"]["amount"] == amount
    assert answer["balances"][1]["available"] == amount
    api.must("/v1/withdrawals", {"customer": "bob", "coin": coin, "amount": api.balances("bob")[coin]["available"]})
    assert set(api.balances("bob")[coin]["available"]) <= set("0.")


def test_balances_have_every_listed_coin_and_no_decimals_that_it_has_not(api: Api) -> None:
    """A coin with nothing in it is there; a coin without decimals has none."""
    assert api.balances("bob") == {
        "btc": {"available": "0.00", "freeze": "0.00"},
        "shib": {"available": "0.00", "freeze": "0.00"},
        "usdt": {"available": "0.00", "freeze": "0.00"},
        "whole": {"available": "0", "freeze": "0"},
    }


def test_balances_of_the_outside_world_are_what_it_is_owed(api: Api) -> None:
    """@external is below zero by what came in."""
    assert api.balances("@external")["usdt"] == {"available": "-120.00", "freeze": "0.00"}


def test_read_says_the_seq_of_the_write_before_it(api: Api) -> None:
    """A read stands for the last acknowledged write; min_seq asks for no less."""
    seq = api.must("/v1/deposits", {**ALICE_USDT, "amount": "1"})["seq"]
    for path in ("customers/alice/balances", "customers/alice/holds", "entries", "coins", "customers"):
        answer = api.get(f"/v1/{path}", min_seq=seq)
        assert answer.json()["seq"] == seq == api.seq


def test_min_seq_of_a_write_in_flight_waits_for_it(api: Api) -> None:
    """A read that asks for the next entry is answered once that is there."""

    async def both() -> tuple[httpx2.Response, httpx2.Response]:

        params = {"min_seq": str(api.seq + 1)}
        read = asyncio.create_task(api.http.get("/v1/customers/alice/balances", params=params, headers=api.headers()))
        await asyncio.sleep(0.05)
        write = await api.http.post(
            "/v1/deposits", json={**ALICE_USDT, "amount": "1"}, headers=api.headers("in-flight")
        )
        return await read, write

    read, write = api.run(both())
    assert read.json()["seq"] >= write.json()["seq"]
    assert read.json()["balances"]["usdt"]["available"] == "101.00"


def test_entries_are_a_feed_without_gaps_page_by_page(api: Api) -> None:
    """Pages follow one another by next_after_seq, with every entry once; beyond the end the cursor stays."""
    api.post("/v1/holds", {**ALICE_USDT, "amount": "1000"})
    seqs: list[int] = []
    after = 0
    while entries := (page := api.get("/v1/entries", after_seq=after, limit=3).json())["entries"]:
        assert len(entries) <= 3
        seqs += [entry["seq"] for entry in entries]
        after = page["next_after_seq"]
    assert seqs == list(range(1, api.seq + 1))
    assert after == page["next_after_seq"] == api.seq
    assert api.get("/v1/entries", after_seq=10**17).json()["entries"] == []


def test_entries_explain_the_balances(api: Api) -> None:
    """Added up from the feed alone, the postings give the balances, and each coin adds up to zero."""
    api.must("/v1/transfers", {"from": {"customer": "alice"}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "7"})

    sums: dict[tuple[str, str], Decimal] = {}
    for entry in api.get("/v1/entries").json()["entries"]:
        for posting in entry["postings"]:
            line = (posting["customer"], posting["side"])
            sums[line] = sums.get(line, Decimal()) + Decimal(posting["amount"])
            assert sums[line] == Decimal(posting["after"])
    assert sum(sums.values()) == 0
    assert sums["alice", "available"] == Decimal(api.balances("alice")["usdt"]["available"])


def test_limit_above_1000_is_cut(api: Api) -> None:
    """A page has at most 1000 things, whatever is asked for."""
    api.at_once("/v1/customers", [{"customer": f"c{number}"} for number in range(1001)], "many-")
    first = api.get("/v1/customers", limit=5000).json()
    assert len(first["customers"]) == 1000
    second = api.get("/v1/customers", after=first["next_after"]).json()
    assert (len(second["customers"]), second["next_after"]) == (3, None)
    assert len(api.get("/v1/entries", limit=10**17).json()["entries"]) == 1000


def test_head_of_a_path_is_answered_like_a_get(api: Api) -> None:
    """HEAD is GET without the body."""
    answer = api.request("HEAD", "/v1/coins", headers=api.headers())
    assert (answer.status_code, answer.content) == (200, b"")


def test_segments_sealed_along_the_way_change_no_answer(tmp_path: Path) -> None:
    """With small segments, repeats, feed and holds are the same whether sealed or not, also after a new start."""
    with operator_api(tmp_path / "data", segment_entries=16) as api:
        api.set_up()
        bodies = [{**ALICE_USDT, "amount": f"0.{number:03}"} for number in range(1, 200)]
        firsts = [answer.json() for answer in api.at_once("/v1/deposits", bodies, "small-")]
        holds = api.get("/v1/customers/alice/holds").json()["holds"]
    with operator_api(tmp_path / "data") as api:
        again = api.at_once("/v1/deposits", bodies, "small-")
        assert [answer.json() for answer in again] == firsts
        assert {answer.headers["idempotency-replayed"] for answer in again} == {"true"}
        aged = api.get("/v1/customers/alice/holds").json()["holds"]
        assert [{**hold, "age_ms": 0} for hold in aged] == [{**hold, "age_ms": 0} for hold in holds]
        entries = api.get("/v1/entries").json()["entries"]
        assert [entry["seq"] for entry in entries] == list(range(1, api.seq + 1))


def test_access_key_answer_keeps_no_secret_anywhere(api: Api, tmp_path: Path) -> None:
    """No file in the folder holds the secret or the token that an answer showed."""
    made = api.must("/v1/keys", {"customer": "alice", "permissions": ["read"], "label": "bot"}, "k1")
    token = api.must("/v1/tokens", {"scopes": ["ledger:read"]}, "k2")["token"]
    assert len(made["secretkey"]) == len(token) == 64
    files = [file.read_bytes() for file in (tmp_path / "data").iterdir()]
    for secret in (made["secretkey"], token):
        assert not any(secret.encode() in content or bytes.fromhex(secret) in content for content in files)


def test_access_key_of_nobody_is_refused_and_its_key_stays_free(api: Api) -> None:
    """A refused creation keeps nothing: the same idempotency key works once the customer is there."""
    body = {"customer": "carol", "permissions": ["read"]}
    assert api.post("/v1/keys", body, "k").json()["code"] == "unknown_customer"
    api.must("/v1/customers", {"customer": "carol"})
    assert api.must("/v1/keys", body, "k")["secretkey"]


def test_access_keys_are_listed_by_customer_and_page(api: Api) -> None:
    """The list shows each key without its secret, in pages."""
    made = [api.must("/v1/keys", {"customer": name, "permissions": ["read"]}) for name in ("alice", "alice", "bob")]
    page = api.get("/v1/keys", customer="alice", limit=1).json()
    rest = api.get("/v1/keys", customer="alice", after=page["next_after"]).json()
    found = page["keys"] + rest["keys"]
    assert {key["accesskey"] for key in found} == {key["accesskey"] for key in made if key["customer"] == "alice"}
    assert "secret" not in json.dumps(found)
    assert len(api.get("/v1/keys").json()["keys"]) == 3


def test_access_key_revoked_twice_is_revoked_once(api: Api) -> None:
    """Revoking again changes nothing and says when it was; an unknown key is not found."""
    accesskey = api.must("/v1/keys", {"customer": "alice", "permissions": ["read"]})["accesskey"]
    path = f"/v1/keys/{accesskey}"
    first = api.request("DELETE", path, headers=api.headers()).json()
    api.clock.ahead_ms += 5000
    assert first["revoked_ms"] is not None
    assert api.request("DELETE", path, headers=api.headers()).json() == first
    assert api.request("DELETE", "/v1/keys/nobody", headers=api.headers()).status_code == 404
    assert api.post(f"{path}/rotate", {}).json()["field"] == "accesskey"
    assert api.post("/v1/keys/nobody/rotate", {}).status_code == 404


def test_access_key_rotated_is_another_with_the_same_rights(api: Api) -> None:
    """Rotating revokes the old key and makes a new one, once under one idempotency key."""
    body = {"customer": "alice", "permissions": ["read", "trade"], "label": "bot", "addresses": ["10.0.0.0/8"]}
    old = api.must("/v1/keys", body)
    new = api.must(f"/v1/keys/{old['accesskey']}/rotate", {}, "rotate-1")
    assert new["replaces"] == old["accesskey"] != new["accesskey"]
    assert new["secretkey"] not in (None, old["secretkey"])
    assert {name: new[name] for name in body} == body
    again = api.must(f"/v1/keys/{old['accesskey']}/rotate", {}, "rotate-1")
    assert again == {**new, "secretkey": None}
    states = {key["accesskey"]: key["revoked_ms"] is None for key in api.get("/v1/keys").json()["keys"]}
    assert states == {old["accesskey"]: False, new["accesskey"]: True}


def test_metrics_show_the_head_and_count_calls_by_path_and_status(api: Api) -> None:
    """Prometheus sees the position, the queue and the calls, by path template and never by what a caller sent."""
    api.get("/v1/customers/nobody-of-that-name/balances")
    api.request("GET", "/somewhere/secret", headers=api.headers())
    api.request("BREW", "/v1/coins", headers=api.headers())
    text = api.get("/metrics").text
    assert f"spotledger_head_seq {float(api.seq)}" in text
    assert "spotledger_waiting_operations 0.0" in text
    assert "spotledger_can_write 1.0" in text
    assert "spotledger_sealing_lag_entries 0.0" in text
    assert "spotledger_sealing_restarts_total 0.0" in text
    labels = 'method="GET",path="/v1/customers/{customer}/balances",status="404"'
    assert f"spotledger_operator_requests_total{{{labels}}} 1.0" in text
    assert 'method="other"' in text
    assert "nobody-of-that-name" not in text
    assert "somewhere" not in text


def test_health_needs_no_token(api: Api) -> None:
    """/healthz and /readyz need no token."""
    assert api.request("GET", "/healthz").json() == {"status": "alive"}
    assert api.request("GET", "/readyz").json() == {
        "status": "ready",
        "seq": api.seq,
        "sealing": {"lag_entries": 0},
    }
    api.run(api.runtime.stop())
    assert api.request("GET", "/healthz").status_code == 200
    stopped = api.request("GET", "/readyz")
    assert (stopped.status_code, stopped.headers["retry-after"]) == (503, "1")


def test_settlement_in_the_feed_has_each_amount_in_its_own_coin(api: Api) -> None:
    """An entry with two coins and two holds says every amount with the decimals of its coin, and what was asked for."""
    api.must("/v1/deposits", {"customer": "bob", "coin": "whole", "amount": "9"})
    buys = api.must("/v1/holds", {**ALICE_USDT, "amount": "30"})["hold"]
    sells = api.must("/v1/holds", {"customer": "bob", "coin": "whole", "amount": "3"})["hold"]
    buyer = SettleSide(buys, fee=CoinAmount("usdt", "0.25"), release="1.5")
    seller = SettleSide(sells, fee=CoinAmount("usdt", "0.5"), release="rest")
    seq = api.runtime.ledger.settle("whole", "usdt", "2", "20.5", buyer, seller, key="fill-1").seq
    entry = api.get("/v1/entries", after_seq=seq - 1).json()["entries"][0]
    assert entry["request"] == {
        "op": "settle",
        "base": "whole",
        "quote": "usdt",
        "base_amount": "2",
        "quote_amount": "20.50",
        "buyer": {"hold": buys, "fee": {"coin": "usdt", "amount": "0.25"}, "release": "1.50"},
        "seller": {"hold": sells, "fee": {"coin": "usdt", "amount": "0.50"}, "release": "rest"},
    }
    assert entry["holds"] == [{"hold": buys, "remaining": "7.75"}, {"hold": sells, "remaining": "0"}]
    assert api.balances("@fees")["usdt"]["available"] == "0.75"
    assert api.balances("@dust")["usdt"]["available"] == "0.00"


def test_settlement_refused_in_the_feed_says_what_was_asked_for(api: Api) -> None:
    """In a chain that is kept, amounts of a coin that is not listed stay as they were asked for."""
    sides = SettleSide("1", release="0.10"), SettleSide("2")
    operations = [Withdraw("w", "999", "alice", "usdt"), Settle("fill-1", "doge", "usdt", "2.50", "20", *sides)]
    api.runtime.ledger.execute(operations, atomic=True)
    entry = api.get("/v1/entries", after_seq=api.seq - 1).json()["entries"][0]
    assert (entry["refusal"]["code"], entry["postings"]) == ("chain_failed", [])
    assert (entry["request"]["base_amount"], entry["request"]["buyer"]["release"]) == ("2.5", "0.1")


def test_names_and_amounts_as_chains_have_them(api: Api) -> None:
    """Over HTTP, single and in a batch: keys of a chain, a coin such as usdt.e, and 24 decimals to the last one."""
    least = "0.000000000000000000000001"
    api.must("/v1/coins", {"coin": "usdt.e", "scale": 24}, "0x" + "0" * 126)
    deposit = {"customer": "bob", "coin": "usdt.e", "amount": least}
    api.must("/v1/deposits", deposit, "0x" + "ab" * 32)
    again = api.post("/v1/deposits", deposit, "0x" + "ab" * 32)
    assert again.headers["idempotency-replayed"] == "true"
    operation = {"op": "deposit", "key": f"{'cd' * 32}:7", **deposit}
    (result,) = api.must("/v1/batches", {"operations": [operation]})["results"]
    assert result["balances"][-1]["available"] == "0.000000000000000000000002"
    assert api.balances("bob")["usdt.e"] == {"available": "0.000000000000000000000002", "freeze": "0.00"}
    (entry, _) = api.get("/v1/customers/bob/entries", coin="usdt.e").json()["entries"]
    assert entry["request"]["amount"] == least
    too_many = api.post("/v1/deposits", {**deposit, "amount": "0." + "0" * 24 + "1"})
    assert (too_many.status_code, too_many.json()["code"]) == (422, "invalid_amount")
