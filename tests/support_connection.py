"""One connection of the HTTP server over a transport that notes what is done to it: no sockets, no time."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

from spotledger.http.h1.connection import Connection
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest, ClientDisconnected, LateReply, Reply, Request, StreamWriter
from spotledger.http.h1.state import ListenerState

#: When a connection begins.
BEGIN: float = 1_000.0
#: After this a test has failed, although something waits for ever.
HUNG_SECONDS = 10
HEAD_END = b"date: today\r\n\r\n"


def get(path: str, *more: str, version: str = "1.1", method: str = "GET") -> bytes:
    """Return a request of *path*."""
    return ("\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *more]) + "\r\n\r\n").encode()


def post(path: str, body: bytes, *more: str, length: int | None = None) -> bytes:
    """Return a POST with *body*, which may be only a part of what it announces."""
    announced = len(body) if length is None else length
    return get(path, f"Content-Length: {announced}", *more, method="POST") + body


class RecordedSocket:
    """A socket that notes its options."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, bytes]] = []

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        """Note an option."""
        self.options.append((level, name, value))


class RecordedTransport(asyncio.Transport):
    """A transport that keeps what is written, and what a client has not read is what the test says."""

    def __init__(self, *, is_tls: bool, has_socket: bool) -> None:
        super().__init__({})
        self.socket = RecordedSocket()
        self._known = {"sslcontext": object() if is_tls else None, "socket": self.socket if has_socket else None}
        self._can_write_eof = not is_tls
        self.sent = bytearray()
        self.unread_bytes = 0
        self.high: int | None = None
        self.pauses = 0
        self.is_reading_now = True
        self.is_closed = self.is_aborted = self.has_ended = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what is known of the connection; any other name is a mistake."""
        return self._known[name]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep *data*."""
        assert not self.has_ended
        self.sent += data

    def get_write_buffer_size(self) -> int:
        """Return what the client has not read."""
        return self.unread_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Note the limit."""
        self.high = high

    def pause_reading(self) -> None:
        """Note that nothing is read."""
        assert self.is_reading_now
        self.pauses += 1
        self.is_reading_now = False

    def resume_reading(self) -> None:
        """Note that something is read."""
        assert not self.is_reading_now
        self.is_reading_now = True

    def can_write_eof(self) -> bool:
        """Return whether a side can be closed alone."""
        return self._can_write_eof

    def write_eof(self) -> None:
        """Note the end."""
        self.has_ended = True

    def close(self) -> None:
        """Note it."""
        self.is_closed = True

    def abort(self) -> None:
        """Note it."""
        self.is_aborted = True

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.is_closed or self.is_aborted


class Seen(NamedTuple):
    """A request that the application was asked to answer."""

    method: str
    path: str
    body: bytes


class Script:
    """
    Answers with the path of a request, at once.

    ``/later…`` is answered when the test lets it go, ``/body…`` when its body is complete, ``/stream…`` with the stream
    that the test gives; ``/error…`` and ``/later-error…`` raise an error, and ``/gone…`` that the client has gone.
    ``/soon…`` is answered without a task when the test lets it go; ``/soon-task…`` has to be asked once more then.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.peers: set[str] = set()
        self.refused: list[tuple[str, str]] = []
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.problems: list[Exception] = []
        self.stream: Callable[[StreamWriter], Awaitable[bool]] | None = None
        #: Whether the reply with a stream is given at once.
        self.streams_at_once = False
        self.headers: list[tuple[bytes, bytes]] = []
        self.lines = b""

    def at_once(self, request: Request) -> Reply | LateReply | None:
        """Answer what needs no waiting, or no task."""
        if not isinstance(request.body, bytes):
            return None
        if request.path.startswith("/soon"):
            future = self.waiting[request.path] = asyncio.get_running_loop().create_future()
            return LateReply(future, partial(self._made, request, request.body))
        if request.path.startswith("/error"):
            raise ValueError(request.path)
        if request.path.startswith("/stream"):
            return self._reply(request, request.body) if self.streams_at_once else None
        if request.path.startswith(("/later", "/body", "/gone")):
            return None
        return self._reply(request, request.body)

    def _made(self, request: Request, body: bytes, future: asyncio.Future[None]) -> Reply | None:
        """Answer what has been let go."""
        assert future.done()
        if request.path.startswith("/soon-error"):
            raise ValueError(request.path)
        return None if request.path.startswith("/soon-task") else self._reply(request, body)

    async def answer(self, request: Request) -> Reply:
        """Answer the rest."""
        path = request.path
        if path.startswith("/gone"):
            raise ClientDisconnected
        if path.startswith("/later"):
            self.waiting[path] = asyncio.get_running_loop().create_future()
            await self._let_go(path)
            if path.startswith("/later-error"):
                raise ValueError(path)
        body = request.body
        if isinstance(body, bytes):
            return self._reply(request, body)
        if not path.startswith("/body"):
            return self._reply(request, b"?")
        try:
            return self._reply(request, await body.read(2**20))
        except (BadRequest, ClientDisconnected) as problem:
            self.problems.append(problem)
            if isinstance(problem, BadRequest):
                return self.refusal(problem, request.peer)
            raise

    async def _let_go(self, path: str) -> None:
        try:
            await self.waiting[path]
        finally:
            del self.waiting[path]

    def let_go(self, path: str) -> None:
        """Answer the request of *path*, which waits."""
        self.waiting[path].set_result(None)

    def _reply(self, request: Request, body: bytes) -> Reply:
        self.seen.append(Seen(request.method, request.path, body))
        self.peers.add(request.peer)
        stream = self.stream if request.path.startswith("/stream") else None
        reply = Reply(200, b"" if stream else request.path.encode(), self.headers, stream)
        reply.lines = self.lines
        return reply

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Note why."""
        self.refused.append((problem.reason, peer))
        return Reply(400, b"refused")


class Line:
    """A connection that has begun, its transport, and the application that answers."""

    def __init__(
        self, limits: Limits | None = None, *, is_tls: bool = False, is_made: bool = True, has_socket: bool = True
    ) -> None:
        self.app = Script()
        self.state = ListenerState(self.app, limits or Limits())
        self.state.now = BEGIN
        self.state.head_end = HEAD_END
        admitted = self.state.admit("192.0.2.7")
        assert admitted is not None
        self.connection = Connection(self.state, "192.0.2.7:9", admitted.address)
        self.state.connections.add(self.connection)
        self.transport = RecordedTransport(is_tls=is_tls, has_socket=has_socket)
        if is_made:
            self.connection.connection_made(self.transport)

    def receive(self, data: bytes) -> None:
        """Let *data* arrive in one piece."""
        self.connection.data_received(data)

    async def settle(self) -> None:
        """Give the loop many turns."""
        for _ in range(60):
            await asyncio.sleep(0)

    async def talk(self, data: bytes) -> list[tuple[int, bytes]]:
        """Let *data* arrive, and return the answers after many turns of the loop."""
        self.receive(data)
        await self.settle()
        return self.answers()

    def sent(self) -> bytes:
        """Return what was written since this was last asked."""
        data = bytes(self.transport.sent)
        self.transport.sent.clear()
        return data

    def answers(self) -> list[tuple[int, bytes]]:
        """Return the status and the body of each answer that was written since this was last asked."""
        found, data = [], self.sent()
        while data:
            head, _, rest = data.partition(b"\r\n\r\n")
            length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0])
            found.append((int(head.split()[1]), rest[:length]))
            data = rest[length:]
        return found

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and check the timeouts once."""
        self.state.now += seconds
        self.connection.check_timeouts()

    def stop_reading(self, unread_bytes: int) -> None:
        """Let the client read nothing more, with so many bytes written."""
        self.transport.unread_bytes = unread_bytes
        self.connection.pause_writing()

    def read_all(self) -> None:
        """Let the client read what was written."""
        self.transport.unread_bytes = 0
        self.connection.resume_writing()

    def lose(self) -> None:
        """Let the connection end."""
        self.connection.connection_lost(None)

    @property
    def state_of_transport(self) -> str:
        """How the connection was ended by the server, if it was."""
        transport = self.transport
        ends = {"closed": transport.is_closed, "aborted": transport.is_aborted, "ended": transport.has_ended}
        return next((name for name, is_so in ends.items() if is_so), "open")


#: What aborting sets: nothing that the system still holds is sent.
DROP = struct.pack("ii", 1, 0)


def run(talk: Callable[[], Awaitable[None]]) -> None:
    """Run *talk* in a loop of its own."""

    async def bounded() -> None:
        async with asyncio.timeout(HUNG_SECONDS):
            await talk()

    asyncio.run(bounded())
