"""
A database as the source of an audit.

The journal is read in short transactions. The tables that change with each sealing are compared in one snapshot with
the last sealed entry, and the end of the journal is read in another one. An audit blocks none of the nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from spotledger.audit.books import Line, stored_units
from spotledger.audit.driver import Audit
from spotledger.audit.findings import Findings, advice_on_database
from spotledger.audit.journal import JournalPass
from spotledger.audit.postgres.credentials import CredentialCheck
from spotledger.audit.postgres.definitions import DefinitionCheck
from spotledger.audit.postgres.one_row import OneRowTables
from spotledger.audit.postgres.queries import Queries
from spotledger.audit.postgres.server import connect_audited
from spotledger.audit.report import KnownHead, Pace, Progress, Report
from spotledger.audit.source import BalanceRow, EntryRow, HoldRow, RowsAsOf, Source
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres import statements
from spotledger.storage.postgres.connection import is_damage, translated
from spotledger.storage.seen_head import Seen

#: Entries that are read at once.
PAGE_ENTRIES: Final = 2_000
#: How many entries an audit with a pace leaves for the snapshot.
SNAPSHOT_ENTRIES: Final = 10_000
#: Rows of one kind that are looked at one by one, of those that should not be there at all.
_STRAY_LIMIT: Final = 1_000
_TABLES: Final = (
    "entry", "sealed", "ledger", "history", "balance", "hold", "open_hold", "coin", "customer", "reversal",
)  # fmt: skip
_LISTED: Final = {"coin": "coin, scale, seq", "customer": "customer, seq", "reversal": "seq, by_seq"}


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
    source = DatabaseSource(url, Findings(), while_copied=while_copied, seen=seen)
    return Audit(source, _shown_address(url), progress, known_heads, Pace(entries_per_second, limit_seconds)).run()


def _shown_address(url: str) -> str:
    """Return where the database is, without its password."""
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


class DatabaseSource(Source):
    """One database."""

    _queries: Queries
    _one_row: OneRowTables

    def __init__(self, url: str, findings: Findings, *, while_copied: bool = False, seen: Seen | None = None) -> None:
        """Read the database at *url*; the rest is as in :func:`audit_database`."""
        super().__init__(findings)
        self.page_entries = PAGE_ENTRIES
        self.snapshot_entries = SNAPSHOT_ENTRIES
        self.segment_entries = statements.SEGMENT_ENTRIES
        self._url = url
        self._while_copied = while_copied
        self._seen = seen
        #: The digests of the keys of the entries that were read since the last comparison, as their rows have them.
        self._digests: set[tuple[Any, int]] = set()

    # --- the audit as a whole -----------------------------------------------------------------------------

    def run(self, examine: Callable[[], None]) -> None:
        """Connect, call *examine*, and close the connection; what is in the way is noted."""
        try:
            connection, self.known_heads = connect_audited(self._url, self._seen)
            with connection, translated("audited"):
                # Between two queries the audit may compute for longer than a node that writes may be silent.
                connection.execute("SET idle_in_transaction_session_timeout = 0")
                self._queries = Queries(connection, self.findings)
                self._one_row = OneRowTables(self._queries, self.findings)
                examine()
        except StoreUnavailable as error:
            self.findings.leave_out(f"the rest: {error.message}")
        except LedgerCorrupt as error:
            self._note("page_damaged", None, "database", str(error), "what was written")

    def noting(self, what: str) -> AbstractContextManager[None]:
        """Note what a block about *what* could not examine; only an error that ends the connection is raised."""
        return self._queries.noting(what)

    def examining(self, what: str) -> AbstractContextManager[None]:
        """Run a block in a transaction, or in a part of the one that is going on, like :meth:`noting`."""
        return self._queries.examining(what)

    def check_structure(self) -> None:
        """Compare the definitions of tables and triggers with those of the migrations."""
        with self.examining("the definitions of tables and triggers"):
            DefinitionCheck(self._queries.connection, self.findings).compare()

    def ledger_id(self) -> str | None:
        """Return which ledger it is; None, which is noted, if that is not known or a table is missing."""
        missing = [name for name in _TABLES if self._rows("SELECT to_regclass(%s)", name) == [(None,)]]
        if missing:
            self.findings.leave_out(f"the tables that are missing: {', '.join(missing)}")
            return None
        with self.noting("the row of the ledger"):
            row = self._one_row.of("ledger", "ledger_id")
            if row is not None and isinstance(row[0], str) and row[0]:
                return row[0]
            if row is None:
                self.leave_out_entries()
            else:
                self._note("ledger_row_wrong", None, "ledger", f"ledger_id {row[0]!r}", "a text")
                self.findings.leave_out("the entries: which ledger it is, is not known")
        return None

    def begin_entries(self) -> None:
        """Do nothing: what the rows of one row say is compared in one snapshot with the entries."""

    def check_end(self, journal: JournalPass) -> None:
        """Compare the rows of one row with the *journal*, and check the access keys, all in one snapshot."""
        self.head_seq = self.last_seq()
        with self.examining("the epoch"):
            row = self._one_row.of("ledger", "epoch_seq, syncs, segment_entries")
            if row is not None:
                self.check_epoch(row[0], journal)
                self._one_row.check_ledger(*row[1:])
            self._one_row.check_counts()
        self._check_copy()
        CredentialCheck(self._queries, journal, self.findings).check()

    def _check_copy(self) -> None:
        """Look for the mark of a copy that has not ended: no node starts on such a database."""
        with self.examining("the mark of a copy"):
            for (seq,) in self._rows("SELECT seq FROM copy_going_on"):
                if not isinstance(seq, int) or seq < self.head_seq:
                    found = f"a copy up to entry {seq}"
                    self._note("ledger_row_wrong", None, "copy_going_on", found, "no row, as later entries were booked")
                elif not self._while_copied:
                    self.findings.leave_out(
                        f"what comes later: an embedded ledger is being copied into the database, up to entry {seq};"
                        " if that was interrupted, run the same spotledger copy again"
                    )

    def check_beside(self, journal: JournalPass) -> None:
        """Do nothing: access keys are checked in one snapshot with the end of the journal."""

    def advice(self) -> list[str]:
        """Return what to do about the findings, as sentences."""
        return advice_on_database(self.findings)

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._queries.rows(query, *values)

    # --- the journal --------------------------------------------------------------------------------------

    def last_seq(self) -> int:
        """Return the last entry that there is now."""
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM entry")[0][0])

    def sealed_to(self) -> int:
        """Return the last sealed entry as far as the row that says so can be; what cannot be is noted later."""
        row = self._one_row.of("sealed", "seq")
        seq = row[0] if row is not None else None
        self.said_sealed_to = min(seq, self.last_seq()) if isinstance(seq, int) and seq > 0 else 0
        return self.said_sealed_to

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read all of the block in one snapshot."""
        with self._queries.connection.transaction():
            self._queries.connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield

    def entries(self, first: int, last: int) -> list[EntryRow]:
        """Return the entries from *first* to *last*; if a page of the server is damaged, those that can be read."""
        found = [(int(seq), *values) for seq, *values in self._entries(first, last)]
        self._digests.update((getattr(digest, "bytes", digest), seq) for seq, _, _, digest in found)
        return [(seq, _as_bytes(body), kept_hash) for seq, body, kept_hash, _ in found]

    def _entries(self, first: int, last: int) -> list[Any]:
        query = "SELECT seq, body, hash, key_digest FROM entry WHERE seq >= %s AND seq <= %s ORDER BY seq"
        try:
            with self._queries.connection.transaction():
                return self._rows(query, first, last)
        except psycopg.Error as error:
            if not is_damage(error):
                raise
        found: list[Any] = []
        for seq in range(first, last + 1):
            with self.examining(f"entry {seq}"):
                found += self._rows(query, seq, seq)
        return found

    def seq_after(self, seq: int, last: int) -> int | None:
        """Return the first entry behind *seq*, none above *last*; None if there is none."""
        [(found,)] = self._rows("SELECT min(seq) FROM entry WHERE seq > %s AND seq <= %s", seq, last)
        return None if found is None else int(found)

    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None if it is not there."""
        rows = self._rows("SELECT body FROM entry WHERE seq = %s", seq)
        body = _as_bytes(rows[0][0]) if rows else None
        return body if isinstance(body, bytes) else None

    # --- what is derived from it --------------------------------------------------------------------------

    def compare_keys(self, journal: JournalPass, segment: int, first: int, *, is_sealed: bool) -> None:
        """Compare the keys collected in *journal* with the digests in the rows of their entries."""
        expected, found = set(journal.keys.items()), self._digests
        self._digests = set()
        for digest, seq in sorted(expected - found, key=_seq_of):
            self._note("key_row_missing", seq, f"entry {seq}: key_digest", "another digest", digest)
        for digest, seq in sorted(found - expected, key=_seq_of):
            self._note("key_row_extra", seq, f"entry {seq}: key_digest", digest, "the digest of the entry's key")

    def compare_references(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries have which reference with the index of *segment*."""
        rows = self._rows(
            "SELECT reference, seq FROM reference WHERE segment = %s AND seq >= %s AND seq <= %s",
            segment, first, journal.seq,
        )  # fmt: skip
        expected, found = set(journal.references), set(rows)
        if len(found) < len(rows):
            self._note_repeated(f"reference {segment}", rows)
        for row in sorted(expected - found):
            self._note("reference_row_missing", row[1], _shown(f"reference {segment}", row), "no row", "a row")
        for row in sorted(found - expected, key=repr):
            self._note("reference_row_extra", row[1], _shown(f"reference {segment}", row), "a row", "no row")

    def compare_history(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries touched which lines with the history of *segment*."""
        # Rows of entries of other segments are found at the end.
        rows = self._rows(
            "SELECT customer, account, coin, seq FROM history WHERE segment = %s AND seq >= %s AND seq <= %s",
            segment, first, journal.seq,
        )  # fmt: skip
        expected = {
            (*line.account, line.coin, first + place) for line in journal.touched for place in line.places or ()
        }
        found = set(rows)
        if len(found) < len(rows):
            self._note_repeated(f"history {segment}", rows)
        for row in sorted(expected - found):
            self._note("history_row_missing", row[3], _shown(f"history {segment}", row), "no row", "a row")
        for row in sorted(found - expected, key=repr):
            self._note("history_row_extra", row[3], _shown(f"history {segment}", row), "a row", "no row")

    def _note_repeated(self, table: str, rows: Iterable[Any]) -> None:
        seen: set[Any] = set()
        for row in rows:
            if row in seen:
                self._note("row_repeated", None, _shown(table, row), "a second row", "one row")
            seen.add(row)

    def holds_opened(self, first: int, last: int) -> Iterable[HoldRow]:
        """Give the rows of the holds with ids from *first* to *last*."""
        query = f"SELECT {statements.HOLD_COLUMNS} FROM hold WHERE hold_id >= %s AND hold_id <= %s"
        return [_hold(row) for row in self._rows(query, first, last)]

    def holds_of(self, ids: Sequence[int]) -> RowsAsOf:
        """Return the rows of the holds with these *ids*."""
        query = f"SELECT {statements.HOLD_COLUMNS} FROM hold WHERE hold_id = ANY (%s)"
        return RowsAsOf(0, [_hold(row) for row in self._rows(query, list(ids))])

    def balances(self) -> Iterator[RowsAsOf]:
        """Give all balances."""
        rows = self._rows('SELECT customer, account, coin, available, "freeze", seq FROM balance')
        yield RowsAsOf(0, [(*row[:3], _units(row[3]), _units(row[4]), row[5]) for row in rows])

    def check_line(self, journal: JournalPass, line: Line, row: BalanceRow, sealed_to: int) -> None:
        """Do nothing: a balance has no more than was compared."""

    def listed(self, table: str) -> Iterator[RowsAsOf]:
        """Give the rows of ``coin``, ``customer`` or ``reversal``: a name, then what else is listed of it."""
        yield RowsAsOf(0, self._rows(f"SELECT {_LISTED[table]} FROM {table}"))

    def check_derived(self, journal: JournalPass) -> None:
        """Compare the lists of open holds, look for rows that cannot be, and check what is said to be sealed."""
        with self.examining("the open holds"):
            self._compare_open_holds(journal)
        with self.examining("rows of entries that do not exist"):
            self._check_extremes(journal.seq)
        with self.examining("the row that says what is sealed"):
            self._one_row.check_sealed(journal, self.last_seq())

    def _compare_open_holds(self, journal: JournalPass) -> None:
        rows = self._rows("SELECT hold_id FROM hold WHERE closed_seq IS NULL")
        is_open = {hold_id for (hold_id,) in rows}
        for hold_id in is_open - journal.holds.keys():
            self._note("hold_row_extra", _number(hold_id), f"hold {hold_id}", "open", "no open hold")
        for hold_id in sorted(journal.holds.keys() - is_open):
            self._note("hold_row_missing", hold_id, f"hold {hold_id}", "not open", "open")
        expected = {hold_id: (hold.line.account[0], hold.expires_ms) for hold_id, hold in journal.holds.items()}
        rows = self._rows("SELECT hold_id, customer, expires_ms FROM open_hold")
        found: Mapping[Any, Any] = {row[0]: tuple(row[1:]) for row in rows}
        self._note_repeated("open_hold", [row[:1] for row in rows])
        for hold_id in sorted(found.keys() - expected.keys(), key=repr):
            self._note("hold_owner_row_extra", _number(hold_id), f"open_hold {hold_id}", found[hold_id], "no row")
        for hold_id in sorted(expected.keys() - found.keys()):
            self._note("hold_owner_row_missing", hold_id, f"open_hold {hold_id}", "no row", expected[hold_id])
        for hold_id in sorted(expected.keys() & found.keys()):
            if found[hold_id] != expected[hold_id]:
                self._note("hold_row_differs", hold_id, f"open_hold {hold_id}", found[hold_id], expected[hold_id])

    def _check_extremes(self, sealed_to: int) -> None:
        """Look for rows of entries that do not exist, and for rows of the history in a segment that is not theirs."""
        for table, column, low, high in (
            ("entry", "seq", 1, self.last_seq()),
            ("hold", "hold_id", 1, sealed_to),
            ("history", "segment", 0, max(0, sealed_to - 1) // self.segment_entries),
            ("history", "seq", 1, sealed_to),
            ("reference", "segment", 0, max(0, sealed_to - 1) // self.segment_entries),
            ("reference", "seq", 1, sealed_to),
        ):
            # Three counts, each of which an index serves.
            counts = [f"(SELECT count(*) FROM {table} WHERE {column} {which})" for which in ("< %s", "> %s", "IS NULL")]
            [(count,)] = self._rows(f"SELECT {' + '.join(counts)}", low, high)
            if count:
                code = "entry_out_of_place" if table == "entry" else "rows_beyond_journal"
                self._note(code, None, table, f"{count} rows with {column} elsewhere", f"from {low} to {high}")
        for table, columns in (("history", "customer, account, coin, seq"), ("reference", "reference, seq")):
            strays = self._rows(
                f"SELECT segment, {columns} FROM {table} WHERE segment IS DISTINCT FROM (seq - 1) / %s LIMIT %s",
                self.segment_entries, _STRAY_LIMIT,
            )  # fmt: skip
            for segment, *row in strays:
                where, found = _shown(f"{table} {segment}", row), f"in segment {segment}"
                self._note(f"{table}_row_extra", _number(row[-1]), where, found, "in the segment of its entry")


def _as_bytes(body: Any) -> Any:
    """Encode *body* if it is text. Anything else is returned unchanged; the pass reports it."""
    return body.encode() if isinstance(body, str) else body


def _hold(row: Any) -> HoldRow:
    return (*row[:4], _units(row[4]), _units(row[5]), *row[6:])


def _units(value: object) -> object:
    """Return the whole number in a column of units, or, if *value* is not one, its text for a finding to show."""
    units = stored_units(value)
    return str(value) if units is None else units


def _number(name: object) -> int | None:
    """Return *name* if it is the number of an entry, as those of holds are."""
    return name if isinstance(name, int) else None


def _seq_of(row: tuple[Any, int]) -> int:
    return row[1]


def _shown(table: str, names: Iterable[object]) -> str:
    return f"{table} {' '.join(map(str, names))}"
