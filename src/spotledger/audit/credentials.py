"""What the columns of access keys, tokens and what belongs to them have to be, in either store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from spotledger.security.access_keys import PERMISSIONS
from spotledger.security.addresses import parse_network
from spotledger.security.tokens import SCOPES

_DIGEST_BYTES: Final = 32
Test = Callable[[Any], bool]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_time(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _is_time_or_none(value: Any) -> bool:
    return value is None or _is_time(value)


def _is_document(value: Any) -> bool:
    return isinstance(_decoded(value), dict)


def _is_list_of(is_member: Test) -> Test:
    """Return the test of a list, stored as such or as JSON, of texts that are members."""

    def is_list(value: Any) -> bool:
        found = _decoded(value) if isinstance(value, str) else value
        return isinstance(found, list) and all(isinstance(text, str) and is_member(text) for text in found)

    return is_list


def _is_network(text: str) -> bool:
    try:
        parse_network(text)
    except ValueError:
        return False
    return True


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return None


_TESTS: Final[dict[str, Test]] = {
    **dict.fromkeys(("accesskey", "customer", "token_id", "idempotency_key", "fingerprint"), _is_name),
    **dict.fromkeys(("id", "version", "is_swept", "created_ms", "retired_ms"), _is_time),
    **dict.fromkeys(("expires_ms", "revoked_ms", "last_used_ms", "revoked_change"), _is_time_or_none),
    **dict.fromkeys(("request_json", "answer_json"), _is_document),
    "label": lambda value: isinstance(value, str),
    "permissions": _is_list_of(PERMISSIONS.__contains__),
    "scopes": _is_list_of(SCOPES.__contains__),
    "addresses": _is_list_of(_is_network),
    "sealed_secret": lambda value: isinstance(value, bytes) and bool(value),
    "digest": lambda value: isinstance(value, bytes) and len(value) == _DIGEST_BYTES,
}


def wrong_columns(columns: Sequence[str], row: Sequence[Any]) -> str | None:
    """Say which values of a *row* with these *columns* are wrong, naming no content; None if none is."""
    if len(row) != len(columns):
        return f"{len(row)} columns"
    return ", ".join(name for name, value in zip(columns, row, strict=True) if not _TESTS[name](value)) or None
