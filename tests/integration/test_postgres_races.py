"""What may come between two steps of the store on PostgreSQL: a migration, a rebuild, another thread, the end."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import closing, suppress
from functools import partial
from typing import Any

import psycopg
import pytest

import spotledger
from servers.kept import until
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Unfreeze
from spotledger.errors import StoreBusy, StoreUnavailable
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.postgres import schema
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.sealing import duty, rebuilding
from spotledger.storage.postgres.sealing.rebuilding import DERIVED_TABLES, rebuild
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.postgres.store import PostgresStore
from support_core import Clock, fill, seed, spot
from support_database_books import check_database, seal

SIZE = duty.PROCESS_ENTRIES


def deposits(ledger: Any, seq: int, prefix: str = "d") -> None:
    """Fill *ledger* up to the entry *seq*."""
    while ledger.head.seq < seq:
        at = ledger.head.seq
        ledger.execute([Deposit(f"{prefix}{at}-{n}", "ann", "btc", "1") for n in range(min(500, seq - at))])


def sealed_seq(url: str) -> int:
    """Return the last sealed entry of the ledger at *url*."""
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT seq FROM sealed").fetchall()[0][0])


def test_group_reads_no_rows_older_than_its_memory_when_a_rebuild_commits_meanwhile(postgres_url: str) -> None:
    """Each query of a group has its own snapshot: a rebuild that seals less may commit between two of them."""
    with spotledger.open(postgres_url, segment_entries=8, seals=False, follow_seconds=None) as ledger:
        seed(ledger)
        fill(ledger, 25)
        expected = ledger.balances(spot("ann"))["btc"].available
    seal(postgres_url)  # up to entry 30, which is in the midst of a segment, as a migration leaves it
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN LOCK TABLE balance IN ACCESS EXCLUSIVE MODE; RETURN NULL; END'"
        )
        connection.execute(
            "CREATE TRIGGER hold_up AFTER UPDATE ON sealed FOR EACH STATEMENT EXECUTE FUNCTION hold_up()"
        )
    with (
        spotledger.open(postgres_url, seals=False, follow_seconds=None) as node,
        psycopg.connect(postgres_url, autocommit=True) as watch,
    ):
        node.deposit("bob", "btc", "1", key="connects")
        writing = threading.Thread(target=node.deposit, args=("ann", "btc", "1"), kwargs={"key": "meanwhile"})

        def is_waiting() -> bool:
            query = (
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'spotledger write'"
                " AND wait_event_type = 'Lock' AND datname = current_database()"
            )
            return watch.execute(query).fetchall() == [(1,)]

        def meanwhile(done: int, total: int) -> None:
            if done == 0:
                writing.start()
                until(is_waiting, 4, "the group does not wait")

        rebuild(partial(connect, postgres_url), meanwhile)
        writing.join()
        watch.execute("DROP TRIGGER hold_up ON sealed")
        watch.execute("DROP FUNCTION hold_up()")
        assert node.balances(spot("ann"))["btc"].available == expected + 10**8
    check_database(postgres_url)


def test_memory_is_not_built_anew_because_a_group_is_made_visible(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read in another thread does not take memory in the midst of a change for one that is broken."""
    built = PostgresStore._built
    count = 0

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        return built(self, *arguments)

    monkeypatch.setattr(PostgresStore, "_built", counted)
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        store: Any = ledger._store
        thread = threading.Thread(target=store._ask)
        with store._guard:
            store._head_cache.is_whole = False  # as in the midst of `HeadCache.apply`
            thread.start()
            time.sleep(0.5)
            store._head_cache.is_whole = True
        thread.join()
    assert count == 1


def go_back(url: str) -> None:
    """Undo all sealing, as a failover to a standby that lacks the last sealing does."""
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in DERIVED_TABLES:
            connection.execute(f"DELETE FROM {table}".encode())
        connection.execute(
            "UPDATE sealed SET seq = 0,"
            " hash = sha256(convert_to('spotledger ledger ' || ledger_id, 'UTF8')) FROM ledger"
        )


def test_segment_is_sealed_again_after_a_failover_lost_its_sealing(postgres_url: str) -> None:
    """A sealing waits for no standby, so it may be lost; the node that had it done has it done again."""
    with spotledger.open(postgres_url, segment_entries=SIZE) as ledger:
        seed(ledger)
        deposits(ledger, SIZE + 10)
        until(lambda: ledger.execute([]) == [] and ledger.sealing_lag == 0, 30, "it is not sealed")
        go_back(postgres_url)
        until(lambda: ledger.execute([]) == [] and ledger.sealing_lag, 10, "it does not notice")
        until(lambda: ledger.execute([]) == [] and ledger.sealing_lag == 0, 20, "it is not sealed again")
        assert sealed_seq(postgres_url) == SIZE


def test_no_process_is_started_once_the_store_is_closed(postgres_url: str) -> None:
    """A read that ends while the store is closed does not start the process that seals again."""
    with spotledger.open(postgres_url, segment_entries=SIZE, follow_seconds=None) as ledger:
        seed(ledger)
        deposits(ledger, SIZE + 10)
        store: Any = ledger._store
        sealing = store._sealing
        sealing.close()
        sealing._not_before = 0.0
        sealing.go_on(store._right.seen.seen, 0, is_own=True)
        assert sealing._process._child is None


def test_process_that_cannot_be_started_stops_neither_writes_nor_the_follower(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a segment to seal and no room for a process, all else goes on."""
    with spotledger.open(postgres_url, segment_entries=SIZE) as ledger:
        seed(ledger)
        store: Any = ledger._store

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(subprocess, "Popen", refused)
        deposits(ledger, SIZE)
        time.sleep(1.5)
        for number in range(3):
            with suppress(OSError):
                ledger.deposit("ann", "btc", "1", key=f"after{number}")
            time.sleep(1.1)
        assert store._follower._thread.is_alive()
        assert ledger.deposit("ann", "btc", "1", key="after0").replayed
        monkeypatch.undo()
        until(lambda: ledger.execute([]) == [] and ledger.sealing_lag == 0, 30, "it is not sealed")


def test_rebuild_seals_no_less_than_was_sealed_while_it_waited(postgres_url: str) -> None:
    """It reads how far the journal goes once it has the lease, not before."""
    with spotledger.open(postgres_url, segment_entries=8, seals=False) as ledger:
        seed(ledger)
        fill(ledger, 5)
        with psycopg.connect(postgres_url) as other:
            other.execute("SELECT seq FROM sealed FOR UPDATE")
            found: list[int] = []
            thread = threading.Thread(target=lambda: found.append(rebuild(partial(connect, postgres_url))))
            thread.start()
            time.sleep(1)
            fill(ledger, 30, "more")
            other.rollback()
            thread.join()
        assert found == [ledger.head.seq // 8 * 8]
    with closing(Sealer(partial(connect, postgres_url))) as sealer:
        sealer.seal_all()
    check_database(postgres_url)


def test_migration_waits_for_a_write_of_the_previous_version(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is sealed is the entry at which the tables stand, and old nodes find nothing that looks like the head."""
    found = schema.migrations()
    with connect(postgres_url) as connection, psycopg.connect(postgres_url) as old:
        with monkeypatch.context() as patch:
            patch.setattr(schema, "migrations", lambda: [each for each in found if each.number < 4])
            schema.migrate(connection, after=True)
        connection.execute("INSERT INTO ledger (only_row, ledger_id, epoch_seq, syncs) VALUES (1, 'x', 0, 0)")
        connection.execute(
            "INSERT INTO head (only_row, seq, hash, booked_ms) VALUES (1, 0, %s, 0)", (genesis_hash("x"),)
        )
        old.execute("SELECT seq FROM head WHERE only_row = 1 FOR UPDATE")
        migrating = threading.Thread(target=schema.migrate, args=(connection,))
        migrating.start()
        time.sleep(0.5)
        old.execute("UPDATE head SET seq = 1, booked_ms = 1")
        old.commit()
        migrating.join()
        assert connection.execute("SELECT seq FROM sealed").fetchall() == [(1,)]
        assert connection.execute("SELECT to_regclass('head')").fetchall() == [(None,)]


def test_rebuild_that_freezes_loses_the_lease(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can seal meanwhile, so the server ends it, and nothing has happened."""
    monkeypatch.setattr(rebuilding, "IDLE_SECONDS", 1)
    with spotledger.open(postgres_url, segment_entries=8, seals=False) as ledger:
        seed(ledger)
        fill(ledger, 15)

        def freeze(done: int, total: int) -> None:
            time.sleep(2)
            with closing(Sealer(partial(connect, postgres_url))) as sealer:
                assert sealer.seal_next().seq == 8

        with pytest.raises(StoreUnavailable):
            rebuild(partial(connect, postgres_url), freeze)
    check_database(postgres_url)


def test_writes_wait_for_the_end_of_a_long_rebuild(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody seals meanwhile, and memory does not grow without a bound: 503 until it ends, and then they go on."""
    monkeypatch.setattr(duty, "PROCESS_ENTRIES", 1)
    with spotledger.open(postgres_url, segment_entries=8) as ledger:
        seed(ledger)
        fill(ledger, 15)

        def meanwhile(done: int, total: int) -> None:
            if not done:
                with pytest.raises(StoreBusy, match="sealing is behind"):
                    fill(ledger, 60, "meanwhile")

        assert rebuild(partial(connect, postgres_url), meanwhile) == 16
        until(lambda: can_deposit(ledger), 30, "the writes do not go on")
        assert ledger.sealing_lag < 6 * 8


def can_deposit(ledger: spotledger.Ledger) -> bool:
    """Return whether a deposit is booked now."""
    with suppress(StoreBusy):
        ledger.deposit("ann", "btc", "1", key="afterwards")
        return True
    return False


def test_hold_expires_soon_after_a_start_although_many_were_closed(postgres_url: str) -> None:
    """A group that finds only closed ones among the due holds of the tables looks at the next ones, too."""
    clock = Clock()
    options: dict[str, Any] = {"seals": False, "clock_ms": clock, "follow_seconds": None}
    with spotledger.open(postgres_url, **options) as ledger:
        seed(ledger)
        ledger.execute([Freeze(f"g{n}", "ann", "btc", "0.0001", expires_ms=clock.now_ms + 1_000) for n in range(2_000)])
        ledger.freeze("bob", "btc", "1", key="last", expires_ms=clock.now_ms + 2_000)
        seal(postgres_url)
        ledger.execute([Unfreeze(f"u{n}", HoldKey(f"g{n}")) for n in range(2_000)])
    clock.now_ms += 5_000
    with spotledger.open(postgres_url, **options) as ledger:
        for _ in range(3):
            ledger.execute([])
        assert ledger.holds("bob", "open") == []
