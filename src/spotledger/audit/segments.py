"""
The comparison of a sealed segment's tables with what the pass collected from its entries.

Sealed rows never change, except what remains of a hold and when it was closed, so a segment can be compared while
others are written. Tables are compared as a whole first, and row by row only if they differ.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Final

from spotledger.audit.books import Line, stored_units
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import pack_places, unpack_places
from spotledger.storage.sqlite.audit import AuditFile, Unreadable

_SHOWN_ENTRIES: Final = 8


class SegmentTables:
    """Compares the tables of segments: keys, history, holds and holds by customer."""

    def __init__(
        self,
        file: AuditFile,
        journal: JournalPass,
        findings: Findings,
        spool: KeySpool,
        idempotency_filter: FilterCheck,
    ) -> None:
        """Compare the tables in *file* with what *journal* collects."""
        self._segment_entries = idempotency_filter.segment_entries
        self._file = file
        self._journal = journal
        self._note = findings.add
        self._leave_out = findings.leave_out
        self.spool = spool
        self._filter = idempotency_filter
        self._sealed = True

    def compare_if_sealed(self, border: int) -> None:
        """Compare the tables of the segment that ends with entry *border*, if all segments up to it are sealed."""
        self._sealed = self._sealed and self._file.position().sealed_to >= border
        if self._sealed:
            segment = (border - 1) // self._segment_entries
            self.compare(segment, segment * self._segment_entries + 1, border)
            self._journal.forget_collected()

    def compare(self, segment: int, first: int, last: int) -> None:
        """Compare the tables of *segment*, whose entries *first* to *last* were just read."""
        comparisons: tuple[Callable[[], None], ...] = (
            lambda: self._compare_keys(segment),
            lambda: self._compare_history(segment, first),
            lambda: self._compare_holds(first, last),
            lambda: self._compare_owners(segment, first),
        )
        for compare in comparisons:
            try:
                compare()
            except Unreadable as error:
                self._leave_out(f"{error} (segment {segment})")

    # --- keys -----------------------------------------------------------------------------------------

    def _compare_keys(self, segment: int) -> None:
        expected = self._journal.keys
        try:
            rows = self._file.keys_of(segment)
        except Unreadable:
            self.spool.put(sorted(expected))
            raise
        if len(rows) != len(expected) or dict(rows) != expected:
            found = set(rows)
            for digest, seq in sorted(expected.items() - found, key=lambda row: row[1]):
                self._note("key_row_missing", seq, f"key_seq {segment} {digest.hex()}", "no row", f"entry {seq}")
            for digest, seq in sorted(found - expected.items(), key=lambda row: row[1]):
                where = f"key_seq {segment} {digest.hex()}"
                self._note("key_row_extra", seq, where, f"entry {seq}", "no row for this key and entry")
            rows = sorted(expected.items())
        self.spool.put([digest for digest, _ in rows])
        self._filter.check(segment, rows)

    # --- history --------------------------------------------------------------------------------------

    def _compare_history(self, segment: int, first: int) -> None:
        """Compare which entries touched each account and coin; the balances are in the entries themselves."""
        lines = self._journal.lines
        seen: set[int] = set()
        for customer, kind, coin, packed in self._file.history_of(segment):
            line = lines.get(((customer, kind), coin))
            where = f"history {segment} {customer} {kind} {coin}"
            if line is None or line.places is None:
                self._note("history_row_extra", first, where, _shown(packed, first), "no row")
                continue
            seen.add(id(line))
            expected = _packed(line)
            if packed != expected:
                differing = set(_seqs(packed, first)) ^ set(_seqs(expected, first))
                found, wanted = _shown(packed, first), _shown(expected, first)
                self._note("history_row_differs", min(differing, default=first), where, found, wanted)
        for line in self._journal.touched:
            if id(line) not in seen:
                where = f"history {segment} {line}"
                self._note("history_row_missing", line.seq, where, "no row", _shown(_packed(line), first))

    # --- holds ----------------------------------------------------------------------------------------

    def _compare_holds(self, first: int, last: int) -> None:
        journal = self._journal
        missing = dict(journal.opened)
        for row in self._file.holds_between(first, last):
            hold_id, remaining, closed_seq = row[0], row[8], row[9]
            expected = missing.pop(hold_id, None)
            if expected is None:
                self._note("hold_row_extra", hold_id, f"hold {hold_id}", str(row), "no row")
                continue
            if row[:8] != expected and _plain(row[:8]) != expected:
                self._note("hold_row_differs", hold_id, f"hold {hold_id}", str(row[:8]), str(expected))
            hold = journal.holds.get(hold_id)
            if hold is not None:
                hold.row_closed_seq = closed_seq
            elif closed_seq != journal.closed.get(hold_id) or remaining != 0:
                found = f"remaining {remaining}, closed by {closed_seq}"
                wanted = f"remaining 0, closed by {journal.closed.get(hold_id)}"
                self._note("hold_row_differs", hold_id, f"hold {hold_id}", found, wanted)
        for hold_id, expected in missing.items():
            self._note("hold_row_missing", hold_id, f"hold {hold_id}", "no row", str(expected))

    def _compare_owners(self, segment: int, first: int) -> None:
        expected = {(row[1], hold_id) for hold_id, row in self._journal.opened.items()}
        found = {
            (customer, seq) for customer, packed in self._file.hold_owners(segment) for seq in _seqs(packed, first)
        }
        for customer, hold_id in sorted(expected - found):
            self._note("hold_owner_row_missing", hold_id, f"hold_of {segment} {customer}", "no row", f"hold {hold_id}")
        for customer, hold_id in sorted(found - expected):
            self._note("hold_owner_row_extra", hold_id, f"hold_of {segment} {customer}", f"hold {hold_id}", "no row")


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


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a hold's row with its amount, which is stored as text beyond 64 bits, as a number."""
    return (*row[:4], stored_units(row[4]), *row[5:])
