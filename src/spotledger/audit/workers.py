"""
Processes that read ahead for an audit: each reads ranges of segments, see :mod:`spotledger.audit.ranges`.

A worker gets ranges on its standard input, one a line. It answers each on its standard output with a length and the
marshalled result; the length is 0 if the range is not sound. Keys go to an unnamed temporary file that the audit made,
so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import marshal
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final

from spotledger.audit.child import run_child
from spotledger.audit.keys import KeySpool
from spotledger.audit.ranges import RangeRead, RangeReader
from spotledger.storage.folder import environ_of_child
from spotledger.storage.sqlite.audit import AuditFile
from spotledger.storage.sqlite.raw import Unreadable

#: A range is as many whole segments as fit into this many entries, and at least one.
RANGE_ENTRIES: Final = 65_536
#: How many ranges each process may be ahead of the range that is joined.
AHEAD_RANGES: Final = 2
#: How often a caller that waits for a range gets the control back.
WAIT_SECONDS: Final = 0.2
#: How long a process that stopped answering may take to exit by itself, so that its exit code says why.
ENDING_SECONDS: Final = 1.0
_LENGTH_BYTES: Final = 8


def ranges_of(sealed_to: int, segment_entries: int) -> list[range]:
    """Return the whole segments up to the entry *sealed_to*, as ranges of segment numbers."""
    count = max(0, sealed_to) // segment_entries
    size = max(1, RANGE_ENTRIES // segment_entries)
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


class Ahead:
    """The ranges of a ledger in order, read ahead by several processes."""

    def __init__(self, path: Path, processes: int, ranges: list[range], segment_entries: int) -> None:
        """
        Start the processes.

        Args:
            path: The ledger file.
            processes: How many to start.
            ranges: The segments of each range, in order.
            segment_entries: The number of entries in a segment.

        Raises:
            OSError: A process cannot be started.
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
        """End the processes, and delete their temporary files."""
        for worker in self._workers:
            worker.end()
        self._pool.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.spool.close()

    def begins_after(self, seq: int) -> bool:
        """Say whether the next range begins with the entry after *seq*."""
        return bool(self._begun) and self._begun[0][0][0] * self._segment_entries == seq

    def next_range(self) -> Iterator[tuple[RangeRead, int] | None]:
        """
        Yield None while the next range is being read, then its result and the file descriptor of its keys.

        The last step is left out if the range is not sound.

        Raises:
            Unreadable: The process that read the range ended.
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
            yield RangeRead(*marshal.loads(answer)), descriptor  # noqa: S302 - written by our own process

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
                f"entries {first} to {last}: the process that read them ended early, with code {code}"
            ) from problem
        finally:
            self._idle.put(worker)


class _Worker:
    """One process, from the side of the audit."""

    def __init__(self, path: Path) -> None:
        self.spool = KeySpool()
        descriptor = self.spool.descriptor
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", __name__, str(path), str(descriptor)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[descriptor],
                env=environ_of_child(),
            )  # fmt: skip
        except BaseException:
            self.spool.close()
            raise
        if self._process.stdin is None or self._process.stdout is None:
            raise OSError("no pipes to the process")
        self._asks, self._answers = self._process.stdin, self._process.stdout

    def ask(self, segments: range) -> bytes:
        """Let the process read *segments*, and return its answer; raises OSError or EOFError if it has ended."""
        self._asks.write(f"{segments[0]} {segments[-1]}\n".encode())
        self._asks.flush()
        return self._read(int.from_bytes(self._read(_LENGTH_BYTES)))

    def _read(self, count: int) -> bytes:
        data = self._answers.read(count)
        if len(data) < count:
            raise EOFError(f"{len(data)} bytes instead of {count}")
        return data

    def end(self, patience_seconds: float = 0.0) -> int:
        """Kill the process unless it exits within *patience_seconds*, and return its exit code."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_seconds)
        self._process.kill()
        code = self._process.wait()
        with suppress(OSError):
            self._asks.close()
        self._answers.close()
        return code


def main(path: str, descriptor: str) -> None:
    """Run a worker: answer requests until standard input ends."""
    run_child(lambda: _serve(Path(path), KeySpool(int(descriptor))))


def _serve(path: Path, spool: KeySpool) -> None:
    try:
        with AuditFile(path) as file:
            _answer_all(RangeReader(file, file.journal.ledger(), spool))
    except BrokenPipeError:
        raise
    except Exception:  # noqa: BLE001 - the audit finds the cause when it reads the ranges in order
        _answer_all(None)


def _answer_all(reader: RangeReader | None) -> None:
    for line in sys.stdin.buffer:
        first, last = line.split()
        answer = b""
        if reader is not None:
            # The audit finds the cause when it reads the range in order.
            with suppress(Exception):
                answer = marshal.dumps(tuple(reader.read(range(int(first), int(last) + 1))))
        sys.stdout.buffer.write(len(answer).to_bytes(_LENGTH_BYTES) + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
