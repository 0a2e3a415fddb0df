"""What the rules read for a group: what was looked up with the write lock, while that is true, and else by a read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.operations import expiry_key
from spotledger.storage.postgres.lookups import Lookups
from spotledger.storage.postgres.reads import PostgresReads


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
