"""
The schema of a ledger on PostgreSQL as its server describes it, compared with what the migrations make.

``definitions.json`` is that description of a database that was just migrated; a test keeps it current. Whatever is
attached to a table of the ledger counts: columns, constraints, indexes, triggers, rules, policies, and tables that
inherit from it. Relations of others, and privileges, are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, TypeAlias

from spotledger.audit.findings import Findings
from spotledger.storage.postgres.connection import Connection
from spotledger.storage.postgres.schema import known_version

#: By relation or function, by part of it: the definition.
Definitions: TypeAlias = dict[str, dict[str, str]]

#: The table of the migrations that were applied; its rows are part of the description.
MIGRATIONS_TABLE: Final = "schema_version"
_PACKAGE: Final = resources.files("spotledger.audit.postgres")
_IN_FRONT: Final = (
    "SELECT array_position(path, 'pg_catalog') > array_position(path, %s) FROM current_schemas(true) AS path"
)


def expected_definitions() -> Definitions:
    """Return the description of a database that was just migrated."""
    found: Definitions = json.loads(_PACKAGE.joinpath("definitions.json").read_text("utf-8"))
    return found


def read_definitions(connection: Connection, schema: str, names: Mapping[str, Any]) -> Definitions:
    """
    Describe what *schema* has of the relations and functions in *names*; the latter end with ``()``.

    The connection has to be in a transaction; its search path is changed for the rest of it.
    """
    connection.execute("SELECT set_config('search_path', quote_ident(%s), true)", (schema,))
    relations = [name for name in names if not name.endswith("()")]
    functions = [name.removesuffix("()") for name in names if name.endswith("()")]
    query = _PACKAGE.joinpath("definitions.sql").read_bytes()
    found: Definitions = {}
    values = {"schema": schema, "relations": relations, "functions": functions}
    for name, part, definition in connection.execute(query, values):
        found.setdefault(name, {})[part] = " ".join(definition.split())
    if "table" in found.get(MIGRATIONS_TABLE, {}):
        for number, phase, name in connection.execute("SELECT number, phase, name FROM schema_version"):
            found[MIGRATIONS_TABLE][f"row {number} {phase}"] = str(name)
    return found


#: Settings of this database, of all, or of roles in them, under which the triggers of the journal do not fire.
_WITHOUT_TRIGGERS: Final = (
    "SELECT coalesce(rolname, 'every role') FROM pg_db_role_setting LEFT JOIN pg_roles ON pg_roles.oid = setrole"
    " WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))"
    " AND 'session_replication_role=replica' = ANY (setconfig)"
)


class DefinitionCheck:
    """The comparison of one database with the description."""

    def __init__(self, connection: Connection, findings: Findings) -> None:
        """Prepare to compare the database of *connection*; what differs is added to *findings*."""
        self._connection = connection
        self._findings = findings
        self._expected = expected_definitions()

    def compare(self) -> None:
        """Compare the schema in which the journal is found; has to be called in a transaction of its own."""
        schema = self._check_places()
        if schema is None:
            return
        for (role,) in self._connection.execute(_WITHOUT_TRIGGERS):
            where = "session_replication_role"
            self._findings.add("trigger_changed", None, where, f"replica, for {role}", "origin: else no trigger fires")
        found = read_definitions(self._connection, schema, self._expected)
        newer = [part for part in found.get(MIGRATIONS_TABLE, {}) if _version_in(part) > known_version()]
        if newer:
            self._findings.leave_out(
                f"the definitions of tables and triggers: the database has {newer[0].removeprefix('row ')} of the"
                f" schema, and this spotledger knows version {known_version()}"
            )
            return
        for name, parts in self._expected.items():
            self._compare_parts(name, parts, found.get(name, {}))

    def _check_places(self) -> str | None:
        """Check that the nodes find every relation in the schema of the journal; return that, None if there is none."""
        rows = self._connection.execute(
            "SELECT name, nspname::text FROM unnest(%s::text[]) AS name"
            " LEFT JOIN pg_class ON pg_class.oid = to_regclass(name)"
            " LEFT JOIN pg_namespace ON pg_namespace.oid = relnamespace",
            ([name for name in self._expected if not name.endswith("()")],),
        ).fetchall()
        places: dict[str, str | None] = dict(rows)
        schema = places.get("entry")
        if schema is None:
            return None
        for name, place in places.items():
            if place not in (schema, None):
                self._findings.add(
                    "schema_changed",
                    None,
                    f"{name}: schema",
                    f"{place}, by the search path",
                    f"{schema}, as the journal",
                )
        if self._connection.execute(_IN_FRONT, (schema,)).fetchall() == [(True,)]:
            self._findings.add("schema_changed", None, "search path", f"{schema} before pg_catalog", "pg_catalog first")
        return schema

    def _compare_parts(self, name: str, expected: dict[str, str], found: dict[str, str]) -> None:
        """Compare the parts of one relation or function."""
        if not found:
            self._note(name, next(iter(expected)), "missing", next(iter(expected.values())) or "there")
            return
        for part, definition in expected.items():
            if found.get(part) != definition:
                self._note(name, part, *_differing(found.get(part, "missing"), definition))
        for part in sorted(found.keys() - expected.keys()):
            self._note(name, part, found[part] or "there", "nothing")

    def _note(self, name: str, part: str, found: str, expected: str) -> None:
        code = "trigger_changed" if part.startswith(_PROTECTION) else "schema_changed"
        self._findings.add(code, None, f"{name}: {part}", found, expected or "as the migrations make it")


#: The parts that protect the journal.
_PROTECTION: Final = ("trigger ", "function")
_SHOWN: Final = 160


def _differing(found: str, expected: str) -> tuple[str, str]:
    """Return two definitions from shortly before the place where they differ, if they are long."""
    if max(len(found), len(expected)) <= _SHOWN or found == "missing":
        return found or "there, without any option", expected
    same = next((at for at, (ours, theirs) in enumerate(zip(found, expected, strict=False)) if ours != theirs), 0)
    start = max(0, same - _SHOWN // 4)
    return f"… {found[start:]}", f"… {expected[start:]}"


def _version_in(part: str) -> int:
    """Return the version in the name of a row of the migrations; 0 if *part* is none, or has none."""
    word, _, rest = part.partition(" ")
    number = rest.partition(" ")[0]
    return int(number) if word == "row" and number.isdecimal() else 0
