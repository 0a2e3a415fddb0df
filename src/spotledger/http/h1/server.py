"""
An HTTP/1.1 server on the event loop itself, so that no request changes threads.

A server that reads and writes in a thread of its own hands each request over to the loop. Beside work that needs the
interpreter, such as deciding groups of writes, that costs more than a short call itself.
"""

from __future__ import annotations

import asyncio
import socket
from email.utils import formatdate
from typing import Final

from spotledger.http.h1.connection import Connection, ListenerState
from spotledger.http.h1.request import Application

#: Connections that wait to be accepted, and connections that are open, at most.
BACKLOG: Final = 1024
OPEN_CONNECTIONS: Final = 10_000
#: How often timeouts are checked.
CHECK_SECONDS: Final = 1.0
_STOP_CHECK_SECONDS: Final = 0.01


class HttpServer:
    """
    Serve *app* on a socket.

    Args:
        app: The application that answers.
        listener: A socket that is bound and listening; it stays open when the server stops.
    """

    def __init__(self, app: Application, listener: socket.socket) -> None:
        self._state = ListenerState(app)
        self._listener = listener
        self._server: asyncio.Server | None = None
        self._checking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start accepting connections."""
        loop = asyncio.get_running_loop()
        self._renew_time()
        self._checking = loop.create_task(self._check_timeouts())
        self._server = await loop.create_server(self._connection, sock=self._listener.dup(), backlog=BACKLOG)

    async def stop(self, seconds: float) -> bool:
        """
        Accept no more connections, answer the requests in flight, and close the idle connections.

        Args:
            seconds: How long that may take; then the remaining connections are cut off.

        Returns:
            Whether every request was answered.
        """
        assert self._server is not None  # noqa: S101
        assert self._checking is not None  # noqa: S101
        self._state.stopping = True
        self._server.close()
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        for connection in [*self._state.connections]:
            connection.close_when_idle()
        while self._state.connections and loop.time() < until:
            await asyncio.sleep(_STOP_CHECK_SECONDS)
        late = [*self._state.connections]
        for connection in late:
            connection.abort()
        self._checking.cancel()
        await asyncio.sleep(0)
        return not late

    def _connection(self) -> asyncio.Protocol:
        if len(self._state.connections) >= OPEN_CONNECTIONS or self._state.stopping:
            return _Rejected()
        return Connection(self._state)

    async def _check_timeouts(self) -> None:
        """Keep the time, and close connections that have been silent for too long."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._renew_time()
            for connection in [*self._state.connections]:
                connection.check_timeouts()

    def _renew_time(self) -> None:
        self._state.now = asyncio.get_running_loop().time()
        self._state.head_end = b"date: %b\r\n\r\n" % formatdate(usegmt=True).encode()


class _Rejected(asyncio.Protocol):
    """A connection above the limit: it is closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Close the connection."""
        transport.close()
