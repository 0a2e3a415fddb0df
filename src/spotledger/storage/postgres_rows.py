"""Entries as rows of PostgreSQL: what a group writes, as arrays for a few statements whatever its size; and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import Account, Balance
from spotledger.domain.journal import Entry, Hold, opened_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer, Reverse
from spotledger.storage import postgres_statements as sql
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, encode_entry, key_digest
from spotledger.storage.postgres_session import (
    BYTEA,
    TEXT,
    UUID,
    Parameter,
    Statement,
    array,
    hash_of,
    number,
    numbers,
    plain_texts,
    rows_of,
    texts,
)


class Order(NamedTuple):
    """A statement with its parameters, and how many rows it has to change; None where that is no matter."""

    statement: Statement
    parameters: tuple[Parameter, ...]
    changes: int | None = None


def journal_rows(entries: Sequence[Entry], before: Head) -> tuple[Head, Order]:
    """Return the head that *entries* lead to from *before*, and what appends them to the journal."""
    previous = before.hash
    bodies, hashes, digests = [], [], []
    for entry in entries:
        body = encode_entry(entry)
        previous = chain_hash(previous, body)
        bodies.append(body)
        hashes.append(previous)
        digests.append(key_digest(entry.key))
    last = entries[-1]
    parameters = (number(before.seq), array(TEXT, bodies), array(BYTEA, hashes), array(UUID, digests))
    return Head(last.seq, previous, last.booked_ms), Order(sql.ADD_ENTRIES, parameters, len(entries))


class Derived:
    """What a group of entries leaves of the accounts and holds it touches; worked out once, for tables and memory."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        """Go through *entries* in order."""
        #: Available, freeze and the last entry, by account and coin; and the entries that touched each of late.
        self.balances: dict[tuple[Account, str], tuple[int, int, int]] = {}
        self.touches: dict[tuple[Account, str], list[int]] = {}
        #: Holds as they are left: opened by these entries; and what remains of others, and which entry closed them.
        self.opened: dict[int, Hold] = {}
        self.changed: dict[int, tuple[int, int | None]] = {}
        #: Listings, registerings and reversals.
        self.rest: list[Entry] = []
        #: The last hold of these that has its row.
        self._last_row = 0
        self.take(entries)

    def take(self, entries: Sequence[Entry]) -> None:
        """Go through more *entries*, which follow those before."""
        for entry in entries:
            if entry.refusal is None:
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        seq, touches = entry.seq, self.touches
        for account, coin, available, freeze in entry.balances:
            line = (account, coin)
            self.balances[line] = (available, freeze, seq)
            if line in touches:
                touches[line].append(seq)
            else:
                touches[line] = [seq]
        if not entry.holds:
            if not entry.postings or entry.kind == Reverse.kind:
                self.rest.append(entry)
            return
        hold = opened_hold(entry)
        if hold is not None:
            self.opened[seq] = hold
            return
        for hold_id, remaining in entry.holds:
            opened = self.opened.get(hold_id)
            if opened is not None:
                self.opened[hold_id] = opened.after(remaining, seq)
            if opened is None or hold_id <= self._last_row:
                self.changed[hold_id] = (remaining, None if remaining else seq)

    def new_rows(self) -> Iterator[Order]:
        """Give the rows that are made once, of what came since it was asked for the last time."""
        touches, self.touches = self.touches, {}
        if touches:
            # In the order of the index, so that rows that stand together are written together.
            lines = sorted(touches)
            touching = [touches[line] for line in lines]
            listed = plain_texts(["{" + ",".join(map(str, seqs)) + "}" for seqs in touching])
            yield Order(sql.ADD_HISTORY, (*_names(lines), listed), sum(map(len, touching)))
        opened = [hold for hold_id, hold in self.opened.items() if hold_id > self._last_row]
        if opened:
            self._last_row = opened[-1].hold_id
            yield from _opened(opened)

    def rows(self) -> Iterator[Order]:
        """Give the rows that change with each touch, as all entries leave them; :meth:`new_rows` come first."""
        if self.balances:
            yield _balances(self.balances)
        if self.changed:
            yield from _changed(self.changed)
        yield from _rest(self.rest)


def _names(lines: Sequence[tuple[Account, str]]) -> tuple[bytes, bytes, bytes]:
    accounts, coins = zip(*lines, strict=True)
    owners, kinds = zip(*accounts, strict=True)
    return plain_texts(owners), plain_texts(kinds), plain_texts(coins)


def _balances(balances: dict[tuple[Account, str], tuple[int, int, int]]) -> Order:
    lines = sorted(balances)
    available, freeze, seqs = zip(*[balances[line] for line in lines], strict=True)
    return Order(sql.PUT_BALANCES, (*_names(lines), numbers(available), numbers(freeze), numbers(seqs)), len(lines))


def _opened(holds: Sequence[Hold]) -> Iterator[Order]:
    ids, accounts, coins, amounts, remaining, references, expiries, opened_ms, closed = zip(*holds, strict=True)
    owners, kinds = zip(*accounts, strict=True)
    yield Order(
        sql.ADD_HOLDS,
        (
            *(numbers(ids), plain_texts(owners), plain_texts(kinds), plain_texts(coins)),
            *(numbers(amounts), numbers(remaining), texts(references)),
            *(numbers_or_null(expiries), numbers(opened_ms), numbers_or_null(closed)),
        ),
        len(holds),
    )
    still_open = [hold for hold in holds if hold.closed_seq is None]
    if still_open:
        yield Order(
            sql.ADD_OPEN_HOLDS,
            (
                numbers([hold.hold_id for hold in still_open]),
                plain_texts([hold.account.customer for hold in still_open]),
                numbers_or_null([hold.expires_ms for hold in still_open]),
            ),
            len(still_open),
        )


def _changed(changed: dict[int, tuple[int, int | None]]) -> Iterator[Order]:
    remaining, closed_seqs = zip(*changed.values(), strict=True)
    yield Order(sql.CHANGE_HOLDS, (numbers(changed), numbers(remaining), numbers_or_null(closed_seqs)), len(changed))
    closed = [hold_id for hold_id, (left, _) in changed.items() if not left]
    if closed:
        yield Order(sql.DROP_OPEN_HOLDS, (numbers(closed),), len(closed))


def _rest(entries: Sequence[Entry]) -> Iterator[Order]:
    """Give the rows of listings, registerings and reversals."""
    coins = [entry for entry in entries if entry.kind == ListCoin.kind]
    if coins:
        names, scales = [c.request["coin"] for c in coins], [c.request["scale"] for c in coins]
        parameters = (texts(names), numbers(scales), numbers([c.seq for c in coins]))
        yield Order(sql.ADD_COINS, parameters, len(coins))
    customers = [entry for entry in entries if entry.kind == RegisterCustomer.kind]
    if customers:
        names = [customer.request["customer"] for customer in customers]
        yield Order(sql.ADD_CUSTOMERS, (texts(names), numbers([c.seq for c in customers])), len(customers))
    reversals = [entry for entry in entries if entry.kind == Reverse.kind]
    if reversals:
        undone = [reversal.request["seq"] for reversal in reversals]
        yield Order(sql.ADD_REVERSALS, (numbers(undone), numbers([r.seq for r in reversals])), len(reversals))


def numbers_or_null(items: Sequence[int | None]) -> bytes:
    """Write an array of whole numbers, of which some may be NULL, as text."""
    return ("{" + ",".join(["NULL" if item is None else str(item) for item in items]) + "}").encode()


# --- rows as values of the domain ---------------------------------------------------------------------


def head_of(result: PGresult) -> Head | None:
    """Return the head in the one row of *result*, or None where there is no row."""
    if result.ntuples == 0:
        return None
    seq, kept_hash, booked_ms = rows_of(result)[0]
    return Head(int(seq), hash_of(kept_hash), int(booked_ms))


def holds_in(result: PGresult) -> list[Hold]:
    """Return the holds in the rows of *result*."""
    get, found = result.get_value, []
    for row in range(result.ntuples):
        hold_id, amount, remaining, opened_ms = (int(get(row, column) or b"") for column in (0, 4, 5, 8))
        customer, kind, coin = ((get(row, column) or b"").decode() for column in (1, 2, 3))
        reference = get(row, 6)
        found.append(
            Hold(
                hold_id,
                Account(customer, kind),
                coin,
                amount,
                remaining,
                None if reference is None else reference.decode(),
                _or_none(int, get(row, 7)),
                opened_ms,
                _or_none(int, get(row, 9)),
            )
        )
    return found


def _or_none(read: Callable[[bytes], int], value: bytes | None) -> int | None:
    return None if value is None else read(value)


def add_balances(result: PGresult, found: dict[Account, tuple[int, dict[str, Balance]]]) -> None:
    """Add the balances in the rows of *result* to *found*: the last change of each account, and its coins."""
    for customer, kind, coin, available, freeze, seq in rows_of(result):
        account = Account(customer.decode(), kind.decode())
        changed_seq, balances = found.get(account, (0, {}))
        balances[coin.decode()] = Balance(int(available), int(freeze))
        found[account] = (max(changed_seq, int(seq)), balances)
