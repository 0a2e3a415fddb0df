"""An advisory lock for what only one node does at a time; it lasts as long as the session that took it."""

from __future__ import annotations

import logging
from typing import Final

import psycopg

from spotledger.errors import StoreUnavailable
from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.session import Session

#: The lock of the node that audits all the time: "SpoA" as a number.
AUDIT_LOCK: Final = 0x53706F41
#: How long a caller waits for the server.
PATIENCE_SECONDS: Final = 3.0
#: A holder that is silent for this long has frozen: the server ends its session, which releases the lock.
IDLE_SECONDS: Final = 30


_log = logging.getLogger(__name__)


class Claim:
    """
    One lock on the server that takes writes. One thread at a time may use it; calls may block for some seconds.

    The lock ends with the session: when the node ends, however it ends, is cut off, or freezes. After a failover the
    new server does not know the lock, and the first node that asks takes it.
    """

    def __init__(self, connect: Connect, lock: int = AUDIT_LOCK) -> None:
        """Prepare the lock; *connect* makes a connection in autocommit. Nothing is connected yet."""
        self._connect = connect
        self._lock = lock
        self._reader: BoundedReader | None = None
        self._pid: int | None = None

    def take(self) -> bool:
        """
        Try to take the lock; return whether this node holds it now. A node without the lock keeps no connection.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        if self.is_held():
            return True
        self._reader = BoundedReader(self._connect, patience_seconds=PATIENCE_SECONDS)
        try:
            self._pid = self._reader.ask(self._try)
        finally:
            if self._pid is None:
                self.release()
        return self._pid is not None

    def _try(self, session: Session) -> int | None:
        """Return the process id of the session that holds the lock now, or None if another node holds it."""
        session.execute(f"SET idle_session_timeout = '{IDLE_SECONDS}s'")
        try:
            [(has_it,)] = session.execute("SELECT pg_try_advisory_lock($1)", (self._lock,))
        except psycopg.errors.InsufficientPrivilege as error:
            _log.warning("every node audits, because none may take the lock for it: %s", error)
            has_it = True
        [(pid,)] = session.execute("SELECT pg_backend_pid()")
        return pid if has_it else None

    def is_held(self) -> bool:
        """Return whether this node still holds the lock; release it if the session was lost."""
        if self._reader is None:
            return False
        try:
            [(pid,)] = self._reader.ask(lambda session: session.execute("SELECT pg_backend_pid()"))
        except StoreUnavailable:
            pid = None
        # Another session replaced the one that held the lock.
        if pid is None or pid != self._pid:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Release the lock, if this node holds it."""
        reader, self._reader, self._pid = self._reader, None, None
        if reader is not None:
            reader.close()
