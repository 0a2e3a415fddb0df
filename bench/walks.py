"""How many lines and files a signed read and a deposit pass below the HTTP server, as the tests trace them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.harness import ROOT, Aim, Cores, Report, Table, conditions

TEST: Final = "tests/unit/test_walks.py"
WALK: Final = re.compile(r"^\.?(read|write): (\d+) lines, (\d+) files, (\d+) returns$", re.MULTILINE)
SECONDS_LIMIT: Final = 120
#: Lines and files.
AIMS: Final = {"read": (450, 15), "write": (950, 20)}


def traced() -> dict[str, tuple[int, int, int]]:
    """Run the tests that trace the walks; return lines, files and returns of each. They need not be in their bounds."""
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-k", "walk_of", TEST]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS_LIMIT, cwd=ROOT)
    found = {name: (int(lines), int(files), int(returns)) for name, lines, files, returns in WALK.findall(done.stdout)}
    if set(found) != set(AIMS):
        raise RuntimeError(f"the tests printed no walks:\n{(done.stdout + done.stderr)[-1000:]}")
    return found


def run() -> Report:
    """Trace both walks and put the report together."""
    with tempfile.TemporaryDirectory(prefix="spotledger-bench-") as name:
        report = Report("walks", __doc__.strip() if __doc__ else "", conditions(Path(name), Cores.choose()))
    table = Table("Walks", ["", "lines", "files", "returns to a file that was left"])
    for name, walk in sorted(traced().items()):
        table.rows.append([name, *walk])
        for what, value, limit in zip(("lines", "files"), walk, AIMS[name], strict=False):
            report.aims.append(Aim(f"{what} of the {name}'s walk", value, limit, at_most=True))
    report.tables.append(table)
    report.notes.append(f"Traced by {TEST}, which says what counts. Nothing here depends on the machine.")
    return report
