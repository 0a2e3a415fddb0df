"""
Decide a group of operations on an overlay of the books that nobody else sees.

The known keys, balances and holds that the operations touch are loaded in a few queries, whatever their number. Then
each operation is decided in order: a known key gets its kept result, and everything else becomes an entry, a kept
refusal, or an error that leaves no trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from spotledger.domain import rules
from spotledger.domain.accounts import (
    DUST,
    EXTERNAL,
    FEES,
    HOUSE_KIND,
    RECEIVABLE,
    Account,
    accounts_about,
    may_be_negative,
    receivable_of,
)
from spotledger.domain.books import NO_SUBJECT, Decision, is_overdraft
from spotledger.domain.journal import LEDGER, LIBRARY, Entry, new_tuple
from spotledger.domain.naming import ACCOUNTS_OF, HOLDS_OF, LOCATING
from spotledger.domain.operations import (
    Expire,
    Freeze,
    HoldKey,
    Operation,
    Post,
    Reverse,
    Settle,
    expiry_key,
)
from spotledger.domain.positions import FIRST_EPOCH, parse_position, position_text, seq_of_text
from spotledger.domain.rules import AnySubject
from spotledger.errors import (
    ChainFailed,
    ChainPartlyKnown,
    IdempotencyConflict,
    InvalidRequest,
    LedgerCorrupt,
    Refused,
    TooLate,
)
from spotledger.ledger.kept_refusals import refusal_of_code
from spotledger.ledger.overlay import Overlay, found
from spotledger.storage.base import Books, Wanted

#: Holds that expire in one group; the others follow in the next.
EXPIRIES_A_GROUP: Final = 500
#: Operations of one chain, or of an atomic batch.
CHAIN_LIMIT: Final = 1_000

#: Legs of the posts of one chain, or of an atomic batch.
CHAIN_LEGS: Final = 10_000
#: So many legs of a post count as one operation where a group, or a piece of one, is limited.
LEGS_AN_OPERATION: Final = 40

#: One value per operation: neighbours with the same value, not None, succeed or fail together.
Chains: TypeAlias = Sequence[Hashable | None]

_NOTHING: Final = Decision()
#: The accounts that nearly every group touches.
_OF_THE_HOUSE: Final = frozenset({EXTERNAL, FEES, DUST})


class Receipt(NamedTuple):
    """The answer to a booked write: its entry, whether an earlier request with its key booked it, and the epoch."""

    entry: Entry
    replayed: bool = False
    epoch: int = FIRST_EPOCH

    @property
    def seq(self) -> int:
        """The number of the entry in the journal; a plain number names it in epoch 1 only."""
        return self.entry.seq

    @property
    def position(self) -> str:
        """What names the entry, and the hold that it opened, after a restore too: ``"42"``, or ``"2-42"``."""
        return position_text(self.epoch, self.entry.seq)

    @property
    def hold(self) -> int | None:
        """The number of the hold that the entry opened, or None; :attr:`position` names it in every epoch."""
        return self.entry.seq if self.entry.kind == Freeze.kind else None


Outcome: TypeAlias = Receipt | Refused


class Group:
    """Operations that are decided piece by piece and committed together, and what came of them so far."""

    def __init__(self, store: Books, now_ms: int, after: Group | None = None) -> None:
        """
        Start without operations at the head of *store*, or where *after* will leave it, which is being committed.

        The entries are booked at *now_ms*, or with the head if that is later.
        """
        self.outcomes: list[Outcome] = []
        self.entries: list[Entry] = []
        #: What was decided, for each of the entries.
        self.decisions: list[Decision] = []
        #: Whether all operations that were added are decided.
        self.is_decided = True
        self._store = store
        self._operations: Sequence[Operation] = ()
        self._chains: Chains | None = None
        self._actors: Sequence[str] = ()
        before = None if after is None else after._overlay
        self._overlay: Overlay = Overlay(store, self.entries, self.decisions, before)
        self._now_ms = max(now_ms, self._overlay.head.booked_ms)
        self._next = 0
        self._checked = self._taken = 0
        #: Whether the group on top of which this one was decided failed; it has to be decided again then.
        self.is_void: bool = after is not None and after._has_failed
        self._has_failed: bool = False
        self._following: Group | None = None
        if after is not None:
            after._following = self

    def add(
        self, operations: Sequence[Operation], chains: Chains | None = None, actors: Sequence[str] | None = None
    ) -> None:
        """
        Have *operations* decided next, after those that were added before, which are decided.

        *actors* says who asks, for each operation; None: always the library.
        """
        self._operations, self._chains, self._next, self.is_decided = operations, chains, 0, False
        self._actors = [LIBRARY] * len(operations) if actors is None else actors

    def release_next(self) -> None:
        """Tell the group that was decided on top of this one that this one is published."""
        if self._following is not None:
            self._following._overlay.stand_alone()

    def void_next(self) -> None:
        """Note that this group failed, and tell the group that was decided on top of it."""
        self._has_failed = True
        if self._following is not None:
            self._following.is_void = True

    def load(self, wanted: Wanted, piece: int) -> Iterator[None]:
        """Load what the rules will ask for, *piece* keys or accounts at a time; at first, let due holds expire."""
        store, overlay = self._store, self._overlay
        due = [] if self.outcomes else store.due_holds(self._now_ms, EXPIRIES_A_GROUP)
        keys, known = [*map(expiry_key, due), *wanted.keys], overlay.known
        if wanted.hold_keys:  # most are keys of the group itself
            keys = list(dict.fromkeys([*keys, *wanted.hold_keys]))
        for start in range(0, len(keys), piece):
            if start:
                yield
            known.update(store.find_keys(keys[start : start + piece]))
        hold_ids = {*due, *wanted.holds}
        if wanted.hold_keys:
            hold_ids.update([known[key] for key in wanted.hold_keys if key in known])
        accounts = set(wanted.accounts)
        if hold_ids:
            store.load((), (), hold_ids)
            for hold_id in hold_ids:
                hold = overlay.hold(hold_id)
                if hold is not None:
                    overlay.know(hold)
                    accounts.add(hold.account)
        for seq in wanted.entries:
            accounts |= _accounts_of_entry(overlay.entry(seq))
        accounts |= _receivables_of(accounts, overlay.debtors) if overlay.debtors else set()
        in_order = list(accounts)
        for start in range(0, len(in_order), piece):
            if start:
                yield
            part = in_order[start : start + piece]
            store.load([customer for customer, kind in part if kind != HOUSE_KIND], part, ())
        for hold_id in due:
            hold = overlay.hold(hold_id)
            if hold is None or hold.remaining:  # the group before this one may have closed it
                self._decide_one(Expire(str(hold_id)), LEDGER)

    def take_entries(self) -> list[Entry]:
        """Return the entries that are new since the last call."""
        entries = self.entries[self._taken :]
        self._taken += len(entries)
        return entries

    def decide(self, count: int) -> None:
        """
        Decide the next *count* operations, or more to keep a chain whole.

        Raises:
            LedgerCorrupt: The rules broke an invariant, here or where holds expired.
        """
        start, end = self._next, end_of_cut(self._next, self._operations, self._chains, count)
        operations, actors = self._operations[start:end], self._actors[start:end]
        if self._chains is None:
            self.outcomes += map(self._decide_one, operations, actors)
        else:
            chained = zip(self._chains[start:end], operations, actors, strict=True)
            for chain, members in groupby(chained, key=itemgetter(0)):
                _, of_chain, by = zip(*members, strict=True)
                # A chain is part of one request, so it has one actor.
                self.outcomes += (
                    map(self._decide_one, of_chain, by) if chain is None else self._decide_chain(of_chain, by[0])
                )
        self._next = end
        self.is_decided = end >= len(self._operations)
        _check_entries(self.entries[self._checked :], self._overlay)
        self._checked = len(self.entries)

    def _decide_one(self, operation: Operation, actor: str) -> Outcome:
        overlay = self._overlay
        subject: AnySubject = NO_SUBJECT
        try:
            locate = LOCATING.get(type(operation))
            if locate is not None:
                operation = locate(operation, overlay.epochs)
            kept = overlay.entry_of_key(operation.key)
            if kept is not None:
                return _repeat(kept, operation, overlay)
            if operation.not_after_ms is not None:
                _check_in_time(operation.not_after_ms, self._now_ms)
            seq = overlay.head.seq + len(self.entries) + 1
            subject = rules.subject_of(operation, overlay)
            decision = rules.decide(operation, subject, overlay, seq, self._now_ms)
        except Refused as refusal:
            if refusal.kept:
                self._keep(operation, actor, subject, refusal=refusal)
            # Its traceback refers to this group, which holds the refusal: a cycle that only the collector would free.
            return refusal.with_traceback(None)
        entry = self._keep(operation, actor, subject, decision)
        return new_tuple(Receipt, (entry, False, overlay.epochs.current))

    def _keep(
        self,
        operation: Operation,
        actor: str,
        subject: AnySubject,
        decision: Decision = _NOTHING,
        refusal: Refused | None = None,
    ) -> Entry:
        """Append the entry of an *operation* that *actor* asked for and that was decided, or of its kept *refusal*."""
        seq, kind, key = self._overlay.head.seq + len(self.entries) + 1, operation.kind, operation.key
        moves, balances, opened_or_used, _ = decision
        holds = tuple([(hold[0], hold[4]) for hold in opened_or_used])
        request, why = rules.request_of(operation, subject), None
        if refusal is not None:
            refusal.seq, refusal.epoch = seq, self._overlay.epochs.current
            why = {"code": refusal.code, "detail": refusal.message, "details": refusal.details}
        happened_ms = request.get("happened_ms")
        values = (seq, kind, key, self._now_ms, request, moves, balances, holds, happened_ms, why, actor)
        entry = new_tuple(Entry, values)
        self._overlay.take(entry, decision)
        return entry

    def _decide_chain(self, operations: Sequence[Operation], actor: str) -> list[Outcome]:
        """Decide operations that succeed or fail together, which *actor* asked for."""
        overlay = self._overlay
        keys = [operation.key for operation in operations]
        known = [overlay.entry_of_key(key) is not None for key in keys]
        if len(set(keys)) != len(keys):
            return [InvalidRequest(_twice_in(keys), field="key") for _ in keys]
        if all(known):
            return [self._decide_one(operation, actor) for operation in operations]
        if any(known):
            return [ChainPartlyKnown(_partly_known(keys, known), field="key") for _ in keys]
        for position, operation in enumerate(operations):
            try:
                _located(operation, overlay)
                _check_in_time(operation.not_after_ms, self._now_ms)
            except Refused as refusal:  # before another cause is kept for the whole chain
                return self._refuse_chain(operations, actor, position, refusal.with_traceback(None))
        outcomes: list[Outcome] = []
        overlay.begin_chain()
        for operation in operations:
            outcomes.append(self._decide_one(operation, actor))
            if isinstance(outcomes[-1], Refused):
                break
        last = outcomes[-1]
        overlay.end_chain(undo=isinstance(last, Refused))
        if not isinstance(last, Refused):
            return outcomes
        return self._refuse_chain(operations, actor, len(outcomes) - 1, last)

    def _refuse_chain(
        self, operations: Sequence[Operation], actor: str, position: int, cause: Refused
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
                self._keep_refused(operation, actor, refusal)
            outcomes.append(refusal)
        return outcomes

    def _keep_refused(self, operation: Operation, actor: str, refusal: Refused) -> None:
        """Keep the refusal of one operation of a chain."""
        operation = _located(operation, self._overlay)
        subject: AnySubject = NO_SUBJECT
        with suppress(InvalidRequest):  # its amounts do not fit the coin, and stay text
            subject = rules.subject_of(operation, self._overlay)
        self._keep(operation, actor, subject, refusal=refusal)


def wanted_of(operations: Sequence[Operation]) -> Wanted:
    """Return what the rules will ask for to decide *operations*."""
    keys: list[str] = []
    hold_keys: list[str] = []
    holds: set[int] = set()
    entries: set[int] = set()
    accounts = set(_OF_THE_HOUSE)
    for operation in operations:
        kind = type(operation)
        keys.append(operation.key)
        if kind in _ACCOUNTS:
            accounts.update(_ACCOUNTS[kind](operation))
        elif isinstance(operation, Reverse):
            entries.add(parse_position(operation.seq, "seq").seq)
        if kind in HOLDS_OF:
            for hold in HOLDS_OF[kind](operation):
                if isinstance(hold, HoldKey):
                    hold_keys.append(hold.key)
                else:
                    holds.add(seq_of_text(hold))
    return Wanted(keys, hold_keys, holds, accounts, entries)


def weight_of(operations: Sequence[Operation]) -> int:
    """Return how many operations *operations* are worth where a group is limited: a post is one for each 40 legs."""
    weight = len(operations)
    if Post in map(type, operations):
        weight += legs_in(operations) // LEGS_AN_OPERATION
    return weight


def legs_in(operations: Iterable[Operation]) -> int:
    """Return how many legs the posts among *operations* have."""
    return sum([len(operation.legs) for operation in operations if isinstance(operation, Post)])


def end_of_cut(start: int, operations: Sequence[Operation], chains: Chains | None, limit: int) -> int:
    """Return the end of a piece of *limit* operations, by weight, from *start* on, or more to keep a chain whole."""
    end = min(start + limit, len(operations))
    while end > start + 1 and weight_of(operations[start:end]) > limit:
        end = start + (end - start) // 2
    while chains and 0 < end < len(chains) and chains[end] is not None and chains[end] == chains[end - 1]:
        end += 1
    return end


def cuts_of(
    operations: Sequence[Operation], chains: Chains | None, limit: int
) -> Iterator[tuple[Sequence[Operation], Chains | None]]:
    """Yield the groups of about *limit* operations of a request, each with its chains, which are kept whole."""
    start = 0
    while start < len(operations):
        end = end_of_cut(start, operations, chains, limit)
        yield operations[start:end], chains[start:end] if chains else None
        start = end


def checked_chains(operations: Sequence[Operation], chains: Chains | None, atomic: bool) -> Chains | None:
    """
    Return *chains*, with all operations in one chain if the request is *atomic*.

    Raises:
        InvalidRequest: A chain has more than 1,000 operations, *chains* has another length than *operations*, or an
            operation is one that only the ledger writes.
    """
    count = len(operations)
    if Expire in map(type, operations):
        raise InvalidRequest("op is expire, which only the ledger writes; another would pass", field="op")
    if atomic:
        chains = [True] * count
    elif chains is not None and len(chains) != count:
        raise InvalidRequest(f"chains has {len(chains)} values; {count}, one per operation, would pass", field="chains")
    has_legs = Post in map(type, operations)
    field = "atomic" if atomic else "chain"
    start = 0
    for chain, members in groupby(chains or ()):
        end = start + len(list(members))
        if chain is not None and end - start > CHAIN_LIMIT:
            raise InvalidRequest(f"a chain has {end - start} operations; {CHAIN_LIMIT} at most would pass", field=field)
        if chain is not None and has_legs and legs_in(operations[start:end]) > CHAIN_LEGS:
            raise InvalidRequest(f"a chain has more than {CHAIN_LEGS} legs; so many would pass", field=field)
        start = end
    return chains


def _twice_in(keys: Sequence[str]) -> str:
    counts = Counter(keys)
    key = next(key for key in keys if counts[key] > 1)
    return f"key {key} is used twice in one chain; a key of its own for each operation would pass"


def _partly_known(keys: Sequence[str], known: Sequence[bool]) -> str:
    used = next(key for key, is_known in zip(keys, known, strict=True) if is_known)
    return (
        f"key {used} of this chain was used before and another key was not;"
        " the chain as it was sent then, or with new keys only, would pass"
    )


def _located(operation: Operation, overlay: Overlay) -> Operation:
    """Return *operation* with plain numbers in place of positions; raise if it names what is not in this journal."""
    locate = LOCATING.get(type(operation))
    return operation if locate is None else locate(operation, overlay.epochs)


def _check_in_time(not_after_ms: int | None, now_ms: int) -> None:
    """Raise TooLate if *not_after_ms*, until when a request may be booked, has passed."""
    if not_after_ms is not None and now_ms > not_after_ms:
        raise TooLate(
            f"not_after_ms is {not_after_ms}, and it is {now_ms} now; a later time would pass", field="not_after_ms"
        )


def _repeat(kept: Entry, operation: Operation, overlay: Overlay) -> Outcome:
    """Return the kept outcome of a known key, or a conflict if the operation has other content."""
    name = rules.differing_field(kept.request, operation, lambda coin: found(overlay.coin(coin)).scale)
    if name is not None:
        before = f"key {operation.key} was used before, by entry {kept.seq}, with another {name}"
        advice = rules.advice_after_conflict(operation, overlay)
        return IdempotencyConflict(f"{before}; {advice}", field=name, first_seq=kept.seq)
    if kept.refusal is None:
        return Receipt(kept, True, overlay.epochs.of(kept.seq))
    refusal = refusal_of_code(kept.refusal["code"], kept.refusal["detail"], kept.refusal["details"])
    refusal.seq, refusal.epoch = kept.seq, overlay.epochs.of(kept.seq)
    refusal.replayed = True
    return refusal


def _accounts_of_entry(entry: Entry | None) -> set[Account]:
    """Return the accounts that a reversal of *entry* may touch: all of each customer, and what they owe."""
    accounts = {posting.account for posting in entry.postings} if entry is not None else set()
    customers = {customer.removeprefix(f"{RECEIVABLE}:") for customer, _ in accounts}
    return accounts.union(*map(accounts_about, customers))


def _accounts_of_fill(operation: Settle) -> Iterable[Account]:
    return () if operation.fee_account is None else (Account(operation.fee_account, HOUSE_KIND),)


def _receivables_of(accounts: Iterable[Account], debtors: Container[str]) -> set[Account]:
    """Return what those of the owners of *accounts* owe who are among *debtors*."""
    return {receivable_of(name) for name, _ in accounts if name in debtors}


#: The accounts that an operation may touch, by its class. A settlement also uses those of its holds and of the house.
_ACCOUNTS: Final[dict[type[Any], Callable[[Any], Iterable[Account]]]] = {
    **ACCOUNTS_OF,
    Settle: _accounts_of_fill,
}


def _check_entries(entries: Iterable[Entry], books: Overlay) -> None:
    """
    Check *entries* before they are written, independently of the rules that made them.

    Raises:
        LedgerCorrupt: The postings of an entry do not add up to zero for a coin, or a balance falls below zero.
    """
    for entry in entries:
        moves, balances = entry.moves, entry.balances
        sums: dict[str, int] = {}
        for place, _, units, _ in moves:
            coin = balances[place][1]
            sums[coin] = sums.get(coin, 0) + units
        if any(sums.values()):
            raise LedgerCorrupt(f"the postings of entry {entry.seq} ({entry.kind}) do not add up to zero")
        for account, coin, available, freeze in balances:
            if freeze < 0 or (available < 0 and not may_be_negative(account) and not is_overdraft(account, books)):
                raise LedgerCorrupt(f"entry {entry.seq} would take {account.customer} {coin} below zero")
