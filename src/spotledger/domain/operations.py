"""
The operations that a caller can ask for: one class each, which is their only description.

A class has its fields, each with the form of its values (``domain/fields.py``), and how it is asked for. Everything
else is derived from that (``docs/how-to/add-an-operation.md``): the checks of its form, which are made when it is
created, the canonical request, the operator API's bodies and document, the scope that it needs, and the clients.

Whether the coin is listed, the customer registered and enough available is decided by the rules. Amounts are decimal
text (``"100.50"``), because the units depend on the coin's scale. Every operation has an idempotency key, under which
it happens once, and may have a latest time, ``not_after_ms``, after which it is not booked any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, TypeAlias, TypeVar, get_args

from spotledger.domain.accounts import check_coin, check_owner
from spotledger.domain.fields import (
    HOLD,
    KEY_MAX_CHARACTERS as KEY_MAX_CHARACTERS,
    LEGS,
    REFERENCE_MAX_CHARACTERS as REFERENCE_MAX_CHARACTERS,
    REST as REST,
    SIDE,
    TIME_MAX_MS as TIME_MAX_MS,
    AccountKind,
    Amount,
    CoinName,
    CustomerId,
    End,
    Epoch,
    Flag,
    HoldKey as HoldKey,
    HoldName as HoldName,
    HouseId,
    HouseName,
    Key,
    NotAfterMs,
    OwnerId,
    Reason,
    Reference,
    Scale,
    Seq,
    TimeMs,
    account_kind_of,
    check_each,
    check_key as check_key,
    check_of,
    check_reference as check_reference,
    fields_of,
)
from spotledger.domain.parts import CoinAmount as CoinAmount, Leg as Leg, SettleSide as SettleSide
from spotledger.errors import InvalidRequest

K = TypeVar("K", bound="Described")
#: The body of a request, for people.
Example: TypeAlias = Mapping[str, Any]

_MONEY: Final = "Money in and out"
_TRADES: Final = "Trades"


class Described:
    """
    An operation, as its class describes it.

    The first sentence of its docstring is the summary of its call, and the first paragraph its description. An
    operation is not to be changed once it is made. (To make a frozen one would take four times as long.)
    """

    __slots__ = ()

    #: The name of the operation, in the journal and in a batch.
    kind: ClassVar[str]
    #: The part of the path under which the operator API takes it, such as ``deposits``.
    collection: ClassVar[str]
    #: The section of the operator API's document.
    section: ClassVar[str] = _MONEY
    #: Whether a batch takes it.
    in_batch: ClassVar[bool] = True
    #: Whether it controls the exchange, and needs the scope for that instead of the one for writes.
    is_control: ClassVar[bool] = False
    #: The field that names who pays, if it is not a hold; a house account needs the scope for controls as well.
    payer: ClassVar[str | None] = None
    #: A request, for people; by default one is made of the required fields.
    example: ClassVar[Example | None] = None

    def __post_init__(self) -> None:
        """Check the form of each field; raise InvalidRequest, which names the first field that has another form."""
        self.check_fields()

    def check_fields(self) -> None:
        """Check the form of each field; :func:`described` replaces this by what is compiled for the class."""
        check_each(self, fields_of(type(self)))


def described(kind: type[K]) -> type[K]:
    """Compile the checks of *kind*, a class of operations, which also are its ``__post_init__`` unless it has one."""
    check = check_of(kind)
    if kind.__post_init__ is Described.__post_init__:
        kind.__post_init__ = check  # type: ignore[method-assign]
    kind.check_fields = check  # type: ignore[method-assign]
    return kind


@described
@dataclass(slots=True)
class ListCoin(Described):
    """
    List a coin. A listing never changes.

    Raises:
        CoinAlreadyListed: It is listed.
    """

    kind: ClassVar[str] = "list_coin"
    collection: ClassVar[str] = "coins"
    section: ClassVar[str] = "Coins and customers"
    in_batch: ClassVar[bool] = False
    example: ClassVar[Example] = {"coin": "btc", "scale": 8}
    key: Key
    coin: CoinName
    scale: Scale
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class RegisterCustomer(Described):
    """
    Register a customer. The customer gets a wallet, a spot and a fiat account.

    Raises:
        CustomerAlreadyRegistered: They are registered.
    """

    kind: ClassVar[str] = "register_customer"
    collection: ClassVar[str] = "customers"
    section: ClassVar[str] = "Coins and customers"
    key: Key
    customer: CustomerId
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class OpenHouseAccount(Described):
    """
    Open a house account, such as `@treasury`: an account of the exchange itself. It stays open, and may have balances
    below zero only if *may_be_negative* says so.

    Everywhere else its name is written with `@`.

    Raises:
        HouseAccountReserved: The name is external or receivable.
        HouseAccountAlreadyOpen: It is open.
    """

    kind: ClassVar[str] = "open_house_account"
    collection: ClassVar[str] = "house-accounts"
    section: ClassVar[str] = "Coins and customers"
    is_control: ClassVar[bool] = True
    example: ClassVar[Example] = {"name": "treasury", "may_be_negative": False}
    key: Key
    name: HouseName
    may_be_negative: Flag = False
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class Deposit(Described):
    """
    Book money that came in from outside, for a customer or a house account. What the customer owes is repaid first.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
    """

    kind: ClassVar[str] = "deposit"
    collection: ClassVar[str] = "deposits"
    example: ClassVar[Example] = {"customer": "alice", "coin": "usdt", "amount": "40000", "reference": "incoming 0x5e…"}
    key: Key
    customer: OwnerId
    coin: CoinName
    amount: Amount
    account: AccountKind | None = None
    reference: Reference | None = None
    happened_ms: TimeMs | None = None
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class Freeze(Described):
    """
    Freeze what a customer or a house account has available, and open a hold for it. The answer has the hold's id.

    The hold expires at *expires_ms* if that is given.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    kind: ClassVar[str] = "freeze"
    collection: ClassVar[str] = "holds"
    section: ClassVar[str] = "Holds"
    # Freezing is the first half of paying out of a hold, which names no owner.
    payer: ClassVar[str | None] = "customer"
    example: ClassVar[Example] = {"customer": "alice", "coin": "usdt", "amount": "33000", "reference": "order-7"}
    key: Key
    customer: OwnerId
    coin: CoinName
    amount: Amount
    account: AccountKind | None = None
    reference: Reference | None = None
    expires_ms: TimeMs | None = None
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class Unfreeze(Described):
    """
    Release all or part of a hold. The hold is named by its id or by the key that opened it.

    Without *amount* all that remains of it is released. *customer*, *coin* and *epoch* are preconditions that the hold
    has to meet.

    Raises:
        EpochMissing, UnknownPosition, PreconditionFailed: *hold* is not in this journal, or not the one meant.
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownHold: Not kept: the key stays unused.
        HoldExpired, HoldClosed, HoldShort: Kept with the key.
    """

    kind: ClassVar[str] = "unfreeze"
    collection: ClassVar[str] = "releases"
    section: ClassVar[str] = "Holds"
    example: ClassVar[Example] = {"hold": {"key": "order-7"}, "amount": "1000"}
    key: Key
    hold: HoldName
    amount: Amount | None = None
    customer: OwnerId | None = None
    coin: CoinName | None = None
    epoch: Epoch | None = None
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class Withdraw(Described):
    """
    Book money that went outside. It comes out of a hold, or directly out of what is available.

    Beside a hold, *customer*, *coin* and *epoch* are preconditions, and *account* is not given. Without one, the
    account is the customer's spot account unless it is given; a house account has none.

    Raises:
        EpochMissing, UnknownPosition, PreconditionFailed: *hold* is not in this journal, or not the one meant.
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, UnknownHold: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
        HoldExpired, HoldClosed, HoldShort: Kept with the key.
    """

    kind: ClassVar[str] = "withdraw"
    collection: ClassVar[str] = "withdrawals"
    payer: ClassVar[str | None] = "customer"
    example: ClassVar[Example] = {"customer": "alice", "coin": "usdt", "amount": "250.75"}
    key: Key
    amount: Amount
    customer: OwnerId | None = None
    coin: CoinName | None = None
    account: AccountKind | None = None
    hold: HoldName | None = None
    reference: Reference | None = None
    happened_ms: TimeMs | None = None
    epoch: Epoch | None = None
    not_after_ms: NotAfterMs | None = None

    def __post_init__(self) -> None:
        """Check the form of each field, and that a hold or an account is named."""
        if self.hold is not None and self.account is not None:
            raise InvalidRequest("account is given beside hold, which has it; leave it out", field="account")
        if self.hold is None:
            owner = check_owner(self.customer)
            check_coin(self.coin)
            if self.epoch is not None:
                raise InvalidRequest("epoch is given without hold, which it is about; leave it out", field="epoch")
            kind, self.account = account_kind_of(owner, self.account), None
            self.check_fields()
            self.account = kind
        else:
            self.check_fields()


@described
@dataclass(slots=True)
class Transfer(Described):
    """
    Move available money to another account. It may belong to the same customer, to another, or to the house.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    kind: ClassVar[str] = "transfer"
    collection: ClassVar[str] = "transfers"
    payer: ClassVar[str | None] = "from_customer"
    example: ClassVar[Example] = {
        "from": {"customer": "alice", "account": "wallet"},
        "to": {"customer": "alice", "account": "spot"},
        "coin": "usdt",
        "amount": "100",
    }
    key: Key
    from_customer: Annotated[OwnerId, End("from")]
    to_customer: Annotated[OwnerId, End("to")]
    coin: CoinName
    amount: Amount
    from_account: Annotated[AccountKind, End("from")] | None = None
    to_account: Annotated[AccountKind, End("to")] | None = None
    reference: Reference | None = None
    not_after_ms: NotAfterMs | None = None

    def __post_init__(self) -> None:
        """Check the form of each field, and that the ends are two accounts."""
        self.check_fields()
        if (self.from_customer, self.from_account) == (self.to_customer, self.to_account):
            raise InvalidRequest("to is the same account as from; another account would pass", field="to")


@described
@dataclass(slots=True)
class Post(Described):
    """
    Post 2 to 1,000 legs between customers and house accounts as one entry, such as an airdrop, interest or a
    correction. They sum to zero for each coin, and an account is judged by what all legs together do to it.

    Raises:
        InvalidAmount: An amount is not a whole number of units of its coin.
        LegsUnbalanced: The legs do not sum to zero for a coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    kind: ClassVar[str] = "post"
    collection: ClassVar[str] = "postings"
    example: ClassVar[Example] = {
        "legs": [
            {"customer": "alice", "coin": "usdt", "amount": "-1.5"},
            {"customer": "@fees", "coin": "usdt", "amount": "1.5"},
        ],
        "reason": "fee of a withdrawal",
    }
    key: Key
    legs: Annotated[Sequence[Leg], LEGS]
    reason: Reason | None = None
    reference: Reference | None = None
    not_after_ms: NotAfterMs | None = None


@described
@dataclass(slots=True)
class Settle(Described):
    """
    Book one fill of a trade as one entry. Both holds pay, both fees go to @fees, and what is released goes back to
    available. The whole fill is refused if a hold is short, closed or of the wrong coin.

    The buyer pays *quote_amount* and receives *base_amount*, the seller the reverse. A negative fee is a rebate.
    *fee_account*, by default @fees, takes the fees of both sides and pays the rebates. The fill is refused if that
    account has too little for what the fill takes from it in all.

    Raises:
        EpochMissing, UnknownPosition, PreconditionFailed: A hold is not in this journal, or not the one meant.
        InvalidAmount, InvalidRequest: An amount, or the coin of a fee, dust or hold, does not fit the trade.
        UnknownCoin, UnknownHold, UnknownHouseAccount: Not kept: the key stays unused.
        BalanceTooLarge, FeesShort: Not kept either.
        HoldExpired, HoldClosed, HoldShort: Kept with the key.
    """

    kind: ClassVar[str] = "settle"
    collection: ClassVar[str] = "settlements"
    section: ClassVar[str] = _TRADES
    example: ClassVar[Example] = {
        "base": "btc",
        "quote": "usdt",
        "base_amount": "0.5",
        "quote_amount": "32000",
        "buyer": {"hold": {"key": "order-7"}, "fee": {"coin": "btc", "amount": "0.0005"}, "release": "rest"},
        "seller": {"hold": {"key": "order-8"}, "fee": {"coin": "usdt", "amount": "32"}},
        "reference": "trade-1",
    }
    key: Key
    base: CoinName
    quote: CoinName
    base_amount: Amount
    quote_amount: Amount
    buyer: Annotated[SettleSide, SIDE]
    seller: Annotated[SettleSide, SIDE]
    reference: Reference | None = None
    happened_ms: TimeMs | None = None
    fee_account: HouseId | None = None
    not_after_ms: NotAfterMs | None = None

    def __post_init__(self) -> None:
        """Check the form of each field, and that two coins are traded."""
        self.check_fields()
        if self.base == self.quote:
            raise InvalidRequest("quote is the same coin as base; another coin would pass", field="quote")


@described
@dataclass(slots=True)
class Reverse(Described):
    """
    Reverse an earlier deposit, withdrawal, transfer, post or settlement. An entry can be reversed once, with a reason;
    what the customer no longer has is booked as owed.

    *seq* is a number, or the position as text; *customer*, *coin* and *epoch* are preconditions that the entry has to
    meet.

    Raises:
        EpochMissing, UnknownPosition, PreconditionFailed: *seq* is not in this journal, or not the entry meant.
        AlreadyReversed, InvalidRequest: The entry was reversed before, or is of a kind that cannot be.
        UnknownEntry, HouseShort, BalanceTooLarge: Not kept: the key stays unused.
    """

    kind: ClassVar[str] = "reverse"
    collection: ClassVar[str] = "reversals"
    section: ClassVar[str] = _TRADES
    example: ClassVar[Example] = {"seq": 12, "reason": "booked twice by the deposit watcher"}
    key: Key
    seq: Seq
    reason: Reason
    customer: OwnerId | None = None
    coin: CoinName | None = None
    epoch: Epoch | None = None
    not_after_ms: NotAfterMs | None = None


@dataclass(slots=True)
class Expire:
    """Release what remains of an expired hold. Written by the ledger itself, under a key that no caller can use."""

    kind: ClassVar[str] = "expire"
    not_after_ms: ClassVar[int | None] = None
    hold: Annotated[str, HOLD]

    @property
    def key(self) -> str:
        """The key of this expiry, which begins with a blank."""
        return expiry_key(int(self.hold))


Operation: TypeAlias = (
    ListCoin
    | RegisterCustomer
    | OpenHouseAccount
    | Deposit
    | Freeze
    | Unfreeze
    | Withdraw
    | Transfer
    | Post
    | Settle
    | Reverse
    | Expire
)
#: The operations that a caller can ask for.
OPERATIONS: Final[tuple[type[Described], ...]] = tuple(
    kind for kind in get_args(Operation) if issubclass(kind, Described)
)


def expiry_key(hold_id: int) -> str:
    """Return the idempotency key of the entry with which a hold expires."""
    return f" expire:{hold_id}"
