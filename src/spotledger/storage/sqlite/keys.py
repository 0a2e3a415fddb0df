"""Access keys, operator tokens and the idempotency keys of their writes, in ``keys.db``."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from spotledger.errors import JournalShorter, LedgerCorrupt
from spotledger.storage.access_key_rows import KeyTables
from spotledger.storage.sqlite.buckets import RowSum
from spotledger.storage.sqlite.file import KEYS, Connection, KeysDamaged, open_reader, open_writer, translated
from spotledger.storage.sqlite.key_sum import KeptSum, check_sum

_log = logging.getLogger("spotledger.store")


class _Refusing:
    """In the place of a connection to a file that is not believed: whatever is asked of it is refused."""

    in_transaction = False

    def __init__(self, damage: LedgerCorrupt) -> None:
        self._damage = damage

    def execute(self, statement: str, values: Any = (), /) -> Any:
        raise self._damage

    def executemany(self, statement: str, rows: Any, /) -> Any:
        raise self._damage

    def changes(self) -> int:
        raise self._damage

    def reserve_bytes(self, schema: str = "", reserve: int = 0) -> int:
        raise self._damage

    def set_busy_timeout(self, milliseconds: int, /) -> None:
        """Do nothing: it waits for nobody."""

    def create_scalar_function(self, name: str, function: Any, /) -> None:
        raise self._damage

    def close(self) -> None:
        """Do nothing: the connection is closed."""


class SqliteKeyTables(KeyTables):
    """
    The tables of access keys and tokens, over two connections in autocommit.

    One thread writes at a time, and sees what it has written within :meth:`together`; others read meanwhile, and wait
    for nothing.

    Each transaction counts a change, which is noted with the head. So a file that was set back, in which a revoked key
    would come back to life, is noticed. All rows are added up when the file is opened, so a part of it that was set
    back or mixed up is noticed, too: then nothing is read from it. A page that is damaged is named when it is read, and
    the keys in other pages go on working.
    """

    def __init__(self, path: Path, ledger_id: str, noted_change: int = 0) -> None:
        """
        Open the file at *path*, or make it.

        Args:
            path: The file.
            ledger_id: The ledger that the keys are of.
            noted_change: The number of the last change that was noted.

        Raises:
            JournalShorter: The file is behind what was noted, or of another ledger.
            StoreUnavailable: The disk is in the way.
            LedgerCorrupt: It is damaged.
        """
        super().__init__()

        def make(keys: Connection) -> None:
            keys.execute("INSERT INTO keys_of VALUES (1, ?, 0, ?, ?)", (ledger_id, *RowSum().kept()))

        self._write = open_writer(path, KEYS, make)
        try:
            self._read = open_reader(path, KEYS)
        except BaseException:
            self._write.close()
            raise
        self._depth = 0
        #: Held for the length of a transaction, by the thread that writes.
        self._writing = threading.RLock()
        self._writer: int | None = None
        #: Held during a query, which is short.
        self._reading = threading.Lock()
        #: Called after each change, to note it.
        self.on_change: Callable[[], None] = lambda: None
        try:
            #: The number of the last change.
            self.change = self._checked_change(path, ledger_id, noted_change)
            with translated("opened", KEYS):
                self._sum = KeptSum(self._write)
            self._check_rows(path)
        except BaseException:
            self.close()
            raise

    def _checked_change(self, path: Path, ledger_id: str, noted_change: int) -> int:
        rows = self.rows("SELECT ledger_id, change FROM keys_of")
        if not rows:
            raise KeysDamaged(f"{path} does not say which ledger it is of")
        found_id, change = rows[0]
        if found_id != ledger_id:
            raise JournalShorter(f"{path} is of the ledger {found_id}, not of {ledger_id}; put the right file back")
        if change < noted_change:
            raise JournalShorter(
                f"{path} is at change {change}, but change {noted_change} was made: keys that were revoked would come"
                " back to life. Put the file back that has it, or: spotledger recover",
                found=change,
                noted=noted_change,
            )
        return int(change)

    def _check_rows(self, path: Path) -> None:
        """Add up the rows; where a page does not fit its checksum, only what is in it is refused, when it is read."""
        try:
            with translated("read", KEYS):
                self._read.execute("BEGIN")
                try:
                    check_sum(self._read)
                finally:
                    if self._read.in_transaction:
                        self._read.execute("ROLLBACK")
        except LedgerCorrupt as damage:
            _log.error("%s: %s", path, damage)
            if getattr(damage.__cause__, "extendedresult", 0) != apsw.SQLITE_IOERR_DATA:
                self.close()
                refusal = f"{path} cannot be read: {damage}; put the file back, or restore a backup"
                self._read = self._write = _Refusing(KeysDamaged(refusal))

    def close(self) -> None:
        """Close the file."""
        self._read.close()
        self._write.close()

    @contextmanager
    def together(self) -> Iterator[Connection]:
        """Make all writes inside one transaction: all of them are done, or none when an exception leaves the block."""
        with self._writing, translated("written", KEYS):
            if self._depth == 0:
                self._write.execute("BEGIN IMMEDIATE")
                self._writer = threading.get_ident()
            self._depth += 1
            try:
                if self._depth == 1:
                    self._sum.begin()
                yield self._write
                if self._depth == 1:
                    self._sum.store()
                    self._write.execute("UPDATE keys_of SET change = change + 1")
                    self._write.execute("COMMIT")
                    self.change += 1
                    self.on_change()
            except BaseException:
                if self._depth == 1 and self._write.in_transaction:
                    self._write.execute("ROLLBACK")
                raise
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._writer = None

    def confirm(self) -> None:
        """Do nothing: whatever can be read is synced."""

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees what was written there."""
        with translated("read", KEYS, values), self._reading:
            source = self._write if self._writer == threading.get_ident() else self._read
            found: list[tuple[Any, ...]] = source.execute(sql, values).fetchall()
            return found

    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Do one write; return how many rows it touched."""
        with self.together() as write:
            write.execute(sql, values)
            return int(write.changes())

    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return whether it was there, and was not yet."""
        statement = f"UPDATE {table} SET revoked_ms = ? WHERE {column} = ? AND revoked_ms IS NULL"
        return bool(self.write(statement, (now_ms, name)))

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in one transaction; a time earlier than the stored one is ignored."""
        with self.together() as write:
            write.executemany(
                "UPDATE access_keys SET last_used_ms = max(coalesce(last_used_ms, 0), ?) WHERE accesskey = ?",
                sorted((used_ms, accesskey) for accesskey, used_ms in used.items()),
            )

    def packed(self, texts: tuple[str, ...]) -> str:
        """Return *texts* as one value of a row: JSON."""
        return json.dumps(texts)

    def unpacked(self, value: str) -> tuple[str, ...]:
        """Return the texts that *value* of a row is."""
        try:
            return tuple(json.loads(value))
        except (TypeError, ValueError) as error:
            raise KeysDamaged(f"a list in a row of access keys or tokens cannot be read: {error}") from error
