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

from spotledger.storage.base import BooksDamaged, TrialBalance
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, checked, open_books, read_facts
from spotledger.storage.sqlite.buckets import RowSum
from spotledger.storage.sqlite.file import JOURNAL, Connection, open_reader, translated
from spotledger.storage.sqlite.journal import read_head
from spotledger.storage.trial_sums import TrialSums

_ROWS: Final = 500
#: A pause after each piece, so that whoever serves meanwhile has the interpreter.
_PAUSE_SECONDS: Final = 0.0005


def trial_balance(journal: Path, books: Path) -> TrialBalance:
    """
    Add up the ledger of the files *journal* and *books*.

    Raises:
        StoreUnavailable: They cannot be read.
        BooksDamaged: The books are damaged.
        LedgerCorrupt: The journal is damaged.
    """
    with closing(open_books(books)) as connection, checked():
        connection.execute("BEGIN")
        facts = read_facts(connection)
        sums = TrialSums(facts.sealed_to, facts.sealed_hash)
        _add_balances(connection, sums)
    with closing(open_reader(journal, JOURNAL)) as connection, translated("read"):
        connection.execute("BEGIN")
        head_seq = read_head(connection).seq
        rows = connection.execute(
            "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq",
            (facts.sealed_to, head_seq),
        )
        for seq, body, kept_hash in _paced(rows):
            sums.add_entry(seq, body, kept_hash)
    return sums.end(head_seq)


def _add_balances(connection: Connection, sums: TrialSums) -> None:
    """Add up all balances of the books, and compare the rows of each bucket with what is kept of them."""
    buckets: defaultdict[int, RowSum] = defaultdict(RowSum)
    for row in _paced(connection.execute(f"SELECT {BALANCE_COLUMNS} FROM balance")):
        bucket, customer, account, coin, available, freeze, *_ = row
        buckets[bucket].add("balance", row)
        try:
            sums.add(customer, account, coin, int(available), int(freeze))
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
