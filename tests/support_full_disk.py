"""A file system that is filled on purpose."""

from __future__ import annotations

from pathlib import Path


def fill(place: Path) -> Path:
    """Take all the room that is left on the file system of *place*."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            pass
    return ballast
