"""
Open the embedded ledger in a data folder.

Only this module and :mod:`spotledger.ops.fleet`, which needs the PostgreSQL driver, open a store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spotledger.clock import IDLE_MS, LEAP_MS, SYSTEM, Clock, TimeSources, TrustedClock
from spotledger.ledger.ledger import Ledger
from spotledger.storage.folder import FolderLock
from spotledger.storage.sqlite.store import CACHE_ACCOUNTS, SEGMENT_ENTRIES, SqliteStore


def open_embedded(
    path: str | Path,
    *,
    segment_entries: int = SEGMENT_ENTRIES,
    cache_accounts: int = CACHE_ACCOUNTS,
    clock_ms: Callable[[], int] | None = None,
    clock_leap_ms: int = LEAP_MS,
    clock_idle_ms: int = IDLE_MS,
    time_sources: TimeSources = SYSTEM,
    lock: FolderLock | None = None,
) -> Ledger:
    """
    Open the ledger in the data folder *path*, and make the folder and the ledger if they do not exist.

    Args:
        path: The data folder. One process owns it at a time.
        segment_entries: Entries in a segment, 8 to 65,536, if the ledger is made now.
        cache_accounts: How many unchanged accounts may stay in memory.
        clock_ms: For tests: returns the time in ms since 1970, which is trusted whatever it is.
        clock_leap_ms: How far the wall clock may move against the boot clock, in ms.
        clock_idle_ms: How far ahead of the noted time the wall clock may be after a boot, in ms.
        time_sources: Where the trusted clock gets the time from.
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
    if clock_ms is not None:
        return Ledger(store, Clock(clock_ms), release)
    clock = TrustedClock(
        store.noted_moment,
        not_before_ms=store.head.booked_ms,
        leap_ms=clock_leap_ms,
        idle_ms=clock_idle_ms,
        sources=time_sources,
    )
    store.moment = clock.moment
    store.note_time()
    return Ledger(store, clock, release)
