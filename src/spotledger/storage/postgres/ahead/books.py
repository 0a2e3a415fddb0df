"""
What the rules read for a group that is decided before its node has the write lock: memory, and nothing else.

Memory may be behind the journal, and does not have all idempotency keys. So the group notes what it rests on, and the
server compares that under the lock before it writes anything (`statements.STANDS`). What memory lacks is not looked up:
the group is decided again, under the lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from spotledger.clock import steady_s
from spotledger.domain.accounts import Account, Coin, HouseAccount
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.storage.base import Head, StaleDecision, StoreTime, Wanted
from spotledger.storage.encoding import key_digest
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.following.head_cache import HeadCache, Question, RemoteAccount
from spotledger.storage.postgres.session import UUID, array, number

#: How old a reading of the server's clock may be for a group to be booked by it.
READING_SECONDS: Final = 10.0
#: How much slower than this machine's steady clock the server's is taken to run, so that no time lies in the future.
SLOWER: Final = 0.001


class ClockReading(NamedTuple):
    """A reading of the server's clock: its time in ms since 1970, and between which `steady_s` it was read."""

    server_ms: int
    asked_s: float
    answered_s: float

    def now(self) -> StoreTime | None:
        """Return the server's time now, or a little less; None if the reading is too old."""
        passed = steady_s() - self.answered_s
        if not 0 <= passed <= READING_SECONDS:
            return None
        spread_s = self.answered_s - self.asked_s + passed * SLOWER
        return StoreTime(self.server_ms + int(passed * (1 - SLOWER) * 1000), int(spread_s * 1000) + 1)


class BooksAhead:
    """The books as memory has them; satisfies :class:`spotledger.storage.base.Books`."""

    def __init__(
        self,
        memory: HeadCache,
        guard: AbstractContextManager[Any],
        *,
        end: Head,
        since_seq: int,
        time_ms: int | None,
        due_ms: int,
    ) -> None:
        """
        Read from *memory*, which *guard* guards.

        Args:
            memory: The memory.
            guard: What its readers hold.
            end: The last entry of the journal on which the group is decided, which may be under way.
            since_seq: The entry after which all up to *end* are those of the group under way.
            time_ms: The server's time, in ms since 1970; None: another clock counts.
            due_ms: The time at which holds are due, in ms since 1970.
        """
        self.memory = memory
        self.end = end
        #: When the server was asked for the lock, in seconds of `steady_s`; None before.
        self.asked_s: float | None = None
        self._guard = guard
        self._since_seq = since_seq
        self._time_ms = time_ms
        self._due_ms = due_ms
        #: The keys of which the group takes it that no entry up to `since_seq` has them.
        self._new_keys: set[str] = set()

    @property
    def is_sent(self) -> bool:
        """Whether the server was asked for the lock, and for whether what was decided stands."""
        return self.asked_s is not None

    def stands(self) -> Question:
        """Return the query under the lock for whether all that the group rests on is so."""
        digests = array(UUID, [key_digest(key) for key in self._new_keys])
        due_seen_ms, due_seen_id = self.memory.due_seen
        time = None if self._time_ms is None else number(self._time_ms)
        last = number(self.end.seq), b"\\x" + self.end.hash.hex().encode()
        due = number(self._due_ms), number(due_seen_ms), number(due_seen_id)
        return sql.STANDS, (*last, time, *due, number(self._since_seq), digests)

    # --- what the rules ask for -----------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last entry on which the group is decided."""
        return self.end

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal."""
        return self.memory.epochs

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted."""
        return self.memory.coins

    @property
    def debtors(self) -> set[str]:
        """The customers who owe something, and maybe others."""
        return self.memory.debtors

    @property
    def house_accounts(self) -> Mapping[str, HouseAccount]:
        """The open house accounts by name, sorted."""
        return self.memory.house_accounts

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return those of *keys* that opened a hold which memory has; that the others are new is checked later."""
        known: dict[str, int] = {}
        for key in keys:
            hold_id = self.memory.opened_by(key)
            if hold_id is None:
                self._new_keys.add(key)
            else:
                known[key] = hold_id
        return known

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Raise StaleDecision if memory lacks any of it."""
        for customer in customers:
            self.has_customer(customer)
        for account in accounts:
            self.account(account)
        for hold_id in holds:
            self.hold(hold_id)

    def has_customer(self, customer: str) -> bool:
        """Return True if memory knows that *customer* is registered; else raise StaleDecision."""
        if not self.memory.has_customer(customer):
            raise _lacks(f"customer {customer}")
        return True

    def account(self, account: Account) -> RemoteAccount:
        """Return the account as memory has it."""
        view = self.memory.accounts.get(account)
        if view is None:
            raise _lacks(f"an account of {account.customer}")
        return view

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as memory has it; None if only the group under way can have it."""
        with self._guard:
            hold, head = self.memory.hold(hold_id), self.memory.head
        if hold is None and not head.seq < hold_id <= self.end.seq:
            raise _lacks(f"hold {hold_id}")
        return hold

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return the ids of at most *limit* open holds that expire by *now_ms*; others may be due, which is checked."""
        with self._guard:
            due = self.memory.pop_due_holds(now_ms, limit)
            self.memory.put_back_due(due)
        return due

    def entry(self, seq: int) -> Entry | None:
        """Raise StaleDecision: memory has no entries."""
        raise _lacks(f"entry {seq}")

    def reversal_of(self, seq: int) -> int | None:
        """Raise StaleDecision: memory does not have all reversals."""
        raise _lacks(f"the reversal of entry {seq}")


def can_know(memory: HeadCache, wanted: Wanted, under_way: Collection[Entry]) -> bool:
    """Return whether *memory* and the entries *under_way* may have all that is *wanted*, as far as is quick to see."""
    if wanted.entries or not wanted.keys or not memory.is_whole or not memory.head.seq:
        return False
    unknown = {key for key in wanted.hold_keys if memory.opened_by(key) is None}
    if unknown:
        unknown.difference_update(wanted.keys, [entry.key for entry in under_way])
    return not unknown


def _lacks(what: str) -> StaleDecision:
    return StaleDecision(f"memory lacks {what}")
