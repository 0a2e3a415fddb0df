"""
Bad days of a fleet, each with real processes: PostgreSQL twice, three nodes, HAProxy, Redis, and load on all of it.

Every drill ends with the same account (`Load.check`): what was acknowledged is in the journal, once, where the answer
said it is, and the books hold together when they are derived again by an independent reader. It returns a `Report`.
``examples/fleet/drill`` runs them by name; ``tests/fault/test_fleet.py`` runs them with the tests.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg

from fleet.load import Load, longest_gap
from fleet.nodes import Node, Proxy, post, remove_folders
from fleet.pair import LEDGER, Pair
from servers.kept import make_folder, until
from servers.redis import RedisServer
from support_database_books import check_database

NODES: Final = 3
LANES: Final = 8
#: Load before the bad thing, and after everything works again.
BEFORE_SECONDS: Final = 2.0
AFTER_SECONDS: Final = 2.0
RECOVERY_SECONDS: Final = 60.0
#: Acknowledged writes that count as "it works again".
WORKING_WRITES: Final = 20
MASTER_KEY: Final = "5a" * 32

#: The settings of every node but for addresses; no limit, because the reader asks as often as he can.
NODE_SETTINGS: Final = {
    "asset_limit_per_second": "0",
    "address_limit_per_minute": "0",
    "trusted_proxies": "127.0.0.1",
    "audit_entries_per_second": "0",
}


@dataclass
class Report:
    """What a drill found."""

    drill: str
    acknowledged: int = 0
    #: Tries that were answered 5xx or not at all, and writes that turned out to have been done already.
    tries_in_vain: int = 0
    found_done: int = 0
    reads: int = 0
    reads_failed: int = 0
    #: The longest time without an acknowledged write, and without an answered read, from the bad thing on.
    write_gap_seconds: float = 0.0
    read_gap_seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return it in a form that JSON can hold."""
        return {key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(self).items()}


class Fleet:
    """Everything that runs, and the load on it."""

    def __init__(self, url: Callable[[str], str], redis: RedisServer | None, nodes: list[Node] | None = None) -> None:
        """Start nodes and proxy on a database; *url* gives its URL for a node's name."""
        key_file = make_folder({}) / "master.key"
        key_file.write_text(MASTER_KEY)
        key_file.chmod(0o600)
        settings = {**NODE_SETTINGS, "master_key_file": str(key_file)}
        if redis is not None:
            settings["redis"] = redis.url
        self.redis = redis
        self._key_folder = key_file.parent
        self.nodes = nodes or [Node(f"node{number}", {}) for number in range(1, NODES + 1)]
        for node in self.nodes:
            node.settings = {**settings, **node.settings, "database": url(node.name)}
            node.start()
        self.proxy = Proxy(self.nodes)
        self.proxy.start()
        self.token = self.nodes[0].token_file.read_text().strip()
        self.load = self._prepared_load()

    def _prepared_load(self) -> Load:
        url = f"http://{self.nodes[0].operator}"
        load = Load(self.proxy.operator_url, self.token, LANES)
        post(url, self.token, "/v1/coins", {"coin": "usdt", "scale": 8}, "coin-usdt")
        for reader in load.lanes:
            post(url, self.token, "/v1/customers", {"customer": reader.name}, f"customer-{reader.name}")
        made = post(url, self.token, "/v1/keys", {"customer": "lane0", "permissions": ["read"]}, "key-lane0")
        load.add_reader(self.proxy.public_url, made["accesskey"], made["secretkey"])
        return load

    def wait_for_writes(self, since: float, writes: int = WORKING_WRITES) -> float:
        """Wait until *writes* were acknowledged after *since*; return how many seconds after it the first was."""
        until(
            lambda: self.load.since(since) >= writes,
            RECOVERY_SECONDS,
            "writes did not go on; " + " | ".join(node.written()[-300:] for node in self.nodes),
        )
        return min(one.at for one in self.load.acknowledged if one.at > since) - since

    def report(self, drill: str, since: float, database: str, **details: Any) -> Report:
        """Stop the load, check the books in *database*, and say what was found from *since* on."""
        end = time.monotonic()
        self.load.stop()
        self.load.check(check_database(database))
        done, reader = self.load.acknowledged, self.load.reader
        assert reader is not None
        return Report(
            drill,
            len(done),
            sum(reader.tries_in_vain for reader in self.load.lanes),
            sum(one.repeated for one in done),
            len(reader.answered),
            reader.failed,
            longest_gap([one.at for one in done if one.at <= end], since, end),
            longest_gap([at for at in reader.answered if at <= end], since, end),
            details,
        )

    def stop(self) -> None:
        """Stop everything that this started."""
        self.load.stop_told.set()
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.signal(signal.SIGCONT)
        self.load.stop()
        self.proxy.stop()
        for node in self.nodes:
            node.stop()
        remove_folders(self.nodes)
        with contextlib.suppress(OSError):
            (self._key_folder / "master.key").unlink()
            self._key_folder.rmdir()


@contextmanager
def running(*, redis: bool = False, **settings: str) -> Iterator[tuple[Pair, Fleet]]:
    """Run a pair of PostgreSQL servers and a fleet under load for the length of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        server = RedisServer() if redis else None
        if server is not None:
            server.start()
            stack.callback(server.stop)
        pair = Pair(**settings)
        stack.callback(pair.stop)
        fleet = Fleet(lambda name: pair.url(application_name=name), server)
        stack.callback(fleet.stop)
        fleet.load.start()
        fleet.wait_for_writes(time.monotonic())
        time.sleep(BEFORE_SECONDS)
        yield pair, fleet


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


def old_primary_returns() -> Report:
    """Bring the old primary back without its standby setting, alone and then beside the new one: nothing goes to it."""
    with running() as (pair, fleet):
        pair.kill_primary()
        pair.promote()
        fleet.wait_for_writes(time.monotonic())
        written = check_database(pair.primary.url(LEDGER)).head
        until(
            lambda: all(node.metric("spotledger_head_seq", fleet.token) >= written for node in fleet.nodes),
            RECOVERY_SECONDS, "a node does not follow the new primary",
        )  # fmt: skip
        moment = time.monotonic()
        pair.primary.stop()
        old, victim = pair.standby, fleet.nodes[0]
        old.stop()  # it was killed; what is left of it here
        old.configure(synchronous_standby_names="")
        old.start()
        before = check_database(old.url(LEDGER)).head
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
        until(lambda: all(node.is_ready() for node in fleet.nodes), RECOVERY_SECONDS, "a node cannot write")
        time.sleep(AFTER_SECONDS)
        assert check_database(old.url(LEDGER)).head == before, "an entry was written to the old primary"
        details = {"went_on_after_seconds": round(went_on, 2)}
        return fleet.report("old_primary_returns", moment, pair.primary.url(LEDGER), **details)


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


def node_stopped() -> Report:
    """Stop a node with SIGSTOP while it holds the head row, and let it go on later: it does no harm."""
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
    """Stop *victim* at a moment when its connection holds the head row; return how many tries it took."""
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
    raise AssertionError("the node could not be stopped while it held the head row")


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


#: Name → drill. The others, which need more than ordinary processes, add themselves in their modules.
DRILLS: dict[str, Callable[[], Report]] = {
    drill.__name__: drill
    for drill in (
        primary_killed,
        old_primary_returns,
        node_killed,
        node_stopped,
        redis_killed,
        standby_gone_and_waited_for,
        standby_gone_and_not_waited_for,
    )
}
