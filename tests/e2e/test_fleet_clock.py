"""Real nodes and a real database whose clocks are set while they run: nothing is booked while the two disagree."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

import spotledger
import support_service
from servers import postgres
from servers.faketime import FakeTime
from servers.missing import ServerMissing, skip_or_fail
from spotledger.errors import ClockUntrusted
from support_clock_service import (
    HOUR,
    SETTINGS,
    balance,
    entries,
    freeze,
    get,
    lines_of_clock,
    post,
    readiness,
    server_time,
    set_up,
    true_ms,
    wait_for,
)
from support_core import seed
from support_postgres import proxy_to
from support_service import Service

MINUTE = 60_000
StartNode = Callable[..., Service]


def fake_clock(file: Path) -> FakeTime:
    """Return a wall clock that can be set."""
    try:
        return FakeTime(file)
    except ServerMissing as problem:
        skip_or_fail(problem)


@contextmanager
def nodes_of(folder: Path) -> Iterator[StartNode]:
    """Give what starts nodes, and starts them again on the same folder; all share the keys of the first."""
    started: list[Service] = []

    def start(name: str, **more: Any) -> Service:
        place = folder / name
        if started and not place.exists():
            place.mkdir()
            for shared in ("master.key", "operator.token"):
                shutil.copy(started[0].folder / shared, place / shared)
        started.append(support_service.start(place, **SETTINGS, **more))
        return started[-1]

    yield start
    for node in started:
        node.stop()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[StartNode]:
    """Give what starts nodes."""
    with nodes_of(tmp_path) as start:
        yield start


class Database:
    """A PostgreSQL server of its own, whose wall clock a test sets."""

    def __init__(self, cluster: postgres.Cluster, clock: FakeTime) -> None:
        self.url = cluster.url()
        self.set = clock.set


@pytest.fixture
def database() -> Iterator[Database]:
    """Give a database whose clock is right so far."""
    with postgres.own_cluster(postgres.QUICK) as cluster:
        cluster.stop()
        clock = fake_clock(cluster.folder / "faketime")
        cluster.environment = clock.environment
        cluster.start()
        yield Database(cluster, clock)
        clock.set("+0")


def clock_command(what: str, *options: object) -> dict[str, Any]:
    """Run ``spotledger clock``, which must succeed, and return what it shows."""
    done = support_service.run("clock", what, "--json", *map(str, options))
    assert done.returncode == 0, done.stderr
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def state_of_hold(node: Service, hold: str) -> str:
    """Return whether *hold* is open."""
    return str(get(node, f"/v1/holds/{hold}").json()["hold"]["state"])


# --- the clock of a node ----------------------------------------------------------------------------


def test_node_whose_clock_leaps_refuses_while_others_go_on(node: StartNode, tmp_path: Path, postgres_url: str) -> None:
    """It is right again by itself, live holds stay open, and no entry is booked ahead."""
    clock = fake_clock(tmp_path / "faketime")
    wrong = node("wrong", database=postgres_url, env=clock.environment)
    right = node("right", database=postgres_url)
    trader = set_up(wrong)
    hold = freeze(wrong, "live", true_ms() + HOUR).json()["hold"]
    for offset, ahead in (("+5h", 5 * HOUR), ("-5h", -5 * HOUR)):
        clock.set(offset)
        wait_for(503, *readiness(wrong))
        refused = freeze(wrong, f"refused{offset}", true_ms() + HOUR)
        assert (refused.status_code, refused.json()["code"]) == (503, "clock_untrusted")
        assert balance(wrong, trader, true_ms()) == balance(wrong, trader, true_ms() + ahead) == 200
        assert balance(wrong, trader, true_ms() + 2 * ahead) == 400
        assert abs(server_time(wrong) - true_ms()) < MINUTE
        assert "spotledger_clock_trusted 0.0" in get(wrong, "/metrics").text
        wait_for(200, *readiness(right), f"{wrong.public_url}/readyz/reads")
        assert freeze(right, f"meanwhile{offset}", true_ms() + HOUR).status_code == 200
        clock.set("+0")
        wait_for(200, *readiness(wrong))
        assert freeze(wrong, f"refused{offset}", true_ms() + HOUR).status_code == 200
    assert state_of_hold(wrong, hold) == "open"
    booked = [entry["booked_ms"] for entry in entries(wrong)]
    assert booked == sorted(booked)
    assert booked[-1] <= true_ms()
    assert len(lines_of_clock(wrong)) == 4


def test_node_that_is_started_while_its_clock_is_wrong_refuses_until_it_is_set(
    node: StartNode, tmp_path: Path, postgres_url: str
) -> None:
    """A new one, which knows nothing, and one that was stopped meanwhile."""
    clock = fake_clock(tmp_path / "faketime")
    set_up(node("right", database=postgres_url))
    for offset in ("+5h", "-5h"):
        clock.set(offset)
        wrong = node("wrong", database=postgres_url, env=clock.environment)
        wait_for(503, *readiness(wrong))
        assert freeze(wrong, f"waits{offset}", true_ms() + HOUR).json()["code"] == "clock_untrusted"
        clock.set("+0")
        wait_for(200, *readiness(wrong))
        assert freeze(wrong, f"waits{offset}", true_ms() + HOUR).status_code == 200
        assert wrong.stop() == 0


def test_node_that_was_frozen_or_has_a_slow_network_takes_that_for_no_leap(
    node: StartNode, tmp_path: Path, postgres_url: str
) -> None:
    """The database's time was read at some moment between question and answer, however long that took."""
    with proxy_to(postgres_url) as proxy:
        one = node("one", database=proxy.url, clock_leap_ms=300)
        set_up(one)
        proxy.delay_seconds = 0.8
        for number in range(3):
            assert freeze(one, f"slow{number}", true_ms() + HOUR).status_code == 200
        proxy.delay_seconds = 0.0
        for number in range(5):
            with ThreadPoolExecutor() as pool:
                writing = pool.submit(freeze, one, f"frozen{number}", true_ms() + HOUR)
                time.sleep(number * 0.002)
                one.process.send_signal(signal.SIGSTOP)
                time.sleep(1)
                one.process.send_signal(signal.SIGCONT)
                assert writing.result().status_code == 200
        assert lines_of_clock(one) == []


def test_reader_of_a_standby_lets_in_by_either_clock_while_they_disagree(node: StartNode, database: Database) -> None:
    """It takes no writes, but it has nonces and tells the time."""
    one = node("one", database=database.url)
    reader = node("reader", database=database.url, read_database=database.url)
    trader = set_up(one)
    wait_for(200, f"{reader.public_url}/readyz/reads")
    assert balance(reader, trader, true_ms()) == 200
    assert balance(reader, trader, true_ms() + 5 * HOUR) == 400
    database.set("+5h")
    until = time.monotonic() + 20
    while get(reader, "/v1/clock").json()["trusted"] is not False:
        assert time.monotonic() < until, "the reader never noticed that the clocks disagree"
        time.sleep(0.05)
    wait_for(503, *readiness(one))
    assert balance(reader, trader, true_ms()) == balance(reader, trader, true_ms() + 5 * HOUR) == 200
    assert abs(server_time(reader) - true_ms()) < MINUTE
    assert "spotledger_clock_trusted 0.0" in get(reader, "/metrics").text


# --- the clock of the database ----------------------------------------------------------------------


def test_database_whose_clock_leaps_books_nothing_until_it_is_right(node: StartNode, database: Database) -> None:
    """No node takes its time over: live holds stay open, and the refusal names both times and the cure."""
    one = node("one", database=database.url)
    two = node("two", database=database.url)
    trader = set_up(one)
    hold = freeze(one, "live", true_ms() + HOUR).json()["hold"]
    for offset, ahead in (("+5h", 5 * HOUR), ("-5h", -5 * HOUR)):
        database.set(offset)
        wait_for(503, *readiness(one), *readiness(two))
        refused = freeze(two, f"refused{offset}", true_ms() + 10 * HOUR)
        assert (refused.status_code, refused.json()["code"]) == (503, "clock_untrusted")
        for part in ("the database's clock, 20", "this node's, 20", "5.0 h", "spotledger clock trust"):
            assert part in refused.json()["detail"]
        assert balance(one, trader, true_ms()) == balance(one, trader, true_ms() + ahead) == 200
        assert abs(server_time(one) - true_ms()) < MINUTE
        told = get(one, "/v1/clock").json()
        assert told["trusted"] is False
        assert told["offset_ms"] == pytest.approx(ahead, abs=MINUTE)
        time.sleep(2)  # the nodes look for holds to expire once a second
        database.set("+0")
        wait_for(200, *readiness(one), *readiness(two))
        assert state_of_hold(one, hold) == "open"
        assert freeze(two, f"refused{offset}", true_ms() + MINUTE).status_code == 200
    booked = [entry["booked_ms"] for entry in entries(one)]
    assert booked == sorted(booked)
    assert booked[-1] <= true_ms()
    for each in (one, two):
        assert len(lines_of_clock(each)) == 4


def test_node_that_is_started_while_the_databases_clock_is_wrong_is_not_fooled(
    node: StartNode, database: Database
) -> None:
    """Neither one that was stopped meanwhile nor a new one."""
    first = node("one", database=database.url)
    set_up(first)
    for offset, name in (("+5h", "one"), ("-5h", "two")):
        first.stop()
        database.set(offset)
        first = node(name, database=database.url)
        wait_for(503, *readiness(first))
        assert freeze(first, f"waits{offset}", true_ms() + 10 * HOUR).json()["code"] == "clock_untrusted"
        database.set("+0")
        wait_for(200, *readiness(first))
        assert freeze(first, f"waits{offset}", true_ms() + HOUR).status_code == 200


def test_library_refuses_a_database_whose_clock_leapt_and_goes_on_by_itself(database: Database) -> None:
    """Nobody asks for the time between two groups there, so each group finds out."""
    with spotledger.open(database.url) as ledger:
        seed(ledger, "ann")
        head = ledger.head
        database.set("-1h")
        for _ in range(2):
            with pytest.raises(ClockUntrusted, match=r"60\.0 min behind this node's"):
                ledger.deposit("ann", "btc", "1", key="refused")
        assert ledger.head == head
        assert ledger.clock_distrust is not None
        database.set("+0")
        time.sleep(1.1)
        receipt = ledger.deposit("ann", "btc", "1", key="refused")
        assert head.booked_ms <= receipt.entry.booked_ms <= true_ms()
        assert ledger.clock_distrust is None


def test_database_that_an_operator_trusts_counts_also_after_a_restart(node: StartNode, database: Database) -> None:
    """The command tells the node that runs; when the clock is set right, the node goes on by itself."""
    one = node("one", database=database.url)
    set_up(one)
    database.set("+20m")
    wait_for(503, *readiness(one))
    assert "20.0 min ahead" in clock_command("show", "--data", one.folder)["reason"]
    assert clock_command("trust", "--data", one.folder)["trusted"] is True
    for name in ("at-once", "after-a-restart"):
        wait_for(200, *readiness(one))
        assert freeze(one, name, true_ms() + 2 * HOUR).status_code == 200
        assert entries(one)[-1]["booked_ms"] == pytest.approx(true_ms() + 20 * MINUTE, abs=MINUTE)
        assert server_time(one) == pytest.approx(true_ms() + 20 * MINUTE, abs=MINUTE)
        one.stop()
        one = node("one", database=database.url)
    database.set("+0")
    wait_for(200, *readiness(one))


def test_clock_that_is_trusted_without_a_node_is_trusted_by_the_next_start(node: StartNode, database: Database) -> None:
    """The command compares the clocks itself, and notes what it was told in the folder."""
    one = node("one", database=database.url)
    set_up(one)
    one.stop()
    database.set("-20m")
    where = ("--database", database.url, "--data", one.folder)
    assert clock_command("show", *where)["trusted"] is False
    assert clock_command("trust", *where)["trusted"] is True
    one = node("one", database=database.url)
    wait_for(200, *readiness(one))
    made = post(one, "/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"}, "at-once")
    assert made.status_code == 200, made.text


@pytest.mark.parametrize("by", ["a node", "the command"])
def test_every_node_trusts_a_database_that_an_operator_trusts(node: StartNode, database: Database, by: str) -> None:
    """The word is about the database's clock, so it is for all that disagree with it: they read it in one row."""
    nodes = [node(name, database=database.url) for name in ("one", "two")]
    set_up(nodes[0])
    database.set("+20m")
    for each in nodes:
        wait_for(503, *readiness(each))
    where: tuple[object, ...] = ("--data", nodes[0].folder)
    if by == "the command":
        folder = nodes[0].folder.with_name("of-nobody")
        folder.mkdir(mode=0o700)
        shutil.copy(nodes[0].folder / "master.key", folder)
        where = ("--database", database.url, "--data", folder)
    clock_command("trust", *where)
    for number, each in enumerate(nodes):
        wait_for(200, *readiness(each))
        made = post(each, "/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"}, f"of-{number}")
        assert made.status_code == 200, made.text


def test_any_worker_trusts_what_an_operator_trusts(node: StartNode, database: Database) -> None:
    """The call reaches one process of the node."""
    one = node("one", database=database.url, workers=2)
    set_up(one)
    database.set("+20m")
    wait_for(503, *readiness(one))
    time.sleep(1)  # both workers have noticed
    clock_command("trust", "--data", one.folder)
    until = time.monotonic() + 20
    passed = 0
    while passed < 20:
        passed = passed + 1 if httpx2.get(readiness(one)[1]).status_code == 200 else 0
        assert time.monotonic() < until
