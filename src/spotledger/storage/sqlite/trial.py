"""
The trial balance of the embedded store: what everybody has, added up as of one entry.

It reads through connections of its own, so it may run in a thread while others write: the balances of the sealed
segments, and then the postings of the entries between them and the one that is asked for.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import BooksDamaged, TrialBalance
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, BooksFacts, checked, open_books, read_facts
from spotledger.storage.sqlite.buckets import RowSum
from spotledger.storage.sqlite.file import JOURNAL, Connection, open_reader, translated
from spotledger.storage.sqlite.journal import entry_rows, read_head
from spotledger.storage.trial_sums import TrialSums, way_to

_ROWS: Final = 500
#: A pause after each piece, so that whoever serves meanwhile has the interpreter.
_PAUSE_SECONDS: Final = 0.0005


def trial_balance(journal: Path, books: Path, at_seq: int | None = None) -> TrialBalance:
    """
    Add up the ledger of the files *journal* and *books*, as of the entry *at_seq* or, with None, the last one.

    Raises:
        StoreUnavailable: They cannot be read.
        BooksDamaged: The books are damaged.
        LedgerCorrupt: The journal is damaged.
    """
    with closing(open_reader(journal, JOURNAL)) as connection:
        with closing(open_books(books)) as sealed, checked():
            sealed.execute("BEGIN")
            facts = read_facts(sealed)
            with translated("read"):
                head_seq = read_head(connection).seq  # what is sealed is in the journal
            way = way_to(head_seq if at_seq is None else at_seq, facts.sealed_to)
            sums = TrialSums(way, _hash_of(connection, way.after_seq, facts))
            if way.from_sealed:
                _add_balances(sealed, sums)
        # Entries never change, so each page is read by itself: a long transaction would hold up checkpoints.
        for first in range(way.after_seq + 1, way.to_seq + 1, _ROWS):
            for row in entry_rows(connection, first, min(first + _ROWS - 1, way.to_seq)):
                sums.add_entry(*row)
            time.sleep(_PAUSE_SECONDS)
    return sums.end(facts.sealed_hash if way.to_seq == facts.sealed_to else None)


def _hash_of(journal: Connection, seq: int, facts: BooksFacts) -> bytes:
    """Return the hash of the entry *seq*; that of the sealed one is in the books, and others are proven on the way."""
    if seq == facts.sealed_to:
        return facts.sealed_hash
    if seq == 0:
        return genesis_hash(facts.ledger_id)
    for _, _, found in entry_rows(journal, seq, seq):
        return found
    raise LedgerCorrupt(f"entry {seq} is missing from the journal")


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
