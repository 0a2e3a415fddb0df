"""What was revoked by any node, soon after it was: LISTEN, and a poll behind it for what a notice did not reach."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.connection import Connection
from spotledger.storage.postgres.keys import CHANGES_CHANNEL
from spotledger.storage.postgres.session import Session

#: How long is waited for a notice before it is looked without one.
POLL_SECONDS: Final = 0.2


class Revocations(NamedTuple):
    """What the database said: the state of things as it was at *at_s* (monotonic) or later."""

    at_s: float
    #: The last entry of the journal then.
    head_seq: int
    #: Access keys that were revoked since the last time.
    accesskeys: tuple[str, ...]
    #: Whether an operator token was.
    tokens: bool
    #: Whether everything that is remembered has to be looked up again.
    everything: bool


class KeyChanges:
    """Follows the revocations of all nodes; to be used by one thread, which it may hold up for a second or so."""

    def __init__(self, connect: Connect) -> None:
        """Connect; *connect* is as for the key tables."""

        def listening() -> Connection:
            connection = connect()
            connection.execute(f"LISTEN {CHANGES_CHANNEL}")
            return connection

        self._reader = BoundedReader(listening)
        self._seen: int | None = None

    def wait(self) -> Revocations:
        """
        Wait for a notice, for a fraction of a second at most, then look; say what has changed since the last time.

        Raises:
            StoreUnavailable: The database is away.
        """
        version, heard = self._reader.ask(self._look)
        self._seen = version
        return heard

    def close(self) -> None:
        """Let go of the connection."""
        self._reader.close()

    def _look(self, session: Session) -> tuple[int, Revocations]:
        seen = self._seen
        if seen is not None and not session.notices() and session.heard(POLL_SECONDS):
            session.notices()
        at_s = time.monotonic()
        [(version, head)] = session.execute("SELECT version, coalesce((SELECT seq FROM head), 0) FROM key_version")
        # A number that went back: another server took over, and may not have had the last of them.
        if seen is None or version < seen:
            return version, Revocations(at_s, head, (), tokens=True, everything=True)
        if version == seen:
            return version, Revocations(at_s, head, (), tokens=False, everything=False)
        keys = session.execute("SELECT accesskey FROM access_keys WHERE revoked_change > $1", (seen,))
        tokens = session.execute("SELECT EXISTS (SELECT FROM operator_tokens WHERE revoked_change > $1)", (seen,))
        return version, Revocations(at_s, head, tuple(row[0] for row in keys), tokens=tokens[0][0], everything=False)
