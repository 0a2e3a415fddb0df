"""
A request, its reply, and the application between them, whether they travel over a socket or within the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeAlias

from msgspec import Struct

Header = tuple[bytes, bytes]

_CLOSE: Final = b"connection: close\r\n"
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


class BadRequest(Exception):
    """A request cannot be read; *reason* says what was found and what would pass, and repeats nothing that was sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ClientDisconnected(Exception):
    """The client disconnected before its request was complete; nobody waits for an answer."""


class BodySource(Protocol):
    """The source of a body that is not complete yet."""

    async def read(self, limit: int) -> bytes:
        """
        Return the whole body once it is complete.

        Raises:
            BadRequest: The body is longer than *limit* bytes, or cannot be parsed.
            ClientDisconnected: The client disconnected.
        """


class StreamWriter(Protocol):
    """The receiver of a streamed answer."""

    async def send(self, piece: bytes) -> None:
        """Send *piece*, and return when the client can take more; raise OSError if it has disconnected."""

    async def gone(self) -> None:
        """Return when the client has disconnected."""


#: Sends a streamed answer to its end; returns whether it was sent completely.
Stream: TypeAlias = Callable[[StreamWriter], Awaitable[bool]]


class Request:
    """
    One request.

    Args:
        method: As sent.
        path: Percent-decoded.
        query: As sent, without the question mark.
        headers: In their order, names in lower case.
        body: The body, or its source while it is not complete.
    """

    __slots__ = ("body", "caller", "headers", "method", "parameters", "path", "peer", "query")

    def __init__(
        self, method: str, path: str, query: str, headers: list[Header], body: bytes | BodySource = b""
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        #: ``host:port`` of the client; empty within the process.
        self.peer = ""
        #: Who makes it, and a label of theirs, once the application knows.
        self.caller: tuple[str, str] | None = None
        #: The values of the path's parameters, by name.
        self.parameters: Mapping[str, str] = {}

    def header(self, wanted: bytes) -> bytes | None:
        """Return the value of the first header called *wanted*, or None."""
        for name, value in self.headers:
            if name == wanted:
                return value
        return None

    def header_once(self, wanted: bytes) -> bytes | None:
        """Return the value of the only header called *wanted*, or None if there is none or more than one."""
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
        body: The body; empty for a stream.
        headers: Names in lower case; the server adds the length, the date and what concerns the connection.
        stream: Sends the answer piece by piece, in place of *body*.
    """

    __slots__ = ("body", "headers", "lines", "status", "stream")

    def __init__(self, status: int, body: bytes, headers: Iterable[Header] = (), stream: Stream | None = None) -> None:
        self.status = status
        self.body = body
        self.headers = [*headers]
        self.stream = stream
        #: More headers, as they are sent: each line with its end.
        self.lines = b""

    def whole(self, end: bytes, *, keep_alive: bool, is_http_1_0: bool = False, is_head: bool = False) -> bytes:
        """
        Return all bytes of this answer. It must not be a stream.

        Args:
            end: The end of its head.
            keep_alive: Whether the connection stays open.
            is_http_1_0: Whether the request was one of HTTP/1.0.
            is_head: Whether the body is left out.
        """
        options = (b"connection: keep-alive\r\n" if is_http_1_0 else b"") if keep_alive else _CLOSE
        body = self.body
        sent = b"" if is_head else body
        return b"%bcontent-length: %d\r\n%b%b%b" % (self._head(), len(body), options, end, sent)

    def beginning(self, end: bytes, *, is_chunked: bool, keep_alive: bool) -> bytes:
        """Return the head of this answer, which is a stream, with its *end*."""
        options = (b"transfer-encoding: chunked\r\n" if is_chunked else b"") + (b"" if keep_alive else _CLOSE)
        return self._head() + options + end

    def _head(self) -> bytes:
        head = _STATUS_LINES[self.status] + self.lines
        return head + b"".join([b"%b: %b\r\n" % header for header in self.headers]) if self.headers else head


#: Makes an answer of a future; None: :meth:`Application.answer` has to be asked.
MakeReply: TypeAlias = Callable[[asyncio.Future[Any]], Reply | None]


class LateReply(Struct):
    """
    An answer that waits for one future and then is made without waiting.

    Args:
        future: What it waits for; it is cancelled if the connection is cut off.
        make: Makes the answer of *future*, which is done and not cancelled.
    """

    future: asyncio.Future[Any]
    make: MakeReply


class Application(Protocol):
    """Answers requests. It may be asked for several answers at a time, but for one of each connection."""

    def at_once(self, request: Request) -> Reply | LateReply | None:
        """
        Return the answer to a complete request if it needs no task: it is there, or there once a future is done.

        None: call :meth:`answer`.
        """

    async def answer(self, request: Request) -> Reply:
        """Answer one request; raise ClientDisconnected if the client disconnects before the request is complete."""

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Return the answer to a request of *peer* that could not be read."""


def too_long(limit: int) -> BadRequest:
    """Return the refusal of a body of more than *limit* bytes."""
    return BadRequest(f"The body is longer than {limit} bytes; that many would pass.")
