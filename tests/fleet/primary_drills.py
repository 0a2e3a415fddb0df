"""Drills in which the primary is lost, and those in which it comes back."""

from __future__ import annotations

import time

from fleet.books import last_entry
from fleet.drills import AFTER_SECONDS, RECOVERY_SECONDS, Report, drill, running
from fleet.pair import LEDGER
from servers import postgres
from servers.kept import until


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
