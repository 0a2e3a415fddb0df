"""Opening the ledger of a PostgreSQL database: the place that names its store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spotledger.ledger import Ledger
from spotledger.ops.database import make_ready
from spotledger.ops.embedded import now_ms
from spotledger.storage.postgres import PostgresStore


def open_postgres(url: str, *, clock_ms: Callable[[], int] | None = None, **options: Any) -> Ledger:
    """
    Open the ledger in the PostgreSQL database at *url*, making the schema where the database has none.

    Several processes may have it open at once, on any number of machines.

    Args:
        url: ``postgresql://role@host/database``; several hosts may be named, and the one that takes writes is found.
        clock_ms: For tests: the time in milliseconds since 1970, instead of the server's clock.
        **options: ``cache_accounts``: how many accounts stay in memory; ``follow_seconds``: how often the journal is
            asked for entries of other processes where nothing is heard of them.

    Raises:
        SettingInvalid: *url* is none.
        StoreUnavailable: The server cannot be reached.
        SchemaMismatch: The schema is of an older or a newer version, or the database has something else in it.
        SetupError: An embedded ledger is being copied into it.
        LedgerCorrupt: The database is no whole ledger.
    """
    make_ready(url)
    return Ledger(PostgresStore(url, clock_ms=clock_ms, **options), clock_ms or now_ms)
