"""
What everybody has, added up as of one entry.

The sums begin with what is known, nothing before the first entry or the sealed balances, and go on with the postings of
the entries in between, forwards or backwards, whichever is nearer.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, ZERO, Balance, is_receivable
from spotledger.domain.journal import AVAILABLE, BalanceAfter, Posting, postings_of
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import CUSTOMERS, TrialBalance
from spotledger.storage.encoding import StoredMove, chain_hash, moves_of


class _Moved(msgspec.Struct, gc=False):
    """What an entry moved; its other members are passed over."""

    balances: tuple[BalanceAfter, ...] = ()
    postings: tuple[StoredMove, ...] = ()


_decode: Final = msgspec.json.Decoder(_Moved, strict=False).decode


class Way(NamedTuple):
    """How the sums as of an entry come about: where they begin, and which entries are added or taken away."""

    #: Whether they begin with the sealed balances; else with nothing.
    from_sealed: bool
    after_seq: int
    to_seq: int
    sign: int


def way_to(at_seq: int, sealed_seq: int) -> Way:
    """Return the nearest way to the sums as of *at_seq* where the balances are sealed as of *sealed_seq*."""
    if at_seq >= sealed_seq:
        return Way(True, sealed_seq, at_seq, 1)
    if at_seq < sealed_seq - at_seq:
        return Way(False, 0, at_seq, 1)
    return Way(True, at_seq, sealed_seq, -1)


class TrialSums:
    """The sums of both sides by owner and coin; customers are one owner, and so are debts."""

    def __init__(self, way: Way, link: bytes) -> None:
        """Start with nothing; *link* is the hash of the entry before those on the *way*."""
        self._way = way
        self._seq = way.after_seq
        self._link = link
        self._sums: dict[tuple[str, str], Balance] = {}

    def add(self, customer: str, account: str, coin: str, available: int, freeze: int) -> None:
        """Add a balance, or what a posting moves, in units."""
        name = (_owner(customer, account), coin)
        before = self._sums.get(name, ZERO)
        self._sums[name] = Balance(before.available + available, before.freeze + freeze)

    def add_entry(self, seq: int, body: bytes, kept_hash: bytes) -> None:
        """
        Add the postings of the next entry, or take them away.

        Raises:
            LedgerCorrupt: It is not the next one, does not fit the chain of hashes, or cannot be read.
        """
        self._seq, self._link = self._seq + 1, chain_hash(self._link, body)
        if (seq, kept_hash) != (self._seq, self._link):
            raise LedgerCorrupt(f"entry {self._seq} is missing, or does not fit the chain of hashes")
        sign = self._way.sign
        for (customer, account), coin, side, units, _ in _postings(body):
            both = (sign * units, 0) if side == AVAILABLE else (0, sign * units)
            self.add(customer, account, coin, *both)

    def end(self, last_hash: bytes | None = None) -> TrialBalance:
        """
        Return the sums.

        Args:
            last_hash: The hash of the last entry on the way, if it is known from elsewhere.

        Raises:
            LedgerCorrupt: Entries are missing, or do not lead to that hash.
        """
        way = self._way
        if self._seq != way.to_seq:
            raise LedgerCorrupt(f"entry {self._seq + 1} is missing from the journal")
        if last_hash is not None and self._link != last_hash:
            raise LedgerCorrupt(f"the entries up to {self._seq} do not lead to its hash")
        return TrialBalance(way.to_seq if way.sign > 0 else way.after_seq, self._sums)


def _postings(body: bytes) -> tuple[Posting, ...]:
    try:
        moved: _Moved = _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"an entry of the journal cannot be read: {error}") from error
    return postings_of(moves_of(moved.postings, moved.balances), moved.balances)


def _owner(customer: str, account: str) -> str:
    if account != HOUSE_KIND:
        return CUSTOMERS
    return RECEIVABLE if is_receivable(customer) else customer
