"""The audit of a hot standby, and of a server whose disk has lost what it wrote."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

import spotledger
import support_core as core
from fleet.pair import LEDGER, Pair
from servers import postgres
from servers.kept import until
from servers.postgres import Cluster
from spotledger.audit.postgres import audit_database
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE
from spotledger.storage.postgres import right_server
from spotledger.storage.seen_head import Seen
from support_audit import every_kind
from support_core import Clock, seed
from support_database_books import seal


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """Give a server whose files a test may damage."""
    with postgres.own_cluster(postgres.QUICK) as cluster:
        yield cluster


def fill(url: str) -> None:
    clock = Clock()
    with spotledger.open(url, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
    seal(url)


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def test_audit_of_a_hot_standby_says_what_that_of_the_primary_says(pair: Pair) -> None:
    """It compares the same, definitions included; whatever was damaged on the primary is damaged here."""
    fill(pair.url())
    standby = pair.standby.url(LEDGER)
    head = "SELECT seq FROM sealed"
    until(lambda: rows(standby, head) == rows(pair.primary.url(LEDGER), head))
    report = audit_database(standby)
    assert (report.verdict, report.counts, report.unexamined) == (CLEAN, {}, [])
    assert report.hash == audit_database(pair.url()).hash
    with psycopg.connect(pair.primary.url(LEDGER), autocommit=True) as connection:
        connection.execute("ALTER TABLE entry DISABLE TRIGGER USER")
        connection.execute("UPDATE balance SET available = available + 1 WHERE customer = 'ann'")
    until(lambda: rows(standby, "SELECT tgenabled FROM pg_trigger WHERE tgname = 'entry_is_never_changed'") == [("D",)])
    report = audit_database(standby)
    assert set(report.counts) == {"trigger_changed", "balance_row_differs"}
    assert report.verdict == DAMAGED


def test_audit_of_a_standby_waits_for_what_was_seen(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby that is merely behind is given a moment; what it still lacks then leaves the audit incomplete."""
    standby = pair.standby.url(LEDGER)
    with spotledger.open(pair.url()) as ledger:
        seed(ledger)
        rows(standby, "SELECT pg_wal_replay_pause()")
        until(lambda: rows(standby, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)])
        core.fill(ledger, 3)
        seen = Seen(ledger.ledger_id, 1, ledger.head.seq, ledger.head.hash)
    monkeypatch.setattr(right_server, "CATCH_UP_SECONDS", 0.5)
    report = audit_database(standby, seen=seen)
    assert (report.verdict, report.counts) == (INCOMPLETE, {})
    assert "at entry 5, behind entry 8, which was seen before" in report.unexamined[0]
    monkeypatch.setattr(right_server, "CATCH_UP_SECONDS", 20.0)
    resume = threading.Timer(1, lambda: rows(standby, "SELECT pg_wal_replay_resume()"))
    resume.start()
    report = audit_database(standby, seen=seen)
    resume.join()
    assert (report.verdict, report.counts, report.audited_to) == (CLEAN, {}, 8)


@pytest.mark.parametrize("table", ["entry", "balance", "history", "hold", "sealed", "access_keys"])
def test_page_that_the_server_finds_damaged_is_damage(own_cluster: Cluster, table: str) -> None:
    """The server refuses a page; the audit says which table, and goes on with the others."""
    url = own_cluster.url()
    fill(url)
    rows(url, "INSERT INTO access_keys SELECT 'x', 'ann', '{}', '', '{}', 'x', 5 RETURNING 1")
    [(path,)] = rows(url, f"SELECT pg_relation_filepath('{table}')")
    own_cluster.stop()
    with (own_cluster.data / str(path)).open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 32)  # within the header of the page
    own_cluster.start()
    report = audit_database(url)
    assert report.verdict == DAMAGED
    damaged = [finding for finding in report.findings if finding.code == "page_damaged"]
    assert damaged
    assert all(str(path) in finding.found for finding in damaged)
