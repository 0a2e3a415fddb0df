"""A running service whose files are damaged: what callers are told, what goes on, and what is made good."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import spotledger
from spotledger.client import OperatorLedger, SpotClient
from spotledger.domain.operations import Deposit, Freeze, Operation, RegisterCustomer
from spotledger.errors import LedgerDamaged
from support_core import raw, seed
from support_service import Service, run, start

SEGMENT_ENTRIES = 4_096
SEGMENTS = 2
PAGE_BYTES = 4_096
#: The first byte of a page at the bottom of the tree of a table without rowids.
LEAF = 0x0A
#: So many that their balances are on pages which nobody has read yet.
CUSTOMERS = 400
WAIT_SECONDS = 30.0
DEPOSITS_500 = 'spotledger_operator_requests_total{method="POST",path="/v1/deposits",status="500"}'
DEPOSIT = {"customer": "ann", "coin": "btc", "amount": "1"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a ledger of two sealed segments and some entries more, once for all tests."""
    folder = tmp_path_factory.mktemp("kept") / "data"
    with spotledger.open(folder, segment_entries=SEGMENT_ENTRIES) as ledger:
        seed(ledger, "ann bob")
        number = 0
        customers = [f"customer-{number}" for number in range(CUSTOMERS)]
        ledger.execute([RegisterCustomer(f"register:{customer}", customer) for customer in customers])
        ledger.execute([Deposit(f"seed:{customer}", customer, "btc", "1") for customer in customers])
        while ledger.head.seq < SEGMENTS * SEGMENT_ENTRIES + 100:
            operations: list[Operation] = [Freeze("old-hold", "bob", "btc", "1")] if number == 0 else []
            operations += [Deposit(f"fill-{number}-{place}", "ann", "btc", "0.001") for place in range(500)]
            ledger.execute(operations)
            number += 1
        store: Any = ledger._store
        for turn in range(1_000):
            if store.sealed_to == SEGMENTS * SEGMENT_ENTRIES:
                break
            time.sleep(0.02)
            ledger.deposit("ann", "btc", "0.001", key=f"wait-{turn}")
        assert store.sealed_to == SEGMENTS * SEGMENT_ENTRIES
    with raw(folder, "books.db") as books:
        books.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    """Give a copy of the ledger that a test may damage."""
    return Path(shutil.copytree(kept, tmp_path / "data"))


def flip(file: Path, *needles: bytes) -> list[int]:
    """Flip a bit in the first byte of the first of each of *needles* in *file*; return the pages' first bytes."""
    content, pages = file.read_bytes(), []
    with file.open("r+b") as opened:
        for needle in needles:
            place = content.index(needle)
            opened.seek(place)
            opened.write(bytes([content[place] ^ 1]))
            pages.append(place // PAGE_BYTES * PAGE_BYTES)
    return pages


def flip_every_page(file: Path) -> None:
    """Flip a bit in every page of *file* but the first."""
    with file.open("r+b") as opened:
        for place in range(PAGE_BYTES + 200, file.stat().st_size, PAGE_BYTES):
            opened.seek(place)
            byte = opened.read(1)[0]
            opened.seek(place)
            opened.write(bytes([byte ^ 1]))


@contextmanager
def served(folder: Path) -> Iterator[tuple[Service, httpx2.Client]]:
    """Serve the ledger in *folder* in a process of its own."""
    service = start(folder)
    try:
        yield service, service.client()
    finally:
        service.stop()


class StoppedSealing:
    """Stops the process that seals the ledger in a folder as soon as there is one, until it may go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder).encode()
        self._found: set[int] = set()
        self._may_go_on = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> StoppedSealing:
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._may_go_on.wait(0.005):
            for process in Path("/proc").glob("[0-9]*"):
                number = int(process.name)
                try:
                    command = (process / "cmdline").read_bytes()
                    if number not in self._found and b"sealing_process" in command and self._folder in command:
                        os.kill(number, signal.SIGSTOP)
                        self._found.add(number)
                except OSError:
                    continue  # it ended meanwhile

    def go_on(self) -> None:
        """Let it go on."""
        self._may_go_on.set()
        self._thread.join()
        for number in self._found:
            os.kill(number, signal.SIGCONT)

    def __exit__(self, *_: object) -> None:
        if not self._may_go_on.is_set():
            self.go_on()


def write(client: httpx2.Client, key: str, **more: str) -> httpx2.Response:
    """Deposit something under *key*."""
    return client.post("/v1/deposits", json={**DEPOSIT, **more}, headers={"Idempotency-Key": key})


def metric(client: httpx2.Client, name: str) -> float:
    """Return one number of the metrics."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def assert_damaged(answer: httpx2.Response, *places: str) -> None:
    """Make sure that *answer* calls the ledger damaged, at *places*, and asks nobody to try again."""
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["status"]) == (500, "ledger_damaged", 500)
    assert "retry-after" not in answer.headers
    assert all(place in problem["detail"] for place in places), problem["detail"]


def assert_rebuilding(answer: httpx2.Response) -> None:
    """Make sure that *answer* says how far the books are, and to try again."""
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (503, "store_unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert f"0 of {SEGMENTS} segments" in problem["detail"], problem["detail"]


def await_rebuilt(client: httpx2.Client) -> None:
    """Wait until the books have been made again."""
    until = time.monotonic() + WAIT_SECONDS
    while metric(client, "spotledger_rebuilding") or client.get("/readyz").status_code != 200:
        assert time.monotonic() < until, "the books were not made again"
        time.sleep(0.05)


def test_damaged_journal_stops_writes_and_names_entry_and_byte(folder: Path) -> None:
    """One flipped bit: whoever meets it, or writes afterwards, is told the place; other reads and traders go on."""
    with served(folder) as (service, client):
        trader = service.trader("dan", {"btc": ("2", "0")})
        [page] = flip(folder / "journal.db", b'"seq":2000,')
        assert write(client, "before").status_code == 200
        found = client.get("/v1/entries/2000")
        assert_damaged(found, "entry ", f"at byte {page} of journal.db")
        entry = int(found.json()["detail"].split("entry ")[1].split(":")[0])
        assert 1990 < entry <= 2000
        batch = {"operations": [{"op": "deposit", "key": "b-1", **DEPOSIT}]}
        for answer in (
            write(client, "after"),
            client.post("/v1/batches", json=batch),
            client.post("/v1/backups", json={"file": "x"}),
            client.get("/readyz"),
            client.get("/readyz"),
        ):
            assert_damaged(answer, f"entry {entry}", f"at byte {page} of journal.db")
        stream = client.get("/v1/entries", params={"after_seq": 1_999}, headers={"Accept": "text/event-stream"})
        assert_damaged(stream, "entry 1999", f"at byte {page} of journal.db")
        assert metric(client, "spotledger_damaged") == 1
        assert client.get("/v1/customers/bob/balances").json()["balances"]["btc"]["freeze"] == "1.00"
        assert httpx2.get(f"{service.public_url}/readyz").json() == {
            "status": "cannot write",
            "sealing": {"lag_entries": 0},
        }
        with SpotClient(trader.accesskey, trader.secretkey, base_url=service.public_url) as spot:
            assert str(spot.balances()["btc"].available) == "2.00"
        before = metric(client, DEPOSITS_500)
        with OperatorLedger(service.operator_url, service.token) as typed, pytest.raises(LedgerDamaged) as raised:
            typed.deposit("ann", "btc", "1", key="typed")
        assert f"at byte {page} of journal.db" in raised.value.message
        assert metric(client, DEPOSITS_500) == before + 1  # it was sent once
        told = run("deposit", "ann", "btc", "1", "--key", "cli", "--data", folder)
        assert (told.returncode, told.stdout) == (1, "")
        assert f"at byte {page} of journal.db" in told.stderr
        assert told.stderr.endswith("[ledger_damaged]\n")
    assert "Traceback" not in service.stderr.read_text()


def test_start_on_a_damaged_end_of_the_journal_names_entry_and_byte(folder: Path) -> None:
    """What has to be replayed is read at the start, which is refused in one line with the documented code."""
    seq = SEGMENTS * SEGMENT_ENTRIES + 50
    [page] = flip(folder / "journal.db", b'"seq":%d,' % seq)
    for command in (("serve", "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"), ("balances", "ann")):
        told = run(*command, "--data", folder)
        assert told.returncode == 1
        assert "entry " in told.stderr
        assert f"at byte {page} of journal.db" in told.stderr
        assert told.stderr.endswith("[ledger_damaged]\n")
        assert len(told.stderr.splitlines()) == 1


def test_books_damaged_while_serving_are_made_again_and_counted(folder: Path) -> None:
    """Meanwhile what needs them is told how far that is, and what does not goes on; nothing is booked twice."""
    with served(folder) as (service, client):
        assert write(client, "known-since-the-start").status_code == 200
        with StoppedSealing(folder) as sealing:
            flip_every_page(folder / "books.db")
            balances = [f"/v1/customers/customer-{number}/balances" for number in range(CUSTOMERS)]
            damaged = next(path for path in balances if client.get(path).status_code != 200)
            assert_rebuilding(client.get(damaged))
            assert_rebuilding(write(client, "fill-0-7", amount="0.001"))
            assert_rebuilding(write(client, "of-another", customer="bob"))
            assert_rebuilding(client.get("/v1/trial-balance"))
            assert write(client, "fresh").status_code == 200
            assert write(client, "known-since-the-start").headers["idempotency-replayed"] == "true"
            assert "rebuilding" in client.get("/readyz").json()
            sealing.go_on()
        await_rebuilt(client)
        assert metric(client, "spotledger_rebuilds_total") == 1
        assert {client.get(path).json()["balances"]["btc"]["available"] for path in balances} == {"1.00"}
        repeated = write(client, "fill-0-7", amount="0.001")
        assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")
        assert write(client, "of-another", customer="bob").status_code == 200
        assert client.get("/v1/trial-balance").json()["balanced"] is True
    assert "at byte " in service.stderr.read_text()
    assert run("audit", "--data", folder).returncode == 0


def test_start_without_books_serves_the_journal_and_writes_once_the_keys_are_known(folder: Path) -> None:
    """Nothing is taken for absent that the books would have: neither a key, nor a hold, nor a customer."""
    (folder / "books.db").unlink()
    with StoppedSealing(folder) as sealing, served(folder) as (_service, client):
        page = client.get("/v1/entries", params={"after_seq": 100, "limit": 5}).json()
        assert [entry["seq"] for entry in page["entries"]] == [101, 102, 103, 104, 105]
        assert [coin["coin"] for coin in client.get("/v1/coins").json()["coins"]] == ["btc"]
        [hold] = [entry for entry in client.get("/v1/entries").json()["entries"] if entry["key"] == "old-hold"]
        for answer in (
            client.get(f"/v1/holds/{hold['seq']}"),
            client.get("/v1/customers/ann/balances"),
            client.get("/v1/customers/nobody/balances"),
            client.get("/v1/customers"),
            write(client, "new"),
            write(client, "fill-0-7", amount="0.001"),
            client.get("/readyz"),
        ):
            assert_rebuilding(answer)
        time.sleep(2.5)  # the look for expired holds, each second, does not begin it anew
        assert_rebuilding(write(client, "new"))
        sealing.go_on()
        await_rebuilt(client)
        assert metric(client, "spotledger_rebuilds_total") == 1
        assert write(client, "fill-0-7", amount="0.001").headers["idempotency-replayed"] == "true"
        assert write(client, "new").status_code == 200
        assert client.get(f"/v1/holds/{hold['seq']}").json()["hold"]["state"] == "open"
    assert run("audit", "--data", folder).returncode == 0


def test_damaged_access_keys_are_refused_and_named_and_the_others_work(folder: Path) -> None:
    """A trader is refused without details, the operator is told the file and the byte, and money still moves."""
    with served(folder) as (service, client):
        traders = [service.trader(f"trader-{number:03}", {"btc": ("1", "0")}) for number in range(60)]
    with raw(folder, "keys.db") as keys:
        keys.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    first = min(traders, key=lambda trader: trader.accesskey)
    last = max(traders, key=lambda trader: trader.accesskey)
    content = (folder / "keys.db").read_bytes()
    places = [place for place in range(len(content)) if content.startswith(first.accesskey.encode(), place)]
    pages = {place // PAGE_BYTES * PAGE_BYTES for place in places if b'["read"]' in content[place : place + 120]}
    leaves = [page for page in pages if content[page] == LEAF]
    with (folder / "keys.db").open("r+b") as file:
        for page in leaves:
            file.seek(page + PAGE_BYTES - 100)
            file.write(bytes([content[page + PAGE_BYTES - 100] ^ 1]))
    with served(folder) as (service, client):
        with SpotClient(last.accesskey, last.secretkey, base_url=service.public_url) as spot:
            assert str(spot.balances()["btc"].available) == "1.00"
        spot = SpotClient(first.accesskey, first.secretkey, base_url=service.public_url, attempts=1)
        with spot, pytest.raises(LedgerDamaged) as refused:
            spot.balances()
        assert not any(word in refused.value.message for word in ("byte", "keys.db", "SQLITE", first.accesskey[:8]))
        assert_damaged(client.get("/v1/keys"), "of keys.db")
        assert any(f"at byte {page} of keys.db" in client.get("/v1/keys").text for page in leaves)
        assert client.get("/v1/keys", params={"after": last.accesskey[:-1], "limit": 1}).status_code == 200
        assert write(client, "money-moves").status_code == 200
        assert client.get("/readyz").status_code == 200
        logged = service.stderr.read_text()
        assert f"could not be read for {first.accesskey[:8]}…" in logged
        assert any(f"at byte {page} of keys.db" in logged for page in leaves)
        assert first.accesskey not in logged
    audited = run("audit", "--data", folder, "--json")
    assert audited.returncode == 1
    assert "keys.db" in audited.stdout
