"""
Deriving the tables from the journal again, in one transaction, while nodes go on.

Until it commits, nodes read the tables as they were; what they write meanwhile is not sealed, and stays in their
memory. A rebuild that was cut off has not happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import psycopg

from spotledger.storage.base import Head
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import Connection, translate
from spotledger.storage.postgres.rows import found_in, ledger_in
from spotledger.storage.postgres.sealing.sealer import PATIENCE_SECONDS, seal_range
from spotledger.storage.postgres.session import Session

#: The tables that sealing writes.
DERIVED_TABLES: Final = ("history", "reference", "balance", "hold", "open_hold", "coin", "customer", "reversal")
#: How long a rebuild waits for a node that is sealing.
LEASE_SECONDS: Final = 60
#: A rebuild that is silent for this long has frozen: the server ends its session, and nodes seal again.
IDLE_SECONDS: Final = 60
#: How long the server may take to empty a table.
EMPTY_SECONDS: Final = 3_600.0


def rebuild(connect: Callable[[], Connection], progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """
    Throw away what is derived from the journal, and derive it again from every full segment.

    Args:
        connect: Makes a connection in autocommit to the server that takes writes.
        progress: Told how many entries are sealed, and how many will be.

    Returns:
        The last sealed entry.

    Raises:
        LedgerCorrupt: The journal is damaged; the tables are as they were.
        StoreUnavailable: The server is in the way; the tables are as they were.
    """
    try:
        session = Session(connect(), sql.SEALING, PATIENCE_SECONDS)
        try:
            return _rebuild(session, progress)
        finally:
            session.close()  # which rolls back what was not committed
    except psycopg.Error as error:
        raise translate(error, "rebuilt", checked=True) from error


def _rebuild(session: Session, progress: Callable[[int, int], None]) -> int:
    session.execute("BEGIN")
    for setting in (
        "synchronous_commit = local",
        f"idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'",
        f"lock_timeout = '{LEASE_SECONDS}s'",
    ):
        session.execute(f"SET LOCAL {setting}")
    session.patience_seconds = EMPTY_SECONDS
    session.send(sql.LEDGER)
    [ledger] = session.collect()
    ledger_id, _, segment_entries = ledger_in(ledger)
    genesis = genesis_hash(ledger_id)
    if not session.change("UPDATE sealed SET seq = 0, hash = $1 WHERE only_row = 1", (genesis,)):
        session.execute("INSERT INTO sealed (only_row, seq, hash) VALUES (1, 0, $1)", (genesis,))
    session.send(sql.HEAD)  # now that nobody else seals
    [now] = session.collect()
    for table in DERIVED_TABLES:
        session.execute(f"DELETE FROM {table}")
    session.patience_seconds = PATIENCE_SECONDS
    sealed = Head(0, genesis, 0)
    last_seq = found_in(now, ledger_id).head.seq // segment_entries * segment_entries
    while sealed.seq < last_seq:
        progress(sealed.seq, last_seq)
        end = sealed.seq + segment_entries
        sealed = Head(end, seal_range(session, sealed, end), 0)
    session.execute("COMMIT")
    progress(last_seq, last_seq)
    return last_seq
