"""
How much processor time the server takes for a write over HTTP: single deposits, and batches of a hundred.

With ``BENCH_BASELINE=FOLDER`` another checkout, after its ``make setup dev``, takes turns with this one: each round
starts both servers, one after the other, each on a new data folder.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench.harness import (
    QUICK,
    ROOT,
    Aim,
    Cores,
    Quiet,
    Report,
    Table,
    busy_seconds,
    conditions,
    free_port,
    pinned,
    processor_seconds,
    running,
    said_by,
    tell,
    wait_until_ready,
)
from bench.http_writes import BATCH, BATCH_CONNECTIONS, Request

BASELINE: Final = os.environ.get("BENCH_BASELINE", "")
PAIRS: Final = 3 if QUICK else 10
SPARE_ROUNDS: Final = 0 if QUICK else 10
CUSTOMERS: Final = 500
#: By kind: connections, and operations of which the first do not count.
SINGLE, BATCHES = "single", "batch"
CONNECTIONS: Final = {SINGLE: 32, BATCHES: BATCH_CONNECTIONS}
WARM_UP: Final = {SINGLE: 2_000, BATCHES: 4_000}
OPERATIONS: Final = {SINGLE: 5_000 if QUICK else 20_000, BATCHES: 10_000 if QUICK else 40_000}
SECONDS_LIMIT: Final = 60.0


@dataclass(frozen=True)
class Round:
    """What one round came to: µs of the server's processor for each operation, and how busy others were."""

    microseconds: float
    others_cores: float


def deposits(kind: str, start: int, count: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the keys and bodies of *count* deposits."""
    for number in range(start, start + count):
        body = {"customer": f"customer-{number % CUSTOMERS:05}", "coin": "usdt", "amount": f"{number % 997 + 1}.25"}
        yield f"{kind}-{number:08}", body


def requests(kind: str, token: str, start: int, count: int) -> list[Request]:
    """Make the requests of *count* deposits."""
    headers = {"Authorization": f"Bearer {token}"}
    made = deposits(kind, start, count)
    if kind == SINGLE:
        return [("POST", "/v1/deposits", {**headers, "Idempotency-Key": key}, json.dumps(body)) for key, body in made]
    operations = [{"op": "deposit", "key": key, **body} for key, body in made]
    groups = [operations[first : first + BATCH] for first in range(0, count, BATCH)]
    return [("POST", "/v1/batches", headers, json.dumps({"operations": group})) for group in groups]


def opened(token: str) -> list[Request]:
    """Make the requests that list the coin and register the customers."""
    said = [("/v1/coins", {"coin": "usdt", "scale": 8})]
    said += [("/v1/customers", {"customer": f"customer-{number:05}"}) for number in range(CUSTOMERS)]
    return [
        ("POST", path, {"Authorization": f"Bearer {token}", "Idempotency-Key": f"open-{number}"}, json.dumps(body))
        for number, (path, body) in enumerate(said)
    ]


def take(kind: str, checkout: Path, cores: Cores) -> Round:
    """Start the server of *checkout* on a new data folder, and send it the deposits."""
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        port = free_port()
        command = [str(checkout / ".venv" / "bin" / "spotledger"), "serve", "--data", str(folder / "data")]
        command += ["--listen", "127.0.0.1:0", "--operator-listen", f"127.0.0.1:{port}"]
        environment = {"PYTHONPATH": ""}
        with running(command, cores.server, folder, environment) as process:
            wait_until_ready(process, f"http://127.0.0.1:{port}/readyz")
            token = (folder / "data" / "operator.token").read_text().strip()
            warm_up, count = WARM_UP[kind], OPERATIONS[kind]
            send(folder, port, 1, opened(token), cores)
            send(folder, port, CONNECTIONS[kind], requests(kind, token, 0, warm_up), cores)
            wanted = requests(kind, token, warm_up, count)
            busy, own = busy_seconds(), processor_seconds(process.pid)
            seconds, load_seconds = send(folder, port, CONNECTIONS[kind], wanted, cores)
            own = processor_seconds(process.pid) - own
            others = busy_seconds() - busy - own - load_seconds
    return Round(own / count * 1e6, max(0.0, others / seconds))


def send(folder: Path, port: int, connections: int, wanted: list[Request], cores: Cores) -> tuple[float, float]:
    """Send the requests *wanted*, as fast as answers come; return the seconds that took, and those of the load."""
    stream = {"name": "writes", "port": port, "connections": connections, "requests": wanted, "pace": None}
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"warm_up": 0, "seconds": SECONDS_LIMIT, "streams": [stream]}))
    said = said_by(*pinned([sys.executable, "-m", "bench.http_load", str(plan)], cores.load))
    if not said.startswith("{"):
        raise RuntimeError(f"the load said: {said}")
    found = json.loads(said)
    writes = found["streams"]["writes"]
    # The load ends with its last request, and counts from a moment after its first: some of each are not counted.
    if writes["statuses"].keys() - {"200", "201"} or writes["answers"] < len(wanted) - 4 * connections:
        raise RuntimeError(f"not the answers that were expected: {writes}")
    return found["seconds"], found["load_core_share"] * found["seconds"]


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    checkouts = {"this": ROOT, **({"baseline": Path(BASELINE).resolve()} if BASELINE else {})}
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        report = Report("http_cost", __doc__.strip() if __doc__ else "", conditions(Path(name), cores))
    if BASELINE:
        report.conditions["baseline"] = said_by("git", "-C", BASELINE, "rev-parse", "HEAD")
    quiet = Quiet(SPARE_ROUNDS)
    rounds: dict[str, dict[str, list[Round]]] = {kind: {each: [] for each in checkouts} for kind in CONNECTIONS}
    for number in range(PAIRS):
        tell(f"  pair {number + 1} of {PAIRS}")
        for kind in CONNECTIONS:
            for each in sorted(checkouts, reverse=number % 2 == 1):
                rounds[kind][each].append(quiet.round(partial(take, kind, checkouts[each], cores)))
    summarise(report, rounds)
    quiet.report(report)
    return report


def summarise(report: Report, rounds: dict[str, dict[str, list[Round]]]) -> None:
    """Put the table and, where there is a baseline, the aims into *report*."""
    table = Table("Processor time of the server", ["", "µs an operation", "baseline", "ratio", "quartiles"])
    titles = {
        SINGLE: f"deposits, {CONNECTIONS[SINGLE]} connections",
        BATCHES: f"deposits in batches of {BATCH}, {CONNECTIONS[BATCHES]} connections",
    }
    for kind, title in titles.items():
        this, baseline = ([one.microseconds for one in rounds[kind].get(each, [])] for each in ("this", "baseline"))
        row: list[object] = [title, round(statistics.median(this), 1), None, None, None]
        if baseline:
            ratios = [mine / other for mine, other in zip(this, baseline, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            row[2:] = [round(statistics.median(baseline), 1), round(middle, 3), f"{low:.3f} to {high:.3f}"]
            report.aims.append(Aim(f"{title}: processor time ÷ baseline", round(middle, 3), 1.0, at_most=True))
        table.rows.append(row)
    report.tables.append(table)
    report.notes.append(
        f"Medians of {PAIRS} rounds, each on a new data folder of {CUSTOMERS} customers; the first "
        f"{WARM_UP[SINGLE]:,} single deposits, and {WARM_UP[BATCHES]:,} in batches, do not count."
    )
    report.raw = {
        kind: {each: [asdict(one) for one in taken] for each, taken in found.items()} for kind, found in rounds.items()
    }
