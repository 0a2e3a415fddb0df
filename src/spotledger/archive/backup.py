"""Backups of a ledger that is in use: one file each, made while writes go on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import (
    InvalidRequest,
    LedgerCorrupt,
    LedgerDamaged,
    NotFound,
    SetupError,
    SpotledgerError,
    StoreBusy,
    StoreUnavailable,
)
from spotledger.ledger.ledger import Ledger
from spotledger.storage.atomic_file import check_new, move, write_atomically
from spotledger.storage.folder import make_folder
from spotledger.storage.sqlite.copy import BackupFacts, mark_as_backup, read_facts

#: In the data folder: where a server puts backups that it is asked for. May be a link to another disk.
BACKUPS_FOLDER: Final = "backups"
NAME_PATTERN: Final = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
_NAME = re.compile(rf"\A{NAME_PATTERN}\Z")

Progress = Callable[[int, int], None]


def back_up(
    ledger: Ledger, file: Path, clock_ms: Callable[[], int], progress: Progress = lambda left, entries: None
) -> BackupFacts:
    """
    Make a backup of *ledger* in the new file *file*; writes go on meanwhile, and those acknowledged are in it.

    Blocks until it is on the disk; in a server, call it in a thread of its own.

    Args:
        ledger: The open ledger.
        file: A name that is not taken, in a folder that is there.
        clock_ms: The time in milliseconds since 1970.
        progress: Called between steps with the entries that are left and the entries in all; may raise to stop it.

    Returns:
        What the backup holds: the ledger as it stood at the end of the copying, or shortly before that.

    Raises:
        InvalidRequest: *file* is there already, or its folder is not.
        StoreUnavailable: The disk is full, or answers with an error; nothing is left under the name.
        LedgerCorrupt: The ledger is damaged.
    """
    with write_atomically(file, "backup") as partial:
        ledger.copy_to(partial, progress)
        return mark_as_backup(partial, clock_ms())


def check_place(file: Path) -> None:
    """
    Check, before a backup is made, that it can be called *file*.

    Raises:
        InvalidRequest: There is a file of that name, or no folder for it.
    """
    check_new(file)


def hand_over(data: Path, name: str, file: Path) -> None:
    """
    Move the backup *name* out of the data folder *data* to *file*, which may be on another disk.

    Raises:
        InvalidRequest: *file* is there already, or the backup may not be read.
        StoreUnavailable: The disk is full, or answers with an error; the backup stays where it is.
    """
    move(data / BACKUPS_FOLDER / name, file, "backup")


def facts_json(facts: BackupFacts) -> dict[str, Any]:
    """Return what a backup holds as JSON has it: the hash in hex."""
    return {**facts._asdict(), "hash": facts.hash.hex()}


class Stopped(Exception):
    """The service is stopping, and the backup that is being made with it."""


class _Running(NamedTuple):
    name: str
    task: asyncio.Task[BackupFacts]
    progress: list[int]


class Backups:
    """The backups of a running service, in one folder; one is made at a time."""

    def __init__(self, ledger: Ledger, folder: Path, clock_ms: Callable[[], int]) -> None:
        """Make backups of *ledger* in *folder*, which is made when it is needed."""
        self._ledger = ledger
        self._folder = folder
        self._clock_ms = clock_ms
        self._running: _Running | None = None
        self._failed: dict[str, SpotledgerError] = {}
        self._stopping = threading.Event()

    async def make(self, name: str | None, wait_seconds: float) -> dict[str, Any]:
        """
        Make the backup *name*, and wait for it at most *wait_seconds*; it goes on after that.

        Asking for the one that is being made joins it. Without a name it is called after the time.

        Returns:
            The state, as :meth:`state` says it.

        Raises:
            InvalidRequest: *name* cannot be the name of a backup, or is taken.
            StoreBusy: Another backup is being made.
            StoreUnavailable: It could not be written.
            LedgerDamaged: The ledger is damaged.
        """
        if self._stopping.is_set():
            raise StoreBusy("the service is stopping; ask it again once it runs")
        running = self._running
        if running is None:
            running = self._begin(self._name_of_now() if name is None else _checked(name))
        elif name != running.name:
            raise StoreBusy(f"the backup {running.name} is being made; one is made at a time, so ask again later")
        await asyncio.wait({running.task}, timeout=wait_seconds)
        return self.state(running.name)

    def state(self, name: str) -> dict[str, Any]:
        """
        Return what there is of the backup *name*: its ``state``, ``"running"`` or ``"done"``, and what it holds.

        Raises:
            NotFound: There is none of this name.
            StoreUnavailable: It could not be made.
            LedgerDamaged: The ledger is damaged.
            InvalidRequest: The file is damaged, or is no backup.
        """
        running = self._running
        if running is not None and running.name == name:
            left, entries = running.progress
            return {"file": name, "state": "running", "pages_left": left, "pages": entries}
        if name in self._failed:
            raise self._failed[name]
        file = self._folder / _checked(name)
        if not file.is_file():
            raise NotFound("There is no backup of this name.")
        try:
            facts = read_facts(file)
        except SetupError as error:
            raise InvalidRequest(error.message, field="file") from error
        return {"file": name, "state": "done", **facts_json(facts), "bytes": file.stat().st_size}

    async def stop(self) -> None:
        """Give up the backup that is being made; nothing of it is left."""
        self._stopping.set()
        if self._running is not None:
            await asyncio.wait({self._running.task})

    def _begin(self, name: str) -> _Running:
        make_folder(self._folder, may_be_link=True)
        file = self._folder / name
        check_new(file)
        self._failed.pop(name, None)
        progress = [0, 0]

        def note(left: int, entries: int) -> None:
            progress[:] = left, entries
            if self._stopping.is_set():
                raise Stopped

        making = asyncio.to_thread(back_up, self._ledger, file, self._clock_ms, note)
        self._running = _Running(name, asyncio.create_task(making), progress)
        self._running.task.add_done_callback(self._end)
        return self._running

    def _end(self, task: asyncio.Task[BackupFacts]) -> None:
        assert self._running is not None, "the task that ends is the one that runs"  # noqa: S101
        name, self._running = self._running.name, None
        if task.cancelled():
            return
        match task.exception():
            case None:
                return
            case SetupError() as error:
                self._failed = {name: StoreUnavailable(f"the backup was not made: {error}")}
            case SpotledgerError() as error:
                self._failed = {name: error}
            case LedgerCorrupt() as error:
                self._failed = {name: LedgerDamaged(f"The ledger is damaged, so no backup was made: {error}.")}
            case error:
                self._failed = {name: StoreUnavailable(f"the backup was not made: {type(error).__name__}")}

    def _name_of_now(self) -> str:
        return f"{datetime.fromtimestamp(self._clock_ms() / 1000, UTC):%Y%m%dT%H%M%S.%fZ}.backup"


def _checked(name: str) -> str:
    if not _NAME.match(name):
        raise InvalidRequest(
            f"file is {name[:64]!r}; 1 to 128 of A-Z a-z 0-9 . _ - would pass, beginning with a letter or digit: the"
            f" file is made in the folder {BACKUPS_FOLDER} of the data folder",
            field="file",
        )
    return name
