"""The memory of used signatures: once, or from one address only, for at least a window."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from spotledger.security.replay import ReplayMemory


def test_replay_memory_forgets_by_time_without_counting() -> None:
    """A signature is remembered for a window at least and two at most; what is dead is not counted as forgotten."""
    memory = ReplayMemory("address", 1_000, 1_000_000)
    assert memory.passes(b"one", "a", 0)
    assert not memory.passes(b"one", "b", 1_000)
    assert memory.passes(b"one", "a", 1_999)
    assert memory.passes(b"two", "a", 2_000)
    assert memory.passes(b"three", "a", 3_000)
    assert memory.passes(b"one", "b", 3_000)
    assert (memory.forgotten, len(memory)) == (0, 3)


def test_replay_memory_forgets_the_oldest_when_full() -> None:
    """At most its capacity is held; what had to go is counted, and the newer half always stays."""
    memory = ReplayMemory("address", 1_000, 100)
    for number in range(1_000):
        assert memory.passes(b"%d" % number, "a", 5_000)
        assert len(memory) <= 100
    assert memory.forgotten >= 900
    assert not any(memory.passes(b"%d" % number, "b", 5_000) for number in range(960, 1_000))


def test_replay_of_a_call_that_changes_something_is_strict_in_every_mode() -> None:
    """Even with replay off, a signature is good once for a call that changes something."""
    for mode in ("off", "address", "strict"):
        memory = ReplayMemory(mode, 1_000, 100)
        assert memory.passes(b"s", "a", 0, strict=True)
        assert not memory.passes(b"s", "a", 0, strict=True)


@given(
    uses=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 5), st.sampled_from("ab")), max_size=80),
)
@settings(max_examples=300)
def test_replay_memory_binds_for_at_least_a_window(uses: list[tuple[int, int, str]]) -> None:
    """Within a window of its first use a signature passes from its first address and from no other."""
    memory = ReplayMemory("address", 1_000, 1_000)
    first: dict[int, tuple[int, str]] = {}
    now = 0
    for step, number, address in uses:
        now += step
        passed = memory.passes(b"%d" % number, address, now)
        begun, bound = first.get(number, (None, ""))
        if begun is not None and now - begun < 1_000:
            assert passed == (address == bound)
        elif passed and address != bound:
            first[number] = (now, address)
