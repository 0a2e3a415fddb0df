"""
The embedded store: one SQLite file, in which the journal is written first and everything else later.

A commit only appends entries and moves the head; what they change is in memory (:mod:`working_set`). Every full
segment is sealed (:mod:`sealing`) in small steps, as part of later commits. A start replays the entries that are not
sealed.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

from spotledger.domain.accounts import ZERO, Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import DataFolderUnusable, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head, TrialBalance, Wanted
from spotledger.storage.encoding import chain_hash, decode_entry, encode_entry, genesis_hash, key_digest
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.idempotency_filter import IdempotencyFilter, probe_of
from spotledger.storage.sqlite import copy as sqlite_copy, file as sqlite_file, reads as sqlite_reads
from spotledger.storage.sqlite.file import translated
from spotledger.storage.sqlite.keys import SqliteKeyTables
from spotledger.storage.sqlite.sealing import Sealer
from spotledger.storage.sqlite.trial import trial_balance
from spotledger.storage.sqlite.working_set import AccountState, WorkingSet
from spotledger.storage.steps import Steps, at_once

SEGMENT_ENTRIES: Final = 65_536
CACHE_ACCOUNTS: Final = 50_000
_REPLAY_ENTRIES: Final = 1_000

_log = logging.getLogger(__name__)


class SqliteStore:
    """The embedded store on one file; satisfies :class:`spotledger.storage.base.Store`."""

    remote = False

    def __init__(
        self, path: Path, *, segment_entries: int = SEGMENT_ENTRIES, cache_accounts: int = CACHE_ACCOUNTS
    ) -> None:
        """
        Open the ledger file at *path*, or create it.

        Args:
            path: The file; its folder has to exist.
            segment_entries: Entries in a segment of a new file; an existing file keeps its own number.
            cache_accounts: How many unchanged accounts may stay in memory.

        Raises:
            DataFolderUnusable: The file can neither be read nor created, or the disk is full.
            SchemaMismatch: It is not a ledger, or of another version.
            LedgerCorrupt: The part of the journal that is not sealed is damaged.
        """
        self._path = path
        self._cache_accounts = cache_accounts
        try:
            self._write, self._read = sqlite_file.open_file(path, segment_entries)
            try:
                self.key_tables = SqliteKeyTables(self._write, self._read)
                with translated("opened"):
                    # Sync before the first answer: the last commit before a crash may be visible and not yet on disk.
                    self._write.execute("UPDATE ledger SET starts = starts + 1")
                    self._build()
            except BaseException:
                self._write.close()
                self._read.close()
                raise
        except StoreUnavailable as error:
            raise DataFolderUnusable(f"The ledger {path} cannot be used: {error.message}.", path=str(path)) from error

    # --- the state of the head ----------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last durable entry."""
        return self._head

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; a new object after each listing."""
        return self._memory.coins

    def _build(self) -> None:
        """Build memory from the file: the coins, the filter, and the entries that are not sealed."""
        self.ledger_id, self.epoch, self._segment_entries, self._sealed_to = sqlite_reads.ledger_row(self._read)
        self._head = sqlite_reads.head_row(self._read)
        self._pending_head = self._head
        #: The digests of the keys of the last :meth:`find_keys`.
        self._digests: dict[str, bytes] = {}
        self._memory = WorkingSet(self._segment_entries, self._cache_accounts)
        for coin in sqlite_reads.coin_rows(self._read, self._sealed_to):
            self._memory.list_coin(coin)
        self._filter = IdempotencyFilter(self._segment_entries)
        self._filter.load(self._read, self._sealed_to // self._segment_entries)
        for repair in self._filter.repairs:
            _log.warning("%s", repair)
        self._replay()
        self._due_cursor = (0, 0)
        self._next_due_ms = sqlite_reads.next_due_ms(self._read, self._due_cursor)
        self._sealer = Sealer(self._write, self._filter, self._memory, self._segment_entries, self._sealed_to)
        self._sealer.begin(self._head.seq, self._head.seq)

    @gc_paused
    def _replay(self) -> None:
        last_seq = self._read.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchone()[0]
        if last_seq != self._head.seq:
            raise LedgerCorrupt(f"the journal is cut: its head is entry {self._head.seq}, its last entry {last_seq}")
        seq, previous = self._sealed_to, self._hash_of(self._sealed_to)
        rows = self._read.execute("SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? ORDER BY seq", (seq,))
        while batch := rows.fetchmany(_REPLAY_ENTRIES):
            entries = []
            for found, body, kept_hash in batch:
                seq += 1
                previous = chain_hash(previous, body)
                entry = decode_entry(body)
                if not found == seq == entry.seq or kept_hash != previous:
                    raise LedgerCorrupt(f"the journal's chain is broken at entry {seq}")
                entries.append(entry)
            self._load_holds({hold for entry in entries for hold, _ in entry.holds})
            for entry in entries:
                self._memory.apply(entry)
        if previous != self._head.hash:
            raise LedgerCorrupt(f"the hash of the last entry, {seq}, is not that of the head")

    def _hash_of(self, seq: int) -> bytes:
        if seq == 0:
            return genesis_hash(self.ledger_id)
        row = self._read.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return bytes(row[0])

    # --- what the rules read ------------------------------------------------------------------------

    def begin(self, wanted: Wanted) -> Steps[None]:
        """Do nothing: this process is the only writer, and has one clock."""
        return at_once(None)

    def leave(self, *, repeated: bool) -> Steps[None]:
        """Do nothing: what was answered before is synced."""
        return at_once(None)

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each of *keys* that is known."""
        known, digests = {}, self._digests
        digests.clear()
        memory, sealed = self._memory, not self._filter.is_empty()
        for key in dict.fromkeys(keys):
            seq = memory.opened_by(key)
            if seq is None:
                digest = digests[key] = key_digest(key)
                seq = memory.key_seq(digest)
                if seq is not None or sealed:
                    seq = self._confirmed(key, digest, seq)
            if seq is not None:
                known[key] = seq
        return known

    def _confirmed(self, key: str, digest: bytes, open_seq: int | None) -> int | None:
        """Return the entry with *key* among those whose keys have the same *digest*, or None."""
        if open_seq is not None and self._has_key(open_seq, key):
            return open_seq
        segments = list(self._filter.segments_that_may_hold(probe_of(digest)))
        if not segments:
            return None
        with translated("read"):
            for seq in sqlite_reads.seqs_of_digest(self._read, segments, digest):
                if self._has_key(seq, key):
                    return seq
        return None

    def _has_key(self, seq: int, key: str) -> bool:
        entry = self.entry(seq)
        return entry is not None and entry.key == key

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Load what the rules will read, in a few queries however much it is."""
        memory, states = self._memory, self._memory.accounts
        missing = [a for a in accounts if (state := states.get(a)) is None or not state.complete]
        unknown = [customer for customer in customers if not memory.has_customer(customer)]
        with translated("read"):
            if unknown:
                memory.known_customers.update(
                    dict.fromkeys(sqlite_reads.known_customers(self._read, unknown, self._sealed_to))
                )
            if missing:
                self._load_accounts(missing)
            self._load_holds(holds)

    def _load_accounts(self, accounts: Sequence[Account]) -> None:
        states = {account: self._memory.state_of(account) for account in accounts}
        for account, coin, balance, seq in sqlite_reads.balances_of(self._read, accounts):
            state = states[account]
            # The balance of an open segment is newer than that of the table.
            state.by_coin.setdefault(coin, balance)
            state.changed_seq = max(state.changed_seq, seq)
        for state in states.values():
            state.complete = True

    def _load_holds(self, holds: Iterable[int]) -> None:
        missing = [hold_id for hold_id in holds if self._memory.hold(hold_id) is None]
        if missing:
            for hold in sqlite_reads.holds_of_ids(self._read, missing):
                self._memory.loaded_holds[hold.hold_id] = hold

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""
        if self._memory.has_customer(customer):
            return True
        self.load([customer], (), ())
        self._memory.shrink(self._sealed_to)
        return self._memory.has_customer(customer)

    def account(self, account: Account) -> AccountState:
        """Return the account at the head."""
        state = self._memory.accounts.get(account)
        if state is None or not state.complete:
            with translated("read"):
                self._load_accounts([account])
            state = self._memory.accounts[account]
            self._memory.shrink(self._sealed_to)
        return state

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None."""
        hold = self._memory.hold(hold_id)
        if hold is None:
            with translated("read"):
                hold = next(iter(sqlite_reads.holds_of_ids(self._read, [hold_id])), None)
        return hold

    # --- other reads --------------------------------------------------------------------------------

    def balances_at(self, account: Account, seq: int) -> dict[str, Balance]:
        """Return the balances of the account after the entry *seq*, which is at most the head."""
        found: dict[str, Balance] = {}
        wanted = set(self.account(account).balances)
        with translated("read"):
            for coin in list(wanted):
                touch = self._memory.last_touch(account, coin, seq)
                if touch is not None:
                    found[coin] = self._balance_after(touch, account, coin)
            last = min(seq, self._sealed_to)
            for segment in range((last - 1) // self._segment_entries, -1, -1):
                if found.keys() >= wanted:
                    break
                first = segment * self._segment_entries + 1
                for coin, place in sqlite_reads.touches_in_segment(self._read, segment, account, seq - first):
                    if coin not in found:
                        found[coin] = self._balance_after(first + place, account, coin)
        return {coin: found.get(coin, ZERO) for coin in sorted(wanted) if coin in found}

    def _balance_after(self, seq: int, account: Account, coin: str) -> Balance:
        """Return the balance after the entry *seq*, which changed it."""
        entry = self.entry(seq)
        for after in entry.balances if entry is not None else ():
            if after.account == account and after.coin == coin:
                return Balance(after.available, after.freeze)
        raise LedgerCorrupt(f"entry {seq} has no balance of {coin} of {account.customer}, which it changed")

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer*, ``open``, ``closed`` or both (None), with ids above *after*, by id."""
        changed = self._memory.changed_holds_of(customer)
        found: list[Hold] = []
        sealed = self._pages(
            lambda after: sqlite_reads.holds_of_customer(
                self._read, customer, after, state == "open", self._sealed_to, self._segment_entries
            ),
            after,
        )
        newer = (changed[hold_id] for hold_id in sorted(changed) if hold_id > max(after, self._sealed_to))
        for hold in chain(sealed, newer):
            current = changed.get(hold.hold_id, hold)
            if state in (None, current.state):
                found.append(current)
            if len(found) == limit:
                break
        return found

    def _pages(self, read_page: Callable[[int], list[Hold]], after: int) -> Iterator[Hold]:
        """Yield the holds above *after* of all the pages that *read_page* returns."""
        while True:
            with translated("read"):
                page = read_page(after)
            yield from page
            if not page:
                return
            after = page[-1].hold_id

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds with ids above *after* that were opened up to *before_ms*, by id."""
        found: list[Hold] = []
        sealed = self._pages(lambda after: sqlite_reads.open_holds(self._read, after, self._sealed_to), after)
        for hold in chain(sealed, self._memory.holds_opened_after(max(after, self._sealed_to))):
            if hold.opened_ms > before_ms or len(found) == limit:
                break
            current = self._memory.hold(hold.hold_id) or hold
            if current.closed_seq is None:
                found.append(current)
        return found

    def trial_balance(self) -> TrialBalance:
        """Add up all durable balances. Blocks; may run in another thread beside writes."""
        return trial_balance(self._path)

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return the ids of at most *limit* open holds that expire by *now_ms*; the next call returns the others."""
        due: dict[int, Hold] = {}
        while len(due) < limit and (hold_id := self._memory.pop_due(now_ms)) is not None:
            self._add_if_open(hold_id, due)
        while len(due) < limit and self._next_due_ms is not None and now_ms >= self._next_due_ms:
            with translated("read"):
                rows = sqlite_reads.due_rows(self._read, self._due_cursor, now_ms, limit - len(due))
                self._due_cursor = rows[-1] if rows else self._due_cursor
                self._next_due_ms = sqlite_reads.next_due_ms(self._read, self._due_cursor)
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
        """Return customers with ids above *after*, by id."""
        with translated("read"):
            names = set(sqlite_reads.customers_after(self._read, after, limit))
        for segment in self._memory.segments:
            names.update(name for name in segment.customers if name > after)
        return sorted(names)[:limit]

    def entry(self, seq: int) -> Entry | None:
        """Return one entry, or None."""
        found = self.entries(seq - 1, 1) if seq > 0 else []
        return found[0] if found else None

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """Return durable entries after *after_seq*, in order."""
        with translated("read"):
            rows = self._read.execute(
                "SELECT CAST(body AS BLOB) FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after_seq, self._head.seq, limit),
            ).fetchall()
        return [decode_entry(body) for (body,) in rows]

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        found = self._memory.reversal_of(seq)
        if found is None:
            with translated("read"):
                found = sqlite_reads.reversal_of(self._read, seq, self._sealed_to)
        return found

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 if there is none."""
        if time_ms >= self._head.booked_ms:
            return self._head.seq
        with translated("read"):
            return bisect_right(range(1, self._head.seq), time_ms, key=partial(sqlite_reads.booked_ms, self._read))

    def account_seqs(self, owners: Sequence[str], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that changed an account of *owners*, in order."""
        found: list[int] = []
        sealed_segments = self._sealed_to // self._segment_entries
        with translated("read"):
            for segment in range(after_seq // self._segment_entries, sealed_segments):
                first = segment * self._segment_entries + 1
                places = sqlite_reads.places_in_segment(self._read, segment, owners, coin, after_seq - first)
                found += [first + place for place in places]
                if len(found) >= limit:
                    return found[:limit]
        return (found + sorted(self._memory.seqs_touching(owners, coin, after_seq)))[:limit]

    # --- writing ------------------------------------------------------------------------------------

    def check_write_lock(self) -> None:
        """Do nothing: there is no other writer."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Append *entries*, which follow the last write without a gap; they are not visible yet."""
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
        with translated("written", checked=True):
            if before.seq == self._head.seq:
                self._write.execute("BEGIN IMMEDIATE")
            self._check_writing()
            self._write.executemany("INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)", rows)
        self.catch_up()

    @property
    def lagging(self) -> bool:
        """Whether sealing is behind its pace and should go on before the commit."""
        return self._sealer.is_lagging(self._pending_head.seq)

    def catch_up(self) -> None:
        """Seal for a few milliseconds if it is behind, as part of the commit that is being written."""
        with translated("written", checked=True):
            self._sealer.catch_up(self._head.seq, self._pending_head.seq)

    def commit(self) -> Steps[None]:
        """Make the written entries durable, in one step that blocks until they are synced."""
        self._check_writing()
        with translated("written", checked=True):
            self._write.execute("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", self._pending_head)
        yield self._sync

    def _check_writing(self) -> None:
        # SQLite rolls back by itself when the disk fails; the rest of the group must not be written then.
        if not self._write.in_transaction:
            raise StoreUnavailable("the ledger could not be written: SQLite rolled back the first part of the group")

    def _sync(self) -> None:
        with translated("written"):
            self._write.execute("COMMIT")

    def try_writing(self) -> None:
        """Write and sync something without a meaning, between groups."""
        with translated("written"):
            # SQLite writes nothing if a value does not change.
            self._write.execute("UPDATE ledger SET starts = starts + 1")

    def publish(self, entries: Sequence[Entry]) -> None:
        """Make the committed *entries* visible."""
        memory, digests = self._memory, self._digests
        for entry in entries:
            memory.apply(entry, digests.get(entry.key))
        self._head = self._pending_head
        if self._sealed_to != self._sealer.sealed_to:
            self._sealed_to = self._sealer.sealed_to
            memory.drop_sealed(self._sealed_to, self._due_cursor)
            with translated("read"):
                self._next_due_ms = sqlite_reads.next_due_ms(self._read, self._due_cursor)
        self._sealer.begin(self._head.seq, self._pending_head.seq)
        memory.loaded_holds.clear()
        memory.shrink(self._sealed_to)

    def recover(self) -> None:
        """Roll back, and rebuild memory from the journal."""
        before = vars(self).copy()
        try:
            with translated("read"):
                if self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                self._build()
        except BaseException:
            # Keep the head and the coins of the last acknowledged entry, not those of a memory that is half built.
            vars(self).update(before)
            raise

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy the file to the empty file *target*, a few pages at a time. Blocks; use a thread."""
        sqlite_copy.copy_pages(self._write, target, progress)

    def close(self) -> None:
        """Close the file; SQLite checkpoints the write-ahead log if the disk allows."""
        with translated("closed"):
            if self._write.in_transaction:
                self._write.execute("ROLLBACK")
            self._read.close()
            self._write.close()
