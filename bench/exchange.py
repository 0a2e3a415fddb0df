"""
How many operations of an exchange one process books through the library, each group synced before the next.

The trial has turns beside it: the same structure laid bare, whose rate is the measure.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import spotledger
from bench import books
from bench.exchange_work import FILLS, InterleavedWork, Work, opening, orders_for, shares_of
from bench.harness import (
    QUICK,
    ROUNDS,
    SPARE_ROUNDS,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    conditions,
    sealing_on,
    tell,
)
from bench.peers import books_rows
from bench.peers.trial_rows import Trial, running_trial
from bench.rounds import Round, Row, check, ratio_aims, ratio_table, run_groups, table_of
from spotledger.ledger.ledger import Ledger

CUSTOMERS: Final = 1_000 if QUICK else 10_000
#: Operations of a market before a round, and so many times as many as may be under way between two of one order.
BEFORE: Final = 2_000 if QUICK else 20_000
APART: Final = 5
#: Operations in a round by size of the group: a whole segment, so that each round has its share of the sealing.
COUNTS: Final = (
    {1: 1_000, 10: 5_000, 100: 20_000, 1_000: 66_000} if QUICK else {1: 66_000, 10: 66_000, 100: 66_000, 1_000: 132_000}
)
SETTLEMENTS: Final = {1: 1_000, 100: 10_000, 1_000: 30_000} if QUICK else {1: 8_000, 100: 66_000, 1_000: 66_000}
TRIAL_AIMS: Final = {1: 0.8, 10: 0.9, 100: 1.0, 1_000: 1.0}
TRIAL_SETTLEMENT_AIMS: Final = {100: 0.9, 1_000: 0.9}
#: What TigerBeetle's Python client reached with settlements, measured outside the project on a machine of this kind.
SETTLEMENT_AIMS: Final = {1: 880, 100: 13_000, 1_000: 18_000}
KIB_AIM: Final = 2.0
LONGEST_MS_AIM: Final = 50.0
WARM_UP_GROUPS: Final = 20


@dataclass(frozen=True)
class Rows:
    """The sizes of the mix and of settlements alone, of the ledger or of the trial."""

    mixed: list[Row]
    alone: list[Row]

    @classmethod
    def empty(cls, settlements: Sequence[int]) -> Rows:
        """Make rows without rounds; of settlements alone, the sizes in *settlements*."""
        return cls(
            [Row("mix", group, count, []) for group, count in COUNTS.items()],
            [Row("settle", group, SETTLEMENTS[group], []) for group in settlements],
        )


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
    for _ in range(0, orders_for(row.operations), books.GROUP):
        ledger.execute(work.orders(books.GROUP, FILLS))
    result = run_groups(ledger, [work.settlements(row.group) for _ in range(row.operations // row.group)])
    return checked(ledger, work, result)


def checked(ledger: Ledger, work: Work, result: Round) -> Round:
    """Raise RuntimeError unless exactly the entries that were meant are in the journal."""
    if ledger.head.seq + 1 != work.seq:
        raise RuntimeError(f"the journal ends at {ledger.head.seq}; {work.seq - 1} was meant")
    return result


def measure(ledger: Ledger, trial: Trial, quiet: Quiet) -> tuple[Rows, Rows, dict[str, float]]:
    """Fill the ledger and take all rounds, of ledger and trial in turn; return them, and the shares of the mix."""
    tell(f"  fill a ledger with {CUSTOMERS:,} customers of 20 coins")
    books.book(ledger, opening(CUSTOMERS))
    work = Work(1, ledger.head.seq + 1, CUSTOMERS)
    warm = [work.group(1_000) for _ in range(WARM_UP_GROUPS)]
    run_groups(ledger, warm)
    own, trials = Rows.empty(list(SETTLEMENTS)), Rows.empty(list(TRIAL_SETTLEMENT_AIMS))
    beside = {row.group: row for row in trials.mixed}
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  round {number + 1}")
        for row in own.mixed:
            row.rounds.append(quiet.round(partial(mixed_round, ledger, work, row)))
            beside[row.group].rounds.append(quiet.round(partial(trial.round, row)))
    settling = Work(2, ledger.head.seq + 1, CUSTOMERS)
    beside = {row.group: row for row in trials.alone}
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  settlements alone, round {number + 1}")
        for row in own.alone:
            row.rounds.append(quiet.round(partial(settling_round, ledger, settling, row)))
            if row.group in beside:
                beside[row.group].rounds.append(quiet.round(partial(trial.round, row)))
    return own, trials, shares_of([operation for group in warm for operation in group])


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("exchange", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        if cores.server is not None:
            stack.callback(os.sched_setaffinity, 0, allowed)
            os.sched_setaffinity(0, {cores.server})
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
        with (
            sealing_on(cores.load),
            running_trial(folder, cores, CUSTOMERS) as trial,
            spotledger.open(folder / "data") as ledger,
        ):
            own, trials, shares = measure(ledger, trial, quiet)
            entries = ledger.head.seq
        peers = books_rows.measure(folder, cores)
    summarise(report, own, trials, peers)
    report.notes += [
        f"Medians of {len(own.mixed[0].rounds)} rounds, the sizes in turn, on one ledger that grew to {entries:,} "
        f"entries, and on the trial's file. {CUSTOMERS:,} customers and 20 coins, chosen by Zipf's law; shares of the "
        f"kinds: {shares}.",
        "The process that executes has the first core, the one that seals for the ledger the second. The trial has the "
        "first core alone, and seals with it. ÷ is the median of the ratios of two rounds that follow one another.",
        "Operations are made ahead and outcomes checked outside the time. Written is what the kernel sent to the disk "
        "for the process that executes and for the one that seals, whatever the file.",
    ]
    quiet.report(report)
    return report


def summarise(report: Report, own: Rows, trials: Rows, peers: Sequence[books_rows.Row]) -> None:
    """Put tables, aims and raw figures into *report*."""
    settled = [row for row in own.alone if row.group in TRIAL_SETTLEMENT_AIMS]
    columns = ("spotledger", "the trial")
    report.tables += [
        table_of("The mix of an exchange", own.mixed),
        table_of("Settlements alone", own.alone),
        ratio_table("The mix beside the trial", columns, own.mixed, trials.mixed),
        ratio_table("Settlements alone beside the trial", columns, settled, trials.alone),
        table_of("The trial: the mix", trials.mixed),
        table_of("The trial: settlements alone", trials.alone),
        peer_table(own.mixed, peers),
    ]
    report.aims += ratio_aims("library ÷ trial", TRIAL_AIMS, own.mixed, trials.mixed)
    report.aims += ratio_aims("settlements alone ÷ the trial's", TRIAL_SETTLEMENT_AIMS, settled, trials.alone)
    largest = own.mixed[-1]
    kib, longest = largest.median("kib_written_per_operation"), largest.median("longest_group_ms")
    report.aims.append(Aim("longest group of 1,000, ms", round(longest, 1), LONGEST_MS_AIM, at_most=True))
    report.aims.append(Aim("KiB written an operation, groups of 1,000", round(kib, 2), KIB_AIM, at_most=True))
    for row in own.alone:
        rate = round(row.median("operations_per_second"))
        report.aims.append(Aim(f"settlements/s, groups of {row.group:,}", rate, SETTLEMENT_AIMS[row.group]))
    for name, rows in (("spotledger", own), ("trial", trials)):
        for row in (*rows.mixed, *rows.alone):
            report.raw[f"{name}-{row.title}-{row.group}"] = [asdict(each) for each in row.rounds]
    report.raw["peers"] = [asdict(each) for each in peers]


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
