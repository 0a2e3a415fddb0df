"""
The reads of the store on PostgreSQL, on their own connection, which never waits for a write.

Each query is sent together with queries for the head and the entries that memory lacks, in one snapshot. Memory is
advanced first, so a result is never newer than the head that the node reports, nor older than what it has acknowledged.
Rows are as of the last sealed entry; :meth:`PostgresReads._joined` is the one place where they are joined with memory,
which has what came later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from spotledger.domain.accounts import Account, Balance, Coin, HouseAccount
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import BooksDamaged, Head, Looked, TrialBalance
from spotledger.storage.encoding import decode_entry, key_digest
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.bounded_reader import BoundedReader
from spotledger.storage.postgres.connection import translated
from spotledger.storage.postgres.following.follower import Follower
from spotledger.storage.postgres.following.head_cache import (
    AnswerHeads,
    HeadCache,
    Question,
    RemoteAccount,
    Snapshot,
)
from spotledger.storage.postgres.following.memory import PAGE_ENTRIES, FollowedMemory
from spotledger.storage.postgres.right_server import RightServer
from spotledger.storage.postgres.rows import (
    add_balances,
    balance_after,
    customers_in,
    entries_of_keys,
    holds_in,
    is_storable,
    last_booked_by,
    sums_of,
)
from spotledger.storage.postgres.schema import check_schema, make_ledger
from spotledger.storage.postgres.session import UUID, Session, array, number, numbers, rows_of, texts
from spotledger.storage.seen_head import SeenHead

CACHE_ACCOUNTS: Final = 50_000
#: How often the journal is polled for entries of other nodes.
FOLLOW_SECONDS: Final = 0.2
#: How long one round trip may take before the connection counts as lost.
READ_PATIENCE_SECONDS: Final = 3.0
#: How often a read is tried when memory advances too far meanwhile.
READ_TRIES: Final = 20
#: Holds that are read at once where some of them may be in another state than the tables say.
HOLDS_A_TRIP: Final = 1_000
#: Segments of sealed entries in which a reference is looked up at once.
SEGMENTS_A_LOOK: Final = 1_000

T = TypeVar("T")
_BIGINT_LIMIT: Final = 2**63
_TOO_FAST: Final = "the ledger could not be read: it changed too fast; try again"


class PostgresReads(FollowedMemory):
    """The reads of the store on PostgreSQL."""

    key_tables: Any = None
    rebuilds = 0
    rebuilding: str | None = None
    #: Whether a group waits for the write lock, and for memory to advance meanwhile.
    is_waiting = False

    def __init__(
        self,
        url: str,
        *,
        cache_accounts: int = CACHE_ACCOUNTS,
        follow_seconds: float | None = FOLLOW_SECONDS,
        follow_entries: int = PAGE_ENTRIES,
        age_limit_ms: int | None = None,
        seen: SeenHead | None = None,
    ) -> None:
        """
        Connect, and build memory from what is sealed and the entries since.

        Args:
            url: A PostgreSQL URL.
            cache_accounts: How many accounts and customers may stay in memory.
            follow_seconds: How often the journal is polled for entries of other nodes; None: only when it is read.
            follow_entries: How many entries of other nodes are read at once.
            age_limit_ms: How old what is read may be; None: it is read from memory however old that is.
            seen: What this node saw last; a server without it is refused.
        """
        super().__init__(RightServer(url, seen), cache_accounts=cache_accounts, follow_entries=follow_entries)
        self._age_limit_ms = age_limit_ms
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
    def sealing_lag(self) -> int:
        """Entries of full segments that are not sealed yet, as far as this node has seen."""
        memory = self._head_cache
        return max(0, memory.head.seq // memory.segment_entries * memory.segment_entries - memory.sealed_seq)

    @property
    def sealing_restarts(self) -> int:
        """How often the process that seals ended and was started again; 0 where the node does not seal."""
        return 0

    def go_on_rebuilding(self) -> None:
        """Do nothing: what is derived is made again by a command."""

    def note_time(self) -> None:
        """Do nothing: entries are booked at the time of the server."""

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; a new object after each listing."""
        if self._heads.seqs is None:
            return self._head_cache.coins
        with self._guard:
            self._heads.note(self._head_cache.head.seq)
            return self._head_cache.coins

    @property
    def debtors(self) -> set[str]:
        """The customers who owe something, and maybe others."""
        return self._head_cache.debtors

    @property
    def house_accounts(self) -> Mapping[str, HouseAccount]:
        """The open house accounts by name, sorted; a new object after one is opened."""
        if self._heads.seqs is None:
            return self._head_cache.house_accounts
        with self._guard:
            self._heads.note(self._head_cache.head.seq)
            return self._head_cache.house_accounts

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

    def follow(self, session: Session, *questions: Question) -> Snapshot:
        """Do what :meth:`_ask` does, on a session of the caller; raise the errors of the driver."""
        snapshot = super().follow(session, *questions)
        self._reader.note_answer()
        return snapshot

    # --- what memory has, or loads ------------------------------------------------------------------------

    def _joined(self, take: Callable[[HeadCache, Snapshot], T], *questions: Question) -> T:
        """
        Run queries, and return what *take* makes of memory and the rows once it may join them; it holds the guard.

        The rows are as of an entry that was sealed by then; :meth:`HeadCache.covers` has checked that memory has what
        all later entries changed, so where both say something of a balance or a hold, memory is right.

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
            memory.take_accounts(found)
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
        with self._guard:
            missing = [
                hold_id for hold_id in holds if 0 < hold_id < _BIGINT_LIMIT and self._head_cache.hold(hold_id) is None
            ]
        if not missing:
            return []

        def take(memory: HeadCache, snapshot: Snapshot) -> list[Hold]:
            memory.take_holds(holds_in(snapshot.answers[0]))
            found = (memory.hold(hold_id) for hold_id in missing)
            return [hold for hold in found if hold is not None]

        return self._joined(take, (sql.HOLDS, (numbers(missing),)))

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""
        if self._head_cache.has_customer(customer):
            return True  # for ever, so it holds at any later entry
        if not is_storable(customer):
            return False

        def take(memory: HeadCache, snapshot: Snapshot) -> bool:
            memory.take_customers(customers_in(snapshot.answers[0]))
            return memory.has_customer(customer)

        return self._joined(take, (sql.CUSTOMERS, (texts([customer]),)))

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None."""
        with self._guard:
            kept = self._head_cache.hold(hold_id)
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

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        if not 0 < seq < _BIGINT_LIMIT:
            return None

        def take(memory: HeadCache, snapshot: Snapshot) -> int | None:
            rows = snapshot.answers[0]
            return int(rows_of(rows)[0][1]) if rows.ntuples else memory.reversal_of(seq)

        return self._joined(take, (sql.REVERSALS, (numbers([seq]),)))

    # --- other reads ----------------------------------------------------------------------------------------

    def balances_at(self, account: Account, seq: int, coin: str | None = None) -> dict[str, Balance]:
        """Return the balances of the account, or that of *coin*, after the entry *seq*, which is at most the head."""
        coins = sorted(name for name in self.account(account).balances if coin in (None, name))
        if not coins or seq < 1:
            return {}

        def take(memory: HeadCache, snapshot: Snapshot) -> tuple[dict[str, int], dict[str, bytes]]:
            touches = {coin: touch for coin in coins if (touch := memory.last_touch(account, coin, seq)) is not None}
            return touches, {coin.decode(): body for coin, body in rows_of(snapshot.answers[0])}

        parameters = (texts(coins), account.customer.encode(), account.kind.encode(), number(seq))
        touches, bodies = self._joined(take, (sql.LAST_TOUCHES, parameters))
        if touches:
            (rows,) = self._ask((sql.ENTRIES_OF_SEQS, (numbers(sorted(set(touches.values()))),))).answers
            newer = {int(touch): body for touch, body in rows_of(rows)}
            bodies.update((coin, newer[touch]) for coin, touch in touches.items())
        return {coin: balance_after(body, account, coin) for coin, body in sorted(bodies.items())}

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer*, ``open``, ``closed`` or both (None), with ids above *after*, by id."""
        if not is_storable(customer):
            return []

        def question(after: int, limit: int) -> Question:
            parameters = (customer.encode(), number(after), number(limit))
            return (sql.OPEN_HOLDS_OF if state == "open" else sql.HOLDS_OF), parameters

        def opened(memory: HeadCache, after: int) -> Iterable[Hold]:
            changed = memory.changed_holds_of(customer)
            return (changed[hold_id] for hold_id in sorted(changed) if hold_id > after)

        return self._holds_in_pages(question, opened, lambda hold: state in (None, hold.state), after, limit)

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds with ids above *after* that were opened up to *before_ms*, by id."""
        before_ms = max(-1, min(before_ms, _BIGINT_LIMIT - 1))

        def question(after: int, limit: int) -> Question:
            return sql.OLD_HOLDS, (number(after), number(before_ms), number(limit))

        def opened(memory: HeadCache, after: int) -> Iterable[Hold]:
            return (hold for hold in memory.holds_opened_after(after) if hold.opened_ms <= before_ms)

        return self._holds_in_pages(question, opened, lambda hold: hold.closed_seq is None, after, limit)

    def _holds_in_pages(
        self,
        question: Callable[[int, int], Question],
        opened: Callable[[HeadCache, int], Iterable[Hold]],
        is_wanted: Callable[[Hold], bool],
        after: int,
        limit: int,
    ) -> list[Hold]:
        """
        Return the first *limit* holds above *after* that are wanted, by id, from the tables and from memory.

        The tables may have holds in another state than they are in, so pages are read until enough of them are wanted.
        """
        found: list[Hold] = []
        size = limit

        def take(memory: HeadCache, snapshot: Snapshot) -> tuple[list[Hold], int | None]:
            rows = sorted(holds_in(snapshot.answers[0]))
            end = rows[-1].hold_id if len(rows) == size else None
            newest = {row.hold_id: memory.newest(row) for row in rows}
            for hold in opened(memory, after):
                if end is not None and hold.hold_id > end:
                    break
                newest[hold.hold_id] = hold
            return [newest[hold_id] for hold_id in sorted(newest) if is_wanted(newest[hold_id])], end

        while True:
            page, end = self._joined(take, question(after, size))
            found += page
            if end is None or len(found) >= limit:
                return found[:limit]
            after, size = end, HOLDS_A_TRIP

    def customers(self, after: str, limit: int) -> list[str]:
        """Return customers with ids above *after*, by id."""
        if not is_storable(after):
            after = "~"  # sorts after every customer id

        def take(memory: HeadCache, snapshot: Snapshot) -> list[str]:
            return sorted({*customers_in(snapshot.answers[0]), *memory.customers_after(after)})[:limit]

        return self._joined(take, (sql.CUSTOMERS_AFTER, (after.encode(), number(limit))))

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

    def entries_of(self, seqs: Sequence[int]) -> list[Entry]:
        """Return the durable entries *seqs*, which rise and exist, in order."""
        if not seqs:
            return []
        (rows,) = self._ask((sql.ENTRIES_OF_SEQS, (numbers(seqs),))).answers
        bodies = {int(seq): body for seq, body in rows_of(rows)}
        for seq in seqs:
            if seq not in bodies:
                raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return [decode_entry(bodies[seq]) for seq in seqs]

    def account_seqs(self, accounts: Sequence[Account], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that changed *coin*, or any, of *accounts*, in order."""
        asked = [account for account in accounts if is_storable(account.customer)]
        if not asked or not is_storable(coin or ""):
            return []

        def take(memory: HeadCache, snapshot: Snapshot) -> list[int]:
            sealed = (int(seq) for (seq,) in rows_of(snapshot.answers[0]))
            return sorted({*memory.seqs_touching(asked, coin, after_seq, limit), *sealed})[:limit]

        # No owner has two accounts of which only one can be asked for, so names and kinds need not be paired.
        owners, kinds = (list(dict.fromkeys(names)) for names in zip(*asked, strict=True))
        asked_coin = None if coin is None else coin.encode()
        parameters = (texts(owners), asked_coin, number(after_seq), number(limit), texts(kinds))
        return self._joined(take, (sql.TOUCHES, parameters))

    def entries_with_reference(self, reference: str, after_seq: int, limit: int) -> Looked:
        """Return entries after *after_seq* with this *reference*; looks at `SEGMENTS_A_LOOK` sealed segments."""
        if not is_storable(reference):
            return Looked([], self.head.seq)
        looked_to = (after_seq // sql.SEGMENT_ENTRIES + SEGMENTS_A_LOOK) * sql.SEGMENT_ENTRIES

        def take(memory: HeadCache, snapshot: Snapshot) -> tuple[list[int], int]:
            sealed = [int(seq) for (seq,) in rows_of(snapshot.answers[0])]
            if looked_to < snapshot.sealed_seq:
                return sealed, looked_to
            newer = memory.seqs_with_reference(reference, after_seq)
            return sorted({*sealed, *newer})[:limit], memory.head.seq

        parameters = (reference.encode(), number(after_seq), number(limit), number(SEGMENTS_A_LOOK))
        seqs, to_seq = self._joined(take, (sql.WITH_REFERENCE, parameters))
        found = self.entries_of(seqs)
        for entry in found:
            if entry.request.get("reference") != reference:
                raise BooksDamaged(f"entry {entry.seq} has another reference than the one by which it was found")
        return Looked(found, seqs[-1] if len(seqs) == limit else to_seq)

    def trial_balance(self, at_seq: int | None = None) -> TrialBalance:
        """Add up all durable balances, now or after the entry *at_seq*, on a connection of its own."""
        with translated("read"), self._right.connect("spotledger sums", steady_plans=False) as connection:
            return sums_of(connection, self.ledger_id, at_seq)

    def close(self) -> None:
        """Stop following the journal, and close the connections."""
        if self._follower is not None:
            self._follower.stop()
        self._reader.close()
