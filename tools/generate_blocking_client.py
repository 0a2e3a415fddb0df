"""
Generate the blocking operator client from the async one.

`make generate` writes the file; with ``--check`` it is only compared, and the exit code is 1 if it is not current.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SOURCE: Final = ROOT / "src/spotledger/client/operator/async_ledger.py"
TARGET: Final = ROOT / "src/spotledger/client/operator/ledger.py"

HEADER: Final = f"""\
# Generated from {SOURCE.name} by tools/{Path(__file__).name} (`make generate`). Do not edit.

"""

#: Applied in this order to the whole text, docstrings included.
RULES: Final = (
    (r"\basync (?=def|with|for)", ""),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(\w+)_async\b", r"\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\ba(close|closing)\b", r"\1"),
    (r"\basyncio(?=\.sleep\b|$)", "time"),
    (r"\bfor asyncio\b", "blocking"),
    (r"\bUse it within one event loop\.", "Several threads may share it."),
)


def blocking(source: str) -> str:
    """Return the blocking twin of the async *source*, formatted."""
    for pattern, replacement in RULES:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(SOURCE), "-"]
    return subprocess.run(command, input=HEADER + source, capture_output=True, text=True, check=True).stdout


def main(arguments: list[str]) -> int:
    """Write the blocking client, or with ``--check`` compare it; return the exit code."""
    generated = blocking(SOURCE.read_text(encoding="utf-8"))
    if arguments == ["--check"]:
        if TARGET.read_text(encoding="utf-8") == generated:
            return 0
        print(f"{TARGET.name} does not match {SOURCE.name}; run: make generate", file=sys.stderr)
        return 1
    if arguments:
        print(f"usage: {Path(__file__).name} [--check]", file=sys.stderr)
        return 2
    TARGET.write_text(generated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
