"""Batches over HTTP: order, chains, repeats, sizes, and what is malformed in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spotledger import errors
from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        yield made


def deposit(key: str, amount: str = "1", **more: Any) -> dict[str, Any]:
    return {"op": "deposit", "key": key, **ALICE_USDT, "amount": amount, **more}


def freeze(key: str, amount: str = "1", **more: Any) -> dict[str, Any]:
    return {"op": "freeze", "key": key, **ALICE_USDT, "amount": amount, **more}


def send(api: Api, operations: object, **more: Any) -> httpx2.Response:
    content = json.dumps({"operations": operations, **more}).encode()
    return api.request("POST", "/v1/batches", content=content, headers=api.headers())


def results(api: Api, operations: object, **more: Any) -> list[dict[str, Any]]:
    answer = send(api, operations, **more)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def codes(found: list[dict[str, Any]]) -> list[str | None]:
    return [result.get("code") for result in found]


def test_batch_result_is_what_the_single_call_answers(api: Api) -> None:
    """Each result is the answer of the single call; a refusal has its code, its detail and its seq."""
    found = results(api, [deposit("b1"), freeze("b2", reference="order"), freeze("b3", "1000")])
    for key, path, body, result in (
        ("b1", "/v1/deposits", {**ALICE_USDT, "amount": "1"}, found[0]),
        ("b2", "/v1/holds", {**ALICE_USDT, "amount": "1", "reference": "order"}, found[1]),
    ):
        single = api.post(path, body, key)
        assert single.headers["idempotency-replayed"] == "true"
        assert single.json() == result
    refused = found[2]
    assert (refused["code"], refused["field"], refused["seq"]) == ("insufficient_available", "amount", api.seq)
    assert refused["detail"]
    assert "seq" in refused
    assert "replayed" not in refused


def test_batch_of_every_operation_sees_what_came_before_in_it(api: Api) -> None:
    """Later operations use what earlier ones made, and name a hold by the key that opened it in the same batch."""
    found = results(
        api,
        [
            {"op": "deposit", "key": "d", "customer": "bob", "coin": "btc", "amount": "1"},
            freeze("buy", "50"),
            {"op": "freeze", "key": "sell", "customer": "bob", "coin": "btc", "amount": "1"},
            {
                "op": "settle",
                "key": "fill",
                "base": "btc",
                "quote": "usdt",
                "base_amount": "0.5",
                "quote_amount": "40",
                "buyer": {"hold": {"key": "buy"}, "release": "rest"},
                "seller": {"hold": {"key": "sell"}, "fee": {"coin": "usdt", "amount": "0.04"}},
            },
            {"op": "unfreeze", "key": "u", "hold": {"key": "sell"}, "amount": "0.1"},
            {"op": "withdraw", "key": "w", "hold": {"key": "sell"}, "amount": "0.2"},
            {"op": "withdraw", "key": "w2", "customer": "bob", "coin": "usdt", "amount": "1"},
            {
                "op": "transfer",
                "key": "t",
                "from": {"customer": "alice"},
                "to": {"customer": "alice", "account": "wallet"},
                "coin": "btc",
                "amount": "0.5",
            },
            {"op": "reverse", "key": "r", "seq": 7, "reason": "a mistake"},
        ],
    )
    assert codes(found) == [None] * 9
    assert [result["seq"] for result in found] == list(range(found[0]["seq"], found[0]["seq"] + 9))
    assert api.balances("bob")["btc"] == {"available": "0.10", "freeze": "0.20"}
    assert api.balances("alice", account="wallet")["btc"]["available"] == "0.50"


def test_batch_sent_again_answers_the_same_and_marks_every_result(api: Api) -> None:
    """After a lost answer the same batch comes again: nothing is done twice, and each result is marked."""
    operations = [deposit("a"), freeze("b", "1000"), freeze("c")]
    first = results(api, operations)
    seq = api.seq
    again = results(api, operations)
    assert [{**result, "replayed": True} for result in first] == again
    assert api.seq == seq


def test_batch_sent_again_in_other_parts_answers_the_same(api: Api) -> None:
    """Keys count, not batches: sent again in halves and singly, every operation is the repeat that it is."""
    operations = [deposit(f"k{number}", str(number + 1)) for number in range(10)]
    first = results(api, operations)
    halves = results(api, operations[5:]) + results(api, operations[:5])
    assert [result["seq"] for result in halves] == [result["seq"] for result in first[5:] + first[:5]]
    assert all(result["replayed"] for result in halves)


def test_batch_sent_twice_at_once_is_done_once(api: Api) -> None:
    """Two equal batches in flight: each key is booked once, and one answer has the marks."""
    operations = [deposit(f"k{number}") for number in range(50)]

    async def both() -> list[httpx2.Response]:
        calls = (api.http.post("/v1/batches", json={"operations": operations}, headers=api.headers()) for _ in range(4))
        return await asyncio.gather(*calls)

    answers = [answer.json()["results"] for answer in api.run(both())]
    assert api.balances("alice")["usdt"]["available"] == "150.00"
    assert len({tuple(result["seq"] for result in found) for found in answers}) == 1
    assert sum("replayed" not in found[0] for found in answers) == 1


def test_key_that_stands_twice_in_a_batch_is_done_once(api: Api) -> None:
    """The same content is a repeat within the batch; other content is a conflict that names the field."""
    found = results(api, [deposit("same"), deposit("same"), deposit("same", "2")])
    assert found[1] == {**found[0], "replayed": True}
    assert (found[2]["code"], found[2]["field"], found[2]["first_seq"]) == (
        "idempotency_conflict",
        "amount",
        found[0]["seq"],
    )
    assert api.balances("alice")["usdt"]["available"] == "101.00"


def test_chain_that_fails_is_refused_whole_and_names_its_cause(api: Api) -> None:
    """Of a chain nothing is done: one has the cause, the others point to it; its neighbours go on."""
    found = results(
        api,
        [
            deposit("before"),
            deposit("c1", chain="x"),
            freeze("c2", "9999", chain="x"),
            deposit("c3", chain="x"),
            deposit("after"),
        ],
    )
    assert codes(found) == [None, "chain_failed", "insufficient_available", "chain_failed", None]
    assert (found[1]["cause_key"], found[1]["cause_code"]) == ("c2", "insufficient_available")
    assert api.balances("alice")["usdt"]["available"] == "102.00"
    kept = api.get("/v1/entries", after_seq=found[1]["seq"] - 1, limit=3).json()["entries"]
    assert [entry["refusal"]["code"] for entry in kept] == codes(found[1:4])


def test_chain_that_failed_sent_again_is_refused_the_same(api: Api) -> None:
    """A kept chain answers as it did, even when it could be done by now."""
    operations = [deposit("c1", chain="x"), freeze("c2", "150", chain="x")]
    first = results(api, operations)
    api.must("/v1/deposits", {**ALICE_USDT, "amount": "1000"})
    again = results(api, operations)
    assert again == [{**result, "replayed": True} for result in first]


def test_chain_partly_known_is_refused_whole_and_keeps_nothing(api: Api) -> None:
    """A chain with a known and a new key is neither a repeat nor new."""
    results(api, [deposit("c1")])
    seq = api.seq
    found = results(api, [deposit("c1", chain="x"), deposit("c2", chain="x")])
    assert codes(found) == [errors.ChainPartlyKnown.code] * 2
    assert api.seq == seq


def test_chains_are_neighbours_with_the_same_text(api: Api) -> None:
    """The same text further on is another chain; a chain of one is like no chain."""
    found = results(
        api,
        [
            freeze("a", "9999", chain="x"),
            deposit("b"),
            deposit("c", chain="x"),
            deposit("d", chain="y"),
            freeze("e", "9999", chain="y"),
        ],
    )
    assert codes(found) == ["insufficient_available", None, None, "chain_failed", "insufficient_available"]


def test_atomic_batch_is_done_whole_or_not_at_all(api: Api) -> None:
    """One refusal refuses all, whatever chains they are in."""
    found = results(api, [deposit("a", chain="x"), deposit("b"), freeze("c", "9999")], atomic=True)
    assert codes(found) == ["chain_failed", "chain_failed", "insufficient_available"]
    found = results(api, [deposit("d"), freeze("e", "101")], atomic=True)
    assert codes(found) == [None, None]


@pytest.mark.parametrize(("size", "atomic"), [(1000, True), (10_000, False)])
def test_batch_of_the_largest_size_is_done(api: Api, size: int, atomic: bool) -> None:
    """The largest batches pass, in order and with a result each; sent again, every one is a repeat."""
    operations = [deposit(f"k{number}", "0.01") for number in range(size)]
    found = results(api, operations, atomic=atomic)
    assert [result["seq"] for result in found] == list(range(found[0]["seq"], found[0]["seq"] + size))
    assert all(result["replayed"] for result in results(api, operations, atomic=atomic))
    assert api.balances("alice")["usdt"]["available"] == f"{100 + size // 100}.00"


@pytest.mark.parametrize(
    ("operations", "more", "field"),
    [
        ([deposit(f"k{number}") for number in range(10_001)], {}, "operations"),
        ([deposit(f"k{number}") for number in range(1001)], {"atomic": True}, "atomic"),
        ([deposit(f"k{number}", chain="x") for number in range(1001)], {}, "chain"),
    ],
    ids=["batch", "atomic", "chain"],
)
def test_batch_beyond_a_limit_is_refused_whole(
    api: Api, operations: list[dict[str, Any]], more: dict[str, Any], field: str
) -> None:
    """Beyond 10,000 operations, or 1,000 in a chain or an atomic batch, nothing is done."""
    seq = api.seq
    answer = send(api, operations, **more)
    assert (answer.status_code, answer.json()["field"], api.seq) == (422, field, seq)


def test_batch_of_nothing_has_no_results(api: Api) -> None:
    """An empty batch is not an error."""
    assert results(api, []) == []


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        (deposit("bad", "0"), "operations[1].amount"),
        (deposit("bad", 1), "operations[1].amount"),  # type: ignore[arg-type]
        (deposit("bad", memo="x"), "operations[1].memo"),
        (deposit("b d"), "operations[1].key"),
        (deposit("x" * 129), "operations[1].key"),
        (deposit("bad", chain=7), "operations[1].chain"),
        (deposit("bad", chain=""), "operations[1].chain"),
        (deposit("bad", chain="x" * 65), "operations[1].chain"),
        ({"op": "deposit", **ALICE_USDT, "amount": "1"}, "operations[1].key"),
        ({"op": "deposit", "key": "k", "customer": "alice", "amount": "1"}, "operations[1].coin"),
        ({"op": "steal", "key": "k"}, "operations[1].op"),
        ({"op": ["deposit"], "key": "k"}, "operations[1].op"),
        ({"op": "list_coin", "key": "k", "coin": "doge", "scale": 8}, "operations[1].op"),
        ({"op": "expire", "key": "k", "hold": "1"}, "operations[1].op"),
        ({"key": "k"}, "operations[1].op"),
        ({"op": "unfreeze", "key": "k", "hold": 7}, "operations[1].hold"),
        ({"op": "unfreeze", "key": "k", "hold": {"key": 7}}, "operations[1].hold.key"),
        ({"op": "reverse", "key": "k", "seq": "7-", "reason": "x"}, "operations[1].seq"),
        ({"op": "transfer", "key": "k", "from": {}, "to": {}, "coin": "usdt", "amount": "1"}, None),
        ({"op": "settle", "key": "k", "base": "btc", "quote": "usdt", "base_amount": "1"}, None),
        ([], "operations[1]"),
        ("deposit", "operations[1]"),
        (None, "operations[1]"),
    ],
    ids=str,
)
def test_malformed_operation_refuses_the_whole_batch_by_index_and_field(
    api: Api, operation: object, field: str | None
) -> None:
    """One operation that cannot be read: nothing of the batch is done, and its place is named."""
    seq = api.seq
    answer = send(api, [deposit("good"), operation, deposit("good too")])
    problem = answer.json()
    assert (answer.status_code, problem["index"]) == (422, 1), answer.text
    assert problem["field"].startswith("operations[1]")
    assert field is None or problem["field"] == field
    assert problem["detail"].startswith("operations[1]: ")
    assert len(answer.content) < 1000
    assert api.seq == seq


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"operations":[{"op":"deposit",]}', 400),
        (b'{"operations":[{"op":"deposit","key":"\xff"}]}', 400),
        (b'{"operations":' + b"[" * 100_000, 422),
        (b'{"operations":[' + b'{"a":' * 50_000, 400),
        (b'{"operations":[' + b'{"a":' * 800 + b"1" + b"}" * 800 + b"]}", 400),
        (b'{"operations":[' + b"[" * 800 + b"]" * 800 + b"]}", 422),
        (b" " * (8 * 1024 * 1024 + 1), 400),
        (b"[]", 422),
        (b"null", 422),
        (b"{}", 422),
        (b'{"operations":{}}', 422),
        (b'{"operations":[],"atomic":"yes"}', 422),
        (b'{"operations":[],"atomic":null}', 422),
        (b'{"operations":[],"atomic":1}', 422),
        (b'{"operations":[],"dry_run":true}', 422),
        (b'{"operations":[],"operations":[]}', 422),
        (
            b'{"operations":[{"op":"deposit","key":"k","customer":"alice","coin":"usdt","amount":"1","amount":"2"}]}',
            422,
        ),
        (
            b'{"operations":[{"op":"deposit","op":"freeze","key":"k","customer":"alice","coin":"usdt","amount":"1"}]}',
            422,
        ),
    ],
    ids=lambda value: repr(value[:40]) if isinstance(value, bytes) else str(value),
)
def test_batch_that_cannot_be_read_is_refused_and_touches_nothing(api: Api, content: bytes, status: int) -> None:
    """What is wrong first counts: not JSON or too long is 400; another form, or a name that stands twice, is 422."""
    seq = api.seq
    answer = api.request("POST", "/v1/batches", content=content, headers=api.headers())
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert api.seq == seq


def test_batch_needs_no_key_and_passes_one_over(api: Api) -> None:
    """Its operations have their own keys; one in the header names nothing."""
    headers = api.headers("a header key")
    body = {"operations": [deposit("own")]}
    assert api.request("POST", "/v1/batches", json=body, headers=headers).status_code == 200
    assert api.get("/v1/entries", after_seq=api.seq - 1).json()["entries"][0]["key"] == "own"


def test_amount_that_does_not_fit_the_coin_is_a_result_of_its_own(api: Api) -> None:
    """Digits beyond the coin's scale are found by the rules: that one is refused and not kept, the others go on."""
    found = results(api, [deposit("a"), deposit("b", "0.000000001"), deposit("c")])
    assert codes(found) == [None, "invalid_amount", None]
    assert "seq" not in found[1]


def test_batch_waits_for_room_as_a_whole(tmp_path: Path) -> None:
    """A batch that finds the queue full is refused as a whole with 503, and done when it comes again."""
    with operator_api(tmp_path / "data", queue_limit=60) as api:
        api.set_up()

        async def flood() -> list[httpx2.Response]:
            calls = (
                api.http.post(
                    "/v1/batches",
                    json={"operations": [deposit(f"{batch}-{number}") for number in range(50)]},
                    headers=api.headers(),
                )
                for batch in range(4)
            )
            return await asyncio.gather(*calls)

        answers = api.run(flood())
        done = sum(answer.status_code == 200 for answer in answers)
        assert {answer.status_code for answer in answers} == {200, 503}
        assert api.balances("alice")["usdt"]["available"] == f"{100 + 50 * done}.00"
        for batch in range(4):
            results(api, [deposit(f"{batch}-{number}") for number in range(50)])
        assert api.balances("alice")["usdt"]["available"] == "300.00"
