"""
The memory of the embedded store: the segments that are not sealed yet, and a bounded cache of accounts.

An open segment is dropped as a whole once it is sealed. Until then, accounts that it changed stay in memory, because
the tables do not have their balances yet.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Final

from spotledger.domain.accounts import FIRST_HOUSE_ACCOUNTS, ZERO, Account, Balance, Coin, HouseAccount, house_name
from spotledger.domain.books import Decision, Line
from spotledger.domain.debts import debtors_in
from spotledger.domain.journal import BalanceAfter, Entry, Hold, new_tuple, opened_hold
from spotledger.domain.operations import Freeze, ListCoin, OpenHouseAccount, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import key_digest
from spotledger.storage.open_segments import OpenSegment, OpenSegments, TouchedLine

#: Accounts that are looked at, and customers that are evicted, after one group.
LOOKED_AT: Final = 2_000


class AccountState:
    """One account at the head; satisfies :class:`spotledger.storage.base.AccountView`."""

    __slots__ = ("account", "by_coin", "changed_seq", "complete", "lines", "segment", "touched")

    def __init__(self, account: Account) -> None:
        """Start with no balances; ``complete`` says whether those of the tables are loaded."""
        self.account = account
        #: Only the store may use it; others read ``balances``.
        self.by_coin: dict[str, Balance] = {}
        self.lines: dict[str, Line] = {}
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


class WorkingSet(OpenSegments):
    """All that the store has in memory."""

    def __init__(self, segment_entries: int, cache_accounts: int) -> None:
        """
        Start empty.

        Args:
            segment_entries: Entries in a segment.
            cache_accounts: How many accounts and customers may stay in memory, besides those of open segments.
        """
        super().__init__(segment_entries)
        self._cache_accounts = cache_accounts
        self.accounts: dict[Account, AccountState] = {}
        self.known_customers: dict[str, None] = {}
        #: Holds as the tables have them, which the open segments have not changed or have in a later state.
        self.loaded_holds: dict[int, Hold] = {}
        self.coins: Mapping[str, Coin] = MappingProxyType({})
        #: Those who owe something, and maybe others.
        self.debtors: set[str] = set()
        self.house_accounts: Mapping[str, HouseAccount] = MappingProxyType(FIRST_HOUSE_ACCOUNTS)
        self._shrink_at = cache_accounts
        self._looked_at = 0
        #: How many groups are under way, in lines of accounts that must stay.
        self.groups = 0

    # --- look-ups ---------------------------------------------------------------------------------

    def key_seq(self, digest: bytes) -> int | None:
        """Return the entry in the open segments whose key has this *digest*, or None."""
        for segment in reversed(self.segments):
            seq = segment.keys.get(digest)
            if seq is not None:
                return seq
        return None

    def has_customer(self, customer: str) -> bool:
        """Return whether memory knows that *customer* is registered."""
        return customer in self.known_customers or any(customer in segment.customers for segment in self.segments)

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold from the open segments or from what was loaded for this group, or None."""
        return super().hold(hold_id) or self.loaded_holds.get(hold_id)

    # --- changes ----------------------------------------------------------------------------------

    def apply(self, entry: Entry, digest: bytes | None = None) -> None:
        """
        Apply *entry*, in service and at a start.

        *digest* is that of its idempotency key, if it is known already.
        """
        seq = entry.seq
        segment = self._segment_of(seq)
        segment.keys[key_digest(entry.key) if digest is None else digest] = seq
        if (reference := entry.request.get("reference")) is not None:
            segment.note_reference(reference, seq)
        if entry.refusal is not None:
            return
        if entry.balances:
            self._take_balances(segment, entry)
            if entry.holds:
                self._take_holds(segment, entry)
        self._take_name(segment, entry)

    def _take_name(self, segment: OpenSegment, entry: Entry) -> None:
        """Apply what a listing, a registration or a reversal names."""
        seq, kind, request = entry.seq, entry.kind, entry.request
        if kind == ListCoin.kind:
            self.list_coin(Coin(request["coin"], request["scale"]))
        elif kind == RegisterCustomer.kind:
            customer = request["customer"]
            segment.customers[customer] = seq
            self.known_customers[customer] = None
        elif kind == OpenHouseAccount.kind:
            self.open_house_account(HouseAccount(house_name(request["name"]), request["may_be_negative"]))
        elif kind == Reverse.kind:
            segment.reversals[request["seq"]] = seq
            self.debtors |= debtors_in(entry.balances)

    def _take_balances(self, segment: OpenSegment, entry: Entry) -> None:
        seq, accounts = entry.seq, self.accounts
        place = seq - segment.first_seq
        for account, coin, available, freeze in entry.balances:
            state = accounts.get(account) or self.state_of(account)
            balance = state.by_coin[coin] = new_tuple(Balance, (available, freeze))
            state.changed_seq = seq
            touched = self._touched_of(segment, state)
            line = touched.get(coin)
            if line is None:
                line = touched[coin] = TouchedLine()
            line.closing = balance
            line.places.append(place)

    def take_group(self, entries: Sequence[Entry], decisions: Sequence[Decision], digests: Mapping[str, bytes]) -> None:
        """Apply the *entries* of a group like :meth:`apply`, with the lines and holds that *decisions* have found."""
        closing: dict[Line, BalanceAfter] = {}
        segment, next_seq = None, 0
        for entry, decision in zip(entries, decisions, strict=True):
            seq, key = entry.seq, entry.key
            _, balances, holds, lines = decision
            if seq >= next_seq or segment is None:
                self._close_lines(closing)
                segment = self._segment_of(seq)
                next_seq = segment.first_seq + self._segment_entries
            segment.keys[digests.get(key) or key_digest(key)] = seq
            if (reference := entry.request.get("reference")) is not None:
                segment.note_reference(reference, seq)
            if lines:
                place = seq - segment.first_seq
                for line in lines:
                    if line.segment is not segment:
                        self._open_line(segment, line)
                    line.open.places.append(place)
                closing.update(zip(lines, balances, strict=True))
            if holds:
                self._put_holds(segment, entry.kind, key, holds)
            elif (not lines or entry.kind == Reverse.kind) and entry.refusal is None:
                self._take_name(segment, entry)
        self._close_lines(closing)

    def _put_holds(self, segment: OpenSegment, kind: str, key: str, holds: Sequence[Hold]) -> None:
        """Apply the holds that an entry of this *kind* opened or changed, which has the idempotency key *key*."""
        if kind == Freeze.kind:
            self._note_opened(segment, key, holds[0])
        for hold in holds:
            self._put_hold(segment, hold)

    def _note_opened(self, segment: OpenSegment, key: str, hold: Hold) -> None:
        if hold.expires_ms is not None:
            heapq.heappush(segment.expiries, (hold.expires_ms, hold.hold_id))
        segment.opened[key] = hold.hold_id

    def _open_line(self, segment: OpenSegment, line: Line) -> None:
        """Have *line* note its changes in *segment*."""
        touched = self._touched_of(segment, self.accounts[line.account])
        line.segment = segment
        line.open = touched.get(line.coin)
        if line.open is None:
            line.open = touched[line.coin] = TouchedLine()

    def _close_lines(self, closing: dict[Line, BalanceAfter]) -> None:
        """Make the balances visible that entries of one segment leave on their lines, and forget the lines."""
        for line, (_, coin, available, freeze) in closing.items():
            state, opened = self.accounts[line.account], line.open
            opened.closing = state.by_coin[coin] = new_tuple(Balance, (available, freeze))
            state.changed_seq = max(state.changed_seq, line.segment.first_seq + opened.places[-1])
        closing.clear()

    def _touched_of(self, segment: OpenSegment, state: AccountState) -> dict[str, TouchedLine]:
        """Return the lines of an account in *segment*, by coin."""
        if state.segment is not segment:
            state.segment = segment
            state.touched = segment.touched.setdefault(state.account, {})
        return state.touched

    def state_of(self, account: Account) -> AccountState:
        """Return the state of the account in memory, a new one if there is none."""
        state = self.accounts.get(account)
        if state is None:
            state = self.accounts[account] = AccountState(account)
        return state

    def list_coin(self, coin: Coin) -> None:
        """Add *coin*, and replace the mapping, so that readers see that it changed."""
        self.coins = MappingProxyType(dict(sorted([*self.coins.items(), (coin.name, coin)])))

    def open_house_account(self, account: HouseAccount) -> None:
        """Add a house account, and replace the mapping, so that readers see that it changed."""
        found = {**self.house_accounts, account.name: account}
        self.house_accounts = MappingProxyType(dict(sorted(found.items())))

    def _take_holds(self, segment: OpenSegment, entry: Entry) -> None:
        account, coin, _, _ = entry.balances[0]
        # Many holds have the same account and coin, so they share the objects.
        opened = opened_hold(entry, self.accounts[account].account, self.coins[coin].name)
        if opened is not None:
            self._put_holds(segment, entry.kind, entry.key, (opened,))
            return
        for hold_id, remaining in entry.holds:
            hold = self.hold(hold_id)
            if hold is None:
                raise LedgerCorrupt(f"entry {entry.seq} uses hold {hold_id}, which no earlier entry opened")
            self._put_hold(segment, hold.after(remaining, entry.seq))

    def drop_sealed(self, sealed_to: int, due_seen: tuple[int, int]) -> None:
        """
        Drop the segments up to the entry *sealed_to*, which are in the tables now.

        Args:
            sealed_to: The last sealed entry.
            due_seen: The expiry and id of the last hold that the search for due holds has read from the table.
        """
        self.loaded_holds.clear()  # what was read from the tables before is older than what is in them now
        for segment in self._drop_to(sealed_to, due_seen):
            for customer in segment.customers:
                self.known_customers[customer] = None
            self._shrink_at = self._cache_accounts

    @property
    def is_crowded(self) -> bool:
        """Whether accounts should go, which they can only while no group is under way."""
        return len(self.accounts) > self._shrink_at

    def end_group(self, sealed_to: int) -> None:
        """Note that a group is not under way any more, and let go of what it loaded."""
        self.groups = max(0, self.groups - 1)
        self.loaded_holds.clear()
        self.shrink(sealed_to)

    def shrink(self, sealed_to: int) -> None:
        """Evict what exceeds the bounds and is unchanged in the tables, oldest first."""
        if self.is_crowded and not self.groups:
            self._evict_accounts(sealed_to)
        excess = min(len(self.known_customers) - self._cache_accounts, LOOKED_AT)
        for customer in list(islice(self.known_customers, max(0, excess))):
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
