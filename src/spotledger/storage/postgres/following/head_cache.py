"""
A node's memory of a ledger on PostgreSQL: what is not sealed yet, and a cache of accounts, open holds and coins.

It stands at exactly one entry, its head, and advances by whole commits, of this node and of others. The tables stand at
the last sealed entry, which lies before the head. A row is brought to the head in one place: :meth:`HeadCache.covers`
says whether memory has every entry since the row's snapshot was sealed, and then what memory says is the newer state.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import FIRST_HOUSE_ACCOUNTS, ZERO, Account, Balance, Coin, HouseAccount, house_name
from spotledger.domain.books import Line
from spotledger.domain.debts import debtors_in
from spotledger.domain.journal import BalanceAfter, Entry, Hold, new_tuple
from spotledger.domain.operations import Freeze, ListCoin, OpenHouseAccount, RegisterCustomer, Reverse
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import EntryChanges
from spotledger.storage.open_segments import OpenSegment, OpenSegments, TouchedLine
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.session import Parameter, Session, Statement

#: How many holds may be in memory for each account that may be.
HOLDS_AN_ACCOUNT: Final = 2

#: Account, coin, available and freeze after an entry, from the domain or as decoded.
AfterLine: TypeAlias = BalanceAfter | tuple[tuple[str, str], str, int, int]
#: Accounts with their last change and all balances, as rows have them.
AccountRows: TypeAlias = Mapping[Account, tuple[int, dict[str, Balance]]]
Question: TypeAlias = tuple[Statement, tuple[Parameter, ...]]
K = TypeVar("K")
V = TypeVar("V")


class Snapshot(NamedTuple):
    """What one snapshot of the database has: its head, the last sealed entry, and a result for each query."""

    head: Head
    sealed_seq: int
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

    __slots__ = ("_now", "account", "lines")

    def __init__(self, account: Account, changed_seq: int, by_coin: dict[str, Balance]) -> None:
        """Create the view of *account*, which the entry *changed_seq* changed last."""
        self.account = account
        self.lines: dict[str, Line] = {}
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


class HeadCache(OpenSegments):
    """The memory. Hold the store's guard to change it, or to read more than one thing of it."""

    def __init__(
        self,
        sealed: Head,
        coins: Iterable[Coin],
        epochs: Epochs,
        *,
        segment_entries: int,
        cache_accounts: int,
        house_accounts: Iterable[HouseAccount] = (),
        debtors: Iterable[str] = (),
        history: int = 0,
    ) -> None:
        """
        Create a memory with nothing but the coins, at the last sealed entry.

        Args:
            sealed: The last sealed entry, at which memory stands.
            coins: The coins listed by then.
            epochs: The epochs begun by then.
            segment_entries: Entries in a segment.
            house_accounts: Those that were opened by then.
            debtors: The customers who owed something then.
            cache_accounts: How many accounts and customers may stay, with `HOLDS_AN_ACCOUNT` holds each.
            history: How often the ledger was found to be put back to an earlier state: what was read before stands for
                other entries.
        """
        super().__init__(segment_entries)
        self.segment_entries = segment_entries
        self.head = sealed
        #: Memory has what all entries after this one changed, up to the head.
        self.base = sealed.seq
        #: The last sealed entry, as far as this node has seen.
        self.sealed_seq = sealed.seq
        #: False after an error in the midst of a change: then memory has to be built anew.
        self.is_whole = True
        self.history = history
        self.epochs = epochs
        self.coins: Mapping[str, Coin] = MappingProxyType({coin.name: coin for coin in sorted(coins)})
        #: Those who owe something, and maybe others.
        self.debtors = set(debtors)
        self.house_accounts: Mapping[str, HouseAccount] = MappingProxyType(FIRST_HOUSE_ACCOUNTS)
        for account in house_accounts:
            self._open_house_account(account)
        self.accounts: dict[Account, RemoteAccount] = {}
        self.customers: dict[str, None] = {}
        #: Holds as rows had them; :meth:`hold` brings them to the head.
        self.holds: dict[int, Hold] = {}
        #: The expiry and id of the last hold that the search for due holds has read from the tables.
        self.due_seen = (-1, 0)
        self._cache_accounts = cache_accounts

    def covers(self, snapshot: Snapshot) -> bool:
        """Return whether what was read in *snapshot* can be brought to the head."""
        return (
            snapshot.history == self.history
            and self.is_whole
            and self.base <= snapshot.sealed_seq
            and snapshot.head.seq <= self.head.seq
        )

    # --- look-ups -------------------------------------------------------------------------------------

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None if it is not loaded."""
        row = self.holds.get(hold_id)
        return super().hold(hold_id) if row is None else self.newest(row)

    def newest(self, row: Hold) -> Hold:
        """Return at the head the hold that was read as *row* in a snapshot which memory :meth:`covers`."""
        for segment in reversed(self.segments):
            hold = segment.holds.get(row.hold_id)
            if hold is not None:
                return hold
            changed = segment.changed.get(row.hold_id)
            if changed is not None:
                return row.after(*changed)
        return row

    def hold_of_key(self, key: str) -> Hold | None:
        """Return the hold that was opened under *key*, at the head, or None if it is not loaded."""
        hold_id = self.opened_by(key)
        return None if hold_id is None else self.hold(hold_id)

    def has_customer(self, customer: str) -> bool:
        """Return whether memory knows that *customer* is registered."""
        return customer in self.customers or any(customer in segment.customers for segment in self.segments)

    def customers_after(self, after: str) -> set[str]:
        """Return the customers with ids above *after* whose registration is not sealed."""
        return {name for segment in self.segments for name in segment.customers if name > after}

    def pop_due_holds(self, now_ms: int, limit: int) -> list[int]:
        """
        Remove and return at most *limit* holds that expire by *now_ms* and are not known to be closed.

        Of those in the tables, it returns the ones that :meth:`take_due` was told of. `watch_overdue` puts one back.
        """
        due: dict[int, None] = {}
        while len(due) < limit and (hold_id := self.pop_due(now_ms)) is not None:
            hold = self.hold(hold_id)
            if hold is None or hold.closed_seq is None:
                due[hold_id] = None
        return list(due)

    # --- adding what was read ----------------------------------------------------------------------

    def take_accounts(self, found: AccountRows) -> None:
        """Add accounts that were read in a snapshot which memory :meth:`covers`."""
        for account, (changed_seq, balances) in found.items():
            if account in self.accounts:
                continue
            for segment in self.segments:
                for coin, line in segment.touched.get(account, {}).items():
                    balances[coin] = line.closing
                    changed_seq = max(changed_seq, segment.first_seq + line.places[-1])
            self.accounts[account] = RemoteAccount(account, changed_seq, balances)

    def take_holds(self, found: Iterable[Hold]) -> None:
        """Add holds that were read in a snapshot which memory :meth:`covers`."""
        for hold in found:
            self.holds.setdefault(hold.hold_id, hold)

    def take_due(self, found: Sequence[Hold]) -> None:
        """Add the next holds of the tables that are due, in the order of their expiry, after `due_seen`."""
        self.take_holds(found)
        for hold in found:
            self.watch_overdue(hold)
        if found and found[-1].expires_ms is not None:
            self.due_seen = (found[-1].expires_ms, found[-1].hold_id)

    def take_customers(self, found: Iterable[str]) -> None:
        """Add customers that are registered."""
        self.customers.update(dict.fromkeys(found))

    # --- entries --------------------------------------------------------------------------------------

    def apply(self, entries: Sequence[Entry | EntryChanges], head: Head, epochs: Epochs | None = None) -> None:
        """
        Apply *entries*, which lead from the head to the new *head*; *epochs* if one begins among them.

        Raises:
            LedgerCorrupt: One of them lacks what its kind has; memory is not whole afterwards.
        """
        self.is_whole = False
        changed: dict[Account, tuple[int, dict[str, AfterLine]]] = {}
        for number, entry in enumerate(entries, self.head.seq + 1):
            try:
                reference = _asked(entry, "reference")
                if reference is not None:
                    self._segment_of(number).note_reference(reference, number)
                if entry.refusal is None:
                    self._take(entry)
                    _collect(entry, self.accounts, changed)
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                raise LedgerCorrupt(f"entry {number} of the journal lacks what its kind has: {error}") from error
        for account, (seq, lines) in changed.items():
            self.accounts[account].change(seq, _balances(lines))
        if epochs is not None:
            self.epochs = epochs
        self.head = head
        self.is_whole = True

    def _take(self, entry: Entry | EntryChanges) -> None:
        segment, seq = self._segment_of(entry.seq), entry.seq
        if entry.balances:
            place = seq - segment.first_seq
            for account, coin, available, freeze in entry.balances:
                lines = segment.touched.get(account)  # type: ignore[call-overload]
                if lines is None:
                    lines = segment.touched[new_tuple(Account, account)] = {}
                line = lines.get(coin)
                if line is None:
                    line = lines[coin] = TouchedLine()
                line.closing = new_tuple(Balance, (available, freeze))
                line.places.append(place)
            if entry.holds:
                self._take_holds(segment, entry)
        elif entry.kind == ListCoin.kind:
            listed = Coin(_asked(entry, "coin"), _asked(entry, "scale"))
            # A new object, so that readers see that it changed.
            self.coins = MappingProxyType(dict(sorted([*self.coins.items(), (listed.name, listed)])))
        elif entry.kind == RegisterCustomer.kind:
            segment.customers[_asked(entry, "customer")] = seq
        elif entry.kind == OpenHouseAccount.kind:
            name, may_be_negative = _asked(entry, "name"), _asked(entry, "may_be_negative")
            self._open_house_account(HouseAccount(house_name(name), may_be_negative))
        if entry.kind == Reverse.kind:
            segment.reversals[_asked(entry, "seq")] = seq
            self.debtors |= debtors_in(entry.balances)

    def _open_house_account(self, account: HouseAccount) -> None:
        # A new object, so that readers see that it changed.
        self.house_accounts = MappingProxyType(dict(sorted({**self.house_accounts, account.name: account}.items())))

    def _take_holds(self, segment: OpenSegment, entry: Entry | EntryChanges) -> None:
        seq = entry.seq
        if entry.kind == Freeze.kind:
            account, coin, _, _ = entry.balances[0]
            units, expires_ms = entry.holds[0][1], _asked(entry, "expires_ms")
            owner, reference = new_tuple(Account, account), _asked(entry, "reference")
            values = (seq, owner, coin, units, units, reference, expires_ms, entry.booked_ms, None)
            if expires_ms is not None:
                heapq.heappush(segment.expiries, (expires_ms, seq))
            segment.opened[entry.key] = seq
            self._put_hold(segment, new_tuple(Hold, values))
            return
        for hold_id, remaining in entry.holds:
            hold = self.hold(hold_id)
            if hold is None:
                segment.changed[hold_id] = (remaining, seq)
            else:
                self._put_hold(segment, hold.after(remaining, seq))

    # --- sealed entries -------------------------------------------------------------------------------

    def note_sealed(self, sealed_seq: int) -> None:
        """Note that a snapshot had everything up to the entry *sealed_seq* in the tables."""
        self.sealed_seq = max(self.sealed_seq, sealed_seq)

    def drop_sealed(self) -> None:
        """Drop the segments that are known to be sealed: the tables have everything of them."""
        for segment in self._drop_to(self.sealed_seq, self.due_seen):
            for hold_id in self.holds.keys() & segment.changed.keys():
                self.holds[hold_id] = self.holds[hold_id].after(*segment.changed[hold_id])
            for hold_id in self.holds.keys() & segment.holds.keys():
                self.holds[hold_id] = segment.holds[hold_id]
            self.base = max(self.base, segment.first_seq + self._segment_entries - 1)

    # --- bounds ---------------------------------------------------------------------------------------

    @property
    def is_crowded(self) -> bool:
        """Whether :meth:`shrink` would evict accounts."""
        return _exceeds(self.accounts, self._cache_accounts)

    def shrink(self) -> None:
        """Evict from the cache what exceeds the bounds, oldest first."""
        _shrink(self.accounts, self._cache_accounts)
        _shrink(self.customers, self._cache_accounts)
        _shrink(self.holds, self._cache_accounts * HOLDS_AN_ACCOUNT)


def _asked(entry: Entry | EntryChanges, name: str) -> Any:
    """Return a member of the request of *entry*, or None."""
    request = entry.request
    return request.get(name) if isinstance(request, dict) else getattr(request, name)


def _collect(
    entry: Entry | EntryChanges,
    watched: Collection[object],
    changed: dict[Account, tuple[int, dict[str, AfterLine]]],
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


def _balances(lines: Mapping[str, AfterLine]) -> dict[str, Balance]:
    """Return the balances in *lines*, by coin."""
    return {coin: new_tuple(Balance, line[2:]) for coin, line in lines.items()}


def _exceeds(kept: dict[K, V], limit: int) -> bool:
    # An eighth at once, so that the oldest need not be looked for each time.
    return len(kept) > limit + limit // 8


def _shrink(kept: dict[K, V], limit: int) -> None:
    if _exceeds(kept, limit):
        for name in list(islice(kept, len(kept) - limit)):
            del kept[name]
