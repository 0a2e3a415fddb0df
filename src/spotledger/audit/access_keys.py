"""The rows of access keys and tokens, read as strictly as an audit can without the master key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

_COLUMNS: Final = {
    "access_keys": (
        *("accesskey", "customer", "permissions", "label", "addresses", "sealed_secret"),
        *("created_ms", "expires_ms", "revoked_ms", "last_used_ms"),
    ),
    "operator_tokens": ("token_id", "digest", "scopes", "label", "created_ms", "revoked_ms"),
}
_TEXTS: Final = frozenset({"accesskey", "customer", "label", "token_id"})
_LISTS: Final = frozenset({"permissions", "addresses", "scopes"})
_BYTES: Final = frozenset({"sealed_secret", "digest"})
_OPTIONAL: Final = frozenset({"expires_ms", "revoked_ms", "last_used_ms"})


def wrong_in_row(table: str, row: Sequence[Any]) -> str | None:
    """Say what is wrong with a *row* of *table*, naming columns and no content; None where nothing is."""
    columns = _COLUMNS[table]
    if len(row) != len(columns):
        return f"{len(row)} columns"
    wrong = [name for name, value in zip(columns, row, strict=True) if not _passes(name, value)]
    return ", ".join(wrong) or None


def _passes(column: str, value: Any) -> bool:
    if column in _TEXTS:
        return isinstance(value, str)
    if column in _BYTES:
        return isinstance(value, bytes) and bool(value)
    if column in _LISTS:
        return _is_list_of_texts(value)
    return isinstance(value, int) or (value is None and column in _OPTIONAL)


def _is_list_of_texts(value: Any) -> bool:
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return False
    return isinstance(found, list) and all(isinstance(text, str) for text in found)
