"""
The store on PostgreSQL, for many nodes at once: whoever writes holds the row of the journal's head while it does.

A group costs two trips. The first takes the turn and looks up what the rules will ask for and memory does not have; the
second writes the entries and everything derived from them, and commits. The head cache stands at exactly one entry,
never an older one than this node has acknowledged, and is brought along by whatever this or another node wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import InvalidRequest, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head, Wanted
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import connect, is_lost, translate, translated
from spotledger.storage.postgres.head_cache import HeadCache
from spotledger.storage.postgres.lookups import LookupBatch, Lookups
from spotledger.storage.postgres.reads import PostgresReads
from spotledger.storage.postgres.rows import DerivedRows, Order, head_of, history_rows, journal_rows
from spotledger.storage.postgres.session import Session, number, rows_of
from spotledger.storage.steps import Steps, drive

#: How long a trip of a write may take before the connection counts as lost.
WRITE_PATIENCE_SECONDS: Final = 15.0
#: How long a node looks for what became of a commit whose answer was lost, before it says that it does not know.
LOOK_UP_SECONDS: Final = 15.0
LOOK_UP_PAUSE_SECONDS: Final = 0.2
#: How long the holder of the turn may have been silent in the middle of it before a node that waited ends it.
STUCK_SECONDS: Final = 3.0
#: From how many entries of others between two turns a node waits for the turn alone, and is brought along meanwhile:
#: from there on reading them within the turn costs more than a trip.
CROWD_ENTRIES: Final = 100

_LOCK_NOT_AVAILABLE: Final = "55P03"
_LOCK_LOST: Final = "the write lock was lost before the commit; try again with the same idempotency key"


class PostgresStore(PostgresReads):
    """The store on one PostgreSQL database; satisfies :class:`spotledger.storage.base.Store`."""

    remote = True

    def __init__(self, url: str, *, clock_ms: Callable[[], int] | None = None, **options: Any) -> None:
        """
        Open the ledger in the database at *url*, which has the schema.

        Args:
            url: A PostgreSQL URL; with several hosts, the one that takes writes is found.
            clock_ms: For tests: the time in milliseconds instead of the server's clock.
            **options: ``cache_accounts`` and ``follow_seconds``, as :class:`PostgresReads` takes them.

        Raises:
            SettingInvalid: *url* is none.
            StoreUnavailable: The server cannot be reached.
            SchemaMismatch: The schema is missing, or of another version.
            LedgerCorrupt: The first rows of the ledger are missing.
        """
        self._clock_ms = clock_ms
        self._writing: Session | None = None
        self._lookups: Lookups | None = None
        self._pending_head: Head | None = None
        self._warned = False
        self._orders: list[Order] = []
        #: What was written since the turn was taken leaves.
        self._derived: DerivedRows | None = None
        self._is_writing = self._is_waiting = self._is_crowded = False
        #: The last entry when this node had its last turn.
        self._left_seq = 0
        super().__init__(url, **options)
        #: The last entry that a synced commit of this node covers: what kept results may be answered from at once.
        self._synced_seq = 0

    # --- the turn -------------------------------------------------------------------------------------

    @property
    def is_writing(self) -> bool:
        """Whether a group is under way, which brings memory along by itself."""
        return self._is_writing

    @property
    def is_waiting(self) -> bool:
        """Whether a group waits for its turn, and for memory to be brought along meanwhile."""
        return self._is_waiting

    def begin(self, wanted: Wanted) -> Steps[int | None]:
        """
        Take the journal's turn, and look up in the same trip what memory does not have of *wanted*.

        Raises:
            StoreUnavailable: The server is away, or another node held the turn for too long.
            LedgerCorrupt: The server's journal lacks what this node has acknowledged.
        """
        self._is_writing, self._pending_head = True, None
        self._derived, self._orders = None, []
        for again in (True, False):
            try:
                return (yield from self._begin(wanted))
            except psycopg.Error as error:
                self._drop_writing()
                # Nothing was written. A connection that had been lost while it was idle shows only now.
                if not (again and is_lost(error)):
                    yield partial(self._end_stuck_turns, error)
                    raise translate(error, "written") from error
        raise AssertionError("unreachable")

    def _begin(self, wanted: Wanted) -> Steps[int | None]:
        session = yield from self._session_to_write()
        now_ms = None if self._clock_ms is None else self._clock_ms()
        memory, batch = self._lookup_batch(wanted, now_ms)
        session.send(sql.BEGIN)
        session.send(sql.LOCK_HEAD)
        waited = (yield from self._wait(session)) if self._is_crowded else []
        if memory is not self._head_cache:
            # It was far behind, and began anew meanwhile.
            memory, batch = self._lookup_batch(wanted, now_ms)
        since = memory.head
        session.send(sql.CLOCK)
        session.send(sql.NEWS, number(since.seq), number(self.follow_entries + 1))
        batch.send(session)
        _, turn, clock, news, *answers = waited + (yield from session.answers())
        head = head_of(turn)
        if not self._bring_along(since, head, news):
            session.send(sql.COINS)
            session.send(sql.HASH, number(since.seq))
            self._start_anew(since, (yield from session.answers()), head)
            _, batch = self._lookup_batch(wanted, now_ms)
            batch.send(session)
            answers = yield from session.answers()
        self._is_crowded = head.seq - self._left_seq > CROWD_ENTRIES
        if self._head_cache.head != head:
            raise LedgerCorrupt(f"memory stands at entry {self._head_cache.head.seq}, the locked head is {head.seq}")
        self._take_lookups(batch, answers)
        return int(rows_of(clock)[0][0]) if now_ms is None else None

    def _wait(self, session: Session) -> Steps[list[PGresult]]:
        """Wait for the turn alone, while the follower brings memory along with what others write before it comes."""
        self._is_waiting = True
        try:
            return (yield from session.answers())
        finally:
            self._is_waiting = False

    @gc_paused
    def _lookup_batch(self, wanted: Wanted, now_ms: int | None) -> tuple[HeadCache, LookupBatch]:
        """Return memory, and what has to be asked for *wanted* that it has not got."""
        with self._guard:
            return self._head_cache, LookupBatch(self._head_cache, wanted, now_ms)

    @gc_paused
    def _take_lookups(self, batch: LookupBatch, answers: Sequence[PGresult]) -> None:
        with self._guard:
            self._lookups = batch.lookups(answers, self._head_cache)

    def leave(self, *, repeated: bool) -> Steps[None]:
        """
        Give the turn back with nothing written.

        Raises:
            StoreUnavailable: A kept result was to be answered and could not be made durable.
        """
        session = self._writing_session()
        self._lookups, self._is_writing, self._left_seq = None, False, self._head_cache.head.seq
        sync = repeated and self._head_cache.head.seq > self._synced_seq
        try:
            if sync:
                session.send(sql.SYNC)
            session.send(sql.COMMIT if sync else sql.ROLLBACK)
            yield from session.answers()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error
        if sync:
            yield from self._confirm()
            self._synced_seq = self._head_cache.head.seq

    # --- what the rules ask for: the turn knows it ------------------------------------------------------

    def _lookups_at_head(self) -> Lookups | None:
        """Return what was looked up for the group, as long as it is true; readers in other threads may ask too."""
        lookups = self._lookups
        return lookups if lookups is not None and lookups.head_seq == self._head_cache.head.seq else None

    def _shrink(self) -> None:
        """Let memory go of what is beyond its bounds, but not in the midst of a turn, which would ask for it again."""
        if self._lookups is None:
            super()._shrink()

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each key that is known."""
        lookups = self._lookups_at_head()
        if lookups is not None and lookups.keys_asked.issuperset(keys):
            return {key: lookups.keys[key] for key in keys if key in lookups.keys}
        return super().find_keys(keys)

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Bring into memory what the rules will ask for and the turn did not look up."""
        lookups = self._lookups_at_head()
        if lookups is not None:
            holds = [hold_id for hold_id in holds if hold_id not in lookups.holds_absent]
        super().load(customers, accounts, holds)

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return ids of open holds whose time has come."""
        lookups = self._lookups_at_head()
        if lookups is not None and limit <= sql.DUE_LIMIT:
            return [hold_id for expires_ms, hold_id in lookups.due if expires_ms <= now_ms][:limit]
        return super().due_holds(now_ms, limit)

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        lookups = self._lookups_at_head()
        if lookups is not None and customer in lookups.customers_absent:
            return False
        return super().has_customer(customer)

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands at the head."""
        lookups = self._lookups_at_head()
        if lookups is not None and hold_id in lookups.holds_absent:
            return None
        return super().hold(hold_id)

    def entry(self, seq: int) -> Entry | None:
        """Return one entry."""
        lookups = self._lookups_at_head()
        found = lookups.entries.get(seq) if lookups is not None else None
        return found if found is not None else super().entry(seq)

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        lookups = self._lookups_at_head()
        if lookups is not None and seq in lookups.reversals_asked:
            return lookups.reversals.get(seq)
        return super().reversal_of(seq)

    # --- writing --------------------------------------------------------------------------------------

    def check_write_lock(self) -> None:
        """
        Make sure that memory stands where the turn began: the server takes a turn back from a node that is silent.

        Raises:
            StoreUnavailable: Others have written since, so they have the lock.
        """
        if self._lookups_at_head() is None:
            self._drop_writing()
            raise StoreUnavailable(_LOCK_LOST)

    def write(self, entries: Sequence[Entry]) -> None:
        """
        Send *entries*, which follow what the turn began with or has written since; the server begins with them.

        Raises:
            StoreUnavailable: The lock is lost.
            LedgerCorrupt: *entries* do not follow.
        """
        self.check_write_lock()
        session = self._writing_session()
        before, last = self._pending_head or self._head_cache.head, entries[-1]
        if entries[0].seq != before.seq + 1 or last.seq != before.seq + len(entries):
            raise LedgerCorrupt(f"entries {entries[0].seq} to {last.seq} do not follow entry {before.seq}")
        try:
            self._pending_head, order = journal_rows(entries, before)
            self._order(session, order)
            session.push()
            derived = DerivedRows(entries)
            for order in (*history_rows(entries), *derived.rows()):
                self._order(session, order)
            session.push()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error
        if self._derived is None:
            self._derived = derived
        else:
            self._derived.add(derived)

    def _order(self, session: Session, order: Order) -> None:
        self._orders.append(order)
        session.send(order.statement, *order.parameters)

    @gc_paused
    def _send_rest(self, session: Session, pending: Head, derived: DerivedRows) -> None:
        """Send the balances as the group leaves them, the head that it leads to, *pending*, and the commit."""
        for order in derived.balance_rows():
            self._order(session, order)
        seq, kept_hash, booked_ms = pending
        session.send(sql.MOVE_HEAD, number(seq), b"\\x" + kept_hash.hex().encode(), number(booked_ms))
        session.send(sql.TELL, number(seq))
        session.send(sql.COMMIT)

    @property
    def lagging(self) -> bool:
        """Never: what is derived is written with the entries."""
        return False

    def catch_up(self) -> None:
        """Nothing: what is derived is written with the entries."""

    def commit(self) -> Steps[None]:
        """
        Send the rest, commit, and wait until the server has synced it.

        Where the answer is lost, it is looked up whether the entries are there, with the head locked; never guessed.

        Raises:
            StoreUnavailable: Nothing was written, or it could not be found out whether it was.
            LedgerCorrupt: The server refused what breaks one of its constraints.
        """
        session, pending, derived, self._lookups = self._writing_session(), self._pending_head, self._derived, None
        if pending is None or derived is None:
            raise StoreUnavailable(_LOCK_LOST)
        try:
            self._send_rest(session, pending, derived)
            results = yield from session.answers(meanwhile=partial(self._make_ready, pending, derived))
        except psycopg.Error as error:
            self._drop_writing()
            if not is_lost(error):
                raise translate(error, "written", checked=True) from error
            yield partial(self._look_up, pending, error)
        else:
            self._check_changes(results)
            yield from self._confirm()
        self._synced_seq = self._left_seq = pending.seq

    def _make_ready(self, pending: Head, derived: DerivedRows) -> None:
        """Do what publishing needs and shows nobody anything yet, while the server syncs."""
        derived.by_account()
        with self._guard:
            self._head_cache.make_room(pending.seq - self._head_cache.head.seq)

    def _check_changes(self, results: Sequence[PGresult]) -> None:
        """Check that each statement changed as many rows as it had to: what is derived was where it should be."""
        for order, result in zip(self._orders, results, strict=False):
            if order.changes is not None and result.command_tuples != order.changes:
                raise LedgerCorrupt(
                    f"{order.statement.name} changed {result.command_tuples} rows of {order.changes};"
                    " what is derived from the journal does not fit it"
                )

    def _confirm(self) -> Steps[None]:
        """Commit again where the server warned that the last commit is not yet with its standby."""
        if self._warned:
            yield self.try_writing

    def _look_up(self, last: Head, lost: psycopg.Error) -> None:
        """Return if the entry *last*, whose commit was not answered, is in the journal for good; else raise."""
        until = time.monotonic() + LOOK_UP_SECONDS
        while True:
            try:
                # The old connection may still be committing; the lock is there when it has done so or has not.
                session = drive(self._session_to_write())
                session.send(sql.BEGIN)
                session.send(sql.LOCK_HEAD)
                session.send(sql.HASH, number(last.seq))
                session.send(sql.SYNC)
                session.send(sql.COMMIT)
                _, head, found, _, _ = session.collect()
                break
            except (psycopg.Error, StoreUnavailable) as error:
                self._drop_writing()
                if time.monotonic() > until:
                    raise StoreUnavailable(
                        "the connection was lost at the commit, and the server could not be asked whether it was done;"
                        " try again with the same idempotency key"
                    ) from error
                self._end_stuck_turns(error)
                time.sleep(LOOK_UP_PAUSE_SECONDS)
        self._check_acknowledged(head_of(head))
        if self._hash_in(found) != last.hash:
            raise translate(lost, "written") from lost

    def _check_acknowledged(self, head: Head) -> None:
        if head.seq < self._head_cache.head.seq:
            raise LedgerCorrupt(
                f"the server's journal ends at entry {head.seq}, before entry {self._head_cache.head.seq},"
                " which was acknowledged"
            )

    def try_writing(self) -> None:
        """Write and sync something that means nothing; between groups."""
        self._warned = False
        try:
            session = drive(self._session_to_write())
            session.send(sql.SYNC)
            session.collect()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error
        if self._warned:
            raise StoreUnavailable("the standby did not confirm; try again with the same idempotency key")

    def publish(self, entries: Sequence[Entry]) -> None:
        """Bring memory along with the committed *entries*, as far as it was not by whoever saw them first."""
        pending, self._pending_head = self._pending_head, None
        derived, self._derived = self._derived, None
        try:
            with self._guard:
                memory = self._head_cache
                new = [entry for entry in entries if entry.seq > memory.head.seq]
                if not new or pending is None:
                    return
                try:
                    memory.apply(new, pending, derived if len(new) == len(entries) else None)
                    memory.shrink()
                except BaseException:
                    memory.forget()
                    raise
        finally:
            # Not before: the follower would read the entries of this group.
            self._is_writing = False

    def recover(self) -> None:
        """Give up the turn with all that was sent, and bring memory to the journal's head."""
        self._is_writing = False
        self._drop_writing()
        self._ask()

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Refuse: a server's own means copy it."""
        raise InvalidRequest("a ledger on PostgreSQL is backed up by the server's own means, such as pg_basebackup")

    def close(self) -> None:
        """Let go of the server."""
        self._drop_writing()
        super().close()

    # --- the connection -------------------------------------------------------------------------------

    def _session_to_write(self) -> Steps[Session]:
        if self._writing is None or not self._writing.is_open:
            self._writing = yield self._connected
        return self._writing

    def _connected(self) -> Session:
        connection = connect(self._url, application="spotledger write")
        connection.add_notice_handler(self._heed)
        with translated("written"):
            return Session(connection, sql.WRITING, WRITE_PATIENCE_SECONDS)

    def _writing_session(self) -> Session:
        """Return the session that has the turn; another one has not."""
        if self._writing is None:
            raise StoreUnavailable(_LOCK_LOST)
        return self._writing

    def _heed(self, notice: psycopg.errors.Diagnostic) -> None:
        """Note a warning: a commit may have returned without its standby."""
        self._warned = self._warned or notice.severity_nonlocalized == "WARNING"

    def _drop_writing(self) -> None:
        session, self._writing, self._lookups = self._writing, None, None
        if session is not None:
            session.close()

    def _end_stuck_turns(self, error: Exception) -> None:
        """After a wait for the turn that was too long: end who holds it and froze between two statements."""
        if isinstance(error, psycopg.Error) and error.sqlstate == _LOCK_NOT_AVAILABLE:
            with suppress(StoreUnavailable):
                self._ask((sql.END_STUCK_TURNS, (str(STUCK_SECONDS).encode(),)))
