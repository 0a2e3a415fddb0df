"""
Access keys, operator tokens and the idempotency keys of their writes, in ``keys.db``.

A page checksum does not show a page that was swapped, copied or set back, and with it a revoked access key could come
back to life. So ``keys_of`` has the count and the digest of the rows of all other tables, kept up by triggers of the
connection that writes, and all rows are added up when the file is opened. SQLite finds a row by order: rows that rise,
in the tables and in the indexes, are found.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import apsw

from spotledger.errors import JournalShorter, LedgerCorrupt, StoreUnavailable
from spotledger.storage.access_key_rows import KeyTables
from spotledger.storage.sqlite.buckets import RowSum
from spotledger.storage.sqlite.file import KEYS, Connection, KeysDamaged, only_row, open_reader, open_writer, translated

_log = logging.getLogger("spotledger.store")

#: The tables that are added up, and their columns; the first one is the key.
TABLES: Final = {
    "access_keys": (
        *("accesskey", "customer", "permissions", "label", "addresses", "sealed_secret"),
        *("created_ms", "expires_ms", "revoked_ms", "last_used_ms"),
    ),
    "operator_tokens": (
        *("token_id", "digest", "scopes", "label", "created_ms"),
        *("expires_ms", "addresses", "revoked_ms", "last_used_ms"),
    ),
    "kept_key_requests": ("idempotency_key", "request_json", "answer_json"),
    "master_key_mark": ("id", "fingerprint", "is_swept"),
    "retired_master_keys": ("fingerprint", "retired_ms"),
}
#: The indexes that are read beside the tables: what SQLite calls each, its table, and its columns.
INDEXES: Final = (
    ("access_keys_of_customer", "access_keys", ("customer", "accesskey")),
    ("sqlite_autoindex_operator_tokens_2", "operator_tokens", ("digest", "token_id")),
)


def sum_of_keys(connection: Connection, schema: str = "main") -> RowSum:
    """
    Add up the rows of all tables, and check that each is where SQLite looks for it.

    Reads all rows in one transaction of the caller.

    Raises:
        LedgerCorrupt: Rows are out of order, or an index has others than its table.
    """
    found = RowSum()
    for table, columns in TABLES.items():
        rows = connection.execute(f"SELECT {', '.join(columns)} FROM {schema}.{table}").fetchall()
        for row in rows:
            found.add(table, row)
        _check_order(table, [row[:1] for row in rows])
        for index, _, names in (each for each in INDEXES if each[1] == table):
            places = [columns.index(name) for name in names]
            query = f"SELECT {', '.join(names)} FROM {schema}.{table} INDEXED BY {index}"
            entries = connection.execute(query).fetchall()
            _check_order(index, entries)
            if set(entries) != {tuple(row[place] for place in places) for row in rows}:
                raise LedgerCorrupt(f"the index {index} of the access keys has other rows than its table")
    return found


def _check_order(name: str, keys: list[Any]) -> None:
    try:
        is_rising = all(first < second for first, second in pairwise(keys))
    except TypeError:  # values of two kinds, or none
        is_rising = False
    if not is_rising:
        raise LedgerCorrupt(f"rows of {name} among the access keys are out of order")


def check_sum(connection: Connection) -> None:
    """
    Compare the rows of the access keys with the sum that is kept of them.

    Raises:
        LedgerCorrupt: They are not all there, or not as they were written last.
    """
    if sum_of_keys(connection).kept() != only_row(connection, "SELECT rows, digest FROM keys_of", int, bytes):
        raise LedgerCorrupt(
            "the access keys and tokens are not as they were written last: rows are missing, or older than the others"
        )


def store_sum(connection: Connection) -> None:
    """Add the rows up anew and keep the sum, in the transaction of the caller that wrote them."""
    connection.execute("UPDATE keys_of SET rows = ?, digest = ?", sum_of_keys(connection).kept())


class KeptSum:
    """The sum of the rows while one connection changes them."""

    def __init__(self, connection: Connection) -> None:
        """Watch what *connection* changes from now on; the sum that is kept in the file is the one to go on from."""
        self._connection = connection
        self._sum = RowSum()
        connection.create_scalar_function("rows_changed", self._change)
        for statement in _triggers():
            connection.execute(statement)

    def begin(self) -> None:
        """Go on from the sum in the file, within a transaction that has begun."""
        self._sum = RowSum(*only_row(self._connection, "SELECT rows, digest FROM keys_of", int, bytes))

    def store(self) -> None:
        """Write the sum to the file, within the same transaction."""
        self._connection.execute("UPDATE keys_of SET rows = ?, digest = ?", self._sum.kept())

    def _change(self, table: str, is_added: int, *row: Any) -> None:
        (self._sum.add if is_added else self._sum.remove)(table, row)


def _triggers() -> Iterator[str]:
    """Give the triggers, which are the connection's own and not in the file: each changed row is counted out and in."""
    for table, columns in TABLES.items():
        removed = f"SELECT rows_changed('{table}', 0, {', '.join(f'OLD.{name}' for name in columns)});"
        added = f"SELECT rows_changed('{table}', 1, {', '.join(f'NEW.{name}' for name in columns)});"
        for event, body in (("INSERT", added), ("DELETE", removed), ("UPDATE", removed + added)):
            yield f"CREATE TEMP TRIGGER {table}_{event.lower()} AFTER {event} ON main.{table} BEGIN {body} END"


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

    def config(self, option: int, value: int, /) -> int:
        raise self._damage

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
                self._write.execute("PRAGMA secure_delete = ON")
                self._sum = KeptSum(self._write)
            self._check_rows(path)
        except BaseException:
            self.close()
            raise

    def _checked_change(self, path: Path, ledger_id: str, noted_change: int) -> int:
        rows = self.rows("SELECT ledger_id, change FROM keys_of")
        if len(rows) != 1 or tuple(map(type, rows[0])) != (str, int):
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

    def note_used(self, table: str, column: str, used: Mapping[str, int]) -> None:
        """Store when rows of *table*, named by *column*, were last used; a time before the stored one is ignored."""
        with self.together() as write:
            write.executemany(
                f"UPDATE {table} SET last_used_ms = max(coalesce(last_used_ms, 0), ?) WHERE {column} = ?",
                sorted((used_ms, name) for name, used_ms in used.items()),
            )

    def long_together(self) -> AbstractContextManager[Connection]:
        """Begin a transaction like :meth:`together`: it waits for nobody but the disk."""
        return self.together()

    def store_sealed(self, sealed: Mapping[str, bytes]) -> None:
        """Replace sealed secrets: access key → what is stored from now on."""
        with self.together() as write:
            rows = [(secret, accesskey) for accesskey, secret in sealed.items()]
            write.executemany("UPDATE access_keys SET sealed_secret = ? WHERE accesskey = ?", rows)

    def sweep(self) -> None:
        """
        Write every page of the file anew, and cut the write-ahead log to nothing: both have what rows were before.

        Raises:
            StoreUnavailable: Another process reads the file, or the disk is in the way.
        """
        with self._writing:
            with translated("swept", KEYS):
                self._write.execute("VACUUM")
                [(is_busy, _, _)] = self._write.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if is_busy:
                raise StoreUnavailable("the file of access keys could not be swept: another process is reading it")
            self.mark_swept()

    def packed(self, texts: tuple[str, ...]) -> str:
        """Return *texts* as one value of a row: JSON."""
        return json.dumps(texts)

    def unpacked(self, value: str) -> tuple[str, ...]:
        """Return the texts that *value* of a row is."""
        try:
            return tuple(json.loads(value))
        except (TypeError, ValueError) as error:
            raise KeysDamaged(f"a list in a row of access keys or tokens cannot be read: {error}") from error
