"""
One connection of the operator listener: requests are read, answered in their order, and what is sent is taken.

httptools parses, strictly. Here is what is left: how large a head may be, when a body is read on, what follows a
request that cannot be understood, and that nothing is kept for a reader who does not read.
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
from spotledger.http.h1.request import Answers, Header, Reply, Request, RequestGone, too_long

HEAD_LIMIT_BYTES: Final = 64 * 1024
HEADERS_LIMIT: Final = 100
HEAD_TIMEOUT_SECONDS: Final = 10.0
#: How long a connection is kept without a request, or for a reader who takes nothing of what was sent.
IDLE_SECONDS: Final = 75.0
#: How much of a body is taken before the call that it belongs to reads it.
BODY_AHEAD_BYTES: Final = 64 * 1024
#: How long, and how much, is still read from a caller who was answered before he had sent everything.
LINGER_SECONDS: Final = 2.0
LINGER_BYTES: Final = 16 * 1024 * 1024

_FRAMING: Final = (b"content-length", b"transfer-encoding")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}
_METHODS: Final = {name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")}
_log = logging.getLogger("spotledger.operator")


class ListenerState:
    """What the connections of one listener share."""

    def __init__(self, app: Answers) -> None:
        self.app = app
        self.connections: set[Connection] = set()
        self.stopping = False
        #: The loop's time, to within a second, and the end of a head: it tells the time of day.
        self.now = 0.0
        self.head_end = b"\r\n"


class _Asked(Request):
    """A request as it comes over a connection."""

    __slots__ = ("_connection", "_pieces", "_problem", "_size", "_waiter", "is_old", "is_whole", "keeps")

    def __init__(
        self,
        connection: Connection,
        method: str,
        target: tuple[str, str],
        headers: list[Header],
        keeps: bool,
        is_old: bool,
    ) -> None:
        super().__init__(method, *target, headers, self)
        self._connection = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._problem: Exception | None = None
        #: Whether the connection goes on after it.
        self.keeps = keeps
        #: Whether it is of a version before HTTP/1.1.
        self.is_old = is_old
        self.is_whole = False

    async def read(self, limit: int) -> bytes:
        """Return the body once it is whole, and let no more of it come than *limit* bytes."""
        announced = self.header(b"content-length")
        if announced is not None and int(announced) > limit:
            raise too_long(limit)
        if (self.header(b"expect") or b"").lower() == b"100-continue" and not self.is_old and not self._size:
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
        """Take a piece of the body; say whether that is enough for now."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._wake()
        return self._waiter is None and self._size > BODY_AHEAD_BYTES

    def end(self) -> None:
        """Take note that the body is whole."""
        pieces = self._pieces
        self.is_whole = True
        self.body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._wake()

    def fail(self, problem: Exception) -> None:
        """Take note that the body will not come whole."""
        self.keeps = False
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
        #: What answers now, what waits for its turn, and what is being read.
        self._task: asyncio.Task[None] | None = None
        self._waiting: deque[_Asked] = deque()
        self._reading: _Asked | None = None
        #: Why nothing more can be read.
        self._broken: SpotledgerError | None = None
        self._url = b""
        self._headers: list[Header] = []
        self._in_head = True
        self._is_offer = False
        #: How much came of the head, or of what frames a body, since something came of it.
        self._head_bytes = 0
        self._is_further = False
        self._since = state.now
        self._lingers = False
        self._linger_bytes = 0
        self._is_paused = False
        self._is_gone = False
        self._chunked = False
        #: Done when the reader has taken enough; done when he has gone.
        self._room: asyncio.Future[None] | None = None
        self._full_since = 0.0
        self._left: asyncio.Future[None] | None = None

    # --- the transport's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever reads or writes here."""
        self._is_gone = True
        self._state.connections.discard(self)
        self._waiting.clear()
        if self._reading is not None and not self._reading.is_whole:
            self._reading.fail(RequestGone())
        self._reading = None
        for future in (self._room, self._left):
            if future is not None and not future.done():
                future.set_result(None)
        self._room = None

    def pause_writing(self) -> None:
        """The reader does not take what was sent."""
        self._room = self._loop.create_future()
        self._full_since = self._state.now

    def resume_writing(self) -> None:
        """The reader took it."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Read on."""
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
                self._decline()
            except httptools.HttpParserError:
                self._break("The request cannot be read as HTTP/1.1; one in its form would pass.")
                break
        if self._is_further:
            self._is_further = False
            self._head_bytes = 0
        elif self._head_bytes > HEAD_LIMIT_BYTES and self._broken is None:
            self._break(_head_too_large())

    # --- the parser's side -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = []
        self._in_head = True
        self._since = self._state.now

    def on_url(self, url: bytes) -> None:
        """Take what is asked for, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header; those that follow a body in chunks are passed over."""
        if self._in_head:
            self._headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        """Begin to answer, or let the request wait for its turn."""
        self._in_head = False
        self._is_further = True
        headers, parser = self._headers, self._parser
        if len(headers) > HEADERS_LIMIT or (self._head_bytes > HEAD_LIMIT_BYTES and self._is_head_too_large()):
            self._break(_head_too_large())
            self._reading = None
            return
        name = parser.get_method()
        method = _METHODS.get(name) or name.decode("latin-1")
        is_old = parser.get_http_version() != "1.1"
        asked = _Asked(self, method, _target(self._url), headers, parser.should_keep_alive(), is_old)
        self._reading = asked
        if method == "CONNECT":
            asked.keeps = False  # what follows would be for somebody else
        self._is_offer = parser.should_upgrade()
        if self._task is None:
            self._task = self._loop.create_task(self._answer(asked))
        else:
            self._waiting.append(asked)
            self._pause()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        self._is_further = True
        if self._reading is not None and self._reading.take(body):
            self._pause()

    def on_message_complete(self) -> None:
        """Take note that the request is whole."""
        if self._reading is not None and not self._is_offer:
            self._reading.end()

    def _decline(self) -> None:
        """
        Go on in HTTP/1.1 after an offer to change over to another protocol.

        The parser takes the offer as accepted, and what follows, the request's body too, for the other protocol. So
        another parser goes on, which is told how long the body is.
        """
        asked = self._reading
        self._is_offer = False
        self._parser = httptools.HttpRequestParser(_AfterOffer(self))
        framing = [] if asked is None else [header for header in asked.headers if header[0] in _FRAMING]
        self._parser.feed_data(
            b"POST / HTTP/1.1\r\n" + b"".join(b"%b: %b\r\n" % header for header in framing) + b"\r\n"
        )

    def _is_head_too_large(self) -> bool:
        return len(self._url) + sum(len(name) + len(value) + 4 for name, value in self._headers) > HEAD_LIMIT_BYTES

    def _break(self, reason: str) -> None:
        """Read nothing more; what was asked before is answered, and then it is said why."""
        reading = self._reading
        if reading is not None and reading.is_whole and not reading.keeps:
            return  # whoever said that he will send nothing more is not told that it was wrong
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
        """Take more of what was sent."""
        if self._is_paused and not self._is_gone:
            self._is_paused = False
            self._transport.resume_reading()

    # --- answers ---------------------------------------------------------------------------------------

    async def _answer(self, asked: _Asked | None) -> None:
        """Answer *asked*, then what waits, then what could not be read."""
        try:
            while asked is not None:
                reply = await self._state.app.answer(asked)
                if self._is_gone:
                    return
                if not await self._sent(asked, reply):
                    self._end(is_whole=asked.is_whole)
                    return
                if self._room is not None:
                    await self._room
                asked = self._waiting.popleft() if self._waiting else None
            if self._broken is not None and not self._is_gone:
                self._write("GET", self._state.app.refusal(self._broken), keeps=False)
                self._end(is_whole=False)
        except RequestGone:
            return
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it ends this connection only
            _log.exception("an answer broke off")
            self._transport.abort()
        finally:
            self._task = None
            self._since = self._state.now
        if self._state.stopping:
            self._transport.close()
        self.read_on()

    async def _sent(self, asked: _Asked, reply: Reply) -> bool:
        """Send *reply* to *asked*; say whether the connection goes on."""
        keeps = asked.keeps and asked.is_whole and not self._state.stopping
        if reply.stream is not None:
            return await self._streamed(asked, reply, keeps)
        self._write(asked.method, reply, keeps=keeps, is_old=asked.is_old)
        return keeps

    def _write(self, method: str, reply: Reply, *, keeps: bool, is_old: bool = False) -> None:
        body = reply.body
        parts = [_STATUS_LINES[reply.status]]
        parts += [b"%b: %b\r\n" % header for header in reply.headers]
        parts.append(b"content-length: %d\r\n" % len(body))
        if not keeps:
            parts.append(b"connection: close\r\n")
        elif is_old:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(self._state.head_end)
        if method != "HEAD":
            parts.append(body)
        self._transport.write(b"".join(parts))

    async def _streamed(self, asked: _Asked, reply: Reply, keeps: bool) -> bool:
        assert reply.stream is not None  # noqa: S101
        self._chunked = not asked.is_old
        parts = [_STATUS_LINES[reply.status]]
        parts += [b"%b: %b\r\n" % header for header in reply.headers]
        if self._chunked:
            parts.append(b"transfer-encoding: chunked\r\n")
        if not keeps or not self._chunked:
            parts.append(b"connection: close\r\n")
        parts.append(self._state.head_end)
        self._transport.write(b"".join(parts))
        is_whole = await reply.stream(self)
        if is_whole and self._chunked:
            self.write(b"0\r\n\r\n")
        elif not is_whole and self._room is not None:
            self._transport.abort()  # who has not taken what was sent so far is not waited for
        return is_whole and self._chunked and keeps and not self._state.stopping

    async def send(self, piece: bytes) -> None:
        """Send a piece of a streamed answer, and wait for a reader who does not take it."""
        if self._is_gone:
            raise OSError("the reader has gone")
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._chunked else piece)
        if self._room is not None:
            await self._room

    async def gone(self) -> None:
        """Return when the reader has gone."""
        if not self._is_gone:
            self._left = self._loop.create_future()
            await self._left

    def write(self, data: bytes) -> None:
        """Send *data* as it is."""
        if not self._is_gone:
            self._transport.write(data)

    # --- the end ---------------------------------------------------------------------------------------

    def _end(self, *, is_whole: bool) -> None:
        """
        Close, after what was sent is on its way.

        Who has not sent everything is read from for a moment: to close on him would take the answer from him too.
        """
        if is_whole or self._state.stopping:
            self._transport.close()
        else:
            self._lingers = True
            self.read_on()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being asked, answered or sent here."""
        return self._task is None and (not self._in_head or not self._head_bytes or self._lingers)

    def look(self) -> None:
        """Close a connection that was silent for too long."""
        if self._room is not None and self._state.now - self._full_since > IDLE_SECONDS:
            self.cut()
        if self._task is not None:
            return
        silent = self._state.now - self._since
        if self._transport.is_closing():
            if silent > IDLE_SECONDS:
                self._transport.abort()  # he does not take his answer
        elif self._lingers:
            if silent > LINGER_SECONDS:
                self._transport.close()
        elif silent > (HEAD_TIMEOUT_SECONDS if self._in_head else IDLE_SECONDS):
            self._transport.close()

    def stop(self) -> None:
        """Close once nothing is being asked or answered."""
        if self.is_idle:
            self._transport.close()

    def cut(self) -> None:
        """Break off whatever is going on."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()


class _AfterOffer:
    """What a parser that goes on within a request tells its connection: nothing of the head it was given first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_within = True
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        """Pass it on."""
        if not self._is_within:
            self._connection.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Pass it on."""
        if not self._is_within:
            self._connection.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Pass it on."""
        if not self._is_within:
            self._connection.on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass it on, from the second on."""
        if self._is_within:
            self._is_within = False
        else:
            self._connection.on_headers_complete()


def _head_too_large() -> str:
    return (
        f"The head of the request is longer than {HEAD_LIMIT_BYTES} bytes or has more than {HEADERS_LIMIT} headers;"
        " a shorter one would pass."
    )


def _target(url: bytes) -> tuple[str, str]:
    """Return the path, percent-decoded, and the query of what a request asks for."""
    path, _, query = url.decode("latin-1").partition("#")[0].partition("?")
    if not path.startswith("/") and "://" in path:
        path = urlsplit(path).path or "/"  # as one asks a proxy
    return unquote(path, errors="replace") if "%" in path else path, query
