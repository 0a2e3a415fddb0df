"""
``make mutants``: change the code of ``security/`` and of ``http/h1/`` in every small way, and see which tests notice.

mutmut makes the mutants and runs the tests against each, in copies below ``.mutants``. A run that was interrupted goes
on; ``--fresh`` begins anew, and mutants that survived are always tried again. What came of a group, or of a module that
was named alone, replaces its part of ``mutant_results.json``, and ``docs/mutation-testing.md`` is written of that. Each
survivor needs a reason in ``mutant_reasons.toml`` why it changes no behaviour; one without a reason, or that no test
runs, makes this fail.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

from mutant_results import (
    PACKAGE,
    PAGE,
    REASONS,
    RESULTS,
    ROOT,
    ModuleResult,
    Run,
    Survivor,
    changed_modules,
    digest_of,
    load_reasons,
    load_results,
    page_of,
    store_results,
    unexplained,
    unused_reasons,
    with_modules,
    with_run,
)

WORK: Final = ROOT / ".mutants"
MUTMUT: Final = Path(sys.executable).with_name("mutmut")
#: How long one test may take by default, and a mutant's tests in all: their time without it, and so many times as long.
TEST_SECONDS: Final = 60
TIMES: Final = 4.0
MORE_SECONDS: Final = 5.0

H1: Final = "tests/unit/http/h1"
SECURITY: Final = "tests/unit/security"
#: Tests that are not run against mutants: one measures time, which a mutant's detours lengthen, and others need a
#: server, although the embedded store and a gate of one process take the same way through these modules.
LEFT_OUT: Final = "not stall and not postgres and not redis"


class Group(NamedTuple):
    """Modules below ``src/spotledger``, and the tests that have to notice a change of them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]
    left_out: str = LEFT_OUT
    #: How long one of the tests may take.
    test_seconds: int = TEST_SECONDS


_FRAMING: Final = tuple(f"http/h1/{name}.py" for name in ("head", "reader", "incoming", "request", "limits", "shares"))
#: Tested over a transport that is none: sockets take a hundred times as long for each mutant.
_CONNECTION: Final = ("http/h1/connection.py",)
_SECRETS: Final = tuple(f"security/{name}.py" for name in ("signing", "cipher", "addresses", "bounded_dict"))
_COUNTS: Final = tuple(f"security/{name}.py" for name in ("fleet_gate", "shared_counts"))


def _rest(folder: str, *others: str) -> tuple[str, ...]:
    """Return the modules of *folder* but *others*, so that none is forgotten."""
    names = (f"{folder}/{path.name}" for path in sorted((ROOT / PACKAGE / folder).glob("[!_]*.py")))
    return tuple(name for name in names if name not in others)


GROUPS: Final = {
    "framing": Group(
        _FRAMING, tuple(f"{H1}/test_{name}.py" for name in ("head", "reader", "incoming", "request", "shares"))
    ),
    "security": Group(
        _SECRETS, tuple(f"{SECURITY}/test_{name}.py" for name in ("signing", "cipher", "addresses", "bounded_dict"))
    ),
    "gate": Group(
        _rest("security", *_SECRETS, *_COUNTS),
        (SECURITY, "tests/contract/test_key_tables.py", "tests/contract/test_wire_v1_gate.py"),
        f"{LEFT_OUT} and not shared_counts",
    ),
    "connection": Group(_CONNECTION, (f"{H1}/test_connection_rules.py", f"{H1}/test_connection_ends.py")),
    "listener": Group(
        _rest("http/h1", *_FRAMING, *_CONNECTION),
        tuple(f"{H1}/test_{name}.py" for name in ("state_rules", "unread", "tls", "server", "transport")),
    ),
    "counts": Group(
        _COUNTS,
        (
            f"{SECURITY}/test_shared_counts.py",
            "tests/contract/test_counts_contract.py",
            "tests/integration/test_redis_gate.py",
            "tests/integration/test_redis_gate_rules.py",
        ),
        # Those take seconds, and what they see is also seen with a server that answers as the test says.
        "not slow_redis and not each_loss and not hangs",
        test_seconds=15,
    ),
}

#: The exit codes of a mutant's tests, as mutmut notes them.
KILLED: Final = frozenset({1, 3})
TIMED_OUT: Final = frozenset({24, -24, 36, 152, 255})
SURVIVED: Final = frozenset({0})
NO_TESTS: Final = frozenset({5, 33})


def main() -> int:
    """Run the mutants of what was named, or of all groups; return 1 if one survives without a reason."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        help=f"what to run: groups ({', '.join(GROUPS)}), or modules such as security/tokens.py; all groups by default",
    )
    parser.add_argument("--fresh", action="store_true", help="forget what was run before")
    parser.add_argument("--processes", type=int, default=1, help="how many mutants are tried at a time")
    parser.add_argument("--report", action="store_true", help="run nothing; write the page of what was run before")
    given = parser.parse_args()
    chosen = _chosen(given.names or [*GROUPS])
    unknown = [name for name in given.names if name not in chosen and not any(name in it for it in chosen.values())]
    if unknown:
        parser.error(f"neither a group nor a module of one: {', '.join(unknown)}")
    for name, modules in {} if given.report else chosen.items():
        commit = _commit()
        _run(WORK / name, GROUPS[name], modules, is_fresh=given.fresh, processes=given.processes)
        _store(name, _came_of(WORK / name, modules, commit))
    return _report(load_results())


def _chosen(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the groups that *names* concern, each with those of its modules that are named, or all if it is itself."""
    chosen = {
        name: group.modules if name in names else tuple(module for module in group.modules if module in names)
        for name, group in GROUPS.items()
    }
    return {name: modules for name, modules in chosen.items() if modules}


def _store(name: str, run: Run) -> None:
    """Store *run*, one of the group *name* or of some of its modules."""
    results = load_results() if RESULTS.exists() else {}
    is_whole = tuple(run.modules) == GROUPS[name].modules
    results = with_run(results, name, run) if is_whole else with_modules(results, run)
    order = [it for other, group in GROUPS.items() for it in (other, *group.modules)]
    store_results({it: results[it] for it in order if it in results})


def _report(results: Mapping[str, Run]) -> int:
    """Write the page, and say what is wrong; return 1 if a survivor has no reason, or a reason no survivor."""
    reasons = load_reasons()
    changed = changed_modules(results)
    known = {module for run in results.values() for module in run.modules}
    missing = [module for group in GROUPS.values() for module in group.modules if module not in known]
    PAGE.write_text(page_of(results, reasons, changed, missing), encoding="utf-8")
    for module in sorted(changed):
        _say(f"{module} was changed after its mutants were run")
    without = unexplained(results, reasons)
    for module, it in without:
        _say(f"{module} {it.function}: no test notices this change", f"  - {it.before}", f"  + {it.after}")
    unused = unused_reasons(results, reasons)
    for reason in unused:
        _say(f"{REASONS.name}: {reason} is the reason of no survivor any more; take it out")
    _say(f"{PAGE.relative_to(ROOT)} was written; {len(without)} survivors have no reason")
    return 1 if without or unused else 0


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _run(work: Path, group: Group, modules: tuple[str, ...], *, is_fresh: bool, processes: int) -> None:
    """
    Run the mutants of *modules*, all of *group* or some, in the folder *work*.

    Those that survived a former run are tried again, and so are those that a test noticed only by taking too long:
    the machine may have been busy. If only some modules are run, all their mutants are.
    """
    if is_fresh:
        shutil.rmtree(work, ignore_errors=True)
    some = [] if modules == group.modules else [f"{_dotted(module)}.*" for module in modules]
    known = [name for _, _, names in _outcomes(work, modules, SURVIVED | NO_TESTS) for name in names if not some]
    _copy(work, group)
    # With CI set, Hypothesis draws the same examples each time, and does not give up on a slow machine.
    environ = {**os.environ, "CI": "true"}
    command = ["nice", "-n", "15", str(MUTMUT), "run", "--max-children", str(processes)]
    subprocess.run([*command, *some], cwd=work, check=True, env=environ)
    again = sorted({*known, *_slowly_killed(work, modules, group.test_seconds)})
    if again:
        subprocess.run([*command, *again], cwd=work, check=True, env=environ)


def _dotted(module: str) -> str:
    """Return the name by which *module* is imported."""
    return f"{Path(PACKAGE).name}.{module.removesuffix('.py').replace('/', '.')}"


def _slowly_killed(work: Path, modules: Sequence[str], limit: int) -> Iterator[str]:
    for module in modules:
        notes = _notes(work, module)
        if notes.exists():
            found = json.loads(notes.read_text(encoding="utf-8"))
            seconds = found["durations_by_key"]
            codes = found["exit_code_by_key"].items()
            yield from (name for name, code in codes if code in KILLED and (seconds.get(name) or 0) >= limit)


def _copy(work: Path, group: Group) -> None:
    """Copy sources, tests and settings to where mutmut changes them."""
    unwanted = shutil.ignore_patterns("__pycache__")
    for folder in ("src", "tests"):
        shutil.rmtree(work / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, work / folder, ignore=unwanted)
    arguments = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        f"--timeout={group.test_seconds}",
        "-k",
        group.left_out,
    ]
    # A mutant that breaks a test in the middle leaves sockets open, which is not what is looked for.
    arguments += ["-W", "ignore::pytest.PytestUnraisableExceptionWarning"]
    settings = {
        "source_paths": ["src"],
        "only_mutate": [f"{PACKAGE}/{module}" for module in group.modules],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "pytest_add_cli_args": arguments,
        "timeout_multiplier": TIMES,
        "timeout_constant": MORE_SECONDS,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (work / "pyproject.toml").write_text(project + "\n".join(["", "[tool.mutmut]", *lines, ""]), encoding="utf-8")


def _outcomes(
    work: Path, modules: Sequence[str], wanted: frozenset[int]
) -> Iterator[tuple[str, Counter[str], list[str]]]:
    """Yield each of *modules* with the counts of its mutants, and the names of those with the *wanted* codes."""
    for module in modules:
        file = _notes(work, module)
        codes: Mapping[str, int | None] = {}
        if file.exists():
            codes = json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
        yield module, Counter(map(_outcome, codes.values())), [it for it, code in codes.items() if code in wanted]


def _notes(work: Path, module: str) -> Path:
    """Return the file in which mutmut notes what came of the mutants of *module*."""
    return work / "mutants" / f"{PACKAGE}/{module}.meta"


def _outcome(code: int | None) -> str:
    named = {"killed": KILLED, "timed out": TIMED_OUT, "survived": SURVIVED | NO_TESTS}
    return next((name for name, codes in named.items() if code in codes), "not run" if code is None else "broke off")


def _came_of(work: Path, modules: Sequence[str], commit: str) -> Run:
    """Return what came of the mutants of *modules*, as mutmut noted it in *work*."""
    untested = {name for _, _, names in _outcomes(work, modules, NO_TESTS) for name in names}
    results = {
        module: ModuleResult(
            digest_of(work / PACKAGE / module),
            dict(sorted(counts.items())),
            [_survivor(work, name, is_tested=name not in untested) for name in names],
        )
        for module, counts, names in _outcomes(work, modules, SURVIVED | NO_TESTS)
    }
    return Run(f"{datetime.now(UTC):%Y-%m-%d}", commit, platform.python_version(), version("mutmut"), results)


def _survivor(work: Path, name: str, *, is_tested: bool) -> Survivor:
    """Return the mutant *name* with the lines that it changes."""
    command = [str(MUTMUT), "show", name]
    shown = subprocess.run(command, cwd=work, check=True, capture_output=True, text=True).stdout
    lines = [line for line in shown.splitlines() if not line.startswith(("---", "+++"))]
    changed = {sign: " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"}
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0]
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Survivor(function, changed["-"], changed["+"], is_tested)


def _commit() -> str:
    """Return the commit that is checked out, with a word if sources or tests are not those of it."""
    command = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*command, "rev-parse", "--short=10", "HEAD"], check=True, capture_output=True, text=True)
    status = [*command, "status", "--porcelain", "--", "src", "tests"]
    is_changed = subprocess.run(status, check=True, capture_output=True).stdout.strip()
    return commit.stdout.strip() + ("-dirty" if is_changed else "")


if __name__ == "__main__":
    sys.exit(main())
