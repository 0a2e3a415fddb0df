"""The answers of the operator API about money. Amounts are exact ``Decimal``, ids are text, times are milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from msgspec import Struct, field

from spotledger.client.operator.decoding import ExactAmount

Json: TypeAlias = Mapping[str, Any]


class _Placed(Struct, frozen=True):
    """What has a place in the journal: ``seq`` is its number within its ``epoch``, ``position`` names it in every."""

    seq: int
    epoch: int

    @property
    def position(self) -> str:
        """The position: its number in epoch 1, ``EPOCH-SEQ`` in later ones."""
        return str(self.seq) if self.epoch == 1 else f"{self.epoch}-{self.seq}"


class _Read(_Placed, frozen=True):
    """An answer that stands for one position of the journal."""


class SideBalance(Struct, frozen=True):
    """Both sides of a balance."""

    available: ExactAmount
    freeze: ExactAmount


class Posting(Struct, frozen=True):
    """One signed line of an entry, with the balance of its side after it."""

    customer: str
    account: str
    coin: str
    side: str
    amount: ExactAmount
    after: ExactAmount
    hold: str | None = None


class BalanceAfter(Struct, frozen=True):
    """The balance of one account and coin at some position."""

    customer: str
    account: str
    coin: str
    available: ExactAmount
    freeze: ExactAmount


class HoldAfter(Struct, frozen=True):
    """What remains of a hold after an entry."""

    hold: str
    remaining: ExactAmount


class Entry(_Placed, frozen=True):
    """
    One entry of the journal; ``refusal`` is set on a kept refusal.

    ``actor`` is the credential behind it, and ``actor_label`` the label of the token, if it is one that is known.
    """

    kind: str
    key: str
    booked_ms: int
    actor: str
    request: Json
    postings: tuple[Posting, ...]
    happened_ms: int | None = None
    holds_after: tuple[HoldAfter, ...] | None = field(default=None, name="holds")
    refusal: Json | None = None
    actor_label: str | None = None

    @property
    def holds(self) -> Mapping[str, Decimal] | None:
        """What remains of each hold that the entry touched, by its id; None if it touched none."""
        return None if self.holds_after is None else {after.hold: after.remaining for after in self.holds_after}


class EntryRead(Struct, frozen=True):
    """One entry, and the entry that reversed it."""

    entry: Entry
    reversed_by: int | None


class Written(_Placed, frozen=True):
    """
    The answer to a write: ``hold`` is the id of the hold that it opened, ``replayed`` marks a repeat, and ``dry_run``
    that it was only tried.

    ``seq`` is the number of the entry within its ``epoch``; ``position`` names it in every epoch.
    """

    entry: Entry
    balances: tuple[BalanceAfter, ...]
    hold: str | None = None
    replayed: bool = False
    dry_run: bool = False


class Hold(Struct, frozen=True):
    """One hold, open or closed; one that is open and ``due`` is past its time, and cannot be used."""

    hold: str
    customer: str
    account: str
    coin: str
    amount: ExactAmount
    remaining: ExactAmount
    state: str
    reference: str | None
    expires_ms: int | None
    opened_ms: int
    closed_seq: int | None
    age_ms: int
    key: str | None = None
    due: bool = False


class HoldRead(Struct, frozen=True):
    """One hold, as the answer about it alone."""

    hold: Hold


class LedgerBalances(_Read, frozen=True):
    """The balance of each coin in an account at the position ``seq``, and what the customer owes."""

    balances: Mapping[str, SideBalance]
    owes: Mapping[str, ExactAmount] = {}

    def __getitem__(self, coin: str) -> SideBalance:
        """Return the balance of *coin*."""
        return self.balances[coin]


class HoldPage(_Read, frozen=True):
    """A page of holds; ``next_after`` is the ``after`` of the next page, None on the last."""

    holds: tuple[Hold, ...]
    next_after: str | None


class EntryPage(_Read, frozen=True):
    """A page of the journal; ``next`` is the position that the next page begins after."""

    entries: tuple[Entry, ...]
    next_after_seq: int
    next: str


class Statement(_Read, frozen=True):
    """A page of the entries about a customer, with the balances that it touches just before and after it."""

    opening: tuple[BalanceAfter, ...]
    entries: tuple[Entry, ...]
    closing: tuple[BalanceAfter, ...]
    next_after_seq: int
    next: str


class StatementBalance(Struct, frozen=True):
    """The balance of one account and coin; what the customer owes has a row of its own, with the account ``owed``."""

    account: str
    coin: str
    available: ExactAmount
    freeze: ExactAmount
    owes: ExactAmount


class StatementLine(_Placed, frozen=True):
    """What one entry changed of one account and coin, and the balance after it."""

    booked_ms: int
    kind: str
    account: str
    coin: str
    available: ExactAmount
    freeze: ExactAmount
    owes: ExactAmount
    available_after: ExactAmount
    freeze_after: ExactAmount
    owes_after: ExactAmount
    reference: str | None
    key: str


class AccountStatement(_Read, frozen=True):
    """
    A page of the statement of a period: an opening balance and the changes of its lines are the closing balance.

    ``next`` is the ``after_seq`` of the next page, None after the last.
    """

    customer: str
    opening: tuple[StatementBalance, ...]
    lines: tuple[StatementLine, ...]
    closing: tuple[StatementBalance, ...]
    next: str | None


class TrialCoin(Struct, frozen=True):
    """The sums of one coin: of all customers, of each house account, and the total, which is zero."""

    customers: SideBalance
    house: Mapping[str, ExactAmount]
    total: ExactAmount
    #: What is frozen of house accounts, which is not in ``house``.
    house_freeze: Mapping[str, ExactAmount] = {}


class TrialBalance(_Read, frozen=True):
    """The trial balance as of one entry."""

    balanced: bool
    coins: Mapping[str, TrialCoin]


class Coin(Struct, frozen=True):
    """A listed coin: ``scale`` decimals, so 10**scale units are one coin."""

    coin: str
    scale: int


class Coins(_Read, frozen=True):
    """The listed coins."""

    listed: tuple[Coin, ...] = field(name="coins")

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name."""
        return {coin.coin: coin for coin in self.listed}

    def __getitem__(self, coin: str) -> Coin:
        """Return the listing of *coin*."""
        return self.coins[coin]


class HouseAccount(Struct, frozen=True):
    """A house account: its name with ``@``, and whether its balances may be below zero."""

    name: str
    may_be_negative: bool


class HouseAccounts(_Read, frozen=True):
    """The house accounts, without what each customer owes."""

    house_accounts: tuple[HouseAccount, ...]


class CustomerPage(_Read, frozen=True):
    """A page of customer ids; ``next_after`` is the ``after`` of the next page, None on the last."""

    customers: tuple[str, ...]
    next_after: str | None
