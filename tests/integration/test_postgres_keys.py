"""Access keys and tokens of several nodes on one database: what one revokes, and what a node does that lost it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from servers import postgres
from servers.missing import ServerMissing, skip_or_fail
from spotledger.errors import AccessKeyRevoked, IdempotencyConflict, LastAdminToken, StoreUnavailable, TokenRefused
from spotledger.ops.access_key_writes import AccessKeyWrites
from spotledger.ops.revocation_watch import RevocationWatch
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import Tokens
from spotledger.storage.postgres.connection import Connection, connect
from spotledger.storage.postgres.keys import KeyChanges, PostgresKeyTables
from spotledger.storage.postgres.schema import migrate

NOW = 1_562_919_832_183
#: Beyond this a wait has failed; nothing is said of how long it takes.
WAIT_SECONDS = 20


@dataclass
class Node:
    """What one node has of access keys and tokens."""

    url: str
    trust_seconds: float = 3600

    def __post_init__(self) -> None:
        """Connect, as a node does at its start."""
        self.tables = PostgresKeyTables(lambda: connect(self.url))
        self.ring = KeyRing(self.tables.access_keys, Cipher(bytes(32)), lambda: NOW)
        self.tokens = Tokens(self.tables.tokens, lambda: NOW)
        self.changes = KeyChanges(lambda: connect(self.url))
        self.watch = RevocationWatch(self.changes, self.ring, self.tokens, self.trust_seconds)
        self.writes = AccessKeyWrites(self.tables, self.ring)

    async def __aenter__(self) -> Node:
        """Begin to watch."""
        await self.watch.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of the database."""
        await self.watch.stop()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close the connections of a node that does not watch."""
        self.changes.close()
        self.tables.close()

    def lets_in(self, accesskey: str) -> bool:
        """Say whether the access key is one in use."""
        ready = self.ring.ready(accesskey)
        return ready is not None and not ready.revoked


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.fixture
def url(postgres_url: str) -> str:
    """Give a database with the schema."""
    with connect(postgres_url) as connection:
        migrate(connection)
    return postgres_url


@pytest.fixture
def cluster() -> Iterator[postgres.Cluster]:
    """Give a server of this test alone, which it may stop."""
    try:
        made = postgres.start_cluster()
    except ServerMissing as problem:
        skip_or_fail(problem)
    try:
        with connect(made.url()) as connection:
            migrate(connection)
        yield made
    finally:
        made.stop()


def test_revocation_on_one_node_reaches_the_others(url: str) -> None:
    """A key that another node holds ready, and a token that it knows, stop working there too."""

    async def scenario() -> None:
        async with Node(url) as one, Node(url) as other:
            accesskey, _ = await asyncio.to_thread(one.ring.create, "alice", ["read"])
            kept, _ = await asyncio.to_thread(one.ring.create, "alice", ["read"])
            record, token = await asyncio.to_thread(one.tokens.create, ["ledger:read"])
            await until(lambda: other.changes._seen == 0)  # the first look drops everything
            assert other.lets_in(accesskey)
            assert other.tokens.check(f"Bearer {token}", "ledger:read").token_id == record.token_id
            still = other.ring.ready(kept)
            await asyncio.to_thread(one.ring.revoke, accesskey)
            await until(lambda: not other.lets_in(accesskey))
            assert other.ring.ready(kept) is still
            await asyncio.to_thread(one.tokens.revoke, record.token_id)
            await until(lambda: not other.tokens._known)
            with pytest.raises(TokenRefused):
                other.tokens.check(f"Bearer {token}", "ledger:read")

    asyncio.run(scenario())


def test_last_two_admin_tokens_revoked_at_once_leave_one(url: str) -> None:
    """Two nodes that are told to revoke one each at the same moment do not leave nobody who may make tokens."""
    nodes = [Node(url) for _ in range(2)]
    together = threading.Barrier(len(nodes))
    admins = [nodes[0].tokens.create(["admin"])[0].token_id for _ in nodes]

    def revoke(node: Node, token_id: str) -> bool:
        together.wait()
        try:
            node.tokens.revoke(token_id)
        except LastAdminToken:
            return False
        return True

    try:
        with ThreadPoolExecutor(len(nodes)) as threads:
            assert sorted(threads.map(revoke, nodes, admins)) == [False, True]
        assert sorted(listed.revoked_ms is None for listed in nodes[0].tokens.list()) == [False, True]
    finally:
        for node in nodes:
            node.close()


def test_revocation_without_a_notice_is_found_by_looking(url: str) -> None:
    """A notice that is lost does no harm: it is looked for what was revoked, notice or not."""

    async def scenario() -> None:
        async with Node(url) as node:
            accesskey, _ = await asyncio.to_thread(node.ring.create, "alice", ["read"])
            assert node.lets_in(accesskey)
            await until(lambda: node.changes._seen == 0)
            with psycopg.connect(url) as connection:
                connection.execute("UPDATE key_version SET version = version + 1")
                connection.execute("UPDATE access_keys SET revoked_ms = 1, revoked_change = 1")
            await until(lambda: not node.lets_in(accesskey))

    asyncio.run(scenario())


def test_rotation_ends_the_old_key_on_every_node(url: str) -> None:
    """A rotated key is a revoked one, and can be rotated once, whichever node is asked."""

    async def scenario() -> None:
        async with Node(url) as one, Node(url) as other:
            old, _ = await asyncio.to_thread(one.ring.create, "alice", ["read"])
            assert other.lets_in(old)
            new, _ = await asyncio.to_thread(one.ring.rotate, old)
            await until(lambda: not other.lets_in(old))
            assert other.lets_in(new)
            with pytest.raises(AccessKeyRevoked):
                await asyncio.to_thread(other.ring.rotate, old)

    asyncio.run(scenario())


def test_key_write_on_all_nodes_at_once_happens_once(url: str) -> None:
    """The same write under the same idempotency key, sent to several nodes together, makes one access key."""
    nodes = [Node(url) for _ in range(4)]
    together = threading.Barrier(len(nodes))

    def write(node: Node) -> Any:
        together.wait()
        make = lambda: {"accesskey": node.ring.create("alice", ["read"])[0], "secretkey": "shown once"}  # noqa: E731
        return node.writes.once("key-1", {"op": "create_key", "customer": "alice"}, make)

    try:
        with ThreadPoolExecutor(len(nodes)) as threads:
            done = list(threads.map(write, nodes))
        assert sorted(once.replayed for once in done) == [False, True, True, True]
        assert len({once.answer["accesskey"] for once in done}) == 1
        assert [once.answer["secretkey"] for once in done if once.replayed] == [None] * 3
        assert len(nodes[0].ring.list()) == 1
        with pytest.raises(IdempotencyConflict):
            nodes[1].writes.once("key-1", {"op": "create_key", "customer": "bob"}, dict)
    finally:
        for node in nodes:
            node.close()


def end_backends(url: str) -> None:
    """Let the server end every other connection to the database, as a restart does."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_broken_connections_are_made_again(url: str) -> None:
    """A connection that the server ended while nobody used it costs nobody an answer."""

    async def scenario() -> None:
        async with Node(url) as one, Node(url) as other:
            accesskey, _ = await asyncio.to_thread(one.ring.create, "alice", ["read"])
            assert other.lets_in(accesskey)
            end_backends(url)
            assert one.ring.get(accesskey) is not None
            await asyncio.to_thread(one.ring.revoke, accesskey)
            await until(lambda: not other.lets_in(accesskey))

    asyncio.run(scenario())


def test_connection_lost_while_it_is_set_up_is_made_again(url: str) -> None:
    """A server that goes away between two steps of connecting ends an attempt, and not all of them."""
    broken = iter([False, True, True, True])

    def connecting() -> Connection:
        if next(broken, False):
            raise psycopg.OperationalError("lost before it was ready")
        return connect(url)

    changes = KeyChanges(connecting)
    try:
        changes.wait()
        end_backends(url)

        def works() -> bool:
            with suppress(StoreUnavailable):
                return changes.wait().head_seq == 0
            return False

        async def again() -> None:
            await until(works)

        asyncio.run(again())
        assert next(broken, None) is None
    finally:
        changes.close()


def test_server_that_froze_holds_up_a_look_up_for_a_moment_only(url: str) -> None:
    """Who looks a key up on a connection whose other end has frozen is told so, and the next one gets an answer."""
    tables = PostgresKeyTables(lambda: connect(url))
    try:
        backend = tables._reader.ask(lambda session: session.connection.info.backend_pid)
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="in time"):
                tables.access_keys.get("any")

            async def again() -> None:
                await until(lambda: tables._reader.is_up)

            asyncio.run(again())
            assert tables.access_keys.get("any") is None
        finally:
            os.kill(backend, signal.SIGCONT)
    finally:
        tables.close()


def test_node_that_lost_the_database_trusts_what_it_knows_for_a_while(cluster: postgres.Cluster) -> None:
    """Known keys and tokens go on working while the database is away; unknown ones cannot be looked up."""

    async def scenario() -> None:
        async with Node(cluster.url()) as node:
            known, _ = await asyncio.to_thread(node.ring.create, "alice", ["read"])
            unknown, _ = await asyncio.to_thread(node.ring.create, "bob", ["read"])
            _, token = await asyncio.to_thread(node.tokens.create, ["admin"])
            await until(lambda: node.changes._seen == 0)
            assert node.lets_in(known)
            node.tokens.check(f"Bearer {token}", "admin")
            await asyncio.to_thread(cluster.stop)
            assert node.lets_in(known)
            node.tokens.check(f"Bearer {token}", "admin")
            with pytest.raises(StoreUnavailable):
                node.lets_in(unknown)
            with pytest.raises(StoreUnavailable):
                await asyncio.to_thread(node.ring.create, "carol", ["read"])

    asyncio.run(scenario())


def test_node_that_lost_the_database_for_too_long_lets_in_nobody(url: str) -> None:
    """Beyond the time that is set, not even known keys work, until the database says again who is revoked."""

    async def scenario(node: Node) -> None:
        accesskey, _ = await asyncio.to_thread(node.ring.create, "alice", ["read"])
        _, token = await asyncio.to_thread(node.tokens.create, ["admin"])
        assert node.lets_in(accesskey)
        cut_off = connection_refused(node)
        await until(lambda: not node.ring.is_trusted)
        with pytest.raises(StoreUnavailable):
            node.lets_in(accesskey)
        with pytest.raises(StoreUnavailable):
            node.tokens.check(f"Bearer {token}", "admin")
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE key_version SET version = version + 1")
            connection.execute("UPDATE access_keys SET revoked_ms = 1, revoked_change = 1")
        cut_off()
        await until(lambda: node.ring.is_trusted)
        assert not node.lets_in(accesskey)
        assert node.tokens.check(f"Bearer {token}", "admin").scopes == ("admin",)

    async def run() -> None:
        async with Node(url, trust_seconds=0) as node:
            await scenario(node)

    asyncio.run(run())


def connection_refused(node: Node) -> Callable[[], None]:
    """Cut *node* off from its database by an address where nobody listens; return what mends it."""
    right = node.url
    node.url = "postgresql://nobody@127.0.0.1:1/none"
    end_backends(right)

    def mend() -> None:
        node.url = right

    return mend
