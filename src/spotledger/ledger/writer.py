"""
The writer of a server: one bounded queue with group commit.

All waiting requests become one group, which is decided on the event loop, committed with one sync, and then answered.
A disk is waited for in a thread; a server is waited for on the loop, because a thread would compete with the loop for
the interpreter at each of the server's answers. Nothing else writes the journal meanwhile; writes of access keys, which
are elsewhere, go through ``beside``.

Callers that are answered together usually send their next requests together. So after a group of several requests the
writer waits a moment for as many again, and for as many more as arrived during the write: otherwise two callers would
alternate, one to a group. After a group of one request it does not wait.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from spotledger.domain.journal import LIBRARY
from spotledger.domain.operations import Operation, Post
from spotledger.errors import ClockUntrusted, LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger.dry_runs import DryRuns
from spotledger.ledger.group import EXPIRIES_A_GROUP, Chains, Group, checked_chains, cuts_of, weight_of
from spotledger.ledger.ledger import PIECE_OPERATIONS, Ledger, Outcome
from spotledger.storage.base import StaleDecision
from spotledger.storage.steps import awaited, call_in, drive_on_loop

#: Operations that may wait; a request beyond that is refused at once.
QUEUE_LIMIT: Final = 10_000
#: Operations in a group; a longer request is cut into several groups. Making a group visible cannot be interrupted, and
#: takes up to 12 µs for each operation.
GROUP_LIMIT: Final = 250
#: How long a group waits at most for the requests that are expected.
GATHER_SECONDS: Final = 0.001
#: How long a request may wait for its outcome on a remote store, which other nodes or a standby may hold up.
ANSWER_SECONDS: Final = 10.0
#: How often such requests are looked for.
LATE_SECONDS: Final = 0.5
#: Writes of access keys that are made at once on a remote store; each may wait for its server.
KEY_WRITES: Final = 4
#: How long such a write may wait for earlier ones before it begins.
KEY_QUEUE_SECONDS: Final = 2.0
#: With this many waiting requests, a group is large enough not to wait for more.
FEW_REQUESTS: Final = 16
#: How often the writer looks for holds that have expired while nobody writes.
EXPIRY_SECONDS: Final = 1.0
#: How often the time is noted, for the next start, also while nobody writes.
NOTE_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Request:
    operations: Sequence[Operation]
    chains: Chains | None
    actor: str
    answer: asyncio.Future[list[Outcome]]
    #: When it came, in seconds of :func:`time.monotonic`.
    came_s: float
    #: How many operations they are worth where a group or the queue is limited.
    weight: int


@dataclass(slots=True)
class _Work:
    """Requests that are decided together, and what came of them."""

    requests: list[_Request]
    group: Group

    @property
    def count(self) -> int:
        """The number of operations that they are worth."""
        return sum(request.weight for request in self.requests)


class Writer:
    """Writes for many callers, one group at a time; a server's only way to write."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        queue_limit: int = QUEUE_LIMIT,
        group_limit: int = GROUP_LIMIT,
        refuses: str | None = None,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        """
        Write to *ledger*.

        Args:
            ledger: The ledger; nothing else may write to it.
            queue_limit: Operations that may wait, > 0.
            group_limit: Operations in a group, > 0.
            refuses: On a node that only reads, the reason given for refusing every write; else None.
            gather_seconds: How long a group waits for expected requests, >= 0.
        """
        self._refuses = refuses
        self._ledger = ledger
        self._queue_limit = queue_limit
        self._group_limit = group_limit
        self._gather_seconds = gather_seconds
        #: How many waiting requests wake the writer.
        self._enough = 1
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._write_lock = asyncio.Lock()
        self._stopping = False
        self._failed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._key_writer = ThreadPoolExecutor(max_workers=KEY_WRITES if ledger.remote else 1, thread_name_prefix="keys")
        #: The requests that waited when the last group was answered.
        self._left = 0
        #: The requests that are no longer queued and may not be answered yet.
        self._taken: list[_Request] = []
        self.dry_runs = DryRuns(ledger, self._write_lock, self._committer, self._check_room)

    @property
    def waiting(self) -> int:
        """The number of waiting operations."""
        return self._waiting

    @property
    def can_write(self) -> bool:
        """Whether the last group was written and another request would be taken."""
        stopped = self._refuses or self._failed or self._stopping or self._ledger.corrupt or self._ledger.clock_distrust
        return not stopped and self._ledger.takes_writes and self._waiting < self._queue_limit

    async def start(self) -> None:
        """Start taking requests."""
        if self._refuses:
            return
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._expire())]
        if self._ledger.remote:
            self._tasks.append(asyncio.create_task(self._answer_late()))

    async def stop(self) -> None:
        """Write what is waiting, then stop."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            for task in self._tasks[1:]:
                task.cancel()
            await asyncio.gather(*self._tasks, *self.dry_runs.tasks, return_exceptions=True)
        self._refuse(self._queue)
        self._committer.shutdown()
        self._key_writer.shutdown()

    async def submit(
        self,
        operations: Sequence[Operation],
        chains: Chains | None = None,
        *,
        atomic: bool = False,
        actor: str = LIBRARY,
    ) -> list[Outcome]:
        """
        Execute *operations* in order and return one outcome each.

        Takes and raises what :meth:`Ledger.execute` does. Operations that fit into one group are committed together; a
        longer request is cut between chains into several groups.

        Raises:
            StoreBusy: The queue is full, or the writer is stopping; nothing was done.
        """
        chains = checked_chains(operations, chains, atomic)
        weight = weight_of(operations)
        self._check_room(weight)
        if weight <= self._group_limit:
            return await self._enqueue(operations, chains, actor, weight)
        cuts = cuts_of(operations, chains, self._group_limit)
        answers = await asyncio.gather(*(self._enqueue(part, own, actor, weight_of(part)) for part, own in cuts))
        return [outcome for outcomes in answers for outcome in outcomes]

    def enqueue(self, operation: Operation, actor: str) -> asyncio.Future[list[Outcome]]:
        """Queue one operation, and return the future of its outcome, alone in a list; raise as :meth:`submit` does."""
        self._check_room(1)
        return self._enqueue((operation,), None, actor, 1 if type(operation) is not Post else weight_of((operation,)))

    def _check_room(self, count: int) -> None:
        if self._refuses:
            raise StoreUnavailable(self._refuses)
        if self._stopping:
            raise StoreBusy("the service is stopping; try again with the same idempotency key")
        if self._waiting and self._waiting + count > self._queue_limit:
            limits = f"{self._waiting} writes are waiting and {self._queue_limit} may"
            raise StoreBusy(f"{limits}; try again with the same idempotency key")

    def _enqueue(
        self, operations: Sequence[Operation], chains: Chains | None, actor: str, weight: int
    ) -> asyncio.Future[list[Outcome]]:
        answer: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Request(operations, chains, actor, answer, time.monotonic(), weight))
        self._waiting += weight
        if len(self._queue) >= self._enough or self._waiting >= self._group_limit:
            self._wake.set()
        return answer

    async def beside(self, function: Callable[[], T]) -> T:
        """
        Run *function*, which writes access keys or tokens, or trusts the clock.

        It runs in a thread, because it may wait for a server, or for the lock of a file that another process holds: one
        such function at a time, on a remote store `KEY_WRITES`.

        Raises:
            StoreBusy: Earlier ones wait for the server of a remote store; nothing was done.
        """
        if self._ledger.remote:
            return await self._in_time(self._key_writer.submit(function))
        return await asyncio.get_running_loop().run_in_executor(self._key_writer, function)

    async def _in_time(self, waiting: Future[T]) -> T:
        """Return the result of a function that was handed to a thread, unless it has not begun in time."""
        outcome = asyncio.wrap_future(waiting)
        done, _ = await asyncio.wait([outcome], timeout=KEY_QUEUE_SECONDS)
        if not done and waiting.cancel():
            raise StoreBusy("earlier writes of access keys wait for the database; try again with the same key")
        return await outcome

    async def _answer_late(self) -> None:
        """Answer requests that have waited for too long; those that are being written may still be done."""
        while True:
            await asyncio.sleep(LATE_SECONDS)
            before = time.monotonic() - ANSWER_SECONDS
            for request in (*self._taken, *self._queue):
                if request.came_s < before and not request.answer.done():
                    request.answer.set_exception(
                        StoreUnavailable("the database did not answer in time; try again with the same idempotency key")
                    )

    async def _run(self) -> None:
        expected = 1
        try:
            while not (self._stopping and not self._queue):
                if not self._queue:
                    await self._woken()
                    continue
                await self._gather(expected)
                async with self._write_lock:
                    expected = await self._write_several()
                if _is_cancelled():
                    return  # while the disk was busy
                if self._waiting >= PIECE_OPERATIONS:
                    await asyncio.sleep(0)  # making a large group visible, and loading the next, are enough each
        finally:
            self._stopping = True
            self._refuse(self._queue)

    async def _write_several(self) -> int:
        """Write a group, then what was decided during its sync, and so on; return how many requests to expect next."""
        self._taken = self._take()
        expected, work = 1, await self._decided(self._taken)
        while work is not None:
            self._taken = list(work.requests)
            ahead = await self._committed(work)
            came = self._left + (len(ahead.requests) if ahead else 0)
            expected = len(work.requests)
            if 0 < came < FEW_REQUESTS:
                expected = max(expected, min(expected + came, FEW_REQUESTS))
            if ahead is not None:
                ahead = await self._gathered(expected, work.group, ahead)
            work = ahead
        return expected

    async def _decided(self, requests: list[_Request]) -> _Work | None:
        """Decide *requests* as a group; return None if that failed and they were answered."""
        try:
            return _Work(requests, await drive_on_loop(self._ledger.deciding(*_joined(requests)), self._committer))
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            await self._fail(requests, error)
            return None
        except BaseException:
            self._refuse(requests)
            raise

    async def _committed(self, work: _Work) -> _Work | None:
        """Commit and answer *work*; return what was decided on top of it meanwhile, if that still holds."""
        commit = asyncio.create_task(self._commit(work))
        commit.add_done_callback(lambda _: self._wake.set())
        ahead: _Work | None = None
        may_grow = self._ledger.decides_ahead
        try:
            try:
                while not commit.done():
                    if not self._queue or not may_grow or self.dry_runs.tasks:
                        await self._woken()
                        continue
                    before, ahead = ahead, await self._with_waiting(work.group, ahead)
                    may_grow = ahead is not None and ahead is not before
            finally:
                error = await awaited(commit)
        except BaseException:
            self._put_back(ahead)
            raise
        if ahead is not None and (ahead.group.is_void or _is_cancelled()):
            self._put_back(ahead)
            ahead = None
        if error is not None:
            await self._fail(work.requests, error)
        return ahead

    async def _gathered(self, expected: int, after: Group, ahead: _Work) -> _Work | None:
        """Wait for the requests that are *expected*, and add what has come to *ahead*."""
        try:
            await self._gather(expected - len(ahead.requests))
        except BaseException:
            self._put_back(ahead)
            raise
        return await self._with_waiting(after, ahead)

    async def _with_waiting(self, after: Group, work: _Work | None) -> _Work | None:
        """Add what waits to *work*, which was decided on top of *after*; return None if that has to be done again."""
        requests = self._take(self._group_limit - work.count if work else self._group_limit) if self._queue else []
        if not requests:
            return work
        self._taken += requests
        steps = self._ledger.deciding(*_joined(requests), after, None if work is None else work.group)
        both = _Work([*work.requests, *requests] if work else requests, after)
        try:
            both.group = await drive_on_loop(steps, self._committer)
        except BaseException as error:
            self._put_back(both)
            if isinstance(error, Exception):
                return None  # the same happens, and is answered, where nothing is ahead
            raise
        return both

    def _put_back(self, work: _Work | None) -> None:
        """Have the requests of *work*, of which nothing was written, wait again, before all others."""
        if work is not None:
            self._queue.extendleft(reversed(work.requests))
            self._waiting += work.count

    async def _woken(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    async def _gather(self, enough: int) -> None:
        """Wait until *enough* requests are waiting, or a group is full, or ``gather_seconds`` have passed."""
        if len(self._queue) >= enough or self._waiting >= self._group_limit or self._stopping:
            return
        timer = asyncio.get_running_loop().call_later(self._gather_seconds, self._wake.set)
        self._enough = enough
        try:
            await self._woken()
        finally:
            self._enough = 1
            timer.cancel()

    def _refuse(self, requests: Iterable[_Request]) -> None:
        """Fail *requests* because the service stops."""
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(
                    StoreUnavailable("the service stopped before the write; try again with the same idempotency key")
                )

    async def _expire(self) -> None:
        """Let holds expire and note the time while nobody writes: an empty request makes the ledger look for them."""
        task = asyncio.current_task()
        noted_s = time.monotonic()
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            try:
                if time.monotonic() - noted_s >= NOTE_SECONDS:
                    async with self._write_lock:
                        self._ledger.note_time()
                    noted_s = time.monotonic()
                if self._failed:
                    async with self._write_lock:
                        await call_in(self._committer, self._ledger.try_writing)
                    self._failed = False
                    if task is not None and task.cancelling():
                        return  # cancelled while the thread was busy
                if self._ledger.clock_distrust:
                    continue  # the clock says in the log when it is trusted again
                waiting = self._goes_on()
                while waiting:
                    before = self._ledger.head.seq
                    await self.submit([])
                    waiting = self._ledger.head.seq - before >= EXPIRIES_A_GROUP
            except Exception as error:  # noqa: BLE001 - try again at the next look
                level = logging.INFO if self._waits_for_books(error) else logging.WARNING
                _log.log(level, "looking for expired holds failed: %s", error)

    def _goes_on(self) -> bool:
        """Say whether anything can be written; until the books are there after a start without them, ask for them."""
        if not self._ledger.takes_writes:
            self._ledger.go_on_rebuilding()
        return self._ledger.takes_writes

    def _take(self, limit: int | None = None) -> list[_Request]:
        """Take requests off the queue, up to the limit of a group, or to *limit* operations, which may be none."""
        taken: list[_Request] = []
        count = 0
        while self._queue and (
            count + self._queue[0].weight <= (self._group_limit if limit is None else limit)
            or (limit is None and not taken)
        ):
            taken.append(self._queue.popleft())
            count += taken[-1].weight
        self._waiting -= count
        return taken

    async def _write(self, requests: Sequence[_Request]) -> None:
        """Write *requests* as a group, and answer them."""
        work = await self._decided(list(requests))
        error = None if work is None else await self._commit(work)
        if error is not None:
            await self._fail(requests, error)

    async def _commit(self, work: _Work) -> Exception | None:
        """Make what was decided durable and visible, and answer it; return the error that its callers have to get."""
        try:
            await drive_on_loop(self._ledger.committing(work.group), self._committer)
            self._failed = self._failed and not work.group.entries
            outcomes = self._ledger.finish(work.group)
        except StaleDecision:
            return await self._commit_again(work)
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            return error
        except BaseException:
            self._refuse(work.requests)
            raise
        self._left = len(self._queue)
        position = 0
        for request in work.requests:
            end = position + len(request.operations)
            if not request.answer.done():
                request.answer.set_result(outcomes[position:end])
            position = end
        return None

    async def _commit_again(self, work: _Work) -> Exception | None:
        """Decide *work* again, on the head under the write lock, and commit it."""
        try:
            work.group = await drive_on_loop(self._ledger.deciding(*_joined(work.requests)), self._committer)
        except Exception as error:  # noqa: BLE001 - every caller gets the error
            return error
        except BaseException:
            self._refuse(work.requests)
            raise
        return await self._commit(work)

    async def _fail(self, requests: Sequence[_Request], error: Exception) -> None:
        """Pass *error* to the callers of a group; unless the store failed, try each request by itself first."""
        if not isinstance(error, ClockUntrusted):  # the clock says so in the log, once
            level = logging.INFO if self._waits_for_books(error) else logging.ERROR
            count = sum(len(request.operations) for request in requests)
            _log.log(level, "a group of %d operations could not be written: %s", count, error)
        by_store = isinstance(error, (StoreUnavailable, LedgerCorrupt)) and not self._waits_for_books(error)
        self._failed = self._failed or by_store
        if len(requests) > 1 and not by_store and not isinstance(error, ClockUntrusted):
            for request in requests:
                await self._write([request])
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    def _waits_for_books(self, error: Exception) -> bool:
        """Say whether *error* may be one that only operations get which need books that are being made again."""
        return isinstance(error, StoreUnavailable) and self._ledger.rebuilding is not None


def _joined(requests: Sequence[_Request]) -> tuple[list[Operation], Chains | None, list[str]]:
    """Return the operations, chains and actors of *requests*."""
    operations = [operation for request in requests for operation in request.operations]
    actors = [request.actor for request in requests for _ in request.operations]
    return operations, _joined_chains(requests), actors


def _is_cancelled() -> bool:
    """Say whether this task was cancelled while it could not be interrupted."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _joined_chains(requests: Sequence[_Request]) -> Chains | None:
    """Return the chains of several requests, numbered by request; None if there are none."""
    if not any(request.chains for request in requests):
        return None
    joined: list[Hashable | None] = []
    for number, request in enumerate(requests):
        chains = request.chains or [None] * len(request.operations)
        joined += [None if chain is None else (number, chain) for chain in chains]
    return joined
