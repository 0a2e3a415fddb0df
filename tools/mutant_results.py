"""
What came of the mutants of each group (``mutant_results.json``), and the page that shows it.

`run_mutants.py` replaces the part of a group, or of a module, with each run of it. The page is made of this file and of
the reasons in ``mutant_reasons.toml``, so it can be written again without running anything.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

ROOT: Final = Path(__file__).resolve().parents[1]
PACKAGE: Final = "src/spotledger"
PAGE: Final = ROOT / "docs" / "mutation-testing.md"
RESULTS: Final = Path(__file__).with_name("mutant_results.json")
REASONS: Final = Path(__file__).with_name("mutant_reasons.toml")


class Survivor(msgspec.Struct, omit_defaults=True):
    """A mutant that no test noticed: the function that it is in, and the lines that it changes."""

    function: str
    before: str
    after: str
    #: Whether a test runs the function at all.
    is_tested: bool = True


class ModuleResult(msgspec.Struct):
    """What came of the mutants of one module: how many had which outcome, and those that survived."""

    #: Of the source that the mutants were made of.
    sha256: str
    counts: dict[str, int]
    survivors: list[Survivor]


class Run(msgspec.Struct):
    """The last run of one group, or of one module that was run without the others of its group."""

    #: Such as ``2026-11-28``, in UTC.
    date: str
    commit: str
    python: str
    mutmut: str
    modules: dict[str, ModuleResult]


class Reason(msgspec.Struct):
    """Why mutants of a function change no behaviour; *after* are the lines that they leave."""

    where: str
    after: str | list[str]
    because: str

    @property
    def lines(self) -> Sequence[str]:
        """The changed lines, of one mutant or of several."""
        return [self.after] if isinstance(self.after, str) else self.after


def load_results(file: Path = RESULTS) -> dict[str, Run]:
    """Return the last run of each group, and of each module that was run alone since, by its name."""
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Run])


def store_results(results: Mapping[str, Run], file: Path = RESULTS) -> None:
    """Write the last runs, as `load_results` returns them."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def with_run(results: Mapping[str, Run], name: str, run: Run) -> dict[str, Run]:
    """Return *results* with *run* as the last one of *name*, in place of whatever they hold of its modules."""
    rest = {
        other: msgspec.structs.replace(
            it, modules={module: result for module, result in it.modules.items() if module not in run.modules}
        )
        for other, it in results.items()
        if other != name
    }
    return {other: it for other, it in rest.items() if it.modules} | {name: run}


def with_modules(results: Mapping[str, Run], run: Run) -> dict[str, Run]:
    """Return *results* with each module of *run* as one that was run alone."""
    for module, result in run.modules.items():
        results = with_run(results, module, msgspec.structs.replace(run, modules={module: result}))
    return dict(results)


def load_reasons(file: Path = REASONS) -> list[Reason]:
    """Return all reasons."""
    return msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8"))["reason"], list[Reason])


def digest_of(source: Path) -> str:
    """Return what `ModuleResult.sha256` is of *source*."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def changed_modules(results: Mapping[str, Run]) -> set[str]:
    """Return the modules that are not what they were when their mutants were run."""
    return {module for module, result in _modules(results) if _digest_now(module) != result.sha256}


def _digest_now(module: str) -> str | None:
    source = ROOT / PACKAGE / module
    return digest_of(source) if source.exists() else None


def _modules(results: Mapping[str, Run]) -> Iterator[tuple[str, ModuleResult]]:
    for run in results.values():
        yield from run.modules.items()


def unexplained(results: Mapping[str, Run], reasons: Sequence[Reason]) -> list[tuple[str, Survivor]]:
    """Return the survivors without a reason, each with its module."""
    return [
        (module, survivor)
        for module, result in _modules(results)
        for survivor in result.survivors
        if not reason_of(module, survivor, reasons)
    ]


def reason_of(module: str, survivor: Survivor, reasons: Sequence[Reason]) -> str:
    """Return why *survivor* changes no behaviour, or an empty text if that is not known."""
    where = f"{module} {survivor.function}"
    fitting = (reason for reason in reasons if reason.where == where and survivor.after in reason.lines)
    return next((reason.because for reason in fitting), "")


def unused_reasons(results: Mapping[str, Run], reasons: Sequence[Reason]) -> list[str]:
    """Return the lines that have a reason although no mutant survived with them, in modules that were run whole."""
    left = {(f"{module} {it.function}", it.after) for module, result in _modules(results) for it in result.survivors}
    whole = {module for module, result in _modules(results) if not not_run(result)}
    return [
        f"{reason.where}: {line}"
        for reason in reasons
        for line in reason.lines
        if (reason.where, line) not in left and reason.where.partition(" ")[0] in whole
    ]


_INTRODUCTION: Final = """\
# Mutation testing

See how well the tests guard what keeps strangers out. `make mutants` makes one small change at a time to the code of
`security/` and of the HTTP/1.1 server (`http/h1/`): `<` becomes `<=`, a number grows by one, a text or an argument
becomes another one. Then it runs the tests that concern the module. Only functions are changed, not the constants of
modules. A change that no test notices survives. Each survivor below has a reason why it changes no behaviour; a
survivor without a reason fails `make mutants`.

The command writes this page from `tools/mutant_results.json` and `tools/mutant_reasons.toml`. A run of one group
(`make mutants ARGS=framing`), or of one module (`make mutants ARGS=security/tokens.py`), replaces only the results of
that group or module.

## Runs
"""
_OUTCOMES: Final = ("killed", "timed out", "survived")
#: What stands behind the name of a module that was changed after its run.
CHANGED: Final = " (changed since)"
#: What the line begins with that names modules without a run.
MISSING: Final = "Not run yet: "


def page_of(
    results: Mapping[str, Run],
    reasons: Sequence[Reason],
    changed: Collection[str] = (),
    missing: Collection[str] = (),
) -> str:
    """Return the page; modules in *changed* are marked as changed since their run, those in *missing* as never run."""
    lines = [_INTRODUCTION, "| run | date | commit | Python | mutmut | mutants |", "|---|---|---|---|---|--:|"]
    for name, run in results.items():
        mutants = sum(sum(result.counts.values()) for result in run.modules.values())
        lines.append(f"| {name} | {run.date} | `{run.commit}` | {run.python} | {run.mutmut} | {mutants} |")
    lines += ["", *_counts(results, changed, missing), *_survivors(results, reasons)]
    return "\n".join(lines) + "\n"


def _counts(results: Mapping[str, Run], changed: Collection[str], missing: Collection[str]) -> Iterator[str]:
    yield "## Modules"
    yield ""
    total: Counter[str] = Counter()
    for _, result in _modules(results):
        total.update(result.counts)
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(total.items()) if count)
    yield f"{total.total()} mutants: {said}."
    yield "A mutant that timed out made a test wait for ever, which is noticed, too."
    yield ""
    yield "| module | mutants | killed | timed out | survived | not run |"
    yield "|---|--:|--:|--:|--:|--:|"
    for module, result in _modules(results):
        counts = [sum(result.counts.values()), *(result.counts.get(outcome, 0) for outcome in _OUTCOMES)]
        mark = CHANGED if module in changed else ""
        yield f"| `{module}`{mark} | {' | '.join(map(str, counts))} | {not_run(result)} |"
    yield ""
    if missing:
        yield f"{MISSING}{', '.join(f'`{module}`' for module in missing)}."
        yield ""


def not_run(result: ModuleResult) -> int:
    """Return how many mutants have no outcome: they were not run, or their tests broke off."""
    return sum(count for outcome, count in result.counts.items() if outcome not in _OUTCOMES)


def _survivors(results: Mapping[str, Run], reasons: Sequence[Reason]) -> Iterator[str]:
    yield "## Survivors"
    yield ""
    rows = [_row(module, it, reasons) for module, result in _modules(results) for it in result.survivors]
    if rows:
        yield "| where | instead of | there is | why that changes no behaviour |"
        yield "|---|---|---|---|"
        yield from rows
    else:
        yield "None."


def _row(module: str, survivor: Survivor, reasons: Sequence[Reason]) -> str:
    missing = "**no reason yet**" if survivor.is_tested else "**no test runs it**"
    because = reason_of(module, survivor, reasons) or missing
    cells = (f"{module} {survivor.function}", survivor.before, survivor.after)
    return "| " + " | ".join(f"`{cell.replace('|', chr(92) + '|')}`" for cell in cells) + f" | {because} |"
