"""
An independent reading of a ledger on PostgreSQL: plain SQL and JSON, none of our own code but that which seals.

``check_database`` derives everything about money from the entries again, with the same few lines that read a ledger
file (:mod:`support_books`), and compares it with every row that the tables have.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from typing import Any

import psycopg

from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.sealing.sealer import Sealer
from support_books import Books, check_holds, read_journal

SEGMENT = 65_536


def check_database(url: str) -> Books:
    """
    Read the database at *url*, assert that every promise about the books holds, and return what they say.

    The tables are compared as they are, which is as of the last sealed entry; then the rest is sealed, as at the end of
    each segment, and they are compared once more.
    """
    _check_tables(url)
    seal(url)
    return _check_tables(url)


def seal(url: str) -> None:
    """Seal all entries of the ledger in the database at *url*, also those of the last segment, which is not full."""
    with closing(Sealer(lambda: connect(url))) as sealer:
        sealer.seal_all(to_head=True)


def _check_tables(url: str) -> Books:
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        [(sealed_seq, sealed_hash)] = connection.execute("SELECT seq, hash FROM sealed").fetchall()
        books, entries = _read_journal(connection)
        check_holds(books)
        rows = connection.execute("SELECT key_digest, seq FROM entry").fetchall()
        digests = {hashlib.blake2b(key.encode(), digest_size=16).digest(): seq for key, seq in books.keys.items()}
        assert {digest.bytes: seq for digest, seq in rows} == digests
        sealed, entries = _read_journal(connection, sealed_seq)
        rows = connection.execute("SELECT hash FROM entry WHERE seq = %s", (sealed_seq,)).fetchall()
        assert sealed_seq == 0 or rows == [(sealed_hash,)]
        _check_history(connection, sealed)
        _check_balances(connection, sealed)
        _check_hold_tables(connection, sealed, entries)
        _check_names(connection, sealed, entries)
    return books


def _read_journal(
    connection: psycopg.Connection[Any], last_seq: int | None = None
) -> tuple[Books, list[dict[str, Any]]]:
    """Return what the entries up to *last_seq*, or all of them, add up to, and these entries."""
    entries: list[dict[str, Any]] = []
    [(ledger_id,)] = connection.execute("SELECT ledger_id FROM ledger").fetchall()
    bound = "" if last_seq is None else f"WHERE seq <= {last_seq}"
    rows = connection.execute(f"SELECT seq, body, hash FROM entry {bound} ORDER BY seq".encode()).fetchall()
    genesis = hashlib.sha256(b"spotledger ledger " + ledger_id.encode()).digest()
    head = (rows[-1][0], rows[-1][2], json.loads(rows[-1][1])["booked_ms"]) if rows else (0, genesis, 0)
    if last_seq is None:
        assert connection.execute("SELECT seq, hash, booked_ms FROM journal_head").fetchall() == [head]
    return read_journal(ledger_id, rows, head, entries.append), entries


def _check_history(connection: psycopg.Connection[Any], books: Books) -> None:
    rows = connection.execute("SELECT segment, customer, account, coin, seq FROM history").fetchall()
    expected = [((seq - 1) // SEGMENT, *line[:3], seq) for seq, lines in books.history.items() for line in lines]
    assert sorted(rows) == sorted(expected)
    referring = connection.execute("SELECT segment, reference, seq FROM reference").fetchall()
    assert sorted(referring) == sorted(((seq - 1) // SEGMENT, text, seq) for text, seq in books.references)


def _check_balances(connection: psycopg.Connection[Any], books: Books) -> None:
    expected = {}
    for seq, lines in books.history.items():
        for *name, available, freeze in lines:
            expected[tuple(name)] = (available, freeze, seq)
    found = {}
    for *name, available, freeze, seq in connection.execute(
        'SELECT customer, account, coin, available, "freeze", seq FROM balance'
    ):
        found[tuple(name)] = (int(available), int(freeze), seq)
    assert found == expected


def _check_hold_tables(connection: psycopg.Connection[Any], books: Books, entries: list[dict[str, Any]]) -> None:
    expected = []
    for hold_id, hold in books.holds.items():
        request = entries[hold_id - 1]["request"]
        amounts = (hold["amount"], hold["remaining"], request.get("reference"), request.get("expires_ms"))
        expected.append((hold_id, *hold["name"], *amounts, entries[hold_id - 1]["booked_ms"], hold["closed_seq"]))
    rows = connection.execute("SELECT * FROM hold ORDER BY hold_id").fetchall()
    assert [(*row[:4], int(row[4]), int(row[5]), *row[6:]) for row in rows] == expected
    open_holds = [(row[0], row[1], row[7]) for row in expected if row[9] is None]
    assert connection.execute("SELECT hold_id, customer, expires_ms FROM open_hold ORDER BY 1").fetchall() == open_holds


def _check_names(connection: psycopg.Connection[Any], books: Books, entries: list[dict[str, Any]]) -> None:
    rows = connection.execute("SELECT customer, seq FROM customer").fetchall()
    assert dict(rows) == books.customers
    rows = connection.execute("SELECT coin, scale, seq FROM coin").fetchall()
    booked = [entry for entry in entries if "refusal" not in entry]
    listed = [(e["request"]["coin"], e["request"]["scale"], e["seq"]) for e in booked if e["kind"] == "list_coin"]
    assert sorted(rows) == sorted(listed)
    rows = connection.execute("SELECT seq, by_seq FROM reversal").fetchall()
    assert sorted(rows) == sorted((e["request"]["seq"], e["seq"]) for e in booked if e["kind"] == "reverse")
