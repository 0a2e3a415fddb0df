"""How many signed getBalance a second one node on PostgreSQL answers on one core, beside the embedded ledger."""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from bench import books
from bench.harness import (
    QUICK,
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
from bench.load import Credentials, Round, Target, ask, check_answers, run_round, sign
from bench.postgres_server import alone
from bench.read import OPEN_LIMITS

CUSTOMERS: Final = 1_000 if QUICK else 10_000
KEYED_CUSTOMERS: Final = 500
COINS: Final = 4
ROUND_SECONDS: Final = 1 if QUICK else 5
REQUESTS: Final = 60_000 if QUICK else 400_000
HALF: Final = 0.5
POSTGRESQL: Final = "one node on PostgreSQL"
EMBEDDED: Final = "embedded"


def start(
    stack: ExitStack, cores: Cores, folder: Path, place: str | Path, **settings: str
) -> tuple[Target, list[Credentials]]:
    """Fill a ledger at *place*, serve it, and make the access keys."""
    data = folder / "data"
    tell(f"  fill a ledger with {CUSTOMERS:,} customers")
    books.fill_for_reading(place, customers=CUSTOMERS, keyed=KEYED_CUSTOMERS, coins=COINS)
    public, operator = free_port(), free_port()
    command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(data)]
    command += ["--listen", f"127.0.0.1:{public}", "--operator-listen", f"127.0.0.1:{operator}"]
    process = stack.enter_context(running(command, cores.server, folder, {**OPEN_LIMITS, **settings}))
    wait_until_ready(process, f"http://127.0.0.1:{public}/readyz")
    names = [books.customer_name(number) for number in range(KEYED_CUSTOMERS)]
    return Target(public, process.pid), books.make_keys(operator, data, names)


def run() -> Report:
    """Measure both and put the report together."""
    cores = Cores.choose()
    without = install_packages({"wrk": "wrk"})
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spotledger-bench-"))) for _ in range(2)]
        report = Report("postgres_read", __doc__.strip() if __doc__ else "", conditions(folders[0], cores))
        if without:
            report.notes.append("Nothing was measured: wrk is not installed, and could not be.")
            return report
        server = stack.enter_context(alone(cores))
        report.conditions["postgresql"] = server.settings()
        url = server.database()
        targets = {
            EMBEDDED: start(stack, cores, folders[0], folders[0] / "data"),
            POSTGRESQL: start(stack, cores, folders[1], url, SPOTLEDGER_DATABASE=url),
        }
        _, body = ask(targets[EMBEDDED][0].port, sign(targets[EMBEDDED][1], 1)[0])
        for target, credentials in targets.values():
            check_answers(target.port, credentials, body)
            run_round(target, credentials, REQUESTS // ROUND_SECONDS, 1, cores, folders[0])
        quiet = Quiet(SPARE_ROUNDS)
        rounds: dict[str, list[Round]] = {name: [] for name in targets}
        for number in range(ROUNDS):
            tell(f"  round {number + 1} of {ROUNDS}")
            for name, (target, credentials) in targets.items():
                take = partial(run_round, target, credentials, REQUESTS, ROUND_SECONDS, cores, folders[0])
                rounds[name].append(quiet.round(take))
                if rounds[name][-1].errors:
                    raise RuntimeError(f"{name}: {rounds[name][-1].errors} answers were no success")
        summarise(report, rounds)
        quiet.report(report)
    return report


def summarise(report: Report, rounds: dict[str, list[Round]]) -> None:
    """Put table, aim and raw figures into *report*."""
    table = Table("4 coins, 64 connections", ["", "requests/s", "slowest–quickest round", "p50 µs", "p99 µs"])
    rates = {}
    for name, taken in rounds.items():
        each = [one.requests_per_second for one in taken]
        rates[name] = statistics.median(each)
        p50, p99 = (round(statistics.median(getattr(one, figure) for one in taken)) for figure in ("p50_us", "p99_us"))
        table.rows.append([name, round(rates[name]), f"{min(each):,.0f}–{max(each):,.0f}", p50, p99])
    report.tables.append(table)
    report.aims = [Aim("requests/s ÷ embedded", round(rates[POSTGRESQL] / rates[EMBEDDED], 2), HALF)]
    report.notes.append(
        f"Every request signed, no nonce twice, {KEYED_CUSTOMERS} of {CUSTOMERS:,} customers ask in turn; all checks. "
        "The node has the first core; the load, and PostgreSQL, which hardly anything is asked of, the second."
    )
    report.raw = {name: [asdict(each) for each in taken] for name, taken in rounds.items()}
