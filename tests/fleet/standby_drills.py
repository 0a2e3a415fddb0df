"""Drills in which the standby is away, and nothing waits for it without a bound."""

from __future__ import annotations

import signal
import time

from fleet.drills import AFTER_SECONDS, Report, drill, running
from fleet.pair import LEDGER


@drill
def standby_gone_and_waited_for() -> Report:
    """Kill the standby where the primary waits for it: no write is acknowledged until a standby is back."""
    with running() as (pair, fleet):
        assert pair.standby.kept is not None
        pair.standby.kept.signal(signal.SIGKILL)
        pair.standby.kept.wait()
        time.sleep(0.5)  # what was on its way when the standby died is answered by now
        moment = time.monotonic()
        time.sleep(3.0)
        meanwhile = fleet.load.since(moment)
        assert meanwhile == 0, f"{meanwhile} writes were acknowledged that no standby has"
        back = time.monotonic()
        pair.rebuild_standby()
        fleet.wait_for_writes(back)
        time.sleep(AFTER_SECONDS)
        return fleet.report("standby_gone_and_waited_for", moment, pair.primary.url(LEDGER))


@drill
def standby_gone_and_not_waited_for() -> Report:
    """Kill the standby, and have the primary go on alone, as an operator may decide: writes go on."""
    with running() as (pair, fleet):
        assert pair.standby.kept is not None
        moment = time.monotonic()
        pair.standby.kept.signal(signal.SIGKILL)
        pair.standby.kept.wait()
        time.sleep(1.0)
        decided = time.monotonic()
        pair.primary.reload(synchronous_standby_names="")
        went_on = fleet.wait_for_writes(decided)
        time.sleep(AFTER_SECONDS)
        details = {"went_on_after_the_decision_seconds": round(went_on, 2)}
        return fleet.report("standby_gone_and_not_waited_for", moment, pair.primary.url(LEDGER), **details)
