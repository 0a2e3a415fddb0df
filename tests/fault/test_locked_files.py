"""Another process holds the lock of a file: reads go on, and a write waits beside them, for a bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from spotledger.client import SpotClient
from support_service import Service, Trader, start

#: Answers of each read that have to come while the write is pending.
READS = 5
SEGMENT_ENTRIES = 4_096
WAIT_SECONDS = 30.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the write lock of *file*, from another process than the service; nothing is written."""
    connection = apsw.Connection(str(file), apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
    finally:
        connection.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Serve a ledger."""
    made = start(
        tmp_path_factory.mktemp("locked") / "data", segment_entries=SEGMENT_ENTRIES, asset_limit_per_second=100_000
    )
    made.list_coins(btc=8)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def trader(service: Service) -> Trader:
    """Give a customer with an access key."""
    return service.trader("ann", {"btc": ("5", "0")})


class Pending:
    """A write in a thread of its own."""

    def __init__(self, service: Service, path: str, body: dict[str, Any], key: str) -> None:
        self._client = service.client()
        self._request = (path, body, key)
        self.answer: httpx2.Response | None = None
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        path, body, key = self._request
        self.answer = self._client.post(path, json=body, headers={"Idempotency-Key": key})

    def end(self) -> httpx2.Response:
        """Wait for the answer."""
        self._thread.join(WAIT_SECONDS)
        assert self.answer is not None
        return self.answer


def body_of(file: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of a write to *file*."""
    if file == "keys.db":
        return "/v1/keys", {"customer": "ann", "permissions": ["read"]}
    return "/v1/deposits", {"customer": "ann", "coin": "btc", "amount": "1"}


@pytest.mark.parametrize("file", ["journal.db", "keys.db"])
def test_write_waits_for_the_lock_and_reads_do_not(service: Service, trader: Trader, file: str) -> None:
    """Every read is answered while the write is pending, which is done once the lock is free."""
    client = service.client()
    with SpotClient(trader.accesskey, trader.secretkey, base_url=service.public_url) as spot:
        with locked(service.folder / file):
            pending = Pending(service, *body_of(file), f"waits-{file}")
            for _ in range(READS):
                assert client.get("/healthz").status_code == 200
                assert client.get("/v1/customers/ann/balances").status_code == 200
                assert client.get("/v1/entries").status_code == 200
                assert spot.balances()["btc"].available >= 5
                assert pending.answer is None
        assert pending.end().status_code == 200


@pytest.mark.parametrize("file", ["journal.db", "keys.db"])
def test_lock_that_is_not_released_refuses_the_write_and_leaves_its_key_unused(
    service: Service, trader: Trader, file: str
) -> None:
    """After a bounded wait the answer is 503; the same request passes once the lock is free, and happens once."""
    client, key = service.client(), f"refused-{file}"
    path, body = body_of(file)
    with locked(service.folder / file):
        refused = Pending(service, path, body, key).end()
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert "another process is writing to it" in refused.json()["detail"]
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/v1/customers/ann/balances").status_code == 200
    done = client.post(path, json=body, headers={"Idempotency-Key": key})
    again = client.post(path, json=body, headers={"Idempotency-Key": key})
    assert (done.status_code, done.headers.get("idempotency-replayed")) == (200, None)
    assert again.headers["idempotency-replayed"] == "true"


def test_locked_books_hold_up_nothing_and_are_sealed_later(service: Service, trader: Trader) -> None:
    """A segment that fills meanwhile stays in memory; writes and reads go on, and the sealing is made up for."""
    client = service.client()
    with locked(service.folder / "books.db"):
        for number in range(SEGMENT_ENTRIES // 1_000 + 1):
            operations = [
                {"op": "deposit", "key": f"fill-{number}-{place}", "customer": "ann", "coin": "btc", "amount": "0.001"}
                for place in range(1_000)
            ]
            answer = client.post("/v1/batches", json={"operations": operations})
            assert [result.get("code") for result in answer.json()["results"]] == [None] * 1_000
            assert client.get("/v1/customers/ann/balances").status_code == 200
    until = time.monotonic() + WAIT_SECONDS
    turn = 0
    while sealed_to(service.folder) < SEGMENT_ENTRIES:
        assert time.monotonic() < until, "the segment was never sealed"
        service.write("/v1/deposits", {"customer": "ann", "coin": "btc", "amount": "1"}, f"turn-{turn}")
        turn += 1
        time.sleep(0.05)


def sealed_to(folder: Path) -> int:
    """Return the last sealed entry, as the file has it."""
    connection = apsw.Connection(str(folder / "books.db"), apsw.SQLITE_OPEN_READWRITE)
    try:
        return int(connection.execute("SELECT sealed_to FROM books").fetchall()[0][0])
    finally:
        connection.close()
