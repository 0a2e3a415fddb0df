"""Entries as rows of PostgreSQL: what a group writes, as arrays for a few statements of any size, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, Account, Balance, Coin
from spotledger.domain.journal import BEGIN_EPOCH, Entry, Hold, new_tuple, opened_hold
from spotledger.domain.operations import ListCoin, RegisterCustomer, Reverse
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import CUSTOMERS, Head, TrialBalance
from spotledger.storage.encoding import chain_hash, decode_entry, encode_entry, epochs_of_row, key_digest
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import Connection
from spotledger.storage.postgres.session import (
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

#: Entries that one round trip of a search by time reads.
TIMES_A_TRIP: Final = 100


class Order(NamedTuple):
    """A statement with its parameters."""

    statement: Statement
    parameters: tuple[Parameter, ...]


def journal_rows(entries: Sequence[Entry], before: Head) -> tuple[Head, Order]:
    """Return the head after *entries*, which follow *before*, and the order that appends them to the journal."""
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
    return Head(last.seq, previous, last.booked_ms), Order(sql.ADD_ENTRIES, parameters)


class DerivedRows:
    """What is derived from the entries of a group, computed once for the tables and for memory."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Derive it from *entries*, in order."""
        #: Available, freeze and the last entry, by account and coin.
        self.balances: dict[tuple[Account, str], tuple[int, int, int]] = {}
        #: The holds that the entries opened; and of others what remains, and the entry that closed them.
        self.opened: dict[int, Hold] = {}
        self.changed: dict[int, tuple[int, int | None]] = {}
        #: Listings, registrations and reversals.
        self.rest: list[Entry] = []
        self._by_account: dict[Account, tuple[int, dict[str, Balance]]] | None = None
        for entry in entries:
            if entry.refusal is None:
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        seq, balances = entry.seq, self.balances
        for account, coin, available, freeze in entry.balances:
            balances[account, coin] = (available, freeze, seq)
        if not entry.holds:
            if not entry.postings or entry.kind == Reverse.kind:
                self.rest.append(entry)
            return
        hold = opened_hold(entry)
        if hold is not None:
            self.opened[seq] = hold
            return
        for hold_id, remaining in entry.holds:
            if hold_id in self.opened:
                self.opened[hold_id] = self.opened[hold_id].after(remaining, seq)
            else:
                self.changed[hold_id] = (remaining, None if remaining else seq)

    def add(self, later: DerivedRows) -> None:
        """Add what is derived from later entries."""
        self._by_account = None
        self.balances.update(later.balances)
        for hold_id, (remaining, closed_seq) in later.changed.items():
            if hold_id in self.opened:
                self.opened[hold_id] = self.opened[hold_id].after(remaining, closed_seq or 0)
            else:
                self.changed[hold_id] = (remaining, closed_seq)
        self.opened.update(later.opened)
        self.rest += later.rest

    def by_account(self) -> dict[Account, tuple[int, dict[str, Balance]]]:
        """Return the last entry of each account, and its changed balances; computed once."""
        if self._by_account is None:
            found: dict[Account, tuple[int, dict[str, Balance]]] = {}
            for (account, coin), (available, freeze, seq) in self.balances.items():
                last, balances = found.get(account) or (0, {})
                balances[coin] = new_tuple(Balance, (available, freeze))
                if seq > last:
                    found[account] = (seq, balances)
            self._by_account = found
        return self._by_account

    def rows(self) -> Iterator[Order]:
        """Yield the orders for the tables of holds, coins, customers and reversals."""
        if self.opened:
            yield from _opened(list(self.opened.values()))
        if self.changed:
            yield from _changed(self.changed)
        yield from _others(self.rest)

    def balance_rows(self) -> Iterator[Order]:
        """Yield the order for the balances, once for all entries of a group, because many change the same."""
        if self.balances:
            yield _balances(self.balances)


def history_rows(entries: Sequence[Entry]) -> Iterator[Order]:
    """Yield the order that adds the accounts and coins of *entries* to the history."""
    touches: dict[tuple[Account, str], list[str]] = {}
    for entry in entries:
        if entry.refusal is None:
            seq = str(entry.seq)
            for account, coin, _, _ in entry.balances:
                touches.setdefault((account, coin), []).append(seq)
    if touches:
        lines = sorted(touches)
        accounts, coins = zip(*lines, strict=True)
        owners, kinds = zip(*accounts, strict=True)
        listed = plain_texts(["{" + ",".join(touches[line]) + "}" for line in lines])
        names = (plain_texts(owners), plain_texts(kinds), plain_texts(coins))
        yield Order(sql.ADD_HISTORY, (*names, listed))


def _balances(balances: dict[tuple[Account, str], tuple[int, int, int]]) -> Order:
    # In the order of the index, so that neighbouring rows are written together.
    lines = sorted(balances)
    accounts, coins = zip(*lines, strict=True)
    owners, kinds = zip(*accounts, strict=True)
    available, freeze, seqs = zip(*[balances[line] for line in lines], strict=True)
    names = (plain_texts(owners), plain_texts(kinds), plain_texts(coins))
    return Order(sql.PUT_BALANCES, (*names, numbers(available), numbers(freeze), numbers(seqs)))


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
        )


def _changed(changed: dict[int, tuple[int, int | None]]) -> Iterator[Order]:
    remaining, closed_seqs = zip(*changed.values(), strict=True)
    yield Order(sql.CHANGE_HOLDS, (numbers(changed), numbers(remaining), numbers_or_null(closed_seqs)))
    closed = [hold_id for hold_id, (left, _) in changed.items() if not left]
    if closed:
        yield Order(sql.DROP_OPEN_HOLDS, (numbers(closed),))


#: The statement for each other kind of entry, and the fields of the request that are its parameters, before ``seq``.
_OTHER_KINDS: Final[tuple[tuple[str, Statement, dict[str, Callable[..., bytes]]], ...]] = (
    (ListCoin.kind, sql.ADD_COINS, {"coin": texts, "scale": numbers}),
    (RegisterCustomer.kind, sql.ADD_CUSTOMERS, {"customer": texts}),
    (Reverse.kind, sql.ADD_REVERSALS, {"seq": numbers}),
)


def _others(entries: Sequence[Entry]) -> Iterator[Order]:
    """Yield the orders for listings, registrations, reversals and epochs."""
    for kind, statement, fields in _OTHER_KINDS:
        found = [entry for entry in entries if entry.kind == kind]
        if found:
            parameters = [array_of(entry.request[field] for entry in found) for field, array_of in fields.items()]
            yield Order(statement, (*parameters, numbers(entry.seq for entry in found)))
    begun = [entry.seq for entry in entries if entry.kind == BEGIN_EPOCH]
    if begun:
        yield Order(sql.MOVE_EPOCH, (number(begun[-1]),))


def numbers_or_null(items: Sequence[int | None]) -> bytes:
    """Encode an array of whole numbers or NULLs as text."""
    return ("{" + ",".join(["NULL" if item is None else str(item) for item in items]) + "}").encode()


# --- rows as values of the domain ---------------------------------------------------------------------


def entries_of_keys(result: PGresult, keys: Mapping[bytes, str]) -> Iterator[Entry]:
    """Yield the entries in *result* that have one of *keys*, which are given by their digests."""
    for digest, seq, body in rows_of(result):
        entry = decode_entry(body)
        if entry.seq != int(seq):
            raise LedgerCorrupt(f"entry {int(seq)} of the journal says that it is entry {entry.seq}")
        # A key with the same digest may be another one.
        if keys[bytes.fromhex(digest.decode().replace("-", ""))] == entry.key:
            yield entry


def epochs_in(result: PGresult) -> Epochs:
    """
    Return the epochs that the row of the ledger in *result* leads to.

    Raises:
        LedgerCorrupt: The entry with which the newest one began is missing, or begins none.
    """
    _, seq, body = rows_of(result)[0]
    return epochs_of_row(int(seq), body)


def head_of(result: PGresult) -> Head:
    """
    Return the head in the only row of *result*.

    Raises:
        LedgerCorrupt: There is no row.
    """
    if result.ntuples == 0:
        raise LedgerCorrupt("the row of the journal's head is missing")
    seq, kept_hash, booked_ms = rows_of(result)[0]
    return Head(int(seq), hash_of(kept_hash), int(booked_ms))


def coins_in(result: PGresult) -> list[Coin]:
    """Return the coins in *result*."""
    return [Coin(name.decode(), int(scale)) for name, scale in rows_of(result)]


def customers_in(result: PGresult) -> list[str]:
    """Return the customers in *result*."""
    return [customer.decode() for (customer,) in rows_of(result)]


def holds_in(result: PGresult) -> list[Hold]:
    """Return the holds in *result*."""
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
    """Add the balances in *result* to *found*: the last change of each account, and its balances."""
    for customer, kind, coin, available, freeze, seq in rows_of(result):
        account = Account(customer.decode(), kind.decode())
        changed_seq, balances = found.get(account, (0, {}))
        balances[coin.decode()] = Balance(int(available), int(freeze))
        found[account] = (max(changed_seq, int(seq)), balances)


def sums_of(connection: Connection) -> TrialBalance:
    """
    Add up all balances in one snapshot; raise the errors of the driver.

    Raises:
        LedgerCorrupt: The row of the head is missing.
    """
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    row = connection.execute("SELECT seq FROM head").fetchone()
    rows = connection.execute(
        "SELECT CASE WHEN account <> %s THEN %s WHEN starts_with(customer, %s) THEN %s ELSE customer END, coin,"
        ' sum(available)::text, sum("freeze")::text FROM balance GROUP BY 1, 2',
        (HOUSE_KIND, CUSTOMERS, RECEIVABLE, RECEIVABLE),
    ).fetchall()
    connection.execute("COMMIT")
    if row is None:
        raise LedgerCorrupt("the row of the journal's head is missing")
    return TrialBalance(int(row[0]), {(owner, coin): Balance(int(av), int(fr)) for owner, coin, av, fr in rows})


def is_storable(text: str) -> bool:
    """Return whether the server can store *text* at all."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def balances_after(rows: PGresult, account: Account) -> dict[str, Balance]:
    """Return the balances of *account* after the entries in *rows*, which have each coin and the last for it."""
    found = {}
    for name, body in rows_of(rows):
        coin = name.decode()
        after = next(b for b in decode_entry(body).balances if b.account == account and b.coin == coin)
        found[coin] = Balance(after.available, after.freeze)
    return dict(sorted(found.items()))


def last_booked_by(
    time_ms: int, head_seq: int, ask: Callable[[tuple[Statement, tuple[Parameter, ...]]], PGresult]
) -> int:
    """Return the last entry booked at or before *time_ms*, before the one at *head_seq*; *ask* runs a query."""
    below, above = 0, head_seq  # the first is booked by then, the second after it
    while above - below > 1:
        step = max(1, (above - below) // TIMES_A_TRIP)
        for seq, booked_ms in rows_of(ask((sql.TIMES, (numbers(range(below + step, above, step)),)))):
            if int(booked_ms) > time_ms:
                above = int(seq)
                break
            below = int(seq)
    return below
