"""
What only the files of a ledger have of the derived tables: buckets of keys, references and history, and sums of rows.

The buckets of a sealed segment never change. They are compared as a whole first, and row by row only if they differ.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from spotledger.audit.books import Line, mixed
from spotledger.audit.embedded.filter import FilterCheck
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.source import BalanceRow
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import pack_places, unpack_places
from spotledger.storage.sqlite.audit import BooksFile, SmallTables
from spotledger.storage.sqlite.books import pack_segments, unpack_segments
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    OF_KEYS,
    OF_REFERENCES,
    OWNER_BUCKETS,
    SEGMENT_BUCKETS,
    HistoryLine,
    HoldsOpened,
    RowSum,
    history_id,
    key_id,
    owner_bucket,
    pack_digests,
    row_digest,
    sum_of,
    unpack_digests,
    unpack_history,
)
from spotledger.storage.sqlite.raw import Row

_SHOWN_ENTRIES: Final = 8
_SEGMENT_BYTES: Final = 4
_SUMS_KEPT: Final = 8_192


class BucketTables:
    """Compares the buckets in the books of one ledger."""

    def __init__(self, books: BooksFile, findings: Findings, segment_entries: int) -> None:
        """Compare what is in *books*; whole segments have *segment_entries* entries."""
        self.books = books
        self._findings = findings
        self._note = findings.add
        self._segment_entries = segment_entries
        self._filter = FilterCheck(books, findings, segment_entries)
        self._bucket_of = lru_cache(None)(owner_bucket)
        self._mixed = lru_cache(None)(mixed)
        #: Many balances were touched in the same segments.
        self._sum_of = lru_cache(_SUMS_KEPT)(self._sum_of_segments)

    def _note_damaged(self, damage: LedgerCorrupt, table: str, bucket: int) -> None:
        self._note("bucket_damaged", None, f"{table} {bucket}", str(damage), "what was sealed")

    # --- keys of a segment ------------------------------------------------------------------------------------

    def compare_keys(self, keys: Mapping[bytes, int], segment: int, first: int) -> None:
        """Compare *keys*, digests with their entries, with those of a *segment* that begins with the entry *first*."""
        expected = _in_buckets((digest, seq - first) for digest, seq in keys.items())
        buckets = self.books.digest_buckets("key_bucket", segment)
        for (bucket, packed), rows in zip(buckets, expected, strict=True):
            if packed != pack_digests(OF_KEYS, bucket, rows):
                self._compare_each_key(keys, segment, first, buckets)
                break
        self._filter.check(segment, keys)

    def _compare_each_key(
        self, keys: Mapping[bytes, int], segment: int, first: int, buckets: list[tuple[int, object]]
    ) -> None:
        """Note what differs in the *buckets* of a segment."""
        found: list[tuple[bytes, int]] = []
        damaged: set[int] = set()
        for bucket, packed in buckets:
            try:
                found += unpack_digests(OF_KEYS, bucket, packed)
            except LedgerCorrupt as damage:
                self._note_damaged(damage, "key_bucket", bucket)
                damaged.add(bucket)
        seqs = {digest: first + place for digest, place in found}
        if len(found) > len(seqs):
            where = f"key_bucket of segment {segment}"
            self._note("key_row_extra", first, where, f"{len(found)} keys", f"{len(seqs)}, once each")
        self._note_keys(segment, keys, seqs, damaged)

    def _note_keys(
        self, segment: int, expected: Mapping[bytes, int], found: Mapping[bytes, int], damaged: set[int]
    ) -> None:
        """Note which keys differ, except those of buckets that are *damaged* as a whole."""
        for digest, seq in sorted(expected.items() - found.items(), key=lambda row: row[1]):
            bucket = key_id(segment, digest)
            if bucket not in damaged:
                self._note("key_row_missing", seq, f"key_bucket {bucket} {digest.hex()}", "no row", f"entry {seq}")
        for digest, seq in sorted(found.items() - expected.items(), key=lambda row: row[1]):
            where = f"key_bucket {key_id(segment, digest)} {digest.hex()}"
            self._note("key_row_extra", seq, where, f"entry {seq}", "no row for this key and entry")

    # --- references of a segment ------------------------------------------------------------------------------

    def compare_references(self, references: Sequence[tuple[str, int]], segment: int, first: int) -> None:
        """Compare *references*, each with its entry, with those of a *segment* that begins with the entry *first*."""
        digests = {reference: _digest(reference) for reference, _ in references}
        expected = _in_buckets((digests[reference], seq - first) for reference, seq in references)
        buckets = self.books.digest_buckets("reference_bucket", segment)
        for (bucket, packed), rows in zip(buckets, expected, strict=True):
            if packed != pack_digests(OF_REFERENCES, bucket, rows):
                self._compare_each_reference(bucket, packed, rows, first)

    def _compare_each_reference(
        self, bucket: int, packed: object, expected: list[tuple[bytes, int]], first: int
    ) -> None:
        """Note what differs in one bucket of references."""
        try:
            found = unpack_digests(OF_REFERENCES, bucket, packed)
        except LedgerCorrupt as damage:
            self._note_damaged(damage, "reference_bucket", bucket)
            return
        where, rows = f"reference_bucket {bucket}", set(found)
        for digest, place in sorted(set(expected) - rows):
            seq = first + place
            self._note("reference_row_missing", seq, f"{where} {digest.hex()}", "no row", f"entry {seq}")
        for digest, place in sorted(rows.difference(expected)):
            seq = first + place
            self._note("reference_row_extra", seq, f"{where} {digest.hex()}", f"entry {seq}", "no such row")
        if rows == set(expected):
            self._note("reference_row_extra", first, where, f"{len(found)} rows", "each once, sorted")

    # --- history of a segment ---------------------------------------------------------------------------------

    def compare_history(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries touched each account and coin; the balances are in the entries themselves."""
        number = mixed(segment)
        for each in journal.touched:
            each.segments += number
        lines = journal.lines
        seen: set[int] = set()
        opened: list[HoldsOpened] = []
        damaged: set[int] = set()
        for place, (bucket, packed) in enumerate(self.books.history_buckets(segment)):
            try:
                touched, more_opened = unpack_history(bucket, packed)
            except LedgerCorrupt as damage:
                self._note_damaged(damage, "history_bucket", bucket)
                damaged.add(bucket)
                continue
            opened += [held for held in more_opened if self._bucket_of(held.customer) % SEGMENT_BUCKETS == place]
            for row in touched:
                owner, kind, coin, places = row
                if self._bucket_of(owner) % SEGMENT_BUCKETS != place:
                    self._note("history_row_differs", first, _where_of(bucket, row), "here", "in its owner's bucket")
                line = lines.get(((owner, kind), coin))
                if line is None or line.places is None or id(line) in seen:
                    self._note("history_row_extra", first, _where_of(bucket, row), _shown(places, first), "no row")
                    continue
                seen.add(id(line))
                if places != _packed(line):
                    self._compare_line(_where_of(bucket, row), places, _packed(line), first)
        if len(seen) < len(journal.touched):
            self._note_missing_lines(journal, segment, first, seen, damaged)
        self._compare_owners(journal, segment, first, opened, damaged)

    def _note_missing_lines(
        self, journal: JournalPass, segment: int, first: int, seen: set[int], damaged: set[int]
    ) -> None:
        for line in journal.touched:
            bucket = history_id(segment, line.account[0])
            if id(line) not in seen and bucket not in damaged:
                where = f"history_bucket {bucket} {line}"
                self._note("history_row_missing", line.seq, where, "no row", _shown(_packed(line), first))

    def _compare_line(self, where: str, packed: bytes, expected: bytes, first: int) -> None:
        """Note a row of the history that differs, with the first entry in which it does."""
        found_seqs, expected_seqs = set(_seqs(packed, first)), set(_seqs(expected, first))
        differing = sorted(found_seqs ^ expected_seqs) or [first]
        found, wanted = _shown(packed, first), _shown(expected, first)
        self._note("history_row_differs", differing[0], where, found, wanted)

    def _compare_owners(
        self, journal: JournalPass, segment: int, first: int, opened: list[HoldsOpened], damaged: set[int]
    ) -> None:
        expected = {(row[1], hold_id) for hold_id, row in journal.opened.items()}
        found = {(customer, seq) for customer, packed in opened for seq in _seqs(packed, first)}
        if found == expected:
            return
        for customer, hold_id in sorted(expected - found):
            bucket = history_id(segment, customer)
            if bucket not in damaged:
                where = f"history_bucket {bucket} {customer}"
                self._note("hold_owner_row_missing", hold_id, where, "no row", f"hold {hold_id}")
        for customer, hold_id in sorted(found - expected):
            where = f"history_bucket {history_id(segment, customer)} {customer}"
            self._note("hold_owner_row_extra", hold_id, where, f"hold {hold_id}", "no row")

    # --- rows that change -------------------------------------------------------------------------------------

    def check_bucket(self, table: str, bucket: int, owner: str, seq: int) -> None:
        """Check that a row is in the bucket of its owner."""
        if bucket != self._bucket_of(owner):
            wanted = f"in bucket {self._bucket_of(owner)}"
            self._note(f"{table}_row_differs", seq, f"{table} {owner}", f"in bucket {bucket}", wanted)

    def check_balance(self, journal: JournalPass, line: Line, row: BalanceRow, sealed_to: int) -> None:
        """Check in which bucket a balance is, and in which segments it says that it was touched."""
        seq, packed, bucket = row[5:]
        if bucket != self._bucket_of(row[0]):
            self.check_bucket("balance", bucket, row[0], seq)
        if journal.has_gaps:
            return
        if sealed_to > journal.seq and not len(packed) % _SEGMENT_BYTES:
            compared = journal.seq // self._segment_entries
            packed = pack_segments(number for number in unpack_segments(packed) if number < compared)
        if self._sum_of(packed) != line.segments:
            found = f"{len(packed)} bytes of segments" if len(packed) % _SEGMENT_BYTES else _some(packed)
            self._note("balance_row_differs", seq, f"balance {line}", found, "those whose entries touched it, rising")

    def _sum_of_segments(self, packed: bytes) -> int | None:
        """Return the sum of :func:`mixed` over segments; None if they are malformed, or do not rise."""
        numbers = unpack_segments(packed)
        is_right = numbers == sorted({*numbers}) and not len(packed) % _SEGMENT_BYTES
        return sum(map(self._mixed, numbers)) if is_right else None

    def check_extremes(self) -> None:
        """Look for rows of segments, entries and buckets that do not exist."""
        sealed_to, extremes = self.books.extremes()
        buckets = sealed_to // self._segment_entries * SEGMENT_BUCKETS
        bounds = {
            "key_bucket": (0, buckets - 1),
            "reference_bucket": (0, buckets - 1),
            "history_bucket": (0, buckets - 1),
            "hold": (1, sealed_to),
            "hold_bucket": (0, sealed_to // HOLD_BUCKET_IDS),
            "owner_bucket": (0, OWNER_BUCKETS - 1),
            "reversal": (1, sealed_to),
        }
        for table, (least, greatest) in extremes.items():
            low, high = bounds[table]
            if least is not None and greatest is not None and (least < low or greatest > high):
                found = f"from {least} to {greatest}"
                self._note("rows_beyond_journal", None, table, found, f"from {low} to {high}")

    def check_counts(self, tables: SmallTables) -> None:
        """Compare what the books count with what there is."""
        facts, counts = tables.facts, tables.counts
        coins = sum_of(("coin", row) for row in tables.coins).kept()
        reversals = sum_of(("reversal", row) for row in tables.reversals).kept()
        for where, kept, found in (
            ("coin", (facts.coins, facts.coins_digest), coins),
            ("reversal", (facts.reversals, facts.reversals_digest), reversals),
            ("buckets", (facts.buckets, facts.buckets_digest), tables.buckets),
            ("customer_name", facts.customers, counts["customer_name"]),
            ("hold_age", facts.open_holds, counts["hold_age"]),
            ("hold_open", facts.open_holds, counts["hold_open"]),
            ("hold_due", facts.expiring_holds, counts["hold_due"]),
        ):
            if kept != found:
                self._note("count_differs", None, f"books {where}", str(kept), str(found))

    def compare_sums(
        self, table: str, found: Iterable[tuple[str, Iterable[Row]]], kept: dict[int, tuple[int, bytes]]
    ) -> None:
        """Compare what the rows that were *found*, by their tables, add up to with what is *kept* in *table*."""
        ids_in_bucket = HOLD_BUCKET_IDS if table == "hold_bucket" else 1
        counts: Counter[int] = Counter()
        totals: Counter[int] = Counter()
        for name, rows in found:
            for row in rows:
                bucket = row[0] // ids_in_bucket
                counts[bucket] += 1
                totals[bucket] += row_digest(name, row)
        nothing = RowSum().kept()
        for bucket in sorted(counts.keys() | kept.keys()):
            actual = (counts[bucket], (totals[bucket] % (1 << 128)).to_bytes(16, "little"))
            said = kept.get(bucket, nothing)
            if said != actual:
                self._note("bucket_sum_differs", None, f"{table} {bucket}", _shown_sum(said), _shown_sum(actual))


def _in_buckets(rows: Iterable[tuple[bytes, int]]) -> list[list[tuple[bytes, int]]]:
    """Return digests with the places of their entries by bucket, sorted."""
    found: list[list[tuple[bytes, int]]] = [[] for _ in range(SEGMENT_BUCKETS)]
    for row in rows:
        digest = row[0]
        found[(digest[-1] & 1) << 8 | digest[-2]].append(row)
    for bucket in found:
        bucket.sort()
    return found


def _digest(reference: str) -> bytes:
    return blake2b(reference.encode(errors="replace"), digest_size=16).digest()


def _where_of(bucket: int, row: HistoryLine) -> str:
    return f"history_bucket {bucket} {row.owner} {row.account} {row.coin}"


def _packed(line: Line) -> bytes:
    """Return the places of the entries that touched *line*, packed as in the history."""
    return pack_places(array("H", line.places or ()))


def _seqs(packed: bytes, first: int) -> list[int]:
    """Return the entries that a row names; none if the row cannot be read."""
    try:
        return [first + place for place in unpack_places(packed)]
    except LedgerCorrupt:
        return []


def _shown(packed: bytes, first: int) -> str:
    seqs = _seqs(packed, first)
    more = f" … {seqs[-1]}" if len(seqs) > _SHOWN_ENTRIES else ""
    return f"{len(seqs)} entries: {', '.join(map(str, seqs[:_SHOWN_ENTRIES]))}{more}"


def _some(packed: bytes) -> str:
    segments = unpack_segments(packed)
    if len(segments) <= _SHOWN_ENTRIES:
        return f"segments {segments}"
    return f"segments {len(segments)}, from {segments[0]} to {segments[-1]}"


def _shown_sum(sum_of_rows: tuple[Any, Any]) -> str:
    count, digest = sum_of_rows
    return f"{count} rows, {digest.hex() if isinstance(digest, bytes) else digest}"
