"""
The request bodies of the operator API, and the operations that they ask for.

A struct has the fields that a body may and must have. Their values are checked by the operation that is made of them,
whose refusals name the field. So the same rules hold however a value arrives.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

import msgspec

from spotledger.domain.operations import (
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator.fields import (
    AccountField,
    AccountOrNone,
    AmountField,
    AmountOrNone,
    CoinField,
    CoinOrNone,
    CustomerField,
    CustomerOrNone,
    EpochOrNone,
    HoldField,
    HoldOrNone,
    ReasonField,
    ReferenceField,
    ReleaseField,
    ScaleField,
    SeqField,
    TimeField,
)

_MISSING = re.compile(r"missing required field `([^`]*)`(?: - at `\$\.?(.*)`)?\Z", re.DOTALL)
_UNKNOWN = re.compile(r"contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?\Z", re.DOTALL)
_PLACE = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
_FIELD_SHOWN_CHARACTERS: Final = 64
#: No call takes more values than this in its body, or in one operation; so many are looked at in a millisecond.
VALUES_LIMIT: Final = 1000
#: One of these precedes each member of an object or a list.
BEFORE_MEMBER: Final = (b",", b"[", b"{")
_encode = msgspec.json.Encoder().encode


class Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A JSON object with these fields and no others."""


class CoinBody(Body):
    """``POST /v1/coins``."""

    coin: CoinField
    scale: ScaleField

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return ListCoin(key, self.coin, self.scale)


class CustomerBody(Body):
    """``POST /v1/customers``."""

    customer: CustomerField

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return RegisterCustomer(key, self.customer)


class DepositBody(Body):
    """``POST /v1/deposits``."""

    customer: CustomerField
    coin: CoinField
    amount: AmountField
    account: AccountField = "spot"
    reference: ReferenceField = None
    happened_ms: TimeField = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Deposit(key, self.customer, self.coin, self.amount, self.account, self.reference, self.happened_ms)


class HoldBody(Body):
    """``POST /v1/holds``."""

    customer: CustomerField
    coin: CoinField
    amount: AmountField
    account: AccountField = "spot"
    reference: ReferenceField = None
    expires_ms: TimeField = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Freeze(key, self.customer, self.coin, self.amount, self.account, self.reference, self.expires_ms)


class ReleaseBody(Body):
    """``POST /v1/holds/{id}/release``: releases *amount*, or by default all that remains."""

    amount: AmountOrNone = None
    customer: CustomerOrNone = None
    coin: CoinOrNone = None
    epoch: EpochOrNone = None

    def release(self, key: str, hold: str) -> Operation:
        """Return the operation that the body asks for, on the hold that the path names."""
        return Unfreeze(key, hold, self.amount, self.customer, self.coin, self.epoch)


class UnfreezeBody(Body):
    """``POST /v1/releases``: a release that names its hold by its id or by the key that opened it."""

    hold: HoldField
    amount: AmountOrNone = None
    customer: CustomerOrNone = None
    coin: CoinOrNone = None
    epoch: EpochOrNone = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Unfreeze(key, hold_name(self.hold), self.amount, self.customer, self.coin, self.epoch)


class WithdrawalBody(Body):
    """``POST /v1/withdrawals``: out of a hold, or directly out of what a customer has available."""

    amount: AmountField
    customer: CustomerOrNone = None
    coin: CoinOrNone = None
    account: AccountOrNone = None
    hold: HoldOrNone = None
    reference: ReferenceField = None
    happened_ms: TimeField = None
    epoch: EpochOrNone = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Withdraw(
            key,
            self.amount,
            self.customer,
            self.coin,
            self.account,
            None if self.hold is None else hold_name(self.hold),
            self.reference,
            self.happened_ms,
            self.epoch,
        )


class AccountBody(Body):
    """One end of a transfer."""

    customer: CustomerField
    account: AccountField = "spot"


class TransferBody(Body, rename={"source": "from", "target": "to"}):
    """``POST /v1/transfers``."""

    source: AccountBody
    target: AccountBody
    coin: CoinField
    amount: AmountField
    reference: ReferenceField = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Transfer(
            key,
            self.source.customer,
            self.target.customer,
            self.coin,
            self.amount,
            self.source.account,
            self.target.account,
            self.reference,
        )


class CoinAmountBody(Body):
    """An amount of a coin; zero means none."""

    coin: CoinField
    amount: AmountField

    def parsed(self) -> CoinAmount:
        """Return the amount as the operation has it."""
        return CoinAmount(self.coin, self.amount)


class SideBody(Body):
    """One side of a fill: the hold that pays, with its preconditions, the fee, what else is released, and dust."""

    hold: HoldField
    fee: CoinAmountBody | None = None
    release: ReleaseField = None
    dust: CoinAmountBody | None = None
    customer: CustomerOrNone = None
    coin: CoinOrNone = None
    epoch: EpochOrNone = None

    def side(self, name: str) -> SettleSide:
        """Return the side; messages call it *name*."""
        return SettleSide(
            hold_name(self.hold, f"{name}.hold"),
            None if self.fee is None else self.fee.parsed(),
            self.release,
            None if self.dust is None else self.dust.parsed(),
            self.customer,
            self.coin,
            self.epoch,
        )


class SettlementBody(Body):
    """``POST /v1/settlements``: one fill; the buyer's hold is of the quote coin, the seller's of the base."""

    base: CoinField
    quote: CoinField
    base_amount: AmountField
    quote_amount: AmountField
    buyer: SideBody
    seller: SideBody
    reference: ReferenceField = None
    happened_ms: TimeField = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Settle(
            key,
            self.base,
            self.quote,
            self.base_amount,
            self.quote_amount,
            self.buyer.side("buyer"),
            self.seller.side("seller"),
            self.reference,
            self.happened_ms,
        )


class ReversalBody(Body):
    """``POST /v1/reversals``: reverse the deposit, withdrawal, transfer or settlement of an entry, with a reason."""

    seq: SeqField
    reason: ReasonField
    customer: CustomerOrNone = None
    coin: CoinOrNone = None
    epoch: EpochOrNone = None

    def operation(self, key: str) -> Operation:
        """Return the operation that the body asks for."""
        return Reverse(key, self.seq, self.reason, self.customer, self.coin, self.epoch)


class KeyBody(Body):
    """``POST /v1/keys``."""

    customer: CustomerField
    permissions: list[str]
    label: str = ""
    addresses: list[str] = []
    expires_ms: int | None = None


class RotateBody(Body):
    """``POST /v1/keys/{accesskey}/rotate``."""


class TokenBody(Body):
    """``POST /v1/tokens``."""

    scopes: list[str]
    label: str = ""
    addresses: list[str] = []
    expires_ms: int | None = None


B = TypeVar("B", bound=Body)


def hold_name(value: object, field: str = "hold") -> HoldName:
    """Return the hold that *value* names: its id as text, or ``{"key": K}``."""
    if isinstance(value, dict) and value.keys() == {"key"}:
        return HoldKey(value["key"])
    if isinstance(value, str):
        return value
    raise InvalidRequest(f'{field} is malformed; its id as a string, or {{"key": "…"}}, would pass', field=field)


def has_too_many_values(text: bytes) -> bool:
    """Return whether JSON may hold more values than any call takes; marks within strings count, too."""
    return len(text) > VALUES_LIMIT and sum(map(text.count, BEFORE_MEMBER)) > VALUES_LIMIT


def decode(body: bytes, kind: type[B]) -> B:
    """
    Return a body decoded as *kind*; refuse a name that is used twice in one object.

    Raises:
        MalformedRequest: The body is not JSON, or has more values than any call takes.
        InvalidRequest: A field is unknown, missing or wrong; ``field`` names it.
    """
    if has_too_many_values(body):
        raise MalformedRequest(f"The body has more than {VALUES_LIMIT} values; no call takes so many.")
    try:
        try:
            found = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as problem:
            msgspec.json.decode(body)  # if it is not JSON at all, say that first
            raise refusal_of(str(problem), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedRequest("The body is not JSON; one JSON object in UTF-8 would pass.") from None
    check_names_once(body, found)
    return found


def check_names_once(body: bytes, found: object) -> None:
    """Refuse a *body* in which an object has a name twice: its meaning would depend on the reader."""
    if not has_names_once(body, found):
        try:
            json.loads(body, object_pairs_hook=_names_once)
        except (ValueError, RecursionError):
            raise MalformedRequest("The body is not JSON; one JSON object in UTF-8 would pass.") from None


def has_names_once(body: bytes, found: object) -> bool:
    """
    Return True if each object of *body*, which decodes to *found*, certainly has each name only once.

    *found* encoded again has as many quotation marks as the body unless a name was lost, a default was sent, or
    something is escaped; only then the body has to be checked name by name.
    """
    return b"\\" not in body and _encode(found).count(b'"') == body.count(b'"')


def _names_once(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise InvalidRequest(
                f"{name[:_FIELD_SHOWN_CHARACTERS]} is used twice in one object; once would pass",
                field=name[:_FIELD_SHOWN_CHARACTERS],
            )
        names.add(name)


def refusal_of(problem: str, kind: type[Body]) -> InvalidRequest:
    """Return the refusal for a message of msgspec, whose form a test checks."""
    if missing := _MISSING.search(problem):
        field = _join(missing[2], missing[1])
        return InvalidRequest(f"{field} is missing", field=field)
    if unknown := _UNKNOWN.search(problem):
        field = _join(unknown[2], unknown[1])[:_FIELD_SHOWN_CHARACTERS]
        known = ", ".join(msgspec.structs.fields(kind)[i].encode_name for i in range(len(kind.__struct_fields__)))
        return InvalidRequest(f"{field} is not a field of this body; its fields are: {known or 'none'}", field=field)
    if place := _PLACE.search(problem):
        field = re.sub(r"\[.*", "", place[1])
        return InvalidRequest(f"{field} is malformed: {_PLACE.sub('', problem)}", field=field)
    return InvalidRequest("The body is not an object; one JSON object would pass.", field="body")


def _join(place: str | None, name: str) -> str:
    return f"{place}.{name}" if place else name
