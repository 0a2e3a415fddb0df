"""
Decode the documents of the operator API into typed answers.

Strictly: a missing member, a value of another type and an amount that is not decimal text are refused. Members that
a newer service adds are ignored.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeVar

import msgspec

from spotledger.errors import ProtocolError

T = TypeVar("T")

_AMOUNT_CHARACTERS: Final = "0123456789.-"


class ExactAmount(Decimal):
    """An amount. A JSON number is refused, because a parser on the way may have rounded it."""

    __slots__ = ()


def decode(kind: type[T], document: Any) -> T:
    """
    Return *document* as a *kind*.

    Raises:
        ProtocolError: It is not of the documented form. The message repeats no value of it.
    """
    try:
        return msgspec.convert(document, kind, dec_hook=_amount)
    except (msgspec.ValidationError, InvalidOperation) as error:
        problem = str(error) if isinstance(error, msgspec.ValidationError) else "an amount is not a decimal number"
    raise ProtocolError(f"the answer cannot be read as {kind.__name__}: {problem}")


def _amount(kind: type[Any], said: Any) -> ExactAmount:
    if kind is not ExactAmount:
        raise NotImplementedError
    if type(said) is not str or said.strip(_AMOUNT_CHARACTERS):
        raise ValueError("an amount is not decimal text")
    return ExactAmount(said)
