"""What a ledger costs as it grows: rate, size, memory, start, reads of the past, and its audit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.harness import (
    QUICK,
    ROOT,
    SPARE_ROUNDS,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    busy_seconds,
    conditions,
    pinned,
    tell,
)
from bench.start import start_once

LONG: Final = os.environ.get("BENCH_LONG", "") not in ("", "0")
#: A folder in which filled ledgers stay and are found again: filling ten million takes longer than all the rest.
KEPT: Final = os.environ.get("BENCH_LEDGERS", "")
#: Entries in the ledger before the measurement, and how many customers with 20 coins fit among them.
SIZES: Final = (
    [(10_000, 400), (100_000, 1_000)]
    if QUICK
    else [(10_000, 400), (1_000_000, 10_000), *([(10_000_000, 10_000)] if LONG else [])]
)
#: A little more than a segment, in quick runs too: fewer would leave out most of what sealing costs.
OPERATIONS: Final = 66_000
TABLES: Final = {
    "The mix of an exchange, groups of 1,000": (
        ["entries", "operations/s", "processor µs", "longest group ms", "KiB written", "file MiB", "bytes an entry"]
    ),
    "Start, memory and audit": (
        ["entries", "library opens in s", "its MiB", "server ready in s", "its MiB", "audit s", "audited entries/s"]
    ),
    "Balances as of an earlier entry": (
        ["entries", "busy: median ms", "p95", "longest", "quiet: median ms", "p95", "longest"]
    ),
}
FILL_SECONDS_LIMIT: Final = 3_600
READ_MS_AIM: Final = 5.0
AUDIT_AIM: Final = 100_000
KEPT_RATE_AIM: Final = 0.8


@dataclass(frozen=True)
class Stage:
    """What was found at one size."""

    entries: int
    figures: dict[str, Any]
    file_mib: float
    ready_seconds: float
    serving_mib: float
    audit_seconds: float | None
    audit_says: str
    others_cores: float


def child(cores: Cores, *arguments: str) -> str:
    """Run a stage in a process of its own; return what it printed."""
    command = pinned([sys.executable, "-m", "bench.growth_stage", *arguments], cores.server)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=FILL_SECONDS_LIMIT, cwd=ROOT, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{arguments}: {done.stderr[-1000:]}")
    return done.stdout


def audit(data: Path) -> tuple[float | None, str]:
    """Audit the ledger with the command, on all cores; return seconds, or None and why not."""
    command = [str(Path(sys.executable).with_name("spotledger")), "audit", "--data", str(data), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1_800)
    seconds = time.perf_counter() - started
    if done.returncode:
        return None, (done.stdout + done.stderr).strip()[-200:]
    return seconds, ""


def measure(data: Path, folder: Path, cores: Cores, customers: int) -> Stage:
    """Take all figures of the ledger in *data*; it is a little larger afterwards."""
    size = sum(path.stat().st_size for path in data.iterdir() if path.is_file()) / 2**20
    ready_seconds, serving_mib = start_once(data, folder, cores)
    audit_seconds, says = audit(data)
    busy, started = busy_seconds(), time.perf_counter()
    own = os.times()
    figures = json.loads(child(cores, "measure", str(data), str(OPERATIONS), str(customers)))
    after = os.times()
    used = after.children_user + after.children_system - own.children_user - own.children_system
    others = (busy_seconds() - busy - used) / (time.perf_counter() - started)
    entries = figures["entries"]
    return Stage(entries, figures, size, ready_seconds, serving_mib, audit_seconds, says, max(0.0, others))


def run() -> Report:
    """Measure every size and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        report = Report("growth", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 8)
        stages = []
        for entries, customers in SIZES:
            data = Path(KEPT or folder) / f"ledger-{entries}"
            tell(f"  grow a ledger to {entries:,} entries")
            child(cores, "fill", str(data), str(entries), str(customers))
            tell("  measure it")
            stages.append(quiet.round(partial(measure, data, folder, cores, customers)))
    summarise(report, stages)
    quiet.report(report)
    return report


def summarise(report: Report, stages: list[Stage]) -> None:
    """Put tables and aims into *report*."""
    columns = [
        "entries",
        "operations/s",
        "processor µs",
        "longest group ms",
        "KiB written",
        "file MiB",
        "bytes an entry",
    ]
    work = Table("The mix of an exchange, groups of 1,000", columns)
    columns = [
        "entries",
        "library opens in s",
        "its MiB",
        "server ready in s",
        "its MiB",
        "audit s",
        "audited entries/s",
    ]
    start = Table("Start, memory and audit", columns)
    columns = ["entries", "busy: median ms", "p95", "longest", "quiet: median ms", "p95", "longest"]
    reads = Table("Balances as of an earlier entry", columns)
    for stage in stages:
        found = stage.figures
        each = [found[name] for name in ("processor_microseconds", "longest_group_ms", "kib_written_per_operation")]
        rate = round(found["operations_per_second"])
        size = [round(stage.file_mib, 1), round(stage.file_mib * 2**20 / stage.entries)]
        work.rows.append([stage.entries, rate, *each, *size])
        rated = round(stage.entries / stage.audit_seconds) if stage.audit_seconds else None
        own = [found["opened_seconds"], found["resident_mib"], stage.ready_seconds, stage.serving_mib]
        start.rows.append([stage.entries, *own, stage.audit_seconds, rated])
        reads.rows.append([stage.entries, *found["busy_read_ms"], *found["quiet_read_ms"]])
    report.tables += [work, start, reads]
    report.aims = aims_of(stages)
    report.notes += [
        f"No audit of {stage.entries:,} entries: {stage.audit_says}" for stage in stages if stage.audit_says
    ]
    report.notes += [
        "Each size is opened, read and written to in a process of its own; the smallest has 400 customers, because "
        "10,000 of them with 20 coins need more entries. The file is in the page cache. The audit is the command, its "
        "start included; it alone has both cores.",
        "10 million entries are measured with BENCH_LONG=1. At 10 thousand about two thirds of a sealing fall into the "
        "measured operations, at the larger sizes a whole one.",
    ]
    report.raw = {f"{stage.entries}": asdict(stage) for stage in stages}


def aims_of(stages: list[Stage]) -> list[Aim]:
    """Compare the sizes with each other and with what is aimed at."""
    last, before = stages[-1], stages[-2]
    kept = last.figures["operations_per_second"] / before.figures["operations_per_second"]
    slowest = max(last.figures["busy_read_ms"][1], last.figures["quiet_read_ms"][1])
    rate = last.entries / last.audit_seconds if last.audit_seconds else None
    return [
        Aim(f"rate at {last.entries:,} ÷ at {before.entries:,}", round(kept, 2), KEPT_RATE_AIM),
        Aim("as-of read, p95 ms", round(slowest, 2), READ_MS_AIM, at_most=True),
        Aim("audited entries/s", round(rate) if rate else None, AUDIT_AIM),
        Aim(
            "server's MiB, largest ÷ the one before", round(last.serving_mib / before.serving_mib, 2), 1.5, at_most=True
        ),
    ]
