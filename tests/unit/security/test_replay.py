"""The memory of used signatures: once, or from one address only, for at least a window."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from spotledger.security.replay import ReplayMemory, key_mark


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
