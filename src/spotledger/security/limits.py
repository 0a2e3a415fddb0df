"""
Rate limits (rule R20): counts in fixed windows, and a temporary lock on accounts and addresses that exceed a limit.

A window begins with the first request, not on a full second, so that a burst across the edge of a second is one burst.
Requests during a lock do not extend it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from spotledger.security.bounded_dict import BoundedDict

#: Half the number of accounts or addresses whose windows are remembered, and half the number of locks.
REMEMBERED_GENERATION = 50_000
#: Two nodes see the end of one lock so far apart at most.
SAME_LOCK_MS = 1_000


class Lock(NamedTuple):
    """A lock: when it ends, the name of the limit that was exceeded, and whether all nodes of a fleet share it."""

    until_ms: int
    limit: str
    is_shared: bool = False


class Locks:
    """Who is locked, and until when. Kept apart from the windows, so that strangers' windows do not displace locks."""

    __slots__ = ("held", "lock_ms", "on_end", "on_lock")

    def __init__(self, lock_ms: int, generation_limit: int = REMEMBERED_GENERATION) -> None:
        self.lock_ms = lock_ms
        #: Account or address → its lock.
        self.held: BoundedDict[str, Lock] = BoundedDict(generation_limit)
        #: Called with each lock that begins.
        self.on_lock: Callable[[str, Lock], None] = lambda who, lock: None
        #: Called with each account or address whose lock was lifted elsewhere.
        self.on_end: Callable[[str], None] = lambda who: None

    def lock(self, who: str, now_ms: int, limit: str) -> None:
        """Lock *who* from now on, because they exceeded *limit*."""
        if self.lock_ms > 0:
            self.begin(who, Lock(now_ms + self.lock_ms, limit))

    def begin(self, who: str, lock: Lock) -> None:
        """Lock *who*, and say so unless they were, until about the same time."""
        before = self.held.get(who)
        self.held.put(who, lock)
        if before is None or abs(before.until_ms - lock.until_ms) > SAME_LOCK_MS or before.is_shared != lock.is_shared:
            self.on_lock(who, lock)

    def lift(self, who: str) -> None:
        """Lift the lock of *who*, if there is one."""
        self.held.drop(who)

    def end(self, who: str) -> None:
        """Lift the lock of *who*, because it was lifted elsewhere, and say so."""
        self.lift(who)
        self.on_end(who)

    def all(self) -> Iterator[tuple[str, Lock]]:
        """Return all locks, ended ones too."""
        return iter([*self.held.older.items(), *self.held.younger.items()])

    def remaining_ms(self, who: str, now_ms: int) -> int:
        """Return how many more ms *who* is locked, 0 if they are not."""
        lock = self.held.get(who)
        if lock is None:
            return 0
        remaining_ms = lock.until_ms - now_ms
        # More than a whole lock can remain only if the clock was set back, which must not extend a lock.
        if 0 < remaining_ms <= self.lock_ms:
            return remaining_ms
        self.held.drop(who)
        return 0


class WindowLimit:
    """At most *limit* requests in each window of *window_ms*, for each account or address; 0 turns the limit off."""

    __slots__ = ("_windows", "limit", "locks", "name", "policy_header", "policy_line", "window_ms")

    def __init__(
        self, name: str, limit: int, window_ms: int, locks: Locks, generation_limit: int = REMEMBERED_GENERATION
    ) -> None:
        self.name = name
        self.limit = limit
        self.window_ms = window_ms
        self.locks = locks
        self._windows: BoundedDict[str, list[int]] = BoundedDict(generation_limit)
        self.policy_header = ("ratelimit-policy", f'"{name}";q={limit};w={window_ms // 1000}')
        #: The same as it is sent.
        self.policy_line = "{}: {}\r\n".format(*self.policy_header)

    def hit(self, who: str, now_ms: int) -> int:
        """
        Count one request of *who*.

        Returns:
            How many more requests fit into the window, 0 or more, if this one may pass (0 if the limit is off);
            otherwise the ms to wait, as a negative number.
        """
        locked = self.locks.held
        if locked.younger or locked.older:
            locked_ms = self.locks.remaining_ms(who, now_ms)
            if locked_ms:
                return -locked_ms
        limit = self.limit
        if not limit:
            return 0
        window = self._windows.younger.get(who) or self._windows.get(who)
        if window is None:
            self._windows.put(who, [now_ms, 1])
            return limit - 1
        age_ms = now_ms - window[0]
        if 0 <= age_ms < self.window_ms:
            window[1] += 1
            if window[1] > limit:
                return self._over(who, window, now_ms)
            return limit - window[1]
        window[0] = now_ms
        window[1] = 1
        return limit - 1

    def _over(self, who: str, window: list[int], now_ms: int) -> int:
        wait_ms = window[0] + self.window_ms - now_ms
        if self.locks.lock_ms > 0:
            self.locks.lock(who, now_ms, self.name)
            self._windows.drop(who)
            wait_ms = self.locks.lock_ms
        return -wait_ms

    def follow(self, who: str, left: int, reset_ms: int, now_ms: int) -> None:
        """
        Take over the count of *who* from the counter that all nodes share.

        Args:
            who: The account or address.
            left: How many more requests fit into the window; negative if the limit is exceeded.
            reset_ms: The ms until the window or the lock ends.
            now_ms: The time.
        """
        if left < 0 and self.locks.lock_ms > 0:
            self.locks.begin(who, Lock(now_ms + reset_ms, self.name, is_shared=True))
            self._windows.drop(who)
        elif self.limit:
            self._windows.put(who, [now_ms + reset_ms - self.window_ms, self.limit - max(left, -1)])

    def headers(self, who: str, now_ms: int) -> list[tuple[str, str]]:
        """Return the headers ``RateLimit-Policy`` and ``RateLimit`` for *who*; none if the limit is off."""
        if not self.limit:
            return []
        locked_ms = self.locks.remaining_ms(who, now_ms)
        window = self._windows.get(who)
        remaining, reset_ms = self.limit, self.window_ms
        if locked_ms:
            remaining, reset_ms = 0, locked_ms
        elif window is not None and 0 <= now_ms - window[0] < self.window_ms:
            remaining, reset_ms = max(0, self.limit - window[1]), window[0] + self.window_ms - now_ms
        return [self.policy_header, ("ratelimit", f'"{self.name}";r={remaining};t={whole_seconds(reset_ms)}')]


def whole_seconds(duration_ms: int) -> int:
    """Return *duration_ms* as whole seconds, rounded up, at least 1."""
    return max(1, -(-duration_ms // 1000))
