"""Answers that clients do not read: who leaves most unread loses connections, and nobody else."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, strategies as st

from spotledger.http.h1.unread import UnreadAnswers


@dataclass(eq=False)
class Waiting:
    """A connection that notes whether it was closed."""

    address: bytes | None
    aborted: list[Waiting] = field(default_factory=list, repr=False)

    def abort(self) -> None:
        self.aborted.append(self)


def test_unread_up_to_the_limit_closes_nobody() -> None:
    """The limit itself may be left unread, by one client or by several."""
    aborted: list[Waiting] = []
    unread = UnreadAnswers(100)
    for address in (b"a", b"b", None):
        unread.add(Waiting(address, aborted), 30)
    unread.add(Waiting(b"c", aborted), 10)
    assert (unread.total_bytes, aborted) == (100, [])


def test_unread_beyond_the_limit_closes_the_oldest_of_the_address_with_most() -> None:
    """A client that came first and leaves little unread is not the one that pays."""
    aborted: list[Waiting] = []
    honest, first, second, third = (Waiting(address, aborted) for address in (b"h", b"x", b"x", b"x"))
    unread = UnreadAnswers(100)
    unread.add(honest, 35)
    unread.add(first, 30)
    unread.add(second, 30)
    unread.add(third, 30)
    assert (aborted, unread.total_bytes) == ([first], 95)
    unread.remove(second)
    assert unread.total_bytes == 65


def test_unread_that_was_read_is_not_held_against_its_address() -> None:
    """Of an address with two connections only what the other one leaves unread counts."""
    aborted: list[Waiting] = []
    first, second, most = (Waiting(address, aborted) for address in (b"x", b"x", b"y"))
    unread = UnreadAnswers(200)
    for connection, unread_bytes in ((first, 60), (second, 10), (most, 50)):
        unread.add(connection, unread_bytes)
    unread.remove(first)
    for address in (b"1", b"2", b"3", b"4"):
        unread.add(Waiting(address, aborted), 45)
    assert (aborted, unread.total_bytes) == ([most], 190)


def test_unread_of_trusted_proxies_counts_by_connection() -> None:
    """Two connections of proxies are not taken for one client."""
    aborted: list[Waiting] = []
    of_proxies = [Waiting(None, aborted) for _ in range(3)]
    client = Waiting(b"x", aborted)
    unread = UnreadAnswers(100)
    for connection in of_proxies:
        unread.add(connection, 30)
    unread.add(client, 40)
    assert aborted == [client]


def test_unread_answer_longer_than_the_limit_is_dropped() -> None:
    """One connection that leaves more unread than all may is closed itself."""
    aborted: list[Waiting] = []
    unread = UnreadAnswers(100)
    huge = Waiting(b"x", aborted)
    unread.add(huge, 101)
    assert (aborted, unread.total_bytes) == ([huge], 0)
    unread.remove(huge)
    assert unread.total_bytes == 0


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", None]), st.integers(0, 60), st.booleans()), max_size=30))
def test_unread_total_is_that_of_the_connections_that_wait(steps: list[tuple[bytes | None, int, bool]]) -> None:
    """Whatever waits, is read or is closed: the total is the sum over those that wait, and never above the limit."""
    aborted: list[Waiting] = []
    waiting: dict[Waiting, int] = {}
    unread = UnreadAnswers(100)
    for address, unread_bytes, is_read in steps:
        connection = Waiting(address, aborted)
        waiting[connection] = unread_bytes
        unread.add(connection, unread_bytes)
        for closed in aborted:
            waiting.pop(closed, None)
        if is_read and waiting:
            read = next(iter(waiting))
            del waiting[read]
            unread.remove(read)
        assert unread.total_bytes == sum(waiting.values()) <= 100


@pytest.mark.parametrize("limit_bytes", [0, 1])
def test_unread_nothing_is_within_every_limit(limit_bytes: int) -> None:
    """A connection whose buffer was emptied meanwhile is not closed."""
    aborted: list[Waiting] = []
    UnreadAnswers(limit_bytes).add(Waiting(b"x", aborted), 0)
    assert aborted == []
