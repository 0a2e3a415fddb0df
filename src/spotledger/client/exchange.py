"""
What the logic asks of whoever drives it, and what it is told in return.

The logic (``core``) is a generator. It yields a ``Send`` or a ``Sleep`` and is sent back an ``Answer`` or a
``Failure`` for the one, ``None`` for the other. So one core serves blocking and async callers, and a test
drives it with neither network nor clock.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request once."""

    method: str
    url: str
    #: Decoded names and values in the order in which they go out; they may be secret.
    params: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer, whatever it says."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]
    #: None if it was longer than the limit, or encoded in a way that was not asked for.
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer came; *reason* holds nothing secret."""

    reason: str


Steps: TypeAlias = Generator[Send | Sleep, Answer | Failure | None, Result]
