"""
The embedded store: three SQLite files in the data folder, and a note of the head.

``journal.db`` is the truth; a commit appends to it and does nothing else. ``books.db`` is derived from it, a segment at
a time, by :mod:`sealing`; what is newer is in memory (:mod:`working_set`), and a start reads it from the journal again.
``keys.db`` has the access keys and tokens. Books that are damaged or missing are made again from the journal.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import apsw

from spotledger.clock import Moment
from spotledger.domain.books import Decision
from spotledger.domain.journal import BEGIN_EPOCH, Entry, epochs_after
from spotledger.errors import (
    DataFolderUnusable,
    LedgerCorrupt,
    StoreBusy,
    StoreUnavailable,
)
from spotledger.storage.base import BooksDamaged, Head, Wanted
from spotledger.storage.encoding import chain_hash, encode_entry, genesis_hash
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.idempotency_filter import IdempotencyFilter
from spotledger.storage.sealing_process import SealingProcess
from spotledger.storage.sqlite import copy as sqlite_copy
from spotledger.storage.sqlite.books import Books, checked
from spotledger.storage.sqlite.buckets import OF_KEYS, ids_of_segment, unpack_digests
from spotledger.storage.sqlite.file import (
    BOOKS_FILE,
    BUSY_TIMEOUT_MS,
    JOURNAL,
    JOURNAL_FILE,
    KEYS_FILE,
    Connection,
    check_folder,
    only_row,
    open_reader,
    open_writer,
    translated,
)
from spotledger.storage.sqlite.journal import read_epochs, read_head
from spotledger.storage.sqlite.keys import SqliteKeyTables
from spotledger.storage.sqlite.noted_head import HeadNote
from spotledger.storage.sqlite.placing import check_journal, go_on_placing
from spotledger.storage.sqlite.rebuilding import RebuiltBooks
from spotledger.storage.sqlite.working_set import WorkingSet
from spotledger.storage.steps import Steps, at_once

SEGMENT_ENTRIES: Final = 65_536
CACHE_ACCOUNTS: Final = 50_000
#: Smaller segments are sealed at once, where they are full; sealing a larger one takes a process of its own.
PROCESS_ENTRIES: Final = 4_096
#: Full segments that may wait for sealing before writes have to.
UNSEALED_LIMIT: Final = 4
#: Keys of a sealed segment that are put into the filter with each group.
ABSORBED_KEYS: Final = 500
#: As many at once while nothing is written: some 1 ms.
IDLE_ABSORBED_KEYS: Final = 4_000
SEALING_MODULE: Final = "spotledger.storage.sqlite.sealing_process"
_REPLAY_ENTRIES: Final = 1_000
_INSERT: Final = "INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)"

T = TypeVar("T")
_log = logging.getLogger("spotledger.store")


class SqliteStore(RebuiltBooks):
    """The embedded store in one folder; satisfies :class:`spotledger.storage.base.Store`."""

    remote = False
    ahead = None

    def __init__(
        self, folder: Path, *, segment_entries: int = SEGMENT_ENTRIES, cache_accounts: int = CACHE_ACCOUNTS
    ) -> None:
        """
        Open the ledger in *folder*, or make it.

        Args:
            folder: The data folder, which is there and owned by this process.
            segment_entries: Entries in a segment, for a ledger that is made; one that is there has its own.
            cache_accounts: How many unchanged accounts may stay in memory.

        Raises:
            DataFolderUnusable: A file can be neither read nor made, or the disk is full.
            SchemaMismatch: There is something else, or a ledger of another version.
            JournalShorter: The journal ends before the entry that was noted as the last.
            LedgerCorrupt: The journal or the access keys are damaged.
        """
        #: Returns what is noted of the trusted time with each commit.
        self.moment: Callable[[], Moment | None] = lambda: None
        self._folder = folder
        self._path = folder / JOURNAL_FILE
        self._cache_accounts = cache_accounts
        self._closing: list[Callable[[], None]] = []
        try:
            self._open(segment_entries)
        except BaseException as error:
            self._close_all()
            if isinstance(error, StoreUnavailable):
                message = f"The ledger in {folder} cannot be used: {error.message}."
                raise DataFolderUnusable(message, path=str(folder)) from error
            raise

    def _open(self, segment_entries: int) -> None:
        go_on_placing(self._folder)
        check_journal(self._folder)
        check_folder(self._folder)
        ledger_id = str(uuid.uuid4())

        def make(journal: Connection) -> None:
            journal.execute("INSERT INTO ledger VALUES (1, ?, 0, ?, 0)", (ledger_id, segment_entries))
            journal.execute("INSERT INTO head VALUES (1, 0, ?, 0)", (genesis_hash(ledger_id),))

        self._write = self._closed_at_end(open_writer(self._path, JOURNAL, make))
        self._read = self._closed_at_end(open_reader(self._path, JOURNAL))
        with translated("read"):
            self.ledger_id, self._segment_entries = only_row(
                self._read, "SELECT ledger_id, segment_entries FROM ledger", str, int
            )
            self.epochs = read_epochs(self._read)
            self._head = read_head(self._read)
        self._pending_head = self._head
        #: The entry among those being written with which an epoch begins, or None.
        self._begun_seq: int | None = None
        #: What is to be written once another process releases the lock of the file; None where nothing waits.
        self._waiting_rows: list[tuple[int, str, bytes]] | None = None
        #: Held while the head is noted, so that no note of an earlier head follows that of a later one.
        self._noting = threading.Lock()
        self._note = HeadNote(self._folder, self.ledger_id, self.epochs)
        self._closing.append(self._note.close)
        self._note.check(self._head.seq, self._hash_of)
        self.key_tables = SqliteKeyTables(self._folder / KEYS_FILE, self.ledger_id, self._note.keys_change)
        self._closing.append(self.key_tables.close)
        with translated("opened"):
            # A read must not rest on what the disk may lack: sync once before the first answer.
            self._write.execute("UPDATE ledger SET starts = starts + 1")
            self._write.set_busy_timeout(0)  # from now on it is used by the thread that serves
            # The triggers refuse what others might do to an entry. Here each would be asked again for every INSERT.
            self._write.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        self._sealing = None
        if self._segment_entries >= PROCESS_ENTRIES:
            self._sealing = SealingProcess(SEALING_MODULE, [str(self._path), str(self._folder / BOOKS_FILE)])
            self._closing.append(self._sealing.close)
        self.rebuilds = 0
        self._books = None
        self._suspected = self._preparing = None
        self._is_prepared = False
        self._closing.append(self._close_books)
        self._closing.append(self._end_preparing)
        self._build()
        self._note_head()
        self.key_tables.on_change = self._note_head

    def _closed_at_end(self, connection: Connection) -> Connection:
        self._closing.append(connection.close)
        return connection

    @property
    def noted_moment(self) -> Moment | None:
        """The trusted time that was noted last; None where none was."""
        return self._note.moment

    def note_time(self) -> None:
        """Note the head with the time as it is now, between two groups."""
        self._note_head()

    def _note_head(self) -> None:
        with self._noting:  # a change of access keys is noted by the thread that made it
            self._note.write(self._head, self.key_tables.change, self.moment())

    # --- the state of the head ----------------------------------------------------------------------

    @property
    def sealed_to(self) -> int:
        """The last entry that is read from the books."""
        return self._sealed_to

    @property
    def is_crowded(self) -> bool:
        """Whether memory has to shrink, which it can only between two groups."""
        return self._memory.is_crowded

    @property
    def repairs(self) -> Sequence[str]:
        """What was found damaged among what is derived, and made again, in words."""
        return tuple(self._repairs)

    def _build(self) -> None:
        """Build what memory holds from the files: from the books what is sealed, from the journal what is newer."""
        with translated("read"):
            self._head = read_head(self._read)
            self.epochs = self._note.epochs = read_epochs(self._read)
        self._pending_head = self._head
        self._repairs = []
        self._empty_memory()
        try:
            self._open_books()
            self._load()
            self._seal()
        except BooksDamaged as damage:
            self._rebuild(damage)

    def _empty_memory(self) -> None:
        self._digests = {}
        self._memory = WorkingSet(self._segment_entries, self._cache_accounts)
        self._filter = IdempotencyFilter(self._segment_entries)
        self._absorbing: Iterator[bytes] | None = None
        self._is_built = False
        self._sealed_to = 0
        self._due_cursor = (0, 0)
        self._next_due_ms = None

    def _load(self) -> None:
        """Fill memory: the coins, the filter, and what is not sealed of the journal; BooksDamaged is the caller's."""
        books = self._books
        assert books is not None, "they were opened"  # noqa: S101
        self._sealed_to = books.facts().sealed_to
        for coin in books.coins(self._sealed_to):
            self._memory.list_coin(coin)
        self._load_house_accounts(books)
        self._load_debtors(books)
        with checked():
            self._filter.load(books.filter_source(), self._sealed_to // self._segment_entries, self._digests_of)
        for repair in self._filter.repairs:
            _log.warning("%s", repair)
        self._repairs += self._filter.repairs
        self._replay(books)
        self._next_due_ms = books.next_due_ms(self._due_cursor)
        self._is_built = True

    def _digests_of(self, segment: int) -> Iterator[bytes]:
        books = self._need_books()
        for bucket, packed in books.key_buckets(ids_of_segment(segment)):
            for digest, _ in unpack_digests(OF_KEYS, bucket, packed):
                yield digest

    @gc_paused
    def _replay(self, books: Books) -> None:
        with translated("read"):
            last = self._read.execute("SELECT seq FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        last_seq = last[0][0] if last else 0
        if last_seq != self._head.seq:
            raise LedgerCorrupt(f"the journal is cut: its head is entry {self._head.seq}, its last entry {last_seq}")
        for start in range(self._sealed_to, self._head.seq, _REPLAY_ENTRIES):
            entries = self.entries(start, _REPLAY_ENTRIES)
            missing = {hold for entry in entries for hold, _ in entry.holds if self._memory.hold(hold) is None}
            self._memory.loaded_holds.update((hold.hold_id, hold) for hold in books.holds_of_ids(sorted(missing)))
            for entry in entries:
                self._memory.apply(entry)
        self._memory.loaded_holds.clear()
        if self._hash_of(self._head.seq) != self._head.hash:
            raise LedgerCorrupt(f"the hash of entry {self._head.seq}, the last, is not the one that the head has")

    def _hash_of(self, seq: int) -> bytes:
        if seq == 0:
            return genesis_hash(self.ledger_id)
        with translated("read"):
            rows = self._read.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchall()
        if not rows or not isinstance(rows[0][0], bytes):
            raise LedgerCorrupt(f"entry {seq} is missing from the journal, or has no hash")
        return rows[0][0]

    # --- sealing ------------------------------------------------------------------------------------

    def _seal(self, keys: int = ABSORBED_KEYS) -> None:
        """Have full segments sealed, and let go of what is sealed, with *keys* of it put into the filter."""
        if self._books is None or self._head.seq - self._sealed_to >= self._segment_entries:
            self._go_on_sealing(keys)

    def _go_on_sealing(self, keys: int) -> None:
        try:
            if self._books is None:
                self._go_on_rebuilding()
            elif self._sealing is None:
                self._seal_in_place()
            else:
                self._seal_beside(self._sealing, keys)
        except StoreUnavailable as problem:
            _log.warning("a segment could not be sealed: %s; it is tried again", problem)
        except BooksDamaged as damage:
            self._rebuild(damage)

    def _seal_in_place(self) -> None:
        """Seal what is full, as suits segments that are small."""
        full_to = self._head.seq // self._segment_entries * self._segment_entries
        self._seal_here()
        while self._sealed_to < full_to:
            self._absorb(self._segment_entries)

    def _seal_beside(self, process: SealingProcess, keys: int) -> None:
        """Have the process seal what is full, and take in a part of what it has sealed."""
        process.seal(self._head.seq // self._segment_entries - 1)
        process.poll()
        if process.sealed_segments * self._segment_entries > self._sealed_to:
            self._absorb(keys)

    def _absorb(self, keys: int) -> None:
        """Put keys of the oldest open segment, which is sealed, into the filter; drop the segment after the last."""
        segment = self._sealed_to // self._segment_entries
        opened = self._memory.segments[0]
        if self._absorbing is None:
            self._absorbing = iter(list(opened.keys))
        part = list(islice(self._absorbing, keys))
        self._filter.add(segment, part)
        if len(part) == keys:
            return
        self._absorbing = None
        self._filter.cover(segment)
        self._sealed_to += self._segment_entries
        self._memory.drop_sealed(self._sealed_to, self._due_cursor)
        self._next_due_ms = self._from_books(lambda books: books.next_due_ms(self._due_cursor))

    # --- what the rules ask for ---------------------------------------------------------------------

    def begin(self, wanted: Wanted, *, ahead: bool = False) -> Steps[None]:
        """Check that writing makes sense; this process is the only one that writes, and it has one clock."""
        self._check_note()
        if self._books is None or self._suspected is not None:
            self.go_on_rebuilding()
        if self._head.seq - self._sealed_to >= (UNSEALED_LIMIT + 1) * self._segment_entries:
            self._seal(IDLE_ABSORBED_KEYS)
            raise StoreBusy("sealing is behind; try again with the same idempotency key")
        self._memory.groups += 1
        return at_once(None)

    def _check_note(self) -> None:
        """Refuse to write after a commit whose head could not be noted."""
        if self._note.failure is not None:
            raise StoreUnavailable(f"{self._note.failure}; try again with the same idempotency key")

    def leave(self, *, repeated: bool = False, void: bool = False) -> Steps[None]:
        """Go on sealing: what was answered before is on the disk since then, or since the commit of the start."""
        self._seal(IDLE_ABSORBED_KEYS)
        self._memory.end_group(self._sealed_to)
        return at_once(None)

    # --- writing ------------------------------------------------------------------------------------

    def check_write_lock(self) -> None:
        """Do nothing: nobody else writes."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Append *entries*, which follow what was written before without a gap; nothing is visible yet."""
        self._check_note()
        before = self._pending_head
        previous = before.hash
        rows = []
        for entry in entries:
            body = encode_entry(entry)
            previous = chain_hash(previous, body)
            rows.append((entry.seq, body.decode(), previous))
        last = entries[-1]
        if last.kind == BEGIN_EPOCH:  # it is written alone
            self._begun_seq = last.seq
        if rows[0][0] != before.seq + 1 or last.seq != before.seq + len(entries):
            raise LedgerCorrupt(f"entries {rows[0][0]} to {last.seq} do not follow entry {before.seq}")
        self._pending_head = Head(last.seq, previous, last.booked_ms)
        with translated("written", checked=True):
            try:
                if before.seq == self._head.seq:
                    self._write.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                self._waiting_rows = []  # another process holds the lock: only the commit may wait for it
            if self._waiting_rows is not None:
                self._waiting_rows += rows
                return
            self._check_writing()
            self._write.executemany(_INSERT, rows)

    def commit(self) -> Steps[None]:
        """Make what was written durable: one step, which blocks until it is synced."""
        if self._waiting_rows is not None:
            yield self._write_late
        self._check_writing()
        yield self._sync

    def _write_late(self) -> None:
        """Wait for the lock that another process holds, in a thread where there is one, and write what waits for it."""
        assert self._waiting_rows is not None, "rows wait for the lock"  # noqa: S101
        with translated("written", checked=True):
            self._write.set_busy_timeout(BUSY_TIMEOUT_MS)
            try:
                self._write.execute("BEGIN IMMEDIATE")
            finally:
                self._write.set_busy_timeout(0)
            self._write.executemany(_INSERT, self._waiting_rows)
        self._waiting_rows = None

    def _check_writing(self) -> None:
        # SQLite ends a transaction by itself when the disk fails; what comes after must not be written without it.
        if not self._write.in_transaction:
            raise StoreUnavailable("the ledger could not be written: what was written before of the group is lost")

    def _sync(self) -> None:
        with translated("written", checked=True):
            self._write.execute("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", self._pending_head)
            if self._begun_seq is not None:
                self._write.execute("UPDATE ledger SET epoch_seq = ?", (self._begun_seq,))
            self._write.execute("COMMIT")
        self._begun_seq = None

    def try_writing(self) -> None:
        """Write and sync something that means nothing, between groups."""
        with translated("written", checked=True):
            # SQLite writes nothing where a value stays as it is.
            self._write.execute("UPDATE ledger SET starts = starts + 1")
        if self._note.failure is not None:
            self._note_head()

    def publish(self, entries: Sequence[Entry], decisions: Sequence[Decision] = ()) -> None:
        """Make the committed *entries* visible, and note the head."""
        memory, digests = self._memory, self._digests
        if decisions and memory.groups:  # no other memory has taken its place since the group began
            memory.take_group(entries, decisions, digests)
        else:
            for entry in entries:
                memory.apply(entry, digests.get(entry.key))
        if entries[-1].kind == BEGIN_EPOCH:
            self.epochs = self._note.epochs = epochs_after(entries[-1])
        self._head = self._pending_head
        self._note_head()
        self._seal(max(ABSORBED_KEYS, 2 * len(entries)))  # a segment is let go of before the next one is full
        memory.end_group(self._sealed_to)

    def recover(self) -> None:
        """Roll back what was written, and build memory from the files again."""
        self._begun_seq = None
        self._memory.groups = 0
        if self._waiting_rows is not None and not self._write.in_transaction:
            self._waiting_rows, self._pending_head = None, self._head  # the lock never came, so nothing was written
        if self._pending_head == self._head and not self._write.in_transaction:
            return  # nothing was written; and where the books are being made again, that goes on
        before = dict(vars(self))
        try:
            with translated("read"):
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                self._waiting_rows = None
                self._build()
        except BaseException:
            # The head and the coins stay those of the last acknowledged entry, not of a memory that is half built.
            vars(self).update(before)
            raise

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy the ledger to the empty file *target*, a few rows at a time, in a thread of its own."""
        sqlite_copy.copy_ledger(self._path, self._folder / KEYS_FILE, target, progress)

    def close(self) -> None:
        """Close the files; the write-ahead logs are folded into them where the disk allows."""
        with translated("closed"):
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
        self._close_all()

    def _close_all(self) -> None:
        while self._closing:
            self._closing.pop()()
