"""
Opening the ledger of a fleet: many nodes on one PostgreSQL database.

A node's data folder is its own: it holds the node's lock, the master key if it is not given otherwise, and on the first
node of an empty database the first operator token. Everything else is in the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

from spotledger.ledger import Ledger
from spotledger.ops.database import address_of, make_ready
from spotledger.ops.embedded import now_ms
from spotledger.ops.settings import Settings
from spotledger.storage.postgres import PostgresStore
from spotledger.storage.postgres_connection import connect
from spotledger.storage.postgres_key_changes import KeyChanges
from spotledger.storage.postgres_keys import PostgresKeyTables


class Fleet(NamedTuple):
    """What a node has of its fleet: the ledger, and what other nodes do to access keys and tokens."""

    ledger: Ledger
    key_changes: KeyChanges


@contextlib.contextmanager
def open_fleet(settings: Settings) -> Iterator[Fleet]:
    """
    Open the ledger in the database of *settings* for the length of a ``with`` block.

    An empty database gets the schema and an empty ledger.

    Raises:
        SettingInvalid: There is no database, or its address is none.
        StoreUnavailable: No server that takes writes could be reached.
        SchemaMismatch: The database has something else in it, or another version of the schema.
        LedgerCorrupt: The ledger in it does not hold together.
    """
    address = address_of(settings)
    make_ready(address)
    with contextlib.ExitStack() as stack:
        key_tables = PostgresKeyTables(lambda: connect(address, application="spotledger keys"))
        stack.callback(key_tables.close)
        store = PostgresStore(address, cache_accounts=settings.cache_accounts)
        store.key_tables = key_tables
        ledger = stack.enter_context(Ledger(store, now_ms))
        key_changes = KeyChanges(lambda: connect(address, application="spotledger key changes"))
        stack.callback(key_changes.close)
        yield Fleet(ledger, key_changes)
