"""
The writer: one bounded queue, and group commit.

Whatever waits when the writer comes by becomes one group: decided on the event loop, committed with one sync in a
thread of its own, then answered. Nothing else writes while it does; access keys take their turn through ``exclusive``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from spotledger.domain.operations import Operation
from spotledger.errors import LedgerCorrupt, StoreBusy, StoreUnavailable
from spotledger.ledger import Group, Ledger, Outcome

#: Operations that may wait; a request beyond it is refused at once.
QUEUE_LIMIT: Final = 10_000
#: Operations in a group; a request with more is a group of its own.
GROUP_LIMIT: Final = 1_000
#: How often the ledger is asked for holds whose time has come while nobody writes.
EXPIRY_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Request:
    operations: Sequence[Operation]
    answer: asyncio.Future[list[Outcome]]


class Writer:
    """The server's only way to write: many callers, one group at a time."""

    def __init__(self, ledger: Ledger, *, queue_limit: int = QUEUE_LIMIT, group_limit: int = GROUP_LIMIT) -> None:
        """
        Write to *ledger*.

        Args:
            ledger: The ledger; nobody else may write to it.
            queue_limit: Operations that may wait, > 0.
            group_limit: Operations in a group, > 0.
        """
        self._ledger = ledger
        self._queue_limit = queue_limit
        self._group_limit = group_limit
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()
        self._stopping = False
        self._failed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._committer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")

    @property
    def waiting(self) -> int:
        """How many operations wait."""
        return self._waiting

    @property
    def can_write(self) -> bool:
        """Whether the last group could be written, and more can be taken."""
        return not (self._failed or self._stopping or self._ledger.corrupt) and self._waiting < self._queue_limit

    async def start(self) -> None:
        """Begin to take requests."""
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._expire())]

    async def stop(self) -> None:
        """Finish what is waiting, then take no more."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            run, expire = self._tasks
            expire.cancel()
            await asyncio.gather(run, expire, return_exceptions=True)
        self._committer.shutdown()

    async def submit(self, operations: Sequence[Operation]) -> list[Outcome]:
        """
        Have *operations* done, in order and in one group, and return one outcome each.

        Raises:
            StoreBusy: Too much is waiting, or the writer is stopping; nothing was done.
            StoreUnavailable: It could not be written; try again with the same keys.
            LedgerCorrupt: An invariant of the ledger does not hold.
        """
        if self._stopping:
            raise StoreBusy("the service is stopping; try again with the same idempotency key")
        if self._waiting + len(operations) > self._queue_limit and self._waiting:
            raise StoreBusy(
                f"{self._waiting} writes are waiting and {self._queue_limit} may;"
                " try again with the same idempotency key"
            )
        request = _Request(operations, asyncio.get_running_loop().create_future())
        self._queue.append(request)
        self._waiting += len(operations)
        self._wake.set()
        return await request.answer

    async def exclusive(self, function: Callable[[], T]) -> T:
        """Run *function*, which writes through the ledger's connection, while no group is being written."""
        async with self._turn:
            return function()

    async def _run(self) -> None:
        while not (self._stopping and not self._queue):
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            async with self._turn:
                await self._write(self._take())

    async def _expire(self) -> None:
        """Let holds expire on time even if nobody writes: an empty request makes the ledger look."""
        while True:
            await asyncio.sleep(EXPIRY_SECONDS)
            try:
                await self.submit([])
            except (StoreUnavailable, StoreBusy, LedgerCorrupt) as error:
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
            outcomes = await self._commit(operations)
        except Exception as error:  # noqa: BLE001 - every caller is told, whatever it is
            self._failed = True
            _log.error("a group of %d operations could not be written: %s", len(operations), error)
            for request in requests:
                if not request.answer.done():
                    request.answer.set_exception(error)
            return
        self._failed = False
        position = 0
        for request in requests:
            end = position + len(request.operations)
            if not request.answer.done():
                request.answer.set_result(outcomes[position:end])
            position = end

    async def _commit(self, operations: Sequence[Operation]) -> list[Outcome]:
        group = self._ledger.prepare(operations)
        if group.entries:
            try:
                while self._ledger.lagging:
                    self._ledger.catch_up()
                    await asyncio.sleep(0)
            except BaseException:
                self._ledger.abandon()
                raise
            await self._sync(group)
        return self._ledger.finish(group)

    async def _sync(self, group: Group) -> None:
        """Commit in the thread. Cancelled meanwhile, nothing is abandoned: the thread has the connection."""
        commit = asyncio.get_running_loop().run_in_executor(self._committer, self._ledger.commit, group)
        await asyncio.wait([commit])
        try:
            commit.result()
        except BaseException:
            self._ledger.abandon()
            raise
