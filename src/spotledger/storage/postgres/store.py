"""
The store on PostgreSQL, for many nodes at once: the node that writes holds the lock of the row of the ledger.

A group costs one round trip, or two. Where memory has what the rules will read, and stood at the head when this node
had the write lock last, the group is decided without the lock, maybe while the last group is committed. One round trip
then takes the lock, compares the head, appends the entries and commits. If the head is another, nothing is written, and
the group is decided again. Otherwise the first round trip takes the lock and looks up what memory lacks, and the second
appends the entries and commits.

What is derived from the entries is sealed later, by :mod:`sealing`. Memory stands at exactly one entry, never at an
older one than this node has acknowledged, and advances with the writes of this and other nodes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.pq.abc import PGresult

from spotledger.clock import steady_s
from spotledger.domain.books import Decision
from spotledger.domain.journal import BEGIN_EPOCH, Entry, epochs_after
from spotledger.errors import InvalidRequest, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head, StaleDecision, StoreTime, Wanted
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.ahead.books import BooksAhead, ClockReading
from spotledger.storage.postgres.ahead.groups import GroupsAhead
from spotledger.storage.postgres.connection import TimedOut, is_lost, translate, translated
from spotledger.storage.postgres.following.memory import News
from spotledger.storage.postgres.reads import READ_TRIES
from spotledger.storage.postgres.rows import found_in, journal_rows
from spotledger.storage.postgres.sealing.duty import SealingDuty
from spotledger.storage.postgres.sealing.reads import SealingReads
from spotledger.storage.postgres.session import Session, hash_of, number, rows_of
from spotledger.storage.seen_head import OtherHistory
from spotledger.storage.steps import Steps, drive

#: How long a round trip of a write may take before the connection counts as lost.
WRITE_PATIENCE_SECONDS: Final = 6.0
#: How long a node tries to find out about a commit whose answer was lost, before it reports that it does not know.
LOOK_UP_SECONDS: Final = 3.5
LOOK_UP_PAUSE_SECONDS: Final = 0.2
#: How long the holder of the write lock may be silent before a node that waited for the lock ends its session.
STUCK_SECONDS: Final = 3.0
#: With more entries of other nodes between two groups, a node first waits for the write lock alone, and memory follows
#: meanwhile: reading so many entries under the lock costs more than a round trip.
CROWD_ENTRIES: Final = 100

_LOCK_NOT_AVAILABLE: Final = "55P03"
_TOO_FAST: Final = "memory changed too fast; try again with the same idempotency key"
_NOT_CONFIRMED: Final = "the standby did not confirm; try again with the same idempotency key"
_LOCK_LOST: Final = "the write lock was lost before the commit; try again with the same idempotency key"


class PostgresStore(GroupsAhead, SealingReads):
    """The store on one PostgreSQL database; satisfies :class:`spotledger.storage.base.Store`."""

    remote = True

    def __init__(
        self,
        url: str,
        *,
        clock_ms: Callable[[], int] | None = None,
        requires_standby: bool = False,
        seals: bool = True,
        **options: Any,
    ) -> None:
        """
        Open the ledger in the database at *url*, which has the schema.

        Args:
            url: A PostgreSQL URL; of several hosts, the one that takes writes is used.
            clock_ms: For tests: the time in ms since 1970, instead of the server's clock.
            requires_standby: Refuse to write while no synchronous standby is connected to the server.
            seals: Have full segments sealed; False if the caller does.
            **options: The options of :class:`~spotledger.storage.postgres.reads.PostgresReads`.

        Raises:
            SettingInvalid: *url* is not a PostgreSQL URL.
            StoreUnavailable: The server cannot be reached.
            SchemaMismatch: The schema is missing, or of another version.
            LedgerCorrupt: The first rows of the ledger are missing.
        """
        self._requires_standby = requires_standby
        self._clock_ms = clock_ms
        self._sent = []
        self._is_crowded = False
        #: The last entry when this node last released the write lock.
        self._left_seq = 0
        super().__init__(url, **options)  # which starts to follow the journal
        if seals:
            connecting = partial(self._right.connect, "spotledger seal")
            self._sealing = SealingDuty(url, connecting, self._head_cache.segment_entries)
        #: The last entry that a synced commit of this node covers: kept results up to it are durable.
        self._synced_seq = 0

    # --- the write lock -------------------------------------------------------------------------------

    def begin(self, wanted: Wanted, *, ahead: bool = False) -> Steps[StoreTime | None]:
        """
        Let the group be decided on memory; or take the write lock, and look up what memory does not have of *wanted*.

        Raises:
            StoreUnavailable: The server cannot be reached, it is not the right one, or another node held the lock for
            too long.
            StaleDecision: *ahead* of the end of another group it cannot be decided.
            LedgerCorrupt: The journal is damaged.
        """
        yield from self._go_on_sealing()
        if not ahead:
            self._sent, self._pending_head = [], None
        elif not self._is_ending:
            yield None  # the other group's commit is about to begin
            if not self._is_ending:
                raise StaleDecision
        now = None if self._clock_ms is not None or self._reading is None else self._reading.now()
        self.ahead = self._books_ahead(wanted, now, ahead=ahead)
        if self.ahead is not None:
            return now
        if ahead:
            raise StaleDecision
        return (yield from self._begin_locked(wanted))

    def _begin_locked(self, wanted: Wanted) -> Steps[StoreTime | None]:
        """Take the write lock, and look up in the same round trip what memory does not have of *wanted*."""
        with self._guard:
            self.is_writing = True
        for again in (True, False):
            try:
                return (yield from self._begin(wanted))
            except psycopg.Error as error:
                self._drop_writing()
                # Nothing was written. A connection that was lost while idle shows only now.
                if isinstance(error, TimedOut) or not (again and is_lost(error)):
                    yield partial(self._end_stuck_writers, error)
                    raise translate(error, "written") from error
            except OtherHistory:
                self._drop_writing()
                raise
        raise AssertionError("unreachable")

    def _begin(self, wanted: Wanted) -> Steps[StoreTime | None]:
        session = yield from self._session_to_write()
        now_ms = None if self._clock_ms is None else self._clock_ms()
        at_s, before_seq = steady_s(), self._head_cache.head.seq
        session.send(sql.BEGIN)
        session.send(sql.LOCK)
        begun = (yield from self._wait(session)) if self._is_crowded else []
        session.send(sql.CLOCK)
        for _ in range(READ_TRIES):
            batch = self._lookup_batch(wanted, now_ms)
            memory = self._head_cache
            since = memory.head
            session.send(sql.NEW_ENTRIES, *self._after(since))
            batch.send(session)
            session.send(sql.HEAD)  # last: each statement has a snapshot, and a rebuild may seal less than memory has
            received = begun + (yield from session.answers())
            begun, (page, *answers, now) = received[:3], received[3:]
            found = found_in(now, self.ledger_id)
            yield from self._advancing(session, News(memory, since, found, page))
            if self._take_lookups(batch, answers, found):
                break
            # Memory was built anew meanwhile: it lacks what the old one had, or reaches back less far than the answers.
        else:
            raise StoreUnavailable(_TOO_FAST)
        yield from self._look_for_due(session, batch)
        self._is_crowded = found.head.seq - self._left_seq > CROWD_ENTRIES
        is_new = self._lookups is not None and not self._lookups.entries
        self._alone_groups = self._alone_groups + 1 if is_new and before_seq == found.head.seq else 0
        self._was_void = False
        self._used = self._head_cache
        self._note_followed(at_s)
        self._note_seen()
        if now_ms is not None:
            return None
        self._reading = ClockReading(int(rows_of(begun[2])[0][0]), at_s, steady_s())
        return StoreTime(self._reading.server_ms)

    def _wait(self, session: Session) -> Steps[list[PGresult]]:
        """Wait for the write lock alone, while the follower applies what others write before."""
        self.is_waiting = True
        try:
            return (yield from session.answers())
        finally:
            self.is_waiting = False

    def leave(self, *, repeated: bool = False, void: bool = False) -> Steps[None]:
        """
        Release the write lock with nothing written.

        Raises:
            StoreUnavailable: A kept result that is to be answered could not be made durable.
            StaleDecision: The group was decided before it had the lock, and the head is another.
        """
        books, self.ahead = self.ahead, None
        if void:
            self._was_void = True
            if books is None or not books.is_sent:
                self.is_writing = self._is_ending
                return
        elif books is not None:
            yield from self._compare(books)
            return
        session = self._writing_session()
        self._lookups, self.is_writing, self._left_seq = None, False, self._head_cache.head.seq
        sync = repeated and self._head_cache.head.seq > self._synced_seq
        try:
            if sync:
                session.send(sql.SYNC)
                self._send_commit(session)
            else:
                session.send(sql.ROLLBACK)
            yield from session.answers()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error
        if sync:
            yield from self._confirm(session)
            self._synced_seq = self._head_cache.head.seq

    def _compare(self, books: BooksAhead) -> Steps[None]:
        """Have the server compare what a group without entries was decided on."""
        session = self._session_of(books)
        self._send_lock(session, books)
        session.send(sql.ROLLBACK)
        try:
            answers = yield from session.answers()
        except psycopg.Error as error:
            self._drop_writing()
            yield partial(self._end_stuck_writers, error)
            raise translate(error, "written") from error
        self._take_stands(answers, books)
        self.is_writing = False

    # --- writing --------------------------------------------------------------------------------------

    def check_write_lock(self) -> None:
        """
        Check that memory has not advanced: the server takes the lock from a node that is silent for too long.

        Raises:
            StoreUnavailable: Other nodes have written since, so the lock is lost.
            StaleDecision: The same, before the node has the lock.
        """
        if self.ahead is not None:
            self._check_ahead(self.ahead)
        elif self._lookups_at_head() is None:
            self._drop_writing()
            raise StoreUnavailable(_LOCK_LOST)

    def write(self, entries: Sequence[Entry]) -> None:
        """
        Send *entries*, which follow the head or the last write; the server starts to write them.

        Raises:
            StoreUnavailable: The lock is lost.
            StaleDecision: Memory is not what the group was decided on, before it has the lock.
            LedgerCorrupt: *entries* do not follow.
        """
        books = self.ahead
        if books is None:
            self.check_write_lock()
        session = self._writing_session() if books is None else self._session_of(books)
        before, last = self._pending_head or self._head_cache.head, entries[-1]
        if entries[0].seq != before.seq + 1 or last.seq != before.seq + len(entries):
            raise LedgerCorrupt(f"entries {entries[0].seq} to {last.seq} do not follow entry {before.seq}")
        try:
            self._pending_head, parameters = journal_rows(entries, before)
            self._sent += entries
            if books is not None and not books.is_sent:
                self._send_lock(session, books)
            session.send(sql.ADD_ENTRIES if books is None else sql.ADD_IF_IT_STANDS, *parameters)
            if last.kind == BEGIN_EPOCH:  # it is written alone
                session.send(sql.MOVE_EPOCH, number(last.seq))
            session.push()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error

    def _send_commit(self, session: Session) -> None:
        """Send the commit, and before it the check that a standby is there, if one has to be."""
        if self._requires_standby:
            session.send(sql.STANDBY_THERE)
        session.send(sql.COMMIT)

    def commit(self) -> Steps[None]:
        """
        Send the rest, commit, and wait until the server has synced it.

        If the answer is lost, look up under the write lock whether the entries are in the journal.

        Raises:
            StoreUnavailable: Nothing was written, or it is unknown whether it was.
            StaleDecision: Nothing was written, because the head under the lock is another.
            LedgerCorrupt: What was written violates a constraint; nothing was committed.
        """
        session, pending, self._lookups = self._writing_session(), self._pending_head, None
        books, self.ahead = self.ahead, None
        if pending is None:
            raise StoreUnavailable(_LOCK_LOST)
        self._is_ending = True
        try:
            yield from self._commit(session, pending, books)
        finally:
            self._is_ending = False
        self._synced_seq = self._left_seq = pending.seq

    def _commit(self, session: Session, pending: Head, books: BooksAhead | None) -> Steps[None]:
        try:
            self._send_commit(session)
            answers = yield from session.answers()
        except psycopg.Error as error:
            self._drop_writing()
            if not is_lost(error):
                yield partial(self._end_stuck_writers, error)
                raise translate(error, "written", checked=True) from error
            yield partial(self._look_up, pending, error)
            return
        if books is not None:
            self._take_stands(answers, books)
        yield from self._confirm(session)

    def _confirm(self, session: Session) -> Steps[None]:
        """Commit again if the server warned that its standby may not have the last commit of *session*."""
        if session.take_warning():
            yield self.try_writing

    def _look_up(self, last: Head, lost: psycopg.Error) -> None:
        """Return if the journal has the entry *last*, whose commit was not answered, and a standby too; else raise."""
        until = time.monotonic() + LOOK_UP_SECONDS
        while True:
            try:
                head, found = self._asked_under_lock(last, until)
                break
            except (psycopg.Error, StoreUnavailable) as error:
                self._drop_writing()
                if time.monotonic() > until:
                    raise StoreUnavailable(
                        "the connection was lost at the commit, and the server could not be asked whether it was done;"
                        " try again with the same idempotency key"
                    ) from error
                self._end_stuck_writers(error)
                time.sleep(LOOK_UP_PAUSE_SECONDS)
        self._check_acknowledged(found_in(head, self.ledger_id).head)
        if not found.ntuples or hash_of(rows_of(found)[0][0]) != last.hash:
            raise translate(lost, "written") from lost

    def _asked_under_lock(self, last: Head, until: float) -> tuple[PGresult, PGresult]:
        """Return the head and the hash of the entry *last*, durably, by the time *until*; raise if that fails."""
        # The old connection may still be committing; it has ended when the lock is granted.
        session = drive(self._session_to_write())
        session.patience_seconds = max(0.1, until - time.monotonic())
        session.send(sql.BEGIN)
        session.send(sql.LOCK)
        session.send(sql.HEAD)
        session.send(sql.HASH, number(last.seq))
        session.send(sql.SYNC)
        self._send_commit(session)
        _, _, head, found, *_ = session.collect()
        if session.take_warning():
            raise StoreUnavailable(_NOT_CONFIRMED)
        session.patience_seconds = WRITE_PATIENCE_SECONDS
        return head, found

    def _check_acknowledged(self, head: Head) -> None:
        here = self._head_cache.head.seq
        if head.seq < here:
            raise OtherHistory(f"the server's journal ends at entry {head.seq}, and this node has seen entry {here}")

    def try_writing(self) -> None:
        """Write and sync something without a meaning, between groups."""
        try:
            session = drive(self._session_to_write())
            session.send(sql.BEGIN)
            session.send(sql.SYNC)
            self._send_commit(session)
            session.collect()
        except psycopg.Error as error:
            self._drop_writing()
            raise translate(error, "written") from error
        if session.take_warning():
            raise StoreUnavailable(_NOT_CONFIRMED)

    @gc_paused
    def publish(self, entries: Sequence[Entry], decisions: Sequence[Decision] = ()) -> None:
        """Apply the committed *entries* to memory, unless the follower has done so."""
        pending, self._pending_head = self._pending_head, None
        try:
            with self._guard:
                memory = self._head_cache
                new = [entry for entry in entries if entry.seq > memory.head.seq]
                if not new or pending is None:
                    return
                memory.apply(new, pending, epochs_after(new[-1]) if new[-1].kind == BEGIN_EPOCH else None)
                size = memory.segment_entries
                self._has_filled = self._has_filled or pending.seq // size > (new[0].seq - 1) // size
                memory.drop_sealed()
                if self.ahead is None:  # else its accounts stay
                    memory.shrink()
        finally:
            # Not earlier: the follower would read the entries of this group.
            self._sent, self.is_writing = [], self.ahead is not None
        self._note_seen()
        if self._follower is not None:
            self._follower.tell_others(entries[-1].seq)

    def recover(self) -> None:
        """Roll back, and advance memory to the head of the journal."""
        self.ahead, self._sent, self._pending_head = None, [], None
        self.is_writing = self._is_ending = False
        self._alone_groups = 0
        self._drop_writing()
        self._ask()

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Refuse: use the means of the server to copy it."""
        raise InvalidRequest("a ledger on PostgreSQL is backed up by the means of the server, such as pg_basebackup")

    def _begin_history(self) -> None:
        self._synced_seq = self._left_seq = 0

    def close(self) -> None:
        """Close all connections."""
        if self._sealing is not None:
            self._sealing.close()
        self._drop_writing()
        super().close()

    # --- the connection -------------------------------------------------------------------------------

    def _session_to_write(self) -> Steps[Session]:
        if self._writing is None or not self._writing.is_open:
            self._writing = yield self._connected
        return self._writing

    def _connected(self) -> Session:
        connection = self._right.connect("spotledger write")
        with translated("written"):
            return Session(connection, sql.WRITING, WRITE_PATIENCE_SECONDS)

    def _writing_session(self) -> Session:
        """Return the session that holds the write lock."""
        if self._writing is None:
            raise StoreUnavailable(_LOCK_LOST)
        return self._writing

    def _drop_writing(self) -> None:
        session, self._writing, self._lookups = self._writing, None, None
        if session is not None:
            session.close()

    def _end_stuck_writers(self, error: Exception) -> None:
        """After a time-out of the write lock, end the session that holds it, if its node has frozen."""
        if isinstance(error, psycopg.Error) and error.sqlstate == _LOCK_NOT_AVAILABLE:
            with suppress(StoreUnavailable):
                self._ask((sql.END_STUCK_WRITERS, (str(STUCK_SECONDS).encode(),)))
