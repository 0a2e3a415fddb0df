"""
Which server an audit reads: the right one, else the very one on which a node saw its last entry.

A server with another history is not audited: its report would be about another ledger. The server on which the entry
was seen, on the same timeline, is: if the entry is gone there, the end of the journal was lost or removed.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import psycopg

from spotledger.audit.report import KnownHead
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres.connection import Connection, any_server, connect
from spotledger.storage.postgres.right_server import RightServer, place_of, server_of
from spotledger.storage.seen_head import NotCaughtUp, Seen, SeenHead

_APPLICATION: Final = "spotledger audit"


def connect_audited(url: str, seen: Seen | None) -> tuple[Connection, list[KnownHead]]:
    """
    Connect to the server that is audited, a standby too.

    Args:
        url: A PostgreSQL URL, with one or several hosts.
        seen: What a node saw last; None if nothing is known, and any server is audited.

    Returns:
        The connection, and the entry that the journal has to have.

    Raises:
        OtherHistory, NotCaughtUp: No server that could be reached has what was seen.
        SettingInvalid, StoreUnavailable: There is no connection.
        LedgerCorrupt: A server is damaged, and is not the one on which the entry was seen.
    """
    address = any_server(url)
    if seen is None:
        return connect(address, application=_APPLICATION), []
    right = RightServer(address, SeenHead(seen=seen))
    try:
        connection = right.connect_once_caught_up(_APPLICATION)
    except NotCaughtUp:
        raise
    except (StoreUnavailable, LedgerCorrupt):
        found = _connect_where_seen(right, seen)
        if found is None:
            raise
        connection = found
    return connection, [] if _is_given_up(connection, seen) else [KnownHead(seen.seq, seen.hash)]


def _connect_where_seen(right: RightServer, seen: Seen) -> Connection | None:
    """Return a connection to the server on which the entry was *seen*; None if no host of the address is that one."""
    for address in [address for *_, address in right.hosts()] or [right.address]:
        with suppress(StoreUnavailable):
            connection = connect(address, application=_APPLICATION)
            if _is_where_seen(connection, seen):
                return connection
            connection.close()
    return None


def _is_where_seen(connection: Connection, seen: Seen) -> bool:
    """Return whether it is that server, on the same timeline, and its database is not known to be another one."""
    if not seen.server.system or server_of(connection) != seen.server:
        return False
    with suppress(psycopg.Error):
        if connection.execute("SELECT to_regclass('entry')").fetchall() == [(None,)]:
            return False
        return connection.execute("SELECT 1 FROM ledger WHERE ledger_id <> %s", (seen.ledger_id,)).fetchall() == []
    return True  # so damaged that it does not say


def _is_given_up(connection: Connection, seen: Seen) -> bool:
    """Return whether nothing was seen, or the server began a later epoch, in which the entry need not be."""
    if not seen.seq:
        return True
    with suppress(StoreUnavailable, LedgerCorrupt):
        place = place_of(connection, seen.seq)
        return place is not None and place.epoch > seen.epoch and place.kept != seen.hash
    return False
