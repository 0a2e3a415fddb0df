"""Mutation testing: the tool knows all modules that keep strangers out, and every survivor on the page has a reason."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from support_scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "spotledger"


TOOL = load_script("run_mutants")


@pytest.mark.parametrize("folder", ["security", "http/h1"])
def test_every_module_is_in_a_group(folder: str) -> None:
    """Also a module that was added today, and none is in two groups."""
    named = [module for group in TOOL.GROUPS.values() for module in group.modules]
    there = {f"{folder}/{path.name}" for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py"}
    assert sorted(module for module in named if module.rpartition("/")[0] == folder) == sorted(there)


def test_tests_of_each_group_exist() -> None:
    """A test module that was renamed is noticed here."""
    assert [test for group in TOOL.GROUPS.values() for test in group.tests if not (ROOT / test).exists()] == []


def test_every_survivor_on_the_page_has_its_reason() -> None:
    """A module whose mutants were all run has no survivor without one; one that was not is marked as unfinished."""
    text = TOOL.PAGE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("| `http/h1/", "| `security/"))]
    rows = [line for line in lines if "` | `" in line]
    unfinished = {line.split("`")[1] for line in lines if line not in rows and not line.endswith("| 0 |")}
    reasons = tomllib.loads(TOOL.REASONS.read_text(encoding="utf-8"))["reason"]
    assert len(rows) >= len(reasons) > 10
    for row in rows:
        is_open = row.split("`")[1].split()[0] in unfinished and row.endswith("| **no reason yet** |")
        assert is_open or any(row.endswith(f"| {reason['because']} |") for reason in reasons), row


def test_reason_is_given_to_the_mutants_that_it_names_and_to_no_other() -> None:
    """A reason that no survivor needs is told, so that it goes."""
    reason = tomllib.loads(TOOL.REASONS.read_text(encoding="utf-8"))["reason"][0]
    after = reason["after"] if isinstance(reason["after"], str) else reason["after"][0]
    survivors = [
        TOOL.Survivor(reason["where"], "before", after, True),
        TOOL.Survivor(reason["where"], "before", "something else", True),
        TOOL.Survivor("elsewhere", "before", after, True),
    ]
    assert TOOL._give_reasons(survivors, set()) == []
    assert [survivor.because for survivor in survivors] == [reason["because"], "", ""]
    module = reason["where"].partition(" ")[0]
    told = f"{reason['where']}: {reason['after']}"
    assert told not in TOOL._give_reasons(survivors[:1], {module})
    assert told in TOOL._give_reasons([], {module})
