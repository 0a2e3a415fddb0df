"""
Sealing: writing what is derived from a full segment of the journal to its tables, in small steps.

The steps run inside the commits of later entries. They write what memory has of the segment, which a start rebuilds
from the journal with the same code (:meth:`working_set.WorkingSet.apply`). Every row replaces an earlier version, so an
interrupted sealing simply starts again. The last step moves ``sealed_to``. Rows are inserted in the order of their
primary keys: runs of a thousand rows are sorted and merged piece by piece, so that no step sorts much at once.
"""

from __future__ import annotations

import sqlite3
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Hold
from spotledger.storage.encoding import column, pack_places
from spotledger.storage.idempotency_filter import IdempotencyFilter
from spotledger.storage.sqlite.working_set import OpenSegment, WorkingSet

#: How long one call may seal.
STEP_SECONDS: Final = 0.003
_WRITE_ROWS: Final = 400
_RUN: Final = 1024

T = TypeVar("T")


def sorted_in_steps(values: Iterable[T]) -> Iterator[list[T]]:
    """Yield *values* in order, in pieces of about a run; an empty piece stands for a step of sorting."""
    source: Iterator[Any] = iter(values)
    runs: list[list[Any]] = []
    while run := list(islice(source, _RUN)):
        run.sort()
        runs.append(run)
        yield []
    # Marks at which each run is cut; about one run of values lies between two marks.
    stride = max(1, len(runs))
    samples = sorted(value for run in runs for value in run[::stride])
    a_piece = max(1, _RUN // stride)
    marks = samples[a_piece::a_piece]
    begins = [0] * len(runs)
    for mark in [*marks, None]:
        piece: list[Any] = []
        for number, run in enumerate(runs):
            end = len(run) if mark is None else bisect_left(run, mark, begins[number])
            piece += run[begins[number] : end]
            begins[number] = end
        piece.sort()
        yield piece


class Sealing:
    """The sealing of one segment, in steps of about a millisecond."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        idempotency_filter: IdempotencyFilter,
        opened: OpenSegment,
        segment_entries: int,
    ) -> None:
        """Prepare to seal *opened*, a full segment whose entries are all published."""
        self.segment = opened.number
        self.first_seq = opened.number * segment_entries + 1
        self.last_seq = (opened.number + 1) * segment_entries
        #: The part that is done, from 0 to 1.
        self.progress = 0.0
        self.finished = False
        self._connection = connection
        self._filter = idempotency_filter
        self._opened = opened
        self._steps = self._run()

    def step(self) -> None:
        """Do the next step; set :attr:`finished` after the last."""
        try:
            self.progress = next(self._steps)
        except StopIteration:
            self.progress = 1.0
            self.finished = True

    def _run(self) -> Iterator[float]:
        expected = self._expected_steps()
        for done, _ in enumerate(self._write(), 1):
            yield min(done / expected, 0.999)
        self._connection.execute("UPDATE ledger SET sealed_to = ?", (self.last_seq,))

    def _expected_steps(self) -> float:
        opened = self._opened
        keys, holds = len(opened.keys), len(opened.holds)
        lines = sum(map(len, opened.touched.values()))
        rows = keys + 2 * lines + holds + len(opened.holds_of)
        sorted_values = keys + lines + holds + len(opened.holds_of)
        return rows / _WRITE_ROWS + 2 * sorted_values / _RUN + keys / _RUN + 10

    def _write(self) -> Iterator[None]:
        yield from self._write_names()
        yield from self._write_keys()
        yield from self._write_history()
        yield from self._write_holds()
        yield from self._filter.write(self._connection, self.segment)

    # --- writing its tables -------------------------------------------------------------------------

    def _write_names(self) -> Iterator[None]:
        opened = self._opened
        yield from self._insert("INSERT OR REPLACE INTO coin VALUES (?, ?, ?)", opened.coins)
        yield from self._insert("INSERT OR REPLACE INTO customer VALUES (?, ?)", opened.customers.items())
        yield from self._insert("INSERT OR REPLACE INTO reversal VALUES (?, ?)", opened.reversals.items())

    def _write_keys(self) -> Iterator[None]:
        segment = self.segment
        for piece in sorted_in_steps(self._opened.keys.items()):
            self._filter.add(segment, (digest for digest, _ in piece))
            yield
            rows = ((segment, digest, seq) for digest, seq in piece)
            yield from self._insert("INSERT OR REPLACE INTO key_seq VALUES (?, ?, ?)", rows)

    def _write_history(self) -> Iterator[None]:
        segment, touched = self.segment, self._opened.touched
        lines = ((account, coin) for account, coins in touched.items() for coin in coins)
        for piece in sorted_in_steps(lines):
            yield
            for start in range(0, len(piece), _WRITE_ROWS):
                part = piece[start : start + _WRITE_ROWS]
                rows = ((segment, *a, coin, pack_places(touched[a][coin].places)) for a, coin in part)
                yield from self._insert("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?)", rows)
                balances = (self._balance_row(account, coin) for account, coin in part)
                yield from self._insert("INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?, ?, ?)", balances)

    def _balance_row(self, account: Account, coin: str) -> tuple[Any, ...]:
        line = self._opened.touched[account][coin]
        available, freeze = line.closing
        return (*account, coin, column(available), column(freeze), self.first_seq + line.places[-1])

    def _write_holds(self) -> Iterator[None]:
        first_seq, holds = self.first_seq, self._opened.holds
        # Holds are in the order of their first change, which is the opening for those of this segment.
        rows = (_hold_row(hold) for hold_id, hold in holds.items() if hold_id >= first_seq)
        yield from self._insert("INSERT OR REPLACE INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        for piece in sorted_in_steps(hold_id for hold_id in holds if hold_id < first_seq):
            yield
            updates = ((column(holds[i].remaining), holds[i].closed_seq, i) for i in piece)
            yield from self._insert("UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", updates)
        for owners in sorted_in_steps(self._opened.holds_of):
            yield
            yield from self._insert("INSERT OR REPLACE INTO hold_of VALUES (?, ?, ?)", self._owner_rows(owners))

    def _owner_rows(self, customers: Iterable[str]) -> Iterator[tuple[Any, ...]]:
        first_seq, holds_of = self.first_seq, self._opened.holds_of
        for customer in customers:
            places = array("H", [hold_id - first_seq for hold_id in holds_of[customer] if hold_id >= first_seq])
            if places:
                yield (self.segment, customer, pack_places(places))

    def _insert(self, statement: str, rows: Iterable[Any]) -> Iterator[None]:
        """Run *statement* for all *rows*, a few hundred per step."""
        rows = iter(rows)
        while batch := list(islice(rows, _WRITE_ROWS)):
            self._connection.executemany(statement, batch)
            yield


def _hold_row(hold: Hold) -> tuple[Any, ...]:
    hold_id, (customer, kind), coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq = hold
    left = column(remaining)
    return (hold_id, customer, kind, coin, column(amount), left, reference, expires_ms, opened_ms, closed_seq)


class Sealer:
    """Seals one full segment after the other, at the pace of new entries."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        idempotency_filter: IdempotencyFilter,
        memory: WorkingSet,
        segment_entries: int,
        sealed_to: int,
    ) -> None:
        """Continue after *sealed_to*, the last sealed entry."""
        self._connection = connection
        self._filter = idempotency_filter
        self._memory = memory
        self._segment_entries = segment_entries
        #: The last sealed entry, once the commit that is being written returns.
        self.sealed_to = sealed_to
        self._sealing: Sealing | None = None
        self._from, self._span = 0, 1

    def begin(self, head_seq: int, pending_seq: int) -> None:
        """Start to seal the next segment if it is full and published, so that it ends before the next one is full."""
        segment = self.sealed_to // self._segment_entries
        full_at = (segment + 1) * self._segment_entries
        if self._sealing is not None or head_seq < full_at:
            return
        opened = next(opened for opened in self._memory.segments if opened.number == segment)
        self._sealing = Sealing(self._connection, self._filter, opened, self._segment_entries)
        room = full_at + self._segment_entries - pending_seq
        self._from = pending_seq if room > 0 else full_at
        self._span = max(1, min(self._segment_entries // 2, room))

    def is_lagging(self, pending_seq: int) -> bool:
        """Return whether sealing is behind its pace when the journal ends at *pending_seq*."""
        return self._sealing is not None and self._sealing.progress * self._span < pending_seq - self._from

    def catch_up(self, head_seq: int, pending_seq: int) -> None:
        """Seal for a few milliseconds, while behind."""
        until = time.perf_counter() + STEP_SECONDS
        while self._sealing is not None and self.is_lagging(pending_seq) and time.perf_counter() < until:
            self._sealing.step()
            if self._sealing.finished:
                self.sealed_to = self._sealing.last_seq
                self._sealing = None
                self.begin(head_seq, pending_seq)
