"""
The ledger: one method an operation, reads, and groups that are committed at once.

Writes go through :meth:`Ledger.execute`, or, in a server, through the writer (:mod:`spotledger.writer`), which calls
the same four steps: ``prepare`` decides a group of operations on an overlay, ``commit`` makes it durable, ``finish``
makes it visible and returns the outcomes, ``abandon`` undoes all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from spotledger.domain.accounts import Account, Balance, Coin, receivable_of
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import InvalidRequest, LedgerCorrupt, Refused, StoreUnavailable
from spotledger.group import Group as Group
from spotledger.group import Outcome as Outcome
from spotledger.group import Receipt as Receipt
from spotledger.group import checked_chains, decide_group
from spotledger.storage.base import CUSTOMERS as CUSTOMERS
from spotledger.storage.base import AccountView, Head, Store
from spotledger.storage.base import TrialBalance as TrialBalance
from spotledger.storage.collector import collector_at_rest

#: Rows of one page, whatever is asked for.
PAGE_LIMIT: Final = 1_000_000


class Ledger:
    """The spot accounts and their journal. Made by :func:`spotledger.open`; may be used by several threads."""

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
        self._lock = threading.RLock()
        self._stale = False
        self._corrupt: LedgerCorrupt | None = None
        self._unreadable: LedgerCorrupt | None = None
        self._prepared = False
        self._closed = False

    # --- reads --------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last acknowledged entry: what a read made now stands for."""
        return self._store.head

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
        """Return one account as it stands at the head; only coins that were ever touched are in it."""
        with self._lock:
            self._refresh()
            return self._store.account(account)

    def balances(self, account: Account, at_seq: int | None = None) -> dict[str, Balance]:
        """
        Return the balances of one account in units, now or as they stood after the entry *at_seq*.

        Raises:
            InvalidRequest: *at_seq* is above the head.
        """
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

    # --- operations ---------------------------------------------------------------------------------

    def list_coin(self, coin: str, scale: int, *, key: str) -> Receipt:
        """List *coin* with *scale* decimals (0–18). A listing never changes."""
        return self._do(ListCoin(key, coin, scale))

    def register_customer(self, customer: str, *, key: str) -> Receipt:
        """Register *customer*, an id of 1–64 of ``A-Z a-z 0-9 . _ -``."""
        return self._do(RegisterCustomer(key, customer))

    def deposit(self, customer: str, coin: str, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* (decimal text) from the outside world to what *customer* has available.

        Args:
            customer: A registered customer.
            coin: A listed coin.
            amount: Decimal text above zero, such as ``"100.50"``.
            key: The idempotency key, 1–64 characters of 0x21–0x7E, unique for ever.
            **more: ``account`` (wallet, spot, fiat), ``reference``, ``happened_ms``.

        Raises:
            UnknownCoin, UnknownCustomer, BalanceTooLarge: Kept with the key.
            InvalidAmount: Not a number of units of this coin.
            IdempotencyConflict: *key* was used before with other content.
            StoreUnavailable: It could not be written; try again with the same key.
        """
        return self._do(Deposit(key, customer, coin, amount, **more))

    def freeze(self, customer: str, coin: str, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* from available to freeze and open a hold for it; ``receipt.hold`` is its id.

        Takes ``account``, ``reference`` and ``expires_ms`` too. Raises like :meth:`deposit`, and
        ``InsufficientAvailable``, kept, where less is available. Keeps ``available + freeze``.
        """
        return self._do(Freeze(key, customer, coin, amount, **more))

    def unfreeze(self, hold: HoldName | int, amount: str | None = None, *, key: str) -> Receipt:
        """
        Move *amount* of *hold*, or all that remains of it, back to available.

        Raises:
            UnknownHold, HoldShort, HoldClosed, HoldExpired: Kept with the key.
        """
        return self._do(Unfreeze(key, str(hold) if isinstance(hold, int) else hold, amount))

    def withdraw(self, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* to the outside world: out of ``hold``, or of what ``customer`` has of ``coin`` available.

        Takes ``account``, ``reference`` and ``happened_ms`` too. Raises like :meth:`freeze` and :meth:`unfreeze`.
        """
        if isinstance(more.get("hold"), int):
            more["hold"] = str(more["hold"])
        return self._do(Withdraw(key, amount, **more))

    def transfer(
        self, from_customer: str, to_customer: str, coin: str, amount: str, *, key: str, **more: Any
    ) -> Receipt:
        """
        Move *amount* from available to available, between two customers or two accounts of one.

        Takes ``from_account``, ``to_account`` and ``reference`` too. Raises like :meth:`freeze`.
        """
        return self._do(Transfer(key, from_customer, to_customer, coin, amount, **more))

    def settle(
        self,
        base: str,
        quote: str,
        base_amount: str,
        quote_amount: str,
        buyer: SettleSide,
        seller: SettleSide,
        *,
        key: str,
        **more: Any,
    ) -> Receipt:
        """
        Book one fill of a trade as one entry; see :class:`spotledger.domain.operations.SettleSide` for the sides.

        Takes ``reference`` and ``happened_ms`` too. Refused whole, and kept, when a hold is unknown, short, closed or
        expired; refused and not kept when a hold is of another coin.
        """
        return self._do(Settle(key, base, quote, base_amount, quote_amount, buyer, seller, **more))

    def reverse(self, seq: int, reason: str, *, key: str) -> Receipt:
        """
        Undo the deposit, withdrawal, transfer or settlement of the entry *seq*, once, for a stated *reason*.

        What the customer has not got any more is booked to the house's receivable of that customer.

        Raises:
            UnknownEntry, HouseShort: Kept with the key.
            AlreadyReversed, InvalidRequest: It was reversed before, or is none that can be.
        """
        return self._do(Reverse(key, seq, reason))

    def _do(self, operation: Operation) -> Receipt:
        outcome = self.execute([operation])[0]
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    @collector_at_rest
    def execute(
        self,
        operations: Sequence[Operation],
        *,
        chains: Sequence[Hashable | None] | None = None,
        atomic: bool = False,
    ) -> list[Outcome]:
        """
        Do *operations* in order as one group, with one synced commit; later ones see the effects of earlier ones.

        Args:
            operations: What is to be done.
            chains: One value an operation: neighbours with the same one, not None, are done all or not at all.
            atomic: Do all of them or none.

        Returns:
            One outcome an operation, in order: a receipt, or the refusal. Outside chains each stands for itself.

        Raises:
            InvalidRequest: A chain, or an atomic group, is longer than 1,000 operations.
            StoreUnavailable: Nothing could be written; whether it was is known by trying again with the same keys.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._lock:
            operations = list(operations)
            group = self.prepare(operations, checked_chains(operations, chains, atomic))
            if group.entries:
                try:
                    while self.lagging:
                        self.catch_up()
                    self.commit(group)
                except BaseException:
                    self.abandon()
                    raise
            return self.finish(group)

    # --- the steps of a group -------------------------------------------------------------------------

    @collector_at_rest
    def prepare(self, operations: Sequence[Operation], chains: Sequence[Hashable | None] | None = None) -> Group:
        """
        Decide *operations* and append what comes of them to the journal; nothing of it is visible or durable yet.

        Holds whose time has come are let expire first. A group without entries needs no commit.

        Raises:
            StoreUnavailable: It could not be written; nothing of the group is left.
            LedgerCorrupt: An invariant does not hold; nothing of the group is left, and nothing more is written.
        """
        with self._lock:
            if self._prepared:
                self.abandon()  # a group that its caller has left
            self._check_writable()
            try:
                now_ms = max(self._clock_ms(), self.head.booked_ms)
                group = decide_group(self._store, operations, now_ms, chains)
                if group.entries:
                    self._store.write(group.entries)
            except BaseException as error:
                self._note(error)
                self.abandon()
                raise
            self._prepared = bool(group.entries)
            return group

    @property
    def lagging(self) -> bool:
        """Whether work behind the journal should go on before the commit of the group that is prepared."""
        return self._store.lagging

    @collector_at_rest
    def catch_up(self) -> None:
        """Do a few milliseconds of that work."""
        try:
            self._store.catch_up()
        except LedgerCorrupt as corrupt:
            self._note(corrupt)
            raise

    def commit(self, group: Group) -> None:
        """Make *group* durable. Blocks until the disk has it; may run in another thread."""
        try:
            self._store.commit()
        except LedgerCorrupt as corrupt:
            self._note(corrupt)
            raise

    @collector_at_rest
    def finish(self, group: Group) -> list[Outcome]:
        """Make the committed *group* visible and return its outcomes."""
        with self._lock:
            self._prepared = False
            if group.entries:
                try:
                    self._store.publish(group.entries)
                except BaseException as error:
                    # The group is durable: what memory could not take over, it is given by the journal.
                    self._note(error)
                    self.abandon()
                    if isinstance(error, LedgerCorrupt) or not isinstance(error, Exception):
                        raise
            return group.outcomes

    def abandon(self) -> None:
        """Forget the group that is prepared, and build what memory holds from the journal again."""
        with self._lock:
            self._stale, self._prepared = True, False
            # Where it fails now, it is tried again, or named, before the next answer.
            with suppress(StoreUnavailable, LedgerCorrupt):
                self._refresh()

    def try_writing(self) -> None:
        """
        Find out whether the disk takes anything, after it did not and while no group is prepared.

        Raises:
            StoreUnavailable: It does not.
        """
        with self._lock:
            self._check_writable()
            self._store.try_writing()

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """
        Copy the ledger, as it stands when the copying ends, to the empty file *target*; writes go on meanwhile.

        Blocks, so call it in a thread of its own. *progress* is told what is left and what there is, in pages, and
        may raise to stop it.

        Raises:
            StoreUnavailable: The copy cannot be written.
            LedgerCorrupt: The ledger is damaged, and so would be its copy.
        """
        with self._lock:
            self._check_writable()
        self._store.copy_to(target, progress)

    def close(self) -> None:
        """Let go of the ledger; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._store.close()
                finally:
                    self._release()

    def __enter__(self) -> Ledger:
        """Return the ledger itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        self.close()

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

    def _check_writable(self) -> None:
        if self._corrupt is not None:
            raise self._corrupt
        self._refresh()
