"""Each kind of damage to a ledger on PostgreSQL, done to a copy of one: the audit names it and its place."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg import sql

import spotledger
import support_service
from servers.postgres import PostgresServer
from spotledger.audit.findings import CODES
from spotledger.audit.postgres import audit_database
from spotledger.audit.report import CLEAN, DAMAGED
from spotledger.storage.postgres import statements
from support_audit import every_kind
from support_core import Clock
from support_database_books import seal

SMALL_SEGMENT = 10
FOLDER = Path(__file__).parents[1] / "damage" / "database"

#: Rows that the service writes beside the journal.
CREDENTIALS = """
INSERT INTO access_keys (accesskey, customer, permissions, label, addresses, sealed_secret, created_ms)
VALUES ('3f0c1a52-0000-4000-8000-000000000001', 'ann', '{read,trade}', 'bot', '{10.0.0.0/8}', 'sealed', 5);
INSERT INTO operator_tokens (token_id, digest, scopes, label, addresses, created_ms, revoked_ms, revoked_change)
VALUES ('tok', sha256('token'), '{admin}', 'console', '{10.0.0.0/8}', 5, 6, 1);
INSERT INTO kept_key_requests VALUES ('kept-1', '{}', '{}');
UPDATE key_version SET version = 1;
INSERT INTO master_key_mark VALUES (1, 'fingerprint', 1);
"""


class Kind(NamedTuple):
    """One kind of damage, the code of a finding and the place that it names, and the statements that do it."""

    name: str
    code: str
    where: str
    statements: str


def kinds() -> list[Kind]:
    """Read the files with kinds of damage."""
    found = []
    for path in sorted(FOLDER.glob("*.sql")):
        for part in re.split(r"^-- ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            head, _, statements = part.partition("\n")
            found.append(Kind(*head.split(" | "), statements))
    return found


@pytest.fixture(scope="module")
def template(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the name of a database with entries of every kind, which nobody is connected to."""
    name = postgres_server.create_database()
    clock = Clock()
    with spotledger.open(postgres_server.url(name), clock_ms=clock) as ledger:
        every_kind(ledger, clock)
        ledger.freeze("ann", "btc", "1", key="open", reference="order 9", expires_ms=clock.now_ms + 1_000)
        ledger.register_customer("eve", key="register:eve")
    seal(postgres_server.url(name))
    with psycopg.connect(postgres_server.url(name), autocommit=True) as connection:
        connection.execute(CREDENTIALS)
    yield name
    postgres_server.drop_database(name)


@pytest.fixture
def copied(postgres_server: PostgresServer, template: str) -> Iterator[str]:
    """Give the name of a copy of the template."""
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        connection.execute(query.format(sql.Identifier(name), sql.Identifier(template)))
    yield name
    postgres_server.drop_database(name)


def do(url: str, kind: Kind) -> str:
    """Do the damage behind the triggers' back; return the place that the audit has to name."""
    with psycopg.connect(url, autocommit=True) as connection:
        [row] = connection.execute(
            "SELECT (SELECT max(hold_id) FROM open_hold), (SELECT min(hold_id) FROM hold WHERE closed_seq IS NOT NULL),"
            " (SELECT seq FROM journal_head), (SELECT min(seq) FROM reversal), current_database()"
        ).fetchall()
        names = dict(zip(("hold", "closed", "last", "reversed", "database"), map(str, row), strict=True))
        statements, where = kind.statements, kind.where
        names["long"] = f"balance {'x' * 189}..."
        for name, value in names.items():
            statements, where = (text.replace(f"{{{name}}}", value) for text in (statements, where))
        connection.execute("SET session_replication_role = replica")
        connection.execute("SET allow_system_table_mods = on")
        connection.execute(statements.encode(), prepare=False)
    return where


def test_copy_without_damage_is_clean(postgres_server: PostgresServer, copied: str) -> None:
    """What the other tests find comes of the damage."""
    report = audit_database(postgres_server.url(copied))
    assert (report.verdict, report.counts, report.unexamined, report.advice) == (CLEAN, {}, [], [])


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in kinds()])
def test_kind_of_damage_is_named_with_its_place(postgres_server: PostgresServer, copied: str, kind: Kind) -> None:
    """The report is damaged, has the code with the place, and says what to do."""
    url = postgres_server.url(copied)
    where = do(url, kind)
    report = audit_database(url)
    assert report.verdict == DAMAGED
    assert (kind.code, where) in {(finding.code, finding.where) for finding in report.findings}, report
    assert set(report.counts) <= set(CODES)
    assert report.advice


@pytest.fixture
def segments(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the URL of a database whose entries are in several segments of few entries each."""
    monkeypatch.setattr(statements, "SEGMENT_ENTRIES", SMALL_SEGMENT)
    clock = Clock()
    with spotledger.open(postgres_url, clock_ms=clock) as ledger:
        every_kind(ledger, clock)
    seal(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for table in ("history", "reference"):
            connection.execute(f"UPDATE {table} SET segment = (seq - 1) / %s".encode(), (SMALL_SEGMENT,))
    report = audit_database(postgres_url)
    assert (report.verdict, report.counts) == (CLEAN, {})
    assert report.entries > 3 * SMALL_SEGMENT
    return postgres_url


#: Statements that do damage across segments, and the findings that name it.
ACROSS = {
    "key digests swapped": (
        "CREATE TABLE kept AS SELECT seq, key_digest FROM entry WHERE seq IN (6, 20);"
        " UPDATE entry SET key_digest = gen_random_uuid() WHERE seq IN (6, 20);"
        " UPDATE entry SET key_digest = kept.key_digest FROM kept WHERE kept.seq = 26 - entry.seq"
        " AND entry.seq IN (6, 20)",
        {("key_row_extra", 6), ("key_row_extra", 20), ("key_row_missing", 6), ("key_row_missing", 20)},
    ),
    "a history row in a later segment, of a customer who has others there": (
        "INSERT INTO history VALUES (1, 'ann', 'spot', 'btc', 6)",
        {("history_row_extra", 6)},
    ),
    "a history row in an earlier segment": (
        "UPDATE history SET segment = 0 WHERE seq = 13",
        {("history_row_extra", 13), ("history_row_missing", 13)},
    ),
    "a history row in another segment, of a customer without any": (
        "INSERT INTO history VALUES (2, 'zed', 'spot', 'btc', 6)",
        {("history_row_extra", 6)},
    ),
    "a reference in a later segment": (
        "UPDATE reference SET segment = 1 WHERE seq = 6",
        {("reference_row_extra", 6), ("reference_row_missing", 6)},
    ),
    "a key twice": (
        "ALTER TABLE entry DROP CONSTRAINT entry_pkey CASCADE; DROP INDEX entry_key;"
        ' UPDATE entry SET body = replace(body, \'"key":"\', \'"key":"x\') WHERE seq = 6;'
        ' UPDATE entry SET body = regexp_replace(body, \'"key":"[^"]*\', \'"key":"x\' ||'
        ' (SELECT substring(other.body from \'"key":"x([^"]*)\') FROM entry AS other WHERE other.seq = 6))'
        " WHERE seq = 20",
        {("key_repeated", None), ("chain_broken", 6), ("chain_broken", 20)},
    ),
}


@pytest.mark.parametrize("damage", ACROSS)
def test_damage_across_segments_is_named_with_its_entry(segments: str, damage: str) -> None:
    """What is compared segment by segment misses nothing that was moved from one to another."""
    change, expected = ACROSS[damage]
    with psycopg.connect(segments, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(change.encode(), prepare=False)
    report = audit_database(segments)
    assert report.verdict == DAMAGED
    assert {(finding.code, finding.seq) for finding in report.findings} >= expected, report


@pytest.mark.parametrize(
    ("change", "code", "verdict"),
    [
        ("SELECT 1", 0, "clean"),
        ("ALTER TABLE balance ALTER seq DROP NOT NULL; UPDATE balance SET seq = NULL", 1, "damaged"),
        ("DROP TABLE hold CASCADE", 1, "damaged"),
        ("INSERT INTO copy_going_on SELECT 1, seq, hash FROM journal_head", 3, "incomplete"),
    ],
)
def test_command_exits_with_the_verdict(
    postgres_server: PostgresServer, copied: str, change: str, code: int, verdict: str
) -> None:
    """Whatever is in the tables, the command ends with a report and the exit code of its verdict."""
    url = postgres_server.url(copied)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(change.encode(), prepare=False)
    done = support_service.run("audit", "--database", url, "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (code, verdict)
    assert "Traceback" not in done.stderr


def test_every_kind_has_a_name_of_its_own() -> None:
    """A kind that was copied and not renamed would hide another one in a report of tests."""
    names = [kind.name for kind in kinds()]
    assert len(names) == len(set(names)) > 180
