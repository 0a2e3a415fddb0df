"""A request that arrives over a connection, and its body, which may arrive later."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol

from spotledger.http.h1.head import Head
from spotledger.http.h1.request import BodySource, Request, too_long

_NO_PARAMETERS: Final[dict[str, str]] = {}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BodyConnection(Protocol):
    """The connection that a body arrives over."""

    def write(self, data: bytes) -> None:
        """Send *data* as it is."""

    def read_on(self) -> None:
        """Read on."""


class CompleteRequest(Request):
    """A request that is complete when its head is read: it has no body, or a short one that is here too."""

    __slots__ = ("is_http_1_0", "keep_alive")

    is_whole: Final = True
    is_ready: Final = True
    is_done: Final = True

    def __init__(self, head: Head, peer: str, body: bytes) -> None:
        line = head.line
        self.method, self.path, self.query, self.is_http_1_0 = line.method, line.path, line.query, line.is_http_1_0
        self.headers, self.keep_alive = head.headers, head.keep_alive
        self.body = body
        self.peer = peer
        self.caller = None
        self.parameters = _NO_PARAMETERS
        if self.method == "CONNECT":
            self.keep_alive = False  # what follows is not HTTP


class IncomingRequest(Request):
    """
    A request whose body arrives after its head; until the body is complete, the request is its source.

    It must not hold itself, nor an exception that was raised: an object in a cycle outlives its connection for long.
    """

    __slots__ = (
        "_ahead_bytes",
        "_connection",
        "_is_long",
        "_is_offered",
        "_pieces",
        "_problem",
        "_size",
        "_waiter",
        "_was_read",
        "_whole",
        "is_http_1_0",
        "is_whole",
        "keep_alive",
    )

    def __init__(self, connection: BodyConnection, head: Head, peer: str, ahead_bytes: int) -> None:
        line = head.line
        self._whole: bytes | None = None
        super().__init__(line.method, line.path, line.query, head.headers)
        self.peer = peer
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        self.is_http_1_0 = line.is_http_1_0
        #: The application is asked before a long body, or one that the client offers, has arrived; it may refuse it.
        self._is_offered = head.is_offered
        self._is_long = head.length > ahead_bytes or head.is_offered
        self._ahead_bytes = ahead_bytes
        self._was_read = False
        #: Whether the connection stays open after it; what follows CONNECT is not HTTP.
        self.keep_alive = head.keep_alive and line.method != "CONNECT"
        self.is_whole = False

    @property
    def body(self) -> bytes | BodySource:
        """The body, or this request as its source."""
        return self if self._whole is None else self._whole

    @body.setter
    def body(self, body: bytes | BodySource) -> None:
        """Do nothing: the body has yet to arrive."""

    async def read(self, limit: int) -> bytes:
        """Return the body once it is complete; read no more than *limit* bytes of it."""
        announced = self.header(b"content-length")
        if announced is not None and int(announced) > limit:
            raise too_long(limit)
        self._was_read = True
        if self._is_offered and not self._size:
            self._connection.write(_CONTINUE)
        while not self.is_whole:
            if self._problem is not None:
                raise type(self._problem)(*self._problem.args)  # an exception holds the frames it was raised in
            if self._size > limit:
                raise too_long(limit)
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                self._connection.read_on()
                await self._waiter
            finally:
                self._waiter = None
        if self._size > limit:
            raise too_long(limit)
        return b"".join(self._pieces)

    @property
    def is_ready(self) -> bool:
        """Whether the application is to answer it now."""
        return self.is_whole or self._is_long or self._problem is not None

    @property
    def is_done(self) -> bool:
        """Whether another request may follow: wherever the bytes were cut, a long body that was not read ends that."""
        return self.is_whole and (self._was_read or not self._is_long)

    def take(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._ahead_bytes:
            self._is_long = True
        self._wake()

    @property
    def wants_more(self) -> bool:
        """Whether more of the body may be buffered: only so much of it until the application reads it."""
        return self._waiter is not None or self._size <= self._ahead_bytes

    def end(self) -> None:
        """Mark the body as complete."""
        self.is_whole = True
        if not self._is_long:
            self._whole = b"".join(self._pieces)
        self._wake()

    def fail(self, problem: Exception) -> None:
        """Mark the body as one that will never be complete, because of *problem*."""
        self.keep_alive = False
        self._problem = problem
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
