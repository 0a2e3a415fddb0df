"""
Open the embedded ledger in a data folder.

Only this module and :mod:`spotledger.ops.fleet`, which needs the PostgreSQL driver, open a store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spotledger.clock import now_ms
from spotledger.ledger.ledger import Ledger
from spotledger.storage.folder import FolderLock
from spotledger.storage.sqlite.store import CACHE_ACCOUNTS, SEGMENT_ENTRIES, SqliteStore


def open_embedded(
    path: str | Path,
    *,
    segment_entries: int = SEGMENT_ENTRIES,
    cache_accounts: int = CACHE_ACCOUNTS,
    clock_ms: Callable[[], int] = now_ms,
    lock: FolderLock | None = None,
) -> Ledger:
    """
    Open the ledger in the data folder *path*, and make the folder and the ledger if they do not exist.

    Args:
        path: The data folder. One process owns it at a time.
        segment_entries: Entries in a segment, 8 to 65,536, if the ledger is made now.
        cache_accounts: How many unchanged accounts may stay in memory.
        clock_ms: Returns the time in milliseconds since 1970.
        lock: The lock of the folder, if the caller holds it already; it stays the caller's.

    Raises:
        DataFolderInUse: Another process owns the folder.
        DataFolderUnusable: It is read-only, full, or not a folder.
        SchemaMismatch: The ledger file was written by another version, or is not a ledger.
        LedgerCorrupt: The end of the journal is inconsistent.
    """
    own = FolderLock(path) if lock is None else None
    if own is not None:
        own.acquire()
    release = own.release if own is not None else lambda: None
    try:
        store = SqliteStore(Path(path), segment_entries=segment_entries, cache_accounts=cache_accounts)
    except BaseException:
        release()
        raise
    return Ledger(store, clock_ms, release)
