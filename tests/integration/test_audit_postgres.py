"""The audit of a ledger on PostgreSQL: clean where all is well, and each class of damage named."""

from __future__ import annotations

from threading import Event, Thread

import psycopg
import pytest

import spotledger
from spotledger.audit.postgres import audit_database
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE, KnownHead, Report
from support_audit import every_kind
from support_core import Clock
from support_database_books import check_database


@pytest.fixture
def books(postgres_url: str) -> str:
    """Give the URL of a database with entries of every kind."""
    clock = Clock()
    with spotledger.open(postgres_url, clock_ms=clock) as ledger:
        for prefix in ("", "again-"):
            every_kind(ledger, clock, prefix)
        ledger.freeze("ann", "btc", "1", key="open", expires_ms=clock.now_ms + 1_000)
    check_database(postgres_url)  # which seals all
    return postgres_url


def codes_of(report: Report) -> set[str]:
    assert report.verdict == DAMAGED
    return set(report.counts)


def test_whole_ledger_is_clean_and_counted(books: str) -> None:
    """Everything was looked at, and what was counted is what the tables have; no password is in the report."""
    report = audit_database(books)
    assert (report.verdict, report.counts, report.unexamined) == (CLEAN, {}, [])
    with psycopg.connect(books) as connection:
        counts = connection.execute(
            "SELECT (SELECT seq FROM journal_head), (SELECT count(*) FROM balance), (SELECT count(*) FROM open_hold),"
            " (SELECT count(*) FROM coin), (SELECT count(*) FROM customer)"
        ).fetchall()[0]
        hashes = dict(connection.execute("SELECT seq, hash FROM entry").fetchall())
    assert (report.entries, report.balances, report.open_holds, report.coins, report.customers) == counts
    assert report.hash == hashes[report.head_seq].hex()
    assert (psycopg.conninfo.conninfo_to_dict(books)["password"] or "?") not in str(report.as_json())
    assert audit_database(books, known_heads=[KnownHead(7, hashes[7])]).verdict == CLEAN
    assert codes_of(audit_database(books, known_heads=[KnownHead(7, hashes[8])])) == {"known_head_differs"}


def test_empty_ledger_is_clean(postgres_url: str) -> None:
    """A ledger without an entry has nothing wrong with it."""
    spotledger.open(postgres_url).close()
    report = audit_database(postgres_url)
    assert (report.verdict, report.entries) == (CLEAN, 0)


#: Statements that do damage, and the codes that name it.
DAMAGES = {
    "a changed amount": (
        'UPDATE entry SET body = replace(body, \'"units":"100000000000"\', \'"units":"100000000001"\')',
        {"chain_broken", "request_differs"},
    ),
    "a posting about another balance": (
        "UPDATE entry SET body = replace(body, '\"postings\":[[0,', '\"postings\":[[1,') WHERE seq = 6",
        {"chain_broken", "balance_after_differs", "request_differs"},
    ),
    "a posting about a balance that is not there": (
        "UPDATE entry SET body = replace(body, '\"postings\":[[0,', '\"postings\":[[-1,') WHERE seq = 6",
        {"chain_broken", "entry_unreadable"},
    ),
    "an entry removed": ("DELETE FROM entry WHERE seq = 9", {"entry_missing", "history_row_extra"}),
    "the last entries cut off": (
        "DELETE FROM entry WHERE seq > (SELECT seq - 3 FROM journal_head)",
        {"journal_cut", "rows_beyond_journal"},
    ),
    "the last cut off and what is sealed put back": (
        "DELETE FROM entry WHERE seq = (SELECT seq FROM journal_head);"
        " UPDATE sealed SET seq = seq - 1, hash = (SELECT hash FROM entry ORDER BY seq DESC LIMIT 1)",
        {"balance_row_differs", "rows_beyond_journal"},
    ),
    "a broken link": ("UPDATE entry SET hash = decode(repeat('00', 32), 'hex') WHERE seq = 12", {"chain_broken"}),
    "a swapped pair": (
        "UPDATE entry SET seq = 9000 WHERE seq = 14; UPDATE entry SET seq = 14 WHERE seq = 15;"
        " UPDATE entry SET seq = 15 WHERE seq = 9000",
        {"chain_broken", "entry_out_of_place"},
    ),
    "another digest of a key": ("UPDATE entry SET key_digest = gen_random_uuid() WHERE seq = 5", {"key_row_extra"}),
    "another sealed entry": ("UPDATE sealed SET seq = seq - 1", {"books_differ"}),
    "nothing that says what is sealed": ("DELETE FROM sealed", {"books_differ"}),
    "no ledger row": ("DELETE FROM ledger", {"ledger_row_missing"}),
    "a changed balance": (
        "UPDATE balance SET available = available + 1 WHERE customer = 'ann' AND coin = 'btc'",
        {"balance_row_differs"},
    ),
    "a balance that is no number": (
        "UPDATE balance SET available = 'NaN' WHERE customer = 'ann' AND coin = 'btc'",
        {"balance_row_differs"},
    ),
    "a balance removed": ("DELETE FROM balance WHERE customer = '@fees'", {"balance_row_missing"}),
    "a balance of nobody": (
        "INSERT INTO balance VALUES ('eve', 'spot', 'btc', 5, 0, 3)",
        {"balance_row_extra"},
    ),
    "a history row moved": ("UPDATE history SET seq = 6 WHERE seq = 7", {"history_row_missing", "history_row_extra"}),
    "a history row far off": (
        "INSERT INTO history VALUES (77, 'ann', 'spot', 'btc', 5000000)",
        {"rows_beyond_journal"},
    ),
    "a hold removed": (
        "DELETE FROM hold WHERE hold_id = (SELECT min(hold_id) FROM open_hold)",
        {"hold_row_missing"},
    ),
    "a hold that nobody opened": (
        "INSERT INTO hold VALUES (4, 'ann', 'spot', 'btc', 5, 5, NULL, NULL, 1, NULL)",
        {"hold_row_extra"},
    ),
    "a closed hold opened again": (
        "UPDATE hold SET remaining = 1, closed_seq = NULL"
        " WHERE hold_id = (SELECT min(hold_id) FROM hold WHERE closed_seq IS NOT NULL)",
        {"hold_row_differs", "hold_row_extra"},
    ),
    "another reference of a hold": (
        "UPDATE hold SET reference = 'x' WHERE reference = 'order 1'",
        {"hold_row_differs"},
    ),
    "an open hold not listed as open": ("DELETE FROM open_hold", {"hold_owner_row_missing"}),
    "another expiry": ("UPDATE open_hold SET expires_ms = 1 WHERE expires_ms IS NOT NULL", {"hold_row_differs"}),
    "another scale": ("UPDATE coin SET scale = 9 WHERE coin = 'btc'", {"coin_row_differs"}),
    "a coin removed": ("DELETE FROM coin WHERE coin = 'usdt'", {"coin_row_missing"}),
    "a customer renamed": (
        "UPDATE customer SET customer = 'zed' WHERE customer = 'bob'",
        {"customer_row_missing", "customer_row_extra"},
    ),
    "a reversal removed": ("DELETE FROM reversal", {"reversal_row_missing"}),
    "a trigger disabled": ("ALTER TABLE entry DISABLE TRIGGER entry_is_never_changed", {"trigger_changed"}),
    "the unique index dropped": ("DROP INDEX entry_key", {"schema_changed"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(books: str, damage: str) -> None:
    """Each class of damage, done behind the triggers' back, is found and has its codes in the report."""
    statement, expected = DAMAGES[damage]
    with psycopg.connect(books, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(statement.encode(), prepare=False)
    assert codes_of(audit_database(books)) >= expected


def test_kept_refusal_removed_with_the_chain_made_again_is_found(books: str) -> None:
    """Who changes the last entry and what names it leaves no trace but in a head that was noted before."""
    with psycopg.connect(books, autocommit=True) as connection:
        head = connection.execute("SELECT seq, hash FROM journal_head").fetchall()[0]
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE entry SET hash = sha256(hash) WHERE seq = %s", (head[0],))
        connection.execute("UPDATE sealed SET hash = sha256(hash)")
    assert "known_head_differs" in codes_of(audit_database(books, known_heads=[KnownHead(*head)]))


def test_database_that_cannot_be_read_is_incomplete_and_never_clean(postgres_url: str) -> None:
    """No tables, or no server: the audit says that it could not look."""
    for url in (postgres_url, "postgresql://nobody@127.0.0.1:1/none"):
        report = audit_database(url)
        assert report.verdict == INCOMPLETE
        assert report.unexamined


def test_audit_beside_writers_is_clean(books: str) -> None:
    """While a node writes, audits find nothing wrong, each as of its own last entry."""
    stop = Event()

    def write() -> None:
        with spotledger.open(books) as ledger:
            number = 0
            while not stop.is_set():
                number += 1
                hold = ledger.freeze("ann", "btc", "0.1", key=f"beside-f{number}").hold or 0
                ledger.unfreeze(hold, "0.05" if number % 2 else None, key=f"beside-u{number}")

    writer = Thread(target=write)
    writer.start()
    try:
        reports = [audit_database(books) for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    assert [(report.verdict, report.counts, report.unexamined) for report in reports] == [(CLEAN, {}, [])] * 5
    assert reports[-1].audited_to > reports[0].audited_to
