"""SQLite's errors in the words of our tree: translated once, by their code, never by their message."""

from __future__ import annotations

import sqlite3
from typing import Final

from spotledger.errors import LedgerCorrupt, StoreUnavailable

_UNAVAILABLE: Final = {
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


class translated:
    """
    Run a block of statements, and say an error of SQLite in our words.

    A class and not a generator, because each commit passes through several of them.

    Raises:
        StoreUnavailable: The disk, or another process, is in the way; the same request may pass later.
        LedgerCorrupt: The file is damaged, or breaks a constraint that our writes keep.
    """

    __slots__ = ("_doing",)

    def __init__(self, doing: str) -> None:
        """Name what is being done, such as ``"written"``, for the message."""
        self._doing = doing

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Translate *error* if it is SQLite's."""
        if isinstance(error, sqlite3.Error):
            raise translate(error, self._doing) from error


def translate(error: sqlite3.Error, doing: str) -> Exception:
    """Return the error of our tree for *error*."""
    reason = reason_of(error)
    if reason is not None:
        advice = "; try again with the same idempotency key" if doing == "written" else ""
        return StoreUnavailable(f"the ledger could not be {doing}: {reason}{advice}")
    return LedgerCorrupt(f"the ledger could not be {doing}: {error} ({getattr(error, 'sqlite_errorname', 'no code')})")


def reason_of(error: sqlite3.Error) -> str | None:
    """Return in words what is in the way where *error* may pass, else None."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return _UNAVAILABLE.get(code) or _UNAVAILABLE.get(code & 0xFF)
