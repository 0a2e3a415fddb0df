"""The memory of used signatures: once, or from one address only, for at least a window."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.security.replay import MARK_BYTES, ReplayMemory, key_mark


def test_replay_memory_forgets_by_time_without_counting() -> None:
    """A signature is remembered for a window at least and two at most; what is dead is not counted as forgotten."""
    memory = ReplayMemory("address", 1_000, 1_000_000)
    assert memory.passes("k", b"one", "a", 0)
    assert not memory.passes("k", b"one", "b", 1_000)
    assert memory.passes("k", b"one", "a", 1_999)
    assert memory.passes("k", b"two", "a", 2_000)
    assert memory.passes("k", b"three", "a", 3_000)
    assert memory.passes("k", b"one", "b", 3_000)
    assert (memory.forgotten, len(memory)) == (0, 3)


def test_replay_memory_forgets_the_oldest_when_full() -> None:
    """At most its capacity is held of one access key; what had to go is counted, and the newer half always stays."""
    memory = ReplayMemory("address", 1_000, 100)
    for number in range(1_000):
        assert memory.passes("k", b"%d" % number, "a", 5_000)
        assert len(memory) <= 100
    assert memory.forgotten >= 900
    assert not any(memory.passes("k", b"%d" % number, "b", 5_000) for number in range(960, 1_000))


def test_replay_of_a_call_that_changes_something_is_strict_in_every_mode() -> None:
    """Even with replay off, a signature is good once for a call that changes something."""
    for mode in ("off", "address", "strict"):
        memory = ReplayMemory(mode, 1_000, 100)
        assert memory.passes("k", b"s", "a", 0, strict=True)
        assert not memory.passes("k", b"s", "a", 0, strict=True)


@given(
    uses=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5), st.sampled_from("ab")), max_size=80),
)
@settings(max_examples=300, deadline=None)
def test_replay_memory_binds_for_at_least_a_window(uses: list[tuple[int, int, str]]) -> None:
    """Within a window of its first use a signature passes from its first address and from no other."""
    memory = ReplayMemory("address", 1_000, 1_000)
    first: dict[int, tuple[int, str]] = {}
    now = 0
    for step, number, address in uses:
        now += step
        passed = memory.passes("k", b"%d" % number, address, now)
        begun, bound = first.get(number, (None, ""))
        if begun is not None and now - begun < 1_000:
            assert passed == (address == bound)
        elif passed and address != bound:
            first[number] = (now, address)


def test_replay_memory_of_one_key_does_not_push_out_that_of_another() -> None:
    """R12: however many requests the owner of a key signs, those of others are remembered."""
    memory = ReplayMemory("address", 1_000, 100)
    assert memory.passes("quiet", b"one", "a", 0)
    for number in range(1_000):
        assert memory.passes("loud", b"%d" % number, "a", 10)
    assert not memory.passes("quiet", b"one", "b", 999)
    assert memory.passes("quiet", b"one", "a", 999)
    assert memory.forgotten >= 900


def test_replay_memory_of_idle_keys_is_dropped() -> None:
    """The memory of many keys that come and go stays small, and what is in the window is never dropped."""
    memory = ReplayMemory("address", 1_000, 100)
    for number in range(5_000):
        now = number * 10
        assert memory.passes(f"key-{number}", b"one", "a", now)
        assert not memory.passes(f"key-{max(0, number - 90)}", b"one", "b", now)
    assert len(memory) < 700
    assert memory.forgotten == 0


class Clocks:
    """The clock that counts, which may leap, and a steady one."""

    def __init__(self) -> None:
        self.now_ms = 10_000_000
        self.steady_ms = 0

    def go_on(self, ms: int) -> None:
        self.now_ms += ms
        self.steady_ms += ms


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 600), st.sampled_from([0, 0, 0, 500, -500, 3_600_000, -3_600_000]), st.integers(0, 3)),
        max_size=60,
    )
)
@settings(max_examples=300, deadline=None)
def test_replay_memory_outlives_every_leap_of_the_clock(steps: list[tuple[int, int, int]]) -> None:
    """Whatever leaps the clock that counts makes: for a window of true time a signature is bound to its address."""
    clocks = Clocks()
    memory = ReplayMemory("address", 1_000, 1_000, lambda: clocks.steady_ms)
    used_at: dict[int, int] = {}
    for step, leap, number in steps:
        clocks.go_on(step)
        clocks.now_ms += leap
        passed = memory.passes(f"k{number % 2}", b"%d" % number, "thief", clocks.now_ms)
        if number in used_at and clocks.steady_ms - used_at[number] < 1_000:
            assert not passed
        if memory.passes(f"k{number % 2}", b"%d" % number, "owner", clocks.now_ms):
            used_at.setdefault(number, clocks.steady_ms)
        else:
            used_at.pop(number, None)


def test_replay_memory_that_is_restored_binds_for_a_window() -> None:
    """What was remembered before a restart counts after it for a window at least, and takes no room for ever."""
    before = ReplayMemory("address", 1_000, 100)
    assert before.passes("k", b"one", "a", 500)
    assert before.passes("other", b"two", "a", 900)
    after = ReplayMemory("address", 1_000, 100)
    after.restore(before.uses(), 5_000)
    assert len(after) == 2
    assert not after.passes("k", b"one", "b", 5_999)
    assert after.passes("k", b"one", "a", 5_999)
    again = ReplayMemory("strict", 1_000, 100)
    again.restore(after.uses(), 6_000)
    assert not again.passes("k", b"one", "a", 6_900)
    assert not again.passes("other", b"two", "a", 6_900)
    for now in (10_000, 12_000, 20_000):
        again.passes(f"new-{now}", b"three", "a", now)
    assert not {key_mark("other"), key_mark("k")} <= again.uses().keys()


def test_access_key_is_kept_as_its_hash() -> None:
    """16 bytes that a restart finds again, so they never change, and that a table of plain hashes does not have."""
    assert key_mark("11111111-2222-4333-8444-555555555555").hex() == "c8b874c1a313ef9aa148faab90f6a97d"


@pytest.mark.parametrize(("capacity", "generation"), [(1, 1), (2, 1), (3, 1), (4, 2), (100, 50)])
def test_generation_is_half_of_the_capacity_and_never_nothing(capacity: int, generation: int) -> None:
    """So that the two of them are no more than it."""
    assert ReplayMemory("address", 1_000, capacity).generation_limit == generation


def test_replay_memory_that_is_off_remembers_nothing() -> None:
    """But for what is strict, which binds nothing else."""
    memory = ReplayMemory("off", 1_000, 100)
    for address in "aab":
        assert memory.passes("k", b"one", address, 0)
    assert len(memory) == 0
    assert memory.passes("k", b"one", "a", 0, strict=True)
    assert len(memory) == 1
    assert memory.passes("k", b"one", "b", 0)


def test_replay_memory_counts_what_it_drops_for_want_of_room() -> None:
    """One generation at a time, when the other one is full; what is older than the window is not counted."""
    memory = ReplayMemory("address", 1_000, 4)
    found = []
    for number, now in enumerate([0, 0, 0, 0, 0, 0, 999, 999, 1_999, 2_998]):
        assert memory.passes("k", b"%d" % number, "a", now)
        found.append((len(memory), memory.forgotten))
    counted = [(1, 0), (2, 0), (3, 0), (4, 0), (3, 2), (4, 2), (3, 4), (4, 4), (3, 4), (4, 4)]
    assert found == counted


def test_generation_keeps_its_age_when_the_clock_leaps() -> None:
    """It is closed when it is as old as the window by the steady clock, and neither before nor after."""
    clocks = Clocks()
    memory = ReplayMemory("address", 1_000, 100, lambda: clocks.steady_ms)
    for leap in (3_600_000, -3_600_000):
        assert memory.passes("k", b"%d" % leap, "a", clocks.now_ms)
        kept = memory._by_key["k"]
        closed = kept.older
        clocks.go_on(400)
        clocks.now_ms += leap
        for step in (0, 599):
            clocks.go_on(step)
            assert memory.passes("k", b"%d" % leap, "a", clocks.now_ms)
            assert kept.older is closed
        clocks.go_on(1)
        assert memory.passes("k", b"%d" % leap, "a", clocks.now_ms)
        assert kept.older == {b"%d" % leap: "a"}
        clocks.go_on(1_000)
        assert memory.passes("k", b"in between %d" % leap, "a", clocks.now_ms)
        clocks.go_on(1_000)


def test_memory_of_an_idle_key_is_dropped_after_three_windows() -> None:
    """Not before: the clock may have been set back meanwhile. Each key that begins looks at two others."""
    memory = ReplayMemory("address", 1_000, 100)
    memory.passes("old", b"one", "a", 0)
    memory.passes("new", b"one", "a", 3_000)
    assert set(memory._by_key) == {"old", "new"}
    memory.passes("newer", b"one", "a", 3_001)
    assert set(memory._by_key) == {"new", "newer"}
    for number in range(5):
        memory.passes(f"idle-{number}", b"one", "a", 3_001)
    memory.passes("last", b"one", "a", 10_000)
    assert len(memory._by_key) == 2 + 5 - 2 + 1
    assert memory.forgotten == 0


def test_busy_key_drops_the_memory_of_idle_ones() -> None:
    """With each generation that it begins, two of them; where there are fewer, those."""
    memory = ReplayMemory("address", 1_000, 100)
    for number in range(3):
        memory.passes(f"idle-{number}", b"one", "a", 0)
    memory.passes("busy", b"one", "a", 3_000)
    found = []
    for now in (4_000, 4_999, 5_000, 6_000):
        memory.passes("busy", b"%d" % now, "a", now)
        found.append(len(memory._by_key))
    assert found == [2, 2, 1, 1]


def test_everything_that_is_remembered_is_handed_to_the_next_start() -> None:
    """Both generations of each key, and what was restored and not used since; a copy, which nothing changes."""
    memory = ReplayMemory("address", 1_000, 100)
    memory.restore({key_mark("before"): {b"one": "a"}}, 0)
    memory.restore({key_mark("before"): {b"two": "b"}, key_mark("k"): {b"three": "c"}}, 0)
    memory.passes("k", b"four", "d", 500)
    memory.passes("k", b"five", "e", 1_500)
    assert memory.uses() == {
        key_mark("before"): {b"one": "a", b"two": "b"},
        key_mark("k"): {b"four": "d", b"five": "e"},
    }
    assert len(memory) == 4
    memory.uses()[key_mark("before")].clear()
    assert len(memory) == 4


def test_what_was_restored_is_dropped_after_two_windows() -> None:
    """By the steady clock if there is one, when a key begins; until then it binds, and other keys are new."""
    for leap, steady in ((0, False), (0, True), (3_600_000, True)):
        clocks = Clocks()
        memory = ReplayMemory("address", 1_000, 100, (lambda kept=clocks: kept.steady_ms) if steady else None)
        memory.restore({key_mark(name): {b"one": "a"} for name in ("k", "other")}, clocks.now_ms)
        clocks.now_ms += leap
        clocks.go_on(2_000)
        assert not memory.passes("k", b"one", "b", clocks.now_ms)
        assert memory.passes("new", b"one", "b", clocks.now_ms)
        assert len(memory) == 3
        clocks.go_on(1)
        assert memory.passes("other", b"one", "b", clocks.now_ms)
        assert len(memory) == 3
        assert memory.uses().keys() == {key_mark("k"), key_mark("new"), key_mark("other")}


class Others:
    """What other processes know."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, str]] = []

    def first_use(self, mark: bytes, address: str) -> str | None:
        self.asked.append((mark, address))
        return {b"theirs": "a"}.get(mark)


def test_others_are_asked_once_for_what_is_new_here() -> None:
    """By the first 16 bytes of the signature; what is bound here or there passes from its address only."""
    memory, others = ReplayMemory("address", 1_000, 100), Others()
    memory.others = others
    long = bytes(range(32))
    for address, passes in [("a", True), ("a", True), ("b", False)]:
        assert memory.passes("k", long, address, 0) is passes
    assert others.asked == [(long[:MARK_BYTES], "a")]
    assert not memory.passes("k", long[:MARK_BYTES] + b"another end", "b", 0)
    for address, passes in [("a", True), ("b", False)]:
        assert memory.passes("k", b"theirs", address, 0) is passes
    assert not memory.passes("k", b"theirs", "a", 0, strict=True)
