"""
The comparison, at the end of the pass, of the tables that are updated in place: balances, holds, coins, customers,
reversals.

They are as of the last sealed entry. While a segment is being sealed, a row may already be as of the end of that
segment, so both states are accepted. In a file that is being written, rows changed by entries after the last one read
are skipped; the next audit compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from spotledger.audit.books import Line, sides, stored_units
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.storage.sqlite.audit import AuditFile, Position, Unreadable

_HOLDS_A_PAGE: Final = 2_000


class WholeTables:
    """Compares the tables that are updated in place."""

    def __init__(self, file: AuditFile, journal: JournalPass, findings: Findings, segment_entries: int) -> None:
        """Compare the tables in *file* with what *journal* led to."""
        self._file = file
        self._journal = journal
        self._findings = findings
        self._note = findings.add
        self._leave_out = findings.leave_out
        self._segment_entries = segment_entries

    def compare(self) -> None:
        """Compare all of them."""
        journal = self._journal
        compare_with_itself(journal, self._findings)
        coins = {coin: (seq, scale) for coin, (scale, seq) in journal.coins.items()}
        customers = {customer: (seq,) for customer, seq in journal.customers.items()}
        reversals = {seq: (by_seq,) for seq, by_seq in journal.reversals.items()}
        for compare in (
            self._compare_extremes,
            self._compare_balances,
            self._compare_holds,
            lambda: self._compare_listed("coin", coins),
            lambda: self._compare_listed("customer", customers),
            lambda: self._compare_listed("reversal", reversals),
        ):
            try:
                compare()
            except Unreadable as error:
                self._leave_out(str(error))

    def _compare_extremes(self) -> None:
        position, extremes = self._file.extremes()
        being_sealed = position.sealed_to // self._segment_entries
        for table, (least, greatest) in extremes.items():
            if least is None or greatest is None:
                continue
            low, high = (0, being_sealed) if table != "hold" else (1, position.sealed_to + self._segment_entries)
            if least < low or greatest > high:
                found = f"from {least} to {greatest}"
                self._note("rows_beyond_journal", None, table, found, f"from {low} to {high}")

    # --- balances -------------------------------------------------------------------------------------

    def _compare_balances(self) -> None:
        sealed_to = None
        seen: set[int] = set()
        for position, rows in self._file.balances():
            sealed_to = position.sealed_to if sealed_to is None else sealed_to
            for customer, kind, coin, available, freeze, seq in rows:
                line = self._journal.lines.get(((customer, kind), coin))
                if line is not None:
                    seen.add(id(line))
                self._compare_balance(position, f"{customer} {kind} {coin}", line, available, freeze, seq)
        for line in self._journal.lines.values():
            first_seq = line.rows[0] or line.rows[3] if line.rows else line.seq
            if id(line) not in seen and 0 < first_seq <= (sealed_to or 0):
                expected = sides(line.available, line.freeze)
                self._note("balance_row_missing", line.seq, f"balance {line}", "no row", expected)

    def _compare_balance(
        self, position: Position, name: str, line: Line | None, available: object, freeze: object, seq: int
    ) -> None:
        passes = [] if line is None else _as_of(_states(line), position.sealed_to, self._segment_entries)
        if (seq, stored_units(available), stored_units(freeze)) in passes or self._is_later(seq, position):
            return
        code = "balance_row_extra" if line is None else "balance_row_differs"
        expected = " or ".join(f"{sides(*balance)} as of entry {since}" for since, *balance in passes)
        found = f"{sides(available, freeze)} as of entry {seq}"
        self._note(code, seq, f"balance {name}", found, expected or "no row")

    def _is_later(self, seq: int, position: Position) -> bool:
        """Say whether a row can be of the entry *seq*, written after the last entry that the pass read."""
        return self._journal.seq < seq <= min(position.head_seq, position.sealed_to + self._segment_entries)

    # --- holds ----------------------------------------------------------------------------------------

    def _compare_holds(self) -> None:
        """Compare again the holds that are open, or were open in the table when their segment was compared."""
        journal = self._journal
        ids = iter(
            [*journal.closed_otherwise, *(hold_id for hold_id in journal.holds if hold_id not in journal.opened)]
        )
        while batch := list(islice(ids, _HOLDS_A_PAGE)):
            position, rows = self._file.holds_of_ids(batch)
            for row in rows:
                self._compare_hold(position, row)

    def _compare_hold(self, position: Position, row: tuple[Any, ...]) -> None:
        hold_id, remaining, closed_seq = row[0], stored_units(row[8]), row[9]
        states = self._hold_states(hold_id)
        passes = [
            (left, None if left else seq) for seq, left in _as_of(states, position.sealed_to, self._segment_entries)
        ]
        if (remaining, closed_seq) in passes:
            return
        bound = self._journal.seq
        moved_on = position.head_seq > bound and position.sealed_to + self._segment_entries > bound
        if moved_on and ((closed_seq or 0) > bound or 0 < (remaining or 0) < states[-1][1]):
            return
        expected = " or ".join(f"remaining {left}, closed by {closed}" for left, closed in passes)
        found = f"remaining {row[8]}, closed by {closed_seq}"
        self._note("hold_row_differs", hold_id, f"hold {hold_id}", found, expected)

    def _hold_states(self, hold_id: int) -> list[tuple[int, int]]:
        """Return what remained of a hold, each with the entry since which it did, as far as the pass remembers."""
        uses = self._journal.uses.get(hold_id)
        if uses is not None:
            return uses
        closed_seq = self._journal.closed_otherwise.get(hold_id)
        return [(closed_seq, 0)] if closed_seq else [(hold_id, self._journal.holds[hold_id].remaining)]

    # --- coins, customers, reversals --------------------------------------------------------------------

    def _compare_listed(self, table: str, expected: Mapping[Any, tuple[Any, ...]]) -> None:
        """Compare a table whose rows are written once; *expected* has the rows by name, the entry's ``seq`` first."""
        pages = {"coin": self._file.coins, "customer": self._file.customers, "reversal": self._file.reversals}[table]
        sealed_to = None
        seen = set()
        for position, rows in pages():
            sealed_to = position.sealed_to if sealed_to is None else sealed_to
            for name, *more in rows:
                seen.add(name)
                found = tuple(reversed(more))
                if expected.get(name) == found or self._is_later(found[0], position):
                    continue
                code = f"{table}_row_differs" if name in expected else f"{table}_row_extra"
                wanted = f"entry, …: {expected[name]}" if name in expected else "no row"
                self._note(code, found[0], f"{table} {name}", f"entry, …: {found}", wanted)
        for name, values in expected.items():
            if name not in seen and values[0] <= (sealed_to or 0):
                self._note(f"{table}_row_missing", values[0], f"{table} {name}", "no row", f"entry, …: {values}")


def compare_with_itself(journal: JournalPass, findings: Findings) -> None:
    """Check that freeze equals what remains of the open holds, and that each coin sums to zero."""
    explained: dict[int, int] = {}
    for hold in journal.holds.values():
        explained[id(hold.line)] = explained.get(id(hold.line), 0) + hold.remaining
    sums: dict[str, int] = {}
    for line in journal.lines.values():
        coin = line.name[1]
        sums[coin] = sums.get(coin, 0) + line.available + line.freeze
        remaining = explained.get(id(line), 0)
        if line.freeze != remaining:
            found = f"freeze {line.freeze}"
            findings.add("freeze_unexplained", line.seq, str(line), found, f"open holds of {remaining}")
    for coin, total in sums.items():
        if total:
            findings.add("coin_not_balanced", None, coin, f"a sum of {total} units", "0")


def _states(line: Line) -> list[tuple[int, int, int]]:
    """Return the balances of a line, each with the entry that led to it, as far as the pass remembers."""
    if line.rows is None:
        return [(line.seq, line.available, line.freeze)]
    states = list(zip(*[iter(line.rows)] * 3, strict=True))
    return states if states[0][0] else states[1:]


def _as_of(states: list[Any], sealed_to: int, segment_entries: int) -> list[Any]:
    """Return the states that a row may have: as of the last sealed entry, or the end of the segment being sealed."""
    found = []
    for bound in (sealed_to, sealed_to + segment_entries):
        known = [state for state in states if state[0] <= bound]
        if known and known[-1] not in found:
            found.append(known[-1])
    return found
