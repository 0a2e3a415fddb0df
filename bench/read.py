"""
How many signed getBalance a second one core answers, beside nginx, a bare handler and a FastAPI version.

Every target gets the same load: 64 connections, every request signed, no pair of access key and nonce twice. The
targets take turns within each round, so that a moment when the machine is slower hits all of them.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
    conditions,
    free_port,
    install_packages,
    running,
    tell,
    wait_until_ready,
)
from bench.load import CONNECTIONS, Credentials, Round, Target, ask, check_answers, run_round, sign

CUSTOMERS = 10_000
KEYED_CUSTOMERS = 500
COIN_COUNTS = (4, 200)
ROUND_SECONDS = 1 if QUICK else 5
WARM_UP_SECONDS = 1
#: As many as spotledger answers in a round; quicker targets get them again, and do not look at them. With 400,000 wrk
#: itself pauses: the 99th percentile was 47 ms instead of 2.7, at the same rate.
REQUESTS = 80_000 if QUICK else 240_000
#: Request ids and remaining limits have more or fewer digits.
SIZE_TOLERANCE = 0.025
PEERS = ROOT / "bench" / "peers"
#: The load comes from one address, and its accounts ask more often than a trader may; so the limits are wide.
OPEN_LIMITS = {
    "SPOTLEDGER_ASSET_LIMIT_PER_SECOND": "1000000",
    "SPOTLEDGER_ACCOUNT_LIMIT_PER_SECOND": "1000000",
    "SPOTLEDGER_ADDRESS_LIMIT_PER_MINUTE": "100000000",
}
NAMES = {
    "spotledger": "spotledger, all checks on",
    "bare": "the HTTP server alone, fixed bytes, no checks",
    "nginx": "nginx, a file",
    "fastapi": "FastAPI, pydantic, uvicorn",
}


@dataclass
class Row:
    """One target with what was measured of it."""

    name: str
    coins: int
    target: Target
    credentials: list[Credentials]
    answer_bytes: int
    rounds: list[Round]

    @property
    def rate(self) -> float:
        """Return the median of the rounds, in requests a second."""
        return statistics.median(each.requests_per_second for each in self.rounds)


class Stage:
    """Starts the targets, all of them idle until their turn, and ends them with the block it is used in."""

    def __init__(self, stack: ExitStack, cores: Cores, missing: list[str]) -> None:
        self.stack = stack
        self.cores = cores
        self.missing = missing
        self.rows: list[Row] = []

    def folder(self) -> Path:
        """Make a folder that is gone after the run."""
        return Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-")))

    def start(self, command: list[str], port: int, ready: str, folder: Path, **environment: str) -> Target:
        """Start one server and wait for it."""
        process = self.stack.enter_context(running(command, self.cores.server, folder, environment))
        wait_until_ready(process, f"http://127.0.0.1:{port}{ready}")
        return Target(port, process.pid)

    def add_all(self, coins: int) -> None:
        """Start spotledger with this number of *coins* listed, and each peer with the same answer."""
        folder = self.folder()
        tell(f"  {coins} coins: fill a ledger, start the servers")
        ledger, credentials = self.spotledger(folder, coins)
        headers, body = ask(ledger.port, sign(credentials, 1)[0])
        self.rows.append(Row("spotledger", coins, ledger, credentials, 0, []))
        for name, make in (("bare", self.bare), ("nginx", self.nginx), ("fastapi", self.fastapi)):
            if name not in self.missing and not (QUICK and coins > COIN_COUNTS[0]):
                target = make(self.folder(), credentials, headers, body)
                self.rows.append(Row(name, coins, target, credentials, 0, []))
        for row in self.rows:
            if row.coins == coins:
                row.answer_bytes = check_answers(row.target.port, row.credentials, body)

    def spotledger(self, folder: Path, coins: int) -> tuple[Target, list[Credentials]]:
        """Start ``spotledger serve`` on a ledger of 10,000 customers, and make the access keys."""
        data = folder / "data"
        books.fill_for_reading(data, customers=CUSTOMERS, keyed=KEYED_CUSTOMERS, coins=coins)
        public, operator = free_port(), free_port()
        command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(data)]
        command += ["--listen", f"127.0.0.1:{public}", "--operator-listen", f"127.0.0.1:{operator}"]
        target = self.start(command, public, "/readyz", folder, **OPEN_LIMITS)
        customers = [books.customer_name(number) for number in range(KEYED_CUSTOMERS)]
        return target, books.make_keys(operator, data, customers)

    def bare(self, folder: Path, _: list[Credentials], headers: list[tuple[str, str]], body: bytes) -> Target:
        """Start the bare handler with the headers and the body that spotledger sent."""
        own = {"date", "server", "content-length", "connection", "transfer-encoding"}
        kept = [(name.lower(), value) for name, value in headers if name.lower() not in own]
        (folder / "answer.json").write_text(json.dumps({"headers": kept, "body": body.decode()}))
        port = free_port()
        command = [sys.executable, str(PEERS / "bare_h1.py"), str(port), str(folder / "answer.json")]
        return self.start(command, port, "/", folder)

    def nginx(self, folder: Path, _: list[Credentials], __: list[tuple[str, str]], body: bytes) -> Target:
        """Start nginx with the body in a file."""
        (folder / "answer.json").write_bytes(body)
        port = free_port()
        text = (PEERS / "nginx.conf").read_text().replace("@FOLDER@", str(folder)).replace("@PORT@", str(port))
        (folder / "nginx.conf").write_text(text)
        command = ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        return self.start(command, port, "/trade/api/v1/getBalance", folder)

    def fastapi(self, folder: Path, credentials: list[Credentials], _: list[tuple[str, str]], body: bytes) -> Target:
        """Start the FastAPI version with the same access keys and balances."""
        balances = json.loads(body)["data"]
        state = {
            "secrets": {each.accesskey: each.secretkey for each in credentials},
            "customers": {each.accesskey: each.customer for each in credentials},
            "balances": {each.customer: balances for each in credentials},
        }
        (folder / "state.json").write_text(json.dumps(state))
        port = free_port()
        command = [sys.executable, "-m", "uvicorn", "bench.peers.fastapi_app:app", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--no-access-log"]
        return self.start(command, port, "/openapi.json", folder, BENCH_STATE=str(folder / "state.json"))


def measure(row: Row, seconds: int, cores: Cores, folder: Path) -> Round:
    """Run one round on *row*; raise RuntimeError unless every answer was a success of the expected length."""
    count = 0 if row.name == "nginx" else REQUESTS * seconds // ROUND_SECONDS
    result = run_round(row.target, row.credentials, count, seconds, cores, folder)
    size = check_answers(row.target.port, row.credentials)
    off = abs(result.bytes_per_answer - row.answer_bytes) / row.answer_bytes
    if result.errors or off > SIZE_TOLERANCE or abs(size - row.answer_bytes) > SIZE_TOLERANCE * size:
        raise RuntimeError(
            f"{row.name}: {result.errors} errors, {result.bytes_per_answer:.0f} bytes an answer, not {row.answer_bytes}"
        )
    return result


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    without = install_packages({"wrk": "wrk", "nginx": "nginx-light"})
    with ExitStack() as stack:
        stage = Stage(stack, cores, without)
        folder = stage.folder()
        report = Report("read", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        if "wrk" in without:
            report.notes.append("Nothing was measured: wrk is not installed, and could not be.")
            return report
        for coins in COIN_COUNTS:
            stage.add_all(coins)
        for row in stage.rows:
            measure(row, WARM_UP_SECONDS, cores, folder)
        quiet = Quiet(SPARE_ROUNDS)
        for number in range(ROUNDS):
            tell(f"  round {number + 1} of {ROUNDS}")
            for row in stage.rows:
                row.rounds.append(quiet.round(partial(measure, row, ROUND_SECONDS, cores, folder)))
        summarise(report, stage.rows, without)
        quiet.report(report)
    return report


def summarise(report: Report, rows: list[Row], without: list[str]) -> None:
    """Put medians, ratios and aims into *report*."""
    rates = {(row.name, row.coins): row.rate for row in rows}
    for coins in COIN_COUNTS:
        columns = [
            "",
            "requests/s",
            "slowest–quickest round",
            "spotledger is",
            "p50 µs",
            "p99 µs",
            "bytes",
            "load core",
        ]
        table = Table(f"{coins} coins listed", columns)
        for row in rows:
            if row.coins == coins:
                table.rows.append(table_row(row, rates["spotledger", coins]))
        report.tables.append(table)
    ours = rates["spotledger", 4]
    report.aims = [
        Aim("requests/s ÷ FastAPI, 4 coins", ratio(ours, rates.get(("fastapi", 4))), 9),
        Aim("requests/s ÷ nginx, 4 coins", ratio(ours, rates.get(("nginx", 4))), 0.34),
        Aim("200 coins ÷ 4 coins", ratio(rates.get(("spotledger", 200)), ours), 0.7),
    ]
    report.notes += [f"{name} is not installed, and could not be: its row is missing." for name in without]
    report.notes += [
        f"{CONNECTIONS} connections, rounds of {ROUND_SECONDS} s, medians of {ROUNDS}; {CUSTOMERS:,} customers, of "
        f"whom {KEYED_CUSTOMERS:,} ask in turn; {REQUESTS:,} different signed requests a round, signed just before it.",
        "wrk reads every answer (of nginx the status and the length); one that is no success ends the run.",
        "nginx gets one request again and again, so that wrk has less to do; a load core near 1 says that wrk, not "
        "nginx, was the limit, so nginx could be quicker still.",
    ]
    report.notes += where_the_time_goes(ours, rates.get(("bare", 4)), rates.get(("fastapi", 4)))
    report.raw = {f"{row.name}-{row.coins}": [asdict(each) for each in row.rounds] for row in rows}


def where_the_time_goes(ours: float, bare: float | None, fastapi: float | None) -> list[str]:
    """Tell how much of a request is the server's own work, and what that leaves of the aim."""
    if bare is None:
        return []
    own, whole = 1e6 / bare, 1e6 / ours
    notes = [
        f"With 4 coins a request takes {whole:.1f} µs of the core: {own:.1f} µs are the server's and the kernel's, as "
        f"the bare handler shows, and {whole - own:.1f} µs are reading, checking and answering."
    ]
    if fastapi is not None:
        notes.append(
            f"The bare handler itself is × {bare / fastapi:.2f} FastAPI: no handler on this server is above that."
        )
    return notes


def table_row(row: Row, ours: float) -> list[Any]:
    """Set the figures of *row* for the table."""
    each = [one.requests_per_second for one in row.rounds]
    return [
        NAMES[row.name],
        round(row.rate),
        f"{min(each):,.0f}–{max(each):,.0f}",
        f"× {ours / row.rate:.2f}",
        round(statistics.median(one.p50_us for one in row.rounds)),
        round(statistics.median(one.p99_us for one in row.rounds)),
        row.answer_bytes,
        round(statistics.median(one.load_core_share for one in row.rounds), 2),
    ]


def ratio(above: float | None, below: float | None) -> float | None:
    """Divide, where both are known."""
    return None if above is None or below is None else round(above / below, 3)
