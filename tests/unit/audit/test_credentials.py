"""What the audit says of the columns of access keys and tokens: the name of each wrong one, and no content."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spotledger.audit.credentials import wrong_columns

KEY: dict[str, Any] = {
    "accesskey": "3f0c1a52",
    "customer": "ann",
    "permissions": ["read", "trade"],
    "label": "",
    "addresses": ["10.0.0.0/8", "::1"],
    "sealed_secret": b"sealed",
    "created_ms": 0,
    "expires_ms": None,
    "last_used_ms": 7,
}
TOKEN: dict[str, Any] = {
    "token_id": "tok",
    "digest": bytes(32),
    "scopes": ["ledger:read"],
    "request_json": '{"a": 1}',
    "is_swept": 0,
}


def wrong_in(values: dict[str, Any]) -> str | None:
    return wrong_columns(list(values), list(values.values()))


@pytest.mark.parametrize("row", [KEY, TOKEN], ids=["access key", "token"])
def test_row_as_either_store_has_it_is_right(row: dict[str, Any]) -> None:
    """Lists are right as such, as the database has them, and as JSON, as the files have them."""
    assert wrong_in(row) is None
    assert wrong_in({name: json.dumps(it) if isinstance(it, list) else it for name, it in row.items()}) is None


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("accesskey", ""),
        ("customer", None),
        ("permissions", ["read", "fly"]),
        ("permissions", ["read", None]),
        ("permissions", '"read"'),
        ("permissions", "[" * 100_000),
        ("permissions", None),
        ("label", 5),
        ("addresses", ["10.0.0.0/99"]),
        ("addresses", '{"10.0.0.0/8": 1}'),
        ("sealed_secret", b""),
        ("sealed_secret", "sealed"),
        ("created_ms", -1),
        ("created_ms", None),
        ("expires_ms", "soon"),
        ("last_used_ms", 1.5),
    ],
)
def test_wrong_value_of_an_access_key_is_named_by_its_column_alone(column: str, value: Any) -> None:
    """Any value of another type, or out of its range, is wrong, whatever the other columns have."""
    assert wrong_in({**KEY, column: value}) == column


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("token_id", 1),
        ("digest", bytes(31)),
        ("scopes", ["all"]),
        ("request_json", "[]"),
        ("request_json", None),
        ("is_swept", -1),
    ],
)
def test_wrong_value_of_a_token_is_named_by_its_column_alone(column: str, value: Any) -> None:
    """The same holds for tokens, and for what is kept beside them."""
    assert wrong_in({**TOKEN, column: value}) == column


def test_row_of_another_length_is_wrong_as_a_whole() -> None:
    """Which of its columns is missing cannot be said."""
    assert wrong_columns(["customer", "label"], ["ann"]) == "1 columns"
    assert wrong_in({**KEY, "label": None, "customer": ""}) == "customer, label"
