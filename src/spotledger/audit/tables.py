"""
The comparison, at the end of the pass, of the tables that are updated in place: balances, customers, holds, coins,
reversals.

They are as of the last sealed entry. In a ledger that is being written, rows changed by entries after the last one
read are skipped; the next audit compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import Any, Final

from spotledger.audit.books import Line, mixed, sides, stored_units
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.storage.encoding import column
from spotledger.storage.sqlite.audit import BooksFile
from spotledger.storage.sqlite.books import unpack_segments
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    OWNER_BUCKETS,
    SEGMENT_BUCKETS,
    RowSum,
    owner_bucket,
    row_digest,
    sum_of,
)
from spotledger.storage.sqlite.raw import Row

#: By bucket: how many rows, and the sum of their digests.
Sums = dict[int, list[int]]

_HOLDS_A_PAGE: Final = 2_000
_SEGMENT_BYTES: Final = 4


class WholeTables:
    """Compares the tables that are updated in place."""

    def __init__(self, books: BooksFile, journal: JournalPass, findings: Findings, segment_entries: int) -> None:
        """Compare the tables in *books* with what *journal* led to."""
        self._books = books
        self._journal = journal
        self._findings = findings
        self._note = findings.add
        self._segment_entries = segment_entries
        self._mixed: dict[int, int] = {}

    def compare(self) -> None:
        """Compare all of them."""
        for what, compare in (
            ("the books", self._compare_extremes),
            ("balances and customers", self._compare_owners),
            ("the holds", self._compare_holds),
            ("coins and reversals", self._compare_small_tables),
        ):
            with self._findings.noting(what):
                compare()

    def _compare_extremes(self) -> None:
        """Look for rows of segments, entries and buckets that do not exist."""
        sealed_to, extremes = self._books.extremes()
        buckets = sealed_to // self._segment_entries * SEGMENT_BUCKETS
        bounds = {
            "key_bucket": (0, buckets - 1),
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

    # --- owners: balances and customers -----------------------------------------------------------------

    def _compare_owners(self) -> None:
        first_sealed_to: int | None = None
        seen: set[int] = set()
        names: set[str] = set()
        customers = {customer: (seq,) for customer, seq in self._journal.customers.items()}
        for page in self._books.owner_pages(OWNER_BUCKETS):
            first_sealed_to = page.sealed_to if first_sealed_to is None else first_sealed_to
            for row in page.balances:
                self._compare_balance(page.sealed_to, row, seen)
            for row in page.customers:
                names.add(row[1])
                self._compare_listed("customer", row[1], row[2:], customers, page.sealed_to, row[2])
                self._compare_bucket("customer", row[0], row[1], row[2])
            sums: Sums = {}
            add_up(sums, "balance", page.balances)
            add_up(sums, "customer", page.customers)
            compare_sums(self._findings, "owner_bucket", sums, page.sums)
        sealed_to = first_sealed_to or 0
        for line in self._journal.lines.values():
            if id(line) not in seen and (state := _state_at(line, sealed_to)) is not None:
                self._note("balance_row_missing", state[0], f"balance {line}", "no row", _shown(*state))
        self._note_missing("customer", names, customers, sealed_to, 0)

    def _compare_bucket(self, table: str, bucket: int, owner: str, seq: int) -> None:
        if bucket != owner_bucket(owner):
            where = f"{table} {owner}"
            self._note(f"{table}_row_differs", seq, where, f"in bucket {bucket}", f"in bucket {owner_bucket(owner)}")

    def _compare_balance(self, sealed_to: int, row: Row, seen: set[int]) -> None:
        bucket, customer, kind, coin, available, freeze, seq, segments = row
        line = self._journal.lines.get(((customer, kind), coin))
        if line is None or id(line) in seen:
            if not self._journal.seq < seq <= sealed_to:  # it may be new since the last entry read
                self._note("balance_row_extra", seq, f"balance {customer} {kind} {coin}", str(row[4:7]), "no row")
            return
        seen.add(id(line))
        self._compare_bucket("balance", bucket, customer, seq)
        where = f"balance {line}"
        if not self._journal.seq < seq <= sealed_to:
            state = _state_at(line, sealed_to)
            if state is None:
                self._note("balance_row_extra", seq, where, str(row[4:7]), "no row yet")
                return
            expected = (column(state[1]), column(state[2]), state[0])
            if (available, freeze, seq) != expected or isinstance(available, float) or isinstance(freeze, float):
                found = _shown(seq, available, freeze)
                self._note("balance_row_differs", seq, where, found, _shown(*state))
        wrong = self._wrong_segments(line, segments, sealed_to)
        if wrong is not None:
            self._note("balance_row_differs", seq, where, *wrong)

    def _wrong_segments(self, line: Line, packed: bytes, sealed_to: int) -> tuple[str, str] | None:
        """Return which segments a balance names and which it should, in words; None if they are the same."""
        journal, size = self._journal, self._segment_entries
        if journal.has_gaps:
            return None
        if len(packed) % _SEGMENT_BYTES:
            return f"{len(packed)} bytes of segments", f"{_SEGMENT_BYTES} bytes each"
        numbers = unpack_segments(packed)
        compared = (journal.first_seq - 1) // size
        sealed = [number for number in numbers if number < compared]
        newer = numbers[len(sealed) :]
        if any(left >= right for left, right in pairwise(numbers)) or self._sum_of(sealed) != line.segments:
            return f"segments {_some(sealed)}", "those whose entries touched it, rising"
        touched = {(journal.first_seq + place - 1) // size for place in line.places or ()}
        expected = sorted(number for number in touched if (number + 1) * size <= sealed_to)
        if newer != expected and sealed_to <= journal.seq:
            return f"segments {_some(newer)} since {compared}", _some(expected)
        return None

    def _sum_of(self, segments: Iterable[int]) -> int:
        known = self._mixed
        for segment in segments:
            if segment not in known:
                known[segment] = mixed(segment)
        return sum([known[segment] for segment in segments])

    # --- holds ------------------------------------------------------------------------------------------

    def _compare_holds(self) -> None:
        """Compare again the holds that are open, or were open in the table when their segment was compared."""
        journal = self._journal
        ids = iter(
            [*journal.closed_otherwise, *(hold_id for hold_id in journal.holds if hold_id not in journal.opened)]
        )
        while batch := list(islice(ids, _HOLDS_A_PAGE)):
            sealed_to, rows = self._books.holds_of_ids(batch)
            for row in rows:
                self._compare_hold(sealed_to, row)

    def _compare_hold(self, sealed_to: int, row: Row) -> None:
        hold_id, remaining, closed_seq = row[0], row[5], row[9]
        states = self._hold_states(hold_id)
        seq, left = next((state for state in reversed(states) if state[0] <= sealed_to), states[0])
        closed = None if left else seq
        if remaining == column(left) and closed_seq == closed and not isinstance(remaining, float):
            return
        bound = self._journal.seq
        in_row = stored_units(remaining)
        if sealed_to > bound and in_row is not None and _moved_on(in_row, closed_seq, left, bound):
            return
        found = f"remaining {remaining}, closed by {closed_seq}"
        self._note("hold_row_differs", hold_id, f"hold {hold_id}", found, f"remaining {left}, closed by {closed}")

    def _hold_states(self, hold_id: int) -> list[tuple[int, int]]:
        """Return what remained of a hold, each with the entry since which it did, as far as the pass remembers."""
        uses = self._journal.uses.get(hold_id)
        if uses is not None:
            return uses
        closed_seq = self._journal.closed_otherwise.get(hold_id)
        return [(closed_seq, 0)] if closed_seq else [(hold_id, self._journal.holds[hold_id].remaining)]

    # --- coins, reversals, counts -----------------------------------------------------------------------

    def _compare_small_tables(self) -> None:
        tables = self._books.small_tables()
        if tables is None:
            return  # that the row of the books is missing is noted already
        facts, sealed_to = tables.facts, tables.facts.sealed_to
        coins = self._journal.coins
        reversals = {seq: (by_seq,) for seq, by_seq in self._journal.reversals.items()}
        for coin, scale, seq in tables.coins:
            self._compare_listed("coin", coin, (scale, seq), coins, sealed_to, seq)
        for seq, by_seq in tables.reversals:
            self._compare_listed("reversal", seq, (by_seq,), reversals, sealed_to, by_seq)
        self._note_missing("coin", {row[0] for row in tables.coins}, coins, sealed_to, 1)
        self._note_missing("reversal", {row[0] for row in tables.reversals}, reversals, sealed_to, 0)
        self._compare_count("coin", (facts.coins, facts.coins_digest), sum_of(_named("coin", tables.coins)).kept())
        found: RowSum = sum_of(_named("reversal", tables.reversals))
        self._compare_count("reversal", (facts.reversals, facts.reversals_digest), found.kept())
        self._compare_count("buckets", (facts.buckets, facts.buckets_digest), tables.buckets)
        open_holds, counts = facts.open_holds, tables.counts
        self._compare_count("customer_name", facts.customers, counts["customer_name"])
        self._compare_count("hold_age", open_holds, counts["hold_age"])
        self._compare_count("hold_open", open_holds, counts["hold_open"])
        self._compare_count("hold_due", facts.expiring_holds, counts["hold_due"])

    def _compare_count(self, where: str, kept: object, found: object) -> None:
        if kept != found:
            self._note("count_differs", None, f"books {where}", str(kept), str(found))

    def _compare_listed(
        self,
        table: str,
        name: Any,
        values: tuple[Any, ...],
        expected: Mapping[Any, tuple[Any, ...]],
        sealed_to: int,
        seq: int,
    ) -> None:
        """Compare a row that is written once, by the entry *seq*, with what the journal led to for *name*."""
        wanted = expected.get(name)
        if (wanted == values and seq <= sealed_to) or self._journal.seq < seq <= sealed_to:
            return
        code = f"{table}_row_extra" if wanted in (None, values) else f"{table}_row_differs"
        self._note(code, seq, f"{table} {name}", str(values), "no row" if wanted is None else str(wanted))

    def _note_missing(
        self, table: str, seen: set[Any], expected: Mapping[Any, tuple[Any, ...]], sealed_to: int, place: int
    ) -> None:
        """Note the rows that are missing; the value at *place* of a row is its entry."""
        for name, values in expected.items():
            if name not in seen and values[place] <= sealed_to:
                self._note(f"{table}_row_missing", values[place], f"{table} {name}", "no row", str(values))


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


def _state_at(line: Line, sealed_to: int) -> tuple[int, int, int] | None:
    """Return ``seq``, available and freeze of a line after the entry *sealed_to*; None if no entry had touched it."""
    rows = line.rows
    if rows is None or line.seq <= sealed_to:
        return (line.seq, line.available, line.freeze) if line.seq else None
    for place in range(len(rows) - 3, -1, -3):
        seq, available, freeze = rows[place : place + 3]
        if seq <= sealed_to:
            return (seq, available, freeze) if seq else None
    return None


def _moved_on(remaining: int, closed_seq: int | None, left: int, bound: int) -> bool:
    """Say whether a row can be of an entry after *bound*, at which something was *left* of the hold."""
    return bool(left) and ((closed_seq or 0) > bound if not remaining else remaining < left)


def _named(table: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    return ((table, row) for row in rows)


def _shown(seq: int, available: object, freeze: object) -> str:
    return f"{sides(available, freeze)} as of entry {seq}"


def _some(segments: list[int]) -> str:
    return f"{segments[:8]}" if len(segments) <= 8 else f"{len(segments)}, from {segments[0]} to {segments[-1]}"


# --- sums of buckets ------------------------------------------------------------------------------------------------


def add_up(sums: Sums, table: str, rows: Iterable[tuple[Any, ...]], ids_in_bucket: int = 1) -> None:
    """Add *rows* of *table* to *sums*; the first column is the bucket, or an id of which a bucket has so many."""
    for row in rows:
        bucket = row[0] // ids_in_bucket
        found = sums.get(bucket)
        if found is None:
            sums[bucket] = [1, row_digest(table, row)]
        else:
            found[0] += 1
            found[1] += row_digest(table, row)


def compare_sums(findings: Findings, table: str, sums: Sums, kept: dict[int, tuple[int, bytes]]) -> None:
    """Compare what was added up with what is *kept* in the rows of *table*."""
    nothing = RowSum().kept()
    for bucket in sorted(sums.keys() | kept.keys()):
        count, total = sums.get(bucket, (0, 0))
        actual = (count, (total % (1 << 128)).to_bytes(16, "little"))
        said = kept.get(bucket, nothing)
        if said != actual:
            findings.add("bucket_sum_differs", None, f"{table} {bucket}", _shown_sum(said), _shown_sum(actual))


def _shown_sum(sum_of_rows: tuple[Any, Any]) -> str:
    count, digest = sum_of_rows
    return f"{count} rows, {digest.hex() if isinstance(digest, bytes) else digest}"
