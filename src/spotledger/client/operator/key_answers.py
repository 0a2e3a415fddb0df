"""What the operator API answers about access keys and operator tokens; no ``repr`` shows a secret or an access key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key, without its secret; it stops working at ``expires_ms``, and did so at ``revoked_ms``."""

    accesskey: str = field(repr=False)
    customer: str
    permissions: tuple[str, ...]
    label: str
    addresses: tuple[str, ...]
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    last_used_ms: int | None


@dataclass(frozen=True, slots=True)
class MadeKey(AccessKey):
    """
    An access key that was made, instead of ``replaces`` where it was rotated.

    ``secretkey`` is None in the repeat of an earlier answer. It can't be had again, but the key can be rotated.
    """

    secretkey: str | None = field(repr=False)
    replaces: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyPage:
    """A page of access keys; ``next_after`` is where the next one begins, None where there is none."""

    keys: tuple[AccessKey, ...]
    next_after: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class MadeToken:
    """An operator token that was made; ``token`` is None in the repeat of an earlier answer."""

    token_id: str
    token: str | None = field(repr=False)
    scopes: tuple[str, ...]
    label: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class OperatorToken:
    """An operator token, without itself: ``fingerprint`` is the first 16 hex digits of its SHA-256."""

    token_id: str
    fingerprint: str
    scopes: tuple[str, ...]
    label: str
    created_ms: int
    revoked_ms: int | None


@dataclass(frozen=True, slots=True)
class TokenPage:
    """A page of operator tokens; ``next_after`` is where the next one begins, None where there is none."""

    tokens: tuple[OperatorToken, ...]
    next_after: str | None


def access_key(said: Json) -> AccessKey:
    """Read one access key."""
    return AccessKey(**_of_key(said))


def key_made(answer: Json) -> MadeKey:
    """Read the answer to the making of an access key."""
    secretkey = None if answer["secretkey"] is None else _text(answer["secretkey"])
    return MadeKey(**_of_key(answer), secretkey=secretkey, replaces=answer.get("replaces"))


def key_page(answer: Json) -> KeyPage:
    """Read a page of access keys."""
    return KeyPage(tuple(map(access_key, answer["keys"])), answer["next_after"])


def token_made(answer: Json) -> MadeToken:
    """Read the answer to the making of a token."""
    return MadeToken(
        answer["token_id"], answer["token"], _texts(answer["scopes"]), answer["label"], int(answer["created_ms"])
    )


def operator_token(said: Json) -> OperatorToken:
    """Read one operator token."""
    return OperatorToken(
        said["token_id"],
        said["fingerprint"],
        _texts(said["scopes"]),
        said["label"],
        int(said["created_ms"]),
        said["revoked_ms"],
    )


def token_page(answer: Json) -> TokenPage:
    """Read a page of operator tokens."""
    return TokenPage(tuple(map(operator_token, answer["tokens"])), answer["next_after"])


def _of_key(said: Json) -> dict[str, Any]:
    """Return what every answer says of an access key."""
    return {
        "accesskey": _text(said["accesskey"]),
        "customer": _text(said["customer"]),
        "permissions": _texts(said["permissions"]),
        "label": said["label"],
        "addresses": _texts(said["addresses"]),
        "created_ms": int(said["created_ms"]),
        "expires_ms": said["expires_ms"],
        "revoked_ms": said["revoked_ms"],
        "last_used_ms": said["last_used_ms"],
    }


def _texts(said: Any) -> tuple[str, ...]:
    """Read a list of texts; one text would be a list of its characters."""
    if not isinstance(said, list):
        raise TypeError
    return tuple(map(_text, said))


def _text(said: Any) -> str:
    if not isinstance(said, str):
        raise TypeError
    return said
