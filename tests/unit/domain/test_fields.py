"""The description of the fields of operations, and the checks that are compiled from it."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.domain import fields
from spotledger.domain.fields import Form, check_each, check_of, fields_of
from spotledger.domain.operations import (
    OPERATIONS,
    CoinAmount,
    Described,
    Expire,
    HoldKey,
    Operation,
    Settle,
    SettleSide,
    Transfer,
    Withdraw,
)
from spotledger.errors import InvalidRequest

FORMS = [value for value in vars(fields).values() if isinstance(value, Form)]
WITH_PATTERN = [form for form in FORMS if form.pattern]

TEXTS = [
    *("", ".", "..", "...", "a", "A", "k" * 128, "k" * 129, "usdt", "usdt.e", ".e", "lp-btc", "a" * 32, "a" * 33),
    *("spot", "wallet", "spot\n", "a\nb", "rest", "2-7", "1." + "0" * 24, "1." + "0" * 25),
    *(
        "0",
        "0.0",
        "00",
        "1",
        "0.1",
        "1.",
        ".1",
        "1" * 38,
        "1" * 39,
        "0." + "0" * 17 + "1",
        "0." + "0" * 19,
        "-1",
        "1e5",
    ),
    *("ключ", "１２", "\u2028", "x" * 256, "x" * 257, "\x7f", " ", "-1", "1e5"),
]
JUNK = st.one_of(
    st.sampled_from([*TEXTS, None, 0, 1, -1, True, 1.5, b"k", [], {}, 2**53, 10**18, 253_402_300_800_000]),
    st.text(max_size=5),
    st.builds(HoldKey, st.sampled_from(TEXTS)),
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_example_of_a_form_passes_unless_it_is_made_of_parts(form: Form) -> None:
    """What the documents show as a value is one; a hold and a part are objects there, and are read first."""
    if not isinstance(form.example, dict):
        form.check(form.example, "field")


@pytest.mark.parametrize("form", WITH_PATTERN, ids=lambda form: form.name)
@given(text=st.one_of(st.sampled_from(TEXTS), st.text(max_size=6), st.text("01.a\n", max_size=6)))
@settings(max_examples=60)
def test_pattern_of_a_form_says_exactly_what_its_check_does(form: Form, text: str) -> None:
    """A text that the pattern matches passes the check, any other is refused, and a newline is never matched."""
    matched = re.fullmatch(form.pattern, text) is not None
    assert not (matched and "\n" in text)
    try:
        form.check(text, "field")
    except InvalidRequest:
        assert not matched
    else:
        assert matched


def refusal(check: Any, *arguments: Any) -> tuple[str, Any] | None:
    """Give the message and the field of the refusal, or None if the check passes."""
    try:
        check(*arguments)
    except InvalidRequest as error:
        return error.message, error.details
    return None


def made(kind: type[Any], values: dict[str, Any]) -> Any:
    """Make a *kind* without its checks."""
    value = object.__new__(kind)
    for name, content in values.items():
        setattr(value, name, content)
    return value


SIDES = st.fixed_dictionaries({field.name: JUNK for field in fields_of(SettleSide)} | {
    name: st.one_of(st.none(), st.builds(CoinAmount, JUNK, JUNK)) for name in ("fee", "dust")
}).map(lambda values: made(SettleSide, values))  # fmt: skip


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)
@given(data=st.data())
@settings(max_examples=150)
def test_compiled_check_refuses_what_the_fields_do_with_the_same_words(kind: type[Described], data: Any) -> None:
    """Whatever the values are, one match for all texts finds the same first field, message and details."""
    drawn: dict[str, Any] = {}
    for field in fields_of(kind):
        if field.parts is not None:
            drawn[field.name] = data.draw(SIDES)
        elif not isinstance(field.form.example, dict) and data.draw(st.integers(0, 3)):
            drawn[field.name] = field.form.example
        else:
            drawn[field.name] = data.draw(JUNK)
    operation = made(kind, drawn)
    assert refusal(check_of(kind), operation) == refusal(check_each, operation, fields_of(kind))


def test_fields_stand_where_a_request_has_them() -> None:
    """A field is named as in its class; the ends of a transfer are objects of their own."""
    assert [field.place for field in fields_of(Transfer)] == [
        "key", "from.customer", "to.customer", "coin", "amount", "from.account", "to.account", "reference",
        "not_after_ms",
    ]  # fmt: skip
    assert [(field.name, field.parts) for field in fields_of(Settle) if field.parts] == [
        ("buyer", SettleSide),
        ("seller", SettleSide),
    ]
    assert [field.name for field in fields_of(Withdraw) if field.is_required] == ["key", "amount"]
    assert [field.default for field in fields_of(Transfer) if field.form is fields.ACCOUNT] == [None, None]


def test_callers_can_ask_for_every_operation_but_the_ledgers_own() -> None:
    """Each operation of the union is described, except the expiry, which the ledger writes."""
    assert set(OPERATIONS) == set(get_args(Operation)) - {Expire}
    assert len({kind.kind for kind in OPERATIONS}) == len({kind.collection for kind in OPERATIONS}) == len(OPERATIONS)
    for kind in OPERATIONS:
        assert fields_of(kind)[0].form is fields.KEY
        assert kind.payer is None or kind.payer in [field.name for field in fields_of(kind)]
