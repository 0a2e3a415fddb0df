"""Reading the journal of a ledger file in order, beside whoever writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from spotledger.domain.operations import ListCoin
from spotledger.errors import InvalidRequest, LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, decode_entry, genesis_hash
from spotledger.storage.sqlite_errors import translated
from spotledger.storage.sqlite_file import open_to_read
from spotledger.storage.sqlite_reads import head_row, ledger_row

#: Entries read in one transaction. A longer one would keep the write-ahead log from being folded into the file.
PAGE_ENTRIES: Final = 2_000


class JournalRow(NamedTuple):
    """One entry as it is stored: its position, the bytes that are hashed, and its hash."""

    seq: int
    body: bytes
    hash: bytes


class JournalReader:
    """
    The journal of one ledger file, up to the head as it was when the reader was made.

    Entries are never changed once they are there, so many short transactions read the same as one long one. The chain
    of hashes is checked on the way.
    """

    def __init__(self, path: Path) -> None:
        """
        Open the ledger file at *path*; another process may own it and write to it.

        Raises:
            SchemaMismatch: It is no ledger, or of another version.
            StoreUnavailable: It cannot be read.
        """
        self._connection = open_to_read(path)
        try:
            with translated("read"):
                self.ledger_id, self.epoch, _, self._sealed_to = ledger_row(self._connection)
                self.head: Head = head_row(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        """Return the reader itself, to be closed at the end of a ``with`` block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self._connection.close()

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
        seq, previous = after_seq, self._hash_of(after_seq)
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
        with translated("read"):
            sealed = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM coin JOIN entry USING (seq) WHERE coin.seq <= ?",
                (min(up_to_seq, self._sealed_to),),
            )
            listings = [decode_entry(body) for (body,) in sealed]
        for seq in range(self._sealed_to, up_to_seq, PAGE_ENTRIES):
            listings += [decode_entry(row.body) for row in self._page(seq) if row.seq <= up_to_seq]
        return {
            entry.request["coin"]: entry.request["scale"]
            for entry in listings
            if entry.kind == ListCoin.kind and entry.refusal is None
        }

    def _page(self, after_seq: int) -> list[JournalRow]:
        with translated("read"):
            found = self._connection.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after_seq, self.head.seq, PAGE_ENTRIES),
            ).fetchall()
        if not found:
            raise LedgerCorrupt(f"entry {after_seq + 1} is missing from the journal")
        return [JournalRow(*row) for row in found]

    def _hash_of(self, seq: int) -> bytes:
        if seq == 0:
            return genesis_hash(self.ledger_id)
        with translated("read"):
            row = self._connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()
        if row is None:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return bytes(row[0])
