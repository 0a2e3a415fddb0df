"""
The comparison of a sealed segment's tables with what the pass collected from its entries.

Sealed rows never change, except what remains of a hold and when it was closed, so a segment can be compared while
others are written. Tables are compared as a whole first, and row by row only if they differ.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

from spotledger.audit.books import Line, mixed
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.audit.tables import Sums, add_up, compare_sums
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import column, pack_places, unpack_places
from spotledger.storage.sqlite.audit import BooksFile
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    HistoryLine,
    HoldsOpened,
    history_id,
    key_id,
    unpack_history,
    unpack_keys,
)
from spotledger.storage.sqlite.raw import Row

_SHOWN_ENTRIES: Final = 8


class SegmentTables:
    """Compares the tables of segments: keys, history, holds and holds by customer."""

    def __init__(
        self,
        books: BooksFile | None,
        journal: JournalPass,
        findings: Findings,
        spool: KeySpool,
        idempotency_filter: FilterCheck,
    ) -> None:
        """Compare the tables in *books*, if there are any, with what *journal* collects."""
        self._segment_entries = idempotency_filter.segment_entries
        self._books = books
        self._journal = journal
        self._findings = findings
        self._note = findings.add
        self.spool = spool
        self._filter = idempotency_filter

    def compare_if_sealed(self, border: int) -> None:
        """Compare the tables of the segment that ends with entry *border*, if all segments up to it are sealed."""
        first = border - self._segment_entries + 1
        if self._journal.first_seq > first:
            self.pass_over()
        elif self._books is not None and self._journal.first_seq == first:
            with self._findings.noting("the books"):
                if self._books.sealed_to() >= border:
                    self.compare(self._books, first // self._segment_entries, first, border)
                    self._journal.forget_collected()

    def pass_over(self) -> None:
        """Forget what is collected without comparing it, because entries are missing, which is noted already."""
        self.spool.put(sorted(self._journal.keys))
        self._journal.forget_collected()
        self._journal.has_gaps = True

    def compare(self, books: BooksFile, segment: int, first: int, last: int) -> None:
        """Compare the tables of *segment*, whose entries *first* to *last* were just read."""
        with self._findings.noting(f"the keys of segment {segment}"):
            self._compare_keys(books, segment, first)
        with self._findings.noting(f"the history of segment {segment}"):
            self._compare_history(books, segment, first)
        with self._findings.noting(f"the holds of segment {segment}"):
            self._compare_holds(books, first, last)
        number = mixed(segment)
        for line in self._journal.touched:
            line.segments += number

    def _note_damaged(self, damage: LedgerCorrupt, table: str, bucket: int) -> None:
        self._note("bucket_damaged", None, f"{table} {bucket}", str(damage), "what was sealed")

    # --- keys -----------------------------------------------------------------------------------------

    def _compare_keys(self, books: BooksFile, segment: int, first: int) -> None:
        expected = {digest: seq - first for digest, seq in self._journal.keys.items()}
        found: dict[bytes, int] = {}
        count = 0
        damaged: set[int] = set()
        try:
            for bucket, packed in books.key_buckets(segment):
                try:
                    rows = unpack_keys(bucket, packed)
                except LedgerCorrupt as damage:
                    self._note_damaged(damage, "key_bucket", bucket)
                    damaged.add(bucket)
                    continue
                count += len(rows)
                found.update(rows)
        finally:
            self.spool.put(sorted(expected))
        if count > len(found):
            self._note(
                "key_row_extra", first, f"key_bucket of segment {segment}", f"{count} keys", f"{len(found)}, once each"
            )
        if found != expected:
            seqs = {digest: first + place for digest, place in found.items()}
            self._note_keys(segment, seqs, damaged)
        self._filter.check(segment, self._journal.keys)

    def _note_keys(self, segment: int, found: dict[bytes, int], damaged: set[int]) -> None:
        """Note which keys differ, except those of buckets that are *damaged* as a whole."""
        expected = self._journal.keys
        for digest, seq in sorted(expected.items() - found.items(), key=lambda row: row[1]):
            bucket = key_id(segment, digest)
            if bucket not in damaged:
                self._note("key_row_missing", seq, f"key_bucket {bucket} {digest.hex()}", "no row", f"entry {seq}")
        for digest, seq in sorted(found.items() - expected.items(), key=lambda row: row[1]):
            where = f"key_bucket {key_id(segment, digest)} {digest.hex()}"
            self._note("key_row_extra", seq, where, f"entry {seq}", "no row for this key and entry")

    # --- history --------------------------------------------------------------------------------------

    def _compare_history(self, books: BooksFile, segment: int, first: int) -> None:
        """Compare which entries touched each account and coin; the balances are in the entries themselves."""
        lines = self._journal.lines
        seen: set[int] = set()
        opened: list[HoldsOpened] = []
        damaged: set[int] = set()
        for bucket, packed in books.history_buckets(segment):
            try:
                touched, more_opened = unpack_history(bucket, packed)
            except LedgerCorrupt as damage:
                self._note_damaged(damage, "history_bucket", bucket)
                damaged.add(bucket)
                continue
            opened += [held for held in more_opened if history_id(segment, held.customer) == bucket]
            for row in touched:
                owner, kind, coin, places = row
                if history_id(segment, owner) != bucket:
                    self._note("history_row_differs", first, _where_of(bucket, row), "here", "in its owner's bucket")
                line = lines.get(((owner, kind), coin))
                if line is None or line.places is None or id(line) in seen:
                    self._note("history_row_extra", first, _where_of(bucket, row), _shown(places, first), "no row")
                    continue
                seen.add(id(line))
                if places != _packed(line):
                    self._compare_line(_where_of(bucket, row), places, _packed(line), first)
        if len(seen) < len(self._journal.touched):
            self._note_missing_lines(segment, first, seen, damaged)
        self._compare_owners(segment, first, opened, damaged)

    def _note_missing_lines(self, segment: int, first: int, seen: set[int], damaged: set[int]) -> None:
        for line in self._journal.touched:
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

    def _compare_owners(self, segment: int, first: int, opened: list[HoldsOpened], damaged: set[int]) -> None:
        expected = {(row[1], hold_id) for hold_id, row in self._journal.opened.items()}
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

    # --- holds ----------------------------------------------------------------------------------------

    def _compare_holds(self, books: BooksFile, first: int, last: int) -> None:
        """Compare the rows of the holds that the segment opened, and the sums of the buckets that they are in."""
        page = books.holds_of(first, last)
        journal = self._journal
        missing = dict(journal.opened)
        for row in page.rows:
            hold_id = row[0]
            if first <= hold_id <= last:
                expected = missing.pop(hold_id, None)
                if expected is None:
                    self._note("hold_row_extra", hold_id, f"hold {hold_id}", str(row), "no row")
                else:
                    self._compare_hold(row, expected)
        for hold_id, expected in missing.items():
            self._note("hold_row_missing", hold_id, f"hold {hold_id}", "no row", str(expected))
        sums: Sums = {}
        add_up(sums, "hold", page.rows, HOLD_BUCKET_IDS)
        compare_sums(self._findings, "hold_bucket", sums, page.sums)

    def _compare_hold(self, row: Row, expected: tuple[Any, ...]) -> None:
        hold_id, remaining, closed_seq = row[0], row[5], row[9]
        found = (*row[:5], *row[6:9])
        if found != expected and found != (*expected[:4], column(expected[4]), *expected[5:]):
            self._note("hold_row_differs", hold_id, f"hold {hold_id}", str(found), str(expected))
        hold = self._journal.holds.get(hold_id)
        state = f"remaining {remaining}, closed by {closed_seq}"
        if hold is not None:
            hold.row_closed_seq = closed_seq
            if (closed_seq is None) == (remaining == 0):
                self._note("hold_row_differs", hold_id, f"hold {hold_id}", state, "open, or nothing remains")
        elif closed_seq != self._journal.closed.get(hold_id) or remaining != 0:
            wanted = f"remaining 0, closed by {self._journal.closed.get(hold_id)}"
            self._note("hold_row_differs", hold_id, f"hold {hold_id}", state, wanted)


def _where_of(bucket: int, row: HistoryLine) -> str:
    return f"history_bucket {bucket} {row.owner} {row.account} {row.coin}"


def _packed(line: Line) -> bytes:
    """Return the places of the entries that touched *line*, packed as in the history."""
    return pack_places(array("H", line.places or []))


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
