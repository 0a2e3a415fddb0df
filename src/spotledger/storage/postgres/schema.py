"""
The schema of a ledger on PostgreSQL, created and changed by numbered SQL files.

A file ``0002_name.before.sql`` is applied before nodes of version 2 start; ``0002_name.after.sql``, if there is one,
after the last older node has stopped. Between the two, nodes of both versions run side by side. A migration happens
completely or not at all. If several start at once, one does the work, and the others find it done.

The audit compares a database with a description of what the files make: after a new one, run
``tools/describe_schema.py``.
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
from spotledger.storage.postgres.server_check import (
    bounded_by_standby,
    check_privileges,
    check_sees_standbys,
    connected_at_start,
)
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES

#: How often the first table is made, if others make it at the same time.
MAKE_TRIES: Final = 5
BEFORE: Final = "before"
AFTER: Final = "after"
#: insufficient_privilege.
_MAY_NOT: Final = "42501"

_FILE = re.compile(r"\A(\d{4})_([a-z0-9_]+)\.(before|after)\.sql\Z")


class Migration(NamedTuple):
    """One file: its number, whether it comes before or after its code is deployed, its name, and its statements."""

    number: int
    phase: str
    name: str
    statements: str


def migrations() -> list[Migration]:
    """Return all migrations by number, ``before`` ahead of ``after``."""
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
    Upgrade the schema to the version of this program.

    Args:
        connection: A connection in autocommit.
        after: Apply ``after`` files too; the last node of the previous version has to have stopped.

    Returns:
        The names of the files that were applied.

    Raises:
        SchemaMismatch: The schema is of a newer version.
        SetupError: The role lacks a privilege, or the database is not as a migration expects it; nothing was changed.
        StoreUnavailable: The server is in the way; nothing was changed.
        LedgerCorrupt: The server found its files damaged.
    """
    applied: list[str] = []
    for left in reversed(range(MAKE_TRIES)):
        try:
            _migrate(connection, applied, after=after)
            break
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable) as error:
            # Another one made the first table just now. Once it is there, its lock keeps the others out.
            if not left or getattr(error, "__notes__", None):
                raise _failure(error, connection) from error
        except psycopg.Error as error:
            raise _failure(error, connection) from error
    return applied


def _migrate(connection: Connection, applied: list[str], *, after: bool) -> None:
    with connection.transaction():
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_version ("
            ' number integer NOT NULL, phase text NOT NULL COLLATE "C", name text NOT NULL,'
            " applied timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (number, phase))"
        )
        connection.execute("LOCK TABLE schema_version IN EXCLUSIVE MODE")
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
    at = f"{files[0]} could not be applied" if files else "The table schema_version could not be created or read"
    found = f"{at}: {error.diag.message_primary or error} (SQLSTATE {error.sqlstate})."
    if error.sqlstate == _MAY_NOT:
        return SetupError(
            f"{found} Nothing was changed. Run spotledger migrate as the role that owns the tables of the ledger; in a"
            f" new database: GRANT CREATE ON SCHEMA public TO {connection.info.user}"
        )
    reason = reason_of(error)
    if reason is not None:
        return StoreUnavailable(
            f"the ledger could not be migrated: {reason}. A migration happens completely or not at all: run the same"
            " command again"
        )
    return SetupError(
        f"{found} Nothing was changed, and running nodes go on as before. The tables are not as this migration expects"
        " them: look for what was created or changed by hand, undo it, and run the same command again. If nothing was,"
        " keep the database as it is, and report this message."
    )


def check_schema(connection: Connection) -> None:
    """
    Check that this program can work with the schema of the database.

    Raises:
        SchemaMismatch: There is none, it is older, or an ``after`` file of a newer version was applied.
        StoreUnavailable: The server is in the way.
    """
    with translated("opened"):
        there = _applied(connection)
    _refuse_newer(there)
    missing = [m.name for m in migrations() if m.phase == BEFORE and (m.number, m.phase) not in there]
    if missing:
        raise SchemaMismatch(
            f"the database lacks {missing[0]} of version {known_version()} of the schema; apply it with: spotledger"
            " migrate"
        )


def _applied(connection: Connection) -> set[tuple[int, str]]:
    """Return number and phase of the migrations that were applied."""
    if connection.execute("SELECT to_regclass('schema_version')").fetchall() == [(None,)]:
        return set()
    return set(connection.execute("SELECT number, phase FROM schema_version").fetchall())


def _refuse_newer(there: set[tuple[int, str]]) -> None:
    """Refuse a schema that only a newer program can read: one to which a newer ``after`` file was applied."""
    newest = max((number for number, phase in there if phase == AFTER), default=0)
    if newest > known_version():
        raise SchemaMismatch(
            f"the database has version {newest} of the schema; this spotledger knows {known_version()}."
            " Use the spotledger that migrated it, or a newer one."
        )


def make_ledger(
    connection: Connection, ledger_id: str | None = None, *, segment_entries: int = SEGMENT_ENTRIES
) -> bool:
    """
    Create the first rows of a ledger, its id and that nothing is sealed, unless there is one.

    Args:
        connection: A connection in autocommit, to a database with the schema.
        ledger_id: The id, if the ledger is a copy of another; a new one if None.
        segment_entries: Entries in a segment, 1 to 65,536.

    Returns:
        Whether the ledger was created now.
    """
    ledger_id = ledger_id or str(uuid.uuid4())
    with translated("made"), connection.transaction():
        if connection.execute("SELECT 1 FROM ledger").fetchall():
            return False
        # Of several nodes at once the first one inserts, and the others wait for it and find the row.
        made = connection.execute(
            "INSERT INTO ledger (only_row, ledger_id, epoch_seq, syncs, segment_entries) VALUES (1, %s, 0, 0, %s)"
            " ON CONFLICT DO NOTHING",
            (ledger_id, segment_entries),
        ).rowcount
        if made:
            connection.execute("INSERT INTO sealed (only_row, seq, hash) VALUES (1, 0, %s)", (genesis_hash(ledger_id),))
    return bool(made)


def make_ready(address: str, *, requires_standby: bool = False, segment_entries: int = SEGMENT_ENTRIES) -> None:
    """
    Create the schema and the ledger in an empty database, or check those that exist.

    Several nodes may do so at once: one does the work, and the others find it done.

    Raises:
        SchemaMismatch: The database has tables of something else, or an older or newer schema.
        SetupError: An embedded ledger is being copied into it; or the server, the role or what stands between cannot be
            used as it is, and the message names the cure.
        StoreUnavailable: No server that takes writes could be reached.
    """
    make_schema(address)
    with connect(address) as connection, bounded_by_standby(connection, address):
        check_privileges(connection)
        if requires_standby:
            check_sees_standbys(connection)
        make_ledger(connection, segment_entries=segment_entries)
        _check_no_copy(connection)  # in this order: a copy that begins now finds a ledger


def make_schema(address: str) -> None:
    """Create the schema in an empty database, or check the one that exists; raise like :func:`make_ready`."""
    with connected_at_start(address) as connection:
        if not has_ledger_schema(connection):
            migrate(connection, after=True)
        check_schema(connection)


def _check_no_copy(connection: Connection) -> None:
    with translated("opened"):
        going_on = connection.execute("SELECT seq FROM copy_going_on").fetchall()
    if going_on:
        raise SetupError(
            f"An embedded ledger is being copied into this database, up to entry {going_on[0][0]}, and the copy has not"
            " ended. If it was interrupted, run the same spotledger copy again."
        )


def check_ledger(connection: Connection) -> None:
    """
    Check that the database has a complete ledger of a version that this program reads.

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
    """Return whether the database has a schema of spotledger; refuse one with tables of something else."""
    with translated("opened"):
        ours, others = connection.execute(
            "SELECT to_regclass('schema_version') IS NOT NULL, (SELECT count(*) FROM pg_class"
            " WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relkind IN ('r', 'p'))"
        ).fetchall()[0]
    if not ours and others:
        raise SchemaMismatch(
            f"The database has {others} tables of something else, and no ledger; an empty database would pass."
        )
    return bool(ours)
