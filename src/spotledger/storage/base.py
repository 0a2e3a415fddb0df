"""
The port of the stores: what the ledger needs of whatever stores the journal.

A write goes ``begin`` → ``load`` → (rules) → ``write`` → ``commit`` → ``publish``. It ends with ``leave`` instead if
the rules decide nothing to write, and with ``recover`` if a step fails. Entries become visible to reads at ``publish``,
not before. ``begin``, ``leave`` and ``commit`` wait for a disk or a server: they are steps
(:mod:`spotledger.storage.steps`). The library drives them by blocking, the writer on the event loop. ``begin`` and
``load`` of the next write may come while ``commit`` of the last one waits.

A store that other nodes write, too, may let a group be decided before it has the write lock. It then compares the head
under the lock, before it writes anything, and raises :class:`StaleDecision` if the head is another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from spotledger.domain.accounts import Account, Balance, Coin, HouseAccount
from spotledger.domain.books import Decision, Line
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.steps import Steps

T = TypeVar("T")


class Head(NamedTuple):
    """The last durable entry: its ``seq`` (0 in an empty journal), hash and time in ms since 1970."""

    seq: int
    hash: bytes
    booked_ms: int


#: The owner, in a trial balance, of the sums of all customers.
CUSTOMERS: Final = "customers"


class Wanted(NamedTuple):
    """What the rules will read for a group of operations, so that a store can look it all up at once."""

    #: The idempotency keys of the operations, and those by which holds are named.
    keys: Sequence[str]
    hold_keys: Sequence[str]
    holds: Collection[int]
    #: The accounts that are named, including house accounts; without those of the holds.
    accounts: Collection[Account]
    #: The entries to reverse.
    entries: Collection[int]


class TrialBalance(NamedTuple):
    """The balances of all customers together, and of each house account, by coin, in units after the entry *seq*."""

    seq: int
    #: By owner (:data:`CUSTOMERS`, ``@external`` …; ``@receivable`` for all debts) and coin.
    sums: Mapping[tuple[str, str], Balance]


class Looked(NamedTuple):
    """The entries that were found, in order, and the last entry that was looked at: up to it there are no others."""

    entries: list[Entry]
    to_seq: int


class AccountView(Protocol):
    """One account at the head; the same object until it is dropped from memory."""

    account: Account
    #: What groups decide, by coin; only whoever writes may use it.
    lines: dict[str, Line]

    @property
    def changed_seq(self) -> int:
        """The last entry that changed the account; 0 if none did."""

    @property
    def balances(self) -> Mapping[str, Balance]:
        """Balances in units of all coins that the account ever had, read-only; a changed balance is a new object."""

    def balance(self, coin: str) -> Balance:
        """Return the balance of *coin* in units; zero on both sides if the account never had it."""


class BooksDamaged(LedgerCorrupt):
    """Something derived does not check; it is made again from the journal, which is not in doubt."""

    stops_writes = False


class StaleDecision(StoreUnavailable):
    """A group was decided on something that is not, or may not be, what the journal has; decide it again."""

    def __init__(self, found: str = "the journal went on, or memory lacks something") -> None:
        """Say what was *found*."""
        super().__init__(f"the operations have to be decided again: {found}; try again with the same idempotency key")


class StoreTime(NamedTuple):
    """The time by the clock that all writers of the journal share, as far as it is known."""

    #: In ms since 1970; it is over.
    now_ms: int
    #: How many ms more than the question took may have passed since.
    spread_ms: int = 0


class Books(Protocol):
    """What the rules read for a group, at the head on which it is decided."""

    @property
    def head(self) -> Head:
        """The last durable entry."""

    @property
    def epochs(self) -> Epochs:
        """The epochs of the journal; another object after one begins."""

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; a new object after each listing."""

    @property
    def debtors(self) -> set[str]:
        """The customers who owe something, and maybe others; who decides a reversal adds to it before the commit."""

    @property
    def house_accounts(self) -> Mapping[str, HouseAccount]:
        """The open house accounts by name, sorted; a new object after one is opened."""

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each of *keys* that is known."""

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Load what the rules will read, in a few queries however much it is."""

    def has_customer(self, customer: str) -> bool:
        """Return whether *customer* is registered."""

    def account(self, account: Account) -> AccountView:
        """Return the account at the head."""

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold at the head, or None."""

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return the ids of at most *limit* open holds that expire at or before *now_ms*."""

    def entry(self, seq: int) -> Entry | None:
        """Return one entry, or None."""

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""


class Store(Books, Protocol):
    """Stores the journal and what is derived from it."""

    ledger_id: str
    #: Access keys and operator tokens, which are not in the journal.
    key_tables: Any
    #: Whether a write waits for a server. Reads then go on meanwhile, and the store locks its own memory.
    remote: bool
    #: How often what is derived was found damaged or missing, and made again; 0 where a server keeps it.
    rebuilds: int

    @property
    def ahead(self) -> Books | None:
        """What a group reads that began before it has the write lock; None if it has it, or nobody else writes."""

    @property
    def is_crowded(self) -> bool:
        """
        Whether the next write has to wait for the end of the last one.

        Memory has to shrink, which it can only between two writes that do not overlap, or other nodes write in between.
        """

    @property
    def sealing_lag(self) -> int:
        """Entries of full segments that are not sealed yet, as far as is known here."""

    @property
    def sealing_restarts(self) -> int:
        """How often the process that seals ended and was started again, or is about to be."""

    @property
    def takes_writes(self) -> bool:
        """Whether anything can be written now: not on a standby, nor before all idempotency keys are known."""

    @property
    def rebuilding(self) -> str | None:
        """How far what is derived has been made again, in words; None where it is whole."""

    def go_on_rebuilding(self) -> None:
        """Take over what has been made again; does not wait for it, and does nothing where all is whole."""

    def begin(self, wanted: Wanted, *, ahead: bool = False) -> Steps[StoreTime | None]:
        """
        Take the journal's write lock, and bring ``head`` to the last entry; or set ``ahead`` and take the lock later.

        Args:
            wanted: What the rules will read.
            ahead: Whether another group is being committed, on top of which this one is decided.

        Returns:
            The time by the clock that all writers of the journal share; None if there is one writer.

        Raises:
            StaleDecision: The group has to wait for the end of the other one.
        """

    def leave(self, *, repeated: bool = False, void: bool = False) -> Steps[None]:
        """
        Release the write lock with nothing written.

        Args:
            repeated: Whether kept results are answered, which must be durable.
            void: Whether what was decided is dropped; nothing of it is answered.

        Raises:
            StaleDecision: The group was decided before it had the lock, and the head is another.
        """

    def balances_now(self, account: Account) -> Mapping[str, Balance]:
        """Return the balances of the account at the head, by coin; the mapping may change later."""

    def at_one_head(self, read: Callable[[], T]) -> tuple[int, T]:
        """Return the entry that all of an answer stands for, and the answer; *read* returns it, and may be repeated."""

    def balances_at(self, account: Account, seq: int, coin: str | None = None) -> dict[str, Balance]:
        """Return the balances of the account, or that of *coin*, after the entry *seq*, which is at most the head."""

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """
        Return holds of *customer* by id.

        Args:
            customer: The owner of the holds.
            state: ``open``, ``closed``, or None for both.
            after: Only holds with ids above it.
            limit: The most holds to return.
        """

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return at most *limit* open holds with ids above *after* that were opened up to *before_ms*, by id."""

    def trial_balance(self, at_seq: int | None = None) -> TrialBalance:
        """
        Add up all durable balances, now or as they stood after the entry *at_seq*, which is at most the head.

        Blocks; may run in another thread beside writes.
        """

    def customers(self, after: str, limit: int) -> list[str]:
        """Return at most *limit* customers with ids above *after*, by id."""

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """Return at most *limit* durable entries after *after_seq*, in order."""

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 if there is none."""

    def entries_of(self, seqs: Sequence[int]) -> list[Entry]:
        """Return the durable entries *seqs*, which rise and exist, in order."""

    def account_seqs(self, accounts: Sequence[Account], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return at most *limit* entries after *after_seq* that changed *coin*, or any, of *accounts*, in order."""

    def entries_with_reference(self, reference: str, after_seq: int, limit: int) -> Looked:
        """Return at most *limit* entries after *after_seq* with this *reference*; looks at a bounded part of them."""

    def check_write_lock(self) -> None:
        """
        Check that the write lock is still held, so that what was read since :meth:`begin` is still true.

        Raises:
            StoreUnavailable: Others have written since; what was decided is void.
            StaleDecision: The same, of a group that does not have the lock yet.
        """

    def write(self, entries: Sequence[Entry]) -> None:
        """
        Append *entries*, which follow the head or the last write without a gap; they are not visible yet.

        A group comes in several pieces; a ``remote`` store writes one while the next is decided.
        """

    def commit(self) -> Steps[None]:
        """Make the written entries durable."""

    def note_time(self) -> None:
        """Note the time between two groups, where the store notes it."""

    def try_writing(self) -> None:
        """Write and sync something without a meaning; raises StoreUnavailable if that fails."""

    def publish(self, entries: Sequence[Entry], decisions: Sequence[Decision] = ()) -> None:
        """Make the committed *entries* visible; *decisions*, if given, are those of which they were made."""

    def recover(self) -> None:
        """Roll back, and rebuild memory from the journal."""

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy all that is durable to the empty file *target*, in small steps beside writes."""

    def close(self) -> None:
        """Close the store."""
