"""
The operations of the operator API, one class each, with the names of the library.

Amounts are decimal text or ``Decimal``; a float is refused because it is not exact. The service checks everything else,
and its refusals name the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, TypeAlias

from spotledger import paths
from spotledger.errors import InvalidAmount, InvalidRequest

Amount: TypeAlias = str | Decimal
#: A position in the journal: a number, which means epoch 1, or text such as ``"2-42"``.
Position: TypeAlias = int | str


class HoldKey(NamedTuple):
    """Names a hold by the idempotency key that opened it."""

    key: str


HoldName: TypeAlias = str | HoldKey


class CoinAmount(NamedTuple):
    """An amount of a named coin."""

    coin: str
    amount: Amount


@dataclass(frozen=True, slots=True)
class SettleSide:
    """
    One side of a fill: the hold that pays, its fee, how much more of it to release (``"rest"``: all), and dust.

    *customer*, *coin* and *epoch* are preconditions that the hold has to meet.
    """

    hold: HoldName
    fee: CoinAmount | None = None
    release: Amount | None = None
    dust: CoinAmount | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """One write. It happens once under its idempotency key, even if it is sent again."""

    op: ClassVar[str]
    path: ClassVar[str]
    key: str

    def body(self) -> dict[str, Any]:
        """Return the body of the request; optional fields that are None are left out."""
        return _json_of(self, skip="key")


@dataclass(frozen=True, slots=True)
class ListCoin(Operation):
    """List a coin with *scale* decimals (0–18). Not for a batch."""

    op = "list_coin"
    path = paths.COINS
    coin: str
    scale: int


@dataclass(frozen=True, slots=True)
class RegisterCustomer(Operation):
    """Register a customer. Not for a batch."""

    op = "register_customer"
    path = paths.CUSTOMERS
    customer: str


@dataclass(frozen=True, slots=True)
class Deposit(Operation):
    """Book money that came in from outside."""

    op = "deposit"
    path = paths.DEPOSITS
    customer: str
    coin: str
    amount: Amount
    account: str = "spot"
    reference: str | None = None
    happened_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Freeze(Operation):
    """Move a customer's money from available to freeze, and open a hold for it."""

    op = "freeze"
    path = paths.HOLDS
    customer: str
    coin: str
    amount: Amount
    account: str = "spot"
    reference: str | None = None
    expires_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Unfreeze(Operation):
    """Release *amount* of a hold, or all that remains of it; the rest are preconditions that the hold has to meet."""

    op = "unfreeze"
    path = paths.RELEASES
    hold: HoldName
    amount: Amount | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Withdraw(Operation):
    """
    Book money that went outside, from a hold or from a customer's available.

    Beside a hold, *customer*, *coin* and *epoch* are preconditions.
    """

    op = "withdraw"
    path = paths.WITHDRAWALS
    amount: Amount
    customer: str | None = None
    coin: str | None = None
    account: str | None = None
    hold: HoldName | None = None
    reference: str | None = None
    happened_ms: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer(Operation):
    """Move available money to another account."""

    op = "transfer"
    path = paths.TRANSFERS
    from_customer: str
    to_customer: str
    coin: str
    amount: Amount
    from_account: str = "spot"
    to_account: str = "spot"
    reference: str | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of the request."""
        body: dict[str, Any] = {
            "from": {"customer": self.from_customer, "account": self.from_account},
            "to": {"customer": self.to_customer, "account": self.to_account},
            "coin": self.coin,
            "amount": amount_text(self.amount),
        }
        return body if self.reference is None else {**body, "reference": self.reference}


@dataclass(frozen=True, slots=True)
class Settle(Operation):
    """Book one fill of a trade as one entry."""

    op = "settle"
    path = paths.SETTLEMENTS
    base: str
    quote: str
    base_amount: Amount
    quote_amount: Amount
    buyer: SettleSide
    seller: SettleSide
    reference: str | None = None
    happened_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Reverse(Operation):
    """
    Reverse the deposit, withdrawal, transfer or settlement of the entry *seq*, once.

    *customer*, *coin* and *epoch* are preconditions that the entry has to meet.
    """

    op = "reverse"
    path = paths.REVERSALS
    seq: Position
    reason: str
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None


def amount_text(amount: object, field: str = "amount") -> str:
    """
    Return *amount* as decimal text.

    Raises:
        InvalidAmount: It is neither text nor a finite ``Decimal``.
    """
    if isinstance(amount, str):
        return amount
    if isinstance(amount, Decimal) and amount.is_finite():
        return f"{amount:f}"
    raise InvalidAmount(f"{field} is a {type(amount).__name__}; decimal text or a Decimal would pass", field=field)


def _json_of(value: Any, skip: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields(value):
        content = getattr(value, field.name)
        if field.name != skip and not (content is None and field.default is None):
            found[field.name] = _json(field.name, content)
    return found


def _json(name: str, content: Any) -> Any:
    if isinstance(content, SettleSide):
        return _json_of(content)
    if isinstance(content, HoldKey):
        return {"key": content.key}
    if isinstance(content, CoinAmount):
        return {"coin": content.coin, "amount": amount_text(content.amount, f"{name}.amount")}
    if name.endswith("amount") or name == "release":
        return amount_text(content, name)
    return content


def batch_body(operations: Sequence[Operation], chains: Sequence[str | None] | None, atomic: bool) -> Mapping[str, Any]:
    """
    Return the body of a batch of *operations*.

    Raises:
        ValueError: *chains* does not have one text or None per operation.
    """
    if chains is None:
        chains = [None] * len(operations)
    if len(chains) != len(operations):
        raise ValueError(f"{len(chains)} chains are given for {len(operations)} operations; one for each would pass")
    said = [
        {"op": operation.op, "key": operation.key, **operation.body(), **({} if chain is None else {"chain": chain})}
        for operation, chain in zip(operations, chains, strict=True)
    ]
    return {"operations": said, "atomic": atomic}


def texts_of(texts: Sequence[str], field: str) -> list[str]:
    """
    Return *texts* as a list.

    Raises:
        InvalidRequest: It is a single text, which would be sent as the list of its characters.
    """
    if isinstance(texts, str):
        raise InvalidRequest(f"{field} is the text {texts!r}; a list of texts would pass", field=field)
    return list(texts)
