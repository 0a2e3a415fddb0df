"""What the fault tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK_KIB = 16_384


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen MiB of its own; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_KIB}k", "tmpfs", str(place)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        if os.environ.get("CI") == "true":
            pytest.fail("a small file system is needed, and this machine lets nobody mount one")
        pytest.skip("only root can mount a small file system to fill")
    try:
        yield place
    finally:
        subprocess.check_call(["umount", "-l", str(place)])
