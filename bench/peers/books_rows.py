"""Runs the peers of the exchange bench: SQLAlchemy on SQLite, and on a PostgreSQL that is started for it."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.exchange_work import FUNDED, ONE, Work
from bench.harness import QUICK, Cores, install_packages, pinned, stop, tell
from spotledger.domain.amounts import parse_amount
from spotledger.domain.operations import Freeze, HoldKey, HoldName, Operation, Settle, Unfreeze

CUSTOMERS: Final = 1_000 if QUICK else 10_000
SECONDS: Final = 2.0 if QUICK else 6.0
REQUESTS: Final = 3_000 if QUICK else 12_000
READY_SECONDS_LIMIT: Final = 30.0
SCRIPT: Final = Path(__file__).with_name("sqlalchemy_books.py")
SCALE: Final = 8


@dataclass(frozen=True)
class Row:
    """A peer's rate, in operations a second, or why there is none."""

    name: str
    rate: float | None
    missing: str | None = None
    processor_us: float | None = None


def measure(folder: Path, cores: Cores) -> list[Row]:
    """Measure all peers, one after the other, on the core that the ledger was measured on."""
    work = folder / "work.jsonl"
    write_work(work)
    tell("  SQLAlchemy on SQLite")
    rows = [run_one("SQLAlchemy, SQLite", f"sqlite:///{folder / 'books.sqlite'}", work, cores)]
    tell("  SQLAlchemy on PostgreSQL")
    name = "SQLAlchemy, PostgreSQL"
    try:
        with postgres(folder, cores) as url:
            rows.append(run_one(name, url, work, cores))
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        rows.append(Row(name, None, str(error)))
    return rows


def run_one(name: str, url: str, work: Path, cores: Cores) -> Row:
    """Run the peer on the database at *url*."""
    command = pinned([sys.executable, str(SCRIPT), url, str(work), str(SECONDS)], cores.server)
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120, check=False)
    if result.returncode:
        return Row(name, None, (result.stderr.strip().splitlines() or ["it said nothing"])[-1][:200])
    found = json.loads(result.stdout)
    return Row(name, found["operations"] / found["seconds"], None, found["processor_us"])


# --- the work, in the peer's own words ------------------------------------------------------------------


def write_work(path: Path) -> None:
    """Write the balances to begin with and then one request a line."""
    work = Work(3, 1, CUSTOMERS)
    keys: dict[int, str] = {}
    requests: list[dict[str, Any]] = []
    for _ in range(REQUESTS):
        first = work.seq
        operation = work.group(1)[0]
        if work.seq > first and isinstance(operation, Freeze):
            keys[first] = operation.key
        requests.append(request_of(operation, keys))
    pairs = sorted({(each["customer"], each["coin"]) for each in requests if "customer" in each})
    first_line = {"pairs": pairs, "units": int(FUNDED) * ONE}
    path.write_text("\n".join(json.dumps(line) for line in [first_line, *requests]) + "\n")


def request_of(operation: Operation, keys: dict[int, str]) -> dict[str, Any]:
    """Say *operation* in the peer's words; holds by the keys that opened them."""
    request: dict[str, Any] = {"op": operation.kind, "key": operation.key}
    if isinstance(operation, Settle):
        fees = (operation.buyer.fee, operation.seller.fee)
        return request | {
            "buyer": key_of(operation.buyer.hold, keys),
            "seller": key_of(operation.seller.hold, keys),
            "base_units": parse_amount(operation.base_amount, SCALE),
            "quote_units": parse_amount(operation.quote_amount, SCALE),
            "base_fee": units_of(fees[0].amount if fees[0] else "0"),
            "quote_fee": units_of(fees[1].amount if fees[1] else "0"),
            "release": operation.buyer.release is not None,
        }
    if isinstance(operation, Unfreeze):
        return request | {"hold": key_of(operation.hold, keys)}
    values: Any = operation
    return request | {
        "customer": values.customer,
        "coin": values.coin,
        "units": units_of(values.amount),
        "reference": values.reference,
    }


def key_of(hold: HoldName, keys: dict[int, str]) -> str:
    """Return the key that opened *hold*."""
    return hold.key if isinstance(hold, HoldKey) else keys[int(hold)]


def units_of(text: str) -> int:
    """Return decimal *text*, which may be zero, in units."""
    return parse_amount(text, SCALE) if text.strip("0.") else 0


# --- a PostgreSQL for the length of the run --------------------------------------------------------------


@contextmanager
def postgres(folder: Path, cores: Cores) -> Iterator[str]:
    """Start a PostgreSQL of its own in *folder*, synced as it comes, on a socket; give its address."""
    binaries = postgres_binaries()
    data = folder / "postgres"
    data.mkdir()
    account = ordinary_account()
    if account is not None:
        os.chown(data, account.pw_uid, account.pw_gid)
        folder.chmod(0o755)
    run_as(account, [str(binaries / "initdb"), "-D", str(data / "cluster"), "-A", "trust", "-U", "bench"])
    command = [str(binaries / "postgres"), "-D", str(data / "cluster"), "-k", str(data), "-c", "listen_addresses="]
    with (data / "postgres.log").open("wb") as log:
        process = subprocess.Popen(pinned(command, cores.load), stdout=log, stderr=log, **identity(account))
    try:
        wait_until_ready(binaries, data, process)
        yield f"postgresql+psycopg://bench@/postgres?host={data}"
    finally:
        stop(process)


def postgres_binaries() -> Path:
    """Find PostgreSQL's own programs, installing Debian's package as root where they are missing."""
    for attempt in (1, 2):
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if versions:
            return versions[-1].parent
        if found := shutil.which("postgres"):
            return Path(found).resolve().parent
        if attempt == 1:
            install_packages({"postgres": "postgresql"})
    raise RuntimeError("PostgreSQL is not installed, and could not be")


def ordinary_account() -> pwd.struct_passwd | None:
    """Return whom PostgreSQL runs as: it refuses to be root. None where this process is not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL does not run as root, and there is neither postgres nor nobody")


def identity(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return the arguments that make a process run as *account*."""
    return {} if account is None else {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def run_as(account: pwd.struct_passwd | None, command: Sequence[str]) -> None:
    """Run *command* as *account*; raise RuntimeError with what it said last where it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, cwd="/", **identity(account)
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200])


def wait_until_ready(binaries: Path, data: Path, process: subprocess.Popen[bytes]) -> None:
    """Ask until PostgreSQL takes connections."""
    deadline = time.monotonic() + READY_SECONDS_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        asked = subprocess.run(
            [str(binaries / "pg_isready"), "-q", "-h", str(data)], capture_output=True, check=False, timeout=10
        )
        if asked.returncode == 0:
            return
        time.sleep(0.1)
    raise RuntimeError("PostgreSQL did not get ready: " + (data / "postgres.log").read_text(errors="replace")[-200:])
