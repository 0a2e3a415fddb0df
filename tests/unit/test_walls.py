"""Who may import whom, checked by running import-linter on the package, and on a package with a broken wall."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "spotledger"

BREACHES = [
    pytest.param("domain/accounts.py", "import spotledger.ledger.ledger", "Imports go downwards only", id="upwards"),
    pytest.param("ledger/reads.py", "import spotledger.audit.books", "Imports go downwards only", id="audit beside"),
    pytest.param("ledger/reads.py", "import spotledger.ledger.writer", "Within the ledger, too", id="ledger"),
    pytest.param("http/h1/server.py", "import spotledger.http.wire", "The listeners know nothing", id="server"),
    pytest.param("http/operator/app.py", "import spotledger.http.public.app", "The listeners know", id="listeners"),
    pytest.param("client/trader/core.py", "import spotledger.client.operator.core", "The two clients", id="clients"),
    pytest.param(
        "storage/sqlite/store.py", "import spotledger.storage.postgres.rows", "The two stores know", id="stores"
    ),
    pytest.param("domain/accounts.py", "import msgspec", "The domain runs on the standard library alone", id="domain"),
    pytest.param("client/__init__.py", "import spotledger.domain", "The client carries no server code", id="client"),
    pytest.param(
        "ledger/ledger.py",
        "import spotledger.storage.sqlite.store",
        "Only ops.opening, ops.fleet, the archive and the audit reach a concrete store",
        id="store",
    ),
    pytest.param("storage/sqlite/store.py", "import spotledger.storage.sqlite.audit", "Only the audit reads", id="raw"),
    pytest.param(
        "cli/main.py",
        "import spotledger.storage.base",
        "The listeners and the command line ask the ledger, never the store",
        id="doors",
    ),
    pytest.param("paths.py", "import spotledger.errors", "Imports go downwards only", id="siblings of a layer"),
    pytest.param("extra.py", "", "Imports go downwards only", id="a module outside the layers"),
    pytest.param("http/extra.py", "", "The listeners know nothing", id="a module outside the layers of a package"),
]


def lint_imports(source: Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts on the package below *source*, which takes precedence over the installed one."""
    program = f"import sys; sys.path.insert(0, {str(source)!r}); from importlinter.cli import lint_imports_command; "
    return subprocess.run(
        [sys.executable, "-c", program + "lint_imports_command()", "--config", str(ROOT / ".importlinter"),
         "--cache-dir", str(cache)],
        capture_output=True, text=True, cwd=source, check=False, timeout=120,
    )  # fmt: skip


def test_walls_of_the_package_hold(tmp_path: Path) -> None:
    """Every contract of .importlinter is kept by the package as it stands."""
    result = lint_imports(ROOT / "src", tmp_path / "cache")
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(("module", "line", "contract"), BREACHES)
def test_walls_with_a_forbidden_import_are_broken(tmp_path: Path, module: str, line: str, contract: str) -> None:
    """Each contract notices an import that it is there to forbid."""
    source = tmp_path / "src"
    shutil.copytree(PACKAGE, source / "spotledger", ignore=shutil.ignore_patterns("__pycache__"))
    with (source / "spotledger" / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(source, tmp_path / "cache")
    assert result.returncode != 0, result.stdout
    said = [text for text in result.stdout.splitlines() if contract in text]
    assert any("BROKEN" in text for text in said) or "not listed as layers" in result.stdout, result.stdout


def imported_modules(path: Path) -> set[str]:
    """Name the modules that the file at *path* imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found.add(node.module or "")
            if node.module == "spotledger":
                found.update(f"spotledger.{alias.name}" for alias in node.names)
    return found - {"spotledger"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "domain").rglob("*.py")), ids=lambda path: path.name)
def test_domain_module_imports_only_the_standard_library_errors_and_texts(path: Path) -> None:
    """The rules can be read, run and moved without anything being installed."""
    for name in imported_modules(path):
        inside = name in ("spotledger.errors", "spotledger.texts") or name.split(".")[:2] == ["spotledger", "domain"]
        assert inside or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_client_import_loads_no_server_module() -> None:
    """A trader's program that imports the client does not load the ledger, the store or the server."""
    program = "import sys, spotledger.client; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(result.stdout.split())
    server = {"ledger", "storage", "domain", "security", "http", "ops", "cli", "audit", "archive"}
    assert not {f"spotledger.{name}" for name in server} & loaded
    assert not {"sqlite3", "apsw", "httptools"} & loaded
