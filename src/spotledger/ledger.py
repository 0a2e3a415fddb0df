"""
The ledger: one method an operation, reads, and groups that are committed at once.

Writes go through :meth:`Ledger.execute`, or, in a server, through the writer (:mod:`spotledger.writer`), which calls
the same four steps: ``prepare`` decides a group of operations on an overlay, ``commit`` makes it durable, ``finish``
makes it visible and returns the outcomes, ``abandon`` undoes all of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import (
    IdempotencyConflict,
    InvalidRequest,
    LedgerCorrupt,
    Refused,
    StoreUnavailable,
    refusal_of_code,
)
from spotledger.storage.base import AccountView, Head, Store

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


class Ledger:
    """The spot accounts and their journal. Made by :func:`spotledger.open`; may be used by several threads."""

    def __init__(self, store: Store, clock_ms: Callable[[], int], release: Callable[[], None] = lambda: None) -> None:
        """
        Keep the books that *store* remembers.

        Args:
            store: The journal and what is derived from it.
            clock_ms: The time in milliseconds since 1970; where it jumps back, time stands still.
            release: Called once the ledger is closed.
        """
        self._store = store
        self._clock_ms = clock_ms
        self._release = release
        self._lock = threading.RLock()
        self._stale = False
        self._corrupt: LedgerCorrupt | None = None
        self._closed = False

    # --- reads --------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last acknowledged entry: what a read made now stands for."""
        return self._store.head

    @property
    def ledger_id(self) -> str:
        """The ledger's own id, which its chain of hashes begins with."""
        return self._store.ledger_id

    @property
    def epoch(self) -> int:
        """How often the ledger was restored from a backup, plus one."""
        return self._store.epoch

    @property
    def key_tables(self) -> Any:
        """The tables of access keys and operator tokens, which are not in the journal."""
        return self._store.key_tables

    @property
    def corrupt(self) -> LedgerCorrupt | None:
        """Why nothing more is written, or None."""
        return self._corrupt

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; another object after each listing, else the same."""
        return self._store.coins

    def account(self, account: Account) -> AccountView:
        """Return one account as it stands at the head; only coins that were ever touched are in it."""
        with self._lock:
            self._refresh()
            return self._store.account(account)

    def balances(self, account: Account, at_seq: int | None = None) -> dict[str, Balance]:
        """
        Return the balances of one account in units, now or as they stood after the entry *at_seq*.

        Raises:
            InvalidRequest: *at_seq* is above the head.
        """
        with self._lock:
            self._refresh()
            if at_seq is None:
                return dict(sorted(self._store.account(account).balances.items()))
            if not 0 <= at_seq <= self.head.seq:
                raise InvalidRequest(
                    f"at_seq is {at_seq}; 0 to {self.head.seq}, the head of the journal, would pass", field="at_seq"
                )
            return self._store.balances_at(account, at_seq)

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        with self._lock:
            self._refresh()
            return self._store.has_customer(customer)

    def customers(self, after: str = "", limit: int = 1000) -> list[str]:
        """Return the ids of at most *limit* customers above *after*, in order."""
        with self._lock:
            self._refresh()
            return self._store.customers(after, limit)

    def hold(self, hold_id: int) -> Hold | None:
        """Return one hold, open or closed, or None."""
        with self._lock:
            self._refresh()
            return self._store.hold(hold_id)

    def holds(self, customer: str, state: str | None = None, after: int = 0, limit: int = 1000) -> list[Hold]:
        """Return at most *limit* holds of *customer* with ids above *after*: ``open``, ``closed``, or both (None)."""
        with self._lock:
            self._refresh()
            return self._store.holds(customer, state, after, limit)

    def entry(self, seq: int) -> Entry | None:
        """Return the entry *seq*, or None."""
        with self._lock:
            return self._store.entry(seq)

    def entries(self, after_seq: int = 0, limit: int = 1000) -> list[Entry]:
        """Return at most *limit* entries after *after_seq*, in order, without gaps."""
        with self._lock:
            return self._store.entries(after_seq, limit)

    def entry_of_key(self, key: str) -> Entry | None:
        """Return the entry that an idempotency key led to, or None where it was never used."""
        with self._lock:
            self._refresh()
            seq = self._store.find_keys([key]).get(key)
            return None if seq is None else self._store.entry(seq)

    # --- operations ---------------------------------------------------------------------------------

    def list_coin(self, coin: str, scale: int, *, key: str) -> Receipt:
        """List *coin* with *scale* decimals (0–18). A listing never changes."""
        return self._do(ListCoin(key, coin, scale))

    def register_customer(self, customer: str, *, key: str) -> Receipt:
        """Register *customer*, an id of 1–64 of ``A-Z a-z 0-9 . _ -``."""
        return self._do(RegisterCustomer(key, customer))

    def deposit(self, customer: str, coin: str, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* (decimal text) from the outside world to what *customer* has available.

        Args:
            customer: A registered customer.
            coin: A listed coin.
            amount: Decimal text above zero, such as ``"100.50"``.
            key: The idempotency key, 1–64 characters of 0x21–0x7E, unique for ever.
            **more: ``account`` (wallet, spot, fiat), ``reference``, ``happened_ms``.

        Raises:
            UnknownCoin, UnknownCustomer, BalanceTooLarge: Kept with the key.
            InvalidAmount: Not a number of units of this coin.
            IdempotencyConflict: *key* was used before with other content.
            StoreUnavailable: It could not be written; try again with the same key.
        """
        return self._do(Deposit(key, customer, coin, amount, **more))

    def freeze(self, customer: str, coin: str, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* from available to freeze and open a hold for it; ``receipt.hold`` is its id.

        Takes ``account``, ``reference`` and ``expires_ms`` too. Raises like :meth:`deposit`, and
        ``InsufficientAvailable``, kept, where less is available. Keeps ``available + freeze``.
        """
        return self._do(Freeze(key, customer, coin, amount, **more))

    def unfreeze(self, hold: HoldName | int, amount: str | None = None, *, key: str) -> Receipt:
        """
        Move *amount* of *hold*, or all that remains of it, back to available.

        Raises:
            UnknownHold, HoldShort, HoldClosed, HoldExpired: Kept with the key.
        """
        return self._do(Unfreeze(key, str(hold) if isinstance(hold, int) else hold, amount))

    def withdraw(self, amount: str, *, key: str, **more: Any) -> Receipt:
        """
        Move *amount* to the outside world: out of ``hold``, or of what ``customer`` has of ``coin`` available.

        Takes ``account``, ``reference`` and ``happened_ms`` too. Raises like :meth:`freeze` and :meth:`unfreeze`.
        """
        if isinstance(more.get("hold"), int):
            more["hold"] = str(more["hold"])
        return self._do(Withdraw(key, amount, **more))

    def transfer(
        self, from_customer: str, to_customer: str, coin: str, amount: str, *, key: str, **more: Any
    ) -> Receipt:
        """
        Move *amount* from available to available, between two customers or two accounts of one.

        Takes ``from_account``, ``to_account`` and ``reference`` too. Raises like :meth:`freeze`.
        """
        return self._do(Transfer(key, from_customer, to_customer, coin, amount, **more))

    def _do(self, operation: Operation) -> Receipt:
        outcome = self.execute([operation])[0]
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    def execute(self, operations: Sequence[Operation]) -> list[Outcome]:
        """
        Do *operations* in order as one group, with one synced commit; later ones see the effects of earlier ones.

        Returns:
            One outcome an operation, in order: a receipt, or the refusal. Each operation stands for itself.

        Raises:
            StoreUnavailable: Nothing could be written; whether it was is known by trying again with the same keys.
            LedgerCorrupt: An invariant does not hold; nothing more is written.
        """
        with self._lock:
            group = self.prepare(operations)
            if group.entries:
                try:
                    while self._store.lagging:
                        self._store.catch_up()
                    self.commit(group)
                except BaseException:
                    self.abandon()
                    raise
            return self.finish(group)

    # --- the steps of a group -------------------------------------------------------------------------

    def prepare(self, operations: Sequence[Operation]) -> Group:
        """
        Decide *operations* and append what comes of them to the journal; nothing of it is visible or durable yet.

        Holds whose time has come are let expire first. A group without entries needs no commit.

        Raises:
            StoreUnavailable: It could not be written; nothing of the group is left.
            LedgerCorrupt: An invariant does not hold; nothing of the group is left, and nothing more is written.
        """
        with self._lock:
            self._check_writable()
            try:
                group = self._decide(operations)
                if group.entries:
                    self._store.write(group.entries)
            except LedgerCorrupt as corrupt:
                self._corrupt = corrupt
                self.abandon()
                raise
            except BaseException:
                self.abandon()
                raise
            return group

    @property
    def lagging(self) -> bool:
        """Whether work behind the journal should go on before the commit of the group that is prepared."""
        return self._store.lagging

    def catch_up(self) -> None:
        """Do a few milliseconds of that work."""
        self._store.catch_up()

    def commit(self, group: Group) -> None:
        """Make *group* durable. Blocks until the disk has it; may run in another thread."""
        self._store.commit()

    def finish(self, group: Group) -> list[Outcome]:
        """Make the committed *group* visible and return its outcomes."""
        with self._lock:
            if group.entries:
                self._store.publish(group.entries)
            return group.outcomes

    def abandon(self) -> None:
        """Forget the group that is prepared, and build what memory holds from the journal again."""
        with self._lock:
            self._stale = True
            try:
                self._store.recover()
            except StoreUnavailable:
                return  # it is tried again before the next answer
            except LedgerCorrupt as corrupt:
                self._corrupt = self._corrupt or corrupt
            self._stale = False

    def close(self) -> None:
        """Let go of the ledger; a second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                try:
                    self._store.close()
                finally:
                    self._release()

    def __enter__(self) -> Ledger:
        """Return the ledger itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the ledger."""
        self.close()

    # --- deciding -------------------------------------------------------------------------------------

    def _refresh(self) -> None:
        if self._stale:
            self._store.recover()
            self._stale = False

    def _check_writable(self) -> None:
        if self._closed:
            raise StoreUnavailable("the ledger is closed; open it again")
        if self._corrupt is not None:
            raise self._corrupt
        self._refresh()

    def _decide(self, operations: Sequence[Operation]) -> Group:
        now_ms = max(self._clock_ms(), self.head.booked_ms)
        expiries = [Expire(str(hold_id)) for hold_id in self._store.due_holds(now_ms, EXPIRIES_A_GROUP)]
        overlay = self._load([*expiries, *operations])
        group = Group()
        for expiry in expiries:
            self._decide_one(expiry, overlay, group, now_ms)
        for operation in operations:
            group.outcomes.append(self._decide_one(operation, overlay, group, now_ms))
        _check_entries(group.entries)
        return group

    def _load(self, operations: Sequence[Operation]) -> _Overlay:
        """Bring into memory, in a few queries, what the rules will ask for."""
        keys, hold_ids = [], set()
        for operation in operations:
            keys.append(operation.key)
            hold = getattr(operation, "hold", None)
            if isinstance(hold, HoldKey):
                keys.append(hold.key)
            elif hold is not None:
                hold_ids.add(int(hold))
        overlay = _Overlay(self._store, self._store.find_keys(keys))
        for operation in operations:
            hold = getattr(operation, "hold", None)
            if isinstance(hold, HoldKey):
                hold_ids.add(overlay.hold_id_of_key(hold.key) or 0)
        self._store.load((), (), hold_ids)
        customers: set[str] = set()
        accounts = {EXTERNAL}
        for hold_id in hold_ids:
            found = self._store.hold(hold_id)
            if found is not None:
                accounts.add(found.account)
        for operation in operations:
            accounts.update(_accounts_of(operation))
        customers.update(account.customer for account in accounts if not is_house(account))
        self._store.load(customers, accounts, ())
        return overlay

    def _decide_one(self, operation: Operation, overlay: _Overlay, group: Group, now_ms: int) -> Outcome:
        kept = overlay.entry_of_key(operation.key)
        if kept is not None:
            return self._repeat(kept, operation, overlay)
        seq = self.head.seq + len(group.entries) + 1
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

    def _repeat(self, kept: Entry, operation: Operation, overlay: _Overlay) -> Outcome:
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
