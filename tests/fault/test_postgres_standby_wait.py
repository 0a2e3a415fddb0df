"""What no standby has confirmed is not acknowledged, on any path; and nobody waits for one without a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import spotledger
from fleet.pair import LEDGER, Pair
from servers.missing import ServerMissing, skip_or_fail
from servers.postgres import Cluster, start_cluster
from spotledger.domain.operations import Deposit
from spotledger.errors import LedgerCorrupt, StoreUnavailable, Unavailable
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer
from spotledger.ops.access_key_writes import AccessKeyWrites
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.keys import PostgresKeyTables
from support_core import seed, spot
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


@contextmanager
def cancelling(url: str) -> Iterator[list[int]]:
    """Cancel every wait for a standby, as an operator in despair does; give how many there were."""
    cancelled, ended = [0], threading.Event()

    def run() -> None:
        while not ended.wait(0.05):
            cancelled[0] += cancel_wait_for_standby(url)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield cancelled
    finally:
        ended.set()
        thread.join()


def until_not_acknowledged(write: Callable[[int], object]) -> int:
    """Write until a write is not acknowledged, which the server's new setting brings about; return how many were."""
    for number in range(1000):
        try:
            write(number)
        except StoreUnavailable:
            return number
    raise AssertionError("no write waits for the standby")


def until_waited_for(ledger: Ledger) -> int:
    """Deposit until a deposit is not acknowledged; return its number."""
    return until_not_acknowledged(lambda number: ledger.deposit("ann", "btc", "1", key=f"n{number}"))


def test_cancelled_wait_is_no_yes_in_the_look_up_of_an_unknown_outcome(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a commit is lost, and the commit of its look-up is not confirmed either: the caller asks again."""
    monkeypatch.setattr("spotledger.storage.postgres.store.WRITE_PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("spotledger.storage.postgres.store.LOOK_UP_SECONDS", 2.0)
    url = own_cluster.url()
    with spotledger.open(url) as ledger:
        seed(ledger)
        look_up = ledger._store._look_up  # type: ignore[attr-defined]
        cancelled_waits = []

        def cancelled_look_up(*given: Any) -> None:
            with cancelling(url) as cancelled:
                try:
                    look_up(*given)
                finally:
                    cancelled_waits.append(cancelled[0])

        ledger._store._look_up = cancelled_look_up  # type: ignore[attr-defined]
        set_standby(url, "nobody")
        number = until_waited_for(ledger)
        set_standby(url, "")
        assert ledger.deposit("ann", "btc", "1", key=f"n{number}").replayed
    check_database(url)
    assert cancelled_waits
    assert cancelled_waits[0] > 1, "no commit of the look-up was cancelled"


def key_writes(url: str, *, requires_standby: bool = False) -> tuple[PostgresKeyTables, AccessKeyWrites, KeyRing]:
    """Return the key tables of *url*, and what writes access keys in them."""
    tables = PostgresKeyTables(lambda: connect(url, application="spotledger keys"), requires_standby=requires_standby)
    ring = KeyRing(tables.access_keys, Cipher(b"k" * 32), lambda: 1)
    return tables, AccessKeyWrites(tables, ring), ring


def make_key(writes: AccessKeyWrites, ring: KeyRing, key: str) -> Any:
    """Make an access key under the idempotency key *key*."""
    return writes.once(key, {"customer": "ann"}, lambda: {"accesskey": ring.create("ann", ["read"])[0]})


def until_not_made(writes: AccessKeyWrites, ring: KeyRing) -> int:
    """Make keys until one is not acknowledged; return its number."""
    return until_not_acknowledged(lambda number: make_key(writes, ring, f"key-{number}"))


def test_write_of_a_key_that_no_standby_confirmed_is_no_yes_and_neither_is_its_repeat(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key and a revocation could come undone after a failover: both are answered once a standby has them."""
    monkeypatch.setattr("spotledger.storage.postgres.keys.WRITE_SECONDS", 3.0)
    url = own_cluster.url()
    spotledger.open(url).close()
    tables, writes, ring = key_writes(url)
    kept = make_key(writes, ring, "before").answer["accesskey"]
    set_standby(url, "nobody")
    with cancelling(url) as cancelled:
        number = until_not_made(writes, ring)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="standby did not confirm"):
                make_key(writes, ring, f"key-{number}")
            with pytest.raises(StoreUnavailable, match="standby did not confirm"):
                ring.revoke(kept)
        assert cancelled[0] > 3
    set_standby(url, "")
    assert make_key(writes, ring, f"key-{number}").replayed
    assert not ring.revoke(kept)
    tables.close()


def test_key_writes_do_not_queue_behind_one_that_is_stuck(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the standby away twenty writes of keys are all answered as unavailable, and then all can be done again."""
    monkeypatch.setattr("spotledger.storage.postgres.keys.WRITE_SECONDS", 1.0)
    monkeypatch.setattr("spotledger.ledger.writer.KEY_QUEUE_SECONDS", 0.5)
    url = own_cluster.url()

    async def write_all(ledger: Ledger) -> list[Any]:
        writer = Writer(ledger)
        await writer.start()
        tasks = [writer.beside(lambda n=n: make_key(writes, ring, f"many-{n}")) for n in range(20)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        await writer.stop()
        return answers

    with spotledger.open(url) as ledger:
        seed(ledger)
        tables, writes, ring = key_writes(url)
        set_standby(url, "nobody")
        until_not_made(writes, ring)
        assert all(isinstance(answer, Unavailable) for answer in asyncio.run(write_all(ledger)))
        with cancelling(url):
            set_standby(url, "")
            answers = asyncio.run(write_all(ledger))
        while any(isinstance(answer, Exception) for answer in answers):
            assert all(not isinstance(answer, Exception) or isinstance(answer, Unavailable) for answer in answers)
            answers = asyncio.run(write_all(ledger))
        tables.close()


def test_start_does_not_wait_for_a_standby_that_is_away(own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is there is opened and read; one that has to be made first is unavailable, and later there."""
    monkeypatch.setattr("spotledger.storage.postgres.server_check.STANDBY_SECONDS", 0.5)
    url = own_cluster.url()
    with spotledger.open(url) as ledger:
        seed(ledger)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
    empty = own_cluster.url("empty")
    own_cluster.reload(synchronous_standby_names="nobody")
    with spotledger.open(url) as ledger:
        until_waited_for_by_server(url)
        assert ledger.customers() == ["ann", "bob"]
        tables = key_writes(url)[0]
        with tables.together():
            assert tables.master_key_fingerprint is None
        tables.close()
    with pytest.raises(StoreUnavailable, match="standby did not confirm"):
        spotledger.open(empty)
    own_cluster.reload(synchronous_standby_names="")
    deadline = time.monotonic() + 30
    while True:
        try:
            spotledger.open(empty).close()
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline


def until_waited_for_by_server(url: str) -> None:
    """Wait until the server has heeded that it shall wait for a standby."""
    deadline = time.monotonic() + 30
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute("SHOW synchronous_standby_names").fetchone() != ("nobody",):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_required_standby_that_is_not_there_refuses_each_write_with_nothing_written(own_cluster: Cluster) -> None:
    """Without names, and with one that nobody has: a group, a repeat's sync and a key are refused before the commit."""
    url = own_cluster.url()
    with spotledger.open(url) as plain:
        seed(plain)
        head = plain.head
    for names in ("", "nobody"):
        set_standby(url, names)
        with spotledger.open(url, requires_standby=True) as ledger:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="no synchronous standby is connected"):
                    ledger.deposit("ann", "btc", "1", key="d")
            with pytest.raises(StoreUnavailable, match="no synchronous standby is connected"):
                ledger.deposit("ann", "btc", "1000", key="seed:ann")
            with pytest.raises(StoreUnavailable, match="no synchronous standby is connected"):
                ledger.try_writing()
            tables, writes, ring = key_writes(url, requires_standby=True)
            with pytest.raises(StoreUnavailable, match="no synchronous standby is connected"):
                make_key(writes, ring, "key")
            assert ring.list() == []
            assert ledger.head == head
            tables.close()
    assert check_database(url).keys.get("d") is None


def test_required_standby_that_is_there_gets_each_write_before_its_answer(pair: Pair) -> None:
    """With a standby writes pass; once it is gone they are refused, and what was acknowledged is on the standby."""
    url = pair.primary.url(LEDGER)
    with spotledger.open(url, requires_standby=True) as ledger:
        seed(ledger)
        assert pair.standby.kept is not None
        pair.standby.stop()
        with pytest.raises(StoreUnavailable):
            ledger.deposit("ann", "btc", "1", key="d")
        with pytest.raises(StoreUnavailable, match=r"no synchronous standby is connected|another node held"):
            ledger.deposit("ann", "btc", "1", key="e")


def test_entry_that_the_database_refuses_is_not_booked(own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes a known key for a new one is stopped by the journal's own index, before the commit."""
    url = own_cluster.url()
    with spotledger.open(url) as ledger:
        seed(ledger)
        ledger.deposit("ann", "btc", "1", key="once")
        head = ledger.head
        monkeypatch.setattr(type(ledger._store), "find_keys", lambda self, keys: {})
        with pytest.raises(LedgerCorrupt, match="23505"):
            ledger.deposit("ann", "btc", "1", key="once")
        assert ledger.head == head
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT max(seq) FROM entry").fetchone() == (head.seq,)


def test_request_that_waits_for_too_long_is_answered_and_not_lost(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session holds the write lock: requests in a group and in the queue are unavailable, and done later."""
    monkeypatch.setattr("spotledger.ledger.writer.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("spotledger.ledger.writer.LATE_SECONDS", 0.1)
    url = own_cluster.url()

    async def write(ledger: Ledger) -> list[Any]:
        writer = Writer(ledger, group_limit=1)
        await writer.start()
        deposits = [writer.submit([Deposit(f"late-{n}", "ann", "btc", "1")]) for n in range(3)]
        with psycopg.connect(url) as holder:
            holder.execute("SELECT ledger_id FROM ledger FOR UPDATE")
            answers = await asyncio.gather(*deposits, return_exceptions=True)
        await writer.stop()
        return answers

    with spotledger.open(url) as ledger:
        seed(ledger)
        answers = asyncio.run(write(ledger))
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
        assert all("in time" in str(answer) for answer in answers)
        for number in range(3):
            ledger.deposit("ann", "btc", "1", key=f"late-{number}")
        assert ledger.balances(spot("ann"))["btc"].available == 1003 * 10**8
