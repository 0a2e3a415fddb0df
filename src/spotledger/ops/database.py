"""The database of a fleet: its address with the times that are set, its schema, and the ledger in it."""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from spotledger.errors import SchemaMismatch, SettingInvalid, SetupError
from spotledger.ops.settings import ServerUrl, Settings, flag_of
from spotledger.storage.postgres.connection import Connection, connect, translated
from spotledger.storage.postgres.schema import check_schema, make_ledger, migrate

#: The name by which the server lists the connections of a node.
APPLICATION: Final = "spotledger"
#: A standby is connected to whatever it is; all else looks for the server that takes writes.
ANY_SERVER: Final = {"target_session_attrs": "any"}


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


def make_ready(address: str) -> None:
    """
    Make the schema and the ledger in an empty database; where there is a ledger, check that this program knows it.

    Several nodes may do so at once: one makes it, the others find it made.

    Raises:
        SchemaMismatch: The database has tables of something else, or an older or newer schema.
        StoreUnavailable: No server that takes writes could be reached.
    """
    make_schema(address)
    with connect(address) as connection:
        make_ledger(connection)
        _check_no_copy(connection)  # after it: a copy that begins now finds a ledger


def make_schema(address: str) -> None:
    """Make the schema in an empty database, or check the one that is there; raises like :func:`make_ready`."""
    with connect(address) as connection:
        if not _has_schema(connection):
            migrate(connection, after=True)
        check_schema(connection)


def _check_no_copy(connection: Connection) -> None:
    with translated("opened"):
        going_on = connection.execute("SELECT seq FROM copy_going_on").fetchall()
    if going_on:
        raise SetupError(
            f"An embedded ledger is being copied into this database, up to entry {going_on[0][0]}, and the copy has not"
            " ended. Where it was broken off, run the same spotledger copy again."
        )


def check_there(settings: Settings) -> None:
    """
    Check that there is a ledger in the database of *settings*.

    Raises:
        SchemaMismatch: There is none, or something else.
        StoreUnavailable: The database cannot be reached.
    """
    with connect(address_of(settings)) as connection:
        if not _has_schema(connection):
            raise SchemaMismatch(
                f"There is no ledger in the database {settings.database}. A new one is made by: spotledger serve, coin"
                " add, or customer add; an embedded one is brought there by: spotledger copy."
            )


def check_ledger(connection: Connection) -> None:
    """
    Check that the database has a ledger of a version that this program reads, whole.

    Raises:
        SchemaMismatch: It has none, or one of another version.
        SetupError: An embedded ledger is being copied into it.
        StoreUnavailable: The server is in the way.
    """
    if not _has_schema(connection):
        raise SchemaMismatch("There is no ledger in the database; name the one that the nodes serve.")
    check_schema(connection)
    _check_no_copy(connection)


def any_server(address: str) -> str:
    """Return *address* such that a standby will do, for what only reads; what it says of that itself counts."""
    return address if "target_session_attrs" in conninfo_to_dict(address) else make_conninfo(address, **ANY_SERVER)


def migrate_database(address: str, *, after: bool) -> list[str]:
    """
    Bring the schema of the database to the version of this program; return the names of what was applied.

    Args:
        address: Where it is.
        after: Apply, too, what nodes of the version before cannot live with.

    Raises:
        SchemaMismatch: The database has tables of something else, or a newer schema.
        StoreUnavailable: The server is in the way; nothing was changed.
    """
    with connect(address) as connection:
        _has_schema(connection)
        return migrate(connection, after=after)


def _has_schema(connection: Connection) -> bool:
    """Say whether the database has a schema of ours; refuse one that has tables of something else."""
    with translated("opened"):
        ours, others = connection.execute(
            "SELECT to_regclass('schema_version') IS NOT NULL, (SELECT count(*) FROM pg_class"
            " WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p'))"
        ).fetchall()[0]
    if not ours and others:
        raise SchemaMismatch(
            f"The database has {others} tables of something else, and no ledger; an empty database would pass."
        )
    return bool(ours)
