"""
Access keys, operator tokens and the idempotency keys of their writes, in PostgreSQL.

A write locks the row of ``key_version`` first, so the writes of all nodes follow one another, and each sees what those
before it did. Every revocation has the next number there, and wakes up whoever listens
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
from spotledger.storage.postgres.connection import Connection, translated

CHANGES_CHANNEL: Final = "spotledger_keys"


class PostgresKeyTables(KeyTables):
    """
    The tables of access keys and tokens.

    Reads may be made by any thread, the event loop's too: they hold it up for a moment only. Writes wait for the
    server; make them in a thread beside the loop.
    """

    def __init__(self, connect: Connect) -> None:
        """
        Connect.

        Args:
            connect: Makes a connection in autocommit to the server that takes writes, or raises StoreUnavailable.
        """
        super().__init__()
        self._connect = connect
        self._reader = BoundedReader(connect, "keys")
        self._write: Connection | None = None
        self._lock = threading.RLock()
        self._depth = 0
        self._writing_thread: int | None = None

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()
        with self._lock:
            self._drop()

    @contextmanager
    def together(self) -> Iterator[Connection]:
        """
        Make all writes inside one transaction: all of them are done, or none when an exception leaves the block.

        Raises:
            StoreUnavailable: It could not be done. Where the connection broke at the very end it may have been: asking
                again with the same idempotency key tells.
        """
        with self._lock:
            if self._depth:
                yield self._connected()
                return
            write = self._begun()
            self._depth, self._writing_thread = 1, threading.get_ident()
            try:
                with translated("written"):
                    yield write
                    write.execute("COMMIT")
            except BaseException:
                with suppress(psycopg.Error):
                    write.execute("ROLLBACK")
                raise
            finally:
                self._depth, self._writing_thread = 0, None

    def _begun(self) -> Connection:
        """Return the connection with a transaction begun, which no other node's write can come between."""
        try:
            return self._begin()
        except StoreUnavailable:
            if self._write is not None and not self._write.broken:
                raise
            return self._begin()  # the connection had broken while nobody used it

    def _begin(self) -> Connection:
        write = self._connected()
        with translated("written"):
            try:
                write.execute("BEGIN")
                write.execute("SELECT version FROM key_version WHERE id = 1 FOR UPDATE")
            except BaseException:
                with suppress(psycopg.Error):
                    write.execute("ROLLBACK")
                raise
        return write

    def _connected(self) -> Connection:
        if self._write is None or self._write.closed:
            self._write = self._connect()
        return self._write

    def _drop(self) -> None:
        if self._write is not None:
            self._write.close()
            self._write = None

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees what was written there."""

        def read(connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(_statement(sql), values, binary=True).fetchall()

        if self._writing_thread == threading.get_ident():
            with translated("read"):
                return read(self._connected())
        return self._reader.ask(read)

    def change(self) -> int:
        """Return the number of a revocation that is being written, and have it told to all nodes when it is done."""
        with self.together() as write:
            write.execute("SELECT pg_notify(%s, '')", (CHANGES_CHANNEL,))
            bumped = "UPDATE key_version SET version = version + 1 WHERE id = 1 RETURNING version"
            return int(write.execute(bumped).fetchall()[0][0])

    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Do one write; return how many rows it touched."""
        with self.together() as write:
            return write.execute(_statement(sql), values).rowcount

    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return whether it was there, and was not yet."""
        statement = f"UPDATE {table} SET revoked_ms = ?, revoked_change = ? WHERE {column} = ? AND revoked_ms IS NULL"
        with self.together():
            return bool(self.write(statement, (now_ms, self.change(), name)))

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in one transaction; a time earlier than the stored one is ignored."""
        self.write(
            "UPDATE access_keys SET last_used_ms = greatest(coalesce(last_used_ms, 0), noted.used_ms)"
            " FROM unnest(?::text[], ?::bigint[]) AS noted (accesskey, used_ms)"
            " WHERE access_keys.accesskey = noted.accesskey",
            (list(used), list(used.values())),
        )

    def packed(self, texts: tuple[str, ...]) -> list[str]:
        """Return *texts* as one value of a row: an array."""
        return list(texts)

    def unpacked(self, value: list[str]) -> tuple[str, ...]:
        """Return the texts that *value* of a row is."""
        return tuple(value)


def _statement(sql: str) -> str:
    """Return *sql* with the driver's own mark where a value stands."""
    return sql.replace("?", "%s")
