"""
Sealing: writing what follows from one full segment of the journal to its tables, in small steps.

The steps run inside the commits of the entries that come after. All of it is read from the journal again, never from
memory, and every row replaces its like, so a sealing that was cut off is simply begun anew. The last step moves
``sealed_to``. Rows go in sorted by their primary keys: runs of a few hundred are sorted as they come and merged while
they are written, so that no step sorts much at once.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Entry, Hold, opened_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer, Reverse
from spotledger.storage.encoding import column, decode_entry, key_digest
from spotledger.storage.key_filter import KeyFilter

_READ_ENTRIES: Final = 128
_WRITE_ROWS: Final = 400
_RUN: Final = 1024


class Sealing:
    """The sealing of one segment; an iterator of steps of about a millisecond."""

    def __init__(
        self, connection: sqlite3.Connection, key_filter: KeyFilter, segment: int, segment_entries: int
    ) -> None:
        """Prepare to seal *segment*, all of whose entries are in the journal."""
        self.segment = segment
        self.first_seq = segment * segment_entries + 1
        self.last_seq = (segment + 1) * segment_entries
        #: How much is done, from 0 to 1, by a rough measure.
        self.progress = 0.0
        self.finished = False
        self._connection = connection
        self._filter = key_filter
        self._digests: list[bytes] = []
        self._key_runs: list[list[tuple[bytes, int]]] = []
        self._history: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
        self._opened: dict[int, Hold] = {}
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
        yield from self._read(0.0, 0.4)
        yield from self._write_keys(0.4, 0.55)
        yield from self._write_history(0.55, 0.85)
        for _ in self._write_holds():
            yield 0.87
        for start in range(0, len(self._digests), _RUN):
            self._filter.add(self.segment, self._digests[start : start + _RUN])
            yield 0.9 + 0.05 * start / len(self._digests)
        for _ in self._filter.write(self._connection, self.segment):
            yield 0.97
        self._connection.execute("UPDATE ledger SET sealed_to = ?", (self.last_seq,))

    # --- reading the segment ------------------------------------------------------------------------

    def _read(self, begin: float, end: float) -> Iterator[float]:
        run: list[tuple[bytes, int]] = []
        for start in range(self.first_seq, self.last_seq + 1, _READ_ENTRIES):
            rows = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq",
                (start, min(start + _READ_ENTRIES - 1, self.last_seq)),
            ).fetchall()
            for (body,) in rows:
                entry = decode_entry(body)
                digest = key_digest(entry.key)
                run.append((digest, entry.seq))
                self._digests.append(digest)
                self._collect(entry)
            if len(run) >= _RUN or start + _READ_ENTRIES > self.last_seq:
                run.sort()
                self._key_runs.append(run)
                run = []
            yield begin + (end - begin) * (start - self.first_seq) / (self.last_seq - self.first_seq + 1)

    def _collect(self, entry: Entry) -> None:
        if entry.refusal is not None:
            return
        seq = entry.seq
        for (customer, kind), coin, available, freeze in entry.balances:
            rows = self._history.get((customer, kind, coin))
            if rows is None:
                rows = self._history[customer, kind, coin] = []
            rows.append((seq, available, freeze))
        if entry.holds:
            opened = opened_hold(entry)
            if opened is not None:
                self._opened[seq] = opened
            else:
                for hold_id, remaining in entry.holds:
                    self._used[hold_id] = (remaining, seq)
        elif entry.kind == ListCoin.kind:
            self._connection.execute(
                "INSERT OR REPLACE INTO coin VALUES (?, ?, ?)", (entry.request["coin"], entry.request["scale"], seq)
            )
        elif entry.kind == RegisterCustomer.kind:
            self._connection.execute("INSERT OR REPLACE INTO customer VALUES (?, ?)", (entry.request["customer"], seq))
        elif entry.kind == Reverse.kind:
            self._connection.execute("INSERT OR REPLACE INTO reversal VALUES (?, ?)", (entry.request["seq"], seq))

    # --- writing its tables -------------------------------------------------------------------------

    def _write_keys(self, begin: float, end: float) -> Iterator[float]:
        rows = ((self.segment, digest, seq) for digest, seq in heapq.merge(*self._key_runs))
        for written in self._insert("INSERT OR REPLACE INTO key_seq VALUES (?, ?, ?)", rows):
            yield begin + (end - begin) * written / len(self._digests)
        self._key_runs.clear()

    def _write_history(self, begin: float, end: float) -> Iterator[float]:
        names = list(self._history)
        runs = []
        for start in range(0, len(names), _RUN):
            runs.append(sorted(names[start : start + _RUN]))
            yield begin
        ordered = heapq.merge(*runs)
        done = 0
        while batch := list(islice(ordered, _WRITE_ROWS // 2)):
            done += len(batch)
            rows = (
                (self.segment, *name, seq, column(available), column(freeze))
                for name in batch
                for seq, available, freeze in self._history[name]
            )
            progress = begin + (end - begin) * done / len(names)
            for _ in self._insert("INSERT OR REPLACE INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", rows):
                yield progress
            self._connection.executemany(
                "INSERT OR REPLACE INTO balance VALUES (?, ?, ?, ?, ?, ?)", (self._last(name) for name in batch)
            )
            yield progress

    def _last(self, name: tuple[str, str, str]) -> tuple[Any, ...]:
        seq, available, freeze = self._history[name][-1]
        return (*name, column(available), column(freeze), seq)

    def _write_holds(self) -> Iterator[int]:
        opened = (self._hold_row(hold) for hold in self._opened.values())
        yield from self._insert("INSERT OR REPLACE INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", opened)
        earlier = sorted((hold_id, after) for hold_id, after in self._used.items() if hold_id not in self._opened)
        updates = ((column(left), None if left else seq, hold_id) for hold_id, (left, seq) in earlier)
        yield from self._insert("UPDATE hold SET remaining = ?, closed_seq = ? WHERE hold_id = ?", updates)
        names = [(hold.account.customer, hold_id) for hold_id, hold in self._opened.items()]
        runs = [sorted(names[start : start + _RUN]) for start in range(0, len(names), _RUN)]
        owners = ((self.segment, customer, hold_id) for customer, hold_id in heapq.merge(*runs))
        yield from self._insert("INSERT OR REPLACE INTO hold_of VALUES (?, ?, ?)", owners)

    def _hold_row(self, hold: Hold) -> tuple[Any, ...]:
        used = self._used.get(hold.hold_id)
        if used is not None:
            hold = hold.after(*used)
        account: Account = hold.account
        return (
            hold.hold_id,
            account.customer,
            account.kind,
            hold.coin,
            column(hold.amount),
            column(hold.remaining),
            hold.reference,
            hold.expires_ms,
            hold.opened_ms,
            hold.closed_seq,
        )

    def _insert(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> Iterator[int]:
        """Run *statement* for all *rows*, some hundred a step; yields how many are done."""
        done = 0
        rows = iter(rows)
        while batch := list(islice(rows, _WRITE_ROWS)):
            self._connection.executemany(statement, batch)
            done += len(batch)
            yield done
