"""Single operations from many concurrent callers of one node on PostgreSQL, alone and with a synchronous standby."""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

import spotledger
from bench import books
from bench.exchange import CUSTOMERS, open_market
from bench.exchange_work import opening
from bench.harness import (
    QUICK,
    ROUNDS,
    SPARE_ROUNDS,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    busy_seconds,
    conditions,
    processor_seconds,
    tell,
)
from bench.postgres_server import Server, alone, with_standby
from bench.rounds import check
from spotledger.domain.operations import Operation
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer
from spotledger.ops.gc_freeze import freeze_survivors

CALLERS: Final = {256: 12_000, 1_000: 15_000}
SECONDS: Final = 1.5 if QUICK else 4.0
#: Operations made ready for a round: more than are done in it.
MOST_A_SECOND: Final = 25_000
P99_MS_AIM: Final = 40.0
STANDBY_AIM: Final = 0.75
ALONE: Final = "alone"
STANDBY: Final = "with a synchronous standby"


@dataclass(frozen=True)
class Round:
    """What one round came to; times are from asking to the answer, as each caller saw it."""

    operations_per_second: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    longest_ms: float
    node_core_share: float
    server_core_share: float
    others_cores: float


@dataclass
class Node:
    """One node: its ledger, and the servers that work for it."""

    ledger: Ledger
    servers: Sequence[int]
    seed: int = 50

    def make(self, count: int, at_once: int) -> list[Operation]:
        """Make *count* operations of which *at_once* may be under way, on a market that is open for a while."""
        self.seed += 1
        return open_market(self.ledger, self.seed, at_once).operations(count)

    def round(self, callers: int) -> Round:
        """Take one round with so many *callers*."""
        operations = self.make(int(MOST_A_SECOND * SECONDS), callers)
        freeze_survivors()
        busy, own, server = busy_seconds(), time.process_time(), sum(map(processor_seconds, self.servers))
        durations, passed = uvloop.run(call(self.ledger, iter(operations), callers))
        own = time.process_time() - own
        server = sum(map(processor_seconds, self.servers)) - server
        others = busy_seconds() - busy - own - server
        gc.unfreeze()
        if len(durations) == len(operations):
            raise RuntimeError(f"{len(operations)} operations were too few for a round")
        durations.sort()
        p50, p90, p99 = (durations[int(len(durations) * share)] * 1000 for share in (0.5, 0.9, 0.99))
        rate = len(durations) / passed
        shares = (own / passed, server / passed)
        return Round(rate, p50, p90, p99, durations[-1] * 1000, *shares, max(0.0, others / passed))


async def call(ledger: Ledger, operations: Iterator[Operation], callers: int) -> tuple[list[float], float]:
    """Have *callers* ask for one operation after the other until the time is over; nobody asks twice at once."""
    writer = Writer(ledger)
    await writer.start()
    durations: list[float] = []
    begun = time.perf_counter()

    async def caller() -> None:
        for operation in operations:
            started = time.perf_counter()
            if started - begun > SECONDS:
                return
            outcomes = await writer.submit([operation])
            durations.append(time.perf_counter() - started)
            check(outcomes)

    await asyncio.gather(*(caller() for _ in range(callers)))
    passed = time.perf_counter() - begun
    await writer.stop()
    return durations, passed


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("postgres_callers", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        single = stack.enter_context(alone(cores))
        primary, standby = stack.enter_context(with_standby(cores))
        if cores.server is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, {cores.server})
        report.conditions |= {"postgresql": single.settings(), "postgresql_with_standby": primary.settings()}
        servers: dict[str, tuple[Server, list[int]]] = {
            ALONE: (single, [single.pid]),
            STANDBY: (primary, [primary.pid, standby]),
        }
        nodes = {}
        for name, (server, pids) in servers.items():
            tell(f"  fill a ledger with {CUSTOMERS:,} customers of 20 coins: {name}")
            nodes[name] = Node(stack.enter_context(spotledger.open(server.database())), pids)
            books.book(nodes[name].ledger, opening(CUSTOMERS))
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
        rounds: dict[tuple[str, int], list[Round]] = {(name, count): [] for count in CALLERS for name in nodes}
        for number in range(1 if QUICK else ROUNDS):
            tell(f"  round {number + 1}")
            for (name, count), taken in rounds.items():
                servers[name][0].checkpoint()
                taken.append(quiet.round(partial(nodes[name].round, count)))
    summarise(report, rounds)
    quiet.report(report)
    return report


def median(rounds: Sequence[Round], figure: str) -> float:
    """Return the median of one figure."""
    return float(statistics.median(getattr(each, figure) for each in rounds))


def summarise(report: Report, rounds: dict[tuple[str, int], list[Round]]) -> None:
    """Put table, aims and raw figures into *report*."""
    columns = ["callers", "the server is", "operations/s", "p50 ms", "p90 ms", "p99 ms", "longest ms"]
    columns += ["node's core", "servers"]
    table = Table("Single operations, gathered into groups as they come", columns)
    for (name, count), taken in rounds.items():
        figures = [round(median(taken, figure), 1) for figure in ("p50_ms", "p90_ms", "p99_ms", "longest_ms")]
        shares = [round(median(taken, figure), 2) for figure in ("node_core_share", "server_core_share")]
        table.rows.append([count, name, round(median(taken, "operations_per_second")), *figures, *shares])
    report.tables.append(table)
    for count, limit in CALLERS.items():
        rates = {name: median(rounds[name, count], "operations_per_second") for name in (ALONE, STANDBY)}
        p99 = round(median(rounds[ALONE, count], "p99_ms"), 1)
        report.aims += [
            Aim(f"operations/s, {count:,} callers", round(rates[ALONE]), limit),
            Aim(f"p99 ms, {count:,} callers", p99, P99_MS_AIM, at_most=True),
            Aim(f"with a standby ÷ alone, {count:,} callers", round(rates[STANDBY] / rates[ALONE], 2), STANDBY_AIM),
        ]
    report.notes += [
        "The node and its callers, tasks of one event loop, have the first core; PostgreSQL, the standby too, has the "
        "second. Both clusters write to the same disk. With a standby a commit is answered when both have synced it.",
        "The callers' own part, with the writer's queue and the answers, is about 3 µs of processor an operation: a "
        "writer whose groups cost nothing answers 300,000 a second.",
        f"Nobody asks twice at once, so callers ÷ rate is what each waits on average: 1,000 callers are all answered "
        f"within {P99_MS_AIM:.0f} ms only by a node that does {1_000 * 1_000 / P99_MS_AIM:,.0f} a second.",
    ]
    report.raw = {f"{name}-{count}": [asdict(each) for each in taken] for (name, count), taken in rounds.items()}
