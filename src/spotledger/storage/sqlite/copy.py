"""
Copies of the ledger: made while it is written to, marked as backups, and made ledgers again.

A backup is one file with the journal and the access keys; the books are left out, because they are made again. Entries
are copied a few hundred at a time, in order and each checked against the chain of hashes, so no snapshot is held while
the write-ahead log grows, and a damaged journal gives no backup. The keys are copied first: so no key names a customer
whom the copy of the journal lacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from spotledger.errors import BackupDamaged, LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.encoding import chain_hash, genesis_hash
from spotledger.storage.sqlite.file import (
    BACKUP_ID,
    BOOKS,
    JOURNAL,
    KEYS,
    SCHEMA_VERSION,
    Connection,
    is_damage,
    name_of,
    open_reader,
    open_untouched,
    open_writer,
    pragma,
    reason_of,
    schema_of,
    script_of,
)

#: Entries copied in one step, and how long the copying rests after each.
STEP_ENTRIES: Final = 500
REST_SECONDS: Final = 0.001
#: Steps between two commits of the copy.
COMMIT_STEPS: Final = 64
FINDINGS_LIMIT: Final = 10

_MARK: Final = """
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
_KEY_TABLES: Final = tuple(sorted(name for name, sql in schema_of(KEYS).items() if sql.startswith("CREATE TABLE")))

Progress = Callable[[int, int], None]


class BackupFacts(NamedTuple):
    """
    What a backup says it is.

    The ledger and its epoch; ``seq``, hash and time of the last entry that is in it; the schema's version; the mark
    of the master key that secrets in it are sealed with, or None; when it was made. Times are ms since 1970.
    """

    ledger_id: str
    epoch: int
    seq: int
    hash: bytes
    booked_ms: int
    schema_version: int
    master_key_fingerprint: str | None
    made_ms: int


def copy_ledger(journal: Path, keys: Path, target: Path, progress: Progress) -> None:
    """
    Copy journal and access keys to the empty file *target*, a few rows at a time; call it in a thread of its own.

    Args:
        journal: The journal; the process that owns it may go on writing.
        keys: The access keys.
        target: An empty file.
        progress: Called between steps with the entries that are left and the entries in all; may raise to stop it.

    Raises:
        StoreUnavailable: The copy cannot be written.
        LedgerCorrupt: The journal or the keys are damaged.
    """
    with _writing(), closing(open_writer(target, JOURNAL, lambda _: None, is_synced=False)) as copy:
        copy.execute("BEGIN")
        copy.execute(script_of(KEYS))
        with closing(open_reader(keys, KEYS)) as source:
            _copy_keys(source, copy)
        with closing(open_reader(journal, JOURNAL)) as source:
            _copy_entries(source, copy, progress)
        copy.execute("COMMIT")


def _copy_keys(source: Connection, copy: Connection) -> None:
    source.execute("BEGIN")
    for table in _KEY_TABLES:
        rows = source.execute(f"SELECT * FROM {table}").fetchall()
        if rows:
            copy.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    source.execute("ROLLBACK")


def _copy_entries(source: Connection, copy: Connection, progress: Progress) -> None:
    """Copy the entries up to the head as it stands when the last step is done."""
    [ledger] = source.execute("SELECT * FROM ledger").fetchall()
    copy.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", ledger)
    seq, link = 0, genesis_hash(ledger[1])
    steps = 0
    while True:
        rows = source.execute(
            "SELECT seq, body, hash FROM entry WHERE seq > ? AND seq <= (SELECT seq FROM head) ORDER BY seq LIMIT ?",
            (seq, STEP_ENTRIES),
        ).fetchall()
        [head] = source.execute("SELECT seq, hash, booked_ms FROM head").fetchall()
        for found, body, kept_hash in rows:
            seq, link = seq + 1, chain_hash(link, body.encode())
            if (found, kept_hash) != (seq, link):
                raise LedgerCorrupt(f"entry {seq} is missing, or does not fit the chain of hashes")
        copy.executemany("INSERT INTO entry VALUES (?, ?, ?)", rows)
        progress(head[0] - seq, head[0])
        if seq == head[0]:
            copy.execute("INSERT INTO head VALUES (1, ?, ?, ?)", (seq, link, head[2]))
            return
        if not rows:
            raise LedgerCorrupt(f"entry {seq + 1} is missing from the journal")
        steps += 1
        if steps % COMMIT_STEPS == 0:
            copy.execute("COMMIT")
            copy.execute("BEGIN")
        time.sleep(REST_SECONDS)


def mark_as_backup(file: Path, made_ms: int) -> BackupFacts:
    """
    Write into the copy at *file* what it is, and make it one file that is no ledger until it is restored.

    Raises:
        StoreUnavailable: It cannot be written.
    """
    with _writing(), _unshared(file) as copy:
        copy.execute(_MARK)
        copy.execute(f"INSERT INTO backup (only_row, {_FACTS}) SELECT 1, * FROM ({_STATE})", (made_ms,))
        copy.execute(f"PRAGMA application_id = {BACKUP_ID}")
        return _facts(copy)


def read_facts(file: Path) -> BackupFacts:
    """
    Return what the backup at *file* says it is; nothing is written.

    Raises:
        SchemaMismatch: It is no backup of ours, or of another version.
        BackupDamaged: It contradicts itself, or cannot be read.
    """
    with _reading(file), closing(open_untouched(file)) as copy:
        application = pragma(copy, "application_id")
        version = pragma(copy, "user_version")
        if application != BACKUP_ID:
            is_ours = application in (JOURNAL.application_id, BOOKS.application_id, KEYS.application_id)
            what = "a file of a ledger, not a backup of one" if is_ours else "no backup made by spotledger"
            raise SchemaMismatch(f"{file} is {what}; a file that spotledger backup made would pass.", path=str(file))
        if version != SCHEMA_VERSION:
            raise SchemaMismatch(
                f"{file} has schema version {version}; this spotledger reads version {SCHEMA_VERSION}."
                " Use the spotledger that made it, or one that can migrate it.",
                path=str(file),
            )
        facts = _facts(copy)
        state = copy.execute(_STATE, (0,)).fetchall()
        if [facts[:-1]] != [row[:-1] for row in state]:
            raise BackupDamaged(f"{file} is damaged: what it says about itself is not what is in it.", path=str(file))
        return facts


def check_structure(file: Path) -> None:
    """
    Check that the database at *file* is whole as a database: pages, rows, indexes, types.

    Raises:
        BackupDamaged: It is not; the message has the first findings.
    """
    with _reading(file), closing(open_untouched(file)) as copy:
        found = [str(row[0]) for row in copy.execute(f"PRAGMA integrity_check({FINDINGS_LIMIT})")]
    if found != ["ok"]:
        raise BackupDamaged(f"{file} is damaged: {'; '.join(found)}.", path=str(file))


def make_ledger_again(file: Path, keys: Path, epoch: int, revoked_ms: int | None) -> None:
    """
    Make the marked copy at *file* a journal in the new *epoch*, and *keys* the file of its access keys.

    Args:
        file: The copy, which nobody else uses.
        keys: A file that is not there yet.
        epoch: The epoch that begins.
        revoked_ms: Where not None: the access keys cannot be opened any more, so all are revoked at this time, and
            the next start may make a new master key.

    Raises:
        StoreUnavailable: It cannot be written.
    """
    with _writing(), _unshared(file) as copy:
        with closing(open_writer(keys, KEYS, lambda made: _copy_keys_out(copy, made))) as made:
            if revoked_ms is not None:
                made.execute("BEGIN IMMEDIATE")
                made.execute("UPDATE access_keys SET revoked_ms = ? WHERE revoked_ms IS NULL", (revoked_ms,))
                made.execute("DELETE FROM master_key_mark")
                made.execute("COMMIT")
        for table in (*_KEY_TABLES, "backup"):
            copy.execute(f"DROP TABLE {table}")
        copy.execute("UPDATE ledger SET epoch = ?", (epoch,))
        copy.execute(f"PRAGMA application_id = {JOURNAL.application_id}")


def _copy_keys_out(copy: Connection, made: Connection) -> None:
    for table in _KEY_TABLES:
        rows = copy.execute(f"SELECT * FROM {table}").fetchall()
        if rows:
            made.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


@contextmanager
def _unshared(file: Path) -> Iterator[Connection]:
    """Give a connection for one transaction on a copy that nobody else uses, and leave no other file beside it."""
    with closing(open_writer(file, JOURNAL, lambda _: None)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")
        copy.execute("PRAGMA secure_delete = ON")
        copy.execute("BEGIN IMMEDIATE")
        yield copy
        copy.execute("COMMIT")


def _facts(copy: Connection) -> BackupFacts:
    rows = copy.execute(f"SELECT {_FACTS} FROM backup").fetchall()
    if len(rows) != 1:
        raise LedgerCorrupt("it does not say what it is")
    return BackupFacts(*rows[0])


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        if is_damage(error):
            raise LedgerCorrupt(f"the ledger could not be copied: it is damaged ({name_of(error)})") from error
        raise StoreUnavailable(f"the copy could not be written: {reason_of(error)}") from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except apsw.NotADBError as error:
        raise SchemaMismatch(f"{file} is no backup made by spotledger, nor an SQLite file.", path=str(file)) from error
    except (apsw.Error, UnicodeDecodeError, LedgerCorrupt) as error:
        raise BackupDamaged(f"{file} is damaged: {error}.", path=str(file)) from error
