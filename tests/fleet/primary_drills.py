"""Drills in which the primary is lost, and those in which it comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from fleet.books import last_entry
from fleet.drills import AFTER_SECONDS, RECOVERY_SECONDS, Fleet, Report, drill, running
from fleet.nodes import ANSWER_SECONDS, SLACK_SECONDS, Node, remove_folders, try_to_write
from fleet.pair import ANY_STANDBY, LEDGER
from servers import postgres
from servers.kept import until

REQUIRED = {"standby": "required"}


@drill
def primary_killed() -> Report:
    """Kill the primary with -9 and promote the standby: the nodes follow by themselves."""
    with running() as (pair, fleet):
        moment = time.monotonic()
        pair.kill_primary()
        pair.promote()
        promoted = time.monotonic() - moment
        fleet.wait_for_writes(time.monotonic())
        pair.rebuild_standby()
        time.sleep(AFTER_SECONDS)
        return fleet.report("primary_killed", moment, pair.primary.url(LEDGER), promoted_seconds=round(promoted, 2))


@drill
def old_primary_returns() -> Report:
    """Bring the old primary back without its standby setting, alone, then beside the new one: nothing goes to it."""
    return _old_primary_returns("old_primary_returns", "")


@drill
def old_primary_returns_waiting() -> Report:
    """Bring the old primary back with its standby setting, alone, then beside the new one: nothing goes to it."""
    return _old_primary_returns("old_primary_returns_waiting", ANY_STANDBY)


def _old_primary_returns(name: str, standby_names: str) -> Report:
    with running() as (pair, fleet):
        pair.kill_primary()
        pair.promote()
        fleet.wait_for_writes(time.monotonic())
        written = last_entry(pair.primary.url(LEDGER))
        until(
            lambda: all(node.metric("spotledger_head_seq", fleet.token) >= written for node in fleet.nodes),
            RECOVERY_SECONDS, "a node does not follow the new primary",
        )  # fmt: skip
        moment = time.monotonic()
        pair.primary.stop()
        old, victim = pair.standby, fleet.nodes[0]
        before = start_again(old, standby_names)
        time.sleep(0.5)  # what was on its way is answered by now
        alone = time.monotonic()
        victim.stop()
        victim.start(wait=False)
        until(lambda: "journal_shorter" in victim.written(), RECOVERY_SECONDS, "a node started on the old history")
        time.sleep(1.0)
        meanwhile = fleet.load.since(alone)
        assert meanwhile == 0, f"{meanwhile} writes were acknowledged while only the old primary was there"
        back = time.monotonic()
        pair.primary.start()
        went_on = fleet.wait_for_writes(back)
        victim.stop()
        victim.start()
        fleet.wait_until_ready()
        time.sleep(AFTER_SECONDS)
        assert last_entry(old.url(LEDGER)) == before, "an entry was written to the old primary"
        return fleet.report(name, moment, pair.primary.url(LEDGER), went_on_after_seconds=round(went_on, 2))


def start_again(old: postgres.Cluster, standby_names: str) -> int:
    """Start *old*, which was killed or stopped, with *standby_names*; return the number of its last entry."""
    old.stop()  # what is left of it here
    old.configure(synchronous_standby_names=standby_names)
    old.start()
    return last_entry(old.url(LEDGER))


@drill
def old_primary_returns_to_strangers() -> Report:
    """Let nodes that never saw the new primary meet the old one: with `standby = required` it acknowledges nothing."""
    with running(node_settings=REQUIRED) as (pair, fleet):
        moment = time.monotonic()
        pair.kill_primary()
        pair.promote()
        old = pair.standby
        pair.add_standby()
        fleet.wait_for_writes(time.monotonic())
        slowest = 0.0
        for standby_names in ("", ANY_STANDBY):
            before = start_again(old, standby_names)
            with _stranger(fleet, old.url(LEDGER)) as stranger:
                slowest = max(slowest, _acknowledges_nothing(stranger, fleet.token))
            after = last_entry(old.url(LEDGER))
            assert after == before, f"{after - before} entries were written to the old primary"
        old.stop()
        time.sleep(AFTER_SECONDS)
        details = {"slowest_refusal_seconds": round(slowest, 2)}
        return fleet.report("old_primary_returns_to_strangers", moment, pair.primary.url(LEDGER), **details)


@contextmanager
def _stranger(fleet: Fleet, database: str) -> Iterator[Node]:
    """Run a node with an empty data folder on *database*; it need not be ready for writes."""
    node = Node("stranger", {})
    try:
        fleet.start(node, database, wait=False)
        node.wait_until_alive(RECOVERY_SECONDS)
        yield node
    finally:
        node.stop()
        remove_folders([node])


def _acknowledges_nothing(node: Node, token: str) -> float:
    """Assert that *node* refuses each kind of write in time; return how many seconds the slowest refusal took."""
    amount = {"customer": "lane1", "coin": "usdt", "amount": "0.1"}
    writes: list[tuple[str, dict[str, Any], str | None]] = [
        ("/v1/deposits", amount, "stranger-deposit"),
        ("/v1/holds", amount, "stranger-hold"),
        ("/v1/batches", {"operations": [{"op": "deposit", "key": "stranger-batch", **amount}]}, None),
        ("/v1/keys", {"customer": "lane1", "permissions": ["read"]}, "stranger-key"),
    ]
    slowest = 0.0
    for path, body, key in writes * 2:
        begun = time.monotonic()
        answer = try_to_write(node, token, path, body, key)
        took = time.monotonic() - begun
        slowest = max(slowest, took)
        assert answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE, f"{path} was answered {answer.text}"
        assert took < ANSWER_SECONDS + SLACK_SECONDS, f"{path} was answered after {took:.1f} s"
    assert not node.is_ready(), "a node says that it can write, and cannot"
    return slowest
