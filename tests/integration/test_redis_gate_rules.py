"""A gate of a fleet and what it shares, one rule at a time: what counts where, with Redis and while it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import redis as redis_client

from spotledger.errors import (
    AccessKeyUnknown,
    AddressNotAllowed,
    LimitExceeded,
    NonceRefused,
    ReplayRefused,
    SignatureRefused,
    StoreUnavailable,
)
from spotledger.security import fleet_gate, shared_counts
from spotledger.security.fleet_gate import FleetGate
from spotledger.security.gate import GateSettings, SignedRequest
from spotledger.security.limits import Lock, Locks, WindowLimit
from spotledger.security.shared_counts import Ask, SharedCounts
from support_public import KEY, NONCE, OTHER_PEER, PEER, SECRET, Service, raw_text, service, sign
from support_redis_gate import admit, gates as gates_over, signed

#: Where no Redis is.
NOWHERE = "redis://127.0.0.1:1"
WAIT_SECONDS = 20


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    """Give a ledger with an access key, whose key ring the gates share."""
    with service(tmp_path) as one:
        yield one


def gates(made: Service, url: str, number: int = 1, **more: Any) -> AbstractAsyncContextManager[list[FleetGate]]:
    """Start as many gates as nodes, over one Redis, whose clock stands still."""
    return gates_over(made, url, number, **{"shared_clock_ms": lambda: NONCE, **more})


def keys_in(url: str) -> set[bytes]:
    """Return the sorts of keys that are in Redis."""
    with redis_client.Redis.from_url(url) as client:
        return {key.split(b":")[1] for key in client.keys("*")}


@pytest.mark.parametrize("replay", ["address", "off", "strict"])
def test_call_that_changes_something_is_admitted_once_by_all_nodes(made: Service, redis_url: str, replay: str) -> None:
    """Whatever replays pass otherwise, and wherever the second one comes from."""

    async def run() -> None:
        async with gates(made, redis_url, 2, replay=replay, account_limit_per_second=0) as (one, two):
            await admit(one, changes=True, limit=one.account_limit)
            for gate, connection in ((two, PEER), (one, PEER), (two, OTHER_PEER)):
                with pytest.raises(ReplayRefused):
                    await admit(gate, connection=connection, changes=True, limit=gate.account_limit)

    asyncio.run(run())


@pytest.mark.parametrize(("replay", "passes"), [("off", [True, True]), ("address", [True, False]), ("strict", [False])])
def test_read_passes_again_as_the_replay_mode_says(
    made: Service, redis_url: str, replay: str, passes: list[bool]
) -> None:
    """On another node from the same address, and from another one; where replays pass, no signature is stored."""

    async def run() -> None:
        async with gates(made, redis_url, 2, replay=replay) as (one, two):
            assert await admit(one) == 2
            for connection, is_passed in zip((PEER, OTHER_PEER), passes, strict=False):
                if is_passed:
                    await admit(two, connection=connection)
                else:
                    with pytest.raises(ReplayRefused):
                        await admit(two, connection=connection)

    asyncio.run(run())
    assert (b"used" in keys_in(redis_url)) is (replay != "off")


def test_refused_requests_count_against_the_address_on_all_nodes(made: Service, redis_url: str) -> None:
    """A signature that is not valid is counted as an unsigned request is, and against no account."""

    async def run() -> None:
        async with gates(made, redis_url, 2, address_limit_per_minute=3) as (one, two):
            for _ in range(3):
                with pytest.raises(SignatureRefused):
                    await admit(one, secret="0" * 40)
            with pytest.raises(LimitExceeded) as refused:
                await admit(two, secret="0" * 40)
            assert refused.value.details["limit"] == "address"
            assert await admit(one, connection=OTHER_PEER) == 2

    asyncio.run(run())


@pytest.mark.parametrize("is_up", [True, False])
def test_request_that_is_admitted_is_noted_and_followed(made: Service, redis_url: str, is_up: bool) -> None:
    """The headers show what all nodes have counted; a shorter window of nonces holds with and without Redis."""

    async def run() -> None:
        made.key_ring.used.clear()
        async with gates(made, redis_url if is_up else NOWHERE, 2) as (one, two):
            assert [gate.counts.is_up for gate in (one, two)] == [is_up] * 2
            await admit(one, 1)
            assert made.key_ring.used == {KEY: NONCE}
            left = await admit(two, 2)
            assert left == (1 if is_up else 2)
            assert two.asset_limit.headers("alice", NONCE)[1] == ("ratelimit", f'"assets";r={left};t=1')
            assert two.address_limit.headers("192.0.2.7", NONCE)[1] == (
                "ratelimit",
                f'"address";r={998 if is_up else 999};t=60',
            )
            with pytest.raises(NonceRefused, match="at most 2 ms behind"):
                await admit(one, 3, past_ms=2)
            assert one.counts.unshared == (0 if is_up else 2)

    asyncio.run(run())


@pytest.mark.parametrize("was_up", [True, False])
def test_call_that_changes_something_is_admitted_once_without_redis_too(made: Service, was_up: bool) -> None:
    """By the node itself, whether it knew before that Redis is away or finds it out now; the window holds as well."""

    async def run() -> None:
        async with gates(made, NOWHERE) as (gate,):
            for number in (1, 2):
                gate.counts.is_up = was_up
                await admit(gate, number, changes=True)
                gate.counts.is_up = was_up
                with pytest.raises(ReplayRefused):
                    await admit(gate, number, changes=True)
            gate.counts.is_up = was_up
            with pytest.raises(NonceRefused, match="at most 2 ms behind"):
                await admit(gate, 3, past_ms=2)
            gate.counts.is_up = was_up
            assert await admit(gate, 3, past_ms=3) == 0

    asyncio.run(run())


def test_access_key_that_is_bound_is_refused_from_elsewhere_on_every_node(made: Service, redis_url: str) -> None:
    """By its address, before its limit is counted."""

    async def run() -> None:
        made.add_key("b" * 8, addresses=("192.0.2.0/24",))
        text = raw_text({"accesskey": "b" * 8, "nonce": str(NONCE)})
        request = SignedRequest("b" * 8, NONCE, bytes.fromhex(sign(text, SECRET)), (text.encode(),))
        async with gates(made, redis_url, 2) as (one, two):
            for gate in (one, two):
                with pytest.raises(AddressNotAllowed):
                    await gate.admit(request, gate.peer(OTHER_PEER, list), "read", gate.asset_limit, NONCE)
            assert (await two.admit(request, two.peer(PEER, list), "read", two.asset_limit, NONCE))[1] == 2

    asyncio.run(run())


@pytest.mark.parametrize("is_up", [True, False])
def test_limits_of_a_fleet_are_those_of_the_setting(made: Service, redis_url: str, is_up: bool) -> None:
    """Each call has its own limit, and what is refused before the limit counts against the address too."""

    async def run() -> None:
        fields = {"asset_limit_per_second": 1, "account_limit_per_second": 2, "address_limit_per_minute": 5}
        async with gates(made, redis_url if is_up else NOWHERE, **fields, lock_seconds=0) as (gate,):
            assert await admit(gate, 1) == 0
            with pytest.raises(LimitExceeded) as refused:
                await admit(gate, 2)
            assert refused.value.details["limit"] == "assets"
            assert [await admit(gate, number, limit=gate.account_limit) for number in (3, 4)] == [1, 0]
            gate.count(gate.peer(PEER, list), NONCE)
            await asyncio.sleep(0)
            for act in (admit(gate, 5), gate.enter(gate.peer(PEER, list), NONCE)):
                with pytest.raises(LimitExceeded) as refused:
                    await act
                assert refused.value.details["limit"] == "address"

    asyncio.run(run())


def test_node_that_refuses_without_redis_refuses_everything_that_counts(made: Service) -> None:
    """In words that say what is missing; a lock that is known here refuses first."""

    async def run() -> None:
        async with gates(made, NOWHERE, when_down="refuse") as (gate,):
            for act in (admit(gate), gate.enter(gate.peer(PEER, list), NONCE)):
                with pytest.raises(StoreUnavailable) as refused:
                    await act
                assert (
                    refused.value.message == "The limits that all nodes share cannot be counted now; try again later."
                )
            gate.locks["address"].begin("192.0.2.7", Lock(NONCE + 5_000, "address"))
            for act in (admit(gate), gate.enter(gate.peer(PEER, list), NONCE)):
                with pytest.raises(LimitExceeded, match=r"wait 5 s\."):
                    await act
            assert made.key_ring.used == {}

    asyncio.run(run())


def test_lock_from_when_redis_was_away_holds_on_its_node(made: Service, redis_url: str) -> None:
    """Redis lets in, the node does not, and what Redis has counted does not end the lock."""

    async def run() -> None:
        async with gates(made, redis_url, 2) as (one, two):
            one.locks["customer"].begin("alice", Lock(NONCE + 5_000, "assets"))
            with pytest.raises(LimitExceeded, match=r"wait 5 s\."):
                await admit(one, 1)
            assert await admit(two, 2) == 1
            assert list(one.locks["customer"].all()) == [("alice", Lock(NONCE + 5_000, "assets"))]

    asyncio.run(run())


def test_lock_of_a_node_holds_for_the_last_request_of_a_window_too(made: Service, redis_url: str) -> None:
    """Redis lets that one in with nothing left after it."""

    async def run() -> None:
        async with gates(made, redis_url, asset_limit_per_second=1) as (gate,):
            gate.locks["customer"].begin("alice", Lock(NONCE + 5_000, "assets"))
            with pytest.raises(LimitExceeded, match=r"wait 5 s\."):
                await admit(gate, 1)

    asyncio.run(run())


def test_node_remembers_what_redis_forgot(made: Service, redis_url: str) -> None:
    """A Redis that lost everything lets no call through that changed something before, nor a read from elsewhere."""

    async def run() -> None:
        async with gates(made, redis_url) as (gate,):
            await admit(gate, 1, changes=True)
            await admit(gate, 2)
            with redis_client.Redis.from_url(redis_url) as client:
                client.flushall()
            with pytest.raises(ReplayRefused):
                await admit(gate, 1, changes=True)
            with pytest.raises(ReplayRefused):
                await admit(gate, 2, OTHER_PEER)

    asyncio.run(run())


def test_address_that_is_locked_is_refused_without_asking(made: Service, redis_url: str) -> None:
    """A node that knows of the lock sends nothing to Redis for it; others are counted."""

    async def run() -> None:
        async with gates(made, redis_url, address_limit_per_minute=1) as (gate,):
            peer = gate.peer(PEER, list)
            await gate.enter(peer, NONCE)
            with pytest.raises(LimitExceeded):
                await gate.enter(peer, NONCE)
            asked: list[Ask] = []
            gate.counts.note = asked.append  # type: ignore[method-assign]
            gate.count(peer, NONCE)
            gate.count(gate.peer(OTHER_PEER, list), NONCE)
            assert asked == [Ask("198.51.100.1")]

    asyncio.run(run())


def test_locks_that_another_node_lifted_are_lifted_here(
    made: Service, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some at a time; those that Redis has stay, and so do those that this node has for itself."""
    monkeypatch.setattr(fleet_gate, "CHECKED_AT_ONCE", 2)

    async def run() -> None:
        async with gates(made, redis_url) as (gate,):
            with redis_client.Redis.from_url(redis_url) as client:
                for number in range(5):
                    lock = Lock(NONCE + 5_000, "assets", is_shared=True)
                    gate.locks["customer"].begin(f"a{number}", lock)
                    if number % 2:
                        client.set(f"spotledger:lock:assets:a{number}", f"{NONCE + 5_000}:assets")
            gate.locks["customer"].begin("own", Lock(NONCE + 5_000, "assets"))
            asked: list[int] = []
            asks = gate.counts.still_locked

            async def ask(keys: Sequence[str]) -> list[bool] | None:
                asked.append(len(keys))
                return await asks(keys)

            gate.counts.still_locked = ask  # type: ignore[method-assign]
            await gate._check_locks()
            assert sorted(who for who, _ in gate.locks["customer"].all()) == ["a1", "a3", "own"]
            assert asked == [2, 2, 1]

    asyncio.run(run())


def test_no_lock_is_lifted_here_while_redis_is_away(made: Service) -> None:
    """Nobody knows then whether it was lifted; the locks of all nodes are not known either."""

    async def run() -> None:
        async with gates(made, NOWHERE) as (gate,):
            for who in ("alice", "bob"):
                gate.locks["customer"].begin(who, Lock(NONCE + 5_000, "assets", is_shared=True))
            await gate._check_locks()
            assert sorted(who for who, _ in gate.locks["customer"].all()) == ["alice", "bob"]
            assert await gate.shared_locks() is None
            with pytest.raises(StoreUnavailable) as refused:
                await gate.lift("customer", "alice")
            assert refused.value.message == (
                "Redis, where all nodes have their locks, does not answer; try again later."
            )
            assert len(list(gate.locks["customer"].all())) == 2

    asyncio.run(run())


def test_locks_are_lifted_in_redis_and_here_one_by_one(made: Service, redis_url: str) -> None:
    """Of the kind and the name that is given; all others stay, in Redis and here."""

    async def run() -> None:
        async with gates(made, redis_url) as (gate,):
            until_ms = NONCE + 5_000
            with redis_client.Redis.from_url(redis_url) as client:
                for name in ("assets:alice", "assets:bob", "address:alice", "address:192.0.2.7", "else:alice"):
                    client.set(f"spotledger:lock:{name}", f"{until_ms}:{name.partition(':')[0]}")
            for locks in gate.locks.values():
                locks.begin("alice", Lock(until_ms, "assets", is_shared=True))
            await gate.lift("customer", "alice")
            assert [[who for who, _ in gate.locks[kind].all()] for kind in ("customer", "address")] == [[], ["alice"]]
            found = await gate.shared_locks()
            assert found is not None
            assert sorted(found) == [
                ("address", "192.0.2.7", Lock(until_ms, "address", is_shared=True)),
                ("address", "alice", Lock(until_ms, "address", is_shared=True)),
                ("customer", "bob", Lock(until_ms, "assets", is_shared=True)),
            ]

    asyncio.run(run())


def test_time_of_redis_counts_where_no_other_clock_is_given(made: Service, redis_url: str) -> None:
    """A lock ends after its length by that clock."""

    async def run() -> None:
        gate = FleetGate(
            made.key_ring,
            GateSettings(asset_limit_per_second=1, lock_seconds=50),
            redis_url,
            when_down="local",
            timeout_ms=2_000,
        )
        await gate.start()
        begun_ms = time.time_ns() // 1_000_000
        await admit(gate, 1)
        with pytest.raises(LimitExceeded):
            await admit(gate, 2)
        found = await gate.shared_locks()
        assert found is not None
        [(_, _, lock)] = found
        assert begun_ms + 50_000 - 1 <= lock.until_ms <= time.time_ns() // 1_000_000 + 50_000
        await gate.stop()

    asyncio.run(run())


def counts_at(url: str, **more: Any) -> SharedCounts:
    """Return shared counts with a limit of addresses."""
    limit = WindowLimit("address", 0, 1_000, Locks(0))
    return SharedCounts(url, [limit], 1_000, **{"timeout_ms": 2_000, "clock_ms": lambda: NONCE, **more})


def test_counts_without_redis_answer_nothing_and_say_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """What is only noted is dropped; what was asked is counted as decided without them."""

    async def run() -> None:
        counts = counts_at(NOWHERE)
        assert (counts.is_up, counts.failures, counts.unshared) == (False, 0, 0)
        await counts.start()
        counts.note(Ask("a"))
        assert [await counts.ask(Ask("a")) for _ in range(2)] == [None, None]
        assert (counts.is_up, counts.failures, counts.unshared) == (False, 0, 2)
        assert await counts.locks() is None
        assert await counts.still_locked(["a"]) is None
        assert await counts.still_locked([]) == []
        assert not await counts.lift("a")
        await counts.stop()

    with caplog.at_level(logging.WARNING, "spotledger.redis"):
        asyncio.run(run())
    assert caplog.messages == ["redis cannot be reached; limits are not shared until it answers"]


def test_all_locks_are_read_however_many(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else that is in Redis."""
    monkeypatch.setattr(shared_counts, "BATCH_LIMIT", 2)
    names = [f"spotledger:lock:assets:a{number}" for number in range(5)]
    with redis_client.Redis.from_url(redis_url) as client:
        client.mset(dict.fromkeys(names, f"{NONCE}:assets"))
        client.set("spotledger:window:assets:a0", "1:1")

    async def run() -> None:
        counts = counts_at(redis_url)
        assert await counts.locks() == dict.fromkeys(names, Lock(NONCE, "assets", is_shared=True))
        assert await counts.still_locked([names[0], "spotledger:lock:assets:nobody"]) == [True, False]
        assert await counts.lift(names[0])
        assert await counts.still_locked([names[0], names[1]]) == [False, True]
        await counts.stop()

    asyncio.run(run())


def test_redis_that_answers_something_else_counts_as_away(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All that wait are decided without it; as soon as it answers as it should, it counts again."""

    async def become_up(counts: SharedCounts) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not counts.is_up:
                await asyncio.sleep(0.02)

    async def run() -> None:
        counts = counts_at(redis_url)
        await counts.start()
        with monkeypatch.context() as patch:
            patch.setattr(shared_counts, "_SHA", "0" * 40)
            patch.setattr(shared_counts, "_SCRIPT", "return cmsgpack.pack({1})")
            assert await asyncio.gather(*(counts.ask(Ask("a")) for _ in range(3))) == [None] * 3
            assert (counts.is_up, counts.failures, counts.unshared) == (False, 1, 3)
        await become_up(counts)
        verdict = await counts.ask(Ask("a"))
        assert verdict is not None
        assert (verdict.passes, verdict.address_left) == (True, 0)
        assert (counts.failures, counts.unshared) == (1, 3)
        await counts.stop()
        assert await counts.ask(Ask("a")) is None

    with caplog.at_level(logging.WARNING, "spotledger.redis"):
        asyncio.run(run())
    assert caplog.messages == [
        "redis does not answer (DecodeError); limits are not shared until it does",
        "redis answers again; limits are shared",
    ]


def test_requests_that_wait_when_the_counts_stop_get_no_verdict(redis_url: str) -> None:
    """Nobody waits for ever, whether the request was sent or not."""

    async def run() -> None:
        counts = counts_at(redis_url)
        await counts.start()
        asking = [asyncio.create_task(counts.ask(Ask("a"))) for _ in range(3)]
        await asyncio.sleep(0)
        await counts.stop()
        async with asyncio.timeout(WAIT_SECONDS):
            assert await asyncio.gather(*asking) == [None] * 3
        assert counts.unshared == 3

    asyncio.run(run())


def test_unknown_access_key_counts_against_the_address(made: Service, redis_url: str) -> None:
    """In the shared count, once."""

    async def run() -> None:
        async with gates(made, redis_url) as (gate,):
            request = signed()._replace(accesskey="nobody")
            with pytest.raises(AccessKeyUnknown):
                await gate.admit(request, gate.peer(PEER, list), "read", gate.asset_limit, NONCE)
            assert gate.address_limit.headers("192.0.2.7", NONCE)[1] == ("ratelimit", '"address";r=999;t=60')

    asyncio.run(run())
