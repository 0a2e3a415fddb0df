"""What a group is decided on before the lock: the time of the server, and memory that says what it lacks."""

from __future__ import annotations

import threading

import pytest

from spotledger.domain.accounts import Account, Coin
from spotledger.domain.positions import Epochs
from spotledger.storage.base import Head, StaleDecision, Wanted
from spotledger.storage.postgres.ahead import books
from spotledger.storage.postgres.ahead.books import BooksAhead, ClockReading, can_know
from spotledger.storage.postgres.following.head_cache import HeadCache

SEALED = Head(70_000, b"h" * 32, 5)


@pytest.fixture
def memory() -> HeadCache:
    """Give a memory with one account and one customer."""
    memory = HeadCache(SEALED, [Coin("btc", 8)], Epochs(), segment_entries=65_536, cache_accounts=4)
    memory.take_accounts({Account("ann", "spot"): (0, {})})
    memory.take_customers(["ann"])
    return memory


def books_of(memory: HeadCache, end_seq: int = SEALED.seq) -> BooksAhead:
    """Return books at the entry *end_seq*, of which those after the head are of the group under way."""
    end = Head(end_seq, b"e" * 32, 6)
    return BooksAhead(memory, threading.RLock(), end=end, since_seq=SEALED.seq, time_ms=7, due_ms=8)


def wanted(**parts: object) -> Wanted:
    """Return what a group wants, with nothing but *parts* and a key."""
    return Wanted(("k",), (), (), (), ())._replace(**parts)


@pytest.mark.parametrize(("passed_s", "expected"), [(0.0, 1_000), (1.0, 1_999), (9.0, 9_991)])
def test_time_of_a_reading_goes_on_a_little_slower_than_the_steady_clock(
    monkeypatch: pytest.MonkeyPatch, passed_s: float, expected: int
) -> None:
    """It lies in the past of the server, and says by how much it may."""
    monkeypatch.setattr(books, "steady_s", lambda: 100.25 + passed_s)
    now = ClockReading(1_000, 100.0, 100.25).now()
    assert now is not None
    assert now.now_ms == expected
    assert 250 < now.spread_ms <= 261


@pytest.mark.parametrize("passed_s", [-0.001, 10.5])
def test_reading_that_is_old_or_of_another_boot_does_not_count(
    monkeypatch: pytest.MonkeyPatch, passed_s: float
) -> None:
    """Then the group takes the lock first, and reads the clock with it."""
    monkeypatch.setattr(books, "steady_s", lambda: 100.25 + passed_s)
    assert ClockReading(1_000, 100.0, 100.25).now() is None


def test_what_memory_lacks_is_said_and_not_asked_for(memory: HeadCache) -> None:
    """An absence in memory means nothing, so the group has to be decided again."""
    kept = books_of(memory)
    kept.load(["ann"], [Account("ann", "spot")], [])
    for lacking in (
        lambda: kept.load(["bob"], [], []),
        lambda: kept.load([], [Account("ann", "fiat")], []),
        lambda: kept.load([], [], [69_999]),
        lambda: kept.entry(3),
        lambda: kept.reversal_of(3),
    ):
        with pytest.raises(StaleDecision):
            lacking()


def test_hold_of_the_group_under_way_is_left_to_that_group(memory: HeadCache) -> None:
    """Its entries are not in memory; what is beyond them is nobody's."""
    kept = books_of(memory, SEALED.seq + 2)
    assert kept.hold(SEALED.seq + 1) is None
    assert kept.hold(SEALED.seq + 2) is None
    with pytest.raises(StaleDecision):
        kept.hold(SEALED.seq + 3)


def test_hold_of_a_group_that_is_visible_is_not_taken_for_absent(memory: HeadCache) -> None:
    """Memory may have let go of it by now, with its segment."""
    kept = books_of(memory, SEALED.seq + 2)
    memory.head = kept.end
    with pytest.raises(StaleDecision):
        kept.hold(SEALED.seq + 1)


def test_keys_that_are_taken_for_new_are_in_the_question(memory: HeadCache) -> None:
    """So are the head, the time, and what is due."""
    kept = books_of(memory)
    assert kept.find_keys(["a", "b"]) == {}
    _, (seq, link, time, due, *_, since, digests) = kept.stands()
    assert (seq, link, time, due, since) == (b"70000", b"\\x" + b"65" * 32, b"7", b"8", b"70000")
    assert digests is not None
    assert len(digests) == 20 + 2 * 20


def test_memory_can_know_what_is_wanted_unless_an_entry_or_an_old_key_is(memory: HeadCache) -> None:
    """A hold that is named by a key of the group itself is opened by it."""
    assert can_know(memory, wanted(), [])
    assert can_know(memory, wanted(hold_keys=("k",)), [])
    assert not can_know(memory, wanted(hold_keys=("old",)), [])
    assert not can_know(memory, wanted(entries=(3,)), [])
    assert not can_know(memory, wanted(keys=()), [])
    memory.is_whole = False
    assert not can_know(memory, wanted(), [])
