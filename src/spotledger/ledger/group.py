"""
Deciding a group: what a list of operations does to the books, on an overlay that nobody else sees.

The known keys, balances and holds that the operations touch are loaded in a few queries whatever their number. Then,
for each operation: a known key is answered with what is kept; otherwise the rules decide it, and it becomes an entry,
a kept refusal, or an error that leaves no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from spotledger.domain import rules
from spotledger.domain.accounts import (
    DUST,
    EXTERNAL,
    FEES,
    Account,
    may_be_negative,
    receivable_of,
)
from spotledger.domain.books import Decision, Subject
from spotledger.domain.journal import Entry, HoldAfter, is_house, new_tuple
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    Transfer,
    Withdraw,
    holds_of,
)
from spotledger.errors import (
    ChainFailed,
    ChainPartlyKnown,
    IdempotencyConflict,
    InvalidRequest,
    LedgerCorrupt,
    Refused,
    refusal_of_code,
)
from spotledger.ledger.overlay import Overlay, found
from spotledger.storage.base import Store, Wanted

#: Holds that are let expire in one group; the others follow in the next.
EXPIRIES_A_GROUP: Final = 500
#: Operations of one chain, or of an atomic batch.
CHAIN_LIMIT: Final = 1_000


NOTHING: Final = Decision()
#: What may say when it happened.
_TOLD_LATER: Final = (Deposit, Withdraw, Settle)


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


def wanted_of(operations: Sequence[Operation]) -> Wanted:
    """Return what the rules will ask for of *operations*."""
    keys: list[str] = []
    hold_keys: list[str] = []
    holds: set[int] = set()
    entries: set[int] = set()
    accounts = {EXTERNAL, FEES, DUST}
    for operation in operations:
        keys.append(operation.key)
        for hold in holds_of(operation):
            if isinstance(hold, HoldKey):
                hold_keys.append(hold.key)
            else:
                holds.add(int(hold))
        accounts_of = _ACCOUNTS.get(type(operation))
        if accounts_of is not None:
            accounts.update(accounts_of(operation))
        elif type(operation) is Reverse:
            entries.add(operation.seq)
    return Wanted(keys, hold_keys, holds, accounts, entries)


class Deciding:
    """A group that is being decided, a piece after the other."""

    def __init__(
        self,
        store: Store,
        operations: Sequence[Operation],
        now_ms: int,
        chains: Sequence[Hashable | None] | None,
        wanted: Wanted,
    ) -> None:
        """
        Begin at the head of *store*, with the holds whose time has come at *now_ms*: they are let expire first.

        Args:
            store: What is known so far.
            operations: What is asked for.
            now_ms: The time that all entries are booked at.
            chains: One value an operation: neighbours with the same one, not None, are done all or not at all.
            wanted: What :func:`wanted_of` says of the operations.
        """
        self.group = Group()
        self.is_done = False
        self._operations = operations
        self._chains = chains
        self._now_ms = now_ms
        self._next = 0
        expiries = [Expire(str(hold_id)) for hold_id in store.due_holds(now_ms, EXPIRIES_A_GROUP)]
        self._overlay = _load(store, expiries, wanted, self.group.entries)
        for expiry in expiries:
            _decide_one(expiry, self._overlay, self.group, now_ms)
        self._taken = 0

    def go_on(self, count: int) -> list[Entry]:
        """
        Decide about *count* more operations, never a part of a chain; return the entries that came of the group since.

        Raises:
            LedgerCorrupt: What the rules made breaks an invariant.
        """
        operations, group, overlay, now_ms = self._operations, self.group, self._overlay, self._now_ms
        start, self._next = self._next, end_of_cut(self._next, len(operations), self._chains, count)
        if self._chains is None:
            for operation in operations[start : self._next]:
                group.outcomes.append(_decide_one(operation, overlay, group, now_ms))
        else:
            piece = zip(operations[start : self._next], self._chains[start : self._next], strict=True)
            for chain, members in groupby(piece, key=itemgetter(1)):
                chained = [operation for operation, _ in members]
                if chain is None:
                    group.outcomes += [_decide_one(operation, overlay, group, now_ms) for operation in chained]
                else:
                    group.outcomes += _decide_chain(chained, overlay, group, now_ms)
        self.is_done = self._next >= len(operations)
        entries = group.entries[self._taken :]
        self._taken += len(entries)
        _check_entries(entries)
        return entries


def end_of_cut(start: int, count: int, chains: Sequence[Hashable | None] | None, limit: int) -> int:
    """Return where about *limit* of *count* operations end that begin with *start*; never within a chain."""
    end = min(start + limit, count)
    while chains and 0 < end < count and chains[end] is not None and chains[end] == chains[end - 1]:
        end += 1
    return end


def checked_chains(
    operations: Sequence[Operation], chains: Sequence[Hashable | None] | None, atomic: bool
) -> Sequence[Hashable | None] | None:
    """
    Return *chains* with all operations in one where the whole is *atomic*; check what a caller may ask for at once.

    Raises:
        InvalidRequest: A chain is longer than 1,000 operations, *chains* is not one value an operation, or an operation
            is the ledger's own.
    """
    if Expire in map(type, operations):
        raise InvalidRequest(
            "expire is what the ledger does by itself; an operation of a caller would pass", field="op"
        )
    if atomic:
        chains = [True] * len(operations)
    elif chains is not None and len(chains) != len(operations):
        raise InvalidRequest(
            f"chains has {len(chains)} values; one an operation, which is {len(operations)}, would pass", field="chains"
        )
    for chain, members in groupby(chains or ()):
        count = len(list(members))
        if chain is not None and count > CHAIN_LIMIT:
            raise InvalidRequest(
                f"a chain has {count} operations; {CHAIN_LIMIT} at most would pass",
                field="atomic" if atomic else "chain",
            )
    return chains


def _load(store: Store, expiries: Sequence[Expire], wanted: Wanted, entries: list[Entry]) -> Overlay:
    """Bring into memory, in a few queries, what the rules will ask for; the group will have these *entries*."""
    keys = [*(expiry.key for expiry in expiries), *wanted.keys, *wanted.hold_keys]
    known = store.find_keys(keys)
    overlay = Overlay(store, known, entries)
    hold_ids = {*(int(expiry.hold) for expiry in expiries), *wanted.holds}
    hold_ids.update(known[key] for key in wanted.hold_keys if key in known)
    store.load((), (), hold_ids)
    accounts = set(wanted.accounts)
    for hold_id in hold_ids:
        found = store.hold(hold_id)
        if found is not None:
            overlay.know(found)
            accounts.add(found.account)
    for seq in wanted.entries:
        accounts |= _accounts_of_entry(store.entry(seq))
    customers = {account.customer for account in accounts if not is_house(account)}
    store.load(customers, accounts, ())
    return overlay


def _decide_one(operation: Operation, overlay: Overlay, group: Group, now_ms: int) -> Outcome:
    kept = overlay.entry_of_key(operation.key)
    if kept is not None:
        return _repeat(kept, operation, overlay)
    seq = overlay.head_seq + len(group.entries) + 1
    subject: rules.AnySubject = Subject()
    try:
        subject = rules.subject_of(operation, overlay)
        decision = rules.decide(operation, subject, overlay, seq, now_ms)
    except Refused as refusal:
        if refusal.kept:
            _keep(operation, subject, overlay, group, now_ms, refusal=refusal)
        # Its traceback leads to the group that it is an outcome of: a circle that only the collector would free.
        return refusal.with_traceback(None)
    return new_tuple(Receipt, (_keep(operation, subject, overlay, group, now_ms, decision), False))


def _keep(
    operation: Operation,
    subject: rules.AnySubject,
    overlay: Overlay,
    group: Group,
    now_ms: int,
    decision: Decision = NOTHING,
    refusal: Refused | None = None,
) -> Entry:
    """Make the entry of what was decided of *operation*, or of its refusal, the next of the group."""
    entry = Entry(
        overlay.head_seq + len(group.entries) + 1,
        operation.kind,
        operation.key,
        now_ms,
        rules.request_of(operation, subject),
        decision.postings,
        decision.balances,
        tuple([new_tuple(HoldAfter, (hold[0], hold[4])) for hold in decision.holds]),
        operation.happened_ms if isinstance(operation, _TOLD_LATER) else None,
        None if refusal is None else _kept_refusal(refusal),
    )
    if refusal is not None:
        refusal.seq = entry.seq
    overlay.take(entry, decision)
    return entry


def _decide_chain(operations: Sequence[Operation], overlay: Overlay, group: Group, now_ms: int) -> list[Outcome]:
    """Decide operations that are done all or not at all."""
    keys = [operation.key for operation in operations]
    known = [overlay.entry_of_key(key) is not None for key in keys]
    if len(set(keys)) != len(keys):
        return _each_refused(operations, InvalidRequest, _twice_in(keys))
    if all(known):
        return [_decide_one(operation, overlay, group, now_ms) for operation in operations]
    if any(known):
        return _each_refused(operations, ChainPartlyKnown, _partly_known(keys, known))
    outcomes: list[Outcome] = []
    overlay.begin_chain()
    for operation in operations:
        outcomes.append(_decide_one(operation, overlay, group, now_ms))
        if isinstance(outcomes[-1], Refused):
            break
    failed = outcomes[-1]
    overlay.end_chain(undo=isinstance(failed, Refused))
    if not isinstance(failed, Refused):
        return outcomes
    return _refuse_chain(operations, len(outcomes) - 1, failed, overlay, group, now_ms)


def _refuse_chain(
    operations: Sequence[Operation], position: int, cause: Refused, overlay: Overlay, group: Group, now_ms: int
) -> list[Outcome]:
    """Refuse a whole chain: the operation at *position* with its *cause*, the others because of it."""
    outcomes: list[Outcome] = []
    for number, operation in enumerate(operations):
        refusal = cause
        if number != position:
            refusal = ChainFailed(
                f"the operation with key {operations[position].key} of this chain was refused: {cause.message}",
                cause_key=operations[position].key,
                cause_code=cause.code,
            )
        if cause.kept:
            _keep(operation, _subject_or_none(operation, overlay), overlay, group, now_ms, refusal=refusal)
        outcomes.append(refusal)
    return outcomes


def _subject_or_none(operation: Operation, overlay: Overlay) -> rules.AnySubject:
    """Look up what a refused operation names; its amounts stay text where they do not fit the coin."""
    try:
        return rules.subject_of(operation, overlay)
    except InvalidRequest:
        return Subject()


def _each_refused(operations: Sequence[Operation], kind: type[Refused], message: str) -> list[Outcome]:
    return [kind(message, field="key") for _ in operations]


def _twice_in(keys: Sequence[str]) -> str:
    counts = Counter(keys)
    key = next(key for key in keys if counts[key] > 1)
    return f"key {key} stands twice in one chain; each operation needs its own"


def _partly_known(keys: Sequence[str], known: Sequence[bool]) -> str:
    used = next(key for key, is_known in zip(keys, known, strict=True) if is_known)
    return f"key {used} of this chain was used before and another was not; send the chain as it was, or with new keys"


def _repeat(kept: Entry, operation: Operation, overlay: Overlay) -> Outcome:
    """Answer a known key: as the first time, or that the content is another."""
    name = rules.differing_field(kept.request, operation, lambda coin: found(overlay.coin(coin)).scale)
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


def _accounts_of_deposit(operation: Deposit) -> Iterable[Account]:
    return (Account(operation.customer, operation.account), receivable_of(operation.customer))


def _account_of_customer(operation: Freeze | Withdraw) -> Iterable[Account]:
    return () if operation.customer is None else (Account(operation.customer, operation.account),)


def _accounts_of_transfer(operation: Transfer) -> Iterable[Account]:
    return (
        Account(operation.from_customer, operation.from_account),
        Account(operation.to_customer, operation.to_account),
    )


def _accounts_of_entry(entry: Entry | None) -> set[Account]:
    """Return the accounts that a reversal of *entry* may touch."""
    accounts = {posting.account for posting in entry.postings} if entry is not None else set()
    return accounts | {receivable_of(account.customer) for account in accounts if not is_house(account)}


#: Which accounts an operation names, by its class; a settlement's are those of its holds, and the house's own.
_ACCOUNTS: Final[dict[type[Any], Callable[[Any], Iterable[Account]]]] = {
    Deposit: _accounts_of_deposit,
    Freeze: _account_of_customer,
    Withdraw: _account_of_customer,
    Transfer: _accounts_of_transfer,
    RegisterCustomer: lambda operation: (Account(operation.customer, "spot"),),
}


def _kept_refusal(refusal: Refused) -> dict[str, Any]:
    return {"code": refusal.code, "detail": refusal.message, "details": refusal.details}


def _check_entries(entries: Iterable[Entry]) -> None:
    """
    Check what is about to be written, apart from the rules that made it.

    Raises:
        LedgerCorrupt: Postings of an entry do not add up to zero for a coin, or it takes a balance below zero.
    """
    for entry in entries:
        sums: dict[str, int] = {}
        for _, coin, _, units, _ in entry.postings:
            sums[coin] = sums.get(coin, 0) + units
        if any(sums.values()):
            raise LedgerCorrupt(f"the postings of entry {entry.seq} ({entry.kind}) do not add up to zero")
        for account, coin, available, freeze in entry.balances:
            if freeze < 0 or (available < 0 and not may_be_negative(account)):
                raise LedgerCorrupt(f"entry {entry.seq} would take {account.customer} {coin} below zero")
