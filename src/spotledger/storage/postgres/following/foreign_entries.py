"""
Entries as the journal has them, checked against its chain and decoded as far as memory needs them.

Every node reads what all others write, often while it holds the write lock. So this costs less than half of decoding
whole entries: what memory does not need is skipped without creating objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

from psycopg.pq.abc import PGresult

from spotledger.domain.journal import BEGIN_EPOCH, epochs_after
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import EntryChanges, decode_changes, decode_entry

_seq_column: Final = Struct("!q").pack


class ForeignEntries(NamedTuple):
    """Consecutive entries, the last of them, and the epochs after them if one begins among them."""

    changes: Sequence[EntryChanges]
    last: Head
    epochs: Epochs | None

    def after(self, seq: int) -> ForeignEntries:
        """Return the entries after *seq*."""
        if not self.changes or self.changes[0].seq > seq:
            return self
        return self._replace(changes=self.changes[seq + 1 - self.changes[0].seq :])


def do_lead(rows: PGresult, since: Head, head: Head) -> bool:
    """Return whether the result of `statements.NEW_ENTRIES` goes on from *since*, as far as its first entry shows."""
    if head.seq <= since.seq:
        return head.seq == since.seq and head.hash == since.hash
    return rows.ntuples > 0 and goes_on(rows, since)


def goes_on(rows: PGresult, since: Head) -> bool:
    """Return whether the first of *rows*, of which there is one, is chained to *since*."""
    return rows.get_value(0, 1) == sha256(since.hash + (rows.get_value(0, 2) or b"")).digest()


def read_foreign_entries(rows: PGresult, since: Head, known_seq: int, head: Head | None = None) -> ForeignEntries:
    """
    Check and decode the result of `statements.NEW_ENTRIES`.

    Args:
        rows: Entries after *since*, in order.
        since: The entry before them.
        known_seq: Entries up to this one are checked, but not returned.
        head: The head of the same snapshot, if all entries up to it were asked for.

    Raises:
        LedgerCorrupt: Their numbers or hashes do not go on from *since*, or not up to *head*; or one cannot be decoded.
    """
    get, previous, seq = rows.get_value, since.hash, since.seq
    changes, epochs, booked_ms = [], None, since.booked_ms
    for row in range(rows.ntuples):
        body = get(row, 2) or b""
        previous = sha256(previous + body).digest()
        seq += 1
        if get(row, 1) != previous or get(row, 0) != _seq_column(seq):
            raise LedgerCorrupt(f"the journal's chain is broken at entry {seq}")
        if seq > known_seq:
            change = decode_changes(body)
            if change.seq != seq:
                raise LedgerCorrupt(f"entry {seq} of the journal says that it is entry {change.seq}")
            if change.kind == BEGIN_EPOCH:
                epochs = epochs_after(decode_entry(body))
            changes.append(change)
            booked_ms = change.booked_ms
    if head is not None and (seq, previous) != (head.seq, head.hash):
        raise LedgerCorrupt(f"the journal's last entry, {head.seq}, does not follow from entry {seq}")
    return ForeignEntries(changes, Head(seq, previous, booked_ms), epochs)
