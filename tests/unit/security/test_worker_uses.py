"""Workers of one machine remember signatures together: none passes on two of them from two addresses."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.security import worker_uses
from spotledger.security.replay import MARK_BYTES, ReplayMemory
from spotledger.security.worker_uses import WorkerUses

WINDOW_MS = 60_000


def mark(number: int) -> bytes:
    return number.to_bytes(MARK_BYTES, "big")


def views(workers: int, ring_records: int = 64) -> list[WorkerUses]:
    """Return what each worker has after the fork: the same rings, and a memory of its own."""
    made = WorkerUses(workers, ring_records)
    found = []
    for number in range(workers):
        view = WorkerUses(workers, ring_records)
        view._rings, view._counters = made._rings, made._counters
        view.start_as(number)
        view.connect(lambda: None)
        found.append(view)
    return found


def memories(workers: int, mode: str = "address") -> list[ReplayMemory]:
    """Return the memories of workers that share what they admit."""
    found = []
    for view in views(workers):
        memory = ReplayMemory("strict" if mode == "strict" else "address", WINDOW_MS, 1_000)
        memory.others = view
        found.append(memory)
    return found


def test_signature_is_bound_on_every_worker() -> None:
    """What one worker admitted from an address passes on the others from there, and from nowhere else."""
    one, two, three = memories(3)
    assert one.passes("k", mark(1), "2001:db8:1:2::/64", 0)
    for memory in (two, three, one):
        assert not memory.passes("k", mark(1), "192.0.2.7", 1)
        assert memory.passes("k", mark(1), "2001:db8:1:2::/64", 1)
        assert memory.passes("k", mark(1), "2001:db8:1:2::/64", 1)


def test_strict_signature_passes_on_one_worker_once() -> None:
    """With strict a signed request is accepted once by all workers together."""
    one, two = memories(2, "strict")
    assert one.passes("k", mark(1), "a", 0)
    assert not two.passes("k", mark(1), "a", 0)
    assert not one.passes("k", mark(1), "a", 0)


@given(uses=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.sampled_from("ab")), max_size=60))
@settings(max_examples=200, deadline=None)
def test_workers_agree_with_one_memory(uses: list[tuple[int, int, str]]) -> None:
    """Whatever workers requests come to, one after the other: the answers are those of a single memory."""
    several, single = memories(3), ReplayMemory("address", WINDOW_MS, 1_000)
    for worker, number, address in uses:
        expected = single.passes("k", mark(number), address, 0)
        assert several[worker].passes("k", mark(number), address, 0) == expected


def test_two_workers_at_the_same_moment_never_both_admit_from_two_addresses() -> None:
    """Each writes before it reads: if neither saw the other at first, the second look finds it."""
    one, two = views(2)
    writes = two._write

    def write_between(found: bytes, packed: bytes) -> None:
        # The other one comes in between our look and our write, with all that it does.
        two._write = writes  # type: ignore[method-assign]
        assert one.first_use(mark(7), "192.0.2.1") is None
        writes(found, packed)

    two._write = write_between  # type: ignore[method-assign]
    assert two.first_use(mark(7), "192.0.2.2") == ""


def test_signature_that_two_workers_saw_at_once_is_bound_to_nobody() -> None:
    """A third worker never takes the word of the second one, whose use was refused."""
    one, two, three = views(3)
    assert one.first_use(mark(7), "192.0.2.1") is None
    two._write(mark(7), b"192.0.2.2".ljust(24, b"\0"))
    for address in ("192.0.2.1", "192.0.2.2"):
        assert three.first_use(mark(7), address) == ""


@pytest.mark.parametrize("written", range(1, 40))
def test_ring_is_read_whole_wherever_it_begins_again(written: int) -> None:
    """Reading at any pace, over the end of the ring too, misses nothing."""
    one, two = views(2, ring_records=8)
    for start in range(0, written, 5):
        for number in range(start, min(start + 5, written)):
            assert one.first_use(mark(number), "a") is None
        two.collect()
    assert two.missed == 0
    assert set(two._younger) == {mark(number) for number in range(written)}


def test_worker_that_missed_records_says_so_and_refuses() -> None:
    """A ring that was written over while a worker was stopped is not taken for complete."""
    said: list[str] = []
    one, two = views(2, ring_records=8)
    two.connect(lambda: said.append("missed"))
    for number in range(7):
        assert one.first_use(mark(number), "a") is None
    assert two.first_use(mark(0), "a") == "a"
    assert said == []
    for number in range(7, 30):
        assert one.first_use(mark(number), "a") is None
    assert two.first_use(mark(8), "b") == ""
    assert said == ["missed"]
    assert two.first_use(mark(29), "b") == ""
    assert two.first_use(mark(29), "a") == "a"


@pytest.mark.parametrize(("written", "missed"), [(7, 0), (8, 1), (9, 1)])
def test_full_ring_is_not_taken_for_complete(written: int, missed: int) -> None:
    """Its owner may be writing the next record in the place of the oldest one."""
    one, two = views(2, ring_records=8)
    for number in range(written):
        one.first_use(mark(number), "a")
    two.collect()
    assert two.missed == missed


def test_worker_that_is_stopped_while_it_reads_says_what_it_missed() -> None:
    """However little there was to read: meanwhile the ring was written over."""
    one, two = views(2, ring_records=8)
    collects = two._collect_from
    for number in range(3):
        one.first_use(mark(number), "a")

    def stop_before(*asked: int) -> None:
        two._collect_from = collects  # type: ignore[method-assign]
        for number in range(3, 10):
            one.first_use(mark(number), "a")
        collects(*asked)

    two._collect_from = stop_before  # type: ignore[method-assign]
    assert two.first_use(mark(0), "b") == ""
    assert two.missed > 0


def test_worker_that_missed_records_of_one_ring_says_so_whatever_the_others_have() -> None:
    """Once for all rings that it reads at a time; the next time counts again."""
    one, two, three = views(3, ring_records=8)
    for times in (1, 2):
        for number in range(20):
            one.first_use(mark(100 * times + number), "a")
        two.first_use(mark(100 * times + 99), "a")
        three.collect()
        assert three.missed == times


def test_worker_does_not_read_its_own_ring() -> None:
    """It remembers by itself what it admitted, so it misses nothing when its own ring begins again."""
    one, two = views(2, ring_records=8)
    for number in range(20):
        one.first_use(mark(number), "a")
    two.first_use(mark(99), "b")
    one.collect()
    assert (one.missed, set(one._younger)) == (0, {mark(99)})


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_worker_goes_on_where_the_one_before_it_ended(number: int) -> None:
    """By its own counter; the records of the others are where they were."""
    found = views(3)
    for one in range(3):
        found[number].first_use(mark(one), "a")
    again = WorkerUses(3, 64)
    again._rings, again._counters = found[0]._rings, found[0]._counters
    again.start_as(number)
    again.connect(lambda: None)
    assert again.missed == 1
    assert again.first_use(mark(10), "b") is None
    other = found[(number + 1) % 3]
    other.collect()
    assert other._younger.keys() == {mark(0), mark(1), mark(2), mark(10)}
    fresh = WorkerUses(3, 64)
    fresh._rings, fresh._counters = found[0]._rings, found[0]._counters
    fresh.start_as((number + 1) % 3)
    fresh.connect(lambda: None)
    assert fresh.missed == 0


def test_worker_in_the_place_of_one_that_ended_says_that_it_does_not_remember() -> None:
    """The memory of a worker that was killed is lost, so its successor refuses what that may have admitted."""
    said: list[str] = []
    one, two = views(2)
    assert one.first_use(mark(1), "a") is None
    again = WorkerUses(2, 64)
    again._rings, again._counters = one._rings, one._counters
    again.start_as(0)
    again.connect(lambda: said.append("missed"))
    assert said == ["missed"]
    assert two.first_use(mark(1), "b") == ""


def test_other_uses_are_dropped_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is out of the window takes no room; what is in it is dropped for want of room only with a word."""
    said: list[str] = []
    one, two = views(2)
    two.connect(lambda: said.append("missed"))
    assert one.first_use(mark(1), "a") is None
    two.collect()
    two._rotate(100_000, WINDOW_MS)
    assert two.first_use(mark(1), "b") == ""
    two._rotate(100_000 + WINDOW_MS, WINDOW_MS)
    two._rotate(100_000 + 2 * WINDOW_MS, WINDOW_MS)
    assert len(two._younger) + len(two._older) == 0
    assert said == []
    monkeypatch.setattr(worker_uses, "GENERATION_LIMIT", 10)
    for number in range(100, 130):
        assert one.first_use(mark(number), "a") is None
        two.collect()
        two._rotate(300_000, WINDOW_MS)
    assert len(two._younger) + len(two._older) <= 20
    assert said


def test_forked_workers_admit_each_signature_once() -> None:
    """Real processes that race for the same signatures from two addresses: each is admitted from at most one."""
    made, pipes, pids = WorkerUses(3, 4_096), [], []
    begin_s = time.monotonic() + 1.0
    for number in range(3):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            made.start_as(number)
            made.connect(lambda: None)
            while time.monotonic() < begin_s:
                pass
            admitted = bytes(made.first_use(mark(one), f"192.0.2.{number}") is None for one in range(1_000))
            os.write(write, admitted)
            os._exit(0)
        os.close(write)
        pipes.append(read)
        pids.append(pid)
    try:
        admitted = []
        for read in pipes:
            content = b""
            while piece := os.read(read, 4_096):
                content += piece
            admitted.append(content)
        assert [len(found) for found in admitted] == [1_000] * 3
        assert all(sum(found[one] for found in admitted) <= 1 for one in range(1_000))
        assert sum(map(sum, admitted)) > 0
    finally:
        for pid, read in zip(pids, pipes, strict=True):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(read)


def test_collecting_goes_on_by_itself() -> None:
    """A worker that is asked nothing reads the rings all the same, and drops what is out of the window."""
    one, two = views(2)
    clock = [1_000_000]

    async def run() -> None:
        collecting = asyncio.create_task(two.keep_collecting(lambda: clock[0], WINDOW_MS))

        async def become(condition: Callable[[], bool]) -> None:
            async with asyncio.timeout(20):
                while not condition():
                    assert not collecting.done()
                    await asyncio.sleep(0.01)

        for number in range(3):
            assert one.first_use(mark(number), "a") is None
            await become(lambda number=number: mark(number) in {**two._older, **two._younger})
        clock[0] += WINDOW_MS - 1
        one.first_use(mark(3), "a")
        await become(lambda: mark(3) in two._younger)
        assert mark(0) in two._older
        clock[0] += WINDOW_MS
        await become(lambda: mark(0) not in two._older and not two._younger)
        assert two.first_use(mark(3), "b") == ""
        collecting.cancel()
        await asyncio.gather(collecting, return_exceptions=True)

    asyncio.run(run())


def test_generation_ends_with_its_window_and_not_before() -> None:
    """To the millisecond; nothing that was dropped then was missed."""
    one, two = views(2)
    two._rotate(100_000, WINDOW_MS)
    one.first_use(mark(1), "a")
    two.collect()
    for now_ms in (100_001, 100_000 + WINDOW_MS - 1):
        two._rotate(now_ms, WINDOW_MS)
        assert (len(two._younger), len(two._older)) == (1, 0)
    two._rotate(100_000 + WINDOW_MS, WINDOW_MS)
    assert (len(two._younger), len(two._older)) == (0, 1)
    two._rotate(100_000 + 2 * WINDOW_MS - 1, WINDOW_MS)
    assert (len(two._younger), len(two._older)) == (0, 1)
    two._rotate(100_000 + 2 * WINDOW_MS, WINDOW_MS)
    assert (len(two._younger), len(two._older)) == (0, 0)
    assert two.missed == 0


def test_first_generation_begins_with_the_clock() -> None:
    """It is a window long like any other."""
    one, two = views(2)
    one.first_use(mark(1), "a")
    two.collect()
    for now_ms, older in ((WINDOW_MS - 1, 0), (WINDOW_MS, 1)):
        two._rotate(now_ms, WINDOW_MS)
        assert len(two._older) == older


def test_full_generation_ends_before_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to go for it is missed, each time; a generation that is empty is not."""
    monkeypatch.setattr(worker_uses, "GENERATION_LIMIT", 3)
    said: list[str] = []
    one, two = views(2)
    two.connect(lambda: said.append("missed"))
    two._rotate(100_000, WINDOW_MS)
    found = []
    for number in range(9):
        one.first_use(mark(number), "a")
        two.collect()
        two._rotate(100_001, WINDOW_MS)
        found.append((len(two._older), len(two._younger), two.missed))
    assert found == [(0, 1, 0), (0, 2, 0), (3, 0, 0), (3, 1, 0), (3, 2, 0), (3, 0, 1), (3, 1, 1), (3, 2, 1), (3, 0, 2)]
    assert said == ["missed"] * 2
