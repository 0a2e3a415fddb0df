"""
What other nodes wrote, as memory follows it: entries read for what they changed and for nothing else.

Every node reads what all others write, much of it while it holds the turn, so this is made to cost a fraction of what
reading a whole entry does: what memory has no use for is passed over without becoming an object.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct
from typing import Final

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


def changes_in(news: PGresult, since: Head, head: Head, known_seq: int) -> list[Change]:
    """
    Return what the entries in *news*, the answer to the statement of that name, changed.

    Args:
        news: All entries after *since* up to *head*.
        since: The entry that they have to follow.
        head: The entry that they have to end with.
        known_seq: Those up to this one are checked like all others, and left out of what is returned.

    Raises:
        LedgerCorrupt: Their numbers or hashes do not lead from *since* to *head*, or one cannot be read.
    """
    get, changes, previous, seq = news.get_value, [], since.hash, since.seq
    for row in range(news.ntuples):
        body = get(row, 2) or b""
        previous = sha256(previous + body).digest()
        seq += 1
        if get(row, 1) != previous or get(row, 0) != _seq_column(seq):
            raise LedgerCorrupt(f"the journal's chain is broken at entry {seq}")
        if seq > known_seq:
            changes.append(_change_in(body, seq))
    if previous != head.hash:
        raise LedgerCorrupt(f"the journal's last entry, {head.seq}, is not the one that its head says")
    return changes


def _change_in(body: bytes, seq: int) -> Change:
    try:
        change = _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"entry {seq} of the journal cannot be read: {error}") from error
    if change.seq != seq:
        raise LedgerCorrupt(f"entry {seq} of the journal says that it is entry {change.seq}")
    return change
