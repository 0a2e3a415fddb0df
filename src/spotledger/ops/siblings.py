"""
What the workers of one machine let each other know: memory that their parent shares with all that it forks.

A worker writes its own pages and reads those of the others, so whichever is asked can answer for all: with the numbers
of each, and for an audit that another one began. What only one of them may do at a time is done by who has their turn.
Nothing goes over a network or to a disk.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import mmap
import os
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Room for one document; memory is taken only as far as it is written.
PAGE_BYTES: Final = 4 * 1024 * 1024
#: How often a worker says how it is, and from when on it counts as one that does not.
TELL_SECONDS: Final = 1.0
FRESH_SECONDS: Final = 5.0
#: How often a document is read again that was written just then.
READ_ATTEMPTS: Final = 100
#: How often a worker looks again whether another one's turn is over.
TURN_PAUSE_SECONDS: Final = 0.001

#: When it was written, by the clock that all processes of a machine share; its length and its checksum.
_HEAD: Final = struct.Struct("=dII")
_log = logging.getLogger("spotledger.workers")


class Page:
    """One JSON document in shared memory: written by one process at a time, read by any."""

    def __init__(self) -> None:
        """Make it, empty; processes that are forked after that share it."""
        self._memory = mmap.mmap(-1, PAGE_BYTES)

    def clear(self) -> None:
        """Take away what is there."""
        self._memory[: _HEAD.size] = bytes(_HEAD.size)

    def write(self, document: object) -> bool:
        """Put *document* in place of what was there; return False, and leave that, where it is too long."""
        body = json.dumps(document, separators=(",", ":")).encode()
        if _HEAD.size + len(body) > PAGE_BYTES:
            return False
        now_s = time.monotonic()
        self._memory[: _HEAD.size + len(body)] = _HEAD.pack(now_s, len(body), _checksum(now_s, body)) + body
        return True

    def read(self) -> tuple[float, Any] | None:
        """Return how many seconds ago something was written, and what; None where there is nothing."""
        for _ in range(READ_ATTEMPTS):
            written_s, length, checksum = _HEAD.unpack(self._memory[: _HEAD.size])
            if not length:
                return None
            body = self._memory[_HEAD.size : _HEAD.size + length]
            if _checksum(written_s, body) == checksum:
                return time.monotonic() - written_s, json.loads(body)
        return None  # its writer was killed in the middle of it


class ProcessLock:
    """
    What one process has at a time, of those that were forked after it was made.

    The system takes it back from a process that ends, however it ends.
    """

    def __init__(self) -> None:
        """Make it; nobody has it."""
        # A lock of the usual kind in shared memory would stay taken by a process that was killed.
        self._file = os.memfd_create("lock")

    def __del__(self) -> None:
        os.close(self._file)

    def take(self) -> bool:
        """Try to have it; return whether this process has it now."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # a system says one or the other where another process has it
            return False
        return True

    def give_up(self) -> None:
        """Let another process have it; where this one has not got it, nothing happens."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def _checksum(written_s: float, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("=d", written_s)))


class Siblings:
    """
    The workers of one machine, each known by its number.

    The parent makes it before it forks; a worker calls :meth:`be` first.
    """

    def __init__(self, workers: int) -> None:
        """Make the pages of so many workers."""
        self.workers = workers
        self.number = 0
        self._tells: Callable[[], Any] | None = None
        self._metrics = [Page() for _ in range(workers)]
        self._audits = [Page() for _ in range(workers)]
        self._lock = ProcessLock()
        self._task: asyncio.Task[None] | None = None

    def start_as(self, number: int) -> None:
        """Be the worker *number*, from its beginning: what the one before it had said is gone."""
        self.number = number
        self._metrics[number].clear()
        self._audits[number].clear()

    def tell_by(self, tells: Callable[[], Any]) -> None:
        """Tell the others what *tells* returns, now and then: how this worker is, as numbers for Prometheus."""
        self._tells = tells
        self._tell()

    async def start(self) -> None:
        """Begin to tell the others how this worker is."""
        self._task = asyncio.get_running_loop().create_task(self._tell_now_and_then())

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _tell_now_and_then(self) -> None:
        while True:
            try:
                self._tell()
            except Exception as problem:  # noqa: BLE001 - it is tried again; serving goes on
                _log.error("the numbers of worker %d could not be told: %s", self.number, problem)
            await asyncio.sleep(TELL_SECONDS)

    def _tell(self) -> None:
        if self._tells is not None and not self._metrics[self.number].write(self._tells()):
            _log.error("the numbers of worker %d are too long for the others to show", self.number)

    def metrics(self) -> dict[int, Any]:
        """Return what the other workers that are alive said of themselves a moment ago, by their numbers."""
        read = {number: page.read() for number, page in enumerate(self._metrics) if number != self.number}
        return {number: said[1] for number, said in read.items() if said is not None and said[0] <= FRESH_SECONDS}

    def tell_audits(self, audits: list[dict[str, Any]]) -> None:
        """Let the others know of the audits of this worker, the oldest first; of as many as there is room for."""
        while not self._audits[self.number].write(audits):
            audits = audits[1:]

    def audits(self) -> list[dict[str, Any]]:
        """Return the audits of the other workers that are alive."""
        read = [self._audits[number].read() for number in self.metrics()]
        return [audit for said in read if said is not None for audit in said[1]]

    async def with_lock(self, do: Callable[[], T]) -> T:
        """
        Return what *do* does, while no other worker does anything of that kind; it has to be short.

        A worker that stands still in the middle of it is waited for until it counts as down, and not longer.
        """
        until_s = time.monotonic() + FRESH_SECONDS
        while not self._lock.take() and time.monotonic() < until_s:
            await asyncio.sleep(TURN_PAUSE_SECONDS)
        # Without waiting: the turn is the process's, and would not keep another task of it out.
        try:
            return do()
        finally:
            self._lock.give_up()
