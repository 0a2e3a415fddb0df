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
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

from spotledger.domain.accounts import ACCOUNT_IDS, HOUSE_KIND, ZERO, Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import (
    DataFolderUnusable,
    JournalShorter,
    LedgerCorrupt,
    SchemaMismatch,
    StoreBusy,
    StoreUnavailable,
)
from spotledger.storage.base import Head, TrialBalance, Wanted
from spotledger.storage.encoding import chain_hash, decode_entry, encode_entry, genesis_hash, key_digest
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.idempotency_filter import IdempotencyFilter, probe_of
from spotledger.storage.sqlite import copy as sqlite_copy
from spotledger.storage.sqlite.books import Books
from spotledger.storage.sqlite.buckets import BooksDamaged, ids_of_segment, unpack_keys
from spotledger.storage.sqlite.file import (
    BOOKS_FILE,
    JOURNAL,
    JOURNAL_FILE,
    KEYS_FILE,
    Connection,
    open_reader,
    open_writer,
    translated,
)
from spotledger.storage.sqlite.keys import SqliteKeyTables
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, NotedHead
from spotledger.storage.sqlite.sealing import Sealer
from spotledger.storage.sqlite.sealing_process import SealingProcess
from spotledger.storage.sqlite.trial import trial_balance
from spotledger.storage.sqlite.wal import find_damage
from spotledger.storage.sqlite.working_set import AccountState, WorkingSet
from spotledger.storage.steps import Steps, at_once

#: The one file of the versions before 0.1 was finished.
OLD_FILE: Final = "ledger.db"
SEGMENT_ENTRIES: Final = 65_536
CACHE_ACCOUNTS: Final = 50_000
#: Smaller segments are sealed at once, where they are full; sealing a larger one takes a process of its own.
PROCESS_ENTRIES: Final = 4_096
#: Full segments that may wait for sealing before writes have to.
UNSEALED_LIMIT: Final = 4
#: Keys of a sealed segment that are put into the filter with each group.
ABSORBED_KEYS: Final = 500
NOTE_SYNC_SECONDS: Final = 1.0
_REPLAY_ENTRIES: Final = 1_000

T = TypeVar("T")
_log = logging.getLogger("spotledger.store")


class SqliteStore:
    """The embedded store in one folder; satisfies :class:`spotledger.storage.base.Store`."""

    remote = False

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
        _check_files(self._folder)
        ledger_id = str(uuid.uuid4())

        def make(journal: Connection) -> None:
            journal.execute("INSERT INTO ledger VALUES (1, ?, 1, ?, 0)", (ledger_id, segment_entries))
            journal.execute("INSERT INTO head VALUES (1, 0, ?, 0)", (genesis_hash(ledger_id),))

        self._write = self._closed_at_end(open_writer(self._path, JOURNAL, make))
        self._read = self._closed_at_end(open_reader(self._path, JOURNAL))
        with translated("read"):
            self.ledger_id, self.epoch, self._segment_entries = _only_row(
                self._read, "SELECT ledger_id, epoch, segment_entries FROM ledger"
            )
            self._head = Head(*_only_row(self._read, "SELECT seq, hash, booked_ms FROM head"))
        self._pending_head = self._head
        self._noted = _opened_note(self._folder / NOTE_FILE)
        self._closing.append(self._noted.close)
        self._check_note()
        self.key_tables = SqliteKeyTables(self._folder / KEYS_FILE, self.ledger_id, self._noted_keys_change)
        self._closing.append(self.key_tables.close)
        with translated("opened"):
            # A read must not rest on what the disk may lack: sync once before the first answer.
            self._write.execute("UPDATE ledger SET starts = starts + 1")
        self._note_failure: str | None = None
        self._sealing: SealingProcess | None = None
        if self._segment_entries >= PROCESS_ENTRIES:
            self._sealing = SealingProcess(self._path, self._folder / BOOKS_FILE)
            self._closing.append(self._sealing.close)
        #: How often the books were found damaged or missing, and made again.
        self.rebuilds = 0
        self._books: Books | None = None
        self._closing.append(self._close_books)
        self._build()
        self._note()
        self.key_tables.on_change = self._note
        self._syncer = _NoteSyncer(self._noted)
        self._closing.append(self._syncer.stop)

    def _closed_at_end(self, connection: Connection) -> Connection:
        self._closing.append(connection.close)
        return connection

    # --- what was noted -----------------------------------------------------------------------------

    @property
    def _noted_keys_change(self) -> int:
        return 0 if self._noted.note is None else self._noted.note.keys_change

    def _check_note(self) -> None:
        """Compare the journal with the note of its head."""
        note = self._noted.note
        if self._noted.damaged_slot is not None:
            _log.warning("slot %d of %s is damaged; the other one counts", self._noted.damaged_slot, self._noted.path)
        if note is None:
            if self._head.seq:
                _log.warning("%s is missing and was made again: what it would have shown is unknown", self._noted.path)
            return
        if (note.ledger_id, note.epoch) != (self.ledger_id, self.epoch):
            raise JournalShorter(
                f"{self._noted.path} is of the ledger {note.ledger_id}, epoch {note.epoch}; {self._path} is"
                f" {self.ledger_id}, epoch {self.epoch}. Put the right files together, or look at them with:"
                f" spotledger recover --data {self._folder}",
            )
        if note.seq > self._head.seq:
            raise JournalShorter(
                f"{self._path} ends with entry {self._head.seq}, but entry {note.seq} was acknowledged. Put the file"
                f" back that has it, or see what is missing with: spotledger recover --data {self._folder}",
                found=self._head.seq,
                noted=note.seq,
            )
        if self._hash_of(note.seq) != note.hash:
            raise LedgerCorrupt(f"entry {note.seq} of {self._path} is not the one that was acknowledged")

    def _note(self, time_ms: int = 0) -> None:
        """Note the head; a note that cannot be written stops the writes after this one."""
        head = self._head
        before = 0 if self._noted.note is None else self._noted.note.time_ms
        at_ms = max(head.booked_ms, time_ms, before)
        note = Note(self.ledger_id, self.epoch, head.seq, head.hash, at_ms, self.key_tables.change)
        try:
            self._noted.write(note)
        except OSError as problem:
            self._note_failure = f"the head could not be noted in {self._noted.path}: {problem.strerror}"
            _log.error("%s; writes stop", self._note_failure)
        else:
            self._note_failure = None

    def note_time(self, time_ms: int) -> None:
        """Note that it is *time_ms* now, in ms since 1970, while nothing is written."""
        self._note(time_ms)

    @property
    def noted_ms(self) -> int | None:
        """The time that was noted last, in ms since 1970; None where nothing was."""
        return None if self._noted.note is None else self._noted.note.time_ms

    # --- the state of the head ----------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last durable entry."""
        return self._head

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; another object after each listing."""
        return self._memory.coins

    @property
    def sealed_to(self) -> int:
        """The last entry that is read from the books."""
        return self._sealed_to

    @property
    def mended(self) -> Sequence[str]:
        """What was found damaged among what is derived, and made again, in words."""
        return tuple(self._mended)

    def _build(self) -> None:
        """Build what memory holds from the files: from the books what is sealed, from the journal what is newer."""
        with translated("read"):
            self._head = Head(*_only_row(self._read, "SELECT seq, hash, booked_ms FROM head"))
        self._pending_head = self._head
        #: The digests of the keys that were looked up last.
        self._digests: dict[str, bytes] = {}
        self._memory = WorkingSet(self._segment_entries, self._cache_accounts)
        self._filter = IdempotencyFilter(self._segment_entries)
        self._mended: list[str] = []
        self._absorbing: Iterator[bytes] | None = None
        self._is_built = False
        self._sealed_to = 0
        self._due_cursor = (0, 0)
        self._next_due_ms: int | None = None
        try:
            self._open_books()
            self._load()
        except BooksDamaged as damage:
            self._rebuild(damage)

    def _open_books(self) -> None:
        """Open the books and check that they fit the journal."""
        self._close_books()
        path = self._folder / BOOKS_FILE
        if find_damage(path.with_name(path.name + "-wal")) is not None:
            raise BooksDamaged("the write-ahead log of the books is damaged")
        if not path.exists():
            if self._head.seq < self._segment_entries:
                Sealer(self._path, path).close()
            else:
                raise BooksDamaged("there are no books")
        self._books = Books(path, self.ledger_id, self._segment_entries)
        facts = self._books.facts()
        if facts.sealed_to > self._head.seq or facts.sealed_hash != self._hash_of(facts.sealed_to):
            raise BooksDamaged(f"the books are sealed up to entry {facts.sealed_to} of another history")

    def _load(self) -> None:
        """Fill memory: the coins, the filter, and what is not sealed of the journal."""
        books = self._books
        assert books is not None, "they were opened"  # noqa: S101
        self._sealed_to = books.facts().sealed_to
        for coin in books.coins(self._sealed_to):
            self._memory.list_coin(coin)
        self._filter.load(books.filter_source(), self._sealed_to // self._segment_entries, self._digests_of)
        self._mended += self._filter.mended
        self._replay()
        self._next_due_ms = books.next_due_ms(self._due_cursor)
        self._is_built = True
        self._seal()

    def _digests_of(self, segment: int) -> Iterator[bytes]:
        books = self._need_books()
        for bucket, packed in books.key_buckets(ids_of_segment(segment)):
            for digest, _ in unpack_keys(bucket, packed):
                yield digest

    @gc_paused
    def _replay(self) -> None:
        with translated("read"):
            last = self._read.execute("SELECT seq FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        last_seq = last[0][0] if last else 0
        if last_seq != self._head.seq:
            raise LedgerCorrupt(f"the journal is cut: its head is entry {self._head.seq}, its last entry {last_seq}")
        for start in range(self._sealed_to, self._head.seq, _REPLAY_ENTRIES):
            entries = self.entries(start, _REPLAY_ENTRIES)
            self._load_holds({hold for entry in entries for hold, _ in entry.holds})
            for entry in entries:
                self._memory.apply(entry)
        if self._hash_of(self._head.seq) != self._head.hash:
            raise LedgerCorrupt(f"the hash of entry {self._head.seq}, the last, is not the one that the head has")

    def _hash_of(self, seq: int) -> bytes:
        if seq == 0:
            return genesis_hash(self.ledger_id)
        with translated("read"):
            rows = self._read.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchall()
        if not rows:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return bytes(rows[0][0])

    # --- books that are damaged ---------------------------------------------------------------------

    def _need_books(self) -> Books:
        """
        Return the books.

        Raises:
            StoreUnavailable: They are being made again; the message says how far that is.
        """
        if self._books is None:
            self._go_on_rebuilding()
        if self._books is None:
            sealed = 0 if self._sealing is None else self._sealing.sealed_segments
            raise StoreUnavailable(
                f"the books are being made again from the journal: {sealed} of"
                f" {self._head.seq // self._segment_entries} segments; try again with the same idempotency key"
            )
        return self._books

    def _from_books(self, read: Callable[[Books], T]) -> T:
        """Read from the books; where they do not check, begin to make them again."""
        try:
            return read(self._need_books())
        except BooksDamaged as damage:
            self._rebuild(damage)
            return read(self._need_books())

    def _rebuild(self, damage: BooksDamaged) -> None:
        """Throw the books away and make them again: at once where that is quick, else in the process that seals."""
        self.rebuilds += 1
        self._mended.append(f"{damage}; they were made again from the journal")
        _log.error("%s; they are made again from the journal", damage)
        self._close_books()
        if self._sealing is not None:
            self._sealing.close()
            self._sealing.sealed_segments = 0
        remove_books(self._folder)
        if self._sealing is None:
            self._seal_here()
            self._take_over_books()
        else:
            self._go_on_rebuilding()

    def _go_on_rebuilding(self) -> None:
        full = self._head.seq // self._segment_entries
        if self._sealing is None:
            return
        if full:
            self._sealing.seal(full - 1)
            self._sealing.poll()
        if self._sealing.sealed_segments >= full:
            if not full:
                Sealer(self._path, self._folder / BOOKS_FILE).close()
            self._take_over_books()

    def _take_over_books(self) -> None:
        """Open books that were made again; memory keeps what it has of the segments that are open."""
        self._open_books()
        if not self._is_built:
            self._load()

    def _close_books(self) -> None:
        books, self._books = self._books, None
        if books is not None:
            books.close()

    # --- sealing ------------------------------------------------------------------------------------

    def _seal(self, entries: int = 0) -> None:
        """Have full segments sealed, and let go of what is sealed, a little at a time."""
        full = self._head.seq // self._segment_entries
        if self._sealing is None:
            if full * self._segment_entries > self._sealed_to and self._books is not None:
                try:
                    self._seal_here()
                except StoreUnavailable as problem:
                    _log.warning("a segment could not be sealed: %s; it is tried again", problem)
                    return
                while self._sealed_to < full * self._segment_entries:
                    self._absorb(self._segment_entries)
            return
        if full * self._segment_entries > self._sealed_to and self._books is not None:
            self._sealing.seal(full - 1)
        self._sealing.poll()
        if self._sealing.sealed_segments * self._segment_entries > self._sealed_to:
            self._absorb(max(ABSORBED_KEYS, 2 * entries))  # so that it ends before the next segment is full

    def _seal_here(self) -> None:
        with closing(Sealer(self._path, self._folder / BOOKS_FILE)) as sealer:
            sealer.seal_all()

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

    def begin(self, wanted: Wanted) -> Steps[None]:
        """Check that writing makes sense; this process is the only one that writes, and it has one clock."""
        if self._note_failure is not None:
            raise StoreUnavailable(f"{self._note_failure}; try again with the same idempotency key")
        if not self._is_built:
            self._need_books()
        if self._head.seq - self._sealed_to >= (UNSEALED_LIMIT + 1) * self._segment_entries:
            self._seal()
            raise StoreBusy("sealing is behind; try again with the same idempotency key")
        return at_once(None)

    def leave(self, *, repeated: bool) -> Steps[None]:
        """Do nothing: what was answered before is on the disk since then, or since the commit of the start."""
        return at_once(None)

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each key that is known."""
        known, digests = {}, self._digests
        digests.clear()
        memory, sealed = self._memory, not self._filter.is_empty()
        for key in dict.fromkeys(keys):
            seq = memory.opened_by(key)
            if seq is None:
                digest = digests[key] = key_digest(key)
                seq = memory.key_seq(digest)
                if seq is not None:
                    self._check_key(seq, key, LedgerCorrupt)
                elif sealed:
                    seq = self._sealed_key(key, digest)
            if seq is not None:
                known[key] = seq
        return known

    def _sealed_key(self, key: str, digest: bytes) -> int | None:
        """Return the entry of the sealed segments that has *key*, or None."""
        segments = list(self._filter.segments_that_may_hold(probe_of(digest)))
        if not segments:
            return None

        def find(books: Books) -> int | None:
            seqs = books.seqs_of_digest(segments, digest)
            for seq in seqs:
                self._check_key(seq, key, BooksDamaged)
            return seqs[0] if seqs else None

        return self._from_books(find)

    def _check_key(self, seq: int, key: str, damage: type[LedgerCorrupt]) -> None:
        """Make sure that the entry *seq* has *key*: 128 bits of digest agree by damage only."""
        entry = self.entry(seq)
        if entry is None or entry.key != key:
            raise damage(f"entry {seq} has another idempotency key than the one by which it was found")

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Bring into memory what the rules will ask for, in a few queries whatever the number."""
        memory = self._memory
        unknown = [customer for customer in customers if not memory.has_customer(customer)]
        missing = []
        for account in accounts:
            state = memory.accounts.get(account)
            if state is None or not state.complete:
                missing.append(account)
        if unknown:
            found = self._from_books(lambda books: books.known_customers(unknown))
            memory.known_customers.update(dict.fromkeys(found))
        if missing:
            self._load_accounts(missing)
        self._load_holds(holds)

    def _load_accounts(self, accounts: Sequence[Account]) -> None:
        rows = self._from_books(lambda books: books.balances_of(accounts))
        states = {account: self._memory.state_of(account) for account in accounts}
        for account, coin, balance, seq in rows:
            state = states[account]
            # What an open segment has changed is newer than the books.
            state.by_coin.setdefault(coin, balance)
            state.changed_seq = max(state.changed_seq, seq)
        for state in states.values():
            state.complete = True

    def _load_holds(self, holds: Iterable[int]) -> None:
        missing = [hold_id for hold_id in holds if self._memory.hold(hold_id) is None]
        if missing:
            for hold in self._from_books(lambda books: books.holds_of_ids(missing)):
                self._memory.loaded_holds[hold.hold_id] = hold

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        if self._memory.has_customer(customer):
            return True
        self.load([customer], (), ())
        self._memory.shrink(self._sealed_to)
        return self._memory.has_customer(customer)

    def account(self, account: Account) -> AccountState:
        """Return the account as it stands at the head."""
        state = self._memory.accounts.get(account)
        if state is None or not state.complete:
            self._load_accounts([account])
            state = self._memory.accounts[account]
            self._memory.shrink(self._sealed_to)
        return state

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands at the head."""
        hold = self._memory.hold(hold_id)
        if hold is None and hold_id <= self._sealed_to:
            hold = next(iter(self._from_books(lambda books: books.holds_of_ids([hold_id]))), None)
        return hold

    # --- other reads --------------------------------------------------------------------------------

    def balances_at(self, account: Account, seq: int) -> dict[str, Balance]:
        """Return the balances of the account as they stood after the entry *seq*, at most the head's."""
        found: dict[str, Balance] = {}
        wanted = set(self.account(account).balances)
        for coin in wanted:
            touch = self._memory.last_touch(account, coin, seq)
            if touch is None:
                touch = self._sealed_touch(account, coin, min(seq, self._sealed_to))
            if touch is not None:
                found[coin] = self._balance_after(touch, account, coin)
        return {coin: found.get(coin, ZERO) for coin in sorted(wanted) if coin in found}

    def _sealed_touch(self, account: Account, coin: str, seq: int) -> int | None:
        return self._from_books(lambda books: books.last_touch(account, coin, seq)) if seq else None

    def _balance_after(self, seq: int, account: Account, coin: str) -> Balance:
        """Return what the account has of *coin* after the entry *seq*, which touched it."""
        entry = self.entry(seq)
        for after in entry.balances if entry is not None else ():
            if after.account == account and after.coin == coin:
                return Balance(after.available, after.freeze)
        raise LedgerCorrupt(f"entry {seq} does not say what {account.customer} has of {coin} after it")

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer* with ids above *after*, in order of their ids."""
        changed = self._memory.changed_holds_of(customer)
        found: list[Hold] = []
        sealed_to = self._sealed_to
        sealed = self._sealed_holds(customer, state == "open", after, sealed_to)
        newer = (changed[hold_id] for hold_id in sorted(changed) if hold_id > max(after, sealed_to))
        for hold in chain(sealed, newer):
            current = changed.get(hold.hold_id, hold)
            if state in (None, current.state):
                found.append(current)
            if len(found) == limit:
                break
        return found

    def _sealed_holds(self, customer: str, only_open: bool, after: int, sealed_to: int) -> Iterator[Hold]:
        """Give the holds of *customer* that sealed segments opened, as the books have them, in order."""

        def read(books: Books) -> list[Hold]:
            if only_open:
                return books.open_holds_of_customer(customer, after, sealed_to)
            return books.holds_of_customer(customer, after)

        while page := [hold for hold in self._from_books(read) if hold.hold_id <= sealed_to]:
            yield from page
            after = page[-1].hold_id

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds of anybody that were opened at or before *before_ms*, in order of their ids."""
        found: list[Hold] = []
        for hold in chain(self._sealed_open_holds(after), self._memory.holds_opened_after(max(after, self._sealed_to))):
            if hold.opened_ms > before_ms or len(found) == limit:
                break
            current = self._memory.hold(hold.hold_id) or hold
            if current.closed_seq is None:
                found.append(current)
        return found

    def _sealed_open_holds(self, after: int) -> Iterator[Hold]:
        def read(books: Books) -> list[Hold]:
            return books.open_holds(after, self._sealed_to)

        while page := self._from_books(read):
            yield from page
            after = page[-1].hold_id

    def trial_balance(self) -> TrialBalance:
        """Add up all that is durable. Blocks; may run in another thread while others write."""
        self._need_books()
        return trial_balance(self._path, self._folder / BOOKS_FILE)

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return ids of open holds whose time has come, *limit* at the most; the others at the next call."""
        due: dict[int, Hold] = {}
        while len(due) < limit and (hold_id := self._memory.pop_due(now_ms)) is not None:
            self._add_if_open(hold_id, due)
        while len(due) < limit and self._next_due_ms is not None and now_ms >= self._next_due_ms:
            rows = self._from_books(lambda books: books.due_rows(self._due_cursor, now_ms, limit - len(due)))
            self._due_cursor = rows[-1] if rows else self._due_cursor
            self._next_due_ms = self._from_books(lambda books: books.next_due_ms(self._due_cursor))
            for _, hold_id in rows:
                self._add_if_open(hold_id, due)
        for hold in due.values():
            self._memory.watch_overdue(hold)
        return list(due)

    def _add_if_open(self, hold_id: int, due: dict[int, Hold]) -> None:
        hold = self.hold(hold_id)
        if hold is not None and hold.remaining:
            due[hold_id] = hold

    def customers(self, after: str, limit: int) -> list[str]:
        """Return customers in the order of their ids."""
        names = set(self._from_books(lambda books: books.customers_after(after, limit)))
        for segment in self._memory.segments:
            names.update(name for name in segment.customers if name > after)
        return sorted(names)[:limit]

    def entry(self, seq: int) -> Entry | None:
        """Return one entry; None where the journal does not go that far."""
        found = self.entries(seq - 1, 1) if seq > 0 else []
        return found[0] if found else None

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """
        Return entries in order; none that is not yet acknowledged.

        Raises:
            LedgerCorrupt: One is missing, is another one, or does not fit the chain of hashes.
        """
        last = min(after_seq + limit, self._head.seq)
        if last <= after_seq:
            return []
        with translated("read"):
            rows = self._read.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq",
                (after_seq, last),
            ).fetchall()
        return [decode_entry(body) for body in checked_bodies(rows, after_seq, last, self.ledger_id)]

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        found = self._memory.reversal_of(seq)
        if found is None:
            found = self._from_books(lambda books: books.reversal_of(seq))
        return found

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 where there is none."""
        if time_ms >= self._head.booked_ms:
            return self._head.seq
        return bisect_right(range(1, self._head.seq), time_ms, key=self._booked_ms)

    def _booked_ms(self, seq: int) -> int:
        with translated("read"):
            rows = self._read.execute("SELECT body ->> '$.booked_ms' FROM entry WHERE seq = ?", (seq,)).fetchall()
        if not rows:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return int(rows[0][0])

    def account_seqs(self, owners: Sequence[str], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that touched accounts of any of *owners*, in order."""
        accounts = [Account(owner, kind) for owner in owners for kind in (*ACCOUNT_IDS, HOUSE_KIND)]
        found: list[int] = []
        sealed_to = self._sealed_to
        for segment in self._from_books(lambda books: books.segments_of(accounts, coin)):
            first = segment * self._segment_entries + 1
            if first > sealed_to or first + self._segment_entries <= after_seq + 1:
                continue
            places: set[int] = set()
            for owner in owners:
                places |= self._from_books(lambda books: books.places(segment, owner, coin, after_seq - first))  # noqa: B023
            found += [first + place for place in sorted(places)]
            if len(found) >= limit:
                return found[:limit]
        return (found + sorted(self._memory.seqs_touching(owners, coin, after_seq)))[:limit]

    # --- writing ------------------------------------------------------------------------------------

    def check_write_lock(self) -> None:
        """Do nothing: nobody else writes."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Append *entries*, which follow what was written before without a gap; nothing is visible yet."""
        before = self._pending_head
        previous = before.hash
        rows = []
        for entry in entries:
            body = encode_entry(entry)
            previous = chain_hash(previous, body)
            rows.append((entry.seq, body.decode(), previous))
        last = entries[-1]
        if rows[0][0] != before.seq + 1 or last.seq != before.seq + len(entries):
            raise LedgerCorrupt(f"entries {rows[0][0]} to {last.seq} do not follow entry {before.seq}")
        self._pending_head = Head(last.seq, previous, last.booked_ms)
        with translated("written"):
            if before.seq == self._head.seq:
                self._write.execute("BEGIN IMMEDIATE")
            self._check_writing()
            self._write.executemany("INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)", rows)

    def commit(self) -> Steps[None]:
        """Make what was written durable: one step, which blocks until it is synced."""
        self._check_writing()
        with translated("written"):
            self._write.execute("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", self._pending_head)
        yield self._sync

    def _check_writing(self) -> None:
        # SQLite ends a transaction by itself when the disk fails; what comes after must not be written without it.
        if not self._write.in_transaction:
            raise StoreUnavailable("the ledger could not be written: what was written before of the group is lost")

    def _sync(self) -> None:
        with translated("written"):
            self._write.execute("COMMIT")

    def try_writing(self) -> None:
        """Write and sync something that means nothing, between groups."""
        with translated("written"):
            # SQLite writes nothing where a value stays as it is.
            self._write.execute("UPDATE ledger SET starts = starts + 1")
        if self._note_failure is not None:
            self._note()

    def publish(self, entries: Sequence[Entry]) -> None:
        """Make the committed *entries* visible, and note the head."""
        memory, digests = self._memory, self._digests
        for entry in entries:
            memory.apply(entry, digests.get(entry.key))
        self._head = self._pending_head
        self._note()
        self._seal(len(entries))
        memory.loaded_holds.clear()
        memory.shrink(self._sealed_to)

    def recover(self) -> None:
        """Roll back what was written, and build memory from the files again."""
        if self._is_built and self._pending_head == self._head and not self._write.in_transaction:
            return  # nothing was written
        before = vars(self).copy()
        try:
            with translated("read"):
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
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


class _NoteSyncer:
    """A thread that has the disk take the note once a second."""

    def __init__(self, noted: NotedHead) -> None:
        self._noted = noted
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="note-sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(NOTE_SYNC_SECONDS):
            try:
                self._noted.sync()
            except OSError as problem:
                _log.warning("the noted head could not be synced: %s", problem.strerror)

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()


def checked_bodies(rows: Sequence[tuple[Any, ...]], after_seq: int, last: int, ledger_id: str) -> Iterator[bytes]:
    """
    Give the bodies of the entries after *after_seq* up to *last*.

    Args:
        rows: ``seq``, body and hash of the entries from *after_seq* to *last*; there is no entry 0.
        after_seq: The entry before the first that is wanted.
        last: The last one.
        ledger_id: The ledger, whose id begins the chain.

    Raises:
        LedgerCorrupt: One is missing, is another one, or does not fit the chain of hashes.
    """
    expected = range(max(after_seq, 1), last + 1)
    found = [row[0] for row in rows]
    if found != list(expected):
        missing = next((seq for seq in expected if seq not in set(found)), last)
        raise LedgerCorrupt(f"entry {missing} is missing from the journal")
    link = rows[0][2] if after_seq else genesis_hash(ledger_id)
    for seq, body, kept_hash in rows[1 if after_seq else 0 :]:
        link = chain_hash(link, body)
        if kept_hash != link:
            raise LedgerCorrupt(f"entry {seq} does not fit the chain of hashes")
        yield body


def remove_books(folder: Path) -> None:
    """Remove the books in *folder*, and their log; they can be made again."""
    for suffix in ("", "-wal", "-shm"):
        (folder / f"{BOOKS_FILE}{suffix}").unlink(missing_ok=True)


def _check_files(folder: Path) -> None:
    """Refuse a ledger of an earlier form, and a log that is damaged, before SQLite opens anything."""
    journal = folder / JOURNAL_FILE
    if (folder / OLD_FILE).exists() and not journal.exists():
        raise SchemaMismatch(
            f"{folder / OLD_FILE} is a ledger in one file, of a version before 0.1 was finished, which this spotledger"
            " does not read. Export it with the version that wrote it, or start in another folder.",
            path=str(folder),
        )
    for name in (JOURNAL_FILE, KEYS_FILE):
        log = folder / f"{name}-wal"
        damage = find_damage(log)
        if damage is not None:
            raise JournalShorter(
                f"{log} is damaged at byte {damage.offset} (frame {damage.frame}): {damage.reason}. SQLite would take"
                " it for the end, and lose what was acknowledged after it. Put the file back, or see what is missing"
                f" with: spotledger recover --data {folder}",
                path=str(log),
                offset=damage.offset,
            )


def _opened_note(path: Path) -> NotedHead:
    try:
        return NotedHead(path)
    except OSError as problem:
        raise StoreUnavailable(f"{path} cannot be used: {problem.strerror}") from problem


def _only_row(connection: Connection, query: str) -> tuple[Any, ...]:
    rows = connection.execute(query).fetchall()
    if len(rows) != 1:
        raise LedgerCorrupt(f"the journal has {len(rows)} rows where there is one: {query}")
    return tuple(rows[0])
