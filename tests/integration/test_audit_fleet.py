"""The continuous audit of a fleet: at a pace, by one node at a time, and by another one when that has gone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

import spotledger
from servers.kept import until
from spotledger.audit import driver as audit_driver
from spotledger.audit.postgres import audit_database, source as audit_postgres
from spotledger.audit.process import DatabaseAddress
from spotledger.audit.report import CHUNK_ENTRIES, CLEAN, DAMAGED, INCOMPLETE
from spotledger.ops import audits
from spotledger.ops.audits import Audits
from spotledger.ops.settings import ServerUrl
from spotledger.storage.postgres import claim as postgres_claim
from spotledger.storage.postgres.claim import Claim
from spotledger.storage.postgres.connection import connect
from support_archive import Writing, write_some
from support_core import fill, seed
from support_database_books import seal
from support_operator import operator_api
from support_postgres import end_sessions
from support_put_back import keep_state, swap

#: Beyond this a wait has failed; nothing is said of how long it takes.
WAIT_SECONDS = 30
HOLDER = """
import sys
from spotledger.storage.postgres.claim import Claim
from spotledger.storage.postgres.connection import connect
claim = Claim(lambda: connect(sys.argv[1]))
print(claim.take(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def books(postgres_url: str) -> str:
    """Give a database with a ledger of some hundred entries."""
    with spotledger.open(postgres_url) as ledger:
        ledger.list_coin("usdt", 8, key="usdt")
        for number in range(10):
            ledger.register_customer(f"c{number}", key=f"c{number}")
        write_some(ledger, "some", 0, 400)
    seal(postgres_url)
    return postgres_url


@pytest.fixture
def claim_of(postgres_url: str) -> Iterator[Callable[[], Claim]]:
    """Give what makes the claim of one more node."""
    made: list[Claim] = []

    def make() -> Claim:
        made.append(Claim(lambda: connect(postgres_url, application="claim of a test")))
        return made[-1]

    yield make
    for claim in made:
        claim.release()


# --- at a pace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 5, 10_000])
def test_audit_with_a_pace_says_the_same(books: str, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """However much is left for the snapshot, everything is compared; what is read before that, in small pieces."""
    monkeypatch.setattr(audit_postgres, "SNAPSHOT_ENTRIES", left)
    plain = audit_database(books)
    seen: list[int] = []
    paced = audit_database(books, entries_per_second=400, progress=lambda progress: seen.append(progress.seq))
    assert (plain.verdict, paced.verdict) == (CLEAN, CLEAN)
    assert {**paced.as_json(), "seconds": 0} == {**plain.as_json(), "seconds": 0}
    assert seen == sorted(seen)
    if left < 400:
        assert max(later - earlier for earlier, later in itertools.pairwise([0, *seen])) <= CHUNK_ENTRIES


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("UPDATE entry SET body = replace(body, 'booked_ms\":1', 'booked_ms\":2') WHERE seq = 100", "chain_broken"),
        ("DELETE FROM history WHERE seq = 100", "history_row_missing"),
        ("INSERT INTO history VALUES (0, 'c1', 'spot', 'usdt', 12)", "history_row_extra"),
        ("UPDATE balance SET available = available + 1 WHERE customer = 'c3'", "balance_row_differs"),
        ("UPDATE entry SET key_digest = gen_random_uuid() WHERE seq = 50", "key_row_missing"),
    ],
)
def test_audit_with_a_pace_finds_damage(books: str, monkeypatch: pytest.MonkeyPatch, damage: str, code: str) -> None:
    """What was read before the snapshot is compared as what is read in it."""
    monkeypatch.setattr(audit_postgres, "SNAPSHOT_ENTRIES", 0)
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(damage.encode())
    report = audit_database(books, entries_per_second=100_000)
    assert (report.verdict, code in report.counts) == (DAMAGED, True)
    assert report.counts == audit_database(books).counts


def test_audit_with_a_pace_beside_writers_is_clean(books: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written meanwhile is read too, up to a moment at which everything fits."""
    monkeypatch.setattr(audit_postgres, "SNAPSHOT_ENTRIES", 50)
    monkeypatch.setattr(audit_driver, "OUTGROWN_SHARE", 1_000_000)
    with spotledger.open(books) as ledger, Writing(ledger, size=10).going_on():
        before = ledger.head.seq
        report = audit_database(books, entries_per_second=20_000, limit_seconds=60)
    assert (report.verdict, report.unexamined, report.counts) == (CLEAN, [], {})
    assert report.audited_to >= before


def test_audit_of_a_ledger_that_grows_as_fast_is_incomplete_and_says_so(
    books: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not go on for ever, and names the setting."""
    monkeypatch.setattr(audit_postgres, "SNAPSHOT_ENTRIES", 0)
    monkeypatch.setattr(audit_driver, "OUTGROWN_SHARE", 0.0)
    with spotledger.open(books) as ledger:

        def grow(progress: object) -> None:
            write_some(ledger, f"more-{ledger.head.seq}", 0, 10)

        report = audit_database(books, entries_per_second=100_000, progress=grow)
    assert report.verdict == INCOMPLETE
    assert "higher audit_entries_per_second" in report.unexamined[0]


# --- one node at a time -----------------------------------------------------------------------------


def test_claim_is_had_by_one_node_and_without_it_no_connection_is_kept(
    postgres_url: str, claim_of: Callable[[], Claim]
) -> None:
    """The second is told no, and has it once the first gave it up."""
    first, second = claim_of(), claim_of()
    assert not first.is_held()
    assert first.take()
    assert first.take()
    assert first.is_held()
    assert not second.take()
    assert not second.is_held()
    with psycopg.connect(postgres_url) as connection:
        count = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'claim of a test'"
            " AND datname = current_database()"
        )
        until(lambda: connection.execute(count).fetchall() == [(1,)])
    first.release()
    until(second.take)
    assert not first.is_held()
    assert not first.take()


def test_claim_whose_session_was_ended_is_lost_and_free(postgres_url: str, claim_of: Callable[[], Claim]) -> None:
    """Who lost the session does not take himself for the holder, though a new connection was made for him."""
    first, second = claim_of(), claim_of()
    assert first.take()
    assert end_sessions(postgres_url, "claim of a test") == 1
    assert not first.is_held()
    assert second.take()
    assert not first.take()


def test_claim_of_a_holder_that_is_silent_is_ended_by_the_server(
    postgres_url: str, claim_of: Callable[[], Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that froze loses it after a while, and another one has it."""
    monkeypatch.setattr(postgres_claim, "IDLE_SECONDS", 1)
    first, second = claim_of(), claim_of()
    assert first.take()
    until(second.take)
    assert not first.is_held()


def test_claim_of_a_node_that_is_killed_goes_to_another(postgres_url: str, claim_of: Callable[[], Claim]) -> None:
    """A process that is killed -9 gives nothing up by itself; the database notices."""
    command = [sys.executable, "-c", HOLDER, postgres_url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        other = claim_of()
        assert not other.take()
        holder.send_signal(signal.SIGKILL)
        until(other.take)


# --- the service ------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let passes follow one another, and nodes take over, without waiting long."""
    for name in ("FIRST_PASS_SECONDS", "CLAIM_SECONDS", "HELD_SECONDS"):
        monkeypatch.setattr(audits, name, 0.05)


@contextlib.asynccontextmanager
async def auditing(url: str, claims: list[Claim], pause_seconds: float = 0.05) -> AsyncIterator[list[Audits]]:
    """Give the continuous audits of as many nodes as there are claims."""
    nodes = [Audits(DatabaseAddress("a database", url), None, claim) for claim in claims]
    for node in nodes:
        node.start_continuous(100_000, pause_seconds)
    try:
        yield nodes
    finally:
        for node in nodes:
            await node.stop()


async def became(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("soon")
def test_one_node_audits_and_another_goes_on_when_it_stops(books: str, claim_of: Callable[[], Claim]) -> None:
    """At every moment one at most is at it; when it goes, passes are made by another one."""

    async def scenario() -> None:
        async with auditing(books, [claim_of() for _ in range(3)]) as nodes:
            here: list[int] = []

            def passes() -> int:
                here.append(sum(it.continuous.is_here for it in nodes))
                return max(it.continuous.passes[CLEAN] for it in nodes)

            for left in (3, 2, 1):
                assert len(nodes) == left
                await became(lambda: passes() >= 2)
                (holder,) = (it for it in nodes if it.continuous.is_here)
                assert holder.continuous.audited_to == holder.continuous.progress.last_seq > 400
                assert [it.continuous.ended_s > 0 for it in nodes].count(True) == 1
                nodes.remove(holder)
                await holder.stop()
                assert not holder.continuous.is_here
            assert max(here) == 1

    asyncio.run(scenario())


@pytest.mark.usefixtures("soon")
def test_node_that_lost_its_session_ends_its_pass(books: str, claim_of: Callable[[], Claim]) -> None:
    """A pass under way ends with the claim, so two never go on beside each other; then one of them begins anew."""

    async def scenario() -> None:
        async with auditing(books, [claim_of(), claim_of()], 3600) as nodes:
            await became(lambda: any(it.continuous.passes[CLEAN] for it in nodes))
            (holder,) = (it for it in nodes if it.continuous.is_here)
            assert end_sessions(books, "claim of a test") >= 1
            await became(lambda: not holder.continuous.is_here)
            await became(lambda: sum(it.continuous.is_here for it in nodes) == 1)

    asyncio.run(scenario())


@pytest.mark.usefixtures("soon")
def test_damage_in_the_database_is_in_the_log_and_in_the_metrics(
    tmp_path: Path, books: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What a node finds by itself is seen by whoever watches it."""
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute("UPDATE balance SET available = available + 1 WHERE customer = 'c3'")
    with operator_api(tmp_path / "node", database=ServerUrl(books)) as api, caplog.at_level(logging.WARNING):
        shown = "0.0"

        async def begin() -> None:
            api.runtime.audits.start_continuous(100_000, 0.05)

        api.run(begin())

        def damaged() -> bool:
            nonlocal shown
            shown = api.get("/metrics").text
            api.run(asyncio.sleep(0.05))
            return 'spotledger_audit_passes_total{verdict="damaged"} 0.0' not in shown

        until(damaged)
        assert "spotledger_audit_here 1.0" in shown
        assert "spotledger_audit_findings 1.0" in shown
    assert "balance_row_differs" in caplog.text
    assert "spotledger audit" in caplog.text


def test_entries_that_are_gone_are_named_by_an_audit_of_the_service(tmp_path: Path, postgres_url: str) -> None:
    """A node tells its audits what it has seen: the journal that is left fits, and is too short."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        kept = keep_state(postgres_url)
        fill(ledger, 3)
    with operator_api(tmp_path / "node", database=ServerUrl(postgres_url)) as api:
        audits_here = api.runtime.audits

        async def report() -> dict[str, Any]:
            found = await audits_here.start()
            while found.report is None:
                await asyncio.sleep(0.05)
            return found.report

        assert api.run(report())["verdict"] == CLEAN
        swap(postgres_url, kept)
        damaged = api.run(report())
        assert (damaged["verdict"], damaged["counts"]) == (DAMAGED, {"known_head_differs": 1})
        swap(postgres_url, kept)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {urlsplit(kept).path.lstrip('/')} WITH (FORCE)".encode())
