"""
The comparison of the derived tables with what the pass over the journal led to.

What is final of a segment is compared as soon as it was read. The tables that change with each sealing are compared
once the pass has read the last sealed entry. In a store that gives no snapshot of them, rows that were changed by
later entries are skipped; the next audit compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from spotledger.audit.books import sides
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import KeySpool
from spotledger.audit.source import BalanceRow, HoldRow, RowsAsOf, Source

_HOLDS_A_PAGE: Final = 2_000


class DerivedTables:
    """Compares the tables of one ledger."""

    def __init__(self, source: Source, journal: JournalPass, spool: KeySpool) -> None:
        """Compare the tables of *source* with what *journal* led to; the digests of the keys go to *spool*."""
        self._source = source
        self._journal = journal
        self._note = source.findings.add
        self.spool = spool
        #: Whether the tables have what the entries lead to that are read now; False behind the last sealed one.
        self.is_sealed = True

    # --- segments ---------------------------------------------------------------------------------------------

    def compare_segment(self) -> None:
        """Compare what the entries since the last comparison, which are of one segment, led to."""
        source, journal, is_sealed = self._source, self._journal, self.is_sealed
        first, last = journal.first_seq, journal.seq
        if first > last:
            return
        segment = (last - 1) // source.segment_entries
        with source.examining(f"the keys of segment {segment}"):
            source.compare_keys(journal, segment, first, is_sealed=is_sealed)
        self.spool.put(journal.keys)
        if is_sealed and source.is_comparable(first, last):
            with source.examining(f"the references of segment {segment}"):
                source.compare_references(journal, segment, first)
            with source.examining(f"the history of segment {segment}"):
                source.compare_history(journal, segment, first)
            with source.examining(f"the holds of segment {segment}"):
                self._compare_opened(first, last)
        journal.forget_collected()

    def pass_over(self) -> None:
        """Go on behind entries that are missing, which is noted already."""
        self._journal.forget_collected()
        self._journal.has_gaps = True

    def _compare_opened(self, first: int, last: int) -> None:
        """Compare the rows of the holds that the entries *first* to *last* opened."""
        opened = self._journal.opened
        missing = dict(opened)
        for row in self._source.holds_opened(first, last):
            hold_id = row[0]
            expected = missing.pop(hold_id, None)
            if expected is not None:
                self._compare_hold(row, expected)
            elif hold_id in opened:
                self._note("row_repeated", hold_id, f"hold {hold_id}", "a second row", "one row")
            else:
                self._note("hold_row_extra", hold_id, f"hold {hold_id}", str(row), "no row")
        for hold_id, expected in missing.items():
            self._note("hold_row_missing", hold_id, f"hold {hold_id}", "no row", str(expected))

    def _compare_hold(self, row: HoldRow, expected: tuple[Any, ...]) -> None:
        hold_id, remaining, closed_seq = row[0], row[5], row[9]
        found = row[:5] + row[6:9]
        if found != expected:
            self._note("hold_row_differs", hold_id, f"hold {hold_id}", str(found), str(expected))
        hold = self._journal.holds.get(hold_id)
        wanted = "open, or nothing remains"
        if hold is not None:
            # Entries that are not read yet may have used it; what they say is compared with this row.
            hold.row_closed_seq = closed_seq
            is_right = (closed_seq is None) == (remaining != 0)
        else:
            closed = self._journal.closed.get(hold_id)
            is_right = closed_seq == closed and remaining == 0
            wanted = f"remaining 0, closed by {closed}"
        if not is_right:
            state = f"remaining {remaining}, closed by {closed_seq}"
            self._note("hold_row_differs", hold_id, f"hold {hold_id}", state, wanted)

    # --- at the last sealed entry -----------------------------------------------------------------------------

    def compare_at_end(self) -> None:
        """Compare the tables that change with each sealing, now that the last sealed entry was read."""
        journal = self._journal
        customers = {customer: (seq,) for customer, seq in journal.customers.items()}
        reversals = {seq: (by_seq,) for seq, by_seq in journal.reversals.items()}
        for what, compare in (
            ("the balances", self._compare_balances),
            ("the open holds", self._compare_holds),
            ("the customers", lambda: self._compare_listed("customer", customers, 0)),
            ("the coins", lambda: self._compare_listed("coin", journal.coins, 1)),
            ("the reversals", lambda: self._compare_listed("reversal", reversals, 0)),
            ("the books", lambda: self._source.check_derived(journal)),
        ):
            with self._source.examining(what):
                compare()

    def _is_later(self, seq: object, as_of: RowsAsOf) -> bool:
        """Say whether an entry that is sealed, but was not read yet, wrote a row that names the entry *seq*."""
        return isinstance(seq, int) and self._journal.seq < seq <= as_of.sealed_to

    def _compare_balances(self) -> None:
        lines, check_line = self._journal.lines, self._source.check_line
        found = 0
        for as_of in self._source.balances():
            for row in as_of.rows:
                customer, kind, coin, available, freeze, seq = row[:6]
                line = lines.get(((customer, kind), coin))
                if line is None or line.is_listed:
                    self._note_strange_balance(row, as_of, is_known=line is not None)
                    continue
                line.is_listed = True
                found += 1
                if line.seq != seq or line.available != available or line.freeze != freeze:
                    self._compare_balance(row, as_of)
                check_line(self._journal, line, row, as_of.sealed_to)
        if found < len(lines):
            for line in lines.values():
                if not line.is_listed:
                    expected = _shown(line.seq, line.available, line.freeze)
                    self._note("balance_row_missing", line.seq, f"balance {line}", "no row", expected)

    def _compare_balance(self, row: BalanceRow, as_of: RowsAsOf) -> None:
        customer, kind, coin, available, freeze, seq = row[:6]
        line = self._journal.lines[(customer, kind), coin]
        if not self._is_later(seq, as_of):
            found, expected = _shown(seq, available, freeze), _shown(line.seq, line.available, line.freeze)
            self._note("balance_row_differs", seq, f"balance {line}", found, expected)

    def _note_strange_balance(self, row: BalanceRow, as_of: RowsAsOf, *, is_known: bool) -> None:
        customer, kind, coin, available, freeze, seq = row[:6]
        where, found = f"balance {customer} {kind} {coin}", _shown(seq, available, freeze)
        if is_known:
            self._note(self._source.second_balance, seq, where, found, "one row")
        elif not self._is_later(seq, as_of):  # it may be new since the last entry read
            self._note("balance_row_extra", seq, where, found, "no row")

    def _compare_holds(self) -> None:
        """Compare the holds that are open, or were closed by another entry than their row said when it was compared."""
        journal = self._journal
        ids = iter([*journal.closed_otherwise, *journal.holds])
        while batch := list(islice(ids, _HOLDS_A_PAGE)):
            as_of = self._source.holds_of(batch)
            for row in as_of.rows:  # one that is missing was noted with the segment that opened it
                self._compare_state(row, as_of)

    def _compare_state(self, row: HoldRow, as_of: RowsAsOf) -> None:
        hold_id, remaining, closed_seq = row[0], row[5], row[9]
        closed = self._journal.closed_otherwise.get(hold_id)
        left = 0 if closed is not None else self._journal.holds[hold_id].remaining
        if remaining == left and closed_seq == closed:
            return
        if closed is None and as_of.sealed_to > self._journal.seq and isinstance(remaining, int):
            is_used_since = 0 < remaining < left and closed_seq is None
            if is_used_since or (remaining == 0 and self._is_later(closed_seq, as_of)):
                return
        found = f"remaining {remaining}, closed by {closed_seq}"
        self._note("hold_row_differs", hold_id, f"hold {hold_id}", found, f"remaining {left}, closed by {closed}")

    def _compare_listed(self, table: str, expected: Mapping[Any, tuple[Any, ...]], place: int) -> None:
        """Compare rows that are written once, by the entry that the value at *place* of a row names."""
        seen: set[Any] = set()
        for as_of in self._source.listed(table):
            for name, *rest in as_of.rows:
                values, wanted, where = tuple(rest), expected.get(name), f"{table} {name}"
                if name in seen:
                    self._note("row_repeated", _number(name), where, str(values), "one row")
                seen.add(name)
                if values != wanted and not self._is_later(values[place], as_of):
                    code = f"{table}_row_extra" if wanted is None else f"{table}_row_differs"
                    self._note(code, values[place], where, str(values), "no row" if wanted is None else str(wanted))
        for name in [name for name in expected if name not in seen]:
            self._note(f"{table}_row_missing", expected[name][place], f"{table} {name}", "no row", str(expected[name]))


def compare_with_itself(journal: JournalPass, findings: Findings) -> None:
    """Check that freeze equals what remains of the open holds, and that each coin sums to zero."""
    explained: dict[int, int] = {}
    for hold in journal.holds.values():
        explained[id(hold.line)] = explained.get(id(hold.line), 0) + hold.remaining
    sums: dict[str, int] = {}
    for line in journal.lines.values():
        sums[line.coin] = sums.get(line.coin, 0) + line.available + line.freeze
        remaining = explained.get(id(line), 0)
        if line.freeze != remaining:
            found = f"freeze {line.freeze}"
            findings.add("freeze_unexplained", line.seq, str(line), found, f"open holds of {remaining}")
    for coin, total in sums.items():
        if total:
            findings.add("coin_not_balanced", None, coin, f"a sum of {total} units", "0")


def _shown(seq: object, available: object, freeze: object) -> str:
    return f"{sides(available, freeze)} as of entry {seq}"


def _number(name: object) -> int | None:
    """Return *name* if it is the number of an entry."""
    return name if isinstance(name, int) else None
