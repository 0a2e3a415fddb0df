"""What the writer decides while the last group is synced: on top of it, invisible, and void if that group fails."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.accounts import Balance
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Transfer,
    Unfreeze,
)
from spotledger.errors import (
    AlreadyReversed,
    ChainFailed,
    ClockUntrusted,
    CoinAlreadyListed,
    HoldClosed,
    IdempotencyConflict,
    InsufficientAvailable,
    StoreUnavailable,
)
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from spotledger.ledger.writer import Writer
from spotledger.storage.sqlite.working_set import AccountState
from spotledger.storage.steps import drive
from support_books import check_books
from support_core import Clock, open_small, seed, spot

PATIENCE_SECONDS = 60
ONE = 10**8


@pytest.fixture
def clock() -> Clock:
    """Give a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """Give a seeded ledger of small segments and a small cache; its books are checked at the end."""
    with open_small(tmp_path, clock, cache_accounts=30) as opened:
        seed(opened)
        yield opened
    check_books(tmp_path)


class Disk:
    """Holds up the first commit until :meth:`go_on`; each of those in *failing*, counted from 1, fails."""

    def __init__(self, ledger: Any, failing: Sequence[int] = ()) -> None:
        self.commits = 0
        self._failing = failing
        self._reached = threading.Event()
        self._opened = threading.Event()
        ledger._store._write.set_exec_trace(self._seen)

    def _seen(self, _: Any, statement: str, __: Any) -> bool:
        if statement == "COMMIT":
            self.commits += 1
            self._reached.set()
            self._opened.wait(PATIENCE_SECONDS)
            if self.commits in self._failing:
                raise StoreUnavailable("the disk of the test failed")
        return True

    async def is_syncing(self) -> None:
        """Return once the first commit is under way."""
        assert await asyncio.to_thread(self._reached.wait, PATIENCE_SECONDS)

    def go_on(self) -> None:
        """Let it, and all later ones, come to their end."""
        self._opened.set()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    while not condition():
        await asyncio.sleep(0.001)


def asked(writer: Writer, *operations: Operation, **options: Any) -> asyncio.Task[list[Outcome]]:
    """Submit *operations* in a task."""
    return asyncio.ensure_future(writer.submit(operations, **options))


def overlapped(
    ledger: Ledger,
    first: Sequence[Operation],
    test: Callable[[Writer, Disk, asyncio.Task[list[Outcome]]], Awaitable[None]],
    failing: Sequence[int] = (),
    **options: Any,
) -> None:
    """Run *test* with a writer that is syncing the group of *first*; afterwards everything is written."""

    async def run() -> None:
        disk = Disk(ledger, failing)
        writer = Writer(ledger, **options)
        await writer.start()
        try:
            task = asked(writer, *first)
            await disk.is_syncing()
            await test(writer, disk, task)
        finally:
            disk.go_on()
            await writer.stop()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))


def seq_of(outcome: Outcome) -> int:
    """Return the entry of an operation that was booked now."""
    assert isinstance(outcome, Receipt)
    assert not outcome.replayed
    return outcome.seq


def test_next_group_is_decided_while_the_last_one_syncs_and_nobody_sees_it(ledger: Ledger) -> None:
    """It is taken off the queue at once; until its own commit it is not answered, and no read shows it."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        head = ledger.head
        second = asked(writer, Freeze("f", "ann", "btc", "1005"))
        third = asked(writer, Unfreeze("u", HoldKey("f"), "5"))
        await until(lambda: writer.waiting == 0)
        await asyncio.sleep(0.05)
        assert [task.done() for task in (first, second, third)] == [False] * 3
        assert ledger.head == head
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1000 * ONE, 0)
        assert ledger.holds("ann") == []
        disk.go_on()
        answers = [seq_of((await task)[0]) for task in (first, second, third)]
        assert answers == [head.seq + 1, head.seq + 2, head.seq + 3]
        assert disk.commits == 2
        assert ledger.account(spot("ann")).balances["btc"] == Balance(5 * ONE, 1000 * ONE)

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test)


def test_what_the_last_group_did_is_known_to_the_next(ledger: Ledger) -> None:
    """Its keys, holds, coins, customers, entries and reversals count before it is visible."""
    first = [
        ListCoin("l", "eth", 2),
        RegisterCustomer("r", "carol"),
        Deposit("d", "ann", "btc", "5"),
        Freeze("f", "ann", "btc", "1"),
    ]

    async def test(writer: Writer, disk: Disk, task: asyncio.Task[list[Outcome]]) -> None:
        seq = ledger.head.seq
        second = asked(
            writer,
            Deposit("d", "ann", "btc", "5.00"),
            Deposit("d", "ann", "btc", "6"),
            Deposit("c", "carol", "eth", "0.01"),
            Unfreeze("u", str(seq + 4), "0.5"),
            Reverse("v", seq + 3, "a mistake"),
            Reverse("w", seq + 3, "a mistake"),
        )
        third = asked(writer, Unfreeze("x", HoldKey("f"), None), Unfreeze("y", HoldKey("f"), None))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        repeat, conflict, new, unfreeze, reverse, again = await second
        assert isinstance(repeat, Receipt)
        assert (repeat.replayed, repeat.seq) == (True, seq + 3)
        assert isinstance(conflict, IdempotencyConflict)
        assert [seq_of(one) for one in (new, unfreeze, reverse)] == [seq + 5, seq + 6, seq + 7]
        assert isinstance(again, AlreadyReversed)
        rest, closed = await third
        assert seq_of(rest) == seq + 8
        assert isinstance(closed, HoldClosed)
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1000 * ONE, 0)
        assert disk.commits == 2

    overlapped(ledger, first, test)


def test_entry_that_the_last_group_reversed_is_not_reversed_again(ledger: Ledger) -> None:
    """The store does not know of the reversal yet, and yet the next group does."""
    target = ledger.deposit("ann", "btc", "2", key="target").seq

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        second = asked(writer, Reverse("again", target, "a mistake"))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        [refusal] = await second
        assert isinstance(refusal, AlreadyReversed)
        assert refusal.details["by"] == seq_of((await first)[0])

    overlapped(ledger, [Reverse("once", target, "a mistake")], test)


def test_group_lets_go_of_the_one_before_it_once_that_is_published(ledger: Ledger) -> None:
    """Else each group would keep all earlier ones in memory."""
    first = drive(ledger.deciding([Deposit("d", "ann", "btc", "5")]))
    before = weakref.ref(first._overlay)
    second = drive(ledger.deciding([Freeze("f", "ann", "btc", "1005")], after=first))
    drive(ledger.committing(first))
    ledger.finish(first)
    del first
    assert before() is None
    drive(ledger.committing(second))
    assert seq_of(ledger.finish(second)[0]) == ledger.head.seq


def test_failed_commit_takes_with_it_what_was_decided_on_top(ledger: Ledger) -> None:
    """Who was in the failed group is told so; who was decided on top is decided again, without it, and answered."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        head = ledger.head
        second = asked(writer, Transfer("t", "ann", "bob", "btc", "1005"), Deposit("e", "bob", "btc", "2"))
        third = asked(writer, Freeze("f", "bob", "btc", "1002"))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        with pytest.raises(StoreUnavailable):
            await first
        short, deposit = await second
        assert isinstance(short, InsufficientAvailable)
        assert (short.seq, seq_of(deposit), seq_of((await third)[0])) == (head.seq + 1, head.seq + 2, head.seq + 3)
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1000 * ONE, 0)
        again = await writer.submit([Deposit("d", "ann", "btc", "5")])
        assert seq_of(again[0]) == head.seq + 4

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test, failing=[1])


def test_commit_that_fails_after_one_that_passed_leaves_that_one(ledger: Ledger) -> None:
    """The second commit fails: the first group stays, the second is told, and the third is decided on the first."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        head = ledger.head
        second = asked(writer, Deposit("e", "ann", "btc", "7"))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        assert seq_of((await first)[0]) == head.seq + 1
        with pytest.raises(StoreUnavailable):
            await second
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1005 * ONE, 0)
        assert seq_of((await writer.submit([Freeze("f", "ann", "btc", "1005")]))[0]) == head.seq + 2

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test, failing=[2])


def test_chain_decided_ahead_is_all_or_nothing(ledger: Ledger) -> None:
    """Chains of requests that are decided ahead one after the other are kept apart, whatever they are called."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        good = asked(writer, Deposit("a", "ann", "btc", "1"), Freeze("b", "ann", "btc", "1006"), chains=["x", "x"])
        await until(lambda: writer.waiting == 0)
        bad = asked(writer, Unfreeze("c", HoldKey("b"), None), Freeze("g", "ann", "btc", "2000"), chains=["x", "x"])
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        await first
        assert all(isinstance(outcome, Receipt) for outcome in await good)
        refusals = await bad
        assert [type(outcome) for outcome in refusals] == [ChainFailed, InsufficientAvailable]
        assert ledger.account(spot("ann")).balances["btc"] == Balance(0, 1006 * ONE)

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test)


def test_hold_that_the_last_group_closed_does_not_expire_in_the_next(ledger: Ledger, clock: Clock) -> None:
    """The store still has it open and its time has come, and yet nothing is written about it."""
    ledger.freeze("ann", "btc", "3", key="h", expires_ms=clock.now_ms + 1_000)

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        head = ledger.head
        clock.now_ms += 2_000
        second = asked(writer, Deposit("e", "bob", "btc", "1"))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        assert seq_of((await first)[0]) == head.seq + 1
        assert seq_of((await second)[0]) == head.seq + 2
        assert [entry.kind for entry in ledger.entries(head.seq, 10)] == ["unfreeze", "deposit"]

    overlapped(ledger, [Unfreeze("u", HoldKey("h"), None)], test)


def test_more_than_a_group_holds_waits_for_the_next(ledger: Ledger) -> None:
    """What does not fit into the group that is decided ahead stays in the queue, and nothing turns in circles."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        tasks = [asked(writer, *(Deposit(f"{number}-{k}", "bob", "btc", "1") for k in range(3))) for number in range(4)]
        await until(lambda: writer.waiting == 9)
        await asyncio.sleep(0.02)
        assert writer.waiting == 9
        disk.go_on()
        await first
        seqs = [seq_of(outcome) for task in tasks for outcome in await task]
        assert seqs == sorted(seqs)
        assert disk.commits == 5

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test, group_limit=4)


def test_request_that_breaks_the_program_ahead_fails_alone(ledger: Ledger) -> None:
    """A request that cannot even be decided does not fail those with which it was decided ahead."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        poison: Any = object()
        tasks = [asked(writer, Deposit("a", "bob", "btc", "1")), asked(writer, poison)]
        tasks.append(asked(writer, Deposit("b", "bob", "btc", "1")))
        await asyncio.sleep(0.05)
        disk.go_on()
        answers = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, list, AttributeError, list]

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test)


@pytest.mark.parametrize("number", range(6))
def test_accounts_that_are_evicted_meanwhile_keep_what_was_decided(ledger: Ledger, number: int) -> None:
    """Reads that push accounts out of the small cache, while two groups use them, change no balance."""
    ledger.execute([RegisterCustomer(f"r{n}", f"c{n}") for n in range(40)])

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        tasks = []
        for turn in range(number + 1):
            tasks.append(
                asked(writer, Deposit(f"e{turn}", f"c{turn}", "btc", "2"), Freeze(f"f{turn}", "c0", "btc", "1"))
            )
            await until(lambda: writer.waiting == 0)
            for n in range(40):
                ledger.account(spot(f"c{n}"))
        disk.go_on()
        await asyncio.gather(first, *tasks)
        for n in range(40):
            ledger.account(spot(f"c{n}"))
        available = 5 + 2 - (number + 1)
        assert ledger.account(spot("c0")).balances["btc"] == Balance(available * ONE, (number + 1) * ONE)

    overlapped(ledger, [Deposit("d", "c0", "btc", "5")], test)


@pytest.mark.parametrize("seed_number", range(8))
def test_many_callers_on_a_disk_that_fails_now_and_then(tmp_path: Path, seed_number: int) -> None:
    """Whatever fails when: each key is booked once, a failed write can be sent again, and the books are right."""
    chance = random.Random(seed_number)
    clock = Clock()

    async def caller(writer: Writer, name: str) -> int:
        """Deposit and withdraw again and again; return the units that were acknowledged."""
        sent = 0
        for number in range(15):
            operations: list[Operation] = [Deposit(f"{name}-{number}", name, "btc", "3")]
            if number % 2:
                operations.append(Freeze(f"{name}-{number}-f", name, "btc", "1"))
                operations.append(Unfreeze(f"{name}-{number}-u", HoldKey(f"{name}-{number}-f"), None))
            if number % 3 == 0:
                operations.append(Transfer(f"{name}-{number}-t", name, "ann", "btc", "1"))
                sent += 1
            while True:
                with suppress(StoreUnavailable):
                    outcomes = await writer.submit(operations, atomic=number % 5 == 0)
                    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
                    break
                await asyncio.sleep(0)
        return sent

    async def run(ledger: Any) -> list[int]:
        def seen(_: Any, statement: str, __: Any) -> bool:
            if statement == "COMMIT" and chance.random() < 0.15:
                raise StoreUnavailable("the disk of the test failed")
            return True

        ledger._store._write.set_exec_trace(seen)
        writer = Writer(ledger, group_limit=12, gather_seconds=0.0002)
        await writer.start()
        sent = await asyncio.gather(*(caller(writer, f"c{number}") for number in range(9)))
        await writer.stop()
        ledger._store._write.set_exec_trace(None)
        return list(sent)

    with open_small(tmp_path, clock) as ledger:
        seed(ledger, "ann " + " ".join(f"c{number}" for number in range(9)))
        sent = asyncio.run(asyncio.wait_for(run(ledger), PATIENCE_SECONDS))
        for number, count in enumerate(sent):
            expected = (1000 + 15 * 3 - count) * ONE
            assert ledger.account(spot(f"c{number}")).balances["btc"] == Balance(expected, 0)
        assert ledger.account(spot("ann")).balances["btc"] == Balance((1000 + sum(sent)) * ONE, 0)
        keys = [entry.key for entry in ledger.entries(0, 10_000)]
        assert len(keys) == len(set(keys))
    check_books(tmp_path)


def many(count: int, name: str) -> list[Operation]:
    """Return deposits of bob: more than 50 keys are looked up, and more than 64 operations decided, piece by piece."""
    return [Deposit(f"{name}-{number}", "bob", "btc", "1") for number in range(count)]


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 49, 70, 140])
def test_group_that_is_published_while_the_next_is_half_decided_is_not_forgotten(
    ledger: Ledger, pieces: int, place: int
) -> None:
    """Its keys, coins and holds are known before, during and after that, whichever piece asks for them."""
    first = drive(ledger.deciding([ListCoin("l", "eth", 2), Freeze("f", "ann", "btc", "2")]))
    asked_again: list[Operation] = [
        ListCoin("l", "eth", 2),
        ListCoin("other", "eth", 8),
        Deposit("e", "ann", "eth", "5"),
        Unfreeze("u", HoldKey("f"), None),
        Freeze("f", "ann", "btc", "2"),
    ]
    steps = ledger.deciding([*many(place, "before"), *asked_again, *many(140 - place, "after")], after=first)
    for _ in range(pieces):
        next(steps)
    drive(ledger.committing(first))
    ledger.finish(first)
    second = drive(steps)
    drive(ledger.committing(second))
    repeat, other, deposit, unfreeze, again = ledger.finish(second)[place : place + 5]
    assert isinstance(repeat, Receipt)
    assert isinstance(again, Receipt)
    assert (repeat.replayed, again.replayed) == (True, True)
    assert isinstance(other, CoinAlreadyListed)
    assert isinstance(deposit, Receipt)
    assert isinstance(unfreeze, Receipt)
    keys = [entry.key for entry in ledger.entries(0, 1_000)]
    assert len(keys) == len(set(keys))


def test_what_joins_a_group_ahead_knows_what_was_published_meanwhile(ledger: Ledger) -> None:
    """A coin whose listing was answered is known to the deposit that its caller sends next."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        other = asked(writer, Deposit("o", "bob", "btc", "1"))
        await until(lambda: writer.waiting == 0)
        disk.go_on()
        await first
        [outcome] = await writer.submit([Deposit("e", "ann", "eth", "5")])
        assert isinstance(outcome, Receipt)
        await other
        assert disk.commits == 2

    overlapped(ledger, [ListCoin("l", "eth", 2)], test, gather_seconds=0.2)


def test_group_that_fails_for_another_cause_is_not_built_upon(ledger: Any) -> None:
    """Its requests are tried one by one; what came meanwhile is decided on what they left, and the books are right."""
    commit = ledger._store.commit

    def broken() -> Iterator[None]:
        ledger._store.commit = commit
        raise RuntimeError("a fault of the program")
        yield

    async def run() -> list[Any]:
        ledger._store.commit = broken
        writer = Writer(ledger, gather_seconds=0.02)
        await writer.start()
        ledger._store._write.set_exec_trace(slow)
        tasks = [asked(writer, Deposit("a", "bob", "btc", "1")), asked(writer, Deposit("b", "ann", "btc", "1"))]
        for number in range(30):
            await asyncio.sleep(0.002)
            tasks.append(asked(writer, Deposit(f"c{number}", "ann", "btc", "1")))
        answers = await asyncio.gather(*tasks)
        await writer.stop()
        return answers

    def slow(_: Any, statement: str, __: Any) -> bool:
        if statement == "COMMIT":
            time.sleep(0.01)
        return True

    answers = asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))
    assert all(isinstance(outcome, Receipt) for [outcome] in answers)
    assert ledger.corrupt is None
    assert ledger.account(spot("ann")).balances["btc"] == Balance(1031 * ONE, 0)


def test_clock_that_is_not_trusted_ahead_leaves_nothing_behind(ledger: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is decided when nothing is ahead, and memory does not take a group for one that is under way."""
    check, raised = ledger.clock.check, []

    def once() -> int:
        if not raised:
            raised.append(True)
            raise ClockUntrusted("the clock of the test leapt")
        return int(check())

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        monkeypatch.setattr(ledger.clock, "check", once)
        second = asked(writer, Deposit("e", "bob", "btc", "2"))
        await until(lambda: bool(raised))
        disk.go_on()
        assert isinstance((await first)[0], Receipt)
        assert isinstance((await second)[0], Receipt)

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test)
    assert ledger._store._memory.groups == 0


def test_memory_stays_within_its_bound_under_a_load_without_a_pause(ledger: Any) -> None:
    """While too many accounts are in memory, no group begins before the last is published, so that they can go."""
    names = [f"c{number}" for number in range(600)]
    ledger.execute([RegisterCustomer(f"r-{name}", name) for name in names])
    most = 0

    def slow(_: Any, statement: str, __: Any) -> bool:
        if statement == "COMMIT":
            time.sleep(0.002)
        return True

    async def caller(writer: Writer, first: int) -> None:
        nonlocal most
        for number in range(first, len(names), 30):
            await asyncio.sleep(0.0007 * (first % 9))
            await writer.submit([Deposit(f"x-{number}", names[number], "btc", "1")])
            most = max(most, len(ledger._store._memory.accounts))

    async def run() -> None:
        ledger._store._write.set_exec_trace(slow)
        writer = Writer(ledger)
        await writer.start()
        await asyncio.gather(*(caller(writer, first) for first in range(30)))
        await writer.stop()

    asyncio.run(asyncio.wait_for(run(), PATIENCE_SECONDS))
    assert most < 200


def test_accounts_that_are_evicted_are_freed_without_the_collector(ledger: Any) -> None:
    """An account and its lines are no cycle: a process that serves seldom looks for those."""
    names = [f"c{number}" for number in range(300)]
    ledger.execute([RegisterCustomer(f"r-{name}", name) for name in names])
    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(one, AccountState) for one in gc.get_objects())
        for name in names:
            ledger.deposit(name, "btc", "1", key=f"x-{name}")
        alive = sum(isinstance(one, AccountState) for one in gc.get_objects())
    finally:
        gc.enable()
    assert alive - before < 100


@pytest.mark.parametrize("gather_seconds", [0.0, 0.2])
def test_writer_that_is_cancelled_while_it_decides_ahead_answers_everybody(
    ledger: Ledger, gather_seconds: float
) -> None:
    """The group under way is written; whoever was decided on top is told to try again, also while it gathers."""

    async def test(writer: Writer, disk: Disk, first: asyncio.Task[list[Outcome]]) -> None:
        second = asked(writer, Deposit("e", "bob", "btc", "2"))
        await until(lambda: writer.waiting == 0)
        if not gather_seconds:
            writer._tasks[0].cancel()
            await asyncio.sleep(0.02)
        disk.go_on()
        assert isinstance((await first)[0], Receipt)
        if gather_seconds:
            await asyncio.sleep(0.02)
            writer._tasks[0].cancel()
        with pytest.raises(StoreUnavailable):
            await second

    overlapped(ledger, [Deposit("d", "ann", "btc", "5")], test, gather_seconds=gather_seconds)
