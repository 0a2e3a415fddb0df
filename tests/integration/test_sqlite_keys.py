"""The tables of access keys in the ledger file: what only that store has."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

import spotledger


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
