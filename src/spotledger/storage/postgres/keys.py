"""
Access keys, operator tokens and the idempotency keys of their writes, in PostgreSQL.

A write locks the row of ``key_version`` first, so the writes of all nodes are serialized, and each sees the earlier
ones. Each has a session of its own, so none waits for an answer that another one waits for. Every revocation increments
the version and notifies the listeners. :class:`KeyChanges` follows the revocations of all nodes: by LISTEN, and by
polling in case a notice is lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import psycopg

from spotledger.clock import steady_s
from spotledger.errors import StoreUnavailable
from spotledger.storage.access_key_rows import KeyTables
from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.connection import Connection, translated
from spotledger.storage.postgres.session import Session
from spotledger.storage.postgres.statements import NOTIFY_TEXT, STANDBY_THERE

CHANGES_CHANNEL: Final = "spotledger_keys"
#: How long a write may take, waiting for those of other nodes and for a standby included.
WRITE_SECONDS: Final = 8.0
#: Sessions that are kept for the next write.
SESSIONS_KEPT: Final = 2
_SERVER_MS: Final = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
#: How long to wait for a notice before polling.
POLL_SECONDS: Final = 0.2
_NOT_CONFIRMED: Final = (
    "the standby did not confirm a change of access keys or tokens; try again with the same idempotency key"
)


class _Writing(threading.local):
    """The transaction of a thread, if it has one."""

    session: Session | None = None
    #: Whether the others are to be notified of a revocation once it is committed.
    revokes = False
    #: What the session would have executed by now if nothing was changed.
    executed = 0


class PostgresKeyTables(KeyTables):
    """
    The tables of access keys and tokens.

    Any thread may read, including that of the event loop: a read waits for a bounded time. Writes wait for the server,
    so make them in another thread than the loop's.
    """

    def __init__(self, connect: Connect, *, requires_standby: bool = False) -> None:
        """
        Connect.

        Args:
            connect: Makes a connection in autocommit to the server that takes writes, or raises StoreUnavailable.
            requires_standby: Refuse to write while no synchronous standby is connected to the server.
        """
        super().__init__()
        self._connect = connect
        self._requires_standby = requires_standby
        self._reader = BoundedReader(connect)
        self._writing = _Writing()
        #: Sessions that no transaction uses.
        self._idle: deque[Session] = deque()

    def close(self) -> None:
        """Close the connections; no transaction may be going on."""
        self._reader.close()
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def together(self) -> Iterator[Session]:
        """
        Make all writes of a ``with`` block one transaction; an exception that leaves the block rolls it back.

        Raises:
            StoreUnavailable: It could not be done. If the connection broke at the commit, or the standby did not
                confirm it, it may have been done: a retry with the same idempotency key finds out.
        """
        writing = self._writing
        if writing.session is not None:
            yield writing.session
            return
        until = time.monotonic() + WRITE_SECONDS
        session = self._begun(until)
        writing.session, writing.executed, writing.revokes = session, session.executed, False
        try:
            with translated("written"):
                yield session
                self._end(session, until)
        except BaseException:
            with suppress(psycopg.Error):
                session.execute("ROLLBACK")
            raise
        finally:
            writing.session = None
            self._keep(session)

    def _begun(self, until: float) -> Session:
        """Return a session with a transaction begun that excludes the writes of other nodes, by the time *until*."""
        while self._idle:
            session = self._idle.pop()
            try:
                return self._begin(session, until)
            except StoreUnavailable:
                if session.is_open:
                    raise
                # The connection broke while it was idle.
        with translated("written"):
            session = Session(self._connect(), (), WRITE_SECONDS)
        return self._begin(session, until)

    def _begin(self, session: Session, until: float) -> Session:
        try:
            with translated("written"):
                session.patience_seconds = max(0.1, until - time.monotonic())
                session.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                session.execute("SELECT version FROM key_version WHERE id = 1 FOR UPDATE")
        except BaseException:
            with suppress(psycopg.Error):
                session.execute("ROLLBACK")
            self._keep(session)
            raise
        return session

    def _end(self, session: Session, until: float) -> None:
        """Commit what was changed, and find out whether a standby has it that the server waits for."""
        if session.executed == self._writing.executed:
            session.execute("ROLLBACK")  # a commit would wait for the standby, because a row was locked
            return
        session.patience_seconds = max(0.1, until - time.monotonic())
        if self._requires_standby:
            session.execute(STANDBY_THERE.text)
        session.execute("COMMIT")
        if session.take_warning():
            raise StoreUnavailable(_NOT_CONFIRMED)
        if self._writing.revokes:
            with suppress(psycopg.Error):  # the others poll as well
                session.execute(NOTIFY_TEXT.format(f"'{CHANGES_CHANNEL}'"), ("",))

    def _keep(self, session: Session) -> None:
        """Keep *session* for the next write, or close it if there are enough."""
        if session.is_open and len(self._idle) < SESSIONS_KEPT:
            session.patience_seconds = WRITE_SECONDS
            self._idle.append(session)
        else:
            session.close()

    def server_ms(self) -> int:
        """Return the time of the server, in ms since 1970."""
        [(now,)] = self.rows(f"SELECT {_SERVER_MS}")
        return int(now)

    def trust_clock(self) -> None:
        """Tell all nodes that the clock of the server is right, as an operator says."""
        self.write(
            "INSERT INTO clock_trust (only_row, number) VALUES (1, ?)"
            " ON CONFLICT (only_row) DO UPDATE SET number = clock_trust.number + 1",
            (1,),
        )

    def confirm(self) -> None:
        """Make sure that what this block has read is durable before it is answered: its end is then a synced commit."""
        with self.together() as session:
            session.execute("UPDATE key_version SET version = version WHERE id = 1")

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees the writes of the block."""
        text = _numbered(sql)
        session = self._writing.session
        if session is not None:
            self._writing.executed += 1
            with translated("read"):
                return session.execute(text, values)
        return self._reader.ask(lambda session: session.execute(text, values))

    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Run one write; return how many rows it changed."""
        with self.together() as session:
            return session.change(_numbered(sql), values)

    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return False if it was so or is not there."""
        statement = f"UPDATE {table} SET revoked_ms = ?, revoked_change = ? WHERE {column} = ? AND revoked_ms IS NULL"
        with self.together() as session:
            self._writing.revokes = True
            [(change,)] = session.execute("UPDATE key_version SET version = version + 1 WHERE id = 1 RETURNING version")
            return bool(self.write(statement, (now_ms, change, name)))

    def note_used(self, table: str, column: str, used: Mapping[str, int]) -> None:
        """Store when rows of *table*, named by *column*, were last used; a time before the stored one is ignored."""
        self.write(
            f"UPDATE {table} SET last_used_ms = greatest(coalesce(last_used_ms, 0), noted.used_ms)"
            " FROM unnest(?::text[], ?::bigint[]) AS noted (name, used_ms)"
            f" WHERE {table}.{column} = noted.name",
            (list(used), list(used.values())),
        )

    def packed(self, texts: tuple[str, ...]) -> list[str]:
        """Return *texts* as an array."""
        return list(texts)

    def unpacked(self, value: list[str]) -> tuple[str, ...]:
        """Return the texts in the stored *value*."""
        return tuple(value)


def _numbered(sql: str) -> str:
    """Return *sql* with ``$1``, ``$2`` … in place of each ``?``."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


class Revocations(NamedTuple):
    """What changed, as of the time *at_s* (`steady_s`) or later."""

    at_s: float
    #: The last entry of the journal at that time.
    head_seq: int
    #: The server's time, in ms since 1970, and how often an operator has said that it is right.
    server_ms: int
    clock_trusts: int
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
        [(version, head, now, trusts)] = session.execute(
            f"SELECT version, coalesce((SELECT max(seq) FROM entry), 0), {_SERVER_MS},"
            " coalesce((SELECT number FROM clock_trust), 0) FROM key_version"
        )
        # A lower version: another server took over, and may lack the last revocations.
        if seen is None or version < seen:
            return version, Revocations(at_s, head, now, trusts, (), tokens=True, everything=True)
        if version == seen:
            return version, Revocations(at_s, head, now, trusts, (), tokens=False, everything=False)
        keys = session.execute("SELECT accesskey FROM access_keys WHERE revoked_change > $1", (seen,))
        tokens = session.execute("SELECT EXISTS (SELECT FROM operator_tokens WHERE revoked_change > $1)", (seen,))
        revoked = tuple(row[0] for row in keys)
        return version, Revocations(at_s, head, now, trusts, revoked, tokens=tokens[0][0], everything=False)
