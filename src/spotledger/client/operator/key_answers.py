"""
The answers of the operator API about access keys and operator tokens.

No ``repr`` shows a secret, a token or an access key.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

_HIDDEN: Final = frozenset({"accesskey", "secretkey", "replaces", "token", "next_after"})


class _Discreet(Struct, frozen=True):
    """An answer whose ``repr`` leaves out what may be secret or an access key."""

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in _HIDDEN]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


class AccessKey(_Discreet, frozen=True):
    """An access key without its secret; it stops working at ``expires_ms`` and stopped at ``revoked_ms``."""

    accesskey: str
    customer: str
    permissions: tuple[str, ...]
    label: str
    addresses: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    last_used_ms: int | None


class MadeKey(AccessKey, frozen=True):
    """
    A new access key, which replaces ``replaces`` if that one was rotated.

    ``secretkey`` is None in a repeat of the first answer. It is not kept, but the access key can be rotated.
    """

    secretkey: str | None
    replaces: str | None = None


class KeyPage(_Discreet, frozen=True):
    """A page of access keys; ``next_after`` is the ``after`` of the next page, None on the last."""

    keys: tuple[AccessKey, ...]
    next_after: str | None


class MadeToken(_Discreet, frozen=True):
    """A new operator token; ``token`` is None in a repeat of the first answer."""

    token_id: str
    token: str | None
    scopes: tuple[str, ...]
    label: str
    addresses: tuple[str, ...]
    created_ms: int
    expires_ms: int | None


class OperatorToken(Struct, frozen=True):
    """An operator token without the token itself: ``fingerprint`` is the first 16 hex digits of its SHA-256."""

    token_id: str
    fingerprint: str
    scopes: tuple[str, ...]
    label: str
    addresses: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    last_used_ms: int | None


class TokenPage(Struct, frozen=True):
    """A page of operator tokens; ``next_after`` is the ``after`` of the next page, None on the last."""

    tokens: tuple[OperatorToken, ...]
    next_after: str | None
