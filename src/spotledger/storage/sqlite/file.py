"""The ledger file: made with its schema, recognised, and opened as it must be to keep what it promises."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
from importlib import resources
from pathlib import Path
from typing import Final
from urllib.parse import quote

from spotledger.errors import SchemaMismatch
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.sqlite.errors import translated

#: "SpoL": says of an SQLite file that it is a ledger of ours.
APPLICATION_ID: Final = 0x53706F4C
#: "SpoB": a backup, which only a restore makes a ledger again, so that each restore begins a new epoch.
BACKUP_ID: Final = 0x53706F42
SCHEMA_VERSION: Final = 3
BUSY_TIMEOUT_MS: Final = 2_000
PAGE_CACHE_KIB: Final = 16_384
#: Pages in the write-ahead log before they are moved to the file.
CHECKPOINT_PAGES: Final = 2_000


def open_file(path: Path, segment_entries: int) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """
    Open the ledger at *path*, or make it; return the connection that writes and the one that reads.

    Raises:
        StoreUnavailable: The disk or another process is in the way.
        SchemaMismatch: The file is no ledger, or of another version.
    """
    with translated("opened"):
        _make_private(path)
        write = _connect(path)
        try:
            _recognise(write, path)
            _tune(write)
            # WAL with full sync: a commit has returned only when its frames are on the disk.
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
    Open the ledger at *path* for reading only, beside the process that owns it or without one.

    Raises:
        StoreUnavailable: It is not there, or the disk is in the way.
        SchemaMismatch: The file is no ledger, or of another version.
    """
    with translated("opened"):
        # Not mode=ro: without a write-ahead log beside the file, SQLite has to make an empty one to read it.
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
    """Make the file, readable by its owner only, where it is not there; the write-ahead log takes its mode over."""
    with contextlib.suppress(OSError):  # what is wrong with the place, opening it will say
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _connect(path: Path) -> sqlite3.Connection:
    # The commit may run in another thread than the statements before it, never at the same time.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    return connection


def _tune(connection: sqlite3.Connection) -> None:
    # These read the file's first page, so it must be known to be ours.
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
    """Make the schema and the first rows in one transaction, so that a file is a whole ledger or none."""
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
    """Run each statement of *script*; unlike ``executescript`` this stays within the transaction."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
