"""Following the revocations of all nodes: by LISTEN, and by polling in case a notice is lost."""

from __future__ import annotations

from typing import Final, NamedTuple

from spotledger.clock import steady_s
from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.connection import Connection
from spotledger.storage.postgres.keys import CHANGES_CHANNEL
from spotledger.storage.postgres.session import Session

#: How long to wait for a notice before polling.
POLL_SECONDS: Final = 0.2


class Revocations(NamedTuple):
    """What changed, as of the time *at_s* (`steady_s`) or later."""

    at_s: float
    #: The last entry of the journal at that time.
    head_seq: int
    #: Access keys that were revoked since the last call.
    accesskeys: tuple[str, ...]
    #: Whether an operator token was revoked.
    tokens: bool
    #: Whether everything in memory may be stale.
    everything: bool


class KeyChanges:
    """Follows the revocations of all nodes. One thread may use it; a call may block for about a second."""

    def __init__(self, connect: Connect) -> None:
        """Connect; *connect* makes a connection in autocommit."""

        def listening() -> Connection:
            connection = connect()
            connection.execute(f"LISTEN {CHANGES_CHANNEL}")
            return connection

        self._reader = BoundedReader(listening)
        self._seen: int | None = None

    def wait(self) -> Revocations:
        """
        Wait for a notice for a fraction of a second at most, and return what was revoked since the last call.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        version, heard = self._reader.ask(self._look)
        self._seen = version
        return heard

    def close(self) -> None:
        """Close the connection."""
        self._reader.close()

    def _look(self, session: Session) -> tuple[int, Revocations]:
        seen = self._seen
        if seen is not None and not session.notices() and session.wait_for_notice(POLL_SECONDS):
            session.notices()
        at_s = steady_s()
        [(version, head)] = session.execute("SELECT version, coalesce((SELECT seq FROM head), 0) FROM key_version")
        # A lower version: another server took over, and may lack the last revocations.
        if seen is None or version < seen:
            return version, Revocations(at_s, head, (), tokens=True, everything=True)
        if version == seen:
            return version, Revocations(at_s, head, (), tokens=False, everything=False)
        keys = session.execute("SELECT accesskey FROM access_keys WHERE revoked_change > $1", (seen,))
        tokens = session.execute("SELECT EXISTS (SELECT FROM operator_tokens WHERE revoked_change > $1)", (seen,))
        return version, Revocations(at_s, head, tuple(row[0] for row in keys), tokens=tokens[0][0], everything=False)
