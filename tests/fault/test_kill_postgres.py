"""Nodes and servers that are killed, stopped or restarted while several nodes write to one PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

import spotledger
from servers import postgres
from servers.postgres import Cluster
from spotledger.domain.accounts import Balance
from spotledger.domain.operations import Deposit, Freeze
from spotledger.errors import StoreBusy, StoreUnavailable
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.ledger.writer import Writer
from support_core import seed, spot
from support_database_books import check_database

TESTS = Path(__file__).parents[1]
STREAM = Path(__file__).with_name("stream_of_writes.py")
NODE = Path(__file__).with_name("postgres_node.py")
START_SECONDS = 30
ROUNDS = 5


class Stream:
    """A process that writes without end, and what it said it was acknowledged."""

    def __init__(self, url: str, number: int) -> None:
        arguments = [sys.executable, str(STREAM), url, str(number), "0"]
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
        self._said = b""

    def wait_for_answer(self) -> None:
        """Wait until something was acknowledged that was not before."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        assert ready, "the writer acknowledged nothing"
        self._said += os.read(self.process.stdout.fileno(), 1 << 20)

    def kill(self) -> dict[str, bool]:
        """Kill it; return by acknowledged key whether it was refused."""
        assert self.process.stdout is not None
        self.process.kill()
        self._said += self.process.communicate()[0]
        assert self.process.returncode == -signal.SIGKILL
        whole_lines = self._said.decode().split("\n")[:-1]
        names = [name for line in whole_lines for name in line.split(",")]
        return {name.removeprefix("refused "): name.startswith("refused ") for name in names}


@pytest.fixture
def start_stream() -> Iterator[Callable[[str, int], Stream]]:
    """Give what starts a stream; none outlives the test."""
    started: list[Stream] = []

    def start(url: str, number: int) -> Stream:
        started.append(Stream(url, number))
        return started[-1]

    yield start
    for stream in started:
        if stream.process.returncode is None:
            stream.kill()


def check_acknowledged(url: str, acknowledged: dict[str, bool]) -> None:
    """Check the books, and that each acknowledged key is in them as it was said."""
    books = check_database(url)
    for key, refused in acknowledged.items():
        assert key in books.keys, f"the acknowledged {key} is lost"
        assert (key in books.refusals) == refused


def test_killed_writers_beside_others_lose_and_double_nothing(
    postgres_url: str, start_stream: Callable[[str, int], Stream]
) -> None:
    """Three nodes write at once; one after the other is killed with -9, and the others go on at once."""
    choose = random.Random(1)
    spotledger.open(postgres_url).close()
    acknowledged: dict[str, bool] = {}
    streams = [start_stream(postgres_url, number) for number in range(3)]
    for number in range(3, 3 + ROUNDS):
        for stream in streams:
            stream.wait_for_answer()
        time.sleep(choose.uniform(0.02, 0.4))
        acknowledged |= streams.pop(0).kill()
        streams.append(start_stream(postgres_url, number))
    for stream in streams:
        stream.wait_for_answer()
        acknowledged |= stream.kill()
    check_acknowledged(postgres_url, acknowledged)
    assert len(acknowledged) > 50


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """Give a server that a test may kill."""
    with postgres.own_cluster(postgres.DURABLE) as cluster:
        yield cluster


def test_killed_server_loses_nothing_acknowledged_and_nodes_go_on(
    own_cluster: Cluster, start_stream: Callable[[str, int], Stream]
) -> None:
    """The server and all its sessions are killed with -9 again and again; the same node processes write on."""
    url = own_cluster.url()
    spotledger.open(url).close()
    streams = [start_stream(url, number) for number in range(2)]
    for _ in range(3):
        for stream in streams:
            stream.wait_for_answer()
        _kill_server(own_cluster)
        for stream in streams:
            _drain(stream)
        own_cluster.start()
        for stream in streams:
            stream.wait_for_answer()
    acknowledged = {key: refused for stream in streams for key, refused in stream.kill().items()}
    check_acknowledged(url, acknowledged)


def test_killed_backend_takes_with_it_what_was_decided_on_top_of_its_commit(own_cluster: Cluster) -> None:
    """The process behind a commit is killed with -9 while the next group is decided: each key is booked once."""
    dice, told, stopped = random.Random(1), dict[str, int](), asyncio.Event()
    url = own_cluster.url()

    async def caller(writer: Writer, name: str) -> int:
        """Deposit and freeze until the end, each until it is acknowledged; return how often."""
        number = 0
        while not stopped.is_set():
            number += 1
            group = [Deposit(f"d-{name}-{number}", name, "btc", "2"), Freeze(f"f-{name}-{number}", name, "btc", "1")]
            while True:
                try:
                    outcomes = await writer.submit(group)
                    break
                except (StoreUnavailable, StoreBusy):
                    await asyncio.sleep(0.01)
            told.update((one.key, outcome.seq) for one, outcome in zip(group, outcomes, strict=True) if outcome.seq)
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.004]))
        return number

    async def run(ledger: Ledger) -> list[int]:
        writer = Writer(ledger)
        await writer.start()
        callers = [asyncio.create_task(caller(writer, f"c{number}")) for number in range(12)]
        for _ in range(ROUNDS):
            before = len(told)
            while len(told) < before + 100:
                await asyncio.sleep(dice.uniform(0.01, 0.05))
            await asyncio.to_thread(_kill_backend, url)
        stopped.set()
        numbers = await asyncio.gather(*callers)
        await writer.stop()
        return list(numbers)

    with spotledger.open(url) as ledger:
        seed(ledger, " ".join(f"c{number}" for number in range(12)))
        numbers = asyncio.run(asyncio.wait_for(run(ledger), 120))
        assert ledger.corrupt is None
    with spotledger.open(url) as ledger:  # its reads do not wait until the server is believed to be back
        for number, count in enumerate(numbers):
            balance = ledger.account(spot(f"c{number}")).balance("btc")
            assert balance == Balance((1000 + count) * 10**8, count * 10**8)
        seqs = {entry.key: entry.seq for entry in ledger.entries(0, 1_000_000)}
        assert {key: seqs[key] for key in told} == told
    check_database(url)


def _kill_backend(url: str) -> None:
    """Kill the server's process behind the connection that writes; the server then restarts all of them."""
    with suppress(psycopg.OperationalError), psycopg.connect(url) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'spotledger write'"
        for (pid,) in connection.execute(query).fetchall():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _kill_server(cluster: Cluster) -> None:
    """Kill the postmaster and everything it started, as a power cut would."""
    postmaster = int((cluster.data / "postmaster.pid").read_text().split()[0])
    children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
    for pid in (postmaster, *children):
        with suppress(ProcessLookupError):  # one of them that had done its work, as a vacuum has at any time
            os.kill(pid, signal.SIGKILL)
    cluster.stop()
    (cluster.data / "postmaster.pid").unlink()


def _drain(stream: Stream) -> None:
    """Take what was said before the server was gone."""
    assert stream.process.stdout is not None
    while select.select([stream.process.stdout], [], [], 0.2)[0]:
        stream._said += os.read(stream.process.stdout.fileno(), 1 << 20)


class Node:
    """A node in a process of its own that does one step at a time."""

    def __init__(self, url: str, name: str) -> None:
        arguments = [sys.executable, str(NODE), url, name]
        self.process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        assert self.heard() == "ready"

    def say(self, step: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()

    def heard(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@contextmanager
def node_at(url: str, name: str) -> Iterator[Node]:
    """Run a node, and end it."""
    node = Node(url, name)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.communicate()


@pytest.mark.parametrize("count", [1, 2_000])
def test_node_stopped_while_it_holds_the_turn_stops_nobody_for_long(postgres_url: str, count: int) -> None:
    """SIGSTOP of a node that holds the head's row, idle or in the midst of sending: others go on; it wakes harmless."""
    with spotledger.open(postgres_url) as ledger, node_at(postgres_url, "stopped") as node:
        seed(ledger)
        node.say(f"begin {count}")
        assert node.heard() == "begun"
        os.kill(node.process.pid, signal.SIGSTOP)
        receipts = [_persistently(ledger, f"other-{number}") for number in range(3)]
        assert [receipt.replayed for receipt in receipts] == [False] * 3
        os.kill(node.process.pid, signal.SIGCONT)
        node.say("commit")
        assert node.heard() == "unavailable"
        node.say(f"execute {count}")
        assert node.heard() == f"new {count}"
        assert check_database(postgres_url).head == 5 + 3 + count


def _persistently(ledger: spotledger.ledger.ledger.Ledger, key: str) -> Receipt:
    """Deposit under *key*, asking again as a caller does who is told that the store is not available."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return ledger.deposit("ann", "btc", "1", key=key)
        except spotledger.errors.StoreUnavailable:
            assert time.monotonic() < deadline, "the others are stopped for good"
