"""
A read connection with a thread of its own: who asks waits for the server for a bounded time, and not at all once it is
known to be away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeAlias, TypeVar

import psycopg

from spotledger.errors import SpotledgerError, StoreUnavailable
from spotledger.storage.postgres.connection import Connection, translated

T = TypeVar("T")
Connect: TypeAlias = Callable[[], Connection]

#: How long one who asks is held up at most, even if the server has frozen.
PATIENCE_SECONDS: Final = 1.0
#: How long the thread waits between two attempts to connect.
CONNECT_PAUSE_SECONDS: Final = 0.3
CLOSE_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class BoundedReader:
    """
    Reads from a server that may go away; to be used by any thread.

    A read whose connection broke is done again on a new one. While there is none, who asks is told so at once, and the
    thread goes on trying to connect.
    """

    def __init__(self, connect: Connect, name: str, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """
        Connect, and begin.

        Raises:
            StoreUnavailable: There is no connection now.
        """
        self._connect = connect
        self._patience_seconds = patience_seconds
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[Any], Any]] | None] = queue.SimpleQueue()
        self._connection: Connection | None = connect()
        self._left_behind: Future[Any] | None = None
        self._closed = threading.Event()
        #: Held while the connection is closed, or broken off by another thread.
        self._guard = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection, and nobody had to be sent away whose question is still open."""
        left_behind = self._left_behind
        return self._connection is not None and (left_behind is None or left_behind.done())

    def ask(self, read: Callable[[Connection], T]) -> T:
        """
        Return what *read* returns; it is given the connection, and may be called twice.

        Raises:
            StoreUnavailable: There is no connection, or no answer came in time.
        """
        if not self.is_up:
            raise StoreUnavailable("The database is away; try again.")
        answer: Future[T] = Future()
        self._jobs.put((answer, read))
        try:
            return answer.result(self._patience_seconds)
        except TimeoutError:
            self._left_behind = answer
            with self._guard:
                if self._connection is not None:
                    break_off(self._connection)
            raise StoreUnavailable("The database did not answer in time; try again.") from None

    def close(self) -> None:
        """End the thread and the connection."""
        self._closed.set()
        self._jobs.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        while not self._closed.is_set():
            if self._connection is None and not self._connected_again():
                self._closed.wait(CONNECT_PAUSE_SECONDS)
                continue
            job = self._jobs.get()
            if job is not None:
                self._do(*job)
        while not self._jobs.empty():
            left = self._jobs.get()
            if left is not None:
                left[0].set_exception(StoreUnavailable("The service is stopping."))
        self._drop()

    def _do(self, answer: Future[Any], read: Callable[[Any], Any]) -> None:
        for is_last in (False, True):
            try:
                if self._connection is None:
                    self._connection = self._connect()
                with translated("read"):
                    found = read(self._connection)
            except BaseException as error:  # noqa: BLE001 - whoever asked is told, whatever it is
                broken = self._connection is None or self._connection.broken or self._connection.closed
                if broken:
                    self._drop()
                if is_last or not broken:
                    answer.set_exception(error)
                    return
            else:
                answer.set_result(found)
                return

    def _connected_again(self) -> bool:
        try:
            self._connection = self._connect()
        except SpotledgerError as error:
            _log.debug("no connection: %s", error)
            return False
        return True

    def _drop(self) -> None:
        with self._guard:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()


def break_off(connection: Connection) -> None:
    """
    Let whoever waits for the server on *connection*, in another thread, find it broken at once.

    A server that has frozen still takes part in the network, so no time-out of the network ends such a wait.
    """
    with (
        contextlib.suppress(OSError, psycopg.OperationalError),
        socket.socket(fileno=os.dup(connection.fileno())) as it,
    ):
        it.shutdown(socket.SHUT_RDWR)
