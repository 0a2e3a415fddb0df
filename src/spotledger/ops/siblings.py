"""
Memory that the workers of one machine share: their parent makes it before it forks them.

Each worker writes its own pages and reads those of the others, so any worker can answer for all: with the metrics of
each, and about an audit that another one began. A lock protects what only one worker may do at a time. Nothing goes
over a network or to disk.
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

from spotledger.security.worker_uses import WorkerUses

T = TypeVar("T")

#: The size of a page; memory is used only as far as it is written.
PAGE_BYTES: Final = 4 * 1024 * 1024
#: How often a worker publishes its metrics, and after which time without them it counts as down.
PUBLISH_SECONDS: Final = 1.0
FRESH_SECONDS: Final = 5.0
#: How often to read a page again that is being written.
READ_ATTEMPTS: Final = 100
#: How often to try a lock again that another worker holds.
LOCK_RETRY_SECONDS: Final = 0.001

#: When the page was written (monotonic, the same clock in all processes of a machine), its length and checksum.
_HEAD: Final = struct.Struct("=dII")
_log = logging.getLogger("spotledger.workers")


class SharedPage:
    """One JSON document in shared memory: one process at a time writes it, any may read it."""

    def __init__(self) -> None:
        """Make an empty page, which processes that are forked later share."""
        self._memory = mmap.mmap(-1, PAGE_BYTES)

    def clear(self) -> None:
        """Remove the document."""
        self._memory[: _HEAD.size] = bytes(_HEAD.size)

    def write(self, document: object) -> bool:
        """Replace the document and return True; if the new one is too long, keep the old one and return False."""
        body = json.dumps(document, separators=(",", ":")).encode()
        if _HEAD.size + len(body) > PAGE_BYTES:
            return False
        now_s = time.monotonic()
        self._memory[: _HEAD.size + len(body)] = _HEAD.pack(now_s, len(body), _checksum(now_s, body)) + body
        return True

    def read(self) -> tuple[float, Any] | None:
        """Return the age of the document in seconds, and the document; None if there is none."""
        for _ in range(READ_ATTEMPTS):
            written_s, length, checksum = _HEAD.unpack(self._memory[: _HEAD.size])
            if not length:
                return None
            body = self._memory[_HEAD.size : _HEAD.size + length]
            if _checksum(written_s, body) == checksum:
                return time.monotonic() - written_s, json.loads(body)
        return None  # its writer was killed while writing


class ProcessLock:
    """
    A lock that one process at a time holds, of those that were forked after it was made.

    The system releases it when its holder ends, however it ends.
    """

    def __init__(self) -> None:
        """Make the lock, released."""
        # A lock in shared memory would stay locked by a process that was killed.
        self._file = os.memfd_create("lock")

    def __del__(self) -> None:
        os.close(self._file)

    def try_acquire(self) -> bool:
        """Try to acquire the lock without waiting; return whether this process holds it now."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # systems differ in how they say that another process holds it
            return False
        return True

    def release(self) -> None:
        """Release the lock; do nothing if this process does not hold it."""
        fcntl.lockf(self._file, fcntl.LOCK_UN)


def _checksum(written_s: float, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(struct.pack("=d", written_s)))


class Siblings:
    """
    The workers of one machine, each identified by its number.

    The parent makes it before it forks; a worker calls :meth:`start_as` first.
    """

    def __init__(self, workers: int) -> None:
        """Make the pages of this many workers."""
        self.workers = workers
        self.number = 0
        self._own_metrics: Callable[[], Any] | None = None
        self._metrics = [SharedPage() for _ in range(workers)]
        self._audits = [SharedPage() for _ in range(workers)]
        self._lock = ProcessLock()
        self._found_new = mmap.mmap(-1, 1)
        #: The signed requests that the workers admitted.
        self.uses = WorkerUses(workers)
        self._task: asyncio.Task[None] | None = None

    def start_as(self, number: int) -> None:
        """Start as worker *number*; clear its predecessor's pages."""
        self.number = number
        self.uses.start_as(number)
        self._metrics[number].clear()
        self._audits[number].clear()

    def note_new_ledger(self) -> None:
        """Note that this worker, the first one, made the ledger."""
        self._found_new[0] = 1

    @property
    def serves_new_ledger(self) -> bool:
        """Whether a worker made the ledger since the parent started."""
        return self._found_new[0] == 1

    def publish_metrics(self, own_metrics: Callable[[], Any]) -> None:
        """Publish what *own_metrics* returns, the metrics of this worker, now and every second once started."""
        self._own_metrics = own_metrics
        self._publish()

    async def start(self) -> None:
        """Begin to publish the metrics of this worker every second."""
        self._task = asyncio.get_running_loop().create_task(self._keep_publishing())

    async def stop(self) -> None:
        """Stop publishing."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _keep_publishing(self) -> None:
        while True:
            try:
                self._publish()
            except Exception as problem:  # noqa: BLE001 - it is tried again, and the worker keeps serving
                _log.error("the metrics of worker %d could not be published: %s", self.number, problem)
            await asyncio.sleep(PUBLISH_SECONDS)

    def _publish(self) -> None:
        if self._own_metrics is not None and not self._metrics[self.number].write(self._own_metrics()):
            _log.error("the metrics of worker %d are too long to be published", self.number)

    def metrics(self) -> dict[int, Any]:
        """Return the latest metrics of the other workers that are alive, by number."""
        read = {number: page.read() for number, page in enumerate(self._metrics) if number != self.number}
        return {number: found[1] for number, found in read.items() if found is not None and found[0] <= FRESH_SECONDS}

    def publish_audits(self, audits: list[dict[str, Any]]) -> None:
        """Publish the audits of this worker, oldest first; if they are too long, without the oldest."""
        while not self._audits[self.number].write(audits):
            audits = audits[1:]

    def audits(self) -> list[dict[str, Any]]:
        """Return the audits of the other workers that are alive."""
        read = [self._audits[number].read() for number in self.metrics()]
        return [audit for found in read if found is not None for audit in found[1]]

    async def with_lock(self, act: Callable[[], T]) -> T:
        """
        Call *act*, which has to be short, while no other worker calls anything with the lock; return its result.

        If the holder of the lock does not release it within ``FRESH_SECONDS``, it counts as down, and *act* is called.
        """
        until_s = time.monotonic() + FRESH_SECONDS
        while not self._lock.try_acquire() and time.monotonic() < until_s:
            await asyncio.sleep(LOCK_RETRY_SECONDS)
        # Synchronous, because the lock is the process's and does not keep out its other tasks.
        try:
            return act()
        finally:
            self._lock.release()
