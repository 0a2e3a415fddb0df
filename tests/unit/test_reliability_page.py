"""The page of what can go wrong names tests and codes that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from spotledger import errors
from spotledger.audit.findings import CODES
from spotledger.http.error_advice import leaves

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
PLANNED = "*Not in this version yet:*"


def _rows() -> list[list[str]]:
    """Return the cells of each row of the tables, without their heads."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if not line.startswith("| fault ")
    ]


def test_every_fault_names_a_test() -> None:
    """Each row says what happens, what one sees, and which test shows it; what is planned says that it is."""
    rows = _rows()
    assert len(rows) > 25
    for row in rows:
        assert len(row) == 5, row
        assert ("::test_" in row[4]) != row[1].startswith(PLANNED), row[0]


def test_tests_that_the_page_names_exist() -> None:
    """A test that was renamed or dropped is noticed here."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path}: {name}"


def test_findings_that_the_page_names_exist() -> None:
    """After the word "audit" come codes of findings."""
    told = [found for row in _rows() for found in re.findall(r"audit ((?:`\w+`(?:, | or )?)+)", row[2])]
    codes = {code for text in told for code in re.findall(r"`(\w+)`", text)}
    assert len(codes) > 10
    assert codes - {"incomplete"} <= set(CODES)


def test_codes_of_errors_that_the_page_names_exist() -> None:
    """A code before the semicolon of a row is that of an error, unless the row is planned."""
    known = {kind.code for kind in leaves(errors.SpotledgerError)} | {"ledger_damaged"}
    for row in _rows():
        if not row[1].startswith(PLANNED):
            named = re.findall(r"`([a-z]+(?:_[a-z]+)+)`", row[2].split("audit ")[0])
            assert {code for code in named if not code.startswith("spotledger_")} <= known, row[2]
