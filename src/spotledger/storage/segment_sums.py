"""
What the entries of a segment add up to: the second path to every balance and hold, which sealing writes.

Balances and what remains of holds are added up from the postings, and compared with what each entry says is there after
it. So what the writer had in memory is checked independently, in both stores by the same code.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeAlias

from spotledger.domain.accounts import house_name
from spotledger.domain.journal import AVAILABLE
from spotledger.domain.operations import Freeze, ListCoin, OpenHouseAccount, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import EntryChanges, column, key_digest

#: Columns of a row of the table of holds, by their place.
HOLD_CUSTOMER: Final = 1
HOLD_REMAINING: Final = 5
HOLD_EXPIRES_MS: Final = 7
HOLD_CLOSED_SEQ: Final = 9

#: Account (customer, kind) and coin.
LineName: TypeAlias = tuple[tuple[str, str], str]


class Before(NamedTuple):
    """A balance as it is before the segment: both sides in units, and the row as its store has it."""

    available: int
    freeze: int
    row: Any


class RowsBefore(Protocol):
    """The rows that are derived from the segments before."""

    def lines(self, names: Iterable[LineName]) -> Mapping[LineName, Before]:
        """Return the balances with these *names*; one without a row is left out."""

    def holds(self, ids: Sequence[int]) -> Iterable[tuple[Any, ...]]:
        """Return the rows of the holds with these *ids*, with what remains as something that `int` takes."""


class Line:
    """One account and coin: the balance before, what the postings add up to, and the places of the entries."""

    __slots__ = ("available", "before", "freeze", "places")

    def __init__(self, before: Before | None) -> None:
        """Start with the balance *before* the segment; None: zero."""
        self.before = before
        self.available, self.freeze = (0, 0) if before is None else before[:2]
        self.places = array("H")


class SegmentSums:
    """What consecutive entries, at most 65,536, add up to."""

    def __init__(self, rows: RowsBefore, first_seq: int) -> None:
        """Start before the entry *first_seq*; *rows* has what is derived from the entries before it."""
        self._rows = rows
        self.first_seq = first_seq
        #: The digests of the idempotency keys, in the order of the entries.
        self.keys: list[bytes] = []
        #: The references of requests, each with the place of its entry, in the order of the entries.
        self.references: list[tuple[str, int]] = []
        self.coins: list[tuple[str, int, int]] = []
        self.customers: list[tuple[str, int]] = []
        self.reversals: list[tuple[int, int]] = []
        self.lines: dict[LineName, Line] = {}
        #: Rows of the table of holds, as the segment leaves them; and as they were before.
        self.holds: dict[int, list[Any]] = {}
        self.holds_before: dict[int, tuple[Any, ...]] = {}

    def load(self, entries: Iterable[EntryChanges]) -> None:
        """Load what *entries*, which are the next ones, change and was not loaded."""
        names = {(account, coin) for entry in entries for account, coin, _, _ in entry.balances}
        missing = names - self.lines.keys()
        found = self._rows.lines(missing)
        for name in missing:
            self.lines[name] = Line(found.get(name))
        ids = {hold for entry in entries for hold, _ in entry.holds if hold < self.first_seq}
        for row in self._rows.holds(sorted(ids - self.holds.keys())):
            self.holds_before[row[0]] = row
            self.holds[row[0]] = hold = list(row)
            hold[HOLD_REMAINING] = int(hold[HOLD_REMAINING])

    def take(self, entry: EntryChanges) -> None:
        """
        Add up one entry.

        Raises:
            LedgerCorrupt: It says that after it there is something else, of a balance or a hold, than its postings
                lead to.
        """
        self.keys.append(key_digest(entry.key))
        reference = entry.request.reference
        if reference is not None:
            self.references.append((reference, entry.seq - self.first_seq))
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
        elif kind == OpenHouseAccount.kind:  # registered like a customer, who cannot have a name with @
            self.customers.append((house_name(_named(entry, "name")), entry.seq))

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
                holds[hold][HOLD_REMAINING] += units
        seq_place = seq - self.first_seq
        for line, (_, _, available, freeze) in zip(lines, balances, strict=True):
            if line.available != available or line.freeze != freeze:
                raise _contradiction(entry, lines.index(line), line)
            line.places.append(seq_place)
        for hold, remaining in entry.holds:
            row = holds[hold]
            if row[HOLD_REMAINING] != remaining:
                raise LedgerCorrupt(
                    f"entry {seq} says that hold {hold} has {remaining} units left after it; its postings lead to"
                    f" {row[HOLD_REMAINING]}"
                )
            row[HOLD_CLOSED_SEQ] = None if remaining else seq


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


def _contradiction(entry: EntryChanges, place: int, line: Line) -> LedgerCorrupt:
    (customer, _), coin, available, freeze = entry.balances[place]
    return LedgerCorrupt(
        f"entry {entry.seq} says that {customer} has {available} and {freeze} units of {coin} after"
        f" it; its postings lead to {line.available} and {line.freeze}"
    )
