"""The drills of a fleet start as the docs say: after ``make setup``, with whatever Python is first in the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DRILL = Path(__file__).parents[2] / "examples" / "fleet" / "drill"
#: What only ``make dev`` installs.
WITHOUT = """
import runpy, sys
for name in ("pytest", "_pytest", "hypothesis", "schemathesis", "playwright"):
    sys.modules[name] = None
sys.argv = [sys.argv[1], "--help"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_drill_needs_nothing_but_what_setup_installs() -> None:
    """Without the packages for tests it lists its drills."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, DRILL], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "primary_killed" in done.stdout


def test_drill_started_by_another_python_uses_that_of_setup() -> None:
    """Started as a program, by a Python that has none of what it needs, it runs in the virtual environment."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    done = subprocess.run([base, "-I", DRILL, "--help"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "primary_killed" in done.stdout
