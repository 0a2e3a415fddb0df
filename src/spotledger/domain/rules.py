"""
The rules: what an operation does to the books, or why it is refused.

Pure functions over a small view of the state, the same for every store. Refusals come in this order: coin, form of the
amount, customers, hold (known, open, not expired, enough remaining), enough available, size of the balance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from spotledger.domain.accounts import EXTERNAL, MAY_BE_NEGATIVE, Account, Balance, Coin
from spotledger.domain.amounts import UNITS_LIMIT, format_amount, parse_amount
from spotledger.domain.journal import AVAILABLE, FREEZE, BalanceAfter, Hold, Posting
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import (
    BalanceTooLarge,
    CoinAlreadyListed,
    CustomerAlreadyRegistered,
    HoldClosed,
    HoldExpired,
    HoldShort,
    InsufficientAvailable,
    InvalidRequest,
    LedgerCorrupt,
    UnknownCoin,
    UnknownCustomer,
    UnknownHold,
)

T = TypeVar("T")


class State(Protocol):
    """What the rules ask of the books, as they stand just before the operation."""

    def coin(self, name: str) -> Coin | None:
        """Return the listed coin, or None."""

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""

    def balance(self, account: Account, coin: str) -> Balance:
        """Return the balance in units; zero on both sides where nothing was ever posted."""

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands, open or closed, or None."""

    def hold_id_of_key(self, key: str) -> int | None:
        """Return the id of the hold that was opened under an idempotency key, or None."""


class Subject(NamedTuple):
    """What an operation's texts mean in these books: coin, amount in units, hold; None for what is unknown."""

    coin: Coin | None = None
    units: int | None = None
    hold: Hold | None = None


class Decision(NamedTuple):
    """What an operation does: postings that add up to zero, the balances after them, the holds after them."""

    postings: tuple[Posting, ...] = ()
    balances: tuple[BalanceAfter, ...] = ()
    holds: tuple[Hold, ...] = ()


class _Line(NamedTuple):
    account: Account
    side: str
    units: int
    hold: int | None = None


def subject_of(operation: Operation, state: State) -> Subject:
    """
    Look up what *operation* names.

    Raises:
        InvalidAmount: The amount does not fit the coin's scale. Not kept: the request is wrong in itself.
    """
    hold_name = getattr(operation, "hold", None)
    if hold_name is not None:
        hold = _find_hold(hold_name, state)
        coin = state.coin(hold.coin) if hold else None
    else:
        hold = None
        coin = state.coin(operation.coin) if hasattr(operation, "coin") and operation.coin is not None else None
    amount = getattr(operation, "amount", None)
    units = parse_amount(amount, coin.scale) if coin is not None and amount is not None else None
    return Subject(coin, units, hold)


def decide(operation: Operation, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    """
    Say what *operation* does to the books.

    Args:
        operation: What is asked for.
        subject: What :func:`subject_of` found for it in the same state.
        state: The books just before it.
        seq: The position that its entry will have; a hold that it opens has this id.
        now_ms: The time at which it is booked, in milliseconds.

    Raises:
        Refused: Why it does nothing.
    """
    return _RULES[type(operation)](operation, subject, state, seq, now_ms)


def _list_coin(operation: ListCoin, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if subject.coin is not None:
        raise CoinAlreadyListed(
            f"coin {operation.coin} is listed already with scale {subject.coin.scale}, and a listing never changes",
            field="coin",
        )
    return Decision()


def _register(operation: RegisterCustomer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if state.has_customer(operation.customer):
        raise CustomerAlreadyRegistered(f"customer {operation.customer} is registered already", field="customer")
    return Decision()


def _deposit(operation: Deposit, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = _amount(operation.coin, subject)
    account = _registered(operation.customer, operation.account, state)
    return _post(coin, state, _Line(EXTERNAL, AVAILABLE, -units), _Line(account, AVAILABLE, units))


def _freeze(operation: Freeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = _amount(operation.coin, subject)
    account = _registered(operation.customer, operation.account, state)
    if operation.expires_ms is not None and operation.expires_ms <= now_ms:
        raise InvalidRequest(
            f"expires_ms is {operation.expires_ms}, which is past; a time after {now_ms} would pass",
            field="expires_ms",
        )
    _enough_available(account, coin, units, state)
    hold = Hold(seq, account, coin.name, units, units, operation.reference, operation.expires_ms, now_ms)
    return _post(coin, state, _Line(account, AVAILABLE, -units), _Line(account, FREEZE, units, seq), holds=(hold,))


def _unfreeze(operation: Unfreeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold, coin = _usable(operation.hold, subject, now_ms)
    units = hold.remaining if subject.units is None else subject.units
    return _use_hold(hold, coin, units, _Line(hold.account, AVAILABLE, units), state, seq)


def _withdraw(operation: Withdraw, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if operation.hold is not None:
        hold, coin = _usable(operation.hold, subject, now_ms)
        units = _known(subject.units)
        return _use_hold(hold, coin, units, _Line(EXTERNAL, AVAILABLE, units), state, seq)
    coin, units = _amount(_known(operation.coin), subject)
    account = _registered(_known(operation.customer), operation.account, state)
    _enough_available(account, coin, units, state)
    return _post(coin, state, _Line(account, AVAILABLE, -units), _Line(EXTERNAL, AVAILABLE, units))


def _transfer(operation: Transfer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = _amount(operation.coin, subject)
    source = _registered(operation.from_customer, operation.from_account, state, "from.customer")
    target = _registered(operation.to_customer, operation.to_account, state, "to.customer")
    _enough_available(source, coin, units, state)
    return _post(coin, state, _Line(source, AVAILABLE, -units), _Line(target, AVAILABLE, units))


def _expire(operation: Expire, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold, coin = _open(operation.hold, subject)
    if hold.expires_ms is None or now_ms < hold.expires_ms:
        raise LedgerCorrupt(f"hold {hold.hold_id} was to expire before its time")
    line = _Line(hold.account, AVAILABLE, hold.remaining)
    return _use_hold(hold, coin, hold.remaining, line, state, seq)


_RULES: dict[type[Any], Callable[[Any, Subject, State, int, int], Decision]] = {
    ListCoin: _list_coin,
    RegisterCustomer: _register,
    Deposit: _deposit,
    Freeze: _freeze,
    Unfreeze: _unfreeze,
    Withdraw: _withdraw,
    Transfer: _transfer,
    Expire: _expire,
}


def _find_hold(name: HoldName, state: State) -> Hold | None:
    hold_id = state.hold_id_of_key(name.key) if isinstance(name, HoldKey) else int(name)
    return None if hold_id is None else state.hold(hold_id)


def _known(value: T | None) -> T:
    """Return a value that the form of the operation, or a check before, has shown to be there."""
    if value is None:
        raise LedgerCorrupt("an operation came to the rules without what its form demands")
    return value


def _amount(name: str, subject: Subject) -> tuple[Coin, int]:
    if subject.coin is None:
        raise UnknownCoin(f"coin {name} is not listed; a listed coin would pass", field="coin")
    return subject.coin, _known(subject.units)


def _registered(customer: str, kind: str, state: State, field: str = "customer") -> Account:
    if not state.has_customer(customer):
        raise UnknownCustomer(f"customer {customer} is not registered; a registered one would pass", field=field)
    return Account(customer, kind)


def _open(name: HoldName, subject: Subject) -> tuple[Hold, Coin]:
    hold = subject.hold
    shown = f"of key {name.key}" if isinstance(name, HoldKey) else name
    if hold is None:
        raise UnknownHold(f"there is no hold {shown}; the id of an open hold would pass", field="hold")
    if not hold.remaining:
        raise HoldClosed(f"nothing remains of hold {shown}; it was closed by entry {hold.closed_seq}", field="hold")
    return hold, _known(subject.coin)


def _usable(name: HoldName, subject: Subject, now_ms: int) -> tuple[Hold, Coin]:
    hold, coin = _open(name, subject)
    if hold.expires_ms is not None and now_ms >= hold.expires_ms:
        raise HoldExpired(f"hold {hold.hold_id} expired at {hold.expires_ms}; it is now {now_ms}", field="hold")
    return hold, coin


def _enough_available(account: Account, coin: Coin, units: int, state: State) -> None:
    available = state.balance(account, coin.name).available
    if available < units:
        raise InsufficientAvailable(
            f"{account.customer} has {_text(available, coin)} {coin.name} available in {account.kind};"
            f" {_text(units, coin)} was asked for",
            field="amount",
            available=_text(available, coin),
        )


def _use_hold(hold: Hold, coin: Coin, units: int, target: _Line, state: State, seq: int) -> Decision:
    if units > hold.remaining:
        raise HoldShort(
            f"{_text(hold.remaining, coin)} {coin.name} remains of hold {hold.hold_id};"
            f" {_text(units, coin)} was asked for",
            field="amount",
            remaining=_text(hold.remaining, coin),
        )
    after = hold.after(hold.remaining - units, seq)
    return _post(coin, state, _Line(hold.account, FREEZE, -units, hold.hold_id), target, holds=(after,))


def _post(coin: Coin, state: State, *lines: _Line, holds: tuple[Hold, ...] = ()) -> Decision:
    name = coin.name
    postings = tuple([Posting(account, name, side, units, hold) for account, side, units, hold in lines])
    return Decision(postings, tuple(_balances_after(name, lines, state)), holds)


def _balances_after(coin: str, lines: Iterable[_Line], state: State) -> list[BalanceAfter]:
    balances: dict[Account, tuple[int, int]] = {}
    for account, side, units, _ in lines:
        available, freeze = balances.get(account) or state.balance(account, coin)
        if side == AVAILABLE:
            available += units
        else:
            freeze += units
        balances[account] = (available, freeze)
    after = []
    for account, (available, freeze) in balances.items():
        if available >= UNITS_LIMIT or freeze >= UNITS_LIMIT or available <= -UNITS_LIMIT:
            raise BalanceTooLarge(
                f"the balance of {account.customer} in {coin} would reach 10**38 units", field="amount"
            )
        if freeze < 0 or (available < 0 and account not in MAY_BE_NEGATIVE):
            raise LedgerCorrupt(f"{account.customer} {account.kind} {coin} would fall below zero")
        after.append(BalanceAfter(account, coin, available, freeze))
    return after


def _text(units: int, coin: Coin) -> str:
    return format_amount(units, coin.scale, min(2, coin.scale))
