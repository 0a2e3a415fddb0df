"""
One connection: requests are parsed by httptools, strictly, and answered in order.

What the parser leaves to its user is here: the limit of the head, the flow control of bodies and answers, the end of a
connection whose request cannot be parsed, and timeouts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import unquote, urlsplit

import httptools

from spotledger.errors import MalformedRequest, SpotledgerError
from spotledger.http.h1.request import Application, ClientDisconnected, Header, Reply, Request, Stream, too_long

HEAD_LIMIT_BYTES: Final = 64 * 1024
HEADERS_LIMIT: Final = 100
HEAD_TIMEOUT_SECONDS: Final = 10.0
#: How long a connection is kept without a request, or while the client reads nothing of what was sent.
IDLE_SECONDS: Final = 75.0
#: How much of a body is buffered before the application reads it.
BODY_AHEAD_BYTES: Final = 64 * 1024
#: How long, and how much, is still read from a client that was answered before it had sent everything.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 16 * 1024 * 1024

_FRAMING: Final = (b"content-length", b"transfer-encoding")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_log = logging.getLogger("spotledger.http")


class ListenerState:
    """The state that the connections of one listener share."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.connections: set[Connection] = set()
        self.stopping = False
        #: The loop's time, and the end of a head with the date; both are renewed once a second.
        self.now = 0.0
        self.head_end = b"\r\n"


class _IncomingRequest(Request):
    """A request that arrives over a connection."""

    __slots__ = ("_connection", "_pieces", "_problem", "_size", "_waiter", "is_http_1_0", "is_whole", "keep_alive")

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: tuple[str, str],
        headers: list[Header],
        keep_alive: bool,
        is_http_1_0: bool,
    ) -> None:
        super().__init__(method, *target, headers, self)
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        #: Whether the connection stays open after it.
        self.keep_alive = keep_alive
        #: Whether its version is below HTTP/1.1.
        self.is_http_1_0 = is_http_1_0
        self.is_whole = False

    async def read(self, limit: int) -> bytes:
        """Return the body once it is complete; read no more than *limit* bytes of it."""
        announced = self.header(b"content-length")
        if announced is not None and int(announced) > limit:
            raise too_long(limit)
        if (self.header(b"expect") or b"").lower() == b"100-continue" and not self.is_http_1_0 and not self._size:
            self._connection.write(_CONTINUE)
        while not self.is_whole:
            if self._problem is not None:
                raise self._problem
            if self._size > limit:
                raise too_long(limit)
            self._connection.read_on()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return b"".join(self._pieces)

    def take(self, piece: bytes) -> bool:
        """Take a piece of the body; return whether reading should pause."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._wake()
        return self._waiter is None and self._size > BODY_AHEAD_BYTES

    def end(self) -> None:
        """Mark the body as complete."""
        pieces = self._pieces
        self.is_whole = True
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._wake()

    def fail(self, problem: Exception) -> None:
        """Mark the body as one that will never be complete, because of *problem*."""
        self.keep_alive = False
        self._problem = problem
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection; it is also the writer of a streamed answer."""

    def __init__(self, state: ListenerState) -> None:
        self._state = state
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        #: The task that answers, the requests that wait for it, and the request that is being read.
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[_IncomingRequest] = deque()
        self._reading: _IncomingRequest | None = None
        #: Why nothing more is parsed, or None.
        self._broken: SpotledgerError | None = None
        self._url = b""
        self._headers: list[Header] = []
        self._in_head = True
        self._is_upgrade = False
        #: Bytes received since the parser last completed a head or gave a piece of a body.
        self._head_bytes = 0
        self._has_progress = False
        self._idle_since = state.now
        self._lingers = False
        self._linger_bytes = 0
        self._is_paused = False
        self._is_gone = False
        self._chunked = False
        #: Done when the client has read enough; done when it has disconnected.
        self._drained: asyncio.Future[None] | None = None
        self._blocked_since = 0.0
        self._disconnected: asyncio.Future[None] | None = None

    # --- the transport's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start reading requests."""
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake up whatever reads or writes here."""
        self._is_gone = True
        self._state.connections.discard(self)
        self._waiting.clear()
        if self._reading is not None and not self._reading.is_whole:
            self._reading.fail(ClientDisconnected())
        self._reading = None
        for future in (self._drained, self._disconnected):
            if future is not None and not future.done():
                future.set_result(None)
        self._drained = None

    def pause_writing(self) -> None:
        """Make answers wait: the client does not read what was sent."""
        self._drained = self._loop.create_future()
        self._blocked_since = self._state.now

    def resume_writing(self) -> None:
        """Let answers go on."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Parse *data*."""
        if self._lingers:
            self._linger_bytes += len(data)
            if self._linger_bytes > LINGER_BYTES:
                self._transport.abort()
            return
        self._head_bytes += len(data)
        while data and self._broken is None:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._decline_upgrade()
            except httptools.HttpParserError:
                self._fail("The request is not HTTP/1.1; one in its form would pass.")
                break
        if self._has_progress:
            self._has_progress = False
            self._head_bytes = 0
        elif self._head_bytes > HEAD_LIMIT_BYTES and self._broken is None:
            self._fail(_head_too_large())

    # --- the parser's side -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Start a request."""
        self._url = b""
        self._headers = []
        self._in_head = True
        self._idle_since = self._state.now

    def on_url(self, url: bytes) -> None:
        """Take the target, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; trailers after a chunked body are ignored."""
        if self._in_head:
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Start answering, or queue the request behind the one that is being answered."""
        self._in_head = False
        self._has_progress = True
        headers, parser = self._headers, self._parser
        if len(headers) > HEADERS_LIMIT or (self._head_bytes > HEAD_LIMIT_BYTES and self._is_head_too_large()):
            self._fail(_head_too_large())
            self._reading = None
            return
        name = parser.get_method()
        method = _METHODS.get(name) or name.decode("latin-1")
        is_http_1_0 = parser.get_http_version() != "1.1"
        request = _IncomingRequest(self, method, _target(self._url), headers, parser.should_keep_alive(), is_http_1_0)
        self._reading = request
        if method == "CONNECT":
            request.keep_alive = False  # what follows is not HTTP
        self._is_upgrade = parser.should_upgrade()
        if self._task is None:
            self._task = self._loop.create_task(self._answer(request))
        else:
            self._waiting.append(request)
            self._pause()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._has_progress = True
        if self._reading is not None and self._reading.take(body):
            self._pause()

    def on_message_complete(self) -> None:
        """Mark the request as complete."""
        if self._reading is not None and not self._is_upgrade:
            self._reading.end()

    def _decline_upgrade(self) -> None:
        """
        Go on with HTTP/1.1 after a request to upgrade to another protocol.

        The parser takes the upgrade as accepted, and everything after it, even the request's body, for the other
        protocol. So another parser goes on; it is given the headers that frame the body.
        """
        request = self._reading
        self._is_upgrade = False
        self._parser = httptools.HttpRequestParser(_AfterUpgrade(self))
        framing = [] if request is None else [header for header in request.headers if header[0] in _FRAMING]
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % header for header in framing) + b"\r\n"
        )

    def _is_head_too_large(self) -> bool:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers) > HEAD_LIMIT_BYTES

    def _fail(self, reason: str) -> None:
        """Parse nothing more; answer the earlier requests, then send *reason*."""
        reading = self._reading
        if reading is not None and reading.is_whole and not reading.keep_alive:
            return  # the client announced that it would send no other request, so there is nothing to answer
        self._broken = MalformedRequest(reason)
        if reading is not None and not reading.is_whole and not self._in_head:
            reading.fail(self._broken)
        elif self._task is None:
            self._task = self._loop.create_task(self._answer(None))

    def _pause(self) -> None:
        if not self._is_paused and not self._is_gone:
            self._is_paused = True
            self._transport.pause_reading()

    def read_on(self) -> None:
        """Resume reading."""
        if self._is_paused and not self._is_gone:
            self._is_paused = False
            self._transport.resume_reading()

    # --- answers ---------------------------------------------------------------------------------------

    async def _answer(self, request: _IncomingRequest | None) -> None:
        """Answer *request*, then those that wait, then what could not be parsed."""
        try:
            if not await self._answer_in_order(request):
                return
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception:  # noqa: BLE001 - an error ends this connection only
            _log.exception("an answer was cut off")
            self._transport.abort()
        finally:
            self._task = None
            self._idle_since = self._state.now
        if self._state.stopping:
            self._transport.close()
        self.read_on()

    async def _answer_in_order(self, request: _IncomingRequest | None) -> bool:
        """Answer all requests; return whether the connection stays open."""
        while request is not None:
            reply = await self._state.app.answer(request)
            if self._is_gone:
                return False
            if not await self._sent(request, reply):
                self._end(is_whole=request.is_whole)
                return False
            if self._drained is not None:
                await self._drained
            request = self._waiting.popleft() if self._waiting else None
        if self._broken is not None and not self._is_gone:
            self._write("GET", self._state.app.refusal(self._broken), keep_alive=False)
            self._end(is_whole=False)
            return False
        return True

    async def _sent(self, request: _IncomingRequest, reply: Reply) -> bool:
        """Send *reply* to *request*; return whether the connection stays open."""
        keep_alive = request.keep_alive and request.is_whole and not self._state.stopping
        if reply.stream is not None:
            return await self._streamed(reply, reply.stream, keep_alive, is_chunked=not request.is_http_1_0)
        self._write(request.method, reply, keep_alive=keep_alive, is_http_1_0=request.is_http_1_0)
        return keep_alive

    def _write(self, method: str, reply: Reply, *, keep_alive: bool, is_http_1_0: bool = False) -> None:
        body = reply.body
        head = self._head_of(reply)
        head.append(b"content-length: %d\r\n" % len(body))
        if not keep_alive:
            head.append(b"connection: close\r\n")
        elif is_http_1_0:
            head.append(b"connection: keep-alive\r\n")
        head.append(self._state.head_end)
        if method != "HEAD":
            head.append(body)
        self._transport.write(b"".join(head))

    async def _streamed(self, reply: Reply, stream: Stream, keep_alive: bool, *, is_chunked: bool) -> bool:
        self._chunked = is_chunked
        head = self._head_of(reply)
        if is_chunked:
            head.append(b"transfer-encoding: chunked\r\n")
        if not keep_alive or not is_chunked:
            head.append(b"connection: close\r\n")
        head.append(self._state.head_end)
        self._transport.write(b"".join(head))
        is_whole = await stream(self)
        if is_whole and is_chunked:
            self.write(b"0\r\n\r\n")
        elif not is_whole and self._drained is not None:
            self._transport.abort()  # do not wait for a client that has not read what was sent so far
        return is_whole and is_chunked and keep_alive and not self._state.stopping

    @staticmethod
    def _head_of(reply: Reply) -> list[bytes]:
        head = [_STATUS_LINES[reply.status]]
        head += [b"%b: %b\r\n" % header for header in reply.headers]
        return head

    async def send(self, piece: bytes) -> None:
        """Send a piece of a streamed answer, and wait while the client does not read."""
        if self._is_gone:
            raise OSError("the client has disconnected")
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        if self._drained is not None:
            await self._drained

    async def gone(self) -> None:
        """Return when the client has disconnected."""
        if not self._is_gone:
            self._disconnected = self._loop.create_future()
            await self._disconnected

    def write(self, data: bytes) -> None:
        """Send *data* as it is."""
        if not self._is_gone:
            self._transport.write(data)

    # --- the end ---------------------------------------------------------------------------------------

    def _end(self, *, is_whole: bool) -> None:
        """
        Close the connection after the answer.

        A client that has not sent everything is read from for a moment: closing at once could destroy the answer too.
        """
        if is_whole or self._state.stopping:
            self._transport.close()
        else:
            self._lingers = True
            self.read_on()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self._task is None and (not self._in_head or not self._head_bytes or self._lingers)

    def check_timeouts(self) -> None:
        """Close the connection if it has been silent for too long."""
        if self._drained is not None and self._state.now - self._blocked_since > IDLE_SECONDS:
            self.abort()
        if self._task is not None:
            return
        silent = self._state.now - self._idle_since
        if self._transport.is_closing():
            if silent > IDLE_SECONDS:
                self._transport.abort()  # the client does not read its answer
        elif self._lingers:
            if silent > LINGER_SECONDS:
                self._transport.close()
        elif silent > (HEAD_TIMEOUT_SECONDS if self._in_head else IDLE_SECONDS):
            self._transport.close()

    def close_when_idle(self) -> None:
        """Close the connection now if it is idle; otherwise it closes after its answers."""
        if self.is_idle:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once, whatever is going on."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()


class _AfterUpgrade:
    """Pass the events of the second parser of a request to the connection, without the head that it was given."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._in_first_head = True
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        """Pass the event on, but not for the first head."""
        if not self._in_first_head:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Pass the event on, but not for the first head."""
        if not self._in_first_head:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass the event on, but not for the first head."""
        if not self._in_first_head:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the event on, but not for the first head."""
        if self._in_first_head:
            self._in_first_head = False
        else:
            self._connection.on_headers_complete()


def _head_too_large() -> str:
    return (
        f"The head of the request is longer than {HEAD_LIMIT_BYTES} bytes or has more than {HEADERS_LIMIT} headers;"
        " a shorter one would pass."
    )


def _target(url: bytes) -> tuple[str, str]:
    """Return the percent-decoded path and the query of a request's target."""
    path, _, query = url.decode("latin-1").partition("#")[0].partition("?")
    if not path.startswith("/") and "://" in path:
        path = urlsplit(path).path or "/"  # the form for proxies
    return unquote(path, errors="replace") if "%" in path else path, query
