"""The tables of access keys in the ledger file: what only that store has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

import spotledger
from spotledger.errors import LedgerCorrupt
from spotledger.http.public.app import PublicSettings
from support_core import raw
from support_operator import operator_api
from support_public import KEY, Service, document, signed_query


def test_tables_hold_types_strictly(tmp_path: Path) -> None:
    """The tables are STRICT and hold JSON where JSON belongs."""
    with spotledger.open(tmp_path) as ledger:
        write = ledger.key_tables._write
        row = "INSERT INTO access_keys VALUES ('k', 'c', {}, '', '[]', x'00', {}, NULL, NULL, NULL)"
        with pytest.raises(apsw.ConstraintError):
            write.execute(row.format("'read'", 1))
        with pytest.raises(apsw.ConstraintError):
            write.execute(row.format("'[]'", "'a'"))
        write.execute(row.format("'[]'", 1))


# --- damage ---------------------------------------------------------------------------------------


def damage(folder: Path, table: str, offset: int = 0) -> None:
    """Overwrite the first page of *table* in the closed file of access keys with noise, from *offset* bytes on."""
    with raw(folder, "keys.db") as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with (folder / "keys.db").open("r+b") as file:
        file.seek((page - 1) * size + offset)
        file.write(b"\xff" * (size - offset))


def spoil(folder: Path, statement: str) -> None:
    """Change what is in a row as a flipped bit would: without the checks of the schema."""
    with raw(folder, "keys.db") as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a ledger with one access key and one idempotency key of a key write, and close it."""
    with spotledger.open(tmp_path) as ledger:
        Service(ledger, PublicSettings()).add_key()
        ledger.key_tables.kept_requests.keep("once", "{}", "{}")
    return tmp_path


@pytest.mark.parametrize(
    ("table", "look_up"),
    [
        ("access_keys", lambda tables: tables.access_keys.get(KEY)),
        ("access_keys", lambda tables: tables.access_keys.list(None, "", 10)),
        ("operator_tokens", lambda tables: tables.tokens.list("", 10)),
        ("kept_key_requests", lambda tables: tables.kept_requests.get("once")),
        ("access_keys", lambda tables: tables.access_keys.note_used({KEY: 1})),
        ("access_keys", lambda tables: tables.access_keys.revoke(KEY, 1)),
    ],
)
def test_damaged_page_of_a_key_table_is_named(folder: Path, table: str, look_up: Callable[[Any], Any]) -> None:
    """A page that is no page any more is damage, each time it is read or written, and never 'try again'."""
    damage(folder, table)
    with spotledger.open(folder) as ledger:
        for _ in range(2):
            with pytest.raises(LedgerCorrupt, match="SQLITE_"):
                look_up(ledger.key_tables)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE access_keys SET permissions = '[\"read'",
        "UPDATE access_keys SET addresses = ''",
        "UPDATE access_keys SET customer = CAST(x'ff61' AS TEXT)",
    ],
)
def test_damaged_value_of_an_access_key_is_named(folder: Path, statement: str) -> None:
    """A value that is not in the form it was written in is damage, too."""
    spoil(folder, statement)
    with spotledger.open(folder) as ledger, pytest.raises(LedgerCorrupt, match="read"):
        ledger.key_tables.access_keys.get(KEY)


def test_listeners_name_a_damaged_key_table(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither listener tells a caller to try again; only the operator is told the place; the log names the damage."""
    damage(folder, "access_keys")
    with operator_api(folder) as api:
        service = Service(api.runtime.ledger, PublicSettings())
        refusal = document(service.ask(signed_query()))
        problem = api.get("/v1/keys").json()
    assert refusal["code"] == 404
    assert (problem["status"], problem["code"]) == (500, "ledger_damaged")
    assert "at byte " in problem["detail"]
    for text in (refusal["info"], problem["detail"]):
        assert "damaged" in text
        assert "again" not in text
        assert "Traceback" not in text
    assert "SQLITE" not in refusal["info"]
    named = [record.getMessage() for record in caplog.records if "SQLITE_IOERR_DATA" in record.getMessage()]
    assert len(named) == 3, "the start names it, and so does each listener"
    assert not any("Traceback" in text or KEY in text for text in named)
