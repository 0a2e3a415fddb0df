"""
What the entries changed that are not sealed yet: an index of each open segment, the same in both stores.

An open segment is dropped as a whole once it is sealed, because the tables have then what it has.
"""

from __future__ import annotations

import heapq
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from spotledger.domain.accounts import ZERO, Account
from spotledger.domain.journal import Hold

#: Entries of a segment that is freed in a thread.
LET_GO_BESIDE: Final = 4_096


class TouchedLine:
    """The entries of one segment that changed one coin of an account: their positions, and the balance after them."""

    __slots__ = ("closing", "places")

    def __init__(self) -> None:
        """Start with no entries."""
        self.closing = ZERO
        self.places = array("H")


class OpenSegment:
    """What the entries of one segment changed, until it is sealed."""

    __slots__ = (
        "changed",
        "customers",
        "expiries",
        "first_seq",
        "holds",
        "holds_of",
        "keys",
        "number",
        "opened",
        "references",
        "repeated_references",
        "reversals",
        "touched",
    )

    def __init__(self, number: int, first_seq: int) -> None:
        """Create the empty segment *number*, whose first entry is *first_seq*."""
        self.number = number
        self.first_seq = first_seq
        #: Entries by the digests of their idempotency keys.
        self.keys: dict[bytes, int] = {}
        #: The place of the first entry with each reference, and the places of the later ones.
        self.references: dict[str, int] = {}
        self.repeated_references: dict[str, array[int]] = {}
        self.customers: dict[str, int] = {}
        #: The holds that it opened or changed, as it leaves them.
        self.holds: dict[int, Hold] = {}
        #: Of holds that it changed and of which nothing else is known: what remains, and the entry that says so.
        self.changed: dict[int, tuple[int, int]] = {}
        #: The holds that it opened, by idempotency key: most are named by it soon after.
        self.opened: dict[str, int] = {}
        self.expiries: list[tuple[int, int]] = []
        self.holds_of: dict[str, dict[int, None]] = {}
        self.touched: dict[Account, dict[str, TouchedLine]] = {}
        self.reversals: dict[int, int] = {}

    def note_reference(self, reference: str, seq: int) -> None:
        """Note that the request of the entry *seq* has this *reference*."""
        place = seq - self.first_seq
        if self.references.setdefault(reference, place) != place:
            self.repeated_references.setdefault(reference, array("H")).append(place)

    def seqs_with_reference(self, reference: str) -> list[int]:
        """Return the entries with this *reference*, in order."""
        first = self.references.get(reference)
        if first is None:
            return []
        return [self.first_seq + place for place in (first, *self.repeated_references.get(reference, ()))]

    def let_go(self) -> None:
        """Empty the large mappings item by item: to free one at once would stop the other threads for some ms."""
        parts: tuple[dict[Any, Any], ...] = (
            *(self.keys, self.references, self.opened, self.holds, self.changed, self.holds_of, self.touched),
        )
        for part in parts:
            while part:
                part.popitem()


class OpenSegments:
    """The segments that are not sealed yet, in order, and the holds in the tables that are known to be overdue."""

    def __init__(self, segment_entries: int) -> None:
        """Start with none; *segment_entries* is the number of entries in a segment, 65,536 at most."""
        self._segment_entries = segment_entries
        self.segments: list[OpenSegment] = []
        self._overdue: list[tuple[int, int]] = []

    def opened_by(self, key: str) -> int | None:
        """Return the hold that an open segment opened under *key*, or None."""
        for segment in reversed(self.segments):
            hold_id = segment.opened.get(key)
            if hold_id is not None:
                return hold_id
        return None

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as the open segments leave it, or None if they did not change it."""
        for segment in reversed(self.segments):
            hold = segment.holds.get(hold_id)
            if hold is not None:
                return hold
        return None

    def changed_holds_of(self, customer: str) -> dict[int, Hold]:
        """Return the holds of *customer* that the open segments changed, at the head."""
        found = {}
        for segment in self.segments:
            for hold_id in segment.holds_of.get(customer, ()):
                found[hold_id] = segment.holds[hold_id]
        return found

    def holds_opened_after(self, after: int) -> Iterator[Hold]:
        """Yield the holds above *after* that the open segments opened, at the head, by id."""
        for segment in self.segments:
            for hold_id in segment.holds:  # in the order of their first change, here the opening
                if hold_id > max(after, segment.number * self._segment_entries):
                    hold = self.hold(hold_id)
                    if hold is not None:
                        yield hold

    def last_touch(self, account: Account, coin: str, seq: int) -> int | None:
        """Return the last entry of the open segments, at most *seq*, that changed *coin* of the account, or None."""
        for segment in reversed(self.segments):
            line = segment.touched.get(account, {}).get(coin)
            if line is not None:
                count = bisect_right(line.places, seq - segment.first_seq)
                if count:
                    return segment.first_seq + line.places[count - 1]
        return None

    def pop_due(self, now_ms: int) -> int | None:
        """Remove and return a hold that expires by *now_ms*, or None; :meth:`watch_overdue` puts it back."""
        for expiries in (self._overdue, *[segment.expiries for segment in self.segments]):
            if expiries and expiries[0][0] <= now_ms:
                return heapq.heappop(expiries)[1]
        return None

    def watch_overdue(self, hold: Hold) -> None:
        """Have *hold*, which has expired, returned again by :meth:`pop_due`."""
        if hold.expires_ms is not None:
            heapq.heappush(self._overdue, (hold.expires_ms, hold.hold_id))

    def put_back_due(self, holds: Iterable[int]) -> None:
        """Have *holds* returned again by :meth:`pop_due`, because they could not be looked at."""
        for hold_id in holds:
            heapq.heappush(self._overdue, (0, hold_id))

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry of the open segments that reversed the entry *seq*, or None."""
        for segment in self.segments:
            if seq in segment.reversals:
                return segment.reversals[seq]
        return None

    def seqs_touching(self, accounts: Sequence[Account], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the first *limit* entries of the open segments after *after_seq* that changed *coin* of *accounts*."""
        found: list[int] = []
        for segment in self.segments:
            places: set[int] = set()
            for account in accounts:
                for name, line in segment.touched.get(account, {}).items():
                    if coin in (None, name):
                        begin = bisect_right(line.places, after_seq - segment.first_seq)
                        places.update(line.places[begin : begin + limit])
            found += [segment.first_seq + place for place in sorted(places)]
            if len(found) >= limit:
                break
        return found[:limit]

    def seqs_with_reference(self, reference: str, after_seq: int) -> list[int]:
        """Return the entries of the open segments after *after_seq* with this *reference*, in order."""
        seqs = (seq for segment in self.segments for seq in segment.seqs_with_reference(reference))
        return [seq for seq in seqs if seq > after_seq]

    def _put_hold(self, segment: OpenSegment, hold: Hold) -> None:
        hold_id = hold.hold_id
        if hold_id not in segment.holds:
            customer = hold.account.customer
            owned = segment.holds_of.get(customer)
            if owned is None:
                owned = segment.holds_of[customer] = {}
            owned[hold_id] = None
        segment.holds[hold_id] = hold

    def _segment_of(self, seq: int) -> OpenSegment:
        number = (seq - 1) // self._segment_entries
        if not self.segments or self.segments[-1].number < number:
            self.segments.append(OpenSegment(number, number * self._segment_entries + 1))
        return self.segments[-1]

    def _drop_to(self, sealed_to: int, due_seen: tuple[int, int]) -> Iterator[OpenSegment]:
        """
        Drop the segments up to the entry *sealed_to*, which are in the tables now, and yield each before it is emptied.

        Args:
            sealed_to: The last sealed entry.
            due_seen: The expiry and id of the last hold that the search for due holds has read from the table.
        """
        sealed_segments = sealed_to // self._segment_entries
        while self.segments and self.segments[0].number < sealed_segments:
            segment = self.segments.pop(0)
            while segment.expiries and segment.expiries[0] <= due_seen:
                heapq.heappush(self._overdue, heapq.heappop(segment.expiries))
            yield segment
            if len(segment.holds) + len(segment.keys) >= LET_GO_BESIDE:
                threading.Thread(target=segment.let_go, name="let-go", daemon=True).start()
