"""Entries as rows of PostgreSQL: what a group writes, as arrays for one statement, and rows as values of the domain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, Account, Balance, Coin, HouseAccount, house_name
from spotledger.domain.debts import debtors_in
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.operations import OpenHouseAccount
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import CUSTOMERS, Head, TrialBalance
from spotledger.storage.encoding import (
    chain_hash,
    decode_changes,
    decode_entry,
    encode_entry,
    epochs_of_row,
    genesis_hash,
    key_digest,
)
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
    rows_of,
)
from spotledger.storage.trial_sums import TrialSums, way_to

#: Entries that one round trip of a search by time reads.
TIMES_A_TRIP: Final = 100
#: Entries that one round trip of the trial balance reads.
ROWS_A_TRIP: Final = 1_000


def journal_rows(entries: Sequence[Entry], before: Head) -> tuple[Head, tuple[Parameter, ...]]:
    """Return the head after *entries*, which follow *before*, and the parameters of `statements.ADD_ENTRIES`."""
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
    return Head(last.seq, previous, last.booked_ms), parameters


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


def ledger_in(result: PGresult) -> tuple[str, Epochs, int]:
    """
    Return the id of the ledger, its epochs and the entries in a segment, from the row of the ledger in *result*.

    Raises:
        LedgerCorrupt: There is no row; or the entry with which the newest epoch began is missing, or begins none.
    """
    if result.ntuples == 0:
        raise LedgerCorrupt("the row of the ledger is missing")
    ledger_id, seq, segment_entries, body = rows_of(result)[0]
    return ledger_id.decode(), epochs_of_row(int(seq), body), int(segment_entries)


class Found(NamedTuple):
    """The head of the journal, and the last sealed entry."""

    head: Head
    sealed_seq: int


def found_in(result: PGresult, ledger_id: str) -> Found:
    """
    Return what `statements.HEAD` found.

    Raises:
        LedgerCorrupt: The row that says what is sealed is missing, or the last entry cannot be read.
    """
    if result.ntuples == 0:
        raise LedgerCorrupt("the row that says up to which entry the journal is sealed is missing")
    sealed_seq, seq, kept_hash, body = rows_of(result)[0]
    if not seq:
        return Found(Head(0, genesis_hash(ledger_id), 0), int(sealed_seq))
    return Found(Head(int(seq), hash_of(kept_hash), decode_changes(body).booked_ms), int(sealed_seq))


def sealed_in(result: PGresult, ledger_id: str) -> Head:
    """
    Return the last sealed entry, as `statements.SEALED` found it.

    Raises:
        LedgerCorrupt: The journal does not have it as it is noted.
    """
    if result.ntuples == 0:
        raise LedgerCorrupt("the row that says up to which entry the journal is sealed is missing")
    seq, noted_hash, kept_hash, body = rows_of(result)[0]
    noted = Head(int(seq), hash_of(noted_hash), 0)
    if noted == (0, genesis_hash(ledger_id), 0):
        return noted
    if noted_hash != kept_hash:
        raise LedgerCorrupt(f"entry {noted.seq}, up to which the journal is sealed, is missing or has another hash")
    return noted._replace(booked_ms=decode_changes(body).booked_ms)


def coins_in(result: PGresult) -> list[Coin]:
    """Return the coins in *result*."""
    return [Coin(name.decode(), int(scale)) for name, scale in rows_of(result)]


def debtors_found(result: PGresult) -> set[str]:
    """Return the customers who owe something according to *result*."""
    rows = rows_of(result)
    return debtors_in(((name.decode(), kind.decode()), coin, int(available)) for name, kind, coin, available in rows)


def house_accounts_in(result: PGresult) -> list[HouseAccount]:
    """
    Return the house accounts in *result*.

    Raises:
        LedgerCorrupt: The entry that opened one is missing, or opened another one.
    """
    found = []
    for name, body in rows_of(result):
        entry = None if body is None else decode_entry(body)
        if entry is None or entry.kind != OpenHouseAccount.kind or house_name(entry.request["name"]) != name.decode():
            raise LedgerCorrupt(f"the entry that opened the house account {name.decode()} is missing")
        found.append(HouseAccount(name.decode(), entry.request["may_be_negative"]))
    return found


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


def sums_of(connection: Connection, ledger_id: str, at_seq: int | None = None) -> TrialBalance:
    """
    Add up all balances as of the entry *at_seq*, or the last one, in one snapshot; raise the errors of the driver.

    Raises:
        LedgerCorrupt: The row that says what is sealed is missing, or the journal is damaged.
    """
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    sealed = connection.execute("SELECT seq, hash FROM sealed").fetchall()
    if not sealed:
        raise LedgerCorrupt("the row that says up to which entry the journal is sealed is missing")
    sealed_seq, sealed_hash = sealed[0][0], bytes(sealed[0][1])
    head_seq = connection.execute("SELECT coalesce(max(seq), 0) FROM entry").fetchall()[0][0]
    way = way_to(head_seq if at_seq is None else at_seq, sealed_seq)
    known = {0: genesis_hash(ledger_id), sealed_seq: sealed_hash}
    sums = TrialSums(way, known[way.after_seq] if way.after_seq in known else _hash_of(connection, way.after_seq))
    if way.from_sealed:
        _add_balances(connection, sums)
    with connection.cursor(name="between") as rows:
        rows.itersize = ROWS_A_TRIP
        between = (way.after_seq, way.to_seq)
        rows.execute("SELECT seq, body, hash FROM entry WHERE seq > %s AND seq <= %s ORDER BY seq", between)
        for seq, body, kept_hash in rows:
            sums.add_entry(seq, body.encode(), bytes(kept_hash))
    connection.execute("COMMIT")
    return sums.end(sealed_hash if way.to_seq == sealed_seq else None)


def _hash_of(connection: Connection, seq: int) -> bytes:
    """Return the hash of the entry *seq*, which is proven by those after it."""
    rows = connection.execute("SELECT hash FROM entry WHERE seq = %s", (seq,)).fetchall()
    if not rows:
        raise LedgerCorrupt(f"entry {seq} is missing from the journal")
    return bytes(rows[0][0])


def _add_balances(connection: Connection, sums: TrialSums) -> None:
    """Add the sealed balances."""
    for customer, account, coin, available, freeze in connection.execute(
        "SELECT CASE WHEN account <> %s THEN %s WHEN starts_with(customer, %s) THEN %s ELSE customer END,"
        ' min(account), coin, sum(available)::text, sum("freeze")::text FROM balance GROUP BY 1, coin',
        (HOUSE_KIND, CUSTOMERS, f"{RECEIVABLE}:", RECEIVABLE),
    ):
        sums.add(customer, account, coin, int(available), int(freeze))


def is_storable(text: str) -> bool:
    """Return whether the server can store *text* at all."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def balance_after(body: bytes, account: Account, coin: str) -> Balance:
    """
    Return what *account* has of *coin* after the entry with this *body*, which changed it.

    Raises:
        LedgerCorrupt: The entry does not say.
    """
    entry = decode_entry(body)
    for owner, name, available, freeze in entry.balances:
        if owner == account and name == coin:
            return Balance(available, freeze)
    raise LedgerCorrupt(f"entry {entry.seq} does not say what {account.customer} has of {coin} after it")


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
