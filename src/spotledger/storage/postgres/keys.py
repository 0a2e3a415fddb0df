"""
Access keys, operator tokens and the idempotency keys of their writes, in PostgreSQL.

A write locks the row of ``key_version`` first, so the writes of all nodes are serialized, and each sees the earlier
ones. Every revocation increments the version and notifies the listeners
(:mod:`spotledger.storage.postgres.key_changes`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg

from spotledger.errors import StoreUnavailable
from spotledger.storage.access_key_rows import KeyTables
from spotledger.storage.postgres.bounded_reader import BoundedReader, Connect
from spotledger.storage.postgres.connection import translated
from spotledger.storage.postgres.session import Session

CHANGES_CHANNEL: Final = "spotledger_keys"
#: How long one statement of a write may take before the connection counts as lost.
WRITE_PATIENCE_SECONDS: Final = 15.0


class PostgresKeyTables(KeyTables):
    """
    The tables of access keys and tokens.

    Any thread may read, including that of the event loop: a read waits for a bounded time. Writes wait for the server,
    so make them in another thread than the loop's.
    """

    def __init__(self, connect: Connect) -> None:
        """
        Connect.

        Args:
            connect: Makes a connection in autocommit to the server that takes writes, or raises StoreUnavailable.
        """
        super().__init__()
        self._connect = connect
        self._reader = BoundedReader(connect)
        self._write: Session | None = None
        self._lock = threading.RLock()
        self._writing_thread: int | None = None

    def close(self) -> None:
        """Close the connections."""
        self._reader.close()
        with self._lock:
            self._drop()

    @contextmanager
    def together(self) -> Iterator[Session]:
        """
        Make all writes of a ``with`` block one transaction; an exception that leaves the block rolls it back.

        Raises:
            StoreUnavailable: It could not be done. If the connection broke at the commit, it may have been done: a
                retry with the same idempotency key finds out.
        """
        with self._lock:
            if self._writing_thread is not None:
                yield self._connected()
                return
            write = self._begun()
            self._writing_thread = threading.get_ident()
            try:
                with translated("written"):
                    yield write
                    write.execute("COMMIT")
            except BaseException:
                with suppress(psycopg.Error):
                    write.execute("ROLLBACK")
                raise
            finally:
                self._writing_thread = None

    def _begun(self) -> Session:
        """Return the session with a transaction begun that excludes the writes of other nodes."""
        try:
            return self._begin()
        except StoreUnavailable:
            if self._write is not None and self._write.is_open:
                raise
            return self._begin()  # the connection broke while it was idle

    def _begin(self) -> Session:
        with translated("written"):
            write = self._connected()
            try:
                write.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                write.execute("SELECT version FROM key_version WHERE id = 1 FOR UPDATE")
            except BaseException:
                with suppress(psycopg.Error):
                    write.execute("ROLLBACK")
                raise
        return write

    def _connected(self) -> Session:
        if self._write is None or not self._write.is_open:
            self._drop()
            self._write = Session(self._connect(), (), WRITE_PATIENCE_SECONDS)
        return self._write

    def _drop(self) -> None:
        session, self._write = self._write, None
        if session is not None:
            session.close()

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees the writes of the block."""
        text = _numbered(sql)
        if self._writing_thread == threading.get_ident():
            with translated("read"):
                return self._connected().execute(text, values)
        return self._reader.ask(lambda session: session.execute(text, values))

    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Run one write; return how many rows it changed."""
        with self.together() as session:
            return session.change(_numbered(sql), values)

    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return False if it was so or is not there."""
        statement = f"UPDATE {table} SET revoked_ms = ?, revoked_change = ? WHERE {column} = ? AND revoked_ms IS NULL"
        with self.together() as session:
            session.execute("SELECT pg_notify($1, '')", (CHANGES_CHANNEL,))
            [(change,)] = session.execute("UPDATE key_version SET version = version + 1 WHERE id = 1 RETURNING version")
            return bool(self.write(statement, (now_ms, change, name)))

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in ms since 1970; a time before the stored one is ignored."""
        self.write(
            "UPDATE access_keys SET last_used_ms = greatest(coalesce(last_used_ms, 0), noted.used_ms)"
            " FROM unnest(?::text[], ?::bigint[]) AS noted (accesskey, used_ms)"
            " WHERE access_keys.accesskey = noted.accesskey",
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
