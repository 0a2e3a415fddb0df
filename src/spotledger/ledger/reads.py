"""
The reads of the ledger: balances, holds, customers and entries, now and as of any past entry.

After a failed commit, memory is rebuilt from the journal before the next answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, TypeVar

from spotledger.clock import Clock
from spotledger.domain.accounts import Account, Balance, Coin, HouseAccount, accounts_about
from spotledger.domain.amounts import shown
from spotledger.domain.fields import check_time
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.errors import InvalidRequest, LedgerCorrupt, StoreUnavailable
from spotledger.ledger.finding import SCANNED_ENTRIES, Criteria, Span, look
from spotledger.ledger.statements import LineName, LinesRead, Scope, balances_at, lines_of
from spotledger.storage.base import AccountView, Head, Looked, Store, TrialBalance

T = TypeVar("T")

#: Rows of one page at most.
PAGE_LIMIT: Final = 1_000_000
_END_OF_TIME_MS: Final = 2**62


class LedgerReads:
    """The reads of the books; :class:`spotledger.ledger.ledger.Ledger` adds the writes."""

    def __init__(self, store: Store, clock: Clock, release: Callable[[], None] = lambda: None) -> None:
        """
        Read the books in *store*.

        Args:
            store: The journal and what is derived from it.
            clock: Tells the time, and whether it is trusted; while it is behind the head, the time stands still.
            release: Called once the ledger is closed.
        """
        self._store = store
        self.clock = clock
        self._release = release
        #: Held while a group is written.
        self._write_lock = threading.RLock()
        #: Held during a read. A remote store guards its memory itself, so that reads go on during a write.
        self._lock: AbstractContextManager[Any] = nullcontext() if store.remote else self._write_lock
        self._stale = False
        self._corrupt: LedgerCorrupt | None = None
        self._unreadable: LedgerCorrupt | None = None
        #: Whether a group was written that is neither visible nor discarded.
        self._unfinished = False
        self._closed = False

    # --- reads --------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last acknowledged entry, which a read made now stands for."""
        return self._store.head

    def to_head(self) -> None:
        """
        Bring ``head`` to the last entry that any node has acknowledged, or beyond it.

        Waits for the server of a remote store, so call it in a separate thread; does nothing on another store.

        Raises:
            StoreUnavailable: The server cannot be reached.
        """
        if self._store.remote:
            self._store.seq_at(_END_OF_TIME_MS)  # looks up the last entry of all, and so the head

    def at_one_head(self, read: Callable[[], T]) -> tuple[int, T]:
        """
        Return the ``seq`` that all of an answer stands for, and the answer, which *read* returns.

        *read* reads what is now, or entries, of this ledger. It is repeated if other nodes write meanwhile.

        Raises:
            StoreUnavailable: The server cannot be reached, or the ledger changes too fast.
        """
        with self._lock:
            self._refresh()
            return self._store.at_one_head(read)

    @property
    def sealing_lag(self) -> int | None:
        """Entries of full segments that are not read from the books yet; None where nothing is sealed."""
        return self._store.sealing_lag

    @property
    def sealing_restarts(self) -> int:
        """How often the process that seals ended and was started again, or is about to be."""
        return self._store.sealing_restarts

    @property
    def ledger_id(self) -> str:
        """The id of the ledger, with which its hash chain begins."""
        return self._store.ledger_id

    @property
    def epoch(self) -> int:
        """The current epoch; each restore from a backup begins a new one."""
        return self._store.epochs.current

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal."""
        return self._store.epochs

    @property
    def now_ms(self) -> int:
        """The time at which an entry would be booked now, in milliseconds since 1970."""
        return max(self.clock.now_ms(), self.head.booked_ms)

    @property
    def clock_distrust(self) -> str | None:
        """Why nothing is booked because of the clock now, in words; None where something may be."""
        return self.clock.distrust()

    @property
    def remote(self) -> bool:
        """Whether a write waits for a server."""
        return self._store.remote

    @property
    def key_tables(self) -> Any:
        """The tables of access keys and operator tokens, which are not in the journal."""
        return self._store.key_tables

    @property
    def corrupt(self) -> LedgerCorrupt | None:
        """The damage because of which nothing more is written, or None."""
        return self._corrupt

    @property
    def rebuilds(self) -> int:
        """How often what is derived from the journal was found damaged or missing since the start, and made again."""
        return self._store.rebuilds

    @property
    def takes_writes(self) -> bool:
        """Whether anything can be written now; False while the idempotency keys are unknown (see ``rebuilding``)."""
        return self._store.takes_writes

    @property
    def rebuilding(self) -> str | None:
        """How far what is derived from the journal has been made again, in words; None where it is whole."""
        return self._store.rebuilding

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; a new object after each listing."""
        return self._store.coins

    @property
    def house_accounts(self) -> Mapping[str, HouseAccount]:
        """The open house accounts by name, which begins with ``@``, sorted; a new object after one is opened."""
        return self._store.house_accounts

    def account(self, account: Account) -> AccountView:
        """
        Return one account as it stands at the head, with the coins that were ever touched.

        The view follows later entries; its mapping of balances is read-only.

        Raises:
            InvalidRequest: *account* is not an :class:`Account`.
        """
        _check_account(account)
        with self._lock:
            self._refresh()
            return self._store.account(account)

    def balances(self, account: Account, at_seq: int | None = None) -> dict[str, Balance]:
        """
        Return the balances of one account in units, now or as they stood after the entry *at_seq*.

        Raises:
            InvalidRequest: *at_seq* is above the head, or *account* is not an :class:`Account`.
        """
        _check_account(account)
        with self._reading():
            if at_seq is None:
                return dict(sorted(self._store.balances_now(account).items()))
            self._check_past(at_seq)
            return self._store.balances_at(account, at_seq)

    def seq_at(self, time_ms: int) -> int:
        """
        Return the ``seq`` of the last entry booked at or before *time_ms*; 0 if there is none, as at the time 0.

        Raises:
            InvalidRequest: *time_ms* is in the future, when more entries may be booked, or before the year 2001.
        """
        with self._reading():
            now_ms = self.now_ms
            if time_ms:
                check_time(time_ms, "at_ms")
            if time_ms > now_ms:
                raise InvalidRequest(
                    f"at_ms is {time_ms}, in the future; a time up to {now_ms}, which is now, would pass",
                    field="at_ms",
                    now_ms=now_ms,
                )
            return self._store.seq_at(time_ms)

    def statement(self, customer: str, coin: str | None = None, after_seq: int = 0, limit: int = 1000) -> list[Entry]:
        """Return at most *limit* entries after *after_seq* that touch *customer* (and *coin*), in order."""
        with self._reading():
            after_seq, limit = self._page(after_seq, limit)
            seqs = self._store.account_seqs(accounts_about(customer), coin, after_seq, limit)
            return self._store.entries_of(seqs)

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        with self._reading():
            return self._store.reversal_of(seq) if self._is_booked(seq) else None

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        with self._reading():
            return self._store.has_customer(customer)

    def customers(self, after: str = "", limit: int = 1000) -> list[str]:
        """Return at most *limit* customer ids above *after*, in order."""
        with self._reading():
            return self._store.customers(after, self._page(0, limit)[1])

    def hold(self, hold_id: int) -> Hold | None:
        """Return one hold, open (``due`` if its time has come) or closed, or None."""
        with self._reading():
            hold = self._store.hold(hold_id) if self._is_booked(hold_id) else None
            return None if hold is None else hold.read_at(self.now_ms)

    def holds(self, customer: str, state: str | None = None, after: int = 0, limit: int = 1000) -> list[Hold]:
        """
        Return at most *limit* holds of *customer* with ids above *after*: ``open``, ``closed``, or both (None).

        Raises:
            InvalidRequest: *limit* is below 1, or *state* is none of these.
        """
        if state not in (None, "open", "closed"):
            raise InvalidRequest(f"state is {state!r}; open or closed would pass", field="state")
        with self._reading():
            after, limit = self._page(after, limit)
            return self._as_of_now(self._store.holds(customer, state, after, limit))

    def old_holds(self, before_ms: int, after: int = 0, limit: int = 1000) -> list[Hold]:
        """Return at most *limit* open holds with ids above *after*, opened at or before *before_ms*."""
        with self._reading():
            after, limit = self._page(after, limit)
            return self._as_of_now(self._store.old_holds(before_ms, after, limit))

    def _as_of_now(self, holds: list[Hold]) -> list[Hold]:
        now_ms = self.now_ms
        return [hold.read_at(now_ms) for hold in holds]

    def trial_balance(self, at_seq: int | None = None) -> TrialBalance:
        """
        Return the sum of all customers' balances and each house account's balance, by coin, as of one entry.

        Reads all balances, and the entries between them and *at_seq*, so call it in a separate thread; reads and writes
        go on meanwhile.

        Args:
            at_seq: The entry; None for the last one.

        Raises:
            InvalidRequest: *at_seq* is above the head.
        """
        with self._lock:
            self._refresh()
            self._check_past(at_seq)
            self._store.go_on_rebuilding()
        with self._noting():
            return self._store.trial_balance(at_seq)

    def entry(self, seq: int) -> Entry | None:
        """Return the entry *seq*, or None."""
        with self._reading():
            return self._store.entry(seq) if self._is_booked(seq) else None

    def entries(self, after_seq: int = 0, limit: int = 1000) -> list[Entry]:
        """Return at most *limit* entries after *after_seq*, in order and without gaps."""
        with self._reading():
            return self._store.entries(*self._page(after_seq, limit))

    def entry_of_key(self, key: str) -> Entry | None:
        """Return the entry of an idempotency key, or None if the key was never used."""
        if not key.isascii():
            return None  # not a valid key
        with self._reading():
            seq = self._store.find_keys([key]).get(key)
            return None if seq is None else self._store.entry(seq)

    # --- finding entries --------------------------------------------------------------------------------

    def between(self, from_ms: int | None = None, to_ms: int | None = None) -> Span:
        """
        Return the entries booked from *from_ms* on and before *to_ms*, in ms since 1970; None: no bound.

        Times in the future are bounds too: entries up to the head are meant.
        """
        with self._reading():
            head = self._store.head
            after_seq = 0 if from_ms is None else self._store.seq_at(from_ms - 1)
            to_seq = head.seq if to_ms is None or to_ms > head.booked_ms else self._store.seq_at(to_ms - 1)
            return Span(min(after_seq, head.seq), to_seq)

    def look(self, criteria: Criteria, span: Span, limit: int = 1000, look_at: int = SCANNED_ENTRIES) -> Looked:
        """Return at most *limit* entries of *span* that match, after looking at *look_at* entries at most."""
        with self._reading():
            return look(self._store, criteria, span, limit, look_at)

    def find(
        self,
        criteria: Criteria,
        *,
        from_ms: int | None = None,
        to_ms: int | None = None,
        after_seq: int = 0,
        limit: int = 1000,
    ) -> Looked:
        """
        Return a page of the entries that match, in order.

        A page looks at a bounded number of entries, so it may be short or empty before the end of the journal. Go on
        after its ``to_seq`` until that is where the page began.

        Args:
            criteria: What the entries have to have.
            from_ms: Only entries booked then or later, in ms since 1970.
            to_ms: Only entries booked before.
            after_seq: Only entries after this one.
            limit: The most entries to return.
        """
        after_seq, limit = self._page(after_seq, limit)
        span = self.between(from_ms, to_ms)
        return self.look(criteria, span._replace(after_seq=max(after_seq, span.after_seq)), limit)

    # --- statements -------------------------------------------------------------------------------------

    def statement_balances(self, scope: Scope, seq: int) -> dict[LineName, Balance]:
        """Return the balances that *scope* is about, in units after the entry *seq*, which is at most the head."""
        with self._reading():
            return balances_at(self._store, scope, seq)

    def statement_lines(self, scope: Scope, span: Span, count: int = 1000) -> LinesRead:
        """
        Return the next lines of the statement of *span*, those of *count* entries at most, in order.

        Go on after ``to_seq`` of the lines, until that is the end of the span; :meth:`between` returns the span of a
        period. :class:`spotledger.ledger.statements.RunningBalances` checks that opening, lines and closing add up.
        """
        with self._reading():
            return lines_of(self._store, scope, span, count)

    def _check_past(self, at_seq: int | None) -> None:
        """Refuse an entry that does not exist yet."""
        if at_seq is not None and not 0 <= at_seq <= self.head.seq:
            raise InvalidRequest(
                f"at_seq is {at_seq}; 0 to {self.head.seq}, the head of the journal, would pass", field="at_seq"
            )

    def _is_booked(self, seq: int) -> bool:
        return 0 < seq <= self.head.seq

    def _page(self, after: int, limit: int) -> tuple[int, int]:
        """Return *after* and *limit*, cut to what a store takes; refuse a limit below 1."""
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise InvalidRequest(f"limit is {limit!r}; a whole number above zero would pass", field="limit")
        return max(0, min(after, self.head.seq)), min(limit, PAGE_LIMIT)

    def go_on_rebuilding(self) -> None:
        """Take over what is derived where it has been made again since it was last needed; does not wait for it."""
        with self._reading():
            self._store.go_on_rebuilding()

    # --- before each answer ---------------------------------------------------------------------------

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep writes out for the length of a ``with`` block; damage found in the journal stops them for good."""
        with self._lock, self._noting():
            self._refresh()
            yield

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Stop writes if the block finds the journal damaged; a remote store's server judges that for itself."""
        try:
            yield
        except LedgerCorrupt as corrupt:
            if not self._store.remote:
                self._note(corrupt)
            raise

    def _refresh(self) -> None:
        if self._closed:
            raise StoreUnavailable("the ledger is closed; open it again")
        if self._unreadable is not None:
            raise self._unreadable
        if self._stale:
            try:
                self._store.recover()
            except LedgerCorrupt as corrupt:
                # Memory no longer matches the journal, and rebuilding it would fail again.
                self._note(corrupt)
                self._unreadable = corrupt
                raise
            self._stale = False

    def _note(self, error: BaseException) -> None:
        if isinstance(error, LedgerCorrupt) and error.stops_writes and self._corrupt is None:
            self._corrupt = error


def _check_account(account: object) -> None:
    if not isinstance(account, Account):
        raise InvalidRequest(f"account is {shown(account)}; an Account(customer, kind) would pass", field="account")
