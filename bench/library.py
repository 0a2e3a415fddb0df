"""How many freezes a second one process books through the library, each group synced before the next."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from pathlib import Path

import spotledger
from bench import books
from bench.harness import QUICK, ROUNDS, SPARE_ROUNDS, Cores, Quiet, Report, Table, conditions, sealing_on, tell
from bench.rounds import Usage
from spotledger.domain.operations import Freeze
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger

GROUPS = (1, 100, 1_000)
CUSTOMERS = 10_000
ROUND_SECONDS = 1.0 if QUICK else 5.0


@dataclass(frozen=True)
class Round:
    """What one round came to."""

    operations: int
    operations_per_second: float
    kib_written_per_operation: float | None
    others_cores: float


def run_round(ledger: Ledger, numbers: Iterator[int], group: int) -> Round:
    """Book freezes of new keys in groups of *group* for the length of a round; making the operations counts too."""
    usage = Usage.now()
    done = 0
    started = time.perf_counter()
    while (passed := time.perf_counter() - started) < ROUND_SECONDS:
        operations = []
        for number in (next(numbers) for _ in range(group)):
            customer = books.customer_name(number * 7919 % CUSTOMERS)
            coin = books.FIRST_COINS[number % len(books.FIRST_COINS)]
            key = f"order-{number:09}"
            operations.append(Freeze(key=key, customer=customer, coin=coin, amount="0.00150000", reference=key))
        for result in ledger.execute(operations):
            if isinstance(result, Refused):
                raise result
        done += group
    spent = Usage.now().since(usage)
    return Round(done, done / passed, spent.kib_over(done), spent.others_seconds / passed)


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    allowed = os.sched_getaffinity(0)
    if cores.server is not None:
        os.sched_setaffinity(0, {cores.server})
    try:
        with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name, sealing_on(cores.load):
            return measure(Path(name), cores)
    finally:
        os.sched_setaffinity(0, allowed)


def measure(folder: Path, cores: Cores) -> Report:
    """Run the rounds on a ledger in *folder*."""
    report = Report("library", __doc__.strip() if __doc__ else "", conditions(folder, cores))
    names = [books.customer_name(number) for number in range(CUSTOMERS)]
    rounds: dict[int, list[Round]] = {group: [] for group in GROUPS}
    ledger = spotledger.open(folder / "data")
    try:
        tell("  fill a ledger with 10,000 customers")
        books.book(ledger, books.listed(books.FIRST_COINS))
        books.book(ledger, books.registered(names))
        books.book(ledger, books.funded(names, books.FIRST_COINS))
        numbers = count()
        quiet = Quiet(SPARE_ROUNDS)
        for number in range(ROUNDS):
            tell(f"  round {number + 1} of {ROUNDS}")
            for group in GROUPS:
                rounds[group].append(quiet.round(partial(run_round, ledger, numbers, group)))
        entries = ledger.head.seq
    finally:
        ledger.close()
    table = Table(
        "Freezes", ["operations in a group", "operations/s", "slowest–quickest round", "KiB written an operation"]
    )
    for group, each in rounds.items():
        rates = [one.operations_per_second for one in each]
        kib = [one.kib_written_per_operation for one in each if one.kib_written_per_operation is not None]
        spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
        table.rows.append(
            [str(group), round(statistics.median(rates)), spread, statistics.median(kib) if kib else None]
        )
    report.tables.append(table)
    report.notes += [
        f"Medians of {ROUNDS} rounds of {ROUND_SECONDS:g} s, the sizes in turn, all on one ledger that grew to "
        f"{entries:,} entries; {CUSTOMERS:,} customers with 4 coins, every freeze opens a hold under a new key.",
        "Making the operations is part of the time. Written is what the kernel sent to the disk for this process and "
        "the one that seals.",
    ]
    quiet.report(report)
    report.raw = {str(group): [asdict(one) for one in each] for group, each in rounds.items()}
    return report
