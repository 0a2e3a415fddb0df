"""
Copies of the ledger: made while it is written to, marked as backups, and made ledgers again.

A backup is one file with the journal and the access keys; the books are left out, because they are made again. Entries
are copied a few hundred at a time, in order and each checked against the chain of hashes, so no snapshot is held while
the write-ahead log grows, and a damaged journal gives no backup. The keys are copied first: so no key names a customer
whom the copy of the journal lacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from spotledger.errors import BackupDamaged, LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.atomic_file import sync
from spotledger.storage.base import Head
from spotledger.storage.encoding import decode_entry
from spotledger.storage.sqlite.file import (
    BACKUP,
    BACKUP_ID,
    BOOKS,
    JOURNAL,
    KEYS,
    SCHEMA_VERSION,
    Connection,
    is_damage,
    open_alone,
    open_reader,
    open_untouched,
    pragma,
    reason_of,
    schema_of,
    script_of,
    translated,
)
from spotledger.storage.sqlite.journal import SqliteJournal

#: Rows copied in one step, and how long the copying rests after each.
STEP_ROWS: Final = 100
REST_SECONDS: Final = 0.001
#: Bytes of entries between two syncs of the copy; one sync of everything at the end would hold up those of commits.
SYNC_BYTES: Final = 16 * 1024 * 1024
#: What was written while the copying went on is copied too, then what was written meanwhile, and so on: so often.
ROUNDS_LIMIT: Final = 3
FINDINGS_LIMIT: Final = 10

_MARK: Final = """CREATE TABLE backup (
    only_row       INTEGER PRIMARY KEY CHECK (only_row = 1),
    ledger_id      TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    seq            INTEGER NOT NULL,
    hash           BLOB NOT NULL,
    booked_ms      INTEGER NOT NULL,
    schema_version INTEGER NOT NULL,
    master_key_fingerprint TEXT,
    made_ms        INTEGER NOT NULL
) STRICT"""
_FACTS: Final = "ledger_id, epoch, seq, hash, booked_ms, schema_version, master_key_fingerprint, made_ms"
_STATE: Final = (
    f"SELECT ledger_id, epoch, seq, hash, booked_ms, {SCHEMA_VERSION},"
    " (SELECT fingerprint FROM master_key_mark), ? FROM ledger JOIN keys_of USING (ledger_id), head"
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


# --- making a backup --------------------------------------------------------------------------------


def copy_ledger(journal: Path, keys: Path, target: Path, progress: Progress) -> None:
    """
    Copy journal and access keys to the empty file *target*, a few rows at a time; call it in a thread of its own.

    Args:
        journal: The journal; the process that owns it may go on writing.
        keys: The access keys.
        target: An empty file, which is no use where the copying does not end.
        progress: Called between steps with the entries that are left and the entries in all; may raise to stop it.

    Raises:
        StoreUnavailable: The copy cannot be written, or what is copied cannot be read.
        LedgerCorrupt: The journal or the keys are damaged, or lack what was acknowledged.
    """
    with _writing(), closing(open_alone(target, BACKUP, _make_tables)) as copy:
        copy.execute("BEGIN")
        with SqliteJournal(journal) as source:
            _copy_keys(keys, source, copy)
        _copy_entries(journal, copy, target, progress)
        copy.execute("COMMIT")


def _make_tables(copy: Connection) -> None:
    copy.execute(script_of(KEYS))
    copy.execute(_MARK)


def _copy_keys(keys: Path, source: SqliteJournal, copy: Connection) -> None:
    with closing(open_reader(keys, KEYS)) as connection:
        with translated("copied", KEYS):
            connection.execute("BEGIN")
            found = connection.execute("SELECT ledger_id, change FROM keys_of").fetchall()
        noted = 0 if source.note is None else source.note.keys_change
        if len(found) != 1 or found[0][0] != source.ledger_id or found[0][1] < noted:
            raise LedgerCorrupt(
                f"{keys} says that it is of the ledger and at the change {found}; of {source.ledger_id} at change"
                f" {noted} or later would pass"
            )
        _copy_rows(connection, copy)


def _rows_of_keys(keys: Connection) -> Iterator[tuple[str, list[tuple[object, ...]]]]:
    """Give the rows of each table of access keys, some at a time."""
    with translated("copied", KEYS):
        for table in _KEY_TABLES:
            found = keys.execute(f"SELECT * FROM {table}")
            while rows := list(islice(found, STEP_ROWS)):
                yield table, rows


def _insert(copy: Connection, table: str, rows: list[tuple[object, ...]]) -> None:
    copy.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _copy_entries(journal: Path, copy: Connection, target: Path, progress: Progress) -> None:
    """Copy the entries up to the head as it stands in the end: to the end of a commit, so no chain is cut in two."""
    steps = _Steps(copy, target, progress)
    for number in range(ROUNDS_LIMIT):
        with SqliteJournal(journal, STEP_ROWS) as source:
            if number == 0:
                copy.execute(
                    "INSERT INTO ledger VALUES (1, ?, ?, ?, 0)",
                    (source.ledger_id, source.epoch, source.segment_entries),
                )
            elif source.head.seq == steps.head.seq:
                break
            steps.copy_up_to_head(source)
    copy.execute("INSERT INTO head VALUES (1, ?, ?, ?)", steps.head)


class _Steps:
    """Copies entries step by step."""

    def __init__(self, copy: Connection, target: Path, progress: Progress) -> None:
        self._copy = copy
        self._target = target
        self._progress = progress
        self._unsynced = 0
        #: The last entry that was copied, the head of its time.
        self.head = Head(0, b"", 0)

    def copy_up_to_head(self, source: SqliteJournal) -> None:
        """Copy the entries of *source* that are not copied yet."""
        rows = source.rows(self.head.seq)
        body = b""
        while part := list(islice(rows, STEP_ROWS)):
            seq, body, _ = part[-1]
            self._copy.executemany("INSERT INTO entry VALUES (?, CAST(? AS TEXT), ?)", part)
            self._progress(source.head.seq - seq, source.head.seq)
            self._sync(sum(len(row.body) for row in part))
            time.sleep(REST_SECONDS)
        if body and decode_entry(body).booked_ms != source.head.booked_ms:
            raise LedgerCorrupt(f"the time of entry {source.head.seq}, the last, is not the one that the head has")
        self.head = source.head

    def _sync(self, written: int) -> None:
        self._unsynced += written
        if self._unsynced > SYNC_BYTES:
            self._unsynced = 0
            sync(self._target)


def mark_as_backup(file: Path, made_ms: int) -> BackupFacts:
    """
    Write into the copy at *file* what it is.

    Raises:
        StoreUnavailable: It cannot be written.
    """
    with _writing(), _unshared(file) as copy:
        copy.execute(f"INSERT INTO backup (only_row, {_FACTS}) SELECT 1, * FROM ({_STATE})", (made_ms,))
        return _facts(copy)


# --- what a backup says -----------------------------------------------------------------------------


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
    Check that the database at *file* is whole as a database: pages and their checksums, rows, indexes, types.

    Raises:
        BackupDamaged: It is not; the message has the first findings.
    """
    with _reading(file), closing(open_untouched(file)) as copy:
        found = [str(row[0]) for row in copy.execute(f"PRAGMA integrity_check({FINDINGS_LIMIT})")]
        wrong = [] if found == ["ok"] else found
        if pragma(copy, "checksum_verification") != 1:
            wrong.append("its pages have no checksums")
        schema = dict(copy.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall())
        expected = {**schema_of(JOURNAL), **schema_of(KEYS), "backup": _MARK}
        changed = sorted(name for name in {**schema, **expected} if schema.get(name) != expected.get(name))
        if changed:
            wrong.append(f"its schema was changed: {', '.join(changed)}")
    if wrong:
        raise BackupDamaged(f"{file} is damaged: {'; '.join(wrong)}.", path=str(file))


# --- making a ledger of it --------------------------------------------------------------------------


class Credentials(NamedTuple):
    """What becomes of the access keys and tokens of a backup."""

    #: The number of a change of the keys; that of the restored file is higher.
    change: int
    #: What was revoked since the backup: when, in ms since 1970, by access key and by token id.
    revoked_keys: Mapping[str, int]
    revoked_tokens: Mapping[str, int]
    #: Where not None: the access keys cannot be opened any more, so all are revoked at this time, and the next start
    #: may make a new master key.
    all_revoked_ms: int | None


class KeysMade(NamedTuple):
    """What the restored access keys are: the number of their last change, and how many are revoked since the backup."""

    change: int
    revoked: int


def make_ledger_again(file: Path, keys: Path, epoch: int, credentials: Credentials) -> KeysMade:
    """
    Make the marked copy at *file* a journal in the new *epoch*, and the new file *keys* its access keys.

    Raises:
        StoreUnavailable: One of the two cannot be written.
        LedgerCorrupt: The copy is damaged.
    """
    with _writing(), _unshared(file) as copy:
        with closing(open_alone(keys, KEYS, lambda made: _copy_rows(copy, made))) as made:
            made.execute("BEGIN")
            done = _revoke(made, credentials)
            made.execute("COMMIT")
        for table in (*_KEY_TABLES, "backup"):
            copy.execute(f"DROP TABLE {table}")
        copy.execute("UPDATE ledger SET epoch = ?", (epoch,))
        copy.execute(f"PRAGMA application_id = {JOURNAL.application_id}")
    return done


def _copy_rows(keys: Connection, copy: Connection) -> None:
    for table, rows in _rows_of_keys(keys):
        _insert(copy, table, rows)


def _revoke(keys: Connection, credentials: Credentials) -> KeysMade:
    """Revoke what is to be, and count the change."""
    keys.execute("UPDATE keys_of SET change = max(change, ?) + 1", (credentials.change,))
    [(change,)] = keys.execute("SELECT change FROM keys_of").fetchall()
    count = 0
    for table, name, revoked in (
        ("access_keys", "accesskey", credentials.revoked_keys),
        ("operator_tokens", "token_id", credentials.revoked_tokens),
    ):
        for found, revoked_ms in revoked.items():
            keys.execute(
                f"UPDATE {table} SET revoked_ms = ? WHERE {name} = ? AND revoked_ms IS NULL", (revoked_ms, found)
            )
            count += keys.changes()
    if credentials.all_revoked_ms is not None:
        keys.execute("UPDATE access_keys SET revoked_ms = ? WHERE revoked_ms IS NULL", (credentials.all_revoked_ms,))
        keys.execute("DELETE FROM master_key_mark")
    return KeysMade(change, count)


@contextmanager
def _unshared(file: Path) -> Iterator[Connection]:
    """Give a connection for one transaction on a copy that nobody else uses."""
    with closing(open_alone(file, BACKUP, lambda _: None)) as copy:
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
    """Translate errors of the copy; those of what is copied are translated where it is read."""
    try:
        yield
    except (apsw.ConstraintError, apsw.MismatchError) as error:
        raise LedgerCorrupt(f"what is copied does not fit the tables of the copy: {error}") from error
    except apsw.Error as error:
        raise StoreUnavailable(f"the copy could not be written: {reason_of(error)}") from error


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except apsw.NotADBError as error:
        raise SchemaMismatch(f"{file} is no backup made by spotledger, nor an SQLite file.", path=str(file)) from error
    except (apsw.Error, UnicodeDecodeError, LedgerCorrupt) as error:
        if isinstance(error, apsw.Error) and not is_damage(error):
            raise StoreUnavailable(f"{file} could not be read: {reason_of(error)}") from error
        raise BackupDamaged(f"{file} is damaged: {error}.", path=str(file)) from error
