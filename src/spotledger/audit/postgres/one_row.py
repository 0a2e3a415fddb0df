"""The tables of one row: which ledger it is, what is sealed, and which clock the nodes trust."""

from __future__ import annotations

from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.postgres.queries import Queries, Row
from spotledger.audit.source import SEGMENT_LIMIT


class OneRowTables:
    """Those of one database."""

    def __init__(self, queries: Queries, findings: Findings) -> None:
        """Read them with *queries*; what is wrong is added to *findings*."""
        self._rows = queries.rows
        self._note = findings.add

    def of(self, table: str, columns: str) -> Row | None:
        """Return the row of *table* that the nodes read, or None."""
        rows = self._rows(f"SELECT {columns} FROM {table} WHERE only_row = 1")
        return rows[0] if rows else None

    def check_ledger(self, syncs: object, segment_entries: object) -> None:
        """Check what the row of the ledger says besides its id and its epoch."""
        if not isinstance(syncs, int) or syncs < 0:
            self._note("ledger_row_wrong", None, "ledger", f"syncs {syncs}", "0 or more")
        if not isinstance(segment_entries, int) or not 1 <= segment_entries <= SEGMENT_LIMIT:
            found = f"segments of {segment_entries} entries"
            self._note("ledger_row_wrong", None, "ledger", found, f"of 1 to {SEGMENT_LIMIT}")

    def check_counts(self) -> None:
        """Check the trusted clock, and that each of the tables has one row."""
        for (number,) in self._rows("SELECT number FROM clock_trust"):
            if not isinstance(number, int) or number < 0:
                self._note("ledger_row_wrong", None, "clock_trust", f"number {number}", "0 or more")
        for table in ("ledger", "sealed", "clock_trust"):
            [(count,)] = self._rows(f"SELECT count(*) FROM {table}")
            if count > 1:
                self._note("row_repeated", None, table, f"{count} rows", "one row")

    def check_sealed(self, journal: JournalPass, last_seq: int) -> None:
        """Compare the row that says what is sealed with the entry that it names, which *journal* read last."""
        row = self.of("sealed", "seq, hash")
        if row is None:
            self._note("books_differ", None, "sealed", "no row", "one row")
            return
        seq, kept_hash = row
        if not isinstance(seq, int) or seq < 0:
            self._note("sealed_to_wrong", None, "sealed", f"entry {seq}", f"0 to {last_seq}")
            return
        if seq > last_seq:
            self._note("journal_cut", last_seq, "journal", f"its last entry is {last_seq}", f"{seq}, which was sealed")
            return
        link = journal.link if seq else journal.genesis
        if kept_hash != link and link is not None:
            self._note("books_differ", seq, "sealed", kept_hash, link)
