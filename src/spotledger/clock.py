"""The wall clock, and one for durations."""

from __future__ import annotations

import time

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def steady_s() -> float:
    """Return seconds of a clock that nobody sets; on Linux it goes on while the machine is suspended."""
    return time.clock_gettime(_STEADY)
