"""Limits, replay memory, bounded dictionaries and addresses."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.errors import SettingInvalid
from spotledger.security.addresses import NO_ADDRESS, AddressResolver, parse_address
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.limits import Locks, WindowLimit, whole_seconds
from spotledger.security.replay import ReplayMemory


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


def test_bounded_dict_keeps_what_is_asked_for() -> None:
    """The size is bounded, what is asked for stays, and what is dropped is gone."""
    bounded: BoundedDict[int, str] = BoundedDict(10)
    bounded.put(-1, "kept")
    for number in range(1_000):
        bounded.put(number, "x")
        assert bounded.get(-1) == "kept"
        assert len(bounded) <= 20
    bounded.drop(-1)
    assert bounded.get(-1) is None
    bounded.clear()
    assert len(bounded) == 0
    with pytest.raises(ValueError):
        BoundedDict(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("::1", "::1"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", None),
        ("unknown", None),
        ("192.0.2.256", None),
        ("192.0.2.1/24", None),
        ("0300.0.2.1", None),
        ("١٩٢.0.2.1", None),
        ("192.0.2.1:port", None),
        ("[192.0.2.1", None),
    ],
)
def test_address_is_read_in_every_form_that_proxies_send(text: str, expected: str | None) -> None:
    """With and without port and brackets; IPv4 in IPv6 clothes is IPv4; anything else is no address."""
    address = parse_address(text)
    assert address == (None if expected is None else ipaddress.ip_address(expected))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1:5", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1:5", ["198.51.100.1, 203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1:5", ["198.51.100.1", "203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ("10.0.0.1:5", ["10.0.0.3,10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1:5", [], "10.0.0.1"),
        ("10.0.0.1:5", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1:5", ["203.0.113.1, nonsense, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1:5", ["203.0.113.1:99"], "203.0.113.1"),
        ("[::ffff:10.0.0.1]:5", ["[2001:db8::1]:99"], "2001:db8::1"),
        ("192.0.2.9:5", ["203.0.113.1"], "192.0.2.9"),
        ("", ["203.0.113.1"], str(NO_ADDRESS)),
    ],
)
def test_forwarded_address_is_the_right_most_stranger(peer: str, forwarded: list[str], expected: str) -> None:
    """Only what trusted proxies appended is believed, from the right, as far as it can be read."""
    resolver = AddressResolver(["10.0.0.0/8"])
    assert str(resolver.resolve(peer, lambda: forwarded)) == expected


def test_trusted_proxy_that_is_no_network_is_refused() -> None:
    """A setting that names no network is refused by its name."""
    with pytest.raises(SettingInvalid, match="trusted_proxies"):
        AddressResolver(["10.0.0.1/8"])
