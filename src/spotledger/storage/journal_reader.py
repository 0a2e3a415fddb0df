"""Reading the journal of either store in order, beside its writers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from spotledger.domain.operations import ListCoin
from spotledger.domain.positions import Epochs
from spotledger.errors import InvalidRequest, LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, decode_entry, genesis_hash

#: Entries read in one transaction; a longer one would hold up checkpoints and vacuuming.
PAGE_ENTRIES: Final = 2_000


class JournalRow(NamedTuple):
    """One entry as it is stored: its ``seq``, the bytes that are hashed, and its hash."""

    seq: int
    body: bytes
    hash: bytes


class JournalReader(ABC):
    """
    The journal of one ledger, up to the head at the time when the reader was created.

    Entries never change, so many short transactions read the same as a long one. The hash chain is checked on the way.
    """

    ledger_id: str
    epochs: Epochs
    head: Head

    def __enter__(self) -> Self:
        """Return the reader; the end of the ``with`` block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the reader."""
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Close the connection to the store."""

    def rows(self, after_seq: int = 0) -> Iterator[JournalRow]:
        """
        Yield the entries after *after_seq* in order, without gaps, up to the head.

        Raises:
            InvalidRequest: *after_seq* is beyond the head.
            LedgerCorrupt: An entry is missing, or the hash chain is broken.
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
            raise LedgerCorrupt(f"the hash of the last entry, {seq}, is not that of the head")

    def scales(self, up_to_seq: int) -> dict[str, int]:
        """Return the scales of the coins listed up to the entry *up_to_seq*, from their entries."""
        return {
            entry.request["coin"]: entry.request["scale"]
            for entry in map(decode_entry, self._listings(up_to_seq))
            if entry.kind == ListCoin.kind and entry.refusal is None
        }

    def _page(self, after_seq: int) -> list[JournalRow]:
        """Return the entries after *after_seq*: at least one, at most `PAGE_ENTRIES`."""
        found = self._read_page(after_seq)
        if not found:
            raise LedgerCorrupt(f"entry {after_seq + 1} is missing from the journal")
        return found

    def _link(self, seq: int) -> bytes:
        """Return the hash that the entry after *seq* is chained to."""
        if seq == 0:
            return genesis_hash(self.ledger_id)
        found = self._read_hash(seq)
        if found is None:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return found

    @abstractmethod
    def _read_page(self, after_seq: int) -> list[JournalRow]:
        """Read at most `PAGE_ENTRIES` entries after *after_seq*, none after the head."""

    @abstractmethod
    def _read_hash(self, seq: int) -> bytes | None:
        """Read the hash of the entry *seq*, or None."""

    @abstractmethod
    def _listings(self, up_to_seq: int) -> list[bytes]:
        """Read the bodies of all entries up to *up_to_seq* that list a coin; others may be among them."""
