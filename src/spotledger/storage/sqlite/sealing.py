"""
Sealing: writing to the books what follows from one full segment of the journal.

The sealer needs nothing but the journal. An entry carries the balances after it, so adding up its postings is an
independent check of what the writer had in memory. A segment is written in one transaction, the next one that the books
lack, so a sealing that was cut off has not happened.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from spotledger.domain.accounts import Account
from spotledger.domain.journal import AVAILABLE
from spotledger.domain.operations import Freeze, ListCoin, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt, SchemaMismatch, StoreUnavailable
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
from spotledger.storage.sqlite.books import (
    BALANCE_COLUMNS,
    HOLD_COLUMNS,
    Books,
    BucketSums,
    checked,
    pack_segments,
    read_facts,
)
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    SEGMENT_BUCKETS,
    BooksDamaged,
    HistoryLine,
    HoldsOpened,
    RowSum,
    ids_of_segment,
    keys_by_bucket,
    owner_bucket,
    pack_history,
    pack_keys,
    unpack_keys,
)
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, Connection, only_row, open_reader, open_writer, translated
from spotledger.storage.sqlite.journal import entry_rows, read_head

_READ_ENTRIES: Final = 1_000
#: Columns of a row of the table of holds, by their place in `HOLD_COLUMNS`.
_CUSTOMER: Final = 1
_REMAINING: Final = 5
_EXPIRES_MS: Final = 7
_CLOSED_SEQ: Final = 9


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
            for digest, _ in unpack_keys(bucket, packed):
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
                _SegmentWriter(self._books, sums, self._link, self).write()
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

    def _read_segment(self, segment: int) -> _SegmentSums:
        """Read the entries of *segment*, each of which is checked, and return what they add up to."""
        first, last = segment * self._segment_entries + 1, (segment + 1) * self._segment_entries
        sums = _SegmentSums(self._books, segment, first)
        for start in range(first, last + 1, _READ_ENTRIES):
            entries = self._read(start, min(start + _READ_ENTRIES - 1, last))
            sums.load_holds({hold for entry in entries for hold, _ in entry.holds if hold < first})
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


class _Line:
    """One account and coin: the row that the books have, what the postings add up to, and the entries' places."""

    __slots__ = ("available", "before", "freeze", "places")

    def __init__(self, before: tuple[Any, ...] | None) -> None:
        self.before = before
        self.available, self.freeze = (0, 0) if before is None else (int(before[4]), int(before[5]))
        self.places = array("H")


class _Lines(dict[tuple[tuple[str, str], str], _Line]):
    """The lines that a segment moves, by account (customer, kind) and coin; a new one begins as the books have it."""

    def __init__(self, books: Connection) -> None:
        super().__init__()
        self._books = books

    def __missing__(self, key: tuple[tuple[str, str], str]) -> _Line:
        account, coin = key
        rows = self._books.execute(
            f"SELECT {BALANCE_COLUMNS} FROM balance WHERE bucket = ? AND customer = ? AND account = ? AND coin = ?",
            (owner_bucket(account[0]), *account, coin),
        ).fetchall()
        line = self[key] = _Line(rows[0] if rows else None)
        return line


class _SegmentSums:
    """
    What the entries of one segment add up to.

    Balances and what remains of holds are added up from the postings, and compared with what each entry says is there
    after it. So what the writer had in memory is checked by a second path.
    """

    def __init__(self, books: Connection, number: int, first_seq: int) -> None:
        self._books = books
        self.number = number
        self.first_seq = first_seq
        #: The digests of the idempotency keys, in the order of the entries.
        self.keys: list[bytes] = []
        self.coins: list[tuple[str, int, int]] = []
        self.customers: list[tuple[str, int]] = []
        self.reversals: list[tuple[int, int]] = []
        self.lines = _Lines(books)
        #: Rows of the table of holds, as the segment leaves them; and as the books have them.
        self.holds: dict[int, list[Any]] = {}
        self.holds_before: dict[int, tuple[Any, ...]] = {}

    def load_holds(self, ids: set[int]) -> None:
        """Read those of the holds with these *ids*, of earlier segments, that were not read yet."""
        missing = sorted(ids - self.holds.keys())
        for start in range(0, len(missing), 500):
            part = missing[start : start + 500]
            marks = ", ".join("?" * len(part))
            for row in self._books.execute(f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id IN ({marks})", tuple(part)):
                self.holds_before[row[0]] = row
                self.holds[row[0]] = hold = list(row)
                hold[_REMAINING] = int(hold[_REMAINING])

    def take(self, entry: EntryChanges) -> None:
        """
        Add up one entry.

        Raises:
            LedgerCorrupt: It says that after it there is something else, of a balance or a hold, than its postings
                lead to.
        """
        self.keys.append(key_digest(entry.key))
        if entry.refusal is not None:
            return
        if entry.postings or entry.balances:
            try:
                self._take_postings(entry)
            except (IndexError, KeyError) as error:
                raise LedgerCorrupt(
                    f"entry {entry.seq} names a balance or a hold that is not there: {error}"
                ) from error
        kind = entry.kind
        if kind == Reverse.kind:
            self.reversals.append((_named(entry, "seq"), entry.seq))
        elif kind == ListCoin.kind:
            self.coins.append((_named(entry, "coin"), _named(entry, "scale"), entry.seq))
        elif kind == RegisterCustomer.kind:
            self.customers.append((_named(entry, "customer"), entry.seq))

    def _take_postings(self, entry: EntryChanges) -> None:
        balances, postings, holds = entry.balances, entry.postings, self.holds
        seq = entry.seq
        if entry.kind == Freeze.kind:
            holds[seq] = _opened_hold(entry)
        known = self.lines
        lines = [known[account, coin] for account, coin, _, _ in balances]
        for place, side, units, hold in postings:
            if side == AVAILABLE:
                lines[place].available += units
            else:
                lines[place].freeze += units
            if hold is not None:
                holds[hold][_REMAINING] += units
        seq_place = seq - self.first_seq
        for line, (_, _, available, freeze) in zip(lines, balances, strict=True):
            if line.available != available or line.freeze != freeze:
                raise _contradiction(entry, lines.index(line), line)
            line.places.append(seq_place)
        for hold, remaining in entry.holds:
            row = holds[hold]
            if row[_REMAINING] != remaining:
                raise LedgerCorrupt(
                    f"entry {seq} says that hold {hold} has {remaining} units left after it; its postings lead to"
                    f" {row[_REMAINING]}"
                )
            row[_CLOSED_SEQ] = None if remaining else seq


def _opened_hold(entry: EntryChanges) -> list[Any]:
    """Return the row of the hold that *entry* opens; what remains of it, its postings will say."""
    place, _, units, _ = entry.postings[1]
    (customer, kind), coin, _, _ = entry.balances[place]
    seq, request = entry.seq, entry.request
    reference, expires_ms = request.reference, request.expires_ms
    return [seq, customer, kind, coin, column(units), 0, reference, expires_ms, entry.booked_ms, None]


def _named(entry: EntryChanges, field: str) -> Any:
    """Return a field of the request that its kind has to have."""
    value = getattr(entry.request, field)
    if value is None:
        raise LedgerCorrupt(f"entry {entry.seq}, a {entry.kind}, names no {field}")
    return value


def _contradiction(entry: EntryChanges, place: int, line: _Line) -> LedgerCorrupt:
    (customer, _), coin, available, freeze = entry.balances[place]
    return LedgerCorrupt(
        f"entry {entry.seq} says that {customer} has {available} and {freeze} units of {coin} after"
        f" it; its postings lead to {line.available} and {line.freeze}"
    )


class _SegmentWriter:
    """Writes the rows of one segment."""

    def __init__(self, books: Connection, sums: _SegmentSums, link: bytes, sealer: Sealer) -> None:
        self._books = books
        self._sums = sums
        self._link = link
        self._sealer = sealer
        self._segment = sums.number
        self._first_seq = sums.first_seq
        self._owner_sums = BucketSums(books, "owner_bucket")
        self._hold_sums = BucketSums(books, "hold_bucket")
        self._owner_buckets = {
            customer: owner_bucket(customer) for customer in {account[0] for account, _ in sums.lines}
        }

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

    def _write_keys(self) -> None:
        self._books.executemany(
            "INSERT INTO key_bucket VALUES (?, ?)",
            [(bucket, pack_keys(bucket, keys)) for bucket, keys in keys_by_bucket(self._segment, self._sums.keys)],
        )

    def _write_history(self) -> None:
        lines: list[list[HistoryLine]] = [[] for _ in range(SEGMENT_BUCKETS)]
        for ((owner, kind), coin), line in sorted(self._sums.lines.items()):
            bucket = self._owner_buckets[owner] % SEGMENT_BUCKETS
            lines[bucket].append(HistoryLine(owner, kind, coin, pack_places(line.places)))
        opened: dict[str, array[int]] = {}
        for hold_id, hold in self._sums.holds.items():
            if hold_id >= self._first_seq:
                places = opened.get(hold[_CUSTOMER])
                if places is None:
                    places = opened[hold[_CUSTOMER]] = array("H")
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
                sums.remove("balance", before)
                segments = before[7] + own_segment
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
            row[_REMAINING] = column(row[_REMAINING])
            more_open = int(row[_CLOSED_SEQ] is None)
            before = holds_before.get(hold_id)
            if before is None:
                new.append(row)
            else:
                more_open -= 1
                sums.remove("hold", before)
                changed.append((row[_REMAINING], row[_CLOSED_SEQ], hold_id))
            sums.add("hold", row)
            counts[1] += more_open
            if row[_EXPIRES_MS] is not None:
                counts[2] += more_open
        self._books.executemany("UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", changed)
        self._books.executemany("INSERT INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new)
