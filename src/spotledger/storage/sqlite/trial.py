"""
The trial balance of the embedded store: what everybody has, added up as of one entry.

It reads a snapshot of each file through connections of its own, so it may run in a thread while others write: the
balances of the sealed segments, and then the postings of every entry that they do not have yet.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, ZERO, Balance
from spotledger.domain.journal import AVAILABLE, BalanceAfter, Posting
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import CUSTOMERS, TrialBalance
from spotledger.storage.encoding import StoredPosting, chain_hash, postings_of
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, checked, open_books, read_facts
from spotledger.storage.sqlite.buckets import BooksDamaged, RowSum
from spotledger.storage.sqlite.file import JOURNAL, Connection, open_reader, translated
from spotledger.storage.sqlite.journal import read_head

_ROWS: Final = 500
#: A pause after each piece, so that whoever serves meanwhile has the interpreter.
_PAUSE_SECONDS: Final = 0.0005


class _Moved(msgspec.Struct, gc=False):
    """What an entry moved; its other members are passed over."""

    balances: tuple[BalanceAfter, ...] = ()
    postings: tuple[StoredPosting, ...] = ()


_decode: Final = msgspec.json.Decoder(_Moved, strict=False).decode


def trial_balance(journal: Path, books: Path) -> TrialBalance:
    """
    Add up the ledger of the files *journal* and *books*.

    Raises:
        StoreUnavailable: They cannot be read.
        BooksDamaged: The books are damaged.
        LedgerCorrupt: The journal is damaged.
    """
    sums: dict[tuple[str, str], Balance] = {}
    with closing(open_books(books)) as connection, checked():
        connection.execute("BEGIN")
        facts = read_facts(connection)
        _add_balances(connection, sums)
    seq, link = facts.sealed_to, facts.sealed_hash
    with closing(open_reader(journal, JOURNAL)) as connection, translated("read"):
        connection.execute("BEGIN")
        head_seq = read_head(connection).seq
        rows = connection.execute(
            "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq", (seq, head_seq)
        )
        for found, body, kept_hash in _paced(rows):
            seq, link = seq + 1, chain_hash(link, body)
            if (found, kept_hash) != (seq, link):
                raise LedgerCorrupt(f"entry {seq} is missing, or does not fit the chain of hashes")
            for (customer, account), coin, side, units, _ in _postings(body):
                both = (units, 0) if side == AVAILABLE else (0, units)
                _add(sums, _owner(customer, account), coin, *both)
    if seq != head_seq:
        raise LedgerCorrupt(f"entry {seq + 1} is missing from the journal")
    return TrialBalance(seq, sums)


def _add_balances(connection: Connection, sums: dict[tuple[str, str], Balance]) -> None:
    """Add up all balances of the books, and compare the rows of each bucket with what is kept of them."""
    buckets: defaultdict[int, RowSum] = defaultdict(RowSum)
    for row in _paced(connection.execute(f"SELECT {BALANCE_COLUMNS} FROM balance")):
        bucket, customer, account, coin, available, freeze, *_ = row
        buckets[bucket].add("balance", row)
        try:
            _add(sums, _owner(customer, account), coin, int(available), int(freeze))
        except (TypeError, ValueError, AttributeError) as error:
            raise BooksDamaged("a balance of the books is none") from error
    for row in _paced(connection.execute("SELECT bucket, customer, seq FROM customer")):
        buckets[row[0]].add("customer", row)
    kept = {bucket: (rows, digest) for bucket, rows, digest in connection.execute("SELECT * FROM owner_bucket")}
    if kept != {bucket: found.kept() for bucket, found in buckets.items()}:
        raise BooksDamaged("the balances of the books do not add up to what is kept of them")


def _paced(rows: Iterable[Any]) -> Iterator[Any]:
    """Give *rows*, with a pause after each piece."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % _ROWS == 0:
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
