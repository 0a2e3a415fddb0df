"""The rows of access keys and tokens, read as strictly as an audit can without the master key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

#: The columns of each table, in the order of the schema.
TABLES: Final = {
    "access_keys": (
        *("accesskey", "customer", "permissions", "label", "addresses", "sealed_secret"),
        *("created_ms", "expires_ms", "revoked_ms", "last_used_ms"),
    ),
    "operator_tokens": ("token_id", "digest", "scopes", "label", "created_ms", "revoked_ms"),
    "kept_key_requests": ("idempotency_key", "request_json", "answer_json"),
    "master_key_mark": ("id", "fingerprint"),
}
_TEXTS: Final = frozenset({"accesskey", "customer", "label", "token_id", "idempotency_key", "fingerprint"})
_LISTS: Final = frozenset({"permissions", "addresses", "scopes"})
_DOCUMENTS: Final = frozenset({"request_json", "answer_json"})
_BYTES: Final = frozenset({"sealed_secret", "digest"})
_OPTIONAL: Final = frozenset({"expires_ms", "revoked_ms", "last_used_ms"})


def wrong_in_row(table: str, row: Sequence[Any]) -> str | None:
    """Say what is wrong with a *row* of *table*, naming columns and no content; None where nothing is."""
    columns = TABLES[table]
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
        found = _decoded(value)
        return isinstance(found, list) and all(isinstance(text, str) for text in found)
    if column in _DOCUMENTS:
        return isinstance(_decoded(value), dict)
    return isinstance(value, int) or (value is None and column in _OPTIONAL)


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return None
