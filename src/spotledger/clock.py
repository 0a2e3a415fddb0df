"""
Time: the wall clock, and the trusted clock that notices when the wall clock jumps.

The trusted clock compares the wall clock with one that never jumps and also counts suspension (``CLOCK_BOOTTIME``).
While the two agree, the trusted time is the wall clock's. When the wall clock leaps, the trusted time goes on by the
other clock and nothing may be booked, until the wall clock agrees again, has been steady and synchronised long enough,
or an operator trusts it.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Final

from spotledger.errors import ClockUntrusted

#: How far the wall clock may move against the boot clock before it counts as a leap.
LEAP_MS: Final = 2_000
#: How far ahead of the noted time a start may find the wall clock.
IDLE_MS: Final = 7 * 24 * 3_600_000
#: How long the wall clock has to run steadily at its new offset before it is trusted again without an operator.
STEADY_MS: Final = 60_000
#: How far it may have moved for that.
ADOPTED_LEAP_MS: Final = 10 * 60_000
#: How much two readings of one steady offset may differ.
JITTER_MS: Final = 100
#: How often slow corrections of the wall clock are followed.
FOLLOW_MS: Final = 60_000

_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x40

_log = logging.getLogger("spotledger.clock")


def now_ms() -> int:
    """Return the wall clock's time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def boot_ms() -> int:
    """Return the milliseconds since the machine was started, those of a suspension included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class _Timex(ctypes.Structure):
    """The beginning of the kernel's ``struct timex``; the rest is room for what it fills in."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("room", ctypes.c_char * 256),
    )


@cache
def _adjtimex() -> Callable[[Any], int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)
    return function if callable(function) else None


def is_synchronised() -> bool:
    """Say whether the kernel's clock is synchronised (``adjtimex``); False where the system does not tell."""
    adjtimex = _adjtimex()
    if adjtimex is None:
        return False
    found = _Timex()
    state = adjtimex(ctypes.byref(found))
    return 0 <= state != _TIME_ERROR and not found.status & _STA_UNSYNC


class TrustedClock:
    """The one clock for booking, expiry, nonces and limits. May be used by several threads."""

    def __init__(
        self,
        *,
        noted_ms: int | None = None,
        leap_ms: int = LEAP_MS,
        idle_ms: int = IDLE_MS,
        wall_ms: Callable[[], int] = now_ms,
        steady_ms: Callable[[], int] = boot_ms,
        synchronised: Callable[[], bool] = is_synchronised,
    ) -> None:
        """
        Start from the wall clock, if it fits what was noted.

        Args:
            noted_ms: The trusted time that was last noted, in ms since 1970; None where nothing is known.
            leap_ms: How far the wall clock may move against the steady one, in ms, > 0.
            idle_ms: How far ahead of *noted_ms* the wall clock may be at the start, in ms.
            wall_ms: The wall clock.
            steady_ms: The clock that never jumps.
            synchronised: Whether the wall clock is kept right by the system.
        """
        self._wall_ms = wall_ms
        self._steady_ms = steady_ms
        self._synchronised = synchronised
        self._leap_ms = leap_ms
        self._guard = threading.Lock()
        wall, steady = wall_ms(), steady_ms()
        #: What the steady clock lacks of the trusted time.
        self._offset = wall - steady
        self._followed_at = steady
        #: The offset that the wall clock leapt to, and since when it has been steady there.
        self._leapt_to: int | None = None
        self._steady_since = 0
        self._distrust: str | None = None
        #: A start that is behind the noted time waits until that is reached.
        self._waits_for: int | None = None
        if noted_ms is None:
            return
        if wall < noted_ms - leap_ms:
            self._offset = noted_ms - steady
            self._waits_for = noted_ms
            self._distrust = f"the clock is {_span(noted_ms - wall)} behind the time that was noted last"
        elif wall > noted_ms + idle_ms:
            self._offset = noted_ms - steady
            self._distrust = f"the clock is {_span(wall - noted_ms)} ahead of the time that was noted last"
        if self._distrust is not None:
            self._leapt_to = wall - steady
            self._steady_since = steady
            _log.error(
                "%s; nothing is booked or expires until it fits, or until: spotledger clock trust", self._distrust
            )

    def now_ms(self) -> int:
        """Return the trusted time in milliseconds since 1970."""
        with self._guard:
            return self._look()

    @property
    def distrust(self) -> str | None:
        """Why the wall clock is not trusted now, in words; None while it is."""
        with self._guard:
            self._look()
            return self._distrust

    def check(self) -> int:
        """
        Return the trusted time, for something that is about to be booked.

        Raises:
            ClockUntrusted: The wall clock leapt, and nothing may be booked.
        """
        with self._guard:
            now = self._look()
            if self._distrust is not None:
                raise ClockUntrusted(
                    f"The clock cannot be trusted: {self._distrust}. Nothing is booked until it fits again, or until an"
                    " operator trusts it (spotledger clock trust); try again with the same key."
                )
            return now

    def trust(self) -> int:
        """Trust the wall clock as it stands, on the word of an operator; return its time."""
        with self._guard:
            wall, steady = self._wall_ms(), self._steady_ms()
            if self._distrust is not None:
                moved = _span(wall - steady - self._offset)
                _log.warning("the clock is trusted on the word of an operator: it moved by %s", moved)
            self._accept(wall, steady)
            return wall

    def _look(self) -> int:
        wall, steady = self._wall_ms(), self._steady_ms()
        if self._waits_for is not None and wall >= self._waits_for:
            _log.warning("the clock has reached the noted time; writes go on")
            self._accept(wall, steady)
        offset = wall - steady
        if abs(offset - self._offset) <= self._leap_ms and self._waits_for is None:
            if self._leapt_to is not None:
                _log.warning("the clock agrees again with the time since it leapt; writes go on")
                self._accept(wall, steady)
            elif steady - self._followed_at >= FOLLOW_MS:
                self._offset, self._followed_at = offset, steady
            return wall
        self._watch(offset, steady)
        if self._distrust is None:
            return wall
        return steady + self._offset

    def _watch(self, offset: int, steady: int) -> None:
        """Take in a wall clock that does not agree; take it over once it has been steady and synchronised."""
        if self._leapt_to is None or abs(offset - self._leapt_to) > JITTER_MS:
            if self._distrust is None:
                self._distrust = f"it leapt by {_span(offset - self._offset)}"
                _log.error(
                    "the clock leapt by %s; nothing is booked or expires meanwhile", _span(offset - self._offset)
                )
            self._leapt_to, self._steady_since = offset, steady
            return
        is_small = abs(offset - self._offset) <= ADOPTED_LEAP_MS
        if is_small and self._waits_for is None and steady - self._steady_since >= STEADY_MS and self._synchronised():
            _log.warning(
                "the clock is trusted again: it leapt by %s, has been steady since and is synchronised",
                _span(offset - self._offset),
            )
            self._accept(offset + steady, steady)

    def _accept(self, wall: int, steady: int) -> None:
        self._offset, self._followed_at = wall - steady, steady
        self._leapt_to = self._distrust = self._waits_for = None


def _span(milliseconds: int) -> str:
    """Write a span of time for people: ``3 h``, ``-12.5 s``."""
    seconds = milliseconds / 1000
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if abs(seconds) >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
