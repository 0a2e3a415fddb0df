"""Mutation testing: the tool knows all modules that keep strangers out, and the page shows what it found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support_scripts import load_script

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "spotledger"


NOTES = load_script("mutant_results")
TOOL = load_script("run_mutants")


def survivor(after: str, *, is_tested: bool = True) -> Any:
    """Return a mutant of a function that no test noticed."""
    return NOTES.Survivor("f", "before", after, is_tested)


def run_of(module: str, *survivors: Any, missing: int = 0) -> dict[str, Any]:
    """Return the results of one group with one module, which has three more mutants that were killed."""
    counts = {"killed": 3, "survived": len(survivors), "not run": missing}
    result = NOTES.ModuleResult("0" * 64, {name: count for name, count in counts.items() if count}, [*survivors])
    return {"group": NOTES.Run("2026-11-28", "0123456789", "3.11.7", "3.8.1", {module: result})}


@pytest.mark.parametrize("folder", ["security", "http/h1"])
def test_every_module_is_in_a_group(folder: str) -> None:
    """Also a module that was added today, and none is in two groups."""
    named = [module for group in TOOL.GROUPS.values() for module in group.modules]
    there = {f"{folder}/{path.name}" for path in (PACKAGE / folder).glob("*.py") if path.name != "__init__.py"}
    assert sorted(module for module in named if module.rpartition("/")[0] == folder) == sorted(there)


def test_tests_of_each_group_exist() -> None:
    """A test module that was renamed is noticed here."""
    assert [test for group in TOOL.GROUPS.values() for test in group.tests if not (ROOT / test).exists()] == []


def test_results_are_those_of_the_groups() -> None:
    """The results name no group and no module that the tool does not know, and no module twice."""
    results = NOTES.load_results()
    known = {name: set(group.modules) for name, group in TOOL.GROUPS.items()}
    known |= {module: {module} for group in TOOL.GROUPS.values() for module in group.modules}
    assert [name for name, run in results.items() if not set(run.modules) <= known.get(name, set())] == []
    named = [module for run in results.values() for module in run.modules]
    assert sorted(set(named)) == sorted(named)


def test_page_is_made_of_results_and_reasons() -> None:
    """The page says nothing else, but for the marks of modules that were changed or added since."""
    page = NOTES.PAGE.read_text(encoding="utf-8").replace(NOTES.CHANGED, "")
    made = NOTES.page_of(NOTES.load_results(), NOTES.load_reasons())
    lines = page.splitlines()
    if any(line.startswith(NOTES.MISSING) for line in lines):
        place = next(number for number, line in enumerate(lines) if line.startswith(NOTES.MISSING))
        del lines[place : place + 2]
    assert lines == made.splitlines()


def test_every_survivor_has_its_reason() -> None:
    """A module whose mutants were all run has no survivor without one; one that was not is unfinished."""
    results = NOTES.load_results()
    modules = {module: result for run in results.values() for module, result in run.modules.items()}
    without = NOTES.unexplained(results, NOTES.load_reasons())
    assert [(module, it) for module, it in without if not NOTES.not_run(modules[module])] == []


def test_results_are_read_as_they_were_stored(tmp_path: Path) -> None:
    """Whatever the changed lines hold."""
    results = run_of("a.py", survivor('| "\\x00" `é`'), survivor("x", is_tested=False), missing=2)
    NOTES.store_results(results, tmp_path / "results.json")
    assert NOTES.load_results(tmp_path / "results.json") == results


def test_module_that_is_run_alone_keeps_the_results_of_the_others() -> None:
    """Its results are no longer those of its group; a run of the whole group replaces them in turn."""
    group = run_of("a.py")["group"]
    group.modules["b.py"] = run_of("b.py", survivor("old"))["group"].modules["b.py"]
    alone = run_of("b.py", survivor("new"))["group"]
    alone.commit = "abcdef0123"
    results = NOTES.with_modules({"group": group, "other": run_of("c.py")["group"]}, alone)
    assert {name: [*run.modules] for name, run in results.items()} == {
        "group": ["a.py"],
        "other": ["c.py"],
        "b.py": ["b.py"],
    }
    assert results["b.py"] == alone
    assert results["group"].commit == group.commit
    assert NOTES.with_run(results, "group", group) == {"other": results["other"], "group": group}
    assert [*NOTES.with_modules({"group": run_of("b.py")["group"]}, alone)] == ["b.py"]


def test_named_modules_are_run_with_the_tests_of_their_group() -> None:
    """A group that is named as well is run whole, and a name that is neither chooses nothing."""
    modules = TOOL.GROUPS["framing"].modules
    assert TOOL._chosen(["security/tokens.py", "http/h1/head.py", "http/h1/request.py"]) == {
        "framing": ("http/h1/head.py", "http/h1/request.py"),
        "gate": ("security/tokens.py",),
    }
    assert TOOL._chosen(["http/h1/head.py", "framing", "nothing"]) == {"framing": modules}


def test_reason_is_given_to_the_mutants_that_it_names_and_to_no_other() -> None:
    """The same line in another function or module needs a reason of its own."""
    reason = NOTES.Reason("a.py f", ["x", "y"], "because")
    assert NOTES.unexplained(run_of("a.py", survivor("x"), survivor("y"), survivor("z")), [reason]) == [
        ("a.py", survivor("z"))
    ]
    assert NOTES.unexplained(run_of("b.py", survivor("x")), [reason]) == [("b.py", survivor("x"))]
    assert NOTES.reason_of("a.py", survivor("x"), [reason]) == "because"


def test_reason_that_no_survivor_needs_is_told() -> None:
    """So that it goes; not so while mutants of its module are not run, nor for a module without results."""
    reasons = [NOTES.Reason("a.py f", ["x", "y"], "because"), NOTES.Reason("c.py f", "x", "because")]
    assert NOTES.unused_reasons(run_of("a.py", survivor("x")), reasons) == ["a.py f: y"]
    assert NOTES.unused_reasons(run_of("a.py", survivor("x"), missing=1), reasons) == []


def test_module_that_was_changed_since_its_run_is_marked() -> None:
    """One whose source is as it was is not; one that is gone is, too."""
    same = run_of("security/limits.py")
    same["group"].modules["security/limits.py"].sha256 = NOTES.digest_of(PACKAGE / "security" / "limits.py")
    assert NOTES.changed_modules(same) == set()
    for module in ("security/limits.py", "security/gone.py"):
        assert NOTES.changed_modules(run_of(module)) == {module}
    lines = NOTES.page_of(run_of("a.py", survivor("x")), [], {"a.py"}, ["b.py"]).splitlines()
    assert "| `a.py` (changed since) | 4 | 3 | 0 | 1 | 0 |" in lines
    assert "Not run yet: `b.py`." in lines


@pytest.mark.parametrize(("is_tested", "said"), [(True, "**no reason yet**"), (False, "**no test runs it**")])
def test_survivor_without_a_reason_is_shown_as_such(is_tested: bool, said: str) -> None:
    """And as one that no test runs, if that is so; a bar in a line does not end its cell."""
    page = NOTES.page_of(run_of("a.py", survivor("x | y", is_tested=is_tested)), [])
    assert page.splitlines()[-1] == f"| `a.py f` | `before` | `x \\| y` | {said} |"
