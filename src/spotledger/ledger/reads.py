"""
The reads of the ledger: balances, holds, customers and entries, now and as of any past entry.

What memory holds is made good before each answer where a failed commit left it in doubt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

from spotledger.domain.accounts import Account, Balance, Coin, receivable_of
from spotledger.domain.amounts import shown
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import InvalidRequest, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import AccountView, Head, Store, TrialBalance

#: Rows of one page, whatever is asked for.
PAGE_LIMIT: Final = 1_000_000
_END_OF_TIME_MS: Final = 2**62


class LedgerReads:
    """What can be asked of the books; :class:`spotledger.ledger.ledger.Ledger` adds what can be done to them."""

    def __init__(self, store: Store, clock_ms: Callable[[], int], release: Callable[[], None] = lambda: None) -> None:
        """
        Keep the books that *store* remembers.

        Args:
            store: The journal and what is derived from it.
            clock_ms: The time in milliseconds since 1970; where it jumps back, time stands still.
            release: Called once the ledger is closed.
        """
        self._store = store
        self._clock_ms = clock_ms
        self._release = release
        #: Held for the length of a group.
        self._write_lock = threading.RLock()
        #: Held for the length of a read. A store that waits for a server guards its memory itself: reads go on.
        self._lock: AbstractContextManager[Any] = nullcontext() if store.remote else self._write_lock
        self._stale = False
        self._corrupt: LedgerCorrupt | None = None
        self._unreadable: LedgerCorrupt | None = None
        #: Whether entries of a group were written that are neither visible nor abandoned.
        self._unfinished = False
        self._closed = False

    # --- reads --------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last acknowledged entry: what a read made now stands for."""
        return self._store.head

    def to_head(self) -> None:
        """
        Bring ``head`` to the last entry that any node has been answered for, or beyond it.

        Waits for the server where there is one, so call it in a thread of its own; does nothing where there is none.

        Raises:
            StoreUnavailable: The server is away.
        """
        if self._store.remote:
            self._store.seq_at(_END_OF_TIME_MS)  # the last of all entries is looked up by asking for the head

    @property
    def ledger_id(self) -> str:
        """The ledger's own id, which its chain of hashes begins with."""
        return self._store.ledger_id

    @property
    def epoch(self) -> int:
        """How often the ledger was restored from a backup, plus one."""
        return self._store.epoch

    @property
    def now_ms(self) -> int:
        """The time in milliseconds since 1970 that an entry would be booked at."""
        return max(self._clock_ms(), self.head.booked_ms)

    @property
    def remote(self) -> bool:
        """Whether a write waits for a server, and not only for a disk."""
        return self._store.remote

    @property
    def key_tables(self) -> Any:
        """The tables of access keys and operator tokens, which are not in the journal."""
        return self._store.key_tables

    @property
    def corrupt(self) -> LedgerCorrupt | None:
        """Why nothing more is written, or None."""
        return self._corrupt

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; another object after each listing, else the same."""
        return self._store.coins

    def account(self, account: Account) -> AccountView:
        """
        Return one account as it stands at the head; only coins that were ever touched are in it.

        What comes back is the ledger's own and follows what is booked; its mapping of balances cannot be changed.

        Raises:
            InvalidRequest: *account* is no :class:`Account`.
        """
        _check_account(account)
        with self._lock:
            self._refresh()
            return self._store.account(account)

    def balances(self, account: Account, at_seq: int | None = None) -> dict[str, Balance]:
        """
        Return the balances of one account in units, now or as they stood after the entry *at_seq*.

        Raises:
            InvalidRequest: *at_seq* is above the head, or *account* is no :class:`Account`.
        """
        _check_account(account)
        with self._lock:
            self._refresh()
            if at_seq is None:
                return dict(sorted(self._store.account(account).balances.items()))
            if not 0 <= at_seq <= self.head.seq:
                raise InvalidRequest(
                    f"at_seq is {at_seq}; 0 to {self.head.seq}, the head of the journal, would pass", field="at_seq"
                )
            return self._store.balances_at(account, at_seq)

    def seq_at(self, time_ms: int) -> int:
        """
        Return the last entry booked at or before *time_ms*; 0 where there is none.

        Raises:
            InvalidRequest: *time_ms* is in the future, where entries may still be booked.
        """
        with self._lock:
            self._refresh()
            now_ms = max(self._clock_ms(), self.head.booked_ms)
            if not 0 <= time_ms <= now_ms:
                raise InvalidRequest(
                    f"at_ms is {time_ms}; a time from 0 to {now_ms}, which is now, would pass", field="at_ms"
                )
            return self._store.seq_at(time_ms)

    def statement(self, customer: str, coin: str | None = None, after_seq: int = 0, limit: int = 1000) -> list[Entry]:
        """Return at most *limit* entries after *after_seq* about *customer* (and *coin*), in order."""
        with self._lock:
            self._refresh()
            after_seq, limit = self._page(after_seq, limit)
            owners = (customer, receivable_of(customer).customer)
            seqs = self._store.account_seqs(owners, coin, after_seq, limit)
            entries = (self._store.entry(seq) for seq in seqs)
            return [entry for entry in entries if entry is not None]

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        with self._lock:
            self._refresh()
            return self._store.reversal_of(seq) if self._is_booked(seq) else None

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        with self._lock:
            self._refresh()
            return self._store.has_customer(customer)

    def customers(self, after: str = "", limit: int = 1000) -> list[str]:
        """Return the ids of at most *limit* customers above *after*, in order."""
        with self._lock:
            self._refresh()
            return self._store.customers(after, self._page(0, limit)[1])

    def hold(self, hold_id: int) -> Hold | None:
        """Return one hold, open or closed, or None."""
        with self._lock:
            self._refresh()
            return self._store.hold(hold_id) if self._is_booked(hold_id) else None

    def holds(self, customer: str, state: str | None = None, after: int = 0, limit: int = 1000) -> list[Hold]:
        """
        Return at most *limit* holds of *customer* with ids above *after*: ``open``, ``closed``, or both (None).

        Raises:
            InvalidRequest: *limit* is below 1, or *state* none of these.
        """
        if state not in (None, "open", "closed"):
            raise InvalidRequest(f"state is {state!r}; open or closed would pass", field="state")
        with self._lock:
            self._refresh()
            after, limit = self._page(after, limit)
            return self._store.holds(customer, state, after, limit)

    def old_holds(self, before_ms: int, after: int = 0, limit: int = 1000) -> list[Hold]:
        """Return at most *limit* open holds of anybody with ids above *after*, opened at or before *before_ms*."""
        with self._lock:
            self._refresh()
            after, limit = self._page(after, limit)
            return self._store.old_holds(before_ms, after, limit)

    def trial_balance(self) -> TrialBalance:
        """
        Add up what all customers together and each house account have of each coin, as of one entry.

        Reads the whole of the balances, so call it in a thread of its own; others may read and write meanwhile.
        """
        with self._lock:
            self._refresh()
        return self._store.trial_balance()

    def entry(self, seq: int) -> Entry | None:
        """Return the entry *seq*, or None."""
        with self._lock:
            self._refresh()
            return self._store.entry(seq) if self._is_booked(seq) else None

    def entries(self, after_seq: int = 0, limit: int = 1000) -> list[Entry]:
        """Return at most *limit* entries after *after_seq*, in order, without gaps."""
        with self._lock:
            self._refresh()
            return self._store.entries(*self._page(after_seq, limit))

    def entry_of_key(self, key: str) -> Entry | None:
        """Return the entry that an idempotency key led to, or None where it was never used."""
        if not key.isascii():
            return None  # no key ever was
        with self._lock:
            self._refresh()
            seq = self._store.find_keys([key]).get(key)
            return None if seq is None else self._store.entry(seq)

    def _is_booked(self, seq: int) -> bool:
        return 0 < seq <= self.head.seq

    def _page(self, after: int, limit: int) -> tuple[int, int]:
        """Return *after* and *limit* within what a store can hold; a limit below 1 must not mean everything."""
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InvalidRequest(f"limit is {limit!r}; a whole number above zero would pass", field="limit")
        return max(0, min(after, self.head.seq)), min(limit, PAGE_LIMIT)

    # --- before each answer ---------------------------------------------------------------------------

    def _refresh(self) -> None:
        if self._closed:
            raise StoreUnavailable("the ledger is closed; open it again")
        if self._unreadable is not None:
            raise self._unreadable
        if self._stale:
            try:
                self._store.recover()
            except LedgerCorrupt as corrupt:
                # What memory holds is not the journal's any more, and building it again would end the same way.
                self._note(corrupt)
                self._unreadable = corrupt
                raise
            self._stale = False

    def _note(self, error: BaseException) -> None:
        if isinstance(error, LedgerCorrupt) and self._corrupt is None:
            self._corrupt = error


def _check_account(account: object) -> None:
    if not isinstance(account, Account):
        raise InvalidRequest(f"account is {shown(account)}; an Account(customer, kind) would pass", field="account")
