"""An operation is described once: few files name one, and whatever has to know all of them does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from spotledger.audit.journal import WITHOUT_POSTINGS
from spotledger.audit.requests import CHECKS
from spotledger.cli.main import program
from spotledger.domain.fields import KEY, NOT_AFTER_MS, fields_of
from spotledger.domain.operations import OPERATIONS, Described
from support_scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "spotledger"
PAGE = (ROOT / "docs" / "how-to" / "add-an-operation.md").read_text(encoding="utf-8")
GENERATED = {*load_script("generate_operations").modules(), *load_script("generate_blocking_client").MODULES.values()}
#: The commands that are called otherwise than their operation.
COMMANDS = {"list_coin": "coin", "register_customer": "customer", "open_house_account": "house-account"}
#: Where an operation is used although nothing is added with a new one.
USES = {"domain/reversal.py": "what can be reversed", "cli/demo_story.py": "the story of the demo"}


def files_that_name(word: str) -> set[str]:
    """Return the modules, but those that are generated, in which *word* is a name of the program."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path not in GENERATED and any(isinstance(node, ast.Name) and node.id == word for node in nodes):
            found.add(path.relative_to(PACKAGE).as_posix())
    return found | ({"domain/operations.py"} if word in (PACKAGE / "domain/operations.py").read_text() else set())


def files_of_the_page() -> set[str]:
    """Return the files of the program in the table of the page."""
    table = PAGE.partition("## The files")[2].partition("`make generate`")[0]
    return {path.removeprefix("src/spotledger/") for path in re.findall(r"`(src/[\w/.]+)`", table)}


def test_an_operation_is_named_in_the_files_of_the_page_and_in_no_others() -> None:
    """A transfer, an operation like most, is named by its class, its rule and its command alone."""
    named = files_that_name("Transfer") - USES.keys()
    assert named == {"domain/operations.py", "domain/rules.py", "cli/money.py"}
    assert named <= files_of_the_page()


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)
def test_every_operation_begins_with_its_key_and_ends_with_its_latest_time(kind: type[Described]) -> None:
    """The group asks each operation for both."""
    first, *_, last = fields_of(kind)
    assert (first.form, first.is_required) == (KEY, True)
    assert (last.name, last.form, last.takes_none, last.is_required) == ("not_after_ms", NOT_AFTER_MS, True, False)


def test_files_of_the_page_exist() -> None:
    """The list is short, and of files that are there."""
    files = files_of_the_page()
    assert len(files) == 6
    for file in files:
        assert (PACKAGE / file).is_file(), file
    for file in re.findall(r"`((?:tests|docs|tools)/[\w/.-]+)`", PAGE):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("kind", OPERATIONS, ids=lambda kind: kind.kind)
def test_audit_and_command_line_know_every_operation(kind: type[Described]) -> None:
    """What is written by hand, because it is a second witness or made for people, is not forgotten."""
    assert (kind.kind in CHECKS) != (kind.kind in WITHOUT_POSTINGS)
    assert COMMANDS.get(kind.kind, kind.kind) in program.commands
