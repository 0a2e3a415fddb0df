"""
How many answers of 300 bytes a second one core gives: the HTTP server of spotledger, beside three others.

The handlers do nothing. Every target gets the same load over 64 connections that stay open, and they take turns within
each round, so that a moment when the machine is slower hits all of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

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
    conditions,
    free_port,
    install_packages,
    running,
    tell,
    wait_until_ready,
)
from bench.load import CONNECTIONS, PATH, Credentials, Round, Target, run_round

BODY = b'{"code":200,"data":"' + b"x" * 258 + b'","info":"success"}'
HEADERS = [("content-type", "application/json"), ("cache-control", "no-store")]
ROUND_SECONDS = 1 if QUICK else 5
PEERS = ROOT / "bench" / "peers"
NAMES = {
    "h1": "spotledger's HTTP server",
    "uvicorn": "uvicorn, a raw ASGI application",
    "granian": "granian, a raw RSGI handler",
    "nginx": "nginx, a file",
}
_ANYONE = [Credentials("11111111-2222-4333-8444-555555555555", "0" * 64, "anyone")]


def command_of(name: str, port: int, folder: Path) -> list[str]:
    """Return the command that starts the target *name* with the answer that is in *folder*."""
    answer = str(folder / "document.json")
    if name == "nginx":
        text = (PEERS / "nginx.conf").read_text().replace("@FOLDER@", str(folder)).replace("@PORT@", str(port))
        (folder / "nginx.conf").write_text(text)
        return ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    if name == "uvicorn":
        return [
            *(sys.executable, "-m", "uvicorn", "bench.peers.bare_asgi:app", "--host", "127.0.0.1"),
            *("--port", str(port), "--no-access-log", "--loop", "uvloop", "--http", "httptools"),
        ]
    return [sys.executable, str(PEERS / ("bare_h1.py" if name == "h1" else "bare_rsgi.py")), str(port), answer]


def started(name: str, stack: ExitStack, cores: Cores) -> Target:
    """Start the target *name* and wait for it."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
    (folder / "answer.json").write_bytes(BODY)
    (folder / "document.json").write_text(json.dumps({"headers": HEADERS, "body": BODY.decode()}))
    port = free_port()
    environment = {"BENCH_ANSWER": str(folder / "document.json")}
    process = stack.enter_context(running(command_of(name, port, folder), cores.server, folder, environment))
    wait_until_ready(process, f"http://127.0.0.1:{port}{PATH}")
    return Target(port, process.pid)


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    without = install_packages({"wrk": "wrk", "nginx": "nginx-light"})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))
        report = Report("h1", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        if "wrk" in without:
            report.notes.append("Nothing was measured: wrk is not installed, and could not be.")
            return report
        targets = {name: started(name, stack, cores) for name in NAMES if name not in without}
        rounds = measured(
            targets, lambda target, seconds: run_round(target, _ANYONE, 0, seconds, cores, folder), report
        )
    rates = {name: statistics.median(each.requests_per_second for each in found) for name, found in rounds.items()}
    table = Table("300 bytes", ["", "requests/s", "h1 is", "p50 µs", "p99 µs"])
    for name, found in rounds.items():
        p50, p99 = (round(statistics.median(getattr(one, part) for one in found)) for part in ("p50_us", "p99_us"))
        table.rows.append([NAMES[name], round(rates[name]), f"× {rates['h1'] / rates[name]:.2f}", p50, p99])
    report.tables.append(table)
    report.aims.append(Aim("requests/s ÷ uvicorn", round(rates["h1"] / rates["uvicorn"], 3), 1))
    report.notes.append(f"{CONNECTIONS} connections, rounds of {ROUND_SECONDS} s, medians of {ROUNDS}.")
    report.raw = {name: [asdict(each) for each in found] for name, found in rounds.items()}
    return report


def measured(
    targets: dict[str, Target], take: Callable[[Target, int], Round], report: Report
) -> dict[str, list[Round]]:
    """Take the rounds, the targets in turns, after one second each to warm up."""
    for target in targets.values():
        take(target, 1)
    rounds: dict[str, list[Round]] = {name: [] for name in targets}
    quiet = Quiet(SPARE_ROUNDS)
    for number in range(ROUNDS):
        tell(f"  round {number + 1} of {ROUNDS}")
        for name, target in targets.items():
            rounds[name].append(quiet.round(partial(take, target, ROUND_SECONDS)))
    quiet.report(report)
    return rounds
