"""
The trial balance of the embedded store: all balances added up after one entry.

It reads one snapshot of the file through its own connection, so it may run in a thread beside writes: the balances of
the sealed segments, and the postings of all later entries.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, ZERO, Balance
from spotledger.domain.journal import AVAILABLE, BalanceAfter, Posting
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import CUSTOMERS, TrialBalance
from spotledger.storage.encoding import StoredPosting, postings_of
from spotledger.storage.sqlite.file import translated

_ROWS: Final = 500
#: A pause after each piece, in which other threads can run.
_PAUSE_SECONDS: Final = 0.0005

_Name = tuple[str, str, str]


class _Moved(msgspec.Struct, gc=False):
    """The members of an entry that matter here; the others are skipped."""

    balances: tuple[BalanceAfter, ...] = ()
    postings: tuple[StoredPosting, ...] = ()


_decode: Final = msgspec.json.Decoder(_Moved, strict=False).decode


def trial_balance(path: Path) -> TrialBalance:
    """
    Add up the balances in the ledger file at *path*.

    Raises:
        StoreUnavailable: It cannot be read.
        LedgerCorrupt: It is damaged, or an entry cannot be decoded.
    """
    with translated("read"), closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("BEGIN")
        sealed_to = int(connection.execute("SELECT sealed_to FROM ledger").fetchone()[0])
        seq = int(connection.execute("SELECT seq FROM head").fetchone()[0])
        sums: dict[tuple[str, str], Balance] = {}
        # A segment that is being sealed may have written some of its balances already.
        newer: dict[_Name, int] = {}
        rows = 'SELECT customer, account, coin, available, "freeze", seq FROM balance'
        for customer, account, coin, available, freeze, changed_seq in _pieces(connection, rows):
            _add(sums, _owner(customer, account), coin, int(available), int(freeze))
            if changed_seq > sealed_to:
                newer[customer, account, coin] = changed_seq
        entries = f"SELECT seq, CAST(body AS BLOB) FROM entry WHERE seq > {sealed_to} AND seq <= {seq} ORDER BY seq"
        for entry_seq, body in _pieces(connection, entries):
            for (customer, account), coin, side, units, _ in _postings(body):
                if newer.get((customer, account, coin), 0) < entry_seq:
                    both = (units, 0) if side == AVAILABLE else (0, units)
                    _add(sums, _owner(customer, account), coin, *both)
        return TrialBalance(seq, sums)


def _pieces(connection: sqlite3.Connection, query: str) -> Iterator[Any]:
    rows = connection.execute(query)
    while piece := rows.fetchmany(_ROWS):
        yield from piece
        time.sleep(_PAUSE_SECONDS)


def _postings(body: bytes) -> tuple[Posting, ...]:
    try:
        moved: _Moved = _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"an entry of the journal cannot be read: {error}") from error
    return postings_of(moved.postings, moved.balances)


def _owner(customer: str, account: str) -> str:
    if account != HOUSE_KIND:
        return CUSTOMERS
    return RECEIVABLE if customer.startswith(RECEIVABLE) else customer


def _add(sums: dict[tuple[str, str], Balance], owner: str, coin: str, available: int, freeze: int) -> None:
    before = sums.get((owner, coin), ZERO)
    sums[owner, coin] = Balance(before.available + available, before.freeze + freeze)
