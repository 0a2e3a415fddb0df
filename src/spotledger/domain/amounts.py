"""
Amounts: exact whole numbers of a coin's smallest unit, and their decimal text.

A coin of scale *s* has 10**s units. Text is converted by a pattern and integer arithmetic only, never through a float,
and never through ``Decimal``, which takes ``NaN`` and ``1e5``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

from spotledger.errors import InvalidAmount

MAX_SCALE = 24
#: The absolute value of amounts and balances stays below this number of units.
UNITS_LIMIT = 10**38
_SHOWN_CHARACTERS = 70

#: The whole text of an amount, and of zero.
AMOUNT_PATTERN = rf"(?=[0.]*[1-9])(?:0|[1-9][0-9]{{0,37}})(?:\.[0-9]{{1,{MAX_SCALE}}})?"
SIGNED_AMOUNT_PATTERN = rf"-?{AMOUNT_PATTERN}"
ZERO_PATTERN = rf"0(?:\.0{{1,{MAX_SCALE}}})?"
_AMOUNT = re.compile(rf"\A{AMOUNT_PATTERN}\Z")
_ZERO = re.compile(rf"\A{ZERO_PATTERN}\Z")
_EXPECTED = (
    'a plain decimal above zero such as "12.5" in a text'
    f" (digits 0-9, at most 38 and {MAX_SCALE} decimals; no sign, exponent or leading zeros)"
)


def check_amount(text: object, field: str = "amount") -> str:
    """
    Return *text* if it has the form of an amount; whether it fits a coin's scale, :func:`parse_amount` checks.

    Raises:
        InvalidAmount: It is not text, not a plain decimal, or zero.
    """
    if isinstance(text, str) and _AMOUNT.match(text):
        return text
    if is_zero_text(text):
        raise InvalidAmount(f"{field} is zero; an amount above zero would pass", field=field)
    raise InvalidAmount(f"{field} is {_shown_amount(text)}; {_EXPECTED} would pass", field=field)


def is_zero_text(text: object) -> bool:
    """Return whether *text* has the form of an amount but is zero."""
    return isinstance(text, str) and _ZERO.match(text) is not None


def parse_amount(text: str, scale: int, field: str = "amount") -> int:
    """
    Read a decimal *text* as units of a coin with *scale* decimals.

    Returns:
        Units, > 0 and < 10**38.

    Raises:
        InvalidAmount: *text* is not a plain decimal, zero, 10**38 units or more, or has more than *scale* decimals.
    """
    return units_of(check_amount(text, field), scale, field)


def units_of(text: str, scale: int, field: str = "amount") -> int:
    """Read a decimal *text* like :func:`parse_amount`, but without checking its form."""
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


def check_signed_amount(text: object, field: str = "amount") -> str:
    """Return *text* if it has the form of an amount that may have a minus sign before it."""
    if isinstance(text, str) and text.startswith("-"):
        check_amount(text[1:], field)
        return text
    return check_amount(text, field)


def signed_units_of(text: str, scale: int, field: str = "amount") -> int:
    """Read a decimal *text* that may have a minus sign like :func:`units_of`."""
    return -units_of(text[1:], scale, field) if text[0] == "-" else units_of(text, scale, field)


def normal_amount(text: str) -> str:
    """Return the decimal *text* without trailing zeros."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def format_amount(units: int, scale: int, least_decimals: int = 2) -> str:
    """
    Return *units* of a coin with *scale* decimals as a plain decimal.

    It has no exponent, at least *least_decimals* decimals, and no trailing zeros after those: ``"0.00"``, ``"1.50"``,
    ``"3062.17437341"`` (wire rule R15).
    """
    return formatter(scale, least_decimals)(units)


@cache
def formatter(scale: int, least_decimals: int) -> Callable[[int], str]:
    """Return the function that writes units like :func:`format_amount`, for one *scale*."""
    if scale <= least_decimals:
        return _formatter_of_all(scale, least_decimals)
    width, point, kept = scale + 1, -scale, least_decimals - scale
    nothing = "0" * -kept
    dot = "." if least_decimals else ""
    zero = f"0{dot}{'0' * least_decimals}"

    def write(units: int) -> str:
        if units <= 0:
            return "-" + write(-units) if units else zero
        digits = str(units)
        if len(digits) < width:
            digits = digits.zfill(width)
        if digits[kept:] == nothing:
            return f"{digits[:point]}{dot}{digits[point:kept]}"
        return f"{digits[:point]}.{digits[point:]}".rstrip("0")

    return write


def _formatter_of_all(scale: int, least_decimals: int) -> Callable[[int], str]:
    """Return the function for a *scale* of at most *least_decimals*: all decimals are shown, and zeros after them."""
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
    """Return *value* as messages show it: quoted, and shortened to 70 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def _shown_amount(value: object) -> str:
    return shown(value) if isinstance(value, str) else f"a {type(value).__name__}"
