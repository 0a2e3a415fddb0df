"""A commit that the server gave up waiting with: no standby has confirmed it, so nobody is told yes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

import spotledger
from servers.missing import ServerMissing, skip_or_fail
from servers.postgres import Cluster, start_cluster
from spotledger.errors import StoreUnavailable
from support_core import seed
from support_database_books import check_database


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """Give a server whose settings a test may change."""
    try:
        cluster = start_cluster()
    except ServerMissing as problem:
        skip_or_fail(problem)
    yield cluster
    cluster.stop()


def set_standby(url: str, names: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET synchronous_standby_names = " + f"'{names}'")
        connection.execute("SELECT pg_reload_conf()")


def cancel_wait_for_standby(url: str) -> bool:
    """Cancel one wait for a standby; return whether there was one."""
    with psycopg.connect(url, autocommit=True) as connection:
        return bool(
            connection.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            ).fetchall()
        )


def test_cancelled_wait_for_the_standby_is_no_yes(own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server committed without its standby and said so: the caller is told to ask again, and then gets a repeat."""
    monkeypatch.setattr("spotledger.storage.postgres.store.WRITE_PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr("spotledger.storage.postgres.store.LOOK_UP_SECONDS", 1.0)
    url = own_cluster.url()
    with spotledger.open(url) as ledger, ThreadPoolExecutor(1) as pool:
        seed(ledger)
        set_standby(url, "nobody")
        number = 0
        answer = pool.submit(ledger.deposit, "ann", "btc", "1", key="d0")
        deadline = time.monotonic() + 20
        while not cancel_wait_for_standby(url):
            assert time.monotonic() < deadline, "no commit waits for the standby"
            if answer.done():  # before the server heeded its setting
                number += 1
                answer = pool.submit(ledger.deposit, "ann", "btc", "1", key=f"d{number}")
            time.sleep(0.02)
        with pytest.raises(StoreUnavailable, match="same idempotency key"):
            answer.result()
        set_standby(url, "")
        assert ledger.deposit("ann", "btc", "1", key=f"d{number}").replayed
    assert check_database(url).keys[f"d{number}"] == 6 + number
