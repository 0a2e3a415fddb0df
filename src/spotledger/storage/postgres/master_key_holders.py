"""
Which master keys each process of a fleet holds, so that a rotation waits until all hold the next one.

A process announces the fingerprints every few seconds, in a thread of its own and on a connection of its own. One that
was silent for longer than `LIVE_SECONDS` counts as down. What it announces says nothing about the keys themselves.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Final

import psycopg

from spotledger.errors import SpotledgerError
from spotledger.storage.postgres.bounded_reader import Connect
from spotledger.storage.postgres.connection import Connection, translated

#: How often a process announces what it holds.
ANNOUNCE_SECONDS: Final = 3.0
#: After so long without an announcement a process counts as down, by the server's clock.
LIVE_SECONDS: Final = 30.0
#: Rows of processes that are down this long are removed.
_GONE: Final = "1 day"

_ANNOUNCE: Final = """
INSERT INTO master_key_holders (holder, place, fingerprints, announced) VALUES (%s, %s, %s, clock_timestamp())
ON CONFLICT (holder) DO UPDATE SET fingerprints = excluded.fingerprints, announced = excluded.announced
"""
#: Read within the transaction of the rotation, which no announcement overlaps because of the lock.
LOCK_HOLDERS: Final = "LOCK TABLE master_key_holders IN SHARE ROW EXCLUSIVE MODE"
HOLDERS: Final = (
    "SELECT place, fingerprints, floor(extract(epoch FROM announced) * 1000)::bigint FROM master_key_holders"
    f" WHERE announced > clock_timestamp() - interval '{LIVE_SECONDS} seconds' ORDER BY place, holder"
)
_log = logging.getLogger("spotledger.keys")


class Announcer:
    """Announces the master keys of this process until it is closed."""

    def __init__(self, connect: Connect, place: str, fingerprints: Callable[[], Sequence[str]]) -> None:
        """
        Announce for the first time, and go on in a thread.

        Args:
            connect: Makes a connection in autocommit to the server that takes writes.
            place: What tells people which process this is.
            fingerprints: Returns those of the keys that it holds.

        Raises:
            StoreUnavailable: The database cannot be reached, or a rotation goes on; start again.
        """
        self._connect = connect
        self._place = place
        self._fingerprints = fingerprints
        self._holder = str(uuid.uuid4())
        self._connection: Connection | None = None
        self._using = threading.Lock()
        self._ended = threading.Event()
        self._said: str | None = None
        self.announce()
        self._thread = threading.Thread(target=self._run, name="announce master keys", daemon=True)
        self._thread.start()

    def announce(self) -> None:
        """Announce what this process holds now; raises StoreUnavailable."""
        with self._using, translated("written"):
            try:
                self._tell(self._connected())
            except psycopg.Error:
                self._drop()
                raise

    def close(self) -> None:
        """Stop, and take the announcement away if the database answers."""
        self._ended.set()
        self._thread.join()
        with self._using:
            try:
                if self._connection is not None:
                    self._connection.execute("DELETE FROM master_key_holders WHERE holder = %s", (self._holder,))
            except psycopg.Error as problem:
                _log.debug("the announcement of master keys stays until it is too old: %s", problem)
            finally:
                self._drop()

    def _run(self) -> None:
        while not self._ended.wait(ANNOUNCE_SECONDS):
            try:
                self.announce()
            except SpotledgerError as problem:
                _log.debug("the master keys of this node could not be announced: %s", problem)
            except Exception as problem:  # noqa: BLE001 - no error may end the announcements unnoticed
                _log.error("the master keys of this node could not be announced: %s; retrying", problem)

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
            # Nobody waits for a standby to have it.
            self._connection.execute("SET synchronous_commit = local")
        return self._connection

    def _tell(self, connection: Connection) -> None:
        held = list(self._fingerprints())
        connection.execute(_ANNOUNCE, (self._holder, self._place, held))
        connection.execute(f"DELETE FROM master_key_holders WHERE announced < now() - interval '{_GONE}'".encode())
        found = connection.execute("SELECT fingerprint FROM master_key_mark").fetchall()
        missing = next((str(row[0]) for row in found if row[0] not in held), None)
        if missing is not None and missing != self._said:
            _log.error(
                "the master key was rotated: the secrets are sealed with %s, which this node does not have. Access keys"
                " that are not in its memory get 503; give it that key and start it again",
                missing,
            )
        self._said = missing

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def place_of_process(folder: str, worker: int) -> str:
    """Return what tells people which process of a fleet this is."""
    return f"{socket.gethostname()} {folder} worker {worker} (process {os.getpid()})"
