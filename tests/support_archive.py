"""What the tests of backup, restore, export and import share."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import Restored, restore
from spotledger.clock import now_ms
from spotledger.domain.operations import Deposit, Freeze, HoldKey, ListCoin, RegisterCustomer, Unfreeze
from spotledger.ledger.ledger import Ledger

MASTER_KEY = "5a" * 32
#: What is in a folder after a restore.
RESTORED_FILES = ("books.db", "journal.db", "keys.db", "noted-head")


def filled(folder: Path, entries: int = 400, segment_entries: int = 64) -> Ledger:
    """Open a new ledger in *folder* with some *entries* over several segments."""
    ledger = spotledger.open(folder, segment_entries=segment_entries)
    setup = [ListCoin("list-usdt", "usdt", 8), ListCoin("list-shib", "shib", 18)]
    ledger.execute([*setup, *(RegisterCustomer(f"register-{n}", f"c{n}") for n in range(10))])
    for number in range(0, entries, 40):
        write_some(ledger, "first", number, 40)
    return ledger


def write_some(ledger: Ledger, prefix: str, start: int, count: int) -> None:
    """Book *count* operations in one group: deposits, freezes, and what frees them in part."""
    group = []
    for number in range(start, start + count):
        key, customer = f"{prefix}-{number}", f"c{number % 10}"
        if number % 4 == 2:
            group.append(Freeze(key, customer, "usdt", "0.5"))
        elif number % 4 == 3:
            group.append(Unfreeze(key, HoldKey(f"{prefix}-{number - 1}"), "0.25"))
        else:
            group.append(Deposit(key, customer, "usdt", "2"))
            group.append(Deposit(f"{key}-shib", customer, "shib", "9999999999999999999"))
    ledger.execute(group)


class Writing:
    """Writes to a ledger in a thread, a group after the other."""

    def __init__(self, ledger: Ledger, size: int = 4) -> None:
        self._ledger = ledger
        self._size = size
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.begun = threading.Event()
        #: Keys that were acknowledged, in order, with the seq at which each was.
        self.acknowledged: dict[str, int] = {}

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            operations = [Deposit(f"live-{n}", f"c{n % 10}", "usdt", "1") for n in range(number, number + self._size)]
            for receipt in self._ledger.execute(operations):
                self.acknowledged[receipt.entry.key] = receipt.seq
            number += self._size
            self.begun.set()

    @contextmanager
    def going_on(self) -> Iterator[Writing]:
        """Write for the length of a ``with`` block."""
        self._thread.start()
        self.begun.wait()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


def small_backup(folder: Path) -> Path:
    """Make a backup of a small ledger in *folder*, beside its data folder ``data``."""
    with filled(folder / "data") as ledger:
        back_up(ledger, folder / "first.backup", now_ms)
    return folder / "first.backup"


def names_in(folder: Path) -> list[str]:
    """List what is in *folder*."""
    return sorted(path.name for path in folder.iterdir())


def restored(file: Path, folder: Path, epoch: int | None = None) -> Restored:
    """Restore a backup of a ledger that never had access keys into the new folder *folder*."""
    folder.mkdir()
    return restore(file, folder, None, epoch)


def damaged_copy(file: Path, target: Path) -> Path:
    """Return a copy of a backup that a test may damage."""
    shutil.copyfile(file, target)
    return target


def flip_bit(file: Path, place: int, bit: int = 0) -> Path:
    """Flip one bit of a file, as a disk may."""
    with file.open("r+b") as opened:
        opened.seek(place)
        byte = opened.read(1)[0]
        opened.seek(place)
        opened.write(bytes([byte ^ 1 << bit]))
    return file


def rehash(connection: Any) -> None:
    """Make the chain of hashes of a backup fit its entries, as somebody would who means to cheat."""
    [(ledger_id,)] = connection.execute("SELECT ledger_id FROM ledger").fetchall()
    link = hashlib.sha256(b"spotledger ledger " + ledger_id.encode()).digest()
    for seq, body in connection.execute("SELECT seq, body FROM entry ORDER BY seq").fetchall():
        link = hashlib.sha256(link + body.encode()).digest()
        connection.execute("UPDATE entry SET hash = ? WHERE seq = ?", (link, seq))
    for table in ("head", "backup"):
        connection.execute(f"UPDATE {table} SET hash = ?", (link,))


@contextmanager
def disk_of(place: Path, kib: int) -> Iterator[Path]:
    """Give a new folder on a file system of *kib* KiB of its own; only root may mount one."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.call(mount, stderr=subprocess.DEVNULL):
        if os.environ.get("CI") == "true":
            pytest.fail("a small file system is needed, and this machine lets nobody mount one")
        pytest.skip("only root can mount a small file system to fill")
    try:
        yield place
    finally:
        subprocess.check_call(["umount", "-l", str(place)])
