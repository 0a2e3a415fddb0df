"""
The audit of a ledger on PostgreSQL: derive everything about money from the journal again, and compare.

The journal is read in short transactions, a segment at a time, and what is final of a segment (keys, history, closed
holds) is compared as it is read. The tables that change with each sealing are compared in one snapshot with the last
sealed entry, and the rest of the journal is read behind it. So an audit runs beside the nodes that write, and blocks
none of them. An audit with a pace catches up until little is left for a snapshot, which it reads without a pause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from spotledger.audit.driver import Driver, EntryRow
from spotledger.audit.findings import advice_on_database
from spotledger.audit.keys import KeySpool
from spotledger.audit.postgres.credentials import CredentialCheck
from spotledger.audit.postgres.definitions import DefinitionCheck
from spotledger.audit.postgres.server import connect_audited
from spotledger.audit.postgres.source import Row, Source
from spotledger.audit.postgres.tables import DerivedTables
from spotledger.audit.ranges import SEGMENT_LIMIT
from spotledger.audit.report import KnownHead, Pace, Progress, Report
from spotledger.audit.tables import compare_with_itself
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres.connection import is_damage, translated
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES
from spotledger.storage.seen_head import Seen

#: Entries that are read at once.
PAGE_ENTRIES: Final = 2_000
#: How many entries an audit with a pace leaves for the snapshot.
SNAPSHOT_ENTRIES: Final = 10_000
#: An audit with a pace gives up if more than this share of what it read has been written meanwhile: it would not end.
OUTGROWN_SHARE: Final = 0.8
_TABLES: Final = [
    "entry",
    "sealed",
    "ledger",
    "history",
    "balance",
    "hold",
    "open_hold",
    "coin",
    "customer",
    "reversal",
]


def audit_database(
    url: str,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    known_heads: Iterable[KnownHead] = (),
    entries_per_second: int = 0,
    limit_seconds: float | None = None,
    while_copied: bool = False,
    seen: Seen | None = None,
) -> Report:
    """
    Audit the ledger in the database at *url*.

    Memory is bounded by the accounts and coins that were ever used, the open holds, the customers and one segment;
    the keys go to a temporary file, 16 bytes an entry. Writes nothing to the database.

    Args:
        url: A PostgreSQL URL, of a standby too.
        progress: Called after each page of entries.
        known_heads: Entries as noted earlier, to be compared.
        entries_per_second: The highest rate of reading entries; 0 for no limit. The tables that change with the
            journal are read without a limit, at the end. Incomplete if the ledger grows nearly as fast.
        limit_seconds: Stop, incomplete, after this time.
        while_copied: An embedded ledger is being copied into the database; else such a copy makes it incomplete.
        seen: What a node saw last: the journal has to have that entry, and another server is not audited.

    Returns:
        The report; no state of the database makes it raise.
    """
    pace = Pace(entries_per_second, limit_seconds)
    return _DatabaseAudit(url, progress, known_heads, pace, while_copied=while_copied, seen=seen).run()


def _shown_address(url: str) -> str:
    """Return where the database is, without its password."""
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


class _DatabaseAudit(Driver):
    """One audit of one database."""

    _source: Source
    _tables: DerivedTables

    def __init__(
        self,
        url: str,
        progress: Callable[[Progress], None],
        known_heads: Iterable[KnownHead],
        pace: Pace,
        *,
        while_copied: bool,
        seen: Seen | None,
    ) -> None:
        super().__init__(_shown_address(url), progress, known_heads, pace)
        self._url = url
        self._while_copied = while_copied
        self._seen = seen
        #: How many entries were read.
        self._taken = 0

    def run(self) -> Report:
        """Examine everything, and return the report, with advice on what was found."""
        report = super().run()
        report.advice = advice_on_database(self._findings)
        return report

    def _examine(self) -> None:
        try:
            connection, known_heads = connect_audited(self._url, self._seen)
            self._known_heads.update((known.seq, known.hash) for known in known_heads)
            with connection, translated("audited"):
                self._source = Source(connection, self._findings)
                self._examine_database()
        except StoreUnavailable as error:
            self._findings.leave_out(f"the rest: {error.message}")
        except LedgerCorrupt as error:
            self._note("page_damaged", None, "database", str(error), "what was written")

    def _examine_database(self) -> None:
        source = self._source
        # Between two queries the audit may compute for longer than a node that writes may be silent.
        source.connection.execute("SET idle_in_transaction_session_timeout = 0")
        with source.examining("the definitions of tables and triggers"):
            DefinitionCheck(source.connection, self._findings).compare()
        missing = [name for name in _TABLES if self._rows("SELECT to_regclass(%s)", name) == [(None,)]]
        if missing:
            self._leave_out_tables(missing)
            return
        with source.noting("the journal and what is derived from it"):
            ledger_id = self._ledger_id()
            if ledger_id is None:
                return
            self._begin(ledger_id, self._body_of)
            try:
                with closing(KeySpool()) as spool:
                    self._tables = DerivedTables(source, self._journal, self._findings, spool)
                    self._examine_entries(spool)
            finally:
                self._count()

    def _examine_entries(self, spool: KeySpool) -> None:
        # Only what is sealed: the tables have no more.
        if self._pace.is_set:
            self._catch_up(self._sealed_seq)
        else:
            self._read_to((self._sealed_seq() // SEGMENT_ENTRIES) * SEGMENT_ENTRIES, self._last_seq())
        with self._snapshot():
            last_seq = self._last_seq()
            self._report.sealed_to = self._sealed_seq()
            self._read_to(self._report.sealed_to, last_seq, in_snapshot=True)
            self._tables.compare_at_end(last_seq)
            with self._source.examining("the row that says what is sealed"):
                self._check_sealed(last_seq)
        self._tables.is_sealed = False
        if self._pace.is_set:
            self._catch_up(self._last_seq)
        with self._snapshot():
            last_seq = self._report.head_seq = self._last_seq()
            self._read_to(last_seq, last_seq, in_snapshot=True)
            self._check_end()
            compare_with_itself(self._journal, self._findings)
            with self._source.examining("the epoch"):
                self._check_rows_of_ledger()
            self._check_copy()
            CredentialCheck(self._source, self._journal, self._findings).check()
        for digest in spool.repeated():
            self._note("key_repeated", None, "key", f"twice: {digest.hex()}", "once")

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Read all of the block in one snapshot."""
        with self._source.connection.transaction():
            self._source.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    def _rows(self, query: str, *values: Any) -> list[Row]:
        return self._source.rows(query, *values)

    # --- tables of one row ------------------------------------------------------------------------------

    def _ledger_id(self) -> str | None:
        """Return which ledger it is; None, noted, if that is not known."""
        row = self._only_row("ledger", "ledger_id")
        if row is None:
            self._leave_out_entries()
            return None
        ledger_id = row[0]
        if not isinstance(ledger_id, str) or not ledger_id:
            self._note("ledger_row_wrong", None, "ledger", f"ledger_id {ledger_id!r}", "a text")
            self._findings.leave_out("the entries: which ledger it is, is not known")
            return None
        return ledger_id

    def _check_rows_of_ledger(self) -> None:
        """Check what the row of the ledger says besides its id."""
        row = self._only_row("ledger", "epoch_seq, syncs, segment_entries")
        if row is not None:
            self._check_epoch(row[0])
            if not isinstance(row[1], int) or row[1] < 0:
                self._note("ledger_row_wrong", None, "ledger", f"syncs {row[1]}", "0 or more")
            size = row[2]
            if not isinstance(size, int) or not 1 <= size <= SEGMENT_LIMIT:
                found = f"segments of {size} entries"
                self._note("ledger_row_wrong", None, "ledger", found, f"of 1 to {SEGMENT_LIMIT}")
        for (number,) in self._rows("SELECT number FROM clock_trust"):
            if not isinstance(number, int) or number < 0:
                self._note("ledger_row_wrong", None, "clock_trust", f"number {number}", "0 or more")
        for table in ("ledger", "sealed", "clock_trust"):
            [(count,)] = self._rows(f"SELECT count(*) FROM {table}")
            if count > 1:
                self._note("row_repeated", None, table, f"{count} rows", "one row")

    def _sealed_seq(self) -> int:
        """Return the last sealed entry as far as the row that says so can be; what cannot be is noted later."""
        row = self._only_row("sealed", "seq")
        seq = row[0] if row is not None else None
        return min(seq, self._last_seq()) if isinstance(seq, int) and seq > 0 else 0

    def _check_sealed(self, last_seq: int) -> None:
        """Compare the row that says what is sealed with the entry that it names, which was read last."""
        row = self._only_row("sealed", "seq, hash")
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
        link = self._journal.link if seq else self._genesis
        if kept_hash != link and link is not None:
            self._note("books_differ", seq, "sealed", kept_hash, link)

    def _only_row(self, table: str, columns: str) -> Row | None:
        """Return the row of *table* that the nodes read, or None."""
        rows = self._rows(f"SELECT {columns} FROM {table} WHERE only_row = 1")
        return rows[0] if rows else None

    def _check_copy(self) -> None:
        """Look for the mark of a copy that has not ended: no node starts on such a database."""
        with self._source.examining("the mark of a copy"):
            for (seq,) in self._rows("SELECT seq FROM copy_going_on"):
                if not isinstance(seq, int) or seq < self._report.head_seq:
                    found = f"a copy up to entry {seq}"
                    self._note("ledger_row_wrong", None, "copy_going_on", found, "no row, as later entries were booked")
                elif not self._while_copied:
                    self._findings.leave_out(
                        f"what comes later: an embedded ledger is being copied into the database, up to entry {seq};"
                        " if that was interrupted, run the same spotledger copy again"
                    )

    # --- the journal ------------------------------------------------------------------------------------

    def _last_seq(self) -> int:
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM entry")[0][0])

    def _body_of(self, seq: int) -> bytes | None:
        rows = self._rows("SELECT body FROM entry WHERE seq = %s", seq)
        body = _as_bytes(rows[0][0]) if rows else None
        return body if isinstance(body, bytes) else None

    def _catch_up(self, find_last: Callable[[], int]) -> None:
        """Read at the pace that is set until few enough entries are left for a snapshot, up to the last to be found."""
        before: int | None = None
        while (left := (last_seq := find_last()) - self._journal.seq) > SNAPSHOT_ENTRIES:
            if before is not None and left > before * OUTGROWN_SHARE:
                raise StoreUnavailable(
                    f"{left} entries were written while {before} were read at the pace that is set;"
                    " a higher audit_entries_per_second would let the audit end"
                )
            before = left
            self._read_to(last_seq, last_seq)

    def _read_to(self, last: int, last_seq: int, *, in_snapshot: bool = False) -> None:
        """Read the entries up to *last*, and compare each whole segment; *in_snapshot*, the unfinished one too."""
        journal, tables = self._journal, self._tables
        page = PAGE_ENTRIES if in_snapshot else self._pace.chunk(PAGE_ENTRIES)
        if in_snapshot and journal.seq == last > tables.first - 1:
            tables.compare_segment()
        while journal.seq < last:
            border = (journal.seq // SEGMENT_ENTRIES + 1) * SEGMENT_ENTRIES
            if not self._take_page(journal.seq + 1, min(journal.seq + page, border, last)):
                self._skip_gap(min(journal.seq + page, border, last), last)
            self._tell_progress(last_seq)
            if journal.seq == border or (in_snapshot and journal.seq == last):
                tables.compare_segment()
            if in_snapshot:
                self._pace.check_time(journal.seq)
            else:
                self._pace.rest(self._taken)

    def _skip_gap(self, empty_to: int, last: int) -> None:
        """Go on with the next entry there is behind *empty_to*, which may be far away; none is above *last*."""
        self._tables.compare_segment()
        [(next_seq,)] = self._rows("SELECT min(seq) FROM entry WHERE seq > %s AND seq <= %s", empty_to, last)
        self._journal.take([], last if next_seq is None else int(next_seq) - 1)
        self._tables.pass_over()

    def _take_page(self, first: int, last: int) -> bool:
        """Take the entries from *first* to *last*; return False, and take nothing, if there are none."""
        found = [(int(seq), *values) for seq, *values in self._entries(first, last)]
        if not found:
            return False
        self._taken += len(found)
        self._tables.digests.update((getattr(digest, "bytes", digest), seq) for seq, _, _, digest in found)
        rows: list[EntryRow] = [(seq, _as_bytes(body), kept_hash) for seq, body, kept_hash, _ in found]
        self._check_known_heads(rows)
        self._journal.take(rows, last)
        return True

    def _entries(self, first: int, last: int) -> list[Row]:
        """Return the entries from *first* to *last*; if a page of the server is damaged, those that can be read."""
        query = "SELECT seq, body, hash, key_digest FROM entry WHERE seq >= %s AND seq <= %s ORDER BY seq"
        connection = self._source.connection
        try:
            with connection.transaction():
                return self._rows(query, first, last)
        except psycopg.Error as error:
            if not is_damage(error):
                raise
        found: list[Row] = []
        for seq in range(first, last + 1):
            with self._source.examining(f"entry {seq}"):
                found += self._rows(query, seq, seq)
        return found


def _as_bytes(body: Any) -> Any:
    """Return the bytes of a text; what is none stays as it is, and the pass says so."""
    return body.encode() if isinstance(body, str) else body
