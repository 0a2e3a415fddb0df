"""The queries of the embedded store; each returns values of the domain."""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, Final

from spotledger.domain.accounts import Account, Balance, Coin
from spotledger.domain.journal import Hold
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import unpack_places

_HOLD = "hold_id, customer, account, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq"
_PAGE: Final = 500


def ledger_row(connection: sqlite3.Connection) -> tuple[str, int, int, int]:
    """Return the ledger's id, its epoch, the entries of a segment, and the last sealed entry."""
    row: tuple[str, int, int, int] = _only_row(
        connection, "SELECT ledger_id, epoch, segment_entries, sealed_to FROM ledger"
    )
    return row


def head_row(connection: sqlite3.Connection) -> Head:
    """Return the head as of the last commit."""
    return Head(*_only_row(connection, "SELECT seq, hash, booked_ms FROM head"))


def _only_row(connection: sqlite3.Connection, query: str) -> Any:
    row = connection.execute(query).fetchone()
    if row is None:
        raise LedgerCorrupt(f"the ledger file has no row for: {query}")
    return row


def coin_rows(connection: sqlite3.Connection, sealed_to: int) -> Iterator[Coin]:
    """Yield the coins whose listing is sealed."""
    for name, scale in connection.execute("SELECT coin, scale FROM coin WHERE seq <= ? ORDER BY coin", (sealed_to,)):
        yield Coin(name, scale)


def seqs_of_digest(connection: sqlite3.Connection, segments: Sequence[int], digest: bytes) -> list[int]:
    """Return the entries of *segments* whose key has this digest."""
    if not segments:
        return []
    rows = connection.execute(
        "SELECT key_seq.seq FROM json_each(?) AS wanted"
        " CROSS JOIN key_seq ON key_seq.segment = wanted.value AND key_seq.digest = ?",
        (json.dumps(segments), digest),
    )
    return [seq for (seq,) in rows]


def known_customers(connection: sqlite3.Connection, customers: Sequence[str], sealed_to: int) -> list[str]:
    """Return those of *customers* whose registration is sealed."""
    rows = connection.execute(
        "SELECT customer FROM customer WHERE customer IN (SELECT value FROM json_each(?)) AND seq <= ?",
        (json.dumps(customers), sealed_to),
    )
    return [customer for (customer,) in rows]


def customers_after(connection: sqlite3.Connection, after: str, limit: int) -> list[str]:
    """Return at most *limit* sealed customers with ids above *after*, by id."""
    rows = connection.execute(
        "SELECT customer FROM customer WHERE customer > ? ORDER BY customer LIMIT ?", (after, limit)
    )
    return [customer for (customer,) in rows]


def balances_of(
    connection: sqlite3.Connection, accounts: Sequence[Account]
) -> Iterator[tuple[Account, str, Balance, int]]:
    """Yield all balances of *accounts*, each with the entry that changed it last."""
    rows = connection.execute(
        'SELECT balance.customer, balance.account, coin, available, "freeze", seq FROM json_each(?) AS wanted'
        " CROSS JOIN balance ON balance.customer = wanted.value ->> 0 AND balance.account = wanted.value ->> 1",
        (json.dumps(accounts),),
    )
    for customer, kind, coin, available, freeze, seq in rows:
        yield Account(customer, kind), coin, Balance(int(available), int(freeze)), seq


def touches_in_segment(
    connection: sqlite3.Connection, segment: int, account: Account, place: int
) -> Iterator[tuple[str, int]]:
    """Yield each coin of *account* that a segment changed up to *place*, with the position of the last such entry."""
    rows = connection.execute(
        "SELECT coin, places FROM history WHERE segment = ? AND customer = ? AND account = ?", (segment, *account)
    )
    for coin, packed in rows:
        places = unpack_places(packed)
        count = bisect_right(places, place)
        if count:
            yield coin, places[count - 1]


def places_in_segment(
    connection: sqlite3.Connection, segment: int, owners: Sequence[str], coin: str | None, after: int
) -> list[int]:
    """Return the positions after *after* of the entries of one segment that changed an account of *owners*."""
    which = "" if coin is None else " AND coin = ?"
    rows = connection.execute(
        f"SELECT places FROM history WHERE segment = ? AND customer IN (SELECT value FROM json_each(?)){which}",
        (segment, json.dumps(owners), *([] if coin is None else [coin])),
    )
    found: set[int] = set()
    for (packed,) in rows:
        places = unpack_places(packed)
        found.update(places[bisect_right(places, after) :])
    return sorted(found)


def reversal_of(connection: sqlite3.Connection, seq: int, sealed_to: int) -> int | None:
    """Return the sealed entry that reversed the entry *seq*, or None."""
    row = connection.execute("SELECT by_seq FROM reversal WHERE seq = ? AND by_seq <= ?", (seq, sealed_to)).fetchone()
    return None if row is None else int(row[0])


def booked_ms(connection: sqlite3.Connection, seq: int) -> int:
    """Return the time when the entry *seq* was booked, in ms since 1970."""
    return int(connection.execute("SELECT body ->> '$.booked_ms' FROM entry WHERE seq = ?", (seq,)).fetchone()[0])


def holds_of_ids(connection: sqlite3.Connection, ids: Sequence[int]) -> list[Hold]:
    """Return those holds with these ids that are in the table."""
    rows = connection.execute(
        f"SELECT {_HOLD} FROM hold WHERE hold_id IN (SELECT value FROM json_each(?))", (json.dumps(list(ids)),)
    )
    return [_hold(row) for row in rows]


def holds_of_customer(
    connection: sqlite3.Connection, customer: str, after: int, only_open: bool, sealed_to: int, segment_entries: int
) -> list[Hold]:
    """Return the next page of sealed holds of *customer* above *after*, or of those that are open in the table."""
    if only_open:
        rows = connection.execute(
            f"SELECT {_HOLD} FROM hold WHERE customer = ? AND hold_id > ? AND hold_id <= ? AND closed_seq IS NULL"
            " ORDER BY hold_id LIMIT ?",
            (customer, after, sealed_to, _PAGE),
        )
        return [_hold(row) for row in rows]
    for segment in range(after // segment_entries, sealed_to // segment_entries):
        row = connection.execute(
            "SELECT places FROM hold_of WHERE segment = ? AND customer = ?", (segment, customer)
        ).fetchone()
        if row is None:
            continue
        first = segment * segment_entries + 1
        places = unpack_places(row[0])
        begin = bisect_right(places, after - first)
        ids = [first + place for place in places[begin : begin + _PAGE]]
        if ids:
            return sorted(holds_of_ids(connection, ids))
    return []


def open_holds(connection: sqlite3.Connection, after: int, sealed_to: int) -> list[Hold]:
    """Return the next page of sealed holds above *after* that are open in the table."""
    rows = connection.execute(
        f"SELECT {_HOLD} FROM hold INDEXED BY hold_age"
        " WHERE closed_seq IS NULL AND hold_id > ? AND hold_id <= ? ORDER BY hold_id LIMIT ?",
        (after, sealed_to, _PAGE),
    )
    return [_hold(row) for row in rows]


def due_rows(connection: sqlite3.Connection, cursor: tuple[int, int], now_ms: int, limit: int) -> list[tuple[int, int]]:
    """Return (expires_ms, hold_id) of at most *limit* holds after *cursor* that are open in the table and due."""
    return connection.execute(
        "SELECT expires_ms, hold_id FROM hold WHERE closed_seq IS NULL AND expires_ms IS NOT NULL"
        " AND (expires_ms, hold_id) > (?, ?) AND expires_ms <= ? ORDER BY expires_ms, hold_id LIMIT ?",
        (*cursor, now_ms, limit),
    ).fetchall()


def next_due_ms(connection: sqlite3.Connection, cursor: tuple[int, int]) -> int | None:
    """Return when the next hold after *cursor* that is open in the table expires, or None."""
    row = connection.execute(
        "SELECT expires_ms FROM hold WHERE closed_seq IS NULL AND expires_ms IS NOT NULL"
        " AND (expires_ms, hold_id) > (?, ?) ORDER BY expires_ms, hold_id LIMIT 1",
        cursor,
    ).fetchone()
    return None if row is None else int(row[0])


def _hold(row: tuple[Any, ...]) -> Hold:
    hold_id, customer, kind, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq = row
    return Hold(
        hold_id,
        Account(customer, kind),
        coin,
        int(amount),
        int(remaining),
        reference,
        expires_ms,
        opened_ms,
        closed_seq,
    )
