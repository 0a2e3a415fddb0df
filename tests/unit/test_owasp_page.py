"""The page of the OWASP API Security Top 10 has all ten, each with tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "owasp-api-top-10.md"


def sections() -> dict[str, str]:
    """Return the text below each heading, by heading."""
    _, *parts = PAGE.read_text(encoding="utf-8").split("\n## ")
    return dict(part.split("\n", 1) for part in parts)


def test_all_ten_are_there_with_what_is_done_and_tests() -> None:
    """Each of the ten has its section, in order, which says what is done and names at least three tests."""
    found = sections()
    assert [name.partition(":")[0] for name in found] == [f"API{number}" for number in range(1, 11)]
    for name, text in found.items():
        said, _, tests = text.partition("\n- ")
        assert len(said.split()) > 30, name
        assert len(re.findall(r"::test_", tests)) >= 3, name


def test_tests_that_the_page_names_exist() -> None:
    """A test that was renamed or dropped is noticed here."""
    named = re.findall(r"^- `(tests/[\w/]+\.py)::(\w+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) == PAGE.read_text(encoding="utf-8").count("\n- ")
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{path}: {name}"


def test_every_test_of_the_list_is_named() -> None:
    """What was written for this page is on it."""
    written = ROOT / "tests" / "integration" / "test_owasp_api.py"
    names = re.findall(r"^def (test_\w+)", written.read_text(encoding="utf-8"), re.MULTILINE)
    assert names
    assert [name for name in names if name not in PAGE.read_text(encoding="utf-8")] == []
