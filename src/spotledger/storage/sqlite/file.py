"""
The files of the embedded store: opened as they must be to keep what they promise, and SQLite's errors translated.

Every file has a checksum on each page (SQLite's ``cksumvfs``), which is checked at each read. Errors are translated
here and nowhere else, by their code and never by their message: a few codes mean damage, all others that something is
in the way.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import quote

import apsw
import apsw.sqlite_extra

from spotledger.errors import JournalShorter, LedgerCorrupt, SchemaMismatch, StoreUnavailable
from spotledger.storage.base import BooksDamaged
from spotledger.storage.private import check_private_database, open_private
from spotledger.storage.sqlite.wal import find_damage

if TYPE_CHECKING:

    class Connection(Protocol):
        """A connection of the driver, whose rows are whatever the schema says."""

        @property
        def in_transaction(self) -> bool:
            """Whether a transaction has begun and not ended."""

        def execute(self, statement: str, values: Any = ..., /) -> Any:
            """Execute a statement, and return a cursor."""

        def executemany(self, statement: str, rows: Any, /) -> Any:
            """Execute a statement once for each of *rows*."""

        def changes(self) -> int:
            """Return how many rows the last statement changed."""

        def config(self, option: int, value: int, /) -> int:
            """Set one of SQLite's options of a connection."""

        def create_scalar_function(self, name: str, function: Any, /) -> None:
            """Make *function* known to SQL; it takes any number of arguments."""

        def reserve_bytes(self, schema: str = ..., reserve: int = ...) -> int:
            """Set how many bytes of each page are kept free."""

        def set_busy_timeout(self, milliseconds: int) -> None:
            """Set how long a statement waits for a lock."""

        def close(self) -> None:
            """Close the connection."""

else:
    Connection = apsw.Connection

JOURNAL_FILE: Final = "journal.db"
BOOKS_FILE: Final = "books.db"
KEYS_FILE: Final = "keys.db"

#: The one file of the versions before 0.1 was finished.
OLD_FILE: Final = "ledger.db"
SCHEMA_VERSION: Final = 7
#: How long a statement waits for a lock that another process holds. The service is the only one that should.
BUSY_TIMEOUT_MS: Final = 2_000
PAGE_CACHE_KIB: Final = 16_384
#: Pages in a write-ahead log before they are moved to the file.
CHECKPOINT_PAGES: Final = 2_000
#: Bytes of each page that hold its checksum.
CHECKSUM_BYTES: Final = 8
#: "SpoB": a backup, which only a restore makes a ledger again, so that each restore begins a new epoch.
BACKUP_ID: Final = 0x53706F42

_VFS: Final = "cksmvfs"

Row: TypeAlias = tuple[Any, ...]


class KeysDamaged(LedgerCorrupt):
    """Access keys or tokens are damaged; the ones concerned are refused, and everything else goes on."""

    stops_writes = False


class _Fault(threading.local):
    """The last page whose checksum did not fit, as SQLite's log has it, in this thread."""

    place = ""


_fault: Final = _Fault()
_FAULT: Final = re.compile(r'checksum fault offset (\d+) of "(.*)"')


def _note_fault(code: int, message: str) -> None:
    """Take from SQLite's log where a page is whose checksum does not fit: the error that follows does not say it."""
    found = _FAULT.match(message)
    if found is not None:
        _fault.place = f" at byte {found[1]} of {Path(found[2]).name}"


# SQLite takes it only before it is used; in a program that used it before, damage is named without the byte.
with contextlib.suppress(apsw.MisuseError):
    apsw.config(apsw.SQLITE_CONFIG_LOG, _note_fault)


class FileKind(NamedTuple):
    """One of the files of the embedded store."""

    #: What it is called in messages.
    title: str
    #: What SQLite's header says the file is.
    application_id: int
    #: The script of its schema.
    script: str
    #: The version of the schema.
    version: int = SCHEMA_VERSION


JOURNAL: Final = FileKind("journal", 0x53706F4A, "journal.sql")
#: Books of another version are made again from the journal.
BOOKS: Final = FileKind("books", 0x53706F4C, "books.sql", version=8)
KEYS: Final = FileKind("file of access keys", 0x53706F4B, "keys.sql")
ACCESS_LOG: Final = FileKind("file of the access log", 0x53706F41, "access_log.sql")
#: A journal with the tables of access keys beside it.
BACKUP: Final = FileKind("backup", BACKUP_ID, JOURNAL.script)

_UNAVAILABLE: Final = {
    apsw.SQLITE_FULL: "its disk is full; make room",
    apsw.SQLITE_IOERR_SHMSIZE: "its disk is full; make room",  # no room for the index of the write-ahead log
    apsw.SQLITE_IOERR: "its disk answered with an error",
    apsw.SQLITE_READONLY: "it is read-only",
    apsw.SQLITE_CANTOPEN: "a file of it could not be opened",
    apsw.SQLITE_BUSY: "another process is writing to it",
    apsw.SQLITE_LOCKED: "another process is writing to it",
    apsw.SQLITE_NOMEM: "there is no memory left",
    apsw.SQLITE_PERM: "this process may not use it",
    apsw.SQLITE_INTERRUPT: "it was interrupted",
}
#: A page that does not check, or a structure that contradicts itself.
_DAMAGE: Final = frozenset(
    {apsw.SQLITE_CORRUPT, apsw.SQLITE_NOTADB, apsw.SQLITE_IOERR_DATA, apsw.SQLITE_IOERR_CORRUPTFS}
)


class translated:
    """
    Run a block of statements on one file, and translate errors of SQLite.

    A class and not a generator, because each commit passes through several of them.

    Raises:
        StoreUnavailable: Something is in the way; the same request may pass later.
        LedgerCorrupt: The file is damaged.
    """

    __slots__ = ("_checked", "_doing", "_kind", "_values")

    def __init__(self, doing: str, kind: FileKind = JOURNAL, values: Row = (), *, checked: bool = False) -> None:
        """
        Begin a block.

        Args:
            doing: What is being done, such as ``"written"``, for the message.
            kind, values: The file, and what was looked up in it.
            checked: Whether everything written was checked before, so that a violated constraint means damage.
        """
        self._doing, self._kind, self._checked = doing, kind, checked
        self._values = values

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Translate *error* if it is SQLite's, or says that a text is none."""
        if isinstance(error, apsw.Error | UnicodeDecodeError):
            raise translate(error, self._doing + _hint(self._values), self._kind, checked=self._checked) from error


def _hint(values: Row) -> str:
    """Return for whom a look-up was, such as `` for 1b4e28ba…``: enough to find an access key, too little to use it."""
    first = values[0] if values else None
    return f" for {first[:8]}…" if isinstance(first, str) and len(first) > 16 else ""


def translate(error: Exception, doing: str, kind: FileKind = JOURNAL, *, checked: bool = False) -> Exception:
    """Return the error of our tree for *error*; the arguments are those of :class:`translated`."""
    if is_damage(error, checked=checked):
        found = f"it is damaged{place_of(error)} ({name_of(error)}: {error})"
        return damage_of(kind)(f"the {kind.title} could not be {doing}: {found}")
    advice = "; try again with the same idempotency key" if doing == "written" else ""
    return StoreUnavailable(f"the {kind.title} could not be {doing}: {reason_of(error)}{advice}")


def damage_of(kind: FileKind) -> type[LedgerCorrupt]:
    """Return the error for damage to a file of *kind*: the journal's stops all writes."""
    return {KEYS: KeysDamaged, BOOKS: BooksDamaged}.get(kind, LedgerCorrupt)


def is_damage(error: Exception, *, checked: bool = False) -> bool:
    """Say whether *error* means that bytes are not what was written; *checked* as in :class:`translated`."""
    if isinstance(error, UnicodeDecodeError):
        return True
    code = _code_of(error)
    return code in _DAMAGE or code & 0xFF in _DAMAGE or (checked and code & 0xFF == apsw.SQLITE_CONSTRAINT)


def place_of(error: Exception) -> str:
    """Return where the damage is that *error*, just raised in this thread, is about, such as `` at byte 4096 of …``."""
    place, _fault.place = _fault.place, ""
    return place if _code_of(error) == apsw.SQLITE_IOERR_DATA else ""


def reason_of(error: Exception) -> str:
    """Return in words what is in the way."""
    code = _code_of(error)
    return _UNAVAILABLE.get(code) or _UNAVAILABLE.get(code & 0xFF) or f"SQLite answered {name_of(error)}"


def name_of(error: Exception) -> str:
    """Return the name of SQLite's code, such as ``SQLITE_IOERR_DATA``."""
    code = _code_of(error)
    extended: Any = apsw.mapping_extended_result_codes
    plain: Any = apsw.mapping_result_codes
    return str(extended.get(code) or plain.get(code & 0xFF) or f"code {code}")


def _code_of(error: Exception) -> int:
    return int(getattr(error, "extendedresult", apsw.SQLITE_ERROR))


# --- opening ----------------------------------------------------------------------------------------------------------


def open_writer(
    path: Path, kind: FileKind, make: Callable[[Connection], None], *, is_synced: bool = True
) -> Connection:
    """
    Open the file at *path* for writing, or make it.

    Args:
        path: The file; its folder must be there.
        kind: What it is.
        make: Writes the first rows of a file that is made, within the transaction that makes it.
        is_synced: Whether a commit has returned only when the disk has it; False for what can be made again.

    Raises:
        StoreUnavailable: The disk or another process is in the way.
        SchemaMismatch: It is another kind of file, or of another version.
        LedgerCorrupt: It is damaged.
    """
    return _open_to_write(
        path,
        kind,
        make,
        "journal_mode = WAL",
        f"synchronous = {'FULL' if is_synced else 'NORMAL'}",
        f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
    )


def open_alone(path: Path, kind: FileKind, make: Callable[[Connection], None]) -> Connection:
    """
    Open or make the file at *path*, which nobody else uses, without a log and without a sync.

    It is whole once everything is committed and closed; where it is cut off before, it has to be thrown away. The
    caller syncs it. The arguments and what is raised are those of :func:`open_writer`.
    """
    return _open_to_write(path, kind, make, "journal_mode = OFF", "synchronous = OFF")


def _open_to_write(path: Path, kind: FileKind, make: Callable[[Connection], None], *modes: str) -> Connection:
    check_private_database(path)
    with translated("opened", kind):
        _make_private(path)
        connection = _connect(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        try:
            connection.reserve_bytes(reserve=CHECKSUM_BYTES)
            is_new = not _recognise(connection, path, kind)
            _tune(connection)
            for mode in modes:
                connection.execute(f"PRAGMA {mode}")
            if is_new:
                _make(connection, kind, make)
            _check_checksums(connection, path, kind)
        except BaseException:
            connection.close()
            raise
    return connection


def open_reader(path: Path, kind: FileKind) -> Connection:
    """
    Open the file at *path* for reading only, beside the process that owns it or without one.

    Raises:
        StoreUnavailable: It is not there, or the disk is in the way.
        SchemaMismatch: It is another kind of file, or of another version.
        LedgerCorrupt: It is damaged.
    """
    check_private_database(path)
    with translated("opened", kind):
        # Not read-only: without a write-ahead log beside the file, SQLite has to make an empty one to read it.
        connection = _connect(path, apsw.SQLITE_OPEN_READWRITE)
        try:
            connection.execute("PRAGMA query_only = ON")
            is_empty = not _recognise(connection, path, kind)
            if not is_empty:
                _tune(connection)
                _check_checksums(connection, path, kind)
        except BaseException:
            connection.close()
            raise
    if is_empty:
        connection.close()
        raise SchemaMismatch(f"{path} is empty; a {kind.title} would pass", path=str(path))
    return connection


def open_untouched(path: Path) -> Connection:
    """
    Open the file at *path*, which nobody writes to, so that nothing is written in it or beside it.

    Raises an error of the driver.
    """
    _register_checksums()
    uri = f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1"
    connection: Any = apsw.Connection(uri, apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI, _VFS)
    return connection  # type: ignore[no-any-return]


def open_as_found(path: Path) -> Connection:
    """
    Open the file at *path* for reading only, so that the file and a log beside it are left as they were found.

    Beside a write-ahead log a read-only connection leaves everything alone. Without one SQLite makes an empty log for
    the time of the reading, and only a connection that may write takes it away again. Where the folder cannot be
    written and there is no log, nobody writes the file: it is read as it lies.

    Raises an error of the driver. Nothing of the file is checked yet.
    """
    _register_checksums()
    if path.with_name(f"{path.name}-wal").exists():
        flags, mode = apsw.SQLITE_OPEN_READONLY, "mode=ro"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        flags, mode = apsw.SQLITE_OPEN_READWRITE, "mode=rw"
    else:
        return open_untouched(path)
    uri = f"file:{quote(str(path.absolute()))}?{mode}"
    connection: Any = apsw.Connection(uri, flags | apsw.SQLITE_OPEN_URI, _VFS)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection  # type: ignore[no-any-return]


@cache
def _register_checksums() -> None:
    """Make the VFS with checksums known to SQLite, once in a process."""
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        apsw.sqlite_extra.load(connection, "cksumvfs")


def _connect(path: Path, flags: int) -> Connection:
    _register_checksums()
    connection: Any = apsw.Connection(str(path), flags, _VFS)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    return connection  # type: ignore[no-any-return]


def _make_private(path: Path) -> None:
    """Make the file, private, if it is missing. Closing an existing one would drop SQLite's locks in this process."""
    with contextlib.suppress(OSError):  # opening it will say what is wrong with the place
        os.close(open_private(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, is_secret=False))


def _tune(connection: Connection) -> None:
    connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    connection.execute("PRAGMA temp_store = MEMORY")


def pragma(connection: Connection, name: str) -> int:
    """Return the number that a PRAGMA of SQLite gives."""
    return int(connection.execute(f"PRAGMA {name}").fetchall()[0][0])


def _recognise(connection: Connection, path: Path, kind: FileKind) -> bool:
    """Say whether there is a file of this *kind* with its schema; False where the file is empty."""
    try:
        application = pragma(connection, "application_id")
        tables = connection.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    except apsw.NotADBError as error:
        raise SchemaMismatch(f"{path} is no {kind.title} of spotledger, nor an SQLite file", path=str(path)) from error
    version = pragma(connection, "user_version")
    if not tables and version == 0:
        return False
    if application == BACKUP_ID != kind.application_id:
        raise SchemaMismatch(f"{path} is a backup; restore it with: spotledger restore", path=str(path))
    if application != kind.application_id:
        raise SchemaMismatch(f"{path} is an SQLite file, but no {kind.title} of spotledger", path=str(path))
    if version != kind.version:
        found = f"{path} has schema version {version}; this spotledger reads version {kind.version}"
        advice = "" if kind is BOOKS else ". Use the spotledger that wrote it, or one that can migrate it."
        raise SchemaMismatch(f"{found}{advice}", path=str(path))
    expected, present = schema_of(kind), {str(name): str(sql) for name, sql in tables}
    # litestream and the like add tables of their own; ours must be as they were made.
    changed = sorted(name for name, sql in expected.items() if present.get(name) != sql)
    if changed:
        raise damage_of(kind)(f"the schema of {path} was changed: {', '.join(changed)}")
    return True


@cache
def schema_of(kind: FileKind) -> dict[str, str]:
    """Return what a file of *kind* is made of: the SQL of each table, index, trigger and view, by name."""
    with contextlib.closing(apsw.Connection(":memory:")) as connection:
        connection.execute(script_of(kind))
        return {str(name): str(sql) for name, sql in connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        )}  # fmt: skip


def script_of(kind: FileKind) -> str:
    """Return the script that makes the schema of a file of *kind*."""
    return resources.files("spotledger.storage.sqlite").joinpath("sql", kind.script).read_text()


def _make(connection: Connection, kind: FileKind, make: Callable[[Connection], None]) -> None:
    """Make the schema and the first rows in one transaction, so that a file is whole or empty."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(script_of(kind))
        make(connection)
        connection.execute(f"PRAGMA application_id = {kind.application_id}")
        connection.execute(f"PRAGMA user_version = {kind.version}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _check_checksums(connection: Connection, path: Path, kind: FileKind) -> None:
    """Make sure that pages are checked: one byte of the header switches that off."""
    if pragma(connection, "checksum_verification") != 1:
        raise damage_of(kind)(f"{path} has no checksums on its pages, although it was made with them")


# --- before anything is opened --------------------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Refuse a ledger of an earlier form, and a log that is damaged, before SQLite opens anything."""
    for name in (JOURNAL_FILE, BOOKS_FILE, KEYS_FILE):
        check_private_database(folder / name)
    journal = folder / JOURNAL_FILE
    if (folder / OLD_FILE).exists() and not journal.exists():
        raise SchemaMismatch(
            f"{folder / OLD_FILE} is a ledger in one file, of a version before 0.1 was finished, which this spotledger"
            " does not read. Export it with the version that wrote it, or start in another folder.",
            path=str(folder),
        )
    for name in (JOURNAL_FILE, KEYS_FILE):
        log = folder / f"{name}-wal"
        damage = find_damage(log)
        if damage is not None:
            raise JournalShorter(
                f"{log} is damaged at byte {damage.offset} (frame {damage.frame}): {damage.reason}. SQLite would take"
                " it for the end, and lose what was acknowledged after it. Put the file back, or see what is missing"
                f" with: spotledger recover --data {folder}",
                path=str(log),
                offset=damage.offset,
            )


def only_row(connection: Connection, query: str, *kinds: type) -> tuple[Any, ...]:
    """
    Return the only row of *query*, with columns of these *kinds*: a page in the place of another has a good checksum.

    Raises:
        LedgerCorrupt: There is another number of rows, or the row is of another form.
        apsw.Error: The file cannot be read.
    """
    rows = connection.execute(query).fetchall()
    if len(rows) != 1 or tuple(map(type, rows[0])) != kinds:
        raise LedgerCorrupt(f"where there is one row of a known form, {len(rows)} were found, or another form: {query}")
    return tuple(rows[0])
