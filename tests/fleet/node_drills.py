"""Drills in which a node, or the Redis that the nodes share, is lost or stands still."""

from __future__ import annotations

import random
import signal
import time

import psycopg

from fleet.drills import AFTER_SECONDS, NODES, RECOVERY_SECONDS, WORKING_WRITES, Report, drill, running
from fleet.nodes import Node
from fleet.pair import LEDGER, Pair
from servers.kept import until


@drill
def node_killed() -> Report:
    """Kill a node with -9: the proxy sends its callers to the others, and it comes back when it is started again."""
    with running() as (pair, fleet):
        moment = time.monotonic()
        victim = fleet.nodes[0]
        victim.signal(signal.SIGKILL)
        fleet.wait_for_writes(moment, 3 * WORKING_WRITES)
        victim.stop()
        victim.start()
        time.sleep(AFTER_SECONDS)
        return fleet.report("node_killed", moment, pair.primary.url(LEDGER))


@drill
def node_stopped() -> Report:
    """Stop a node with SIGSTOP while it holds the write lock, and let it go on later: it does no harm."""
    with running() as (pair, fleet):
        victim = fleet.nodes[0]
        tries = stop_in_its_turn(pair, victim)
        moment = time.monotonic()
        went_on = fleet.wait_for_writes(moment)
        time.sleep(AFTER_SECONDS)
        victim.signal(signal.SIGCONT)
        woke = time.monotonic()
        fleet.wait_for_writes(woke, 3 * WORKING_WRITES)
        until(victim.is_ready, RECOVERY_SECONDS, "the node that was stopped does not write again")
        time.sleep(AFTER_SECONDS)
        details = {"others_went_on_after_seconds": round(went_on, 2), "tries_to_hit_its_turn": tries}
        return fleet.report("node_stopped", moment, pair.primary.url(LEDGER), **details)


def stop_in_its_turn(pair: Pair, victim: Node) -> int:
    """Stop *victim* at a moment when its connection holds the write lock; return how many tries it took."""
    holding = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE starts_with(application_name, %s || ' ') AND state = 'idle in transaction'"
    )
    choose = random.Random(1)
    with psycopg.connect(pair.primary.url(LEDGER), autocommit=True) as connection:
        for tries in range(1, 500):
            victim.signal(signal.SIGSTOP)
            time.sleep(0.05)  # what was sent before the stop is done by now
            found = connection.execute(holding, [victim.name]).fetchone()
            if found is not None and found[0]:
                return tries
            victim.signal(signal.SIGCONT)
            time.sleep(choose.uniform(0.005, 0.05))
    raise AssertionError("the node could not be stopped while it held the write lock")


@drill
def redis_killed() -> Report:
    """Kill Redis with -9: reads and writes go on, each node by its own counts, until it is back."""
    with running(redis=True) as (pair, fleet):
        assert fleet.redis is not None
        assert fleet.redis.kept is not None
        assert [node.metric("spotledger_redis_up", fleet.token) for node in fleet.nodes] == [1.0] * NODES
        moment = time.monotonic()
        fleet.redis.kept.signal(signal.SIGKILL)
        fleet.wait_for_writes(moment, 3 * WORKING_WRITES)
        until(
            lambda: sum(node.metric("spotledger_redis_up", fleet.token) for node in fleet.nodes) < NODES,
            RECOVERY_SECONDS, "no node noticed that Redis is away",
        )  # fmt: skip
        fleet.redis.stop()
        fleet.redis.start()
        until(
            lambda: all(node.metric("spotledger_redis_up", fleet.token) == 1 for node in fleet.nodes),
            RECOVERY_SECONDS, "the nodes did not come back to Redis",
        )  # fmt: skip
        time.sleep(AFTER_SECONDS)
        return fleet.report("redis_killed", moment, pair.primary.url(LEDGER))
