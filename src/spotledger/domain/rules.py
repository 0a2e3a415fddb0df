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
from spotledger.domain.amounts import units_of
from spotledger.domain.books import (
    Decision,
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
from spotledger.domain.journal import AVAILABLE, FREEZE, Hold, Posting, canonical_request
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
    return _SUBJECTS[type(operation)](operation, state)


def _of_nothing(operation: RegisterCustomer, state: State) -> Subject:
    return Subject()


def _of_listing(operation: ListCoin, state: State) -> Subject:
    return Subject(state.coin(operation.coin))


def _of_coin(operation: Any, state: State) -> Subject:
    coin = state.coin(operation.coin)
    return Subject(coin, None if coin is None else units_of(operation.amount, coin.scale))


def _of_hold(operation: Any, state: State) -> Subject:
    hold = find_hold(operation.hold, state)
    coin = None if hold is None else state.coin(hold.coin)
    amount = None if isinstance(operation, Expire) else operation.amount
    return Subject(coin, None if coin is None or amount is None else units_of(amount, coin.scale), hold)


def _of_withdraw(operation: Withdraw, state: State) -> Subject:
    return _of_coin(operation, state) if operation.hold is None else _of_hold(operation, state)


def request_of(operation: Operation, subject: AnySubject) -> dict[str, Any]:
    """Return the canonical request that is kept of *operation*, with units for every amount whose coin is known."""
    if isinstance(operation, Settle):
        fill = subject if isinstance(subject, settlement.Fill) else settlement.Fill(None, None)
        return settlement.settle_request(operation, fill)
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
    owed, _ = state.balance((receivable, coin))
    repaid = min(units, -owed)
    lines = [
        Posting(EXTERNAL, coin, AVAILABLE, -units),
        Posting(receivable, coin, AVAILABLE, repaid),
        Posting(account, coin, AVAILABLE, units - repaid),
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
    lines = [Posting(account, coin.name, AVAILABLE, -units), Posting(account, coin.name, FREEZE, units, seq)]
    return post(state, lines, (hold,))


def _unfreeze(operation: Unfreeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = usable_hold(operation.hold, subject.hold, now_ms)
    units = hold.remaining if subject.units is None else subject.units
    return _use_hold(hold, units, Posting(hold.account, hold.coin, AVAILABLE, units), subject, state, seq)


def _withdraw(operation: Withdraw, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if operation.hold is not None:
        hold = usable_hold(operation.hold, subject.hold, now_ms)
        units = known(subject.units, subject.hold)
        return _use_hold(hold, units, Posting(EXTERNAL, hold.coin, AVAILABLE, units), subject, state, seq)
    coin = listed(known(operation.coin, operation), subject.coin)
    units = known(subject.units, subject.coin)
    account = registered(known(operation.customer, operation), operation.account, state)
    enough_available(account, coin, units, state)
    lines = [Posting(account, coin.name, AVAILABLE, -units), Posting(EXTERNAL, coin.name, AVAILABLE, units)]
    return post(state, lines)


def _transfer(operation: Transfer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin), known(subject.units, subject.coin)
    source = registered(operation.from_customer, operation.from_account, state, "from.customer")
    target = registered(operation.to_customer, operation.to_account, state, "to.customer")
    enough_available(source, coin, units, state)
    lines = [Posting(source, coin.name, AVAILABLE, -units), Posting(target, coin.name, AVAILABLE, units)]
    return post(state, lines)


def _expire(operation: Expire, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = open_hold(operation.hold, subject.hold)
    if hold.expires_ms is None or now_ms < hold.expires_ms:
        raise LedgerCorrupt(f"hold {hold.hold_id} was to expire before its time")
    line = Posting(hold.account, hold.coin, AVAILABLE, hold.remaining)
    return _use_hold(hold, hold.remaining, line, subject, state, seq)


def _use_hold(hold: Hold, units: int, target: Posting, subject: Subject, state: State, seq: int) -> Decision:
    enough_remaining(hold, known(subject.coin, hold), units)
    after = hold.after(hold.remaining - units, seq)
    return post(state, [Posting(hold.account, hold.coin, FREEZE, -units, hold.hold_id), target], (after,))


_SUBJECTS: dict[type[Any], Callable[[Any, State], AnySubject]] = {
    ListCoin: _of_listing,
    RegisterCustomer: _of_nothing,
    Deposit: _of_coin,
    Freeze: _of_coin,
    Unfreeze: _of_hold,
    Withdraw: _of_withdraw,
    Transfer: _of_coin,
    Expire: _of_hold,
    Settle: settlement.fill_of,
    Reverse: reversal.target_of,
}
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
