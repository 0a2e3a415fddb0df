"""What only one of all nodes does at a time: a lock in the database that lasts as long as the session that took it."""

from __future__ import annotations

from typing import Final

from spotledger.errors import StoreUnavailable
from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.session import Session

#: What the node that audits all the time has locked, "SpoA" as a number.
AUDIT_LOCK: Final = 0x53706F41
#: How long the server may take to answer before it counts as away.
PATIENCE_SECONDS: Final = 3.0
#: A holder that asks for nothing so long has frozen; the server ends its session, and another node may take it.
IDLE_SECONDS: Final = 30


class Claim:
    """
    One lock of the server that takes writes; to be used by one thread at a time, which it holds up for some seconds.

    It is given up with the session: by a node that ends, however it ends, that is cut off, or that froze. A server that
    takes over after a failover knows nothing of it, and whoever asks first has it there.
    """

    def __init__(self, connect: Connect, lock: int = AUDIT_LOCK) -> None:
        """Take what makes a connection in autocommit, as for the key tables; nothing is connected yet."""
        self._connect = connect
        self._lock = lock
        self._reader: BoundedReader | None = None
        self._pid: int | None = None

    def take(self) -> bool:
        """
        Try to take the lock; return whether this node has it now. A node that has not keeps no connection.

        Raises:
            StoreUnavailable: The database is away.
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
        """Return the number of the server's session that has the lock now, or None where another node has it."""
        session.execute(f"SET idle_session_timeout = '{IDLE_SECONDS}s'")
        [(has_it, pid)] = session.execute("SELECT pg_try_advisory_lock($1), pg_backend_pid()", (self._lock,))
        return pid if has_it else None

    def is_held(self) -> bool:
        """Say whether this node still has the lock; what was lost is given up."""
        if self._reader is None:
            return False
        try:
            [(pid,)] = self._reader.ask(lambda session: session.execute("SELECT pg_backend_pid()"))
        except StoreUnavailable:
            pid = None
        # Another session is one that was made after the first had been lost, and the lock with it.
        if pid is None or pid != self._pid:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give it up, if this node has it."""
        reader, self._reader, self._pid = self._reader, None, None
        if reader is not None:
            reader.close()
