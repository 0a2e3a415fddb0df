"""Runs the peers of the PostgreSQL bench on the server that the ledger is on: an ORM, plain statements, a function."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.exchange_work import COINS, FUNDED, ONE, AnyOrderWork, customer_name
from bench.harness import QUICK, ROUNDS, Cores, pinned, tell
from bench.peers.books_rows import request_of, run_one, units_of, write_work
from bench.postgres_server import Server
from spotledger.domain.operations import Freeze

CUSTOMERS: Final = 1_000 if QUICK else 10_000
SECONDS: Final = 2.0 if QUICK else 5.0
REQUESTS: Final = 8_000 if QUICK else 20_000
SCRIPT: Final = Path(__file__).with_name("psycopg_books.py")
ORM: Final = "SQLAlchemy's ORM, one connection"
PLAIN_EIGHT: Final = "plain statements, eight connections"
PLAIN: Final = {
    "plain statements, one connection": (1, "statements"),
    PLAIN_EIGHT: (8, "statements"),
    "a plpgsql function an operation, one connection": (1, "function"),
    "a plpgsql function an operation, eight connections": (8, "function"),
}


@dataclass(frozen=True)
class PeerRow:
    """A peer's rate, in operations a second, or why there is none."""

    name: str
    rate: float | None
    missing: str | None
    rounds: list[float]


def measure(folder: Path, cores: Cores, server: Server) -> list[PeerRow]:
    """Measure all peers in turn, on the core that the ledger was measured on; each in a database of its own."""
    ordered, any_order = folder / "ordered.jsonl", folder / "any-order.jsonl"
    write_work(ordered)
    write_any_order(any_order)
    found: dict[str, list[float]] = {name: [] for name in (ORM, *PLAIN)}
    missing: dict[str, str] = {}
    for number in range(1 if QUICK else ROUNDS):
        tell(f"  peers, round {number + 1}")
        for name, rates in found.items():
            if name in missing:
                continue
            url = server.database()
            try:
                if name == ORM:
                    rates.append(orm(url, ordered, cores))
                else:
                    rates.append(plain(url, any_order, cores, *PLAIN[name]))
            except (RuntimeError, subprocess.SubprocessError) as error:
                missing[name] = str(error)
    return [PeerRow(n, statistics.median(r) if r else None, missing.get(n), r) for n, r in found.items()]


def orm(url: str, work: Path, cores: Cores) -> float:
    """Return the rate of the version with an ORM."""
    row = run_one(ORM, url.replace("postgresql://", "postgresql+psycopg://"), work, cores)
    if row.rate is None:
        raise RuntimeError(row.missing)
    return row.rate


def plain(url: str, work: Path, cores: Cores, connections: int, how: str) -> float:
    """Return the rate of plain statements, or of the function."""
    command = [sys.executable, str(SCRIPT), url, str(work), str(SECONDS), str(connections), how]
    done = subprocess.run(
        pinned(command, cores.server), capture_output=True, text=True, timeout=SECONDS + 120, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200])
    return float(json.loads(done.stdout)["rate"])


def write_any_order(path: Path) -> None:
    """Write what is there to begin with, and then one request a line, which may be done in any order."""
    work = AnyOrderWork(4, 1, CUSTOMERS)
    prepared = work.prepare(REQUESTS)
    keys = {number: operation.key for number, operation in enumerate(prepared, 1)}
    holds = [
        {"key": each.key, "customer": each.customer, "coin": each.coin, "units": units_of(each.amount)}
        for each in prepared
        if isinstance(each, Freeze)
    ]
    pairs = [(customer_name(number), coin) for number in range(CUSTOMERS) for coin in COINS]
    first: dict[str, Any] = {"pairs": pairs, "units": int(FUNDED) * ONE, "holds": holds}
    requests = [request_of(operation, keys) for operation in work.operations(REQUESTS)]
    path.write_text("\n".join(json.dumps(line) for line in [first, *requests]) + "\n", encoding="utf-8")
