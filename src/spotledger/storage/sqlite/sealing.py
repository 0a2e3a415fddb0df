"""
Sealing: writing to the books what follows from one full segment of the journal.

The sealer needs nothing but the journal. An entry carries the balances after it, so adding up its postings is an
independent check of what the writer had in memory. A segment is written in one transaction, the next one that the books
lack, so a sealing that was cut off has not happened.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from spotledger.domain.accounts import Account, Coin
from spotledger.domain.journal import AVAILABLE, Entry, Hold
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import chain_hash, column, decode_entry, genesis_hash, pack_places
from spotledger.storage.idempotency_filter import IdempotencyFilter
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, HOLD_COLUMNS, checked, pack_segments, read_facts
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    BooksDamaged,
    HistoryLine,
    HoldsOpened,
    RowSum,
    history_id,
    ids_of_segment,
    key_id,
    owner_bucket,
    pack_history,
    pack_keys,
    unpack_keys,
)
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, Connection, open_reader, open_writer, translated
from spotledger.storage.sqlite.working_set import OpenSegment, WorkingSet

_READ_ENTRIES: Final = 1_000
_Line = tuple[Account, str]


class Sealer:
    """Seals the segments of one journal, one after the other, into one file of books."""

    def __init__(self, journal: Path, books: Path) -> None:
        """
        Open the *journal* to read and the *books* to write; the latter are made where they are not there.

        Raises:
            LedgerCorrupt: One of them is damaged, or the books are of another ledger.
            StoreUnavailable: The disk is in the way.
        """
        self._segment_entries: int
        self.sealed_to: int
        self._link: bytes
        self._journal = open_reader(journal, JOURNAL)
        try:
            with translated("read"):
                [(self._ledger_id, self._segment_entries)] = self._journal.execute(
                    "SELECT ledger_id, segment_entries FROM ledger"
                ).fetchall()
            self._books = open_writer(books, BOOKS, self._make, is_synced=False)
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
            self._known = WorkingSet(self._segment_entries, 0)
            for name, scale in self._books.execute("SELECT coin, scale FROM coin"):
                self._known.list_coin(Coin(name, scale))

    def _digests_of(self, segment: int) -> Iterator[bytes]:
        ids = ids_of_segment(segment)
        rows = self._books.execute(
            "SELECT id, packed FROM key_bucket WHERE id BETWEEN ? AND ?", (ids[0], ids[-1])
        ).fetchall()
        if [bucket for bucket, _ in rows] != list(ids):
            raise BooksDamaged(f"keys of segment {segment} are missing")
        for bucket, packed in rows:
            for digest, _ in unpack_keys(bucket, packed):
                yield digest

    def seal_all(self) -> None:
        """Seal every full segment; raises like :meth:`seal_next`."""
        for _ in range(self.sealed_segments, self.full_segments()):
            self.seal_next()

    def full_segments(self) -> int:
        """Return how many segments of the journal are full."""
        with translated("read"):
            [(head_seq,)] = self._journal.execute("SELECT seq FROM head").fetchall()
        return int(head_seq) // self._segment_entries

    def seal_next(self) -> None:
        """
        Seal the next segment, which is full.

        Raises:
            BooksDamaged: What the books have does not check, or does not fit the journal.
            LedgerCorrupt: The journal is damaged, or an entry carries other balances than its postings lead to.
            StoreUnavailable: The disk is in the way.
        """
        segment = self.sealed_segments
        before = (self.sealed_to, self._link)
        try:
            with checked():
                self._begin()
                opened = self._read_segment(segment)
                _SegmentWriter(self._books, opened, self._link, self).write()
                self._books.execute("COMMIT")
        except BaseException:
            self.sealed_to, self._link = before
            if self._books.in_transaction:
                self._books.execute("ROLLBACK")
            raise
        self._known.drop_sealed(self.sealed_to, (0, 0))
        self._known.accounts.clear()
        self._known.loaded_holds.clear()

    def _begin(self) -> None:
        """Begin to write, and make sure that the segment is the next one."""
        self._books.execute("BEGIN IMMEDIATE")
        found = read_facts(self._books).sealed_to
        if found != self.sealed_to:
            raise BooksDamaged(f"the books are sealed to entry {found}, where entry {self.sealed_to} was the last")

    # --- reading the journal ------------------------------------------------------------------------

    def _read_segment(self, segment: int) -> OpenSegment:
        """Read the entries of *segment*, each of which is checked, and return what they changed."""
        first, last = segment * self._segment_entries + 1, (segment + 1) * self._segment_entries
        check = _BalanceCheck(self._books)
        for start in range(first, last + 1, _READ_ENTRIES):
            entries = self._read(start, min(start + _READ_ENTRIES - 1, last))
            self._load_holds({hold for entry in entries for hold, _ in entry.holds if hold < first})
            for entry in entries:
                check.take(entry)
                self._known.apply(entry)
        self.sealed_to = last
        return self._known.segments[-1]

    def _read(self, first: int, last: int) -> list[Entry]:
        with translated("read"):
            rows = self._journal.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
            ).fetchall()
        if len(rows) != last - first + 1:
            raise LedgerCorrupt(f"of the entries {first} to {last} some are missing from the journal")
        entries = []
        for expected, (seq, body, kept_hash) in enumerate(rows, first):
            self._link = chain_hash(self._link, body)
            entry = decode_entry(body)
            if not seq == expected == entry.seq or kept_hash != self._link:
                raise LedgerCorrupt(f"the journal's chain is broken at entry {expected}")
            entries.append(entry)
        return entries

    def _load_holds(self, ids: set[int]) -> None:
        missing = sorted(hold_id for hold_id in ids if self._known.hold(hold_id) is None)
        for start in range(0, len(missing), 500):
            part = missing[start : start + 500]
            marks = ", ".join("?" * len(part))
            for row in self._books.execute(f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id IN ({marks})", tuple(part)):
                hold_id, customer, kind, coin, amount, remaining, *rest = row
                hold = Hold(hold_id, Account(customer, kind), coin, int(amount), int(remaining), *rest)
                self._known.loaded_holds[hold_id] = hold


class _BalanceCheck:
    """Adds up the postings of entries, and compares the sums with the balances that the entries carry."""

    def __init__(self, books: Connection) -> None:
        self._books = books
        self._lines: dict[_Line, list[int]] = {}

    def take(self, entry: Entry) -> None:
        """
        Add up one entry.

        Raises:
            LedgerCorrupt: It carries other balances than its postings lead to.
        """
        for account, coin, side, units, _ in entry.postings:
            line = self._lines.get((account, coin))
            if line is None:
                line = self._lines[account, coin] = self._opening(account, coin)
            line[side != AVAILABLE] += units
        for account, coin, available, freeze in entry.balances:
            if self._lines.get((account, coin)) != [available, freeze]:
                raise LedgerCorrupt(
                    f"entry {entry.seq} says that {account.customer} has {available} and {freeze} units of {coin} after"
                    f" it; its postings lead to {self._lines.get((account, coin))}"
                )

    def _opening(self, account: Account, coin: str) -> list[int]:
        rows = self._books.execute(
            'SELECT available, "freeze" FROM balance WHERE bucket = ? AND customer = ? AND account = ? AND coin = ?',
            (owner_bucket(account.customer), *account, coin),
        ).fetchall()
        return [int(rows[0][0]), int(rows[0][1])] if rows else [0, 0]


class _SegmentWriter:
    """Writes the rows of one segment."""

    def __init__(self, books: Connection, opened: OpenSegment, link: bytes, sealer: Sealer) -> None:
        self._books = books
        self._opened = opened
        self._link = link
        self._sealer = sealer
        self._segment = opened.number
        self._first_seq = opened.first_seq
        self._owner_sums = _BucketSums(books, "owner_bucket")
        self._hold_sums = _BucketSums(books, "hold_bucket")

    def write(self) -> None:
        """Write everything, and that it is sealed."""
        self._write_keys()
        self._write_history()
        self._write_names()
        self._write_balances()
        self._write_holds()
        sealer = self._sealer
        self._owner_sums.write(sealer._buckets)
        self._hold_sums.write(sealer._buckets)
        sealer._filter.add(self._segment, self._opened.keys)
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

    def _write_keys(self) -> None:
        buckets: dict[int, list[tuple[bytes, int]]] = {bucket: [] for bucket in ids_of_segment(self._segment)}
        for digest, seq in self._opened.keys.items():
            buckets[key_id(self._segment, digest)].append((digest, seq - self._first_seq))
        self._books.executemany(
            "INSERT INTO key_bucket VALUES (?, ?)",
            [(bucket, pack_keys(bucket, sorted(keys))) for bucket, keys in buckets.items()],
        )

    def _write_history(self) -> None:
        lines: dict[int, list[HistoryLine]] = defaultdict(list)
        holds: dict[int, list[HoldsOpened]] = defaultdict(list)
        for (owner, account), touched in self._opened.touched.items():
            bucket = history_id(self._segment, owner)
            lines[bucket] += (
                HistoryLine(owner, account, coin, pack_places(line.places)) for coin, line in touched.items()
            )
        for customer, ids in self._opened.holds_of.items():
            places = array("H", [hold_id - self._first_seq for hold_id in ids if hold_id >= self._first_seq])
            if places:
                holds[history_id(self._segment, customer)].append(HoldsOpened(customer, pack_places(places)))
        self._books.executemany(
            "INSERT INTO history_bucket VALUES (?, ?)",
            [
                (bucket, pack_history(bucket, sorted(lines[bucket]), sorted(holds[bucket])))
                for bucket in ids_of_segment(self._segment)
            ],
        )

    def _write_names(self) -> None:
        opened, sealer = self._opened, self._sealer
        for coin in opened.coins:
            sealer._coins.add("coin", coin)
        for reversal in opened.reversals.items():
            sealer._reversals.add("reversal", reversal)
        customers = sorted((owner_bucket(customer), customer, seq) for customer, seq in opened.customers.items())
        for row in customers:
            self._owner_sums.of(row[0]).add("customer", row)
        sealer._counts[0] += len(customers)
        self._books.executemany("INSERT INTO coin VALUES (?, ?, ?)", opened.coins)
        self._books.executemany("INSERT INTO reversal VALUES (?, ?)", list(opened.reversals.items()))
        self._books.executemany("INSERT INTO customer VALUES (?, ?, ?)", customers)

    def _write_balances(self) -> None:
        rows = []
        own_segment = pack_segments([self._segment])
        touched = self._opened.touched
        keys = sorted((owner_bucket(a.customer), a, coin) for a, coins in touched.items() for coin in coins)
        for bucket, account, coin in keys:
            line, sums = touched[account][coin], self._owner_sums.of(bucket)
            before = self._books.execute(
                f"SELECT {BALANCE_COLUMNS} FROM balance WHERE bucket = ? AND customer = ? AND account = ? AND coin = ?",
                (bucket, *account, coin),
            ).fetchall()
            segments = own_segment
            if before:
                sums.remove("balance", before[0])
                segments = before[0][7] + own_segment
            available, freeze = line.closing
            last_seq = self._first_seq + line.places[-1]
            row = (bucket, *account, coin, column(available), column(freeze), last_seq, segments)
            sums.add("balance", row)
            rows.append(row)
        self._books.executemany("INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def _write_holds(self) -> None:
        counts = self._sealer._counts
        new: list[tuple[Any, ...]] = []
        for hold_id, hold in sorted(self._opened.holds.items()):
            row, sums = _hold_row(hold), self._hold_sums.of(hold_id // HOLD_BUCKET_IDS)
            was_open = hold_id < self._first_seq
            if was_open:
                before = self._books.execute(
                    f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id = ?", (hold_id,)
                ).fetchall()
                if not before:
                    raise BooksDamaged(f"hold {hold_id} is missing")
                sums.remove("hold", before[0])
                self._books.execute(
                    "UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", (row[5], row[9], hold_id)
                )
            else:
                new.append(row)
            sums.add("hold", row)
            change = (hold.closed_seq is None) - was_open
            counts[1] += change
            counts[2] += change if hold.expires_ms is not None else 0
        self._books.executemany("INSERT INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new)


class _BucketSums:
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


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    hold_id, (customer, kind), coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq = hold
    left = column(remaining)
    return (hold_id, customer, kind, coin, column(amount), left, reference, expires_ms, opened_ms, closed_seq)
