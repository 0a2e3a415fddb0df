"""The README does what it says: its library example runs as it stands, in both languages."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_library_example_of_the_readme_runs(page: str, tmp_path: Path) -> None:
    """The block that opens a ledger is run in an empty folder, and ends with the balances that its comment says."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", text, re.MULTILINE)
    (example,) = (block for block in blocks if "spotledger.open(" in block)
    code = "\n".join(line[4:] for line in example.splitlines())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{'usdt': Balance(available=8050000000, freeze=2000000000)}\n"
