"""Migrations in pairs: nodes of the old and the new version run beside each other between ``before`` and ``after``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

import spotledger
import support_service
from spotledger.errors import SchemaMismatch, SetupError
from spotledger.storage.postgres.schema import known_version, migrate, migrations

PACKAGE = Path(spotledger.__file__).parent
NEXT = known_version() + 1


class NewVersion:
    """A copy of the program that knows one version of the schema more: a column comes, and later a table goes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(PACKAGE, folder / "spotledger", ignore=shutil.ignore_patterns("__pycache__"))
        self._sql = folder / "spotledger" / "storage" / "postgres" / "sql"
        self.write("before", "ALTER TABLE coin ADD COLUMN note text; CREATE TABLE old_thing (id integer);")
        self.write("after", "DROP TABLE old_thing;")

    def write(self, phase: str, statements: str) -> None:
        """Write a migration of the next version."""
        (self._sql / f"{NEXT:04}_notes.{phase}.sql").write_text(statements)

    def run(self, *arguments: str, url: str) -> subprocess.CompletedProcess[str]:
        """Run the new version's command line."""
        return subprocess.run(
            [sys.executable, "-c", "from spotledger.cli.main import main; main()", *arguments],
            env=support_service.environment(PYTHONPATH=str(self._folder), SPOTLEDGER_DATABASE=url),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def applied(self, *arguments: str, url: str) -> list[str]:
        """Migrate, and return what was applied."""
        done = self.run("migrate", "--json", *arguments, url=url)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["applied"]  # type: ignore[no-any-return]


@pytest.fixture
def new_version(tmp_path: Path) -> NewVersion:
    """Give a version of the program that is newer than this one."""
    return NewVersion(tmp_path / "new")


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement."""
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def test_old_nodes_run_on_between_before_and_after(new_version: NewVersion, postgres_url: str) -> None:
    """Before: an open ledger of this version goes on, and a new one opens. After: this version is refused."""
    with spotledger.open(postgres_url) as ledger:
        ledger.list_coin("btc", 8, key="k1")
        assert new_version.applied(url=postgres_url) == [f"{NEXT:04}_notes.before.sql"]
        ledger.list_coin("eth", 18, key="k2")
    with spotledger.open(postgres_url) as ledger:
        ledger.list_coin("usdt", 8, key="k3")
    assert new_version.applied(url=postgres_url) == []
    assert new_version.applied("--after", url=postgres_url) == [f"{NEXT:04}_notes.after.sql"]
    assert new_version.applied("--after", url=postgres_url) == []
    with pytest.raises(SchemaMismatch, match=f"has version {NEXT} of the schema"):
        spotledger.open(postgres_url)
    assert rows(postgres_url, "SELECT count(*) FROM entry") == [(3,)]


def test_new_version_on_the_old_schema_asks_for_migrate(
    new_version: NewVersion, postgres_url: str, tmp_path: Path
) -> None:
    """A node of the new version changes no ledger by itself; it names the command that does."""
    spotledger.open(postgres_url).close()
    refused = new_version.run("serve", "--data", str(tmp_path / "data"), url=postgres_url)
    assert refused.returncode == 1
    assert "apply it with: spotledger migrate" in refused.stderr
    assert rows(postgres_url, "SELECT to_regclass('old_thing')") == [(None,)]


def test_migration_that_fails_changes_nothing(new_version: NewVersion, postgres_url: str) -> None:
    """What cannot be applied whole is not applied at all, and the ledger goes on as it was."""
    new_version.write("before", "ALTER TABLE coin ADD COLUMN note text; SELECT 1 / 0;")
    with spotledger.open(postgres_url) as ledger:
        failed = new_version.run("migrate", url=postgres_url)
        assert failed.returncode == 1
        assert "Traceback" not in failed.stderr
        assert f"{NEXT:04}_notes.before.sql could not be applied: division by zero (SQLSTATE 22012)" in failed.stderr
        assert "Nothing was changed" in failed.stderr
        assert "damaged" not in failed.stderr
        ledger.list_coin("btc", 8, key="k1")
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'coin' AND column_name = 'note'"
    assert rows(postgres_url, columns) == []


def test_migration_onto_what_was_changed_by_hand_says_what_to_do(new_version: NewVersion, postgres_url: str) -> None:
    """A table that is in the way is named; once it is gone the same command does it."""
    spotledger.open(postgres_url).close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE old_thing (id integer)")
    failed = new_version.run("migrate", "--json", url=postgres_url)
    assert failed.returncode == 1
    problem = json.loads(failed.stderr)
    assert problem["code"] == "setup_error"
    assert 'relation "old_thing" already exists (SQLSTATE 42P07)' in problem["detail"]
    assert "undo it, and run the same command again" in problem["detail"]
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP TABLE old_thing")
    assert new_version.applied(url=postgres_url) == [f"{NEXT:04}_notes.before.sql"]


def test_migration_by_a_role_that_may_not_says_who_may(new_version: NewVersion, postgres_url: str) -> None:
    """Neither a new database nor an older schema is changed by it, and the right that is lacking is named."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("REVOKE CREATE ON SCHEMA public FROM public")
        connection.execute("DROP ROLE IF EXISTS visitor")
        connection.execute("CREATE ROLE visitor LOGIN PASSWORD 'visiting'")
    try:
        refused = new_version.run("migrate", url=re.sub("//.*@", "//visitor:visiting@", postgres_url))
        assert refused.returncode == 1
        assert "permission denied for schema public (SQLSTATE 42501)" in refused.stderr
        assert "GRANT CREATE ON SCHEMA public TO visitor" in refused.stderr
        assert "visiting" not in refused.stderr
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("DROP ROLE visitor")


def test_entries_of_the_form_before_are_refused_and_left(postgres_url: str) -> None:
    """A journal whose postings name account and coin is not taken for one that this program reads."""
    with psycopg.connect(postgres_url) as connection:
        migrate_to(connection, 2)
        connection.execute(
            "INSERT INTO entry (seq, body, hash, key_digest) VALUES (1, '{}', '\\x00', gen_random_uuid())"
        )
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with pytest.raises(SetupError, match="entries of the form before version 3"):
            migrate(connection)
        assert connection.execute("SELECT max(number) FROM schema_version").fetchone() == (2,)
    assert rows(postgres_url, "SELECT count(*) FROM entry") == [(1,)]
    with pytest.raises(SchemaMismatch, match="lacks 0003_lines"):
        spotledger.open(postgres_url)


def migrate_to(connection: psycopg.Connection[Any], number: int) -> None:
    """Make the schema as it was in version *number*."""
    connection.execute(
        "CREATE TABLE schema_version (number integer, phase text, name text, applied timestamptz DEFAULT now())"
    )
    for migration in migrations():
        if migration.number <= number:
            connection.execute(migration.statements.encode(), prepare=False)
            connection.execute("INSERT INTO schema_version (number, phase, name) VALUES (%s, %s, %s)", migration[:3])
