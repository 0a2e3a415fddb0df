"""What a snapshot that is held open elsewhere, as by ``pg_dump``, costs the writes of a node on PostgreSQL."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg

import spotledger
from bench import books
from bench.exchange_work import Work, opening
from bench.harness import QUICK, Aim, Cores, Report, Table, conditions, tell
from bench.postgres_server import alone
from bench.rounds import check
from spotledger.ledger.ledger import Ledger

CUSTOMERS: Final = 1_000
GROUP: Final = 10
#: How long each part takes, and how much of its end counts: the cost grew with the time.
SECONDS: Final = 8.0 if QUICK else 45.0
END_SECONDS: Final = 2.0 if QUICK else 15.0
TURNS: Final = 1 if QUICK else 2
GROUPS_AT_ONCE: Final = 100
RATIO_AIM: Final = 0.8


@dataclass(frozen=True)
class Part:
    """One part: whether a snapshot was open, and operations a second, in all and at the end."""

    is_held: bool
    operations_per_second: float
    at_the_end: float


def part(ledger: Ledger, work: Work, url: str, *, is_held: bool) -> Part:
    """Write for `SECONDS` in small groups of the mix, with or without a snapshot that is open elsewhere."""
    with psycopg.connect(url) if is_held else nullcontext() as other:
        if other is not None:
            other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            other.execute("SELECT count(*) FROM coin")
        marks: list[tuple[float, int]] = [(0.0, 0)]  # seconds spent writing, operations
        begun = time.perf_counter()
        while time.perf_counter() - begun < SECONDS:
            groups = [work.group(GROUP) for _ in range(GROUPS_AT_ONCE)]
            started = time.perf_counter()
            outcomes = [ledger.execute(operations) for operations in groups]
            passed = time.perf_counter() - started
            for each in outcomes:
                check(each)
            marks.append((marks[-1][0] + passed, marks[-1][1] + GROUP * GROUPS_AT_ONCE))
        end = next(mark for mark in marks if mark[0] >= marks[-1][0] * (1 - END_SECONDS / SECONDS))
        last = marks[-1]
        if other is not None:
            other.execute("SELECT count(*) FROM coin")  # it is the same snapshot to the end
    return Part(is_held, last[1] / last[0], (last[1] - end[1]) / (last[0] - end[0]))


def run() -> Report:
    """Take the parts in turn, and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    parts: list[Part] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("postgres_snapshot", (__doc__ or "").strip(), conditions(folder, cores))
        server = stack.enter_context(alone(cores))
        report.conditions["postgresql"] = server.settings()
        if cores.server is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, {cores.server})
        url = server.database()
        ledger = stack.enter_context(spotledger.open(url))
        books.book(ledger, opening(CUSTOMERS))
        work = Work(1, ledger.head.seq + 1, CUSTOMERS)
        for turn in range(TURNS):
            for is_held in (False, True, False):
                tell(f"  turn {turn + 1}, {'with' if is_held else 'without'} a snapshot, {SECONDS:g} s")
                server.checkpoint()
                parts.append(part(ledger, work, url, is_held=is_held))
        report.notes.append(f"The ledger grew to {ledger.head.seq:,} entries.")
    found: dict[bool, list[Part]] = {held: [each for each in parts if each.is_held is held] for held in (False, True)}
    columns = ["snapshot", "operations/s", f"in the last {END_SECONDS:g} s"]
    rows: list[Sequence[Any]] = [
        [
            "open" if held else "none",
            round(median(each.operations_per_second for each in taken)),
            round(median(each.at_the_end for each in taken)),
        ]
        for held, taken in found.items()
    ]
    report.tables.append(Table(f"Groups of {GROUP}, the exchange mix", columns, rows))
    report.aims.append(Aim("with a snapshot ÷ without, at the end", round(rows[1][2] / rows[0][2], 2), RATIO_AIM))
    report.notes.append(f"Each part takes {SECONDS:g} s; one without a snapshot comes before and after each with one.")
    report.raw = {"parts": [asdict(each) for each in parts]}
    return report
