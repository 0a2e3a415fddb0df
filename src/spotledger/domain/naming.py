"""
What an operation names: accounts, holds and entries, read from its fields by their forms.

A hold is in the field ``hold``, of the operation or of a side of a fill, and an entry in the field ``seq``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, TypeVar, get_args

from spotledger.domain.accounts import Account
from spotledger.domain.fields import ACCOUNT, CUSTOMER, HOLD, LEGS, OWNER, SEQ, SIDE, HoldKey, HoldName, fields_of
from spotledger.domain.journal import new_tuple
from spotledger.domain.operations import OPERATIONS, Expire, Operation, Reverse, Settle, SettleSide, Unfreeze, Withdraw
from spotledger.domain.positions import Epochs, parse_position

#: What names a hold, and anything that is copied.
T = TypeVar("T", bound=Unfreeze | Withdraw | SettleSide)
C = TypeVar("C")


def _locate_hold(operation: Unfreeze | Withdraw, epochs: Epochs) -> Operation:
    return operation if operation.hold is None else _located_hold(operation, epochs, "hold")


def _locate_sides(operation: Settle, epochs: Epochs) -> Operation:
    buyer = _located_hold(operation.buyer, epochs, "buyer.hold")
    seller = _located_hold(operation.seller, epochs, "seller.hold")
    if buyer is operation.buyer and seller is operation.seller:
        return operation
    return _changed(operation, buyer=buyer, seller=seller)


def _locate_seq(operation: Reverse, epochs: Epochs) -> Operation:
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
        setattr(changed, field, fields[field] if field in fields else getattr(named, field))
    return changed


#: By class: return an operation with the holds and the entry that it names as plain numbers, as the journal keeps them.
#: A plain number beside ``epoch`` is of that epoch; the rules check it. Each raises EpochMissing or UnknownPosition.
LOCATING: Final[dict[type[Any], Callable[[Any, Epochs], Operation]]] = {
    kind: locate
    for kind in OPERATIONS
    for form, locate in ((HOLD, _locate_hold), (SIDE, _locate_sides), (SEQ, _locate_seq))
    if any(field.form is form for field in fields_of(kind))
}


def _hold_of(operation: Unfreeze | Withdraw | Expire) -> tuple[HoldName, ...]:
    return () if operation.hold is None else (operation.hold,)


def _holds_of_sides(operation: Settle) -> tuple[HoldName, ...]:
    return (operation.buyer.hold, operation.seller.hold)


#: By class: return the holds that an operation names. They are in its field ``hold``, or in the two sides of a fill.
HOLDS_OF: Final[dict[type[Any], Callable[[Any], tuple[HoldName, ...]]]] = {
    kind: read
    for kind in get_args(Operation)
    for form, read in ((HOLD, _hold_of), (SIDE, _holds_of_sides))
    if any(field.form is form for field in fields_of(kind))
}


def _accounts_of(kind: type[Any]) -> Callable[[Any], tuple[Account, ...]]:
    """Return the function that returns the accounts that an operation of *kind* names."""
    accounts = {field.place.rpartition(".")[0]: field.name for field in fields_of(kind) if field.form is ACCOUNT}
    owners = [field for field in fields_of(kind) if field.form in (CUSTOMER, OWNER)]
    readers = [_account_reader(field.name, accounts.get(field.place.rpartition(".")[0])) for field in owners]
    if len(owners) == 1 and owners[0].is_required:  # then the check of the form filled in the account
        [only] = readers
        return lambda operation: (new_tuple(Account, only(operation)),)
    # Beside a hold there is no account, and there need be no customer.
    return lambda operation: tuple([Account(*named) for read in readers if None not in (named := read(operation))])


def _account_reader(customer: str, account: str | None) -> Callable[[Any], tuple[Any, Any]]:
    if account is None:
        return lambda operation: (getattr(operation, customer), "spot")
    return attrgetter(customer, account)


def _accounts_of_legs(operation: Any) -> tuple[Account, ...]:
    return tuple([Account(leg.customer, leg.account) for leg in operation.legs])


#: By class: return the accounts that an operation names; spot where it names none of a customer's. Beside a hold or an
#: entry, customer and account are preconditions.
ACCOUNTS_OF: Final[dict[type[Any], Callable[[Any], tuple[Account, ...]]]] = {
    kind: _accounts_of(kind)
    for kind in OPERATIONS
    if any(field.form in (CUSTOMER, OWNER) for field in fields_of(kind))
    and not any(field.form in (HOLD, SEQ) and field.is_required for field in fields_of(kind))
} | {kind: _accounts_of_legs for kind in OPERATIONS if any(field.form is LEGS for field in fields_of(kind))}
