"""The tables that are derived from the journal, compared with what the pass over its entries led to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from spotledger.audit.books import Line, stored_units
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import KeySpool
from spotledger.audit.postgres.source import Row, Source
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES

_HOLDS_AT_ONCE: Final = 2_000
#: Rows of one kind that are looked at one by one, of those that should not be there at all.
_STRAY_LIMIT: Final = 1_000


class DerivedTables:
    """Compares what is final of a segment as soon as it was read, and the rest at the end."""

    def __init__(self, source: Source, journal: JournalPass, findings: Findings, spool: KeySpool) -> None:
        """Compare the tables of *source* with what *journal* led to; the keys go to *spool*."""
        self._source = source
        self._rows = source.rows
        self._journal = journal
        self._findings = findings
        self._note = findings.add
        self._spool = spool
        #: The digests of keys since the last comparison, each with its entry, as the table has them.
        self.digests: set[tuple[Any, int]] = set()
        #: The first entry that was not compared yet.
        self.first = 1
        #: Whether the tables have what the entries lead to that are read now; False behind the last sealed one.
        self.is_sealed = True

    # --- segments ---------------------------------------------------------------------------------------

    def compare_segment(self) -> None:
        """Compare keys, history and holds of the entries since the last comparison, which are of one segment."""
        journal, first, last = self._journal, self.first, self._journal.seq
        if first > last:
            return
        segment = (last - 1) // SEGMENT_ENTRIES
        with self._source.examining(f"the keys of segment {segment}"):
            self._compare_keys()
        self._spool.put(sorted(journal.keys))
        if self.is_sealed:
            with self._source.examining(f"the history of segment {segment}"):
                self._compare_history(segment, first, last)
            with self._source.examining(f"the holds of segment {segment}"):
                self._compare_holds(first, last)
        self.digests.clear()
        self.first = last + 1
        journal.forget_collected()
        journal.closed_otherwise.clear()

    def pass_over(self) -> None:
        """Go on behind the last entry of the journal, because entries up to it are missing, which is noted already."""
        self.first = self._journal.seq + 1
        self._journal.forget_collected()

    def _compare_keys(self) -> None:
        expected, found = set(self._journal.keys.items()), self.digests
        for digest, seq in sorted(expected - found, key=_seq_of):
            self._note("key_row_missing", seq, f"entry {seq}: key_digest", "another digest", digest)
        for digest, seq in sorted(found - expected, key=_seq_of):
            self._note("key_row_extra", seq, f"entry {seq}: key_digest", digest, "the digest of the entry's key")

    def _compare_history(self, segment: int, first: int, last: int) -> None:
        expected: dict[Row, Row] = {}
        for line in self._journal.touched:
            (customer, kind), coin = line.name
            expected.update(((customer, kind, coin, seq), ()) for seq in (line.rows or [])[3::3])
        # Rows of entries of other segments are found at the end.
        rows = self._rows(
            "SELECT customer, account, coin, seq FROM history WHERE segment = %s AND seq >= %s AND seq <= %s",
            segment, first, last,
        )  # fmt: skip
        found = self._by_name(f"history {segment}", ((row, ()) for row in rows))
        for row in sorted(expected.keys() - found.keys()):
            self._note("history_row_missing", row[3], _shown(f"history {segment}", row), "no row", "a row")
        for row in sorted(found.keys() - expected.keys(), key=repr):
            self._note("history_row_extra", row[3], _shown(f"history {segment}", row), "a row", "no row")

    def _compare_holds(self, first: int, last: int) -> None:
        """Compare the holds that the entries *first* to *last* opened or closed."""
        journal = self._journal
        rows = self._rows(
            "SELECT hold_id, customer, account, coin, amount, reference, expires_ms, opened_ms FROM hold"
            " WHERE hold_id >= %s AND hold_id <= %s",
            first, last,
        )  # fmt: skip
        found = self._by_name("hold", ((row[0], (*row[1:4], stored_units(row[4]), *row[5:])) for row in rows))
        self._compare("hold", {seq: tuple(row[1:]) for seq, row in journal.opened.items()}, found)
        closed = {**journal.closed, **journal.closed_otherwise}
        ids = list(closed)
        for start in range(0, len(ids), _HOLDS_AT_ONCE):
            batch = ids[start : start + _HOLDS_AT_ONCE]
            rows = self._rows("SELECT hold_id, remaining, closed_seq FROM hold WHERE hold_id = ANY (%s)", batch)
            # A hold that is missing was noted with the segment that opened it.
            states = {row[0]: (stored_units(row[1]), row[2]) for row in rows}
            self._compare("hold", {hold_id: (0, closed[hold_id]) for hold_id in batch if hold_id in states}, states)

    # --- at the end -------------------------------------------------------------------------------------

    def compare_at_end(self, last_seq: int) -> None:
        """
        Compare the tables that change with each sealing, at the last sealed entry, in one snapshot with it.

        *last_seq* is the last entry of the journal.
        """
        self._last_seq = last_seq
        for what, compare in (
            ("the balances", self._compare_balances),
            ("the open holds", self._compare_open_holds),
            ("the coins", self._compare_coins),
            ("the customers", self._compare_customers),
            ("the reversals", self._compare_reversals),
            ("rows of entries that do not exist", self._check_extremes),
        ):
            with self._source.examining(what):
                compare()

    def _compare_balances(self) -> None:
        lines = self._journal.lines.values()
        expected = {_name_of(line): (line.available, line.freeze, line.seq) for line in lines}
        rows = self._rows('SELECT customer, account, coin, available, "freeze", seq FROM balance')
        found = ((row[:3], (_units(row[3]), _units(row[4]), row[5])) for row in rows)
        self._compare("balance", expected, self._by_name("balance", found))

    def _compare_open_holds(self) -> None:
        journal = self._journal
        owners = {hold_id: _name_of(hold.line)[0] for hold_id, hold in journal.holds.items()}
        expected = {hold_id: (owners[hold_id], hold.remaining) for hold_id, hold in journal.holds.items()}
        rows = self._rows("SELECT hold_id, customer, remaining FROM hold WHERE closed_seq IS NULL")
        self._compare("hold", expected, self._by_name("hold", ((row[0], (row[1], _units(row[2]))) for row in rows)))
        listed = {hold_id: (owners[hold_id], hold.expires_ms) for hold_id, hold in journal.holds.items()}
        rows = self._rows("SELECT hold_id, customer, expires_ms FROM open_hold")
        found = self._by_name("open_hold", ((row[0], row[1:]) for row in rows))
        for hold_id in sorted(found.keys() - listed.keys(), key=repr):
            self._note("hold_owner_row_extra", _seq(hold_id), f"open_hold {hold_id}", found[hold_id], "no row")
        for hold_id in sorted(listed.keys() - found.keys()):
            self._note("hold_owner_row_missing", hold_id, f"open_hold {hold_id}", "no row", listed[hold_id])
        for hold_id in sorted(listed.keys() & found.keys()):
            if found[hold_id] != listed[hold_id]:
                self._note("hold_row_differs", hold_id, f"open_hold {hold_id}", found[hold_id], listed[hold_id])

    def _compare_coins(self) -> None:
        found = self._by_first("coin", self._rows("SELECT coin, scale, seq FROM coin"))
        self._compare("coin", dict(self._journal.coins), found)

    def _compare_customers(self) -> None:
        expected = {customer: (seq,) for customer, seq in self._journal.customers.items()}
        self._compare(
            "customer", expected, self._by_first("customer", self._rows("SELECT customer, seq FROM customer"))
        )

    def _compare_reversals(self) -> None:
        expected = {seq: (by_seq,) for seq, by_seq in self._journal.reversals.items()}
        self._compare("reversal", expected, self._by_first("reversal", self._rows("SELECT seq, by_seq FROM reversal")))

    def _check_extremes(self) -> None:
        """Look for rows of entries that do not exist, and for rows of the history in a segment that is not theirs."""
        last_seq = self._journal.seq
        for table, column, low, high in (
            ("entry", "seq", 1, self._last_seq),
            ("hold", "hold_id", 1, last_seq),
            ("history", "segment", 0, max(0, last_seq - 1) // SEGMENT_ENTRIES),
            ("history", "seq", 1, last_seq),
        ):
            # Three counts, each of which an index serves.
            counts = [f"(SELECT count(*) FROM {table} WHERE {column} {which})" for which in ("< %s", "> %s", "IS NULL")]
            [(count,)] = self._rows(f"SELECT {' + '.join(counts)}", low, high)
            if count:
                code = "entry_out_of_place" if table == "entry" else "rows_beyond_journal"
                self._note(code, None, table, f"{count} rows with {column} elsewhere", f"from {low} to {high}")
        strays = self._rows(
            "SELECT segment, customer, account, coin, seq FROM history WHERE segment IS DISTINCT FROM (seq - 1) / %s"
            " LIMIT %s",
            SEGMENT_ENTRIES, _STRAY_LIMIT,
        )  # fmt: skip
        for segment, *row in strays:
            where = _shown(f"history {segment}", tuple(row))
            self._note(
                "history_row_extra", _seq(row[-1]), where, f"in segment {segment}", "in the segment of its entry"
            )

    # --- rows -------------------------------------------------------------------------------------------

    def _by_first(self, table: str, rows: Iterable[Row]) -> dict[Any, Row]:
        return self._by_name(table, ((row[0], tuple(row[1:])) for row in rows))

    def _by_name(self, table: str, rows: Iterable[tuple[Any, Row]]) -> dict[Any, Row]:
        """Return *rows* by their names; one whose name another row has is noted."""
        found: dict[Any, Row] = {}
        for name, row in rows:
            if name in found:
                self._note("row_repeated", _seq(name), _shown(table, name), f"{found[name]} and {row}", "one row")
            found[name] = row
        return found

    def _compare(self, table: str, expected: dict[Any, Row], found: dict[Any, Row]) -> None:
        """Compare the rows *found*, by name, with those *expected* from the journal."""
        for name, row in found.items():
            if name not in expected:
                self._note(f"{table}_row_extra", _seq(name), _shown(table, name), row, "no row")
            elif row != expected[name]:
                self._note(f"{table}_row_differs", _seq(name), _shown(table, name), row, expected[name])
        for name in sorted(expected.keys() - found.keys()):
            self._note(f"{table}_row_missing", _seq(name), _shown(table, name), "no row", expected[name])


def _name_of(line: Line) -> tuple[str, str, str]:
    (customer, kind), coin = line.name
    return customer, kind, coin


def _units(value: object) -> object:
    """Return the whole number in a column of units, or *value* as it is if that is none, so that a finding shows it."""
    units = stored_units(value)
    return str(value) if units is None else units


def _seq(name: object) -> int | None:
    """Return *name* if it is the number of an entry, as those of holds are."""
    return name if isinstance(name, int) else None


def _seq_of(row: tuple[Any, int]) -> int:
    return row[1]


def _shown(table: str, name: object) -> str:
    return f"{table} {' '.join(map(str, name)) if isinstance(name, tuple) else name}"
