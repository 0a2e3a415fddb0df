"""
The audit: derive everything about money from the journal again and compare it with what the ledger file says.

It reads the file only, in short transactions and up to the entry that was the last when it began, so it runs beside
the process that writes. It says ``clean`` only where it has looked at everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.audit.files import check_access_keys, check_backup, check_files, check_note
from spotledger.audit.findings import Finding, Findings, advice_on
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.audit.ranges import CHUNK_ENTRIES, SEGMENT_LIMIT, join
from spotledger.audit.segments import SegmentTables
from spotledger.audit.tables import WholeTables, compare_with_itself
from spotledger.audit.workers import Ahead, ranges_of
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.sqlite.audit import AuditFile, HeadRow, JournalFile, LedgerRow
from spotledger.storage.sqlite.raw import Damaged, Unreadable

CLEAN: Final = "clean"
DAMAGED: Final = "damaged"
INCOMPLETE: Final = "incomplete"
#: A paced audit reads so much at once that it rests between.
PACED_CHUNK_ENTRIES: Final = 250


class KnownHead(NamedTuple):
    """The ``seq`` and hash of an entry as somebody has noted them: it shows a journal that was written anew."""

    seq: int
    hash: bytes


class Progress(NamedTuple):
    """How far an audit is: the last entry that was read, and the last that it will read."""

    seq: int
    last_seq: int


@dataclass(slots=True)
class Report:
    """What an audit says. ``verdict`` is ``clean``, ``damaged``, or ``incomplete`` where it could not look."""

    path: str
    verdict: str = INCOMPLETE
    ledger_id: str | None = None
    epoch: int | None = None
    #: The entries that were read, from the first to this one; the hash that the last of them has.
    audited_to: int = 0
    hash: str | None = None
    #: The head and the last sealed entry when the audit began.
    head_seq: int = 0
    sealed_to: int = 0
    entries: int = 0
    postings: int = 0
    refusals: int = 0
    coins: int = 0
    customers: int = 0
    balances: int = 0
    open_holds: int = 0
    seconds: float = 0.0
    #: What was found, by code; the first of each code in the list.
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    #: What could not be looked at, and why.
    unexamined: list[str] = field(default_factory=list)
    #: What to do about what was found.
    advice: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the report in a form that JSON has."""
        return {**asdict(self), "findings": [finding._asdict() for finding in self.findings]}


def audit(
    path: str | Path,
    *,
    progress: Callable[[Progress], None] | None = None,
    known_heads: Iterable[KnownHead] = (),
    entries_per_second: int = 0,
    limit_seconds: float | None = None,
    processes: int = 1,
) -> Report:
    """
    Audit the ledger file at *path*.

    Memory is bounded by the accounts and coins that ever had something, the open holds, the customers and one
    segment; the keys go to a temporary file, 16 bytes an entry. Writes nothing to the ledger.

    Args:
        path: The ledger file.
        progress: Called after each chunk of entries.
        known_heads: What was noted of earlier heads.
        entries_per_second: Read no faster than this; 0: as fast as it goes.
        limit_seconds: Stop, incomplete, after this time.
        processes: How many processes read sealed segments ahead, where there are enough of them; with 1, and with a
            pace, none but this one does. The report is the same.

    Returns:
        The report; no state of the file makes it raise.
    """
    report = Report(str(path))
    pace = Pace(entries_per_second, limit_seconds)
    run = _Run(report, progress or (lambda _: None), tuple(known_heads), pace, 1 if entries_per_second else processes)
    began = time.monotonic()
    try:
        with AuditFile(Path(path)) as file:
            run.examine(file)
    except Unreadable as error:
        run.findings.unreadable(error, code="file_damaged")
    except KeyboardInterrupt:
        run.findings.leave_out("the rest: the audit was interrupted")
    except MemoryError:
        run.findings.leave_out("the rest: there is no memory left")
    report.seconds = round(time.monotonic() - began, 3)
    report.findings, report.counts = run.findings.listed, dict(run.findings.counts)
    report.unexamined, report.advice = run.findings.unexamined, advice_on(run.findings)
    if run.findings:
        report.verdict = DAMAGED
    else:
        report.verdict = INCOMPLETE if report.unexamined else CLEAN
    return report


class _Run:
    """One audit of one file."""

    def __init__(
        self,
        report: Report,
        progress: Callable[[Progress], None],
        known_heads: tuple[KnownHead, ...],
        pace: Pace,
        processes: int,
    ) -> None:
        self.findings = Findings()
        self._report = report
        self._progress = progress
        self._known_heads = {known.seq: known.hash for known in known_heads}
        self._pace = pace
        self._processes = processes
        self._head: HeadRow | None = None
        self._is_head_read = False

    def examine(self, file: AuditFile) -> None:
        """Read all there is in *file*."""
        check_files(file, self.findings)
        ledger = file.journal.ledger()
        if ledger is None:
            self.findings.add("ledger_row_missing", None, "ledger", "no row", "one row")
            self.findings.leave_out("the entries: which ledger it is, is not known")
            return
        report = self._report
        report.ledger_id, report.epoch, segment_entries = ledger
        if ledger.epoch < 1:
            self.findings.add("ledger_row_wrong", None, "ledger", f"epoch {ledger.epoch}", "1 or more")
        if not 1 <= segment_entries <= SEGMENT_LIMIT:
            found = f"segments of {segment_entries} entries"
            self.findings.add("ledger_row_wrong", None, "ledger", found, f"of 1 to {SEGMENT_LIMIT}")
            self.findings.leave_out(f"the entries: a segment has {segment_entries} of them")
            return
        journal = JournalPass(self.findings, genesis_hash(ledger.ledger_id), file.journal.body)
        try:
            with self.findings.noting("the journal"):
                self._examine_journal(file, ledger, journal)
            noted_change = 0
            with self.findings.noting("the noted head"):
                noted_change = check_note(file, self.findings, ledger)
            with self.findings.noting("the access keys"):
                check_access_keys(file, self.findings, noted_change, journal)
        finally:
            self._count(journal)

    def _examine_journal(self, file: AuditFile, ledger: LedgerRow, journal: JournalPass) -> None:
        """Read the entries, and compare what is derived from them."""
        size = ledger.segment_entries
        with file.journal.one_instant():
            first_seq, last_seq = file.journal.extent()
            with self.findings.noting("the head"):
                self._head = file.journal.head()
                self._is_head_read = True
        self._compare_extent(first_seq, last_seq)
        with self.findings.noting("the books"):
            self._check_books(file, ledger, last_seq)
        try:
            with closing(KeySpool()) as spool, self._ahead(file, last_seq, size) as ahead:
                idempotency_filter = FilterCheck(file.books, self.findings, size)
                tables = SegmentTables(file.books, journal, self.findings, spool, idempotency_filter)
                self._read_journal(file.journal, last_seq, journal, tables, size, ahead)
                self._check_head(journal)
                compare_with_itself(journal, self.findings)
                if file.books is not None:
                    WholeTables(file.books, journal, self.findings, size).compare()
                if file.is_backup:
                    with self.findings.noting("the row of the backup"):
                        check_backup(file, self.findings, ledger)
                self._check_keys(journal, spool)
        except OSError as error:
            self.findings.leave_out(f"keys that stand twice: the temporary file failed: {error.strerror}")

    def _compare_extent(self, first_seq: int | None, last_seq: int) -> None:
        """Compare the head with the entries that there are."""
        report, add = self._report, self.findings.add
        if self._head is not None:
            report.head_seq = self._head.seq
            if last_seq < report.head_seq:
                add("journal_cut", last_seq, "journal", f"its last entry is {last_seq}", report.head_seq)
            if last_seq > report.head_seq:
                found = f"its last entry is {last_seq}"
                add("entry_beyond_head", report.head_seq + 1, "journal", found, f"entry {report.head_seq}")
        elif self._is_head_read:
            add("head_missing", None, "head", "no row", f"entry {last_seq}")
        if first_seq is not None and first_seq < 1:
            add("entry_out_of_place", first_seq, "entry", f"entry {first_seq}", "entry 1 as the first")

    def _check_books(self, file: AuditFile, ledger: LedgerRow, last_seq: int) -> None:
        """Compare what the books say of themselves with the ledger, and with the entry that they end with."""
        size, add = ledger.segment_entries, self.findings.add
        if file.books is None:
            if last_seq >= size and not file.is_alone and not file.problems:
                self.findings.leave_out("the books: there are none; the next start of the service makes them again")
            return
        facts = file.books.facts()
        if facts is None:
            add("books_differ", None, "books", "no row", "one row")
            return
        if (facts.ledger_id, facts.segment_entries) != (ledger.ledger_id, size):
            found = f"ledger {facts.ledger_id}, segments of {facts.segment_entries}"
            add("books_differ", None, "books", found, f"ledger {ledger.ledger_id}, segments of {size}")
        self._report.sealed_to = facts.sealed_to
        last_sealed = last_seq - last_seq % size
        if not 0 <= facts.sealed_to <= last_sealed or facts.sealed_to % size:
            add("sealed_to_wrong", None, "books", facts.sealed_to, f"whole segments, up to entry {last_sealed}")
            return
        sealed_to = facts.sealed_to
        found_hash = file.journal.hash_of(sealed_to) if sealed_to else genesis_hash(ledger.ledger_id)
        if facts.sealed_hash != found_hash:
            add("books_differ", sealed_to, "books", facts.sealed_hash, found_hash)

    def _ahead(self, file: AuditFile, last_seq: int, segment_entries: int) -> AbstractContextManager[Ahead | None]:
        """Have the sealed segments read ahead, where that is wanted and there are enough of them."""
        # The last entry may have any number where the journal is damaged.
        ranges = ranges_of(min(last_seq, self._report.sealed_to, file.journal.most_entries()), segment_entries)
        processes = min(self._processes, len(ranges))
        if processes > 1:
            with suppress(OSError):  # without them it takes longer
                return closing(Ahead(Path(self._report.path), processes, ranges, segment_entries))
        return nullcontext()

    def _read_journal(
        self,
        file: JournalFile,
        last_seq: int,
        journal: JournalPass,
        tables: SegmentTables,
        segment_entries: int,
        ahead: Ahead | None,
    ) -> None:
        while journal.seq < last_seq:
            if ahead is None or not ahead.begins_after(journal.seq) or not self._join(file, journal, tables, ahead):
                self._read_chunk(file, last_seq, journal, tables, segment_entries)
            self._report.audited_to = journal.seq
            self._progress(Progress(journal.seq, last_seq))
            self._pace.rest(journal.seq)

    def _read_chunk(
        self, file: JournalFile, last_seq: int, journal: JournalPass, tables: SegmentTables, segment_entries: int
    ) -> None:
        """Read the next entries in order; where none are there, go on at the next that is."""
        border = journal.seq - journal.seq % segment_entries + segment_entries
        last = min(journal.seq + self._pace.chunk, border, last_seq)
        rows = self._rows(file, journal.seq + 1, last)
        is_gap = not rows
        if is_gap:
            last = min((file.seq_after(last) or last_seq + 1) - 1, last_seq)
        self._check_known_heads(rows)
        journal.remembers = border > self._report.sealed_to
        journal.take(rows, last)
        if is_gap:
            tables.pass_over()
        elif last == border:
            tables.compare_if_sealed(border)

    def _rows(self, file: JournalFile, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
        """Return the entries from *first* to *last*; of a damaged page those that can be read one by one."""
        try:
            return file.entries(first, last)
        except Damaged as error:
            self.findings.unreadable(error)
        found = []
        for seq in range(first, last + 1):
            with suppress(Damaged):
                found += file.entries(seq, seq)
        return found

    def _join(self, file: JournalFile, journal: JournalPass, tables: SegmentTables, ahead: Ahead) -> bool:
        """Go on with the range that was read ahead, if it is sound and fits; say whether it did."""
        for found in ahead.next_range():
            if found is None:
                self._pace.rest(journal.seq)
                continue
            read, descriptor = found
            if join(journal, read):
                tables.spool.adopt(descriptor, read.key_runs)
                for seq in [seq for seq in self._known_heads if read.first <= seq <= read.last]:
                    self._check_known_heads(file.entries(seq, seq))
                return True
        return False

    def _check_known_heads(self, rows: list[tuple[int, bytes, bytes]]) -> None:
        if self._known_heads:
            for seq, _, kept_hash in rows:
                known = self._known_heads.pop(seq, kept_hash)
                if known != kept_hash:
                    self.findings.add("known_head_differs", seq, "hash", kept_hash, known)

    def _check_head(self, journal: JournalPass) -> None:
        """Compare the head with the last entry."""
        report, head = self._report, self._head
        report.hash = None if journal.link is None else journal.link.hex()
        for seq, known in self._known_heads.items():
            if known != (genesis_hash(str(report.ledger_id)) if seq == 0 else None):
                self.findings.add("known_head_differs", seq, "journal", f"it ends at entry {journal.seq}", known)
        if head is None or head.seq != journal.seq or journal.link is None:
            return
        if (head.hash, head.booked_ms) != (journal.link, journal.booked_ms):
            found = f"{head.hash.hex()}, booked {head.booked_ms}"
            expected = f"{journal.link.hex()}, booked {journal.booked_ms}"
            self.findings.add("head_differs", journal.seq, "head", found, expected)

    def _check_keys(self, journal: JournalPass, spool: KeySpool) -> None:
        """Look for keys that stand in two segments; those within one were found on the way."""
        spool.put(sorted(journal.keys))
        for digest in spool.repeated():
            self.findings.add("key_repeated", journal.keys.get(digest), "key", f"twice: {digest.hex()}", "once")

    def _count(self, journal: JournalPass) -> None:
        report = self._report
        report.entries, report.postings, report.refusals = journal.seq, journal.postings, journal.refusals
        report.coins, report.customers = len(journal.coins), len(journal.customers)
        report.balances, report.open_holds = len(journal.lines), len(journal.holds)


class Pace:
    """Keeps an audit from reading faster, or for longer, than it may."""

    def __init__(self, entries_per_second: int, limit_seconds: float | None) -> None:
        self._rate = entries_per_second
        self._limit = limit_seconds
        self._began = time.monotonic()
        self.chunk = CHUNK_ENTRIES
        if self.is_set:
            self.chunk = max(1, min(CHUNK_ENTRIES, PACED_CHUNK_ENTRIES, entries_per_second))

    @property
    def is_set(self) -> bool:
        """Whether there is anything to keep to but the time."""
        return self._rate > 0

    def rest(self, done: int) -> None:
        """Wait as long as it takes to have read *done* entries; raises Unreadable where the time is over."""
        elapsed = time.monotonic() - self._began
        if self._limit is not None and elapsed > self._limit:
            raise Unreadable(f"the entries after {done} could not be read within {self._limit:g} seconds")
        if self._rate:
            time.sleep(max(0.0, done / self._rate - elapsed))
