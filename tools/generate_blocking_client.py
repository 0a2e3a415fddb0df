"""
Generate the blocking modules of the client from the async ones.

`make generate` writes them; with ``--check`` they are only compared, and the exit code is 1 if one is stale.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).resolve().parents[1] / "src/spotledger/client"
#: Each async module, and the blocking module that is generated from it.
MODULES: Final = {
    CLIENT / "async_driver.py": CLIENT / "driver.py",
    CLIENT / "operator/async_credentials.py": CLIENT / "operator/credentials.py",
    CLIENT / "operator/async_operation_calls.py": CLIENT / "operator/operation_calls.py",
    CLIENT / "operator/async_ledger.py": CLIENT / "operator/ledger.py",
    CLIENT / "trader/async_spot.py": CLIENT / "trader/spot.py",
}
HEADER: Final = "# Generated from {source} by tools/{script} (`make generate`). Do not edit.\n\n"

#: Applied in this order to the whole text, docstrings included.
RULES: Final = (
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(\w+)_async\b", r"\1"),
    (r"\basync_(?=(driver|credentials|operation_calls)\b)", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|closing|iter_raw|next)\b", r"\1"),
    (r"\bGenerator\[(.+), None\]", r"Generator[\1, None, None]"),
    (r"\basyncio(?=\.sleep\b|$)", "time"),
    (r"\bfor asyncio\b", "blocking"),
    (r"\bUse it within one event loop\.", "Several threads may share it."),
)


def blocking(text: str, source: Path) -> str:
    """Return the blocking twin of the *text* of the async module *source*, formatted."""
    for pattern, replacement in RULES:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    text = HEADER.format(source=source.name, script=Path(__file__).name) + text
    for subcommand in (("check", "--select", "I", "--fix"), ("format",)):
        command = [sys.executable, "-m", "ruff", *subcommand, "--quiet", "--stdin-filename", str(source), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return text


def main(arguments: list[str]) -> int:
    """Write the blocking modules, or with ``--check`` compare them; return the exit code."""
    if arguments not in ([], ["--check"]):
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    stale = 0
    for source, target in MODULES.items():
        generated = blocking(source.read_text(encoding="utf-8"), source)
        if not arguments:
            target.write_text(generated, encoding="utf-8")
        elif target.read_text(encoding="utf-8") != generated:
            print(f"{target.name} does not match {source.name}; run: make generate", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
