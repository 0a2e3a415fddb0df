"""
Reading from a standby: the same results as from the primary, a little later, with a known age.

The watch of the primary notes which entry was its last at which time. A standby is as old as the latest such time
whose entry it has; beyond a bound, nothing is read from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from spotledger.domain.books import Decision
from spotledger.domain.journal import Entry
from spotledger.errors import StoreUnavailable
from spotledger.storage.base import Wanted
from spotledger.storage.postgres.reads import PostgresReads
from spotledger.storage.steps import Steps, at_once

#: Notes whose entry the standby does not have yet: at five a second, more than an hour, which is beyond any bound.
MOMENTS: Final = 20_000

_NO_WRITES: Final = "This node reads from a standby and takes no writes; ask another one."


class StandbyStore(PostgresReads):
    """The store of a node that reads from a standby and takes no writes."""

    remote = True
    is_crowded = False
    ahead = None
    takes_writes = False

    def __init__(self, url: str, **options: Any) -> None:
        """
        Open the ledger on the standby at *url*.

        Args:
            url: A PostgreSQL URL.
            **options: The options of :class:`PostgresReads`.

        Raises:
            StoreUnavailable: It cannot be reached.
            SchemaMismatch, LedgerCorrupt: As for :class:`PostgresStore`.
        """
        self._moments: deque[tuple[float, int]] = deque(maxlen=MOMENTS)
        super().__init__(url, **options)

    def _note_followed(self, at_s: float) -> None:
        """Do nothing: how old it is, the standby does not know; see :meth:`note_head`."""

    def note_head(self, at_s: float, seq: int) -> None:
        """Note that *seq* was the last entry of the primary at the time *at_s* (`steady_s`)."""
        self._moments.append((at_s, seq))
        here = self._head_cache.head.seq
        while self._moments and self._moments[0][1] <= here:
            self._as_of_s = self._moments.popleft()[0]

    def _begin_history(self) -> None:
        self._moments.clear()

    # --- what a standby does not do -----------------------------------------------------------------------

    def begin(self, wanted: Wanted, *, ahead: bool = False) -> NoReturn:
        """Refuse: a standby takes no writes."""
        raise StoreUnavailable(_NO_WRITES)

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return nothing: the nodes that write let holds expire."""
        return []

    def leave(self, *, repeated: bool = False, void: bool = False) -> Steps[None]:
        """Do nothing: there is no lock to release."""
        return at_once(None)

    def check_write_lock(self) -> None:
        """Do nothing: there is no lock."""

    def write(self, entries: Sequence[Entry]) -> NoReturn:
        """Refuse, like :meth:`begin`."""
        raise StoreUnavailable(_NO_WRITES)

    def commit(self) -> Steps[None]:
        """Do nothing: nothing was written."""
        return at_once(None)

    def try_writing(self) -> NoReturn:
        """Refuse, like :meth:`begin`."""
        raise StoreUnavailable(_NO_WRITES)

    def publish(self, entries: Sequence[Entry], decisions: Sequence[Decision] = ()) -> None:
        """Do nothing: memory follows the journal."""

    def recover(self) -> None:
        """Advance memory to the head of the standby's journal."""
        self._ask()

    def copy_to(self, target: Path, progress: Any) -> NoReturn:
        """Refuse: use the means of the server to copy it."""
        raise StoreUnavailable("A ledger on PostgreSQL is backed up by the means of the server, such as pg_basebackup.")
