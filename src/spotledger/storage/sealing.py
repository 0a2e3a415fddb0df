"""
Sealing: writing what follows from one full segment of the journal to its tables, in small steps.

The steps run inside the commits of the entries that come after. All of it is read from the journal again, never from
memory, and every row replaces its like, so a sealing that was cut off is simply begun anew. The last step moves
``sealed_to``. Rows go in sorted by their primary keys: runs of a thousand are sorted as they come and merged while
they are written, so that no step sorts much at once.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final, Generic, TypeVar

from spotledger.domain.operations import Freeze, ListCoin, RegisterCustomer, Reverse
from spotledger.storage.encoding import Change, column, decode_change, key_digest
from spotledger.storage.key_filter import KeyFilter

_READ_ENTRIES: Final = 128
_WRITE_ROWS: Final = 400
_RUN: Final = 1024
#: Which part of the work is reading; the rest is shared out by the number of the other steps.
_READING: Final = 0.4

_NAMING: Final = frozenset({ListCoin.kind, RegisterCustomer.kind, Reverse.kind})

T = TypeVar("T")


class _Runs(Generic[T]):
    """Values that are sorted in runs as they come, and merged, and let go of, when they are asked for."""

    def __init__(self) -> None:
        self.count = 0
        self._run: list[T] = []
        self._runs: list[list[T]] = [self._run]

    def add(self, value: T) -> None:
        self._run.append(value)

    def end_run(self) -> None:
        self._run.sort(reverse=True)
        self.count += len(self._run)
        self._run = []
        self._runs.append(self._run)

    def merged(self) -> Iterator[T]:
        return heapq.merge(*map(_taken, self._runs))  # type: ignore[type-var]


def _taken(values: list[T]) -> Iterator[T]:
    """Take *values* out of their list, from its end: what is let go of at once holds everything up."""
    while values:
        yield values.pop()


class Sealing:
    """The sealing of one segment; an iterator of steps of about a millisecond."""

    def __init__(
        self, connection: sqlite3.Connection, key_filter: KeyFilter, segment: int, segment_entries: int
    ) -> None:
        """Prepare to seal *segment*, all of whose entries are in the journal."""
        self.segment = segment
        self.first_seq = segment * segment_entries + 1
        self.last_seq = (segment + 1) * segment_entries
        #: How much is done, from 0 to 1.
        self.progress = 0.0
        self.finished = False
        self._connection = connection
        self._filter = key_filter
        self._digests: list[list[bytes]] = [[]]
        self._keys: _Runs[tuple[bytes, int]] = _Runs()
        self._names: _Runs[tuple[str, str, str]] = _Runs()
        self._owners: _Runs[tuple[str, int]] = _Runs()
        self._used_before: _Runs[int] = _Runs()
        self._history: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
        self._history_rows = 0
        self._opened: list[tuple[Any, ...]] = []
        self._used: dict[int, tuple[int, int]] = {}
        self._steps = self._run()

    def step(self) -> None:
        """Do the next step; sets :attr:`finished` after the last."""
        try:
            self.progress = next(self._steps)
        except StopIteration:
            self.progress = 1.0
            self.finished = True

    def _run(self) -> Iterator[float]:
        yield from self._read()
        expected = self._expected_steps()
        for done, _ in enumerate(self._write(), 1):
            yield _READING + (1 - _READING) * min(done / expected, 0.999)
        self._connection.execute("UPDATE ledger SET sealed_to = ?", (self.last_seq,))

    def _expected_steps(self) -> float:
        pairs = len(self._history)
        rows = self._keys.count + self._history_rows + pairs + len(self._opened) + self._used_before.count
        return rows / _WRITE_ROWS + self._keys.count / _RUN + 2 * pairs / (_WRITE_ROWS // 2) + 5

    def _write(self) -> Iterator[None]:
        yield from self._write_keys()
        yield from self._write_history()
        yield from self._write_holds()
        for digests in _taken(self._digests):
            self._filter.add(self.segment, digests)
            yield
        yield from self._filter.write(self._connection, self.segment)

    # --- reading the segment ------------------------------------------------------------------------

    def _read(self) -> Iterator[float]:
        unsorted = 0
        for start in range(self.first_seq, self.last_seq + 1, _READ_ENTRIES):
            rows = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq",
                (start, min(start + _READ_ENTRIES - 1, self.last_seq)),
            ).fetchall()
            for (body,) in rows:
                change = decode_change(body)
                digest = key_digest(change.key)
                self._keys.add((digest, change.seq))
                self._digests[-1].append(digest)
                if change.refusal is None:
                    self._collect(change)
            unsorted += _READ_ENTRIES
            if unsorted >= _RUN or start + _READ_ENTRIES > self.last_seq:
                unsorted = 0
                self._digests.append([])
                for runs in (self._keys, self._names, self._owners, self._used_before):
                    runs.end_run()
            yield _READING * (start - self.first_seq) / (self.last_seq - self.first_seq + 1)

    def _collect(self, change: Change) -> None:
        seq = change.seq
        for (customer, kind), coin, available, freeze in change.balances:
            name = (customer, kind, coin)
            rows = self._history.get(name)
            if rows is None:
                rows = self._history[name] = []
                self._names.add(name)
            rows.append((seq, available, freeze))
        self._history_rows += len(change.balances)
        if change.kind == Freeze.kind:
            self._open_hold(change)
        elif change.holds:
            for hold_id, remaining in change.holds:
                if hold_id < self.first_seq and hold_id not in self._used:
                    self._used_before.add(hold_id)
                self._used[hold_id] = (remaining, seq)
        elif change.kind in _NAMING:
            self._collect_name(change)

    def _open_hold(self, change: Change) -> None:
        ((account, coin, _, _),) = change.balances
        ((hold_id, amount),) = change.holds
        request = change.request
        self._opened.append((hold_id, *account, coin, amount, request.reference, request.expires_ms, change.booked_ms))
        self._owners.add((account[0], hold_id))

    def _collect_name(self, change: Change) -> None:
        request, seq = change.request, change.seq
        if change.kind == ListCoin.kind:
            self._connection.execute("INSERT OR REPLACE INTO coin VALUES (?, ?, ?)", (request.coin, request.scale, seq))
        elif change.kind == RegisterCustomer.kind:
            self._connection.execute("INSERT OR REPLACE INTO customer VALUES (?, ?)", (request.customer, seq))
        else:
            self._connection.execute("INSERT OR REPLACE INTO reversal VALUES (?, ?)", (request.seq, seq))

    # --- writing its tables -------------------------------------------------------------------------

    def _write_keys(self) -> Iterator[None]:
        rows = ((self.segment, digest, seq) for digest, seq in self._keys.merged())
        yield from self._insert("INSERT OR REPLACE INTO key_seq VALUES (?, ?, ?)", rows)

    def _write_history(self) -> Iterator[None]:
        ordered = self._names.merged()
        while names := list(islice(ordered, _WRITE_ROWS // 2)):
            balances: list[tuple[Any, ...]] = []
            rows = self._history_of(names, balances)
            yield from self._insert("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            yield from self._insert("INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?, ?, ?)", balances)

    def _history_of(self, names: list[tuple[str, str, str]], balances: list[tuple[Any, ...]]) -> Iterator[Any]:
        """Give the rows of *names*, letting go of each, and note the last ones as *balances*."""
        segment = self.segment
        for name in names:
            customer, kind, coin = name
            rows = self._history.pop(name)
            seq, available, freeze = rows[-1]
            balances.append((customer, kind, coin, column(available), column(freeze), seq))
            rows.reverse()
            while rows:
                seq, available, freeze = rows.pop()
                yield (segment, customer, kind, coin, seq, column(available), column(freeze))

    def _write_holds(self) -> Iterator[None]:
        self._opened.reverse()
        opened = (self._hold_row(values) for values in _taken(self._opened))
        yield from self._insert("INSERT OR REPLACE INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", opened)
        updates = (self._hold_update(hold_id) for hold_id in self._used_before.merged())
        yield from self._insert("UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", updates)
        owners = ((self.segment, customer, hold_id) for customer, hold_id in self._owners.merged())
        yield from self._insert("INSERT OR REPLACE INTO hold_of VALUES (?, ?, ?)", owners)

    def _hold_row(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        hold_id, customer, kind, coin, amount, reference, expires_ms, opened_ms = values
        remaining, seq = self._used.pop(hold_id, (amount, None))
        closed_seq = None if remaining else seq
        left = column(remaining)
        return (hold_id, customer, kind, coin, column(amount), left, reference, expires_ms, opened_ms, closed_seq)

    def _hold_update(self, hold_id: int) -> tuple[Any, ...]:
        remaining, seq = self._used[hold_id]
        return (column(remaining), None if remaining else seq, hold_id)

    def _insert(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[None]:
        """Run *statement* for all *rows*, some hundred a step."""
        rows = iter(rows)
        while batch := list(islice(rows, _WRITE_ROWS)):
            self._connection.executemany(statement, batch)
            yield
