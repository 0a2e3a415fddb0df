"""Gates of several nodes over one Redis: what they share, and what they do when it is away."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis as redis_client

from servers.redis import RedisServer
from spotledger.errors import LimitExceeded, NonceRefused, ReplayRefused, SettingInvalid, StoreUnavailable
from spotledger.security.addresses import Peer
from spotledger.security.fleet_gate import FleetGate
from spotledger.security.gate import GateSettings
from support_public import NONCE, OTHER_PEER, PEER, Service, service
from support_redis_gate import admit, gates, signed

WAIT_SECONDS = 20


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    """Give a ledger with an access key, whose key ring the gates share."""
    with service(tmp_path) as one:
        yield one


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """Give a Redis that a test may kill."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


def peer_of(gate: FleetGate, connection: str = PEER) -> Peer:
    """Return where a request comes from."""
    return gate.peer(connection, list)


async def until(gate: FleetGate, *, is_up: bool) -> None:
    """Wait until *gate* has found out that Redis is there, or away."""
    async with asyncio.timeout(WAIT_SECONDS):
        while gate.counts.is_up != is_up:
            await asyncio.sleep(0.02)


def test_limit_of_an_account_is_one_for_all_nodes(made: Service, redis_url: str) -> None:
    """Requests spread over three nodes count together, and the lock holds on all of them."""

    async def run() -> None:
        async with gates(made, redis_url, 3) as (one, two, three):
            assert [await admit(one, 1), await admit(two, 2), await admit(three, 3)] == [2, 1, 0]
            for gate in (two, one, three):
                with pytest.raises(LimitExceeded) as refusal:
                    await admit(gate, 4)
                assert refusal.value.details["limit"] == "assets"

    asyncio.run(run())


def test_limit_of_an_address_is_one_for_all_nodes(made: Service, redis_url: str) -> None:
    """An address that spreads its requests over two nodes has one limit, whatever the requests are."""

    async def run() -> None:
        async with gates(made, redis_url, 2, address_limit_per_minute=4) as (one, two):
            peer = peer_of(one)
            one.count(peer, NONCE)
            two.count(peer, NONCE)
            await one.enter(peer, NONCE)
            await admit(two)
            for gate in (one, two):
                with pytest.raises(LimitExceeded) as refusal:
                    await gate.enter(peer, NONCE)
                assert refusal.value.details["limit"] == "address"
            await two.enter(peer_of(two, OTHER_PEER), NONCE)

    asyncio.run(run())


def test_replay_on_another_node_is_refused_from_another_address(made: Service, redis_url: str) -> None:
    """A signature used on one node is bound to its address on the others; the client's own retry passes."""

    async def run() -> None:
        async with gates(made, redis_url, 2, asset_limit_per_second=0) as (one, two):
            await admit(one)
            await admit(two)
            for gate in (one, two):
                with pytest.raises(ReplayRefused):
                    await admit(gate, connection=OTHER_PEER)

    asyncio.run(run())


def test_requests_of_one_turn_share_a_trip(made: Service, redis_url: str) -> None:
    """A thousand requests that are there at once are decided in a few calls, each of them exactly."""

    async def run() -> list[int]:
        async with gates(made, redis_url, 1, asset_limit_per_second=5_000, address_limit_per_minute=0) as (gate,):
            return await asyncio.gather(*(admit(gate, number) for number in range(1_000)))

    with redis_client.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        left = asyncio.run(run())
        assert sorted(left, reverse=True) == list(range(4_999, 3_999, -1))
        stats = client.info("commandstats")
    calls = sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval") if name in stats)
    assert calls <= 6  # one of them is the probe at the start


def test_redis_killed_leaves_each_node_to_its_own_counts_until_it_is_back(
    made: Service, own_redis: RedisServer
) -> None:
    """With ``local`` a node goes on from what it knew, and shares again by itself once Redis answers."""

    async def run() -> None:
        async with gates(made, own_redis.url, 2) as (one, two):
            assert await admit(one, 1) == 2
            assert own_redis.kept is not None
            own_redis.kept.signal(signal.SIGKILL)
            assert [await admit(one, 2), await admit(one, 3)] == [1, 0]
            with pytest.raises(LimitExceeded):
                await admit(one, 4)
            assert [await admit(two, 5), await admit(two, 6)] == [2, 1]
            with pytest.raises(ReplayRefused):
                await admit(one, 1, OTHER_PEER)
            assert (one.counts.is_up, one.counts.failures, one.counts.unshared) == (False, 1, 4)
            await asyncio.to_thread(own_redis.stop)
            await asyncio.to_thread(own_redis.start)
            await until(one, is_up=True)
            await until(two, is_up=True)
            made.add_key("bob-key", customer="bob")
            with pytest.raises(LimitExceeded):
                await admit(one, 7)

    asyncio.run(run())


def test_redis_killed_refuses_public_calls_where_that_is_set(made: Service, own_redis: RedisServer) -> None:
    """With ``refuse`` nobody is let in uncounted: the answer is to try again in a moment."""

    async def run() -> None:
        async with gates(made, own_redis.url, 1, when_down="refuse") as (gate,):
            await admit(gate, 1)
            await asyncio.to_thread(own_redis.stop)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await admit(gate, 2)
                with pytest.raises(StoreUnavailable):
                    await gate.enter(peer_of(gate), NONCE)
            await asyncio.to_thread(own_redis.start)
            await until(gate, is_up=True)
            assert await admit(gate, 3) == 2

    asyncio.run(run())


def test_redis_that_hangs_is_given_up_once_for_all_that_wait(made: Service, own_redis: RedisServer) -> None:
    """Hundreds of requests in front of a Redis that stands still are all decided, after one failure and no pile-up."""

    async def run() -> None:
        limits = {"asset_limit_per_second": 10_000, "address_limit_per_minute": 0}
        async with gates(made, own_redis.url, 1, timeout_ms=200, **limits) as (gate,):
            assert own_redis.kept is not None
            own_redis.kept.signal(signal.SIGSTOP)
            left = await asyncio.gather(*(admit(gate, number) for number in range(2_000)))
            assert sorted(left, reverse=True) == list(range(9_999, 7_999, -1))
            assert (gate.counts.is_up, gate.counts.failures, gate.counts.unshared) == (False, 1, 2_000)
            own_redis.kept.signal(signal.SIGCONT)
            await until(gate, is_up=True)
            await admit(gate, 2_001)
            assert gate.counts.unshared == 2_000

    asyncio.run(run())


@asynccontextmanager
async def slowly(url: str, delay_seconds: float) -> AsyncIterator[str]:
    """Give the URL of a way to the Redis at *url* on which each answer takes *delay_seconds* longer."""
    port = int(url.rpartition(":")[2].partition("/")[0])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_seconds: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1_000_000):
                await asyncio.sleep(delay_seconds)
                writer.write(data)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(pump(reader, redis_writer, 0), pump(redis_reader, writer, delay_seconds))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield url.replace(f":{port}", f":{server.sockets[0].getsockname()[1]}")


def test_locks_of_a_slow_redis_are_waited_for_no_longer_than_a_probe(made: Service, own_redis: RedisServer) -> None:
    """Each answer comes in time, but all of them together do not: then nothing is known of the locks."""

    async def run() -> None:
        with redis_client.Redis.from_url(own_redis.url) as client:
            client.mset({f"spotledger:lock:assets:{number}": "1:assets" for number in range(12_000)})
        async with slowly(own_redis.url, 0.2) as url, gates(made, url, 1, timeout_ms=500) as (gate,):
            await until(gate, is_up=True)
            assert await gate.counts.locks() is None
        async with slowly(own_redis.url, 0) as url, gates(made, url, 1, timeout_ms=5_000) as (gate,):
            assert len(await gate.counts.locks() or ()) == 12_000

    asyncio.run(run())


def test_each_loss_of_redis_is_counted(made: Service, own_redis: RedisServer) -> None:
    """It is a loss when it stops answering, not each request that finds it away."""

    async def run() -> None:
        async with gates(made, own_redis.url, 1, timeout_ms=200, asset_limit_per_second=100) as (gate,):
            assert own_redis.kept is not None
            for losses in (1, 2):
                own_redis.kept.signal(signal.SIGSTOP)
                await asyncio.gather(*(admit(gate, 10 * losses + number) for number in range(2)))
                assert (gate.counts.is_up, gate.counts.failures) == (False, losses)
                own_redis.kept.signal(signal.SIGCONT)
                await until(gate, is_up=True)

    asyncio.run(run())


def test_redis_without_memory_counts_as_away(made: Service, own_redis: RedisServer) -> None:
    """A Redis that refuses to write is no better than none, and is tried again until it writes."""

    async def run() -> None:
        async with gates(made, own_redis.url, 1) as (gate,):
            with redis_client.Redis.from_url(own_redis.url) as client:
                client.config_set("maxmemory", 1)
                assert await admit(gate, 1) == 2
                assert not gate.counts.is_up
                client.config_set("maxmemory", 0)
            await until(gate, is_up=True)

    asyncio.run(run())


def test_redis_that_forgot_the_script_is_given_it_again(made: Service, redis_url: str) -> None:
    """After a flush of the scripts the next request brings the script along."""

    async def run() -> None:
        async with gates(made, redis_url, 1) as (gate,):
            with redis_client.Redis.from_url(redis_url) as client:
                client.script_flush()
            assert await admit(gate, 1) == 2
            assert (gate.counts.failures, gate.counts.unshared) == (0, 0)

    asyncio.run(run())


def test_redis_keys_all_end_by_themselves(made: Service, redis_url: str) -> None:
    """Nothing is left in Redis for ever: windows, locks and signatures have an end each."""

    async def run() -> None:
        async with gates(made, redis_url, 1) as (gate,):
            for number in range(3):
                await admit(gate, number)
            with pytest.raises(LimitExceeded):
                await admit(gate, 3)

    asyncio.run(run())
    with redis_client.Redis.from_url(redis_url) as client:
        ends = {key: client.pttl(key) for key in client.keys("*")}
    assert {key.split(b":")[1] for key in ends} == {b"window", b"lock", b"used"}
    assert all(0 < ms <= 600_000 for ms in ends.values())


def test_redis_address_that_cannot_be_read_is_refused_without_its_password(made: Service) -> None:
    """What is no URL of Redis is a setting to mend; its text is not said again."""
    with pytest.raises(SettingInvalid) as refusal:
        FleetGate(made.key_ring, GateSettings(), "http://:hidden@x", when_down="local", timeout_ms=100)
    assert "hidden" not in str(refusal.value)


def test_lock_is_seen_by_all_nodes_and_lifted_on_all(made: Service, redis_url: str) -> None:
    """A lock that began on one node is seen and lifted from any, and then none refuses any more."""

    async def run() -> None:
        fields = {"asset_limit_per_second": 1, "address_limit_per_minute": 3}
        async with gates(made, redis_url, 3, **fields, shared_clock_ms=lambda: NONCE) as (one, two, three):
            await admit(one)
            for gate in (one, two):
                with pytest.raises(LimitExceeded):
                    await admit(gate, 1)
            with pytest.raises(LimitExceeded) as refusal:
                await three.enter(peer_of(three), NONCE)
            assert refusal.value.details["limit"] == "address"
            found = await two.shared_locks()
            assert found is not None
            until_ms = NONCE + 600_000
            assert {(kind, who, *lock[:2]) for kind, who, lock in found} == {
                ("customer", "alice", until_ms, "assets"),
                ("address", "192.0.2.7", until_ms, "address"),
            }
            await three.lift("customer", "alice")
            await three.lift("address", "192.0.2.7")
            assert await one.shared_locks() == []
            async with asyncio.timeout(WAIT_SECONDS):
                while any([*locks.all()] for gate in (one, two, three) for locks in gate.locks.values()):
                    await asyncio.sleep(0.02)
            assert await admit(two, 2) == 0

    asyncio.run(run())


def test_lock_cannot_be_lifted_while_redis_is_away(made: Service, own_redis: RedisServer) -> None:
    """Where all nodes have their locks is away, so none is lifted here alone; what this node set stays."""

    async def run() -> None:
        async with gates(made, own_redis.url, 1, asset_limit_per_second=1, timeout_ms=200) as (gate,):
            own_redis.stop()
            await asyncio.gather(admit(gate), return_exceptions=True)
            await until(gate, is_up=False)
            found = await asyncio.gather(*(admit(gate, number) for number in range(2, 5)), return_exceptions=True)
            assert isinstance(found[-1], LimitExceeded)
            assert await gate.shared_locks() is None
            with pytest.raises(StoreUnavailable, match="Redis, where all nodes have their locks"):
                await gate.lift("customer", "alice")
            [(who, lock)] = gate.locks["customer"].all()
            assert (who, lock.limit, lock.is_shared) == ("alice", "assets", False)

    asyncio.run(run())


def test_lock_ends_on_all_nodes_where_redis_comes_back_without_it(made: Service, own_redis: RedisServer) -> None:
    """A shared lock holds while Redis is away; one that Redis has lost is lifted, so that nobody is stuck in it."""

    async def run() -> None:
        fields = {"asset_limit_per_second": 1, "shared_clock_ms": lambda: NONCE}
        async with gates(made, own_redis.url, 1, **fields) as (gate,):
            ended: list[str] = []
            gate.locks["customer"].on_end = ended.append
            await admit(gate)
            with pytest.raises(LimitExceeded):
                await admit(gate, 1)
            await asyncio.to_thread(own_redis.stop)
            for number in (2, 3):
                with pytest.raises(LimitExceeded):
                    await admit(gate, number)
            await asyncio.to_thread(own_redis.start)
            await until(gate, is_up=True)
            async with asyncio.timeout(WAIT_SECONDS):
                while not ended:
                    await asyncio.sleep(0.02)
            assert ended == ["alice"]
            assert await admit(gate, 4) == 0

    asyncio.run(run())


def test_node_that_does_not_remember_refuses_nobody_while_redis_does(made: Service, own_redis: RedisServer) -> None:
    """A killed node starts without its memory: Redis has it, so nobody is refused; without Redis what it had is."""

    async def run() -> None:
        async with gates(made, own_redis.url, 2, timeout_ms=2_000) as (one, two):
            await admit(one, 1)
            two.forget(NONCE + 1)
            with pytest.raises(ReplayRefused):
                await admit(two, 1, OTHER_PEER)
            await admit(two, 2)
            own_redis.stop()
            await asyncio.gather(admit(two, 3), return_exceptions=True)
            await until(two, is_up=False)
            with pytest.raises(NonceRefused, match="a nonce of at least"):
                await admit(two, 4)

    asyncio.run(run())


def test_gate_stops_looking_at_locks_when_it_is_stopped(made: Service, redis_url: str) -> None:
    """It may be stopped before it was started; the metrics show the counts that are shared."""

    async def run() -> None:
        told = {"when_down": "local", "timeout_ms": 2_000}
        gate = FleetGate(made.key_ring, GateSettings(), redis_url, **told)
        assert gate.shared is gate.counts
        await gate.stop()
        gate = FleetGate(made.key_ring, GateSettings(), redis_url, **told)
        await gate.start()
        checking = gate._checking
        assert checking is not None
        assert not checking.done()
        await gate.stop()
        assert checking.cancelled()

    asyncio.run(run())


def test_clock_that_leaps_frees_no_signature_on_a_node(made: Service) -> None:
    """The node's own memory goes by the steady clock that it is given, as long as Redis is away."""

    async def run() -> None:
        async with gates(made, "redis://127.0.0.1:1", 1, steady_ms=lambda: 7, asset_limit_per_second=0) as (gate,):
            for leap_ms in (0, 3_600_000, 7_200_000):
                request = signed(-leap_ms)
                await gate.admit(request, peer_of(gate), "read", gate.asset_limit, NONCE + leap_ms)
            with pytest.raises(ReplayRefused):
                await admit(gate, 0, OTHER_PEER)

    asyncio.run(run())
