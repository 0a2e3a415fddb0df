"""
The sum of the rows in ``keys.db``: what proves that all of them are there, and none is an older one.

A page checksum does not show a page that was swapped, copied or set back, and with it a revoked access key could come
back to life. So ``keys_of`` has the count and the digest of the rows of all other tables, kept up by triggers of the
connection that writes, and all rows are added up when the file is opened. SQLite finds a row by order: rows that rise,
in the tables and in the indexes, are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

from spotledger.errors import LedgerCorrupt
from spotledger.storage.sqlite.buckets import RowSum
from spotledger.storage.sqlite.file import Connection

#: The tables that are added up, and their columns; the first one is the key.
TABLES: Final = {
    "access_keys": (
        *("accesskey", "customer", "permissions", "label", "addresses", "sealed_secret"),
        *("created_ms", "expires_ms", "revoked_ms", "last_used_ms"),
    ),
    "operator_tokens": ("token_id", "digest", "scopes", "label", "created_ms", "revoked_ms"),
    "kept_key_requests": ("idempotency_key", "request_json", "answer_json"),
    "master_key_mark": ("id", "fingerprint"),
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
    rows = connection.execute("SELECT rows, digest FROM keys_of").fetchall()
    if len(rows) != 1 or sum_of_keys(connection).kept() != tuple(rows[0]):
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
        self._sum = RowSum(*self._connection.execute("SELECT rows, digest FROM keys_of").fetchall()[0])

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
