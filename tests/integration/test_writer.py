"""The writer on a real ledger: group commit, its limits, concurrent and cancelled callers, and a full disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.accounts import Balance
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Unfreeze
from spotledger.errors import IdempotencyConflict, LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger import writer as writer_module
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.ledger.writer import Writer
from support_books import check_books
from support_core import Clock, full_disk, open_small, seed, spot

PATIENCE_SECONDS = 20


@pytest.fixture
def clock() -> Clock:
    """Give a clock that the test moves."""
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    """Give a seeded ledger; its books are checked at the end."""
    with open_small(tmp_path, clock) as opened:
        seed(opened)
        yield opened
    check_books(tmp_path)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run *test* to its end; one that hangs fails."""
    asyncio.run(asyncio.wait_for(test, PATIENCE_SECONDS))


def deposit(key: str, amount: str = "1") -> list[Deposit]:
    """Return one deposit of bob."""
    return [Deposit(key, "bob", "btc", amount)]


class Gate:
    """Holds up each commit of a ledger, in its thread, until it is opened; counts them."""

    def __init__(self, ledger: Any) -> None:
        self.commits = 0
        self.reached = threading.Event()
        self.opened = threading.Event()
        ledger._store._write.set_exec_trace(self._seen)

    def _seen(self, _: Any, statement: str, __: Any) -> bool:
        if statement == "COMMIT":
            self.commits += 1
            self.reached.set()
            self.opened.wait(PATIENCE_SECONDS)
        return True

    async def wait(self) -> None:
        """Return once a commit stands before the gate."""
        await asyncio.to_thread(self.reached.wait, PATIENCE_SECONDS)


@contextmanager
def gate_of(ledger: Any) -> Iterator[Gate]:
    """Give a closed gate, and open it at the end."""
    gate = Gate(ledger)
    try:
        yield gate
    finally:
        gate.opened.set()
        ledger._store._write.set_exec_trace(None)


# --- concurrent callers -----------------------------------------------------------------------------


def test_same_write_at_the_same_instant_is_booked_once(ledger: Ledger) -> None:
    """Of two equal requests in flight one is booked and the other is its repeat."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        head = ledger.head.seq
        answers = await asyncio.gather(*(writer.submit(deposit("k")) for _ in range(2)))
        receipts = [answer[0] for answer in answers]
        assert [receipt.replayed for receipt in receipts] == [False, True]
        assert {receipt.seq for receipt in receipts} == {head + 1}
        await writer.stop()
        assert ledger.head.seq == head + 1

    run(test())


def test_same_key_with_another_amount_at_the_same_instant_is_a_conflict(ledger: Ledger) -> None:
    """The second content under one key is refused, in the same group as in the next."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        first, second = await asyncio.gather(writer.submit(deposit("k", "1")), writer.submit(deposit("k", "2")))
        third = await writer.submit(deposit("k", "2"))
        await writer.stop()
        assert isinstance(first[0], Receipt)
        for refused in (second[0], third[0]):
            assert isinstance(refused, IdempotencyConflict)
            assert refused.details["field"] == "amount"
        assert ledger.account(spot("bob")).balances["btc"].available == 1001 * 10**8

    run(test())


def test_callers_who_come_back_one_after_another_share_a_group_again(ledger: Ledger) -> None:
    """Callers answered together that ask again a few loop iterations later are in one group."""

    async def test() -> None:
        writer = Writer(ledger, gather_seconds=PATIENCE_SECONDS)
        await writer.start()

        async def caller(number: int) -> None:
            await writer.submit(deposit(f"first-{number}"))
            for _ in range(number):
                await asyncio.sleep(0)
            await writer.submit(deposit(f"second-{number}"))

        with gate_of(ledger) as gate:
            gate.opened.set()
            await asyncio.gather(*(caller(number) for number in range(20)))
            assert gate.commits == 2
        await writer.stop()

    run(test())


def test_two_callers_who_took_turns_share_a_group(ledger: Ledger) -> None:
    """A caller that asks while another's group is written waits for the other, so that both are in the next group."""

    async def test() -> None:
        writer = Writer(ledger, gather_seconds=PATIENCE_SECONDS)
        await writer.start()
        with gate_of(ledger) as gate:
            first = asyncio.create_task(writer.submit(deposit("first")))
            await gate.wait()
            second = asyncio.create_task(writer.submit(deposit("second")))
            await asyncio.sleep(0)
            gate.opened.set()
            await first
            for _ in range(20):
                await asyncio.sleep(0)
            assert not second.done()
            again = await asyncio.wait_for(writer.submit(deposit("again")), PATIENCE_SECONDS)
            assert gate.commits == 2
        assert again[0].seq == (await second)[0].seq + 1
        await writer.stop()

    run(test())


def test_lone_caller_is_never_made_to_wait_for_others(ledger: Ledger) -> None:
    """After a group of one request the next one is written at once, however long a group might wait."""

    async def test() -> None:
        writer = Writer(ledger, gather_seconds=1000 * PATIENCE_SECONDS)
        await writer.start()
        for number in range(3):
            await asyncio.wait_for(writer.submit(deposit(f"k{number}")), PATIENCE_SECONDS)
        for number in range(3):  # and now without a turn of the loop between an answer and the next request
            await writer.submit(deposit(f"at-once-{number}"))
        await writer.stop()

    run(test())


def test_caller_whose_companions_stay_away_is_answered_after_the_wait(ledger: Ledger) -> None:
    """If no other caller asks, the one that did is written when the wait is over, and without a wait after that."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        await asyncio.gather(*(writer.submit(deposit(f"k{number}")) for number in range(5)))
        again = await asyncio.wait_for(writer.submit(deposit("again")), PATIENCE_SECONDS)
        assert isinstance(again[0], Receipt)
        await writer.stop()

    run(test())


def test_stop_while_a_group_is_gathered_writes_what_is_there(ledger: Ledger) -> None:
    """A stop does not wait for expected callers, and serves everyone who asked."""

    async def test() -> None:
        writer = Writer(ledger, gather_seconds=1000 * PATIENCE_SECONDS)
        await writer.start()
        await asyncio.gather(*(writer.submit(deposit(f"k{number}")) for number in range(5)))
        waiting = asyncio.create_task(writer.submit(deposit("again")))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await asyncio.wait_for(writer.stop(), PATIENCE_SECONDS)
        assert isinstance((await waiting)[0], Receipt)

    run(test())


def test_commit_in_flight_gathers_those_who_wait_into_one_group(ledger: Ledger) -> None:
    """Requests that arrive during a commit share the next one, up to the limit of a group."""

    async def test() -> None:
        writer = Writer(ledger, group_limit=10)
        await writer.start()
        with gate_of(ledger) as gate:
            first = asyncio.create_task(writer.submit(deposit("first")))
            await gate.wait()
            others = [asyncio.create_task(writer.submit(deposit(f"k{n}"))) for n in range(25)]
            await asyncio.sleep(0)
            assert writer.waiting == 25
            gate.opened.set()
            await asyncio.gather(first, *others)
            assert gate.commits == 1 + 3
        assert writer.waiting == 0
        await writer.stop()

    run(test())


def test_answers_go_to_those_who_asked(ledger: Ledger) -> None:
    """Each caller of a shared group has the outcomes of its own operations, in its own order."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        asked = [[Deposit(f"{n}-{m}", "bob", "btc", f"{n + 1}") for m in range(n % 4)] for n in range(40)]
        answers = await asyncio.gather(*(writer.submit(operations) for operations in asked))
        for operations, outcomes in zip(asked, answers, strict=True):
            assert [outcome.entry.key for outcome in outcomes] == [operation.key for operation in operations]
        await writer.stop()

    run(test())


# --- bounds -------------------------------------------------------------------------------------------


def test_queue_that_is_full_refuses_at_once_and_loses_nobody(ledger: Ledger) -> None:
    """Beyond the limit a request is refused with nothing done; all that wait are served."""

    async def test() -> None:
        writer = Writer(ledger, queue_limit=5)
        await writer.start()
        with gate_of(ledger) as gate:
            first = asyncio.create_task(writer.submit(deposit("first")))
            await gate.wait()
            waiting = [asyncio.create_task(writer.submit(deposit(f"k{n}"))) for n in range(5)]
            await asyncio.sleep(0)
            assert not writer.can_write
            for _ in range(3):
                with pytest.raises(StoreBusy, match="same idempotency key"):
                    await writer.submit(deposit("one-too-many"))
            gate.opened.set()
            await asyncio.gather(first, *waiting)
        assert writer.can_write
        assert ledger.entry_of_key("one-too-many") is None
        assert not (await writer.submit(deposit("one-too-many")))[0].replayed
        await writer.stop()

    run(test())


def test_request_larger_than_queue_and_group_is_done_where_nobody_waits(ledger: Ledger) -> None:
    """A long request is not refused for ever: with an empty queue it is taken, in order."""

    async def test() -> None:
        writer = Writer(ledger, queue_limit=5, group_limit=3)
        await writer.start()
        head = ledger.head.seq
        operations = [Deposit(f"k{n}", "bob", "btc", "1") for n in range(50)]
        outcomes = await writer.submit(operations)
        assert [outcome.seq for outcome in outcomes] == list(range(head + 1, head + 51))
        await writer.stop()

    run(test())


# --- the start and the end ------------------------------------------------------------------------


def test_stop_finishes_what_waits_then_refuses(ledger: Ledger) -> None:
    """Everything that was taken is answered; afterwards a request is refused, not forgotten."""

    async def test() -> None:
        writer = Writer(ledger, group_limit=7)
        await writer.start()
        with gate_of(ledger) as gate:
            tasks = [asyncio.create_task(writer.submit(deposit(f"k{n}"))) for n in range(50)]
            await gate.wait()
            stopping = asyncio.create_task(writer.stop())
            await asyncio.sleep(0)
            with pytest.raises(StoreBusy, match="stopping"):
                await writer.submit(deposit("late"))
            gate.opened.set()
            await stopping
        outcomes = await asyncio.gather(*tasks)
        assert sorted(outcome[0].seq for outcome in outcomes) == list(range(ledger.head.seq - 49, ledger.head.seq + 1))
        assert not writer.can_write
        await writer.stop()

    run(test())


def test_stop_without_start_tells_those_who_wait(ledger: Ledger) -> None:
    """A writer that never ran leaves no caller waiting for ever."""

    async def test() -> None:
        writer = Writer(ledger)
        waiting = asyncio.create_task(writer.submit(deposit("k")))
        await asyncio.sleep(0)
        await writer.stop()
        with pytest.raises(StoreUnavailable):
            await waiting
        assert ledger.entry_of_key("k") is None

    run(test())


def test_loop_that_ends_in_the_middle_of_a_commit_leaves_memory_right(ledger: Ledger) -> None:
    """Where all tasks are cancelled while the disk is busy, what became durable is in memory, and reads go on."""
    head = ledger.head.seq

    async def test() -> None:
        writer = Writer(ledger, group_limit=1)
        await writer.start()
        tasks = [asyncio.create_task(writer.submit(deposit(f"k{n}"))) for n in range(3)]
        gate = Gate(ledger)
        await gate.wait()
        threading.Timer(0.1, gate.opened.set).start()
        assert len(tasks) == 3

    asyncio.run(asyncio.wait_for(test(), PATIENCE_SECONDS))
    assert ledger.head.seq == head + 1
    assert ledger.account(spot("bob")).balances["btc"] == Balance(1001 * 10**8, 0)
    assert ledger.deposit("bob", "btc", "1", key="k0").replayed
    assert not ledger.deposit("bob", "btc", "1", key="k1").replayed


def test_writer_that_was_cancelled_tells_its_callers(ledger: Any) -> None:
    """When the writer's task ends, every waiting caller gets an error, and so does every later one."""

    async def test() -> None:
        writer = Writer(ledger, group_limit=1)
        await writer.start()
        with gate_of(ledger) as gate:
            tasks = [asyncio.create_task(writer.submit(deposit(f"k{n}"))) for n in range(3)]
            await gate.wait()
            for task in writer._tasks:
                task.cancel()
            await asyncio.sleep(0)
            gate.opened.set()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[0][0], Receipt)
        assert [type(answer) for answer in answers[1:]] == [StoreUnavailable] * 2
        assert ledger.entry_of_key("k1") is None
        with pytest.raises(StoreBusy):
            await writer.submit(deposit("later"))
        assert not writer.can_write
        await writer.stop()

    run(test())


# --- cancelled callers ----------------------------------------------------------------------------


@pytest.mark.parametrize("waits_in_queue", [False, True])
def test_caller_that_is_cancelled_or_times_out_has_it_done_once(ledger: Ledger, waits_in_queue: bool) -> None:
    """A caller that stops waiting can ask again with the same key; others in its group are not disturbed."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        with gate_of(ledger) as gate:
            if waits_in_queue:
                ahead = asyncio.create_task(writer.submit(deposit("ahead")))
                await gate.wait()
            mate = asyncio.create_task(writer.submit(deposit("mate")))
            cancelled = asyncio.create_task(writer.submit(deposit("cancelled")))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(writer.submit(deposit("timed-out")), 0.05)
            cancelled.cancel()
            gate.opened.set()
            assert isinstance((await mate)[0], Receipt)
            if waits_in_queue:
                await ahead
        for key in ("cancelled", "timed-out"):
            assert (await writer.submit(deposit(key)))[0].replayed
        await writer.stop()
        assert cancelled.cancelled()

    run(test())


def test_beside_runs_in_a_thread_one_at_a_time(ledger: Any) -> None:
    """A change of access keys waits for no commit, holds up nobody, and its caller gets what it raises."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        threads: list[int] = []
        may_end = threading.Event()

        def slow() -> str:
            threads.append(threading.get_ident())
            assert may_end.wait(20)
            return "slow"

        def quick() -> str:
            threads.append(threading.get_ident())
            return "quick"

        with gate_of(ledger) as gate:
            first = asyncio.create_task(writer.submit(deposit("first")))
            await gate.wait()
            both = [asyncio.create_task(writer.beside(function)) for function in (slow, quick)]
            while not threads:
                await asyncio.sleep(0)
            assert not any(task.done() for task in (first, *both))
            may_end.set()
            assert await asyncio.gather(*both) == ["slow", "quick"]
            assert not first.done()
            gate.opened.set()
            await first
        assert len(set(threads)) == 1
        assert threading.get_ident() not in threads
        with pytest.raises(ZeroDivisionError):
            await writer.beside(lambda: 1 // 0)
        await writer.stop()

    run(test())


# --- bad days -------------------------------------------------------------------------------------


def test_commit_that_fails_tells_all_and_later_writes_go_on(ledger: Ledger, tmp_path: Path) -> None:
    """On a full disk every caller of the group gets an error, reads never show it, and with space again all goes on."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        head, before = ledger.head, dict(ledger.account(spot("bob")).balances)
        with full_disk(tmp_path):
            answers = await asyncio.gather(
                *(writer.submit(deposit(f"k{n}")) for n in range(10)), return_exceptions=True
            )
            assert {type(answer) for answer in answers} == {StoreUnavailable}
            assert not writer.can_write
            assert ledger.head == head
            assert ledger.account(spot("bob")).balances == before
        answers = await asyncio.gather(*(writer.submit(deposit(f"k{n}")) for n in range(10)))
        assert [answer[0].replayed for answer in answers] == [False] * 10
        assert writer.can_write
        assert ledger.head.seq == head.seq + 10
        await writer.stop()

    run(test())


def test_can_write_stays_false_until_the_disk_takes_something(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full nothing says that writes are taken; once there is room it is found out without a write."""
    monkeypatch.setattr(writer_module, "EXPIRY_SECONDS", 0.01)

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        with full_disk(tmp_path):
            with pytest.raises(StoreUnavailable):
                await writer.submit(deposit("k"))
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert not writer.can_write
        while not writer.can_write:
            await asyncio.sleep(0.01)
        await writer.stop()

    run(test())


def test_request_that_breaks_the_program_fails_alone(ledger: Ledger) -> None:
    """A request that breaks the program does not fail the other requests of its group."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        poison: Any = [object()]
        answers = await asyncio.gather(
            writer.submit(deposit("before")),
            writer.submit(poison),
            writer.submit(deposit("after")),
            return_exceptions=True,
        )
        assert isinstance(answers[0], list)
        assert isinstance(answers[1], (TypeError, AttributeError, KeyError))
        assert isinstance(answers[2], list)
        assert writer.can_write
        assert (await writer.submit(deposit("before")))[0].replayed
        await writer.stop()

    run(test())


def test_ledger_that_is_corrupt_takes_no_more_writes(ledger: Any) -> None:
    """Once an invariant is broken every caller gets LedgerCorrupt, and the writer reports that it cannot write."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        ledger._corrupt = LedgerCorrupt("found by an audit")
        for key in ("a", "b"):
            with pytest.raises(LedgerCorrupt):
                await writer.submit(deposit(key))
        assert not writer.can_write
        await writer.stop()

    run(test())


# --- time -----------------------------------------------------------------------------------------


def test_holds_expire_while_nobody_writes(ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold past its time is freed by the writer alone, once."""
    monkeypatch.setattr(writer_module, "EXPIRY_SECONDS", 0.01)

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        await writer.submit([Freeze("f", "ann", "btc", "5", expires_ms=clock.now_ms + 60_000)])
        head = ledger.head.seq
        clock.now_ms += 59_999
        await asyncio.sleep(0.05)
        assert ledger.head.seq == head
        clock.now_ms += 1
        while ledger.head.seq == head:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert ledger.head.seq == head + 1
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1000 * 10**8, 0)
        await writer.stop()

    run(test())


def test_many_holds_expire_without_waiting_for_each_turn(
    ledger: Ledger, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds beyond what one group lets expire follow at once, not a second later each time."""
    monkeypatch.setattr(writer_module, "EXPIRY_SECONDS", PATIENCE_SECONDS * 0.05)

    async def test() -> None:
        writer = Writer(ledger)
        due = clock.now_ms + 10
        ledger.execute([Freeze(f"f{n}", "ann", "btc", "0.1", expires_ms=due) for n in range(2_100)])
        head = ledger.head.seq
        clock.now_ms = due
        await writer.start()
        while ledger.head.seq == head:
            await asyncio.sleep(0.01)
        turns = 0
        while ledger.head.seq < head + 2_100:
            turns += 1
            await asyncio.sleep(0.01)
        assert turns < 90, "each group waited for the next second"
        await writer.stop()

    run(test())


def test_use_and_expiry_in_the_same_group_are_in_order(ledger: Ledger, clock: Clock) -> None:
    """A hold whose time has come when the group is decided is freed first; its use is refused, never both."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        await writer.submit([Freeze("f", "ann", "btc", "5", expires_ms=clock.now_ms + 10)])
        clock.now_ms += 10
        outcomes = await writer.submit([Unfreeze("u", HoldKey("f"))])
        assert getattr(outcomes[0], "code", None) == "hold_expired"
        assert ledger.account(spot("ann")).balances["btc"] == Balance(1000 * 10**8, 0)
        await writer.stop()

    run(test())
