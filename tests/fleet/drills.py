"""
What every drill is made of: a fleet of real processes, load on it, and the account at the end.

A drill starts PostgreSQL, three nodes and HAProxy, does the bad thing under load, and ends with the same account
(`Fleet.report`): what was acknowledged is in the journal, once, where the answer said it is; nothing else is; the audit
is clean; and every node answers with what the journal adds up to. It returns a `Report`. The drills are in
``primary_drills.py``, ``standby_drills.py``, ``node_drills.py``, ``clock_drills.py``, ``database_drills.py``,
``networks.py`` and ``patroni.py``. ``examples/fleet/drill`` runs them by name, ``tests/fault/test_fleet.py`` runs them
with the tests.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import psycopg

from fleet.books import audit, check_answers, read_books
from fleet.load import Load, longest_gap
from fleet.nodes import Node, Proxy, post, remove_folders
from fleet.pair import LEDGER, Pair
from servers import postgres
from servers.kept import make_folder, until
from servers.redis import RedisServer

NODES: Final = 3
LANES: Final = 8
#: Load before the bad thing, and after everything works again.
BEFORE_SECONDS: Final = 2.0
AFTER_SECONDS: Final = 2.0
RECOVERY_SECONDS: Final = 60.0
#: Acknowledged writes that count as "it works again".
WORKING_WRITES: Final = 20
MASTER_KEY: Final = "5a" * 32

#: The settings of every node but for addresses; no limit, because the reader asks as often as it can.
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
    """Nodes and a proxy on a database, and the load on them."""

    def __init__(
        self,
        url: Callable[[str], str],
        *,
        redis: RedisServer | None = None,
        nodes: Sequence[Node] = (),
        settings: Mapping[str, str] | None = None,
        lanes: int = LANES,
    ) -> None:
        """
        Start nodes and proxy.

        Args:
            url: Gives the URL of the database for a node's name.
            redis: What the nodes share limits through.
            nodes: Three that are prepared; ordinary ones if there are none.
            settings: More of them, for all nodes.
            lanes: How many callers write at once.
        """
        key_file = make_folder({}) / "master.key"
        key_file.write_text(MASTER_KEY)
        key_file.chmod(0o600)
        self.settings = {**NODE_SETTINGS, "master_key_file": str(key_file), **(settings or {})}
        if redis is not None:
            self.settings["redis"] = redis.url
        self.redis = redis
        self._key_folder = key_file.parent
        self.nodes = list(nodes) or [Node(f"node{number}", {}) for number in range(1, NODES + 1)]
        for node in self.nodes:
            self.start(node, url(node.name))
        self.proxy = Proxy(self.nodes)
        self.proxy.start()
        self.token = self.nodes[0].token_file.read_text().strip()
        self.load = self._prepared_load(lanes)

    def start(self, node: Node, database: str, *, wait: bool = True) -> None:
        """Start *node* on *database* with the settings of this fleet; its own count."""
        node.settings = {**self.settings, **node.settings, "database": database}
        node.start(wait=wait)

    def _prepared_load(self, lanes: int) -> Load:
        load = Load(self.proxy.operator_url, self.token, lanes)
        self.post("/v1/coins", {"coin": "usdt", "scale": 8}, "coin-usdt")
        for lane in load.lanes:
            self.post("/v1/customers", {"customer": lane.name}, f"customer-{lane.name}")
        made = self.post("/v1/keys", {"customer": "lane0", "permissions": ["read"]}, "key-lane0")
        load.add_reader(self.proxy.public_url, made["accesskey"], made["secretkey"])
        return load

    def post(self, path: str, body: Mapping[str, Any], key: str, node: int = 0) -> dict[str, Any]:
        """Do one write on a node, by its place; it must succeed at once."""
        return post(f"http://{self.nodes[node].operator}", self.token, path, body, key)

    def wait_for_writes(self, since: float, writes: int = WORKING_WRITES) -> float:
        """Wait until *writes* were acknowledged after *since*; return how many seconds after it the first was."""
        until(
            lambda: self.load.since(since) >= writes,
            RECOVERY_SECONDS,
            "writes did not go on; " + " | ".join(node.written()[-300:] for node in self.nodes),
        )
        return min(one.at for one in self.load.acknowledged if one.at > since) - since

    def wait_until_ready(self) -> None:
        """Wait until every node says that it can write."""
        until(lambda: all(node.is_ready() for node in self.nodes), RECOVERY_SECONDS, "a node cannot write")

    def report(self, drill: str, since: float, database: str, **details: Any) -> Report:
        """Stop the load, check the books in *database*, and say what was found from *since* on."""
        end = time.monotonic()
        self.load.stop()
        books = read_books(database)
        self.load.check(books)
        audit(database)
        check_answers(self.nodes, self.token, books, [lane.name for lane in self.load.lanes])
        done, reader = self.load.acknowledged, self.load.reader
        assert reader is not None
        return Report(
            drill,
            len(done),
            sum(lane.tries_in_vain for lane in self.load.lanes),
            sum(one.repeated for one in done),
            len(reader.answered),
            reader.failed,
            longest_gap([one.at for one in done if one.at <= end], since, end),
            longest_gap([at for at in reader.answered if at <= end], since, end),
            details,
        )

    def stop(self) -> None:
        """Stop everything that this started."""
        self.load.give_up()
        for node in self.nodes:
            with contextlib.suppress(ProcessLookupError):
                node.signal(signal.SIGCONT)
        self.proxy.stop()
        for node in self.nodes:
            node.stop()
        self.load.stop()
        remove_folders(self.nodes)
        with contextlib.suppress(OSError):
            (self._key_folder / "master.key").unlink()
            self._key_folder.rmdir()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        """Put the load on for the length of a ``with`` block, after which everything is stopped."""
        try:
            self.load.start()
            self.wait_for_writes(time.monotonic())
            time.sleep(BEFORE_SECONDS)
            yield
        finally:
            self.stop()


@contextmanager
def running(
    *, redis: bool = False, node_settings: Mapping[str, str] | None = None, **settings: str
) -> Iterator[tuple[Pair, Fleet]]:
    """Run a pair of PostgreSQL servers, with *settings*, and a fleet under load for the length of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        server = RedisServer() if redis else None
        if server is not None:
            server.start()
            stack.callback(server.stop)
        pair = Pair(**settings)
        stack.callback(pair.stop)
        fleet = Fleet(lambda name: pair.url(application_name=name), redis=server, settings=node_settings)
        stack.enter_context(fleet.loaded())
        yield pair, fleet


@contextmanager
def one_server(environment: Mapping[str, str] | None = None, **settings: str) -> Iterator[postgres.Cluster]:
    """Run one PostgreSQL server, with an empty database for the ledger, for the length of a ``with`` block."""
    cluster = postgres.new_cluster({**postgres.DURABLE, **settings})
    cluster.environment = dict(environment or {})
    try:
        cluster.start()
        create_database(cluster)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(cluster.folder, ignore_errors=True)


def create_database(cluster: postgres.Cluster, name: str = LEDGER, more: str = "") -> str:
    """Create the database *name*, with *more* of its definition, and return its URL."""
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {more}".encode())
    return cluster.url(name)


#: Name → drill.
DRILLS: Final[dict[str, Callable[..., Report]]] = {}


def drill(function: Callable[..., Report]) -> Callable[..., Report]:
    """Let ``examples/fleet/drill`` run *function* by its name; the first line of its docstring says what it does."""
    DRILLS[function.__name__] = function
    return function
