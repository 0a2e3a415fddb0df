"""A session for reads that any thread may use, the event loop's too: no caller waits long, whatever the server does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias, TypeVar

import psycopg

from spotledger.errors import SpotledgerError, StoreUnavailable
from spotledger.storage.postgres.connection import Connection, TimedOut, is_lost, translate, translated
from spotledger.storage.postgres.session import Session, Statement
from spotledger.storage.seen_head import NotCaughtUp, OtherHistory

T = TypeVar("T")
Connect: TypeAlias = Callable[[], Connection]

#: How long a caller waits for an answer, even if the server has frozen.
PATIENCE_SECONDS: Final = 1.0
#: How long a caller waits for a new connection when the last one has just been lost.
CONNECT_WAIT_SECONDS: Final = 1.0
#: How long after a failed attempt to connect no other is made.
AWAY_SECONDS: Final = 0.3

_log = logging.getLogger(__name__)


class BoundedReader:
    """
    A session that is replaced when it is lost.

    A caller makes the round trip itself. A read whose connection broke is repeated once on a new one, which a thread
    makes meanwhile. Once the server is known to be away, callers get an error at once, and each starts an attempt to
    connect if none is under way.
    """

    def __init__(
        self, connect: Connect, statements: Sequence[Statement] = (), patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        """
        Connect.

        Args:
            connect: Makes a connection in autocommit, or raises StoreUnavailable or an error of the driver.
            statements: The statements to prepare on each connection.
            patience_seconds: How long one round trip may take before the connection counts as lost.

        Raises:
            StoreUnavailable: No connection could be made.
        """
        self._connect = connect
        self._statements = statements
        self._patience_seconds = patience_seconds
        #: Held during a round trip, and while the session is replaced.
        self._lock = threading.Lock()
        #: Guards the start of an attempt to connect.
        self._guard = threading.Lock()
        self._connecting: threading.Event | None = None
        self._is_away = False
        #: Why the last attempt to connect failed, where that is more than that the server is away.
        self._refusal: StoreUnavailable | None = None
        self._away_until = 0.0
        self._closed = False
        self._session: Session | None = self._connected()

    @property
    def is_up(self) -> bool:
        """Whether there is a connection that is not known to be lost."""
        session = self._session
        return session is not None and session.is_open

    def ask(self, read: Callable[[Session], T]) -> T:
        """
        Return what *read* returns; it is given the session, and may be called twice.

        Raises:
            StoreUnavailable: There is no connection, or no answer came in time.
            LedgerCorrupt: The server found its files damaged.
        """
        for is_last in (False, True):
            self._wait_for_session()
            if not self._lock.acquire(timeout=self._patience_seconds):
                raise StoreUnavailable("the ledger could not be read: its server is slow to answer; try again")
            try:
                return read(self._current())
            except psycopg.Error as error:
                self._drop()
                if isinstance(error, TimedOut):
                    self._is_away = True
                    self._start_connecting()
                elif is_lost(error) and not is_last:
                    continue
                raise translate(error, "read") from error
            except OtherHistory:
                # Another host of the address may be the right server.
                self._drop()
                if is_last:
                    raise
            finally:
                self._lock.release()
        raise AssertionError("unreachable")

    def note_answer(self) -> None:
        """Note that the server has answered on another connection: waiting for a new one is worth it again."""
        self._is_away = False

    def close(self) -> None:
        """Close the connection; every later read raises StoreUnavailable."""
        self._closed = True
        with self._lock:
            self._drop()

    def _wait_for_session(self) -> None:
        """
        Wait for a session, unless the server is known to be away.

        Raises:
            StoreUnavailable: There is none.
        """
        if self.is_up:
            return
        attempt = self._start_connecting()
        if attempt is None or self._is_away or not attempt.wait(CONNECT_WAIT_SECONDS) or self._session is None:
            self._is_away = True
            if self._refusal is not None:
                raise StoreUnavailable(f"the ledger could not be read: {self._refusal.message}")
            raise StoreUnavailable("the ledger could not be read: its server is away")

    def _current(self) -> Session:
        """Return the session; the lock is held."""
        if self._closed:
            raise StoreUnavailable("the ledger is closed; open it again")
        if self._session is None:
            raise StoreUnavailable("the ledger could not be read: the connection to its server was lost; try again")
        return self._session

    def _drop(self) -> None:
        """Close the session; the lock is held."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _connected(self) -> Session:
        with translated("reached"):
            return Session(self._connect(), self._statements, self._patience_seconds)

    def _start_connecting(self) -> threading.Event | None:
        """Start an attempt to connect unless one is under way or failed a moment ago; return what its end sets."""
        with self._guard:
            if self._closed:
                raise StoreUnavailable("the ledger is closed; open it again")
            if self._connecting is None and time.monotonic() >= self._away_until:
                self._connecting = threading.Event()
                threading.Thread(target=self._replace, args=(self._connecting,), name="connect", daemon=True).start()
            return self._connecting

    def _replace(self, ended: threading.Event) -> None:
        try:
            session = self._connected()
        except SpotledgerError as error:
            _log.debug("no connection for reads: %s", error)
            self._refusal = error if isinstance(error, (OtherHistory, NotCaughtUp)) else None
            self._away_until = time.monotonic() + AWAY_SECONDS
        else:
            with self._lock:
                self._drop()
                if self._closed:
                    session.close()
                else:
                    self._session, self._is_away, self._refusal = session, False, None
        finally:
            with self._guard:
                self._connecting = None
            ended.set()
