"""Access keys and tokens at a restore: what was revoked in the folder stays revoked, and what came back is listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import DataFolderUnusable, LedgerCorrupt, SpotledgerError
from spotledger.security.access_keys import AccessKeyRecord
from spotledger.security.tokens import TokenRecord
from spotledger.storage.sqlite.file import KEYS_FILE
from spotledger.storage.sqlite.keys import SqliteKeyTables
from spotledger.storage.sqlite.wal import find_damage

#: Access keys and tokens that are read at a time.
PAGE: Final = 1_000


class Revoked(NamedTuple):
    """What a file of access keys says was revoked: when, in ms since 1970, by access key and by token id."""

    access_keys: Mapping[str, int]
    tokens: Mapping[str, int]
    #: The number of the last change of the file.
    change: int


class GoodCredentials(NamedTuple):
    """The access keys and tokens that are good after a restore."""

    access_keys: list[AccessKeyRecord]
    tokens: list[TokenRecord]

    @property
    def has_admin(self) -> bool:
        """Whether any of the tokens has the scope ``admin``."""
        return any("admin" in token.scopes for token in self.tokens)

    def as_json(self) -> dict[str, Any]:
        """Return what names each of them, without secrets and hashes."""
        return {
            "access_keys": [
                {"accesskey": key.accesskey, "customer": key.customer, "label": key.label, "created_ms": key.created_ms}
                for key in self.access_keys
            ],
            "tokens": [
                {"token_id": token.token_id, "label": token.label, "created_ms": token.created_ms}
                for token in self.tokens
            ],
        }


def read_revoked(folder: Path, ledger_id: str, noted_change: int) -> Revoked | None:
    """
    Return what the access keys in *folder*, which the caller owns, say was revoked; None where there are none.

    Args:
        folder: The data folder.
        ledger_id: The ledger that is restored into it.
        noted_change: The number of the last change of its keys that was noted in the folder.

    Raises:
        DataFolderUnusable: The file is damaged, behind what was noted, or of another ledger.
    """
    file = folder / KEYS_FILE
    if not file.exists() or not file.stat().st_size:
        return None
    try:
        _check_log(file.with_name(f"{file.name}-wal"))
        with closing(SqliteKeyTables(file, ledger_id, noted_change)) as tables:
            return Revoked(
                _revoked(tables, "access_keys", "accesskey"),
                _revoked(tables, "operator_tokens", "token_id"),
                tables.change,
            )
    except (SpotledgerError, LedgerCorrupt, OSError) as problem:
        raise DataFolderUnusable(
            f"What was revoked cannot be taken from {file}: {problem}. Put the file right or move it away. Then all"
            " that the backup has works again, as it does with --credentials-from-backup.",
            path=str(file),
        ) from problem


def _check_log(log: Path) -> None:
    damage = find_damage(log)
    if damage is not None:
        raise LedgerCorrupt(f"{log} is damaged at byte {damage.offset}: {damage.reason}")


def _revoked(tables: SqliteKeyTables, table: str, name: str) -> dict[str, int]:
    return dict(tables.rows(f"SELECT {name}, revoked_ms FROM {table} WHERE revoked_ms IS NOT NULL"))


def read_good(file: Path, ledger_id: str, now_ms: int) -> GoodCredentials:
    """Return what is neither revoked nor expired in the *file* of access keys of the ledger."""
    with closing(SqliteKeyTables(file, ledger_id)) as tables:
        keys = in_pages(lambda after: tables.access_keys.list(None, after, PAGE), "accesskey")
        tokens = in_pages(lambda after: tables.tokens.list(after, PAGE), "token_id")
        return GoodCredentials(
            [key for key in keys if key.revoked_ms is None and (key.expires_ms or now_ms) >= now_ms],
            [token for token in tokens if token.is_in_use(now_ms)],
        )


def in_pages(page: Callable[[str], list[Any]], name: str) -> Iterator[Any]:
    """Give all records of *page*, which returns those after a record's *name*, in order."""
    after = ""
    while found := page(after):
        yield from found
        after = getattr(found[-1], name)
