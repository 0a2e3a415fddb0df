"""
Which scope an operation needs: the same in a call of its own, in a batch and in a chain.

It is decided by what the operation says. Whose a hold is, and what an entry that is to be reversed has moved, only the
ledger knows: a hold of a house account was opened with the scope for controls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from spotledger.domain.accounts import is_house_name
from spotledger.domain.operations import OPERATIONS, Operation, Post
from spotledger.http.operator.calls import LEDGER_CONTROL, LEDGER_WRITE
from spotledger.security.tokens import check_scope

#: The scope that each operation needs, whatever is in it.
SCOPE_OF: Final[Mapping[type[Any], str]] = {
    kind: LEDGER_CONTROL if kind.is_control else LEDGER_WRITE for kind in OPERATIONS
}
#: The field that names who pays, by operation: if it is a house account, ``ledger:control`` is needed as well.
_PAYER_OF: Final[Mapping[type[Any], str]] = {kind: kind.payer for kind in OPERATIONS if kind.payer is not None}


def scopes_of(operation: Operation) -> tuple[str, ...]:
    """Return the scopes that *operation* needs, all of them."""
    kind = type(operation)
    if isinstance(operation, Post):
        debits = any(leg.amount[0] == "-" and is_house_name(leg.customer) for leg in operation.legs)
        return (SCOPE_OF[kind], LEDGER_CONTROL) if debits else (SCOPE_OF[kind],)
    payer = getattr(operation, _PAYER_OF[kind]) if kind in _PAYER_OF else None
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
