"""Access keys, tokens and what belongs to them, as far as they can be checked without the master key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from spotledger.audit.credentials import wrong_columns
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.postgres.queries import Queries

#: The columns of each table; the first one names the row.
_COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    "access_keys": (
        *("accesskey", "customer", "permissions", "label", "addresses", "sealed_secret"),
        *("created_ms", "expires_ms", "revoked_ms", "last_used_ms", "revoked_change"),
    ),
    "operator_tokens": (
        *("token_id", "digest", "scopes", "label", "created_ms"),
        *("expires_ms", "addresses", "revoked_ms", "last_used_ms", "revoked_change"),
    ),
    "kept_key_requests": ("idempotency_key", "request_json", "answer_json"),
    "key_version": ("id", "version"),
    "master_key_mark": ("id", "fingerprint", "is_swept"),
    "retired_master_keys": ("fingerprint", "retired_ms"),
}
_CODE: Final = "access_key_malformed"


class CredentialCheck:
    """The check of one database."""

    def __init__(self, queries: Queries, journal: JournalPass, findings: Findings) -> None:
        """Check the tables that *queries* reads; *journal* says which customers there are."""
        self._queries = queries
        self._journal = journal
        self._findings = findings
        self._version = 0

    def check(self) -> None:
        """Check every row; has to be called in one snapshot with the end of the journal."""
        with self._queries.examining("key_version"):
            self._check_version()
        for table in ("access_keys", "operator_tokens", "kept_key_requests", "retired_master_keys"):
            with self._queries.examining(table):
                self._check_table(table)
        with self._queries.examining("master_key_mark"):
            self._check_mark()

    def _check_mark(self) -> None:
        """Check that it is known with which master key the secrets are sealed."""
        count = self._check_table("master_key_mark")
        if count > 1:
            self._findings.add("row_repeated", None, "master_key_mark", f"{count} rows", "one row")
        if not count and self._queries.rows("SELECT 1 FROM access_keys LIMIT 1"):
            self._findings.add(_CODE, None, "master_key_mark", "no row", "the mark of the key that seals the secrets")

    def _check_version(self) -> None:
        count = self._check_table("key_version")
        if count > 1:
            self._findings.add("row_repeated", None, "key_version", f"{count} rows", "one row")
        if not count:
            self._findings.add(_CODE, None, "key_version", "no row", "one row")
        found = [row[0] for row in self._queries.rows("SELECT version FROM key_version")]
        versions = [version for version in found if isinstance(version, int)]
        self._version = max(versions, default=0)

    def _check_table(self, table: str) -> int:
        """Check the rows of *table*; return how many there are."""
        columns = _COLUMNS[table]
        rows = self._queries.rows(f"SELECT {', '.join(columns)} FROM {table}")
        seen: set[Any] = set()
        for row in rows:
            # Not more of the name than the first characters: it is half of a credential.
            where = f"{table} {str(row[0])[:8]}…"
            wrong = wrong_columns(columns, row)
            if wrong is not None:
                self._findings.add(_CODE, None, where, wrong, "as the schema has it")
                continue
            if row[0] in seen:
                self._findings.add("row_repeated", None, where, "a second row", "one row")
            seen.add(row[0])
            self._check_values(where, dict(zip(columns, row, strict=True)))
        return len(rows)

    def _check_values(self, where: str, values: Mapping[str, Any]) -> None:
        """Check what the values of a well-formed row say of each other, of the journal and of the version."""
        customer = values.get("customer")
        if customer is not None and customer not in self._journal.customers:
            self._findings.add(_CODE, None, where, f"of {customer}", "of a customer who is registered")
        if "revoked_ms" not in values:
            return
        revoked_ms, change = values["revoked_ms"], values["revoked_change"]
        if (revoked_ms is None) != (change is None):
            found = f"revoked_ms {revoked_ms}, revoked_change {change}"
            self._findings.add(_CODE, None, where, found, "both or neither")
        elif change is not None and not 1 <= change <= self._version:
            expected = f"1 to {self._version}, the version of the keys"
            self._findings.add(_CODE, None, where, f"revoked_change {change}", expected)
