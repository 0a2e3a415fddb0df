"""What every file of the repository has to hold: no addresses, short enough, the words of the glossary."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "spotledger"
UNIT_TESTS = ROOT / "tests" / "unit"
#: Files of other systems, as tests read them.
CASES = ROOT / "tests" / "cases"
FILE_LINES_LIMIT = 500
FUNCTION_LINES_LIMIT = 70
#: Python files in one folder, besides ``__init__.py``, which describes the others.
FOLDER_FILES_LIMIT = 18

# The words are put together here, so that this file does not hold them itself.
INDEX_HOSTS = ["py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "maven." + "org"]
INDEX_SETTINGS = ["index" + "-url =", "--index" + "-url ", "--extra-index" + "-url", "--find" + "-links"]
MACHINE_PATH = re.compile(r"(?<![\w.~$}])/(?:work|root|home)/\w|/var/folders[/]|\b[A-Z]:\\\\Users")
UNUSED_WORDS = {"user", "asset", "currency", "utils", "util", "helper", "helpers", "common", "manager"}


@cache
def tracked_files() -> tuple[Path, ...]:
    """List what git tracks or would track; without git, what is there outside hidden and made folders."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run(
            [git, "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
        return tuple(path for path in paths if path.is_file())
    kept = [path for path in ROOT.rglob("*") if not set(path.relative_to(ROOT).parts) & {".venv", ".git", "data"}]
    return tuple(path for path in kept if path.is_file() and "cache" not in str(path.relative_to(ROOT)))


def texts() -> list[tuple[str, str]]:
    """Read every tracked text file, as name and content; files of other systems may be in any encoding."""
    found = []
    for path in tracked_files():
        if CASES in path.parents:
            continue
        content = path.read_bytes()
        if b"\0" not in content:
            found.append((path.relative_to(ROOT).as_posix(), content.decode("utf-8")))
    return found


def sources() -> list[Path]:
    """List the Python files of the product."""
    return sorted(path for path in tracked_files() if path.suffix == ".py" and ROOT / "src" in path.parents)


def parse(path: Path) -> ast.Module:
    """Read the Python file at *path*."""
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Name *path* as seen from the root of the repository."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("word", [*INDEX_HOSTS, *INDEX_SETTINGS])
def test_file_with_the_address_of_a_package_index_is_not_there(word: str) -> None:
    """No file names a package index or its address: the machine that installs decides that."""
    assert [name for name, text in texts() if word in text] == []


def test_file_with_a_path_of_one_machine_is_not_there() -> None:
    """No file holds an absolute path that exists on one person's machine only."""
    found = {name: hit.group() for name, text in texts() if (hit := MACHINE_PATH.search(text))}
    assert found == {}


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_requirement_is_pinned_and_carries_hashes(path: Path) -> None:
    """Every line that installs something names one version and at least one hash."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line.lstrip()[0] != "#"]
    starts = [number for number, line in enumerate(lines) if not line.startswith(" ")]
    assert starts
    for number in starts:
        assert re.match(r"[a-z0-9-]+(\[[a-z,]+\])?==\S+( ; .+)? \\$", lines[number]), lines[number]
        assert lines[number + 1].startswith("    --hash=sha256:"), lines[number]


def test_requirement_is_the_same_version_in_every_lock() -> None:
    """What is tested is what is installed: no two locks name different versions of one package."""
    versions: dict[str, set[str]] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_source_file_is_short_enough() -> None:
    """No source file is longer than the limit, but the one table of all errors."""
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert lengths.pop("src/spotledger/errors.py") < 600
    assert {name: lines for name, lines in lengths.items() if lines >= FILE_LINES_LIMIT} == {}


def test_source_folder_is_small_enough() -> None:
    """No folder of the source has more Python files than the limit."""
    counts = Counter(name_of(path.parent) for path in sources() if path.name != "__init__.py")
    assert counts
    assert {name: files for name, files in counts.items() if files > FOLDER_FILES_LIMIT} == {}


def test_source_function_is_short_enough() -> None:
    """No function, from its first decorator to its end, is longer than the limit."""
    too_long = {}
    for path in sources():
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                lines = (node.end_lineno or first) - first + 1
                if lines > FUNCTION_LINES_LIMIT:
                    too_long[f"{name_of(path)}:{node.name}"] = lines
    assert too_long == {}


@pytest.mark.parametrize("path", [path for path in sources() if path.name == "__init__.py"], ids=name_of)
def test_package_says_what_it_is_for_and_which_file_to_open_first(path: Path) -> None:
    """A stranger who opens a package reads in a few lines what it is for, and every file that these name exists."""
    purpose, _, reading = (ast.get_docstring(parse(path)) or "").partition("\n\n")
    assert purpose.endswith(".")
    assert len(purpose.splitlines()) == 1
    first = re.match(r"Open ``([\w/]+\.py)`` first", reading)
    assert first, f"{name_of(path)} does not name the file to open first"
    assert (path.parent / first[1]).is_file()
    assert len(reading.splitlines()) <= 2
    for named in re.findall(r"``([\w/*]+\.py)``", reading):
        assert any(path.parent.glob(named)) or any(PACKAGE.glob(named)), f"{name_of(path)} names {named}"


def words_of(name: str) -> set[str]:
    """Cut an identifier into its words: ``KeyManager`` and ``key_manager`` both hold ``manager``."""
    return set(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_"))


def test_source_module_and_class_avoid_the_unused_words() -> None:
    """Modules and classes are named by the words of the glossary, so one thing has one name."""
    found = []
    for path in sources():
        names = {path.stem, path.parent.name}
        names.update(node.name for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef))
        found += [f"{name_of(path)}: {name}" for name in names if words_of(name) & UNUSED_WORDS]
    assert found == []


def test_source_public_name_has_a_docstring() -> None:
    """Every module with code, and every public class and function in it, says what it is for."""
    silent = []
    for path in sources():
        tree = parse(path)
        if tree.body and path.name != "__init__.py" and not ast.get_docstring(tree):
            silent.append(name_of(path))
        for node in tree.body:
            public = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if public and not node.name.startswith("_") and not ast.get_docstring(node):
                silent.append(f"{name_of(path)}:{node.name}")
    assert silent == []


def unit_test_outside_the_mirror(path: Path) -> str | None:
    """Say what is wrong with the place of the unit test at *path*; None if it tests a module of its package."""
    package = PACKAGE / path.parent.relative_to(UNIT_TESTS)
    if not (package / "__init__.py").is_file():
        return f"{name_of(path)}: there is no package {name_of(package)}"
    modules = [module.stem for module in package.glob("*.py")]
    tested = path.stem.removeprefix("test_")
    if path.parent == UNIT_TESTS or any(tested == name or tested.startswith(f"{name}_") for name in modules):
        return None
    return f"{name_of(path)}: {name_of(package)} has no module {tested}"


def test_unit_tests_mirror_the_packages_of_the_source() -> None:
    """A unit test is found by the module it tests: unit/<package>/test_<module>.py or test_<module>_<aspect>.py."""
    paths = [path for path in tracked_files() if path.match("test_*.py") and UNIT_TESTS in path.parents]
    assert any(path.parent != UNIT_TESTS for path in paths)
    assert [problem for path in sorted(paths) if (problem := unit_test_outside_the_mirror(path))] == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere/test_rules.py", "there is no package src/spotledger/nowhere"),
        ("domain/test_nothing.py", "src/spotledger/domain has no module nothing"),
        ("domain/test_rule.py", "src/spotledger/domain has no module rule"),
        ("http/test_bodies.py", "src/spotledger/http has no module bodies"),
    ],
)
def test_unit_test_in_the_wrong_place_is_named(place: str, message: str) -> None:
    """A folder that is no package, a module that does not exist, and the module of another package are noticed."""
    assert unit_test_outside_the_mirror(UNIT_TESTS / place) == f"tests/unit/{place}: {message}"
    assert unit_test_outside_the_mirror(UNIT_TESTS / "domain" / "test_rules_of_fees.py") is None


def test_contributing_names_every_room_and_the_layers_as_they_are() -> None:
    """The map of the source names each package and module at the top, and the layers are those of .importlinter."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    layout = text.partition("    src/spotledger/\n")[2].partition("    tests/")[0]
    rooms = {path.name + "/" for path in PACKAGE.glob("*/") if (path / "__init__.py").is_file()}
    modules = {path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"^ {6}(\S+)", layout, re.MULTILINE)) == rooms | modules
    contract = (ROOT / ".importlinter").read_text(encoding="utf-8").partition("layers =\n")[2].partition("\n\n")[0]
    assert contract.replace("(console) | ", "") in text


def test_ci_run_is_executable() -> None:
    """The script of the checks can be started as it is."""
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111 == 0o111


def test_hooks_and_hosted_checks_run_nothing_from_elsewhere() -> None:
    """The hooks are all local, and the hosted checks check out the repository and run .ci/run."""
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert re.findall(r"\brepo: *(.+)", hooks) == ["local"]
    assert set(re.findall(r"\blanguage: *(.+)", hooks)) == {"system"}
    hosted = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert re.fullmatch(r"actions/checkout@v\d+", "".join(re.findall(r"\buses: *(.+)", hosted)))
    assert re.findall(r"\brun: *(.+)", hosted) == ["sudo .ci/run"]


def test_licence_is_the_full_text_that_the_metadata_names() -> None:
    """LICENSE holds the Apache License 2.0, as pyproject.toml says."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
