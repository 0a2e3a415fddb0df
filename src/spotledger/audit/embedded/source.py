"""
The files of a ledger as the source of an audit.

They are only read, in short transactions and up to the entry that is the last one at the start, so an audit runs beside
the process that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from spotledger.audit.books import Line, stored_units
from spotledger.audit.driver import Audit
from spotledger.audit.embedded.files import check_access_keys, check_backup, check_files, check_logs, check_note
from spotledger.audit.embedded.tables import BucketTables
from spotledger.audit.findings import Findings, advice_on
from spotledger.audit.journal import JournalPass
from spotledger.audit.report import CHUNK_ENTRIES, KnownHead, Pace, Progress, Report
from spotledger.audit.source import SEGMENT_LIMIT, BalanceRow, EntryRow, HoldRow, ReadAhead, RowsAsOf, Source
from spotledger.storage.encoding import column, genesis_hash
from spotledger.storage.sqlite.audit import AuditFile, HeadRow, LedgerRow
from spotledger.storage.sqlite.books import BooksFacts
from spotledger.storage.sqlite.buckets import OWNER_BUCKETS
from spotledger.storage.sqlite.raw import Damaged, Row, Unreadable

#: The module of a process that reads ranges ahead.
READER: Final = f"{__package__}.reader"


def audit_file(
    path: str | Path,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    known_heads: Iterable[KnownHead] = (),
    entries_per_second: int = 0,
    limit_seconds: float | None = None,
    processes: int = 1,
) -> Report:
    """
    Audit the ledger with the journal at *path*, and the files beside it; or a backup.

    Memory is bounded by the accounts and coins that were ever used, the open holds, the customers and one segment;
    the keys go to a temporary file, 16 bytes an entry. Writes nothing to the ledger.

    Args:
        path: The journal, ``journal.db`` in a data folder, or a backup.
        progress: Called after each page of entries.
        known_heads: Entries as noted earlier, to be compared.
        entries_per_second: The highest rate of reading; 0 for no limit.
        limit_seconds: Stop, incomplete, after this time.
        processes: How many processes read, if there are enough sealed segments. With 1, and with a limited rate, only
            this one. The report is the same.

    Returns:
        The report; no state of the files makes it raise.
    """
    pace = Pace(entries_per_second, limit_seconds)
    return Audit(EmbeddedSource(path, Findings()), str(path), progress, known_heads, pace, processes).run()


class EmbeddedSource(Source):
    """The files of one ledger."""

    page_entries = CHUNK_ENTRIES
    snapshot_entries = 0  # nothing changes that has to be read in one snapshot
    second_balance = "balance_row_extra"

    _file: AuditFile
    _ledger: LedgerRow
    _head: HeadRow | None = None
    _last_seq: int = 0
    _sealed_to: int = 0
    _buckets: BucketTables
    has_tables = False  # until the books are found

    def __init__(self, path: str | Path, findings: Findings) -> None:
        """Read the ledger with the journal at *path*."""
        super().__init__(findings)
        self._path = Path(path)

    # --- the audit as a whole -----------------------------------------------------------------------------

    def run(self, examine: Callable[[], None]) -> None:
        """Open the files, call *examine*, and close them; what is in the way of opening is noted."""
        try:
            with self._opened() as self._file:
                examine()
        except Unreadable as error:
            self.findings.unreadable(error, code="file_damaged")

    def _opened(self) -> AuditFile:
        try:
            return AuditFile(self._path)
        except Unreadable:
            check_logs(self._path, self.findings)  # a log that is damaged may be why
            raise

    def noting(self, what: str) -> AbstractContextManager[None]:
        """Note what a block about *what* could not examine, and go on behind it."""
        return self.findings.noting(what)

    def check_structure(self) -> None:
        """Check the files as files; SQLite takes a damaged log for a short one, and changes none."""
        check_logs(self._path, self.findings)
        check_files(self._file, self.findings)

    def ledger_id(self) -> str | None:
        """Return which ledger it is; None, which is noted, if the entries cannot be read in its segments."""
        ledger = self._file.journal.ledger()
        if ledger is None:
            self.leave_out_entries()
            return None
        self._ledger = ledger
        self.segment_entries = ledger.segment_entries
        if 1 <= ledger.segment_entries <= SEGMENT_LIMIT:
            return ledger.ledger_id
        found = f"segments of {ledger.segment_entries} entries"
        self._note("ledger_row_wrong", None, "ledger", found, f"of 1 to {SEGMENT_LIMIT}")
        self.findings.leave_out(f"the entries: a segment has {ledger.segment_entries} of them")
        return None

    def begin_entries(self) -> None:
        """Compare head and books with the first and the last entry, up to which is read."""
        # The books first: meanwhile segments are sealed, none before all of its entries are there.
        facts: list[BooksFacts | None] = []
        with self.findings.noting("the books"):
            facts = [None if self._file.books is None else self._file.books.facts()]
        self._check_extent()
        with self.findings.noting("the books"):
            for found in facts:
                self._check_books(found)

    def _check_extent(self) -> None:
        """Compare the head with the first and the last entry."""
        journal = self._file.journal
        with journal.one_instant():
            first_seq, self._last_seq = journal.extent()
            with self.findings.noting("the head"):
                self._head = journal.head()
                self._check_head_seq()
        if first_seq is not None and first_seq < 1:
            self._note("entry_out_of_place", first_seq, "entry", f"entry {first_seq}", "entry 1 as the first")

    def _check_head_seq(self) -> None:
        """Compare the number of the head with that of the last entry."""
        last_seq = self._last_seq
        if self._head is None:
            self._note("head_missing", None, "head", "no row", f"entry {last_seq}")
            return
        seq = self.head_seq = self._head.seq
        found = f"its last entry is {last_seq}"
        if last_seq < seq:
            self._note("journal_cut", last_seq, "journal", found, seq)
        if last_seq > seq:
            self._note("entry_beyond_head", seq + 1, "journal", found, f"entry {seq}")

    def _check_books(self, facts: BooksFacts | None) -> None:
        """Compare what the books say of themselves with the ledger, and with the entry that they end with."""
        file, size = self._file, self.segment_entries
        if file.books is None:
            if self._last_seq >= size and not file.is_alone and not file.problems:
                self.findings.leave_out("the books: there are none; the next start of the service makes them again")
            return
        self._buckets = BucketTables(file.books, self.findings, size)
        self.has_tables = True
        if facts is None:
            self._note("books_differ", None, "books", "no row", "one row")
            return
        if (facts.ledger_id, facts.segment_entries) != (self._ledger.ledger_id, size):
            found = f"ledger {facts.ledger_id}, segments of {facts.segment_entries}"
            self._note("books_differ", None, "books", found, f"ledger {self._ledger.ledger_id}, segments of {size}")
        sealed_to = self.said_sealed_to = facts.sealed_to
        last_sealed = self._last_seq - self._last_seq % size
        self._sealed_to = max(0, min(sealed_to, last_sealed)) // size * size
        if not 0 <= sealed_to <= last_sealed or sealed_to % size:
            self._note("sealed_to_wrong", None, "books", sealed_to, f"whole segments, up to entry {last_sealed}")
            return
        kept_hash = file.journal.hash_of(sealed_to) if sealed_to else genesis_hash(self._ledger.ledger_id)
        if facts.sealed_hash != kept_hash:
            self._note("books_differ", sealed_to, "books", facts.sealed_hash, kept_hash)

    def check_end(self, journal: JournalPass) -> None:
        """Compare the head, the rows of the ledger and of a backup with the *journal*, read to its last entry."""
        self._check_head_hash(journal)
        self.check_epoch(self._ledger.epoch_seq, journal)
        if self._file.is_backup:
            with self.findings.noting("the row of the backup"):
                check_backup(self._file, self.findings, self._ledger, journal.epochs)

    def _check_head_hash(self, journal: JournalPass) -> None:
        """Compare the head with the last entry read, if it has its number."""
        head, link, booked_ms = self._head, journal.link, journal.booked_ms
        if head is not None and link is not None and head.seq == journal.seq and head[1:] != (link, booked_ms):
            found, expected = f"{head.hash.hex()}, booked {head.booked_ms}", f"{link.hex()}, booked {booked_ms}"
            self._note("head_differs", head.seq, "head", found, expected)

    def check_beside(self, journal: JournalPass) -> None:
        """Check the noted head and the access keys."""
        noted_change = 0
        with self.findings.noting("the noted head"):
            noted_change = check_note(self._file, self.findings, self._ledger, journal.epochs)
        with self.findings.noting("the access keys"):
            check_access_keys(self._file, self.findings, noted_change, journal)

    def advice(self) -> list[str]:
        """Return what to do about the findings, as sentences."""
        return advice_on(self.findings)

    def ahead(self) -> ReadAhead | None:
        """Return what processes can read ahead, as far as the files can be believed before they are checked."""
        try:
            ledger, books = self._file.journal.ledger(), self._file.books
            facts = None if books is None else books.facts()
            _, last_seq = self._file.journal.extent()
        except Unreadable:
            return None
        if ledger is None or facts is None or not 1 <= ledger.segment_entries <= SEGMENT_LIMIT:
            return None
        # In a damaged journal the last entry may have any number.
        sealed_to = min(last_seq, facts.sealed_to, self._file.journal.most_entries())
        return ReadAhead((READER, str(self._path)), sealed_to, ledger.segment_entries)

    # --- the journal --------------------------------------------------------------------------------------

    def last_seq(self) -> int:
        """Return the entry that was the last one at the start."""
        return self._last_seq

    def sealed_to(self) -> int:
        """Return the last entry of the segments that were sealed at the start."""
        return self._sealed_to

    def snapshot(self) -> AbstractContextManager[None]:
        """Read each page of rows in a snapshot of its own; a longer one would hold up the writer's checkpoints."""
        return nullcontext()

    def entries(self, first: int, last: int) -> list[EntryRow]:
        """Return the entries from *first* to *last*; if a page is damaged, those that can be read one by one."""
        journal = self._file.journal
        try:
            return journal.entries(first, last)
        except Damaged as error:
            self.findings.unreadable(error)
        found: list[EntryRow] = []
        for seq in range(first, last + 1):
            with suppress(Damaged):
                found += journal.entries(seq, seq)
        return found

    def seq_after(self, seq: int, last: int) -> int | None:
        """Return the first entry behind *seq*, none above *last*; None if there is none."""
        found = self._file.journal.seq_after(seq)
        return found if found is not None and found <= last else None

    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None if it is not there or cannot be read."""
        return self._file.journal.body(seq)

    # --- what is derived from it --------------------------------------------------------------------------

    def is_comparable(self, first: int, last: int) -> bool:
        """Say whether the entries *first* to *last* are a whole segment: buckets are of whole ones."""
        return self.has_tables and last - first + 1 == self.segment_entries

    def compare_keys(self, journal: JournalPass, segment: int, first: int, *, is_sealed: bool) -> None:
        """Compare the keys collected in *journal* with the buckets of a sealed segment."""
        if is_sealed and self.is_comparable(first, journal.seq):
            self._buckets.compare_keys(journal.keys, segment, first)

    def compare_references(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries have which reference with the buckets of *segment*."""
        self._buckets.compare_references(journal.references, segment, first)

    def compare_history(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries touched which lines with the history of *segment*."""
        self._buckets.compare_history(journal, segment, first)

    def holds_opened(self, first: int, last: int) -> Iterable[HoldRow]:
        """Give the rows of the holds with ids from *first* to *last*; check the sums of their buckets."""
        page = self._buckets.books.holds_of(first, last)
        self._buckets.compare_sums("hold_bucket", [("hold", page.rows)], page.sums)
        return [_hold(row) for row in page.rows if first <= row[0] <= last]

    def holds_of(self, ids: Sequence[int]) -> RowsAsOf:
        """Return the rows of the holds with these *ids*."""
        sealed_to, rows = self._buckets.books.holds_of_ids(ids)
        return RowsAsOf(sealed_to, [_hold(row) for row in rows])

    def balances(self) -> Iterator[RowsAsOf]:
        """Give the balances; check the sums of the buckets that they and the customers are in."""
        for page in self._buckets.books.owner_pages(OWNER_BUCKETS):
            found = [("balance", page.balances), ("customer", page.customers)]
            self._buckets.compare_sums("owner_bucket", found, page.sums)
            yield RowsAsOf(page.sealed_to, [_balance(row) for row in page.balances])

    def check_line(self, journal: JournalPass, line: Line, row: BalanceRow, sealed_to: int) -> None:
        """Check in which bucket a balance is, and in which segments it says that it was touched."""
        self._buckets.check_balance(journal, line, row, sealed_to)

    def listed(self, table: str) -> Iterator[RowsAsOf]:
        """Give the rows of ``coin``, ``customer`` or ``reversal``: a name, then what else is listed of it."""
        books = self._buckets.books
        if table == "customer":
            for page in books.owner_pages(OWNER_BUCKETS):
                for bucket, customer, seq in page.customers:
                    self._buckets.check_bucket("customer", bucket, customer, seq)
                yield RowsAsOf(page.sealed_to, [row[1:] for row in page.customers])
        elif (tables := books.small_tables()) is not None:  # that the row of the books is missing is noted already
            yield RowsAsOf(tables.facts.sealed_to, tables.coins if table == "coin" else tables.reversals)

    def check_derived(self, journal: JournalPass) -> None:
        """Look for rows that cannot be, and compare what the books count with what there is."""
        with self.noting("the books"):
            self._buckets.check_extremes()
        tables = self._buckets.books.small_tables()
        if tables is not None:
            self._buckets.check_counts(tables)


def _hold(row: Row) -> HoldRow:
    if type(row[4]) is int and type(row[5]) is int:
        return row
    return (*row[:4], _units(row[4]), _units(row[5]), *row[6:])


def _balance(row: Row) -> BalanceRow:
    bucket, customer, kind, coin, available, freeze, *rest = row
    if type(available) is not int or type(freeze) is not int:
        available, freeze = _units(available), _units(freeze)
    return (customer, kind, coin, available, freeze, *rest, bucket)


def _units(value: Any) -> Any:
    """Return the whole number in a column, if it is stored as it has to be; else a text of it, which equals none."""
    units = stored_units(value)
    is_as_stored = units is not None and type(value) is type(column(units))
    return units if is_as_stored else str(value)
