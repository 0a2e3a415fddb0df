"""
The ledger: groups of operations that are committed together; ``operation_calls.py`` has a method for each operation.

Writes go through :meth:`Ledger.execute` or, in a server, through :mod:`spotledger.ledger.writer`. Both do the same:
``booking`` decides a group on an overlay and makes it durable, or undoes all of it; ``finish`` makes it visible and
returns the outcomes. ``booking`` is a generator of steps (:mod:`spotledger.storage.steps`), so that the writer can wait
for a disk or a server on its event loop. Reads are in :mod:`spotledger.ledger.reads`.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from spotledger.domain.journal import EPOCH_ID_BYTES, LIBRARY, begin_epoch
from spotledger.domain.operations import Operation, check_reference
from spotledger.domain.positions import next_epoch
from spotledger.errors import ClockUntrusted, InvalidRequest, LedgerCorrupt, Refused, StoreUnavailable
from spotledger.ledger.group import Chains, Group, Outcome as Outcome, Receipt as Receipt, checked_chains, wanted_of
from spotledger.ledger.operation_calls import OperationCalls
from spotledger.ledger.reads import LedgerReads
from spotledger.storage.base import CUSTOMERS as CUSTOMERS, StaleDecision, TrialBalance as TrialBalance, Wanted
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.steps import Steps, drive

#: Operations that are decided before their entries are written: few enough to stay in the processor's cache, and not
#: to keep a server or the other tasks of an event loop waiting.
PIECE_OPERATIONS: Final = 64
#: Keys, or accounts, that are loaded before other tasks may run; a remote store has looked them up with the lock.
LOADED_TOGETHER: Final = 50


class Ledger(OperationCalls, LedgerReads):
    """The spot accounts and their journal. Opened by :func:`spotledger.open`; safe to use from several threads."""

    # --- writes -------------------------------------------------------------------------------------

    def _do(self, operation: Operation, dry_run: bool = False) -> Receipt:
        outcome = self.execute([operation], dry_run=dry_run)[0]
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    @gc_paused
    def execute(
        self,
        operations: Sequence[Operation],
        *,
        chains: Chains | None = None,
        atomic: bool = False,
        actor: str = LIBRARY,
        dry_run: bool = False,
    ) -> list[Outcome]:
        """
        Execute *operations* in order as one group, with one synced commit; later ones see the effects of earlier ones.

        Args:
            operations: The operations.
            chains: One value per operation: neighbours with the same value, not None, succeed or fail together.
            atomic: Whether all operations succeed or fail together.
            actor: Who asks, as the entries say.
            dry_run: Whether to return what the outcomes would be, and write nothing: no key is used.

        Returns:
            One outcome per operation, in order: a receipt or a refusal.

        Raises:
            InvalidRequest: A chain, or an atomic group, has more than 1,000 operations; *chains* has another length.
            StoreUnavailable: The write failed and may or may not be durable; try again with the same keys.
            ClockUntrusted: The wall clock leapt; nothing was done.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._write_lock:
            operations = list(operations)
            checked, actors = checked_chains(operations, chains, atomic), [actor] * len(operations)
            if dry_run:
                return drive(self.trying(operations, checked, actors))
            return self.finish(self.book(operations, checked, actors))

    @property
    def decides_ahead(self) -> bool:
        """Whether a group may be decided on top of one that is being committed."""
        return not self._store.is_crowded

    # --- the steps of a group -------------------------------------------------------------------------

    def book(
        self, operations: Sequence[Operation], chains: Chains | None = None, actors: Sequence[str] | None = None
    ) -> Group:
        """
        Decide *operations* and make their entries durable; :meth:`finish` makes them visible.

        Raises:
            StoreUnavailable: The write failed and may or may not be durable; try again with the same keys.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._write_lock:
            return drive(self.booking(operations, chains, actors))

    def booking(
        self, operations: Sequence[Operation], chains: Chains | None = None, actors: Sequence[str] | None = None
    ) -> Steps[Group]:
        """
        Do what :meth:`book` does, in steps; nothing else may write to the ledger until they end.

        The group is decided and written piece by piece, and other tasks may run between two pieces. A group without
        entries needs no commit.
        """
        group = yield from self.deciding(operations, chains, actors)
        try:
            yield from self.committing(group)
        except StaleDecision:  # this time the write lock is taken first
            group = yield from self.booking(operations, chains, actors)
        return group

    def deciding(
        self,
        operations: Sequence[Operation],
        chains: Chains | None = None,
        actors: Sequence[str] | None = None,
        after: Group | None = None,
        into: Group | None = None,
    ) -> Steps[Group]:
        """
        Decide a group in steps; :meth:`committing` makes it durable. Holds whose time has come expire first.

        With *after*, a group that is being committed, the new group is decided on top of it: nothing of it is written
        before :meth:`committing`, and it is void if *after* fails. With *into*, a group that was decided on top of
        *after* earlier, the operations are added to that. If this raises then, decide all of it again after *after*.
        """
        group = into
        try:
            wanted = wanted_of(operations)
            group = group or (yield from self._begun(wanted, after))
            group.add(operations, chains, actors)
            loading = group.load(wanted, sys.maxsize if self._store.remote else LOADED_TOGETHER)
            while self._go_on(group, loading, writes=after is None):
                yield None
        except BaseException as error:
            yield from self._give_up(group, after, error)
            if after is not None or not isinstance(error, StaleDecision):
                raise
            return (yield from self.deciding(operations, chains, actors))  # under the write lock
        return group

    def trying(
        self, operations: Sequence[Operation], chains: Chains | None = None, actors: Sequence[str] | None = None
    ) -> Steps[list[Outcome]]:
        """
        Return, in steps, the outcomes that *operations* would have on what is committed now, and write nothing.

        Nothing else may write to the ledger until the steps end. Raises what :meth:`book` does.
        """
        try:
            wanted = wanted_of(operations)
            group = yield from self._begun(wanted, None)
            group.add(operations, chains, actors)
            loading = group.load(wanted, sys.maxsize if self._store.remote else LOADED_TOGETHER)
            while self._go_on(group, loading, writes=False):
                yield None
            yield from self._leave(group)
        except BaseException as error:
            yield from self._roll_back(error)
            if not isinstance(error, StaleDecision):
                raise
            return (yield from self.trying(operations, chains, actors))  # under the write lock
        return group.outcomes

    def _leave(self, group: Group) -> Steps[None]:
        """Release the write lock without an entry of *group*; what it repeats has to be durable."""
        return self._store.leave(repeated=any(outcome.replayed for outcome in group.outcomes))

    def _give_up(self, group: Group | None, after: Group | None, error: BaseException) -> Steps[None]:
        """Drop *group*, which could not be decided because of *error*."""
        if after is None:
            yield from self._roll_back(error)
        elif group is not None and not group.is_void:
            group.is_void = True
            yield from self._store.leave(void=True)

    def _begun(self, wanted: Wanted, after: Group | None) -> Steps[Group]:
        """Return a new group at the head, or on top of *after*."""
        with self._write_lock:
            if after is None and self._unfinished:
                self.abandon()  # the caller left the last group unfinished
            self._check_writable()
        clock, asked_ms = self.clock, self.clock.before_asking() if self._store.remote else 0
        time = yield from self._store.begin(wanted, ahead=after is not None)
        try:
            now_ms = clock.check() if time is None else clock.check_server(time.now_ms, asked_ms - time.spread_ms)
        except ClockUntrusted:
            if after is not None:  # else all of it is rolled back
                yield from self._store.leave(void=True)
            raise
        return Group(self._store.ahead or self._store, now_ms, after)

    @gc_paused
    def _go_on(self, group: Group, loading: Iterator[None], *, writes: bool) -> bool:
        """Load the next piece for the rules, or decide one of *group*, and write it if told; return if more is left."""
        with self._write_lock:
            try:
                if group.is_void or next(loading, self) is None:
                    return not group.is_void
                group.decide(PIECE_OPERATIONS)
            except LedgerCorrupt:
                # If others have written meanwhile, the group was decided on stale state, and nothing is corrupt.
                self._store.check_write_lock()
                raise
            if writes:
                self._write(group)
            return not group.is_decided

    def _write(self, group: Group) -> None:
        entries = group.take_entries()
        if entries:
            self._unfinished = True
            self._store.write(entries)

    def committing(self, group: Group) -> Steps[None]:
        """
        Make a decided *group* durable, in steps; nothing else may write to the ledger until they end.

        Raises what :meth:`book` does; what was decided on top of *group* is void then.
        """
        try:
            with self._write_lock:
                self._write(group)
            if group.entries:
                yield from self._store.commit()
            else:
                yield from self._leave(group)
        except BaseException as error:
            group.void_next()
            yield from self._roll_back(error)
            raise

    def begin_epoch(self, reason: str, epoch: int | None = None) -> int:
        """
        Begin a new epoch, after the machine or the database was set back by other means than a restore.

        Args:
            reason: Why; kept in the entry.
            epoch: The new epoch, above the current one; None: the next.

        Returns:
            The ``seq`` of the entry that begins it.

        Raises:
            InvalidRequest: *epoch* is not above the current one, or *reason* is not a line of text.
            StoreUnavailable: The write failed.
        """
        with self._write_lock:
            self._check_writable()
            return drive(self._beginning_epoch(reason, epoch))

    def _beginning_epoch(self, reason: str, epoch: int | None) -> Steps[int]:
        store = self._store
        if reason is None:
            raise InvalidRequest("reason is missing; a line of text that says why would pass", field="reason")
        check_reference(reason, "reason")
        clock, asked_ms = self.clock, self.clock.before_asking() if self._store.remote else 0
        try:
            time = yield from store.begin(wanted_of(()))
            new_epoch = next_epoch(store.epochs.current, epoch)
            head = store.head
            now_ms = clock.check() if time is None else clock.check_server(time.now_ms, asked_ms)
            random_id = secrets.token_hex(EPOCH_ID_BYTES)
            booked_ms = max(now_ms, head.booked_ms)
            entry = begin_epoch(store.epochs, head.seq + 1, new_epoch, booked_ms, reason, random_id)
            self._unfinished = True
            store.write([entry])
            yield from store.commit()
        except BaseException as error:
            yield from self._roll_back(error)
            raise
        self._unfinished = False
        store.publish([entry])
        return entry.seq

    def _roll_back(self, error: BaseException) -> Steps[None]:
        """Roll back after *error*; on a remote store, as a step."""
        self._note(error)
        if isinstance(error, StaleDecision):
            self._unfinished = False
            yield from self._store.leave(void=True)
        elif self._store.remote and isinstance(error, Exception):
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
                    self._store.publish(group.entries, group.decisions)
                except BaseException as error:
                    # The group is durable, so memory can be rebuilt from the journal.
                    group.void_next()
                    self._note(error)
                    self.abandon()
                    if isinstance(error, LedgerCorrupt) or not isinstance(error, Exception):
                        raise
            group.release_next()
            return group.outcomes

    def abandon(self) -> None:
        """Discard the group in progress, and rebuild memory from the journal."""
        with self._write_lock:
            self._unfinished = False
            # A remote store has only durable entries in memory, so reads go on from it meanwhile.
            self._stale = not self._store.remote
            # A failure is retried, or raised, before the next answer.
            with suppress(StoreUnavailable, LedgerCorrupt):
                if self._store.remote:
                    self._store.recover()
                else:
                    self._refresh()

    def try_writing(self) -> None:
        """
        Check, after a failed write and between groups, that the store can be written again.

        Raises:
            StoreUnavailable: It cannot.
        """
        with self._write_lock:
            self._check_writable()
            self._store.try_writing()

    def note_time(self) -> None:
        """Note the trusted time, as a commit does, so that the next start knows it."""
        with self._write_lock:
            self._store.note_time()

    def trust_clock(self) -> None:
        """Trust the wall clock as it stands, on the word of an operator, and note its time."""
        with self._write_lock:
            self.clock.trust()
            self._store.note_time()

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """
        Copy the ledger, as it stands when the copy ends, to the empty file *target*; writes go on meanwhile.

        Blocks, so call it in a separate thread. *progress* is called with the entries left and the entries in all, and
        may raise to stop the copy.

        Raises:
            StoreUnavailable: The copy cannot be written.
            LedgerCorrupt: The ledger is damaged, and so would the copy be.
        """
        with self._lock:
            self._check_writable()
        with self._noting():
            self._store.copy_to(target, progress)

    def close(self) -> None:
        """Close the store; a second call does nothing."""
        with self._write_lock:
            if not self._closed:
                self._closed = True
                try:
                    self._store.close()
                finally:
                    self._release()

    def __enter__(self) -> Ledger:
        """Return the ledger; it is closed at the end of the ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        self.close()

    def _check_writable(self) -> None:
        if self._corrupt is not None:
            raise self._corrupt
        self._refresh()
