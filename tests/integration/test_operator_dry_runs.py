"""Dry runs over HTTP: what the write would answer, marked, and nothing of it booked."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from spotledger.domain.operations import Deposit
from spotledger.errors import LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger.dry_runs import DRY_RUN_LIMIT
from support_operator import Api, operator_api

#: A call for each operation, in an order in which each may lean on the one before.
WRITES: list[tuple[str, str, dict[str, Any]]] = [
    ("/v1/coins", "list_coin", {"coin": "doge", "scale": 8}),
    ("/v1/customers", "register_customer", {"customer": "carol"}),
    ("/v1/deposits", "deposit", {"customer": "bob", "coin": "btc", "amount": "2"}),
    ("/v1/holds", "freeze", {"customer": "bob", "coin": "btc", "amount": "1.5", "reference": "ask"}),
    ("/v1/releases", "unfreeze", {"hold": {"key": "key-of-/v1/holds"}, "amount": "0.5"}),
    (
        "/v1/settlements",
        "settle",
        {
            "base": "btc",
            "quote": "usdt",
            "base_amount": "1",
            "quote_amount": "10",
            "buyer": {"hold": {"key": "first-hold"}, "release": "rest"},
            "seller": {"hold": {"key": "key-of-/v1/holds"}},
        },
    ),
    ("/v1/withdrawals", "withdraw", {"customer": "alice", "coin": "usdt", "amount": "5"}),
    (
        "/v1/transfers",
        "transfer",
        {"from": {"customer": "alice"}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "5"},
    ),
    ("/v1/reversals", "reverse", {"seq": 7, "reason": "oops"}),
    ("/v1/withdrawals", "withdraw", {"customer": "alice", "coin": "usdt", "amount": "100000"}),
    ("/v1/deposits", "deposit", {"customer": "nobody", "coin": "usdt", "amount": "1"}),
]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances."""
    with operator_api(tmp_path / "data") as made:
        made.set_up()
        yield made


def tried(api: Api, path: str, body: object, key: str = "dry", query: str = "dry_run=true") -> httpx2.Response:
    """Try a write."""
    content = json.dumps(body).encode()
    return api.request("POST", f"{path}?{query}", content=content, headers=api.headers(key))


def without_marks(answer: dict[str, Any]) -> dict[str, Any]:
    """Return *answer* without what is of one request, or of its time."""
    entry = {name: value for name, value in answer.get("entry", {}).items() if name != "booked_ms"}
    return {name: value for name, value in {**answer, "entry": entry}.items() if name not in ("dry_run", "request_id")}


def test_dry_run_of_each_write_answers_what_the_write_then_answers(api: Api) -> None:
    """Status, entry, balances, hold and refusal are as they would be, marked; the head stays, and no key is used."""
    for path, _, body in WRITES:
        key, head = f"key-of-{path}" if body.get("amount") != "100000" else "short", api.seq
        before = [tried(api, path, body, key) for _ in range(2)]
        assert api.seq == head
        done = api.post(path, body, key)
        for answer in before:
            assert answer.status_code == done.status_code
            assert answer.json()["dry_run"] is True
            assert "x-ledger-position" not in answer.headers
            assert without_marks(answer.json()) == without_marks(done.json())
        assert "dry_run" not in done.json()


def test_dry_run_of_a_batch_sees_its_own_effects_and_books_nothing(api: Api) -> None:
    """Each result is what it would be, after the ones before it; the answer and each result are marked."""
    operations = [
        {"op": op, "key": f"key-of-{path}" if op == "freeze" else f"k{number}", **body}
        for number, (path, op, body) in enumerate(WRITES)
        if op not in ("list_coin", "register_customer")
    ]
    head = api.seq
    answer = tried(api, "/v1/batches", {"operations": operations}).json()
    assert api.seq == head
    assert answer["dry_run"] is True
    assert [result["dry_run"] for result in answer["results"]] == [True] * len(operations)
    done = api.must("/v1/batches", {"operations": operations})
    assert list(map(without_marks, answer["results"])) == list(map(without_marks, done["results"]))
    again = tried(api, "/v1/batches", {"operations": operations}).json()["results"]
    assert [result.get("replayed", False) for result in again] == [True] * (len(operations) - 1) + [False]


def test_dry_run_of_an_atomic_batch_that_is_longer_than_a_group(api: Api) -> None:
    """It is decided as a whole: later operations see the effects of all earlier ones."""
    deposit = {"op": "deposit", "customer": "alice", "coin": "whole", "amount": "1"}
    operations = [{**deposit, "key": f"d{number}"} for number in range(900)]
    head = api.seq
    results = tried(api, "/v1/batches", {"operations": operations, "atomic": True}).json()["results"]
    assert (results[-1]["seq"], results[-1]["balances"][-1]["available"]) == (head + 900, "900")
    assert api.seq == head


def test_dry_run_of_what_was_done_is_marked_as_a_repeat(api: Api) -> None:
    """The key has its result, and that is the answer."""
    _, _, body = WRITES[2]
    done = api.must("/v1/deposits", body, "once")
    again = tried(api, "/v1/deposits", body, "once")
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == {**done, "dry_run": True}


@pytest.mark.parametrize("query", ["dry_run=yes", "dry_run=", "dry_run=True", "dry_run=true&dry_run=true", "dry_run"])
def test_dry_run_that_is_neither_true_nor_false_is_refused(api: Api, query: str) -> None:
    """A misspelled flag never books anything."""
    head = api.seq
    for path, body in (("/v1/deposits", WRITES[2][2]), ("/v1/batches", {"operations": []})):
        answer = tried(api, path, body, query=query)
        assert (answer.status_code, answer.json()["field"]) == (422, "dry_run")
    assert api.seq == head


def test_dry_run_false_books(api: Api) -> None:
    """It may be written out."""
    head = api.seq
    assert tried(api, "/v1/deposits", WRITES[2][2], query="dry_run=false").status_code == 200
    assert api.seq == head + 1


def test_dry_run_needs_the_scopes_of_the_write(api: Api) -> None:
    """Who may not book may not try: the answer has balances."""
    token = api.must("/v1/tokens", {"scopes": ["ledger:read"]})["token"]
    content = json.dumps(WRITES[2][2]).encode()
    answer = api.request("POST", "/v1/deposits?dry_run=true", content=content, headers=api.headers("dry", token))
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


def test_dry_runs_are_answered_while_writes_never_stop(api: Api) -> None:
    """The writer pauses for a dry run, although a next group always waits, and each write is booked once."""
    writer, head = api.runtime.writer, api.seq

    async def test() -> int:
        stopped, count = asyncio.Event(), 0

        async def caller(name: int) -> None:
            nonlocal count
            while not stopped.is_set():
                await writer.submit([Deposit(f"w{name}-{count}", "alice", "whole", "1")])
                count += 1

        callers = [asyncio.create_task(caller(number)) for number in range(8)]
        for number in range(20):
            tried = writer.dry_runs.execute([Deposit("dry", "alice", "whole", str(number + 1))])
            (outcome,) = await asyncio.wait_for(tried, 30)
            assert not outcome.replayed
        stopped.set()
        await asyncio.gather(*callers)
        return count

    count = api.run(test())
    assert api.seq == head + count


def test_write_waits_for_one_dry_run_at_most(api: Api) -> None:
    """However many dry runs came before it: they and the groups of the writer take turns."""
    writer = api.runtime.writer

    async def test() -> int:
        async with writer._write_lock:
            tries = [
                asyncio.create_task(writer.dry_runs.execute([Deposit("dry", "alice", "whole", "1")]))
                for _ in range(DRY_RUN_LIMIT)
            ]
            await asyncio.sleep(0)
            write = asyncio.create_task(writer.submit([Deposit("w", "alice", "whole", "1")]))
            await asyncio.sleep(0.05)
        await write
        answered = sum(tried.done() for tried in tries)
        await asyncio.gather(*tries)
        return answered

    assert api.run(test()) <= 1


def test_dry_run_that_fails_after_its_caller_has_gone_is_not_reported_as_lost(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in order, and nobody has to hear of its error."""
    monkeypatch.setattr("spotledger.ledger.dry_runs.DRY_RUN_SECONDS", 0.01)
    writer, reported = api.runtime.writer, list[Any]()

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        monkeypatch.setattr(api.runtime.ledger, "_corrupt", LedgerCorrupt("of a test"))
        async with writer._write_lock:
            with pytest.raises(StoreUnavailable):
                await writer.dry_runs.execute([Deposit("dry", "alice", "whole", "1")])
            (late,) = writer.dry_runs.tasks
        await asyncio.wait([late])
        monkeypatch.undo()
        del late
        gc.collect()

    api.run(test())
    assert reported == []


def test_dry_runs_beyond_the_limit_are_refused_at_once(api: Api) -> None:
    """Nothing waits without a bound."""
    writer = api.runtime.writer

    async def test() -> list[Any]:
        tries = (writer.dry_runs.execute([Deposit("dry", "alice", "whole", "1")]) for _ in range(DRY_RUN_LIMIT + 5))
        return await asyncio.gather(*tries, return_exceptions=True)

    outcomes = api.run(test())
    assert [type(outcome) for outcome in outcomes[DRY_RUN_LIMIT:]] == [StoreBusy] * 5
    assert all(isinstance(outcome, list) for outcome in outcomes[:DRY_RUN_LIMIT])
