"""
The operator listener: HTTP/1.1 on the event loop itself, so that a request crosses no thread.

The public listener's server reads and writes in a thread of its own and hands each request over. For a call that only
reads that is well spent; beside the writer, whose groups need the interpreter, it costs more than the call's own work.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from email.utils import formatdate
from typing import Final

from spotledger.http.h1.connection import Connection, ListenerState
from spotledger.http.h1.request import Answers

#: Connections that wait to be taken, and connections that are open.
BACKLOG: Final = 1024
OPEN_CONNECTIONS: Final = 10_000
#: How often connections are looked at for being silent too long.
LOOK_SECONDS: Final = 1.0
_STOP_LOOK_SECONDS: Final = 0.01
_log = logging.getLogger("spotledger.operator")


class OperatorServer:
    """
    Serve *app* on a socket.

    Args:
        app: What answers.
        listener: Bound and listening; it stays open when the server stops.
    """

    def __init__(self, app: Answers, listener: socket.socket) -> None:
        self._state = ListenerState(app)
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to take connections."""
        loop = asyncio.get_running_loop()
        self._tell_time()
        self._looking = loop.create_task(self._look())
        self._server = await loop.create_server(self._connection, sock=self._listener.dup(), backlog=BACKLOG)

    async def stop(self, seconds: float) -> bool:
        """
        Take no more connections, answer what was asked, and close the others.

        Args:
            seconds: How long that may take; what is late is cut off.

        Returns:
            Whether all was answered.
        """
        assert self._server is not None  # noqa: S101
        assert self._looking is not None  # noqa: S101
        self._state.stopping = True
        self._server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for connection in [*self._state.connections]:
            connection.stop()
        while self._state.connections and loop.time() < until:
            await asyncio.sleep(_STOP_LOOK_SECONDS)
        late = [*self._state.connections]
        for connection in late:
            connection.cut()
        self._looking.cancel()
        await asyncio.sleep(0)
        return not late

    def _connection(self) -> asyncio.Protocol:
        if len(self._state.connections) >= OPEN_CONNECTIONS or self._state.stopping:
            return _TurnedAway()
        return Connection(self._state)

    async def _look(self) -> None:
        """Keep the time, and close connections that were silent for too long."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self._tell_time()
            for connection in [*self._state.connections]:
                connection.look()

    def _tell_time(self) -> None:
        self._state.now = asyncio.get_running_loop().time()
        self._state.head_end = b"date: %b\r\n\r\n" % formatdate(usegmt=True).encode()


class _TurnedAway(asyncio.Protocol):
    """A connection beyond those that may be open: it is closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close it."""
        transport.close()
