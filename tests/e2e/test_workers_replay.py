"""The workers of one machine remember signed requests together, and all of them over a restart."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import support_service
from support_service import Service, Trader

BALANCE = "/trade/api/v1/getBalance"
WORKERS = 3
SETTINGS = {"workers": WORKERS, "nonce_past_ms": 60_000, "nonce_future_ms": 5_000, "asset_limit_per_second": 0}


@pytest.fixture
def url(postgres_url: str) -> str:
    """Give an empty database."""
    return postgres_url


def signed_url(trader: Trader, ahead_ms: int = 0) -> str:
    text = f"accesskey={trader.accesskey}&nonce={time.time_ns() // 1_000_000 + ahead_ms}"
    return f"{BALANCE}?{text}&signature={hmac.digest(trader.secretkey.encode(), text.encode(), hashlib.sha256).hex()}"


def codes(service: Service, url: str, address: str, times: int = 12) -> set[int]:
    """Ask on so many connections that every worker gets some, and return the codes of the answers."""
    parts = urlsplit(service.public_url)
    assert parts.hostname is not None
    connections = [
        http.client.HTTPConnection(parts.hostname, parts.port, timeout=20, source_address=(address, 0))
        for _ in range(times)
    ]
    found = set()
    for connection in connections:
        connection.request("GET", url)
    for connection in connections:
        found.add(int(json.loads(connection.getresponse().read())["code"]))
    for connection in connections:
        connection.close()
    return found


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_signed_url_is_bound_on_all_workers_and_after_a_restart(url: str, tmp_path: Path) -> None:
    """A URL that one worker admitted passes on no other from elsewhere, nor after a stop in order."""
    settings = {**SETTINGS, "database": url}
    service = support_service.start(tmp_path / "data", **settings)
    alice = service.trader("alice")
    urls = [signed_url(alice, -number) for number in range(8)]
    for one in urls:
        assert codes(service, one, "127.0.0.1", 1) == {200}
        assert codes(service, one, "127.0.0.2") == {400}
        assert codes(service, one, "127.0.0.1") == {200}
    assert service.stop() == 0
    files = sorted(file.name for file in (tmp_path / "data").glob("replay-memory*"))
    assert files == ["replay-memory", "replay-memory-1", "replay-memory-2"]
    service = support_service.start(tmp_path / "data", **settings)
    try:
        assert list((tmp_path / "data").glob("replay-memory*")) == []
        for one in urls:
            assert codes(service, one, "127.0.0.2") == {400}
            assert codes(service, one, "127.0.0.1") == {200}
        assert codes(service, signed_url(alice), "127.0.0.2") == {200}
    finally:
        service.stop()


def test_killed_worker_is_replaced_by_one_that_refuses_what_it_cannot_know(url: str, tmp_path: Path) -> None:
    """One worker is killed: what any worker admitted is refused from elsewhere by all of them, also by the new one."""
    service = support_service.start(tmp_path / "data", **SETTINGS, database=url)
    try:
        alice = service.trader("alice")
        urls = [signed_url(alice, 3_000 - number) for number in range(8)]
        for one in urls:
            assert codes(service, one, "127.0.0.1", 1) == {200}
        before = children_of(service.process.pid)
        assert len(before) == WORKERS
        os.kill(before[0], signal.SIGKILL)
        until_s = time.monotonic() + 60
        while len(set(children_of(service.process.pid)) - {before[0]}) < WORKERS:
            assert time.monotonic() < until_s
            time.sleep(0.05)
        for one in urls:
            assert codes(service, one, "127.0.0.2") == {400}
    finally:
        service.stop()
