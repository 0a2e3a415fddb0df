"""
Raw reading of the files of a ledger for an audit: rows as they are, in short read transactions, nothing interpreted.

The audit has connections of its own, so it runs beside the process that writes as well as on files that nobody has
open. Each call reads and is done: none holds a write-ahead log for longer than its own rows take.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from spotledger.errors import LedgerCorrupt
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, HOLD_COLUMNS, BooksFacts, sum_of_buckets
from spotledger.storage.sqlite.buckets import HOLD_BUCKET_IDS, ids_of_segment
from spotledger.storage.sqlite.file import (
    BACKUP_ID,
    BOOKS,
    BOOKS_FILE,
    JOURNAL,
    JOURNAL_FILE,
    KEYS,
    KEYS_FILE,
)
from spotledger.storage.sqlite.keys import check_sum
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, read_slots
from spotledger.storage.sqlite.raw import Damaged, OtherFile, RawFile, Row, Unreadable, is_file, is_formed, lasting
from spotledger.storage.sqlite.wal import find_damage

#: The owners' buckets are read so many at a time, in one transaction.
OWNER_BUCKETS_A_PAGE: Final = 128
_LEAST_ID: Final = -(2**63)
_GREATEST_ID: Final = 2**63 - 1
#: Number, body and hash: no row of an entry has fewer bytes.
_LEAST_ENTRY_BYTES: Final = 64
F = TypeVar("F", bound=RawFile)


class LedgerRow(NamedTuple):
    """Which ledger it is."""

    ledger_id: str
    #: The entry with which the epoch began; 0 in the first one.
    epoch_seq: int
    segment_entries: int


class HeadRow(NamedTuple):
    """What the journal says of its last entry."""

    seq: int
    hash: bytes
    booked_ms: int


class OwnerPage(NamedTuple):
    """The rows of some buckets of owners, all of one instant."""

    sealed_to: int
    balances: list[Row]
    customers: list[Row]
    #: Count and digest by bucket, as they are kept.
    sums: dict[int, tuple[int, bytes]]


class HoldPage(NamedTuple):
    """The rows of some buckets of holds, all of one instant."""

    sealed_to: int
    rows: list[Row]
    sums: dict[int, tuple[int, bytes]]


class SmallTables(NamedTuple):
    """What the books say of themselves, and what that is about, all of one instant."""

    facts: BooksFacts
    coins: list[Row]
    reversals: list[Row]
    #: Count and digest of the buckets of owners and of holds.
    buckets: tuple[int, bytes]
    #: Customers, open holds and expiring holds, by the index that was counted.
    counts: dict[str, int]


class AuditFile:
    """The files of one ledger, open for reading only; or a backup, which has no books."""

    def __init__(self, path: Path) -> None:
        """
        Open the ledger with the journal at *path*; no file is changed.

        Raises:
            Unreadable: It is not there, may not be read, or is no journal, or one of another version.
            Damaged: It is no SQLite file, or its first pages do not check.
        """
        self.path = path
        #: What beside the journal could not be opened.
        self.problems: list[Unreadable] = []
        is_of_ledger = path.name == JOURNAL_FILE
        self.journal = self._opened_journal(path, is_of_ledger)
        self.is_backup = self.journal.application_id == BACKUP_ID
        #: Whether it is a journal without the folder of its ledger, such as a backup.
        self.is_alone = self.is_backup or not is_of_ledger
        self.books: BooksFile | None = None
        self.keys: KeysFile | None = None
        if self.is_backup:
            self.keys = KeysFile(path, KEYS, frozenset({BACKUP_ID}))
        elif is_of_ledger:
            self.books = self._opened_beside(path.with_name(BOOKS_FILE), partial(BooksFile, kind=BOOKS))
            self.keys = self._opened_beside(path.with_name(KEYS_FILE), partial(KeysFile, kind=KEYS))

    def _opened_journal(self, path: Path, is_of_ledger: bool) -> JournalFile:
        """Open the journal; where its head was noted beside it, what is not there or is none is damaged."""
        is_noted = is_of_ledger and is_file(path.with_name(NOTE_FILE))
        try:
            return JournalFile(path, JOURNAL, frozenset({BACKUP_ID}))
        except OtherFile as problem:
            if is_noted:
                raise Damaged(f"{problem}; its head was noted beside it") from problem
            raise

    def _opened_beside(self, path: Path, opened: Callable[[Path], F]) -> F | None:
        """Open a file beside the journal, where it is there; what is in the way is kept."""
        try:
            return opened(path) if is_file(path) else None
        except OtherFile as problem:
            self.problems.append(Damaged(str(problem)))
        except Unreadable as problem:
            self.problems.append(problem)
        return None

    def files(self) -> list[RawFile]:
        """Return the files that are open; the keys in a backup are no file of their own."""
        keys = None if self.is_backup else self.keys
        return [file for file in (self.journal, self.books, keys) if file is not None]

    def close(self) -> None:
        """Close the files."""
        for file in (self.journal, self.books, self.keys):
            if file is not None:
                file.close()

    def __enter__(self) -> AuditFile:
        """Return the ledger itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def note(self) -> tuple[Note | None, int | None]:
        """
        Return the noted head, or None where there is none, and which of its slots is damaged, or None.

        Raises:
            Damaged: Both of its slots are damaged.
        """
        if self.is_alone:
            return None, None
        path = self.path.with_name(NOTE_FILE)
        note: Note | None = None

        def look() -> int | str | None:
            nonlocal note
            try:
                note, damage = read_slots(path)
            except LedgerCorrupt as error:
                return str(error)
            return damage

        with self.journal.saying(NOTE_FILE):
            damage = lasting(look)
        if isinstance(damage, str):
            raise Damaged(damage)
        return note, damage


def damaged_logs(path: Path) -> Iterator[tuple[str, str]]:
    """
    Give the write-ahead logs of the ledger with the journal at *path* that are damaged: the name, and where and how.

    Raises:
        Unreadable: One may not be read.
    """
    for name in (JOURNAL_FILE, BOOKS_FILE, KEYS_FILE) if path.name == JOURNAL_FILE else (path.name,):
        log = path.with_name(f"{name}-wal")
        try:
            damage = lasting(partial(find_damage, log))
        except OSError as problem:
            raise Unreadable(f"{log} could not be read: {problem.strerror}") from problem
        if damage is not None:
            yield log.name, f"at byte {damage.offset}: {damage.reason}"


class JournalFile(RawFile):
    """The journal."""

    def ledger(self) -> LedgerRow | None:
        """Return which ledger it is; None where the row is missing."""
        query = "SELECT ledger_id, epoch_seq, segment_entries FROM ledger"
        row = self.only_row("the row of the ledger", query, (str, int, int))
        return LedgerRow(*row) if row else None

    def head(self) -> HeadRow | None:
        """Return what the journal says of its last entry; None where the row is missing."""
        row = self.only_row("the row of the head", "SELECT seq, hash, booked_ms FROM head", (int, bytes, int))
        return HeadRow(*row) if row else None

    def extent(self) -> tuple[int | None, int]:
        """Return the first entry that there is, or None, and the last."""
        what = "the first and the last entry"
        first = self.rows(what, "SELECT seq FROM entry ORDER BY seq LIMIT 1")
        last = self.rows(what, "SELECT seq FROM entry ORDER BY seq DESC LIMIT 1")
        return (first[0][0], last[0][0]) if first and last else (None, 0)

    def seq_after(self, seq: int) -> int | None:
        """Return the first entry that there is after *seq*, or None."""
        query = "SELECT seq FROM entry WHERE seq > ? ORDER BY seq LIMIT 1"
        rows = self.rows(f"the entry after {seq}", query, (seq,))
        return rows[0][0] if rows else None

    def entries(self, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Return ``seq``, body and hash of the entries from *first* to *last* that are there, in order."""
        query = "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq"
        return self.rows(f"entries {first} to {last}", query, (first, last))

    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None where it is not there or cannot be read."""
        with suppress(Damaged):
            for _, body, _ in self.entries(seq, seq):
                return body
        return None

    def hash_of(self, seq: int) -> bytes | None:
        """Return the hash that is kept of one entry, or None where it is not there."""
        rows = self.entries(seq, seq)
        return rows[0][2] if rows else None

    def backup_row(self) -> Row | None:
        """Return what a backup says it is: ledger, epoch, ``seq``, hash and time of its last entry."""
        query = "SELECT ledger_id, epoch, seq, hash, booked_ms FROM backup"
        return self.only_row("the row of the backup", query, (str, int, int, bytes, int))

    def most_entries(self) -> int:
        """Return a number of entries that the journal cannot exceed, by its size."""
        size = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                size += self.path.with_name(self.name + suffix).stat().st_size
        return size // _LEAST_ENTRY_BYTES


class KeysFile(RawFile):
    """The access keys, or the part of a backup that has them."""

    def of_ledger(self) -> tuple[str, int] | None:
        """Return the ledger that the access keys are of, and the number of their last change; None without the row."""
        row = self.only_row("the access keys", "SELECT ledger_id, change FROM keys_of", (str, int))
        return (row[0], row[1]) if row else None

    def wrong_sum(self) -> str | None:
        """Say why the rows are not those that were written last, as their sum shows; None where they are."""
        with self.one_instant("the access keys"):
            try:
                check_sum(self._connection)
            except LedgerCorrupt as damage:
                return str(damage)
        return None

    def rows_of(self, table: str) -> list[Row]:
        """Return the rows of a table of access keys, tokens, or what goes with them."""
        return self.rows(f"the table {table}", f"SELECT * FROM {table}")


class BooksFile(RawFile):
    """The books."""

    def facts(self) -> BooksFacts | None:
        """Return the row that says what the books are; None where it is missing."""
        return _facts(self.rows("the row of the books", _FACTS))

    # --- by segment -------------------------------------------------------------------------------------

    def digest_buckets(self, table: str, segment: int) -> list[tuple[int, object]]:
        """Return id and content of each bucket of keys or references of a segment; None where one is missing."""
        return self._buckets(table, segment)

    def history_buckets(self, segment: int) -> list[tuple[int, object]]:
        """Return id and content of each bucket of the history of a segment; None where one is missing."""
        return self._buckets("history_bucket", segment)

    def _buckets(self, table: str, segment: int) -> list[tuple[int, object]]:
        ids = ids_of_segment(segment)
        query = f"SELECT id, packed FROM {table} WHERE id BETWEEN ? AND ? ORDER BY id"
        rows = self.rows(f"{table} of segment {segment}", query, (ids[0], ids[-1]))
        if len(rows) == len(ids):
            return rows
        found = dict(rows)
        return [(bucket, found.get(bucket)) for bucket in ids]

    def holds_of(self, first: int, last: int) -> HoldPage:
        """Return the rows of whole buckets of holds, all those with ids from *first* to *last*."""
        buckets = (first // HOLD_BUCKET_IDS, last // HOLD_BUCKET_IDS)
        ids = (buckets[0] * HOLD_BUCKET_IDS, buckets[1] * HOLD_BUCKET_IDS + HOLD_BUCKET_IDS - 1)
        with self.one_instant("the holds") as ask:
            return HoldPage(
                _sealed_to(ask),
                ask(f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id BETWEEN ? AND ? ORDER BY hold_id", ids).fetchall(),
                _sums(ask("SELECT bucket, rows, digest FROM hold_bucket WHERE bucket BETWEEN ? AND ?", buckets)),
            )

    # --- as a whole -------------------------------------------------------------------------------------

    def owner_pages(self, buckets: int) -> Iterator[OwnerPage]:
        """Give the rows of all *buckets* of owners, some at a time, and of what is in no bucket that can be."""
        between = "WHERE bucket BETWEEN ? AND ?"
        for start in range(0, buckets, OWNER_BUCKETS_A_PAGE):
            first = start or _LEAST_ID
            last = start + OWNER_BUCKETS_A_PAGE - 1 if start + OWNER_BUCKETS_A_PAGE < buckets else _GREATEST_ID
            with self.one_instant(f"the balances in the buckets from {start}") as ask:
                page = OwnerPage(
                    _sealed_to(ask),
                    ask(f"SELECT {BALANCE_COLUMNS} FROM balance {between}", (first, last)).fetchall(),
                    ask(f"SELECT bucket, customer, seq FROM customer {between}", (first, last)).fetchall(),
                    _sums(ask(f"SELECT bucket, rows, digest FROM owner_bucket {between}", (first, last))),
                )
            yield page

    def holds_of_ids(self, ids: Sequence[int]) -> tuple[int, list[Row]]:
        """Return up to which entry the books are sealed, and the rows of holds with these ids at that instant."""
        query = f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id IN (SELECT value FROM json_each(?))"
        with self.one_instant("the holds") as ask:
            return _sealed_to(ask), ask(query, (json.dumps(list(ids)),)).fetchall()

    def small_tables(self) -> SmallTables | None:
        """Return coins and reversals, and the counts of what has an index; None where the books say nothing."""
        is_open = "SELECT count(*) FROM hold INDEXED BY {} WHERE closed_seq IS NULL"
        with self.one_instant("the small tables of the books") as ask:
            facts = _facts(ask(_FACTS).fetchall())
            if facts is None:
                return None
            counts = {
                "customer_name": "SELECT count(*) FROM customer INDEXED BY customer_name",
                "hold_age": is_open.format("hold_age"),
                "hold_open": is_open.format("hold_open"),
                "hold_due": is_open.format("hold_due") + " AND expires_ms IS NOT NULL",
            }
            return SmallTables(
                facts,
                ask("SELECT coin, scale, seq FROM coin").fetchall(),
                ask("SELECT seq, by_seq FROM reversal").fetchall(),
                sum_of_buckets(self._connection).kept(),
                {index: ask(query).fetchall()[0][0] for index, query in counts.items()},
            )

    def extremes(self) -> tuple[int, dict[str, tuple[int | None, int | None]]]:
        """Return up to which entry the books are sealed, and the least and the greatest id that each table names."""
        columns = dict.fromkeys(("key_bucket", "reference_bucket", "history_bucket"), "id")
        columns |= {"hold": "hold_id", "hold_bucket": "bucket", "owner_bucket": "bucket", "reversal": "seq"}
        with self.one_instant("the books") as ask:
            found = {}
            for table, column in columns.items():
                ends = [ask(f"SELECT {end}({column}) FROM {table}").fetchall()[0][0] for end in ("min", "max")]
                found[table] = (ends[0], ends[1])
            return _sealed_to(ask), found

    # --- the filter of known keys -------------------------------------------------------------------------

    def filter_levels(self) -> tuple[int, list[Row], list[int]]:
        """
        Return up to which entry the books are sealed, and the levels of the filter at that instant.

        Of each level its number, the last segment that it covers and the checksum; then the levels that have pages.
        """
        with self.one_instant("the filter") as ask:
            rows = ask("SELECT level, covered_to, checksum FROM key_filter ORDER BY level").fetchall()
            pages = ask("SELECT DISTINCT level FROM key_filter_page ORDER BY level").fetchall()
            return _sealed_to(ask), rows, [level for (level,) in pages]

    def filter_pages(self, level: int) -> Iterator[Row]:
        """Give number, bits and checksum of each page of a level, in order."""
        page = _LEAST_ID
        query = "SELECT page, bits, checksum FROM key_filter_page WHERE level = ? AND page > ? ORDER BY page LIMIT 64"
        while rows := self.rows("the filter", query, (level, page)):
            yield from rows
            page = rows[-1][0]


_FACTS: Final = f"SELECT {', '.join(BooksFacts._fields)} FROM books"
_FACT_TYPES: Final = (str, int, int, bytes, int, bytes, int, bytes, int, bytes, int, int, int)


def _facts(rows: list[Row]) -> BooksFacts | None:
    if not rows:
        return None
    if len(rows) != 1 or not is_formed(rows[0], _FACT_TYPES):
        raise Damaged(f"{BOOKS_FILE}: the row of the books is not one row of the schema")
    return BooksFacts(*rows[0])


def _sealed_to(ask: Callable[..., Any]) -> int:
    rows = ask("SELECT sealed_to FROM books").fetchall()
    if not rows:
        raise Damaged(f"{BOOKS_FILE}: the books do not say what they are")
    return int(rows[0][0])


def _sums(rows: Iterable[Row]) -> dict[int, tuple[int, bytes]]:
    return {bucket: (count, digest) for bucket, count, digest in rows}
