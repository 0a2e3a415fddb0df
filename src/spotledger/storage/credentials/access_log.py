"""
The access log on the disk: ``access-log.db`` in the data folder, beside the ledger and no part of it.

It is an SQLite file with a checksum on each page, like those of the embedded ledger, on a node of a fleet too. The
workers of one machine write to the same file. A commit is in the hands of the system, which outlives the process; once
a minute the disk has it. Lines are only added, and the count of a line only grows. Nothing but age and size removes
lines, the oldest first.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from spotledger.errors import SchemaMismatch
from spotledger.security.access_log import AccessFilter, AccessLine, PendingLine
from spotledger.storage.private import check_private_database
from spotledger.storage.sqlite.file import ACCESS_LOG, Connection, open_reader, open_writer, pragma, translated

ACCESS_LOG_FILE: Final = "access-log.db"
#: Lines that are removed in one transaction, so that other workers wait for a moment only.
REMOVED_TOGETHER: Final = 1_000
#: How often, and after which pause, a file is looked at again that is empty, because another process is making it.
MAKING_ATTEMPTS: Final = 10
MAKING_PAUSE_SECONDS: Final = 0.05
#: How far the write-ahead log may grow before it is cut back.
LOG_BYTES: Final = 8 * 1024 * 1024

_INSERT: Final = (
    "INSERT INTO lines (minute_ms, actor, actor_label, address, call, reason, count) VALUES (?, ?, ?, ?, ?, ?, ?)"
    " RETURNING line"
)
_UPDATE: Final = "UPDATE lines SET count = count + ? WHERE line = ?"


def check_access_log(folder: Path) -> None:
    """Raise FileUnusable if the file in *folder* is a link, or somebody else's, or others may write to it."""
    check_private_database(folder / ACCESS_LOG_FILE)


class AccessLogFile:
    """The file, open for writing. One thread uses it; other processes may write to it too."""

    def __init__(self, folder: Path) -> None:
        """
        Open the file in *folder*, or make it.

        Raises:
            FileUnusable: It is a link, or somebody else's, or others may write to it.
            StoreUnavailable: The disk is full, or in the way.
            SchemaMismatch: It is another kind of file, or of another version.
            LedgerCorrupt: It is damaged.
        """
        self._path = folder / ACCESS_LOG_FILE
        self._connection: Connection = open_writer(self._path, ACCESS_LOG, lambda _: None, is_synced=False)
        with translated("opened", ACCESS_LOG):
            self._connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            self._page_bytes = pragma(self._connection, "page_size")
        self._opened = self._identity()

    def is_in_place(self) -> bool:
        """Say whether the file is still the one at its path: it may have been moved away, or removed."""
        return self._opened is not None and self._identity() == self._opened

    def append(self, lines: list[PendingLine]) -> int:
        """
        Write what the file does not have yet of *lines*, all or nothing; return how many lines are new.

        Raises:
            StoreUnavailable, LedgerCorrupt: It could not be written; *lines* are as they were.
        """
        with translated("appended to", ACCESS_LOG), self._transaction():
            places = [self._append(line) for line in lines]
            new = [line for line, place in zip(lines, places, strict=True) if line.line != place]
            self._hold([bool(line.access[-1]) for line in new], 1)
        for line, place in zip(lines, places, strict=True):
            line.written, line.line = line.count, place
        return len(new)

    def _append(self, line: PendingLine) -> int:
        """Write what is new of *line*, and return its place."""
        more = line.count - line.written
        if line.line:
            self._connection.execute(_UPDATE, (more, line.line))
            if self._connection.changes():
                return line.line
        place = int(self._connection.execute(_INSERT, (line.minute_ms, *line.access, more)).fetchall()[0][0])
        self._connection.execute("INSERT OR IGNORE INTO minutes VALUES (?, ?)", (line.minute_ms, place))
        return place

    def remove_before(self, minute_ms: int) -> int:
        """Remove the lines of minutes before *minute_ms*; return how many."""
        removed = 0
        with translated("trimmed", ACCESS_LOG):
            # All lines before the first one of a minute that stays are of minutes that do not.
            query = "SELECT min(first_line) FROM minutes WHERE minute_ms >= ?"
            first = self._connection.execute(query, (minute_ms,)).fetchall()[0][0]
            which = "" if first is None else f"WHERE line < {int(first)}"
            while gone := self._remove(which):
                removed += gone
            self._connection.execute("DELETE FROM minutes WHERE minute_ms < ?", (minute_ms,))
        return removed

    def fit_into(self, limit_bytes: int) -> int:
        """
        Remove the oldest lines that *limit_bytes* have no room for; return how many.

        Refusals go first while they are half of all lines or more, so that nobody can push out what passed by being
        refused.
        """
        removed = 0
        with translated("trimmed", ACCESS_LOG):
            while self._used_bytes() > limit_bytes:
                passed, refused = self._held()
                is_refused = refused > 0 and refused >= passed
                gone = self._remove("INDEXED BY lines_refused WHERE reason <> ''" if is_refused else "")
                removed += gone
                if not gone:
                    break
        return removed

    def _remove(self, which: str) -> int:
        """Remove the oldest lines *which*, so many that others wait for a moment only; return how many."""
        query = f"SELECT line, reason <> '' FROM lines {which} ORDER BY line LIMIT {REMOVED_TOGETHER}"
        with self._transaction():
            rows = self._connection.execute(query).fetchall()
            self._connection.executemany("DELETE FROM lines WHERE line = ?", [row[:1] for row in rows])
            self._hold([bool(refused) for _, refused in rows], -1)
        return len(rows)

    def _hold(self, refused: list[bool], sign: int) -> None:
        """Note that the file has a line more, or with *sign* -1 one less, for each item of *refused*."""
        counts = [(sign * refused.count(which), int(which)) for which in (False, True)]
        self._connection.executemany("UPDATE held SET lines = lines + ? WHERE refused = ?", counts)

    def _held(self) -> tuple[int, int]:
        """Return how many lines there are that passed, and that were refused."""
        found = dict(self._connection.execute("SELECT refused, lines FROM held").fetchall())
        return int(found.get(0, 0)), int(found.get(1, 0))

    def _used_bytes(self) -> int:
        used = pragma(self._connection, "page_count") - pragma(self._connection, "freelist_count")
        return used * self._page_bytes

    def sync(self) -> None:
        """Have the disk take what was written, and move it from the write-ahead log to the file; blocks."""
        with translated("synced", ACCESS_LOG):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def close(self) -> None:
        """Close the file."""
        with translated("closed", ACCESS_LOG):
            self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def read_access_log(folder: Path, wanted: AccessFilter, after: int, limit: int) -> list[AccessLine]:
    """
    Return at most *limit* lines after the line *after*, in the order in which they were written.

    The lines of minutes that have ended do not change any more, and a line that is written later comes later: pages
    neither skip nor repeat. Reads beside the process that writes.

    Raises:
        FileUnusable, StoreUnavailable, SchemaMismatch, LedgerCorrupt: As for :class:`AccessLogFile`.
    """
    path = folder / ACCESS_LOG_FILE
    check_private_database(path)
    if not path.exists():
        return []
    conditions: list[str] = ["line > ?"]
    values: list[Any] = [after]
    for condition, value in (
        ("actor = ?", wanted.actor),
        ("address = ?", wanted.address),
        ("minute_ms >= ?", wanted.from_ms),
        ("line >= (SELECT min(first_line) FROM minutes WHERE minute_ms >= ?)", wanted.from_ms),
        ("minute_ms < ?", wanted.to_ms),
    ):
        if value is not None:
            conditions.append(condition)
            values.append(value)
    query = (
        "SELECT line, minute_ms, actor, actor_label, address, call, reason, count FROM lines"
        f" WHERE {' AND '.join(conditions)} ORDER BY line LIMIT ?"
    )
    with contextlib.closing(_opened_to_read(path)) as connection, translated("read", ACCESS_LOG):
        return [AccessLine(*row) for row in connection.execute(query, (*values, limit))]


def _opened_to_read(path: Path) -> Connection:
    """Open the file at *path*; one that is empty may be one that another process is just making."""
    for _ in range(MAKING_ATTEMPTS):
        with contextlib.suppress(SchemaMismatch):
            return open_reader(path, ACCESS_LOG)
        time.sleep(MAKING_PAUSE_SECONDS)
    return open_reader(path, ACCESS_LOG)
