"""
When a node seals: at once if it filled the segment, else if nobody has for a while.

Any node may seal at any time, because the database lets one at a time; to wait spares the others the attempt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres.connection import Connection
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.sealing_process import SealingProcess
from spotledger.storage.seen_head import Seen

#: Smaller segments are sealed in the process that serves, where a group begins.
PROCESS_ENTRIES: Final = 4_096
#: Full segments that may wait for sealing before writes have to.
UNSEALED_LIMIT: Final = 4
#: How long a node leaves it to others to seal a segment that it did not fill.
OTHERS_SECONDS: Final = 5.0
#: With so many segments to seal, every node tries.
OVERDUE_SEGMENTS: Final = 2
#: How long a node waits before it asks its sealing process once more.
AGAIN_SECONDS: Final = 1.0

_log = logging.getLogger("spotledger.sealing")


class SealingDuty:
    """Has the segments of one ledger sealed. Any thread may use it."""

    def __init__(self, address: str, connect: Callable[[], Connection], segment_entries: int) -> None:
        """
        Prepare; nothing is connected or started before there is something to do.

        Args:
            address: Where the sealing process connects to.
            connect: Makes a connection in autocommit to the right server, for small segments.
            segment_entries: Entries in a segment.
        """
        self._segment_entries = segment_entries
        self._lock = threading.Lock()
        self._sealer = Sealer(connect) if segment_entries < PROCESS_ENTRIES else None
        self._process = SealingProcess("spotledger.storage.postgres.sealing.process", greeting=address)
        self._not_before = 0.0
        #: At which sealed entry the next segment was left to other nodes, and until when.
        self._left_at, self._left_until = -1, 0.0
        self._is_closed = False
        #: What was found damaged, because of which nothing more is written.
        self.damage: LedgerCorrupt | None = None

    @property
    def restarts(self) -> int:
        """How often the process that seals ended and was started again, or is about to be."""
        return self._process.restarts

    @property
    def seals_in_place(self) -> bool:
        """Whether segments are so small that they are sealed here, by :meth:`seal_here`."""
        return self._sealer is not None

    def is_due(self, head_seq: int, sealed_seq: int) -> bool:
        """Return whether there is a full segment that is not sealed."""
        return head_seq // self._segment_entries > sealed_seq // self._segment_entries

    def is_behind(self, head_seq: int, sealed_seq: int) -> bool:
        """Return whether so much waits for sealing that memory must not grow further."""
        return head_seq - sealed_seq >= (UNSEALED_LIMIT + 1) * self._segment_entries

    def seal_here(self) -> None:
        """
        Seal what is full; blocks. Where the server is in the way, that is logged, and the next call tries again.

        Raises:
            LedgerCorrupt: The journal or what is derived from it is damaged.
        """
        with self._lock:
            assert self._sealer is not None, "segments are small"  # noqa: S101
            try:
                self._sealer.seal_all()
            except StoreUnavailable as problem:
                _log.warning("a segment could not be sealed: %s; it is tried again", problem)

    def go_on(self, seen: Seen, sealed_seq: int, *, is_own: bool) -> None:
        """
        Have the process seal what is full up to *seen*, if that is for this node to do; does not wait.

        What the process finds damaged is in `damage` from then on.

        Args:
            seen: What this node saw last; a server without it is not sealed.
            sealed_seq: The last sealed entry, as far as this node has seen.
            is_own: Whether this node filled the segment.
        """
        now = time.monotonic()
        if not is_own and seen.seq - sealed_seq < OVERDUE_SEGMENTS * self._segment_entries:
            if self._left_at != sealed_seq:
                self._left_at, self._left_until = sealed_seq, now + OTHERS_SECONDS
            if now < self._left_until:
                return
        if self.damage is not None or now < self._not_before or not self._lock.acquire(blocking=False):
            return
        try:
            if self._is_closed:
                return
            self._not_before = now + AGAIN_SECONDS
            self._process.poll()
            if self._process.sealed_segments > sealed_seq // self._segment_entries:
                self._process.ask_again()  # a failover may have lost what it sealed
            known = " ".join(map(str, seen._replace(hash=seen.hash.hex())))  # type: ignore[arg-type]
            self._process.seal(seen.seq // self._segment_entries - 1, known)
        except LedgerCorrupt as damage:
            _log.error("a segment could not be sealed: %s", damage)
            self.damage = damage
        except OSError as error:
            _log.warning("the process that seals could not be started: %s; it is tried again", error)
        finally:
            self._lock.release()

    def close(self) -> None:
        """End the process, once it has finished the segment that it is at, and close the connection."""
        with self._lock:
            self._is_closed = True
            self._process.close(finishes=True)
            if self._sealer is not None:
                self._sealer.close()
