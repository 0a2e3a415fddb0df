"""
Comparing a sealed segment's tables with what the pass has collected of its entries.

What is sealed never changes again, except what remains of a hold and when it was closed, so a segment can be compared
while others are written. First everything is compared as a whole; only where that differs, row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spotledger.ops.audit_books import Line
from spotledger.ops.audit_findings import Findings
from spotledger.ops.audit_journal import JournalPass
from spotledger.ops.audit_keys import FilterCheck, KeySpool
from spotledger.storage.sqlite_audit import AuditFile, Unreadable


class SegmentTables:
    """The tables of one segment after the other: keys, history, holds and whose they are."""

    def __init__(
        self, file: AuditFile, journal: JournalPass, findings: Findings, spool: KeySpool, key_filter: FilterCheck
    ) -> None:
        """Compare what *file* has with what *journal* collects."""
        self._file = file
        self._journal = journal
        self._note = findings.add
        self._leave_out = findings.leave_out
        self._spool = spool
        self._filter = key_filter

    def compare(self, segment: int, first: int, last: int) -> None:
        """Compare the tables of *segment*, the entries *first* to *last*, all of which were just read."""
        comparisons: tuple[Callable[[], None], ...] = (
            lambda: self._compare_keys(segment),
            lambda: self._compare_history(segment),
            lambda: self._compare_holds(first, last),
            lambda: self._compare_owners(segment),
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
            self._spool.put(sorted(expected))
            raise
        if len(rows) != len(expected) or dict(rows) != expected:
            found = set(rows)
            for digest, seq in sorted(expected.items() - found, key=lambda row: row[1]):
                self._note("key_row_missing", seq, f"key_seq {segment} {digest.hex()}", "no row", f"entry {seq}")
            for digest, seq in sorted(found - expected.items(), key=lambda row: row[1]):
                where = f"key_seq {segment} {digest.hex()}"
                self._note("key_row_extra", seq, where, f"entry {seq}", "no row for this key and entry")
            rows = sorted(expected.items())
        self._spool.put([digest for digest, _ in rows])
        self._filter.check(segment, rows)

    # --- history --------------------------------------------------------------------------------------

    def _compare_history(self, segment: int) -> None:
        lines = self._journal.lines
        seen = 0
        names = self._file.history_names(segment)
        values = self._file.history_values(segment)
        position = 0
        for customer, kind, coin, count in names:
            end = position + 3 * count
            line = lines.get(((customer, kind), coin))
            found = values[position:end]
            position = end
            if line is None or line.rows is None:
                where = f"history {segment} {customer} {kind} {coin}"
                self._note("history_row_extra", int(found[0]), where, f"{count} rows", "none")
                continue
            seen += 1
            if found != line.rows[3:]:
                self._compare_line(segment, line, [int(value) for value in found])
        if seen < len(self._journal.touched):
            there = {((customer, kind), coin) for customer, kind, coin, _ in names}
            for line in self._journal.touched:
                if line.name not in there:
                    self._compare_line(segment, line, [])

    def _compare_line(self, segment: int, line: Line, found: list[int]) -> None:
        """Compare the history of one account and coin within a segment, row by row."""
        where = f"history {segment} {line.name[0][0]} {line.name[0][1]} {line.name[1]}"
        expected_rows = _triples((line.rows or [])[3:])
        found_rows = _triples(found)
        for seq, expected in expected_rows.items():
            if seq not in found_rows:
                self._note("history_row_missing", seq, where, "no row", _shown(expected))
            elif found_rows[seq] != expected:
                self._note("history_row_differs", seq, where, _shown(found_rows[seq]), _shown(expected))
        for seq in found_rows.keys() - expected_rows.keys():
            self._note("history_row_extra", seq, where, _shown(found_rows[seq]), "no row")

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

    def _compare_owners(self, segment: int) -> None:
        expected = {(row[1], hold_id) for hold_id, row in self._journal.opened.items()}
        found = set(self._file.hold_owners(segment))
        if found == expected:
            return
        for customer, hold_id in expected - found:
            self._note("hold_owner_row_missing", hold_id, f"hold_of {segment} {customer}", "no row", f"hold {hold_id}")
        for customer, hold_id in found - expected:
            self._note("hold_owner_row_extra", hold_id, f"hold_of {segment} {customer}", f"hold {hold_id}", "no row")


def _triples(flat: list[int]) -> dict[int, tuple[int, int]]:
    return {seq: (available, freeze) for seq, available, freeze in zip(*[iter(flat)] * 3, strict=True)}


def _shown(balance: tuple[int, int]) -> str:
    return f"available {balance[0]}, freeze {balance[1]}"


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a hold's row with its amount, which is text beyond 64 bits, as a number."""
    return (*row[:4], int(row[4]), *row[5:])
