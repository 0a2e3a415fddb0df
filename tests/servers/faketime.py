"""
A wall clock that a test sets, for real processes: Debian's libfaketime.

Only the wall clock is changed; the clocks that count since the boot are left alone. Python's ``time.sleep`` fails under
version 0.9.10 of it, so the processes must not use that.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from servers import debian
from servers.missing import ServerMissing

PACKAGE = "faketime"
LIBRARY = "faketime/libfaketimeMT.so.1"
FOLDERS = ("/usr/lib", "/usr/local/lib")


@cache
def find_faketime() -> Path:
    """
    Return the library, installed from Debian's package if it is not there.

    Raises:
        ServerMissing: It is not there and could not be installed.
    """
    found = _installed()
    if found is None:
        problem = debian.install(PACKAGE)
        found = _installed()
        if found is None:
            raise ServerMissing(f"libfaketime is not installed; {problem}")
    return found


def _installed() -> Path | None:
    for folder in FOLDERS:
        for pattern in (LIBRARY, f"*/{LIBRARY}"):
            for found in Path(folder).glob(pattern):
                return found
    return None


class FakeTime:
    """The wall clock of the processes that have its environment; it can be set while they run."""

    def __init__(self, file: Path) -> None:
        """Begin with the right time; *file* says how far the clock is wrong."""
        self._file = file
        self._library = find_faketime()
        self.set("+0")

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs in its environment."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """Set the wall clock: ``+5h``, ``-30d``, ``+0``."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(self._file)
