"""What a ledger costs as it grows: rate, size, memory, start, reads of the past, and its audit."""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import spotledger
from bench.exchange_work import Work
from bench.harness import (
    QUICK,
    ROOT,
    ROUNDS,
    SPARE_ROUNDS,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    busy_seconds,
    conditions,
    free_port,
    most_resident_mib,
    pinned,
    resident_mib,
    running,
    sealing_on,
    sealing_processes,
    tell,
    wait_for_sealing,
    wait_until_ready,
)
from bench.http_writes import BATCH, Request, batch
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
FILL_SECONDS_LIMIT: Final = 3_600
READ_MS_AIM: Final = 5.0
AUDIT_AIM: Final = 100_000
KEPT_RATE_AIM: Final = 0.9
START_SECONDS_AIM: Final = 2.0
MEMORY_MIB_AIM: Final = 220.0
#: How often the two largest are written to, in turn; what is filled for minutes is worth it, the rest is a first look.
WORK_ROUNDS: Final = ROUNDS if LONG else 1


@dataclass(frozen=True)
class Memory:
    """What a server and its sealing process had resident after a segment was written and sealed, and at the most."""

    after_mib: float
    server_most_mib: float
    sealing_most_mib: float


@dataclass(frozen=True)
class WorkRound:
    """What a process of its own found when it opened one ledger, read its past and wrote to it."""

    figures: dict[str, Any]
    others_cores: float


@dataclass
class Stage:
    """What was found at one size."""

    entries: int
    customers: int
    data: Path
    file_mib: float
    ready_seconds: float
    serving_mib: float
    memory: Memory
    audit_seconds: float | None
    audit_says: str
    rounds: list[WorkRound] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """Return the figures of the round with the median rate."""
        return sorted((each.figures for each in self.rounds), key=rate_of)[len(self.rounds) // 2]


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


def rate_of(figures: dict[str, Any]) -> float:
    """Return the rate that a process found."""
    return float(figures["operations_per_second"])


def measure(customers: int, data: Path, folder: Path, cores: Cores) -> Stage:
    """Take the figures of the ledger in *data* that need no round; it is a little larger afterwards."""
    with spotledger.open(data) as ledger:
        entries = ledger.head.seq
    size = sum(path.stat().st_size for path in data.iterdir() if path.is_file()) / 2**20
    ready_seconds, serving_mib = start_once(data, folder, cores)
    audit_seconds, says = audit(data)
    memory = memory_while_writing(data, folder, cores, customers)
    return Stage(entries, customers, data, size, ready_seconds, serving_mib, memory, audit_seconds, says)


def memory_while_writing(data: Path, folder: Path, cores: Cores, customers: int) -> Memory:
    """Have a server book and seal a segment, and look at its memory."""
    with spotledger.open(data) as ledger:
        work = Work(6, ledger.head.seq + 1, customers)
    public, operator = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{public}", "--operator-listen", f"127.0.0.1:{operator}"]
    with running(command, cores.server, folder) as process:
        wait_until_ready(process, f"http://127.0.0.1:{public}/readyz")
        token = (data / "operator.token").read_text().strip()
        with closing(http.client.HTTPConnection("127.0.0.1", operator, timeout=60)) as connection:
            for _ in range(0, OPERATIONS, BATCH):
                send(connection, batch(work.group(BATCH), token))
        wait_for_sealing()
        after = resident_mib(process.pid)
        return Memory(after, *(most_resident_mib(*each) for each in ([process.pid], sealing_processes(process.pid))))


def send(connection: http.client.HTTPConnection, request: Request) -> None:
    """Send *request* and read the answer; raise RuntimeError unless it is a success."""
    method, path, headers, body = request
    connection.request(method, path, body, {**headers, "Content-Type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    if answer.status != HTTPStatus.OK:
        raise RuntimeError(f"the server answered {answer.status}: {said[:300]!r}")


def work_round(stage: Stage, cores: Cores) -> WorkRound:
    """Open the ledger of *stage* in a process of its own, read its past and write to it."""
    busy, started = busy_seconds(), time.perf_counter()
    own = os.times()
    figures = json.loads(child(cores, "measure", str(stage.data), str(OPERATIONS), str(stage.customers)))
    after = os.times()
    used = after.children_user + after.children_system - own.children_user - own.children_system
    others = (busy_seconds() - busy - used) / (time.perf_counter() - started)
    return WorkRound(figures, max(0.0, others))


def run() -> Report:
    """Measure every size and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name, sealing_on(cores.load):
        folder = Path(name)
        report = Report("growth", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
        stages = []
        for entries, customers in SIZES:
            data = Path(KEPT or folder) / f"ledger-{entries}"
            tell(f"  grow a ledger to {entries:,} entries")
            child(cores, "fill", str(data), str(entries), str(customers))
            tell("  start, audit and serve it")
            stages.append(measure(customers, data, folder, cores))
        for number in range(WORK_ROUNDS):
            tell(f"  write to them, round {number + 1}")
            for stage in stages if number == 0 else stages[-2:]:
                stage.rounds.append(quiet.round(partial(work_round, stage, cores)))
    summarise(report, stages)
    quiet.report(report)
    return report


def summarise(report: Report, stages: list[Stage]) -> None:
    """Put tables and aims into *report*."""
    columns = ["entries", "operations/s", "processor µs", "longest group ms", "KiB written", "file MiB"]
    work = Table("The mix of an exchange, groups of 1,000", [*columns, "bytes an entry"])
    columns = ["entries", "library opens in s", "its MiB", "server ready in s", "its MiB", "MiB with sealing"]
    start = Table("Start, memory and audit", [*columns, "at most", "audit s", "audited entries/s"])
    columns = ["entries", "busy: median ms", "p95", "longest", "quiet: median ms", "p95", "longest"]
    reads = Table("Balances as of an earlier entry", columns)
    for stage in stages:
        found = stage.figures
        each = [found[name] for name in ("processor_microseconds", "longest_group_ms", "kib_written_per_operation")]
        rate = round(rate_of(found))
        size = [round(stage.file_mib, 1), round(stage.file_mib * 2**20 / stage.entries)]
        work.rows.append([stage.entries, rate, *each, *size])
        rated = round(stage.entries / stage.audit_seconds) if stage.audit_seconds else None
        own = [found["opened_seconds"], found["resident_mib"], stage.ready_seconds, stage.serving_mib]
        own += [stage.memory.after_mib, stage.memory.server_most_mib + stage.memory.sealing_most_mib]
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
        f"Written to in {WORK_ROUNDS} rounds, the sizes in turn. Shown is the round with the median rate; the ratio is "
        "the median of the ratios by round. What seals has the second core.",
        f"Memory with sealing is that of server and sealing process after a segment came over HTTP in batches of "
        f"{BATCH} and was sealed; at most adds up what each of them had resident at its highest.",
    ]
    report.raw = {f"{stage.entries}": {**asdict(stage), "data": str(stage.data)} for stage in stages}


def aims_of(stages: list[Stage]) -> list[Aim]:
    """Compare the sizes with each other and with what is aimed at."""
    last, before = stages[-1], stages[-2]
    pairs = zip(last.rounds, before.rounds, strict=True)
    kept = statistics.median(rate_of(one.figures) / rate_of(other.figures) for one, other in pairs)
    slowest = max(last.figures["busy_read_ms"][1], last.figures["quiet_read_ms"][1])
    rate = last.entries / last.audit_seconds if last.audit_seconds else None
    memory = last.memory
    most = memory.server_most_mib + memory.sealing_most_mib
    return [
        Aim(f"rate at {last.entries:,} ÷ at {before.entries:,}", round(kept, 2), KEPT_RATE_AIM),
        Aim(f"start at {last.entries:,}, s", round(last.ready_seconds, 2), START_SECONDS_AIM, at_most=True),
        Aim(f"MiB of writer and sealer at {last.entries:,}", round(memory.after_mib), MEMORY_MIB_AIM, at_most=True),
        Aim(f"the same at the most, at {last.entries:,}", round(most), MEMORY_MIB_AIM, at_most=True),
        Aim("as-of read, p95 ms", round(slowest, 2), READ_MS_AIM, at_most=True),
        Aim("audited entries/s", round(rate) if rate else None, AUDIT_AIM),
        Aim(
            "server's MiB, largest ÷ the one before", round(last.serving_mib / before.serving_mib, 2), 1.5, at_most=True
        ),
    ]
