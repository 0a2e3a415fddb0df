"""Limits on requests: windows, and the locks that follow them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.security.limits import Lock, Locks, WindowLimit, whole_seconds


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
    assert limit.policy_line == 'ratelimit-policy: "assets";q=3;w=60\r\n'
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


def test_lock_is_told_once_where_two_nodes_see_the_same_one() -> None:
    """A lock that ends at about the same time, to a second, is the one before; shared and unshared ones differ."""
    told: list[tuple[str, Lock]] = []
    locks = Locks(60_000)
    locks.on_lock = lambda who, lock: told.append((who, lock))
    steps = [(10_000, True), (11_000, False), (10_000, False), (11_001, True), (10_000, True)]
    for until_ms, is_told in steps:
        told.clear()
        locks.begin("a", Lock(until_ms, "x"))
        assert told == ([("a", Lock(until_ms, "x"))] if is_told else [])
    for is_told in (True, False):
        told.clear()
        locks.begin("a", Lock(10_000, "x", is_shared=True))
        assert bool(told) is is_told
    assert locks.remaining_ms("a", 0) == 10_000


def test_lock_names_the_limit_that_was_exceeded() -> None:
    """Each lock carries the name of that limit; where locks are off, none begins."""
    told: list[tuple[str, Lock]] = []
    for lock_ms in (0, 1, 5_000):
        locks = Locks(lock_ms)
        locks.on_lock = lambda who, lock: told.append((who, lock))
        limit = WindowLimit("assets", 1, 1_000, locks)
        assert limit.hit("a", 100) == 0
        assert limit.hit("a", 100) < 0
        locks.lock("b", 100, "other")
    assert told == [
        ("a", Lock(101, "assets", is_shared=False)),
        ("b", Lock(101, "other", is_shared=False)),
        ("a", Lock(5_100, "assets", is_shared=False)),
        ("b", Lock(5_100, "other", is_shared=False)),
    ]


def test_lock_that_is_lifted_ends_at_once() -> None:
    """Those of others stay, and who is not locked may be unlocked all the same."""
    locks = Locks(5_000)
    for who in ("a", "b"):
        locks.lock(who, 0, "x")
    locks.lift("a")
    locks.lift("nobody")
    assert [locks.remaining_ms(who, 1) for who in ("a", "b", "nobody")] == [0, 4_999, 0]


def test_lock_that_was_lifted_elsewhere_ends_and_says_so() -> None:
    """Of the one that is named, and of no other; also if it was not known here."""
    locks = Locks(5_000)
    ended: list[str] = []
    locks.on_end = ended.append
    for who in ("a", "b"):
        locks.lock(who, 0, "x")
    for who in ("a", "c"):
        locks.end(who)
    Locks(5_000).end("a")
    assert [locks.remaining_ms(who, 1) for who in ("a", "b")] == [0, 4_999]
    assert ended == ["a", "c"]


def test_all_locks_are_listed_until_their_end_was_noticed() -> None:
    """However old they are; one whose end was noticed takes no room any more."""
    locks = Locks(5_000, generation_limit=2)
    for number in range(3):
        locks.lock(f"a{number}", number, "x")
    assert sorted(locks.all()) == [(f"a{number}", Lock(5_000 + number, "x")) for number in range(3)]
    assert [locks.remaining_ms("a0", now) for now in (1, 4_999, 5_000)] == [4_999, 1, 0]
    assert sorted(who for who, _ in locks.all()) == ["a1", "a2"]
    assert [locks.remaining_ms("a1", now) for now in (1, 0, 1)] == [5_000, 0, 0]


def test_count_of_all_nodes_is_taken_over() -> None:
    """What is left and when the window ends are those of the shared counter; the next requests count from there."""
    limit = WindowLimit("assets", 3, 60_000, Locks(10_000))
    limit.follow("a", 1, 400, 100_000)
    assert limit.headers("a", 100_000)[1] == ("ratelimit", '"assets";r=1;t=1')
    assert limit.hit("a", 100_399) == 0
    assert limit.hit("a", 100_400) == 2
    limit.follow("b", 0, 400, 100_000)
    assert limit.headers("b", 100_000)[1] == ("ratelimit", '"assets";r=0;t=1')
    assert list(limit.locks.all()) == []
    assert limit.hit("b", 100_000) == -10_000


def test_lock_of_all_nodes_is_taken_over() -> None:
    """It ends when it does elsewhere, and a window begins anew after it."""
    limit = WindowLimit("assets", 3, 60_000, Locks(10_000))
    for _ in range(3):
        limit.hit("a", 100_000)
    limit.follow("a", -1, 7_000, 100_000)
    assert list(limit.locks.all()) == [("a", Lock(107_000, "assets", is_shared=True))]
    assert limit.hit("a", 106_999) == -1
    assert limit.hit("a", 107_000) == 2


@pytest.mark.parametrize("left", [-1, -7])
def test_limit_without_locks_is_exceeded_until_the_shared_window_ends(left: int) -> None:
    """Nobody is locked, and everybody waits for the end of the window."""
    limit = WindowLimit("assets", 3, 60_000, Locks(0))
    limit.follow("a", left, 400, 100_000)
    assert list(limit.locks.all()) == []
    assert limit.headers("a", 100_000)[1] == ("ratelimit", '"assets";r=0;t=1')
    assert [limit.hit("a", now) for now in (100_000, 100_399, 100_400)] == [-400, -1, 2]


def test_shared_lock_of_a_millisecond_is_a_lock() -> None:
    """The shortest lock counts as one."""
    limit = WindowLimit("assets", 3, 60_000, Locks(1))
    limit.follow("a", -1, 1, 100_000)
    assert list(limit.locks.all()) == [("a", Lock(100_001, "assets", is_shared=True))]


def test_limit_that_is_off_takes_over_locks_and_no_counts() -> None:
    """It remembers nobody who is not locked."""
    limit = WindowLimit("off", 0, 60_000, Locks(5_000))
    limit.follow("a", 0, 400, 100_000)
    assert len(limit._windows) == 0
    limit.follow("a", -1, 400, 100_000)
    assert limit.hit("a", 100_000) == -400


def test_headers_follow_the_window_to_the_millisecond() -> None:
    """A window that has ended, or that begins later because the clock was set back, counts no more."""
    limit = WindowLimit("assets", 3, 60_000, Locks(0))
    for _ in range(5):
        limit.hit("over", 1_000)
    limit.hit("a", 1_000)
    told = {1_000: "r=2;t=60", 999: "r=3;t=60", 60_001: "r=2;t=1", 60_999: "r=2;t=1", 61_000: "r=3;t=60"}
    for now_ms, what in told.items():
        assert limit.headers("a", now_ms)[1] == ("ratelimit", f'"assets";{what}')
    assert limit.headers("over", 1_001)[1] == ("ratelimit", '"assets";r=0;t=60')
    limit.hit("later", 1_000_000)
    assert limit.headers("later", 1_030_000)[1] == ("ratelimit", '"assets";r=2;t=30')


def test_window_is_remembered_in_either_generation() -> None:
    """Strangers who come meanwhile do not begin it anew, as long as there is room for them."""
    limit = WindowLimit("x", 3, 1_000, Locks(0), generation_limit=2)
    assert limit.hit("a", 0) == 2
    for number in range(2):
        limit.hit(f"stranger-{number}", 1)
    assert "a" in limit._windows.older
    assert [limit.hit("a", now) for now in (2, 3, 4)] == [1, 0, -996]
