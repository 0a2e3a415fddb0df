"""
Opening the ledger of a fleet: many nodes on one PostgreSQL database.

A node's data folder is its own: it holds the node's lock, the master key if it is not given otherwise, and on the first
node of an empty database the first operator token. Everything else is in the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from spotledger.errors import SetupError
from spotledger.ledger.ledger import Ledger
from spotledger.ops.audit_process import DatabaseAddress
from spotledger.ops.database import address_of, make_ready, standby_address_of
from spotledger.ops.embedded import now_ms
from spotledger.ops.settings import Settings
from spotledger.storage.postgres.claim import Claim
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.key_changes import KeyChanges
from spotledger.storage.postgres.keys import PostgresKeyTables
from spotledger.storage.postgres.standby import StandbyStore
from spotledger.storage.postgres.store import PostgresStore


class Fleet(NamedTuple):
    """What a node has of its fleet: the ledger, what other nodes do to access keys, and the standby it reads from."""

    ledger: Ledger
    key_changes: KeyChanges
    #: What is audited: the standby, where there is one.
    audited: DatabaseAddress
    #: Taken by the one node that audits all the time.
    audit_claim: Claim
    standby: StandbyStore | None = None


@contextlib.contextmanager
def open_fleet(settings: Settings) -> Iterator[Fleet]:
    """
    Open the ledger in the database of *settings* for the length of a ``with`` block; where they name a standby, there.

    An empty database gets the schema and an empty ledger. Access keys are always those of the server that takes writes.

    Raises:
        SettingInvalid: There is no database, or its address is none.
        StoreUnavailable: No server that takes writes could be reached, or the standby could not be.
        SchemaMismatch: The database has something else in it, or another version of the schema.
        SetupError: The standby is one of another ledger.
        LedgerCorrupt: The ledger in it does not hold together.
    """
    address = address_of(settings)
    make_ready(address)
    with contextlib.ExitStack() as stack:
        key_tables = PostgresKeyTables(lambda: connect(address, application="spotledger keys"))
        stack.callback(key_tables.close)
        standby = None if settings.read_database is None else _standby(settings, key_tables)
        store = standby or PostgresStore(address, cache_accounts=settings.cache_accounts)
        store.key_tables = key_tables
        ledger = stack.enter_context(Ledger(store, now_ms))
        key_changes = KeyChanges(lambda: connect(address, application="spotledger key changes"))
        stack.callback(key_changes.close)
        audit_claim = Claim(lambda: connect(address, application="spotledger audit claim"))
        yield Fleet(ledger, key_changes, _audited(settings), audit_claim, standby)


def _audited(settings: Settings) -> DatabaseAddress:
    if settings.read_database is None:
        return DatabaseAddress(str(settings.database), address_of(settings))
    return DatabaseAddress(str(settings.read_database), standby_address_of(settings))


def _standby(settings: Settings, key_tables: PostgresKeyTables) -> StandbyStore:
    address, limit_ms = standby_address_of(settings), settings.read_staleness_ms
    standby = StandbyStore(address, limit_ms, cache_accounts=settings.cache_accounts)
    [(ledger_id,)] = key_tables.rows("SELECT ledger_id FROM ledger")
    if standby.ledger_id != ledger_id:
        standby.close()
        raise SetupError(
            f"The standby {settings.read_database} has the ledger {standby.ledger_id}, the database has {ledger_id};"
            " a standby of this database would pass."
        )
    return standby
