"""
Reading ahead for an audit, in processes of their own: each reads ranges of segments as :mod:`audit_ranges` does.

A worker is told ranges on its standard input, one a line, and answers each on its standard output with its length and
what it read, marshalled; nothing at all where the range is not sound. The keys go to a temporary file that the audit
has made and that has no name, so nothing stays of a worker that dies.
"""

from __future__ import annotations

import gc
import marshal
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from spotledger.audit.keys import KeySpool
from spotledger.audit.ranges import RangeRead, RangeReader
from spotledger.storage.folder import VARIABLE_PREFIX
from spotledger.storage.sqlite.audit import AuditFile
from spotledger.storage.sqlite.raw import Unreadable

#: A range is as many whole segments as fit into so many entries, and at least one.
RANGE_ENTRIES: Final = 65_536
#: Ranges that are read or being read ahead of the one that is joined, for each process.
AHEAD_RANGES: Final = 2
#: How often one who waits for a range says that he is still there.
WAIT_SECONDS: Final = 0.2
#: How long a process that answers no more may take to end by itself, so that its exit code says why.
ENDING_SECONDS: Final = 1.0
_LENGTH_BYTES: Final = 8


def ranges_of(sealed_to: int, segment_entries: int) -> list[range]:
    """Return the whole segments up to the entry *sealed_to*, cut into ranges."""
    count = max(0, sealed_to) // segment_entries
    size = max(1, RANGE_ENTRIES // segment_entries)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


class Ahead:
    """The ranges of a ledger in order, read ahead by some processes."""

    def __init__(self, path: Path, processes: int, ranges: list[range], segment_entries: int) -> None:
        """
        Start the processes; raises OSError where that cannot be done.

        Args:
            path: The ledger file.
            processes: How many read at once.
            ranges: The segments of each range, in order.
            segment_entries: Entries of a segment.
        """
        self._segment_entries = segment_entries
        self._waiting = deque(ranges)
        self._begun: deque[tuple[range, Future[tuple[int, bytes]]]] = deque()
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._pool = ThreadPoolExecutor(processes)
        try:
            for _ in range(processes):
                worker = _Worker(path)
                self._workers.append(worker)
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise
        self._begin()

    def close(self) -> None:
        """End the processes; their temporary files are gone afterwards."""
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.spool.close()

    def begins_after(self, seq: int) -> bool:
        """Say whether the next range begins right after the entry *seq*."""
        return bool(self._begun) and self._begun[0][0][0] * self._segment_entries == seq

    def next_range(self) -> Iterator[tuple[RangeRead, int] | None]:
        """
        Give None again and again while the next range is being read, and at last what was read of it.

        With it goes the file that its keys are in. Nothing at all is given of a range that is not sound.

        Raises:
            Unreadable: The process that read it has ended.
        """
        _, future = self._begun[0]
        while True:
            with suppress(TimeoutError):
                descriptor, answer = future.result(WAIT_SECONDS)
                break
            yield None
        self._begun.popleft()
        self._begin()
        if answer:
            yield RangeRead(*marshal.loads(answer)), descriptor  # noqa: S302 - our own process has written it

    def _begin(self) -> None:
        while self._waiting and len(self._begun) < AHEAD_RANGES * len(self._workers):
            segments = self._waiting.popleft()
            self._begun.append((segments, self._pool.submit(self._ask, segments)))

    def _ask(self, segments: range) -> tuple[int, bytes]:
        worker = self._idle.get()
        try:
            return worker.spool.descriptor, worker.ask(segments)
        except (OSError, EOFError) as problem:
            first, last = segments[0] * self._segment_entries + 1, (segments[-1] + 1) * self._segment_entries
            code = worker.end(ENDING_SECONDS)
            raise Unreadable(
                f"entries {first} to {last}: the process that read them ended early, with {code}"
            ) from problem
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, as the audit sees it."""

    def __init__(self, path: Path) -> None:
        self.spool = KeySpool()
        # It needs none of our secrets.
        environ = {name: value for name, value in os.environ.items() if not name.startswith(VARIABLE_PREFIX)}
        descriptor = self.spool.descriptor
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__, str(path), str(descriptor)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor], env=environ,
            )  # fmt: skip
        except BaseException:
            self.spool.close()
            raise
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes to the process")
        self._asks, self._answers = self._process.stdin, self._process.stdout

    def ask(self, segments: range) -> bytes:
        """Have *segments* read, and return the answer; raises OSError or EOFError where the process has ended."""
        self._asks.write(f"{segments[0]} {segments[-1]}\n".encode())
        self._asks.flush()
        return self._read(int.from_bytes(self._read(_LENGTH_BYTES)))

    def _read(self, count: int) -> bytes:
        data = self._answers.read(count)
        if len(data) < count:
            raise EOFError(f"{len(data)} bytes instead of {count}")
        return data

    def end(self, patience_seconds: float = 0.0) -> int:
        """End the process, if it has not ended by itself after *patience_seconds*, and return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_seconds)
        self._process.kill()
        code = self._process.wait()
        with suppress(OSError):
            self._asks.close()
        self._answers.close()
        return code


def main(path: str, descriptor: str) -> None:
    """Be a worker: read what is asked for until nobody asks any more."""
    gc.disable()  # what a range makes has no circles, and there is much of it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the audit is told, and ends us
    with suppress(BrokenPipeError):
        spool = KeySpool(int(descriptor))
        try:
            with AuditFile(Path(path)) as file:
                _answer_all(RangeReader(file, file.journal.ledger(), spool))
        except Exception:  # noqa: BLE001 - the audit finds it when it reads the ranges in order
            _answer_all(None)
        return
    os._exit(1)  # the audit is gone; nothing is left to be flushed


def _answer_all(reader: RangeReader | None) -> None:
    for line in sys.stdin.buffer:
        first, last = line.split()
        answer = b""
        if reader is not None:
            # Whatever is in the way of this one, the audit finds it when it reads the range in order.
            with suppress(Exception):
                answer = marshal.dumps(tuple(reader.read(range(int(first), int(last) + 1))))
        sys.stdout.buffer.write(len(answer).to_bytes(_LENGTH_BYTES) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
