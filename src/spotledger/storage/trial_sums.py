"""What everybody has, added up: the balances that are sealed, and then the postings of every later entry."""

from __future__ import annotations

from typing import Final

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


class TrialSums:
    """The sums of both sides by owner and coin; customers are one owner, and so are debts."""

    def __init__(self, seq: int, link: bytes) -> None:
        """Start with nothing, at the last sealed entry *seq*, whose hash is *link*."""
        self._seq = seq
        self._link = link
        self._sums: dict[tuple[str, str], Balance] = {}

    def add(self, customer: str, account: str, coin: str, available: int, freeze: int) -> None:
        """Add a balance, or what a posting moves, in units."""
        name = (_owner(customer, account), coin)
        before = self._sums.get(name, ZERO)
        self._sums[name] = Balance(before.available + available, before.freeze + freeze)

    def add_entry(self, seq: int, body: bytes, kept_hash: bytes) -> None:
        """
        Add the postings of the next entry.

        Raises:
            LedgerCorrupt: It is not the next one, does not fit the chain of hashes, or cannot be read.
        """
        self._seq, self._link = self._seq + 1, chain_hash(self._link, body)
        if (seq, kept_hash) != (self._seq, self._link):
            raise LedgerCorrupt(f"entry {self._seq} is missing, or does not fit the chain of hashes")
        for (customer, account), coin, side, units, _ in _postings(body):
            both = (units, 0) if side == AVAILABLE else (0, units)
            self.add(customer, account, coin, *both)

    def end(self, head_seq: int) -> TrialBalance:
        """
        Return the sums as of the entry *head_seq*, the last of the journal.

        Raises:
            LedgerCorrupt: Entries up to it are missing.
        """
        if self._seq != head_seq:
            raise LedgerCorrupt(f"entry {self._seq + 1} is missing from the journal")
        return TrialBalance(self._seq, self._sums)


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
