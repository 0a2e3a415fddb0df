"""
How long a trader waits for a signed getBalance while a crowd keeps thousands of connections open.

A hundred connections of traders send signed requests at an even pace; half of the crowd is silent, and half sends one
byte of a request a second. The crowd opens again what the server closes. All limits of connections are the defaults.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench import books
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
    pinned,
    processor_seconds,
    running,
    said_by,
    tell,
    wait_until_ready,
)
from bench.load import Credentials, sign
from bench.read import OPEN_LIMITS

TRADERS: Final = 100
REQUESTS_PER_SECOND: Final = 400
SECONDS: Final = 3.0 if QUICK else 10.0
WARM_UP_SECONDS: Final = 1.0
STOP_SECONDS: Final = 20
P99_MS_AIM: Final = 50
#: What a crowd is called, its connections, and how many addresses they come from.
CROWDS: Final = (
    ("nobody else", 0, 1),
    ("9,900 connections from 990 addresses", 9_900, 990),
    ("2,000 connections tried from one address", 2_000, 1),
)


@dataclass(frozen=True)
class Round:
    """What the traders saw in one round, and how many connections of the crowd were open."""

    figures: dict[str, Any]
    crowd_open: int
    crowd_again: int
    server_core_share: float
    others_cores: float


class Stage:
    """A service, its traders, and the crowds."""

    def __init__(self, stack: ExitStack, cores: Cores) -> None:
        self.cores = cores
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        data = self.folder / "data"
        books.fill_for_reading(data, customers=TRADERS, keyed=TRADERS, coins=4)
        self.port, operator = free_port(), free_port()
        command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(data)]
        command += ["--listen", f"127.0.0.1:{self.port}", "--operator-listen", f"127.0.0.1:{operator}"]
        self.process = stack.enter_context(running(command, cores.server, self.folder, OPEN_LIMITS))
        wait_until_ready(self.process, f"http://127.0.0.1:{self.port}/readyz")
        customers = [books.customer_name(number) for number in range(TRADERS)]
        self.credentials: list[Credentials] = list(books.make_keys(operator, data, customers))

    def round(self, connections: int, addresses: int) -> Round:
        """Take one round beside a crowd."""
        with self.crowd(connections, addresses) as crowd:
            lines = sign(self.credentials, int(REQUESTS_PER_SECOND * (WARM_UP_SECONDS + SECONDS + 1)))
            stream = {
                "name": "reads",
                "port": self.port,
                "connections": TRADERS,
                "pace": REQUESTS_PER_SECOND,
                "requests": [("GET", line, {}, "") for line in lines],
            }
            plan = self.folder / "plan.json"
            plan.write_text(json.dumps({"warm_up": WARM_UP_SECONDS, "seconds": SECONDS, "streams": [stream]}))
            busy, own = busy_seconds(), processor_seconds(self.process.pid)
            other = processor_seconds(crowd.pid) if crowd else 0.0
            said = said_by(*pinned([sys.executable, "-m", "bench.http_load", str(plan)], self.cores.load))
            own = processor_seconds(self.process.pid) - own
            other = (processor_seconds(crowd.pid) if crowd else 0.0) - other
            busy = busy_seconds() - busy
        found = json.loads(said)
        figures = found["streams"]["reads"]
        if set(figures["statuses"]) != {"200"} or figures["never_sent"]:
            raise RuntimeError(f"not the answers that were expected: {figures}")
        seconds = found["seconds"]
        others = max(0.0, (busy - own - other) / seconds - found["load_core_share"] - 0.2)
        return Round(figures, self.opened, self.again, own / seconds, others)

    @contextmanager
    def crowd(self, connections: int, addresses: int) -> Iterator[subprocess.Popen[str] | None]:
        """Keep a crowd there for the length of a block."""
        self.opened = self.again = 0
        if not connections:
            yield None
            return
        command = [sys.executable, "-m", "bench.crowd_load", str(self.port), str(connections), str(addresses)]
        process = subprocess.Popen(
            pinned(command, self.cores.load), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            self.opened = int(process.stdout.readline())
            yield process
        finally:
            process.stdin.close()
            said = process.stdout.read()
            process.wait(STOP_SECONDS)
        self.again = int(said)


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    rounds: dict[str, list[Round]] = {name: [] for name, _, _ in CROWDS}
    with ExitStack() as stack:
        stage = Stage(stack, cores)
        report = Report("crowd", __doc__.strip() if __doc__ else "", conditions(stage.folder, cores))
        quiet = Quiet(SPARE_ROUNDS)
        for number in range(ROUNDS):
            tell(f"  round {number + 1} of {ROUNDS}")
            for name, connections, addresses in CROWDS:
                rounds[name].append(quiet.round(partial(stage.round, connections, addresses)))
        quiet.report(report)
    table = Table("Signed getBalance", ["beside", "open", "p50 ms", "p99 ms", "longest ms", "server core"])
    for name, found in rounds.items():
        p50, p99, longest = (
            round(statistics.median(one.figures[part] for one in found), 2)
            for part in ("p50_ms", "p99_ms", "longest_ms")
        )
        share = round(statistics.median(one.server_core_share for one in found), 2)
        table.rows.append([name, round(statistics.median(one.crowd_open for one in found)), p50, p99, longest, share])
        if found[0].crowd_open:
            report.aims.append(Aim(f"p99 ms beside {name}", p99, P99_MS_AIM, at_most=True))
    report.tables.append(table)
    report.notes.append(
        f"{TRADERS} connections of traders, {REQUESTS_PER_SECOND} requests a second, rounds of {SECONDS:g} s, medians "
        f"of {ROUNDS}. A time counts from when the request was due. The crowd runs on the core of the load."
    )
    report.raw = {name: [asdict(one) for one in found] for name, found in rounds.items()}
    return report
