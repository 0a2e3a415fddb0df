"""
What the operations of the operator client have in common: how they become the body of a request.

Amounts are decimal text or ``Decimal``; a float is refused because it is not exact. The service checks everything else,
and its refusals name the field. The operations themselves are in ``operations.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, TypeAlias

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


class Part:
    """A part of a body, with fields of its own."""

    __slots__ = ()
    #: The fields that are amounts.
    amounts: ClassVar[frozenset[str]] = frozenset()
    #: The fields that are about one end of a transfer: the name of the end, and theirs within it.
    ends: ClassVar[Mapping[str, tuple[str, str]]] = {}

    def body(self) -> dict[str, Any]:
        """Return the body of the request; optional fields that are None are left out."""
        body: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]  # each class is a dataclass
            value = getattr(self, field.name)
            if field.name == "key" or (value is None and field.default is None):
                continue
            end, name = self.ends.get(field.name, ("", field.name))
            within = body.setdefault(end, {}) if end else body
            within[name] = amount_text(value, field.name) if field.name in self.amounts else _json(value, field.name)
        return body


@dataclass(frozen=True, slots=True)
class Operation(Part):
    """One write. It happens once under its idempotency key, even if it is sent again."""

    op: ClassVar[str]
    path: ClassVar[str]
    key: str


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


def _json(value: Any, field: str) -> Any:
    if isinstance(value, Part):
        return value.body()
    if isinstance(value, (list, tuple)) and not isinstance(value, (HoldKey, CoinAmount)):
        return [_json(part, f"{field}[{place}]") for place, part in enumerate(value)]
    if isinstance(value, HoldKey):
        return {"key": value.key}
    if isinstance(value, CoinAmount):
        return {"coin": value.coin, "amount": amount_text(value.amount, f"{field}.amount")}
    return value


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
