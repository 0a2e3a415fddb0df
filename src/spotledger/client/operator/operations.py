# Generated from domain/operations.py by tools/generate_operations.py (`make generate`). Do not edit.

"""
The operations of the operator API, one class each, with the names of the library.

Amounts are decimal text or ``Decimal``. How an operation becomes a request is in ``operation.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from spotledger.client.operator.operation import (
    Amount as Amount,
    CoinAmount as CoinAmount,
    HoldKey as HoldKey,
    HoldName as HoldName,
    Operation as Operation,
    Part,
    Position as Position,
)
from spotledger.paths import of_collection


@dataclass(frozen=True, slots=True)
class SettleSide(Part):
    """
    One side of a fill: the hold that pays, with its preconditions, the fee, what else is released, and dust.

    Args:
        hold: The hold that pays: of the quote coin for the buyer, of the base coin for the seller.
        fee: The fee: in the coin received, out of what is received, or in the coin paid, out of the same hold. One that
            is negative is a rebate, which the fee account pays.
        release: What else of the hold goes back to available: decimal text, or ``"rest"`` for all that remains.
        dust: What goes to the house account ``@dust`` out of what is received.
        customer, coin, epoch: Preconditions that the hold has to meet; None: any.
    """

    amounts = frozenset(["release"])
    hold: HoldName
    fee: CoinAmount | None = None
    release: Amount | None = None
    dust: CoinAmount | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Leg(Part):
    """
    One leg of a post: what it adds to the available of an account, or takes from it.

    Args:
        amount: Decimal text, with a minus sign if it is taken.
        account: The customer's account, spot by default; a house account has none.
    """

    amounts = frozenset(["amount"])
    customer: str
    coin: str
    amount: Amount
    account: str | None = None


@dataclass(frozen=True, slots=True)
class ListCoin(Operation):
    """
    List a coin. A listing never changes.

    Raises:
        CoinAlreadyListed: It is listed.
    """

    op = "list_coin"
    path = of_collection("coins")
    coin: str
    scale: int
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RegisterCustomer(Operation):
    """
    Register a customer. The customer gets a wallet, a spot and a fiat account.

    Raises:
        CustomerAlreadyRegistered: They are registered.
    """

    op = "register_customer"
    path = of_collection("customers")
    customer: str
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class OpenHouseAccount(Operation):
    """
    Open a house account, such as `@treasury`: an account of the exchange itself. It stays open, and may have balances
    below zero only if *may_be_negative* says so.

    Everywhere else its name is written with `@`.

    Raises:
        HouseAccountReserved: The name is external or receivable.
        HouseAccountAlreadyOpen: It is open.
    """

    op = "open_house_account"
    path = of_collection("house-accounts")
    name: str
    may_be_negative: bool = False
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Deposit(Operation):
    """
    Book money that came in from outside, for a customer or a house account. What the customer owes is repaid first.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
    """

    op = "deposit"
    path = of_collection("deposits")
    amounts = frozenset(["amount"])
    customer: str
    coin: str
    amount: Amount
    account: str | None = None
    reference: str | None = None
    happened_ms: int | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Freeze(Operation):
    """
    Freeze what a customer or a house account has available, and open a hold for it. The answer has the hold's id.

    The hold expires at *expires_ms* if that is given.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    op = "freeze"
    path = of_collection("holds")
    amounts = frozenset(["amount"])
    customer: str
    coin: str
    amount: Amount
    account: str | None = None
    reference: str | None = None
    expires_ms: int | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Unfreeze(Operation):
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

    op = "unfreeze"
    path = of_collection("releases")
    amounts = frozenset(["amount"])
    hold: HoldName
    amount: Amount | None = None
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Withdraw(Operation):
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

    op = "withdraw"
    path = of_collection("withdrawals")
    amounts = frozenset(["amount"])
    amount: Amount
    customer: str | None = None
    coin: str | None = None
    account: str | None = None
    hold: HoldName | None = None
    reference: str | None = None
    happened_ms: int | None = None
    epoch: int | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Transfer(Operation):
    """
    Move available money to another account. It may belong to the same customer, to another, or to the house.

    Raises:
        InvalidAmount: *amount* is not a whole number of units of the coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    op = "transfer"
    path = of_collection("transfers")
    amounts = frozenset(["amount"])
    ends: ClassVar[Mapping[str, tuple[str, str]]] = {
        "from_customer": ("from", "customer"),
        "to_customer": ("to", "customer"),
        "from_account": ("from", "account"),
        "to_account": ("to", "account"),
    }
    from_customer: str
    to_customer: str
    coin: str
    amount: Amount
    from_account: str | None = None
    to_account: str | None = None
    reference: str | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Post(Operation):
    """
    Post 2 to 1,000 legs between customers and house accounts as one entry, such as an airdrop, interest or a
    correction. They sum to zero for each coin, and an account is judged by what all legs together do to it.

    Raises:
        InvalidAmount: An amount is not a whole number of units of its coin.
        LegsUnbalanced: The legs do not sum to zero for a coin.
        UnknownCoin, UnknownCustomer, UnknownHouseAccount, BalanceTooLarge: Not kept: the key stays unused.
        InsufficientAvailable: Kept with the key, except that of a house account.
    """

    op = "post"
    path = of_collection("postings")
    legs: Sequence[Leg]
    reason: str | None = None
    reference: str | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Settle(Operation):
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

    op = "settle"
    path = of_collection("settlements")
    amounts = frozenset(["base_amount", "quote_amount"])
    base: str
    quote: str
    base_amount: Amount
    quote_amount: Amount
    buyer: SettleSide
    seller: SettleSide
    reference: str | None = None
    happened_ms: int | None = None
    fee_account: str | None = None
    not_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Reverse(Operation):
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

    op = "reverse"
    path = of_collection("reversals")
    seq: Position
    reason: str
    customer: str | None = None
    coin: str | None = None
    epoch: int | None = None
    not_after_ms: int | None = None
