"""What the audit of a database compares the schema with, and from where it reads: a standby, a role that only reads."""

from __future__ import annotations

import json
import re

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import spotledger
from spotledger.audit.postgres import audit_database
from spotledger.audit.postgres.definitions import expected_definitions, read_definitions
from spotledger.audit.report import CLEAN, DAMAGED, INCOMPLETE
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.schema import known_version, migrate
from support_audit import every_kind
from support_core import Clock
from support_database_books import seal


@pytest.fixture
def books(postgres_url: str) -> str:
    """Give the URL of a database with entries of every kind."""
    clock = Clock()
    with spotledger.open(postgres_url, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
    seal(postgres_url)
    return postgres_url


def do(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements.encode(), prepare=False)


def test_description_of_the_schema_is_that_of_the_migrations(postgres_url: str) -> None:
    """After a change of the migrations: python tools/describe_schema.py with the URL of an empty database."""
    with connect(postgres_url) as connection:
        migrate(connection, after=True)
        names = {
            name: None
            for (name,) in connection.execute(
                "SELECT relname::text FROM pg_class"
                " WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('i', 't')"
                " UNION SELECT proname || '()' FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
            )
        }
        with connection.transaction():
            assert read_definitions(connection, "public", names) == expected_definitions()


def test_ledger_in_another_schema_is_clean(postgres_url: str) -> None:
    """The definitions are compared where the journal is, whatever that schema is called."""
    do(postgres_url, 'CREATE SCHEMA "My ledger"; CREATE TABLE entry (seq text)')
    url = f"{postgres_url}?options=-c%20search_path%3D%22My%5C%20ledger%22"
    clock = Clock()
    with spotledger.open(url, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
    report = audit_database(url)
    assert (report.verdict, report.counts, report.unexamined) == (CLEAN, {}, [])
    do(url, "ALTER TABLE balance DROP CONSTRAINT balance_check")
    assert [finding.where for finding in audit_database(url).findings] == ["balance: constraint balance_check"]


def test_tables_of_others_are_left_alone(books: str) -> None:
    """What an operator keeps beside the ledger is no damage."""
    do(
        books,
        "CREATE TABLE report (day date PRIMARY KEY, total numeric); CREATE VIEW daily AS SELECT * FROM posting;"
        " CREATE INDEX report_total ON report (total); CREATE SCHEMA other; CREATE TABLE other.balance (x int);"
        " CREATE FUNCTION refuse_change_of_journal(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    )
    report = audit_database(books)
    assert (report.verdict, report.counts, report.unexamined) == (CLEAN, {}, [])


def test_newer_schema_is_incomplete_and_never_damaged(books: str) -> None:
    """While nodes are replaced, a node of the previous version may audit what the newer one has migrated."""
    newer = known_version() + 1
    do(
        books,
        "ALTER TABLE balance ADD more text;"
        f" INSERT INTO schema_version VALUES ({newer}, 'before', '{newer:04}_more.before.sql')",
    )
    report = audit_database(books)
    assert (report.verdict, report.counts) == (INCOMPLETE, {})
    assert str(known_version()) in report.unexamined[0]


def test_role_that_only_reads_is_enough(books: str, request: pytest.FixtureRequest) -> None:
    """It needs SELECT on the tables; what it may not read is named, and the verdict is then not clean."""
    role = f"reader_{books.rpartition('/')[2]}"
    do(books, f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    request.addfinalizer(lambda: do(books, f"DROP OWNED BY {role}; DROP ROLE {role}"))
    url = make_conninfo(books, user=role, password="x", options="-c default_transaction_read_only=on")
    report = audit_database(url)
    assert (report.verdict, report.counts, report.unexamined) == (CLEAN, {}, [])
    do(books, f"REVOKE SELECT ON access_keys, history FROM {role}")
    report = audit_database(url)
    assert (report.verdict, report.counts) == (INCOMPLETE, {})
    assert all("privilege" in why for why in report.unexamined)
    assert {why.partition(":")[0] for why in report.unexamined} >= {"access_keys", "the history of segment 0"}


def test_copy_that_has_not_ended_makes_an_audit_incomplete(books: str) -> None:
    """No node starts on it; the copying itself audits what it has written."""
    do(books, "INSERT INTO copy_going_on SELECT 1, seq, hash FROM journal_head")
    report = audit_database(books)
    assert (report.verdict, report.counts) == (INCOMPLETE, {})
    assert "spotledger copy" in report.unexamined[0]
    assert audit_database(books, while_copied=True).verdict == CLEAN


#: A value of another type for every column.
TYPES = {
    "text": "'x'",
    "text[]": "'{x}'",
    "jsonb": "'{\"a\": [1]}'",
    "bytea": "'x'",
    "double precision": "'NaN'",
    "timestamp with time zone": "'infinity'",
    "bigint": "-1",
    "numeric": "0.5",
}
#: Without keys, checks and triggers every column takes any type, and no value.
WITHOUT_GUARDS = """
DROP VIEW posting, journal_head;
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT conrelid::regclass AS of, conname FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace AND contype IN ('c', 'f', 'p', 'u') ORDER BY contype <> 'f'
    LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', found.of, found.conname);
    END LOOP;
    FOR found IN SELECT indexrelid::regclass AS of FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE relnamespace = 'public'::regnamespace
    LOOP
        EXECUTE format('DROP INDEX %s', found.of);
    END LOOP;
END $$;
ALTER TABLE entry DISABLE TRIGGER USER;
"""


def columns_of_tables() -> list[tuple[str, str, str]]:
    """Return table, column and definition; first those of the tables that an audit reads last, so that it gets far."""
    last = ["sealed", "entry", "ledger"]
    tables = sorted(expected_definitions().items(), key=lambda named: last.index(named[0]) if named[0] in last else -1)
    return [
        (table, part.removeprefix("column "), definition)
        for table, parts in tables
        if "table" in parts and table != "schema_version"
        for part, definition in parts.items()
        if part.startswith("column ")
    ]


@pytest.mark.parametrize("changed", ["no value", *TYPES])
def test_any_column_of_any_other_type_is_named_and_ends_no_audit(books: str, changed: str) -> None:
    """Each column of each table, one after the other and with all the earlier ones: each is one finding more."""
    do(books, WITHOUT_GUARDS)
    found = audit_database(books).counts["schema_changed"]
    for table, column, definition in columns_of_tables():
        if changed == "no value":
            change = "DROP NOT NULL"
            do(books, f'ALTER TABLE {table} ALTER "{column}" DROP NOT NULL; UPDATE {table} SET "{column}" = NULL')
        else:
            change = f"TYPE {changed} USING {TYPES[changed]}::{changed}"
            do(books, f'ALTER TABLE {table} ALTER "{column}" {change}')
        is_as_before = (
            "not null" not in definition
            if changed == "no value"
            else re.sub(r"^\d+ | not null| collate pg_catalog.default", "", definition) == changed
        )
        report = audit_database(books)
        assert report.verdict == DAMAGED
        json.dumps(report.as_json())
        assert report.counts["schema_changed"] == found + (not is_as_before), (table, column, definition)
        found = report.counts["schema_changed"]
