"""
The port of the store: what the ledger asks of whatever remembers the journal.

A write goes ``begin`` → ``load`` → (rules) → ``write`` → ``commit`` → ``publish``. Where the rules leave nothing to
write it ends with ``leave`` instead, and with ``recover`` where a step failed. What was written becomes visible to
reads at ``publish`` and not before. ``begin``, ``leave`` and ``commit`` wait for a disk or a server: they are steps
(:mod:`spotledger.storage.steps`), which the library drives by blocking and the writer on the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from spotledger.domain.accounts import Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold
from spotledger.storage.steps import Steps


class Head(NamedTuple):
    """The last entry that is durable: its ``seq`` (0 where there is none), hash and time in milliseconds."""

    seq: int
    hash: bytes
    booked_ms: int


#: The owner of a sum of the trial balance that stands for all customers.
CUSTOMERS: Final = "customers"


class Wanted(NamedTuple):
    """What the rules will ask for of a group of operations, so that a store can look it all up at once."""

    #: The idempotency keys of the operations, and those by which holds are named.
    keys: Sequence[str]
    hold_keys: Sequence[str]
    holds: Collection[int]
    #: The accounts that are named, the house's included; those of the holds come on top.
    accounts: Collection[Account]
    #: The entries that are to be reversed.
    entries: Collection[int]


class TrialBalance(NamedTuple):
    """What all customers together, and each house account, have of each coin after the entry *seq*, in units."""

    seq: int
    #: By owner (:data:`CUSTOMERS`, ``@external`` …; ``@receivable`` for all that owe) and coin.
    sums: Mapping[tuple[str, str], Balance]


class AccountView(Protocol):
    """One account as it stands at the head; the same object until it is dropped from memory."""

    @property
    def changed_seq(self) -> int:
        """The last entry that touched the account; 0 where none did."""

    @property
    def balances(self) -> Mapping[str, Balance]:
        """Balances in units of the coins that were ever touched, read-only; a changed one is another object."""

    def balance(self, coin: str) -> Balance:
        """Return the balance of *coin* in units; zero on both sides where it was never touched."""


class Store(Protocol):
    """Remembers the journal, and what is derived from it."""

    ledger_id: str
    epoch: int
    #: Access keys and operator tokens, which are not in the journal.
    key_tables: Any
    #: Whether a write waits for a server: reads go on beside it then, and the store guards its own memory.
    remote: bool

    @property
    def head(self) -> Head:
        """The last durable entry."""

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; another object after each listing."""

    def begin(self, wanted: Wanted) -> Steps[int | None]:
        """
        Take the journal's turn: nobody else writes until it ends, and ``head`` is the last entry there is.

        Returns:
            The time in milliseconds by the clock that all writers of this journal share; None where there is one.
        """

    def leave(self, *, repeated: bool) -> Steps[None]:
        """Give the turn back with nothing written; *repeated*: kept results are answered, and have to be durable."""

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each key that is known."""

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Bring into memory what the rules will ask for, in a few queries whatever the number."""

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""

    def account(self, account: Account) -> AccountView:
        """Return the account as it stands at the head."""

    def balances_at(self, account: Account, seq: int) -> dict[str, Balance]:
        """Return the balances of the account as they stood after the entry *seq*, at most the head's."""

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands at the head."""

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer* with ids above *after*, in order of their ids."""

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds of anybody that were opened at or before *before_ms*, in order of their ids."""

    def trial_balance(self) -> TrialBalance:
        """Add up all that is durable. Blocks; may run in another thread while others write."""

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return ids of open holds whose time has come."""

    def customers(self, after: str, limit: int) -> list[str]:
        """Return customers in the order of their ids."""

    def entry(self, seq: int) -> Entry | None:
        """Return one entry."""

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """Return entries in order."""

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 where there is none."""

    def account_seqs(self, owners: Sequence[str], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that touched accounts of any of *owners*, in order."""

    def check_write_lock(self) -> None:
        """
        Make sure that what was looked up since :meth:`begin` is true still.

        Raises:
            StoreUnavailable: Others have written since; what was decided on it means nothing.
        """

    def write(self, entries: Sequence[Entry]) -> None:
        """
        Append *entries*, which follow the head, or what was written since, without a gap; nothing is visible yet.

        A group comes in several pieces; a store that is ``remote`` is busy with one while the next is decided.
        """

    def commit(self) -> Steps[None]:
        """Make what was written durable."""

    def try_writing(self) -> None:
        """Write and sync something that means nothing; raises StoreUnavailable where that fails."""

    def publish(self, entries: Sequence[Entry]) -> None:
        """Make the committed *entries* visible."""

    def recover(self) -> None:
        """Throw away what was written and all that memory holds, and build it again from the journal."""

    def copy_to(self, target: Path, progress: Callable[[int, int], None]) -> None:
        """Copy all that is durable to the empty file *target*, in small steps, while others go on writing."""

    def close(self) -> None:
        """Let go of the journal."""
