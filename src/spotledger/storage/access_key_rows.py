"""
Access keys, operator tokens and the idempotency keys of their writes as rows: each statement once, for all stores.

Where a value stands in a statement there is a ``?``. What differs from store to store is in its tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from spotledger.security.access_keys import AccessKeyRecord
from spotledger.security.tokens import TokenRecord

_COLUMNS_OF_KEYS = (
    "accesskey, customer, permissions, label, addresses, sealed_secret, "
    "created_ms, expires_ms, revoked_ms, last_used_ms"
)
_COLUMNS_OF_TOKENS = "token_id, digest, scopes, label, created_ms, revoked_ms"


class KeyTables(ABC):
    """
    The tables of one store.

    Each write is one synced transaction of its own; those inside ``with together():`` are one in all.
    """

    def __init__(self) -> None:
        """Make what reads and writes them by records."""
        self.access_keys = AccessKeyRows(self)
        self.tokens = TokenRows(self)
        self.kept_requests = KeptRequestRows(self)

    @abstractmethod
    def together(self) -> AbstractContextManager[Any]:
        """
        Make all writes inside one transaction, which no other write comes between.

        All of them are done, or none when an exception leaves the block.
        """

    @abstractmethod
    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees what was written there."""

    @abstractmethod
    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Do one write; return how many rows it touched."""

    @abstractmethod
    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return whether it was there, and was not yet."""

    @abstractmethod
    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in one transaction; a time earlier than the stored one is ignored."""

    @abstractmethod
    def packed(self, texts: tuple[str, ...]) -> Any:
        """Return *texts* as one value of a row."""

    @abstractmethod
    def unpacked(self, value: Any) -> tuple[str, ...]:
        """Return the texts that *value* of a row is."""

    @property
    def master_key_fingerprint(self) -> str | None:
        """The mark of the master key that the secrets were sealed with; None before the first start."""
        rows = self.rows("SELECT fingerprint FROM master_key_mark")
        return None if not rows else str(rows[0][0])

    @master_key_fingerprint.setter
    def master_key_fingerprint(self, fingerprint: str) -> None:
        self.write(
            "INSERT INTO master_key_mark (id, fingerprint) VALUES (1, ?)"
            " ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint",
            (fingerprint,),
        )


class AccessKeyRows:
    """`AccessKeyRecords` in a store."""

    def __init__(self, tables: KeyTables) -> None:
        self._tables = tables

    def get(self, accesskey: str) -> AccessKeyRecord | None:
        """Return the record of *accesskey*."""
        if not _may_be_a_name(accesskey):
            return None
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_KEYS} FROM access_keys WHERE accesskey = ?", (accesskey,))
        return self._record(rows[0]) if rows else None

    def insert(self, record: AccessKeyRecord) -> None:
        """Store a new record."""
        self._tables.write(
            f"INSERT INTO access_keys ({_COLUMNS_OF_KEYS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.accesskey,
                record.customer,
                self._tables.packed(record.permissions),
                record.label,
                self._tables.packed(record.addresses),
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
            (*values, _position(after), limit),
        )
        return [self._record(row) for row in rows]

    def revoke(self, accesskey: str, now_ms: int) -> bool:
        """Mark *accesskey* as revoked at *now_ms*; return whether it was there and not yet revoked."""
        return self._tables.revoke("access_keys", "accesskey", accesskey, now_ms)

    def replace(self, accesskey: str, record: AccessKeyRecord, now_ms: int) -> bool:
        """Revoke *accesskey* and store *record*, both or neither; return whether that was done."""
        with self._tables.together():
            if not self.revoke(accesskey, now_ms):
                return False
            self.insert(record)
            return True

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used, in one transaction; a time earlier than the stored one is ignored."""
        self._tables.note_used(used)

    def _record(self, row: tuple[Any, ...]) -> AccessKeyRecord:
        accesskey, customer, permissions, label, addresses, *rest = row
        unpacked = self._tables.unpacked
        return AccessKeyRecord(accesskey, customer, unpacked(permissions), label, unpacked(addresses), *rest)


class TokenRows:
    """`TokenRecords` in a store."""

    def __init__(self, tables: KeyTables) -> None:
        self._tables = tables

    def together(self) -> AbstractContextManager[object]:
        """Make what is read and written inside one transaction, which no other write comes between."""
        return self._tables.together()

    def get(self, token_id: str) -> TokenRecord | None:
        """Return the record of the token with this id."""
        if not _may_be_a_name(token_id):
            return None
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id = ?", (token_id,))
        return self._record(rows[0]) if rows else None

    def by_digest(self, digest: bytes) -> TokenRecord | None:
        """Return the record of the token whose SHA-256 is *digest*."""
        rows = self._tables.rows(f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE digest = ?", (digest,))
        return self._record(rows[0]) if rows else None

    def insert(self, record: TokenRecord) -> None:
        """Store a new record."""
        self._tables.write(
            f"INSERT INTO operator_tokens ({_COLUMNS_OF_TOKENS}) VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.token_id,
                record.digest,
                self._tables.packed(record.scopes),
                record.label,
                record.created_ms,
                record.revoked_ms,
            ),
        )

    def list(self, after: str, limit: int) -> list[TokenRecord]:
        """Return at most *limit* records beyond the id *after*, in order."""
        rows = self._tables.rows(
            f"SELECT {_COLUMNS_OF_TOKENS} FROM operator_tokens WHERE token_id > ? ORDER BY token_id LIMIT ?",
            (_position(after), limit),
        )
        return [self._record(row) for row in rows]

    def revoke(self, token_id: str, now_ms: int) -> bool:
        """Mark the token as revoked at *now_ms*; return whether it was there and not yet revoked."""
        return self._tables.revoke("operator_tokens", "token_id", token_id, now_ms)

    def _record(self, row: tuple[Any, ...]) -> TokenRecord:
        token_id, digest, scopes, label, created_ms, revoked_ms = row
        return TokenRecord(token_id, digest, self._tables.unpacked(scopes), label, created_ms, revoked_ms)


class KeptRequestRows:
    """The idempotency keys of writes that are not in the journal: those about access keys and tokens."""

    def __init__(self, tables: KeyTables) -> None:
        self._tables = tables

    def get(self, idempotency_key: str) -> tuple[str, str] | None:
        """Return request and answer kept under *idempotency_key*, both as JSON text."""
        rows = self._tables.rows(
            "SELECT request_json, answer_json FROM kept_key_requests WHERE idempotency_key = ?", (idempotency_key,)
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def keep(self, idempotency_key: str, request_json: str, answer_json: str) -> None:
        """Keep request and answer; the answer holds no secret."""
        self._tables.write(
            "INSERT INTO kept_key_requests (idempotency_key, request_json, answer_json) VALUES (?, ?, ?)",
            (idempotency_key, request_json, answer_json),
        )


def _may_be_a_name(text: str) -> bool:
    """Say whether *text* can be an access key or the id of a token at all; not every store takes every text."""
    return text.isascii() and "\0" not in text


def _position(after: str) -> str:
    """Return *after* as a text that every store takes, at the same place in the order of all names."""
    return after.replace("\0", "\1")
