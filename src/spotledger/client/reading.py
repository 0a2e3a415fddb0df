"""Parse the bodies of answers strictly: ambiguous JSON is refused."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from spotledger.errors import ProtocolError


def read_object(body: bytes | None) -> dict[str, Any]:
    """
    Decode *body* as one JSON object in UTF-8.

    Raises:
        ProtocolError: *body* is None, is not JSON, is not a JSON object, or contains ``NaN``, ``Infinity`` or an
            object with the same name twice. The message repeats no value of it.
    """
    if body is None:
        raise ProtocolError("the body is too long, or has an encoding that was not requested")
    decoded = _decode(body)
    if isinstance(decoded, str):
        raise ProtocolError(f"the body {decoded}; a JSON object was expected")
    return decoded


def _decode(body: bytes) -> dict[str, Any] | str:
    """Return the object, or what is wrong as text: the caller raises it, so that no exception is chained."""
    try:
        decoded = json.loads(body.decode("utf-8"), object_pairs_hook=_no_name_twice, parse_constant=_no_constant)
    except _NameTwice as twice:
        return f"has the name {twice.name!r} twice in one object"
    except (ValueError, RecursionError):
        return "is not JSON"
    return decoded if isinstance(decoded, dict) else f"is a JSON {type(decoded).__name__}"


class _NameTwice(Exception):
    """An object has the same name twice."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name[:64]


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built: dict[str, Any] = {}
    for name, value in pairs:
        if name in built:
            raise _NameTwice(name)
        built[name] = value
    return built


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
