"""
Raw reading of the files of a ledger for an audit: rows as they are, in short read transactions, nothing interpreted.

The audit has connections of its own, so it runs beside the process that writes as well as on files that nobody has
open. Each call reads and is done: none holds a write-ahead log for longer than its own rows take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from spotledger.errors import LedgerCorrupt, SchemaMismatch, SpotledgerError
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, HOLD_COLUMNS
from spotledger.storage.sqlite.buckets import HistoryLine, HoldsOpened, ids_of_segment, unpack_history, unpack_keys
from spotledger.storage.sqlite.file import (
    BOOKS,
    BOOKS_FILE,
    JOURNAL,
    JOURNAL_FILE,
    KEYS,
    KEYS_FILE,
    Connection,
    FileKind,
    is_damage,
    name_of,
    open_reader,
    open_untouched,
    schema_of,
)
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, read_note
from spotledger.storage.sqlite.wal import find_damage

#: Rows of a table that are read in one transaction.
PAGE_ROWS: Final = 5_000
#: Findings of SQLite's own check that are listed of one file.
STRUCTURE_FINDINGS: Final = 20
Row = tuple[Any, ...]


class Unreadable(Exception):
    """Something of the files could not be read; the message says what and why."""


class Damaged(Unreadable):
    """What was to be read does not check: a page, a bucket, a text that is none."""


class Position(NamedTuple):
    """How far the ledger is: the last entry of the head, and the last that is in the books."""

    head_seq: int
    sealed_to: int


class Facts(NamedTuple):
    """What the files say of themselves; None where a row is missing."""

    ledger: tuple[str, int, int, int] | None  # id, epoch, entries of a segment, sealed_to
    head: tuple[int, bytes, int] | None  # seq, hash, booked_ms
    first_seq: int | None
    last_seq: int
    #: Tables, triggers and so on whose definition is missing or another, as ``file: name``.
    changed_schema: tuple[str, ...]
    #: What the books say of the ledger and of their last entry; None where there are none.
    books: tuple[str, int, bytes] | None


class AuditFile:
    """The files of one ledger, open for reading only; or a backup, which has no books."""

    def __init__(self, path: Path) -> None:
        """
        Open the ledger with the journal at *path*; nothing that stays is written.

        Raises:
            Unreadable: It is not there, may not be read, or is of another version.
            Damaged: It is no SQLite file, or its first pages do not check.
        """
        self.path = path
        self._connections: list[Connection] = []
        if not path.is_file():
            raise Unreadable(f"{path} is not there, or is not a file")
        try:
            self._journal = self._opened(path, JOURNAL)
            books, keys = path.with_name(BOOKS_FILE), path.with_name(KEYS_FILE)
            is_backup = path.name != JOURNAL_FILE
            self._books = None if is_backup or not books.exists() else self._opened(books, BOOKS)
            self._keys = None if is_backup or not keys.exists() else self._opened(keys, KEYS)
        except BaseException:
            self.close()
            raise
        #: Whether it is a backup, or another journal without its folder.
        self.is_alone = is_backup

    def _opened(self, path: Path, kind: FileKind) -> Connection:
        try:
            if path.name == JOURNAL_FILE or kind is not JOURNAL:
                connection = open_reader(path, kind)
            else:
                connection = open_untouched(path)
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        except (LedgerCorrupt, apsw.NotADBError) as error:
            raise Damaged(f"{path} cannot be opened: {error}") from error
        except SchemaMismatch as error:
            is_ours = _has_header(path)
            raise (Unreadable if is_ours else Damaged)(f"{path} cannot be opened: {error}") from error
        except (SpotledgerError, apsw.Error) as error:
            raise Unreadable(f"{path} cannot be opened: {error}") from error
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        """Close the files."""
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> AuditFile:
        """Return the ledger itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    @contextmanager
    def _saying(self, what: str) -> Iterator[None]:
        try:
            yield
        except (apsw.Error, UnicodeDecodeError) as error:
            kind = Damaged if is_damage(error) else Unreadable
            raise kind(f"{what} could not be read: {name_of(error)}: {error}") from error
        except LedgerCorrupt as error:
            raise Damaged(f"{what}: {error}") from error

    @contextmanager
    def _one_instant(self, what: str, connection: Connection) -> Iterator[Callable[..., Any]]:
        """Give a way to ask several questions of one snapshot of one file."""
        with self._saying(what):
            connection.execute("BEGIN")
            try:
                yield connection.execute
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    # --- the journal ----------------------------------------------------------------------------------

    def facts(self) -> Facts:
        """Return what the files say of themselves."""
        changed = [*self._changed(self._journal, JOURNAL), *self._changed(self._books, BOOKS)]
        changed += self._changed(self._keys, KEYS)
        books: tuple[str, int, bytes] | None = None
        if self._books is not None:
            with self._one_instant("the books", self._books) as ask:
                rows = ask("SELECT ledger_id, sealed_to, sealed_hash FROM books").fetchall()
                books = rows[0] if rows else None
        with self._one_instant("the journal", self._journal) as ask:
            ledger = ask("SELECT ledger_id, epoch, segment_entries FROM ledger").fetchall()
            head = ask("SELECT seq, hash, booked_ms FROM head").fetchall()
            first = ask("SELECT seq FROM entry ORDER BY seq LIMIT 1").fetchall()
            last = ask("SELECT seq FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        sealed_to = 0 if books is None else books[1]
        return Facts(
            (*ledger[0], sealed_to) if ledger else None,
            head[0] if head else None,
            first[0][0] if first else None,
            last[0][0] if last else 0,
            tuple(changed),
            books,
        )

    def _changed(self, connection: Connection | None, kind: FileKind) -> Iterator[str]:
        if connection is None:
            return
        with self._saying(f"the schema of the {kind.title}"):
            found = dict(connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
        for name, sql in schema_of(kind).items():
            if found.get(name) != sql:
                yield f"{kind.title}: {name}"

    def position(self) -> Position:
        """Return how far the ledger is now; the books are asked first, so that they are never ahead."""
        sealed_to = self._sealed_to()
        with self._saying("the head"):
            rows = self._journal.execute("SELECT seq FROM head").fetchall()
        return Position(rows[0][0] if rows else 0, sealed_to)

    def _sealed_to(self) -> int:
        if self._books is None:
            return 0
        with self._saying("the books"):
            rows = self._books.execute("SELECT sealed_to FROM books").fetchall()
        return int(rows[0][0]) if rows else 0

    def entries(self, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Return ``seq``, body and hash of the entries from *first* to *last* that are there, in order."""
        with self._saying(f"entries {first} to {last}"):
            found: list[tuple[int, bytes, bytes]] = self._journal.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
            ).fetchall()
        return found

    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None where it is not there."""
        rows = self.entries(seq, seq)
        return rows[0][1] if rows else None

    # --- each file as a whole ---------------------------------------------------------------------------

    def structure(self) -> Iterator[tuple[str, str]]:
        """Give what SQLite's own check finds: the file, and its words. It reads every page, so each is checked."""
        for connection, kind in ((self._journal, JOURNAL), (self._books, BOOKS), (self._keys, KEYS)):
            if connection is not None:
                with self._saying(f"the structure of the {kind.title}"):
                    for (found,) in connection.execute(f"PRAGMA integrity_check({STRUCTURE_FINDINGS})").fetchall():
                        if found != "ok":
                            yield kind.title, str(found)

    def logs(self) -> Iterator[str]:
        """Give the write-ahead logs that are damaged, in words."""
        for name in () if self.is_alone else (JOURNAL_FILE, BOOKS_FILE, KEYS_FILE):
            log = self.path.with_name(f"{name}-wal")
            try:
                damage = find_damage(log)
            except OSError as problem:
                raise Unreadable(f"{log} could not be read: {problem.strerror}") from problem
            if damage is not None:
                yield f"{name}-wal at byte {damage.offset}: {damage.reason}"

    def note(self) -> Note | None:
        """
        Return the noted head, or None where there is none.

        Raises:
            Damaged: Both of its slots are damaged.
        """
        if self.is_alone:
            return None
        try:
            return read_note(self.path.with_name(NOTE_FILE))
        except LedgerCorrupt as error:
            raise Damaged(str(error)) from error
        except OSError as problem:
            raise Unreadable(f"the noted head could not be read: {problem.strerror}") from problem

    # --- the access keys --------------------------------------------------------------------------------

    def keys_of_ledger(self) -> tuple[str, int] | None:
        """Return the ledger that the access keys are of, and the number of their last change; None without keys."""
        if self._keys is None:
            return None
        with self._saying("the access keys"):
            rows = self._keys.execute("SELECT ledger_id, change FROM keys_of").fetchall()
        return rows[0] if rows else ("", 0)

    def key_rows(self) -> Iterator[tuple[str, str, Row]]:
        """Give the rows of access keys and tokens: the table, the first characters of the name, and the row."""
        if self._keys is None:
            return
        for table, name in (("access_keys", "accesskey"), ("operator_tokens", "token_id")):
            with self._saying(f"the table {table}"):
                for row in self._keys.execute(f"SELECT {name}, * FROM {table}").fetchall():
                    yield table, str(row[0])[:8], row[1:]

    # --- the books, by segment --------------------------------------------------------------------------

    def keys_of(self, segment: int) -> list[tuple[bytes, int]]:
        """Return digest and place of each key of a segment, sorted by digest."""
        found = []
        for bucket, packed in self._buckets("key_bucket", segment):
            with self._saying(f"keys of segment {segment}"):
                found += list(unpack_keys(bucket, packed))
        return sorted(found)

    def history_of(self, segment: int) -> tuple[list[HistoryLine], list[HoldsOpened]]:
        """Return which entries of a segment touched each account and coin, and which opened holds."""
        lines: list[HistoryLine] = []
        holds: list[HoldsOpened] = []
        for bucket, packed in self._buckets("history_bucket", segment):
            with self._saying(f"history of segment {segment}"):
                more_lines, more_holds = unpack_history(bucket, packed)
            lines += more_lines
            holds += more_holds
        return lines, holds

    def _buckets(self, table: str, segment: int) -> Iterator[tuple[int, object]]:
        ids = ids_of_segment(segment)
        query = f"SELECT id, packed FROM {table} WHERE id BETWEEN ? AND ?"
        found = dict(self._rows(f"{table} of segment {segment}", query, (ids[0], ids[-1])))
        for bucket in ids:
            yield bucket, found.get(bucket)

    def holds_between(self, first: int, last: int) -> list[Row]:
        """Return the rows of holds with ids from *first* to *last*."""
        return self._rows("the holds", f"SELECT {_HOLD} FROM hold WHERE hold_id BETWEEN ? AND ?", (first, last))

    # --- the books, as a whole --------------------------------------------------------------------------

    def balances(self) -> Iterator[tuple[Position, list[Row]]]:
        """Give all balances by pages, each with the position at that instant."""
        return self._pages("balance", ("bucket", "customer", "account", "coin"), BALANCE_COLUMNS)

    def coins(self) -> Iterator[tuple[Position, list[Row]]]:
        """Give all coins by pages."""
        return self._pages("coin", ("coin",), "coin, scale, seq")

    def customers(self) -> Iterator[tuple[Position, list[Row]]]:
        """Give all customers by pages."""
        return self._pages("customer", ("bucket", "customer"), "bucket, customer, seq")

    def reversals(self) -> Iterator[tuple[Position, list[Row]]]:
        """Give all reversals by pages."""
        return self._pages("reversal", ("seq",), "seq, by_seq")

    def holds(self) -> Iterator[tuple[Position, list[Row]]]:
        """Give all holds by pages."""
        return self._pages("hold", ("hold_id",), HOLD_COLUMNS)

    def bucket_sums(self, table: str) -> list[Row]:
        """Return bucket, rows and digest of each bucket of owners or of holds."""
        return self._rows(f"the table {table}", f"SELECT bucket, rows, digest FROM {table}", ())

    def books_row(self) -> Row:
        """Return what the small tables add up to, as the books say it."""
        query = (
            "SELECT coins, coins_digest, reversals, reversals_digest, customers, open_holds, expiring_holds, sealed_to"
            " FROM books"
        )
        rows = self._rows("the books", query, ())
        return tuple(rows[0]) if rows else ()

    def holds_of_ids(self, ids: Sequence[int]) -> tuple[Position, list[Row]]:
        """Return the rows of holds with these ids, and the position at that instant."""
        wanted = "SELECT value FROM json_each(?)"
        query = f"SELECT {_HOLD} FROM hold WHERE hold_id IN ({wanted})"
        with self._one_instant("the holds", self._need_books()) as ask:
            rows = ask(query, (json.dumps(list(ids)),)).fetchall()
            sealed_to = int(ask("SELECT sealed_to FROM books").fetchall()[0][0])
        return Position(self.position().head_seq, sealed_to), rows

    def extremes(self) -> tuple[Position, dict[str, tuple[int | None, int | None]]]:
        """Return the least and the greatest segment, or id, that each table names."""
        columns = {"key_bucket": "id", "history_bucket": "id", "hold": "hold_id"}
        with self._one_instant("the books", self._need_books()) as ask:
            found = {
                table: (
                    ask(f"SELECT min({column}) FROM {table}").fetchall()[0][0],
                    ask(f"SELECT max({column}) FROM {table}").fetchall()[0][0],
                )
                for table, column in columns.items()
            }
            sealed_to = int(ask("SELECT sealed_to FROM books").fetchall()[0][0])
        return Position(self.position().head_seq, sealed_to), found

    def _pages(self, table: str, key: tuple[str, ...], columns: str) -> Iterator[tuple[Position, list[Row]]]:
        """Give a table by pages; *key* are its first columns, which order it."""
        order = ", ".join(key)
        marks = ", ".join("?" for _ in key)
        after: Row = ()
        while True:
            beyond = f"WHERE ({order}) > ({marks})" if after else ""
            with self._one_instant(f"the table {table}", self._need_books()) as ask:
                query = f"SELECT {columns} FROM {table} {beyond} ORDER BY {order} LIMIT {PAGE_ROWS}"
                rows = ask(query, after).fetchall()
                sealed_to = int(ask("SELECT sealed_to FROM books").fetchall()[0][0])
            yield Position(self.position().head_seq, sealed_to), rows
            if len(rows) < PAGE_ROWS:
                return
            after = rows[-1][: len(key)]

    # --- the filter of known keys -------------------------------------------------------------------------

    def filter_levels(self) -> tuple[Position, list[Row]]:
        """Return number, last covered segment and checksum of each level that is written, and the position then."""
        with self._one_instant("the filter", self._need_books()) as ask:
            rows = ask("SELECT level, covered_to, checksum FROM key_filter ORDER BY level").fetchall()
            sealed_to = int(ask("SELECT sealed_to FROM books").fetchall()[0][0])
        return Position(self.position().head_seq, sealed_to), rows

    def filter_pages(self, level: int) -> Iterator[Row]:
        """Give number, bits and checksum of each page of a level, in order."""
        page = -1
        query = "SELECT page, bits, checksum FROM key_filter_page WHERE level = ? AND page > ? ORDER BY page LIMIT 64"
        while rows := self._rows("the filter", query, (level, page)):
            yield from rows
            page = rows[-1][0]

    def has_books(self) -> bool:
        """Say whether there are books to compare with the journal."""
        return self._books is not None

    def _need_books(self) -> Connection:
        if self._books is None:
            raise Unreadable("there are no books")
        return self._books

    def _rows(self, what: str, query: str, values: Iterable[Any]) -> list[Any]:
        with self._saying(what):
            found: list[Any] = self._need_books().execute(query, tuple(values)).fetchall()
        return found


_HOLD: Final = "hold_id, customer, account, coin, amount, reference, expires_ms, opened_ms, remaining, closed_seq"


def _has_header(path: Path) -> bool:
    """Say whether the file at *path* begins like an SQLite file."""
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError:
        return True
