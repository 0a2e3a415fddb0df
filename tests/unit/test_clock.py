"""The trusted clock: leaps of the wall clock are noticed, and leave no harm once they are over."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, strategies as st

from spotledger.clock import (
    ADOPTED_LEAP_MS,
    FOLLOW_MS,
    IDLE_MS,
    LEAP_MS,
    STEADY_MS,
    TrustedClock,
    boot_ms,
    is_synchronised,
    now_ms,
)
from spotledger.errors import ClockUntrusted

START = 1_700_000_000_000
HOUR = 3_600_000


class Machine:
    """A machine with a wall clock, a steady clock, and a word on whether the first is synchronised."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 1_000_000
        self.is_synchronised = True

    def clock(self, **options: Any) -> TrustedClock:
        """Start a trusted clock on this machine."""
        return TrustedClock(
            wall_ms=lambda: self.wall,
            steady_ms=lambda: self.steady,
            synchronised=lambda: self.is_synchronised,
            **options,
        )

    def run(self, ms: int, clock: TrustedClock, step: int = 1_000) -> None:
        """Let time pass, while the clock is looked at each second."""
        for _ in range(ms // step):
            self.wall += step
            self.steady += step
            clock.now_ms()

    def leap(self, ms: int) -> None:
        """Set the wall clock."""
        self.wall += ms


def test_clock_that_agrees_gives_the_wall_clocks_time() -> None:
    """While both clocks run alike, the time is the wall clock's and is trusted."""
    machine = Machine()
    clock = machine.clock()
    machine.run(10_000, clock)
    assert clock.check() == machine.wall == START + 10_000
    assert clock.distrust is None


@pytest.mark.parametrize("leap", [HOUR, -HOUR, 365 * 24 * HOUR, LEAP_MS + 1, -LEAP_MS - 1])
def test_clock_that_leaps_is_refused_and_time_goes_on_by_the_steady_one(leap: int) -> None:
    """A leap in either direction stops booking; the trusted time goes on as if it had not been."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(leap)
    with pytest.raises(ClockUntrusted, match="clock trust"):
        clock.check()
    machine.steady += 5_000
    machine.wall += 5_000
    assert clock.now_ms() == START + 5_000


@pytest.mark.parametrize("leap", [LEAP_MS, -LEAP_MS, 1, -1])
def test_clock_within_its_bound_is_trusted(leap: int) -> None:
    """A small correction is no leap."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(leap)
    assert clock.check() == machine.wall


def test_clock_that_leaps_back_is_trusted_again_at_once() -> None:
    """Forward by hours for one second: afterwards everything is as before."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(5 * HOUR)
    machine.run(1_000, clock)
    assert clock.distrust is not None
    machine.leap(-5 * HOUR)
    assert clock.check() == machine.wall == START + 1_000


def test_clock_that_stays_at_a_small_leap_is_taken_over_when_steady_and_synchronised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As NTP sets a clock after a boot: trusted by itself after a minute, and logged."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(ADOPTED_LEAP_MS)
    machine.run(STEADY_MS, clock)
    assert clock.distrust is not None
    with caplog.at_level(logging.WARNING):
        machine.run(2_000, clock)
    assert clock.check() == machine.wall
    assert "trusted again" in caplog.text


def test_clock_that_is_not_synchronised_waits_for_an_operator() -> None:
    """A steady clock that nobody keeps right is not taken over by itself."""
    machine = Machine()
    machine.is_synchronised = False
    clock = machine.clock()
    machine.leap(5 * 60_000)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust is not None
    assert clock.trust() == machine.wall == clock.check()


def test_clock_with_a_large_leap_waits_for_an_operator() -> None:
    """More than ten minutes is never taken over without a person."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(ADOPTED_LEAP_MS + 1)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust is not None
    clock.trust()
    assert clock.check() == machine.wall


def test_clock_that_keeps_leaping_is_not_steady() -> None:
    """Each new leap begins the minute anew."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(10_000)
    for number in range(10):
        machine.run(STEADY_MS - 1_000, clock)
        machine.leap(1_000 if number % 2 else -1_000)
    assert clock.distrust is not None


def test_clock_that_is_slewed_is_followed() -> None:
    """Slow corrections never count as a leap, however far they go in all."""
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.run(FOLLOW_MS, clock)
        machine.leap(500)
        assert clock.check() == machine.wall


def test_start_behind_the_noted_time_waits_until_it_is_reached() -> None:
    """Nothing is booked before the time that was noted; reaching it is enough."""
    machine = Machine()
    clock = machine.clock(noted_ms=START + HOUR)
    assert clock.distrust is not None
    assert clock.now_ms() == START + HOUR
    machine.run(HOUR - 1_000, clock)
    assert clock.distrust is not None
    machine.run(1_000, clock)
    assert clock.check() == machine.wall == START + HOUR


def test_start_behind_the_noted_time_is_over_once_the_clock_is_set() -> None:
    """A machine that boots in the past is put right by NTP."""
    machine = Machine()
    clock = machine.clock(noted_ms=START + HOUR)
    machine.leap(HOUR + 60_000)
    assert clock.check() == machine.wall


def test_start_far_ahead_of_the_noted_time_waits_for_an_operator() -> None:
    """A week without a note is more likely a wrong clock than a holiday: a person decides."""
    machine = Machine()
    clock = machine.clock(noted_ms=START - IDLE_MS - 1)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust is not None
    clock.trust()
    assert clock.check() == machine.wall


def test_start_within_the_idle_time_is_trusted() -> None:
    """A service that was off for a week less a bit starts as usual."""
    machine = Machine()
    assert machine.clock(noted_ms=START - IDLE_MS).check() == START
    assert machine.clock(noted_ms=START + LEAP_MS).check() == START


@given(st.lists(st.tuples(st.integers(-(10**12), 10**12), st.integers(0, 100_000)), max_size=20))
def test_clock_after_any_leaps_that_end_where_they_began_is_trusted(leaps: list[tuple[int, int]]) -> None:
    """However often the clock leaps, once it shows the right time again nothing is left of it."""
    machine = Machine()
    machine.is_synchronised = False
    clock = machine.clock()
    for leap, pause in leaps:
        machine.leap(leap)
        machine.wall += pause
        machine.steady += pause
        trusted = clock.now_ms()
        assert abs(trusted - (START + machine.steady - 1_000_000)) <= LEAP_MS
        machine.leap(-leap)
        assert clock.check() == machine.wall


def test_system_clocks_are_read_in_milliseconds() -> None:
    """The real clocks answer: 1970 and the boot are both in the past, and the kernel says whether it is in step."""
    assert now_ms() > START
    assert 0 < boot_ms() < now_ms()
    assert is_synchronised() in {True, False}
