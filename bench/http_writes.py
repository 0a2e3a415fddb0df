"""
How many writes a second the server takes over HTTP, and how long one takes; server and load on a core each.

The trial has turns beside it, in groups of the sizes that the requests make.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import spotledger
from bench import books
from bench.exchange import CUSTOMERS, open_market
from bench.exchange_work import opening
from bench.harness import (
    QUICK,
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
    sealing_on,
    tell,
    wait_until_ready,
)
from bench.load import Credentials, sign
from bench.peers.trial_rows import Trial, running_trial
from bench.read import OPEN_LIMITS
from bench.rounds import Row, check_refusal, table_of
from spotledger.client.operator import operations as calls
from spotledger.domain.operations import CoinAmount, HoldKey, HoldName, Operation, Settle, SettleSide, Unfreeze

CONNECTIONS: Final = 64
BATCH: Final = 100
BATCH_CONNECTIONS: Final = 8
#: Long enough for a whole segment of entries: half of the time its like is being sealed, and half of it not.
SECONDS: Final = 2.0 if QUICK else 13.0
WARM_UP_SECONDS: Final = 1.0 if QUICK else 3.0
#: Requests made ready for a round: more than are answered in it, because none may be sent twice.
SINGLES: Final = int((WARM_UP_SECONDS + SECONDS) * 18_000)
BATCHES: Final = int((WARM_UP_SECONDS + SECONDS) * 400)
READS_PER_SECOND: Final = 500.0
READERS: Final = 100
PATHS: Final = {
    kind.op: kind.path for kind in (calls.Deposit, calls.Freeze, calls.Unfreeze, calls.Withdraw, calls.Settle)
}
#: The trial's sizes beside the two kinds of request: as many of 64 connections as meet in a group, and a batch.
TRIAL_GROUPS: Final = {"single": 10, "batch": BATCH}
#: A whole segment, so that each of the trial's rounds has its share of the sealing.
TRIAL_OPERATIONS: Final = 10_000 if QUICK else 66_000
TRIAL_AIMS: Final = {"single": 0.4, "batch": 0.6}
WRITE_P99_MS_AIM: Final = 10.0
READ_P99_MS_AIM: Final = 5.0

Request = tuple[str, str, dict[str, str], str]


@dataclass(frozen=True)
class Round:
    """What one round came to: figures of each stream, and how busy both cores were."""

    streams: dict[str, dict[str, Any]]
    load_core_share: float
    server_core_share: float
    others_cores: float


# --- operations as requests ---------------------------------------------------------------------------------


def hold_name(hold: HoldName) -> Any:
    """Say which hold, as the API wants it."""
    return {"key": hold.key} if isinstance(hold, HoldKey) else hold


def side_of(side: SettleSide) -> dict[str, Any]:
    """Say one side of a fill."""
    fee: CoinAmount | None = side.fee
    said: dict[str, Any] = {"hold": hold_name(side.hold)}
    if fee is not None:
        said["fee"] = {"coin": fee.coin, "amount": fee.amount}
    if side.release is not None:
        said["release"] = side.release
    return said


def body_of(operation: Operation) -> dict[str, Any]:
    """Say what *operation* is, without its key."""
    if isinstance(operation, Settle):
        return {
            "base": operation.base,
            "quote": operation.quote,
            "base_amount": operation.base_amount,
            "quote_amount": operation.quote_amount,
            "buyer": side_of(operation.buyer),
            "seller": side_of(operation.seller),
            "reference": operation.reference,
        }
    if isinstance(operation, Unfreeze):
        return {"hold": hold_name(operation.hold)}
    said: Any = operation
    return {"customer": said.customer, "coin": said.coin, "amount": said.amount, "reference": said.reference}


def single(operation: Operation, token: str) -> Request:
    """Make the request of one operation."""
    body = body_of(operation)
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": operation.key}
    return ("POST", PATHS[operation.kind], headers, json.dumps(body))


def batch(operations: Sequence[Operation], token: str) -> Request:
    """Make the request of many operations."""
    said = [{"op": each.kind, "key": each.key, **body_of(each)} for each in operations]
    return ("POST", "/v1/batches", {"Authorization": f"Bearer {token}"}, json.dumps({"operations": said}))


# --- rounds ---------------------------------------------------------------------------------------------------


class Bench:
    """One ledger whose server is started anew for each round, after some trade."""

    def __init__(self, folder: Path, cores: Cores) -> None:
        """Fill the ledger."""
        self.folder = folder
        self.cores = cores
        self.data = folder / "data"
        self.seed = 10
        self.checked_seq = 0
        self.credentials: list[Credentials] = []
        with spotledger.open(self.data) as ledger:
            books.book(ledger, opening(CUSTOMERS))

    def make(self, count: int, at_once: int) -> list[Operation]:
        """Make *count* operations of which *at_once* may be under way, on a market that is open for a while."""
        self.seed += 1
        with spotledger.open(self.data) as ledger:
            work = open_market(ledger, self.seed, at_once)
            self.checked_seq = ledger.head.seq
        return work.operations(count)

    def check(self) -> None:
        """Raise RuntimeError where an operation was refused that should not be, such as for an order not yet there."""
        with spotledger.open(self.data) as ledger:
            while entries := ledger.entries(self.checked_seq, books.GROUP):
                for entry in entries:
                    if entry.refusal is not None:
                        check_refusal(entry.refusal["code"], entry.refusal["detail"])
                self.checked_seq = entries[-1].seq

    def round(self, kind: str, pace: float | None = None) -> Round:
        """Take one round: ``single`` or ``batch`` writes as fast as can be, or ``paced`` ones with reads beside."""
        batches = (BATCHES * BATCH, BATCH_CONNECTIONS * BATCH)
        operations = self.make(*batches if kind == "batch" else (SINGLES, CONNECTIONS))
        public, operator = free_port(), free_port()
        command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(self.data)]
        command += ["--listen", f"127.0.0.1:{public}", "--operator-listen", f"127.0.0.1:{operator}"]
        with running(command, self.cores.server, self.folder, OPEN_LIMITS) as process:
            wait_until_ready(process, f"http://127.0.0.1:{public}/readyz")
            token = (self.data / "operator.token").read_text().strip()
            streams = [self.writes(kind, operations, token, operator, pace)]
            if kind == "paced":
                streams.append(self.reads(public, operator))
            figures = self.load(streams, process.pid)
        self.check()
        return figures

    def writes(
        self, kind: str, operations: Sequence[Operation], token: str, port: int, pace: float | None
    ) -> dict[str, Any]:
        """Plan the stream of writes."""
        if kind == "batch":
            groups = [operations[start : start + BATCH] for start in range(0, len(operations), BATCH)]
            requests = [batch(group, token) for group in groups]
        else:
            requests = [single(operation, token) for operation in operations]
        connections = BATCH_CONNECTIONS if kind == "batch" else CONNECTIONS
        return {"name": "writes", "port": port, "connections": connections, "requests": requests, "pace": pace}

    def reads(self, public: int, operator: int) -> dict[str, Any]:
        """Plan the stream of signed getBalance calls."""
        customers = [f"customer-{number:06}" for number in range(READERS)]
        # Made once: asked for again under the same key, an access key comes without its secret.
        self.credentials = self.credentials or list(books.make_keys(operator, self.data, customers))
        lines = sign(self.credentials, int(READS_PER_SECOND * (WARM_UP_SECONDS + SECONDS + 1)))
        requests: list[Request] = [("GET", line, {}, "") for line in lines]
        return {"name": "reads", "port": public, "connections": 8, "requests": requests, "pace": READS_PER_SECOND}

    def load(self, streams: list[dict[str, Any]], server: int) -> Round:
        """Run the load on its core and read what it says."""
        plan = self.folder / "plan.json"
        plan.write_text(json.dumps({"warm_up": WARM_UP_SECONDS, "seconds": SECONDS, "streams": streams}))
        busy, own = busy_seconds(), processor_seconds(server)
        said = said_by(*pinned([sys.executable, "-m", "bench.http_load", str(plan)], self.cores.load))
        own = processor_seconds(server) - own
        if not said.startswith("{"):
            raise RuntimeError(f"the load said: {said}")
        found = json.loads(said)
        for stream in found["streams"].values():
            if set(stream["statuses"]) - {"200", "201", "422"} or stream["exhausted"]:
                raise RuntimeError(f"not the answers that were expected: {stream}")
        seconds = found["seconds"]
        others = busy_seconds() - busy - own - found["load_core_share"] * seconds
        return Round(found["streams"], found["load_core_share"], own / seconds, max(0.0, others / seconds - 0.2))


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        report = Report("http_writes", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        tell(f"  fill a ledger with {CUSTOMERS:,} customers of 20 coins")
        bench = Bench(folder, cores)
        quiet = Quiet(0 if QUICK else SPARE_ROUNDS // 4)
        with sealing_on(cores.load, yields=True), running_trial(folder, cores, CUSTOMERS) as trial:
            rounds, beside = take_rounds(bench, trial, quiet)
    summarise(report, rounds, beside)
    quiet.report(report)
    return report


def take_rounds(bench: Bench, trial: Trial, quiet: Quiet) -> tuple[dict[str, list[Round]], dict[str, Row]]:
    """Take all rounds, those of the trial right after the server's that they are beside."""
    rounds: dict[str, list[Round]] = {"single": [], "batch": [], "paced": []}
    beside = {kind: Row("mix", group, TRIAL_OPERATIONS, []) for kind, group in TRIAL_GROUPS.items()}
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  round {number + 1}")
        for kind, row in beside.items():
            rounds[kind].append(quiet.round(partial(bench.round, kind)))
            row.rounds.append(quiet.round(partial(trial.round, row)))
        half = median(rounds["single"], "writes", "per_second") / 2
        rounds["paced"].append(quiet.round(partial(bench.round, "paced", half)))
    return rounds, beside


def median(rounds: Sequence[Round], stream: str, figure: str) -> float:
    """Return the median of one figure of one stream."""
    return float(statistics.median(each.streams[stream][figure] for each in rounds))


def operations_per_second(kind: str, one: Round) -> float:
    """Return the rate of one round in operations."""
    return float(one.streams["writes"]["per_second"] * (BATCH if kind == "batch" else 1))


def ratio(kind: str, rounds: Sequence[Round], row: Row) -> float:
    """Return the median of how many times the trial's rate the server's was, round by round."""
    pairs = zip(rounds, row.rounds, strict=True)
    each = [operations_per_second(kind, one) / trial.operations_per_second for one, trial in pairs]
    return round(statistics.median(each), 2)


TITLES: Final = {
    ("single", "writes"): f"single operations, {CONNECTIONS} connections",
    ("batch", "writes"): f"batches of {BATCH}, {BATCH_CONNECTIONS} connections: operations",
    ("paced", "writes"): "single operations, half the rate, evenly",
    ("paced", "reads"): "signed getBalance beside those",
}


def summarise(report: Report, rounds: dict[str, list[Round]], beside: dict[str, Row]) -> None:
    """Put tables and aims into *report*."""
    columns = ["", "a second", "÷ trial", "p50 ms", "p99 ms", "longest ms", "server core", "load core"]
    table = Table("Writes over HTTP", columns)
    ratios = {kind: ratio(kind, rounds[kind], row) for kind, row in beside.items()}
    for (kind, stream), title in TITLES.items():
        taken = rounds[kind]
        table.rows.append(
            [
                title,
                round(median(taken, stream, "per_second") * (BATCH if kind == "batch" else 1)),
                ratios.get(kind),
                *(round(median(taken, stream, name), 2) for name in ("p50_ms", "p99_ms", "longest_ms")),
                round(statistics.median(one.server_core_share for one in taken), 2),
                round(statistics.median(one.load_core_share for one in taken), 2),
            ]
        )
    report.tables += [table, table_of("The trial", list(beside.values()))]
    write_p99, read_p99 = (round(median(rounds["paced"], stream, "p99_ms"), 2) for stream in ("writes", "reads"))
    report.aims = [
        Aim(f"batches of {BATCH} ÷ trial in groups of {BATCH}", ratios["batch"], TRIAL_AIMS["batch"]),
        Aim(f"single operations ÷ trial in groups of {TRIAL_GROUPS['single']}", ratios["single"], TRIAL_AIMS["single"]),
        Aim("p99 of a write at half the rate, ms", write_p99, WRITE_P99_MS_AIM, at_most=True),
        Aim("p99 of a getBalance beside, ms", read_p99, READ_P99_MS_AIM, at_most=True),
    ]
    report.notes += [
        f"Medians of {len(rounds['single'])} rounds of {SECONDS:g} s, each on a server started anew, after "
        f"{WARM_UP_SECONDS:g} s that do not count. {CUSTOMERS:,} customers, 20 coins; the mix of the exchange bench, "
        "with holds named by the keys of their orders. What an operation needs was asked for so many operations before "
        "that it does not wait for another.",
        "÷ trial is the median of the ratios of two rounds that follow one another. The trial has the server's core; "
        f"a round of it is {TRIAL_OPERATIONS:,} operations of the same mix.",
        "The process that seals for the server gets what the load leaves of the second core. The server's share is of "
        "all of its processes, so it may be more than 1.",
        "At a pace, a time counts from when the request was due, and what is due is sent once a millisecond. A load "
        "core near 1 says that the load, not the server, was the limit. Half the rate is half of what was reached.",
    ]
    report.raw = {kind: [asdict(each) for each in taken] for kind, taken in rounds.items()}
    report.raw |= {f"trial-{kind}": [asdict(each) for each in row.rounds] for kind, row in beside.items()}
