"""
Deciding a group: what a list of operations does to the books, on an overlay that nobody else sees.

The known keys, balances and holds that the operations touch are loaded in a few queries whatever their number. Then,
for each operation: a known key is answered with what is kept; otherwise the rules decide it, and it becomes an entry,
a kept refusal, or an error that leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from spotledger.domain import rules
from spotledger.domain.accounts import EXTERNAL, ZERO, Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold, HoldAfter, canonical_request, differing_field, is_house
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Withdraw,
)
from spotledger.errors import IdempotencyConflict, LedgerCorrupt, Refused, refusal_of_code
from spotledger.storage.base import Store

#: Holds that are let expire in one group; the others follow in the next.
EXPIRIES_A_GROUP: Final = 500


class Receipt(NamedTuple):
    """The answer to a write that was booked: its entry, and whether it had been booked before under the same key."""

    entry: Entry
    replayed: bool = False

    @property
    def seq(self) -> int:
        """The position of the entry in the journal."""
        return self.entry.seq

    @property
    def hold(self) -> int | None:
        """The id of the hold that the entry opened, or None."""
        return self.entry.seq if self.entry.kind == Freeze.kind else None


Outcome: TypeAlias = Receipt | Refused


@dataclass(slots=True)
class Group:
    """Operations that are decided and committed together, and what came of them so far."""

    outcomes: list[Outcome] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)


class _Overlay:
    """The books as a group has changed them so far; nothing of it is visible to reads. Satisfies ``rules.State``."""

    def __init__(self, store: Store, known: dict[str, int]) -> None:
        self._store = store
        self._known = known
        self.head_seq = store.head.seq
        self._balances: dict[tuple[Account, str], Balance] = {}
        self._holds: dict[int, Hold] = {}
        self._coins: dict[str, Coin] = {}
        self._customers: set[str] = set()
        self._keys: dict[str, Entry] = {}

    def coin(self, name: str) -> Coin | None:
        return self._store.coins.get(name) or self._coins.get(name)

    def has_customer(self, customer: str) -> bool:
        return customer in self._customers or self._store.has_customer(customer)

    def balance(self, account: Account, coin: str) -> Balance:
        balance = self._balances.get((account, coin))
        if balance is None:
            balance = self._store.account(account).balances.get(coin, ZERO)
        return balance

    def hold(self, hold_id: int) -> Hold | None:
        return self._holds.get(hold_id) or self._store.hold(hold_id)

    def hold_id_of_key(self, key: str) -> int | None:
        entry = self.entry_of_key(key)
        opened = entry is not None and entry.kind == Freeze.kind and entry.refusal is None
        return entry.seq if entry is not None and opened else None

    def entry_of_key(self, key: str) -> Entry | None:
        entry = self._keys.get(key)
        if entry is None and key in self._known:
            entry = self._keys[key] = _found(self._store.entry(self._known[key]))
        return entry

    def take(self, entry: Entry, holds: Iterable[Hold]) -> None:
        self._keys[entry.key] = entry
        for account, coin, available, freeze in entry.balances:
            self._balances[account, coin] = Balance(available, freeze)
        for hold in holds:
            self._holds[hold.hold_id] = hold
        if entry.refusal is None:
            if entry.kind == ListCoin.kind:
                name = entry.request["coin"]
                self._coins[name] = Coin(name, entry.request["scale"])
            elif entry.kind == RegisterCustomer.kind:
                self._customers.add(entry.request["customer"])


def decide_group(store: Store, operations: Sequence[Operation], now_ms: int) -> Group:
    """
    Decide *operations* in order, each on the effects of those before it; nothing is written.

    Holds whose time has come at *now_ms* are let expire first.

    Raises:
        LedgerCorrupt: What the rules made breaks an invariant.
    """
    expiries = [Expire(str(hold_id)) for hold_id in store.due_holds(now_ms, EXPIRIES_A_GROUP)]
    overlay = _load(store, [*expiries, *operations])
    group = Group()
    for expiry in expiries:
        _decide_one(expiry, overlay, group, now_ms)
    for operation in operations:
        group.outcomes.append(_decide_one(operation, overlay, group, now_ms))
    _check_entries(group.entries)
    return group


def _load(store: Store, operations: Sequence[Operation]) -> _Overlay:
    """Bring into memory, in a few queries, what the rules will ask for."""
    keys, hold_ids = [], set()
    for operation in operations:
        keys.append(operation.key)
        hold = getattr(operation, "hold", None)
        if isinstance(hold, HoldKey):
            keys.append(hold.key)
        elif hold is not None:
            hold_ids.add(int(hold))
    overlay = _Overlay(store, store.find_keys(keys))
    for operation in operations:
        hold = getattr(operation, "hold", None)
        if isinstance(hold, HoldKey):
            hold_ids.add(overlay.hold_id_of_key(hold.key) or 0)
    store.load((), (), hold_ids)
    customers: set[str] = set()
    accounts = {EXTERNAL}
    for hold_id in hold_ids:
        found = store.hold(hold_id)
        if found is not None:
            accounts.add(found.account)
    for operation in operations:
        accounts.update(_accounts_of(operation))
    customers.update(account.customer for account in accounts if not is_house(account))
    store.load(customers, accounts, ())
    return overlay


def _decide_one(operation: Operation, overlay: _Overlay, group: Group, now_ms: int) -> Outcome:
    kept = overlay.entry_of_key(operation.key)
    if kept is not None:
        return _repeat(kept, operation, overlay)
    seq = overlay.head_seq + len(group.entries) + 1
    refusal: Refused | None = None
    decision = rules.Decision()
    subject = rules.Subject()
    try:
        subject = rules.subject_of(operation, overlay)
        decision = rules.decide(operation, subject, overlay, seq, now_ms)
    except Refused as error:
        if not error.kept:
            return error
        refusal = error
        refusal.seq = seq
    entry = Entry(
        seq=seq,
        kind=operation.kind,
        key=operation.key,
        booked_ms=now_ms,
        request=canonical_request(operation, subject.units, subject.coin.name if subject.coin else None),
        postings=decision.postings,
        balances=decision.balances,
        holds=tuple([HoldAfter(hold.hold_id, hold.remaining) for hold in decision.holds]),
        happened_ms=getattr(operation, "happened_ms", None),
        refusal=_kept_refusal(refusal),
    )
    overlay.take(entry, decision.holds)
    group.entries.append(entry)
    return refusal or Receipt(entry)


def _repeat(kept: Entry, operation: Operation, overlay: _Overlay) -> Outcome:
    """Answer a known key: as the first time, or that the content is another."""
    name = differing_field(kept.request, operation, lambda coin: _found(overlay.coin(coin)).scale)
    if name is not None:
        return IdempotencyConflict(
            f"key {operation.key} was used before, by entry {kept.seq}, with another {name};"
            " a key of its own would pass",
            field=name,
            first_seq=kept.seq,
        )
    if kept.refusal is None:
        return Receipt(kept, replayed=True)
    refusal = refusal_of_code(kept.refusal["code"], kept.refusal["detail"], kept.refusal["details"])
    refusal.seq = kept.seq
    refusal.replayed = True
    return refusal


def _accounts_of(operation: Operation) -> Iterable[Account]:
    match operation:
        case Deposit() | Freeze():
            return (Account(operation.customer, operation.account),)
        case Withdraw(customer=str(customer)):
            return (Account(customer, operation.account),)
        case Transfer():
            return (
                Account(operation.from_customer, operation.from_account),
                Account(operation.to_customer, operation.to_account),
            )
        case RegisterCustomer():
            return (Account(operation.customer, "spot"),)
    return ()


def _kept_refusal(refusal: Refused | None) -> dict[str, Any] | None:
    if refusal is None:
        return None
    return {"code": refusal.code, "detail": refusal.message, "details": refusal.details}


def _check_entries(entries: Iterable[Entry]) -> None:
    """
    Check what is about to be written, apart from the rules that made it.

    Raises:
        LedgerCorrupt: Postings of an entry do not add up to zero for a coin, or a balance is not what they lead to.
    """
    for entry in entries:
        sums: dict[str, int] = {}
        for posting in entry.postings:
            sums[posting.coin] = sums.get(posting.coin, 0) + posting.units
        if any(sums.values()):
            raise LedgerCorrupt(f"the postings of entry {entry.seq} ({entry.kind}) do not add up to zero")
        for account, coin, available, freeze in entry.balances:
            if freeze < 0 or (available < 0 and not is_house(account)):
                raise LedgerCorrupt(f"entry {entry.seq} would take {account.customer} {coin} below zero")


def _found(value: Any) -> Any:
    if value is None:
        raise LedgerCorrupt("what the journal refers to is not there")
    return value
