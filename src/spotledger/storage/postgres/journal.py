"""Reading the journal of a ledger on PostgreSQL in order, beside its writers."""

from __future__ import annotations

from spotledger.domain.operations import ListCoin
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import decode_changes, epochs_of_row, genesis_hash
from spotledger.storage.journal_reader import PAGE_ENTRIES, JournalReader, JournalRow
from spotledger.storage.postgres.connection import Connection, translated


class PostgresJournal(JournalReader):
    """The journal in a database; each page is its own transaction, so no snapshot is held for long."""

    def __init__(self, connection: Connection) -> None:
        """
        Take over *connection*, in autocommit and to a database with a ledger; a standby will do.

        Raises:
            LedgerCorrupt: The row of the ledger or what says what is sealed is missing, the journal ends before what
                was sealed, or the server found its files damaged.
            StoreUnavailable: The database cannot be read.
        """
        self._connection = connection
        with translated("read"):
            found = connection.execute(
                "SELECT ledger_id, sealed.seq, coalesce(last.seq, 0), last.hash, last.body, epoch_seq, begun.body"
                " FROM ledger JOIN sealed USING (only_row) LEFT JOIN entry AS begun ON begun.seq = epoch_seq"
                " LEFT JOIN LATERAL (SELECT seq, hash, body FROM entry ORDER BY seq DESC LIMIT 1) AS last ON true"
            ).fetchall()
        if not found:
            raise LedgerCorrupt("the row of the ledger is missing, or the one that says what is sealed")
        self.ledger_id, sealed_seq, seq, link, last, epoch_seq, body = found[0]
        if seq < sealed_seq:
            raise LedgerCorrupt(f"the journal ends at entry {seq}, and is sealed up to entry {sealed_seq}")
        self.epochs = epochs_of_row(epoch_seq, body)
        self.head = Head(0, genesis_hash(self.ledger_id), 0)
        if seq:
            self.head = Head(seq, bytes(link), decode_changes(last.encode()).booked_ms)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _listings(self, up_to_seq: int) -> list[bytes]:
        with translated("read"):
            # Those that are not sealed are looked for in the journal; other entries may have the word, too.
            found = self._connection.execute(
                "SELECT body FROM coin JOIN entry USING (seq) WHERE coin.seq <= %s"
                " UNION ALL SELECT body FROM entry WHERE seq > (SELECT seq FROM sealed) AND seq <= %s AND"
                " strpos(body, %s) > 0",
                (up_to_seq, up_to_seq, ListCoin.kind),
            ).fetchall()
        return [body.encode() for (body,) in found]

    def _read_page(self, after_seq: int) -> list[JournalRow]:
        with translated("read"):
            found = self._connection.execute(
                "SELECT seq, body, hash FROM entry WHERE seq > %s AND seq <= %s ORDER BY seq LIMIT %s",
                (after_seq, self.head.seq, PAGE_ENTRIES),
                binary=True,
            ).fetchall()
        return [JournalRow(seq, body.encode(), bytes(link)) for seq, body, link in found]

    def _read_hash(self, seq: int) -> bytes | None:
        with translated("read"):
            found = self._connection.execute("SELECT hash FROM entry WHERE seq = %s", (seq,)).fetchall()
        return bytes(found[0][0]) if found else None
