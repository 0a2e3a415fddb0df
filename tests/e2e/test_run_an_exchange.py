"""The page docs/how-to/run-an-exchange.md is true: each of its commands is run, and each line of answer compared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support_books import check_books

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-an-exchange.md"
PROMPT = "    $ "
FOLDER = "exchange"


def commands() -> Iterator[tuple[str, list[str]]]:
    """Give the commands of the page in order, each with the lines that it answers."""
    command, answer = None, []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith(PROMPT):
            if command is not None:
                yield command, answer
            command, answer = line.removeprefix(PROMPT), []
        elif line.startswith("    "):
            answer.append(line.strip())
    assert command is not None
    yield command, answer


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_flows_of_the_page_are_what_the_commands_do(tmp_path: Path) -> None:
    """A reader who types the page sees the page, refusals too, and the books are whole at the end."""
    programs = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SPOTLEDGER_DATA": FOLDER}
    flows = list(commands())
    assert len(flows) > 60
    for command, answer in flows:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert [line.strip() for line in done.stdout.splitlines()] == answer, command
        assert done.returncode == (1 if done.stdout.startswith("spotledger: ") else 0), command
    check_books(tmp_path / FOLDER)
