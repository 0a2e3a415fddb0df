"""
The access log of a service: once a second, what the listeners counted is written to ``access-log.db``.

The event loop only hands over a dictionary; a thread does the rest. What cannot be written is kept, as far as memory is
set aside for it, and tried again each second; beyond that it is counted as dropped. The service goes on in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from spotledger.errors import LedgerCorrupt, SpotledgerError, StoreUnavailable
from spotledger.os_errors import reason_of
from spotledger.security.access_log import MINUTE_MS, Access, AccessCounts, AccessFilter, AccessLine, MinuteLines
from spotledger.storage.credentials.access_log import AccessLogFile, check_access_log, read_access_log

#: How often what was counted is written; a process that is killed loses that much.
WRITE_SECONDS: Final = 1.0
#: Counts that wait for the thread, and lines that could not be written, at most; more are dropped.
WAITING_COUNTS: Final = 100_000
WAITING_LINES: Final = 200_000
#: How long a stop waits for the disk.
STOP_SECONDS: Final = 5.0
DAY_MS: Final = 24 * 3_600_000
MIB_BYTES: Final = 1024 * 1024

_log = logging.getLogger("spotledger.access")


class AccessLog:
    """The access log of one process; the workers of a machine write to one file."""

    def __init__(self, folder: Path, clock_ms: Callable[[], int], *, days: int, mib: int) -> None:
        """
        Prepare the log in *folder*; nothing is opened before there is something to write.

        Args:
            folder: The data folder.
            clock_ms: Returns the time in ms since 1970.
            days: How long lines are kept.
            mib: How large the file may become.

        Raises:
            FileUnusable: The file is a link, or somebody else's, or others may write to it.
        """
        check_access_log(folder)
        self.counts = AccessCounts()
        #: Lines that were written, and attempts to write that failed.
        self.written_lines = 0
        self.failures = 0
        self._dropped_counts = 0
        self._dropped_lines = 0
        #: Why the last attempt to write failed; None if it did not.
        self.failure: str | None = None
        self._folder = folder
        self._clock_ms = clock_ms
        self._days = days
        self._limit_bytes = mib * MIB_BYTES
        self._minute_ms = self._minute_now()
        #: What was counted in which minute, while the thread is busy.
        self._waiting: list[tuple[int, dict[Access, int]]] = []
        self._minutes: dict[int, MinuteLines] = {}
        self._file: AccessLogFile | None = None
        #: The minute in which old lines were removed, and the file was synced, last.
        self._kept_minute_ms = 0
        self._thread = ThreadPoolExecutor(1, "access-log")
        self._writing: asyncio.Future[None] | None = None
        self._reading = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    @property
    def dropped(self) -> int:
        """How many accesses are in no line, because they could not be written for too long."""
        return self._dropped_counts + self._dropped_lines

    # --- on the event loop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to write once a second."""
        self._task = asyncio.get_running_loop().create_task(self._keep_writing())

    async def stop(self) -> None:
        """Write what is left, and close the file; what is counted later is not written."""
        if self._is_stopped:
            return
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.flush()
                await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        except TimeoutError:
            _log.error("the access log could not be written within %g s; its end is lost", STOP_SECONDS)
        self._is_stopped = True
        self._thread.shutdown(wait=False)

    async def flush(self) -> None:
        """Write what was counted until now, if it can be written."""
        if self._is_stopped:
            return
        while self._writing is not None and not self._writing.done():
            await asyncio.shield(self._writing)
        self._hand_over()
        if self._writing is not None:
            await asyncio.shield(self._writing)

    async def page(self, wanted: AccessFilter, after: int, limit: int) -> list[AccessLine]:
        """
        Return at most *limit* lines after the line *after*, those of this process up to now.

        Raises:
            StoreUnavailable: The log cannot be read.
        """
        await self.flush()
        async with self._reading:  # a page may be a long search, and nobody needs several at a time
            try:
                return await asyncio.to_thread(read_access_log, self._folder, wanted, after, limit)
            except (SpotledgerError, LedgerCorrupt, OSError) as problem:
                raise StoreUnavailable(f"The access log cannot be read: {_text(problem)}") from problem

    async def _keep_writing(self) -> None:
        while True:
            # Not beyond the end of the minute, so that what is counted belongs to one minute.
            await asyncio.sleep(min(WRITE_SECONDS, (MINUTE_MS - self._clock_ms() % MINUTE_MS) / 1000))
            self._hand_over()

    def _hand_over(self) -> None:
        """Hand what was counted to the thread, unless that is still busy with what it has."""
        minute_ms, self._minute_ms = self._minute_ms, self._minute_now()
        taken = self.counts.take()
        if len(taken) + sum(len(counts) for _, counts in self._waiting) > WAITING_COUNTS:
            self._dropped_counts += sum(taken.values())
        elif taken:
            self._waiting.append((minute_ms, taken))
        if self._writing is None or self._writing.done():
            waiting, self._waiting = self._waiting, []
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._thread, self._write, waiting, self._minute_ms)

    def _minute_now(self) -> int:
        now_ms = self._clock_ms()
        return now_ms - now_ms % MINUTE_MS

    # --- in the thread ------------------------------------------------------------------------------

    def _write(self, waiting: list[tuple[int, dict[Access, int]]], minute_ms: int) -> None:
        """Write *waiting*, and what could not be written before; *minute_ms* is the minute that runs. Never raises."""
        try:
            self._gather(waiting)
            self._write_lines(minute_ms)
        except (SpotledgerError, LedgerCorrupt, OSError) as problem:
            self._failed(_text(problem))
        except Exception as problem:  # noqa: BLE001 - the service goes on whatever happens to its access log
            self._failed(f"unexpected {type(problem).__name__}")

    def _gather(self, waiting: list[tuple[int, dict[Access, int]]]) -> None:
        """Make lines of what waits; drop the oldest if there are too many that could not be written."""
        for minute_ms, counts in waiting:
            minute = self._minutes.get(minute_ms)
            if minute is None:
                minute = self._minutes[minute_ms] = MinuteLines(minute_ms)
            minute.add(counts)
        while len(self._minutes) > 1 and sum(map(len, self._minutes.values())) > WAITING_LINES:
            oldest = self._minutes.pop(min(self._minutes))
            self._dropped_lines += sum(line.count - line.written for line in oldest.unwritten())

    def _write_lines(self, minute_ms: int) -> None:
        lines = [line for minute in self._minutes.values() for line in minute.unwritten()]
        file = self._file_in_place() if lines or self._file is not None else None
        if file is None:
            return  # nothing was ever counted
        if lines:
            self.written_lines += file.append(lines)
            file.fit_into(self._limit_bytes)
        if minute_ms != self._kept_minute_ms:
            file.remove_before(minute_ms - self._days * DAY_MS)
            file.sync()
            self._kept_minute_ms = minute_ms
        for past_ms in [past_ms for past_ms in self._minutes if past_ms < minute_ms]:
            del self._minutes[past_ms]
        if self.failure is not None:
            _log.info("the access log is written again")
            self.failure = None

    def _file_in_place(self) -> AccessLogFile:
        """Return the file, open; open it again if another one is in its place."""
        if self._file is not None and not self._file.is_in_place():
            _log.warning("the access log was moved or removed; another file is begun")
            self._close()
        if self._file is None:
            self._file = AccessLogFile(self._folder)
        return self._file

    def _failed(self, reason: str) -> None:
        self.failures += 1
        if self.failure != reason:
            _log.error("the access log is not written, and it is tried again each second: %s", reason)
        self.failure = reason
        self._close()

    def _close(self) -> None:
        """Close the file, and forget where lines are in it: the next one may be another."""
        file, self._file = self._file, None
        for minute in self._minutes.values():
            minute.forget_places()
        if file is not None:
            with contextlib.suppress(SpotledgerError, LedgerCorrupt):
                file.close()


def _text(problem: BaseException) -> str:
    return reason_of(problem) if isinstance(problem, OSError) else str(problem)
