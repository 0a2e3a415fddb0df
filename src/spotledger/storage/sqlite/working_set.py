"""
The memory of the embedded store: the segments that are not sealed yet, and a bounded cache of accounts.

An open segment is dropped as a whole once it is sealed. Until then, accounts that it changed stay in memory, because
the tables do not have their balances yet.
"""

from __future__ import annotations

import heapq
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from types import MappingProxyType
from typing import Any, Final

from spotledger.domain.accounts import ACCOUNT_IDS, HOUSE_KIND, ZERO, Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold, new_tuple, opened_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import key_digest

#: Keys of a segment that is freed in a thread.
LET_GO_BESIDE: Final = 4_096
#: Accounts that are looked at, and customers that are evicted, after one group.
LOOKED_AT: Final = 2_000


class AccountState:
    """One account at the head; satisfies :class:`spotledger.storage.base.AccountView`."""

    __slots__ = ("account", "by_coin", "changed_seq", "complete", "segment", "touched")

    def __init__(self, account: Account) -> None:
        """Start with no balances; ``complete`` says whether those of the tables are loaded."""
        self.account = account
        #: Only the store may use it; others read ``balances``.
        self.by_coin: dict[str, Balance] = {}
        self.changed_seq = 0
        self.complete = False
        #: The segment that changed the account last, and its lines of the account.
        self.segment: OpenSegment | None = None
        self.touched: dict[str, TouchedLine] = {}

    @property
    def balances(self) -> Mapping[str, Balance]:
        """Balances in units of all coins that the account ever had, read-only."""
        # Created on demand: a stored proxy per account would cost memory, and writes do not need it.
        return MappingProxyType(self.by_coin)

    def balance(self, coin: str) -> Balance:
        """Return the balance of *coin* in units."""
        return self.by_coin.get(coin, ZERO)


class TouchedLine:
    """The entries of one segment that changed one coin of an account: their positions, and the balance after them."""

    __slots__ = ("closing", "places")

    def __init__(self) -> None:
        """Start with no entries."""
        self.closing = ZERO
        self.places = array("H")


class OpenSegment:
    """What the entries of one segment changed, until it is sealed."""

    __slots__ = (
        "coins",
        "customers",
        "expiries",
        "first_seq",
        "holds",
        "holds_of",
        "keys",
        "number",
        "opened",
        "reversals",
        "touched",
    )

    def __init__(self, number: int, first_seq: int) -> None:
        """Create the empty segment *number*, whose first entry is *first_seq*."""
        self.number = number
        self.first_seq = first_seq
        #: Entries by the digests of their idempotency keys.
        self.keys: dict[bytes, int] = {}
        self.coins: list[tuple[str, int, int]] = []
        self.customers: dict[str, int] = {}
        self.holds: dict[int, Hold] = {}
        #: The holds that it opened, by idempotency key: most are named by it soon after.
        self.opened: dict[str, int] = {}
        self.expiries: list[tuple[int, int]] = []
        self.holds_of: dict[str, dict[int, None]] = {}
        self.touched: dict[Account, dict[str, TouchedLine]] = {}
        self.reversals: dict[int, int] = {}

    def let_go(self) -> None:
        """Empty the large mappings item by item: to free one at once would stop the other threads for some ms."""
        parts: tuple[dict[Any, Any], ...] = (self.keys, self.opened, self.holds, self.holds_of, self.touched)
        for part in parts:
            while part:
                part.popitem()


class WorkingSet:
    """All that the store has in memory."""

    def __init__(self, segment_entries: int, cache_accounts: int) -> None:
        """
        Start empty.

        Args:
            segment_entries: Entries in a segment.
            cache_accounts: How many accounts and customers may stay in memory, besides those of open segments.
        """
        self._segment_entries = segment_entries
        self._cache_accounts = cache_accounts
        self.segments: list[OpenSegment] = []
        self.accounts: dict[Account, AccountState] = {}
        self.known_customers: dict[str, None] = {}
        #: Holds as the tables have them, which the open segments have not changed or have in a later state.
        self.loaded_holds: dict[int, Hold] = {}
        self.coins: Mapping[str, Coin] = MappingProxyType({})
        self._overdue: list[tuple[int, int]] = []
        self._shrink_at = cache_accounts
        self._looked_at = 0

    # --- look-ups ---------------------------------------------------------------------------------

    def key_seq(self, digest: bytes) -> int | None:
        """Return the entry in the open segments whose key has this *digest*, or None."""
        for segment in reversed(self.segments):
            seq = segment.keys.get(digest)
            if seq is not None:
                return seq
        return None

    def opened_by(self, key: str) -> int | None:
        """Return the hold that an open segment opened under *key*, or None."""
        for segment in reversed(self.segments):
            hold_id = segment.opened.get(key)
            if hold_id is not None:
                return hold_id
        return None

    def has_customer(self, customer: str) -> bool:
        """Return whether memory knows that *customer* is registered."""
        return customer in self.known_customers or any(customer in segment.customers for segment in self.segments)

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold from the open segments or from what was loaded for this group, or None."""
        for segment in reversed(self.segments):
            hold = segment.holds.get(hold_id)
            if hold is not None:
                return hold
        return self.loaded_holds.get(hold_id)

    def changed_holds_of(self, customer: str) -> dict[int, Hold]:
        """Return the holds of *customer* that the open segments changed, at the head."""
        found = {}
        for segment in self.segments:
            for hold_id in segment.holds_of.get(customer, ()):
                found[hold_id] = segment.holds[hold_id]
        return found

    def holds_opened_after(self, after: int) -> Iterator[Hold]:
        """Yield the holds above *after* that the open segments opened, at the head, by id."""
        for segment in self.segments:
            for hold_id in segment.holds:  # in the order of their first change, here the opening
                if hold_id > max(after, segment.number * self._segment_entries):
                    hold = self.hold(hold_id)
                    if hold is not None:
                        yield hold

    def last_touch(self, account: Account, coin: str, seq: int) -> int | None:
        """Return the last entry of the open segments, at most *seq*, that changed *coin* of the account, or None."""
        for segment in reversed(self.segments):
            line = segment.touched.get(account, {}).get(coin)
            if line is not None:
                count = bisect_right(line.places, seq - segment.first_seq)
                if count:
                    return segment.first_seq + line.places[count - 1]
        return None

    def pop_due(self, now_ms: int) -> int | None:
        """Remove and return a hold that expires by *now_ms*, or None; :meth:`watch_overdue` puts it back."""
        for expiries in (self._overdue, *[segment.expiries for segment in self.segments]):
            if expiries and expiries[0][0] <= now_ms:
                return heapq.heappop(expiries)[1]
        return None

    def watch_overdue(self, hold: Hold) -> None:
        """Have *hold*, which has expired, returned again by :meth:`pop_due`."""
        if hold.expires_ms is not None:
            heapq.heappush(self._overdue, (hold.expires_ms, hold.hold_id))

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry of the open segments that reversed the entry *seq*, or None."""
        for segment in self.segments:
            if seq in segment.reversals:
                return segment.reversals[seq]
        return None

    def seqs_touching(self, owners: Sequence[str], coin: str | None, after_seq: int) -> set[int]:
        """Return the entries of the open segments after *after_seq* that changed an account of *owners*."""
        found: set[int] = set()
        for segment, owner, kind in product(self.segments, owners, (*ACCOUNT_IDS, HOUSE_KIND)):
            for name, line in segment.touched.get(Account(owner, kind), {}).items():
                if coin is None or coin == name:
                    begin = bisect_right(line.places, after_seq - segment.first_seq)
                    found.update(segment.first_seq + place for place in line.places[begin:])
        return found

    # --- changes ----------------------------------------------------------------------------------

    def apply(self, entry: Entry, digest: bytes | None = None) -> None:
        """
        Apply *entry*, in service and at a start.

        *digest* is that of its idempotency key, if it is known already.
        """
        seq = entry.seq
        segment = self._segment_of(seq)
        segment.keys[key_digest(entry.key) if digest is None else digest] = seq
        if entry.refusal is not None:
            return
        if entry.balances:
            self._take_balances(segment, entry)
            if entry.holds:
                self._take_holds(segment, entry)
        kind, request = entry.kind, entry.request
        if kind == ListCoin.kind:
            coin = Coin(request["coin"], request["scale"])
            segment.coins.append((*coin, seq))
            self.list_coin(coin)
        elif kind == RegisterCustomer.kind:
            customer = request["customer"]
            segment.customers[customer] = seq
            self.known_customers[customer] = None
        elif kind == Reverse.kind:
            segment.reversals[request["seq"]] = seq

    def _take_balances(self, segment: OpenSegment, entry: Entry) -> None:
        seq, accounts = entry.seq, self.accounts
        place = seq - segment.first_seq
        for account, coin, available, freeze in entry.balances:
            state = accounts.get(account) or self.state_of(account)
            balance = state.by_coin[coin] = new_tuple(Balance, (available, freeze))
            state.changed_seq = seq
            if state.segment is not segment:
                state.segment = segment
                state.touched = segment.touched[state.account] = segment.touched.get(account) or {}
            line = state.touched.get(coin)
            if line is None:
                line = state.touched[coin] = TouchedLine()
            line.closing = balance
            line.places.append(place)

    def state_of(self, account: Account) -> AccountState:
        """Return the state of the account in memory, a new one if there is none."""
        state = self.accounts.get(account)
        if state is None:
            state = self.accounts[account] = AccountState(account)
        return state

    def list_coin(self, coin: Coin) -> None:
        """Add *coin*, and replace the mapping, so that readers see that it changed."""
        self.coins = MappingProxyType(dict(sorted([*self.coins.items(), (coin.name, coin)])))

    def _take_holds(self, segment: OpenSegment, entry: Entry) -> None:
        account, coin, _, _ = entry.balances[0]
        # Many holds have the same account and coin, so they share the objects.
        opened = opened_hold(entry, self.accounts[account].account, self.coins[coin].name)
        if opened is not None:
            if opened.expires_ms is not None:
                heapq.heappush(segment.expiries, (opened.expires_ms, opened.hold_id))
            segment.opened[entry.key] = opened.hold_id
            self._put_hold(segment, opened)
            return
        for hold_id, remaining in entry.holds:
            hold = self.hold(hold_id)
            if hold is None:
                raise LedgerCorrupt(f"entry {entry.seq} uses hold {hold_id}, which no earlier entry opened")
            self._put_hold(segment, hold.after(remaining, entry.seq))

    def _put_hold(self, segment: OpenSegment, hold: Hold) -> None:
        hold_id, customer = hold.hold_id, hold.account.customer
        if hold_id not in segment.holds:
            owned = segment.holds_of.get(customer)
            if owned is None:
                owned = segment.holds_of[customer] = {}
            owned[hold_id] = None
        segment.holds[hold_id] = hold

    def _segment_of(self, seq: int) -> OpenSegment:
        number = (seq - 1) // self._segment_entries
        if not self.segments or self.segments[-1].number < number:
            self.segments.append(OpenSegment(number, number * self._segment_entries + 1))
        return self.segments[-1]

    def drop_sealed(self, sealed_to: int, due_seen: tuple[int, int]) -> None:
        """
        Drop the segments up to the entry *sealed_to*, which are in the tables now.

        Args:
            sealed_to: The last sealed entry.
            due_seen: The expiry and id of the last hold that the search for due holds has read from the table.
        """
        self.loaded_holds.clear()  # what was read from the tables before is older than what is in them now
        sealed_segments = sealed_to // self._segment_entries
        while self.segments and self.segments[0].number < sealed_segments:
            segment = self.segments.pop(0)
            while segment.expiries and segment.expiries[0] <= due_seen:
                heapq.heappush(self._overdue, heapq.heappop(segment.expiries))
            for customer in segment.customers:
                self.known_customers[customer] = None
            self._shrink_at = self._cache_accounts
            if len(segment.keys) >= LET_GO_BESIDE:
                threading.Thread(target=segment.let_go, name="let-go", daemon=True).start()

    def shrink(self, sealed_to: int) -> None:
        """Evict what exceeds the bounds and is unchanged in the tables, oldest first."""
        if len(self.accounts) > self._shrink_at:
            self._evict_accounts(sealed_to)
        excess = len(self.known_customers) - self._cache_accounts
        if excess > 0:
            for customer in list(islice(self.known_customers, min(excess, LOOKED_AT))):
                del self.known_customers[customer]

    def _evict_accounts(self, sealed_to: int) -> None:
        """Look at the oldest accounts: those that are unchanged go, the others become the youngest."""
        accounts = self.accounts
        for account in list(islice(accounts, LOOKED_AT)):
            if len(accounts) <= self._cache_accounts:
                break
            state = accounts.pop(account)
            if state.changed_seq > sealed_to:
                accounts[account] = state
        self._looked_at += LOOKED_AT
        if len(accounts) <= self._cache_accounts or self._looked_at >= len(accounts):
            # Accounts of open segments cannot go yet, and looking at each group again would cost more than it frees.
            self._looked_at = 0
            self._shrink_at = max(len(accounts), self._cache_accounts) + self._cache_accounts // 8
