"""The reference pages that are made of the program: as they are now, and whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from permissions.page import permissions_markdown
from spotledger import errors
from spotledger.cli.main import program
from spotledger.http import wire
from spotledger.http.error_advice import ADVICE, leaves

PAGES = Path(__file__).parents[2] / "docs" / "reference"


def printed(page: str) -> str:
    result = CliRunner().invoke(program, ["reference", page], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize("page", ["operator-api", "errors"])
def test_reference_page_is_current(page: str) -> None:
    """The page in the repository is what the program prints: spotledger reference PAGE > docs/reference/PAGE.md."""
    assert (PAGES / f"{page}.md").read_text(encoding="utf-8") == printed(page), (
        f"run: spotledger reference {page} > docs/reference/{page}.md"
    )


def test_permission_table_is_current() -> None:
    """The page in the repository is made of the rows that the tests try: make generate."""
    assert (PAGES / "permissions.md").read_text(encoding="utf-8") == permissions_markdown(), "run: make generate"


def test_every_error_has_its_page_with_what_to_do() -> None:
    """A walk of the tree: each leaf is on the page with its code, its status and an advice of its own."""
    text = (PAGES / "errors.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    codes = set()
    for kind in leaves(errors.SpotledgerError):
        codes.add(kind.code)
        assert ADVICE[kind.code] in rows[kind.code]
        if issubclass(kind, (errors.Refused, errors.Denied, errors.Unavailable)):
            assert f"| {wire.row_of(kind).status} |" in rows[kind.code]
        assert ("*Kept.*" in rows[kind.code]) == issubclass(kind, errors.Kept)
    assert codes == ADVICE.keys() == rows.keys()


def test_openapi_document_can_be_had_without_a_service() -> None:
    """The program prints the document that a service answers, for making clients of it."""
    described = json.loads(printed("openapi"))
    assert described["openapi"].startswith("3.1")
    assert "/v1/batches" in described["paths"]
