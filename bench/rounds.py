"""Rounds of groups that are executed one after the other, each group synced before the next, and what they come to."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from bench.harness import Aim, Table, busy_seconds, processor_seconds, sealing_processes, written_bytes
from spotledger.errors import InsufficientAvailable, Refused

COLUMNS: Final = (
    "operations in a group",
    "operations/s",
    "slowest–quickest round",
    "processor µs an operation",
    "sealing µs an operation",
    "longest group ms",
    "KiB written an operation",
)


class Books(Protocol):
    """What executes groups: a ledger, or a peer in this process."""

    def execute(self, operations: Sequence[Any], /) -> Sequence[Any]: ...


@dataclass(frozen=True)
class Round:
    """What one round came to; times are of the calls alone, not of making the operations or checking the outcomes."""

    operations: int
    operations_per_second: float
    #: Of the process that executes; its sealing process is the next one.
    processor_microseconds: float
    sealing_microseconds: float
    longest_group_ms: float
    kib_written_per_operation: float | None
    others_cores: float


@dataclass
class Row:
    """One size of the group, in one kind of work, with its rounds."""

    title: str
    group: int
    operations: int
    rounds: list[Round]

    def median(self, name: str) -> float:
        """Return the median of one figure."""
        return float(statistics.median(getattr(each, name) or 0.0 for each in self.rounds))


def run_groups(books: Books, groups: Sequence[Sequence[Any]], servers: Sequence[int] = ()) -> Round:
    """
    Execute *groups*, and time each; raise RuntimeError for an outcome that was not meant.

    *servers* are processes that work for it beside its children: what they use is no disturbance.
    """
    gc.collect()
    gc.freeze()  # What was made ahead is the bench's, and no work for the ledger's collector.
    durations, processor, usage = [], 0.0, Usage.now(servers)
    begun = time.perf_counter()
    for operations in groups:
        before = time.process_time()
        started = time.perf_counter()
        outcomes = books.execute(operations)
        durations.append(time.perf_counter() - started)
        processor += time.process_time() - before
        check(outcomes)
    passed = time.perf_counter() - begun
    spent = Usage.now(servers).since(usage)
    gc.unfreeze()
    done = sum(len(group) for group in groups)
    return Round(
        done,
        done / sum(durations),
        processor / done * 1e6,
        spent.sealing_seconds / done * 1e6,
        max(durations) * 1000,
        spent.kib_over(done),
        spent.others_seconds / passed,
    )


def check(outcomes: Sequence[Any]) -> None:
    """Raise RuntimeError for a refusal of the ledger's, unless it is that too little was available."""
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            check_refusal(outcome.code, outcome.message)


def check_refusal(code: str, message: str) -> None:
    """Raise RuntimeError unless *code* is that of what is meant to be refused."""
    if code != InsufficientAvailable.code:
        raise RuntimeError(f"an operation was refused that should not be: {code}, {message}")


@dataclass(frozen=True)
class Usage:
    """What this process, its sealing process and the whole machine have used so far."""

    own_seconds: float
    sealing_seconds: float
    busy_seconds: float
    written_bytes: int | None

    @classmethod
    def now(cls, servers: Sequence[int] = ()) -> Usage:
        """Look now; *servers* count as this process's own."""
        sealing = sealing_processes(os.getpid())
        return cls(
            processor_seconds(os.getpid(), *servers),
            processor_seconds(*sealing),
            busy_seconds(),
            written_bytes(os.getpid(), *sealing),
        )

    def since(self, before: Usage) -> Usage:
        """Return what was used since *before*."""
        known = self.written_bytes is not None and before.written_bytes is not None
        return Usage(
            self.own_seconds - before.own_seconds,
            max(0.0, self.sealing_seconds - before.sealing_seconds),
            self.busy_seconds - before.busy_seconds,
            (self.written_bytes or 0) - (before.written_bytes or 0) if known else None,
        )

    @property
    def others_seconds(self) -> float:
        """What everything else on the machine used."""
        return max(0.0, self.busy_seconds - self.own_seconds)

    def kib_over(self, operations: int) -> float | None:
        """Return what was written for each of *operations*, in KiB."""
        return None if self.written_bytes is None else self.written_bytes / 1024 / operations


def table_of(title: str, rows: Sequence[Row]) -> Table:
    """Set the medians of *rows*."""
    return Table(title, COLUMNS, [table_row(row) for row in rows])


def table_row(row: Row) -> list[Any]:
    """Set the figures of *row* for the table."""
    rates = [each.operations_per_second for each in row.rounds]
    kib = row.median("kib_written_per_operation")
    return [
        f"{row.group:,}",
        round(row.median("operations_per_second")),
        f"{min(rates):,.0f}–{max(rates):,.0f}",
        round(row.median("processor_microseconds"), 1),
        round(row.median("sealing_microseconds"), 1),
        round(row.median("longest_group_ms"), 1),
        round(kib, 2) if kib else None,
    ]


def ratios(row: Row, other: Row) -> list[float]:
    """Return how many times the rate of *other* the rate of *row* was, round by round."""
    pairs = zip(row.rounds, other.rounds, strict=True)
    return [one.operations_per_second / two.operations_per_second for one, two in pairs]


def ratio_table(title: str, columns: tuple[str, str], rows: Sequence[Row], others: Sequence[Row]) -> Table:
    """Set *rows* beside *others* of the same sizes."""
    table = Table(title, ["operations in a group", *(f"{name}, operations/s" for name in columns), "÷", "by round"])
    for row, other in zip(rows, others, strict=True):
        each = ratios(row, other)
        table.rows.append(
            [
                f"{row.group:,}",
                *(round(one.median("operations_per_second")) for one in (row, other)),
                round(statistics.median(each), 2),
                ", ".join(f"{value:.2f}" for value in each),
            ]
        )
    return table


def ratio_aims(what: str, limits: Mapping[int, float], rows: Sequence[Row], others: Sequence[Row]) -> list[Aim]:
    """Hold the ratio of each size of *rows* to its limit."""
    return [
        Aim(f"{what}, groups of {row.group:,}", round(statistics.median(ratios(row, other)), 2), limits[row.group])
        for row, other in zip(rows, others, strict=True)
        if row.group in limits
    ]
