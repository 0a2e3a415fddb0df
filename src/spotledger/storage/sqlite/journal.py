"""Reading the journal of an embedded ledger in order, beside the process that writes to it."""

from __future__ import annotations

from pathlib import Path

import msgspec

from spotledger.domain.operations import ListCoin
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.journal_reader import PAGE_ENTRIES, JournalReader, JournalRow
from spotledger.storage.sqlite.file import JOURNAL, open_reader, translated


class SqliteJournal(JournalReader):
    """The journal in a file; a transaction is short, so the write-ahead log can be folded into the file."""

    def __init__(self, path: Path) -> None:
        """
        Open the journal at *path*; another process may own it and write to it.

        Raises:
            SchemaMismatch: It is no journal, or of another version.
            StoreUnavailable: It cannot be read.
            LedgerCorrupt: It is damaged.
        """
        self._connection = open_reader(path, JOURNAL)
        try:
            with translated("read"):
                ledger = self._connection.execute("SELECT ledger_id, epoch FROM ledger").fetchall()
                head = self._connection.execute("SELECT seq, hash, booked_ms FROM head").fetchall()
        except BaseException:
            self._connection.close()
            raise
        if len(ledger) != 1 or len(head) != 1:
            self._connection.close()
            raise LedgerCorrupt(f"{path} does not say which ledger it is, or where it ends")
        self.ledger_id, self.epoch = ledger[0]
        self.head = Head(*head[0])

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _listings(self, up_to_seq: int) -> list[bytes]:
        marker = msgspec.json.encode({"kind": ListCoin.kind})[1:-1].decode()
        with translated("read"):
            found = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM entry WHERE seq <= ? AND instr(body, ?) > 0"
                " AND body ->> '$.kind' = ? ORDER BY seq",
                (up_to_seq, marker, ListCoin.kind),
            )
            return [body for (body,) in found]

    def _read_page(self, after_seq: int) -> list[JournalRow]:
        with translated("read"):
            found = self._connection.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after_seq, self.head.seq, PAGE_ENTRIES),
            ).fetchall()
        return [JournalRow(*row) for row in found]

    def _read_hash(self, seq: int) -> bytes | None:
        with translated("read"):
            rows = self._connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchall()
        return bytes(rows[0][0]) if rows else None
