"""Amounts: which decimal texts are accepted and refused, and how units are formatted."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from spotledger.domain.amounts import UNITS_LIMIT, check_amount, format_amount, normal_amount, parse_amount
from spotledger.errors import InvalidAmount


@pytest.mark.parametrize(
    ("text", "scale", "units"),
    [
        ("1", 0, 1),
        ("10", 0, 10),
        ("1", 8, 100_000_000),
        ("1.5", 8, 150_000_000),
        ("1.50000000", 8, 150_000_000),
        ("0.00000001", 8, 1),
        ("3062.17437341", 8, 306_217_437_341),
        ("0.000000000000000001", 18, 1),
        ("99999999999999999999.999999999999999999", 18, UNITS_LIMIT - 1),
        ("0.000000000000000000000001", 24, 1),
        ("99999999999999.999999999999999999999999", 24, UNITS_LIMIT - 1),
        ("9" * 38, 0, UNITS_LIMIT - 1),
        ("18446744073709551616", 0, 2**64),
    ],
)
def test_parse_amount_of_a_plain_decimal_is_exact(text: str, scale: int, units: int) -> None:
    """A plain decimal that fits the coin's scale is read as exactly that many units."""
    assert parse_amount(text, scale) == units


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0.0", "0.000", "00", "00.1", "01", "-1", "+1", "-0", ".5", "5.", ".", "1.2.3"),
        *("1e5", "1E5", "1e-5", "NaN", "nan", "Infinity", "-inf", "0x10", "0b1", "1_000", "1,000", "1 000"),
        *(" 1", "1 ", "1\n", "\n1", "1\r", "1\t", "1\x00", "1\u00a0", "1\u200b", "\ufeff1"),
        *("１２", "1２", "१", "٣", "²", "½", "1．5", "1。5", "−1", "1\u066b5"),
        *("1" + "0" * 38, "0." + "0" * 24 + "1", "1." + "0" * 25, "9" * 10_000, "0." + "1" * 10_000),
        *("None", "null", "true", "12abc", "$1", "1btc", "\ud800"),
    ],
)
def test_amount_that_is_no_plain_decimal_is_refused(text: str) -> None:
    """Zero, signs, exponents, words, blanks, foreign digits and very long texts are refused with a short message."""
    for read in (check_amount, lambda value: parse_amount(value, 24)):
        with pytest.raises(InvalidAmount) as refused:
            read(text)
        assert refused.value.details["field"] == "amount"
        assert len(refused.value.message) < 300


@pytest.mark.parametrize("text", ["0." + "1" * 25, "1" * 39])
def test_amount_of_too_many_digits_is_told_how_many_would_pass(text: str) -> None:
    """It is a plain decimal, so the message has to say what else is wrong with it."""
    with pytest.raises(InvalidAmount, match="at most 38 and 24 decimals"):
        check_amount(text)


@pytest.mark.parametrize("value", [1, 1.5, 0, True, False, None, Decimal("1"), b"1", ["1"], {"1"}, float("nan")])
def test_amount_that_is_no_text_is_refused(value: Any) -> None:
    """A number is not an amount, even an exact one: JSON numbers lose digits."""
    with pytest.raises(InvalidAmount, match=type(value).__name__):
        check_amount(value)


@pytest.mark.parametrize(
    ("text", "scale"), [("0.1", 0), ("1.0", 0), ("0.123456789", 8), ("1.000000000", 8), ("1.00", 1)]
)
def test_parse_amount_with_too_many_decimals_is_refused_not_rounded(text: str, scale: int) -> None:
    """More decimals than the coin has are refused, zeros too, and the message says how many would pass."""
    with pytest.raises(InvalidAmount, match=f"at most {scale} would pass"):
        parse_amount(text, scale)


@pytest.mark.parametrize(
    ("text", "scale"), [("9" * 38, 1), ("1" + "0" * 37, 1), ("1" + "0" * 20, 18), ("1" + "0" * 14, 24), ("9" * 38, 24)]
)
def test_parse_amount_of_too_many_units_is_refused(text: str, scale: int) -> None:
    """10**38 units and more are refused, whatever the scale."""
    with pytest.raises(InvalidAmount, match=r"10\*\*38"):
        parse_amount(text, scale)


@pytest.mark.parametrize(
    ("units", "scale", "least", "text"),
    [
        (0, 8, 2, "0.00"),
        (0, 0, 0, "0"),
        (0, 0, 2, "0.00"),
        (0, 18, 0, "0"),
        (306_217_437_341, 8, 2, "3062.17437341"),
        (150_000_000, 8, 2, "1.50"),
        (-150_000_000, 8, 2, "-1.50"),
        (1, 8, 2, "0.00000001"),
        (-1, 18, 2, "-0.000000000000000001"),
        (5, 1, 2, "0.50"),
        (5, 0, 2, "5.00"),
        (1_000, 0, 0, "1000"),
        (100, 2, 0, "1"),
        (UNITS_LIMIT - 1, 18, 2, "99999999999999999999.999999999999999999"),
        (10**20, 18, 2, "100.00"),
        (1, 24, 2, "0.000000000000000000000001"),
        (UNITS_LIMIT - 1, 24, 2, "99999999999999.999999999999999999999999"),
    ],
)
def test_format_amount_is_a_plain_decimal(units: int, scale: int, least: int, text: str) -> None:
    """Units are formatted without an exponent, with at least the given decimals and no trailing zeros after them."""
    assert format_amount(units, scale, least) == text


@pytest.mark.parametrize(
    ("text", "normal"),
    [("1", "1"), ("10", "10"), ("100", "100"), ("1.0", "1"), ("1.50", "1.5"), ("0.10", "0.1"), ("10.010", "10.01")],
)
def test_normal_amount_drops_only_zeros_that_say_nothing(text: str, normal: str) -> None:
    """Two texts of one number have the same normal form, and a whole number keeps its zeros."""
    assert normal_amount(text) == normal
