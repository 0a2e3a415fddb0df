"""
Moving what commits have logged into the file, beside them.

SQLite would do it within a commit, whenever the write-ahead log has grown to a bound; that commit, and all who wait for
it, then wait for thousands of pages. Here a thread of its own does it while commits go on. What they log meanwhile is
moved by a pass after it, and the last few pages by a commit, so that the log begins at its start again. SQLite's own
bound stays behind this, for a disk that is slower at it than the commits are.
"""

from __future__ import annotations

import logging
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

#: Pages in the log, by estimate, from which on they are moved.
DUE_PAGES: Final = 2_000
#: Pages that a commit moves by itself.
REST_PAGES: Final = 200
# What a commit logs: the head, the last leaves of the journal and of what is sealed; and the entries themselves.
_PAGES_A_COMMIT: Final = 4
_ENTRIES_A_PAGE: Final = 4

_PASSIVE: Final = "PRAGMA wal_checkpoint(PASSIVE)"
_log = logging.getLogger(__name__)


class Checkpointer:
    """Keeps the write-ahead log short; told of each commit."""

    def __init__(self, write: sqlite3.Connection, beside: sqlite3.Connection) -> None:
        """Move the pages of the commits of *write* through *beside*, a connection that nobody else uses."""
        self._write = write
        self._beside = beside
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pass: Future[None] | None = None
        #: Pages logged since the last pass began, by estimate.
        self._pages = 0

    def committed(self, entries: int) -> None:
        """Note a commit of so many *entries*; begin or end a pass where it is time for it."""
        meanwhile, logged = self._pages, _PAGES_A_COMMIT + entries // _ENTRIES_A_PAGE
        self._pages += logged
        if self._pass is None:
            if self._pages >= DUE_PAGES:
                self._begin()
        elif self._pass.done():
            if not meanwhile:
                # All was moved before this commit, which has begun the log at its start again.
                self._pass, self._pages = None, logged
            elif self._pages <= REST_PAGES:
                self._pass, self._pages = None, 0
                _move(self._write)
            else:
                self._begin()

    def _begin(self) -> None:
        self._pages = 0
        self._pass = self._thread.submit(_move, self._beside)

    def close(self) -> None:
        """End the pass that is under way, and the connection beside."""
        self._thread.shutdown()
        self._beside.close()


def _move(connection: sqlite3.Connection) -> None:
    """Move what is logged; where the disk refuses, it stays in the log, and the next pass tries again."""
    try:
        connection.execute(_PASSIVE).fetchone()
    except sqlite3.Error as error:
        _log.warning("what is logged could not be moved into the ledger's file: %s", error)
