"""Reading a journal in order, beside whoever writes to it, whatever store it is in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from spotledger.domain.operations import ListCoin
from spotledger.errors import InvalidRequest, LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, decode_entry, genesis_hash

#: Entries read in one transaction. A longer one would be in the way of whoever tidies up behind the writers.
PAGE_ENTRIES: Final = 2_000


class JournalRow(NamedTuple):
    """One entry as it is stored: its position, the bytes that are hashed, and its hash."""

    seq: int
    body: bytes
    hash: bytes


class JournalReader(ABC):
    """
    The journal of one ledger, up to the head as it was when the reader was made.

    Entries are never changed once they are there, so many short transactions read the same as one long one. The chain
    of hashes is checked on the way.
    """

    ledger_id: str
    epoch: int
    head: Head

    def __enter__(self) -> Self:
        """Return the reader itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the store."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of the store."""

    def rows(self, after_seq: int = 0) -> Iterator[JournalRow]:
        """
        Give the entries after *after_seq* in order, without gaps, up to the head.

        Raises:
            InvalidRequest: *after_seq* is beyond the head.
            LedgerCorrupt: An entry is missing, or the chain of hashes is broken.
        """
        if not 0 <= after_seq <= self.head.seq:
            raise InvalidRequest(
                f"after_seq is {after_seq}; 0 to {self.head.seq}, the head of the journal, would pass",
                field="after_seq",
            )
        seq, previous = after_seq, self._link(after_seq)
        while seq < self.head.seq:
            for row in self._page(seq):
                seq += 1
                previous = chain_hash(previous, row.body)
                if row.seq != seq or row.hash != previous:
                    raise LedgerCorrupt(f"the journal's chain is broken at entry {seq}")
                yield row
        if previous != self.head.hash:
            raise LedgerCorrupt(f"the hash of entry {seq}, the last, is not the one that the head has")

    def scales(self, up_to_seq: int) -> dict[str, int]:
        """Return the decimals of the coins that were listed up to the entry *up_to_seq*, from their entries."""
        return {
            entry.request["coin"]: entry.request["scale"]
            for entry in map(decode_entry, self._listings(up_to_seq))
            if entry.kind == ListCoin.kind and entry.refusal is None
        }

    def _page(self, after_seq: int) -> list[JournalRow]:
        """Return the entries beyond *after_seq*, at least one and `PAGE_ENTRIES` at the most."""
        found = self._read_page(after_seq)
        if not found:
            raise LedgerCorrupt(f"entry {after_seq + 1} is missing from the journal")
        return found

    def _link(self, seq: int) -> bytes:
        """Return the hash that the one of the entry after *seq* is made of."""
        if seq == 0:
            return genesis_hash(self.ledger_id)
        found = self._read_hash(seq)
        if found is None:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return found

    @abstractmethod
    def _read_page(self, after_seq: int) -> list[JournalRow]:
        """Read up to `PAGE_ENTRIES` entries beyond *after_seq*, none beyond the head."""

    @abstractmethod
    def _read_hash(self, seq: int) -> bytes | None:
        """Read the hash of the entry *seq*."""

    @abstractmethod
    def _listings(self, up_to_seq: int) -> list[bytes]:
        """Read the bodies of all entries up to *up_to_seq* that list a coin, and perhaps of some others."""
