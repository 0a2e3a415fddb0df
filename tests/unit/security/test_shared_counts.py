"""Shared counts over a server that answers as the test says: what is sent together, what is waited for, what is not."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import pytest

from spotledger.errors import SettingInvalid
from spotledger.security import shared_counts
from spotledger.security.limits import Lock, Locks, WindowLimit
from spotledger.security.shared_counts import IN_FLIGHT_LIMIT, Ask, SharedCounts, SharedVerdict
from support_redis_fake import (
    NO_SCRIPT,
    Answer,
    Command,
    FakeRedis,
    bulk,
    fake_redis,
    listed,
    passing,
    told_to,
    verdicts,
)

#: After this a test has failed, although something waits for ever.
HUNG_SECONDS = 5
SCRIPT = (files("spotledger.security") / "shared_counts.lua").read_bytes()
PASSES = SharedVerdict(0, 0, True, 0, 0)


def counts_at(url: str, **more: Any) -> SharedCounts:
    """Return shared counts with a limit of addresses and two of accounts that have the same locks."""
    locks = Locks(7_000)
    limits = [
        WindowLimit("address", 5, 60_000, Locks(9_000)),
        WindowLimit("assets", 3, 1_000, locks),
        WindowLimit("account", 2, 2_000, locks),
    ]
    return SharedCounts(url, limits, 30_000, **{"timeout_ms": 2_000, **more})


@asynccontextmanager
async def started(redis: FakeRedis, **more: Any) -> AsyncIterator[SharedCounts]:
    """Start counts over *redis*, and forget the probe that they began with."""
    counts = counts_at(redis.url, **more)
    await counts.start()
    assert counts.is_up
    redis.calls.clear()
    try:
        yield counts
    finally:
        await counts.stop()


def run(talk: Callable[[FakeRedis], Awaitable[None]]) -> None:
    """Run *talk* with a server."""

    async def serve() -> None:
        async with asyncio.timeout(HUNG_SECONDS), fake_redis() as redis:
            await talk(redis)

    asyncio.run(serve())


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    while not condition():
        await asyncio.sleep(0.001)


class Held:
    """Answers that wait until they are let go, each for itself."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Command, asyncio.Future[Answer]]] = []

    async def answer(self, command: Command) -> Answer:
        """Wait."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waiting.append((command, future))
        return await future

    def let_go(self) -> None:
        """Let the requests that wait pass."""
        waiting, self.waiting = self.waiting, []
        for command, future in waiting:
            future.set_result(passing(command))


def test_script_is_told_limits_time_and_requests() -> None:
    """Each limit with the name of the locks that it shares; the time is Redis's own where no clock is given."""

    async def talk(redis: FakeRedis) -> None:
        async with started(redis) as counts:
            ask = Ask("192.0.2.7", "ab", True, "alice", 1, "192.0.2.8")
            assert await counts.ask(ask) == PASSES
            [command] = redis.calls
            assert command[:3] == [b"EVALSHA", hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode(), b"0"]
            limits = [
                ["address", 5, 60_000, 9_000, "address"],
                ["assets", 3, 1_000, 7_000, "assets"],
                ["account", 2, 2_000, 7_000, "assets"],
            ]
            assert told_to(command) == (0, 30_000, limits, [[*ask]])
        async with started(redis, clock_ms=lambda: 17) as counts:
            assert await counts.ask(Ask("a")) == PASSES
            assert told_to(redis.calls[0])[0] == 17

    run(talk)


def test_requests_of_one_turn_are_sent_in_one_call_and_answered_each() -> None:
    """Those that are only noted, too; each gets its own five numbers."""

    async def talk(redis: FakeRedis) -> None:
        async def answer(command: Command) -> Answer:
            return verdicts(*range(5 * len(told_to(command)[3])))

        async def note(counts: SharedCounts) -> None:
            counts.note(Ask("a"))

        async with started(redis) as counts:
            redis.answer = answer
            _, *found = await asyncio.gather(note(counts), *(counts.ask(Ask(who)) for who in "bc"))
            assert found == [SharedVerdict(5, 6, True, 8, 9), SharedVerdict(10, 11, True, 13, 14)]
            assert [[ask[0] for ask in told_to(call)[3]] for call in redis.calls] == [["a", "b", "c"]]
            assert (counts.failures, counts.unshared) == (0, 0)

    run(talk)


@pytest.mark.parametrize(("number", "passes"), [(0, False), (1, True)])
def test_signature_passes_as_the_script_says(number: int, passes: bool) -> None:
    """Its number is taken for what it means."""

    async def talk(redis: FakeRedis) -> None:
        async def answer(command: Command) -> Answer:
            return verdicts(-3, 3, number, -4, 4)

        async with started(redis) as counts:
            redis.answer = answer
            verdict = await counts.ask(Ask("a"))
            assert verdict == (-3, 3, passes, -4, 4)
            assert verdict is not None
            assert verdict.passes is passes

    run(talk)


def test_only_so_many_calls_are_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes meanwhile waits in order, is sent when one of them ends, and no more of it than fits in a call."""
    monkeypatch.setattr(shared_counts, "BATCH_LIMIT", 2)

    async def talk(redis: FakeRedis) -> None:
        held = Held()
        async with started(redis) as counts:
            redis.answer = held.answer
            names = [str(number) for number in range(2 * IN_FLIGHT_LIMIT + 5)]
            asking = [asyncio.create_task(counts.ask(Ask(name))) for name in names]
            await until(lambda: len(held.waiting) == IN_FLIGHT_LIMIT)
            counts.note(Ask("late"))
            await asyncio.sleep(0.02)
            assert len(held.waiting) == IN_FLIGHT_LIMIT
            held.let_go()
            await until(lambda: len(held.waiting) == 3)
            held.let_go()
            assert await asyncio.gather(*asking) == [PASSES] * len(names)
            sent = [[ask[0] for ask in told_to(call)[3]] for call in redis.calls]
            assert sorted(len(call) for call in sent) == [2] * (IN_FLIGHT_LIMIT + 3)
            assert sorted(name for call in sent for name in call) == sorted([*names, "late"])
            assert [call for call in sent if "late" in call] == [[names[-1], "late"]]
            redis.answer = redis.pass_all
            assert await counts.ask(Ask("after")) == PASSES
            assert len(redis.calls) == len(sent) + 1

    run(talk)


def test_one_connection_is_left_for_locks_and_no_more() -> None:
    """While as many calls are in flight as may be, a lock can be lifted; Redis is not flooded with connections."""

    async def talk(redis: FakeRedis) -> None:
        held = Held()
        async with started(redis) as counts:
            redis.answer = held.answer
            asking = []
            for number in range(IN_FLIGHT_LIMIT):
                asking.append(asyncio.create_task(counts.ask(Ask(str(number)))))
                await until(lambda number=number: len(held.waiting) == number + 1)
            lifting = asyncio.create_task(counts.lift("k"))
            await until(lambda: len(held.waiting) == IN_FLIGHT_LIMIT + 1)
            assert not await counts.lift("l")
            assert redis.open == IN_FLIGHT_LIMIT + 1
            held.waiting.pop()[1].set_result(b":1\r\n")
            assert await lifting
            held.let_go()
            assert await asyncio.gather(*asking) == [PASSES] * IN_FLIGHT_LIMIT

    run(talk)


def test_requests_that_were_not_sent_get_no_verdict_at_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those in flight nor those behind them; nothing is sent any more."""
    monkeypatch.setattr(shared_counts, "BATCH_LIMIT", 1)

    async def talk(redis: FakeRedis) -> None:
        held = Held()
        async with started(redis) as counts:
            redis.answer = held.answer
            asking = [asyncio.create_task(counts.ask(Ask(str(number)))) for number in range(IN_FLIGHT_LIMIT + 2)]
            await until(lambda: len(held.waiting) == IN_FLIGHT_LIMIT)
            counts.note(Ask("noted"))
            await counts.stop()
            assert await asyncio.gather(*asking) == [None] * len(asking)
            assert counts.unshared == len(asking)
            assert not counts.is_up
            held.let_go()
            await until(lambda: redis.open == 0)
            assert len(redis.calls) == IN_FLIGHT_LIMIT

    run(talk)


def test_nothing_is_probed_once_the_counts_are_stopped() -> None:
    """Redis was away, so it was asked again and again."""

    async def talk(redis: FakeRedis) -> None:
        counts = counts_at("redis://127.0.0.1:1")
        await counts.start()
        probing = counts._probing
        assert probing is not None
        assert not probing.done()
        await counts.stop()
        assert probing.cancelled()

    run(talk)


def test_request_whose_client_has_gone_keeps_no_verdict_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was cancelled while it waited; those beside it are answered, with or without Redis."""
    monkeypatch.setattr(shared_counts, "PROBE_SECONDS", 0.005)

    async def talk(redis: FakeRedis) -> None:
        async with started(redis) as counts:
            for answer, seconds, expected in ((Held().answer, 0.05, None), (redis.pass_all, HUNG_SECONDS, PASSES)):
                redis.answer, counts._seconds = answer, seconds
                gone, stays = (asyncio.create_task(counts.ask(Ask(who))) for who in "ab")
                await asyncio.sleep(0)
                gone.cancel()
                assert await stays == expected
                redis.answer = redis.pass_all
                await until(lambda: counts.is_up)
            assert (counts.failures, counts.unshared) == (1, 1)

    run(talk)


def test_redis_that_does_not_know_the_script_is_given_it() -> None:
    """With the same question; it has as much time for both calls as for one."""

    async def talk(redis: FakeRedis) -> None:
        delay_seconds = 0.0

        async def answer(command: Command) -> Answer:
            await asyncio.sleep(delay_seconds)
            return NO_SCRIPT if command[0] == b"EVALSHA" else passing(command)

        async with started(redis) as counts:
            redis.answer = answer
            assert await counts.ask(Ask("a")) == PASSES
            assert [command[0] for command in redis.calls] == [b"EVALSHA", b"EVAL"]
            assert redis.calls[1][1:3] == [SCRIPT, b"0"]
            assert redis.calls[1][3] == redis.calls[0][3]
            delay_seconds, counts._seconds = 0.2, 0.3
            assert await counts.ask(Ask("a")) is None

    run(talk)


def test_answer_that_comes_too_late_is_not_taken_for_that_of_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed with it."""
    monkeypatch.setattr(shared_counts, "PROBE_SECONDS", 0.005)

    async def talk(redis: FakeRedis) -> None:
        held = Held()
        async with started(redis) as counts:
            redis.answer, counts._seconds = held.answer, 0.05
            assert await counts.ask(Ask("late")) is None
            redis.answer, counts._seconds = redis.pass_all, HUNG_SECONDS
            for _, future in held.waiting:
                future.set_result(verdicts(-9, 9, 0, -9, 9))
            await until(lambda: counts.is_up)
            assert await counts.ask(Ask("next")) == PASSES
            assert (counts.failures, counts.unshared) == (1, 1)

    run(talk)


@pytest.mark.parametrize(
    "answer",
    [verdicts(), verdicts(0, 0, 1, 0), verdicts(*"abcde"), bulk(b"\xc1"), b"-OOM command not allowed\r\n", b"+OK\r\n"],
    ids=["nothing", "too few", "texts", "no msgpack", "an error", "a word"],
)
def test_redis_that_answers_something_else_is_away(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """When it is called and when it is probed: no verdict is made of it, and no error of it is raised."""

    async def talk(redis: FakeRedis) -> None:
        async def other(command: Command) -> Answer:
            return answer

        async with started(redis) as counts:
            redis.answer = other
            assert await counts.ask(Ask("a")) is None
            assert (counts.is_up, counts.failures, counts.unshared) == (False, 1, 1)
        late = counts_at(redis.url)
        await late.start()
        assert (late.is_up, late.failures) == (False, 0)
        await late.stop()

    with caplog.at_level(logging.WARNING, "spotledger.redis"):
        run(talk)
    assert [message.partition("; ")[2] for message in caplog.messages] == [
        "limits are not shared until it does",
        "limits are not shared until it answers",
    ]


def test_redis_that_says_nothing_is_given_up() -> None:
    """By a probe, by a request, and by whoever asks for locks or lifts one; each time after a bounded time."""

    async def talk(redis: FakeRedis) -> None:
        redis.answer = Held().answer
        counts = counts_at(redis.url, timeout_ms=50)
        await counts.start()
        assert not counts.is_up
        assert await counts.locks() is None
        assert await counts.still_locked(["k"]) is None
        assert not await counts.lift("k")
        counts.is_up = True
        assert await counts.ask(Ask("a")) is None
        await counts.stop()

    run(talk)


def test_call_is_sent_once_over_a_connection_that_breaks() -> None:
    """What counts a request is not tried again: it may have been counted."""

    async def talk(redis: FakeRedis) -> None:
        async def answer(command: Command) -> Answer:
            raise ConnectionResetError

        async with started(redis) as counts:
            redis.answer = answer
            assert await counts.ask(Ask("a")) is None
            assert len(redis.calls) == 1

    run(talk)


def test_locks_are_found_page_by_page() -> None:
    """A lock that ended between the two steps is left out; one call asks for no more than so many."""

    async def talk(redis: FakeRedis) -> None:
        pages = {b"0": (b"7", b"spotledger:lock:a"), b"7": (b"0", b"spotledger:lock:b")}

        async def answer(command: Command) -> Answer:
            if command[0] == b"SCAN":
                assert command[2:4] == [b"MATCH", b"spotledger:lock:*"]
                following, name = pages[command[1]]
                return listed(bulk(following), listed(bulk(name)))
            assert command == [b"MGET", b"spotledger:lock:a", b"spotledger:lock:b"]
            return listed(bulk(b"17:assets"), b"_\r\n")

        async with started(redis) as counts:
            redis.answer = answer
            assert await counts.locks() == {"spotledger:lock:a": Lock(17, "assets", is_shared=True)}

    run(talk)


def test_timeouts_are_those_that_were_told() -> None:
    """A call has the time that was told in milliseconds, a connection the same to open; nothing else gives up."""

    async def talk(redis: FakeRedis) -> None:
        counts = counts_at(redis.url, timeout_ms=9_000)
        told = counts._redis.connection_pool.connection_kwargs
        assert (counts._seconds, told["socket_connect_timeout"], told["socket_timeout"]) == (9, 9, None)
        await counts.stop()

    run(talk)


def test_probing_goes_on_until_redis_answers(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """One probe at a time, however often Redis was lost; that it answers again is said once."""
    monkeypatch.setattr(shared_counts, "PROBE_SECONDS", 0.005)

    async def talk(redis: FakeRedis) -> None:
        async def broken(command: Command) -> Answer:
            return b"-ERR broken\r\n"

        async with started(redis) as counts:
            for losses in (1, 2):
                redis.answer = broken
                assert await counts.ask(Ask("a")) is None
                probing = counts._probing
                assert probing is not None
                counts._keep_probing()
                assert counts._probing is probing
                await until(lambda: len(redis.calls) >= 3)
                redis.answer = redis.pass_all
                await probing
                assert (counts.is_up, counts.failures) == (True, losses)
                redis.calls.clear()
            assert await counts.ask(Ask("a")) == PASSES

    with caplog.at_level(logging.WARNING, "spotledger.redis"):
        run(talk)
    assert [message.partition(";")[0] for message in caplog.messages] == [
        "redis does not answer (ResponseError)",
        "redis answers again",
    ] * 2


def test_probe_counts_nobody() -> None:
    """It is a request of an address that no client has, with nothing to remember."""

    async def talk(redis: FakeRedis) -> None:
        counts = counts_at(redis.url)
        await counts.start()
        assert [told_to(call)[3] for call in redis.calls] == [[["probe", "", False, "", 0, ""]]]
        await counts.stop()

    run(talk)


def test_url_that_cannot_be_read_is_refused_without_its_password() -> None:
    """The refusal names the setting, and what would pass."""
    with pytest.raises(SettingInvalid) as refused:
        counts_at("http://:hidden@x")
    assert refused.value.details["setting"] == "redis"
    assert refused.value.message == (
        "The setting redis is not a URL of Redis; redis://, rediss:// or unix:// with a host would pass."
    )
