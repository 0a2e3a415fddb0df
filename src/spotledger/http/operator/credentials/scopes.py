"""
Which scope an operation needs: the same in a call of its own, in a batch and in a chain.

It is decided by what the operation says. Whose a hold is, and what an entry that is to be reversed has moved, only the
ledger knows; no house account has a hold yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from spotledger.domain.accounts import is_house_name
from spotledger.domain.operations import (
    Deposit,
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
from spotledger.http.operator.calls import LEDGER_CONTROL, LEDGER_WRITE
from spotledger.security.tokens import check_scope

#: The scope that each operation needs, whatever is in it.
SCOPE_OF: Final[Mapping[type[Operation], str]] = {
    ListCoin: LEDGER_WRITE,
    RegisterCustomer: LEDGER_WRITE,
    Deposit: LEDGER_WRITE,
    Freeze: LEDGER_WRITE,
    Unfreeze: LEDGER_WRITE,
    Withdraw: LEDGER_WRITE,
    Transfer: LEDGER_WRITE,
    Settle: LEDGER_WRITE,
    Reverse: LEDGER_WRITE,
}
#: Who pays, by operation: if it is a house account, ``ledger:control`` is needed as well. Freezing is the first half of
#: paying out of a hold, which names no owner.
_PAYER_OF: Final[Mapping[type[Operation], Callable[[Any], str | None]]] = {
    Freeze: lambda operation: operation.customer,
    Withdraw: lambda operation: operation.customer,
    Transfer: lambda operation: operation.from_customer,
}


def scopes_of(operation: Operation) -> tuple[str, ...]:
    """Return the scopes that *operation* needs, all of them."""
    kind = type(operation)
    payer = _PAYER_OF[kind](operation) if kind in _PAYER_OF else None
    if payer is not None and is_house_name(payer):
        return (SCOPE_OF[kind], LEDGER_CONTROL)
    return (SCOPE_OF[kind],)


def check_scopes(operations: Iterable[Operation], scopes: Sequence[str]) -> None:
    """Raise ScopeMissing unless *scopes*, those of a token, allow all *operations*; nothing is done otherwise."""
    if "admin" in scopes:
        return  # it includes all others
    for operation in operations:
        for needed in scopes_of(operation):
            check_scope(scopes, needed)
