"""How long the event loop of the service is held at a time, while it does what is large, and while it is hindered."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import apsw
import httpx2

import spotledger
from bench import books
from bench.harness import QUICK, Aim, Cores, Report, Table, conditions, pinned, stop, tell
from bench.load import Credentials, sign
from spotledger.domain.operations import Deposit, Freeze, RegisterCustomer
from spotledger.storage.sqlite.file import BOOKS, open_reader

ENTRIES: Final = 140_000 if QUICK else 300_000
CUSTOMERS: Final = 10_000 if QUICK else 50_000
KEYED: Final = 20
LOCK_SECONDS: Final = 3.0
PROBE_SECONDS: Final = 0.005
CASE_SECONDS: Final = 2.0
READY_SECONDS: Final = 60.0
REBUILD_SECONDS: Final = 300.0
HELD_MS_AIM: Final = 5.0
PAGE: Final = 1_000
PAGE_BYTES: Final = 4_096


@dataclass
class Case:
    """What one case showed."""

    name: str
    #: Of callbacks that held the loop for a millisecond: ns held, ns of processor, name; longest first.
    listed: list[tuple[int, int, str]]
    callbacks: int
    #: ns by which a timer of the loop was late at most, without the time in which the loop waited for a core.
    late: int = 0
    #: Seconds of the probes, by name.
    probes: dict[str, list[float]] = field(default_factory=dict)
    #: Statuses of what the case itself asked for.
    statuses: dict[int, int] = field(default_factory=dict)


class Watched:
    """A service whose loop is watched."""

    def __init__(self, data: Path, core: int | None) -> None:
        command = pinned([sys.executable, "-m", "bench.loop_server", "--data", str(data)], core)
        flags = ["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0", "--account-limit-per-second", "100000"]
        flags += ["--asset-limit-per-second", "100000", "--address-limit-per-minute", "10000000"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*command, *flags], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        told = json.loads(self.process.stdout.readline()) if ready else {}
        self.public_url, self.operator_url = told["public_url"], told["operator_url"]
        token = (data / "operator.token").read_text().strip()
        self.client = httpx2.Client(
            base_url=self.operator_url, headers={"Authorization": f"Bearer {token}"}, timeout=120
        )
        self.data = data
        self.keys: list[Credentials] = []

    def close(self) -> None:
        """End it."""
        self.client.close()
        stop(self.process)

    def tell(self, command: str) -> dict[str, Any]:
        """Give a command, and return the report; lines of the log come before it."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.write(f"{command}\n".encode())
        while line := self.process.stderr.readline():
            if line.startswith(b"{"):
                return dict(json.loads(line))
        raise RuntimeError("the service ended")

    def case(self, name: str, work: Callable[[Case], object]) -> Case:
        """Do *work* while probes go on, and return what the loop did meanwhile."""
        tell(f"  {name}")
        self.tell("begin")
        case = Case(name, [], 0)
        with probing(self, case):
            work(case)
        told = self.tell("report")
        case.listed = [tuple(each) for each in told["listed"]]
        case.callbacks, case.late = told["callbacks"], told["late"]
        return case


@contextmanager
def probing(service: Watched, case: Case) -> Iterator[None]:
    """Ask for /healthz and a signed getBalance all the time."""
    ended = threading.Event()

    def ask(name: str, url: str, paths: Iterator[str]) -> None:
        times = case.probes.setdefault(name, [])
        with httpx2.Client(base_url=url, timeout=60) as client:
            while not ended.wait(PROBE_SECONDS):
                path = next(paths)
                began = time.perf_counter()
                answer = client.get(path)
                times.append(time.perf_counter() - began)
                if answer.status_code != 200:
                    raise RuntimeError(f"{path} answered {answer.status_code}")

    def health() -> Iterator[str]:
        while True:
            yield "/healthz"

    def balances() -> Iterator[str]:
        while True:
            yield from sign(service.keys, len(service.keys))

    asking = [
        threading.Thread(target=ask, args=("healthz", service.operator_url, health())),
        threading.Thread(target=ask, args=("getBalance", service.public_url, balances())),
    ]
    for thread in asking:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in asking:
            thread.join()


class Cases:
    """What is done to a service, case by case."""

    def __init__(self, service: Watched) -> None:
        self._service = service
        self._client = service.client
        self._number = 0

    def quiet(self, case: Case) -> None:
        """Do nothing."""
        time.sleep(CASE_SECONDS)

    def locked(self, file: str, write: Callable[[Case], object]) -> Callable[[Case], None]:
        """Have another process hold the write lock of *file* while *write* is asked for."""

        def work(case: Case) -> None:
            with closing(apsw.Connection(str(self._service.data / file), apsw.SQLITE_OPEN_READWRITE)) as connection:
                connection.set_busy_timeout(60_000)
                connection.execute("BEGIN IMMEDIATE")  # nothing is written, so the checksums of pages stay right
                writing = threading.Thread(target=write, args=(case,))
                writing.start()
                time.sleep(LOCK_SECONDS)
                connection.execute("ROLLBACK")
            writing.join()

        return work

    def deposit(self, case: Case) -> None:
        """Book one deposit."""
        body = {"customer": books.customer_name(1), "coin": "btc", "amount": "1"}
        self._count(case, self._client.post("/v1/deposits", json=body, headers=self._key()))

    def make_key(self, case: Case) -> None:
        """Make one access key."""
        body = {"customer": books.customer_name(1), "permissions": ["read"]}
        self._count(case, self._client.post("/v1/keys", json=body, headers=self._key()))

    def batches(self, count: int) -> Callable[[Case], None]:
        """Book *count* batches of 1,000 operations: freezes of as many customers."""

        def work(case: Case) -> None:
            for _ in range(count):
                operations = []
                for _ in range(PAGE):
                    self._number += 1
                    customer = books.customer_name(self._number * 7919 % CUSTOMERS)
                    key = f"loop-{self._number}"
                    operations.append(
                        {
                            "op": "freeze",
                            "key": key,
                            "customer": customer,
                            "coin": "btc",
                            "amount": "0.00001",
                            "reference": key,
                        }
                    )
                self._count(case, self._client.post("/v1/batches", json={"operations": operations}))

        return work

    def pages(self, path: str, **params: Any) -> Callable[[Case], None]:
        """Read pages of a thousand."""

        def work(case: Case) -> None:
            for _ in range(10):
                self._count(case, self._client.get(path, params={"limit": PAGE, **params}))

        return work

    def feed(self, case: Case) -> None:
        """Replay twenty thousand entries as server-sent events."""
        left = 20_000
        with self._client.stream(
            "GET", "/v1/entries?after_seq=1000", headers={"Accept": "text/event-stream"}
        ) as answer:
            self._count(case, answer)
            for piece in answer.iter_bytes():
                left -= piece.count(b"\nid: ")
                if left <= 0:
                    break

    def audit(self, case: Case) -> None:
        """Audit everything."""
        audit = self._client.post("/v1/audits").json()["audit"]
        while (found := self._client.get(f"/v1/audits/{audit}").json())["state"] == "running":
            time.sleep(0.1)
        case.statuses[200 if found["report"]["verdict"] == "clean" else 500] = 1

    def backup(self, case: Case) -> None:
        """Make a backup."""
        answer = self._client.post("/v1/backups", json={"file": f"b-{time.monotonic_ns()}"})
        while answer.status_code == 202:
            answer = self._client.get(f"/v1/backups/{answer.json()['file']}")
            time.sleep(0.1)
        self._count(case, answer)

    def trial_balance(self, case: Case) -> None:
        """Ask for the trial balance."""
        self._count(case, self._client.get("/v1/trial-balance"))

    def collection(self, case: Case) -> None:
        """Examine all objects for garbage."""
        self._service.tell("collect")
        time.sleep(CASE_SECONDS)

    def rebuild(self, case: Case) -> None:
        """Damage the books, meet the damage, and wait until they have been made again."""
        file = self._service.data / "books.db"
        with closing(open_reader(file, BOOKS)) as connection:
            connection.set_busy_timeout(60_000)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with file.open("r+b") as opened:
            for place in range(2 * PAGE_BYTES + 100, file.stat().st_size, PAGE_BYTES):
                opened.seek(place)
                byte = opened.read(1)[0]
                opened.seek(place)
                opened.write(bytes([byte ^ 1]))
        customers = (f"/v1/customers/{books.customer_name(number)}/balances" for number in range(CUSTOMERS))
        next(path for path in customers if self._client.get(path).status_code == 503)
        self.rebuilt(case)

    def rebuilt(self, case: Case) -> None:
        """Wait until the books have been made again."""
        until = time.monotonic() + REBUILD_SECONDS
        while "rebuilding" in (answer := self._client.get("/readyz")).json() or answer.status_code != 200:
            if time.monotonic() > until:
                raise RuntimeError("the books were not made again")
            time.sleep(0.1)
            self._client.get(f"/v1/customers/{books.customer_name(3)}/balances")
        self._count(case, answer)

    def _count(self, case: Case, answer: httpx2.Response) -> None:
        case.statuses[answer.status_code] = case.statuses.get(answer.status_code, 0) + 1

    def _key(self) -> dict[str, str]:
        return {"Idempotency-Key": f"loop-{time.monotonic_ns()}"}


def measured(service: Watched) -> list[Case]:
    """Go through all cases but the start without books."""
    cases, run = Cases(service), service.case
    return [
        run("nothing but the probes", cases.quiet),
        run("another process holds journal.db for 3 s; a deposit", cases.locked("journal.db", cases.deposit)),
        run("another process holds keys.db for 3 s; a new access key", cases.locked("keys.db", cases.make_key)),
        run("another process holds books.db for 3 s; batches", cases.locked("books.db", cases.batches(20))),
        run("10 pages of 1,000 entries", cases.pages("/v1/entries", after_seq=250_000 if not QUICK else 120_000)),
        run("10 pages of 1,000 customers", cases.pages("/v1/customers")),
        run("10 pages of 1,000 open holds of anybody", cases.pages("/v1/holds", older_than_ms=0)),
        run("10 pages of 1,000 entries of one customer", cases.pages(f"/v1/customers/{BUSY}/entries")),
        run("10 pages of 1,000 holds of one customer", cases.pages(f"/v1/customers/{BUSY}/holds")),
        run("20,000 entries as server-sent events", cases.feed),
        run("an audit", cases.audit),
        run("a backup", cases.backup),
        run("a trial balance", cases.trial_balance),
        run("a full garbage collection", cases.collection),
        run("70 batches of 1,000 operations, with a sealing", cases.batches(10 if QUICK else 70)),
        run("the books made again while serving", cases.rebuild),
    ]


#: A customer with thousands of entries.
BUSY: Final = "busy"


def fill(folder: Path) -> int:
    """Make the ledger to measure on; return how many entries it has."""
    entries = books.fill_for_starting(folder, entries=ENTRIES, customers=CUSTOMERS)
    with spotledger.open(folder) as ledger:
        books.book(ledger, [RegisterCustomer("register-busy", BUSY), Deposit("fund-busy", BUSY, "btc", "1000")])
        freezes = (Freeze(f"busy-{n}", BUSY, "btc", "0.001", reference=f"order {n}") for n in range(5_000))
        books.book(ledger, freezes)
    return entries


def run() -> Report:
    """Measure everything and put the report together."""
    cores = Cores.choose()
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        folder = Path(name)
        report = Report("loop", __doc__.strip() if __doc__ else "", conditions(folder, cores))
        data = folder / "data"
        tell(f"  fill a ledger with {ENTRIES:,} entries")
        entries = fill(data)
        with closing(Watched(data, cores.server)) as service:
            port = int(service.operator_url.rsplit(":", 1)[1])
            service.keys = books.make_keys(port, data, (books.customer_name(number) for number in range(KEYED)))
            found = measured(service)
            keys = service.keys
        (data / "books.db").unlink()
        with closing(Watched(data, cores.server)) as service:
            service.keys = keys
            found.append(service.case("a start without books", Cases(service).rebuilt))
    summarise(report, found, entries)
    return report


def summarise(report: Report, found: list[Case], entries: int) -> None:
    """Put *found* into *report*."""
    columns = ["case", "over 5 ms", "longest ms", "of it processor ms", "where", "a timer late, ms", "answers"]
    table = Table("Callbacks of the loop", columns)
    probes = Table("Probes, ms", ["case", "/healthz p99", "longest", "getBalance p99", "longest"])
    for case in found:
        held, used, where = case.listed[0] if case.listed else (0, 0, "")
        over = sum(each[0] > HELD_MS_AIM * 1e6 for each in case.listed)
        answers = ", ".join(f"{count} × {status}" for status, count in sorted(case.statuses.items()))
        figures = [round(ns / 1e6, 1) for ns in (held, used, case.late)]
        table.rows.append([case.name, over, *figures[:2], where, figures[2], answers])
        probes.rows.append([case.name, *(figure for name in ("healthz", "getBalance") for figure in tail(case, name))])
    report.tables += [table, probes]
    longest = max((case.listed[0][0] for case in found if case.listed), default=0) / 1e6
    report.aims = [Aim("longest callback of the loop, ms", round(longest, 1), HELD_MS_AIM, at_most=True)]
    report.notes += [
        f"A ledger of {entries:,} entries and {CUSTOMERS:,} customers with 4 coins each; segments of 65,536.",
        "A callback holds the loop for its wall time less the time in which its thread waited for a core, so other "
        "programs on the machine do not count, and waits for files, locks and the interpreter do. 0 means under 1 ms.",
        f"The probes ask every {PROBE_SECONDS * 1000:g} ms from the other core; their times contain everything.",
        "Measured on asyncio's own loop, because uvloop's callbacks cannot be wrapped.",
    ]
    report.others_cores = report.conditions["busy_cores_before"]
    report.raw = {
        case.name: {
            "callbacks": case.callbacks,
            "listed": case.listed[:40],
            "longest_probes_ms": {name: longest_of(times) for name, times in case.probes.items()},
        }
        for case in found
    }


def longest_of(seconds: list[float]) -> list[float]:
    """Return the twenty longest of *seconds* in ms."""
    return [round(1000 * each, 2) for each in sorted(seconds)[-20:]]


def tail(case: Case, name: str) -> list[float | None]:
    """Return the 99th percentile and the longest of a probe in ms."""
    times = sorted(case.probes.get(name, []))
    return [round(1000 * times[int(len(times) * 0.99)], 1), round(1000 * times[-1], 1)] if times else [None, None]
