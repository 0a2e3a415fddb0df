"""
Access keys, operator tokens and the idempotency keys of their writes, in PostgreSQL.

A write locks the row of ``key_version`` first, so the writes of all nodes follow one another, and each sees what those
before it did. Every revocation has the next number there, and wakes up whoever listens
(:mod:`spotledger.storage.postgres_key_changes`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

import psycopg

from spotledger.errors import StoreUnavailable
from spotledger.security.keys import AccessKeyRecord, TokenRecord
from spotledger.storage.postgres_connection import Connection
from spotledger.storage.postgres_lane import Connect, Lane, translated

CHANGES_CHANNEL: Final = "spotledger_keys"

_COLUMNS_OF_KEYS = (
    "accesskey, customer, permissions, label, addresses, sealed_secret, "
    "created_ms, expires_ms, revoked_ms, last_used_ms"
)
_COLUMNS_OF_TOKENS = "token_id, digest, scopes, label, created_ms, revoked_ms"


class PostgresKeyTables:
    """
    The tables of access keys and tokens, with the interface of the embedded store's.

    Reads may be made by any thread, the event loop's too: they hold it up for a moment only. Writes wait for the
    server; make them in a thread beside the loop. Each is one synced transaction; those inside ``with together():`` are
    one in all.
    """

    def __init__(self, connect: Connect) -> None:
        """
        Connect.

        Args:
            connect: Makes a connection in autocommit to the server that takes writes, or raises StoreUnavailable.
        """
        self._connect = connect
        self._lane = Lane(connect, "keys")
        self._write: Connection | None = None
        self._lock = threading.RLock()
        self._depth = 0
        self._writing_thread: int | None = None
        self.access_keys = PostgresAccessKeys(self)
        self.tokens = PostgresTokens(self)
        self.kept_requests = PostgresKeptRequests(self)

    def close(self) -> None:
        """Let go of the connections."""
        self._lane.close()
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
                with translated():
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
        with translated():
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

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees what was written there."""

        def read(connection: Connection) -> list[tuple[Any, ...]]:
            return connection.execute(sql, values, binary=True).fetchall()

        if self._writing_thread == threading.get_ident():
            with translated():
                return read(self._connected())
        return self._lane.ask(read)

    def change(self) -> int:
        """Return the number of a revocation that is being written, and have it told to all nodes when it is done."""
        with self.together() as write:
            write.execute("SELECT pg_notify(%s, '')", (CHANGES_CHANNEL,))
            bumped = "UPDATE key_version SET version = version + 1 WHERE id = 1 RETURNING version"
            return int(write.execute(bumped).fetchall()[0][0])

    @property
    def master_key_fingerprint(self) -> str | None:
        """The mark of the master key that the secrets were sealed with; None before the first start."""
        rows = self.rows("SELECT fingerprint FROM master_key_mark")
        return None if not rows else str(rows[0][0])

    @master_key_fingerprint.setter
    def master_key_fingerprint(self, fingerprint: str) -> None:
        with self.together() as write:
            write.execute(
                "INSERT INTO master_key_mark (id, fingerprint) VALUES (1, %s)"
                " ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint",
                (fingerprint,),
            )


class PostgresAccessKeys:
    """`AccessKeyRecords` in PostgreSQL."""

    def __init__(self, tables: PostgresKeyTables) -> None:
        self._tables = tables

    def get(self, accesskey: str) -> AccessKeyRecord | None:
        """Return the record of *accesskey*."""
        if "\0" in accesskey or not accesskey.isascii():
            return None  # none ever was
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_KEYS} FROM access_keys WHERE accesskey = %s", (accesskey,))
        return _access_key(rows[0]) if rows else None

    def insert(self, record: AccessKeyRecord) -> None:
        """Store a new record."""
        with self._tables.together() as write:
            write.execute(
                f"INSERT INTO access_keys ({_COLUMNS_OF_KEYS}) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
                (
                    record.accesskey,
                    record.customer,
                    list(record.permissions),
                    record.label,
                    list(record.addresses),
                    record.sealed_secret,
                    record.created_ms,
                    record.expires_ms,
                    record.revoked_ms,
                    record.last_used_ms,
                ),
            )

    def list(self, customer: str | None, after: str, limit: int) -> list[AccessKeyRecord]:
        """Return at most *limit* records beyond the access key *after*, of *customer* or of all, in order."""
        where, values = ("", ()) if customer is None else ("customer = %s AND ", (customer,))
        rows = self._tables.rows(
            f"SELECT {_COLUMNS_OF_KEYS} FROM access_keys WHERE {where}accesskey > %s ORDER BY accesskey LIMIT %s",
            (*values, after.replace("\0", "\1"), limit),
        )
        return [_access_key(row) for row in rows]

    def revoke(self, accesskey: str, now_ms: int) -> bool:
        """Mark *accesskey* as revoked at *now_ms*; return whether it was there and not yet revoked."""
        with self._tables.together() as write:
            return bool(
                write.execute(
                    "UPDATE access_keys SET revoked_ms = %s, revoked_change = %s"
                    " WHERE accesskey = %s AND revoked_ms IS NULL",
                    (now_ms, self._tables.change(), accesskey),
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
            write.execute(
                "UPDATE access_keys SET last_used_ms = greatest(coalesce(last_used_ms, 0), noted.used_ms)"
                " FROM unnest(%s::text[], %s::bigint[]) AS noted (accesskey, used_ms)"
                " WHERE access_keys.accesskey = noted.accesskey",
                (list(used), list(used.values())),
            )


class PostgresTokens:
    """`TokenRecords` in PostgreSQL."""

    def __init__(self, tables: PostgresKeyTables) -> None:
        self._tables = tables

    def together(self) -> AbstractContextManager[Connection]:
        """Make what is read and written inside one transaction, which no other write comes between."""
        return self._tables.together()

    def get(self, token_id: str) -> TokenRecord | None:
        """Return the record of the token with this id."""
        if "\0" in token_id or not token_id.isascii():
            return None  # none ever was
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id = %s", (token_id,))
        return _token(rows[0]) if rows else None

    def by_digest(self, digest: bytes) -> TokenRecord | None:
        """Return the record of the token whose SHA-256 is *digest*."""
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE digest = %s", (digest,))
        return _token(rows[0]) if rows else None

    def insert(self, record: TokenRecord) -> None:
        """Store a new record."""
        with self._tables.together() as write:
            write.execute(
                f"INSERT INTO operator_tokens ({_COLUMNS_OF_TOKENS}) VALUES (%s, %s, %s, %s, %s, %s)",
                (
                    record.token_id,
                    record.digest,
                    list(record.scopes),
                    record.label,
                    record.created_ms,
                    record.revoked_ms,
                ),
            )

    def list(self, after: str, limit: int) -> list[TokenRecord]:
        """Return at most *limit* records beyond the id *after*, in order."""
        rows = self._tables.rows(
            f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id > %s ORDER BY token_id LIMIT %s",
            (after.replace("\0", "\1"), limit),
        )
        return [_token(row) for row in rows]

    def revoke(self, token_id: str, now_ms: int) -> bool:
        """Mark the token as revoked at *now_ms*; return whether it was there and not yet revoked."""
        with self._tables.together() as write:
            return bool(
                write.execute(
                    "UPDATE operator_tokens SET revoked_ms = %s, revoked_change = %s"
                    " WHERE token_id = %s AND revoked_ms IS NULL",
                    (now_ms, self._tables.change(), token_id),
                ).rowcount
            )


class PostgresKeptRequests:
    """`KeptRequests` in PostgreSQL."""

    def __init__(self, tables: PostgresKeyTables) -> None:
        self._tables = tables

    def get(self, idempotency_key: str) -> tuple[str, str] | None:
        """Return request and answer kept under *idempotency_key*, both as JSON text."""
        rows = self._tables.rows(
            "SELECT request_json, answer_json FROM kept_key_requests WHERE idempotency_key = %s",
            (idempotency_key,),
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def keep(self, idempotency_key: str, request_json: str, answer_json: str) -> None:
        """Keep request and answer; the answer holds no secret."""
        with self._tables.together() as write:
            write.execute(
                "INSERT INTO kept_key_requests (idempotency_key, request_json, answer_json) VALUES (%s, %s, %s)",
                (idempotency_key, request_json, answer_json),
            )


def _access_key(row: tuple[Any, ...]) -> AccessKeyRecord:
    accesskey, customer, permissions, label, addresses, *rest = row
    return AccessKeyRecord(accesskey, customer, tuple(permissions), label, tuple(addresses), *rest)


def _token(row: tuple[Any, ...]) -> TokenRecord:
    token_id, digest, scopes, label, created_ms, revoked_ms = row
    return TokenRecord(token_id, digest, tuple(scopes), label, created_ms, revoked_ms)
