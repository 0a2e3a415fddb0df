"""
A node's cache of a ledger on PostgreSQL: accounts, open holds and coins at exactly one entry, its head.

It advances by whole commits, of this node and of others. A miss means "not loaded"; nothing in it is ever stale.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias, TypeVar

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import ZERO, Account, Balance, Coin
from spotledger.domain.journal import BEGIN_EPOCH, BalanceAfter, Entry, Hold, epochs_after, new_tuple, opened_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer
from spotledger.domain.positions import Epochs
from spotledger.storage.base import Head
from spotledger.storage.encoding import decode_entry
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.foreign_entries import Change, ForeignEntries, change_in
from spotledger.storage.postgres.rows import DerivedRows
from spotledger.storage.postgres.session import Parameter, Session, Statement

#: Entries that are kept to advance what was read as of an earlier entry.
RECENT_ENTRIES: Final = 4_000
#: How many holds may be in memory for each account that may be.
HOLDS_AN_ACCOUNT: Final = 2

#: Account, coin, available and freeze after an entry, from the domain or from a `Change`.
Line: TypeAlias = BalanceAfter | tuple[tuple[str, str], str, int, int]
Question: TypeAlias = tuple[Statement, tuple[Parameter, ...]]
K = TypeVar("K")
V = TypeVar("V")


class Snapshot(NamedTuple):
    """What one snapshot of the database has: its head, and a result for each query."""

    head: Head
    answers: Sequence[PGresult]
    #: That of the cache which it may be joined with.
    history: int


def answers_in_snapshot(session: Session, *questions: Question) -> list[PGresult]:
    """Run queries in one snapshot; return a result for each, and at last the one for its head."""
    session.send(sql.BEGIN_SNAPSHOT)
    for statement, parameters in questions:
        session.send(statement, *parameters)
    session.send(sql.HEAD)
    session.send(sql.COMMIT)
    return session.collect()[1:-1]


class AnswerHeads(threading.local):
    """The entries that the parts of one answer stand for, collected by each thread for itself."""

    seqs: set[int] | None = None

    def collected(self, read: Callable[[], V]) -> tuple[set[int], V]:
        """Return the entries that the parts of the answer of *read* stand for, and the answer."""
        seqs = self.seqs = set[int]()
        try:
            return seqs, read()
        finally:
            self.seqs = None

    def note(self, seq: int) -> None:
        """Note that a part stands for the entry *seq*, if an answer is being collected."""
        if self.seqs is not None:
            self.seqs.add(seq)


class RemoteAccount:
    """
    One account at the head of the cache; satisfies :class:`spotledger.storage.base.AccountView`.

    Its balances are one mapping that each commit replaces as a whole, so a reader in another thread sees all of a
    commit or nothing.
    """

    __slots__ = ("_now", "account")

    def __init__(self, account: Account, changed_seq: int, by_coin: dict[str, Balance]) -> None:
        """Create the view of *account*, which the entry *changed_seq* changed last."""
        self.account = account
        self._now = (changed_seq, by_coin)

    @property
    def changed_seq(self) -> int:
        """The last entry that changed the account; 0 if none did."""
        return self._now[0]

    @property
    def balances(self) -> Mapping[str, Balance]:
        """Balances in units of all coins that the account ever had; the returned mapping never changes."""
        return MappingProxyType(self._now[1])

    def balance(self, coin: str) -> Balance:
        """Return the balance of *coin* in units."""
        return self._now[1].get(coin, ZERO)

    def change(self, seq: int, balances: Mapping[str, Balance]) -> None:
        """Replace some balances by those after the entry *seq*."""
        self._now = (seq, {**self._now[1], **balances})


class HeadCache:
    """The cache. Hold the store's guard to change it, or to read more than one thing of it."""

    def __init__(
        self, head: Head, coins: Iterable[Coin], cache_accounts: int, epochs: Epochs, history: int = 0
    ) -> None:
        """
        Create a cache with nothing but the coins.

        Args:
            head: The entry that the cache stands at.
            coins: The coins listed by then.
            cache_accounts: How many accounts and customers may stay, with `HOLDS_AN_ACCOUNT` holds each.
            epochs: The epochs begun by then.
            history: How often the ledger was found to be put back to an earlier state: what was read before stands for
                other entries.
        """
        self.head = head
        self.history = history
        self.epochs = epochs
        self.coins: Mapping[str, Coin] = MappingProxyType({coin.name: coin for coin in sorted(coins)})
        self.accounts: dict[Account, RemoteAccount] = {}
        self.customers: dict[str, None] = {}
        self.holds: dict[int, Hold] = {}
        #: Holds by the idempotency keys that opened them: most are named by these soon after.
        self.opened: dict[str, int] = {}
        #: The last entries up to the head; those of other nodes as bytes, because they are seldom needed.
        self._recent: deque[Entry | bytes] = deque(maxlen=RECENT_ENTRIES)
        self._cache_accounts = cache_accounts

    def covers(self, snapshot: Snapshot) -> bool:
        """Return whether what was read in *snapshot* can be advanced to the head."""
        return snapshot.history == self.history and 0 <= self.head.seq - snapshot.head.seq <= len(self._recent)

    def hold_of_key(self, key: str) -> Hold | None:
        """Return the hold that was opened under *key*, at the head, or None if it is not cached."""
        hold_id = self.opened.get(key)
        return None if hold_id is None else self.holds.get(hold_id)

    def _after(self, seq: int) -> Iterable[Entry | Change]:
        """Yield the entries after *seq*, which :meth:`covers` has to allow."""
        entries = islice(self._recent, len(self._recent) - (self.head.seq - seq), None)
        return (change_in(entry) if isinstance(entry, bytes) else entry for entry in entries)

    # --- adding what was read ----------------------------------------------------------------------

    def take_accounts(self, seq: int, found: Mapping[Account, tuple[int, dict[str, Balance]]]) -> None:
        """Add accounts (the last change, and all balances) that were read as of the entry *seq*."""
        newer: dict[Account, tuple[int, dict[str, Line]]] = {}
        for entry in self._after(seq):
            _collect(entry, found, newer)
        for account, (changed_seq, balances) in found.items():
            if account not in self.accounts:
                view = self.accounts[account] = RemoteAccount(account, changed_seq, balances)
                if account in newer:
                    seq_after, lines = newer[account]
                    view.change(seq_after, _balances(lines))

    def take_holds(self, seq: int, found: Iterable[Hold], wanted: Collection[int] = ()) -> None:
        """Add holds that were read as of the entry *seq*, and those of *wanted* that were opened since."""
        holds = {hold.hold_id: hold for hold in found if hold.hold_id not in self.holds}
        for entry in self._after(seq):
            if entry.seq in wanted and entry.seq not in self.holds:
                opened = entry.opened_hold() if isinstance(entry, Change) else opened_hold(entry)
                holds.update({} if opened is None else {opened.hold_id: opened})
            for hold_id, remaining in entry.holds:
                if hold_id in holds:
                    holds[hold_id] = holds[hold_id].after(remaining, entry.seq)
        self.holds.update(holds)

    def take_customers(self, seq: int, found: Iterable[str], wanted: Collection[str] = ()) -> None:
        """Add customers that were registered by the entry *seq*, and those of *wanted* that were registered since."""
        self.customers.update(dict.fromkeys(found))
        for entry in self._after(seq):
            if entry.kind == RegisterCustomer.kind and entry.refusal is None:
                customer = entry.request.customer if isinstance(entry, Change) else entry.request["customer"]
                if customer is not None and customer in wanted:
                    self.customers[customer] = None

    # --- entries --------------------------------------------------------------------------------------

    def follow(self, entries: ForeignEntries, head: Head) -> None:
        """Apply entries of other nodes, which lead from the head to the new *head*."""
        changed: dict[Account, tuple[int, dict[str, Line]]] = {}
        for change, body in zip(entries.changes, entries.bodies, strict=True):
            if change.holds:
                self._follow_holds(change)
            elif not change.balances and change.refusal is None:
                self._take_other(change.kind, change.request.coin, change.request.scale, change.request.customer)
                if change.kind == BEGIN_EPOCH:
                    self.epochs = epochs_after(decode_entry(body))
            _collect(change, self.accounts, changed)
        for account, (seq, lines) in changed.items():
            self.accounts[account].change(seq, _balances(lines))
        self._recent.extend(entries.bodies)
        self.head = head

    def _follow_holds(self, change: Change) -> None:
        opened = change.opened_hold()
        if opened is not None:
            self.holds[opened.hold_id] = opened
            self.opened[change.key] = opened.hold_id
            return
        for hold_id, remaining in change.holds:
            hold = self.holds.get(hold_id)
            if hold is not None:
                self.holds[hold_id] = hold.after(remaining, change.seq)

    def apply(self, entries: Sequence[Entry], head: Head, derived: DerivedRows | None = None) -> None:
        """Apply *entries*, which lead from the head to the new *head*; *derived* are their rows, if known."""
        derived = DerivedRows(entries) if derived is None else derived
        holds = self.holds
        holds.update(derived.opened)
        self.opened.update((entry.key, entry.seq) for entry in entries if entry.seq in derived.opened)
        for hold_id, (remaining, closed_seq) in derived.changed.items():
            hold = holds.get(hold_id)
            if hold is not None:
                holds[hold_id] = hold.after(remaining, closed_seq or 0)
        for entry in derived.rest:
            asked = entry.request
            self._take_other(entry.kind, asked.get("coin"), asked.get("scale"), asked.get("customer"))
            if entry.kind == BEGIN_EPOCH:
                self.epochs = epochs_after(entry)
        watched = self.accounts
        for account, (seq, balances) in derived.by_account().items():
            view = watched.get(account)
            if view is not None:
                view.change(seq, balances)
        self._recent.extend(entries)
        self.head = head

    def _take_other(self, kind: str, coin: str | None, scale: int | None, customer: str | None) -> None:
        """Apply a listing or a registration."""
        if kind == ListCoin.kind and coin is not None and scale is not None:
            # A new object, so that readers see that it changed.
            self.coins = MappingProxyType(dict(sorted([*self.coins.items(), (coin, Coin(coin, scale))])))
        elif kind == RegisterCustomer.kind and customer is not None:
            self.customers[customer] = None

    def make_room(self, count: int) -> None:
        """Drop the entries that the next *count* will displace, while there is time."""
        recent = self._recent
        for _ in range(min(len(recent), len(recent) + count - RECENT_ENTRIES)):
            recent.popleft()

    def forget(self) -> None:
        """Clear all but the coins and the head, after an error that may have left it inconsistent."""
        for kept in (self.accounts, self.customers, self.holds, self.opened, self._recent):
            kept.clear()

    def shrink(self) -> None:
        """Evict what exceeds the bounds, oldest first."""
        _shrink(self.accounts, self._cache_accounts)
        _shrink(self.customers, self._cache_accounts)
        _shrink(self.holds, self._cache_accounts * HOLDS_AN_ACCOUNT)
        _shrink(self.opened, self._cache_accounts * HOLDS_AN_ACCOUNT)


def _collect(
    entry: Entry | Change, watched: Mapping[Account, object], changed: dict[Account, tuple[int, dict[str, Line]]]
) -> None:
    """Add to *changed* the lines of *entry* about the *watched* accounts, by coin."""
    seq = entry.seq
    for line in entry.balances:
        account: Account = line[0]  # type: ignore[assignment]  # or a plain tuple, which equals it
        if account in changed:
            lines = changed[account][1]
        elif account in watched:
            lines = {}
        else:
            continue
        lines[line[1]] = line
        changed[account] = (seq, lines)


def _balances(lines: Mapping[str, Line]) -> dict[str, Balance]:
    """Return the balances in *lines*, by coin."""
    return {coin: new_tuple(Balance, line[2:]) for coin, line in lines.items()}


def _shrink(kept: dict[K, V], limit: int) -> None:
    # An eighth at once, so that the oldest need not be looked for each time.
    if len(kept) > limit + limit // 8:
        for name in list(islice(kept, len(kept) - limit)):
            del kept[name]
