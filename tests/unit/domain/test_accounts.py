"""Names of customers, coins and accounts: what is accepted and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from spotledger.domain.accounts import (
    ACCOUNT_IDS,
    DUST,
    EXTERNAL,
    FEES,
    ZERO,
    Account,
    Balance,
    check_account_kind,
    check_coin,
    check_customer,
    check_scale,
    may_be_negative,
    receivable_of,
)
from spotledger.errors import InvalidRequest

NO_TEXTS = [None, 1, 1.0, True, b"btc", ["btc"], ("btc",), object()]


def refused(check: Callable[..., Any], value: object) -> None:
    """Assert that *check* refuses *value*, names the given field, and keeps its message short."""
    with pytest.raises(InvalidRequest, match="would pass") as error:
        check(value, "somewhere")
    assert error.value.details == {"field": "somewhere"}
    assert error.value.message.startswith("somewhere is ")
    assert len(error.value.message) < 300


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "-", "_", "a" * 64, "...", "..a", "null"])
def test_customer_of_allowed_characters_passes(name: str) -> None:
    """1 to 64 letters, digits, points, underscores and hyphens name a customer."""
    assert check_customer(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a" * 65, "a b", " a", "a\n", "a\x00", "@external", "a@b", "a/b", "ä", "１", "a:b", "~", *NO_TEXTS],
)
def test_customer_of_other_characters_is_refused(name: object) -> None:
    """Everything else is refused, also house names, paths, blanks, line ends and non-ASCII letters."""
    refused(check_customer, name)


@pytest.mark.parametrize("name", ["b", "btc", "1inch", "0", "a" * 32, "usdt.e", "lp-btc", "a_b", "0.-_", "usdt..e"])
def test_coin_of_small_letters_digits_and_marks_passes(name: str) -> None:
    """1 to 32 lower-case letters, digits, dots, underscores and hyphens name a coin."""
    assert check_coin(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "BTC", "bTc", "a" * 33, ".e", "-t", "_t", "a,b", "a/b", "a b", "btc\n", " btc", "ß", "x" * 9999, *NO_TEXTS],
)
def test_coin_of_other_characters_is_refused(name: object) -> None:
    """Capitals, a mark in front, and everything else are refused, not converted."""
    refused(check_coin, name)


@pytest.mark.parametrize("scale", range(25))
def test_scale_from_0_to_24_passes(scale: int) -> None:
    """A scale is a whole number from 0 to 24."""
    assert check_scale(scale) == scale


@pytest.mark.parametrize("scale", [-1, 25, 8.0, "8", True, False, None, 10**100])
def test_scale_of_another_kind_is_refused(scale: object) -> None:
    """True is not 1, "8" is not 8, and 8.0 is not 8."""
    refused(check_scale, scale)


def test_account_kinds_are_the_three_of_the_wire() -> None:
    """wallet, spot and fiat pass; the house's kind, numbers and everything else do not."""
    assert [check_account_kind(kind) for kind in ACCOUNT_IDS] == ["wallet", "spot", "fiat"]
    assert list(ACCOUNT_IDS.values()) == [1, 2, 3]
    for kind in ("house", "Spot", "spot ", "", 2, None, True, ["spot"]):
        refused(check_account_kind, kind)


def test_only_the_outside_world_and_receivables_may_be_negative() -> None:
    """No customer, whatever the name, and neither fees nor dust may be below zero."""
    assert may_be_negative(EXTERNAL)
    assert may_be_negative(receivable_of("ann"))
    for account in (FEES, DUST, Account("ann", "spot"), Account("@external", "spot"), Account("@receivable:a", "fiat")):
        assert not may_be_negative(account)


def test_house_accounts_cannot_be_named_by_customers() -> None:
    """No house account's name passes as a customer's, so nobody can register one."""
    for account in (EXTERNAL, FEES, DUST, receivable_of("ann")):
        refused(check_customer, account.customer)


def test_zero_is_nothing_on_both_sides() -> None:
    """A balance that was never touched is zero on both sides."""
    assert Balance(0, 0) == ZERO
