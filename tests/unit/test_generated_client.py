"""The blocking modules of the client: generated from the async ones, and current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support_scripts import load_script

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "generate_blocking_client.py"


GENERATOR = load_script("generate_blocking_client")
MODULES = list(GENERATOR.MODULES.items())


def test_generated_modules_are_current() -> None:
    """The files in the repository are what the script generates; if not, run `make generate`."""
    done = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("source", "target"), MODULES, ids=[target.name for _, target in MODULES])
def test_generated_module_names_its_source_and_has_no_trace_of_asyncio(source: Path, target: Path) -> None:
    """The first line says which file to edit and what to run; what follows is plain blocking code."""
    header, _, text = target.read_text(encoding="utf-8").partition("\n")
    for named in ("Generated", source.name, SCRIPT.name, "make generate"):
        assert named in header
    assert not [word for word in ("await", "async", "Async", "aclose", "anext") if word in text]


def test_generated_module_that_is_stale_fails_the_check_until_it_is_generated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was edited by hand is refused with the command that mends it, and left as it is until then."""
    source, target = MODULES[0]
    stale = tmp_path / "stale.py"
    stale.write_text("edited = True\n")
    monkeypatch.setattr(GENERATOR, "MODULES", {source: stale})
    assert GENERATOR.main(["--check"]) == 1
    assert "stale.py does not match" in capsys.readouterr().err
    assert stale.read_text() == "edited = True\n"
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0
    assert stale.read_text() == target.read_text(encoding="utf-8")


def test_blocking_twin_of_each_construct_is_plain_code() -> None:
    """Definitions, calls, context managers, loops, names and words lose what asyncio needs; other text stays."""
    text = '''\
import asyncio
async def open_async(client: AsyncClient) -> AsyncGenerator[int | None, None]:
    """Open it, for asyncio. Use it within one event loop."""
    async with aclosing(stream_async(client)) as pieces:
        async for piece in pieces:
            await asyncio.sleep(await piece.aclose())
'''
    assert (
        GENERATOR.blocking(text, MODULES[0][0]).partition("\n\n")[2]
        == '''\
import time


def open(client: Client) -> Generator[int | None, None, None]:
    """Open it, blocking. Several threads may share it."""
    with closing(stream(client)) as pieces:
        for piece in pieces:
            time.sleep(piece.close())
'''
    )


def test_script_with_an_unknown_argument_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option is refused with the usage."""
    assert GENERATOR.main(["--chekc"]) == 2
    assert "--check" in capsys.readouterr().err
