"""What the connections of a listener share: who is counted, who is let in, and who makes room, one rule at a time."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from spotledger.http.h1 import state as state_module
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.h1.state import ListenerState, address_of, log_unexpected
from support_h1 import Echo


class Open:
    """A connection that notes whether it was closed."""

    def __init__(self, address: bytes | None, *, is_idle: bool = True, waits_since: float | None = 0.0) -> None:
        self.address = address
        self.is_counted = True
        self.is_idle = is_idle
        self.is_settled = is_idle
        self.waits_since = waits_since
        self.is_aborted = False

    def check_timeouts(self) -> None:
        """Do nothing."""

    def close_when_idle(self) -> None:
        """Do nothing."""

    def abort(self) -> None:
        """Note it."""
        self.is_aborted = True


class Clock:
    """The time of the process, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(state_module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let the time stand still."""
    return Clock(monkeypatch)


def made(**limits: object) -> ListenerState:
    """Return the state of a listener with these limits."""
    return ListenerState(Echo(), Limits(**limits))  # type: ignore[arg-type]


def let_in(state: ListenerState, host: str, **how: object) -> Open:
    """Let a connection of *host* in."""
    admitted = state.admit(host)
    assert admitted is not None
    connection = Open(admitted.address, **how)  # type: ignore[arg-type]
    state.connections.add(connection)
    return connection


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_address_is_read_without_its_zone_and_not_as_mapped(host: str, address: str) -> None:
    """An IPv4 client of an IPv6 socket is the same client."""
    assert str(address_of(host)) == address


def test_new_listener_has_no_connections() -> None:
    """It does not stop, and its answers have an end of the head without a date."""
    state = made()
    assert (state.open, state.connections, state.stopping, state.now, state.head_end) == (0, set(), False, 0, b"\r\n")


def test_connections_of_an_address_are_let_in_up_to_the_bound() -> None:
    """One that ends makes room for one; other addresses are not concerned."""
    state = made(connections_per_address=2)
    first, second = let_in(state, "192.0.2.7"), let_in(state, "::ffff:192.0.2.7")
    assert (first.address, second.address) == (b"\xc0\x00\x02\x07",) * 2
    assert state.admit("192.0.2.7") is None
    let_in(state, "192.0.2.8")
    state.release(first)
    state.release(first)
    assert state.connections & {first} == set()
    let_in(state, "192.0.2.7")
    assert state.admit("192.0.2.7") is None
    assert state.open == 3


def test_addresses_of_ipv6_are_counted_by_their_network() -> None:
    """A client has a /64 of them."""
    state = made(connections_per_address=1)
    assert let_in(state, "2001:db8::1").address == bytes.fromhex("20010db800000000")
    assert state.admit("2001:db8::ffff:0:0:2") is None
    let_in(state, "2001:db8:0:1::1")


def test_proxies_are_counted_in_all_only() -> None:
    """As many connections as all may have; who is no proxy is counted by address as well."""
    state = made(connections=4, connections_per_address=1, proxies=("192.0.2.0/30", "2001:db8::/64"))
    assert [let_in(state, host, waits_since=None).address for host in ("192.0.2.1", "192.0.2.1", "2001:db8::9")] == [
        None
    ] * 3
    let_in(state, "192.0.2.4", waits_since=None)
    assert state.admit("192.0.2.4") is None
    assert state.admit("192.0.2.1") is None
    assert state.open == 4


def test_nobody_is_closed_while_there_is_room(clock: Clock) -> None:
    """The last place is taken without closing anybody; the next connection closes one."""
    state = made(connections=2)
    first, second = let_in(state, "192.0.2.1", waits_since=5.0), let_in(state, "192.0.2.2", waits_since=4.0)
    assert not first.is_aborted
    let_in(state, "192.0.2.3")
    assert (first.is_aborted, second.is_aborted, state.open) == (False, True, 2)
    assert state.connections & {second} == set()


@pytest.mark.parametrize(
    ("connections", "closed"),
    [
        ([("a", True, 9.0), ("a", False, 1.0), ("b", True, 0.0)], 0),
        ([("a", False, 2.0), ("a", False, 1.0), ("b", True, 0.0)], 1),
        ([("a", True, 2.0), ("a", True, None), ("b", True, 0.0)], 0),
        ([("a", True, None), ("a", True, None), ("b", False, 3.0)], 2),
        ([("proxy", True, 0.0), ("proxy", True, 1.0), ("b", False, 3.0)], 2),
        ([("proxy", True, 1.0), ("proxy", True, 0.0), ("b", False, None)], 1),
        ([("x", True, None), ("proxy", True, 0.0), ("b", False, 3.0)], 2),
    ],
    ids=["idle first", "oldest first", "waits for its client", "other address", "proxies last", "proxies too", "text"],
)
def test_connection_that_makes_room_is_of_the_address_that_has_most(
    clock: Clock, connections: list[tuple[str, bool, float | None]], closed: int
) -> None:
    """Of these an idle one, and of those the one that has waited for longest."""
    hosts = {"a": "192.0.2.1", "b": "192.0.2.2", "x": "88.88.88.88", "proxy": "198.51.100.1"}
    state = made(connections=3, proxies=("198.51.100.0/24",))
    opened = [let_in(state, hosts[who], is_idle=is_idle, waits_since=since) for who, is_idle, since in connections]
    let_in(state, "192.0.2.3")
    assert [number for number, connection in enumerate(opened) if connection.is_aborted] == [closed]


def test_one_of_several_like_it_makes_room(clock: Clock) -> None:
    """Where nothing tells them apart, it does not matter which."""
    state = made(connections=3)
    opened = [let_in(state, "192.0.2.1") for _ in range(3)]
    let_in(state, "192.0.2.3")
    assert [connection.is_aborted for connection in opened].count(True) == 1


def test_one_in_a_hundred_makes_room_at_a_time(clock: Clock) -> None:
    """So that a crowd is not looked through for each connection."""
    state = made(connections=300)
    opened = [let_in(state, f"192.0.2.{number % 250}", waits_since=float(number)) for number in range(300)]
    let_in(state, "203.0.113.1")
    assert [number for number, connection in enumerate(opened) if connection.is_aborted] == [0, 1, 2]
    assert state.open == 298


def test_crowd_in_which_nobody_waits_is_looked_through_now_and_then(clock: Clock) -> None:
    """Twenty times a second; one that waits by then makes room."""
    state = made(connections=2)
    opened = [let_in(state, f"192.0.2.{number}", waits_since=None) for number in range(2)]
    assert state.admit("192.0.2.9") is None
    opened[1].waits_since = 1.0
    clock.now = 0.0499
    assert state.admit("192.0.2.9") is None
    assert not opened[1].is_aborted
    clock.now = 0.05
    assert state.admit("192.0.2.9") is not None
    assert opened[1].is_aborted
    opened[0].waits_since = 1.0
    assert state.admit("192.0.2.9") is not None
    clock.now = 1.0
    assert state.admit("192.0.2.9") is None
    clock.now = 1.0499
    assert state.admit("192.0.2.9") is None
    assert state.open == 2


def test_workers_know_how_many_connections_this_one_has() -> None:
    """After each that comes and each that goes."""
    noted: list[int] = []
    shares = ConnectionShares(2)
    shares.note = noted.append  # type: ignore[method-assign]
    state = ListenerState(Echo(), Limits(), shares)
    assert state.shares is shares
    first = let_in(state, "192.0.2.1")
    let_in(state, "192.0.2.2")
    state.release(first)
    state.release(first)
    assert noted == [1, 2, 1]


def test_connection_that_ends_leaves_nothing_unread() -> None:
    """What its client had not read counts no more; the bound on that is the listener's."""
    state = made(unread_total_bytes=100)
    first, second = let_in(state, "192.0.2.1"), let_in(state, "192.0.2.2")
    state.unread.add(first, 60)
    state.unread.add(second, 40)
    assert not first.is_aborted
    state.release(first)
    assert state.unread.total_bytes == 40
    state.unread.add(let_in(state, "192.0.2.1"), 61)
    assert state.unread.total_bytes == 40


def test_address_at_its_bound_is_named_in_the_log_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """With what to do about it, if it is a proxy."""
    state = made(connections_per_address=1)
    let_in(state, "192.0.2.1")
    let_in(state, "192.0.2.2")
    with caplog.at_level(logging.WARNING, "spotledger.http"):
        for now, host in ((5.0, "192.0.2.1"), (64.9, "192.0.2.2"), (65.0, "192.0.2.2"), (124.9, "192.0.2.1")):
            state.now = now
            assert state.admit(host) is None
    assert caplog.messages == [
        f"{host} has 1 connections and gets no more; a proxy in front belongs to trusted_proxies"
        for host in ("192.0.2.1", "192.0.2.2")
    ]


def test_unexpected_error_is_logged_with_its_places(caplog: pytest.LogCaptureFixture) -> None:
    """Its text is not: it may hold what was sent."""

    def fail(sent: str) -> None:
        raise ValueError(sent)

    with caplog.at_level(logging.ERROR, "spotledger.http"):
        try:
            fail("what was sent\nforged")
        except ValueError as error:
            log_unexpected(error)
    [message] = caplog.messages
    lines = message.splitlines()
    assert lines[0] == "an answer was cut off by an unexpected ValueError"
    assert [line.split(", ")[2] for line in lines[1:] if line.startswith("  File")] == [
        "in test_unexpected_error_is_logged_with_its_places",
        "in fail",
    ]
    assert message.count("\n") == 5
    assert "forged" not in message.replace('fail("what was sent\\nforged")', "")
