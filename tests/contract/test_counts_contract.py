"""What every way to count must do: in this process, and in a Redis that nodes share (rules R12 and R20)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spotledger.security.limits import Locks, WindowLimit
from spotledger.security.replay import ReplayMemory
from spotledger.security.shared_counts import Ask, SharedCounts

WINDOW_MS = 1_000


class Counts(Protocol):
    """Two limits, ``one`` and ``two``, under the same locks, and a replay memory."""

    def begin(self, one: int, two: int, lock_ms: int) -> None:
        """Forget everything, and take these limits."""

    def hit(self, which: str, who: str, now_ms: int) -> int:
        """Count a request; return what is left, or below zero the ms to wait."""

    def passes(self, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        """Tell whether a signature may pass."""


class InProcess:
    """Counts of one node."""

    def begin(self, one: int, two: int, lock_ms: int) -> None:
        locks = Locks(lock_ms)
        self._limits = {name: WindowLimit(name, most, WINDOW_MS, locks) for name, most in (("one", one), ("two", two))}
        self._replay = ReplayMemory("address", WINDOW_MS, 1_000_000)

    def hit(self, which: str, who: str, now_ms: int) -> int:
        return self._limits[which].hit(who, now_ms)

    def passes(self, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        return self._replay.passes("k", signature, address, now_ms, strict=strict)


class InRedis:
    """Counts in a Redis; each begins with other names, so nothing is left from before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._now_ms = 0
        self._begun = 0
        self._runner = asyncio.Runner()
        self._counts: SharedCounts | None = None

    def begin(self, one: int, two: int, lock_ms: int) -> None:
        self._begun += 1
        self.close_counts()
        locks = Locks(lock_ms)
        limits = [
            WindowLimit("address", 0, WINDOW_MS, Locks(0)),
            WindowLimit(f"one-{self._begun}", one, WINDOW_MS, locks),
            WindowLimit(f"two-{self._begun}", two, WINDOW_MS, locks),
        ]
        self._counts = SharedCounts(self._url, limits, WINDOW_MS, timeout_ms=5_000, clock_ms=lambda: self._now_ms or 1)
        self._runner.run(self._counts.start())
        assert self._counts.is_up

    def _ask(self, address: str, signature: str, strict: bool, who: str, which: int, now_ms: int) -> tuple[bool, int]:
        assert self._counts is not None
        self._now_ms = now_ms + 1
        verdict = self._runner.run(self._counts.ask(Ask(address, signature, strict, who, which, address)))
        assert verdict is not None
        return verdict.passes, verdict.left

    def hit(self, which: str, who: str, now_ms: int) -> int:
        return self._ask("anywhere", "", False, who, ("one", "two").index(which) + 1, now_ms)[1]

    def passes(self, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        return self._ask(address, f"{self._begun}{signature.hex()}", strict, "", 0, now_ms)[0]

    def close_counts(self) -> None:
        if self._counts is not None:
            self._runner.run(self._counts.stop())

    def close(self) -> None:
        self.close_counts()
        self._runner.close()


@pytest.fixture(params=["in process", "redis"])
def counts(request: pytest.FixtureRequest) -> Iterator[Counts]:
    """Give each way to count in turn."""
    if request.param == "in process":
        yield InProcess()
        return
    made = InRedis(request.getfixturevalue("redis_url"))
    yield made
    made.close()


def test_counts_let_through_the_limit_and_then_lock(counts: Counts) -> None:
    """What is left counts down; the first request too many locks, and asking on does not make the lock longer."""
    counts.begin(3, 0, 10_000)
    assert [counts.hit("one", "a", now) for now in (0, 1, 2)] == [2, 1, 0]
    assert counts.hit("one", "a", 3) == -10_000
    assert [counts.hit("one", "a", now) for now in (5_003, 10_002)] == [-5_000, -1]
    assert counts.hit("one", "b", 5_000) == 2
    assert counts.hit("one", "a", 10_003) == 2


def test_counts_without_a_lock_refuse_until_the_window_ends(counts: Counts) -> None:
    """With a lock of no length, who is over the limit waits for the end of his window."""
    counts.begin(1, 0, 0)
    assert [counts.hit("one", "a", now) for now in (0, 400, 999, 1_000)] == [0, -600, -1, 0]


def test_counts_of_two_limits_share_a_lock_even_where_one_is_off(counts: Counts) -> None:
    """A limit of 0 counts nothing, and yet refuses whom the other one has locked."""
    counts.begin(1, 0, 5_000)
    assert [counts.hit("two", "a", 0) for _ in range(5)] == [0] * 5
    assert [counts.hit("one", "a", 0), counts.hit("one", "a", 0), counts.hit("two", "a", 1)] == [0, -5_000, -4_999]


def test_counts_bind_a_signature_to_its_first_address(counts: Counts) -> None:
    """A retry from the same address passes, another address does not, and after two windows it is forgotten."""
    counts.begin(0, 0, 0)
    assert [counts.passes(b"s", address, 0) for address in "aab"] == [True, True, False]
    assert [counts.passes(b"s", address, WINDOW_MS - 1) for address in "ba"] == [False, True]
    assert counts.passes(b"t", "b", WINDOW_MS)
    assert counts.passes(b"s", "b", 3 * WINDOW_MS)


def test_counts_take_a_strict_signature_once(counts: Counts) -> None:
    """What changes something is taken once, wherever it comes from."""
    counts.begin(0, 0, 0)
    assert [counts.passes(b"s", "a", 0, strict=True) for _ in range(2)] == [True, False]
    assert counts.passes(b"t", "a", 0)
    assert not counts.passes(b"t", "a", 1, strict=True)


@given(
    steps=st.lists(st.tuples(st.integers(0, 700), st.sampled_from("ab")), max_size=40),
    limit=st.integers(1, 4),
    lock_ms=st.sampled_from([0, 400, 1_500]),
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counts_agree_with_a_simple_model(
    counts: Counts, steps: list[tuple[int, str]], limit: int, lock_ms: int
) -> None:
    """Against ten lines that say the same: who passes, and for how long the others are to wait."""
    counts.begin(limit, 0, lock_ms)
    begun: dict[str, int] = {}
    count: dict[str, int] = {}
    locked: dict[str, int] = {}
    now = 0
    for step, who in steps:
        now += step
        if now < locked.get(who, 0):
            expected = now - locked[who]
        else:
            if who not in begun or now - begun[who] >= WINDOW_MS or who in locked:
                begun[who], count[who] = now, 0
                locked.pop(who, None)
            count[who] += 1
            expected = limit - count[who]
            if expected < 0:
                expected = -lock_ms or now - begun[who] - WINDOW_MS
                if lock_ms:
                    locked[who] = now + lock_ms
        assert counts.hit("one", who, now) == expected
