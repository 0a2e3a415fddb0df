"""
The steps between the logic of a client and its driver.

The logic (a ``core`` module) is a generator. It yields a ``Send`` and receives an ``Answer`` or a ``Failure``, or it
yields a ``Sleep`` and receives ``None``. So the same logic serves blocking and async callers, and tests drive it
without a network or a clock.
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
    #: Names and values of the query, not encoded, in the order in which they are sent; they may be secret.
    params: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before the next step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer of any status."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]
    #: None if it exceeded the limit or had an encoding that was not requested.
    body: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer arrived; *reason* contains nothing secret."""

    reason: str


Steps: TypeAlias = Generator[Send | Sleep, Answer | Failure | None, Result]
