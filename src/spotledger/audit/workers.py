"""
Processes that read ahead for an audit: each reads ranges of segments, see :mod:`spotledger.audit.ranges`.

The audit reads too, in order. So the processes leave ranges to it that it will have come to while they read the ones
behind. Ranges that are read are joined when the audit comes to them.

A worker gets ranges on its standard input, one a line. It answers each on its standard output with a length and the
marshalled result; the length is 0 if the range is not sound. Keys go to an unnamed temporary file that the audit made,
so a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import marshal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final, NamedTuple

from spotledger.audit.child import run_child
from spotledger.audit.keys import KeySpool
from spotledger.audit.ranges import RangeRead, RangeReader
from spotledger.audit.source import Source
from spotledger.storage.folder import environ_of_child
from spotledger.storage.sqlite.raw import Unreadable

#: A range is as many whole segments as fit into this many entries, and at least one.
RANGE_ENTRIES: Final = 65_536
#: How many ranges each process may have read that the audit has not come to.
AHEAD_RANGES: Final = 3
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


class FoundAhead(NamedTuple):
    """A range that was read ahead, and the file descriptor of its keys."""

    read: RangeRead
    descriptor: int


class Ahead:
    """The ranges of a ledger in order, read ahead by several processes."""

    def __init__(self, program: Sequence[str], processes: int, ranges: list[range], segment_entries: int) -> None:
        """
        Start the processes.

        Args:
            program: Their module, which calls :func:`serve`, and the arguments before the file descriptor.
            processes: How many to start.
            ranges: The segments of each range, in order.
            segment_entries: The number of entries in a segment.

        Raises:
            OSError: A process cannot be started.
        """
        self._segment_entries = segment_entries
        self._limit = processes * AHEAD_RANGES
        self._changed = threading.Condition()
        #: Ranges that nobody reads so far, and the last one that a process began.
        self._waiting = deque(ranges)
        self._last_begun = -1
        #: By first segment: the ranges that processes began, with what came of them.
        self._begun: dict[int, Future[tuple[int, bytes]]] = {}
        self._workers: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        try:
            self._workers += (_Worker(program) for _ in range(processes))
        except BaseException:
            self.close()
            raise
        self._threads += (threading.Thread(target=self._drive, args=(worker,)) for worker in self._workers)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the processes, and delete their temporary files."""
        with self._changed:
            self._waiting.clear()
            self._limit = 0
            self._changed.notify_all()
        for worker in self._workers:
            worker.end()
        for thread in self._threads:
            thread.join()
        for worker in self._workers:
            worker.close()

    # --- from the side of the audit -------------------------------------------------------------------------

    def take(self, seq: int) -> Iterator[FoundAhead | None]:
        """
        Yield None while a process reads the range behind the entry *seq*, then what it read.

        Yields nothing if no process reads that range, and none will; no result if the range is not sound.

        Raises:
            Unreadable: The process that read the range ended.
        """
        first, rest = divmod(seq, self._segment_entries)
        if rest:
            return
        with self._changed:
            while self._waiting and self._waiting[0][0] <= first:
                self._waiting.popleft()
            future = self._begun.get(first)
        if future is None:
            return
        while True:
            try:
                descriptor, answer = future.result(WAIT_SECONDS)
                break
            except TimeoutError:
                yield None
        with self._changed:
            del self._begun[first]
            self._changed.notify_all()
        if answer:
            yield FoundAhead(RangeRead(*marshal.loads(answer)), descriptor)  # noqa: S302 - written by our own process

    # --- from the side of the processes ---------------------------------------------------------------------

    def _drive(self, worker: _Worker) -> None:
        """Let *worker* read one range after the other."""
        while (begun := self._begin()) is not None:
            segments, future = begun
            try:
                future.set_result((worker.spool.descriptor, worker.ask(segments)))
            except (OSError, EOFError, ValueError):
                first, last = segments[0] * self._segment_entries + 1, (segments[-1] + 1) * self._segment_entries
                code = worker.end(ENDING_SECONDS)
                future.set_exception(
                    Unreadable(f"entries {first} to {last}: the process that read them ended early, with code {code}")
                )
                return

    def _begin(self) -> tuple[range, Future[tuple[int, bytes]]] | None:
        """Choose the next range for a process, once there is room for its result; None if there is none left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or len(self._begun) < self._limit)
            if not self._waiting or len(self._begun) >= self._limit:
                return None
            segments = self._choose()
            self._waiting.remove(segments)
            self._last_begun = max(self._last_begun, segments[0])
            future = self._begun[segments[0]] = Future()
            return segments, future

    def _choose(self) -> range:
        """Leave one range to the audit, unless it has others to join first."""
        behind = [segments for segments in self._waiting if segments[0] > self._last_begun]
        if not behind:
            return self._waiting[-1]
        has_ready = sum(future.done() for future in self._begun.values()) > 1
        return behind[0] if has_ready or len(behind) == 1 else behind[1]


class _Worker:
    """One process, from the side of the audit."""

    def __init__(self, program: Sequence[str]) -> None:
        self.spool = KeySpool()
        descriptor = self.spool.descriptor
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", *program, str(descriptor)],
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
        return self._process.wait()

    def close(self) -> None:
        """Close the pipes and the temporary file of a process that has ended."""
        with suppress(OSError):
            self._asks.close()
        self._answers.close()
        self.spool.close()


def serve(source: Source, descriptor: int) -> None:
    """Answer the requests on standard input, until it ends; the keys go to the open file *descriptor*."""
    run_child(lambda: _serve(source, KeySpool(descriptor)))


def _serve(source: Source, spool: KeySpool) -> None:
    try:
        source.run(lambda: _answer_all(RangeReader(source, spool)))
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
