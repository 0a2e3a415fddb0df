"""
Entries of other nodes, decoded only as far as memory needs them.

Every node reads what all others write, often while it holds the write lock. So this costs a fraction of decoding whole
entries: what memory does not need is skipped without creating objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from struct import Struct
from typing import Final, NamedTuple

import msgspec
from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import Account
from spotledger.domain.journal import Hold, new_tuple
from spotledger.domain.operations import Freeze
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head

_seq_column: Final = Struct("!q").pack


class Asked(msgspec.Struct, gc=False):
    """The members of a request that memory needs."""

    reference: str | None = None
    expires_ms: int | None = None
    coin: str | None = None
    scale: int | None = None
    customer: str | None = None


class Refusal(msgspec.Struct, gc=False):
    """A refusal, without its reason."""


class Change(msgspec.Struct, gc=False):
    """What an entry changed; the fields are those of :class:`spotledger.domain.journal.Entry`."""

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: Asked
    #: Accounts are plain tuples, which equal those of the domain.
    balances: tuple[tuple[tuple[str, str], str, int, int], ...] = ()
    holds: tuple[tuple[int, int], ...] = ()
    refusal: Refusal | None = None

    def opened_hold(self) -> Hold | None:
        """Return the hold that the entry opened, as it was then, or None."""
        if self.kind != Freeze.kind or not self.holds:
            return None
        units, asked = self.holds[0][1], self.request
        account, coin, _, _ = self.balances[0]
        owner = new_tuple(Account, account)
        values = (self.seq, owner, coin, units, units, asked.reference, asked.expires_ms, self.booked_ms, None)
        return new_tuple(Hold, values)


# Not strict: units are stored as decimal text.
_decode = msgspec.json.Decoder(Change, strict=False).decode


class ForeignEntries(NamedTuple):
    """Consecutive entries: what each changed, and its bytes."""

    changes: Sequence[Change]
    bodies: Sequence[bytes]

    def after(self, seq: int) -> ForeignEntries:
        """Return the entries after *seq*."""
        if not self.changes or self.changes[0].seq > seq:
            return self
        known = seq + 1 - self.changes[0].seq
        return ForeignEntries(self.changes[known:], self.bodies[known:])


def do_lead(rows: PGresult, since: Head, head: Head) -> bool:
    """Return whether the result of `statements.NEW_ENTRIES` goes on from *since*, as far as its first entry shows."""
    if head.seq <= since.seq:
        return head.seq == since.seq and head.hash == since.hash
    body = rows.get_value(0, 2) or b"" if rows.ntuples else b""
    return rows.ntuples > 0 and rows.get_value(0, 1) == sha256(since.hash + body).digest()


def read_foreign_entries(rows: PGresult, since: Head, head: Head, known_seq: int) -> ForeignEntries:
    """
    Check and decode the result of `statements.NEW_ENTRIES`.

    Args:
        rows: All entries after *since* up to *head*.
        since: The entry before them.
        head: The last of them.
        known_seq: Entries up to this one are checked, but not returned.

    Raises:
        LedgerCorrupt: Their numbers or hashes do not lead from *since* to *head*, or one cannot be decoded.
    """
    get, previous, seq = rows.get_value, since.hash, since.seq
    changes, bodies = [], []
    for row in range(rows.ntuples):
        body = get(row, 2) or b""
        previous = sha256(previous + body).digest()
        seq += 1
        if get(row, 1) != previous or get(row, 0) != _seq_column(seq):
            raise LedgerCorrupt(f"the journal's chain is broken at entry {seq}")
        if seq > known_seq:
            change = change_in(body)
            if change.seq != seq:
                raise LedgerCorrupt(f"entry {seq} of the journal says that it is entry {change.seq}")
            changes.append(change)
            bodies.append(body)
    if previous != head.hash:
        raise LedgerCorrupt(f"the journal's last entry, {head.seq}, is not the one that its head names")
    return ForeignEntries(changes, bodies)


def change_in(body: bytes) -> Change:
    """
    Decode what the entry with this *body* changed.

    Raises:
        LedgerCorrupt: *body* is not an entry.
    """
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"an entry of the journal cannot be read: {error}") from error
