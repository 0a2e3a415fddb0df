"""Reading the journal of a ledger file in order, beside its writer."""

from __future__ import annotations

from pathlib import Path

from spotledger.storage.journal_reader import PAGE_ENTRIES, JournalReader, JournalRow
from spotledger.storage.sqlite.file import open_to_read, translated
from spotledger.storage.sqlite.reads import head_row, ledger_row


class SqliteJournal(JournalReader):
    """The journal of a ledger file, read in short transactions, which do not hold up checkpoints."""

    def __init__(self, path: Path) -> None:
        """
        Open the ledger file at *path*; another process may own it and write to it.

        Raises:
            SchemaMismatch: It is not a ledger, or of another version.
            StoreUnavailable: It cannot be read.
            LedgerCorrupt: It is damaged.
        """
        self._connection = open_to_read(path)
        try:
            with translated("read"):
                self.ledger_id, self.epoch, _, self._sealed_to = ledger_row(self._connection)
                self.head = head_row(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _listings(self, up_to_seq: int) -> list[bytes]:
        with translated("read"):
            sealed = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM coin JOIN entry USING (seq) WHERE coin.seq <= ?",
                (min(up_to_seq, self._sealed_to),),
            )
            listings = [body for (body,) in sealed]
        for seq in range(self._sealed_to, up_to_seq, PAGE_ENTRIES):
            listings += [row.body for row in self._page(seq) if row.seq <= up_to_seq]
        return listings

    def _read_page(self, after_seq: int) -> list[JournalRow]:
        with translated("read"):
            found = self._connection.execute(
                "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after_seq, self.head.seq, PAGE_ENTRIES),
            ).fetchall()
        return [JournalRow(*row) for row in found]

    def _read_hash(self, seq: int) -> bytes | None:
        with translated("read"):
            row = self._connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else bytes(row[0])
