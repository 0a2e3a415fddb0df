"""Limits on requests: windows, and the locks that follow them."""

from __future__ import annotations

from hypothesis import given, settings, strategies as st

from spotledger.security.limits import Locks, WindowLimit, whole_seconds


def test_window_lets_through_its_limit_and_then_locks() -> None:
    """What is left counts down; the first request too many locks, and asking on does not make the lock longer."""
    limit = WindowLimit("x", 3, 1_000, Locks(10_000))
    assert [limit.hit("a", now) for now in (0, 1, 2)] == [2, 1, 0]
    assert limit.hit("a", 3) == -10_000
    assert [limit.hit("a", now) for now in (5_003, 10_002)] == [-5_000, -1]
    assert limit.hit("a", 10_003) == 2
    assert limit.hit("b", 5) == 2


def test_lock_of_zero_seconds_refuses_until_the_window_ends() -> None:
    """Without a lock, who is over the limit waits for the end of his window."""
    limit = WindowLimit("x", 1, 1_000, Locks(0))
    assert [limit.hit("a", now) for now in (0, 400, 999, 1_000)] == [0, -600, -1, 0]


def test_locks_are_shared_by_limits_and_hold_where_a_limit_is_off() -> None:
    """Two limits over the same locks refuse together, even if one of them counts nothing."""
    locks = Locks(5_000)
    one, off = WindowLimit("one", 1, 1_000, locks), WindowLimit("off", 0, 1_000, locks)
    assert [off.hit("a", 0) for _ in range(5)] == [0] * 5
    assert [one.hit("a", 0), one.hit("a", 0), off.hit("a", 1)] == [0, -5_000, -4_999]


def test_clock_set_back_locks_nobody_for_longer() -> None:
    """If the clock is set back by a day, windows begin anew and locks end."""
    limit = WindowLimit("x", 1, 1_000, Locks(5_000))
    day = 86_400_000
    assert [limit.hit("a", day), limit.hit("a", day), limit.hit("a", 0)] == [0, -5_000, 0]
    assert [limit.hit("b", day), limit.hit("b", 0)] == [0, 0]


def test_strangers_push_nobody_out_of_a_lock() -> None:
    """A flood of other names fills the windows' memory, which is bounded, and leaves the locks as they are."""
    limit = WindowLimit("x", 1, 1_000, Locks(60_000), generation_limit=100)
    limit.hit("locked", 0)
    assert limit.hit("locked", 0) < 0
    for number in range(10_000):
        limit.hit(f"stranger-{number}", 1)
    assert limit.hit("locked", 2) < 0
    assert len(limit._windows) <= 200


def test_headers_tell_what_is_left() -> None:
    """The headers say limit, window, what is left and when it is whole again; none where the limit is off."""
    limit = WindowLimit("assets", 3, 60_000, Locks(10_000))
    assert limit.headers("a", 0) == [("ratelimit-policy", '"assets";q=3;w=60'), ("ratelimit", '"assets";r=3;t=60')]
    limit.hit("a", 0)
    assert limit.headers("a", 1_500)[1] == ("ratelimit", '"assets";r=2;t=59')
    for _ in range(3):
        limit.hit("a", 2_000)
    assert limit.headers("a", 2_001)[1] == ("ratelimit", '"assets";r=0;t=10')
    assert WindowLimit("off", 0, 1_000, Locks(1)).headers("a", 0) == []
    assert [whole_seconds(ms) for ms in (0, 1, 1_000, 1_001)] == [1, 1, 1, 2]


@given(
    steps=st.lists(st.tuples(st.integers(0, 700), st.sampled_from("ab")), max_size=60),
    limit=st.integers(1, 4),
    lock_ms=st.sampled_from([0, 400, 1_500]),
)
@settings(max_examples=300)
def test_window_agrees_with_a_simple_model(steps: list[tuple[int, str]], limit: int, lock_ms: int) -> None:
    """Against ten lines that say the same: who passes, and for how long the others are to wait."""
    real = WindowLimit("x", limit, 1_000, Locks(lock_ms))
    begun: dict[str, int] = {}
    count: dict[str, int] = {}
    locked: dict[str, int] = {}
    now = 0
    for step, who in steps:
        now += step
        if now < locked.get(who, 0):
            expected = now - locked[who]
        else:
            if who not in begun or now - begun[who] >= 1_000 or who in locked:
                begun[who], count[who] = now, 0
                locked.pop(who, None)
            count[who] += 1
            expected = limit - count[who]
            if expected < 0:
                expected = -lock_ms or now - begun[who] - 1_000
                if lock_ms:
                    locked[who] = now + lock_ms
        assert real.hit(who, now) == expected
