"""
The reads of the store on PostgreSQL, on their own connection, which never waits for a write.

Each query is sent together with queries for the head and the entries that memory lacks, in one snapshot. Memory is
advanced first, so a result is never newer than the head that the node reports, nor older than what it has acknowledged.
Rows enter memory in one place, :meth:`PostgresReads._joined`, which advances them from their snapshot to the head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from psycopg.pq.abc import PGresult

from spotledger.clock import steady_s
from spotledger.domain.accounts import Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import DerivedAtOnce, Head, TrialBalance
from spotledger.storage.encoding import decode_entry, key_digest
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.bounded_reader import BoundedReader
from spotledger.storage.postgres.connection import translated
from spotledger.storage.postgres.follower import Follower
from spotledger.storage.postgres.foreign_entries import do_lead, read_foreign_entries
from spotledger.storage.postgres.head_cache import (
    AnswerHeads,
    HeadCache,
    Question,
    RemoteAccount,
    Snapshot,
    answers_in_snapshot,
)
from spotledger.storage.postgres.right_server import Restart, RightServer, name_of
from spotledger.storage.postgres.rows import (
    add_balances,
    balances_after,
    coins_in,
    customers_in,
    entries_of_keys,
    epochs_in,
    head_of,
    holds_in,
    is_storable,
    last_booked_by,
    sums_of,
)
from spotledger.storage.postgres.schema import check_schema, make_ledger
from spotledger.storage.postgres.session import UUID, Session, array, number, numbers, rows_of, texts
from spotledger.storage.seen_head import OtherHistory, Seen, SeenHead

CACHE_ACCOUNTS: Final = 50_000
#: How many entries of other nodes are read to advance memory; if there are more, memory restarts at the head.
FOLLOW_ENTRIES: Final = 20_000
#: How often the journal is polled for entries of other nodes.
FOLLOW_SECONDS: Final = 0.2
#: How long one round trip may take before the connection counts as lost.
READ_PATIENCE_SECONDS: Final = 3.0
#: How often a read is tried when memory advances too far meanwhile.
READ_TRIES: Final = 20

T = TypeVar("T")
_BIGINT_LIMIT: Final = 2**63
_TOO_FAST: Final = "the ledger could not be read: it changed too fast; try again"
_PUT_BACK: Final = "the ledger was put back to an earlier state meanwhile; try again"


class PostgresReads(DerivedAtOnce):
    """The reads of the store on PostgreSQL, and how its memory is kept at the head."""

    key_tables: Any = None
    takes_writes = True
    #: Whether a group is being written, which advances memory itself.
    is_writing = False
    #: Whether a group waits for the write lock, and for memory to advance meanwhile.
    is_waiting = False

    def __init__(
        self,
        url: str,
        *,
        cache_accounts: int = CACHE_ACCOUNTS,
        follow_seconds: float | None = FOLLOW_SECONDS,
        follow_entries: int = FOLLOW_ENTRIES,
        age_limit_ms: int | None = None,
        seen: SeenHead | None = None,
    ) -> None:
        """
        Connect, and load the head of the journal.

        Args:
            url: A PostgreSQL URL.
            cache_accounts: How many accounts and customers may stay in memory.
            follow_seconds: How often the journal is polled for entries of other nodes; None: only when it is read.
            follow_entries: If more entries of other nodes are missing, memory restarts at the head.
            age_limit_ms: How old what is read may be; None: it is read from memory however old that is.
            seen: What this node saw last; a server without it is refused.
        """
        self._right = RightServer(url, seen)
        self._cache_accounts = cache_accounts
        self.follow_entries = follow_entries
        self._age_limit_ms = age_limit_ms
        #: What was acknowledged up to this time (`steady_s`) is in memory.
        self._as_of_s = float("-inf")
        #: Guards memory; never held during a round trip.
        self._guard = threading.RLock()
        self._heads = AnswerHeads()
        connecting = partial(self._right.connect, "spotledger read")
        with self._right.connect_at_start("spotledger read") as connection:
            check_schema(connection)
            if self.takes_writes:
                make_ledger(connection)
        self._reader = BoundedReader(connecting, sql.READING, READ_PATIENCE_SECONDS)
        try:
            self._reader.ask(self._open)
        except BaseException:
            self._reader.close()
            raise
        self._follower = None
        if follow_seconds is not None:
            following = partial(self._right.connect, "spotledger follow")
            self._follower = Follower(following, self, follow_seconds, listens=self.takes_writes)

    def _open(self, session: Session) -> None:
        """Read the row of the ledger, and start memory at the head."""
        at_s = steady_s()
        for statement in (sql.BEGIN_SNAPSHOT, sql.LEDGER, sql.HEAD, sql.COINS, sql.COMMIT):
            session.send(statement)
        _, ledger, head, coins, _ = session.collect()
        if ledger.ntuples == 0:
            raise LedgerCorrupt("the row of the ledger is missing")
        self.ledger_id = rows_of(ledger)[0][0].decode()
        self._head_cache = HeadCache(head_of(head), coins_in(coins), self._cache_accounts, epochs_in(ledger))
        self._note_followed(at_s)
        self._note_seen()

    @property
    def head(self) -> Head:
        """
        The entry that memory stands at: the last that this node wrote, or saw of other nodes.

        Raises:
            StoreUnavailable: It may be older than the bound, because this node does not follow the others.
        """
        if self._age_limit_ms is not None and self.age_ms > self._age_limit_ms:
            raise StoreUnavailable(
                f"This node may be more than {self._age_limit_ms} ms behind; ask another node, or try again later."
            )
        return self._head_cache.head

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal; another object after one begins."""
        return self._head_cache.epochs

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

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; a new object after each listing."""
        if self._heads.seqs is None:
            return self._head_cache.coins
        with self._guard:
            self._heads.note(self._head_cache.head.seq)
            return self._head_cache.coins

    # --- querying the server ----------------------------------------------------------------------------

    def at_one_head(self, read: Callable[[], T]) -> tuple[int, T]:
        """
        Return the entry that all of an answer stands for, and the answer of *read*.

        It may be called several times. It may use ``balances_now``, ``coins``, ``customers``, ``hold``, ``holds``,
        ``old_holds`` and ``reversal_of``, besides the reads of entries, which never change.

        Raises:
            StoreUnavailable: The server cannot be reached, or the ledger changes too fast.
        """
        for _ in range(READ_TRIES):
            before, (seqs, answer) = self.head.seq, self._heads.collected(read)
            if len(seqs) <= 1:
                return next(iter(seqs), before), answer
        raise StoreUnavailable(_TOO_FAST)

    def _ask(self, *questions: Question) -> Snapshot:
        """
        Run queries in one snapshot, and advance memory at least to its head.

        Raises:
            StoreUnavailable: The server cannot be reached.
            LedgerCorrupt: The journal lacks an entry that this node has acknowledged, or is damaged.
        """
        return self._reader.ask(lambda session: self.follow(session, *questions))

    @gc_paused
    def follow(self, session: Session, *questions: Question) -> Snapshot:
        """Do what :meth:`_ask` does, on a session of the caller; raise the errors of the driver."""
        memory, at_s = self._head_cache, steady_s()
        since = memory.head
        news, *answers = answers_in_snapshot(
            session, (sql.NEW_ENTRIES, (number(since.seq), number(self.follow_entries + 1))), *questions
        )
        snapshot = Snapshot(head_of(answers.pop()), answers, memory.history)
        if not self._advance(memory.history, since, snapshot.head, news):
            # Memory restarts at the head of another snapshot, so the queries are answered from that one.
            ledger, coins, kept, *answers = answers_in_snapshot(
                session, (sql.LEDGER, ()), (sql.COINS, ()), (sql.HASH, (number(since.seq),)), *questions
            )
            head = head_of(answers.pop())
            restart = Restart(name_of(session.connection), since, snapshot.head, news, [ledger, coins, kept])
            snapshot = Snapshot(head, answers, self._restart_at(memory, restart, head))
        elif not self.is_writing:
            # Entries of other nodes add holds. A group that is being written relies on what it has loaded.
            with self._guard:
                self._shrink()
        self._note_followed(at_s)
        self._note_seen()
        self._reader.note_answer()
        return snapshot

    def _note_seen(self) -> None:
        """Note what memory stands at, for the choice of servers."""
        with self._guard:
            head, epoch = self._head_cache.head, self._head_cache.epochs.current
        self._right.seen.note(self.ledger_id, epoch, head)

    def _restart_at(self, memory: HeadCache, restart: Restart, head: Head) -> int:
        """
        Restart memory at *head*, unless another thread did; *memory* is what it was before. Return its history.

        Raises:
            OtherHistory, NotCaughtUp: The server is not the right one, or behind.
            LedgerCorrupt: The server has the entry that memory stood at, and its journal does not go on from there.
        """
        ledger, coins, _ = restart.answers
        epochs = epochs_in(ledger)
        seen = Seen(self.ledger_id, memory.epochs.of(restart.since.seq), restart.since.seq, restart.since.hash)
        is_put_back = restart.check(seen, epochs.current, head, is_standby=not self.takes_writes)
        if not is_put_back and restart.news.ntuples <= self.follow_entries:
            restart.blame()  # not too many entries, so something is wrong with the first, or with the head
        with self._guard:
            now = self._head_cache
            if now.history != memory.history or (is_put_back and now.epochs.current >= epochs.current):
                raise OtherHistory(_PUT_BACK)
            if is_put_back or head.seq > now.head.seq:
                history = now.history + is_put_back
                self._head_cache = HeadCache(head, coins_in(coins), self._cache_accounts, epochs, history)
            if is_put_back:
                self._begin_history()
            return self._head_cache.history

    def _begin_history(self) -> None:
        """Forget what was noted about entries besides memory: the ledger was put back to an earlier state."""

    @gc_paused
    def _advance(self, history: int, since: Head, head: Head, news: PGresult) -> bool:
        """
        Advance memory from *since*, its head before the query, to *head*, with the entries in *news*.

        Returns:
            False if there are too many entries, or they do not go on from *since*, so that memory has to restart.

        Raises:
            OtherHistory: Memory has another history meanwhile.
            LedgerCorrupt: The entries do not lead to *head*.
        """
        if news.ntuples > self.follow_entries or not do_lead(news, since, head):
            return False
        read = read_foreign_entries(news, since, head, self._head_cache.head.seq)
        with self._guard:
            memory = self._head_cache
            if memory.history != history:
                raise OtherHistory(_PUT_BACK)
            new = read.after(memory.head.seq)
            if new.changes:
                try:
                    memory.follow(new, head)
                except BaseException:
                    memory.forget()
                    raise
        return True

    # --- what memory has, or loads ------------------------------------------------------------------------

    def _joined(self, take: Callable[[HeadCache, Snapshot], T], *questions: Question) -> T:
        """
        Run queries, and return what *take* makes of memory and the rows once it may join them; it holds the guard.

        Memory may have advanced beyond the snapshot meanwhile. Then *take* advances the rows with the entries between
        the two, which :meth:`HeadCache.covers` has checked memory to have.

        Raises:
            StoreUnavailable: The server cannot be reached, or the ledger changes too fast.
        """
        for _ in range(READ_TRIES):
            snapshot = self._ask(*questions)
            with self._guard:
                memory = self._head_cache
                if memory.covers(snapshot):
                    found = take(memory, snapshot)
                    self._heads.note(memory.head.seq)
                    self._shrink()
                    return found
        raise StoreUnavailable(_TOO_FAST)

    def account(self, account: Account) -> RemoteAccount:
        """Return the account at the head."""
        view = self._head_cache.accounts.get(account)
        return view if view is not None else self._load_accounts([account])[account]

    def balances_now(self, account: Account) -> Mapping[str, Balance]:
        """Return the balances of the account at the head, by coin."""
        with self._guard:
            view = self._head_cache.accounts.get(account)
            if view is not None:
                self._heads.note(self._head_cache.head.seq)
                return view.balances
        return self._load_accounts([account])[account].balances

    def _load_accounts(self, accounts: Sequence[Account]) -> Mapping[Account, RemoteAccount]:
        """Load *accounts* into memory, and return them."""
        asked = [account for account in accounts if is_storable(account.customer) and is_storable(account.kind)]
        owners, kinds = [account.customer for account in asked], [account.kind for account in asked]

        def take(memory: HeadCache, snapshot: Snapshot) -> Mapping[Account, RemoteAccount]:
            found: dict[Account, tuple[int, dict[str, Balance]]] = {account: (0, {}) for account in accounts}
            add_balances(snapshot.answers[0], found)
            memory.take_accounts(snapshot.head.seq, found)
            return {account: memory.accounts[account] for account in accounts}

        return self._joined(take, (sql.BALANCES, (texts(owners), texts(kinds))))

    def _shrink(self) -> None:
        """Evict from memory what exceeds its bounds."""
        self._head_cache.shrink()

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Load what the rules will read and memory does not have."""
        missing = [account for account in accounts if account not in self._head_cache.accounts]
        if missing:
            self._load_accounts(missing)
        for customer in customers:
            self.has_customer(customer)
        self._load_holds(holds)

    def _load_holds(self, holds: Iterable[int]) -> list[Hold]:
        """Load those of *holds* that memory lacks, and return them."""
        missing = [
            hold_id for hold_id in holds if hold_id not in self._head_cache.holds and 0 < hold_id < _BIGINT_LIMIT
        ]
        if not missing:
            return []

        def take(memory: HeadCache, snapshot: Snapshot) -> list[Hold]:
            memory.take_holds(snapshot.head.seq, holds_in(snapshot.answers[0]), missing)
            return [memory.holds[hold_id] for hold_id in missing if hold_id in memory.holds]

        return self._joined(take, (sql.HOLDS, (numbers(missing),)))

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""
        if customer in self._head_cache.customers:
            return True  # for ever, so it holds at any later entry
        if not is_storable(customer):
            return False

        def take(memory: HeadCache, snapshot: Snapshot) -> bool:
            memory.take_customers(snapshot.head.seq, customers_in(snapshot.answers[0]), [customer])
            return customer in memory.customers

        return self._joined(take, (sql.CUSTOMERS, (texts([customer]),)))

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None."""
        with self._guard:
            kept = self._head_cache.holds.get(hold_id)
            if kept is not None:
                self._heads.note(self._head_cache.head.seq)
                return kept
        found = self._load_holds([hold_id])
        return found[0] if found else None

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each of *keys* that is known."""
        digests = {key_digest(key): key for key in keys}
        if not digests:
            return {}
        (rows,) = self._ask((sql.ENTRIES_OF_KEYS, (array(UUID, list(digests)),))).answers
        return {entry.key: entry.seq for entry in entries_of_keys(rows, digests)}

    def _rows_of(self, question: Question) -> PGresult:
        """Return the rows of one query, which stand for the head of their snapshot."""
        snapshot = self._ask(question)
        self._heads.note(snapshot.head.seq)
        return snapshot.answers[0]

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        if not 0 < seq < _BIGINT_LIMIT:
            return None
        rows = self._rows_of((sql.REVERSALS, (numbers([seq]),)))
        return int(rows_of(rows)[0][1]) if rows.ntuples else None

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return the ids of at most *limit* open holds that expire by *now_ms*."""
        (rows,) = self._ask((sql.DUE, (number(now_ms), number(limit)))).answers
        return [hold.hold_id for hold in holds_in(rows)]

    # --- other reads ----------------------------------------------------------------------------------------

    def balances_at(self, account: Account, seq: int) -> dict[str, Balance]:
        """Return the balances of the account after the entry *seq*, which is at most the head."""
        coins = sorted(self.account(account).balances)
        if not coins or seq < 1:
            return {}
        parameters = (texts(coins), account.customer.encode(), account.kind.encode(), number(seq))
        (rows,) = self._ask((sql.LAST_TOUCHES, parameters)).answers
        return balances_after(rows, account)

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer*, ``open``, ``closed`` or both (None), with ids above *after*, by id."""
        if not is_storable(customer):
            return []
        parameters = (customer.encode(), number(after), number(limit))
        question: Question = (sql.OPEN_HOLDS_OF, parameters)
        if state != "open":
            question = (sql.HOLDS_OF, (*parameters, b"true" if state == "closed" else b"false"))
        rows = self._rows_of(question)
        return sorted(holds_in(rows))

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds with ids above *after* that were opened up to *before_ms*, by id."""
        before_ms = max(-1, min(before_ms, _BIGINT_LIMIT - 1))
        rows = self._rows_of((sql.OLD_HOLDS, (number(after), number(before_ms), number(limit))))
        return holds_in(rows)

    def customers(self, after: str, limit: int) -> list[str]:
        """Return customers with ids above *after*, by id."""
        if not is_storable(after):
            after = "~"  # sorts after every customer id
        rows = self._rows_of((sql.CUSTOMERS_AFTER, (after.encode(), number(limit))))
        return customers_in(rows)

    def entry(self, seq: int) -> Entry | None:
        """Return one entry, or None."""
        found = self.entries(seq - 1, 1) if seq > 0 else []
        return found[0] if found else None

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """Return durable entries after *after_seq*, in order."""
        if after_seq >= _BIGINT_LIMIT:
            return []
        (rows,) = self._ask((sql.ENTRIES, (number(after_seq), number(limit)))).answers
        return [decode_entry(body) for (body,) in rows_of(rows)]

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 if there is none."""
        head = self._ask().head
        if time_ms >= head.booked_ms:
            return head.seq
        return last_booked_by(time_ms, head.seq, lambda question: self._ask(question).answers[0])

    def account_seqs(self, owners: Sequence[str], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that changed an account of *owners*, in order."""
        asked = [owner for owner in owners if is_storable(owner)]
        if not asked or not is_storable(coin or ""):
            return []
        parameters = (texts(asked), None if coin is None else coin.encode(), number(after_seq), number(limit))
        (rows,) = self._ask((sql.TOUCHES, parameters)).answers
        return sorted(int(seq) for (seq,) in rows_of(rows))

    def trial_balance(self) -> TrialBalance:
        """Add up all durable balances, on a connection of its own."""
        with translated("read"), self._right.connect("spotledger sums", steady_plans=False) as connection:
            return sums_of(connection)

    def close(self) -> None:
        """Stop following the journal, and close the connections."""
        if self._follower is not None:
            self._follower.stop()
        self._reader.close()
