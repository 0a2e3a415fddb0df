"""
One audit of one ledger, whatever store it is in: what is checked in which order, from the schema to the verdict.

The journal is read a page at a time, in order. Each whole sealed segment is compared with its tables as soon as it was
read. Behind the last sealed entry the tables that change with each sealing are compared; then the rest of the journal
is read. So an audit runs beside the processes that write, and blocks none of them. An audit with a pace catches up
until little is left for a snapshot, which it reads without a pause.

Other processes read ranges of sealed segments ahead where the source lets them; see :mod:`spotledger.audit.ranges`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from itertools import islice
from typing import Final

from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import KeySpool
from spotledger.audit.ranges import join
from spotledger.audit.report import CHUNK_ENTRIES, KnownHead, Pace, Progress, Report, TimeIsUp
from spotledger.audit.source import EntryRow, Source
from spotledger.audit.tables import DerivedTables, compare_with_itself
from spotledger.audit.workers import Ahead, ranges_of
from spotledger.errors import StoreUnavailable
from spotledger.storage.encoding import genesis_hash

#: An audit with a pace gives up if more than this share of what it read has been written meanwhile: it would not end.
OUTGROWN_SHARE: Final = 0.8


class Audit:
    """One audit; :meth:`run` makes it."""

    _journal: JournalPass
    _tables: DerivedTables

    def __init__(
        self,
        source: Source,
        shown: str,
        progress: Callable[[Progress], None],
        known_heads: Iterable[KnownHead],
        pace: Pace,
        processes: int = 1,
    ) -> None:
        """
        Prepare the audit of the ledger in *source*.

        Args:
            source: Where the rows come from; its findings become those of the report.
            shown: What the report calls the ledger: its path or address, without a password.
            progress: Called after each page of entries.
            known_heads: Entries as noted earlier, to be compared.
            pace: How fast to read, and for how long.
            processes: How many processes read, if there are enough sealed segments. With 1, and with a limited rate,
                only this one. The report is the same.
        """
        self._source = source
        self._report = Report(shown)
        self._findings = source.findings
        self._note = self._findings.add
        self._progress = progress
        self._known_heads = {known.seq: known.hash for known in known_heads}
        self._pace = pace
        self._processes = 1 if pace.is_set else processes
        self._ahead: Ahead | None = None
        #: How many entries were read, of those that an audit with a pace waits for.
        self._taken = 0

    def run(self) -> Report:
        """Examine everything; return the report, with advice on what was found. No state of the ledger raises."""
        began = time.monotonic()
        try:
            with self._noting_limits():
                self._source.run(self._examine)
        except KeyboardInterrupt:
            self._findings.leave_out("the rest: the audit was interrupted")
        except MemoryError:
            self._findings.leave_out("the rest: there is no memory left")
        self._report.head_seq, self._report.sealed_to = self._source.head_seq, self._source.said_sealed_to
        self._report.conclude(self._findings, time.monotonic() - began)
        self._report.advice = self._source.advice()
        return self._report

    @contextmanager
    def _noting_limits(self) -> Iterator[None]:
        """Note what is left out if the block reaches the time limit, or cannot write its temporary file."""
        try:
            yield
        except TimeIsUp as error:
            self._findings.leave_out(str(error))
        except OSError as error:
            self._findings.leave_out(f"keys that stand twice: the temporary file failed: {error.strerror}")

    def _examine(self) -> None:
        source = self._source
        self._known_heads.update((known.seq, known.hash) for known in source.known_heads)
        # The processes read while this one looks at the files.
        with self._reading_ahead() as self._ahead:
            source.check_structure()
            ledger_id = source.ledger_id()
            if ledger_id is None:
                return
            self._report.ledger_id = ledger_id
            self._journal = JournalPass(self._findings, genesis_hash(ledger_id), source.body)
            try:
                with source.noting("the journal"), self._noting_limits():
                    self._examine_entries()
                source.check_beside(self._journal)
            finally:
                self._count()

    def _reading_ahead(self) -> AbstractContextManager[Ahead | None]:
        """Let other processes read sealed segments, if that is wanted and there are enough of them."""
        ahead = self._source.ahead() if self._processes > 1 else None
        if ahead is not None:
            ranges = ranges_of(ahead.sealed_to, ahead.segment_entries)
            processes = min(self._processes, len(ranges)) - 1
            if processes > 0:
                with suppress(OSError):  # without them it takes longer
                    return closing(Ahead(ahead.program, processes, ranges, ahead.segment_entries))
        return nullcontext()

    def _examine_entries(self) -> None:
        """Read the entries, and compare what is derived from them."""
        source, journal = self._source, self._journal
        source.begin_entries()
        with closing(KeySpool()) as spool:
            self._tables = DerivedTables(source, journal, spool)
            self._catch_up(source.sealed_to)
            with source.snapshot():
                self._read_to(source.sealed_to(), source.last_seq(), in_snapshot=True)
                if source.has_tables:
                    self._tables.compare_at_end()
            self._tables.is_sealed = False
            self._catch_up(source.last_seq)
            with source.snapshot():
                last_seq = source.last_seq()
                self._read_to(last_seq, last_seq, in_snapshot=True)
                self._check_known_end()
                source.check_end(journal)
                compare_with_itself(journal, self._findings)
            for digest in spool.repeated():
                self._note("key_repeated", journal.keys.get(digest), "key", f"twice: {digest.hex()}", "once")

    def _count(self) -> None:
        """Take over the counts of the pass into the report."""
        report, journal = self._report, self._journal
        report.entries, report.postings, report.refusals = journal.seq, journal.postings, journal.refusals
        report.coins, report.customers = len(journal.coins), len(journal.customers)
        report.balances, report.open_holds = len(journal.lines), len(journal.holds)
        report.epoch = journal.epochs.current

    # --- entries ----------------------------------------------------------------------------------------------

    def _catch_up(self, find_last: Callable[[], int]) -> None:
        """Read the whole segments up to the last entry to be found; with a pace, until few entries are left."""
        if not self._pace.is_set:
            last = find_last()
            self._read_to(last - last % self._source.segment_entries, last)
            return
        before: int | None = None
        while (left := (last := find_last()) - self._journal.seq) > self._source.snapshot_entries:
            if before is not None and left > before * OUTGROWN_SHARE:
                raise StoreUnavailable(
                    f"{left} entries were written while {before} were read at the pace that is set;"
                    " a higher audit_entries_per_second would let the audit end"
                )
            before = left
            self._read_to(last, last)

    def _read_to(self, last: int, last_seq: int, *, in_snapshot: bool = False) -> None:
        """Read the entries up to *last*, and compare each whole segment; *in_snapshot*, the unfinished one too."""
        journal, tables, size = self._journal, self._tables, self._source.segment_entries
        page = self._source.page_entries if in_snapshot else self._pace.chunk(self._source.page_entries)
        while journal.seq < last:
            border = (journal.seq // size + 1) * size
            if border > last or not self._join_next():
                self._read_page(min(journal.seq + page, border, last), last)
                if journal.seq == border:
                    tables.compare_segment()
            self._tell_progress(last_seq)
            if in_snapshot:
                self._pace.check_time(journal.seq)
            else:
                self._pace.rest(self._taken)
        if in_snapshot:
            tables.compare_segment()

    def _read_page(self, page_last: int, last: int) -> None:
        """Read the entries up to *page_last*; if there are none, go on to the next one, none above *last*."""
        journal = self._journal
        rows = self._source.entries(journal.seq + 1, page_last)
        if not rows:
            self._tables.compare_segment()
            next_seq = self._source.seq_after(page_last, last)
            journal.take([], last if next_seq is None else next_seq - 1)
            self._tables.pass_over()
            return
        self._taken += len(rows)
        self._check_known_heads(rows)
        # Small pieces stay in the processor's cache.
        pieces = iter(rows)
        while piece := list(islice(pieces, CHUNK_ENTRIES)):
            journal.take(piece, page_last if piece[-1] is rows[-1] else piece[-1][0])

    def _join_next(self) -> bool:
        """Join the next range if another process reads it, and it is sound and fits; say whether it was joined."""
        if self._ahead is None:
            return False
        for found in self._ahead.take(self._journal.seq):
            if found is None:
                self._pace.check_time(self._journal.seq)
                continue
            if join(self._journal, found.read):
                self._tables.spool.adopt(found.descriptor, found.read.key_runs)
                self._taken += found.read.last - found.read.first + 1
                for seq in [seq for seq in self._known_heads if found.read.first <= seq <= found.read.last]:
                    self._check_known_heads(self._source.entries(seq, seq))
                return True
        return False

    def _tell_progress(self, last_seq: int) -> None:
        self._report.audited_to = self._journal.seq
        self._progress(Progress(self._journal.seq, last_seq))

    # --- known heads ------------------------------------------------------------------------------------------

    def _check_known_heads(self, rows: Iterable[EntryRow]) -> None:
        """Compare the entries in *rows* with what was noted of them earlier."""
        if self._known_heads:
            for seq, _, kept_hash in rows:
                known = self._known_heads.pop(seq, kept_hash)
                if known != kept_hash:
                    self._note("known_head_differs", seq, "hash", kept_hash, known)

    def _check_known_end(self) -> None:
        """Take over the hash of the last entry, and note the known heads that the journal does not reach."""
        journal = self._journal
        self._report.hash = None if journal.link is None else journal.link.hex()
        for seq, known in self._known_heads.items():
            if known != (journal.genesis if seq == 0 else None):
                self._note("known_head_differs", seq, "journal", f"it ends at entry {journal.seq}", known)
