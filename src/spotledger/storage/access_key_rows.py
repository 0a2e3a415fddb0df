"""
Access keys, operator tokens and the idempotency keys of writes about them, as rows of either store.

A ``?`` in a statement marks a value. What differs between the stores is left to the subclasses of `KeyTables`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from spotledger.security.access_keys import AccessKeyRecord
from spotledger.security.tokens import TokenRecord

R = TypeVar("R", bound=AccessKeyRecord | TokenRecord)


class Holder(NamedTuple):
    """A process of a fleet that is alive: what tells people which one, its master keys, and when it said so."""

    place: str
    fingerprints: tuple[str, ...]
    announced_ms: int


#: Secrets that are sealed anew between two statements.
RESEALED_ROWS: Final = 500


class KeyTables(ABC):
    """
    The tables of one store.

    Each write is one synced transaction; all writes inside ``with together():`` are one transaction.
    """

    def __init__(self) -> None:
        """Set up access by records."""
        self.access_keys = AccessKeyRows(self, AccessKeyRecord)
        self.tokens = TokenRows(self, TokenRecord)
        self.kept_requests = KeptRequestRows(self)

    @abstractmethod
    def together(self) -> AbstractContextManager[Any]:
        """
        Make all writes of a ``with`` block one transaction, which excludes other writes.

        It commits at the end of the block, and rolls back when an exception leaves the block.
        """

    @abstractmethod
    def confirm(self) -> None:
        """Make sure that what a ``together`` block has read is durable when the block has ended."""

    @abstractmethod
    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query; inside ``together`` it sees the writes of the block."""

    @abstractmethod
    def write(self, sql: str, values: tuple[Any, ...]) -> int:
        """Run one write; return how many rows it changed."""

    @abstractmethod
    def revoke(self, table: str, column: str, name: str, now_ms: int) -> bool:
        """Mark the row of *table* whose *column* is *name* as revoked; return False if it was so or is not there."""

    @abstractmethod
    def note_used(self, table: str, column: str, used: Mapping[str, int]) -> None:
        """Store when rows of *table*, named by *column*, were last used; a time before the stored one is ignored."""

    @abstractmethod
    def long_together(self) -> AbstractContextManager[Any]:
        """Begin a transaction like :meth:`together`, which may take long because it changes every access key."""

    @abstractmethod
    def store_sealed(self, sealed: Mapping[str, bytes]) -> None:
        """Replace sealed secrets: access key → what is stored from now on."""

    @abstractmethod
    def sweep(self) -> None:
        """
        Remove what rows were before from the files of the store, after a rotation of the master key.

        Raises:
            StoreUnavailable: Something is in the way, and the message says what; call it again later.
        """

    def holders(self) -> list[Holder]:
        """
        Return the processes that have the store open; within a transaction none can join them until it ends.

        An embedded store has no others than this one, and returns none.
        """
        return []

    @abstractmethod
    def packed(self, texts: tuple[str, ...]) -> Any:
        """Return *texts* as one value to store."""

    @abstractmethod
    def unpacked(self, value: Any) -> tuple[str, ...]:
        """Return the texts in the stored *value*."""

    @property
    def master_key_fingerprint(self) -> str | None:
        """The fingerprint of the master key that seals the secrets; None before the first start."""
        rows = self.rows("SELECT fingerprint FROM master_key_mark")
        return None if not rows else str(rows[0][0])

    @master_key_fingerprint.setter
    def master_key_fingerprint(self, fingerprint: str) -> None:
        self.write(
            "INSERT INTO master_key_mark (id, fingerprint, is_swept) VALUES (1, ?, 1)"
            " ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint",
            (fingerprint,),
        )

    @property
    def is_swept(self) -> bool:
        """Whether nothing that was sealed with an earlier master key is left in the files of the store."""
        return not self.rows("SELECT 1 FROM master_key_mark WHERE is_swept = 0")

    @property
    def retired_master_keys(self) -> dict[str, int]:
        """The fingerprints of earlier master keys, and when each was replaced, in ms since 1970; oldest first."""
        rows = self.rows("SELECT fingerprint, retired_ms FROM retired_master_keys ORDER BY retired_ms, fingerprint")
        return {str(fingerprint): int(retired_ms) for fingerprint, retired_ms in rows}

    def retire_master_key(self, fingerprint: str, retired_ms: int) -> None:
        """Note that the master key *fingerprint* was replaced at this time."""
        self.write("INSERT INTO retired_master_keys (fingerprint, retired_ms) VALUES (?, ?)", (fingerprint, retired_ms))

    def reseal(self, sealed_anew: Callable[[str, bytes, bool], bytes]) -> int:
        """
        Replace every sealed secret, within a transaction of the caller; return how many there are.

        Args:
            sealed_anew: Returns what to store for an access key, its sealed secret, and whether it was revoked.
        """
        after, count = "", 0
        while True:
            found = self.rows(
                "SELECT accesskey, sealed_secret, revoked_ms FROM access_keys WHERE accesskey > ?"
                f" ORDER BY accesskey LIMIT {RESEALED_ROWS}",
                (after,),
            )
            if not found:
                return count
            self.store_sealed({key: sealed_anew(key, sealed, revoked is not None) for key, sealed, revoked in found})
            after, count = found[-1][0], count + len(found)

    def mark_rotated(self, fingerprint: str) -> None:
        """Note that the secrets are sealed with the master key *fingerprint* now, and that the sweep is to come."""
        self.write("UPDATE master_key_mark SET fingerprint = ?, is_swept = 0 WHERE id = 1", (fingerprint,))

    def mark_swept(self) -> None:
        """Note that :meth:`sweep` is done."""
        self.write("UPDATE master_key_mark SET is_swept = ? WHERE id = 1", (1,))


class _RecordRows(Generic[R]):
    """Records of one kind as rows of one table; its columns are named like the fields of the record."""

    table: ClassVar[str]
    #: The fields that hold a list of texts.
    lists: ClassVar[frozenset[str]]

    def __init__(self, tables: KeyTables, kind: type[R]) -> None:
        self._tables = tables
        self._kind = kind
        self._names = [field.name for field in fields(kind)]
        self._select = f"SELECT {', '.join(self._names)} FROM {self.table} WHERE "

    def get(self, name: str) -> R | None:
        """Return the record whose first field is *name*."""
        return self._one(self._names[0], name) if _may_be_a_name(name) else None

    def insert(self, record: R) -> None:
        """Store a new record."""
        values = ((name, getattr(record, name)) for name in self._names)
        marks = ", ".join("?" for _ in self._names)
        self._tables.write(
            f"INSERT INTO {self.table} ({', '.join(self._names)}) VALUES ({marks})",
            tuple(self._tables.packed(value) if name in self.lists else value for name, value in values),
        )

    def revoke(self, name: str, now_ms: int) -> bool:
        """Mark the record as revoked at *now_ms*; return False if it was so or is not there."""
        return self._tables.revoke(self.table, self._names[0], name, now_ms)

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when records were last used: name → ms since 1970; a time before the stored one is ignored."""
        self._tables.note_used(self.table, self._names[0], used)

    def _one(self, column: str, value: Any) -> R | None:
        rows = self._tables.rows(f"{self._select}{column} = ?", (value,))
        return self._record(rows[0]) if rows else None

    def _page(self, after: str, limit: int, customer: str | None = None) -> list[R]:
        """Return at most *limit* records after *after*, in the order of their first fields."""
        name = self._names[0]
        of_customer = "" if customer is None else "customer = ? AND "
        query = f"{self._select}{of_customer}{name} > ? ORDER BY {name} LIMIT ?"
        owner = () if customer is None else (customer,)
        return [self._record(row) for row in self._tables.rows(query, (*owner, _position(after), limit))]

    def _record(self, row: tuple[Any, ...]) -> R:
        values: dict[str, Any] = dict(zip(self._names, row, strict=True))
        return self._kind(**values | {name: self._tables.unpacked(values[name]) for name in self.lists})


class AccessKeyRows(_RecordRows[AccessKeyRecord]):
    """`AccessKeyRecords` in a store."""

    table = "access_keys"
    lists = frozenset({"permissions", "addresses"})

    def list(self, customer: str | None, after: str, limit: int) -> list[AccessKeyRecord]:
        """Return at most *limit* records after the access key *after*, of *customer* or of all, in order."""
        return self._page(after, limit, customer)

    def replace(self, accesskey: str, record: AccessKeyRecord, now_ms: int) -> bool:
        """Revoke *accesskey* and store *record* in one transaction; return False, and do neither, if it was revoked."""
        with self._tables.together():
            if not self.revoke(accesskey, now_ms):
                return False
            self.insert(record)
            return True


class TokenRows(_RecordRows[TokenRecord]):
    """`TokenRecords` in a store."""

    table = "operator_tokens"
    lists = frozenset({"scopes", "addresses"})

    def together(self) -> AbstractContextManager[object]:
        """Make all reads and writes of a ``with`` block one transaction, which excludes other writes."""
        return self._tables.together()

    def by_digest(self, digest: bytes) -> TokenRecord | None:
        """Return the record of the token whose SHA-256 is *digest*."""
        return self._one("digest", digest)

    def labels(self, token_ids: Sequence[str]) -> dict[str, str]:
        """Return the labels of the tokens with these ids, by id, of those that exist."""
        names = tuple(filter(_may_be_a_name, token_ids))
        if not names:
            return {}
        marks = ", ".join("?" for _ in names)
        return dict(self._tables.rows(f"SELECT token_id, label FROM {self.table} WHERE token_id IN ({marks})", names))

    def list(self, after: str, limit: int) -> list[TokenRecord]:
        """Return at most *limit* records after the id *after*, in order."""
        return self._page(after, limit)


class KeptRequestRows:
    """The idempotency keys of writes about access keys and tokens, which are not in the journal."""

    def __init__(self, tables: KeyTables) -> None:
        self._tables = tables

    def get(self, idempotency_key: str) -> tuple[str, str] | None:
        """Return the request and the answer that were kept under *idempotency_key*, as JSON texts, or None."""
        rows = self._tables.rows(
            "SELECT request_json, answer_json FROM kept_key_requests WHERE idempotency_key = ?", (idempotency_key,)
        )
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def keep(self, idempotency_key: str, request_json: str, answer_json: str) -> None:
        """Keep a request and its answer, which must not contain a secret."""
        self._tables.write(
            "INSERT INTO kept_key_requests (idempotency_key, request_json, answer_json) VALUES (?, ?, ?)",
            (idempotency_key, request_json, answer_json),
        )


def _may_be_a_name(text: str) -> bool:
    """Return whether *text* can be an access key or a token id at all; PostgreSQL does not take every text."""
    return text.isascii() and "\0" not in text


def _position(after: str) -> str:
    """Return *after* as a text that every store takes and that sorts alike."""
    return after.replace("\0", "\1")
