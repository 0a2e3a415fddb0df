"""Operations: the checks of their form, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from spotledger.domain.operations import (
    Deposit,
    Expire,
    Freeze,
    HoldKey,
    ListCoin,
    OpenHouseAccount,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
    check_key,
    expiry_key,
)
from spotledger.errors import HouseAccountReserved, InvalidAmount, InvalidRequest

MAKERS: dict[str, Callable[..., Any]] = {
    "list": lambda **f: ListCoin(**{"key": "k", "coin": "btc", "scale": 8, **f}),
    "register": lambda **f: RegisterCustomer(**{"key": "k", "customer": "ann", **f}),
    "open": lambda **f: OpenHouseAccount(**{"key": "k", "name": "treasury", **f}),
    "deposit": lambda **f: Deposit(**{"key": "k", "customer": "ann", "coin": "btc", "amount": "1", **f}),
    "freeze": lambda **f: Freeze(**{"key": "k", "customer": "ann", "coin": "btc", "amount": "1", **f}),
    "unfreeze": lambda **f: Unfreeze(**{"key": "k", "hold": "7", **f}),
    "withdraw": lambda **f: Withdraw(**{"key": "k", "customer": "ann", "coin": "btc", "amount": "1", **f}),
    "withdraw from a hold": lambda **f: Withdraw(**{"key": "k", "hold": "7", "amount": "1", **f}),
    "transfer": lambda **f: Transfer(
        **{"key": "k", "from_customer": "ann", "to_customer": "bob", "coin": "btc", "amount": "1", **f}
    ),
}
BAD: dict[str, list[Any]] = {
    "key": ["", "k" * 129, "a b", " k", "k\n", "k\x7f", "ключ", "\x00", None, 7, True, b"k"],
    "customer": ["", "@external", "@receivable", "@receivable:ann", "@", "@Fees", "@1", "a b", None, 7, ["ann"]],
    "coin": ["", "BTC", None, 7, "a" * 33, ".e"],
    "amount": [0, 1, 1.5, True, "0", "-1", "1e5", "NaN", "１２", "", " 1", "1."],
    "account": ["house", "", 2, "SPOT"],
    "hold": [
        "",
        "0",
        "-1",
        "01",
        "1.0",
        "x",
        "1" * 19,
        7,
        True,
        "１",
        "7\n",
        "2-",
        "2-0",
        "0-2",
        "1-2-3",
        HoldKey(""),
        HoldKey("a b"),
        ("k",),
    ],
    "epoch": [0, -1, 1.5, True, "1", 2**53],
    "reference": ["", "x" * 257, "a\nb", "a\x00", "\x85", "\ud800", 7, True, b"x"],
    "happened_ms": [0, -1, 1_700_000_000, 978_307_199_999, 1.5, True, "1700000000000", 253_402_300_800_000, 10**30],
    "not_after_ms": [0, -1, 1_700_000_000, 1.5, True, "1700000000000", 253_402_300_800_000],
    "expires_ms": [0, -1, 1.5, True, "1700000000000", 253_402_300_800_000],
    "scale": [-1, 25, True, "8", None],
    "from_customer": ["", "@external", None],
    "to_customer": ["", "@receivable", "@" + "a" * 33, None],
    "from_account": ["house", 1],
    "to_account": ["house", 1],
    "name": ["", "external", "receivable", "@fees", "Fees", "1", "a" * 33, "a\n", "a:b", None, 7],
    "may_be_negative": [None, 0, "true"],
}
FIELDS = [
    (maker, field.name)
    for maker, make in MAKERS.items()
    for field in dataclasses.fields(make())
    if not (maker == "withdraw" and field.name in ("hold", "epoch"))
    and not (maker == "withdraw from a hold" and field.name == "account")
]


@pytest.mark.parametrize(("maker", "field"), FIELDS)
def test_operation_with_a_field_of_wrong_form_is_refused(maker: str, field: str) -> None:
    """Each field of an operation is checked when it is created; the refusal names the field and is not kept."""
    optional = {field.name for field in dataclasses.fields(MAKERS[maker]()) if field.default is None}
    takes_none = optional - ({"customer", "coin"} if maker == "withdraw" else set())
    for value in BAD[field]:
        if value is None and field in takes_none:
            continue
        with pytest.raises(InvalidRequest) as refused:
            MAKERS[maker](**{field: value})
        assert refused.value.details["field"].replace(".", "_") in (field, f"{field}_key")
        assert isinstance(refused.value, InvalidAmount) == (field == "amount")
        assert not refused.value.kept


@pytest.mark.parametrize("maker", MAKERS)
def test_operation_of_right_form_is_made_and_has_its_fields_alone(maker: str) -> None:
    """A valid operation is accepted, equals another with the same fields, and takes no other field."""
    operation = MAKERS[maker]()
    assert operation == MAKERS[maker]()
    with pytest.raises(AttributeError):
        operation.other = "other"


@pytest.mark.parametrize(
    "reference", ["x", "x" * 256, "order 7", "引用 ✓", "e\u0301", '"; DROP TABLE entry; --', "\\u0000", "{}"]
)
def test_reference_of_one_line_passes(reference: str) -> None:
    """A reference is a line of up to 256 characters in any script."""
    assert MAKERS["deposit"](reference=reference).reference == reference


def test_withdraw_names_a_hold_or_an_account_never_both() -> None:
    """A hold has an account, and an epoch is about a hold; one without the other is refused, and so is neither."""
    for value in ("wallet", 7):
        with pytest.raises(InvalidRequest, match="beside hold") as refused:
            MAKERS["withdraw from a hold"](account=value)
        assert refused.value.details["field"] == "account"
    with pytest.raises(InvalidRequest, match="without hold"):
        MAKERS["withdraw"](epoch=1)
    for field in ("customer", "coin"):
        with pytest.raises(InvalidRequest):
            MAKERS["withdraw"](**{field: None})


def test_transfer_to_the_same_account_is_refused() -> None:
    """A transfer needs two different accounts, which may belong to one customer."""
    with pytest.raises(InvalidRequest, match="same account"):
        MAKERS["transfer"](to_customer="ann")
    assert MAKERS["transfer"](to_customer="ann", to_account="wallet").to_account == "wallet"


def test_key_of_an_expiry_cannot_be_a_callers() -> None:
    """The ledger's own keys start with a blank, which no caller's key may contain."""
    key = Expire("12").key
    assert key == expiry_key(12) == " expire:12"
    with pytest.raises(InvalidRequest):
        check_key(key)
    with pytest.raises(InvalidRequest):
        MAKERS["unfreeze"](hold=HoldKey(key))


@pytest.mark.parametrize(
    "key", ["!", "~", "k" * 128, "0x" + "f" * 64, f"{'e' * 64}:0", '"', "'", "\\", "%00", "null", "a;b"]
)
def test_key_of_printable_ascii_passes(key: str) -> None:
    """1 to 128 characters from 0x21 to 0x7E are a key, whatever they mean elsewhere."""
    assert check_key(key) == key


@pytest.mark.parametrize("name", ["@external", "@receivable", "@receivable:ann"])
def test_accounts_of_the_ledger_itself_are_reserved(name: str) -> None:
    """Only the ledger moves money of the outside world and of debts, whoever is named beside them."""
    with pytest.raises(HouseAccountReserved):
        MAKERS["deposit"](customer=name)
    with pytest.raises(HouseAccountReserved):
        MAKERS["transfer"](to_customer=name)
    with pytest.raises(HouseAccountReserved):
        MAKERS["open"](name="external")


def test_account_that_is_left_out_is_spot_or_the_house_account_itself() -> None:
    """A house account is one account; a customer has three."""
    assert MAKERS["deposit"]().account == "spot"
    assert MAKERS["deposit"](customer="@fees").account == "house"
    assert MAKERS["withdraw"](customer="@fees").account == "house"
    assert MAKERS["withdraw from a hold"]().account is None
    transfer = MAKERS["transfer"](from_customer="@treasury-2.a_b", to_account="wallet")
    assert (transfer.from_account, transfer.to_account) == ("house", "wallet")


@pytest.mark.parametrize("account", ["spot", "wallet", "external"])
def test_house_account_with_an_account_is_refused(account: str) -> None:
    """It has none; what reads back as its account may be sent again."""
    with pytest.raises(InvalidRequest, match="leave it out"):
        MAKERS["freeze"](customer="@fees", account=account)
    assert MAKERS["freeze"](customer="@fees", account="house").account == "house"
