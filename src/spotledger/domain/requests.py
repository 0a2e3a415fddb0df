"""
Canonical requests: what the journal keeps of an operation, derived from the fields of its class.

Defaults are filled in, and optional fields that are absent are left out. The owner stands first, then the coin, then
the other fields in the order of the class, and last the amount: in units where its coin is known, else decimal text.
What a hold or an entry is named by stands for it: its customer, account, coin and epoch are preconditions beside it,
which are not kept; but the coin is added beside an amount, for people. Nor is it kept until when it could be booked.

Settlements and posts have parts, and so their requests are written in ``domain/settlement.py`` and
``domain/posting.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, get_args

from spotledger.domain.amounts import normal_amount
from spotledger.domain.fields import (
    ACCOUNT,
    AMOUNT,
    COIN,
    CUSTOMER,
    EPOCH,
    HOLD,
    KEY,
    NOT_AFTER_MS,
    OWNER,
    SEQ,
    Field,
    HoldKey,
    fields_of,
)
from spotledger.domain.journal import REQUEST_FORMAT
from spotledger.domain.operations import Operation

#: What comes first; the rest follows in the order of the class.
_FIRST: Final = (OWNER, CUSTOMER, ACCOUNT, COIN)
_NAMING: Final = (HOLD, SEQ)
_PRECONDITIONS: Final = (OWNER, ACCOUNT, COIN, EPOCH)


def _request_of_class(kind: type[Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """
    Return the function that makes the canonical request of operations of *kind*.

    Like the ``__init__`` of a data class, it is compiled from text, which names only fields of the class.
    """
    kept = sorted(_without(fields_of(kind), (KEY, NOT_AFTER_MS)), key=_rank)
    naming = next((field for field in kept if field.form in _NAMING), None)
    if naming is None:
        lines = _lines_of(kind, kept)
    elif naming.is_required:
        lines = _lines_of(kind, _without(kept, _PRECONDITIONS), naming)
    else:
        lines = [f"if asked.{naming.name} is not None:"]
        lines += [f"    {line}" for line in _lines_of(kind, _without(kept, _PRECONDITIONS), naming)]
        lines += _lines_of(kind, _without(kept, (naming.form, EPOCH)))
    names: dict[str, Any] = {"HoldKey": HoldKey, "normal_amount": normal_amount}
    exec("\n".join(["def made(asked, subject):", *(f"    {line}" for line in lines)]), names)  # noqa: S102 - our names
    made: Callable[[Any, Any], dict[str, Any]] = names["made"]
    return made


def _rank(field: Field) -> int:
    return _FIRST.index(field.form) if field.form in _FIRST else len(_FIRST)


def _without(fields: Iterable[Field], forms: Iterable[Any]) -> list[Field]:
    return [field for field in fields if field.form not in forms]


def _lines_of(kind: type[Any], fields: Iterable[Field], naming: Field | None = None) -> list[str]:
    """Return the lines that return the request with these *fields*, among them *naming*, which is given."""
    always: dict[str, Any] = {}
    later = []
    for field in fields:
        if field.form is AMOUNT:
            continue
        if field.takes_none and field is not naming and field.form not in _FIRST:
            later.append(f"if asked.{field.name} is not None: request[{field.place!r}] = asked.{field.name}")
            continue
        outer, _, inner = field.place.partition(".")
        if inner:
            always.setdefault(outer, {})[inner] = field
        else:
            always[outer] = field
    for field in fields:
        if field.form is AMOUNT:
            later += _lines_of_amount(field, needs_coin=naming is not None)
    head = f"'format': {REQUEST_FORMAT!r}, 'op': {kind.kind!r}"
    return [f"request = {{{head}, {_display(always)}}}", *later, "return request"]


def _lines_of_amount(field: Field, needs_coin: bool) -> list[str]:
    """Return the lines that add an amount, and the coin that *subject* knows if the request *needs_coin*."""
    lines = ["if subject.coin is not None: request['coin'] = subject.coin.name"] if needs_coin else []
    lines += [
        "if subject.units is not None: request['units'] = str(subject.units)",
        f"else: request[{field.place!r}] = normal_amount(asked.{field.name})",
    ]
    return [f"if asked.{field.name} is not None:", *(f"    {line}" for line in lines)] if field.takes_none else lines


def _display(fields: dict[str, Any]) -> str:
    """Return the text of the members of a mapping of *fields* by their places; an end is a mapping of its own."""
    parts = []
    for place, field in fields.items():
        value = f"{{{_display(field)}}}" if isinstance(field, dict) else f"asked.{field.name}"
        if isinstance(field, Field) and field.form is HOLD:
            value = f"{{'key': {value}.key}} if isinstance({value}, HoldKey) else {value}"
        parts.append(f"{place!r}: {value}")
    return ", ".join(parts)


#: By class of operation: return the canonical request of an operation, given the subject that the rules have looked up
#: (``domain/books.py``), with the coin and the units of its amount as far as they are known.
REQUESTS: Final = {
    kind: _request_of_class(kind)
    for kind in get_args(Operation)
    if not any(field.parts is not None for field in fields_of(kind))
}
