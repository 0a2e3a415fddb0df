"""
The journal's records: entries, their postings, and the holds that entries open and use.

An entry carries its key, its canonical request and the balances after it, so that one append makes the movement, its
once-only and its result durable together, and everything else about money can be derived from entries alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from spotledger.domain.accounts import HOUSE_KIND, Account
from spotledger.domain.amounts import normal_amount, parse_amount
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import InvalidAmount

#: Version of the canonical request that entries keep.
REQUEST_FORMAT: Final = 1

#: Makes a named tuple of a class and a tuple of its values, in half the time that calling the class takes.
new_tuple = tuple.__new__

AVAILABLE: Final = "available"
FREEZE: Final = "freeze"


class Posting(NamedTuple):
    """One signed line of an entry: *units* onto one side of one account; the hold it opens or uses, on freeze."""

    account: Account
    coin: str
    side: str
    units: int
    hold: int | None = None


class BalanceAfter(NamedTuple):
    """Both sides of one account and coin after an entry, in units."""

    account: Account
    coin: str
    available: int
    freeze: int


class HoldAfter(NamedTuple):
    """What remains of a hold after an entry, in units."""

    hold: int
    remaining: int


class Hold(NamedTuple):
    """One freeze: opened by the entry whose ``seq`` is its id, used in parts, closed when nothing remains."""

    hold_id: int
    account: Account
    coin: str
    amount: int
    remaining: int
    reference: str | None
    expires_ms: int | None
    opened_ms: int
    closed_seq: int | None = None

    @property
    def state(self) -> str:
        """``"open"`` while something remains, else ``"closed"``."""
        return "open" if self.closed_seq is None else "closed"

    def after(self, remaining: int, seq: int) -> Hold:
        """Return this hold as the entry *seq* leaves it, with *remaining* units."""
        hold_id, account, coin, amount, _, reference, expires_ms, opened_ms, _ = self
        closed_seq = None if remaining else seq
        values = (hold_id, account, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq)
        return new_tuple(Hold, values)


@dataclass(slots=True)
class Entry:
    """
    One immutable record of the journal. (Not a frozen class: making one would take five times as long.)

    ``seq`` counts 1, 2, 3 … without gaps; ``booked_ms`` never falls along it. ``request`` is the canonical request.
    A kept refusal has a ``refusal`` (code, detail, details) and no postings; so has a listing or a registering none.
    """

    seq: int
    kind: str
    key: str
    booked_ms: int
    request: dict[str, Any]
    postings: tuple[Posting, ...] = ()
    balances: tuple[BalanceAfter, ...] = ()
    holds: tuple[HoldAfter, ...] = ()
    happened_ms: int | None = None
    refusal: dict[str, Any] | None = None

    def posting_balances(self) -> list[int]:
        """Return the balance of its side after each posting, worked back from the balances after the entry."""
        sides = {}
        for account, coin, available, freeze in self.balances:
            sides[account, coin, AVAILABLE] = available
            sides[account, coin, FREEZE] = freeze
        after = []
        for posting in reversed(self.postings):
            line = (posting.account, posting.coin, posting.side)
            after.append(sides[line])
            sides[line] -= posting.units
        after.reverse()
        return after


def opens_hold(entry: Entry) -> bool:
    """Say whether *entry* opened a hold, which then has its number; a refused freeze has no postings and opens none."""
    return entry.kind == Freeze.kind and bool(entry.postings)


def opened_hold(entry: Entry, account: Account | None = None, coin: str | None = None) -> Hold | None:
    """
    Return the hold that *entry* opened, as it was then, or None.

    Where *account* and *coin* are given, they equal those of the entry: the hold then shares them with many others.
    """
    if not opens_hold(entry):
        return None
    posted_to, posted_coin, _, units, _ = entry.postings[1]
    account, coin, request = account or posted_to, coin or posted_coin, entry.request
    reference, expires_ms = request.get("reference"), request.get("expires_ms")
    return Hold(entry.seq, account, coin, units, units, reference, expires_ms, entry.booked_ms)


def is_house(account: Account) -> bool:
    """Say whether *account* is the house's own."""
    return account.kind == HOUSE_KIND


def canonical_request(operation: Operation, units: int | None, coin: str | None) -> dict[str, Any]:
    """
    Return what is kept of a request: operation, units, named defaults filled in, absent optionals left out.

    Args:
        operation: The operation as asked for.
        units: Its amount in units, or None where the coin is unknown; then the amount stays decimal text.
        coin: The coin that the hold is of, for operations that name a hold.
    """
    kind = type(operation)
    request: dict[str, Any] = {"format": REQUEST_FORMAT, "op": kind.kind}
    _add_content(request, operation)
    amount = operation.amount if kind in _WITH_AMOUNT else None  # type: ignore[union-attr]
    if coin is not None and amount is not None:
        request.setdefault("coin", coin)
    if units is not None:
        request["units"] = str(units)
    elif amount is not None:
        request["amount"] = normal_amount(amount)
    return request


def differing_field(kept: dict[str, Any], operation: Operation, scale_of: Callable[[str], int]) -> str | None:
    """
    Name the first field in which *operation* differs from the *kept* canonical request, or None where it is the same.

    Args:
        kept: The request of the entry that has the operation's key.
        operation: What is asked for now, under the same key.
        scale_of: The scale of a listed coin.
    """
    if kept["op"] != operation.kind:
        return "op"
    content: dict[str, Any] = {}
    _add_content(content, operation)
    for name in (*content, *kept):
        if name not in _AMOUNT_FIELDS and name not in _OWN_FIELDS and content.get(name) != kept.get(name):
            if name == "coin" and "hold" in kept and name not in content:
                continue
            return name
    amount = getattr(operation, "amount", None)
    return None if _same_amount(kept, amount, scale_of) else "amount"


_AMOUNT_FIELDS: Final = frozenset({"units", "amount"})
_OWN_FIELDS: Final = frozenset({"format", "op"})


def _same_amount(kept: dict[str, Any], amount: str | None, scale_of: Callable[[str], int]) -> bool:
    if amount is None:
        return not _AMOUNT_FIELDS & kept.keys()
    if "units" not in kept:
        return bool(kept.get("amount") == normal_amount(amount))
    try:
        return parse_amount(amount, scale_of(kept["coin"])) == int(kept["units"])
    except InvalidAmount:
        return False


def _add_content(request: dict[str, Any], operation: Operation) -> None:
    """Add the fields of a request but its key and its amount; absent optionals are left out."""
    kind = type(operation)
    request.update(_NAMED[kind](operation))
    for name in _OPTIONAL.get(kind, ()):
        value = getattr(operation, name)
        if value is not None:
            request[name] = value


def _of_customer(operation: Any) -> dict[str, Any]:
    return {"customer": operation.customer, "account": operation.account, "coin": operation.coin}


def _of_hold(operation: Any) -> dict[str, Any]:
    hold = operation.hold
    return {"hold": {"key": hold.key} if isinstance(hold, HoldKey) else hold}


def _of_withdraw(operation: Withdraw) -> dict[str, Any]:
    return _of_customer(operation) if operation.hold is None else _of_hold(operation)


def _of_transfer(operation: Transfer) -> dict[str, Any]:
    return {
        "from": {"customer": operation.from_customer, "account": operation.from_account},
        "to": {"customer": operation.to_customer, "account": operation.to_account},
        "coin": operation.coin,
    }


#: What an operation is about, by its class.
_NAMED: Final[dict[type[Any], Callable[[Any], dict[str, Any]]]] = {
    ListCoin: lambda operation: {"coin": operation.coin, "scale": operation.scale},
    RegisterCustomer: lambda operation: {"customer": operation.customer},
    Deposit: _of_customer,
    Freeze: _of_customer,
    Unfreeze: _of_hold,
    Withdraw: _of_withdraw,
    Transfer: _of_transfer,
    Reverse: lambda operation: {"seq": operation.seq, "reason": operation.reason},
    Expire: _of_hold,
}
_WITH_AMOUNT: Final = frozenset({Deposit, Freeze, Unfreeze, Withdraw, Transfer})
_OPTIONAL: Final[dict[type[Any], tuple[str, ...]]] = {
    Deposit: ("reference", "happened_ms"),
    Freeze: ("reference", "expires_ms"),
    Withdraw: ("reference", "happened_ms"),
    Transfer: ("reference",),
}
