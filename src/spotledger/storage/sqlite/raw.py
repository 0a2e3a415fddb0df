"""
One file of a ledger as it lies, for an audit: opened without touching it, and read without believing anything of it.

Whatever is in the way is one of two errors, whose messages begin with the name of the file: it could not be read, or
what was read does not check.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import apsw

from spotledger.storage.sqlite.file import (
    BOOKS,
    CHECKSUM_BYTES,
    JOURNAL,
    Connection,
    FileKind,
    is_damage,
    name_of,
    open_as_found,
    pragma,
    reason_of,
)
from spotledger.storage.sqlite.wal import running_checksum

#: Findings of SQLite's own check, and damaged pages, that are listed of one file.
STRUCTURE_FINDINGS: Final = 20
#: How often something is looked at that another process may be writing, with a rest between.
LOOKS: Final = 3
REST_SECONDS: Final = 0.05
#: How long the pages of a damaged file are looked through for those that are.
PAGE_SCAN_SECONDS: Final = 10.0
#: SQLite never uses the page with this byte of the file.
_LOCK_BYTE: Final = 0x4000_0000
#: SQLite's own VFS, which checks nothing that it reads.
_PLAIN_VFS: Final = "unix"
Row = tuple[Any, ...]
T = TypeVar("T")


class Unreadable(Exception):
    """Something of the files could not be read; the message says what and why."""


class Damaged(Unreadable):
    """What was to be read does not check: a page, a row, a text that is none."""


class OtherFile(Unreadable):
    """It is not there, or no file of the kind."""


class RawFile:
    """One file, open for reading only."""

    def __init__(self, path: Path, kind: FileKind, more_ids: frozenset[int] = frozenset()) -> None:
        """
        Open the file at *path*; neither it nor its log is changed.

        Args:
            path: The file.
            kind: What it should be.
            more_ids: What its header may say it is besides.

        Raises:
            OtherFile: It is not there, or another file.
            Unreadable: It may not be read, or is of another version.
            Damaged: It is no SQLite file, or its first pages do not check.
        """
        self.path = path
        self.name = path.name
        self.kind = kind
        if not is_file(path):
            raise OtherFile(f"{path} does not exist, or is not a file")
        if not os.access(path, os.R_OK):
            raise Unreadable(f"{path} may not be read by this user")
        with self.saying("the file"):
            self._connection: Connection = open_as_found(path)
        try:
            with self.saying("its header"):
                self.application_id = self._recognised({kind.application_id, *more_ids})
        except BaseException:
            self.close()
            raise

    def _recognised(self, passes: set[int]) -> int:
        application, version = self._pragma("application_id"), self._pragma("user_version")
        if application not in passes:
            what = "is empty" if self.path.stat().st_size == 0 else "is an SQLite file"
            raise OtherFile(f"{self.path} {what}, but no {self.kind.title} of spotledger")
        if version != self.kind.version:
            found = f"{self.path} has schema version {version}; this spotledger audits {self.kind.version}"
            remake = "; a start of the service, or spotledger rebuild, makes it again"
            raise Unreadable(found + (remake if self.kind is BOOKS else ""))
        if self._pragma("checksum_verification") != 1:
            raise Damaged(f"{self.path} has no checksums on its pages, although it was made with them")
        self._connection.execute("PRAGMA query_only = ON")
        return application

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def saying(self, what: str) -> Iterator[None]:
        """Raise Unreadable or Damaged for whatever is in the way of reading *what*."""
        try:
            yield
        except (apsw.Error, UnicodeDecodeError) as error:
            where = f"{self.name}: {what} could not be read"
            if is_damage(error):
                raise Damaged(f"{where}: {name_of(error)}: {error}") from error
            raise Unreadable(f"{where}: {_in_words(error)}") from error
        except OSError as error:
            raise Unreadable(f"{self.name}: {what} could not be read: {error.strerror}") from error

    @contextmanager
    def one_instant(self, what: str = "the file") -> Iterator[Callable[..., Any]]:
        """Let everything that the block asks be answered from one snapshot."""
        with self.saying(what):
            self._connection.execute("BEGIN")
            try:
                yield self._connection.execute
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def rows(self, what: str, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows that *query* gives; *what* says what they are."""
        with self.saying(what):
            found: list[Any] = self._connection.execute(query, tuple(values)).fetchall()
        return found

    def only_row(self, what: str, query: str, types: tuple[type, ...]) -> Row | None:
        """Return the one row that *query* gives, whose values are of *types*; None where there is none."""
        rows = self.rows(what, query)
        if not rows:
            return None
        if len(rows) != 1 or not is_formed(rows[0], types):
            raise Damaged(f"{self.name}: {what} is not one row of the schema")
        return tuple(rows[0])

    def _pragma(self, name: str) -> int:
        return pragma(self._connection, name)

    # --- the file as a whole ------------------------------------------------------------------------------

    def changed_schema(self, expected: dict[str, str]) -> list[tuple[str, str]]:
        """
        Return tables, indexes, triggers and views that are missing, are another, or are one too many.

        Each as its type and its name. Tables of others are none of our business, as litestream adds some.
        """
        query = "SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
        rows = self.rows("the schema", query)
        found = {name: sql for _, name, _, sql in rows}
        changed = [(_type_of(sql), name) for name, sql in expected.items() if found.get(name) != sql]
        more = [(kind, name) for kind, name, table, _ in rows if table in expected and name not in expected]
        return changed + more

    def structure(self) -> list[str]:
        """Return what SQLite's own check finds. It reads every page, so the checksum of each is checked."""
        # The journal has no index, which is all that the longer check looks at besides.
        check = "quick_check" if self.kind is JOURNAL else "integrity_check"
        rows = self.rows("the structure", f"PRAGMA {check}({STRUCTURE_FINDINGS})")
        return [str(found) for (found,) in rows if found != "ok"]

    def damaged_pages(self) -> list[int]:
        """Return the first pages, from 1, whose checksum is another, as far as a few seconds reach."""
        with self.saying("the pages"):
            return list(islice(_damaged_pages(self.path, self._pragma("page_size")), STRUCTURE_FINDINGS))


def is_file(path: Path) -> bool:
    """
    Say whether *path* is a file.

    Raises:
        Unreadable: It may not be looked at.
    """
    try:
        return path.is_file()
    except OSError as problem:
        raise Unreadable(f"{path} could not be looked at: {problem.strerror}") from problem


def is_formed(row: Sequence[Any], types: Sequence[type]) -> bool:
    """Say whether the values of *row* are of *types*."""
    return len(row) == len(types) and all(map(isinstance, row, types))


def lasting(look: Callable[[], T]) -> T | None:
    """Return what *look* finds each time, or None: what another process writes at this instant may look damaged."""
    found = look()
    for _ in range(LOOKS - 1):
        if found is None:
            return None
        time.sleep(REST_SECONDS)
        if look() != found:
            return None
    return found


def _type_of(sql: str) -> str:
    """Return what a statement creates, such as ``table`` or ``trigger``."""
    return sql.split(maxsplit=2)[1].lower()


def _in_words(error: Exception) -> str:
    """Return what is in the way; an error of the statement, as where a table is missing, in SQLite's own words."""
    return str(error) if type(error) is apsw.SQLError else reason_of(error)


def _damaged_pages(path: Path, size: int) -> Iterator[int]:
    """
    Give the pages of the file at *path* that its own checksums say are damaged; slow, and so bounded in time.

    SQLite reads the file, below its checksums: closing a descriptor that it does not know would drop its locks.
    """
    until = time.monotonic() + PAGE_SCAN_SECONDS
    file = apsw.VFSFile(_PLAIN_VFS, str(path), [apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY, 0])
    try:
        for number in range(1, file.xFileSize() // size + 1):
            if time.monotonic() > until:
                return
            place = (number - 1) * size
            if number != _LOCK_BYTE // size + 1 and not _checks(file.xRead(size, place)):
                time.sleep(REST_SECONDS)
                if not _checks(file.xRead(size, place)):
                    yield number
    finally:
        file.xClose()


def _checks(page: bytes) -> bool:
    sums = running_checksum(page[:-CHECKSUM_BYTES], (0, 0), is_big=False)
    return page[-CHECKSUM_BYTES:] == struct.pack("<2I", *sums)
