"""
Sealing: writing to the books what follows from one full segment of the journal.

The sealer needs nothing but the journal. An entry carries the balances after it, so adding up its postings is an
independent check of what the writer had in memory. A segment is written in one transaction, the next one that the books
lack, so a sealing that was cut off has not happened.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, Final

from spotledger.domain.accounts import Account
from spotledger.errors import LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.base import BooksDamaged
from spotledger.storage.encoding import (
    EntryChanges,
    chain_hash,
    column,
    decode_changes,
    genesis_hash,
    key_digest,
    pack_places,
)
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.idempotency_filter import IdempotencyFilter
from spotledger.storage.segment_sums import (
    HOLD_CLOSED_SEQ,
    HOLD_CUSTOMER,
    HOLD_EXPIRES_MS,
    HOLD_REMAINING,
    Before,
    LineName,
    SegmentSums,
)
from spotledger.storage.sqlite.books import (
    BALANCE_COLUMNS,
    HOLD_COLUMNS,
    Books,
    checked,
    pack_segments,
    read_facts,
)
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    OF_KEYS,
    OF_REFERENCES,
    SEGMENT_BUCKETS,
    HistoryLine,
    HoldsOpened,
    RowSum,
    by_bucket,
    ids_of_segment,
    owner_bucket,
    pack_digests,
    pack_history,
    unpack_digests,
)
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, Connection, only_row, open_reader, open_writer, translated
from spotledger.storage.sqlite.journal import entry_rows, read_head

_READ_ENTRIES: Final = 1_000


class Sealer:
    """Seals the segments of one journal, one after the other, into one file of books."""

    def __init__(self, journal: Path, books: Path) -> None:
        """
        Open the *journal* to read and the *books* to write; the latter are made where they are not there.

        Raises:
            LedgerCorrupt: The journal is damaged.
            BooksDamaged: The books are, or they are of another ledger.
            StoreUnavailable: The disk is in the way.
        """
        self._segment_entries: int
        self.sealed_to: int
        self._link: bytes
        self._books_path = books
        self._journal = open_reader(journal, JOURNAL)
        try:
            with translated("read"):
                self._ledger_id, self._segment_entries = only_row(
                    self._journal, "SELECT ledger_id, segment_entries FROM ledger", str, int
                )
            self._books = open_writer(books, BOOKS, self._make, is_synced=False)
        except SchemaMismatch as error:
            self._journal.close()
            raise BooksDamaged(str(error)) from error
        except BaseException:
            self._journal.close()
            raise
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close both files."""
        self._journal.close()
        self._books.close()

    @property
    def sealed_segments(self) -> int:
        """How many segments are in the books."""
        return self.sealed_to // self._segment_entries

    def _make(self, books: Connection) -> None:
        nothing = RowSum().kept()
        books.execute(
            "INSERT INTO books VALUES (1, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
            (self._ledger_id, self._segment_entries, genesis_hash(self._ledger_id), *nothing, *nothing, *nothing),
        )

    def _start(self) -> None:
        with checked():
            facts = read_facts(self._books)
            if (facts.ledger_id, facts.segment_entries) != (self._ledger_id, self._segment_entries):
                raise BooksDamaged(f"the books are of the ledger {facts.ledger_id}, not of {self._ledger_id}")
            self.sealed_to, self._link = facts.sealed_to, facts.sealed_hash
            self._coins = RowSum(facts.coins, facts.coins_digest)
            self._reversals = RowSum(facts.reversals, facts.reversals_digest)
            self._buckets = RowSum(facts.buckets, facts.buckets_digest)
            self._counts = [facts.customers, facts.open_holds, facts.expiring_holds]
            self._filter = IdempotencyFilter(self._segment_entries)
            self._filter.load(self._books, self.sealed_segments, self._digests_of)

    def _digests_of(self, segment: int) -> Iterator[bytes]:
        ids = ids_of_segment(segment)
        rows = self._books.execute(
            "SELECT id, packed FROM key_bucket WHERE id BETWEEN ? AND ?", (ids[0], ids[-1])
        ).fetchall()
        if [bucket for bucket, _ in rows] != list(ids):
            raise BooksDamaged(f"keys of segment {segment} are missing")
        for bucket, packed in rows:
            for digest, _ in unpack_digests(OF_KEYS, bucket, packed):
                yield digest

    def seal_all(self) -> None:
        """Seal every full segment; raises like :meth:`seal_next`."""
        for _ in range(self.sealed_segments, self.full_segments()):
            self.seal_next()

    def full_segments(self) -> int:
        """Return how many segments of the journal are full."""
        with translated("read"):
            head = read_head(self._journal)
        return head.seq // self._segment_entries

    @gc_paused
    def seal_next(self) -> None:
        """
        Seal the next segment, which is full.

        Raises:
            BooksDamaged: What the books have does not check, or does not fit the journal.
            LedgerCorrupt: The journal is damaged, or an entry carries other balances than its postings lead to.
            StoreUnavailable: The disk is in the way, or another process has sealed the segment meanwhile.
        """
        segment = self.sealed_segments
        before = (self.sealed_to, self._link)
        try:
            with checked():
                self._begin()
                sums = self._read_segment(segment)
                _SegmentWriter(self._books, sums, segment, self._link, self).write()
                self._books.execute("COMMIT")
        except BaseException:
            self.sealed_to, self._link = before
            if self._books.in_transaction:
                self._books.execute("ROLLBACK")
            raise

    def _begin(self) -> None:
        """Begin to write, and make sure that the segment is the next one."""
        self._books.execute("BEGIN IMMEDIATE")
        found = read_facts(self._books).sealed_to
        if found > self.sealed_to:
            raise StoreUnavailable(f"another process has sealed up to entry {found} meanwhile")
        if found != self.sealed_to:
            raise BooksDamaged(f"the books are sealed to entry {found}, where entry {self.sealed_to} was the last")

    # --- reading the journal ------------------------------------------------------------------------

    def _read_segment(self, segment: int) -> SegmentSums:
        """Read the entries of *segment*, each of which is checked, and return what they add up to."""
        first, last = segment * self._segment_entries + 1, (segment + 1) * self._segment_entries
        sums = SegmentSums(_RowsOfBooks(self._books), first)
        for start in range(first, last + 1, _READ_ENTRIES):
            entries = self._read(start, min(start + _READ_ENTRIES - 1, last))
            sums.load(entries)
            for entry in entries:
                try:
                    sums.take(entry)
                except LedgerCorrupt:
                    self._check_beginning(entry)
                    raise
        self.sealed_to = last
        return sums

    def _check_beginning(self, entry: EntryChanges) -> None:
        """Raise BooksDamaged where *entry*, which contradicts its postings, was added to rows that do not check."""
        with closing(Books(self._books_path, self._ledger_id, self._segment_entries)) as books:
            books.balances_of([Account(*account) for account, _, _, _ in entry.balances])
            books.holds_of_ids([hold for hold, _ in entry.holds])

    def _read(self, first: int, last: int) -> list[EntryChanges]:
        rows = entry_rows(self._journal, first, last)
        if len(rows) != last - first + 1:
            raise LedgerCorrupt(f"of the entries {first} to {last} some are missing from the journal")
        entries, link = [], self._link
        for expected, (seq, body, kept_hash) in enumerate(rows, first):
            link = chain_hash(link, body)
            entry = decode_changes(body)
            if not seq == expected == entry.seq or kept_hash != link:
                raise LedgerCorrupt(f"the journal's chain is broken at entry {expected}")
            entries.append(entry)
        self._link = link
        return entries


class _RowsOfBooks:
    """The rows of the books before the segment that is sealed; satisfies `RowsBefore`."""

    def __init__(self, books: Connection) -> None:
        self._books = books

    def lines(self, names: Iterable[LineName]) -> dict[LineName, Before]:
        found = {}
        for (customer, kind), coin in names:
            rows = self._books.execute(
                f"SELECT {BALANCE_COLUMNS} FROM balance WHERE bucket = ? AND customer = ? AND account = ? AND coin = ?",
                (owner_bucket(customer), customer, kind, coin),
            ).fetchall()
            if rows:
                found[(customer, kind), coin] = Before(int(rows[0][4]), int(rows[0][5]), rows[0])
        return found

    def holds(self, ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            marks = ", ".join("?" * len(part))
            yield from self._books.execute(f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id IN ({marks})", tuple(part))


class _SegmentWriter:
    """Writes the rows of one segment."""

    def __init__(self, books: Connection, sums: SegmentSums, segment: int, link: bytes, sealer: Sealer) -> None:
        self._books = books
        self._sums = sums
        self._link = link
        self._sealer = sealer
        self._segment = segment
        self._first_seq = sums.first_seq
        self._owner_sums = BucketSums(books, "owner_bucket")
        self._hold_sums = BucketSums(books, "hold_bucket")
        self._owner_buckets = {
            customer: owner_bucket(customer) for customer in {account[0] for account, _ in sums.lines}
        }

    def write(self) -> None:
        """Write everything, and that it is sealed."""
        self._write_digests("key_bucket", OF_KEYS, zip(self._sums.keys, count(), strict=False))
        references = [(key_digest(reference), place) for reference, place in self._sums.references]
        self._write_digests("reference_bucket", OF_REFERENCES, references)
        self._write_history()
        self._write_names()
        self._write_balances()
        self._write_holds()
        sealer = self._sealer
        self._owner_sums.write(sealer._buckets)
        self._hold_sums.write(sealer._buckets)
        sealer._filter.add(self._segment, self._sums.keys)
        for _ in sealer._filter.write(self._books, self._segment):
            pass
        self._books.execute(
            "UPDATE books SET sealed_to = ?, sealed_hash = ?, coins = ?, coins_digest = ?, reversals = ?,"
            " reversals_digest = ?, buckets = ?, buckets_digest = ?, customers = ?, open_holds = ?, expiring_holds = ?",
            (
                *(sealer.sealed_to, self._link, *sealer._coins.kept(), *sealer._reversals.kept()),
                *(*sealer._buckets.kept(), *sealer._counts),
            ),
        )

    def _write_digests(self, table: str, kind: bytes, digests: Iterable[tuple[bytes, int]]) -> None:
        self._books.executemany(
            f"INSERT INTO {table} VALUES (?, ?)",
            [(bucket, pack_digests(kind, bucket, rows)) for bucket, rows in by_bucket(self._segment, digests)],
        )

    def _write_history(self) -> None:
        lines: list[list[HistoryLine]] = [[] for _ in range(SEGMENT_BUCKETS)]
        for ((owner, kind), coin), line in sorted(self._sums.lines.items()):
            bucket = self._owner_buckets[owner] % SEGMENT_BUCKETS
            lines[bucket].append(HistoryLine(owner, kind, coin, pack_places(line.places)))
        opened: dict[str, array[int]] = {}
        for hold_id, hold in self._sums.holds.items():
            if hold_id >= self._first_seq:
                places = opened.get(hold[HOLD_CUSTOMER])
                if places is None:
                    places = opened[hold[HOLD_CUSTOMER]] = array("H")
                places.append(hold_id - self._first_seq)
        holds: list[list[HoldsOpened]] = [[] for _ in range(SEGMENT_BUCKETS)]
        for customer, places in sorted(opened.items()):
            holds[self._owner_buckets[customer] % SEGMENT_BUCKETS].append(HoldsOpened(customer, pack_places(places)))
        self._books.executemany(
            "INSERT INTO history_bucket VALUES (?, ?)",
            [
                (bucket, pack_history(bucket, lines[number], holds[number]))
                for number, bucket in enumerate(ids_of_segment(self._segment))
            ],
        )

    def _write_names(self) -> None:
        sums, sealer = self._sums, self._sealer
        for coin in sums.coins:
            sealer._coins.add("coin", coin)
        for reversal in sums.reversals:
            sealer._reversals.add("reversal", reversal)
        customers = sorted((owner_bucket(customer), customer, seq) for customer, seq in sums.customers)
        for row in customers:
            self._owner_sums.of(row[0]).add("customer", row)
        sealer._counts[0] += len(customers)
        self._books.executemany("INSERT INTO coin VALUES (?, ?, ?)", sums.coins)
        self._books.executemany("INSERT INTO reversal VALUES (?, ?)", sums.reversals)
        self._books.executemany("INSERT INTO customer VALUES (?, ?, ?)", customers)

    def _write_balances(self) -> None:
        rows = []
        own_segment = pack_segments([self._segment])
        buckets = self._owner_buckets
        for (account, coin), line in self._sums.lines.items():
            bucket, before = buckets[account[0]], line.before
            sums = self._owner_sums.of(bucket)
            segments = own_segment
            if before is not None:
                sums.remove("balance", before.row)
                segments = before.row[7] + own_segment
            last_seq = self._first_seq + line.places[-1]
            row = (bucket, *account, coin, column(line.available), column(line.freeze), last_seq, segments)
            sums.add("balance", row)
            rows.append(row)
        rows.sort()
        self._books.executemany("INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _write_holds(self) -> None:
        counts, holds_before = self._sealer._counts, self._sums.holds_before
        new, changed = [], []
        for hold_id, row in sorted(self._sums.holds.items()):
            sums = self._hold_sums.of(hold_id // HOLD_BUCKET_IDS)
            row[HOLD_REMAINING] = column(row[HOLD_REMAINING])
            more_open = int(row[HOLD_CLOSED_SEQ] is None)
            before = holds_before.get(hold_id)
            if before is None:
                new.append(row)
            else:
                more_open -= 1
                sums.remove("hold", before)
                changed.append((row[HOLD_REMAINING], row[HOLD_CLOSED_SEQ], hold_id))
            sums.add("hold", row)
            counts[1] += more_open
            if row[HOLD_EXPIRES_MS] is not None:
                counts[2] += more_open
        self._books.executemany("UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", changed)
        self._books.executemany("INSERT INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new)


class BucketSums:
    """The counts and digests of the buckets of one table that a sealing changes."""

    def __init__(self, books: Connection, table: str) -> None:
        self._books = books
        self._table = table
        self._sums: dict[int, RowSum] = {}
        #: What was kept of the buckets that were there before.
        self._kept: dict[int, tuple[int, bytes]] = {}

    def of(self, bucket: int) -> RowSum:
        """Return the sum of *bucket*, to be changed."""
        found = self._sums.get(bucket)
        if found is None:
            rows = self._books.execute(f"SELECT rows, digest FROM {self._table} WHERE bucket = ?", (bucket,)).fetchall()
            found = self._sums[bucket] = RowSum(*rows[0]) if rows else RowSum()
            if rows:
                self._kept[bucket] = rows[0]
        return found

    def write(self, buckets: RowSum) -> None:
        """Write what was changed, and keep up the sum of all *buckets*."""
        for bucket, kept in self._kept.items():
            buckets.remove(self._table, (bucket, *kept))
        for bucket, found in self._sums.items():
            buckets.add(self._table, (bucket, *found.kept()))
        self._books.executemany(
            f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?, ?)",
            [(bucket, *found.kept()) for bucket, found in sorted(self._sums.items())],
        )
