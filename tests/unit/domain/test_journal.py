"""The journal's records: what is kept of a request, and when another request under the same key is the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account, Coin
from spotledger.domain.books import Subject
from spotledger.domain.journal import (
    ACTOR,
    Entry,
    Hold,
    Posting,
    key_actor,
    opened_hold,
)
from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.domain.rules import differing_field, request_of

ANN = Account("ann", "spot")
SCALE = 8
UNITS = 150_000_000
BTC = Coin("btc", SCALE)

LIST = ListCoin("k", "btc", 8)
REGISTER = RegisterCustomer("k", "ann")
THEN_MS = 1_600_000_000_000
DEPOSIT = Deposit("k", "ann", "btc", "1.5", reference="r", happened_ms=THEN_MS)
FREEZE = Freeze("k", "ann", "btc", "1.5", reference="r", expires_ms=THEN_MS)
UNFREEZE = Unfreeze("k", "7", "1.5")
UNFREEZE_ALL = Unfreeze("k", "7")
UNFREEZE_BY_KEY = Unfreeze("k", HoldKey("f"), "1.5")
WITHDRAW = Withdraw("k", "1.5", "ann", "btc", reference="r", happened_ms=THEN_MS)
WITHDRAW_HOLD = Withdraw("k", "1.5", hold="7", reference="r", happened_ms=THEN_MS)
TRANSFER = Transfer("k", "ann", "bob", "btc", "1.5", reference="r")
ALL = [LIST, REGISTER, DEPOSIT, FREEZE, UNFREEZE, UNFREEZE_ALL, UNFREEZE_BY_KEY, WITHDRAW, WITHDRAW_HOLD, TRANSFER]


def kept_of(operation: Any, known: bool = True) -> dict[str, Any]:
    """Return what the journal keeps of *operation*, its coin known or not."""
    has_amount = getattr(operation, "amount", None) is not None
    return request_of(operation, Subject(BTC, UNITS if has_amount else None) if known else Subject())


def difference(kept: dict[str, Any], operation: Any) -> str | None:
    """Return the field in which *operation* differs from what is kept."""
    return differing_field(kept, operation, lambda coin: SCALE)


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "kept"),
    [
        (LIST, {"op": "list_coin", "coin": "btc", "scale": 8}),
        (REGISTER, {"op": "register_customer", "customer": "ann"}),
        (
            Deposit("k", "ann", "btc", "1.50"),
            {"op": "deposit", "customer": "ann", "account": "spot", "coin": "btc", "units": "150000000"},
        ),
        (
            FREEZE,
            {
                "op": "freeze",
                "customer": "ann",
                "account": "spot",
                "coin": "btc",
                "units": "150000000",
                "reference": "r",
                "expires_ms": THEN_MS,
            },
        ),
        (UNFREEZE, {"op": "unfreeze", "hold": "7", "coin": "btc", "units": "150000000"}),
        (UNFREEZE_ALL, {"op": "unfreeze", "hold": "7"}),
        (UNFREEZE_BY_KEY, {"op": "unfreeze", "hold": {"key": "f"}, "coin": "btc", "units": "150000000"}),
        (Withdraw("k", "1.5", hold="7"), {"op": "withdraw", "hold": "7", "coin": "btc", "units": "150000000"}),
        (
            Transfer("k", "ann", "bob", "btc", "1.5", to_account="fiat"),
            {
                "op": "transfer",
                "from": {"customer": "ann", "account": "spot"},
                "to": {"customer": "bob", "account": "fiat"},
                "coin": "btc",
                "units": "150000000",
            },
        ),
        (Expire("7"), {"op": "expire", "hold": "7"}),
    ],
)
def test_canonical_request_has_defaults_and_units_and_no_absent_fields(operation: Any, kept: dict[str, Any]) -> None:
    """Defaults are filled in, amounts are units, absent fields stay absent, and the form has a version."""
    assert kept_of(operation) == {"format": 1, **kept}


def test_canonical_request_of_an_unknown_coin_keeps_the_amount_as_text() -> None:
    """Without a scale there are no units: the amount is kept in its normal form."""
    kept = kept_of(Deposit("k", "ann", "nix", "1.50"), known=False)
    assert kept["amount"] == "1.5"
    assert "units" not in kept


# --- the same, and not the same -------------------------------------------------------------------


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("known", [True, False])
def test_same_request_again_differs_in_nothing(operation: Any, known: bool) -> None:
    """Every operation equals its kept request, whether or not its coin was known when it was kept."""
    assert difference(kept_of(operation, known), operation) is None


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("other", ALL)
def test_any_other_operation_under_the_key_differs(operation: Any, other: Any) -> None:
    """Two different operations always differ, in either order, and a field is named."""
    named = difference(kept_of(operation), other)
    assert (named is None) == (operation == other)
    if type(operation) is not type(other):
        assert named == "op"


CHANGES: list[tuple[Any, str, Any, str]] = [
    (LIST, "coin", "eth", "coin"),
    (LIST, "scale", 9, "scale"),
    (LIST, "scale", 0, "scale"),
    (REGISTER, "customer", "bob", "customer"),
    *[(DEPOSIT, field, value, field) for field, value in (("customer", "bob"), ("coin", "eth"), ("amount", "1.6"))],
    *[
        (DEPOSIT, field, value, field)
        for field, value in (("account", "fiat"), ("reference", "s"), ("happened_ms", THEN_MS + 1))
    ],
    *[(DEPOSIT, field, None, field) for field in ("reference", "happened_ms")],
    *[(FREEZE, field, value, field) for field, value in (("customer", "bob"), ("coin", "eth"), ("amount", "2"))],
    *[
        (FREEZE, field, value, field)
        for field, value in (("account", "fiat"), ("reference", "s"), ("expires_ms", THEN_MS + 1))
    ],
    *[(FREEZE, field, None, field) for field in ("reference", "expires_ms")],
    (UNFREEZE, "hold", "8", "hold"),
    (UNFREEZE, "hold", HoldKey("7"), "hold"),
    (UNFREEZE, "amount", "1.4", "amount"),
    (UNFREEZE, "amount", None, "amount"),
    (UNFREEZE_ALL, "amount", "1.5", "amount"),
    (UNFREEZE_BY_KEY, "hold", HoldKey("g"), "hold"),
    (UNFREEZE_BY_KEY, "hold", "7", "hold"),
    *[(WITHDRAW, field, value, field) for field, value in (("customer", "bob"), ("coin", "eth"), ("amount", "2"))],
    *[
        (WITHDRAW, field, value, field)
        for field, value in (("account", "fiat"), ("reference", None), ("happened_ms", THEN_MS - 1))
    ],
    (WITHDRAW_HOLD, "hold", "8", "hold"),
    (WITHDRAW_HOLD, "amount", "1", "amount"),
    (WITHDRAW_HOLD, "reference", None, "reference"),
    (WITHDRAW_HOLD, "happened_ms", None, "happened_ms"),
    (TRANSFER, "from_customer", "cy", "from"),
    (TRANSFER, "from_account", "fiat", "from"),
    (TRANSFER, "to_customer", "cy", "to"),
    (TRANSFER, "to_account", "fiat", "to"),
    (TRANSFER, "coin", "eth", "coin"),
    (TRANSFER, "amount", "15", "amount"),
    (TRANSFER, "reference", None, "reference"),
]


@pytest.mark.parametrize(("operation", "field", "value", "named"), CHANGES)
@pytest.mark.parametrize("known", [True, False])
def test_request_that_differs_in_one_field_is_told_which(
    operation: Any, field: str, value: Any, named: str, known: bool
) -> None:
    """A difference in any field of any operation is named, in either order, also if the field is absent in one."""
    changed = dataclasses.replace(operation, **{field: value})
    assert difference(kept_of(operation, known), changed) == named
    if field != "amount":
        assert difference(kept_of(changed, known), operation) == named


def test_withdraw_from_a_hold_and_at_once_are_not_the_same() -> None:
    """A withdrawal out of a hold differs from one out of the same customer's available, in either order."""
    assert difference(kept_of(WITHDRAW), WITHDRAW_HOLD) == "hold"
    assert difference(kept_of(WITHDRAW_HOLD), WITHDRAW) == "customer"
    for kept, again in ((WITHDRAW, WITHDRAW_HOLD), (WITHDRAW_HOLD, WITHDRAW)):
        assert difference(kept_of(kept, known=False), again) is not None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("amount", ["1.5", "1.50", "1.50000000"])
def test_amount_written_otherwise_is_the_same(known: bool, amount: str) -> None:
    """Trailing zeros make no difference to an amount."""
    assert difference(kept_of(DEPOSIT, known), dataclasses.replace(DEPOSIT, amount=amount)) is None


@pytest.mark.parametrize("amount", ["1.500000000", "1.500000001", "9" * 38])
def test_amount_that_could_never_have_passed_is_another(amount: str) -> None:
    """Under a known key, an amount that does not fit the coin or the limit is a conflict, not another error."""
    assert difference(kept_of(DEPOSIT), dataclasses.replace(DEPOSIT, amount=amount)) == "amount"


# --- holds and balances of entries ----------------------------------------------------------------


def freeze_entry(**changes: Any) -> Entry:
    """Return the entry of a freeze at position 9."""
    values: dict[str, Any] = {
        "seq": 9,
        "kind": "freeze",
        "key": "k",
        "booked_ms": 1000,
        "request": kept_of(FREEZE),
        "moves": ((0, "available", -UNITS, None), (0, "freeze", UNITS, 9)),
        "balances": ((ANN, "btc", 5, UNITS + 3),),
        "holds": ((9, UNITS),),
        **changes,
    }
    return Entry(**values)


def test_opened_hold_is_what_the_freeze_says() -> None:
    """A freeze opened a hold with its own position as the id; a refused freeze, or another kind, opened none."""
    hold = opened_hold(freeze_entry())
    assert hold == Hold(9, ANN, "btc", UNITS, UNITS, "r", THEN_MS, 1000)
    assert hold.state == "open"
    assert opened_hold(freeze_entry(moves=(), balances=(), holds=(), refusal={"code": "x"})) is None
    assert opened_hold(freeze_entry(kind="unfreeze")) is None


def test_hold_closes_when_nothing_remains_and_not_before() -> None:
    """Using a part leaves a hold open; using the last unit closes it at that entry."""
    hold = Hold(9, ANN, "btc", 5, 5, None, None, 1)
    part = hold.after(1, 10)
    assert (part.remaining, part.state, part.closed_seq) == (1, "open", None)
    assert (part.after(0, 11).state, part.after(0, 11).closed_seq) == ("closed", 11)
    assert hold.remaining == 5


def test_posting_balances_are_worked_back_from_the_end() -> None:
    """The balance after each posting is that of its side then, also if one side is touched twice."""
    assert freeze_entry().posting_balances() == [5, UNITS + 3]
    entry = freeze_entry(
        moves=((0, "available", -7, None), (1, "available", 4, None), (0, "available", 3, None)),
        balances=((ANN, "btc", 100, 0), (EXTERNAL, "btc", -50, 0)),
    )
    assert entry.posting_balances() == [97, -50, 100]
    assert entry.postings[1:] == (Posting(EXTERNAL, "btc", "available", 4), Posting(ANN, "btc", "available", 3))


@pytest.mark.parametrize("accesskey", ["11111111-2222-4333-8444-555555555555", "abc", "x" * 64])
def test_actor_of_a_trader_is_the_beginning_of_the_access_key(accesskey: str) -> None:
    """Eight characters identify the key and are too few to use it; what comes of it is an actor like any other."""
    assert key_actor(accesskey) == f"key:{accesskey[:8]}"
    assert ACTOR.fullmatch(key_actor(accesskey))


@pytest.mark.parametrize("actor", ["", "key:", "key:123456789", "token:", "token:a\n", "token:é", "Library", "ledger "])
def test_text_of_another_form_is_no_actor(actor: str) -> None:
    """An actor is one of four forms and nothing else."""
    assert ACTOR.fullmatch(actor) is None
