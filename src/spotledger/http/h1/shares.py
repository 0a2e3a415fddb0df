"""
How workers that accept from one socket share the connections: who has more than another leaves a new one to that one.

Without it the system wakes all, and whoever is quickest takes the connection: a few long ones may all end up in one
process. The counts are in memory that the workers share; nobody waits for anybody for longer than a moment.
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

_COUNT: Final = struct.Struct("=q")


class ConnectionShares:
    """How many connections each worker has. The parent makes it before it forks; a worker calls :meth:`start_as`."""

    def __init__(self, workers: int) -> None:
        """Make the counts of this many workers, all of which are down."""
        self._workers = workers
        self._memory = mmap.mmap(-1, workers * _COUNT.size)
        self._number = 0
        for number in range(workers):
            self.end(number)

    def start_as(self, number: int) -> None:
        """Start as worker *number*, without connections."""
        self._number = number
        self.note(0)

    def end(self, number: int) -> None:
        """Count worker *number* as down, so that nobody leaves anything to it."""
        _COUNT.pack_into(self._memory, number * _COUNT.size, -1)

    def note(self, connections: int) -> None:
        """Note how many connections this worker has."""
        _COUNT.pack_into(self._memory, self._number * _COUNT.size, connections)

    def is_ahead(self, connections: int) -> bool:
        """Return whether this worker, with this many connections, has more than another one."""
        counts = (_COUNT.unpack_from(self._memory, number * _COUNT.size)[0] for number in range(self._workers))
        return any(0 <= count < connections for count in counts)
