"""
What other nodes wrote, as memory follows it: entries read for what they changed and for nothing else.

Every node reads what all others write, much of it while it holds the turn, so this is made to cost a fraction of what
reading a whole entry does: what memory has no use for is passed over without becoming an object.
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
    """What is needed of a request."""

    reference: str | None = None
    expires_ms: int | None = None
    coin: str | None = None
    scale: int | None = None
    customer: str | None = None


class Refusal(msgspec.Struct, gc=False):
    """That an operation was refused; why is passed over."""


class Change(msgspec.Struct, gc=False):
    """What an entry changed; its fields are those of :class:`spotledger.domain.journal.Entry`."""

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: Asked
    #: Accounts here are plain tuples, which equal those of the domain.
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


# Not strict: the units stand in the journal as decimal text.
_decode = msgspec.json.Decoder(Change, strict=False).decode


class ForeignEntries(NamedTuple):
    """Entries that follow one another: what each changed, and as it stands in the journal."""

    changes: Sequence[Change]
    bodies: Sequence[bytes]

    def after(self, seq: int) -> ForeignEntries:
        """Return those after the entry *seq*."""
        if not self.changes or self.changes[0].seq > seq:
            return self
        known = seq + 1 - self.changes[0].seq
        return ForeignEntries(self.changes[known:], self.bodies[known:])


def read_news(rows: PGresult, since: Head, head: Head, known_seq: int) -> ForeignEntries:
    """
    Read the answer to the statement that asks for news.

    Args:
        rows: All entries after *since* up to *head*.
        since: The entry that they have to follow.
        head: The entry that they have to end with.
        known_seq: Those up to this one are checked like all others, and left out of what is returned.

    Raises:
        LedgerCorrupt: Their numbers or hashes do not lead from *since* to *head*, or one cannot be read.
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
        raise LedgerCorrupt(f"the journal's last entry, {head.seq}, is not the one that its head says")
    return ForeignEntries(changes, bodies)


def change_in(body: bytes) -> Change:
    """
    Read what an entry changed in its bytes.

    Raises:
        LedgerCorrupt: They are none.
    """
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"an entry of the journal cannot be read: {error}") from error
