"""A node that was frozen, or no longer follows: nobody is let in on old trust, and nothing old is called current."""

from __future__ import annotations

import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

import support_service
from servers.kept import until
from support_postgres import Proxy, proxy_to
from support_public import signed_query
from support_service import Service, Trader

#: Longer than the node may go without the database.
FROZEN_SECONDS = 3
UNLIMITED = {"asset_limit_per_second": 0, "address_limit_per_minute": 0}


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """Give a proxy to a fresh database."""
    with proxy_to(postgres_url) as made:
        yield made


@pytest.fixture
def nodes(
    proxy: Proxy, postgres_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Service, Service]]:
    """Give a node that stays awake, and one behind the proxy that serves what is a second old, and has trust as set."""
    awake = support_service.start(tmp_path / "awake", database=postgres_url)
    (tmp_path / "frozen").mkdir()
    shutil.copy(awake.folder / "master.key", tmp_path / "frozen" / "master.key")
    shutil.copy(awake.folder / "operator.token", tmp_path / "frozen" / "operator.token")
    settings = {"read_age_limit_ms": 1100, "keys_trust_seconds": getattr(request, "param", 60), **UNLIMITED}
    frozen = support_service.start(tmp_path / "frozen", database=proxy.url, **settings)
    awake.list_coins(usdt=8)
    yield awake, frozen
    awake.stop()
    frozen.process.send_signal(signal.SIGCONT)
    frozen.stop()


def balance(node: Service, trader: Trader) -> bytes:
    """Return the path of a signed getBalance of *trader*."""
    nonce = time.time_ns() // 1_000_000
    query = signed_query({"accesskey": trader.accesskey, "account": "2"}, secret=trader.secretkey, nonce=nonce)
    return f"/trade/api/v1/getBalance?{query}".encode()


class Waiting:
    """A request that a stopped node finds when it wakes, before it has done anything else."""

    def __init__(self, node: Service, path: bytes) -> None:
        parts = urlsplit(node.public_url)
        self._socket = socket.create_connection((parts.hostname, parts.port), timeout=30)
        self._socket.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")

    def answer(self) -> bytes:
        """Return the whole answer."""
        received = b""
        with self._socket:
            while piece := self._socket.recv(65_536):
                received += piece
        return received


@pytest.mark.parametrize("nodes", [1], indirect=True)
def test_key_that_was_revoked_while_a_node_was_frozen_lets_nobody_in(nodes: tuple[Service, Service]) -> None:
    """Trust is judged when somebody is let in: the first requests after waking are refused, whatever runs first."""
    awake, frozen = nodes
    trader = awake.trader("alice", {"usdt": ("100", "0")})
    assert b'"code":200' in Waiting(frozen, balance(frozen, trader)).answer()
    frozen.process.send_signal(signal.SIGSTOP)
    awake.client().delete(f"/v1/keys/{trader.accesskey}").raise_for_status()
    time.sleep(FROZEN_SECONDS)
    waiting = [Waiting(frozen, balance(frozen, trader)) for _ in range(5)]
    frozen.process.send_signal(signal.SIGCONT)
    assert not any(b'"code":200' in each.answer() for each in waiting)


def test_balance_that_changed_while_a_node_was_frozen_is_not_told(nodes: tuple[Service, Service]) -> None:
    """What a node had in memory before it froze is not answered as if it were current."""
    awake, frozen = nodes
    trader = awake.trader("alice", {"usdt": ("100", "0")})
    assert b"100.0" in Waiting(frozen, balance(frozen, trader)).answer()
    frozen.process.send_signal(signal.SIGSTOP)
    awake.write("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "11"})
    time.sleep(FROZEN_SECONDS)
    waiting = [Waiting(frozen, balance(frozen, trader)) for _ in range(5)]
    frozen.process.send_signal(signal.SIGCONT)
    answers = [each.answer() for each in waiting]
    assert not any(b"100.0" in answer for answer in answers)
    until(lambda: b"111.0" in Waiting(frozen, balance(frozen, trader)).answer())


def test_node_that_does_not_follow_says_so_and_recovers(nodes: tuple[Service, Service], proxy: Proxy) -> None:
    """Cut off, a node tells its age, and beyond the bound is not ready for reads and refuses them; then it recovers."""
    awake, frozen = nodes
    trader = awake.trader("alice", {"usdt": ("100", "0")})
    assert b"100.0" in Waiting(frozen, balance(frozen, trader)).answer()
    ready = httpx2.get(f"{frozen.public_url}/readyz/reads")
    assert ready.status_code == 200
    assert 0 <= int(ready.headers["x-ledger-age-ms"]) < 1100
    proxy.refuses = True
    proxy.cut_all()
    until(lambda: httpx2.get(f"{frozen.public_url}/readyz/reads").status_code == 503)
    assert int(httpx2.get(f"{frozen.public_url}/readyz/reads").headers["x-ledger-age-ms"]) >= 1100
    assert b'"code":200' not in Waiting(frozen, balance(frozen, trader)).answer()
    refused = frozen.client().get("/v1/customers/alice/balances", params={"min_seq": 1})
    assert refused.status_code == 503
    assert frozen.client().get("/healthz").status_code == 200
    proxy.refuses = False
    until(lambda: httpx2.get(f"{frozen.public_url}/readyz/reads").status_code == 200)
    assert b"100.0" in Waiting(frozen, balance(frozen, trader)).answer()


def test_node_that_found_damage_stops_answering_reads(nodes: tuple[Service, Service], postgres_url: str) -> None:
    """A node that follows no longer, because what it would follow is damaged, does not go on with what it had."""
    awake, frozen = nodes
    trader = awake.trader("alice", {"usdt": ("100", "0")})
    assert b"100.0" in Waiting(frozen, balance(frozen, trader)).answer()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "INSERT INTO entry SELECT seq + 1, body, hash, gen_random_uuid() FROM entry ORDER BY seq DESC LIMIT 1"
        )
    until(lambda: httpx2.get(f"{frozen.public_url}/readyz/reads").status_code == 503)
    assert b'"code":200' not in Waiting(frozen, balance(frozen, trader)).answer()
