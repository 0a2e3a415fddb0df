"""
The operations that a caller can ask for: one frozen class each, which checks its form when it is created.

Whether the coin is listed, the customer registered and enough available is decided by the rules. Amounts are decimal
text (``"100.50"``), because the units depend on the coin's scale. Every operation has an idempotency key, under which
it happens once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, TypeVar

from spotledger.domain.accounts import check_account_kind, check_coin, check_customer, check_scale
from spotledger.domain.amounts import check_amount, shown
from spotledger.domain.positions import EPOCH_LIMIT, POSITION_PATTERN, Epochs, parse_position
from spotledger.errors import InvalidRequest
from spotledger.texts import FIT, is_line

KEY_MAX_CHARACTERS: Final = 64
REFERENCE_MAX_CHARACTERS: Final = 256
#: As a release: all that remains of the hold.
REST: Final = "rest"
#: The last millisecond of the year 9999; later times are mistakes.
TIME_MAX_MS: Final = 253_402_300_799_999

_KEY = re.compile(r"\A[\x21-\x7e]{1,64}\Z")
_ZERO = re.compile(r"\A0(?:\.0{1,18})?\Z")
_HOLD = re.compile(rf"\A{POSITION_PATTERN}\Z")


class HoldKey(NamedTuple):
    """A hold, named by the idempotency key that opened it."""

    key: str


HoldName: TypeAlias = str | HoldKey


@dataclass(frozen=True, slots=True)
class ListCoin:
    """List *coin* with *scale* decimals (0–18). A listing never changes."""

    kind: ClassVar[str] = "list_coin"
    key: str
    coin: str
    scale: int

    def __post_init__(self) -> None:
        check_key(self.key)
        check_coin(self.coin)
        check_scale(self.scale)


@dataclass(frozen=True, slots=True)
class RegisterCustomer:
    """Register *customer* with an empty wallet, spot and fiat account."""

    kind: ClassVar[str] = "register_customer"
    key: str
    customer: str

    def __post_init__(self) -> None:
        check_key(self.key)
        check_customer(self.customer)


@dataclass(frozen=True, slots=True)
class Deposit:
    """Move *amount* from the outside world to what *customer* has available."""

    kind: ClassVar[str] = "deposit"
    key: str
    customer: str
    coin: str
    amount: str
    account: str = "spot"
    reference: str | None = None
    happened_ms: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_customer(self.customer)
        check_coin(self.coin)
        check_amount(self.amount)
        check_account_kind(self.account)
        check_reference(self.reference)
        check_time(self.happened_ms, "happened_ms")


@dataclass(frozen=True, slots=True)
class Freeze:
    """Move *amount* from available to freeze and open a hold for it, which expires at *expires_ms* if given."""

    kind: ClassVar[str] = "freeze"
    key: str
    customer: str
    coin: str
    amount: str
    account: str = "spot"
    reference: str | None = None
    expires_ms: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_customer(self.customer)
        check_coin(self.coin)
        check_amount(self.amount)
        check_account_kind(self.account)
        check_reference(self.reference)
        check_time(self.expires_ms, "expires_ms")


@dataclass(frozen=True, slots=True)
class Unfreeze:
    """Move *amount* of a hold, or all that remains of it, back to available; the rest are preconditions."""

    kind: ClassVar[str] = "unfreeze"
    key: str
    hold: HoldName
    amount: str | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_hold(self.hold)
        if self.amount is not None:
            check_amount(self.amount)
        check_precondition(self)


@dataclass(frozen=True, slots=True)
class Withdraw:
    """
    Move *amount* to the outside world, out of a hold or directly out of what *customer* has available.

    Beside a hold, *customer*, *coin* and *epoch* are preconditions.
    """

    kind: ClassVar[str] = "withdraw"
    key: str
    amount: str
    customer: str | None = None
    coin: str | None = None
    account: str = "spot"
    hold: HoldName | None = None
    reference: str | None = None
    happened_ms: int | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_amount(self.amount)
        check_reference(self.reference)
        check_time(self.happened_ms, "happened_ms")
        if self.hold is not None:
            check_hold(self.hold)
            check_precondition(self)
            if self.account != "spot":
                raise InvalidRequest("account is given beside hold, which has it; leave it out", field="account")
            return
        check_customer(self.customer)
        check_coin(self.coin)
        check_account_kind(self.account)
        if self.epoch is not None:
            raise InvalidRequest("epoch is given without hold, which it is about; leave it out", field="epoch")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Move *amount* from available to available, between accounts of one customer or of two."""

    kind: ClassVar[str] = "transfer"
    key: str
    from_customer: str
    to_customer: str
    coin: str
    amount: str
    from_account: str = "spot"
    to_account: str = "spot"
    reference: str | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_customer(self.from_customer, "from.customer")
        check_customer(self.to_customer, "to.customer")
        check_coin(self.coin)
        check_amount(self.amount)
        check_account_kind(self.from_account, "from.account")
        check_account_kind(self.to_account, "to.account")
        check_reference(self.reference)
        if (self.from_customer, self.from_account) == (self.to_customer, self.to_account):
            raise InvalidRequest("to is the same account as from; another account would pass", field="to")


class CoinAmount(NamedTuple):
    """An amount of a named coin, as decimal text; zero means none."""

    coin: str
    amount: str

    def is_zero(self) -> bool:
        """Return whether the amount is zero."""
        return not self.amount.strip("0.")


@dataclass(frozen=True, slots=True)
class SettleSide:
    """
    One side of a fill.

    Args:
        hold: The hold that pays: of the quote coin for the buyer, of the base coin for the seller.
        fee: The fee: in the coin received, out of what is received, or in the coin paid, out of the same hold.
        release: What else of the hold goes back to available: decimal text, or ``"rest"`` for all that remains.
        dust: What goes to the house account ``@dust`` out of what is received.
        customer, coin, epoch: Preconditions that the hold has to meet; None: any.
    """

    hold: HoldName
    fee: CoinAmount | None = None
    release: str | None = None
    dust: CoinAmount | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None

    def check(self, name: str) -> None:
        """Check the form of this side; messages call it *name*."""
        check_hold(self.hold, f"{name}.hold")
        check_precondition(self, f"{name}.")
        for field, amount in (("fee", self.fee), ("dust", self.dust)):
            if amount is not None:
                check_coin(amount.coin, f"{name}.{field}.coin")
                if not _is_zero_text(amount.amount):
                    check_amount(amount.amount, f"{name}.{field}.amount")
        if self.release is not None and self.release != REST:
            check_amount(self.release, f"{name}.release")


@dataclass(frozen=True, slots=True)
class Settle:
    """Book one fill of a trade: the buyer pays *quote_amount* and receives *base_amount*, the seller the reverse."""

    kind: ClassVar[str] = "settle"
    key: str
    base: str
    quote: str
    base_amount: str
    quote_amount: str
    buyer: SettleSide
    seller: SettleSide
    reference: str | None = None
    happened_ms: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        check_coin(self.base, "base")
        check_coin(self.quote, "quote")
        if self.base == self.quote:
            raise InvalidRequest("quote is the same coin as base; another coin would pass", field="quote")
        check_amount(self.base_amount, "base_amount")
        check_amount(self.quote_amount, "quote_amount")
        self.buyer.check("buyer")
        self.seller.check("seller")
        check_reference(self.reference)
        check_time(self.happened_ms, "happened_ms")


@dataclass(frozen=True, slots=True)
class Reverse:
    """
    Undo the deposit, withdrawal, transfer or settlement of the entry *seq*, once, for a stated *reason*.

    *seq* is a number, or the position as text; *customer*, *coin* and *epoch* are preconditions.
    """

    kind: ClassVar[str] = "reverse"
    key: str
    seq: int | str
    reason: str
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None

    def __post_init__(self) -> None:
        check_key(self.key)
        parse_position(self.seq, "seq", least=1)
        check_precondition(self)
        if self.reason is None:
            raise InvalidRequest("reason is missing; a line of text that says why would pass", field="reason")
        check_reference(self.reason, "reason")


@dataclass(frozen=True, slots=True)
class Expire:
    """Release what remains of an expired hold. Written by the ledger itself, under a key that no caller can use."""

    kind: ClassVar[str] = "expire"
    hold: str

    @property
    def key(self) -> str:
        """The key of this expiry, which begins with a blank."""
        return expiry_key(int(self.hold))


Operation: TypeAlias = (
    ListCoin | RegisterCustomer | Deposit | Freeze | Unfreeze | Withdraw | Transfer | Settle | Reverse | Expire
)


#: What names a hold, and anything that is copied.
T = TypeVar("T", bound=Unfreeze | Withdraw | SettleSide)
C = TypeVar("C")


def expiry_key(hold_id: int) -> str:
    """Return the idempotency key of the entry with which a hold expires."""
    return f" expire:{hold_id}"


def check_key(text: object, field: str = "key") -> str:
    """Return *text* if it is a valid idempotency key of a caller: 1–64 characters of 0x21–0x7E."""
    if isinstance(text, str) and _KEY.match(text):
        return text
    allowed = f"an idempotency key of 1 to {KEY_MAX_CHARACTERS} printable ASCII characters without blanks"
    raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_hold(name: object, field: str = "hold") -> HoldName:
    """Return *name* if it is a valid name of a hold: its id as text, or the key that opened it."""
    if isinstance(name, HoldKey):
        check_key(name.key, f"{field}.key")
        return name
    if isinstance(name, str) and _HOLD.match(name):
        return name
    raise InvalidRequest(f'{field} is {shown(name)}; a hold\'s id such as "12" would pass', field=field)


def check_precondition(named: Unfreeze | Withdraw | Reverse | SettleSide, prefix: str = "") -> None:
    """Check the form of the preconditions of an operation, or of a side of a fill; messages begin with *prefix*."""
    if named.customer is not None:
        check_customer(named.customer, f"{prefix}customer")
    if named.coin is not None:
        check_coin(named.coin, f"{prefix}coin")
    epoch = named.epoch
    if epoch is None:
        return
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 < epoch < EPOCH_LIMIT:
        raise InvalidRequest(
            f"{prefix}epoch is {shown(epoch)}; a whole number from 1 would pass", field=f"{prefix}epoch"
        )


def check_reference(text: object, field: str = "reference") -> None:
    """Check that *text* is None or a line of 1–256 characters (``spotledger.texts``)."""
    if text is None:
        return
    if not isinstance(text, str) or not 1 <= len(text) <= REFERENCE_MAX_CHARACTERS or not is_line(text):
        allowed = f"1 to {REFERENCE_MAX_CHARACTERS} {FIT}"
        raise InvalidRequest(f"{field} is {shown(text)}; {allowed} would pass", field=field)


def check_time(value: object, field: str) -> None:
    """Check that *value* is None or a time in milliseconds since 1970."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= TIME_MAX_MS:
        allowed = "milliseconds since 1970 such as 1700000000000"
        raise InvalidRequest(f"{field} is {shown(value)}; {allowed} would pass", field=field)


def _is_zero_text(text: object) -> bool:
    return isinstance(text, str) and _ZERO.match(text) is not None


def _locate_hold(operation: Unfreeze | Withdraw, epochs: Epochs) -> Operation:
    return operation if operation.hold is None else _located_hold(operation, epochs, "hold")


def _locate_settle(operation: Settle, epochs: Epochs) -> Operation:
    buyer = _located_hold(operation.buyer, epochs, "buyer.hold")
    seller = _located_hold(operation.seller, epochs, "seller.hold")
    if buyer is operation.buyer and seller is operation.seller:
        return operation
    return _changed(operation, buyer=buyer, seller=seller)


def _locate_reverse(operation: Reverse, epochs: Epochs) -> Operation:
    if isinstance(operation.seq, int) and (epochs.is_first or operation.epoch is not None):
        return operation
    return _changed(operation, seq=_located(operation.seq, operation.epoch, epochs, "seq"))


def _located_hold(named: T, epochs: Epochs, field: str) -> T:
    """Return an operation, or a side of a fill, with its hold as a plain number, unless it is named by a key."""
    hold, epoch = named.hold, named.epoch
    if isinstance(hold, HoldKey) or hold is None or (hold.isdecimal() and (epochs.is_first or epoch is not None)):
        return named
    return _changed(named, hold=str(_located(hold, epoch, epochs, field)))


def _located(name: int | str, epoch: int | None, epochs: Epochs, field: str) -> int:
    position = parse_position(name, field, least=1)
    return position.seq if position.epoch is None and epoch is not None else epochs.locate(position, field)


def _changed(named: C, **fields: Any) -> C:
    """Return a copy of *named*, which was checked, with other *fields*, which are not checked."""
    changed = object.__new__(type(named))
    # copy.copy takes three times as long.
    for field in type(named).__slots__:  # type: ignore[attr-defined]  # each is a dataclass with slots
        object.__setattr__(changed, field, fields[field] if field in fields else getattr(named, field))
    return changed


#: By class: return an operation with the holds and the entry that it names as plain numbers, as the journal keeps them.
#: A plain number beside ``epoch`` is of that epoch; the rules check it. Each raises EpochMissing or UnknownPosition.
LOCATING: Final[dict[type[Any], Callable[[Any, Epochs], Operation]]] = {
    Unfreeze: _locate_hold,
    Withdraw: _locate_hold,
    Settle: _locate_settle,
    Reverse: _locate_reverse,
}


def holds_of(operation: Operation) -> tuple[HoldName, ...]:
    """Return the holds that *operation* names."""
    if isinstance(operation, Settle):
        return (operation.buyer.hold, operation.seller.hold)
    if isinstance(operation, _USING_A_HOLD) and operation.hold is not None:
        return (operation.hold,)
    return ()


_USING_A_HOLD: Final = (Unfreeze, Withdraw, Expire)
