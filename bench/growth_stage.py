"""
One stage of the growth bench, in a process of its own so that its memory is its own.

``python -m bench.growth_stage fill DATA ENTRIES CUSTOMERS`` or ``… measure DATA OPERATIONS CUSTOMERS``; the latter
prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import spotledger
from bench import books
from bench.exchange_work import Work, customer_name, opening
from bench.harness import resident_mib
from bench.rounds import run_groups
from spotledger.domain.accounts import Account
from spotledger.ledger.ledger import Ledger

GROUP: Final = 1_000
WARM_UP_GROUPS: Final = 10
READS: Final = 60


def fill(data: Path, entries: int, customers: int) -> None:
    """Grow the ledger to *entries* entries with the work of an exchange."""
    with spotledger.open(data) as ledger:
        if ledger.head.seq == 0:
            books.book(ledger, opening(customers))
        work = Work(ledger.head.seq, ledger.head.seq + 1, customers)
        while ledger.head.seq < entries:
            ledger.execute(work.group(min(GROUP, entries - ledger.head.seq)))


def measure(data: Path, operations: int, customers: int) -> dict[str, Any]:
    """Open the ledger, read its past, and do *operations* more."""
    started = time.perf_counter()
    with spotledger.open(data) as ledger:
        opened_seconds = time.perf_counter() - started
        resident = resident_mib(os.getpid())
        entries = ledger.head.seq
        busy = read_milliseconds(ledger, customer_name(0))
        quiet = read_milliseconds(ledger, customer_name(customers - 1))
        work = Work(5, ledger.head.seq + 1, customers)
        run_groups(ledger, [work.group(GROUP) for _ in range(WARM_UP_GROUPS)])
        result = run_groups(ledger, [work.group(GROUP) for _ in range(operations // GROUP)])
    return {
        "entries": entries,
        "opened_seconds": opened_seconds,
        "resident_mib": resident,
        "busy_read_ms": busy,
        "quiet_read_ms": quiet,
        "operations_per_second": result.operations_per_second,
        "processor_microseconds": result.processor_microseconds,
        "longest_group_ms": result.longest_group_ms,
        "kib_written_per_operation": result.kib_written_per_operation,
    }


def read_milliseconds(ledger: Ledger, customer: str) -> Sequence[float]:
    """Read the balances of *customer* as of random entries; return median, 95th percentile and longest, in ms."""
    chance = random.Random(7)
    durations = []
    for _ in range(READS):
        seq = chance.randint(1, ledger.head.seq)
        started = time.perf_counter()
        ledger.balances(Account(customer, "spot"), seq)
        durations.append((time.perf_counter() - started) * 1000)
    durations.sort()
    return durations[READS // 2], durations[READS * 95 // 100], durations[-1]


def main() -> None:
    """Do what the arguments say."""
    what, data, number, customers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if what == "fill":
        fill(data, number, customers)
    else:
        print(json.dumps(measure(data, number, customers)))


if __name__ == "__main__":
    main()
