"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support_archive import disk_of

DISK_KIB = 16_384


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of sixteen MiB of its own; only root may mount one."""
    with disk_of(tmp_path / "disk", DISK_KIB) as place:
        yield place
