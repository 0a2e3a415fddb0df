"""
The request bodies of the operator API: how they are decoded, and those that ask for no operation.

A struct has the fields that a body may and must have. The bodies that ask for an operation are in
``operation_bodies.py``.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

import msgspec

from spotledger.errors import InvalidRequest, MalformedRequest
from spotledger.http.operator.fields import CustomerField

_MISSING = re.compile(r"missing required field `([^`]*)`(?: - at `\$\.?(.*)`)?\Z", re.DOTALL)
_UNKNOWN = re.compile(r"contains unknown field `(.*?)`(?: - at `\$\.?(.*)`)?\Z", re.DOTALL)
_PLACE = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
_FIELD_SHOWN_CHARACTERS: Final = 64
#: No call takes more values than this in its body, or in one operation: a post has up to 1,000 legs of four each. So
#: many are looked at in a millisecond.
VALUES_LIMIT: Final = 6_000
#: One of these precedes each member of an object or a list.
BEFORE_MEMBER: Final = (b",", b"[", b"{")
_encode = msgspec.json.Encoder().encode


class Body(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A JSON object with these fields and no others."""


class KeyBody(Body):
    """``POST /v1/keys``."""

    customer: CustomerField
    permissions: list[str]
    label: str = ""
    addresses: list[str] = []
    expires_ms: int | None = None


class RotateBody(Body):
    """``POST /v1/keys/{accesskey}/rotate``."""


class TokenBody(Body):
    """``POST /v1/tokens``."""

    scopes: list[str]
    label: str = ""
    addresses: list[str] = []
    expires_ms: int | None = None


B = TypeVar("B", bound=Body)


def has_too_many_values(text: bytes) -> bool:
    """Return whether JSON may hold more values than any call takes; marks within strings count, too."""
    return len(text) > VALUES_LIMIT and sum(map(text.count, BEFORE_MEMBER)) > VALUES_LIMIT


def refuse_too_many_values(body: bytes) -> None:
    """Raise MalformedRequest if *body* may hold more values than any call takes."""
    if has_too_many_values(body):
        raise MalformedRequest(f"The body has more than {VALUES_LIMIT} values; no call takes so many.")


def decode(body: bytes, kind: type[B]) -> B:
    """
    Return a body decoded as *kind*; refuse a name that is used twice in one object.

    Raises:
        MalformedRequest: The body is not JSON, or has more values than any call takes.
        InvalidRequest: A field is unknown, missing or wrong; ``field`` names it.
    """
    if len(body) > VALUES_LIMIT:
        refuse_too_many_values(body)
    try:
        try:
            found = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as problem:
            msgspec.json.decode(body)  # if it is not JSON at all, say that first
            raise refusal_of(str(problem), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedRequest("The body is not JSON; one JSON object in UTF-8 would pass.") from None
    if not has_names_once(body, found):
        check_names_once(body)
    return found


def check_names_once(body: bytes) -> None:
    """Refuse a *body* in which an object has a name twice: its meaning would depend on the reader."""
    try:
        json.loads(body, object_pairs_hook=_names_once)
    except (ValueError, RecursionError):
        raise MalformedRequest("The body is not JSON; one JSON object in UTF-8 would pass.") from None


def has_names_once(body: bytes, found: object) -> bool:
    """
    Return True if each object of *body*, which decodes to *found*, certainly has each name only once.

    What was decoded has, encoded again, as many quotation marks as the body, unless a name was lost. A struct leaves
    out a default that was sent, so then the body is decoded without one.
    """
    if b"\\" in body:
        return False
    marks = body.count(b'"')
    return _encode(found).count(b'"') == marks or _encode(msgspec.json.decode(body)).count(b'"') == marks


def _names_once(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise InvalidRequest(
                f"{name[:_FIELD_SHOWN_CHARACTERS]} is used twice in one object; once would pass",
                field=name[:_FIELD_SHOWN_CHARACTERS],
            )
        names.add(name)


def refusal_of(problem: str, kind: type[Body]) -> InvalidRequest:
    """Return the refusal for a message of msgspec, whose form a test checks."""
    if missing := _MISSING.search(problem):
        field = _join(missing[2], missing[1])
        return InvalidRequest(f"{field} is missing", field=field)
    if unknown := _UNKNOWN.search(problem):
        field = _join(unknown[2], unknown[1])[:_FIELD_SHOWN_CHARACTERS]
        known = ", ".join(msgspec.structs.fields(kind)[i].encode_name for i in range(len(kind.__struct_fields__)))
        return InvalidRequest(f"{field} is not a field of this body; its fields are: {known or 'none'}", field=field)
    if place := _PLACE.search(problem):
        field = re.sub(r"\[.*", "", place[1])
        return InvalidRequest(f"{field} is malformed: {_PLACE.sub('', problem)}", field=field)
    return InvalidRequest("The body is not an object; one JSON object would pass.", field="body")


def _join(place: str | None, name: str) -> str:
    return f"{place}.{name}" if place else name
