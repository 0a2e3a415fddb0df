"""
Reading from a standby: the same answers as from the server that takes writes, a little later, and it is known how much.

Whoever watches the server that takes writes tells which entry was its last, and when. What a standby has is as old as
the latest such moment whose entry it has; beyond a bound nothing is answered from it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from psycopg.pq.abc import PGresult

from spotledger.domain.journal import Entry
from spotledger.errors import StoreUnavailable
from spotledger.storage.base import Head, Wanted
from spotledger.storage.postgres.reads import PostgresReads
from spotledger.storage.steps import Steps, at_once

#: Moments whose entry the standby has not got yet; at five a second more than an hour, and beyond any bound.
MOMENTS: Final = 20_000

_NO_WRITES: Final = "This node reads from a standby and takes no writes; ask another one."


class StandbyStore(PostgresReads):
    """The store of a node that reads from a standby and takes no writes."""

    remote = True
    takes_writes = False

    def __init__(self, url: str, staleness_limit_ms: int, **options: Any) -> None:
        """
        Open the ledger on the standby at *url*.

        Args:
            url: Where it is.
            staleness_limit_ms: How old what is answered may be.
            **options: As :class:`PostgresReads` takes them.

        Raises:
            StoreUnavailable: It cannot be reached.
            SchemaMismatch, LedgerCorrupt: As for a store that takes writes.
        """
        self._limit_ms = staleness_limit_ms
        self._moments: deque[tuple[float, int]] = deque(maxlen=MOMENTS)
        self._as_of_s = float("-inf")
        super().__init__(url, **options)

    @property
    def head(self) -> Head:
        """
        The entry that memory stands at.

        Raises:
            StoreUnavailable: What is there may be older than the bound.
        """
        if (time.monotonic() - self._as_of_s) * 1000 > self._limit_ms:
            raise StoreUnavailable(
                f"What the standby has may be more than {self._limit_ms} ms old; ask another node, or try again later."
            )
        return self._head_cache.head

    @property
    def head_seq(self) -> int:
        """The entry that memory stands at, however old it is."""
        return self._head_cache.head.seq

    @property
    def staleness_ms(self) -> int:
        """How old what is answered may be at most: all that was acknowledged longer ago is in it."""
        return round(min((time.monotonic() - self._as_of_s) * 1000, 2**53))

    def note_head(self, at_s: float, seq: int) -> None:
        """Take over that *seq* was the last entry of the server that takes writes at the time *at_s* (monotonic)."""
        self._moments.append((at_s, seq))
        here = self._head_cache.head.seq
        while self._moments and self._moments[0][1] <= here:
            self._as_of_s = self._moments.popleft()[0]

    def _bring_along(self, since: Head, head: Head, news: PGresult) -> bool:
        # Of several standbys another one may be asked now, which has less than the one before; it will have it soon.
        if head.seq < since.seq:
            raise StoreUnavailable(f"the standby is at entry {head.seq}, behind entry {since.seq} that was seen before")
        return super()._bring_along(since, head, news)

    # --- what a standby does not do -----------------------------------------------------------------------

    def begin(self, wanted: Wanted) -> NoReturn:
        """Refuse: a standby takes no writes."""
        raise StoreUnavailable(_NO_WRITES)

    def leave(self, *, repeated: bool) -> Steps[None]:
        """Nothing: there is no turn to give back."""
        return at_once(None)

    def check_write_lock(self) -> None:
        """Nothing: there is no turn."""

    def write(self, entries: Sequence[Entry]) -> NoReturn:
        """Refuse, like :meth:`begin`."""
        raise StoreUnavailable(_NO_WRITES)

    @property
    def lagging(self) -> bool:
        """Never: nothing is written."""
        return False

    def catch_up(self) -> None:
        """Nothing: nothing is written."""

    def commit(self) -> Steps[None]:
        """Nothing: nothing was written."""
        return at_once(None)

    def try_writing(self) -> NoReturn:
        """Refuse, like :meth:`begin`."""
        raise StoreUnavailable(_NO_WRITES)

    def publish(self, entries: Sequence[Entry]) -> None:
        """Nothing: memory follows the journal."""

    def recover(self) -> None:
        """Bring memory to the head of the standby's journal."""
        self._ask()

    def copy_to(self, target: Path, progress: Any) -> NoReturn:
        """Refuse: a server's own means copy it."""
        raise StoreUnavailable("A ledger on PostgreSQL is backed up by the server's own means, such as pg_basebackup.")
