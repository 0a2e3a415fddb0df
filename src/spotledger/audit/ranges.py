"""
Ranges of segments, read independently of what precedes them, and joined in order.

An entry has the balances after it and what remains of its holds. So the state before a range can be computed backwards
from the first entry of the range that touches a line or a hold. A sound range returns what it assumed of that state,
and the state that it leads to (:class:`RangeRead`); :func:`join` compares the assumptions with the state that the
ranges before it led to. The result of a join is exactly that of reading the same entries in order without a finding.

The result of a range that is not sound, or does not fit, is dropped: its entries are read in order instead, which
names what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from spotledger.audit.books import EXPIRE, Line, LineName, OpenHold, has_owner
from spotledger.audit.entries import AVAILABLE, EntryRead, decoded
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import KeySpool
from spotledger.audit.report import CHUNK_ENTRIES
from spotledger.audit.source import Source
from spotledger.audit.tables import DerivedTables
from spotledger.domain.accounts import ACCOUNT_IDS, HOUSE_KIND, RECEIVABLE, is_receivable
from spotledger.storage.encoding import genesis_hash

#: When holds opened before a range expire is not known in it: late enough for :func:`join` to look at each use.
_UNKNOWN_MS: Final = 0


class Unsound(Exception):
    """Something in a range is wrong, or cannot be checked without knowing what precedes it."""


class NoFindings(Findings):
    """Raises :class:`Unsound` at the first finding."""

    def add(self, code: str, seq: int | None, where: str, found: Any, expected: Any) -> None:
        raise Unsound(f"{code} in entry {seq}: {where} is {found}, expected {expected}")

    def leave_out(self, why: str) -> None:
        raise Unsound(why)


#: One line of a range: customer, kind of account, coin; the first entry that touched it, and available and freeze
#: before that entry; the last entry that touched it, and available and freeze after that entry; the sum of
#: :func:`mixed` over its segments.
LineRead = tuple[str, str, str, int, int, int, int, int, int, int]
#: One hold opened before a range: its id, index of its line in ``lines``, what remained before, what remains after;
#: when it was last used, and when it expired, each None if it did not happen in the range.
UsedRead = tuple[int, int, int, int, int | None, int | None]


class RangeRead(NamedTuple):
    """A sound range: what it assumes of the state before it, and the state that it leads to. Only plain values."""

    first: int
    last: int
    link_before: bytes
    link: bytes
    booked_first_ms: int
    booked_ms: int
    postings: int
    refusals: int
    coins: dict[str, tuple[int, int]]
    customers: dict[str, int]
    #: The house accounts that it opened as ones that may be below zero.
    overdrafts: set[str]
    lines: list[LineRead]
    #: Accounts that had nothing of a coin available before, or nothing owed if receivable: customer, kind, coin.
    nothing: set[tuple[str, str, str]]
    #: Holds opened before the range.
    used: list[UsedRead]
    #: Holds that the range opened and left open: id, index of the line, what remains, ``closed_seq`` in their row, and
    #: when they expire.
    opened: list[tuple[int, int, int, int | None, int | None]]
    #: Holds closed without a matching ``closed_seq`` in the range's tables, and the entry that closed each.
    closed_otherwise: dict[int, int]
    reversals: dict[int, int]
    key_runs: list[tuple[int, list[int]]]


class RangePass(JournalPass):
    """The pass over one range; it raises :class:`Unsound` at anything that it cannot confirm."""

    def __init__(self, first: int, link: bytes, booked_first_ms: int, entry_at: Callable[[int], bytes | None]) -> None:
        """
        Start before the entry *first*.

        Args:
            first: The first entry of the range.
            link: The stored hash of the entry before it; before entry 1, the hash of the ledger.
            booked_first_ms: When the first entry was booked; the entry before it is assumed to be no later.
            entry_at: Returns the body of an earlier entry, or None.
        """
        super().__init__(NoFindings(), link, entry_at)
        self.seq = first - 1
        self.first_seq = first
        self.booked_ms = booked_first_ms
        self._first = first
        self._booked_first_ms = booked_first_ms
        self._link_before = link
        self._before: list[tuple[Line, int, int, int]] = []
        self._holds_before: dict[int, tuple[Line, int]] = {}
        #: When holds opened before the range were last used, and when they expired.
        self._used_ms: dict[int, int] = {}
        self._expired_ms: dict[int, int] = {}
        self._nothing: set[tuple[str, str, str]] = set()

    def learn(self, entry: EntryRead) -> bool:
        """Compute the state before *entry* of the lines and holds that it is the first in the range to touch."""
        postings, balances = entry.postings, entry.balances
        new: dict[int, Line] = {}
        for place, (account, coin, available, freeze) in enumerate(balances):
            name = (account, coin)
            if name not in self.lines:
                line = new[place] = self.add_line(name)
                line.available, line.freeze = available, freeze
        for place, side, units, _ in postings if new else ():
            if place in new:  # take the posting back
                if side == AVAILABLE:
                    new[place].available -= units
                else:
                    new[place].freeze -= units
        self._learn_debts(new.values())
        self._before += [(line, self.seq, line.available, line.freeze) for line in new.values()]
        return self._learn_holds(entry) or bool(new)

    def _learn_debts(self, new: Iterable[Line]) -> None:
        """Note the debts before the range, if nothing of who owes was touched in it until now."""
        for line in new:
            owner, coin = line.account[0], line.coin
            if line.available >= 0 or not is_receivable(owner):
                continue
            customer = owner.removeprefix(f"{RECEIVABLE}:")
            touched = [self.lines.get(((customer, kind), coin)) for kind in ACCOUNT_IDS]
            if any(line is not None and line not in new for line in touched):
                raise Unsound(f"{customer} owed {coin} before the range, which moved it before that was known")
            self.debts.add((customer, coin))

    def _learn_holds(self, entry: EntryRead) -> bool:
        found = False
        for hold_id, remaining in entry.holds:
            if hold_id < self._first and hold_id not in self.holds:
                if hold_id in self._holds_before:
                    raise Unsound(f"entry {self.seq} uses hold {hold_id}, which is used up")
                uses = [(place, units) for place, _, units, used in entry.postings if used == hold_id]
                if len(uses) != 1:
                    raise Unsound(f"entry {self.seq} does not use hold {hold_id} once")
                ((place, units),) = uses
                account, coin, *_ = entry.balances[place]
                line = self.lines[account, coin]
                self.holds[hold_id] = OpenHold(line, remaining - units, _UNKNOWN_MS)
                self._holds_before[hold_id] = (line, remaining - units)
                found = True
        return found

    def _begin_epoch(self, entry: EntryRead) -> None:
        raise Unsound(f"entry {self.seq} begins an epoch, which only those before can be compared with")

    def _new_line(self, name: LineName) -> Line:
        raise Unsound(f"entry {self.seq} posts to {name} without a balance after it")

    def available(self, name: LineName) -> int:
        """Return what an account has available after the entry; one not touched yet is assumed to have nothing."""
        if name not in self.lines:
            (customer, kind), coin = name
            self._nothing.add((customer, kind, coin))
        return super().available(name)

    def check_time(self, entry: EntryRead, hold_id: int, hold: OpenHold) -> None:
        """Check the time of a use; if the hold was opened before the range, remember the use for :func:`join`."""
        if hold_id not in self._holds_before:
            super().check_time(entry, hold_id, hold)
        else:
            (self._expired_ms if entry.kind == EXPIRE else self._used_ms)[hold_id] = entry.booked_ms

    def result(self, key_runs: list[tuple[int, list[int]]]) -> RangeRead:
        """Return the result of the range, once it is read to its end and compared with its tables."""
        if self.link is None:
            raise Unsound(f"entry {self.seq} is missing")
        lines: list[LineRead] = []
        places: dict[int, int] = {}
        for line, first_seq, available, freeze in self._before:
            (customer, kind), coin = line.name
            places[id(line)] = len(lines)
            now = (line.seq, line.available, line.freeze, line.segments)
            lines.append((customer, kind, coin, first_seq, available, freeze, *now))
        used: list[UsedRead] = []
        for hold_id, (line, remaining) in self._holds_before.items():
            left = self.holds[hold_id].remaining if hold_id in self.holds else 0
            times = (self._used_ms.get(hold_id), self._expired_ms.get(hold_id))
            used.append((hold_id, places[id(line)], remaining, left, *times))
        opened = [
            (hold_id, places[id(hold.line)], hold.remaining, hold.row_closed_seq, hold.expires_ms)
            for hold_id, hold in self.holds.items()
            if hold_id not in self._holds_before
        ]
        return RangeRead(
            self._first, self.seq, self._link_before, self.link, self._booked_first_ms, self.booked_ms,
            self.postings, self.refusals, self.coins, self.customers, self.overdrafts, lines, self._nothing, used,
            opened, self.closed_otherwise, self.reversals, key_runs,
        )  # fmt: skip


class RangeReader:
    """Reads ranges of one ledger."""

    def __init__(self, source: Source, spool: KeySpool) -> None:
        """
        Read ranges of *source*, which is open and has :class:`NoFindings`; the digests of the keys go to *spool*.

        Raises:
            Unsound: What the store says of its entries is wrong, or it is not known which ledger it is.
            Unreadable: The ledger cannot be read.
        """
        ledger_id = source.ledger_id()
        if ledger_id is None:
            raise Unsound("which ledger it is, is not known")
        source.begin_entries()
        self._source = source
        self._spool = spool
        self._genesis = genesis_hash(ledger_id)

    def read(self, segments: range) -> RangeRead:
        """
        Read the entries of whole sealed *segments*, in order, and compare them with their tables.

        Raises:
            Unsound: Something is wrong; the spool is as it was before.
            Unreadable: The ledger cannot be read.
            OSError: The digests cannot be written.
        """
        runs = self._spool.run_count()
        size = self._source.segment_entries
        try:
            journal = self._start(segments[0] * size + 1)
            tables = DerivedTables(self._source, journal, self._spool)
            for border in range((segments[0] + 1) * size, (segments[-1] + 1) * size + 1, size):
                while journal.seq < border:
                    last = min(journal.seq + CHUNK_ENTRIES, border)
                    journal.take(self._source.entries(journal.seq + 1, last), last)
                tables.compare_segment()
            return journal.result(self._spool.runs_from(runs))
        except BaseException:
            self._spool.forget_from(runs)
            raise

    def _start(self, first: int) -> RangePass:
        """Begin before the entry *first*, with the hash and time that the ledger has there."""
        source = self._source
        before = [(0, b"", self._genesis)] if first == 1 else source.entries(first - 1, first - 1)
        rows = source.entries(first, first)
        entry = decoded(rows[0][1]) if rows else None
        if not before or entry is None:
            raise Unsound(f"entry {first} or the one before it is missing or cannot be read")
        return RangePass(first, before[0][2], entry.booked_ms, source.body)


def join(journal: JournalPass, read: RangeRead) -> bool:
    """
    Advance *journal* over the range *read*, if its assumptions hold there; return whether they do.

    If they do not, nothing is changed.
    """
    if not _fits(journal, read):
        return False
    journal.coins.update(read.coins)
    journal.customers.update(read.customers)
    journal.overdrafts |= read.overdrafts
    lines = []
    for line_read in read.lines:
        customer, kind, coin = line_read[:3]
        name = ((customer, kind), coin)
        line = journal.lines.get(name)
        if line is None:
            line = journal.add_line(name)
        line.seq, line.available, line.freeze, segments = line_read[6:]
        line.segments += segments
        lines.append(line)
        if is_receivable(customer):
            debt = (customer.removeprefix(f"{RECEIVABLE}:"), coin)
            (journal.debts.add if line.available < 0 else journal.debts.discard)(debt)
    for hold_id, _, _, remaining, *_ in read.used:
        if remaining:
            journal.holds[hold_id].remaining = remaining
    for hold_id, closed_seq in read.closed_otherwise.items():
        hold = journal.holds.pop(hold_id, None)
        if hold is None or hold.row_closed_seq != closed_seq:
            journal.closed_otherwise[hold_id] = closed_seq
    for hold_id, place, remaining, row_closed_seq, expires_ms in read.opened:
        hold = journal.holds[hold_id] = OpenHold(lines[place], remaining, expires_ms)
        hold.row_closed_seq = row_closed_seq
    journal.reversals.update(read.reversals)
    journal.postings += read.postings
    journal.refusals += read.refusals
    journal.seq, journal.link, journal.booked_ms = read.last, read.link, read.booked_ms
    journal.forget_collected()
    return True


def _fits(journal: JournalPass, read: RangeRead) -> bool:
    """Say whether all assumptions of the range hold."""
    return (
        read.first == journal.seq + 1
        and read.link_before == journal.link
        and read.booked_first_ms >= journal.booked_ms
        and journal.coins.keys().isdisjoint(read.coins)
        and journal.customers.keys().isdisjoint(read.customers)
        and journal.reversals.keys().isdisjoint(read.reversals)
        and all(_line_fits(journal, read, line_read) for line_read in read.lines)
        and not (journal.debts and _moves_of_debtors(journal, read))
        and all(_hold_fits(journal, read, *used) for used in read.used)
        and not any(journal.available(((customer, kind), coin)) for customer, kind, coin in read.nothing)
    )


def _moves_of_debtors(journal: JournalPass, read: RangeRead) -> bool:
    """Say whether the range moved a coin of somebody who owed it without touching, and so without knowing, the debt."""
    touched = {(customer, coin) for customer, kind, coin, *_ in read.lines if kind != HOUSE_KIND}
    known = {(owner.removeprefix(f"{RECEIVABLE}:"), coin) for owner, _, coin, *_ in read.lines if is_receivable(owner)}
    return bool(journal.debts & touched - known)


def _line_fits(journal: JournalPass, read: RangeRead, line_read: LineRead) -> bool:
    customer, kind, coin, first_seq, available, freeze, *_ = line_read
    line = journal.lines.get(((customer, kind), coin))
    if line is not None:
        return line.available == available and line.freeze == freeze
    if available or freeze:
        return False
    _, listed_seq = journal.coins.get(coin) or read.coins.get(coin) or (0, first_seq)
    if listed_seq >= first_seq:
        return False

    def registered(customer: str) -> bool:
        return (journal.customers.get(customer) or read.customers.get(customer, first_seq)) < first_seq

    return has_owner((customer, kind), registered)


def _hold_fits(
    journal: JournalPass,
    read: RangeRead,
    hold_id: int,
    place: int,
    before: int,
    _: int,
    used_ms: int | None,
    expired_ms: int | None,
) -> bool:
    hold = journal.holds.get(hold_id)
    if hold is None or hold.remaining != before:
        return False
    expires_ms = hold.expires_ms
    is_late = used_ms is not None and expires_ms is not None and used_ms >= expires_ms
    if is_late or (expired_ms is not None and (expires_ms is None or expired_ms < expires_ms)):
        return False
    customer, kind, coin = read.lines[place][:3]
    return hold.line.name == ((customer, kind), coin)
