"""
How memory is brought to the head of the journal: by the entries that it lacks, a page at a time.

A node that lies behind the last sealed entry, or whose memory reaches back less far than the tables do, builds its
memory anew, from the tables at the last sealed entry and the entries since. The old memory serves until then.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from spotledger.clock import steady_s
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.following.foreign_entries import do_lead, goes_on, read_foreign_entries
from spotledger.storage.postgres.following.head_cache import HeadCache, Question, Snapshot, answers_in_snapshot
from spotledger.storage.postgres.right_server import RightServer, is_put_back, name_of
from spotledger.storage.postgres.rows import (
    Found,
    coins_in,
    debtors_found,
    found_in,
    house_accounts_in,
    ledger_in,
    sealed_in,
)
from spotledger.storage.postgres.session import Session, hash_of, number, rows_of
from spotledger.storage.seen_head import OtherHistory, Place, Seen
from spotledger.storage.steps import Steps, drive

#: How many entries of other nodes are read, and applied to memory, at once.
PAGE_ENTRIES: Final = 1_000
#: How many entries a memory that is built anew reads at once.
REBUILD_ENTRIES: Final = 5_000
#: More entries than these are applied in a thread.
INLINE_ENTRIES: Final = 100

_PUT_BACK: Final = "the ledger was put back to an earlier state meanwhile; try again"


class News(NamedTuple):
    """What a query found: the head and the last sealed entry, and the first page of entries after *since*."""

    memory: HeadCache
    since: Head
    found: Found
    page: PGresult


class FollowedMemory:
    """A node's memory, and how it advances. Any thread may use it."""

    takes_writes = True
    #: Whether a group is being written, which advances memory itself.
    is_writing = False
    ledger_id: str

    def __init__(self, right: RightServer, *, cache_accounts: int, follow_entries: int) -> None:
        """Prepare; :meth:`_open` reads the ledger."""
        self._right = right
        self._cache_accounts = cache_accounts
        self._page = follow_entries
        #: What was acknowledged up to this time (`steady_s`) is in memory.
        self._as_of_s = float("-inf")
        #: Guards memory; never held during a round trip.
        self._guard = threading.RLock()
        self._head_cache: HeadCache

    def _open(self, session: Session) -> None:
        """Read the row of the ledger, and build memory."""
        at_s = steady_s()
        session.send(sql.LEDGER)
        [ledger] = session.collect()
        if ledger.ntuples == 0:
            raise LedgerCorrupt("the row of the ledger is missing")
        self.ledger_id = rows_of(ledger)[0][0].decode()
        self._head_cache = drive(self._built(session, 0, 0))
        self._note_followed(at_s)
        self._note_seen()

    @property
    def head_seq(self) -> int:
        """The entry that memory stands at, however old it is."""
        return self._head_cache.head.seq

    @property
    def age_ms(self) -> int:
        """How old what is read may be, in ms: everything that was acknowledged longer ago is included."""
        return round(min((steady_s() - self._as_of_s) * 1000, 2**53))

    def _note_followed(self, at_s: float) -> None:
        """Note that memory has what was acknowledged up to the time *at_s* (`steady_s`)."""
        self._as_of_s = max(self._as_of_s, at_s)

    def _note_seen(self) -> None:
        """Note what memory stands at, for the choice of servers."""
        with self._guard:
            head, epoch = self._head_cache.head, self._head_cache.epochs.current
        self._right.seen.note(self.ledger_id, epoch, head)

    def follow(self, session: Session, *questions: Question) -> Snapshot:
        """
        Run queries in one snapshot, and advance memory at least to its head; raise the errors of the driver.

        Raises:
            OtherHistory, NotCaughtUp: The server is not the right one, or behind.
            LedgerCorrupt: The journal is damaged.
        """
        memory, at_s = self._head_cache, steady_s()
        since = memory.head
        page, *answers = answers_in_snapshot(session, (sql.NEW_ENTRIES, self._after(since)), *questions)
        found = found_in(answers.pop(), self.ledger_id)
        drive(self._advancing(session, News(memory, since, found, page)))
        self._note_followed(at_s)
        self._note_seen()
        return Snapshot(found.head, found.sealed_seq, answers, memory.history)

    def _after(self, since: Head, page: int | None = None) -> tuple[bytes, bytes]:
        """Return the parameters of a query for the page of entries after *since*."""
        return number(since.seq), number(page or self._page)

    # --- advancing ------------------------------------------------------------------------------------

    def _advancing(self, session: Session, news: News) -> Steps[None]:
        """
        Bring memory at least to the head of *news*, with further queries where one page is not enough.

        Raises:
            OtherHistory, NotCaughtUp: The server is not the right one, or behind.
            LedgerCorrupt: The journal is damaged.
        """
        memory, found = news.memory, news.found
        with self._guard:  # else another thread may be in the midst of a change
            is_whole = memory.is_whole
        if not do_lead(news.page, news.since, found.head):
            if (yield from self._is_put_back(session, news)):
                yield from self._restarting(session, news, history=memory.history + 1)
                return
        elif not is_whole or found.sealed_seq < memory.base or found.sealed_seq > news.since.seq:
            yield from self._restarting(session, news, history=memory.history)
            return
        since, page = news.since, news.page
        while since.seq < found.head.seq:
            if not page.ntuples:
                raise LedgerCorrupt(f"the journal lacks entry {since.seq + 1}, and its last one is {found.head.seq}")
            is_last = since.seq + page.ntuples == found.head.seq
            apply = partial(self._apply_page, memory, since, page, found.head if is_last else None)
            since = (yield apply) if page.ntuples > INLINE_ENTRIES else apply()
            if since.seq < found.head.seq:
                session.send(sql.NEW_ENTRIES, *self._after(since))
                [page] = yield from session.answers()
                if page.ntuples and not goes_on(page, since):
                    raise OtherHistory(_PUT_BACK)  # between two pages; the next attempt finds out what is there now
        with self._guard:
            memory.note_sealed(found.sealed_seq)
            if not self.is_writing:  # a group that is being written relies on what memory has
                memory.drop_sealed()
                memory.shrink()

    @gc_paused
    def _apply_page(self, memory: HeadCache, since: Head, page: PGresult, head: Head | None) -> Head:
        """Apply a page of entries after *since*, which leads to *head* if that is given; return the last of them."""
        read = read_foreign_entries(page, since, memory.head.seq, head)
        with self._guard:
            if self._head_cache.history != memory.history:
                raise OtherHistory(_PUT_BACK)
            new = read.after(memory.head.seq)
            if new.changes:
                memory.apply(new.changes, read.last, read.epochs)
        return read.last

    # --- a memory that is built anew ------------------------------------------------------------------

    def _is_put_back(self, session: Session, news: News) -> Steps[bool]:
        """
        Find out why the entries in *news* do not go on from what memory has.

        Returns:
            Whether the ledger was put back to an earlier state, with a later epoch.

        Raises:
            OtherHistory, NotCaughtUp: The server is not the right one, or behind.
            LedgerCorrupt: The journal does not go on from an entry that it has.
        """
        session.send(sql.LEDGER)
        session.send(sql.HASH, number(news.since.seq))
        session.send(sql.HEAD)
        ledger, kept, now = yield from session.answers()
        head = found_in(now, self.ledger_id).head
        since = news.since
        seen = Seen(self.ledger_id, news.memory.epochs.of(since.seq), since.seq, since.hash)
        ledger_id, epochs, _ = ledger_in(ledger)
        kept_hash = hash_of(rows_of(kept)[0][0]) if kept.ntuples else None
        name, is_standby = name_of(session.connection), not self.takes_writes
        place = Place(name, ledger_id, epochs.current, head.seq, kept_hash, is_standby=is_standby)
        if is_put_back(seen, place):
            return True
        read_foreign_entries(news.page, since, since.seq)
        raise LedgerCorrupt(f"the journal does not go on from entry {since.seq}")

    def _restarting(self, session: Session, news: News, *, history: int) -> Steps[None]:
        """Build memory anew, unless another thread has, and let it take the place of the old one."""
        memory = news.memory
        if history == memory.history:
            # The server has to have what memory stands at, before memory is built from it.
            session.send(sql.HASH, number(news.since.seq))
            [kept] = yield from session.answers()
            if news.since.seq and (not kept.ntuples or hash_of(rows_of(kept)[0][0]) != news.since.hash):
                history += yield from self._is_put_back(session, news)
        built = yield from self._built(session, history, news.found.head.seq)
        with self._guard:
            now = self._head_cache
            if now.history > history or (now.history == history and history > memory.history):
                raise OtherHistory(_PUT_BACK)
            if now.history < history or built.head.seq >= now.head.seq:
                self._head_cache = built
            if history > memory.history:
                self._begin_history()

    def _built(self, session: Session, history: int, least_seq: int) -> Steps[HeadCache]:
        """Return a memory built from the tables and the entries since, at the entry *least_seq* or a later one."""
        for statement in (sql.SEALED, sql.LEDGER, sql.COINS, sql.HOUSE_ACCOUNTS, sql.DEBTORS, sql.HEAD):
            session.send(statement)
        sealed, ledger, coins, house, debtors, now = yield from session.answers()
        _, epochs, segment_entries = ledger_in(ledger)
        head, sealed_head = found_in(now, self.ledger_id).head, sealed_in(sealed, self.ledger_id)
        if head.seq < sealed_head.seq:
            raise LedgerCorrupt(f"the journal ends at entry {head.seq}, and is sealed up to entry {sealed_head.seq}")
        memory = HeadCache(
            sealed_head,
            coins_in(coins),
            epochs,
            house_accounts=house_accounts_in(house),
            debtors=debtors_found(debtors),
            segment_entries=segment_entries,
            cache_accounts=self._cache_accounts,
            history=history,
        )
        while memory.head.seq < max(head.seq, least_seq):
            session.send(sql.NEW_ENTRIES, *self._after(memory.head, REBUILD_ENTRIES))
            [page] = yield from session.answers()
            if not page.ntuples:
                raise LedgerCorrupt(f"the journal ends at entry {memory.head.seq}, and its last one is {head.seq}")
            yield partial(_append, memory, page)
        return memory

    def _begin_history(self) -> None:
        """Forget what was noted about entries besides memory: the ledger was put back to an earlier state."""


@gc_paused
def _append(memory: HeadCache, page: PGresult) -> None:
    read = read_foreign_entries(page, memory.head, memory.head.seq)
    memory.apply(read.changes, read.last, read.epochs)
