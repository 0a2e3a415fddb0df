"""
Amounts: exact whole numbers of a coin's smallest unit, and their decimal text.

A coin of scale *s* has 10**s units. Text becomes units by a pattern and integer arithmetic only: never through a
float, and never through ``Decimal``, which would take ``NaN`` and ``1e5``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from spotledger.errors import InvalidAmount

MAX_SCALE = 18
#: Amounts and balances stay below this number of units, in size.
UNITS_LIMIT = 10**38
_SHOWN_CHARACTERS = 70

_AMOUNT = re.compile(r"\A(0|[1-9][0-9]{0,37})(?:\.([0-9]{1,18}))?\Z")
_EXPECTED = 'a plain decimal above zero such as "12.5" in a text (digits 0-9; no sign, exponent or leading zeros)'


def check_amount(text: object, field: str = "amount") -> str:
    """
    Return *text* if it has the form of an amount; its fit to a coin's scale is checked by :func:`parse_amount`.

    Raises:
        InvalidAmount: It is no text, not a plain decimal, or zero.
    """
    if not isinstance(text, str):
        raise InvalidAmount(f"{field} is {_shown_amount(text)}; {_EXPECTED} would pass", field=field)
    match = _AMOUNT.match(text)
    if match is None:
        raise InvalidAmount(f"{field} is {_shown_amount(text)}; {_EXPECTED} would pass", field=field)
    if not text.strip("0."):
        raise InvalidAmount(f"{field} is zero; an amount above zero would pass", field=field)
    return text


def parse_amount(text: str, scale: int, field: str = "amount") -> int:
    """
    Read a decimal *text* as units of a coin with *scale* decimals.

    Returns:
        Units, > 0 and < 10**38.

    Raises:
        InvalidAmount: Not a plain decimal, zero, more decimals than *scale*, or 10**38 units and more.
    """
    return units_of(check_amount(text, field), scale, field)


def units_of(text: str, scale: int, field: str = "amount") -> int:
    """Read a decimal *text* whose form was checked before, as :func:`parse_amount` does; raises the same."""
    whole, _, decimals = text.partition(".")
    if len(decimals) > scale:
        raise InvalidAmount(
            f"{field} is {text!r} with {len(decimals)} decimals; this coin has {scale}, so at most {scale} would pass",
            field=field,
        )
    units = int(whole + decimals.ljust(scale, "0"))
    if units >= UNITS_LIMIT:
        raise InvalidAmount(f"{field} is {text!r}; fewer than 10**38 units would pass", field=field)
    return units


def normal_amount(text: str) -> str:
    """Return the one form of the decimal *text* without zeros at its end that say nothing."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_amount(units: int, scale: int, least_decimals: int = 2) -> str:
    """
    Write *units* of a coin with *scale* decimals as a plain decimal.

    No exponent, at least *least_decimals* decimals, and after those no zeros that say nothing: ``"0.00"``,
    ``"1.50"``, ``"3062.17437341"`` (wire rule R15).
    """
    return formatter(scale, least_decimals)(units)


@cache
def formatter(scale: int, least_decimals: int) -> Callable[[int], str]:
    """Return what writes units as :func:`format_amount` does, for one *scale*."""
    if scale <= least_decimals:
        return _formatter_of_all(scale, least_decimals)
    width, point, kept = scale + 1, -scale, least_decimals - scale
    nothing = "0" * -kept
    dot = "." if least_decimals else ""

    def write(units: int) -> str:
        if units < 0:
            return "-" + write(-units)
        digits = str(units)
        if len(digits) < width:
            digits = digits.zfill(width)
        if digits[kept:] == nothing:
            return f"{digits[:point]}{dot}{digits[point:kept]}"
        return f"{digits[:point]}.{digits[point:]}".rstrip("0")

    return write


def _formatter_of_all(scale: int, least_decimals: int) -> Callable[[int], str]:
    """Return what writes units where all *scale* decimals are shown, and as many zeros after them as are wanted."""
    more = "0" * (least_decimals - scale)
    dot = "." if least_decimals else ""

    def write(units: int) -> str:
        if units < 0:
            return "-" + write(-units)
        digits = str(units).zfill(scale + 1)
        whole = len(digits) - scale
        return f"{digits[:whole]}{dot}{digits[whole:]}{more}"

    return write


def shown(value: object) -> str:
    """Return *value* as a message shows it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _shown_amount(value: object) -> str:
    return shown(value) if isinstance(value, str) else f"a {type(value).__name__}"
