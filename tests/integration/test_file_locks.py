"""
The locks that SQLite has on the files of a ledger last as long as the process that opened it.

POSIX drops all locks that a process has on a file as soon as the process closes any descriptor of it. Another process
that finds no lock takes itself for the only one: it cuts the index of the write-ahead log, which the first process has
mapped, and that process ends with a bus error.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import spotledger
from spotledger.storage.sqlite.copy import copy_ledger
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, FileKind, open_as_found, open_reader, open_writer
from spotledger.storage.sqlite.raw import RawFile
from spotledger.storage.sqlite.wal import find_damage
from support_audit import audited

#: Try to lock, from another process, what SQLite locks of a file and of the index of its log as long as it is open.
IS_LOCKED = """
import fcntl, sys
for path in sys.argv[1:]:
    first, length = (128, 1) if path.endswith("-shm") else (0x40000002, 510)
    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, first)
            print("free", path)
        except BlockingIOError:
            print("locked", path)
"""


def locked(*files: Path) -> list[str]:
    """Say of each file whether this process has locked it, as another process sees it."""
    asked = subprocess.run([sys.executable, "-c", IS_LOCKED, *map(str, files)], capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    return [line.split()[0] for line in asked.stdout.splitlines()]


def open_again(folder: Path) -> None:
    """Open each file for writing once more, as sealing and a rebuild do."""
    for name, kind in (("journal.db", JOURNAL), ("books.db", BOOKS)):
        open_writer(folder / name, kind, lambda _: None).close()


def read(folder: Path) -> None:
    """Open each file for reading, as exports and the commands do."""
    for name, kind in (("journal.db", JOURNAL), ("books.db", BOOKS)):
        open_reader(folder / name, kind).close()
        open_as_found(folder / name).close()


def look_through_pages(folder: Path) -> None:
    """Look through the pages of each file, as an audit of a damaged one does."""
    named: dict[str, FileKind] = {"journal.db": JOURNAL, "books.db": BOOKS}
    for name, kind in named.items():
        with closing(RawFile(folder / name, kind)) as file:
            assert file.damaged_pages() == []
        assert find_damage(folder / f"{name}-wal") is None


def audit(folder: Path) -> None:
    """Audit the ledger in this process."""
    assert audited(folder).verdict == "clean"


def copy(folder: Path) -> None:
    """Back the ledger up."""
    copy_ledger(folder / "journal.db", folder / "keys.db", folder / "copy.db", lambda *_: None)


@pytest.mark.parametrize("look", [open_again, read, look_through_pages, audit, copy])
def test_file_that_is_looked_at_in_the_same_process_stays_locked(tmp_path: Path, look: Callable[[Path], None]) -> None:
    """Whatever else opens and closes a file of an open ledger, other processes see that it is in use."""
    with spotledger.open(tmp_path / "data") as ledger:
        ledger.list_coin("usdt", 2, key="c")
        ledger.register_customer("alice", key="r")
        ledger.deposit("alice", "usdt", "1", key="k")
        files = [tmp_path / "data" / name for name in ("journal.db", "journal.db-shm", "books.db", "books.db-shm")]
        assert locked(*files) == ["locked"] * len(files)
        look(tmp_path / "data")
        assert locked(*files) == ["locked"] * len(files)
