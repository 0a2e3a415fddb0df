"""
The rules: what an operation does to the books, or why it is refused.

Pure functions over a small view of the state, the same for every store. Refusals come in this order: coin, form of the
amount, customers, hold (known, open, not expired, enough remaining), enough available, size of the balance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from spotledger.domain import journal, reversal, settlement
from spotledger.domain.accounts import EXTERNAL, receivable_of
from spotledger.domain.amounts import parse_amount
from spotledger.domain.books import (
    Decision,
    Line,
    State,
    Subject,
    enough_available,
    enough_remaining,
    find_hold,
    known,
    listed,
    open_hold,
    post,
    registered,
    usable_hold,
)
from spotledger.domain.journal import AVAILABLE, FREEZE, Hold, canonical_request
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import CoinAlreadyListed, CustomerAlreadyRegistered, InvalidRequest, LedgerCorrupt

AnySubject: TypeAlias = Subject | settlement.Fill | reversal.Target


def subject_of(operation: Operation, state: State) -> AnySubject:
    """
    Look up what *operation* names.

    Raises:
        InvalidAmount: An amount does not fit the coin's scale. Not kept: the request is wrong in itself.
    """
    match operation:
        case Settle():
            return settlement.fill_of(operation, state)
        case Reverse():
            return reversal.target_of(operation, state)
    hold_name = getattr(operation, "hold", None)
    if hold_name is not None:
        hold = find_hold(hold_name, state)
        coin = state.coin(hold.coin) if hold else None
    else:
        hold = None
        name = getattr(operation, "coin", None)
        coin = state.coin(name) if name is not None else None
    amount = getattr(operation, "amount", None)
    units = parse_amount(amount, coin.scale) if coin is not None and amount is not None else None
    return Subject(coin, units, hold)


def request_of(operation: Operation, subject: AnySubject) -> dict[str, Any]:
    """Return the canonical request that is kept of *operation*, with units for every amount whose coin is known."""
    if isinstance(operation, Settle):
        return settlement.settle_request(operation, subject.scales() if isinstance(subject, settlement.Fill) else {})
    if isinstance(subject, Subject):
        return canonical_request(operation, subject.units, subject.coin.name if subject.coin else None)
    return canonical_request(operation, None, None)


def differing_field(kept: dict[str, Any], operation: Operation, scale_of: Callable[[str], int]) -> str | None:
    """
    Name the first field in which *operation* differs from the *kept* canonical request, or None where it is the same.

    Args:
        kept: The request of the entry that has the operation's key.
        operation: What is asked for now, under the same key.
        scale_of: The scale of a listed coin.
    """
    if isinstance(operation, Settle) and kept["op"] == Settle.kind:
        return settlement.differing_settle_field(kept, operation, scale_of)
    return journal.differing_field(kept, operation, scale_of)


def decide(operation: Operation, subject: AnySubject, state: State, seq: int, now_ms: int) -> Decision:
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
    coin, units = listed(operation.coin, subject.coin).name, known(subject.units, subject.coin)
    account = registered(operation.customer, operation.account, state)
    receivable = receivable_of(operation.customer)
    repaid = min(units, -state.balance(receivable, coin).available)
    lines = [
        Line(EXTERNAL, coin, AVAILABLE, -units),
        Line(receivable, coin, AVAILABLE, repaid),
        Line(account, coin, AVAILABLE, units - repaid),
    ]
    return post(state, lines)


def _freeze(operation: Freeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin), known(subject.units, subject.coin)
    account = registered(operation.customer, operation.account, state)
    if operation.expires_ms is not None and operation.expires_ms <= now_ms:
        raise InvalidRequest(
            f"expires_ms is {operation.expires_ms}, which is past; a time after {now_ms} would pass",
            field="expires_ms",
        )
    enough_available(account, coin, units, state)
    hold = Hold(seq, account, coin.name, units, units, operation.reference, operation.expires_ms, now_ms)
    lines = [Line(account, coin.name, AVAILABLE, -units), Line(account, coin.name, FREEZE, units, seq)]
    return post(state, lines, (hold,))


def _unfreeze(operation: Unfreeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = usable_hold(operation.hold, subject.hold, now_ms)
    units = hold.remaining if subject.units is None else subject.units
    return _use_hold(hold, units, Line(hold.account, hold.coin, AVAILABLE, units), subject, state, seq)


def _withdraw(operation: Withdraw, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if operation.hold is not None:
        hold = usable_hold(operation.hold, subject.hold, now_ms)
        units = known(subject.units, subject.hold)
        return _use_hold(hold, units, Line(EXTERNAL, hold.coin, AVAILABLE, units), subject, state, seq)
    coin = listed(known(operation.coin, operation), subject.coin)
    units = known(subject.units, subject.coin)
    account = registered(known(operation.customer, operation), operation.account, state)
    enough_available(account, coin, units, state)
    lines = [Line(account, coin.name, AVAILABLE, -units), Line(EXTERNAL, coin.name, AVAILABLE, units)]
    return post(state, lines)


def _transfer(operation: Transfer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin), known(subject.units, subject.coin)
    source = registered(operation.from_customer, operation.from_account, state, "from.customer")
    target = registered(operation.to_customer, operation.to_account, state, "to.customer")
    enough_available(source, coin, units, state)
    lines = [Line(source, coin.name, AVAILABLE, -units), Line(target, coin.name, AVAILABLE, units)]
    return post(state, lines)


def _expire(operation: Expire, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = open_hold(operation.hold, subject.hold)
    if hold.expires_ms is None or now_ms < hold.expires_ms:
        raise LedgerCorrupt(f"hold {hold.hold_id} was to expire before its time")
    line = Line(hold.account, hold.coin, AVAILABLE, hold.remaining)
    return _use_hold(hold, hold.remaining, line, subject, state, seq)


def _use_hold(hold: Hold, units: int, target: Line, subject: Subject, state: State, seq: int) -> Decision:
    enough_remaining(hold, known(subject.coin, hold), units)
    after = hold.after(hold.remaining - units, seq)
    return post(state, [Line(hold.account, hold.coin, FREEZE, -units, hold.hold_id), target], (after,))


_RULES: dict[type[Any], Callable[[Any, Any, State, int, int], Decision]] = {
    ListCoin: _list_coin,
    RegisterCustomer: _register,
    Deposit: _deposit,
    Freeze: _freeze,
    Unfreeze: _unfreeze,
    Withdraw: _withdraw,
    Transfer: _transfer,
    Expire: _expire,
    Settle: settlement.settle,
    Reverse: reversal.reverse,
}
