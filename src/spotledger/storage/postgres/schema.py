"""
The schema of a ledger on PostgreSQL, made and changed by numbered SQL files.

A file ``0002_name.before.sql`` is applied before nodes that know version 2 start; ``0002_name.after.sql``, where there
is one, after the last node that does not has stopped. So the version before runs on beside the new one in between.
A migration happens whole or not at all, and of several that start at once one does it and the others find it done.
"""

from __future__ import annotations

import re
import uuid
from importlib import resources
from typing import Final, NamedTuple

import psycopg

from spotledger.errors import LedgerCorrupt, SchemaMismatch, SetupError, SpotledgerError, StoreUnavailable
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.postgres.connection import (
    Connection,
    connect,
    is_damage,
    reason_of,
    translate,
    translated,
)

#: What a server may be asked to lock so that only one migrates, "SpoL" as a number.
MIGRATION_LOCK: Final = 0x53706F4C
BEFORE: Final = "before"
AFTER: Final = "after"
#: The SQLSTATE of what a role may not do.
_MAY_NOT: Final = "42501"

_FILE = re.compile(r"\A(\d{4})_([a-z0-9_]+)\.(before|after)\.sql\Z")


class Migration(NamedTuple):
    """One file: its number, whether it comes before or after the code that needs it, its name and its statements."""

    number: int
    phase: str
    name: str
    statements: str


def migrations() -> list[Migration]:
    """Return all migrations in the order of their numbers, ``before`` ahead of ``after``."""
    found = []
    for file in resources.files("spotledger.storage.postgres").joinpath("sql").iterdir():
        match = _FILE.match(file.name)
        if match:
            found.append(Migration(int(match[1]), match[3], file.name, file.read_text("utf-8")))
    return sorted(found, key=lambda migration: (migration.number, migration.phase != BEFORE))


def known_version() -> int:
    """Return the version that this program reads and writes."""
    return max(migration.number for migration in migrations())


def migrate(connection: Connection, *, after: bool = False) -> list[str]:
    """
    Bring the schema to the version of this program, forward only; what is there already is left alone.

    Args:
        connection: A connection in autocommit.
        after: Apply ``after`` files too; the last node of the version before has to have stopped.

    Returns:
        The names of the files that were applied.

    Raises:
        SchemaMismatch: The schema is of a newer version.
        SetupError: The role may not do it, or the database is not as a migration expects it; nothing was changed.
        StoreUnavailable: The server is in the way.
    """
    applied: list[str] = []
    try:
        _migrate(connection, applied, after=after)
    except psycopg.Error as error:
        raise _failure(error, connection) from error
    return applied


def _migrate(connection: Connection, applied: list[str], *, after: bool) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version ("
            ' number integer NOT NULL, phase text NOT NULL COLLATE "C", name text NOT NULL,'
            " applied timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (number, phase))"
        )
        there = _applied(connection)
        _refuse_newer(there)
        for migration in migrations():
            wanted = migration.phase == BEFORE or after
            if wanted and (migration.number, migration.phase) not in there:
                try:
                    connection.execute(migration.statements.encode(), prepare=False)
                except psycopg.Error as error:
                    error.add_note(migration.name)
                    raise
                connection.execute(
                    "INSERT INTO schema_version (number, phase, name) VALUES (%s, %s, %s)", migration[:3]
                )
                applied.append(migration.name)


def _failure(error: psycopg.Error, connection: Connection) -> SpotledgerError | LedgerCorrupt:
    """Return our error for a migration that failed: what was found, and what an operator can do."""
    if is_damage(error):
        return translate(error, "migrated")
    files = getattr(error, "__notes__", None)
    at = f"{files[0]} could not be applied" if files else "The table schema_version could not be made or read"
    found = f"{at}: {error.diag.message_primary or error} (SQLSTATE {error.sqlstate})."
    if error.sqlstate == _MAY_NOT:
        return SetupError(
            f"{found} Nothing was changed. Let the role that owns the ledger's tables run spotledger migrate; in a new"
            f" database: GRANT CREATE ON SCHEMA public TO {connection.info.user}"
        )
    reason = reason_of(error)
    if reason is not None:
        return StoreUnavailable(
            f"the ledger could not be migrated: {reason}. A migration is done whole or not at all: the same command"
            " again goes on from there"
        )
    return SetupError(
        f"{found} Nothing was changed, and nodes that run go on as before. So the tables are not as this migration"
        " expects them: look for what was made or changed there by hand, take it back, and give the same command again."
        " If nothing was, keep the database as it is, and report this message."
    )


def has_schema(connection: Connection) -> bool:
    """Say whether any migration was ever applied."""
    row = connection.execute("SELECT to_regclass('schema_version') IS NOT NULL").fetchone()
    return row is not None and bool(row[0])


def check_schema(connection: Connection) -> None:
    """
    Check that this program can work with the schema that is there.

    Raises:
        SchemaMismatch: There is none, it is older, or an ``after`` file of a newer version was applied to it.
        StoreUnavailable: The server is in the way.
    """
    with translated("opened"):
        there = _applied(connection) if has_schema(connection) else set()
    _refuse_newer(there)
    missing = [m.name for m in migrations() if m.phase == BEFORE and (m.number, m.phase) not in there]
    if missing:
        raise SchemaMismatch(
            f"the database has not got {missing[0]} of version {known_version()} of the schema;"
            " make it ready with: spotledger migrate"
        )


def _applied(connection: Connection) -> set[tuple[int, str]]:
    return set(connection.execute("SELECT number, phase FROM schema_version").fetchall())


def _refuse_newer(there: set[tuple[int, str]]) -> None:
    """Refuse what only a newer program can read: a newer ``before`` leaves all that we need, its ``after`` does not."""
    newest = max((number for number, phase in there if phase == AFTER), default=0)
    if newest > known_version():
        raise SchemaMismatch(
            f"the database has version {newest} of the schema; this spotledger knows {known_version()}."
            " Use the spotledger that migrated it, or a newer one."
        )


def make_ledger(connection: Connection, ledger_id: str | None = None, epoch: int = 1) -> bool:
    """
    Make the first rows of a ledger where there are none: its id, and a head with no entry before it.

    Args:
        connection: A connection in autocommit, to a database with the schema.
        ledger_id: The id of the ledger, where it is a copy of one; a new one otherwise.
        epoch: How often the ledger was restored from a backup, plus one.

    Returns:
        Whether the ledger was made now.
    """
    ledger_id = ledger_id or str(uuid.uuid4())
    with translated("made"), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        made = connection.execute(
            "INSERT INTO ledger (only_row, ledger_id, epoch, syncs) VALUES (1, %s, %s, 0) ON CONFLICT DO NOTHING",
            (ledger_id, epoch),
        ).rowcount
        if made:
            connection.execute(
                "INSERT INTO head (only_row, seq, hash, booked_ms) VALUES (1, 0, %s, 0)", (genesis_hash(ledger_id),)
            )
    return bool(made)


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
        if not has_ledger_schema(connection):
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


def check_ledger(connection: Connection) -> None:
    """
    Check that the database has a ledger of a version that this program reads, whole.

    Raises:
        SchemaMismatch: It has none, or one of another version.
        SetupError: An embedded ledger is being copied into it.
        StoreUnavailable: The server is in the way.
    """
    if not has_ledger_schema(connection):
        raise SchemaMismatch("There is no ledger in the database; name the one that the nodes serve.")
    check_schema(connection)
    _check_no_copy(connection)


def has_ledger_schema(connection: Connection) -> bool:
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
