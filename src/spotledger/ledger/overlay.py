"""
The books as a group of operations has changed them so far; nobody else sees it.

Balances change in the lines of the accounts, which the store keeps. Reads see the old balances until the group is
published. Everything else that the group changes is kept here; what it has not changed is looked up in the store. The
changes of a chain that is refused can be undone.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias, TypeVar

from spotledger.domain.accounts import Account, Coin, HouseAccount, house_name
from spotledger.domain.books import Decision, Line, new_stamp
from spotledger.domain.debts import debtors_in
from spotledger.domain.journal import Entry, Hold, opens_hold
from spotledger.domain.operations import ListCoin, OpenHouseAccount, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import AccountView, Books, Head

#: Entries that list a coin, register a customer, open a house account, or mark another entry as reversed.
_NAMING: Final = frozenset({ListCoin.kind, RegisterCustomer.kind, OpenHouseAccount.kind, Reverse.kind})

T = TypeVar("T")
#: A mapping, a name in it, and its value.
_Change: TypeAlias = tuple[dict[Any, Any], Any, Any]


class Overlay:
    """The books as a group has changed them so far, as the rules' :class:`~spotledger.domain.books.State`."""

    def __init__(
        self, store: Books, entries: list[Entry], decisions: list[Decision], before: Overlay | None = None
    ) -> None:
        """
        Start at the head of *store*, or where the group of *before* will leave it, which is not published yet.

        What is taken over is appended to *entries* and *decisions*.
        """
        self._store = store
        self._before = before
        #: The ``seq`` of the entry of each key that was known before the group.
        self.known: dict[str, int] = {}
        self.head = store.head if before is None else before.continued_with(store)
        self.epochs, self.debtors = store.epochs, store.debtors
        self._listed = store.coins
        self._entries, self._decisions = entries, decisions
        self._accounts: dict[Account, AccountView] = {}
        #: Lines with an earlier stamp have what others decided, and maybe never wrote.
        self._begun: int = new_stamp() if before is None else before._begun
        self._holds: dict[int, Hold] = {}
        self._coins: dict[str, Coin] = {}
        self._customers: dict[str, bool] = {}
        self._house_accounts: dict[str, HouseAccount] = {}
        self._keys: dict[str, Entry] = {}
        self._reversals: dict[int, int] = {}
        #: Within a chain, what to set back if it is refused.
        self._undo: list[_Change] | None = None
        self._chain_start = 0

    def continued_with(self, store: Books) -> Head:
        """Return what will be the head after this group, without its hash; from now on, ask *store*."""
        self._store = store
        last = self._entries[-1] if self._entries else None
        return self.head if last is None else Head(last.seq, b"", last.booked_ms)

    def stand_alone(self) -> None:
        """Note that the group before this one is published: the store has what it changed; its keys are kept here."""
        if self._before is not None:
            for entry in self._before._entries:  # which the store did not know when this group asked for its keys
                self._keys.setdefault(entry.key, entry)
            self._listed = self._store.coins
            self._before = None

    def coin(self, name: str) -> Coin | None:
        """Return the listed coin, or None."""
        listed = self._listed.get(name)
        if listed is None:
            listed = self._coins.get(name)
            if listed is None and self._before is not None:
                return self._before.coin(name)
        return listed

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        if customer in self._customers:
            return True
        registered = (self._before or self._store).has_customer(customer)
        if registered:
            self._customers[customer] = True
        return registered

    def house_account(self, name: str) -> HouseAccount | None:
        """Return the house account *name*, which begins with ``@``, or None if it is not open."""
        opened = self._store.house_accounts.get(name) or self._house_accounts.get(name)
        return opened if opened is not None or self._before is None else self._before.house_account(name)

    def line(self, account: Account, coin: str) -> Line:
        """Return the balance of *coin* that *account* has, as the group has left it so far."""
        view = self._accounts.get(account)
        if view is None:
            view = self._accounts[account] = self._store.account(account)
        line = view.lines.get(coin)
        if line is None:
            line = view.lines[coin] = Line(view.account, coin)
        if line.stamp < self._begun:
            line.available, line.freeze = view.balance(coin)
            line.stamp = self._begun
        return line

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands, or None."""
        return self._holds.get(hold_id) or (self._before or self._store).hold(hold_id)

    def hold_id_of_key(self, key: str) -> int | None:
        """Return the hold that was opened under *key*, or None."""
        entry = self._new_entry_of(key)
        if entry is not None:
            return entry.seq if opens_hold(entry) else None
        # The id of a hold is the seq of the entry that opened it, so that entry need not be read.
        seq = self.known.get(key)
        return seq if seq is not None and self.hold(seq) is not None else None

    def entry_of_key(self, key: str) -> Entry | None:
        """Return the entry that has *key*, or None."""
        entry = self._keys.get(key)
        if entry is None and self._before is not None:
            entry = self._before._keys.get(key)
        if entry is None and key in self.known:
            entry = self._keys[key] = found(self._store.entry(self.known[key]))
        return entry

    def _new_entry_of(self, key: str) -> Entry | None:
        """Return the entry with *key* of this group, or of the one before it if that is not published."""
        entry = self._keys.get(key)
        return entry if entry is not None or self._before is None else self._before._keys.get(key)

    def entry(self, seq: int) -> Entry | None:
        """Return an entry of the journal or of the group, or None."""
        if seq <= self.head.seq:
            return (self._before or self._store).entry(seq)
        position = seq - self.head.seq - 1
        return self._entries[position] if position < len(self._entries) else None

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        return self._reversals.get(seq) or (self._before or self._store).reversal_of(seq)

    def know(self, hold: Hold) -> None:
        """Keep *hold*, which the store has found."""
        self._holds[hold.hold_id] = hold

    def take(self, entry: Entry, decision: Decision) -> None:
        """Append *entry*, made of *decision*, and apply it, so that later operations of the group see it."""
        named, holds = None, decision.holds
        if not holds and entry.kind in _NAMING and entry.refusal is None:
            named = self._named_by(entry)
        if self._undo is not None:
            self._note_undo(self._undo, entry, decision, named)
        self._entries.append(entry)
        self._decisions.append(decision)
        self._keys[entry.key] = entry
        for hold in holds:
            self._holds[hold[0]] = hold
        if named is not None:
            values, name, value = named
            values[name] = value

    def _named_by(self, entry: Entry) -> _Change:
        """Return what a listing, a registration, an opening or a reversal sets, and to what."""
        request = entry.request
        if entry.kind == ListCoin.kind:
            return self._coins, request["coin"], Coin(request["coin"], request["scale"])
        if entry.kind == RegisterCustomer.kind:
            return self._customers, request["customer"], True
        if entry.kind == OpenHouseAccount.kind:
            opened = HouseAccount(house_name(request["name"]), request["may_be_negative"])
            return self._house_accounts, opened.name, opened
        self.debtors.update(debtors_in(entry.balances))
        return self._reversals, request["seq"], entry.seq

    def begin_chain(self) -> None:
        """Record what is changed from now on, so that it can be undone."""
        self._undo = []
        self._chain_start = len(self._entries)

    def end_chain(self, *, undo: bool) -> None:
        """Keep what was changed since the chain began, or undo it."""
        changes, self._undo = self._undo or [], None
        if not undo:
            return
        for decision in reversed(self._decisions[self._chain_start :]):
            decision.undo()
        del self._entries[self._chain_start :], self._decisions[self._chain_start :]
        for values, name, before in reversed(changes):
            if before is None:
                del values[name]
            else:
                values[name] = before

    def _note_undo(self, undo: list[_Change], entry: Entry, decision: Decision, named: _Change | None) -> None:
        """Record the values that :meth:`take` is about to replace; None for those that are not there yet."""
        changed: list[tuple[dict[Any, Any], Any]] = [(self._keys, entry.key)]
        changed += [(self._holds, hold.hold_id) for hold in decision.holds]
        if named is not None:
            changed.append(named[:2])
        undo += [(values, name, values.get(name)) for values, name in changed]


def found(value: T | None) -> T:
    """Return *value*, which must be there because the journal refers to it."""
    if value is None:
        raise LedgerCorrupt("the journal refers to something that is not there")
    return value
