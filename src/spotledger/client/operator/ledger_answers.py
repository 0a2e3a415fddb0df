"""What the operator API answers, as typed values: amounts are exact ``Decimal``, ids are text, times milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple, TypeVar

from spotledger.errors import ProtocolError

T = TypeVar("T")
Json = Mapping[str, Any]


class SideBalance(NamedTuple):
    """Both sides of a balance."""

    available: Decimal
    freeze: Decimal


class Posting(NamedTuple):
    """One signed line of an entry, with the balance of its side after it."""

    customer: str
    account: str
    coin: str
    side: str
    amount: Decimal
    after: Decimal
    hold: str | None


class BalanceAfter(NamedTuple):
    """The balance of one account and coin at some position."""

    customer: str
    account: str
    coin: str
    available: Decimal
    freeze: Decimal


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the journal; ``refusal`` is there where it is a kept refusal."""

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: Json
    postings: tuple[Posting, ...]
    happened_ms: int | None = None
    holds: Mapping[str, Decimal] | None = None
    refusal: Json | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to a write: ``hold`` is the id of the hold that it opened, ``replayed`` whether it was done before."""

    seq: int
    entry: Entry
    balances: tuple[BalanceAfter, ...]
    hold: str | None
    replayed: bool


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold, open or closed."""

    hold: str
    customer: str
    account: str
    coin: str
    amount: Decimal
    remaining: Decimal
    state: str
    reference: str | None
    expires_ms: int | None
    opened_ms: int
    closed_seq: int | None
    age_ms: int
    key: str | None


@dataclass(frozen=True, slots=True)
class LedgerBalances:
    """What an account has of each coin at the position ``seq``, and what the customer owes."""

    seq: int
    epoch: int
    balances: Mapping[str, SideBalance]
    owes: Mapping[str, Decimal]

    def __getitem__(self, coin: str) -> SideBalance:
        """Return the balance of *coin*."""
        return self.balances[coin]


@dataclass(frozen=True, slots=True)
class HoldPage:
    """A page of holds; ``next_after`` is where the next one begins, None where there is none."""

    seq: int
    epoch: int
    holds: tuple[Hold, ...]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class EntryPage:
    """A page of the journal."""

    seq: int
    epoch: int
    entries: tuple[Entry, ...]
    next_after_seq: int


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of the entries about a customer, with the balances that it touches just before and after it."""

    seq: int
    epoch: int
    opening: tuple[BalanceAfter, ...]
    entries: tuple[Entry, ...]
    closing: tuple[BalanceAfter, ...]
    next_after_seq: int


@dataclass(frozen=True, slots=True)
class TrialCoin:
    """The sums of one coin: of all customers, of each house account, and of all of it, which is zero."""

    customers: SideBalance
    house: Mapping[str, Decimal]
    total: Decimal


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """The trial balance as of one entry."""

    seq: int
    epoch: int
    balanced: bool
    coins: Mapping[str, TrialCoin]


@dataclass(frozen=True, slots=True)
class Coin:
    """A listed coin: ``scale`` decimals, so 10**scale units are one coin."""

    coin: str
    scale: int


@dataclass(frozen=True, slots=True)
class Coins:
    """The listed coins by name."""

    seq: int
    epoch: int
    coins: Mapping[str, Coin]

    def __getitem__(self, coin: str) -> Coin:
        """Return the listing of *coin*."""
        return self.coins[coin]


@dataclass(frozen=True, slots=True)
class CustomerPage:
    """A page of the customers' ids; ``next_after`` is where the next one begins, None where there is none."""

    seq: int
    epoch: int
    customers: tuple[str, ...]
    next_after: str | None


def read(make: Callable[[Json], T], answer: Json) -> T:
    """
    Return what *make* reads in *answer*.

    Raises:
        ProtocolError: It is not of the documented form.
    """
    try:
        return make(answer)
    except (KeyError, TypeError, ValueError, AttributeError, InvalidOperation):
        problem = f"the answer cannot be read as {make.__name__.replace('_', ' ')}"
    raise ProtocolError(problem)


def written(answer: Json, replayed: bool = False) -> Written:
    """Read the answer to a write."""
    again = replayed or answer.get("replayed") is True
    return Written(int(answer["seq"]), entry(answer["entry"]), _afters(answer["balances"]), answer.get("hold"), again)


def entry(said: Json) -> Entry:
    """Read one entry."""
    holds = said.get("holds")
    return Entry(
        int(said["seq"]),
        str(said["kind"]),
        str(said["key"]),
        int(said["booked_ms"]),
        said["request"],
        tuple(_posting(line) for line in said["postings"]),
        said.get("happened_ms"),
        None if holds is None else {after["hold"]: _amount(after["remaining"]) for after in holds},
        said.get("refusal"),
    )


def hold(said: Json) -> Hold:
    """Read one hold."""
    return Hold(
        str(said["hold"]),
        said["customer"],
        said["account"],
        said["coin"],
        _amount(said["amount"]),
        _amount(said["remaining"]),
        said["state"],
        said["reference"],
        said["expires_ms"],
        said["opened_ms"],
        said["closed_seq"],
        said["age_ms"],
        said.get("key"),
    )


def hold_read(answer: Json) -> Hold:
    """Read the answer that is one hold."""
    return hold(answer["hold"])


def entry_read(answer: Json) -> Entry:
    """Read the answer that is one entry."""
    return entry(answer["entry"])


def reversed_by(answer: Json) -> int | None:
    """Read which entry reversed the one that the answer is."""
    found = answer["reversed_by"]
    return None if found is None else int(found)


def balances(answer: Json) -> LedgerBalances:
    """Read balances."""
    return LedgerBalances(
        answer["seq"],
        answer["epoch"],
        {coin: _sides(said) for coin, said in answer["balances"].items()},
        {coin: _amount(text) for coin, text in answer.get("owes", {}).items()},
    )


def hold_page(answer: Json) -> HoldPage:
    """Read a page of holds."""
    return HoldPage(answer["seq"], answer["epoch"], tuple(map(hold, answer["holds"])), answer["next_after"])


def entry_page(answer: Json) -> EntryPage:
    """Read a page of the journal."""
    return EntryPage(answer["seq"], answer["epoch"], tuple(map(entry, answer["entries"])), answer["next_after_seq"])


def statement(answer: Json) -> Statement:
    """Read a page of a statement."""
    return Statement(
        answer["seq"],
        answer["epoch"],
        _afters(answer["opening"]),
        tuple(map(entry, answer["entries"])),
        _afters(answer["closing"]),
        answer["next_after_seq"],
    )


def coins(answer: Json) -> Coins:
    """Read the listed coins."""
    listed = (Coin(str(said["coin"]), int(said["scale"])) for said in answer["coins"])
    return Coins(answer["seq"], answer["epoch"], {coin.coin: coin for coin in listed})


def customer_page(answer: Json) -> CustomerPage:
    """Read a page of customers."""
    return CustomerPage(answer["seq"], answer["epoch"], tuple(map(str, answer["customers"])), answer["next_after"])


def trial_balance(answer: Json) -> TrialBalance:
    """Read a trial balance."""
    coins = {
        name: TrialCoin(
            _sides(said["customers"]),
            {owner: _amount(text) for owner, text in said["house"].items()},
            _amount(said["total"]),
        )
        for name, said in answer["coins"].items()
    }
    return TrialBalance(answer["seq"], answer["epoch"], answer["balanced"] is True, coins)


def _posting(line: Json) -> Posting:
    return Posting(
        line["customer"],
        line["account"],
        line["coin"],
        line["side"],
        _amount(line["amount"]),
        _amount(line["after"]),
        line.get("hold"),
    )


def _afters(lines: Any) -> tuple[BalanceAfter, ...]:
    return tuple(BalanceAfter(line["customer"], line["account"], line["coin"], *_sides(line)) for line in lines)


def _sides(said: Json) -> SideBalance:
    return SideBalance(_amount(said["available"]), _amount(said["freeze"]))


def _amount(text: Any) -> Decimal:
    """Read decimal text; whatever else came is not what is documented."""
    amount = Decimal(text) if isinstance(text, str) else Decimal("NaN")
    if not amount.is_finite():
        raise ValueError
    return amount
