"""
The audit of a ledger's files: derive everything about money from the journal again, and compare.

It only reads, in short transactions and up to the entry that is the last one at its start, so it runs beside the
process that writes. The verdict is ``clean`` only if everything was examined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

from spotledger.audit.driver import Driver, EntryRow, HeadRow
from spotledger.audit.files import check_access_keys, check_backup, check_files, check_logs, check_note
from spotledger.audit.findings import advice_on
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.audit.ranges import SEGMENT_LIMIT, join
from spotledger.audit.report import CHUNK_ENTRIES, KnownHead, Pace, Progress, Report
from spotledger.audit.segments import SegmentTables
from spotledger.audit.tables import WholeTables, compare_with_itself
from spotledger.audit.workers import Ahead, ranges_of
from spotledger.storage.sqlite.audit import AuditFile, LedgerRow
from spotledger.storage.sqlite.raw import Damaged, Unreadable


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
        progress: Called after each chunk of entries.
        known_heads: Entries as noted earlier, to be compared.
        entries_per_second: The highest rate of reading; 0 for no limit.
        limit_seconds: Stop, incomplete, after this time.
        processes: How many processes read sealed segments ahead, if there are enough of them. With 1, and with a
            limited rate, only this one reads. The report is the same.

    Returns:
        The report; no state of the files makes it raise.
    """
    pace = Pace(entries_per_second, limit_seconds)
    return _FileAudit(Path(path), progress, known_heads, pace, 1 if entries_per_second else processes).run()


class _FileAudit(Driver):
    """One audit of the files of one ledger."""

    _file: AuditFile
    _tables: SegmentTables
    _segment_entries: int

    def __init__(
        self,
        path: Path,
        progress: Callable[[Progress], None],
        known_heads: Iterable[KnownHead],
        pace: Pace,
        processes: int,
    ) -> None:
        super().__init__(str(path), progress, known_heads, pace)
        self._path = path
        self._processes = processes

    def run(self) -> Report:
        """Examine everything, and return the report, with advice on what was found."""
        report = super().run()
        report.advice = advice_on(self._findings)
        return report

    def _examine(self) -> None:
        try:
            check_logs(self._path, self._findings)
            with AuditFile(self._path) as self._file:
                self._examine_files()
        except Unreadable as error:
            self._findings.unreadable(error, code="file_damaged")

    def _examine_files(self) -> None:
        check_files(self._file, self._findings)
        ledger = self._file.journal.ledger()
        if ledger is None:
            self._leave_out_entries()
            return
        self._begin(ledger.ledger_id, self._file.journal.body)
        if not self._is_possible(ledger):
            return
        self._segment_entries = ledger.segment_entries
        try:
            with self._findings.noting("the journal"), self._noting_limits():
                self._examine_journal(ledger)
            noted_change = 0
            with self._findings.noting("the noted head"):
                noted_change = check_note(self._file, self._findings, ledger, self._journal.epochs)
            with self._findings.noting("the access keys"):
                check_access_keys(self._file, self._findings, noted_change, self._journal)
        finally:
            self._count()

    def _is_possible(self, ledger: LedgerRow) -> bool:
        """Check the row that identifies the ledger, and say whether the entries can be read in its segments."""
        if 1 <= ledger.segment_entries <= SEGMENT_LIMIT:
            return True
        found = f"segments of {ledger.segment_entries} entries"
        self._note("ledger_row_wrong", None, "ledger", found, f"of 1 to {SEGMENT_LIMIT}")
        self._findings.leave_out(f"the entries: a segment has {ledger.segment_entries} of them")
        return False

    def _examine_journal(self, ledger: LedgerRow) -> None:
        """Read the entries, and compare what is derived from them."""
        file, findings = self._file, self._findings
        last_seq, head = self._check_extent()
        with findings.noting("the books"):
            self._check_books(ledger, last_seq)
        with closing(KeySpool()) as spool, self._ahead(last_seq) as ahead:
            idempotency_filter = FilterCheck(file.books, findings, self._segment_entries)
            self._tables = SegmentTables(file.books, self._journal, findings, spool, idempotency_filter)
            self._read_journal(last_seq, ahead)
            self._check_end()
            self._check_head_hash(head)
            self._check_epoch(ledger.epoch_seq)
            compare_with_itself(self._journal, findings)
            if file.books is not None:
                WholeTables(file.books, self._journal, findings, self._segment_entries).compare()
            if file.is_backup:
                with findings.noting("the row of the backup"):
                    check_backup(file, findings, ledger, self._journal.epochs)
            self._check_keys(spool)

    def _check_extent(self) -> tuple[int, HeadRow | None]:
        """Compare the head with the first and the last entry; return the last entry, and the head if it is readable."""
        journal = self._file.journal
        head: HeadRow | None = None
        with journal.one_instant():
            first_seq, last_seq = journal.extent()
            with self._findings.noting("the head"):
                head = journal.head()
                self._check_head_seq(head, last_seq)
        if first_seq is not None and first_seq < 1:
            self._note("entry_out_of_place", first_seq, "entry", f"entry {first_seq}", "entry 1 as the first")
        return last_seq, head

    def _check_books(self, ledger: LedgerRow, last_seq: int) -> None:
        """Compare what the books say of themselves with the ledger, and with the entry that they end with."""
        file, size = self._file, self._segment_entries
        if file.books is None:
            if last_seq >= size and not file.is_alone and not file.problems:
                self._findings.leave_out("the books: there are none; the next start of the service makes them again")
            return
        facts = file.books.facts()
        if facts is None:
            self._note("books_differ", None, "books", "no row", "one row")
            return
        if (facts.ledger_id, facts.segment_entries) != (ledger.ledger_id, size):
            found = f"ledger {facts.ledger_id}, segments of {facts.segment_entries}"
            self._note("books_differ", None, "books", found, f"ledger {ledger.ledger_id}, segments of {size}")
        sealed_to = self._report.sealed_to = facts.sealed_to
        last_sealed = last_seq - last_seq % size
        if not 0 <= sealed_to <= last_sealed or sealed_to % size:
            self._note("sealed_to_wrong", None, "books", sealed_to, f"whole segments, up to entry {last_sealed}")
            return
        kept_hash = file.journal.hash_of(sealed_to) if sealed_to else self._genesis
        if facts.sealed_hash != kept_hash:
            self._note("books_differ", sealed_to, "books", facts.sealed_hash, kept_hash)

    def _ahead(self, last_seq: int) -> AbstractContextManager[Ahead | None]:
        """Let other processes read the sealed segments ahead, if that is wanted and there are enough segments."""
        # In a damaged journal the last entry may have any number.
        last = min(last_seq, self._report.sealed_to, self._file.journal.most_entries())
        ranges = ranges_of(last, self._segment_entries)
        processes = min(self._processes, len(ranges))
        if processes > 1:
            with suppress(OSError):  # without them it takes longer
                return closing(Ahead(self._path, processes, ranges, self._segment_entries))
        return nullcontext()

    def _read_journal(self, last_seq: int, ahead: Ahead | None) -> None:
        journal, chunk = self._journal, self._pace.chunk(CHUNK_ENTRIES)
        while journal.seq < last_seq:
            if ahead is None or not ahead.begins_after(journal.seq) or not self._join(ahead):
                self._read_chunk(chunk, last_seq)
            self._tell_progress(last_seq)
            self._pace.rest(journal.seq)

    def _read_chunk(self, chunk: int, last_seq: int) -> None:
        """Read at most *chunk* entries, up to the end of their segment; if there are none, skip to the next entry."""
        journal = self._journal
        border = journal.seq - journal.seq % self._segment_entries + self._segment_entries
        last = min(journal.seq + chunk, border, last_seq)
        rows = self._rows(journal.seq + 1, last)
        is_gap = not rows
        if is_gap:
            last = min((self._file.journal.seq_after(last) or last_seq + 1) - 1, last_seq)
        self._check_known_heads(rows)
        journal.remembers = border > self._report.sealed_to
        journal.take(rows, last)
        if is_gap:
            self._tables.pass_over()
        elif last == border:
            self._tables.compare_if_sealed(border)

    def _rows(self, first: int, last: int) -> list[EntryRow]:
        """Return the entries from *first* to *last*; if a page is damaged, those that can be read one by one."""
        file = self._file.journal
        try:
            return file.entries(first, last)
        except Damaged as error:
            self._findings.unreadable(error)
        found: list[EntryRow] = []
        for seq in range(first, last + 1):
            with suppress(Damaged):
                found += file.entries(seq, seq)
        return found

    def _join(self, ahead: Ahead) -> bool:
        """Join the next range that was read ahead, if it is sound and fits; say whether it was joined."""
        for found in ahead.next_range():
            if found is None:
                self._pace.rest(self._journal.seq)
                continue
            read, descriptor = found
            if join(self._journal, read):
                self._tables.spool.adopt(descriptor, read.key_runs)
                for seq in [seq for seq in self._known_heads if read.first <= seq <= read.last]:
                    self._check_known_heads(self._file.journal.entries(seq, seq))
                return True
        return False

    def _check_keys(self, spool: KeySpool) -> None:
        """Look for keys that stand in two segments; those within one segment were found while it was read."""
        spool.put(sorted(self._journal.keys))
        for digest in spool.repeated():
            self._note("key_repeated", self._journal.keys.get(digest), "key", f"twice: {digest.hex()}", "once")
