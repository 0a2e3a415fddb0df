"""Dry runs in a server: what writes would answer, decided between two groups of the writer and discarded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from spotledger.domain.journal import LIBRARY
from spotledger.domain.operations import Operation
from spotledger.errors import StoreBusy, StoreUnavailable
from spotledger.ledger.group import Chains, checked_chains, weight_of
from spotledger.ledger.ledger import Ledger, Outcome
from spotledger.storage.steps import drive_on_loop

#: Dry runs that may wait; one beyond that is refused at once.
DRY_RUN_LIMIT: Final = 16
#: How long a dry run may take, on a store that other nodes may hold up.
DRY_RUN_SECONDS: Final = 10.0


class DryRuns:
    """The dry runs of one writer, one at a time."""

    def __init__(
        self, ledger: Ledger, write_lock: asyncio.Lock, executor: Executor, check_room: Callable[[int], None]
    ) -> None:
        """
        Try writes of *ledger*.

        Args:
            ledger: The ledger.
            write_lock: Whoever has it may decide on the ledger.
            executor: Waits for what blocks.
            check_room: Refuses so many operations if the writer takes none now.
        """
        self._ledger = ledger
        self._write_lock = write_lock
        self._executor = executor
        self._check_room = check_room
        #: Held by the one that waits for the write lock or has it: so the writer waits for one at most.
        self._next = asyncio.Lock()
        #: Those that are not done. The writer decides nothing ahead meanwhile, so that the write lock becomes free.
        self.tasks: set[asyncio.Task[list[Outcome]]] = set()

    async def execute(
        self,
        operations: Sequence[Operation],
        chains: Chains | None = None,
        *,
        atomic: bool = False,
        actor: str = LIBRARY,
    ) -> list[Outcome]:
        """
        Return the outcomes that *operations* would have on what is committed now; nothing is written.

        Takes and raises what :meth:`Ledger.execute` does.

        Raises:
            StoreBusy: The writer takes no requests now, or too many dry runs are waiting.
            StoreUnavailable: The database did not answer in time.
        """
        chains = checked_chains(operations, chains, atomic)
        self._check_room(weight_of(operations))
        if len(self.tasks) >= DRY_RUN_LIMIT:
            raise StoreBusy(f"{len(self.tasks)} dry runs are waiting and {DRY_RUN_LIMIT} may; try again later")
        # A task of its own: it has to leave the store in order although its caller may be gone.
        task = asyncio.create_task(self._try(operations, chains, [actor] * len(operations)))
        self.tasks.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait([task], timeout=DRY_RUN_SECONDS)
        if not done:
            raise StoreUnavailable("the dry run was not answered in time; try again")
        return task.result()

    def _ended(self, task: asyncio.Task[list[Outcome]]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # else it is reported as lost if the caller is gone

    async def _try(
        self, operations: Sequence[Operation], chains: Chains | None, actors: Sequence[str]
    ) -> list[Outcome]:
        async with self._next, self._write_lock:
            return await drive_on_loop(self._ledger.trying(operations, chains, actors), self._executor)
