"""What the rules read for a group: what was looked up with the write lock, while that is true, and else by a read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.operations import expiry_key
from spotledger.storage.base import Wanted
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.lookups import LookupBatch, Lookups
from spotledger.storage.postgres.reads import PostgresReads
from spotledger.storage.postgres.rows import Found, found_in
from spotledger.storage.postgres.session import Session
from spotledger.storage.steps import Steps

#: Pages of due holds that one group reads besides the first.
DUE_PAGES: Final = 10


class GroupReads(PostgresReads):
    """The reads of a store that writes."""

    _lookups: Lookups | None = None

    def _lookups_at_head(self) -> Lookups | None:
        """Return what was looked up for the group while it is still true; other threads may call this, too."""
        lookups = self._lookups
        return lookups if lookups is not None and lookups.head_seq == self._head_cache.head.seq else None

    def _shrink(self) -> None:
        """Evict what exceeds the bounds of memory, but not while a group uses its accounts."""
        if not self.is_writing:
            super()._shrink()

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each of *keys* that is known."""
        lookups = self._lookups_at_head()
        if lookups is not None and lookups.keys_asked.issuperset(keys):
            return {key: lookups.keys[key] for key in keys if key in lookups.keys}
        return super().find_keys(keys)

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Load what the rules will read and was not looked up with the lock."""
        lookups = self._lookups_at_head()
        if lookups is not None:
            holds = [hold_id for hold_id in holds if hold_id not in lookups.holds_absent]
        super().load(customers, accounts, holds)

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return the ids of at most *limit* open holds that expire by *now_ms*, with the write lock."""
        found: dict[int, Hold] = {}
        while len(found) < limit:
            with self._guard:
                due = self._head_cache.pop_due_holds(now_ms, limit - len(found))
            if not due:
                break
            try:
                self._load_holds(due)
            except BaseException:
                with self._guard:
                    self._head_cache.put_back_due([*found, *due])
                raise
            holds = ((hold_id, self.hold(hold_id)) for hold_id in due)
            found.update((hold_id, hold) for hold_id, hold in holds if hold is not None and hold.closed_seq is None)
        with self._guard:
            for hold in found.values():
                self._head_cache.watch_overdue(hold)
        lookups = self._lookups_at_head()
        if lookups is not None:
            # They are open, so the idempotency keys of their expiry are not known.
            lookups.keys_asked.update(map(expiry_key, found))
        return list(found)

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""
        lookups = self._lookups_at_head()
        if lookups is not None and customer in lookups.customers_absent:
            return False
        return super().has_customer(customer)

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None."""
        lookups = self._lookups_at_head()
        if lookups is not None and hold_id in lookups.holds_absent:
            return None
        return super().hold(hold_id)

    def entry(self, seq: int) -> Entry | None:
        """Return one entry, or None."""
        lookups = self._lookups_at_head()
        found = lookups.entries.get(seq) if lookups is not None else None
        return found if found is not None else super().entry(seq)

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        lookups = self._lookups_at_head()
        if lookups is not None and seq in lookups.reversals_asked:
            return lookups.reversals.get(seq)
        return super().reversal_of(seq)

    # --- the look-ups of a group ------------------------------------------------------------------------

    def _look_for_due(self, session: Session, batch: LookupBatch) -> Steps[None]:
        """Read on where a page of due holds was full: all of them may be closed by what is not sealed."""
        for _ in range(DUE_PAGES):
            question = batch.due_question()
            if question is None:
                return
            session.send(question[0], *question[1])
            session.send(sql.HEAD)
            page, now = yield from session.answers()
            with self._guard:
                memory = self._head_cache
                if not batch.is_about(memory) or memory.base > found_in(now, self.ledger_id).sealed_seq:
                    return
                batch.take_due(page)

    @gc_paused
    def _lookup_batch(self, wanted: Wanted, now_ms: int | None) -> LookupBatch:
        """Return the queries for what memory lacks of *wanted*."""
        with self._guard:
            return LookupBatch(self._head_cache, wanted, now_ms)

    @gc_paused
    def _take_lookups(self, batch: LookupBatch, answers: Sequence[PGresult], found: Found) -> bool:
        """Add what was looked up to memory; return False, and do nothing, if memory cannot be joined with it."""
        with self._guard:
            memory = self._head_cache
            if not batch.is_about(memory) or memory.head != found.head or memory.base > found.sealed_seq:
                return False
            self._lookups = batch.lookups(answers, memory)
            return True
