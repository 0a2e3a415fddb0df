"""The blocking operator client: generated from the async one, and current."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools" / "generate_blocking_client.py"
CLIENT = ROOT / "src" / "spotledger" / "client" / "operator"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """The script, imported as a module."""
    spec = importlib.util.spec_from_file_location("generate_blocking_client", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_client_is_current() -> None:
    """The file in the repository is what the script generates; if not, run `make generate`."""
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_generated_client_names_its_source_and_the_command() -> None:
    """Whoever opens the file learns from its first line which file to edit, and what to run then."""
    header = (CLIENT / "ledger.py").read_text(encoding="utf-8").splitlines()[0]
    for named in ("Generated", "async_ledger.py", SCRIPT.name, "make generate"):
        assert named in header


def test_generated_client_that_is_stale_fails_the_check_and_is_mended(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was edited by hand is refused with the command that mends it, and left as it is until then."""
    stale = tmp_path / "ledger.py"
    stale.write_text("edited = True\n")
    monkeypatch.setattr(generator, "TARGET", stale)
    assert generator.main(["--check"]) == 1
    assert "make generate" in capsys.readouterr().err
    assert stale.read_text() == "edited = True\n"
    assert generator.main([]) == 0
    assert generator.main(["--check"]) == 0
    assert stale.read_text() == (CLIENT / "ledger.py").read_text(encoding="utf-8")


def test_blocking_twin_has_no_trace_of_asyncio(generator: ModuleType) -> None:
    """Definitions, calls, context managers, loops and names all lose what asyncio needs; other text stays."""
    source = '''\
import asyncio
async def open_async(client: AsyncClient) -> AsyncIterator[int]:
    """Open it, for asyncio. Use it within one event loop."""
    async with aclosing(stream_async(client)) as pieces:
        async for piece in pieces:
            await asyncio.sleep(await piece.aclose())
'''
    assert (
        generator.blocking(source).removeprefix(generator.HEADER)
        == '''\
import time


def open(client: Client) -> Iterator[int]:
    """Open it, blocking. Several threads may share it."""
    with closing(stream(client)) as pieces:
        for piece in pieces:
            time.sleep(piece.close())
'''
    )
    generated = (CLIENT / "ledger.py").read_text(encoding="utf-8")
    assert not [
        word for word in ("await", "async ", "asyncio", "Async", "aclose") if word in generated.split("\n", 1)[1]
    ]


def test_script_with_an_unknown_argument_says_how_it_is_used(
    generator: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped option writes nothing."""
    assert generator.main(["--chekc"]) == 2
    assert "--check" in capsys.readouterr().err
