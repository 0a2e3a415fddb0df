"""Install Debian packages for the tests, where that may be done: as root on a machine with apt-get."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SCRIPT = Path(__file__).with_name("install-debian.sh")
INSTALL_SECONDS = 240


@cache
def install(*packages: str) -> str:
    """Try to install *packages*; return "" if that was done, else why not."""
    if os.getuid() != 0:
        return f"root may do so: apt-get install {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        return "this is no Debian (no apt-get)"
    try:
        # Several processes of a test run may find that something is missing.
        with (Path(tempfile.gettempdir()) / f"spotledger-apt-{os.getuid()}").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            done = subprocess.run(
                ["sh", SCRIPT, *packages], capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS
            )
    except subprocess.TimeoutExpired:
        return f"apt-get did not install {' '.join(packages)} within {INSTALL_SECONDS} s"
    return "" if done.returncode == 0 else f"apt-get did not install {' '.join(packages)}: {done.stderr[-500:].strip()}"
