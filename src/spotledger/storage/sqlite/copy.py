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
from pathlib import Path
from typing import Final, NamedTuple

import apsw

from spotledger.errors import BackupDamaged, LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.atomic_file import sync
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, decode_entry, genesis_hash
from spotledger.storage.sqlite.file import (
    BACKUP,
    BACKUP_ID,
    BOOKS,
    JOURNAL,
    KEYS,
    SCHEMA_VERSION,
    Connection,
    FileKind,
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
from spotledger.storage.sqlite.journal import SqliteJournal, append_epoch, read_epochs
from spotledger.storage.sqlite.keys import check_sum, store_sum

#: Entries copied in one step, and how long the copying rests after each.
STEP_ENTRIES: Final = 250
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
    f"SELECT ledger_id, ?, seq, hash, booked_ms, {SCHEMA_VERSION},"
    " (SELECT fingerprint FROM master_key_mark), ? FROM ledger JOIN keys_of USING (ledger_id), head"
)
_STEP_READ: Final = """
SELECT CAST(group_concat(body, char(10) ORDER BY seq) AS BLOB), group_concat(hex(hash), '' ORDER BY seq)
FROM source.entry WHERE seq BETWEEN ? AND ?
"""
_STEP_WRITE: Final = "INSERT INTO main.entry SELECT seq, body, hash FROM source.entry WHERE seq BETWEEN ? AND ?"
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
    Copy journal and access keys to the empty file *target*, some entries at a time; call it in a thread of its own.

    Args:
        journal: The journal; the process that owns it may go on writing.
        keys: The access keys.
        target: An empty file, which is no use where the copying does not end.
        progress: Called between steps with the entries that are left and the entries in all; may raise to stop it.

    Raises:
        StoreUnavailable: The copy cannot be written, or what is copied cannot be read.
        LedgerCorrupt: The journal or the keys are damaged, or lack what was acknowledged.
    """
    with closing(open_alone(target, BACKUP, _make_tables)) as copy:
        with SqliteJournal(journal) as source, _attached(copy, keys, KEYS):
            _copy_keys(copy, source)
        with _attached(copy, journal, JOURNAL):
            _copy_entries(copy, journal, target, progress)


def _make_tables(copy: Connection) -> None:
    copy.execute(script_of(KEYS))
    copy.execute(_MARK)


@contextmanager
def _attached(copy: Connection, file: Path, kind: FileKind) -> Iterator[None]:
    """
    Attach *file* to the copy as ``source``, to be read with it.

    So rows are copied by SQLite alone, and the lock of the interpreter is left to the service.
    """
    open_reader(file, kind).close()  # checks what attaching does not
    with translated("copied", kind):
        copy.execute("ATTACH ? AS source", (str(file),))
    yield
    with _writing():
        copy.execute("DETACH source")


def _copy_keys(copy: Connection, source: SqliteJournal) -> None:
    """Copy what is attached, the access keys of the journal *source*."""
    noted = 0 if source.note is None else source.note.keys_change
    with translated("copied", KEYS):
        copy.execute("BEGIN")
        found = copy.execute("SELECT ledger_id, change FROM source.keys_of").fetchall()
    if len(found) != 1:
        raise LedgerCorrupt("the file of access keys does not say which ledger it is of")
    [(ledger_id, change)] = found
    if ledger_id != source.ledger_id or change < noted:
        raise LedgerCorrupt(
            f"the file of access keys is of ledger {ledger_id} and at change {change}; ledger {source.ledger_id} and"
            f" change {noted} or later would pass"
        )
    with translated("copied", KEYS):
        _copy_key_tables(copy)
        copy.execute("COMMIT")


def _copy_key_tables(copy: Connection) -> None:
    for table in _KEY_TABLES:
        copy.execute(f"INSERT INTO main.{table} SELECT * FROM source.{table}")


def _copy_entries(copy: Connection, journal: Path, target: Path, progress: Progress) -> None:
    """
    Copy the entries of the *journal*, which is attached.

    The copy goes up to the head as it stands in the end, or at least as it stood at the last round: to the end of a
    commit in any case, so no chain of operations is cut in two.
    """
    with SqliteJournal(journal) as source:
        steps = _Steps(copy, source, target, progress)
    for _ in range(ROUNDS_LIMIT):
        with SqliteJournal(journal) as source:
            steps.copy_up_to_head(source)
            ledger = (source.ledger_id, source.epochs.begun_seq, source.segment_entries)
    with _writing():
        copy.execute("INSERT INTO main.ledger VALUES (1, ?, ?, ?, 0)", ledger)
        copy.execute("INSERT INTO main.head VALUES (1, ?, ?, ?)", steps.head)


class _Steps:
    """Copies entries step by step."""

    def __init__(self, copy: Connection, source: SqliteJournal, target: Path, progress: Progress) -> None:
        self._copy = copy
        self._target = target
        self._progress = progress
        self._unsynced = 0
        #: The last entry that was copied.
        self.head = Head(0, genesis_hash(source.ledger_id), 0)

    def copy_up_to_head(self, source: SqliteJournal) -> None:
        """Copy the entries of *source* that are not copied yet."""
        head = source.head
        while self.head.seq < head.seq:
            self._copy_step(source, min(self.head.seq + STEP_ENTRIES, head.seq))
            self._progress(head.seq - self.head.seq, head.seq)
            time.sleep(REST_SECONDS)
        if self.head != head:
            raise LedgerCorrupt(f"the hash or the time of entry {head.seq}, the last, is not the one that the head has")

    def _copy_step(self, source: SqliteJournal, last: int) -> None:
        """Copy the entries up to *last* out of one snapshot."""
        first = self.head.seq + 1
        with translated("copied", JOURNAL):
            self._copy.execute("BEGIN")
            [(bodies, hashes)] = self._copy.execute(_STEP_READ, (first, last)).fetchall()
        found = _linked(self.head.hash, bodies, hashes, last - first + 1)
        if found is None:
            for _ in source.rows(self.head.seq):  # finds the entry, which takes longer
                pass
            raise LedgerCorrupt(f"the entries {first} to {last} do not fit the chain of hashes")
        with _writing():
            self._copy.execute(_STEP_WRITE, (first, last))
            self._copy.execute("COMMIT")
        link, body = found
        self.head = Head(last, link, decode_entry(body).booked_ms)
        self._sync(len(bodies))

    def _sync(self, written: int) -> None:
        self._unsynced += written
        if self._unsynced > SYNC_BYTES:
            self._unsynced = 0
            sync(self._target)


def _linked(link: bytes, bodies: bytes | None, hashes: str | None, count: int) -> tuple[bytes, bytes] | None:
    """
    Go on with the chain of hashes from *link* over *count* entries.

    Args:
        link: The hash of the entry before them.
        bodies: Their bodies, a line each: JSON has no line breaks of its own.
        hashes: The hashes that they have, in hex.
        count: How many there are.

    Returns:
        The hash and the body of the last of them; None where one is missing or does not fit.
    """
    lines = (bodies or b"").split(b"\n")
    kept = bytes.fromhex(hashes or "")
    if len(lines) != count:
        return None
    made = bytearray()
    for body in lines:
        link = chain_hash(link, body)
        made += link
    return (link, lines[-1]) if made == kept else None


def mark_as_backup(file: Path, made_ms: int) -> BackupFacts:
    """
    Write into the copy at *file* what it is.

    Raises:
        StoreUnavailable: It cannot be written.
    """
    with _writing(), _unshared(file) as copy:
        copy.execute(
            f"INSERT INTO backup (only_row, {_FACTS}) SELECT 1, * FROM ({_STATE})", (read_epochs(copy).current, made_ms)
        )
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
        state = copy.execute(_STATE, (read_epochs(copy).current, 0)).fetchall()
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


def make_ledger_again(file: Path, keys: Path, credentials: Credentials) -> KeysMade:
    """
    Make the marked copy at *file* a journal, and the new file *keys* its access keys.

    Raises:
        StoreUnavailable: One of the two cannot be written.
        LedgerCorrupt: The copy is damaged.
    """
    with closing(open_alone(keys, KEYS, lambda _: None)) as made, translated("restored", KEYS):
        made.execute("ATTACH ? AS source", (str(file),))
        made.execute("BEGIN")
        _copy_key_tables(made)
        check_sum(made)
        done = _revoke(made, credentials)
        store_sum(made)
        made.execute("COMMIT")
    with _writing(), _unshared(file) as copy:
        for table in (*_KEY_TABLES, "backup"):
            copy.execute(f"DROP TABLE {table}")
        copy.execute(f"PRAGMA application_id = {JOURNAL.application_id}")
    return done


def begin_epoch(file: Path, epoch: int, reason: str, now_ms: int) -> Head:
    """
    Begin *epoch* in the journal at *file*, which nobody else uses; return its new head.

    Raises:
        StoreUnavailable: It cannot be written.
        LedgerCorrupt: It is damaged.
    """
    with closing(open_alone(file, JOURNAL, lambda _: None)) as journal, translated("written"):
        journal.execute("BEGIN IMMEDIATE")
        head = append_epoch(journal, epoch, reason, now_ms)
        journal.execute("COMMIT")
    return head


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
