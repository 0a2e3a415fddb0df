"""
An HTTP/1.1 server on the event loop itself, so that no request changes threads.

A server that reads and writes in a thread of its own hands each request over to the loop. Beside work that needs the
interpreter, such as deciding groups of writes, that costs more than a short call itself.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from email.utils import formatdate
from typing import Final

from spotledger.http.h1.connection import Connection
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import Application
from spotledger.http.h1.shares import ConnectionShares
from spotledger.http.h1.state import ListenerState
from spotledger.http.h1.tls import Certificate

#: Connections that are accepted before others have a turn.
ACCEPTED_AT_ONCE: Final = 32
#: How long a worker that has more connections than another leaves a new one to that one.
YIELD_SECONDS: Final = 0.002
#: How long a stop waits for idle clients to end TLS too; many do not read while they are idle.
GOODBYE_SECONDS: Final = 0.5
#: How long nothing is accepted after the system had no descriptor or memory for a connection.
EXHAUSTED_SECONDS: Final = 0.5
#: Connections whose timeouts are checked before others have a turn.
_CHECKED_AT_ONCE: Final = 500
_STOP_CHECK_SECONDS: Final = 0.01
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_log = logging.getLogger("spotledger.http")


class HttpServer:
    """
    Serve *app* on a socket.

    Args:
        app: The application that answers.
        listener: A socket that is bound and listening; it stays open when the server stops.
        limits: Every bound.
        tls: The certificate for TLS; None: the connections are not encrypted.
        shares: The connections of all workers that accept from *listener*; None: there is one.
    """

    def __init__(
        self,
        app: Application,
        listener: socket.socket,
        limits: Limits | None = None,
        *,
        tls: Certificate | None = None,
        shares: ConnectionShares | None = None,
    ) -> None:
        self._state = ListenerState(app, limits or Limits(), shares)
        self._listener = listener
        self._tls = tls
        self._shares = shares
        self._accepting: socket.socket
        self._opening: set[asyncio.Task[None]] = set()
        self._checking: asyncio.Task[None]
        self._resuming: asyncio.TimerHandle | None = None

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return self._state.open

    async def start(self) -> None:
        """Start accepting connections."""
        self._loop = asyncio.get_running_loop()
        self._renew_time()
        self._checking = self._loop.create_task(self._check_timeouts())
        self._accepting = self._listener.dup()
        self._accepting.setblocking(False)
        self._resume()

    async def stop(self, seconds: float) -> bool:
        """
        Accept no more connections, answer the requests in flight, and close the idle connections.

        Args:
            seconds: How long that may take; then the remaining connections are cut off.

        Returns:
            Whether every request was answered.
        """
        self._state.stopping = True
        self._pause()
        self._accepting.close()
        began = self._loop.time()
        for connection in [*self._state.connections]:
            connection.close_when_idle()
        while self._state.connections and (passed := self._loop.time() - began) < seconds:
            if passed > GOODBYE_SECONDS and all(connection.is_settled for connection in self._state.connections):
                break
            await asyncio.sleep(_STOP_CHECK_SECONDS)
        left = [*self._state.connections]
        is_settled = all(connection.is_settled for connection in left)
        for connection in left:
            connection.abort()
        self._checking.cancel()
        await asyncio.sleep(0)
        return is_settled

    # --- accepting -------------------------------------------------------------------------------------

    def _resume(self) -> None:
        if not self._state.stopping:
            self._loop.add_reader(self._accepting, self._accept)

    def _pause(self, seconds: float | None = None) -> None:
        """Accept nothing for *seconds*; None: any more."""
        self._loop.remove_reader(self._accepting)
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None
        if seconds is not None:
            self._resuming = self._loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        """Accept what waits, unless another worker has fewer connections and is quicker."""
        shares = self._shares
        if shares is not None and shares.is_ahead(self._state.open):
            self._pause()
            self._resuming = self._loop.call_later(YIELD_SECONDS, self._accept_late)
            return
        self._accept_some(ACCEPTED_AT_ONCE if shares is None else 1)

    def _accept_late(self) -> None:
        """Accept one connection that no other worker has taken meanwhile."""
        self._resuming = None
        if not self._state.stopping:
            self._accept_some(1)
            if self._resuming is None:
                self._resume()

    def _accept_some(self, most: int) -> None:
        for _ in range(most):
            try:
                accepted, peer = self._accepting.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as problem:
                if problem.errno not in _EXHAUSTED:
                    raise
                _log.warning("no connection could be accepted: %s", problem.strerror)
                self._pause(EXHAUSTED_SECONDS)
                return
            self._open(accepted, peer[0], peer[1])

    def _open(self, accepted: socket.socket, host: str, port: int) -> None:
        admitted = self._state.admit(host)
        if admitted is None:
            accepted.close()
            return
        peer = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        connection = Connection(self._state, peer, admitted.address)
        self._state.connections.add(connection)
        task = self._loop.create_task(self._opened(accepted, connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _opened(self, accepted: socket.socket, connection: Connection) -> None:
        """Hand *accepted* to the loop; with TLS, after the handshake."""
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is None:
                await self._loop.connect_accepted_socket(lambda: connection, accepted)
            else:
                connection.handshake = accepted
                seconds = self._state.limits.handshake_seconds
                await self._loop.connect_accepted_socket(
                    lambda: connection,
                    accepted,
                    ssl=self._tls.context,
                    ssl_handshake_timeout=seconds,
                    ssl_shutdown_timeout=seconds,
                )
        except (OSError, asyncio.CancelledError):
            pass  # the client has gone, or speaks no TLS, or the server stops
        finally:
            if not connection.was_made:
                self._state.release(connection)
                accepted.close()

    # --- times -----------------------------------------------------------------------------------------

    async def _check_timeouts(self) -> None:
        """Keep the time, and close connections that have been silent for too long."""
        while True:
            await asyncio.sleep(self._state.limits.check_seconds)
            self._renew_time()
            for number, connection in enumerate([*self._state.connections], 1):
                connection.check_timeouts()
                if number % _CHECKED_AT_ONCE == 0:
                    await asyncio.sleep(0)

    def _renew_time(self) -> None:
        self._state.now = self._loop.time()
        self._state.head_end = b"date: %b\r\n\r\n" % formatdate(usegmt=True).encode()
