"""
The connection for reads, made anew beside whoever asks: the event loop is among those, and must not wait for a server
that is away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import psycopg

from spotledger.errors import SpotledgerError, StoreUnavailable
from spotledger.storage.postgres.session import Session

#: How long one who asks waits for a new connection, when the one that was there has just been lost.
CONNECT_WAIT_SECONDS: Final = 1.0
#: How long no new connection is tried after one failed.
AWAY_SECONDS: Final = 0.3

_log = logging.getLogger(__name__)


class Reading:
    """A session that is replaced when it is lost; :attr:`lock` is held during one round trip."""

    def __init__(self, session: Session, connect: Callable[[], Session]) -> None:
        """Begin with *session*; *connect* makes another one, or raises an error of ours or of the driver."""
        self._session: Session | None = session
        self._connect = connect
        self.lock = threading.Lock()
        self._guard = threading.Lock()
        self._connecting: threading.Event | None = None
        self._is_away = False
        self._away_until = 0.0
        self._closed = False

    def ready(self) -> None:
        """
        See to it that there is a session, before its lock is taken.

        Waits for a new one only if the last was there a moment ago; while the server is known to be away, it is asked
        for beside the caller, who is told at once.

        Raises:
            StoreUnavailable: There is none.
        """
        session = self._session
        if session is not None and session.is_open:
            return
        waited = self._connect_beside()
        if waited is None or self._is_away or not waited.wait(CONNECT_WAIT_SECONDS) or self._session is None:
            self._is_away = True
            raise StoreUnavailable("the ledger could not be read: its server is away")

    def session(self) -> Session:
        """
        Return the session; only while its lock is held.

        Raises:
            StoreUnavailable: It was lost meanwhile, or the ledger is closed.
        """
        if self._closed:
            raise StoreUnavailable("the ledger is closed; open it again")
        if self._session is None:
            raise StoreUnavailable("the ledger could not be read: the connection to its server was lost; try again")
        return self._session

    def drop(self) -> None:
        """Let go of a session that is lost; only while its lock is held."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def is_back(self) -> None:
        """Take over that the server was heard of, on another connection: it is worth waiting for again."""
        self._is_away = False

    def close(self) -> None:
        """Let go of the server."""
        self._closed = True
        with self.lock:
            self.drop()

    def _connect_beside(self) -> threading.Event | None:
        """Begin to connect in a thread of its own, if none is at it; return what says when it has ended."""
        with self._guard:
            if self._closed:
                raise StoreUnavailable("the ledger is closed; open it again")
            if self._connecting is None and time.monotonic() >= self._away_until:
                self._connecting = threading.Event()
                thread = threading.Thread(target=self._run, args=(self._connecting,), name="connect", daemon=True)
                thread.start()
            return self._connecting

    def _run(self, ended: threading.Event) -> None:
        try:
            session = self._connect()
        except (psycopg.Error, SpotledgerError) as error:
            _log.debug("no connection for reads: %s", error)
            self._away_until = time.monotonic() + AWAY_SECONDS
        else:
            with self.lock:
                self.drop()
                if self._closed:
                    session.close()
                else:
                    self._session, self._is_away = session, False
        finally:
            with self._guard:
                self._connecting = None
            ended.set()
