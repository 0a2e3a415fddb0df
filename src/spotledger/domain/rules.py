"""
The rules: what an operation does to the books, or why it is refused.

They are pure functions of the operation and the books, the same for every store. Refusals are checked in this order:
coin, form of the amount, customers and house accounts, hold (the one that was meant, known, not expired, open, enough
remaining), enough available, size of the balance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from spotledger.domain import debts, posting, reversal, settlement
from spotledger.domain.accounts import EXTERNAL, Account, Coin, house_name
from spotledger.domain.amounts import normal_amount, parse_amount, units_of
from spotledger.domain.books import (
    NO_SUBJECT,
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
    shift,
    usable_hold,
)
from spotledger.domain.journal import AVAILABLE, FREEZE, Hold, new_tuple
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    ListCoin,
    OpenHouseAccount,
    Operation,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.domain.requests import REQUESTS
from spotledger.errors import (
    CoinAlreadyListed,
    CustomerAlreadyRegistered,
    HouseAccountAlreadyOpen,
    InvalidAmount,
    InvalidRequest,
    LedgerCorrupt,
)

AnySubject: TypeAlias = Subject | settlement.Fill | posting.Legs | reversal.Target


def subject_of(operation: Operation, state: State) -> AnySubject:
    """
    Look up what *operation* names.

    Raises:
        InvalidAmount: An amount does not fit the coin's scale. Not kept, because the request is invalid as such.
    """
    return _SUBJECTS[type(operation)](operation, state)


def _of_nothing(operation: RegisterCustomer | OpenHouseAccount, state: State) -> Subject:
    return NO_SUBJECT


def _of_listing(operation: ListCoin, state: State) -> Subject:
    return Subject(state.coin(operation.coin))


def _of_coin(operation: Any, state: State) -> Subject:
    coin = state.coin(operation.coin)
    units = None if coin is None else units_of(operation.amount, coin.scale)
    return new_tuple(Subject, (coin, units, None))


def _of_hold(operation: Any, state: State) -> Subject:
    hold = find_hold(operation.hold, state)
    coin = None if hold is None else state.coin(hold.coin)
    amount = None if isinstance(operation, Expire) else operation.amount
    units = None if coin is None or amount is None else units_of(amount, coin.scale)
    return new_tuple(Subject, (coin, units, hold))


def _of_withdraw(operation: Withdraw, state: State) -> Subject:
    return _of_coin(operation, state) if operation.hold is None else _of_hold(operation, state)


def decide(operation: Operation, subject: AnySubject, state: State, seq: int, now_ms: int) -> Decision:
    """
    Return what *operation* does to the books in *state*, as the entry *seq*, booked at *now_ms* (since 1970).

    *subject* is the result of :func:`subject_of`. Raises Refused if the operation is refused; it does nothing then.
    """
    made = _RULES[type(operation)](operation, subject, state, seq, now_ms)
    return debts.repay(made, state) if state.debtors else made


def _list_coin(operation: ListCoin, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if subject.coin is not None:
        raise CoinAlreadyListed(_listed_for_ever(subject.coin), field="coin")
    return Decision()


def _listed_for_ever(coin: Coin) -> str:
    return f"coin {coin.name} is already listed with scale {coin.scale}, and a listing never changes"


def _register(operation: RegisterCustomer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if state.has_customer(operation.customer):
        raise CustomerAlreadyRegistered(f"customer {operation.customer} is already registered", field="customer")
    return Decision()


def _open_house_account(operation: OpenHouseAccount, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    found = state.house_account(house_name(operation.name))
    if found is not None:
        raise HouseAccountAlreadyOpen(f"house account {found.name} is already open", field="name")
    return Decision()


def _deposit(operation: Deposit, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin).name, known(subject.units, subject.coin)
    line = state.line(registered(operation.customer, operation.account, state), coin)
    return post(((state.line(EXTERNAL, coin), AVAILABLE, -units, None), (line, AVAILABLE, units, None)))


def _freeze(operation: Freeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin), known(subject.units, subject.coin)
    account = registered(operation.customer, operation.account, state)
    if operation.expires_ms is not None and operation.expires_ms <= now_ms:
        raise InvalidRequest(
            f"expires_ms is {operation.expires_ms}, which is in the past; a time after {now_ms} would pass",
            field="expires_ms",
        )
    line = state.line(account, coin.name)
    enough_available(line, coin, units, state)
    values = (seq, line.account, coin.name, units, units, operation.reference, operation.expires_ms, now_ms, None)
    return shift(line, units, AVAILABLE, seq, new_tuple(Hold, values))


def _unfreeze(operation: Unfreeze, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = usable_hold(operation, subject.hold, state, now_ms)
    units = hold.remaining if subject.units is None else subject.units
    return _use_hold(hold, units, hold.account, subject, state, seq)


def _withdraw(operation: Withdraw, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    if operation.hold is not None:
        hold = usable_hold(operation, subject.hold, state, now_ms)
        return _use_hold(hold, known(subject.units, subject.hold), EXTERNAL, subject, state, seq)
    coin = listed(known(operation.coin, operation), subject.coin)
    units = known(subject.units, subject.coin)
    account = registered(known(operation.customer, operation), operation.account, state)
    return _pay(account, EXTERNAL, coin, units, state)


def _transfer(operation: Transfer, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    coin, units = listed(operation.coin, subject.coin), known(subject.units, subject.coin)
    source = registered(operation.from_customer, operation.from_account, state, "from.customer")
    target = registered(operation.to_customer, operation.to_account, state, "to.customer")
    return _pay(source, target, coin, units, state)


def _pay(source: Account, target: Account, coin: Coin, units: int, state: State) -> Decision:
    line = state.line(source, coin.name)
    enough_available(line, coin, units, state)
    return post(((line, AVAILABLE, -units, None), (state.line(target, coin.name), AVAILABLE, units, None)))


def _expire(operation: Expire, subject: Subject, state: State, seq: int, now_ms: int) -> Decision:
    hold = open_hold(operation.hold, subject.hold)
    if hold.expires_ms is None or now_ms < hold.expires_ms:
        raise LedgerCorrupt(f"hold {hold.hold_id} cannot expire before its time")
    return _use_hold(hold, hold.remaining, hold.account, subject, state, seq)


def _use_hold(hold: Hold, units: int, target: Account, subject: Subject, state: State, seq: int) -> Decision:
    enough_remaining(hold, known(subject.coin, hold), units)
    account, coin, hold_id = hold.account, hold.coin, hold.hold_id
    paying = state.line(account, coin)
    after = hold.after(hold.remaining - units, seq)
    if target is account:
        return shift(paying, units, FREEZE, hold_id, after)
    return post(((paying, FREEZE, -units, hold_id), (state.line(target, coin), AVAILABLE, units, None)), (after,))


_SUBJECTS: dict[type[Any], Callable[[Any, State], AnySubject]] = {
    ListCoin: _of_listing,
    RegisterCustomer: _of_nothing,
    OpenHouseAccount: _of_nothing,
    Deposit: _of_coin,
    Freeze: _of_coin,
    Unfreeze: _of_hold,
    Withdraw: _of_withdraw,
    Transfer: _of_coin,
    Expire: _of_hold,
    Post: posting.legs_of,
    Settle: settlement.fill_of,
    Reverse: reversal.target_of,
}
_RULES: dict[type[Any], Callable[[Any, Any, State, int, int], Decision]] = {
    ListCoin: _list_coin,
    RegisterCustomer: _register,
    OpenHouseAccount: _open_house_account,
    Deposit: _deposit,
    Freeze: _freeze,
    Unfreeze: _unfreeze,
    Withdraw: _withdraw,
    Transfer: _transfer,
    Expire: _expire,
    Post: posting.post_legs,
    Settle: settlement.settle,
    Reverse: reversal.reverse,
}


# --- the canonical request ------------------------------------------------------------------------


def request_of(operation: Operation, subject: AnySubject) -> dict[str, Any]:
    """
    Return the canonical request that the journal keeps of *operation*.

    Defaults are filled in and absent optional fields left out. An amount is in units where *subject* knows its coin,
    else decimal text.
    """
    if isinstance(operation, Settle):
        fill = subject if isinstance(subject, settlement.Fill) else settlement.Fill(None, None)
        return settlement.settle_request(operation, fill)
    if isinstance(operation, Post):
        return posting.post_request(operation, subject if isinstance(subject, posting.Legs) else posting.Legs({}, None))
    return REQUESTS[type(operation)](operation, subject)


def differing_field(kept: dict[str, Any], operation: Operation, scale_of: Callable[[str], int]) -> str | None:
    """
    Name the first field in which *operation* differs from the *kept* canonical request; None if it is the same.

    Args:
        kept: The request of the entry with the operation's key.
        operation: The operation that was asked for under the same key.
        scale_of: Returns the scale of a listed coin.
    """
    if kept["op"] != operation.kind:
        return "op"
    if isinstance(operation, Settle):
        return settlement.differing_settle_field(kept, operation, scale_of)
    if isinstance(operation, Post):
        return posting.differing_post_field(kept, operation, scale_of)
    content = REQUESTS[type(operation)](operation, NO_SUBJECT)
    for name in (*content, *kept):
        if name in _COMPARED_OTHERWISE or content.get(name) == kept.get(name):
            continue
        if name == "coin" and "hold" in kept and name not in content:
            continue  # the coin of the hold, added when the request was kept
        return name
    return None if _is_same_amount(kept, getattr(operation, "amount", None), scale_of) else "amount"


def advice_after_conflict(operation: Operation, state: State) -> str:
    """Say what would pass in place of *operation*, whose key was used before with other content."""
    coin = state.coin(operation.coin) if isinstance(operation, ListCoin) else None
    return "a key of its own would pass" if coin is None else _listed_for_ever(coin)


def _is_same_amount(kept: dict[str, Any], amount: str | None, scale_of: Callable[[str], int]) -> bool:
    if amount is None:
        return "units" not in kept and "amount" not in kept
    if "units" not in kept:
        return bool(kept.get("amount") == normal_amount(amount))
    try:
        return parse_amount(amount, scale_of(kept["coin"])) == int(kept["units"])
    except InvalidAmount:
        return False


_COMPARED_OTHERWISE: Final = frozenset({"format", "op", "units", "amount"})
