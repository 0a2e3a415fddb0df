"""
Open a ledger in a PostgreSQL database: for the library, or as one node of a fleet.

A node has a data folder of its own for its lock, the master key unless it is given otherwise, and, on the first node of
an empty database, the first operator token. Everything else is in the database.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from spotledger.audit.process import DatabaseAddress
from spotledger.clock import now_ms
from spotledger.errors import SchemaMismatch, SettingInvalid, SetupError
from spotledger.ledger.ledger import Ledger
from spotledger.ops.settings import ServerUrl, Settings, flag_of
from spotledger.storage.postgres.claim import Claim
from spotledger.storage.postgres.connection import ANY_SERVER, connect
from spotledger.storage.postgres.key_changes import KeyChanges
from spotledger.storage.postgres.keys import PostgresKeyTables
from spotledger.storage.postgres.schema import has_ledger_schema, make_ready, migrate
from spotledger.storage.postgres.standby import StandbyStore
from spotledger.storage.postgres.store import PostgresStore

#: The name by which the server lists the connections of a node.
APPLICATION: Final = "spotledger"


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


def address_of(settings: Settings) -> str:
    """
    Return the address of the database with the times that are set, as the driver takes it.

    It has the password in it: hand it to the driver, and to nothing else.

    Raises:
        SettingInvalid: There is no database, or its address is none.
    """
    if settings.database is None:
        raise SettingInvalid(
            f"There is no database; name one with {flag_of('database')} postgresql://…", setting="database"
        )
    return _with_times(settings, settings.database)


def standby_address_of(settings: Settings) -> str:
    """Return the address of the standby that is read from, likewise."""
    if settings.read_database is None:
        raise SettingInvalid(f"There is no standby; name one with {flag_of('read_database')}.", setting="read_database")
    return make_conninfo(_with_times(settings, settings.read_database), **ANY_SERVER)


def _with_times(settings: Settings, url: ServerUrl) -> str:
    """Return *url* with the times of *settings*, where it has none of its own."""
    try:
        asked = conninfo_to_dict(url.secret)
    except psycopg.Error:  # its message may have the password in it
        raise SettingInvalid(
            f"The database {url} is no address that the driver takes; postgresql://NAME@HOST:PORT/DATABASE would pass."
        ) from None
    times = (
        f"-c lock_timeout={settings.database_lock_ms}"
        f" -c idle_in_transaction_session_timeout={settings.database_idle_ms}"
        f" -c tcp_user_timeout={settings.database_network_ms}"
    )
    given = {
        "application_name": APPLICATION,
        "connect_timeout": settings.database_connect_seconds,
        "tcp_user_timeout": settings.database_network_ms,
        **{name: value for name, value in asked.items() if value is not None},
        "options": f"{times} {asked.get('options') or ''}".strip(),
    }
    return make_conninfo(**given)  # type: ignore[arg-type]


def check_there(settings: Settings) -> None:
    """
    Check that there is a ledger in the database of *settings*.

    Raises:
        SchemaMismatch: There is none, or something else.
        StoreUnavailable: The database cannot be reached.
    """
    with connect(address_of(settings)) as connection:
        if not has_ledger_schema(connection):
            raise SchemaMismatch(
                f"There is no ledger in the database {settings.database}. A new one is made by: spotledger serve, coin"
                " add, or customer add; an embedded one is brought there by: spotledger copy."
            )


def migrate_database(settings: Settings, *, after: bool) -> list[str]:
    """
    Bring the schema of the database to the version of this program; return the names of what was applied.

    Args:
        settings: They name the database.
        after: Apply, too, what nodes of the version before cannot live with.

    Raises:
        SchemaMismatch: The database has tables of something else, or a newer schema.
        StoreUnavailable: The server is in the way; nothing was changed.
    """
    with connect(address_of(settings)) as connection:
        has_ledger_schema(connection)
        return migrate(connection, after=after)
