"""Paths of the APIs are written once, in the table that servers and clients share."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import spotledger
from spotledger import paths

PACKAGE = Path(spotledger.__file__).parent
TABLE = {name: value for name, value in vars(paths).items() if name.isupper()}
#: What a path of one of the APIs has in it.
API_PATH = re.compile(r"/v[14](/|$)|/trade/|/future/")


def literals(tree: ast.Module) -> Iterator[str]:
    """Give every text in the code, also within f-strings; docstrings are prose."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_path_of_an_api_is_written_in_the_table_only() -> None:
    """No other file has a path of its own, so that server, client and command line cannot disagree."""
    found = {
        file.relative_to(PACKAGE).as_posix(): text
        for file in PACKAGE.rglob("*.py")
        if file.name != "paths.py"
        for text in literals(ast.parse(file.read_text(encoding="utf-8")))
        if API_PATH.search(text)
    }
    assert found == {}


def test_path_of_the_table_is_there_once_and_used() -> None:
    """No two names have the same path, and every path is one that a listener answers."""
    assert len(set(TABLE.values())) == len(TABLE)
    served = "".join(file.read_text(encoding="utf-8") for file in (PACKAGE / "http").rglob("*.py"))
    assert [name for name in TABLE if not re.search(rf"\b{name}\b", served)] == []
