"""The errors of the two drivers: what each code becomes in our tree, for every code that a driver knows."""

from __future__ import annotations

import apsw
import psycopg
import pytest

from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres import connection as postgres
from spotledger.storage.sqlite import file as sqlite

#: What the codes of damaged files begin with, and those of a violated constraint.
SQLITE_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_DATA", "SQLITE_IOERR_CORRUPTFS")
SQLITE_CONSTRAINT = "SQLITE_CONSTRAINT"
POSTGRES_DAMAGE = ("XX001", "XX002")
#: A violated constraint, and the division by zero that says that other rows were changed than had to be.
POSTGRES_CHECKED = ("23", "22012")

_KINDS = (
    "ABORT AUTH BUSY CANTOPEN CONSTRAINT CORRUPT EMPTY ERROR FORMAT FULL INTERNAL INTERRUPT IOERR LOCKED MISMATCH"
    " MISUSE NOLFS NOMEM NOTADB NOTFOUND NOTICE PERM PROTOCOL RANGE READONLY SCHEMA TOOBIG WARNING"
)
#: The names of all result codes of SQLite; other constants of the module have the same prefix.
SQLITE_NAMES = sorted(
    name for name in vars(apsw) if name.startswith(tuple(f"SQLITE_{kind}" for kind in _KINDS.split()))
)
#: Every SQLSTATE that psycopg has a class for.
POSTGRES_STATES = sorted(
    {
        kind.sqlstate
        for kind in vars(psycopg.errors).values()
        if isinstance(kind, type) and isinstance(getattr(kind, "sqlstate", None), str)
    }
)


def sqlite_error(code: int) -> apsw.Error:
    """Return an error as SQLite's driver raises it for the result code *code*."""
    error = apsw.Error("the text says nothing")
    error.result, error.extendedresult = code & 0xFF, code  # type: ignore[misc]
    return error


def postgres_error(state: str | None) -> psycopg.Error:
    """Return an error as psycopg raises it for *state*; one without a code was met by the driver itself."""
    return psycopg.OperationalError("the text says nothing") if state is None else psycopg.errors.lookup(state)()


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("name", SQLITE_NAMES)
def test_sqlite_code_is_damage_or_unavailable(name: str, checked: bool) -> None:
    """Damage, and a constraint that refuses what was checked, is LedgerCorrupt with its name; all else may pass."""
    error = sqlite.translate(sqlite_error(getattr(apsw, name)), "read", checked=checked)
    damaged = name.startswith(SQLITE_DAMAGE) or (checked and name.startswith(SQLITE_CONSTRAINT))
    assert type(error) is (LedgerCorrupt if damaged else StoreUnavailable)
    assert name in str(error) or not damaged


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("state", POSTGRES_STATES)
def test_postgres_code_is_damage_or_unavailable(state: str, checked: bool) -> None:
    """Damage, and what refuses what was checked, is LedgerCorrupt with its code; all else may pass."""
    error = postgres.translate(postgres_error(state), "read", checked=checked)
    damaged = state.startswith(POSTGRES_DAMAGE) or (checked and state.startswith(POSTGRES_CHECKED))
    assert type(error) is (LedgerCorrupt if damaged else StoreUnavailable)
    assert state in str(error) or not damaged


def test_code_of_a_driver_that_nobody_knows_is_unavailable() -> None:
    """A code of a future server or library, and an error without a code, may pass, and the message has the code."""
    error = psycopg.Error("the text says nothing")
    error.sqlstate = "ZZ999"
    assert "ZZ999" in str(postgres.translate(error, "read"))
    for unknown in (error, psycopg.DataError("no code"), psycopg.InterfaceError("no code"), postgres_error(None)):
        assert type(postgres.translate(unknown, "read")) is StoreUnavailable
    assert "77" in str(sqlite.translate(sqlite_error(77), "read"))
    for odd in (sqlite_error(77), apsw.ThreadingViolationError("no code"), apsw.ConnectionClosedError("no code")):
        assert type(sqlite.translate(odd, "read")) is StoreUnavailable


@pytest.mark.parametrize(
    ("translated", "error"),
    [
        (sqlite.translated, sqlite_error(apsw.SQLITE_BUSY)),
        (postgres.translated, postgres_error("55P03")),
    ],
)
def test_block_that_fails_raises_the_translation(
    translated: type[sqlite.translated | postgres.translated], error: Exception
) -> None:
    """Only a failed write says to try again with the same key; errors that are not the driver's pass through."""
    with pytest.raises(StoreUnavailable, match="same idempotency key") as raised, translated("written"):
        raise error
    assert raised.value.__cause__ is error
    with pytest.raises(StoreUnavailable) as raised, translated("read"):
        raise error
    assert "idempotency" not in raised.value.message
    with pytest.raises(KeyError), translated("read"):
        raise KeyError("a program's own error")
