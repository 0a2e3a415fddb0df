"""
One request of the operator API and its answer, whoever carries them: the server over a socket, or a process itself.

`Request` is what was asked, `Reply` what is said. Neither knows how it travels.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol, TypeAlias

from spotledger.errors import MalformedRequest, SpotledgerError

Header = tuple[bytes, bytes]


class RequestGone(Exception):
    """The caller went before his request had come whole; nobody waits for an answer."""


class BodySource(Protocol):
    """Where a body that has not come whole is read from."""

    async def read(self, limit: int) -> bytes:
        """
        Return the whole body once it is there.

        Raises:
            MalformedRequest: It is longer than *limit* bytes, or cannot be read.
            RequestGone: The caller went.
        """


class StreamWriter(Protocol):
    """Where a streamed answer is sent."""

    async def send(self, piece: bytes) -> None:
        """Send *piece*, and return when it was taken; raise OSError where the reader has gone."""

    async def gone(self) -> None:
        """Return when the reader has gone."""


#: Sends a streamed answer to its end; returns whether it was sent whole.
Stream: TypeAlias = Callable[[StreamWriter], Awaitable[bool]]


class Request:
    """
    One request.

    Args:
        method: As sent.
        path: Percent-decoded.
        query: As sent, without the question mark.
        headers: In their order, names in lower case.
        body: What was sent, or where it is read from while it has not come whole.
    """

    __slots__ = ("body", "headers", "method", "parameters", "path", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: list[Header], body: bytes | BodySource = b""
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        #: The values of the path's parameters, by their names.
        self.parameters: Mapping[str, str] = {}

    def header(self, wanted: bytes) -> bytes | None:
        """Return the value of the first header called *wanted*, or None."""
        for name, value in self.headers:
            if name == wanted:
                return value
        return None

    def header_once(self, wanted: bytes) -> bytes | None:
        """Return the value of the header called *wanted*, or None where there is none or more than one."""
        found: bytes | None = None
        for name, value in self.headers:
            if name == wanted:
                if found is not None:
                    return None
                found = value
        return found


class Reply:
    """
    One answer.

    Args:
        status: The HTTP status.
        body: What is said; for a stream nothing.
        headers: Names in lower case; the length, the date and what is about the connection are for the carrier.
        stream: Sends the answer piece by piece, in place of *body*.
    """

    __slots__ = ("body", "headers", "status", "stream")

    def __init__(self, status: int, body: bytes, headers: Iterable[Header] = (), stream: Stream | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = [*headers]
        self.stream = stream


class Answers(Protocol):
    """What answers requests."""

    async def answer(self, request: Request) -> Reply:
        """Answer one request; raise RequestGone where the caller went."""

    def refusal(self, error: SpotledgerError) -> Reply:
        """Return the answer to what could not be read as a request."""


def too_long(limit: int) -> MalformedRequest:
    """Return the refusal of a body of more than *limit* bytes."""
    return MalformedRequest(f"The body is longer than {limit} bytes; that many would pass.")


_PARAMETER = re.compile(r"{(\w+)}")


def path_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a *path* with parameters such as ``/v1/holds/{hold}``: each is one part, not empty."""
    parts = _PARAMETER.split(path)
    texts = [f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)]
    return re.compile("".join(texts) + r"\Z")
