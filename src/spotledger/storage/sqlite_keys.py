"""Access keys, operator tokens and the idempotency keys of their writes, in the SQLite ledger file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from spotledger.errors import StoreBusy, StoreUnavailable
from spotledger.security.keys import AccessKeyRecord, TokenRecord

_BUSY_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_COLUMNS_OF_KEYS = (
    "accesskey, customer, permissions, label, addresses, sealed_secret, "
    "created_ms, expires_ms, revoked_ms, last_used_ms"
)
_COLUMNS_OF_TOKENS = "token_id, digest, scopes, label, created_ms, revoked_ms"


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the driver's errors into ours, by their code and never by their message."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code & 0xFF in _BUSY_CODES:
            raise StoreBusy from error
        raise StoreUnavailable(f"The ledger file did not do it ({name}).") from error


class SqliteKeyTables:
    """
    The tables of access keys and tokens, over two connections in autocommit.

    Each write is one synced transaction of its own; those inside ``with together():`` are one in all.
    The write connection must not be in use by a commit meanwhile (`Writer.beside`).
    """

    def __init__(self, write: sqlite3.Connection, read: sqlite3.Connection) -> None:
        self._write = write
        self._read = read
        self._depth = 0
        self.access_keys = SqliteAccessKeys(self)
        self.tokens = SqliteTokens(self)
        self.kept_requests = SqliteKeptRequests(self)

    @contextmanager
    def together(self) -> Iterator[sqlite3.Connection]:
        """Make all writes inside one transaction: all of them are done, or none when an exception leaves the block."""
        with _translated():
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
        """Return all rows of a query; inside ``together`` it sees what was written there."""
        with _translated():
            return (self._write if self._depth else self._read).execute(sql, values).fetchall()

    @property
    def master_key_fingerprint(self) -> str | None:
        """The mark of the master key that the secrets were sealed with; None before the first start."""
        rows = self.rows("SELECT fingerprint FROM master_key_mark")
        return None if not rows else str(rows[0][0])

    @master_key_fingerprint.setter
    def master_key_fingerprint(self, fingerprint: str) -> None:
        with self.together() as write:
            write.execute(
                "INSERT INTO master_key_mark (id, fingerprint) VALUES (1, ?)"
                " ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint",
                (fingerprint,),
            )


class SqliteAccessKeys:
    """`AccessKeyRecords` in SQLite."""

    def __init__(self, tables: SqliteKeyTables) -> None:
        self._tables = tables

    def get(self, accesskey: str) -> AccessKeyRecord | None:
        """Return the record of *accesskey*."""
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_KEYS} FROM access_keys WHERE accesskey = ?", (accesskey,))
        return _access_key(rows[0]) if rows else None

    def insert(self, record: AccessKeyRecord) -> None:
        """Store a new record."""
        with self._tables.together() as write:
            write.execute(
                f"INSERT INTO access_keys ({_COLUMNS_OF_KEYS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    record.accesskey,
                    record.customer,
                    json.dumps(record.permissions),
                    record.label,
                    json.dumps(record.addresses),
                    record.sealed_secret,
                    record.created_ms,
                    record.expires_ms,
                    record.revoked_ms,
                    record.last_used_ms,
                ),
            )

    def list(self, customer: str | None, after: str, limit: int) -> list[AccessKeyRecord]:
        """Return at most *limit* records beyond the access key *after*, of *customer* or of all, in order."""
        where, values = ("", ()) if customer is None else ("customer = ? AND ", (customer,))
        rows = self._tables.rows(
            f"SELECT {_COLUMNS_OF_KEYS} FROM access_keys WHERE {where}accesskey > ? ORDER BY accesskey LIMIT ?",
            (*values, after, limit),
        )
        return [_access_key(row) for row in rows]

    def revoke(self, accesskey: str, now_ms: int) -> bool:
        """Mark *accesskey* as revoked at *now_ms*; return whether it was there and not yet revoked."""
        with self._tables.together() as write:
            return bool(
                write.execute(
                    "UPDATE access_keys SET revoked_ms = ? WHERE accesskey = ? AND revoked_ms IS NULL",
                    (now_ms, accesskey),
                ).rowcount
            )

    def replace(self, accesskey: str, record: AccessKeyRecord, now_ms: int) -> bool:
        """Revoke *accesskey* and store *record*, both or neither; return whether that was done."""
        with self._tables.together():
            if not self.revoke(accesskey, now_ms):
                return False
            self.insert(record)
            return True

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in one transaction; a time earlier than the stored one is ignored."""
        with self._tables.together() as write:
            write.executemany(
                "UPDATE access_keys SET last_used_ms = max(coalesce(last_used_ms, 0), ?) WHERE accesskey = ?",
                sorted((used_ms, accesskey) for accesskey, used_ms in used.items()),
            )


class SqliteTokens:
    """`TokenRecords` in SQLite."""

    def __init__(self, tables: SqliteKeyTables) -> None:
        self._tables = tables

    def together(self) -> AbstractContextManager[sqlite3.Connection]:
        """Make what is read and written inside one transaction, which no other write comes between."""
        return self._tables.together()

    def get(self, token_id: str) -> TokenRecord | None:
        """Return the record of the token with this id."""
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id = ?", (token_id,))
        return _token(rows[0]) if rows else None

    def by_digest(self, digest: bytes) -> TokenRecord | None:
        """Return the record of the token whose SHA-256 is *digest*."""
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE digest = ?", (digest,))
        return _token(rows[0]) if rows else None

    def insert(self, record: TokenRecord) -> None:
        """Store a new record."""
        with self._tables.together() as write:
            write.execute(
                f"INSERT INTO operator_tokens ({_COLUMNS_OF_TOKENS}) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    record.token_id,
                    record.digest,
                    json.dumps(record.scopes),
                    record.label,
                    record.created_ms,
                    record.revoked_ms,
                ),
            )

    def list(self, after: str, limit: int) -> list[TokenRecord]:
        """Return at most *limit* records beyond the id *after*, in order."""
        rows = self._tables.rows(
            f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id > ? ORDER BY token_id LIMIT ?",
            (after, limit),
        )
        return [_token(row) for row in rows]

    def revoke(self, token_id: str, now_ms: int) -> bool:
        """Mark the token as revoked at *now_ms*; return whether it was there and not yet revoked."""
        with self._tables.together() as write:
            return bool(
                write.execute(
                    "UPDATE operator_tokens SET revoked_ms = ? WHERE token_id = ? AND revoked_ms IS NULL",
                    (now_ms, token_id),
                ).rowcount
            )


class SqliteKeptRequests:
    """`KeptRequests` in SQLite."""

    def __init__(self, tables: SqliteKeyTables) -> None:
        self._tables = tables

    def get(self, idempotency_key: str) -> tuple[str, str] | None:
        """Return request and answer kept under *idempotency_key*, both as JSON text."""
        rows = self._tables.rows(
            "SELECT request_json, answer_json FROM kept_key_requests WHERE idempotency_key = ?",
            (idempotency_key,),
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def keep(self, idempotency_key: str, request_json: str, answer_json: str) -> None:
        """Keep request and answer; the answer holds no secret."""
        with self._tables.together() as write:
            write.execute(
                "INSERT INTO kept_key_requests (idempotency_key, request_json, answer_json) VALUES (?, ?, ?)",
                (idempotency_key, request_json, answer_json),
            )


def _access_key(row: tuple[Any, ...]) -> AccessKeyRecord:
    accesskey, customer, permissions, label, addresses, *rest = row
    return AccessKeyRecord(
        accesskey, customer, tuple(json.loads(permissions)), label, tuple(json.loads(addresses)), *rest
    )


def _token(row: tuple[Any, ...]) -> TokenRecord:
    token_id, digest, scopes, label, created_ms, revoked_ms = row
    return TokenRecord(token_id, digest, tuple(json.loads(scopes)), label, created_ms, revoked_ms)
