"""How long a server takes from its start to ready with a million entries in its ledger, and what it needs at rest."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import books
from bench.harness import (
    QUICK,
    ROUNDS,
    Aim,
    Cores,
    Report,
    Table,
    conditions,
    free_port,
    resident_mib,
    running,
    tell,
    wait_until_ready,
)

ENTRIES = 100_000 if QUICK else 1_000_000
CUSTOMERS = 10_000
REST_SECONDS = 1.0 if QUICK else 3.0
START_SECONDS_AIM = 2.0
RESIDENT_MIB_AIM = 120.0


def start_once(data: Path, folder: Path, cores: Cores) -> tuple[float, float]:
    """Start the server on *data*; return seconds until ready, and resident MiB at rest."""
    public, operator = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{public}", "--operator-listen", f"127.0.0.1:{operator}"]
    started = time.perf_counter()
    with running(command, cores.server, folder) as process:
        wait_until_ready(process, f"http://127.0.0.1:{public}/readyz")
        seconds = time.perf_counter() - started
        time.sleep(REST_SECONDS)
        return seconds, resident_mib(process.pid)


def row_of(starts: list[tuple[float, float]]) -> list[float]:
    """Return median and slowest of the seconds until ready, and the median of the resident MiB."""
    seconds = [each[0] for each in starts]
    resident = statistics.median(each[1] for each in starts)
    return [round(statistics.median(seconds), 3), round(max(seconds), 3), round(resident, 1)]


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        report = Report("start", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        data = folder / "data"
        tell(f"  fill a ledger with {ENTRIES:,} entries")
        begun = time.perf_counter()
        entries = books.fill_for_starting(data, entries=ENTRIES, customers=CUSTOMERS)
        filled_seconds = time.perf_counter() - begun
        tell("  start the server on it")
        full = [start_once(data, folder, cores) for _ in range(ROUNDS)]
        empty = [start_once(folder / "empty", folder, cores) for _ in range(ROUNDS)]
        size = sum(path.stat().st_size for path in data.iterdir() if path.is_file())
    seconds, resident = (statistics.median(each[which] for each in full) for which in (0, 1))
    table = Table(
        "Start", ["ledger", "seconds to ready", "slowest", "resident MiB at rest", "file MiB", "bytes an entry"]
    )
    table.rows.append([f"{entries:,} entries", *row_of(full), round(size / 2**20, 1), round(size / entries)])
    table.rows.append(["empty", *row_of(empty), None, None])
    report.tables.append(table)
    report.aims = [
        Aim(f"seconds to ready, {entries:,} entries", round(seconds, 3), START_SECONDS_AIM, at_most=True),
        Aim("resident MiB at rest", round(resident, 1), RESIDENT_MIB_AIM, at_most=True),
    ]
    report.notes += [
        f"Medians of {ROUNDS}. Measured from the start of the process to the first 200 of /readyz, which is asked "
        f"every 2 ms; the file is in the page cache. Filled through the library in {filled_seconds:.1f} s.",
        f"{CUSTOMERS:,} customers with 4 coins each; freezes and unfreezes in turn, one hold in ten staying open.",
    ]
    report.others_cores = report.conditions["busy_cores_before"]
    report.raw = {"full": full, "empty": empty, "size_bytes": size, "entries": entries, "fill_seconds": filled_seconds}
    return report
