"""What a ledger on PostgreSQL costs as it grows: its rate, and what its tables and indexes are made of."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg

import spotledger
from bench import books
from bench.exchange import checked
from bench.exchange_work import Work, opening
from bench.growth import LONG
from bench.harness import QUICK, SPARE_ROUNDS, Aim, Cores, Quiet, Report, Table, conditions, tell
from bench.postgres_server import Server, alone
from bench.rounds import Round, run_groups
from spotledger.ledger.ledger import Ledger

CUSTOMERS: Final = 1_000 if QUICK else 10_000
#: Entries in the ledger before each measurement.
SIZES: Final = (30_000, 60_000) if QUICK else (1_000_000, 10_000_000) if LONG else (250_000, 500_000)
GROUP: Final = 1_000
OPERATIONS: Final = 20_000 if QUICK else 66_000
WARM_UP_GROUPS: Final = 10
KEPT_RATE_AIM: Final = 0.6
RELATIONS: Final = """
    SELECT relname, pg_relation_size(oid), relkind = 'i' FROM pg_class
    WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace AND pg_relation_size(oid) > 0
    ORDER BY pg_relation_size(oid) DESC"""
LOG: Final = "SELECT wal_bytes, wal_fpi FROM pg_stat_wal"
MISSES: Final = """
    SELECT indexrelname, idx_blks_read FROM pg_statio_user_indexes
    UNION ALL SELECT relname, heap_blks_read FROM pg_statio_user_tables"""


@dataclass(frozen=True)
class Stage:
    """What was found at one size."""

    entries: int
    work: Round
    wal_kib: float
    page_images: float
    #: Bytes of each table and index, and whether it is an index.
    sizes: dict[str, tuple[int, bool]]
    #: Pages of each that were not in the server's memory, an operation.
    misses: dict[str, float]

    @property
    def others_cores(self) -> float:
        """How many cores others kept busy."""
        return self.work.others_cores


def counted(url: str) -> tuple[float, float, dict[str, int]]:
    """Return what the server has counted so far: bytes and page images of its log, and pages it had to read."""
    with psycopg.connect(url, autocommit=True) as connection:
        log = connection.execute(LOG).fetchone() or (0, 0)
        misses = {str(name): int(count or 0) for name, count in connection.execute(MISSES).fetchall()}
    return float(log[0]), float(log[1]), misses


def fill(server: Server, ledger: Ledger, entries: int) -> None:
    """Grow the ledger to *entries* entries, without waiting for the disk meanwhile."""
    server.cluster.reload(fsync="off")
    if ledger.head.seq == 0:
        books.book(ledger, opening(CUSTOMERS))
    work = Work(ledger.head.seq, ledger.head.seq + 1, CUSTOMERS)
    while ledger.head.seq < entries:
        ledger.execute(work.group(min(GROUP, entries - ledger.head.seq)))
    server.cluster.reload(fsync="on")
    with psycopg.connect(server.cluster.url(), autocommit=True) as connection:
        connection.execute("CHECKPOINT")
        shown = connection.execute("SHOW fsync").fetchone()
    if shown != ("on",):
        raise RuntimeError(f"fsync is {shown}, and a measurement needs it on")


def measure(url: str, server: Server, ledger: Ledger) -> Stage:
    """Take all figures at the size that the ledger has."""
    entries = ledger.head.seq
    with psycopg.connect(url, autocommit=True) as connection:
        sizes = {str(name): (int(size), bool(index)) for name, size, index in connection.execute(RELATIONS).fetchall()}
    work = Work(entries, entries + 1, CUSTOMERS)
    run_groups(ledger, [work.group(GROUP) for _ in range(WARM_UP_GROUPS)], [server.pid])
    log, images, misses = counted(url)
    result = run_groups(ledger, [work.group(GROUP) for _ in range(OPERATIONS // GROUP)], [server.pid])
    checked(ledger, work, result)
    log_after, images_after, misses_after = counted(url)
    pages = {name: (count - misses.get(name, 0)) / OPERATIONS for name, count in misses_after.items()}
    kib = (log_after - log) / 1024 / OPERATIONS
    return Stage(entries, result, kib, (images_after - images) / OPERATIONS, sizes, pages)


def run() -> Report:
    """Measure every size and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("postgres_growth", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        server = stack.enter_context(alone(cores))
        report.conditions["postgresql"] = server.settings()
        if cores.server is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, {cores.server})
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 8)
        url = server.database()
        ledger = stack.enter_context(spotledger.open(url))
        stages = []
        for entries in SIZES:
            tell(f"  grow a ledger to {entries:,} entries")
            fill(server, ledger, entries)
            tell("  measure it")
            stages.append(quiet.round(partial(measure, url, server, ledger)))
    summarise(report, stages)
    quiet.report(report)
    return report


def summarise(report: Report, stages: list[Stage]) -> None:
    """Put tables, aim and raw figures into *report*."""
    columns = ["entries", "operations/s", "processor µs", "longest group ms", "log KiB an operation"]
    columns += ["whole pages in the log, an operation", "database MiB", "bytes an entry"]
    table = Table("The mix of an exchange, groups of 1,000", columns)
    for stage in stages:
        size = sum(size for size, _ in stage.sizes.values())
        row: list[Any] = [stage.entries, round(stage.work.operations_per_second)]
        row += [round(stage.work.processor_microseconds, 1), round(stage.work.longest_group_ms, 1)]
        row += [round(stage.wal_kib, 2), round(stage.page_images, 3), round(size / 2**20), round(size / stage.entries)]
        table.rows.append(row)
    report.tables.append(table)
    last = stages[-1]
    columns = ["", "", *(f"MiB at {stage.entries:,}" for stage in stages), "bytes an entry", "pages read an operation"]
    parts = Table("What it is made of", columns)
    for name, (size, index) in last.sizes.items():
        if size * 500 < sum(size for size, _ in last.sizes.values()):
            continue
        mib = [round(stage.sizes.get(name, (0, index))[0] / 2**20, 1) for stage in stages]
        row = [name, "index" if index else "table", *mib, round(size / last.entries)]
        parts.rows.append([*row, round(last.misses.get(name, 0.0), 3)])
    report.tables.append(parts)
    first = stages[0].work.operations_per_second
    report.aims = [
        Aim(
            f"rate at {last.entries:,} ÷ at {stages[0].entries:,}",
            round(last.work.operations_per_second / first, 2),
            KEPT_RATE_AIM,
        )
    ]
    report.notes += [
        "1 and 10 million entries are measured with BENCH_LONG=1. The ledger is filled with fsync off; it is on again "
        "before anything is measured; the checkpoint before a measurement means that first changes log whole pages.",
        "Pages read are those that were not in the server's own memory; the system may have had them in its.",
    ]
    report.raw = {f"{stage.entries}": asdict(stage) for stage in stages}
