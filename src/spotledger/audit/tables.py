"""
Comparing the tables that are kept up to date as a whole, at the end of the pass: balances, holds, coins, customers,
reversals.

They stand for the last sealed entry, but rows of the segment that is being sealed may already be there: such a row
may be as its entry left it, too. In a file that is being written, what entries beyond the audit's bound have changed
is passed over; the next audit looks at it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final

from spotledger.audit.books import Line
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.storage.sqlite.audit import AuditFile, Position, Unreadable
from spotledger.storage.sqlite.buckets import HOLD_BUCKET_IDS, SEGMENT_BUCKETS, RowSum, owner_bucket

_HOLDS_A_PAGE: Final = 2_000


class WholeTables:
    """The tables as they stand when the pass has reached its bound."""

    def __init__(self, file: AuditFile, journal: JournalPass, findings: Findings, segment_entries: int) -> None:
        """Compare what *file* has with what *journal* led to."""
        self._file = file
        self._journal = journal
        self._findings = findings
        self._note = findings.add
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
            self._compare_sums,
        ):
            try:
                compare()
            except Unreadable as error:
                self._findings.unreadable(error)

    def _compare_extremes(self) -> None:
        position, extremes = self._file.extremes()
        buckets = position.sealed_to // self._segment_entries * SEGMENT_BUCKETS
        for table, (least, greatest) in extremes.items():
            if least is None or greatest is None:
                continue
            low, high = (0, buckets - 1) if table != "hold" else (1, position.sealed_to)
            if least < low or greatest > high:
                found = f"from {least} to {greatest}"
                self._note("rows_beyond_journal", None, table, found, f"from {low} to {high}")

    # --- balances -------------------------------------------------------------------------------------

    def _compare_balances(self) -> None:
        sealed_to = None
        seen: set[int] = set()
        for position, rows in self._file.balances():
            sealed_to = position.sealed_to if sealed_to is None else sealed_to
            for bucket, customer, kind, coin, available, freeze, seq, _ in rows:
                if bucket != owner_bucket(customer):
                    where = f"balance {customer} {kind} {coin}"
                    self._note("balance_row_differs", seq, where, f"bucket {bucket}", owner_bucket(customer))
                line = self._journal.lines.get(((customer, kind), coin))
                if line is not None:
                    seen.add(id(line))
                self._compare_balance(position, f"{customer} {kind} {coin}", line, int(available), int(freeze), seq)
        for line in self._journal.lines.values():
            first_seq = line.rows[0] or line.rows[3] if line.rows else line.seq
            if id(line) not in seen and 0 < first_seq <= (sealed_to or 0):
                self._note("balance_row_missing", line.seq, f"balance {_where(line)}", "no row", _shown(line))

    def _compare_balance(
        self, position: Position, name: str, line: Line | None, available: int, freeze: int, seq: int
    ) -> None:
        where, found = f"balance {name}", f"available {available}, freeze {freeze} as of entry {seq}"
        if seq > self._journal.seq and seq <= min(position.head_seq, position.sealed_to + self._segment_entries):
            return  # moved on since the bound of this audit
        if line is None:
            self._note("balance_row_extra", seq, where, found, "no row")
            return
        passes = _as_of(_states(line), position.sealed_to, self._segment_entries)
        if (seq, available, freeze) not in passes:
            expected = " or ".join(f"available {a}, freeze {f} as of entry {s}" for s, a, f in passes)
            self._note("balance_row_differs", seq, where, found, expected or "no row")

    # --- holds ----------------------------------------------------------------------------------------

    def _compare_holds(self) -> None:
        """Look again at the holds that are open, or that the table had as open when their segment was compared."""
        journal = self._journal
        ids = iter(
            [*journal.closed_otherwise, *(hold_id for hold_id in journal.holds if hold_id not in journal.opened)]
        )
        while batch := list(islice(ids, _HOLDS_A_PAGE)):
            position, rows = self._file.holds_of_ids(batch)
            for row in rows:
                self._compare_hold(position, row)

    def _compare_hold(self, position: Position, row: tuple[Any, ...]) -> None:
        hold_id, remaining, closed_seq = row[0], int(row[8]), row[9]
        states = self._hold_states(hold_id)
        passes = [
            (left, None if left else seq) for seq, left in _as_of(states, position.sealed_to, self._segment_entries)
        ]
        if (remaining, closed_seq) in passes:
            return
        bound = self._journal.seq
        moved_on = position.head_seq > bound and position.sealed_to + self._segment_entries > bound
        if moved_on and ((closed_seq or 0) > bound or 0 < remaining < states[-1][1]):
            return
        expected = " or ".join(f"remaining {left}, closed by {closed}" for left, closed in passes)
        found = f"remaining {remaining}, closed by {closed_seq}"
        self._note("hold_row_differs", hold_id, f"hold {hold_id}", found, expected)

    def _hold_states(self, hold_id: int) -> list[tuple[int, int]]:
        """Return what remained of a hold, and since which entry, as far as it is remembered."""
        uses = self._journal.uses.get(hold_id)
        if uses is not None:
            return uses
        closed_seq = self._journal.closed_otherwise.get(hold_id)
        return [(closed_seq, 0)] if closed_seq else [(hold_id, self._journal.holds[hold_id].remaining)]

    # --- coins, customers, reversals --------------------------------------------------------------------

    def _compare_listed(self, table: str, expected: Mapping[Any, tuple[Any, ...]]) -> None:
        """Compare a table whose rows are written once; *expected* has the entry (for a reversal, its entry) first."""
        pages = {"coin": self._file.coins, "customer": self._file.customers, "reversal": self._file.reversals}[table]
        sealed_to = None
        seen = set()
        for position, rows in pages():
            sealed_to = position.sealed_to if sealed_to is None else sealed_to
            for row in rows:
                name, *more = row[1:] if table == "customer" else row
                seen.add(name)
                found = tuple(reversed(more))
                seq = found[0]
                if name in expected and expected[name] == found:
                    continue
                if self._journal.seq < seq <= min(position.head_seq, position.sealed_to + self._segment_entries):
                    continue
                code = f"{table}_row_differs" if name in expected else f"{table}_row_extra"
                wanted = f"entry, …: {expected[name]}" if name in expected else "no row"
                self._note(code, seq, f"{table} {name}", f"entry, …: {found}", wanted)
        for name, values in expected.items():
            if name not in seen and values[0] <= (sealed_to or 0):
                self._note(f"{table}_row_missing", values[0], f"{table} {name}", "no row", f"entry, …: {values}")

    # --- sums -------------------------------------------------------------------------------------------

    def _compare_sums(self) -> None:
        """Add up the rows of every bucket, and the small tables, as the service does before it believes them."""
        before = self._file.position().sealed_to
        owners: dict[int, RowSum] = {}
        holds: dict[int, RowSum] = {}
        coins, reversals = RowSum(), RowSum()
        customers = open_holds = expiring = 0
        for row in _rows(self._file.balances()):
            owners.setdefault(row[0], RowSum()).add("balance", row)
        for row in _rows(self._file.customers()):
            owners.setdefault(row[0], RowSum()).add("customer", row)
            customers += 1
        for row in _rows(self._file.holds()):
            holds.setdefault(row[0] // HOLD_BUCKET_IDS, RowSum()).add("hold", row)
            if row[9] is None:
                open_holds += 1
                expiring += row[7] is not None
        for row in _rows(self._file.coins()):
            coins.add("coin", row)
        for row in _rows(self._file.reversals()):
            reversals.add("reversal", row)
        kept = self._file.books_row()
        sums = {table: self._file.bucket_sums(table) for table in ("owner_bucket", "hold_bucket")}
        if kept and kept[7] != before:
            return  # a segment was sealed meanwhile; the next audit adds up again
        found = (*coins.kept(), *reversals.kept(), customers, open_holds, expiring)
        if kept[:7] != found:
            self._note("count_differs", None, "books", str(kept[:7]), str(found))
        self._compare_bucket_sums("owner_bucket", sums["owner_bucket"], owners)
        self._compare_bucket_sums("hold_bucket", sums["hold_bucket"], holds)

    def _compare_bucket_sums(self, table: str, kept: list[Any], found: dict[int, RowSum]) -> None:
        said = {bucket: (rows, digest) for bucket, rows, digest in kept}
        for bucket in sorted(said.keys() | found.keys()):
            actual = found.get(bucket, RowSum()).kept()
            if said.get(bucket, RowSum().kept()) != actual:
                self._note("bucket_sum_differs", None, f"{table} {bucket}", str(said.get(bucket)), str(actual))


def _rows(pages: Iterable[tuple[Position, list[Any]]]) -> Iterator[Any]:
    for _, rows in pages:
        yield from rows


def compare_with_itself(journal: JournalPass, findings: Findings) -> None:
    """Check that freeze is what remains of the open holds, and that each coin adds up to zero."""
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
            findings.add("freeze_unexplained", line.seq, _where(line), found, f"open holds of {remaining}")
    for coin, total in sums.items():
        if total:
            findings.add("coin_not_balanced", None, coin, f"a sum of {total} units", "0")


def _states(line: Line) -> list[tuple[int, int, int]]:
    """Return what a line stood at, and since which entry, as far as it is remembered."""
    if line.rows is None:
        return [(line.seq, line.available, line.freeze)]
    states = list(zip(*[iter(line.rows)] * 3, strict=True))
    return states if states[0][0] else states[1:]


def _as_of(states: list[Any], sealed_to: int, segment_entries: int) -> list[Any]:
    """Return the states that a row may have: as of the last sealed entry, or of the segment that is being sealed."""
    found = []
    for bound in (sealed_to, sealed_to + segment_entries):
        known = [state for state in states if state[0] <= bound]
        if known and known[-1] not in found:
            found.append(known[-1])
    return found


def _where(line: Line) -> str:
    return f"{line.name[0][0]} {line.name[0][1]} {line.name[1]}"


def _shown(line: Line) -> str:
    return f"available {line.available}, freeze {line.freeze}"
