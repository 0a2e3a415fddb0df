"""
Where an audit reads a ledger from: the port between the one driver and the two kinds of store.

A source gives rows, and compares what only its kind of store has. It decides nothing about the order of an audit.
Whatever it cannot read it notes in the findings that it was made with; only what ends an audit is raised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple

from spotledger.audit.books import Line
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.report import KnownHead

#: The places of entries within a segment are stored in two bytes.
SEGMENT_LIMIT: Final = 65_536
#: ``seq``, body and hash of an entry, as they are stored.
EntryRow = tuple[int, bytes, bytes]
#: Customer, kind of account, coin, available, freeze, ``seq``, and what else its kind of store has of a balance.
BalanceRow = tuple[Any, ...]
#: Id, customer, kind of account, coin, amount, what remains, reference, expiry, time of opening, ``closed_seq``.
HoldRow = tuple[Any, ...]


class RowsAsOf(NamedTuple):
    """Rows of a table that changes with each sealing, and the last entry that was sealed then."""

    sealed_to: int
    rows: Sequence[tuple[Any, ...]]


class ReadAhead(NamedTuple):
    """What processes can read ahead: the module that reads and its arguments, and which segments are sealed."""

    program: tuple[str, ...]
    sealed_to: int
    segment_entries: int


class Source(ABC):
    """One ledger, open for reading only. Units in its rows are whole numbers, or text where they are not."""

    #: The entries in a segment; known once :meth:`ledger_id` has returned one.
    segment_entries: int
    #: The last entry according to the store, for the report; 0 until it is known.
    head_seq: int = 0
    #: The last sealed entry according to the store, for the report.
    said_sealed_to: int = 0
    #: Entries that the journal has to have, as they were noted beside it.
    known_heads: Sequence[KnownHead] = ()
    #: Whether there are derived tables; without them :meth:`sealed_to` is 0, and nothing of them is asked.
    has_tables: bool = True
    #: What a second row of one balance is: its key allows one, unless that contains more than the name.
    second_balance: str = "row_repeated"
    #: How many entries are read at once.
    page_entries: int
    #: How many entries an audit with a pace leaves to be read within :meth:`snapshot`.
    snapshot_entries: int

    def __init__(self, findings: Findings) -> None:
        """Note what cannot be read, or is wrong, in *findings*."""
        self.findings = findings
        self._note = findings.add

    # --- the audit as a whole -----------------------------------------------------------------------------

    @abstractmethod
    def run(self, examine: Callable[[], None]) -> None:
        """Open the ledger, call *examine*, and close it; what is in the way of opening is noted."""

    @abstractmethod
    def noting(self, what: str) -> AbstractContextManager[None]:
        """Note what a block about *what* could not examine, and go on behind it."""

    def examining(self, what: str) -> AbstractContextManager[None]:
        """Like :meth:`noting`, for a block that reads: a failed query ends nothing but the block."""
        return self.noting(what)

    @abstractmethod
    def check_structure(self) -> None:
        """Check what needs no entry and no row, such as the schema."""

    @abstractmethod
    def ledger_id(self) -> str | None:
        """Return which ledger it is; None, which is noted, if the entries cannot be read without that."""

    @abstractmethod
    def begin_entries(self) -> None:
        """Find out which entries there are, and check what the store says of them."""

    @abstractmethod
    def check_end(self, journal: JournalPass) -> None:
        """Compare the rows of one row, such as that of the ledger, with the *journal*, read to its last entry."""

    def leave_out_entries(self) -> None:
        """Note that the row of the ledger is missing, without which no hash can be checked."""
        self._note("ledger_row_missing", None, "ledger", "no row", "one row")
        self.findings.leave_out("the entries: which ledger it is, is not known")

    def check_epoch(self, epoch_seq: object, journal: JournalPass) -> None:
        """Compare where the row of the ledger says that the epoch began with the entries."""
        begun_seq = journal.epochs.begun_seq
        if epoch_seq != begun_seq:
            found = f"the epoch began with entry {epoch_seq}"
            self._note("ledger_row_wrong", None, "ledger", found, f"entry {begun_seq}")

    @abstractmethod
    def check_beside(self, journal: JournalPass) -> None:
        """Check what is not of the journal, such as access keys, as far as it was read."""

    @abstractmethod
    def advice(self) -> list[str]:
        """Return what to do about the findings, as sentences."""

    def ahead(self) -> ReadAhead | None:
        """Return what processes can read ahead, as far as that is known before anything is checked."""
        return None

    # --- the journal --------------------------------------------------------------------------------------

    @abstractmethod
    def last_seq(self) -> int:
        """Return the last entry to be read."""

    @abstractmethod
    def sealed_to(self) -> int:
        """Return the last entry that the derived tables contain, at most the last entry."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[None]:
        """Read all of the block in one snapshot, if the store can do so without holding up its writers."""

    @abstractmethod
    def entries(self, first: int, last: int) -> list[EntryRow]:
        """Return the entries from *first* to *last* that are there, in order, without those that cannot be read."""

    @abstractmethod
    def seq_after(self, seq: int, last: int) -> int | None:
        """Return the first entry behind *seq*, none above *last*; None if there is none."""

    @abstractmethod
    def body(self, seq: int) -> bytes | None:
        """Return the body of one entry, or None if it is not there or cannot be read."""

    # --- what is derived from it --------------------------------------------------------------------------

    def is_comparable(self, first: int, last: int) -> bool:
        """Say whether the entries *first* to *last*, all of one segment, can be compared with the tables alone."""
        return True

    @abstractmethod
    def compare_keys(self, journal: JournalPass, segment: int, first: int, *, is_sealed: bool) -> None:
        """Compare the keys of the entries from *first* on, collected in *journal*, with those that the store has."""

    @abstractmethod
    def compare_references(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries have which reference with the index of *segment*."""

    @abstractmethod
    def compare_history(self, journal: JournalPass, segment: int, first: int) -> None:
        """Compare which entries touched which lines with the history of *segment*."""

    @abstractmethod
    def holds_opened(self, first: int, last: int) -> Iterable[HoldRow]:
        """Give the rows of the holds with ids from *first* to *last*."""

    @abstractmethod
    def holds_of(self, ids: Sequence[int]) -> RowsAsOf:
        """Return the rows of the holds with these *ids*."""

    @abstractmethod
    def balances(self) -> Iterator[RowsAsOf]:
        """Give all balances, some at a time."""

    @abstractmethod
    def check_line(self, journal: JournalPass, line: Line, row: BalanceRow, sealed_to: int) -> None:
        """Check what else the *row* of a balance has."""

    @abstractmethod
    def listed(self, table: str) -> Iterator[RowsAsOf]:
        """Give the rows of ``coin``, ``customer`` or ``reversal``: a name, then what else is listed of it."""

    @abstractmethod
    def check_derived(self, journal: JournalPass) -> None:
        """Check what else there is: indexes, counts, and rows of entries that do not exist."""
