"""
Drills in which a clock leaps: that of a node, and that of the server.

While the two differ by more than the bound nothing is booked and nothing expires; it goes on by itself when the leap is
undone. The clocks are those that libfaketime shows to one process.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence

import httpx2

from fleet.books import booked_ms, last_entry
from fleet.drills import AFTER_SECONDS, RECOVERY_SECONDS, Fleet, Report, drill, one_server
from fleet.nodes import Node, try_to_write
from fleet.pair import LEDGER
from servers.faketime import FakeTime
from servers.kept import make_folder, ordinary_identity, until

LEAPS = ("+5h", "-5h")
#: How long a leap may last until a node has noticed it, and how long it then goes on.
NOTICE_SECONDS = 10.0
LEAP_SECONDS = 3.0
HOUR_MS = 3_600_000
#: What the clocks of one machine may differ by here.
BOUND_MS = 2_000


@drill
def clock_leap_of_node() -> Report:
    """Set one node's clock 5 hours ahead, then behind: it books nothing, no hold expires, and the others go on."""
    with _fake_time() as clock, one_server() as cluster:
        prefix = ["env", *(f"{name}={value}" for name, value in clock.environment.items())]
        wrong = Node("node1", {}, prefix=prefix)
        fleet = _fleet(cluster.url(LEDGER), [wrong, Node("node2", {}), Node("node3", {})])
        with fleet.loaded():
            moment, hold = time.monotonic(), _hold(fleet)
            for leap in LEAPS:
                clock.set(leap)
                _wait_until_refused(fleet, [wrong], f"clock{leap}")
                leapt = time.monotonic()
                time.sleep(LEAP_SECONDS)
                assert not wrong.is_ready(), f"a node whose clock leapt by {leap} says that it can write"
                assert fleet.load.since(leapt) > 0, "the other nodes did not go on"
                _check_time(cluster.url(LEDGER), fleet, hold)
                clock.set("+0")
                back = time.monotonic()
                until(wrong.is_ready, RECOVERY_SECONDS, "the clock is right again, and the node cannot write")
                took = time.monotonic() - back
                _deposit(fleet, wrong, f"clock{leap}").raise_for_status()
            time.sleep(AFTER_SECONDS)
            _check_time(cluster.url(LEDGER), fleet, hold)
            details = {"went_on_after_seconds": round(took, 2)}
            return fleet.report("clock_leap_of_node", moment, cluster.url(LEDGER), **details)


@drill
def clock_leap_of_server() -> Report:
    """Set the server's clock 5 hours ahead, then behind: nothing is booked, no hold expires, and it goes on after."""
    with _fake_time() as clock, one_server(clock.environment) as cluster:
        fleet = _fleet(cluster.url(LEDGER))
        with fleet.loaded():
            moment, hold = time.monotonic(), _hold(fleet)
            for leap in LEAPS:
                clock.set(leap)
                _wait_until_refused(fleet, fleet.nodes, f"clock{leap}")
                leapt, head = time.monotonic(), last_entry(cluster.url(LEDGER))
                time.sleep(LEAP_SECONDS)
                booked = last_entry(cluster.url(LEDGER)) - head
                assert booked == 0, f"{booked} entries were booked while the server's clock was wrong by {leap}"
                assert fleet.load.since(leapt) == 0, "writes were acknowledged while the server's clock was wrong"
                clock.set("+0")
                took = fleet.wait_for_writes(time.monotonic())
                fleet.wait_until_ready()
                _check_time(cluster.url(LEDGER), fleet, hold)
            time.sleep(AFTER_SECONDS)
            details = {"went_on_after_seconds": round(took, 2)}
            return fleet.report("clock_leap_of_server", moment, cluster.url(LEDGER), **details)


@contextlib.contextmanager
def _fake_time() -> Iterator[FakeTime]:
    """Give a clock that can be set, and that PostgreSQL may read, whoever it runs as."""
    folder = make_folder(ordinary_identity())
    try:
        yield FakeTime(folder / "faketime")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _fleet(database: str, nodes: Sequence[Node] = ()) -> Fleet:
    return Fleet(lambda name: f"{database}?application_name={name}", nodes=nodes)


def _hold(fleet: Fleet) -> str:
    """Open a hold that is not to expire before an hour, of a customer whom the load does not know."""
    amount = {"customer": "holder", "coin": "usdt", "amount": "1"}
    fleet.post("/v1/customers", {"customer": "holder"}, "customer-holder", node=1)
    fleet.post("/v1/deposits", amount, "holder-has", node=1)
    expires_ms = time.time_ns() // 1_000_000 + HOUR_MS
    return str(fleet.post("/v1/holds", {**amount, "expires_ms": expires_ms}, "holder-holds", node=1)["hold"])


def _deposit(fleet: Fleet, node: Node, key: str) -> httpx2.Response:
    return try_to_write(
        node, fleet.token, "/v1/deposits", {"customer": "holder", "coin": "usdt", "amount": "1"}, f"{key}-{node.name}"
    )


def _wait_until_refused(fleet: Fleet, nodes: Sequence[Node], key: str) -> None:
    """Wait until each of *nodes* has noticed the leap; assert that it then refuses a write, and says why."""
    for node in nodes:
        until(lambda node=node: not node.is_ready(), NOTICE_SECONDS, f"{node.name} did not notice that a clock leapt")
        refused = _deposit(fleet, node, key)
        assert refused.json().get("code") == "clock_untrusted", f"{node.name} answered {refused.text}"


def _check_time(database: str, fleet: Fleet, hold: str) -> None:
    """Assert that the last entry was booked at the true time or before, and that *hold* is open."""
    ahead = booked_ms(database) - time.time_ns() // 1_000_000
    assert ahead <= BOUND_MS, f"an entry is booked {ahead / 1000:.1f} s ahead"
    url = f"http://{fleet.nodes[1].operator}/v1/holds/{hold}"
    found = httpx2.get(url, headers={"Authorization": f"Bearer {fleet.token}"}, timeout=10).json()["hold"]["state"]
    assert found == "open", f"a hold with an hour to live is {found}"
