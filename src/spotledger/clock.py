"""
The clocks: the wall clock, and the trusted clock, which notices when the wall clock leaps.

The trusted clock compares the wall clock with one that never leaps and also counts suspension (``CLOCK_BOOTTIME``).
While the two agree, the trusted time is the wall clock's. When the wall clock leaps, the trusted time goes on by the
other clock, and nothing is booked until the wall clock agrees again, has been steady and synchronised for long enough,
or an operator trusts it. See ``docs/decisions/0012-trusted-clock.md``; for a fleet :mod:`spotledger.ops.fleet_clock`.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.errors import ClockUntrusted

#: How far the wall clock may move against the boot clock before it counts as a leap.
LEAP_MS: Final = 2_000
#: How far ahead of the noted time a start may find the wall clock.
IDLE_MS: Final = 7 * 24 * 3_600_000
#: How long a new offset has to be steady before it is adopted without an operator, and the largest one that is.
STEADY_MS: Final = 60_000
ADOPTED_LEAP_MS: Final = 10 * 60_000
#: How much two readings of one steady offset may differ.
JITTER_MS: Final = 100
#: How often small corrections of the wall clock are followed: it may move by ``LEAP_MS`` in that time.
FOLLOW_MS: Final = 60_000
#: How much the two clocks may drift apart between two looks, in millionths: the most that the kernel slews a clock.
DRIFT_PPM: Final = 500
#: A reading of both clocks that took longer is made again, so often at most: the process may have been stopped in it.
READING_MS: Final = 5
READINGS: Final = 5

BOOT_ID_BYTES: Final = 16
#: Stands for a boot that nobody knows; it is never the same as another.
UNKNOWN_BOOT: Final = bytes(BOOT_ID_BYTES)

_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x40
_BOOT_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS_FILE: Final = Path("/proc/self/timens_offsets")

_log = logging.getLogger("spotledger.clock")


def now_ms() -> int:
    """Return the wall clock's time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def steady_s() -> float:
    """Return seconds of a clock that nobody sets; on Linux it goes on while the machine is suspended."""
    return time.clock_gettime(_BOOT_CLOCK)


def boot_ms() -> int:
    """Return the milliseconds since the machine was started, those of a suspension included."""
    return time.clock_gettime_ns(_BOOT_CLOCK) // 1_000_000


@cache
def boot_id() -> bytes:
    """Return what names this boot of the machine (Linux), and the time namespace; ``UNKNOWN_BOOT`` elsewhere."""
    try:
        name = _BOOT_ID_FILE.read_bytes()
        # A container may have a boot clock of its own, which begins elsewhere.
        offsets = _OFFSETS_FILE.read_bytes() if _OFFSETS_FILE.exists() else b""
    except OSError:
        return UNKNOWN_BOOT
    return blake2b(name + offsets, digest_size=BOOT_ID_BYTES).digest()


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


class TimeSources(NamedTuple):
    """Where a trusted clock gets the time from: the system, or what a test gives."""

    wall_ms: Callable[[], int] = now_ms
    #: A clock that never leaps.
    steady_ms: Callable[[], int] = boot_ms
    #: Whether the system keeps the wall clock right.
    is_synchronised: Callable[[], bool] = is_synchronised
    #: Names the boot since which the steady clock counts.
    boot_id: Callable[[], bytes] = boot_id


SYSTEM: Final = TimeSources()


class Moment(NamedTuple):
    """A moment of trusted time: in ms since 1970, and in ms by the steady clock of one boot."""

    time_ms: int
    boot_id: bytes = UNKNOWN_BOOT
    steady_ms: int = 0


class ClockState(NamedTuple):
    """What a clock shows, and why it is not trusted, if it is not."""

    #: The time that counts, and that of the wall clock, in ms since 1970.
    now_ms: int
    wall_ms: int
    #: In words; None while the wall clock is trusted.
    distrust: str | None

    @property
    def offset_ms(self) -> int:
        """How far the wall clock is ahead of the time that counts."""
        return self.wall_ms - self.now_ms


class Clock:
    """A wall clock that is trusted whatever it shows, and a database's with it: for tests."""

    def __init__(self, wall_ms: Callable[[], int] = now_ms) -> None:
        self._wall_ms = wall_ms

    def now_ms(self) -> int:
        """Return the time that counts, in milliseconds since 1970."""
        return self._wall_ms()

    def check(self) -> int:
        """Return the time for what is about to be booked; a :class:`TrustedClock` may refuse that."""
        return self._wall_ms()

    def before_asking(self) -> int:
        """Return when a server is asked, for :meth:`check_server`; raise if nothing may be booked, as is known."""
        return 0

    def check_server(self, server_ms: int, asked_ms: int) -> int:
        """
        Return the time for what is about to be booked in a database; a clock that is compared may refuse it.

        Args:
            server_ms: The time of the database, in ms since 1970.
            asked_ms: What :meth:`before_asking` returned.
        """
        return server_ms

    def observe(self, server_ms: int, age_ms: int) -> None:
        """Take note of the time of the database, *server_ms*, which was read at most *age_ms* ago."""

    def heed(self, trusts: int) -> None:
        """Take note that an operator has said *trusts* times that the database's clock is right."""

    def distrust(self) -> str | None:
        """Return why the wall clock is not trusted now, in words; None while it is."""
        return None

    def state(self) -> ClockState:
        """Return what the clock shows now."""
        now = self.now_ms()
        return ClockState(now, now, None)

    def wall_if_untrusted_ms(self) -> int | None:
        """Return the wall clock's time while that is not trusted, else None."""
        state = self.state()
        return None if state.distrust is None else state.wall_ms

    def reached_ms(self) -> int:
        """Return the greatest time, as far as is known, that it has ever been."""
        return self.now_ms()

    def moment(self) -> Moment | None:
        """Return what is to be noted of the time, for the next start; None for nothing."""
        return None

    def close(self) -> None:
        """Close what the clock notes the time in, if it does so itself."""

    def trust(self) -> None:
        """Trust the clock as it stands, on the word of an operator."""


class _Range(NamedTuple):
    """What the wall clock has to show before a start goes on."""

    least_ms: int
    #: The most that it may be ahead of the steady clock; None for any.
    most_offset_ms: int | None

    def has(self, wall: int, steady: int) -> bool:
        most = self.most_offset_ms
        return wall >= self.least_ms and (most is None or wall - steady <= most)


class TrustedClock(Clock):
    """
    The one clock for booking, expiry, nonces, expiry of keys, and limits. Several threads may use it.

    A leap is noticed at the next look, and everything that is booked looks first.
    """

    #: For people: what it is, and what it is compared with.
    name = "the wall clock"
    compared_with = "the time that is known"
    #: Whether a start on the noted boot goes on as if it had not stopped; else it waits until a clock that was set back
    #: has reached the noted time.
    resumes = False

    def __init__(
        self,
        noted: Moment | None = None,
        *,
        not_before_ms: int = 0,
        leap_ms: int = LEAP_MS,
        idle_ms: int = IDLE_MS,
        sources: TimeSources = SYSTEM,
    ) -> None:
        """
        Start from the wall clock, if it fits what was noted.

        Args:
            noted: The trusted time that was noted last; None where nothing was.
            not_before_ms: Where nothing was noted: a time that is over, in ms since 1970.
            leap_ms: How far the wall clock may move against the steady one, in ms, > 0.
            idle_ms: How far ahead of *noted* the wall clock may be after a boot, in ms.
            sources: Where the time comes from.
        """
        super().__init__(sources.wall_ms)
        self._sources = sources
        self._steady_ms = sources.steady_ms
        self._leap_ms = leap_ms
        self._noted = noted
        self._guard = threading.Lock()
        wall, steady = self._read()
        #: What the trusted time is ahead of the steady clock; when that was last followed, and when it last agreed.
        self._offset = wall - steady
        self._followed_at = self._agreed_at = steady
        #: Whether ``_offset`` is known well enough to adopt a small leap.
        self._may_adopt = True
        #: The offset that the wall clock leapt to, and since when it has been steady there.
        self._leapt_to: int | None = None
        self._steady_since = steady
        self._distrust: str | None = None
        #: While a start waits: what for.
        self._awaited: _Range | None = None
        self._begin(noted or Moment(not_before_ms), wall, steady, idle_ms if noted else None)

    def _begin(self, noted: Moment, wall: int, steady: int, idle_ms: int | None) -> None:
        """Wait if the wall clock does not fit what was *noted*; until then the time goes on from there."""
        least = noted.time_ms - self._leap_ms
        counted = steady - noted.steady_ms
        is_same_boot = noted.boot_id == self._sources.boot_id() != UNKNOWN_BOOT and counted >= 0
        if is_same_boot and self.resumes:
            self._offset = noted.time_ms - noted.steady_ms
            self._followed_at = self._agreed_at = noted.steady_ms
            self._look(wall, steady)
            return
        if is_same_boot:  # the steady clock went on counting
            offset = noted.time_ms - noted.steady_ms
            most: int | None = offset + self._allowed(counted)
        else:
            offset = noted.time_ms - steady
            most = None if idle_ms is None else offset + idle_ms
        awaited = _Range(least, most)
        if not awaited.has(wall, steady):
            self._offset, self._may_adopt, self._awaited = offset, is_same_boot, awaited
            self._watch(wall - steady, steady)

    def now_ms(self) -> int:
        """Return the trusted time in milliseconds since 1970."""
        wall, steady = self._wall_ms(), self._steady_ms()
        if self._still_agrees(wall, steady):
            return wall
        with self._guard:
            return self._look(*self._read())

    def _still_agrees(self, wall: int, steady: int) -> bool:
        """Say whether both clocks agree as at the last look, which takes no lock; False where a look has to tell."""
        difference = wall - steady - self._offset
        if self._distrust is not None or not -self._leap_ms <= difference <= self._leap_ms:
            return False
        if steady - self._followed_at >= FOLLOW_MS:
            return False
        self._agreed_at = steady
        return True

    def reached_ms(self) -> int:
        """Return the greatest time that it has ever been: now, or what was noted, and what was counted since."""
        now, noted = self.now_ms(), self._noted
        if noted is None:
            return now
        counted = self._steady_ms() - noted.steady_ms
        is_same_boot = noted.boot_id == self._sources.boot_id() != UNKNOWN_BOOT and counted >= 0
        return max(now, noted.time_ms + (counted if is_same_boot else 0))

    def check(self) -> int:
        """
        Return the trusted time, for what is about to be booked.

        Raises:
            ClockUntrusted: The wall clock leapt, so nothing may be booked.
        """
        now = self.now_ms()
        distrust = self._distrust
        if distrust is not None:
            raise untrusted(distrust)
        return now

    def distrust(self) -> str | None:
        """Return why the wall clock is not trusted now, in words; None while it is."""
        self.now_ms()
        return self._distrust

    def state(self) -> ClockState:
        """Return what the clock shows now."""
        with self._guard:
            wall, steady = self._read()
            return ClockState(self._look(wall, steady), wall, self._distrust)

    def moment(self) -> Moment | None:
        """Return the moment to note; None while a start waits, because what was noted then is still what is known."""
        now, steady = self._wall_ms(), self._steady_ms()
        if not self._still_agrees(now, steady):
            with self._guard:
                wall, steady = self._read()
                now = self._look(wall, steady)
                if self._awaited is not None:
                    return None
        return Moment(now, self._sources.boot_id(), steady)

    def trust(self, why: str = "an operator trusts the clock") -> None:
        """Trust the wall clock as it stands and log *why*; note the :meth:`moment` afterwards."""
        with self._guard:
            wall, steady = self._read()
            moved = wall - steady - self._offset
            _log.warning("%s; it moved by %s against the time that counted", why, span(moved))
            self._accept(wall, steady)

    def _read(self) -> tuple[int, int]:
        """Return the time of the wall clock and of the steady one, of the same moment."""
        before = self._steady_ms()
        for _ in range(READINGS):
            wall = self._wall_ms()
            steady = self._steady_ms()
            if steady - before <= READING_MS:
                break
            before = steady
        return wall, steady

    def _look(self, wall: int, steady: int) -> int:
        """Compare the clocks, and return the trusted time."""
        if self._agrees(wall, steady):
            if self._distrust is not None:
                _log.warning("the clock is right again; writes go on")
            if self._awaited is not None or steady - self._followed_at >= FOLLOW_MS:
                self._offset, self._followed_at = wall - steady, steady
            self._trust_again(steady)
            return wall
        self._watch(wall - steady, steady)
        return wall if self._distrust is None else steady + self._offset

    def _agrees(self, wall: int, steady: int) -> bool:
        if self._awaited is not None:
            return self._awaited.has(wall, steady)
        unseen = steady - self._agreed_at if self._distrust is None else 0
        return abs(wall - steady - self._offset) <= self._allowed(unseen)

    def _allowed(self, unseen_ms: int) -> int:
        """Return how far the clocks may differ after *unseen_ms* without a look."""
        return self._leap_ms + unseen_ms * DRIFT_PPM // 1_000_000

    def _watch(self, offset: int, steady: int) -> None:
        """Watch a wall clock that does not agree; adopt its time once it has been steady and synchronised."""
        moved = offset - self._offset
        if self._leapt_to is None or abs(offset - self._leapt_to) > JITTER_MS:
            is_new = self._distrust is None
            side = "ahead of" if moved > 0 else "behind"
            self._distrust = f"{self.name} is {span(abs(moved))} {side} {self.compared_with}"
            if is_new:
                _log.error("%s; nothing is booked and nothing expires until it is right, or trusted", self._distrust)
            self._leapt_to, self._steady_since = offset, steady
        elif (
            self._may_adopt
            and abs(moved) <= ADOPTED_LEAP_MS
            and steady - self._steady_since >= STEADY_MS
            and self._sources.is_synchronised()
        ):
            _log.warning("%s moved by %s, is steady and synchronised: it is trusted again", self.name, span(moved))
            self._accept(offset + steady, steady)

    def _accept(self, wall: int, steady: int) -> None:
        self._offset, self._followed_at = wall - steady, steady
        self._trust_again(steady)

    def _trust_again(self, steady: int) -> None:
        self._agreed_at, self._may_adopt = steady, True
        self._leapt_to = self._distrust = self._awaited = None


def untrusted(distrust: str) -> ClockUntrusted:
    """Return the error for what is not booked because of the clock; *distrust* says why."""
    return ClockUntrusted(
        f"The clock is not trusted: {distrust}. Nothing is booked until it is right again, or until an operator"
        " trusts it (spotledger clock trust); try again with the same idempotency key."
    )


def span(milliseconds: int) -> str:
    """Write a span of time for people: ``3.0 h``, ``-12.5 s``."""
    seconds = milliseconds / 1000
    for unit, name in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if abs(seconds) >= 2 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
