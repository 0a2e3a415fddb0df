"""
One connection: its requests are answered in order, one at a time, and after each answer other connections have a turn.

The reader (``reader.py``) makes requests of bytes. Here are the order of the answers, the flow control of bodies and
answers, the end of a connection whose request cannot be read, and timeouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar, cast

from spotledger.http.h1.incoming import CompleteRequest, IncomingRequest
from spotledger.http.h1.reader import RequestReader
from spotledger.http.h1.request import BadRequest, ClientDisconnected, LateReply, MakeReply, Reply, Stream
from spotledger.http.h1.state import ListenerState, log_unexpected

_CUT_OFF: Final = "The connection ended before the body was complete; a complete body would pass."
_TOO_SLOW: Final = "The body was not complete after {:g} seconds; sooner would pass."
_DROP: Final = struct.pack("ii", 1, 0)
#: Heads and pieces of bodies that are read before other connections have a turn.
_STEPS: Final = 16

AnyRequest: TypeAlias = CompleteRequest | IncomingRequest
A = TypeVar("A")


class _Phase(Enum):
    """What a connection waits for, which decides how long it may."""

    IDLE = "a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "its own answer"
    END = "the client to close"


_IDLE: Final = _Phase.IDLE
_ANSWER: Final = _Phase.ANSWER


class Connection(asyncio.Protocol):
    """One connection; it is also the writer of a streamed answer. *address* is what the client is counted by."""

    def __init__(self, state: ListenerState, peer: str, address: bytes | None) -> None:
        self._state = state
        self._limits = state.limits
        self._peer = peer
        self.address = address
        self.is_counted = True
        #: The socket during a handshake of TLS, before the transport has begun.
        self.handshake: socket.socket | None = None
        self._reader = RequestReader(state.limits)
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()
        #: What the answer that is being made waits for, the requests that wait, and the one whose body is being read.
        self._task: asyncio.Future[Any] | None = None
        self._waiting: deque[AnyRequest] = deque()
        self._incoming: IncomingRequest | None = None
        #: How much the reader had consumed when only one request waited.
        self._ahead_from: int
        #: Why nothing more can be read; and whether nothing more will be, because it is not wanted.
        self._broken: BadRequest | None = None
        self._is_last = False
        self._is_scheduled = False
        self._is_ended = False
        self._is_half_closed = False
        self._is_paused = self._reads_again = False
        #: Whether the transport has begun, and whether it has ended.
        self.was_made = False
        self._is_gone = False
        self._is_tls: bool
        self._lingers = False
        self._linger_bytes = 0
        self._phase = _Phase.IDLE
        self._phase_since = state.now
        #: Done when the client has read enough; and what it had not read when that was last checked.
        self._drained: asyncio.Future[None] | None = None
        self._checked_at: float
        self._unread_bytes: int
        self._is_chunked: bool
        self._disconnected: asyncio.Future[None] | None = None

    # --- the transport's side --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start reading requests."""
        self.was_made = True
        self.handshake = None
        self._transport = cast("asyncio.Transport", transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=self._limits.unread_bytes)
        if self._state.stopping:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wake up whatever reads or writes here."""
        self._is_gone = True
        self._state.release(self)
        self._waiting.clear()
        if self._incoming is not None:
            self._incoming.fail(ClientDisconnected())
            self._incoming = None
        for future in (self._drained, self._disconnected):
            if future is not None and not future.done():
                future.set_result(None)
        self._drained = None

    def eof_received(self) -> bool:
        """Answer what was sent, and then close: the client sends no more, but may still read."""
        self._is_half_closed = True
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        if self._is_tls or self.is_idle:
            return False  # TLS has no half-closed connections
        self._read()
        self._schedule()
        return True

    def pause_writing(self) -> None:
        """Make answers wait, and read nothing more: the client does not read what was sent."""
        self._drained = self._loop.create_future()
        self._checked_at, self._unread_bytes = self._state.now, self._transport.get_write_buffer_size()
        self._pause()
        ahead_bytes = self._reader.consumed - self._ahead_from if len(self._waiting) > 1 else 0
        self._state.unread.add(self, self._unread_bytes + self._reader.unread + ahead_bytes)

    def resume_writing(self) -> None:
        """Let answers go on."""
        self._state.unread.remove(self)
        self._phase_since = self._state.now  # what it waits for could not come meanwhile
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        self._read_again()

    def data_received(self, data: bytes) -> None:
        """Take *data*, and answer a request if one is complete and nothing is being answered."""
        if self._is_last:
            self._linger_bytes += len(data)
            if self._linger_bytes > self._limits.linger_bytes:
                self._transport.abort()
            return
        self._reader.receive(data)
        if self._task is None and not self._is_scheduled and self._drained is None:
            self._turn()
        else:
            self._read()

    # --- requests --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Read requests as far as they have arrived and may wait here; pause the connection beyond that."""
        try:
            for _ in range(_STEPS):
                is_next = not self._is_last and (
                    self._read_head() if self._incoming is None else self._read_body(self._incoming)
                )
                if not is_next:
                    break
        except BadRequest as problem:
            is_next = False
            # A new one: this one holds the frames it was raised in, and so this connection.
            self._broken, self._is_last = BadRequest(problem.reason), True
            if self._incoming is not None:
                self._incoming.fail(self._broken)
                self._incoming = None
        if is_next and not self._reads_again:
            self._reads_again = True
            self._loop.call_soon(self._read_again)
        elif not (self._is_paused or self._is_half_closed or self._reader.has_data):
            return
        if is_next or (self._reader.has_data and not self._is_last and not self._wants_more()):
            self._pause()
            return
        self._read_on()
        if self._is_half_closed and self._incoming is not None:
            self._incoming.fail(BadRequest(_CUT_OFF))

    def _read_again(self) -> None:
        self._reads_again = False
        if not self._is_gone:
            self._read()
            self._schedule()

    def _wants_more(self) -> bool:
        if self._incoming is not None:
            return self._incoming.wants_more
        return self._may_wait()

    def _may_wait(self) -> bool:
        """Return whether one more request may wait: only so many of them, and so many bytes beyond the first."""
        waiting = len(self._waiting)
        if waiting <= 1:
            self._ahead_from = self._reader.consumed
            return True
        limits = self._limits
        return waiting < limits.pipelined and self._reader.consumed - self._ahead_from < limits.pipelined_bytes

    def _read_head(self) -> bool:
        """Read the next head; return whether there may be more to read."""
        head = self._reader.head() if not self._waiting or self._may_wait() else None
        if head is None:
            return False
        body: bytes | None = b""
        if head.length:
            body = None if head.is_offered else self._reader.short_body(self._limits.body_ahead_bytes)
        if body is None:
            self._incoming = IncomingRequest(self, head, self._peer, self._limits.body_ahead_bytes)
            self._waiting.append(self._incoming)
            return True
        request = CompleteRequest(head, self._peer, body)
        self._waiting.append(request)
        if not request.keep_alive:
            self._is_last = True  # the client said that it would send no other
        return self._reader.has_data

    def _read_body(self, request: IncomingRequest) -> bool:
        """Read a piece of the body of *request*; return whether there may be more to read."""
        if not self._wants_more():
            return False
        before = self._reader.unread
        piece = self._reader.body()
        if piece:
            request.take(piece)
        if self._reader.in_body:
            return self._reader.unread < before
        self._incoming = None
        request.end()
        if not request.keep_alive:
            self._is_last = True
        return True

    def read_on(self) -> None:
        """Read on for the application, which waits for more of a body."""
        if not self._reads_again:
            self._read()

    def _pause(self) -> None:
        if not self._is_paused and not self._is_gone:
            self._is_paused = True
            self._transport.pause_reading()

    def _read_on(self) -> None:
        if self._is_paused and not self._is_gone and self._drained is None:
            self._is_paused = False
            self._transport.resume_reading()

    # --- answers ---------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Take a turn once other connections have had theirs."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Answer the next request, if there is one and the client has read enough of the answers before it."""
        self._is_scheduled = False
        if self._is_gone or self._is_ended or self._task is not None or self._drained is not None:
            return
        self._read()
        if not self._waiting:
            self._rest()
            return
        if not self._waiting[0].is_ready:
            self._set_phase(_Phase.BODY)
            return
        request = self._waiting.popleft()
        if request.is_whole:
            self._make(request, self._state.app.at_once, request)
        else:
            self._start(request, None)

    def _make(self, request: AnyRequest, make: Callable[[A], Reply | LateReply | None], argument: A) -> None:
        """Send the answer that *make* returns; or wait for the future that it names, or for a task."""
        try:
            reply = make(argument)
        except Exception as error:  # noqa: BLE001 - an error ends this connection only
            self._fail(error)
            return
        if isinstance(reply, LateReply):
            self._phase, self._task = _ANSWER, reply.future
            reply.future.add_done_callback(partial(self._made, request, reply.make))
        elif reply is None or reply.stream is not None:
            self._start(request, reply)
        elif not self._is_gone:
            self._written(request, reply)

    def _made(self, request: AnyRequest, make: MakeReply, future: asyncio.Future[Any]) -> None:
        self._task = None
        if not future.cancelled():  # because the connection was cut off
            self._make(request, make, future)

    def _start(self, request: AnyRequest, reply: Reply | None) -> None:
        self._phase, self._task = _ANSWER, self._loop.create_task(self._answer(request, reply))

    def _fail(self, error: Exception) -> None:
        log_unexpected(error)
        self._transport.abort()

    def _set_phase(self, phase: _Phase) -> None:
        """Note what the connection waits for, and since when."""
        if phase is not self._phase:
            self._phase, self._phase_since = phase, self._state.now

    def _rest(self) -> None:
        """Refuse what could not be read, or wait for the next request."""
        if self._broken is not None:
            reply = self._state.app.refusal(self._broken, self._peer)
            self._transport.write(reply.whole(self._state.head_end, keep_alive=False))
            self._end()
        elif self._state.stopping or (self._is_half_closed and self._incoming is None):
            self._end()
        else:
            self._set_phase(_Phase.HEAD if self._reader.has_data else _Phase.IDLE)

    def _written(self, request: AnyRequest, reply: Reply) -> None:
        """Send *reply*, and go on with the next request or end."""
        keep_alive = request.keep_alive and request.is_done and not self._state.stopping
        end, is_head, is_http_1_0 = self._state.head_end, request.method == "HEAD", request.is_http_1_0
        self._transport.write(reply.whole(end, keep_alive=keep_alive, is_http_1_0=is_http_1_0, is_head=is_head))
        if not keep_alive:
            self._end()
        elif self._waiting or self._is_half_closed or self._reader.has_data:  # as it has what cannot be read
            self._phase = _ANSWER  # the next phase begins anew
            self._schedule()
        else:
            self._phase, self._phase_since = _IDLE, self._state.now

    async def _answer(self, request: AnyRequest, reply: Reply | None) -> None:
        """Answer *request*, which may have to be waited for."""
        try:
            if reply is None:
                reply = await self._state.app.answer(request)
            stays_open = self._is_gone or reply.stream is None or await self._streamed(request, reply, reply.stream)
        except ClientDisconnected:
            return
        except asyncio.CancelledError:
            self._transport.abort()
            raise
        except Exception as error:  # noqa: BLE001 - an error ends this connection only
            self._fail(error)
            return
        finally:
            self._task = None
        if self._is_gone:
            return
        if reply.stream is None:
            self._written(request, reply)
        elif stays_open:
            self._schedule()
        else:
            self._end()

    async def _streamed(self, request: AnyRequest, reply: Reply, stream: Stream) -> bool:
        """Send an answer piece by piece; return whether the connection stays open."""
        is_chunked = self._is_chunked = not request.is_http_1_0
        keep_alive = is_chunked and request.keep_alive and request.is_done and not self._state.stopping
        self._transport.write(reply.beginning(self._state.head_end, is_chunked=is_chunked, keep_alive=keep_alive))
        is_whole = await stream(self)
        if is_whole and is_chunked:
            self.write(b"0\r\n\r\n")
        elif not is_whole and self._drained is not None:
            self._transport.abort()  # do not wait for a client that has not read what was sent so far
        return is_whole and keep_alive and not self._state.stopping

    async def send(self, piece: bytes) -> None:
        """Send a piece of a streamed answer, and wait while the client does not read."""
        if self._is_gone:
            raise OSError("the client has disconnected")
        self._transport.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self._is_chunked else piece)
        if self._drained is not None:
            await self._drained

    async def gone(self) -> None:
        """Return when the client has disconnected, or sends no more: a stream has no end that it could wait for."""
        if not self._is_gone and not self._is_half_closed:
            self._disconnected = self._loop.create_future()
            await self._disconnected

    def write(self, data: bytes) -> None:
        """Send *data* as it is."""
        if not self._is_gone:
            self._transport.write(data)

    # --- the end ---------------------------------------------------------------------------------------

    def _end(self) -> None:
        """
        Close the connection after the answer.

        The client is read from until it closes too, or for a moment: if something arrived after the close, the system
        would tell the client so before it has read the answer, and the answer would be lost.
        """
        self._is_ended = self._is_last = True
        self._set_phase(_Phase.END)
        if self._is_gone:
            return
        if self._state.stopping or self._is_half_closed or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._lingers = True
            self._transport.write_eof()
            self._read_on()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self._lingers or (
            self._task is None
            and not self._waiting
            and self._incoming is None
            and not self._is_scheduled
            and not self._reader.has_data
            and self._drained is None
        )

    @property
    def is_settled(self) -> bool:
        """Whether the connection is idle, and every answer was sent."""
        return self.is_idle and not (self.was_made and self._transport.get_write_buffer_size())

    def check_timeouts(self) -> None:
        """Close the connection if it has been silent for too long, or reads too slowly."""
        if not self.was_made:
            return  # a handshake has a timeout of its own
        now, limits = self._state.now, self._limits
        if self._drained is not None and now - self._checked_at > limits.slow_reader_seconds:
            unread_bytes = self._transport.get_write_buffer_size()
            if self._unread_bytes - unread_bytes < limits.slow_reader_bytes:
                self.abort()
                return
            self._checked_at, self._unread_bytes = now, unread_bytes
        if self._drained is not None or self._phase is _Phase.ANSWER:
            return
        self._reader.release()
        silent = now - self._phase_since
        if self._phase is _Phase.BODY:
            if silent > limits.body_seconds and self._incoming is not None:
                self._incoming.fail(BadRequest(_TOO_SLOW.format(limits.body_seconds)))
                self._incoming, self._is_last = None, True
                self._schedule()
        elif self._phase is _Phase.END:
            if self._lingers and not self._transport.is_closing():
                if silent > limits.linger_seconds:
                    self._transport.close()
            elif silent > limits.slow_reader_seconds:
                self.abort()  # the client does not read its answer
        elif silent > (limits.head_seconds if self._phase is _Phase.HEAD else limits.idle_seconds):
            self._transport.close()

    @property
    def waits_since(self) -> float | None:
        """Since when the connection has waited for its client, or None if the client waits for it."""
        if self._drained is not None:
            return self._checked_at
        is_opening = not self.was_made and self.handshake is None
        if is_opening or self._task is not None or self._is_scheduled or self._phase is _ANSWER:
            return None
        return self._phase_since

    def close_when_idle(self) -> None:
        """Close the connection now if it is idle; otherwise it closes after its answers."""
        if self.handshake is not None:
            self.abort()
        elif self.was_made and self.is_idle:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection at once, whatever is going on."""
        if self.handshake is not None:
            with contextlib.suppress(OSError):  # the client has gone
                self.handshake.shutdown(socket.SHUT_RDWR)  # so the handshake fails
        if not self.was_made:
            return
        if self._task is not None:
            self._task.cancel()
        accepted = self._transport.get_extra_info("socket")
        if accepted is not None:  # what the system still holds for the client is dropped, too
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
        self._is_gone = True
        self._transport.abort()
