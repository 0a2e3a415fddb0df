"""The ledger file: how it is made, recognised and opened, and the one translation of SQLite's errors."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from importlib import resources
from pathlib import Path
from typing import Final
from urllib.parse import quote

from spotledger.errors import LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.encoding import genesis_hash

#: "SpoL": marks an SQLite file as a ledger.
APPLICATION_ID: Final = 0x53706F4C
#: "SpoB": marks a backup. Only a restore turns it into a ledger, so that each restore begins a new epoch.
BACKUP_ID: Final = 0x53706F42
SCHEMA_VERSION: Final = 3
BUSY_TIMEOUT_MS: Final = 2_000
PAGE_CACHE_KIB: Final = 16_384
#: Pages in the write-ahead log that start a checkpoint.
CHECKPOINT_PAGES: Final = 2_000

#: The reasons for errors by result code; an extended code that is not listed has the reason of its primary code.
_REASONS: Final = {
    sqlite3.SQLITE_FULL: "its disk is full; make room",
    sqlite3.SQLITE_IOERR_SHMSIZE: "its disk is full; make room",  # no room for the index of the write-ahead log
    sqlite3.SQLITE_IOERR: "its disk answered with an error",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_CANTOPEN: "a file of it could not be opened",
    sqlite3.SQLITE_BUSY: "another process is writing to it",
    sqlite3.SQLITE_LOCKED: "another process is writing to it",
    sqlite3.SQLITE_NOMEM: "there is no memory left",
    sqlite3.SQLITE_PERM: "this process may not use it",
    sqlite3.SQLITE_INTERRUPT: "it was interrupted",
}
#: The codes of a damaged file, also by primary code.
_DAMAGE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR_DATA, sqlite3.SQLITE_IOERR_CORRUPTFS}
)
#: Stands for the code of an error that has none; its low byte is no primary code either.
_NO_CODE: Final = -1

# --- errors -----------------------------------------------------------------------------------------


class translated:
    """
    Run a block of statements, and raise an error of the driver as one of ours.

    A class and not a generator, because each commit passes through several of them.

    Raises:
        StoreUnavailable: The disk or another process is in the way, or the code is unknown; a retry may succeed.
        LedgerCorrupt: The file is damaged, or *checked* data violated a constraint.
    """

    __slots__ = ("_checked", "_doing")

    def __init__(self, doing: str, *, checked: bool = False) -> None:
        """Take the arguments of :func:`translate`."""
        self._doing = doing
        self._checked = checked

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Translate *error* if it is the driver's."""
        if isinstance(error, sqlite3.Error):
            raise translate(error, self._doing, checked=self._checked) from error


def translate(error: sqlite3.Error, doing: str, *, checked: bool = False) -> StoreUnavailable | LedgerCorrupt:
    """
    Return our error for *error*, by its result code.

    Args:
        error: The driver's error.
        doing: What failed, for the message: ``"written"`` for a write that a caller may send again, ``"read"`` …
        checked: The rules have accepted what is written, so a violated constraint is a broken invariant.
    """
    if is_damage(error) or (checked and _code(error) & 0xFF == sqlite3.SQLITE_CONSTRAINT):
        # An error without a code quotes the row.
        found = f"{error} ({_name(error)})" if _code(error) != _NO_CODE else "a text in it is not UTF-8"
        return LedgerCorrupt(f"the ledger could not be {doing}: {found}")
    advice = "; try again with the same idempotency key" if doing == "written" else ""
    return StoreUnavailable(f"the ledger could not be {doing}: {reason_of(error)}{advice}")


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether *error* means that the file is damaged."""
    code = _code(error)
    if code == _NO_CODE:
        # The driver raises only one error of this class without a code: it could not decode a text.
        return type(error) is sqlite3.OperationalError
    return code in _DAMAGE or code & 0xFF in _DAMAGE


def reason_of(error: sqlite3.Error) -> str:
    """Return the reason for *error*, which is not damage, in words."""
    code = _code(error)
    return _REASONS.get(code) or _REASONS.get(code & 0xFF) or f"SQLite answered with {_name(error)}"


def _code(error: sqlite3.Error) -> int:
    """Return the extended result code, or `_NO_CODE` for an error of the driver itself."""
    return getattr(error, "sqlite_errorcode", _NO_CODE)


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", type(error).__name__)


# --- opening ----------------------------------------------------------------------------------------


def open_file(path: Path, segment_entries: int) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """
    Open the ledger at *path*, or create it; return the connection that writes and the one that reads.

    Raises:
        StoreUnavailable: The disk or another process is in the way.
        SchemaMismatch: The file is not a ledger, or of another version.
        LedgerCorrupt: The file is damaged.
    """
    with translated("opened"):
        _make_private(path)
        write = _connect(path)
        try:
            _recognise(write, path)
            _tune(write)
            # WAL with full sync: a commit returns only once its frames are on the disk.
            write.execute("PRAGMA journal_mode = WAL")
            write.execute("PRAGMA synchronous = FULL")
            write.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
            if _version(write) == 0:
                _make(write, segment_entries)
            read = _connect(path)
            _tune(read)
            read.execute("PRAGMA query_only = ON")
        except BaseException:
            write.close()
            raise
    return write, read


def open_to_read(path: Path) -> sqlite3.Connection:
    """
    Open the ledger at *path* read-only; another process may own it.

    Raises:
        StoreUnavailable: It does not exist, or the disk is in the way.
        SchemaMismatch: The file is not a ledger, or of another version.
        LedgerCorrupt: The file is damaged.
    """
    with translated("opened"):
        # Not mode=ro: if there is no write-ahead log, SQLite has to create an empty one to read the file.
        read = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=rw", uri=True, isolation_level=None)
        try:
            read.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            read.execute("PRAGMA query_only = ON")
            _recognise(read, path)
        except BaseException:
            read.close()
            raise
    return read


def _make_private(path: Path) -> None:
    """Create the file, readable by its owner only, if it is missing; the write-ahead log inherits its mode."""
    with contextlib.suppress(OSError):  # opening it will tell what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _connect(path: Path) -> sqlite3.Connection:
    # A commit may run in another thread than the statements before it, but never at the same time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _tune(connection: sqlite3.Connection) -> None:
    # These read the first page of the file, so it must have been recognised.
    connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _recognise(connection: sqlite3.Connection, path: Path) -> None:
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
            raise
        raise SchemaMismatch(f"{path} is not a ledger of spotledger, nor an SQLite file", path=str(path)) from error
    version = _version(connection)
    if tables == 0 and version == 0:
        return
    if application == BACKUP_ID:
        raise SchemaMismatch(f"{path} is a backup; restore it with: spotledger restore", path=str(path))
    if application != APPLICATION_ID:
        raise SchemaMismatch(f"{path} is an SQLite file, but not a ledger of spotledger", path=str(path))
    if version != SCHEMA_VERSION:
        raise SchemaMismatch(
            f"{path} has schema version {version}; this spotledger reads version {SCHEMA_VERSION}."
            " Use the spotledger that wrote it, or one that can migrate it.",
            path=str(path),
        )


def _make(connection: sqlite3.Connection, segment_entries: int) -> None:
    """Create the schema and the first rows in one transaction."""
    ledger_id = str(uuid.uuid4())
    connection.execute("BEGIN IMMEDIATE")
    try:
        for name in ("journal.sql", "keys.sql"):
            _run_script(connection, resources.files("spotledger.storage.sqlite").joinpath("sql", name).read_text())
        connection.execute(
            "INSERT INTO ledger VALUES (1, ?, 1, ?, 0, 0)",
            (ledger_id, segment_entries),
        )
        connection.execute("INSERT INTO head VALUES (1, 0, ?, 0)", (genesis_hash(ledger_id),))
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run each statement of *script*; unlike ``executescript``, stay within the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
