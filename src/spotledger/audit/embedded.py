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

from spotledger.audit.access_keys import wrong_in_row
from spotledger.audit.findings import Finding, Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.audit.ranges import CHUNK_ENTRIES, join
from spotledger.audit.segments import SegmentTables
from spotledger.audit.tables import WholeTables
from spotledger.audit.workers import Ahead, ranges_of
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.sqlite.audit import AuditFile, Damaged, Facts, Unreadable

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
        run.findings.unreadable(error)
    except KeyboardInterrupt:
        run.findings.leave_out("the rest: the audit was interrupted")
    except MemoryError:
        run.findings.leave_out("the rest: there is no memory left")
    report.seconds = round(time.monotonic() - began, 3)
    report.findings, report.counts = run.findings.listed, dict(run.findings.counts)
    report.unexamined = run.findings.unexamined
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

    def examine(self, file: AuditFile) -> None:
        """Read all there is in *file*."""
        self._is_alone = file.is_alone
        self._check_files(file)
        facts = file.facts()
        for name in facts.changed_schema:
            self.findings.add("schema_changed", None, name, "missing or another", "as the schema has it")
        if facts.ledger is None:
            self.findings.add("ledger_row_missing", None, "ledger", "no row", "one row")
            self.findings.leave_out("the entries: which ledger it is, is not known")
            return
        self._note_facts(facts)
        ledger_id, _, segment_entries, _ = facts.ledger
        if segment_entries < 1:
            self.findings.leave_out(f"the entries: a segment has {segment_entries} of them")
            return
        journal = JournalPass(self.findings, genesis_hash(ledger_id), file.body)
        try:
            with closing(KeySpool()) as spool, self._ahead(facts, segment_entries) as ahead:
                self._books_link(facts, file)
                idempotency_filter = FilterCheck(file, self.findings, segment_entries)
                tables = SegmentTables(file, journal, self.findings, spool, idempotency_filter)
                self._read_journal(file, facts.last_seq, journal, tables, segment_entries, ahead)
                self._check_head(facts, journal)
                self._check_note(file, facts, journal)
                if file.has_books():
                    WholeTables(file, journal, self.findings, segment_entries).compare()
                self._check_keys(journal, spool)
                self._check_access_keys(file, ledger_id)
        except OSError as error:
            self.findings.leave_out(f"keys that stand twice: the temporary file failed: {error.strerror}")
        finally:
            self._count(journal)

    def _check_files(self, file: AuditFile) -> None:
        """Check the files as files: every page, SQLite's structures, and the write-ahead logs."""
        for check in (self._check_structure, self._check_logs):
            try:
                check(file)
            except Unreadable as error:
                self.findings.unreadable(error)

    def _check_structure(self, file: AuditFile) -> None:
        for where, found in file.structure():
            self.findings.add("structure_damaged", None, where, found, "ok")

    def _check_logs(self, file: AuditFile) -> None:
        for found in file.logs():
            self.findings.add("log_damaged", None, "write-ahead log", found, "whole")

    def _check_note(self, file: AuditFile, facts: Facts, journal: JournalPass) -> None:
        """Compare the journal with the note of its head, which may be of an entry before the last."""
        try:
            note = file.note()
            if note is None or facts.ledger is None:
                return
            kept = file.entries(note.seq, note.seq) if note.seq else []
        except Unreadable as error:
            code = "note_damaged" if isinstance(error, Damaged) else None
            if code is None:
                self.findings.unreadable(error)
            else:
                self.findings.add(code, None, "noted-head", str(error), "one whole slot")
            return
        found_hash = kept[0][2] if kept else genesis_hash(facts.ledger[0])
        found = (facts.ledger[0], facts.ledger[1], found_hash)
        is_cut = bool(note.seq) and not kept
        if is_cut or found != (note.ledger_id, note.epoch, note.hash):
            noted = f"ledger {note.ledger_id}, epoch {note.epoch}, entry {note.seq} with {note.hash.hex()}"
            actual = "no such entry" if is_cut else f"ledger {found[0]}, epoch {found[1]}, {found_hash.hex()}"
            self.findings.add("note_differs", note.seq, "noted-head", actual, noted)

    def _check_access_keys(self, file: AuditFile, ledger_id: str) -> None:
        """Read every access key and token as the service does."""
        try:
            keys_of = file.keys_of_ledger()
            if keys_of is not None and keys_of[0] != ledger_id:
                self.findings.add("access_key_malformed", None, "keys_of", keys_of[0], ledger_id)
            for table, name, row in file.key_rows():
                reason = wrong_in_row(table, row)
                if reason is not None:
                    self.findings.add("access_key_malformed", None, f"{table} {name}…", reason, "a row of the schema")
        except Unreadable as error:
            self.findings.unreadable(error)

    def _note_facts(self, facts: Facts) -> None:
        """Compare the rows that say how far the file is."""
        report, add = self._report, self.findings.add
        assert facts.ledger is not None  # noqa: S101 - asked before
        report.ledger_id, report.epoch, segment_entries, report.sealed_to = facts.ledger
        if facts.head is None:
            add("head_missing", None, "head", "no row", f"entry {facts.last_seq}")
        else:
            report.head_seq = facts.head[0]
            if facts.last_seq < report.head_seq:
                add("journal_cut", facts.last_seq, "journal", f"its last entry is {facts.last_seq}", report.head_seq)
            if facts.last_seq > report.head_seq:
                found = f"its last entry is {facts.last_seq}"
                add("entry_beyond_head", report.head_seq + 1, "journal", found, f"entry {report.head_seq}")
        if facts.first_seq is not None and facts.first_seq < 1:
            add("entry_out_of_place", facts.first_seq, "entry", f"entry {facts.first_seq}", "entry 1 as the first")
        if facts.books is not None and facts.books[0] != report.ledger_id:
            add("books_differ", None, "books", f"of the ledger {facts.books[0]}", str(report.ledger_id))
        if facts.books is None and facts.last_seq >= segment_entries > 0 and not self._is_alone:
            self.findings.leave_out("the books: there are none; the service makes them again")
        last_sealed = facts.last_seq - facts.last_seq % max(1, segment_entries)
        if not 0 <= report.sealed_to <= last_sealed or report.sealed_to % max(1, segment_entries):
            add("sealed_to_wrong", None, "ledger", report.sealed_to, f"whole segments, up to entry {last_sealed}")

    def _books_link(self, facts: Facts, file: AuditFile) -> None:
        """Compare the last entry that the books are made of with that of the journal."""
        if facts.books is None or not facts.books[1]:
            return
        kept = file.entries(facts.books[1], facts.books[1])
        found = kept[0][2] if kept else None
        if found != facts.books[2]:
            self.findings.add("books_differ", facts.books[1], "books", facts.books[2], found)

    def _ahead(self, facts: Facts, segment_entries: int) -> AbstractContextManager[Ahead | None]:
        """Have the sealed segments read ahead, where that is wanted and there are enough of them."""
        ranges = ranges_of(min(facts.last_seq, self._report.sealed_to), segment_entries)
        processes = min(self._processes, len(ranges))
        if processes > 1:
            with suppress(OSError):  # without them it takes longer
                return closing(Ahead(Path(self._report.path), processes, ranges, segment_entries))
        return nullcontext()

    def _read_journal(
        self,
        file: AuditFile,
        last_seq: int,
        journal: JournalPass,
        tables: SegmentTables,
        segment_entries: int,
        ahead: Ahead | None,
    ) -> None:
        while journal.seq < last_seq:
            if ahead is None or not ahead.begins_after(journal.seq) or not self._join(file, journal, tables, ahead):
                border = journal.seq - journal.seq % segment_entries + segment_entries
                last = min(journal.seq + self._pace.chunk, border, last_seq)
                rows = file.entries(journal.seq + 1, last)
                self._check_known_heads(rows)
                journal.remembers = border > self._report.sealed_to
                journal.take(rows, last)
                if last == border:
                    tables.compare_if_sealed(border)
            self._report.audited_to = journal.seq
            self._progress(Progress(journal.seq, last_seq))
            self._pace.rest(journal.seq)

    def _join(self, file: AuditFile, journal: JournalPass, tables: SegmentTables, ahead: Ahead) -> bool:
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

    def _check_head(self, facts: Facts, journal: JournalPass) -> None:
        """Compare the head with the last entry."""
        report = self._report
        report.hash = None if journal.link is None else journal.link.hex()
        for seq, known in self._known_heads.items():
            if known != (genesis_hash(str(report.ledger_id)) if seq == 0 else None):
                self.findings.add("known_head_differs", seq, "journal", f"it ends at entry {journal.seq}", known)
        if facts.head is None or facts.head[0] != journal.seq:
            return
        _, head_hash, booked_ms = facts.head
        if journal.link is not None and (head_hash, booked_ms) != (journal.link, journal.booked_ms):
            found = f"{head_hash.hex()}, booked {booked_ms}"
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
