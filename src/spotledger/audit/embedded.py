"""
The audit of a ledger file: derive everything about money from the journal again, and compare.

It only reads, in short transactions and up to the entry that is the last one at its start, so it runs beside the
process that writes. The verdict is ``clean`` only if everything was examined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

from spotledger.audit.driver import Driver
from spotledger.audit.keys import FilterCheck, KeySpool
from spotledger.audit.ranges import join
from spotledger.audit.report import CHUNK_ENTRIES, KnownHead, Pace, Progress, Report
from spotledger.audit.segments import SegmentTables
from spotledger.audit.tables import WholeTables
from spotledger.audit.workers import Ahead, ranges_of
from spotledger.storage.sqlite.audit import AuditFile, Facts, Unreadable


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
    Audit the ledger file at *path*.

    Memory is bounded by the accounts and coins that were ever used, the open holds, the customers and one segment;
    the keys go to a temporary file, 16 bytes an entry. Writes nothing to the ledger.

    Args:
        path: The ledger file.
        progress: Called after each chunk of entries.
        known_heads: Entries as noted earlier, to be compared.
        entries_per_second: The highest rate of reading; 0 for no limit.
        limit_seconds: Stop, incomplete, after this time.
        processes: How many processes read sealed segments ahead, if there are enough of them. With 1, and with a
            limited rate, only this one reads. The report is the same.

    Returns:
        The report; no state of the file makes it raise.
    """
    pace = Pace(entries_per_second, limit_seconds)
    return _FileAudit(Path(path), progress, known_heads, pace, 1 if entries_per_second else processes).run()


class _FileAudit(Driver):
    """One audit of one file."""

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

    def _examine(self) -> None:
        try:
            with AuditFile(self._path) as self._file:
                self._examine_file(self._file.facts())
        except Unreadable as error:
            self._findings.leave_out(str(error))

    def _examine_file(self, facts: Facts) -> None:
        if facts.missing_tables:
            self._leave_out_tables(facts.missing_tables)
            return
        for name in facts.changed_triggers:
            self._note("trigger_changed", None, name, "missing or another", "the trigger of the schema")
        if facts.ledger is None:
            self._leave_out_entries()
            return
        ledger_id, epoch, self._segment_entries, self._report.sealed_to = facts.ledger
        self._begin(ledger_id, epoch, self._file.body)
        self._check_facts(facts)
        if self._segment_entries < 1:
            self._findings.leave_out(f"the entries: a segment has {self._segment_entries} of them")
            return
        try:
            with closing(KeySpool()) as spool, self._ahead(facts) as ahead:
                idempotency_filter = FilterCheck(self._file, self._findings, self._segment_entries)
                self._tables = SegmentTables(self._file, self._journal, self._findings, spool, idempotency_filter)
                self._read_journal(facts.last_seq, ahead)
                self._check_end()
                self._check_head_hash(facts.head)
                WholeTables(self._file, self._journal, self._findings, self._segment_entries).compare()
                self._check_keys(spool)
        finally:
            self._count()

    def _check_facts(self, facts: Facts) -> None:
        """Check the rows that say how far the file is."""
        self._check_head_seq(facts.head, facts.last_seq)
        first_seq, sealed_to, size = facts.first_seq, self._report.sealed_to, max(1, self._segment_entries)
        if first_seq is not None and first_seq < 1:
            self._note("entry_out_of_place", first_seq, "entry", f"entry {first_seq}", "entry 1 as the first")
        last_sealed = facts.last_seq - facts.last_seq % size
        if not 0 <= sealed_to <= last_sealed or sealed_to % size:
            self._note("sealed_to_wrong", None, "ledger", sealed_to, f"whole segments, up to entry {last_sealed}")

    def _ahead(self, facts: Facts) -> AbstractContextManager[Ahead | None]:
        """Let other processes read the sealed segments ahead, if that is wanted and there are enough segments."""
        ranges = ranges_of(min(facts.last_seq, self._report.sealed_to), self._segment_entries)
        processes = min(self._processes, len(ranges))
        if processes > 1:
            with suppress(OSError):  # without them it takes longer
                return closing(Ahead(self._path, processes, ranges, self._segment_entries))
        return nullcontext()

    def _read_journal(self, last_seq: int, ahead: Ahead | None) -> None:
        journal, chunk = self._journal, self._pace.chunk(CHUNK_ENTRIES)
        while journal.seq < last_seq:
            if ahead is None or not ahead.begins_after(journal.seq) or not self._join(ahead):
                border = journal.seq - journal.seq % self._segment_entries + self._segment_entries
                last = min(journal.seq + chunk, border, last_seq)
                rows = self._file.entries(journal.seq + 1, last)
                self._check_known_heads(rows)
                journal.remembers = border > self._report.sealed_to
                journal.take(rows, last)
                if last == border:
                    self._tables.compare_if_sealed(border)
            self._tell_progress(last_seq)
            self._pace.rest(journal.seq)

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
                    self._check_known_heads(self._file.entries(seq, seq))
                return True
        return False

    def _check_keys(self, spool: KeySpool) -> None:
        """Look for keys that stand in two segments; those within one segment were found while it was read."""
        spool.put(sorted(self._journal.keys))
        for digest in spool.repeated():
            self._note("key_repeated", self._journal.keys.get(digest), "key", f"twice: {digest.hex()}", "once")
