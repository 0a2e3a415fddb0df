"""
Raw reads of a ledger file for an audit: rows as they are stored, in short read transactions.

The audit has its own connection, so it runs beside the process that writes as well as on a file that nobody has open.
No call keeps a transaction open, so none holds up a checkpoint for longer than its own rows take.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from spotledger.storage.sqlite import file as sqlite_file

#: Rows of a table that are read in one transaction.
PAGE_ROWS: Final = 5_000
#: The tables about money; an audit without one of them is incomplete.
TABLES: Final = frozenset(
    {"entry", "head", "ledger", "key_seq", "history", "balance", "hold", "hold_of", "coin", "customer", "reversal"}
    | {"key_filter", "key_filter_page"}
)
Row = tuple[Any, ...]


class Unreadable(Exception):
    """A part of the file could not be read; the message says which and why."""


class Position(NamedTuple):
    """The last entry by the head, and the last entry of the sealed segments."""

    head_seq: int
    sealed_to: int


class Facts(NamedTuple):
    """What the file says about itself, from one snapshot; None where a row is missing."""

    ledger: tuple[str, int, int, int] | None  # id, epoch, entries of a segment, sealed_to
    head: tuple[int, bytes, int] | None  # seq, hash, booked_ms
    first_seq: int | None
    last_seq: int
    missing_tables: tuple[str, ...]
    changed_triggers: tuple[str, ...]


class AuditFile:
    """One ledger file, opened read-only."""

    def __init__(self, path: Path) -> None:
        """
        Open the file at *path*, without changing it or leaving a file beside it.

        Raises:
            Unreadable: It does not exist, may not be read, or is not a ledger of this version.
        """
        self._path = path
        if not path.is_file():
            raise Unreadable(f"{path} does not exist, or is not a file")
        with self._named("the file"):
            self._connection = _open(path)
        try:
            with self._named("the file"):
                self._recognise()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> AuditFile:
        """Return the file; the end of the ``with`` block closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _recognise(self) -> None:
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if application != sqlite_file.APPLICATION_ID:
            raise Unreadable(f"{self._path} is not a ledger of spotledger")
        if version != sqlite_file.SCHEMA_VERSION:
            raise Unreadable(
                f"{self._path} has schema version {version}; this spotledger audits {sqlite_file.SCHEMA_VERSION}"
            )

    @contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Unreadable(f"{what} could not be read: {error}") from error

    @contextmanager
    def _snapshot(self, what: str) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Yield a function that runs queries on one snapshot."""
        with self._named(what):
            self._connection.execute("BEGIN")
            try:
                yield self._connection.execute
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    # --- the journal ----------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Return what the file says about itself."""
        with self._snapshot("the schema") as ask:
            found = dict(ask("SELECT name, sql FROM sqlite_schema").fetchall())
            missing = tuple(sorted(TABLES - found.keys()))
            if {"entry", "head", "ledger"} & set(missing):
                return Facts(None, None, None, 0, missing, ())
            changed = tuple(name for name, sql in _triggers().items() if found.get(name) != sql)
            ledger = ask("SELECT ledger_id, epoch, segment_entries, sealed_to FROM ledger").fetchone()
            head = ask("SELECT seq, hash, booked_ms FROM head").fetchone()
            first, last = ask("SELECT min(seq), coalesce(max(seq), 0) FROM entry").fetchone()
        return Facts(ledger, head, first, last, missing, changed)

    def position(self) -> Position:
        """Return the current position of the file."""
        with self._snapshot("the head") as ask:
            return _position(ask)

    def entries(self, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Return ``seq``, body and hash of the entries from *first* to *last* that exist, in order."""
        with self._named(f"entries {first} to {last}"):
            self._connection.text_factory = bytes
            try:
                return self._connection.execute(
                    "SELECT seq, body, hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
                ).fetchall()
            finally:
                self._connection.text_factory = str

    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None if it is missing."""
        rows = self.entries(seq, seq)
        return rows[0][1] if rows else None

    # --- what is derived, by segment --------------------------------------------------------------------

    def keys_of(self, segment: int) -> list[tuple[bytes, int]]:
        """Return digest and ``seq`` of each key of a segment, sorted by digest."""
        return self._rows(
            "the keys", "SELECT digest, seq FROM key_seq WHERE segment = ? ORDER BY digest, seq", (segment,)
        )

    def history_of(self, segment: int) -> list[tuple[str, str, str, bytes]]:
        """Return customer, account and coin of all that a segment changed, with the packed positions of the entries."""
        return self._rows(
            "the history", "SELECT customer, account, coin, places FROM history WHERE segment = ?", (segment,)
        )

    def holds_between(self, first: int, last: int) -> list[Row]:
        """Return the rows of holds with ids from *first* to *last*."""
        return self._rows("the holds", f"SELECT {_HOLD} FROM hold WHERE hold_id BETWEEN ? AND ?", (first, last))

    def hold_owners(self, segment: int) -> list[tuple[str, bytes]]:
        """Return each customer with the packed positions of the entries of a segment that opened their holds."""
        return self._rows(
            "the owners of the holds", "SELECT customer, places FROM hold_of WHERE segment = ?", (segment,)
        )

    # --- what is derived, as a whole --------------------------------------------------------------------

    def balances(self) -> Iterator[tuple[Position, list[Row]]]:
        """Yield all balances in pages, each with the position of its snapshot."""
        return self._pages("balance", ("customer", "account", "coin"), ("available", '"freeze"', "seq"))

    def coins(self) -> Iterator[tuple[Position, list[Row]]]:
        """Yield all coins in pages."""
        return self._pages("coin", ("coin",), ("scale", "seq"))

    def customers(self) -> Iterator[tuple[Position, list[Row]]]:
        """Yield all customers in pages."""
        return self._pages("customer", ("customer",), ("seq",))

    def reversals(self) -> Iterator[tuple[Position, list[Row]]]:
        """Yield all reversals in pages."""
        return self._pages("reversal", ("seq",), ("by_seq",))

    def holds_of_ids(self, ids: Sequence[int]) -> tuple[Position, list[Row]]:
        """Return the rows of holds with these ids, and the position of the snapshot."""
        with self._snapshot("the holds") as ask:
            wanted = "SELECT value FROM json_each(?)"
            rows = ask(f"SELECT {_HOLD} FROM hold WHERE hold_id IN ({wanted})", (json.dumps(list(ids)),)).fetchall()
            return _position(ask), rows

    def extremes(self) -> tuple[Position, dict[str, tuple[int | None, int | None]]]:
        """Return the lowest and the highest segment, or id, in each derived table."""
        columns = {"key_seq": "segment", "history": "segment", "hold_of": "segment", "hold": "hold_id"}
        with self._snapshot("the derived tables") as ask:
            found = {
                table: (
                    ask(f"SELECT min({column}) FROM {table}").fetchone()[0],
                    ask(f"SELECT max({column}) FROM {table}").fetchone()[0],
                )
                for table, column in columns.items()
            }
            return _position(ask), found

    def _pages(self, table: str, key: tuple[str, ...], more: tuple[str, ...]) -> Iterator[tuple[Position, list[Row]]]:
        columns, order = ", ".join((*key, *more)), ", ".join(key)
        marks = ", ".join("?" for _ in key)
        after: Row = ()
        while True:
            beyond = f"WHERE ({order}) > ({marks})" if after else ""
            with self._snapshot(f"the table {table}") as ask:
                query = f"SELECT {columns} FROM {table} {beyond} ORDER BY {order} LIMIT {PAGE_ROWS}"
                rows = ask(query, after).fetchall()
                position = _position(ask)
            yield position, rows
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][: len(key)]

    # --- the filter of known keys -------------------------------------------------------------------------

    def filter_levels(self) -> tuple[Position, list[Row]]:
        """Return number, last covered segment and checksum of each stored level, and the position of the snapshot."""
        with self._snapshot("the filter") as ask:
            rows = ask("SELECT level, covered_to, checksum FROM key_filter ORDER BY level").fetchall()
            return _position(ask), rows

    def filter_pages(self, level: int) -> Iterator[Row]:
        """Yield number, bits and checksum of each page of a level, in order."""
        page = -1
        query = "SELECT page, bits, checksum FROM key_filter_page WHERE level = ? AND page > ? ORDER BY page LIMIT 64"
        while rows := self._rows("the filter", query, (level, page)):
            yield from rows
            page = rows[-1][0]

    def _rows(self, what: str, query: str, values: Iterable[Any]) -> list[Any]:
        with self._named(what):
            return self._connection.execute(query, tuple(values)).fetchall()


_HOLD: Final = "hold_id, customer, account, coin, amount, reference, expires_ms, opened_ms, remaining, closed_seq"


def _position(ask: Callable[..., sqlite3.Cursor]) -> Position:
    row = ask("SELECT (SELECT seq FROM head), (SELECT sealed_to FROM ledger)").fetchone()
    return Position(row[0] or 0, row[1] or 0)


def _open(path: Path) -> sqlite3.Connection:
    """
    Open *path* so that it stays as it was found.

    Beside a write-ahead log, a read-only connection changes nothing. If there is no log, SQLite creates an empty one
    while the file is read, and only a connection that may write removes it again. If the folder is not writable either,
    nobody writes to the file, and it is opened as immutable.
    """
    log = path.with_name(path.name + "-wal")
    if log.exists():
        mode = "mode=ro"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        mode = "mode=rw"
    else:
        mode = "mode=ro&immutable=1"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute(f"PRAGMA busy_timeout = {sqlite_file.BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA query_only = ON")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _triggers() -> dict[str, str]:
    """Return the triggers that protect the journal, with their text as SQLite stores it."""
    script = resources.files("spotledger.storage.sqlite").joinpath("sql", "journal.sql").read_text()
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        return dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"))
    finally:
        connection.close()
