"""Access keys, operator tokens and the idempotency keys of their writes, in the SQLite ledger file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from spotledger.errors import LedgerCorrupt
from spotledger.storage.access_key_rows import KeyTables
from spotledger.storage.sqlite.file import translate, translated


class SqliteKeyTables(KeyTables):
    """
    The tables of access keys and tokens, over two connections in autocommit.

    No commit of the journal may use the write connection meanwhile (`Writer.beside`).
    """

    def __init__(self, write: sqlite3.Connection, read: sqlite3.Connection) -> None:
        super().__init__()
        self._write = write
        self._read = read
        self._depth = 0

    @contextmanager
    def together(self) -> Iterator[sqlite3.Connection]:
        """Make all writes of a ``with`` block one transaction; an exception that leaves the block rolls it back."""
        with translated("written"):
            if self._depth == 0:
                self._write.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self._write
                if self._depth == 1:
                    self._write.execute("COMMIT")
            except BaseException:
                if self._depth == 1 and self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees the writes of the block."""
        try:
            return (self._write if self._depth else self._read).execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise translate(error, "read") from error

    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Run one write; return how many rows it changed."""
        with self.together() as write:
            return write.execute(sql, values).rowcount

    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return False if it was so or is not there."""
        statement = f"UPDATE {table} SET revoked_ms = ? WHERE {column} = ? AND revoked_ms IS NULL"
        return bool(self.write(statement, (now_ms, name)))

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in ms since 1970; a time before the stored one is ignored."""
        with self.together() as write:
            write.executemany(
                "UPDATE access_keys SET last_used_ms = max(coalesce(last_used_ms, 0), ?) WHERE accesskey = ?",
                sorted((used_ms, accesskey) for accesskey, used_ms in used.items()),
            )

    def packed(self, texts: tuple[str, ...]) -> str:
        """Return *texts* as JSON."""
        return json.dumps(texts)

    def unpacked(self, value: str) -> tuple[str, ...]:
        """Return the texts in the stored *value*."""
        try:
            return tuple(json.loads(value))
        except ValueError as error:
            raise LedgerCorrupt(f"a list in a row of access keys or tokens cannot be read: {error}") from error
