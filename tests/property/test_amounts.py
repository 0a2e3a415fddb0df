"""Amounts as text and as units, back and forth: nothing is lost, and nothing else is read."""

from __future__ import annotations

import re
from decimal import Decimal, localcontext

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.domain.amounts import MAX_SCALE, UNITS_LIMIT, format_amount, normal_amount, parse_amount
from spotledger.errors import InvalidAmount

SCALES = st.integers(0, MAX_SCALE)
UNITS = st.one_of(
    st.integers(1, UNITS_LIMIT - 1),
    st.integers(0, 37).map(lambda power: 10**power),
    st.sampled_from([2**53 + 1, 2**63 - 1, 2**63, 2**64 + 1, UNITS_LIMIT - 1]),
)
#: What an amount is, said once more in other words than the program says it.
PLAIN = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?")


def exact(text: str) -> Decimal:
    """Return *text* as a decimal of any length."""
    with localcontext() as context:
        context.prec = 200
        return +Decimal(text)


@settings(deadline=None, max_examples=500)
@given(UNITS, SCALES)
def test_units_written_and_read_again_are_the_same(units: int, scale: int) -> None:
    """Any units of any coin, written with no more decimals than it has, are read back as the same units."""
    for least in {0, min(2, scale), scale}:
        assert parse_amount(format_amount(units, scale, least), scale) == units


@settings(deadline=None, max_examples=500)
@given(st.integers(1 - UNITS_LIMIT, UNITS_LIMIT - 1), SCALES, st.integers(0, 18))
def test_units_written_are_the_number_that_they_are(units: int, scale: int, least: int) -> None:
    """The text is exactly units / 10**scale, in plain form, with at least so many decimals and no needless zeros."""
    text = format_amount(units, scale, least)
    with localcontext() as context:
        context.prec = 200
        assert Decimal(text) == Decimal(units).scaleb(-scale)
    decimals = text.partition(".")[2]
    assert PLAIN.fullmatch(text.removeprefix("-"))
    assert len(decimals) >= least
    assert len(decimals) <= max(least, scale)
    assert len(decimals) == least or not decimals.endswith("0")


@settings(deadline=None, max_examples=500)
@given(st.from_regex(r"\A[0-9]{1,39}(\.[0-9]{1,19})?\Z"), SCALES)
def test_digits_are_read_exactly_or_refused(text: str, scale: int) -> None:
    """Digits with a point are read as exactly their number, or refused: never rounded, never read as another."""
    try:
        units = parse_amount(text, scale)
    except InvalidAmount:
        with localcontext() as context:
            context.prec = 200
            scaled = Decimal(text).scaleb(scale)
        fits = 0 < scaled < UNITS_LIMIT and len(text.partition(".")[2]) <= scale and PLAIN.fullmatch(text)
        assert not fits, "this one should have passed"
    else:
        with localcontext() as context:
            context.prec = 200
            assert Decimal(text).scaleb(scale) == units


@settings(deadline=None, max_examples=500)
@given(st.text(st.characters(codec=None), max_size=12), SCALES)
def test_any_text_is_read_or_refused(text: str, scale: int) -> None:
    """Whatever the text, it is a plain decimal or InvalidAmount; nothing else ever comes out."""
    try:
        units = parse_amount(text, scale)
    except InvalidAmount:
        return
    assert text.isascii()
    assert PLAIN.fullmatch(text)
    assert 0 < units < UNITS_LIMIT


@settings(deadline=None, max_examples=300)
@given(UNITS, SCALES, st.integers(0, 18))
def test_texts_of_one_number_have_one_normal_form(units: int, scale: int, zeros: int) -> None:
    """Zeros at the end change neither the normal form nor, where they fit, the units; other numbers differ."""
    text = format_amount(units, scale, 0)
    longer = text + ("" if "." in text or not zeros else ".") + "0" * zeros
    assert normal_amount(longer) == normal_amount(text) == text
    assert exact(normal_amount(longer)) == exact(longer)
    if len(longer.partition(".")[2]) <= scale:
        assert parse_amount(longer, scale) == units
    else:
        with pytest.raises(InvalidAmount):
            parse_amount(longer, scale)
