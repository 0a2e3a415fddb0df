"""The page of promises names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"
PROMISES = 13


def _named() -> list[tuple[str, str | None]]:
    found = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))
    return [(path, name or None) for path, name in found]


def test_every_promise_names_a_test() -> None:
    """There is a row for each of the ten promises, and each has a test in it."""
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d+\. ", line)]
    assert [int(row.split(".")[0].strip("| ")) for row in rows] == list(range(1, PROMISES + 1))
    assert all("::test_" in row or "::Test" in row or "test_wire" in row for row in rows)


def test_tests_that_the_promises_name_exist() -> None:
    """A test that was renamed or dropped is noticed here."""
    for path, name in _named():
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name is None or name in names, f"{path} has no {name}"
