"""
The overlay: the books as a group of operations has changed them so far, which nobody else sees.

It asks the store for what the group has not changed, and can undo what a chain did that is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from spotledger.domain.accounts import ZERO, Account, Balance, Coin, Line
from spotledger.domain.books import Decision
from spotledger.domain.journal import Entry, Hold, opens_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer, Reverse
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Store

#: What is not about balances, but about what is listed, registered or reversed.
_NAMING: Final = frozenset({ListCoin.kind, RegisterCustomer.kind, Reverse.kind})

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")


class Overlay:
    """The books as a group has changed them so far; nothing of it is visible to reads. Satisfies ``rules.State``."""

    def __init__(self, store: Store, entries: list[Entry]) -> None:
        """Start at the head of *store*; the entries that are taken over are appended to *entries*."""
        self._store = store
        #: The ``seq`` of the entry of each key that was known before the group.
        self.known: dict[str, int] = {}
        self.head_seq = store.head.seq
        self._listed = store.coins
        self._entries = entries
        self._standing: dict[Account, Mapping[str, Balance]] = {}
        self._balances: dict[Line, tuple[int, int]] = {}
        self._holds: dict[int, Hold] = {}
        self._coins: dict[str, Coin] = {}
        self._customers: dict[str, None] = {}
        self._keys: dict[str, Entry] = {}
        self._reversals: dict[int, int] = {}
        self._undo: list[Callable[[], object]] | None = None

    def coin(self, name: str) -> Coin | None:
        """Return the listed coin, or None."""
        return self._listed.get(name) or self._coins.get(name)

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        if customer in self._customers:
            return True
        registered = self._store.has_customer(customer)
        if registered:
            self._customers[customer] = None
        return registered

    def balance(self, line: Line) -> tuple[int, int]:
        """Return available and freeze of one account's coin."""
        changed = self._balances.get(line)
        if changed is not None:
            return changed
        account, coin = line
        standing = self._standing.get(account)
        if standing is None:
            standing = self._standing[account] = self._store.account(account).balances
        return standing.get(coin, ZERO)

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands, or None."""
        return self._holds.get(hold_id) or self._store.hold(hold_id)

    def hold_id_of_key(self, key: str) -> int | None:
        """Return the hold that was opened under *key*, or None."""
        entry = self._keys.get(key)
        if entry is not None:
            return entry.seq if opens_hold(entry) else None
        # A hold has the number of the entry that opened it, so that this entry need not be read.
        seq = self.known.get(key)
        return seq if seq is not None and self.hold(seq) is not None else None

    def entry_of_key(self, key: str) -> Entry | None:
        """Return the entry that has *key*, or None."""
        entry = self._keys.get(key)
        if entry is None and key in self.known:
            entry = self._keys[key] = found(self._store.entry(self.known[key]))
        return entry

    def entry(self, seq: int) -> Entry | None:
        """Return an entry of the journal or of the group, or None."""
        if seq <= self.head_seq:
            return self._store.entry(seq)
        position = seq - self.head_seq - 1
        return self._entries[position] if position < len(self._entries) else None

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        return self._reversals.get(seq) or self._store.reversal_of(seq)

    def know(self, hold: Hold) -> None:
        """Remember *hold*, which was looked up before the rules ask for it."""
        self._holds[hold.hold_id] = hold

    def take(self, entry: Entry, decision: Decision) -> None:
        """Take over what *entry*, made of *decision*, does, so that later operations of the group see it."""
        if self._undo is not None:
            self._remember(self._undo, entry, decision)
        self._entries.append(entry)
        self._keys[entry.key] = entry
        _, balances, holds, after = decision
        if balances:
            self._balances.update(after)
            for hold in holds:
                self._holds[hold[0]] = hold
        if entry.kind in _NAMING and entry.refusal is None:
            self._take_name(entry.kind, entry.request, entry.seq)

    def _take_name(self, kind: str, request: dict[str, Any], seq: int) -> None:
        if kind == ListCoin.kind:
            self._coins[request["coin"]] = Coin(request["coin"], request["scale"])
        elif kind == RegisterCustomer.kind:
            self._customers[request["customer"]] = None
        else:
            self._reversals[request["seq"]] = seq

    def begin_chain(self) -> None:
        """Remember what is taken from now on, so that it can be undone."""
        self._undo = []

    def end_chain(self, *, undo: bool) -> None:
        """Keep what was taken since the chain began, or undo it."""
        steps, self._undo = self._undo or [], None
        if undo:
            for step in reversed(steps):
                step()

    def _remember(self, undo: list[Callable[[], object]], entry: Entry, decision: Decision) -> None:
        """Note how to undo what :meth:`take` is about to do."""
        undo.append(self._entries.pop)
        _note_undo(undo, self._keys, entry.key)
        for line in decision.after:
            _note_undo(undo, self._balances, line)
        for hold in decision.holds:
            _note_undo(undo, self._holds, hold.hold_id)
        if entry.refusal is None and entry.kind == ListCoin.kind:
            _note_undo(undo, self._coins, entry.request["coin"])
        elif entry.refusal is None and entry.kind == RegisterCustomer.kind:
            _note_undo(undo, self._customers, entry.request["customer"])
        elif entry.refusal is None and entry.kind == Reverse.kind:
            _note_undo(undo, self._reversals, entry.request["seq"])


def _note_undo(undo: list[Callable[[], object]], values: dict[K, V], name: K) -> None:
    if name in values:
        undo.append(partial(values.__setitem__, name, values[name]))
    else:
        undo.append(partial(values.__delitem__, name))


def found(value: T | None) -> T:
    """Return *value*, which the journal refers to, so it has to be there."""
    if value is None:
        raise LedgerCorrupt("what the journal refers to is not there")
    return value
