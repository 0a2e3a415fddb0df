"""What the audits of a ledger file and of a database have in common, from the ledger's row to the verdict."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.report import KnownHead, Pace, Progress, Report, TimeIsUp
from spotledger.storage.encoding import genesis_hash

#: ``seq``, body and hash of an entry, and ``seq``, hash and time of a head, as they are stored.
EntryRow = tuple[int, bytes, bytes]
HeadRow = tuple[int, bytes, int]


class Driver(ABC):
    """One audit of one ledger; a subclass reads the source in :meth:`_examine`."""

    _journal: JournalPass
    _genesis: bytes

    def __init__(
        self, shown: str, progress: Callable[[Progress], None], known_heads: Iterable[KnownHead], pace: Pace
    ) -> None:
        """
        Prepare the audit of the ledger that the report calls *shown*.

        Args:
            shown: The path or address of the ledger, without a password.
            progress: Called after each chunk of entries.
            known_heads: Entries as noted earlier, to be compared.
            pace: How fast to read, and for how long.
        """
        self._report = Report(shown)
        self._findings = Findings()
        self._note = self._findings.add
        self._progress = progress
        self._known_heads = {known.seq: known.hash for known in known_heads}
        self._pace = pace

    def run(self) -> Report:
        """Examine everything, and return the report."""
        began = time.monotonic()
        try:
            with self._noting_limits():
                self._examine()
        except KeyboardInterrupt:
            self._findings.leave_out("the rest: the audit was interrupted")
        except MemoryError:
            self._findings.leave_out("the rest: there is no memory left")
        self._report.conclude(self._findings, time.monotonic() - began)
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

    @abstractmethod
    def _examine(self) -> None:
        """Read the source, and note what is wrong or cannot be read; may raise what :meth:`run` handles."""

    def _leave_out_tables(self, missing: Iterable[str]) -> None:
        self._findings.leave_out(f"the tables that are missing: {', '.join(missing)}")

    def _leave_out_entries(self) -> None:
        """Note that the row of the ledger is missing, without which no hash can be checked."""
        self._note("ledger_row_missing", None, "ledger", "no row", "one row")
        self._findings.leave_out("the entries: which ledger it is, is not known")

    def _begin(self, ledger_id: str, entry_at: Callable[[int], bytes | None]) -> None:
        """Begin the pass before the first entry; *entry_at* returns the body of an entry."""
        self._report.ledger_id = ledger_id
        self._genesis = genesis_hash(ledger_id)
        self._journal = JournalPass(self._findings, self._genesis, entry_at)

    def _tell_progress(self, last_seq: int) -> None:
        self._report.audited_to = self._journal.seq
        self._progress(Progress(self._journal.seq, last_seq))

    def _count(self) -> None:
        """Take over the counts of the pass into the report."""
        report, journal = self._report, self._journal
        report.entries, report.postings, report.refusals = journal.seq, journal.postings, journal.refusals
        report.coins, report.customers = len(journal.coins), len(journal.customers)
        report.balances, report.open_holds = len(journal.lines), len(journal.holds)
        report.epoch = journal.epochs.current

    def _check_epoch(self, epoch_seq: object) -> None:
        """Compare where the row of the ledger says that the epoch began with the entries."""
        begun_seq = self._journal.epochs.begun_seq
        if epoch_seq != begun_seq:
            self._note(
                "ledger_row_wrong", None, "ledger", f"the epoch began with entry {epoch_seq}", f"entry {begun_seq}"
            )

    # --- the head -----------------------------------------------------------------------------------------

    def _check_known_heads(self, rows: Iterable[EntryRow]) -> None:
        """Compare the entries in *rows* with what was noted of them earlier."""
        if self._known_heads:
            for seq, _, kept_hash in rows:
                known = self._known_heads.pop(seq, kept_hash)
                if known != kept_hash:
                    self._note("known_head_differs", seq, "hash", kept_hash, known)

    def _check_end(self) -> None:
        """Take over the hash of the last entry, and note the known heads that the journal does not reach."""
        journal = self._journal
        self._report.hash = None if journal.link is None else journal.link.hex()
        for seq, known in self._known_heads.items():
            if known != (self._genesis if seq == 0 else None):
                self._note("known_head_differs", seq, "journal", f"it ends at entry {journal.seq}", known)

    def _check_head_seq(self, head: HeadRow | None, last_seq: int) -> None:
        """Compare the number of the head with that of the last entry."""
        if head is None:
            self._note("head_missing", None, "head", "no row", f"entry {last_seq}")
            return
        seq = self._report.head_seq = head[0]
        found = f"its last entry is {last_seq}"
        if last_seq < seq:
            self._note("journal_cut", last_seq, "journal", found, seq)
        if last_seq > seq:
            self._note("entry_beyond_head", seq + 1, "journal", found, f"entry {seq}")

    def _check_head_hash(self, head: HeadRow | None) -> None:
        """Compare the head with the last entry read, if it has its number."""
        link, booked_ms = self._journal.link, self._journal.booked_ms
        if head is None or link is None or head[0] != self._journal.seq:
            return
        if head[1:] != (link, booked_ms):
            found, expected = f"{head[1].hex()}, booked {head[2]}", f"{link.hex()}, booked {booked_ms}"
            self._note("head_differs", head[0], "head", found, expected)
