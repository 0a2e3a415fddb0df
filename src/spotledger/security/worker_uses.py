"""
The signatures that the workers of one machine admitted, in memory that they share (rule R12).

Each worker writes what it admits to a ring of its own, and reads the rings of the others. Before a signature counts as
new, the worker first writes it and then reads the others': of two workers that see the same one at the same moment, at
least one finds that of the other. Nobody waits for anybody, and a worker that is killed leaves nothing locked.

A worker that was stopped for so long that a ring was written over does not know what it missed, and says so; so does
one that takes the place of a worker that ended, whose own memory is lost.
"""

from __future__ import annotations

import asyncio
import mmap
import struct
import threading
from collections.abc import Callable
from typing import Final

from spotledger.security.replay import MARK_BYTES

#: Signatures in the ring of one worker: at 10,000 a second those of six seconds.
RING_RECORDS: Final = 65_536
#: How often a worker reads the rings without being asked, so that it never has much to read.
COLLECT_SECONDS: Final = 0.05
#: Half the number of signatures of other workers that are remembered.
GENERATION_LIMIT: Final = 1_000_000

#: The longest address that is counted is that of an IPv6 /64.
_ADDRESS_BYTES: Final = len("ffff:ffff:ffff:ffff::/64")
_RECORD: Final = struct.Struct(f"={MARK_BYTES}s{_ADDRESS_BYTES}s")
_COUNT: Final = struct.Struct("=Q")
#: Stand for an address that nobody has: what is bound to it is refused. The second is in a memory.
_NOBODY: Final = ""
_CONFLICT: Final = b"\0" * _ADDRESS_BYTES


class WorkerUses:
    """The rings of the workers. The parent makes it before it forks; a worker calls :meth:`start_as` and `connect`."""

    def __init__(self, workers: int, ring_records: int = RING_RECORDS) -> None:
        """Make empty rings for this many workers."""
        self._records = ring_records
        self._rings = [mmap.mmap(-1, ring_records * _RECORD.size) for _ in range(workers)]
        #: How many records each worker has written.
        self._counters = mmap.mmap(-1, workers * _COUNT.size)
        self._number = 0
        self._written = 0
        #: The counters as they were when the rings were read, and how many records of each ring that was.
        self._known = bytes(workers * _COUNT.size)
        self._unpack = struct.Struct(f"={workers}Q").unpack
        self._read = [0] * workers
        #: The mark of a signature → its address; in generations, as in `ReplayMemory`.
        self._younger: dict[bytes, bytes] = {}
        self._older: dict[bytes, bytes] = {}
        self._begun_ms = 0
        self._fence = threading.Lock()
        self._on_missed: Callable[[], None] = lambda: None
        #: How often records were missed.
        self.missed = 0

    def start_as(self, number: int) -> None:
        """Start as worker *number*."""
        self._number = number

    def connect(self, on_missed: Callable[[], None]) -> None:
        """
        Read what the others admitted before.

        Args:
            on_missed: Called, now or later, when something that was admitted before is not known.
        """
        self._on_missed = on_missed
        self._written = self._count(self._number)
        self.collect()
        if self._written:
            self._miss()

    async def keep_collecting(self, now_ms: Callable[[], int], window_ms: int) -> None:
        """Read the rings, and drop what is out of the window; *now_ms* never leaps."""
        while True:
            self.collect()
            self._rotate(now_ms(), window_ms)
            await asyncio.sleep(COLLECT_SECONDS)

    def first_use(self, mark: bytes, address: str) -> str | None:
        """
        Return the address that a signature is bound to by another worker; None if it is new, which the others then see.

        Args:
            mark: The beginning of the signature.
            address: Where the request came from.
        """
        packed, missed = address.encode().ljust(_ADDRESS_BYTES, b"\0"), self.missed
        self.collect()
        bound = self._older.get(mark) or self._younger.get(mark)
        if bound is None:
            self._write(mark, packed)
            with self._fence:  # what was written is visible to the others before their rings are read
                pass
            self.collect()
            bound = self._younger.get(mark)
        if missed != self.missed:
            return _NOBODY
        return None if bound is None else address if bound == packed else _NOBODY

    def collect(self) -> None:
        """Read what the others admitted."""
        counters = self._counters[:]
        if counters == self._known:
            return
        self._known = counters
        is_missed = False
        for number, count in enumerate(self._unpack(counters)):
            read = self._read[number]
            if count != read and number != self._number:
                self._collect_from(number, read, count)
                # What its owner wrote meanwhile, and what it is writing, is in the place of the oldest records.
                is_missed |= self._count(number) >= read + self._records
                self._read[number] = count
        if is_missed:
            self._miss()

    def _collect_from(self, number: int, read: int, count: int) -> None:
        """Take over the records of a ring from the one after *read* to *count*, as far as they are still there."""
        ring, seen, size, records = self._rings[number], self._younger, _RECORD.size, self._records
        for one in range(max(read, count - records), count):
            place = one % records * size
            record = ring[place : place + size]
            mark, packed = record[:MARK_BYTES], record[MARK_BYTES:]
            if seen.setdefault(mark, packed) != packed:
                seen[mark] = _CONFLICT

    def _miss(self) -> None:
        self.missed += 1
        self._on_missed()

    def _rotate(self, now_ms: int, window_ms: int) -> None:
        is_full = len(self._younger) >= GENERATION_LIMIT
        if is_full or now_ms - self._begun_ms >= window_ms:
            if now_ms - self._begun_ms < window_ms and self._older:
                self._miss()
            self._older, self._younger, self._begun_ms = self._younger, {}, now_ms

    def _write(self, mark: bytes, packed: bytes) -> None:
        number, place = self._number, self._number * _COUNT.size
        _RECORD.pack_into(self._rings[number], self._written % self._records * _RECORD.size, mark, packed)
        self._written += 1
        counter = _COUNT.pack(self._written)
        self._counters[place : place + _COUNT.size] = counter
        # Only what the others write makes a difference.
        self._known = self._known[:place] + counter + self._known[place + _COUNT.size :]

    def _count(self, number: int) -> int:
        count: int = _COUNT.unpack_from(self._counters, number * _COUNT.size)[0]
        return count
