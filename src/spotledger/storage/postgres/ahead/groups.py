"""When a group on PostgreSQL is decided before the write lock, and how that is compared under it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from psycopg.pq.abc import PGresult

from spotledger.clock import steady_s
from spotledger.domain.journal import Entry
from spotledger.storage.base import Head, StaleDecision, StoreTime, Wanted
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.ahead.books import BooksAhead, ClockReading, can_know
from spotledger.storage.postgres.following.head_cache import HeadCache
from spotledger.storage.postgres.group_reads import GroupReads
from spotledger.storage.postgres.session import Session, rows_of

#: After so many groups in a row that could have been decided before the lock, the next one is. With fewer, nodes that
#: write at once would decide every other group twice.
ALONE_GROUPS: Final = 8


class GroupsAhead(GroupReads):
    """The part of the store that lets a group be decided before it has the lock."""

    #: The books of a group that was decided before it has the write lock; None where the group has it.
    ahead: BooksAhead | None = None
    #: For tests: the time in ms since 1970, instead of the server's clock.
    _clock_ms: Callable[[], int] | None = None
    _writing: Session | None = None
    _pending_head: Head | None = None
    #: The entries that were sent and are not visible yet, and whether their commit is under way.
    _sent: list[Entry]
    _is_ending = False
    #: The memory that the last group was decided on.
    _used: HeadCache | None = None
    #: How many groups in a row could have been decided before they had the lock, and whether the last was dropped.
    _alone_groups = 0
    _was_void = False
    _reading: ClockReading | None = None

    @property
    def is_crowded(self) -> bool:
        """Whether the next group has to wait for the end of the last one."""
        return not self._may_decide or self._head_cache.is_crowded

    @property
    def _may_decide(self) -> bool:
        """Whether memory is likely to have all that a group needs, and to be at the head when it is sent."""
        return self._alone_groups >= ALONE_GROUPS and not self._was_void

    def _books_ahead(self, wanted: Wanted, now: StoreTime | None, *, ahead: bool) -> BooksAhead | None:
        """Return the books for a group that is decided before it has the lock, if memory can have all that it needs."""
        time_ms = self._clock_ms() if self._clock_ms is not None else None if now is None else now.now_ms
        with self._guard:
            memory = self._head_cache
            under_way = self._sent if ahead else []
            if time_ms is None or not self._may_decide or not can_know(memory, wanted, under_way):
                return None
            # The lines of the memory that the group under way was decided on have what it changed.
            if not (memory is self._used if ahead else self._has_live_session()):
                return None
            self._used, self.is_writing = memory, True
            end = (self._pending_head if ahead else None) or memory.head
            return BooksAhead(
                memory,
                self._guard,
                end=end,
                since_seq=under_way[0].seq - 1 if under_way else end.seq,
                time_ms=None if now is None else time_ms,
                due_ms=max(time_ms, end.booked_ms),
            )

    def _has_live_session(self) -> bool:
        return self._writing is not None and self._writing.is_alive()

    def _check_ahead(self, books: BooksAhead) -> None:
        if self._head_cache is not books.memory or self._head_cache.head != books.end:
            self._alone_groups = 0
            raise StaleDecision

    def _session_of(self, books: BooksAhead) -> Session:
        """Return the session on which to write what was decided on *books*; raise StaleDecision if that is void."""
        if not books.is_sent:
            self._check_ahead(books)
        if self._writing is None:
            raise StaleDecision("the connection was lost")
        return self._writing

    def _send_lock(self, session: Session, books: BooksAhead) -> None:
        """Ask for the write lock, and for whether what was decided on *books* still stands."""
        books.asked_s = steady_s()
        session.send(sql.BEGIN)
        session.send(sql.LOCK)
        statement, parameters = books.stands()
        session.send(statement, *parameters)

    def _take_stands(self, answers: Sequence[PGresult], books: BooksAhead) -> None:
        """Take the answers to :meth:`_send_lock`; raise StaleDecision if what was decided does not stand."""
        assert books.asked_s is not None, "it was sent"  # noqa: S101
        stands, server_ms, sealed_seq = rows_of(answers[2])[0]
        self._reading = ClockReading(int(server_ms), books.asked_s, steady_s())
        if stands != b"true":
            self._alone_groups = 0
            raise StaleDecision
        with self._guard:
            self._head_cache.note_sealed(int(sealed_seq))
        self._note_followed(books.asked_s)
