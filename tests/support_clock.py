"""A machine whose clocks a test sets: the wall clock leaps, the steady one only counts."""

from __future__ import annotations

from spotledger.clock import Clock, Moment, TimeSources, TrustedClock

START = 1_700_000_000_000
HOUR = 3_600_000
DAY = 24 * HOUR
FIRST_BOOT = bytes(range(16))
SECOND_BOOT = bytes(range(16, 32))


class Machine:
    """
    A machine that keeps the true time, with a wall clock that may be wrong.

    ``error`` is the wall clock less the true time, in ms; ``drift_ppm`` makes the steady clock too fast.
    """

    def __init__(self) -> None:
        self.true = START
        self.error = 0
        self.steady = 1_000_000
        self.is_synchronised = True
        self.boot = FIRST_BOOT

    @property
    def wall(self) -> int:
        """What the wall clock shows."""
        return self.true + self.error

    @property
    def sources(self) -> TimeSources:
        """The clocks of this machine."""
        return TimeSources(lambda: self.wall, lambda: self.steady, lambda: self.is_synchronised, lambda: self.boot)

    def clock(
        self, noted: Moment | None = None, *, not_before_ms: int = 0, leap_ms: int = 2_000, idle_ms: int = 7 * DAY
    ) -> TrustedClock:
        """Start a trusted clock on this machine."""
        return TrustedClock(noted, not_before_ms=not_before_ms, leap_ms=leap_ms, idle_ms=idle_ms, sources=self.sources)

    def leap(self, ms: int) -> None:
        """Set the wall clock."""
        self.error += ms

    def wait(self, ms: int) -> None:
        """Let time pass, while nobody looks at the clock."""
        self.true += ms
        self.steady += ms

    def run(self, ms: int, clock: Clock, step: int = 1_000) -> None:
        """Let time pass, while somebody looks at the clock every second."""
        for _ in range(ms // step):
            self.wait(step)
            clock.now_ms()
        self.wait(ms % step)

    def reboot(self, off_ms: int = 0) -> None:
        """Start the machine again after it was off for *off_ms*: the steady clock begins anew."""
        self.true += off_ms
        self.steady = 5_000
        self.boot = SECOND_BOOT if self.boot == FIRST_BOOT else FIRST_BOOT
