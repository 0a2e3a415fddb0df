"""
The ledger: one method an operation, and groups that are committed at once; its reads stand in
:mod:`spotledger.ledger.reads`.

Writes go through :meth:`Ledger.execute`, or, in a server, through the writer (:mod:`spotledger.ledger.writer`). Both do
the same: ``booking`` decides a group of operations on an overlay and makes it durable, or undoes all of it; ``finish``
makes it visible and returns the outcomes. What waits for a disk or a server is a step of ``booking``, which the writer
drives on its event loop (:mod:`spotledger.storage.steps`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

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
from spotledger.errors import LedgerCorrupt, Refused, StoreUnavailable
from spotledger.ledger.group import Deciding, Group, Outcome as Outcome, Receipt as Receipt, checked_chains, wanted_of
from spotledger.ledger.reads import LedgerReads
from spotledger.storage.base import CUSTOMERS as CUSTOMERS, TrialBalance as TrialBalance, Wanted
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.steps import Steps, drive

#: Operations that are decided before what came of them is written: few enough that all about them is still in the
#: processor's cache, and that neither a server nor the other tasks of an event loop wait long.
PIECE_OPERATIONS: Final = 64


class Ledger(LedgerReads):
    """The spot accounts and their journal. Made by :func:`spotledger.open`; may be used by several threads."""

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

    @gc_paused
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
            InvalidRequest: A chain, or an atomic group, is longer than 1,000 operations; *chains* is of another length.
            StoreUnavailable: Nothing could be written; whether it was is known by trying again with the same keys.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._write_lock:
            operations = list(operations)
            return self.finish(self.book(operations, checked_chains(operations, chains, atomic)))

    # --- the steps of a group -------------------------------------------------------------------------

    def book(self, operations: Sequence[Operation], chains: Sequence[Hashable | None] | None = None) -> Group:
        """
        Decide *operations* and make what comes of them durable; :meth:`finish` makes it visible.

        Raises:
            StoreUnavailable: Nothing could be written; whether it was is known by trying again with the same keys.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._write_lock:
            return drive(self.booking(operations, chains))

    def booking(self, operations: Sequence[Operation], chains: Sequence[Hashable | None] | None = None) -> Steps[Group]:
        """
        Do what :meth:`book` says in steps; nobody else writes to the ledger until they have ended.

        Holds whose time has come are let expire first. The group is decided in pieces, and each is handed to the store;
        between two of them, others may have their turn. A group without entries needs no commit.
        """
        with self._write_lock:
            if self._unfinished:
                self.abandon()  # a group that its caller has left
            self._check_writable()
        try:
            wanted = wanted_of(operations)
            store_ms = yield from self._store.begin(wanted)
            deciding = self._begin_deciding(operations, chains, wanted, store_ms)
            while not deciding.is_done:
                yield None
                self._go_on_deciding(deciding)
            group = deciding.group
            if group.entries:
                yield from self._store.commit()
            else:
                yield from self._store.leave(repeated=any(outcome.replayed for outcome in group.outcomes))
        except BaseException as error:
            yield from self._giving_up(error)
            raise
        return group

    @gc_paused
    def _begin_deciding(
        self,
        operations: Sequence[Operation],
        chains: Sequence[Hashable | None] | None,
        wanted: Wanted,
        store_ms: int | None,
    ) -> Deciding:
        """Begin a group, and decide its first piece."""
        with self._write_lock:
            now_ms = max(self._clock_ms() if store_ms is None else store_ms, self.head.booked_ms)
            deciding = Deciding(self._store, operations, now_ms, chains, wanted)
            self._decide_piece(deciding)
            return deciding

    @gc_paused
    def _go_on_deciding(self, deciding: Deciding) -> None:
        with self._write_lock:
            self._decide_piece(deciding)

    def _decide_piece(self, deciding: Deciding) -> None:
        try:
            entries = deciding.go_on(PIECE_OPERATIONS)
        except LedgerCorrupt:
            # Decided half on what was and half on what others have made of it, nothing needs to fit.
            self._store.check_write_lock()
            raise
        if entries:
            self._unfinished = True
            self._store.write(entries)

    def _giving_up(self, error: BaseException) -> Steps[None]:
        """Abandon what *error* ended; where that waits for a server, and somebody drives on, in a step."""
        self._note(error)
        if self._store.remote and isinstance(error, Exception):
            yield self.abandon
        else:
            self.abandon()

    @gc_paused
    def finish(self, group: Group) -> list[Outcome]:
        """Make the committed *group* visible and return its outcomes."""
        with self._write_lock:
            self._unfinished = False
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
        """Forget the group under way, and build what memory holds from the journal again."""
        with self._write_lock:
            self._unfinished = False
            # A store that waits for a server has nothing in memory that is not durable: reads go on from it meanwhile.
            self._stale = not self._store.remote
            # Where it fails now, it is tried again, or named, before the next answer.
            with suppress(StoreUnavailable, LedgerCorrupt):
                if self._store.remote:
                    self._store.recover()
                else:
                    self._refresh()

    def try_writing(self) -> None:
        """
        Find out whether the disk takes anything, after it did not and while no group is under way.

        Raises:
            StoreUnavailable: It does not.
        """
        with self._write_lock:
            self._check_writable()
            self._store.try_writing()

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """
        Copy the ledger, as it stands when the copying ends, to the empty file *target*; writes go on meanwhile.

        Blocks, so call it in a thread of its own. *progress* is told what is left and what there is, in entries, and
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
        with self._write_lock:
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

    def _check_writable(self) -> None:
        if self._corrupt is not None:
            raise self._corrupt
        self._refresh()
