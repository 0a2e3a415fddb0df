"""
Copies of the ledger file: made beside writes, marked as backups, and turned into ledgers again.

Pages are copied through the connection that writes. SQLite applies what that connection commits meanwhile to the copy,
so no step is repeated, no snapshot keeps the write-ahead log growing, and the copy is the ledger at the time of the
last step (docs/decisions/0005-backup.md).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from spotledger.errors import BackupDamaged, SchemaMismatch, StoreUnavailable
from spotledger.storage.atomic_file import sync
from spotledger.storage.sqlite.file import (
    APPLICATION_ID,
    BACKUP_ID,
    SCHEMA_VERSION,
    is_damage,
    reason_of,
    translated,
)

#: Pages copied in one step: 2 MiB, for which a commit may wait about 3 ms.
STEP_PAGES: Final = 512
#: The pause between two steps, in which the writer has the file to itself.
REST_SECONDS: Final = 0.004
#: How soon a step is retried that met a commit.
BUSY_SECONDS: Final = 0.001
#: The copy fails after this time without a step, or after this many restarts.
STALL_SECONDS: Final = 60.0
RESTARTS_LIMIT: Final = 5
#: Steps between two syncs; a single sync at the end would hold up those of the commits.
SYNC_STEPS: Final = 16
CACHE_KIB: Final = 2_048
FINDINGS_LIMIT: Final = 10

_MARK = """
CREATE TABLE backup (
    only_row       INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id      TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    hash           BLOB NOT NULL,
    booked_ms      INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    master_key_fingerprint TEXT,
    made_ms        INTEGER NOT NULL
) STRICT
"""
_FACTS: Final = "ledger_id, epoch, seq, hash, booked_ms, schema_version, master_key_fingerprint, made_ms"
_STATE: Final = (
    f"SELECT ledger_id, epoch, seq, hash, booked_ms, {SCHEMA_VERSION},"
    " (SELECT fingerprint FROM master_key_mark), ? FROM ledger, head"
)

Progress = Callable[[int, int], None]


class BackupFacts(NamedTuple):
    """
    What a backup says about itself.

    The ledger and its epoch; ``seq``, hash and time of its last entry; the version of the schema; the fingerprint of
    the master key that seals its secrets, or None; when it was made. Times are ms since 1970.
    """

    ledger_id: str
    epoch: int
    seq: int
    hash: bytes
    booked_ms: int
    schema_version: int
    master_key_fingerprint: str | None
    made_ms: int


def copy_pages(source: sqlite3.Connection, target: Path, progress: Progress) -> None:
    """
    Copy the database of *source* to the empty file *target*, a few pages at a time. Blocks; use a thread.

    Args:
        source: The only connection that writes; another thread may use it meanwhile.
        target: An empty file.
        progress: Called between steps with the remaining pages and all pages; may raise to stop the copy.

    Raises:
        StoreUnavailable: The copy cannot be written, or makes no progress.
        LedgerCorrupt: The ledger is damaged.
    """
    with translated("copied"), closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # An unfinished copy is never used, so it needs no journal.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        pace = _Pace(target, progress)
        source.backup(copy, pages=STEP_PAGES, progress=pace.between_steps, sleep=BUSY_SECONDS)


class _Pace:
    """What happens between two steps: syncs and pauses after progress, and a limit without it."""

    def __init__(self, target: Path, progress: Progress) -> None:
        self._target = target
        self._progress = progress
        self._moved = time.monotonic()
        self._steps = 0
        self._restarts = 0
        self._before: tuple[int, int] | None = None

    def between_steps(self, status: int, left: int, pages: int) -> None:
        self._progress(left, pages)
        if status != sqlite3.SQLITE_OK:
            # Busy: a commit is being written. Any other status ends the copy.
            if time.monotonic() - self._moved > STALL_SECONDS:
                raise StoreUnavailable(f"nothing could be copied for {STALL_SECONDS:g} seconds; try again later")
            return
        self._count_restarts(left, pages)
        self._moved = time.monotonic()
        self._steps += 1
        if self._steps % SYNC_STEPS == 0:
            sync(self._target)
        time.sleep(REST_SECONDS)

    def _count_restarts(self, left: int, pages: int) -> None:
        if self._before is not None:
            left_before, pages_before = self._before
            self._restarts += left - left_before >= pages - pages_before  # after progress, fewer are left
        self._before = left, pages
        if self._restarts > RESTARTS_LIMIT:
            raise StoreUnavailable(
                f"the copy started again {self._restarts} times, because commits failed or another program wrote to"
                " the ledger file; try again later"
            )


def mark_as_backup(file: Path, made_ms: int) -> BackupFacts:
    """
    Mark the copy at *file* as a backup, which is no ledger until it is restored, and return its facts.

    Raises:
        StoreUnavailable: It cannot be written.
        LedgerCorrupt: It is damaged.
    """
    with translated("copied"), _alone(file) as copy:
        copy.execute(_MARK)
        copy.execute(f"INSERT INTO backup (only_row, {_FACTS}) SELECT 1, * FROM ({_STATE})", (made_ms,))
        copy.execute(f"PRAGMA application_id = {BACKUP_ID}")
        return _facts(copy)


def read_facts(file: Path) -> BackupFacts:
    """
    Return what the backup at *file* says about itself, without writing to it.

    Raises:
        SchemaMismatch: It is not a backup of spotledger, or of another version.
        BackupDamaged: It is damaged, or contradicts itself.
        StoreUnavailable: It cannot be read for another reason.
    """
    with _reading(file), closing(_read_only(file)) as copy:
        application = copy.execute("PRAGMA application_id").fetchone()[0]
        version = copy.execute("PRAGMA user_version").fetchone()[0]
        if application != BACKUP_ID:
            what = (
                "a ledger, not a backup of one" if application == APPLICATION_ID else "not a backup made by spotledger"
            )
            raise SchemaMismatch(f"{file} is {what}; a file that spotledger backup made would pass.", path=str(file))
        if version != SCHEMA_VERSION:
            raise SchemaMismatch(
                f"{file} has schema version {version}; this spotledger reads version {SCHEMA_VERSION}."
                " Use the spotledger that made it, or one that can migrate it.",
                path=str(file),
            )
        facts = _facts(copy)
        if facts[:-1] != copy.execute(_STATE, (0,)).fetchone()[:-1]:
            raise BackupDamaged(
                f"{file} is damaged: what it says about itself does not match its content.", path=str(file)
            )
        return facts


def check_structure(file: Path) -> None:
    """
    Check the backup at *file* as a database: pages, rows, indexes, types.

    Raises:
        BackupDamaged: It is damaged; the message has the first findings.
        StoreUnavailable: It cannot be read for another reason.
    """
    with _reading(file), closing(_read_only(file)) as copy:
        found = [str(row[0]) for row in copy.execute(f"PRAGMA integrity_check({FINDINGS_LIMIT})")]
    if found != ["ok"]:
        raise BackupDamaged(f"{file} is damaged: {'; '.join(found)}.", path=str(file))


def make_ledger_again(file: Path, epoch: int, revoked_ms: int | None) -> None:
    """
    Turn the marked copy at *file* into a ledger with a new epoch.

    Args:
        file: The copy, which nobody else uses.
        epoch: The new epoch.
        revoked_ms: If not None, the secrets of the access keys are lost: all keys are revoked at this time, and the
            next start may create a new master key.

    Raises:
        StoreUnavailable: It cannot be written.
        LedgerCorrupt: It is damaged.
    """
    with translated("restored"), _alone(file) as copy:
        copy.execute("DROP TABLE backup")
        copy.execute("UPDATE ledger SET epoch = ?", (epoch,))
        if revoked_ms is not None:
            copy.execute("UPDATE access_keys SET revoked_ms = ? WHERE revoked_ms IS NULL", (revoked_ms,))
            copy.execute("DELETE FROM master_key_mark")
        copy.execute(f"PRAGMA application_id = {APPLICATION_ID}")


@contextmanager
def _alone(file: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection with one transaction on a copy that nobody else uses, and leave no file beside it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")  # the copy of a file in WAL mode is in WAL mode, too
        copy.execute("PRAGMA journal_mode = MEMORY")
        copy.execute("BEGIN IMMEDIATE")
        yield copy
        copy.execute("COMMIT")


def _facts(copy: sqlite3.Connection) -> BackupFacts:
    return BackupFacts(*copy.execute(f"SELECT {_FACTS} FROM backup").fetchone())


def _read_only(file: Path) -> sqlite3.Connection:
    # Immutable: nobody writes to a backup, and reading it must leave no lock or log beside it.
    return sqlite3.connect(f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1", uri=True, isolation_level=None)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Translate errors of reading the backup *file*: it is no backup, it is damaged, or something is in the way."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_NOTADB:
            raise SchemaMismatch(
                f"{file} is not a backup made by spotledger, nor an SQLite file.", path=str(file)
            ) from error
        if is_damage(error) or code == sqlite3.SQLITE_ERROR:  # a table that every backup has is missing
            raise BackupDamaged(f"{file} is damaged: {error}.", path=str(file)) from error
        raise StoreUnavailable(f"{file} could not be read: {reason_of(error)}") from error
    except TypeError as error:  # a row that every backup has is missing
        raise BackupDamaged(f"{file} is damaged: it does not say what it is.", path=str(file)) from error
