"""Sealing in a database: by one node at a time, of the right server, behind the writes; and the tables made again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import psycopg
import pytest

import spotledger
from servers.kept import until
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Unfreeze
from spotledger.errors import LedgerCorrupt, StoreBusy
from spotledger.ledger.finding import Criteria
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.base import Head
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.schema import migrate
from spotledger.storage.postgres.sealing import duty, rebuilding, sealer as sealing
from spotledger.storage.postgres.sealing.rebuilding import DERIVED_TABLES, rebuild
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.seen_head import OtherHistory
from support_audit import every_kind
from support_core import Clock, fill, seed, spot
from support_database_books import check_database, seal

SIZE = duty.PROCESS_ENTRIES
WAIT_SECONDS = 60


@pytest.fixture
def full(postgres_url: str) -> Iterator[Ledger]:
    """Give a ledger with segments of eight entries, of which nothing is sealed yet, and which does not seal."""
    with spotledger.open(postgres_url, segment_entries=8, seals=False) as ledger:
        seed(ledger)
        fill(ledger, 25)
        yield ledger
    check_database(postgres_url)


def sealed_seq(url: str) -> int:
    """Return the last sealed entry of the ledger at *url*."""
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT seq FROM sealed").fetchall()[0][0])


def run(url: str, *statements: str) -> None:
    """Do *statements* behind the triggers' back."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode())


def fill_to(ledger: Ledger, seq: int) -> None:
    """Fill *ledger* up to the entry *seq*, with holds of which some stay open."""
    while ledger.head.seq < seq:
        at = ledger.head.seq
        count = min(200, (seq - at + 1) // 2)
        ledger.execute([Freeze(f"f{at}-{n}", "ann", "btc", "0.00000001", reference="ö ✓") for n in range(count)])
        ledger.execute([Unfreeze(f"u{at}-{n}", HoldKey(f"f{at}-{n}")) for n in range(0, count, 2)])


# --- one at a time ----------------------------------------------------------------------------------


def test_segments_are_sealed_in_order_and_only_whole_ones(postgres_url: str, full: Ledger) -> None:
    """Each call seals the next segment; the last one, which is not full, is left."""
    with closing(Sealer(partial(connect, postgres_url))) as sealer:
        assert [sealer.seal_next().seq for _ in range(5)] == [8, 16, 24, 24, 24]
    assert full.head.seq == 30
    full.execute([])
    assert full.sealing_lag == 0


def test_sealing_is_left_to_the_node_that_is_at_it(postgres_url: str, full: Ledger) -> None:
    """Whoever finds the row locked does not wait, and seals nothing."""
    with psycopg.connect(postgres_url) as other, closing(Sealer(partial(connect, postgres_url))) as sealer:
        other.execute("SELECT seq FROM sealed FOR UPDATE")
        assert sealer.seal_next() == sealing.Sealed(0, -1, is_busy=True)
        other.rollback()
        assert sealer.seal_next().seq == 8


def test_node_that_freezes_while_it_seals_loses_the_lease(
    postgres_url: str, full: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its session, nothing of its segment is there, and another node seals it."""
    monkeypatch.setattr(sealing, "IDLE_SECONDS", 1)
    wakes, frozen = threading.Event(), threading.Event()
    orders = sealing._orders

    def freezing(sums: Any) -> Any:
        for number, order in enumerate(orders(sums)):
            if number == 2:
                frozen.set()
                wakes.wait(WAIT_SECONDS)
            yield order

    found: list[Exception] = []

    def seal_slowly() -> None:
        monkeypatch.setattr(sealing, "_orders", freezing)
        with closing(Sealer(partial(connect, postgres_url))) as sealer:
            try:
                sealer.seal_next()
            except spotledger.errors.StoreUnavailable as error:
                found.append(error)

    thread = threading.Thread(target=seal_slowly)
    thread.start()
    assert frozen.wait(WAIT_SECONDS)
    monkeypatch.setattr(sealing, "_orders", orders)
    with closing(Sealer(partial(connect, postgres_url))) as sealer:
        until(lambda: sealer.seal_next().seq == 24, WAIT_SECONDS, "nobody seals")
    wakes.set()
    thread.join()
    assert len(found) == 1
    check_database(postgres_url)


def test_wrong_server_is_not_sealed(postgres_url: str, full: Ledger) -> None:
    """An old primary lacks the entry that the node saw last, or has another one in its place."""
    with closing(Sealer(partial(connect, postgres_url))) as sealer:
        for known in (Head(31, full.head.hash, 0), Head(full.head.seq, bytes(32), 0)):
            with pytest.raises(OtherHistory, match=f"lacks entry {known.seq}"):
                sealer.seal_next(known)
        assert sealed_seq(postgres_url) == 0
        assert sealer.seal_next(full.head).seq == 8


# --- by a process -----------------------------------------------------------------------------------


def test_process_seals_behind_the_writes_and_is_started_again(postgres_url: str) -> None:
    """Full segments are sealed beside the writes of the node that filled them, also where the process was killed."""
    with spotledger.open(postgres_url, segment_entries=SIZE) as ledger:
        seed(ledger)
        fill_to(ledger, SIZE + 10)
        store: Any = ledger._store
        until(lambda: ledger.execute([]) == [] and store._sealing._process._child is not None, WAIT_SECONDS, "no child")
        os.kill(store._sealing._process._child.pid, signal.SIGKILL)
        number = 0

        def is_sealed() -> bool:
            nonlocal number
            number += 1
            ledger.deposit("bob", "btc", "1", key=f"meanwhile{number}")
            return ledger.sealing_lag == 0

        until(is_sealed, WAIT_SECONDS, "it is not sealed")
        fill_to(ledger, 2 * SIZE + 10)
        until(is_sealed, WAIT_SECONDS, "the second is not sealed")
        assert sealed_seq(postgres_url) == 2 * SIZE
        assert len(store._head_cache.segments) == 1
    check_database(postgres_url)


def test_program_that_runs_only_for_a_moment_has_its_segment_sealed(postgres_url: str) -> None:
    """A process that is sealing when its ledger is closed finishes the segment."""
    with spotledger.open(postgres_url, segment_entries=SIZE) as ledger:
        seed(ledger)
        fill_to(ledger, SIZE + 10)
        ledger.execute([])
        store: Any = ledger._store
        assert store._sealing._process._asked == 0
    assert sealed_seq(postgres_url) == SIZE


def test_segment_that_its_node_does_not_seal_is_sealed_by_another(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that only reads seals as well, after it left that to the others for a while."""
    monkeypatch.setattr(duty, "OTHERS_SECONDS", 0.3)
    with (
        spotledger.open(postgres_url, segment_entries=SIZE, seals=False) as ledger,
        spotledger.open(postgres_url) as reader,
    ):
        seed(ledger)
        fill_to(ledger, SIZE + 10)
        until(lambda: sealed_seq(postgres_url) == SIZE, WAIT_SECONDS, "nobody seals")
        until(lambda: reader.sealing_lag == 0, WAIT_SECONDS, "the reader does not notice")
    check_database(postgres_url)


def test_writes_wait_where_sealing_is_far_behind(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow without a bound: 503 until the segments are sealed."""
    monkeypatch.setattr(duty, "PROCESS_ENTRIES", 1)
    with spotledger.open(postgres_url, segment_entries=8) as ledger:
        store: Any = ledger._store
        monkeypatch.setattr(store._sealing._process, "seal", lambda segment, known: None)
        seed(ledger)
        with pytest.raises(StoreBusy, match="sealing is behind"):
            fill(ledger, 60)
        assert ledger.head.seq == 8 * (duty.UNSEALED_LIMIT + 1)
        seal(postgres_url)
        assert ledger.deposit("ann", "btc", "1", key="again").seq == ledger.head.seq


# --- what memory reads ------------------------------------------------------------------------------


def test_start_reads_what_is_not_sealed(postgres_url: str, full: Ledger) -> None:
    """Memory begins at the last sealed entry and has the rest of the journal."""
    with closing(Sealer(partial(connect, postgres_url))) as sealer:
        sealer.seal_all()
    with spotledger.open(postgres_url) as other:
        memory = other._store._head_cache  # type: ignore[attr-defined]
        assert (memory.base, memory.head.seq) == (24, 30)
        assert other.balances(spot("ann")) == full.balances(spot("ann"))


def test_tables_that_go_back_are_followed(postgres_url: str, full: Ledger) -> None:
    """After a failover the new primary may have sealed less than a node saw: it reads the entries since then again."""
    seal(postgres_url)
    with spotledger.open(postgres_url, follow_seconds=None) as other:
        memory = other._store._head_cache  # type: ignore[attr-defined]
        assert memory.base == 30
        assert rebuild(partial(connect, postgres_url)) == 24
        full.deposit("bob", "btc", "1", key="later")
        assert other.balances(spot("bob")) == full.balances(spot("bob"))
        assert other.balances(spot("bob"), at_seq=27) == full.balances(spot("bob"), at_seq=27)
        assert other.deposit("bob", "btc", "1", key="own").seq == 32
        assert other._store._head_cache.base == 24  # type: ignore[attr-defined]


# --- the index of references -------------------------------------------------------------------------

REFERENCES = ("block 7", "gift", "order 1", "order 2", "never")


def found_by_reference(ledger: Ledger) -> list[list[int]]:
    """Return the entries with each reference."""
    return [[entry.seq for entry in ledger.find(Criteria(reference=text)).entries] for text in REFERENCES]


def test_references_are_found_before_and_after_sealing(postgres_url: str) -> None:
    """By a node that has them in memory, by one that reads them from the table, and after a rebuild."""
    clock = Clock()
    with spotledger.open(postgres_url, segment_entries=8, seals=False, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
        entries = ledger.entries()
        expected = [[entry.seq for entry in entries if entry.request.get("reference") == text] for text in REFERENCES]
        assert all(expected[:-1])
        assert found_by_reference(ledger) == expected
        with closing(Sealer(partial(connect, postgres_url))) as sealer:
            while not sealer.seal_next().is_busy and sealed_seq(postgres_url) + 8 <= ledger.head.seq:
                assert found_by_reference(ledger) == expected
                with spotledger.open(postgres_url, seals=False) as other:
                    assert found_by_reference(other) == expected
        rebuild(partial(connect, postgres_url))
        assert found_by_reference(ledger) == expected
    check_database(postgres_url)


def test_reference_row_of_another_entry_is_damage(postgres_url: str) -> None:
    """An entry that does not have the reference is never shown as one that has."""
    clock = Clock()
    with spotledger.open(postgres_url, seals=False, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
        seal(postgres_url)
        run(postgres_url, "INSERT INTO reference VALUES (0, 'gift', 6)")
        with (
            spotledger.open(postgres_url, seals=False) as other,
            pytest.raises(LedgerCorrupt, match="another reference"),
        ):
            other.find(Criteria(reference="gift"))


def test_migration_indexes_what_is_sealed(postgres_url: str) -> None:
    """A database of the version before has the references of all sealed entries after it was migrated."""
    clock = Clock()
    with spotledger.open(postgres_url, segment_entries=8, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
        expected = found_by_reference(ledger)
    seal(postgres_url)
    run(postgres_url, "DROP TABLE reference", "DELETE FROM schema_version WHERE number = 8")
    with connect(postgres_url) as connection:
        assert migrate(connection) == ["0008_references.before.sql"]
    check_database(postgres_url)
    with spotledger.open(postgres_url) as ledger:
        assert found_by_reference(ledger) == expected


# --- the tables made again --------------------------------------------------------------------------

DAMAGES: dict[str, str] = {
    **{f"{table} is empty": f"DELETE FROM {table}" for table in DERIVED_TABLES},
    "balances differ": "UPDATE balance SET available = available + 1",
    "rows too many": "INSERT INTO hold SELECT hold_id + 1000, customer, account, coin, amount, remaining, reference,"
    " expires_ms, opened_ms, closed_seq FROM hold",
    "another sealed entry": "UPDATE sealed SET seq = seq + 5",
    "another hash": "UPDATE sealed SET hash = sha256(hash)",
    "nothing says what is sealed": "DELETE FROM sealed",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rebuild_derives_the_tables_again(postgres_url: str, damage: str) -> None:
    """Whatever the tables had, they have afterwards what follows from the journal."""
    clock = Clock()
    with spotledger.open(postgres_url, segment_entries=4, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
        head = ledger.head
    seal(postgres_url)
    run(postgres_url, DAMAGES[damage])
    told: list[tuple[int, int]] = []
    sealed = rebuild(partial(connect, postgres_url), lambda done, total: told.append((done, total)))
    assert sealed == sealed_seq(postgres_url) == head.seq // 4 * 4
    assert told == sorted(told)
    assert told[-1] == (sealed, sealed)
    assert check_database(postgres_url).head == head.seq


def test_rebuild_of_a_damaged_journal_changes_nothing(postgres_url: str, full: Ledger) -> None:
    """It is refused in the midst, and all is as it was."""
    seal(postgres_url)
    run(postgres_url, "UPDATE entry SET body = replace(body, '\"kind\"', '\"kinD\"') WHERE seq = 20")
    with pytest.raises(LedgerCorrupt, match="entry"):
        rebuild(partial(connect, postgres_url))
    run(postgres_url, "UPDATE entry SET body = replace(body, '\"kinD\"', '\"kind\"') WHERE seq = 20")
    assert sealed_seq(postgres_url) == 30


def test_nodes_go_on_while_the_tables_are_made_again(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads are answered from the tables as they were, and writes are booked; both are right before and after."""
    with (
        spotledger.open(postgres_url, segment_entries=8) as ledger,
        spotledger.open(postgres_url, cache_accounts=1) as other,
    ):
        seed(ledger)
        fill(ledger, 30)
        seal_range: Callable[..., Any] = rebuilding.seal_range
        steps: list[int] = []

        def meanwhile(*arguments: Any) -> Any:
            found = seal_range(*arguments)
            number = len(steps)
            booked = ledger.execute([Deposit(f"meanwhile{number}", "bob", "btc", "1")])[0]
            assert isinstance(booked, Receipt), booked
            steps.append(booked.seq)
            for node in (ledger, other):
                until(lambda node=node: node.head.seq >= steps[-1], 10, "it does not follow")  # type: ignore[misc]
                for name in ("ann", "bob"):
                    assert node.balances(spot(name)) == ledger.balances(spot(name))
            return found

        monkeypatch.setattr(rebuilding, "seal_range", meanwhile)
        started = time.monotonic()
        assert rebuild(partial(connect, postgres_url)) == 32
        assert len(steps) == 4, time.monotonic() - started
        assert ledger.balances(spot("bob"))["btc"] == other.balances(spot("bob"))["btc"]
    check_database(postgres_url)
