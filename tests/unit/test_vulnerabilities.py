"""The check for known vulnerabilities: what fails it, what is an exception, and that it never passes in silence."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from support_scripts import load_script

TODAY = date(2026, 11, 28)
SKIPPED = {"name": "alpha", "skip_reason": "not found"}
SOUND = {"name": "alpha", "version": "1.0", "vulns": []}
DAMAGED = {"name": "beta", "version": "2.0", "vulns": [{"id": "X-1", "fix_versions": ["2.1"]}]}


CHECK = load_script("check_vulnerabilities")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give what runs the check with a program in place of pip-audit, which says the same for each service or fails."""

    def check(packages: dict[str, list[dict[str, Any]] | None], exceptions: str = "") -> tuple[int, str]:
        program, recorded = tmp_path / "pip-audit", tmp_path / "exceptions.toml"
        (tmp_path / "locked.txt").write_text("alpha==1.0\n")
        recorded.write_text(exceptions)
        answers = {
            name: None if found is None else json.dumps({"dependencies": found}) for name, found in packages.items()
        }
        program.write_text(
            f"#!{sys.executable}\nimport sys\nanswer = {answers!r}[sys.argv[2]]\n"
            "sys.exit('no network') if answer is None else print(answer)\n"
        )
        program.chmod(0o700)
        return CHECK.main(str(program), tmp_path, recorded), capsys.readouterr().out

    return check


@pytest.mark.parametrize("nothing", [None, [], [SKIPPED]])
def test_no_data_passes_and_says_so(run: Run, nothing: list[dict[str, Any]] | None) -> None:
    """A machine without a network, or an index without the data, fails nothing; each service has its reason."""
    code, said = run({"pypi": nothing, "osv": nothing})
    assert code == 0
    assert said.startswith("NOT CHECKED")
    assert "pypi" in said
    assert "osv" in said


def test_second_service_is_asked_where_the_first_knows_nothing(run: Run) -> None:
    """What it knows counts."""
    code, said = run({"pypi": [SKIPPED], "osv": [SOUND, DAMAGED]})
    assert (code, "beta 2.0 has X-1" in said) == (1, True)


def test_vulnerability_fails_and_packages_that_nobody_knows_are_named(run: Run) -> None:
    """Both are said, with what to do."""
    code, said = run({"pypi": [SKIPPED, DAMAGED], "osv": None})
    assert code == 1
    assert "NOT CHECKED, because nothing is known about them: alpha" in said
    assert "make lock" in said
    code, said = run({"pypi": [SOUND], "osv": None})
    assert (code, said) == (0, "1 packages were checked; 0 problems\n")


def exception(until: str = "2100-01-01", package: str = "beta", because: str = "We never call it.") -> str:
    """Return one exception as the file has it."""
    return f'[[exception]]\nid = "X-1"\npackage = "{package}"\nbecause = "{because}"\nuntil = {until}\n'


def test_exception_holds_until_its_day_and_only_while_it_is_needed(run: Run) -> None:
    """Afterwards somebody has to look again; one of a package that is sound again has to go."""
    assert run({"pypi": [DAMAGED], "osv": None}, exception())[0] == 0
    assert "look again" in run({"pypi": [DAMAGED], "osv": None}, exception("2020-01-01"))[1]
    code, said = run({"pypi": [DAMAGED, SOUND], "osv": None}, exception() + exception(package="alpha"))
    assert (code, "not needed any more" in said) == (1, True)


def test_exception_counts_its_last_day() -> None:
    """It ends after the day that it names."""
    answer = CHECK.read([DAMAGED], "pypi")
    for until, count in ((TODAY, 0), (date(2026, 11, 27), 1)):
        assert len(CHECK.problems(answer, {("X-1", "beta"): until}, TODAY)) == count


@pytest.mark.parametrize(
    "text",
    [exception(because=""), exception(because="no"), exception('"2100-01-01"'), exception().replace("package", "name")],
)
def test_exception_without_reason_or_day_is_refused(run: Run, text: str) -> None:
    """Whoever records one says why, and when to look again."""
    with pytest.raises(ValueError, match="exception"):
        run({"pypi": [DAMAGED], "osv": None}, text)


def test_exceptions_of_the_repository_can_be_read() -> None:
    """Each has a reason and a day."""
    assert all(until > date(2026, 1, 1) for until in CHECK.read_exceptions(CHECK.EXCEPTIONS).values())
