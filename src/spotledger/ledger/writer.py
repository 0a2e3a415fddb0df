"""
The writer: one bounded queue, and group commit.

Whatever waits when the writer comes by becomes one group: decided on the event loop, committed with one sync, then
answered. A disk is waited for in a thread of its own; a server on the loop, for a thread would fight with the loop for
the interpreter at each of its answers. Nothing else writes meanwhile; access keys take their turn through ``beside``.

Callers that were answered together mostly come back together, a little after one another. So a group that follows one
of several requests waits a moment until as many are there; and where a few came while the group before was written, for
as many more: otherwise two callers would go on taking turns. After a lone request the next one never waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from spotledger.domain.operations import Operation
from spotledger.errors import LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger.group import EXPIRIES_A_GROUP, Chains, checked_chains, end_of_cut
from spotledger.ledger.ledger import Ledger, Outcome
from spotledger.storage.steps import call_in, drive_on_loop

#: Operations that may wait; a request beyond it is refused at once.
QUEUE_LIMIT: Final = 10_000
#: Operations in a group; a request with more is a group of its own.
GROUP_LIMIT: Final = 1_000
#: How long a group waits, at the most, for the requests that are expected.
GATHER_SECONDS: Final = 0.001
#: From so many waiting requests on, a group is large enough not to wait for those that were answered just now.
FEW_REQUESTS: Final = 16
#: How often the ledger is asked for holds whose time has come while nobody writes.
EXPIRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Request:
    operations: Sequence[Operation]
    chains: Chains | None
    answer: asyncio.Future[list[Outcome]]


class Writer:
    """The server's only way to write: many callers, one group at a time."""

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
            ledger: The ledger; nobody else may write to it.
            queue_limit: Operations that may wait, > 0.
            group_limit: Operations in a group, > 0.
            refuses: Why nothing is ever written, on a node that only reads; None where it is.
            gather_seconds: How long a group waits for those who are expected, >= 0.
        """
        self._refuses = refuses
        self._ledger = ledger
        self._queue_limit = queue_limit
        self._group_limit = group_limit
        self._gather_seconds = gather_seconds
        #: How many requests wake the writer.
        self._enough = 1
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._write_lock = asyncio.Lock()
        self._stopping = False
        self._failed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")
        self._key_writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return self._waiting

    @property
    def can_write(self) -> bool:
        """Whether the last group could be written, and more can be taken."""
        stopped = self._refuses or self._failed or self._stopping or self._ledger.corrupt
        return not stopped and self._waiting < self._queue_limit

    async def start(self) -> None:
        """Begin to take requests."""
        if self._refuses:
            return
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._expire())]

    async def stop(self) -> None:
        """Finish what is waiting, then take no more."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            run, expire = self._tasks
            expire.cancel()
            await asyncio.gather(run, expire, return_exceptions=True)
        self._refuse(self._queue)
        self._committer.shutdown()
        self._key_writer.shutdown()

    async def submit(
        self, operations: Sequence[Operation], chains: Chains | None = None, *, atomic: bool = False
    ) -> list[Outcome]:
        """
        Have *operations* done, in order, and return one outcome each.

        Those that fit into one group are committed together. A longer request is cut between chains into several.

        Args:
            operations: What is to be done.
            chains: One value an operation: neighbours with the same one, not None, are done all or not at all.
            atomic: Do all of them or none.

        Raises:
            InvalidRequest: A chain, or an atomic request, is longer than 1,000 operations.
            StoreBusy: Too much is waiting, or the writer is stopping; nothing was done.
            StoreUnavailable: It could not be written; try again with the same keys.
            LedgerCorrupt: An invariant of the ledger does not hold.
        """
        chains = checked_chains(operations, chains, atomic)
        if self._refuses:
            raise StoreUnavailable(self._refuses)
        if self._stopping:
            raise StoreBusy("the service is stopping; try again with the same idempotency key")
        if self._waiting + len(operations) > self._queue_limit and self._waiting:
            raise StoreBusy(
                f"{self._waiting} writes are waiting and {self._queue_limit} may;"
                " try again with the same idempotency key"
            )
        if len(operations) <= self._group_limit:
            return await self._enqueue(operations, chains).answer
        requests = [
            self._enqueue(operations[start:end], chains[start:end] if chains else None)
            for start, end in _cuts(len(operations), chains, self._group_limit)
        ]
        answers = await asyncio.gather(*(request.answer for request in requests))
        return [outcome for outcomes in answers for outcome in outcomes]

    def _enqueue(self, operations: Sequence[Operation], chains: Chains | None) -> _Request:
        request = _Request(operations, chains, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._waiting += len(operations)
        if len(self._queue) >= self._enough or self._waiting >= self._group_limit:
            self._wake.set()
        return request

    async def exclusive(self, function: Callable[[], T]) -> T:
        """Run *function*, which writes through the ledger's connection, while no group is being written."""
        async with self._write_lock:
            return function()

    async def beside(self, function: Callable[[], T]) -> T:
        """
        Run *function*, which writes access keys or tokens: between two groups, or, where they wait for a server, in a
        thread, beside the groups and one after the other.
        """
        if self._ledger.remote:
            return await asyncio.get_running_loop().run_in_executor(self._key_writer, function)
        return await self.exclusive(function)

    async def _run(self) -> None:
        task = asyncio.current_task()
        expected = 1
        try:
            while not (self._stopping and not self._queue):
                if not self._queue:
                    await self._woken()
                    continue
                if len(self._queue) < expected and self._waiting < self._group_limit and not self._stopping:
                    await self._gather(expected)
                async with self._write_lock:
                    requests = self._take()
                    await self._write(requests)
                expected, came = len(requests), len(self._queue)
                if 0 < came < FEW_REQUESTS:
                    expected = max(expected, min(expected + came, FEW_REQUESTS))
                if task is not None and task.cancelling():
                    return  # cancelled while the disk was busy
        finally:
            self._stopping = True
            self._refuse(self._queue)

    async def _woken(self) -> None:
        self._wake.clear()
        await self._wake.wait()

    async def _gather(self, enough: int) -> None:
        """Wait until so many requests are there, or a group is full, or some time has passed."""
        timer = asyncio.get_running_loop().call_later(self._gather_seconds, self._wake.set)
        self._enough = enough
        try:
            await self._woken()
        finally:
            self._enough = 1
            timer.cancel()

    def _refuse(self, requests: Iterable[_Request]) -> None:
        """Tell callers that nobody will do what they wait for."""
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(
                    StoreUnavailable("the service stopped before it was done; try again with the same idempotency key")
                )

    async def _expire(self) -> None:
        """Let holds expire on time even if nobody writes: an empty request makes the ledger look."""
        task = asyncio.current_task()
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            try:
                if self._failed:
                    async with self._write_lock:
                        await call_in(self._committer, self._ledger.try_writing)
                    self._failed = False
                    if task is not None and task.cancelling():
                        return  # cancelled while the thread was busy
                waiting = True
                while waiting:
                    before = self._ledger.head.seq
                    await self.submit([])
                    waiting = self._ledger.head.seq - before >= EXPIRIES_A_GROUP
            except Exception as error:  # noqa: BLE001 - the next look must come, whatever this one met
                _log.warning("holds could not be let expire: %s", error)

    def _take(self) -> list[_Request]:
        """Take requests off the queue, up to the limit of a group."""
        taken = [self._queue.popleft()]
        count = len(taken[0].operations)
        while self._queue and count + len(self._queue[0].operations) <= self._group_limit:
            taken.append(self._queue.popleft())
            count += len(taken[-1].operations)
        self._waiting -= count
        return taken

    async def _write(self, requests: Sequence[_Request]) -> None:
        operations = [operation for request in requests for operation in request.operations]
        try:
            outcomes = await self._commit(operations, _joined_chains(requests))
        except Exception as error:  # noqa: BLE001 - every caller is told, whatever it is
            _log.error("a group of %d operations could not be written: %s", len(operations), error)
            await self._fail(requests, error)
            return
        except BaseException:
            self._refuse(requests)
            raise
        position = 0
        for request in requests:
            end = position + len(request.operations)
            if not request.answer.done():
                request.answer.set_result(outcomes[position:end])
            position = end

    async def _fail(self, requests: Sequence[_Request], error: Exception) -> None:
        """Tell the callers of a group that failed; one whose request breaks the program does not fail the others."""
        by_store = isinstance(error, (StoreUnavailable, LedgerCorrupt))
        self._failed = self._failed or by_store
        if len(requests) > 1 and not by_store:
            for request in requests:
                await self._write([request])
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    async def _commit(self, operations: Sequence[Operation], chains: Chains | None) -> list[Outcome]:
        group = await drive_on_loop(self._ledger.booking(operations, chains), self._committer)
        self._failed = self._failed and not group.entries
        return self._ledger.finish(group)


def _cuts(count: int, chains: Chains | None, limit: int) -> Iterator[tuple[int, int]]:
    """Give where a request of *count* operations is cut into groups of about *limit*, never within a chain."""
    start = 0
    while start < count:
        end = end_of_cut(start, count, chains, limit)
        yield start, end
        start = end


def _joined_chains(requests: Sequence[_Request]) -> Chains | None:
    """Return the chains of several requests, told apart; None where there is none."""
    if not any(request.chains for request in requests):
        return None
    joined: list[Hashable | None] = []
    for number, request in enumerate(requests):
        chains = request.chains or [None] * len(request.operations)
        joined += [None if chain is None else (number, chain) for chain in chains]
    return joined
