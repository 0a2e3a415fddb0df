"""How fast the audit of a ledger's files is, in one process and in two."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.growth import KEPT, child
from bench.harness import QUICK, ROUNDS, SPARE_ROUNDS, Aim, Cores, Quiet, Report, Table, busy_seconds, conditions, tell

#: Entries in the ledger, and how many customers with 20 coins fit among them.
ENTRIES, CUSTOMERS = (200_000, 2_000) if QUICK else (1_000_000, 10_000)
PROCESSES: Final = (1, 2)
AUDIT_SECONDS_LIMIT: Final = 1_800
RATE_AIM: Final = 100_000


@dataclass(frozen=True)
class Round:
    """One audit: how long it took, and the processor time of all of its processes."""

    processes: int
    entries: int
    seconds: float
    processor_seconds: float
    others_cores: float


def audit(data: Path, processes: int) -> Round:
    """Audit the ledger in *data* with the command; raises RuntimeError unless it is clean."""
    program = str(Path(sys.executable).with_name("spotledger"))
    command = [program, "audit", "--data", str(data), "--processes", str(processes), "--json"]
    busy, before, started = busy_seconds(), os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=AUDIT_SECONDS_LIMIT)
    seconds, after = time.perf_counter() - started, os.times()
    if done.returncode:
        raise RuntimeError((done.stdout + done.stderr)[-1000:])
    used = after.children_user + after.children_system - before.children_user - before.children_system
    others = max(0.0, (busy_seconds() - busy - used) / seconds)
    return Round(processes, json.loads(done.stdout)["entries"], seconds, used, others)


def run() -> Report:
    """Make a ledger, audit it in turns with each number of processes, and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        report = Report("audit", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        data = Path(KEPT or folder) / f"ledger-{ENTRIES}"
        tell(f"  grow a ledger to {ENTRIES:,} entries")
        child(cores, "fill", str(data), str(ENTRIES), str(CUSTOMERS))
        tell("  audit it")
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 2)
        rounds = [quiet.round(partial(audit, data, processes)) for _ in range(ROUNDS) for processes in PROCESSES]
    summarise(report, rounds)
    quiet.report(report)
    return report


def summarise(report: Report, rounds: list[Round]) -> None:
    """Put table and aim into *report*."""
    columns = ["processes", "entries", "seconds", "entries/s", "processor µs an entry", "cores kept busy"]
    table = Table("Audits of the exchange's mix", columns)
    rates: dict[int, float] = {}
    for processes in PROCESSES:
        of = [each for each in rounds if each.processes == processes]
        entries = of[0].entries
        seconds = statistics.median(each.seconds for each in of)
        used = statistics.median(each.processor_seconds for each in of)
        rates[processes] = entries / seconds
        row = [processes, entries, seconds, round(rates[processes]), used / entries * 1e6, used / seconds]
        table.rows.append(row)
    report.tables.append(table)
    report.aims.append(Aim("audited entries/s with 2 processes", round(rates[2]), RATE_AIM))
    report.notes.append(
        f"{CUSTOMERS:,} customers with 20 coins each. The files are in the page cache. Seconds are of the whole "
        "command: its start, the check of every page, all entries and all derived tables. Processor time is of all "
        "of its processes; when others are busy it rises too, because caches and memory are shared."
    )
    report.raw = {"rounds": [asdict(each) for each in rounds]}
