"""How many operations of an exchange one process books through the library, each group synced before the next."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import spotledger
from bench import books
from bench.exchange_work import InterleavedWork, Work, opening, shares_of
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
from bench.library import bytes_written
from bench.peers import books_rows
from spotledger.domain.operations import Operation
from spotledger.errors import InsufficientAvailable, Refused
from spotledger.ledger.ledger import Ledger, Receipt

CUSTOMERS: Final = 1_000 if QUICK else 10_000
#: Operations of a market before a round, and so many times as many as may be under way between two of one order.
BEFORE: Final = 2_000 if QUICK else 20_000
APART: Final = 5
#: Operations in a round by size of the group; at 1,000 two segments, so that all that is sealed behind counts.
COUNTS: Final = (
    {1: 1_000, 10: 5_000, 100: 20_000, 1_000: 66_000} if QUICK else {1: 10_000, 10: 40_000, 100: 66_000, 1_000: 132_000}
)
SETTLEMENTS: Final = {1: 1_000, 100: 10_000, 1_000: 30_000} if QUICK else {1: 8_000, 100: 33_000, 1_000: 66_000}
RATE_AIMS: Final = {1: 6_000, 10: 20_000, 100: 32_000, 1_000: 34_000}
#: What TigerBeetle's Python client reached with settlements, measured outside the project on a machine of this kind.
SETTLEMENT_AIMS: Final = {1: 880, 100: 13_000, 1_000: 18_000}
KIB_AIM: Final = 2.0
LONGEST_MS_AIM: Final = 150.0
#: Fills that an order of the settlements is good for.
FILLS: Final = 12
WARM_UP_GROUPS: Final = 20


@dataclass(frozen=True)
class Round:
    """What one round came to; times are of the calls alone, not of making the operations or checking the outcomes."""

    operations: int
    operations_per_second: float
    processor_microseconds: float
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


def run_groups(ledger: Ledger, groups: Sequence[Sequence[Operation]], servers: Sequence[int] = ()) -> Round:
    """
    Execute *groups*, and time each; raise RuntimeError for an outcome that was not meant.

    *servers* are processes that work for the ledger: what they use is no disturbance.
    """
    gc.collect()
    gc.freeze()  # What was made ahead is the bench's, and no work for the ledger's collector.
    durations, processor = [], 0.0
    written, busy, own = bytes_written(), busy_seconds(), time.process_time() + sum(map(processor_seconds, servers))
    begun = time.perf_counter()
    for operations in groups:
        before = time.process_time()
        started = time.perf_counter()
        outcomes = ledger.execute(operations)
        durations.append(time.perf_counter() - started)
        processor += time.process_time() - before
        check(outcomes)
    passed = time.perf_counter() - begun
    others = busy_seconds() - busy - (time.process_time() + sum(map(processor_seconds, servers)) - own)
    after = bytes_written()
    gc.unfreeze()
    done = sum(len(group) for group in groups)
    return Round(
        done,
        done / sum(durations),
        processor / done * 1e6,
        max(durations) * 1000,
        None if written is None or after is None else (after - written) / 1024 / done,
        max(0.0, others / passed),
    )


def check(outcomes: Sequence[Receipt | Refused]) -> None:
    """Raise RuntimeError unless every operation was booked, or refused because too little was available."""
    for outcome in outcomes:
        if isinstance(outcome, Refused):
            check_refusal(outcome.code, outcome.message)


def check_refusal(code: str, message: str) -> None:
    """Raise RuntimeError unless *code* is that of what is meant to be refused."""
    if code != InsufficientAvailable.code:
        raise RuntimeError(f"an operation was refused that should not be: {code}, {message}")


def open_market(ledger: Ledger, seed: int, at_once: int) -> InterleavedWork:
    """Trade for a while, and return what makes more of the same, of which *at_once* operations may be under way."""
    apart = APART * at_once
    work = InterleavedWork(seed, ledger.head.seq + 1, CUSTOMERS, apart)
    operations = work.operations(BEFORE + 2 * apart)
    for start in range(0, len(operations), books.GROUP):
        check(ledger.execute(operations[start : start + books.GROUP]))
    return work


def mixed_round(ledger: Ledger, work: Work, row: Row) -> Round:
    """Do a round of the whole mix."""
    result = run_groups(ledger, [work.group(row.group) for _ in range(row.operations // row.group)])
    return checked(ledger, work, result)


def settling_round(ledger: Ledger, work: Work, row: Row) -> Round:
    """Do a round of settlements alone; the orders are opened before."""
    for _ in range(0, 2 * row.operations // FILLS + 2_000, 1_000):
        ledger.execute(work.orders(1_000, FILLS))
    result = run_groups(ledger, [work.settlements(row.group) for _ in range(row.operations // row.group)])
    return checked(ledger, work, result)


def checked(ledger: Ledger, work: Work, result: Round) -> Round:
    """Raise RuntimeError unless exactly the entries that were meant are in the journal."""
    if ledger.head.seq + 1 != work.seq:
        raise RuntimeError(f"the journal ends at {ledger.head.seq}; {work.seq - 1} was meant")
    return result


def measure(ledger: Ledger, quiet: Quiet) -> tuple[list[Row], list[Row], dict[str, float]]:
    """Fill the ledger and take all rounds, the sizes in turn."""
    tell(f"  fill a ledger with {CUSTOMERS:,} customers of 20 coins")
    books.book(ledger, opening(CUSTOMERS))
    work = Work(1, ledger.head.seq + 1, CUSTOMERS)
    warm = [work.group(1_000) for _ in range(WARM_UP_GROUPS)]
    run_groups(ledger, warm)
    mixed = [Row("mix", group, count, []) for group, count in COUNTS.items()]
    alone = [Row("settle", group, count, []) for group, count in SETTLEMENTS.items()]
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  round {number + 1}")
        for row in mixed:
            row.rounds.append(quiet.round(partial(mixed_round, ledger, work, row)))
    settling = Work(2, ledger.head.seq + 1, CUSTOMERS)
    for _ in range(1 if QUICK else ROUNDS):
        for row in alone:
            row.rounds.append(quiet.round(partial(settling_round, ledger, settling, row)))
    return mixed, alone, shares_of([operation for group in warm for operation in group])


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    if cores.server is not None:
        os.sched_setaffinity(0, {cores.server})
    try:
        with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
            folder = Path(name)
            report = Report("exchange", __doc__.strip() if __doc__ else "", conditions(folder, cores))
            quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
            with spotledger.open(folder / "data") as ledger:
                mixed, alone, shares = measure(ledger, quiet)
                entries = ledger.head.seq
            peers = books_rows.measure(folder, cores)
    finally:
        os.sched_setaffinity(0, allowed)
    summarise(report, mixed, alone, peers)
    report.notes += [
        f"Medians of {len(mixed[0].rounds)} rounds, the sizes in turn, on one ledger that grew to {entries:,} entries. "
        f"{CUSTOMERS:,} customers and 20 coins, chosen by Zipf's law; shares of the kinds: {shares}.",
        "Operations are made ahead and outcomes checked outside the time. Written is what the kernel sent to the disk "
        "for this process.",
    ]
    quiet.report(report)
    return report


def summarise(report: Report, mixed: Sequence[Row], alone: Sequence[Row], peers: Sequence[books_rows.Row]) -> None:
    """Put tables, aims and raw figures into *report*."""
    columns = ["operations in a group", "operations/s", "slowest–quickest round", "processor µs an operation"]
    columns += ["longest group ms", "KiB written an operation"]
    for title, rows in (("The mix of an exchange", mixed), ("Settlements alone", alone)):
        report.tables.append(Table(title, columns, [table_row(row) for row in rows]))
    report.tables.append(peer_table(mixed, peers))
    rates = {row.group: row.median("operations_per_second") for row in mixed}
    for group, limit in RATE_AIMS.items():
        report.aims.append(Aim(f"operations/s, groups of {group:,}", round(rates[group]), limit))
    largest = mixed[-1]
    kib, longest = largest.median("kib_written_per_operation"), largest.median("longest_group_ms")
    report.aims.append(Aim("KiB written an operation, groups of 1,000", round(kib, 2), KIB_AIM, at_most=True))
    report.aims.append(Aim("longest group of 1,000, ms", round(longest, 1), LONGEST_MS_AIM, at_most=True))
    for row in alone:
        rate = round(row.median("operations_per_second"))
        report.aims.append(Aim(f"settlements/s, groups of {row.group:,}", rate, SETTLEMENT_AIMS[row.group]))
    report.raw = {f"{row.title}-{row.group}": [asdict(each) for each in row.rounds] for row in [*mixed, *alone]}
    report.raw["peers"] = [asdict(each) for each in peers]


def table_row(row: Row) -> list[Any]:
    """Set the figures of *row* for the table."""
    rates = [each.operations_per_second for each in row.rounds]
    kib = row.median("kib_written_per_operation")
    return [
        f"{row.group:,}",
        round(row.median("operations_per_second")),
        f"{min(rates):,.0f}–{max(rates):,.0f}",
        round(row.median("processor_microseconds"), 1),
        round(row.median("longest_group_ms"), 1),
        round(kib, 2) if kib else None,
    ]


def peer_table(mixed: Sequence[Row], peers: Sequence[books_rows.Row]) -> Table:
    """Set the peers beside the ledger's own rates in groups of one and of a thousand."""
    one, most = (mixed[place].median("operations_per_second") for place in (0, -1))
    table = Table(
        "The same work as most people write it",
        ["", "operations/s", "spotledger, one by one, is", "spotledger, groups of 1,000, is", "why not"],
    )
    for peer in peers:
        ratios = [f"× {rate / peer.rate:,.0f}" if peer.rate else None for rate in (one, most)]
        table.rows.append([peer.name, round(peer.rate) if peer.rate else None, *ratios, peer.missing or ""])
    return table
