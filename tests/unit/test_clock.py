"""The trusted clock: leaps of the wall clock are noticed, and leave no harm once they are over."""

from __future__ import annotations

import logging
from itertools import count

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.clock import (
    ADOPTED_LEAP_MS,
    DRIFT_PPM,
    FOLLOW_MS,
    IDLE_MS,
    JITTER_MS,
    LEAP_MS,
    STEADY_MS,
    UNKNOWN_BOOT,
    Clock,
    Moment,
    TimeSources,
    TrustedClock,
    boot_id,
    boot_ms,
    is_synchronised,
    now_ms,
)
from spotledger.errors import ClockUntrusted
from support_clock import DAY, HOUR, START, Machine

MINUTE = 60_000


# --- while it runs ----------------------------------------------------------------------------------


def test_clock_that_agrees_gives_the_wall_clocks_time() -> None:
    """While both clocks run alike, the time is the wall clock's and is trusted."""
    machine = Machine()
    clock = machine.clock()
    machine.run(10_000, clock)
    assert clock.check() == clock.now_ms() == START + 10_000
    assert clock.distrust() is None
    assert clock.wall_if_untrusted_ms() is None


@pytest.mark.parametrize("leap", [HOUR, -HOUR, 365 * DAY, LEAP_MS + 1, -LEAP_MS - 1])
def test_clock_that_leaps_is_refused_and_time_goes_on_by_the_steady_one(leap: int) -> None:
    """A leap in either direction stops booking; the trusted time goes on as if it had not been."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(leap)
    with pytest.raises(ClockUntrusted, match="spotledger clock trust"):
        clock.check()
    machine.wait(5_000)
    assert clock.now_ms() == START + 5_000
    state = clock.state()
    assert (state.now_ms, state.wall_ms, state.offset_ms) == (START + 5_000, machine.wall, leap)
    assert clock.wall_if_untrusted_ms() == machine.wall


@pytest.mark.parametrize("leap", [LEAP_MS, -LEAP_MS, 1, -1])
def test_clock_within_its_bound_is_trusted(leap: int) -> None:
    """A small correction is no leap."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(leap)
    assert clock.check() == machine.wall


def test_clock_has_the_bound_that_is_set() -> None:
    """The bound is a setting."""
    machine = Machine()
    clock = machine.clock(leap_ms=100)
    machine.leap(101)
    assert clock.distrust() is not None


def test_clock_that_leaps_back_is_trusted_again_at_once() -> None:
    """Forward by hours for one second: afterwards everything is as before."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(5 * HOUR)
    machine.run(1_000, clock)
    assert clock.distrust() is not None
    machine.leap(-5 * HOUR)
    assert clock.check() == START + 1_000


def test_clock_that_leaps_is_logged_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at, the log has one line for the leap and one for its end."""
    machine = Machine()
    clock = machine.clock()
    with caplog.at_level(logging.WARNING):
        for leap in (HOUR, 0, HOUR, -2 * HOUR):
            machine.leap(leap)
            machine.run(10_000, clock)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_clock_that_stays_at_a_small_leap_is_adopted_when_steady_and_synchronised() -> None:
    """As NTP sets a clock after a boot or a pause: trusted by itself after a minute."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(ADOPTED_LEAP_MS)
    clock.now_ms()
    machine.run(STEADY_MS - 1_000, clock)
    assert clock.distrust() is not None
    machine.run(1_000, clock)
    assert clock.check() == machine.wall


def test_clock_that_is_not_synchronised_waits_for_an_operator() -> None:
    """A steady clock that nobody keeps right is not adopted by itself."""
    machine = Machine()
    machine.is_synchronised = False
    clock = machine.clock()
    machine.leap(5 * MINUTE)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust() is not None
    clock.trust()
    assert clock.check() == machine.wall


@pytest.mark.parametrize("leap", [ADOPTED_LEAP_MS + 1, -ADOPTED_LEAP_MS - 1, DAY])
def test_clock_with_a_large_leap_waits_for_an_operator(leap: int) -> None:
    """More than ten minutes is never adopted without a person."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(leap)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust() is not None
    clock.trust()
    assert clock.check() == machine.wall


def test_clock_that_keeps_leaping_is_not_steady() -> None:
    """Each new leap begins the minute anew."""
    machine = Machine()
    clock = machine.clock()
    machine.leap(10_000)
    for number in range(10):
        machine.run(STEADY_MS - 1_000, clock)
        machine.leap(JITTER_MS + 1 if number % 2 else -JITTER_MS - 1)
    assert clock.distrust() is not None


def test_clock_that_is_corrected_slowly_is_followed() -> None:
    """Small corrections never count as a leap, however far they go in all."""
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.run(FOLLOW_MS, clock)
        machine.leap(500)
        assert clock.check() == machine.wall


def test_clock_that_creeps_further_than_the_bound_in_a_minute_is_refused() -> None:
    """Many small steps in a short time are a leap."""
    machine = Machine()
    clock = machine.clock()
    machine.run(1_000, clock)
    for _ in range(3):
        machine.leap(LEAP_MS // 2)
        machine.run(1_000, clock)
    assert clock.distrust() is not None


@given(drift=st.integers(-DRIFT_PPM, DRIFT_PPM), pauses=st.lists(st.integers(0, 30 * DAY), max_size=10))
def test_clock_that_drifts_is_followed_however_seldom_it_is_looked_at(drift: int, pauses: list[int]) -> None:
    """What the kernel may slew is no leap, in a library too that is used once a day."""
    machine = Machine()
    clock = machine.clock()
    for pause in pauses:
        machine.wait(pause)
        machine.leap(pause * drift // 1_000_000)
        assert clock.check() == machine.wall


def test_clock_of_a_process_that_was_stopped_within_a_reading_is_read_again() -> None:
    """The two clocks are compared as of one moment, else a stopped process would look like a leap."""
    machine = Machine()
    stops = iter([60_000, 0, 60_000, 60_000])

    def wall() -> int:
        shown = machine.wall
        machine.wait(next(stops, 0))  # stopped after this clock was read, and before the other one is
        return shown

    clock = TrustedClock(sources=machine.sources._replace(wall_ms=wall))
    for _ in range(5):
        assert clock.check() == machine.wall


def test_clock_that_is_trusted_without_need_stays_as_it_is() -> None:
    """To trust a clock that is right changes nothing."""
    machine = Machine()
    clock = machine.clock()
    before = clock.moment()
    clock.trust()
    assert clock.moment() == before
    assert clock.check() == START


# --- at a start -------------------------------------------------------------------------------------


def test_start_without_a_note_trusts_the_wall_clock() -> None:
    """A new ledger has nothing to compare the clock with."""
    assert Machine().clock().check() == START


@pytest.mark.parametrize("behind", [LEAP_MS + 1, HOUR, 365 * DAY])
def test_start_behind_the_noted_time_waits_until_it_is_reached(behind: int) -> None:
    """Nothing is booked before the time that was noted; the time told goes on from there meanwhile."""
    machine = Machine()
    clock = machine.clock(Moment(START + behind))
    assert clock.distrust() is not None
    assert clock.now_ms() == START + behind
    machine.wait(behind)
    assert clock.check() == machine.wall == START + behind


def test_start_behind_the_noted_time_is_not_over_before_it_is_reached() -> None:
    """A steady and synchronised clock is not adopted then, because what was noted may come from a boot long ago."""
    machine = Machine()
    clock = machine.clock(Moment(START + HOUR))
    machine.run(HOUR - LEAP_MS - 1_000, clock)
    assert clock.distrust() is not None
    machine.run(1_000, clock)
    assert clock.check() == machine.wall


@pytest.mark.parametrize("wrong", [-5 * MINUTE, 5 * MINUTE])
def test_start_after_a_boot_adopts_no_clock_by_itself(wrong: int) -> None:
    """Steady and synchronised is not enough there: how long the machine was off is not known."""
    machine = Machine()
    clock = machine.clock(Moment(START - wrong), idle_ms=MINUTE)
    machine.run(4 * MINUTE, clock)
    assert clock.distrust() is not None
    clock.trust()
    machine.leap(wrong)
    clock.now_ms()
    machine.run(STEADY_MS, clock)
    assert clock.check() == machine.wall, "once the time is known, a small leap is adopted again"


def test_start_behind_the_noted_time_is_over_once_the_clock_is_set() -> None:
    """A machine that boots in the past is put right by NTP."""
    machine = Machine()
    clock = machine.clock(Moment(START + HOUR))
    machine.leap(HOUR + MINUTE)
    assert clock.check() == machine.wall


def test_start_behind_the_noted_time_does_not_end_with_a_leap_far_ahead() -> None:
    """Reached is not passed by years; a clock that is then set right is trusted."""
    machine = Machine()
    clock = machine.clock(Moment(START + HOUR))
    machine.leap(365 * DAY)
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust() is not None
    machine.leap(2 * HOUR - 365 * DAY)
    assert clock.check() == machine.wall


def test_start_far_ahead_of_the_noted_time_waits_for_an_operator() -> None:
    """A week without a note is more likely a wrong clock than a holiday: a person decides."""
    machine = Machine()
    clock = machine.clock(Moment(START - IDLE_MS - 1))
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust() is not None
    clock.trust()
    assert clock.check() == machine.wall


def test_start_far_ahead_is_over_once_the_clock_is_set_back() -> None:
    """A clock that shows another year at the boot is put right by NTP, without an operator."""
    machine = Machine()
    machine.leap(3_650 * DAY)
    clock = machine.clock(Moment(START - HOUR))
    machine.run(10 * STEADY_MS, clock)
    assert clock.distrust() is not None
    machine.leap(-3_650 * DAY)
    assert clock.check() == machine.wall


@pytest.mark.parametrize("noted", [START - IDLE_MS, START - HOUR, START, START + LEAP_MS])
def test_start_within_the_idle_time_is_trusted(noted: int) -> None:
    """A service that was off for a week starts as usual."""
    assert Machine().clock(Moment(noted)).check() == START


def test_start_without_a_note_waits_for_the_time_of_the_last_entry() -> None:
    """Where the note is lost, the journal says what is over, and its age says nothing."""
    machine = Machine()
    assert machine.clock(not_before_ms=START - 365 * DAY).check() == START
    clock = machine.clock(not_before_ms=START + HOUR)
    assert clock.distrust() is not None
    machine.leap(HOUR)
    assert clock.check() == machine.wall


@pytest.mark.parametrize("leap", [LEAP_MS + 1_000, HOUR, 5 * DAY])
def test_restart_after_a_leap_is_still_refused(leap: int) -> None:
    """A process that is started again on the same boot knows the time by the steady clock."""
    machine = Machine()
    clock = machine.clock()
    machine.run(5_000, clock)
    noted = clock.moment()
    machine.leap(leap)
    machine.wait(10_000)
    again = machine.clock(noted)
    assert again.distrust() is not None
    assert again.now_ms() == START + 15_000
    machine.leap(-leap)
    assert again.check() == START + 15_000


def test_restart_after_a_small_leap_adopts_it_as_a_running_clock_does() -> None:
    """NTP may have set the clock while the service was stopped."""
    machine = Machine()
    noted = machine.clock().moment()
    machine.leap(ADOPTED_LEAP_MS)
    clock = machine.clock(noted)
    assert clock.distrust() is not None
    machine.run(STEADY_MS, clock)
    assert clock.check() == machine.wall


def test_restart_with_a_clock_that_was_set_back_waits_for_the_noted_time() -> None:
    """An operator may put a clock right that was too fast; nothing is booked twice at one time."""
    machine = Machine()
    machine.is_synchronised = False
    noted = machine.clock().moment()
    machine.leap(-MINUTE)
    machine.wait(30_000)
    clock = machine.clock(noted)
    assert clock.distrust() is not None
    machine.run(30_000 - LEAP_MS, clock)
    assert clock.check() == machine.wall


def test_start_after_a_boot_compares_with_the_noted_time_alone() -> None:
    """The steady clock of another boot says nothing, even where it shows more."""
    machine = Machine()
    noted = machine.clock().moment()
    assert noted is not None
    machine.reboot(off_ms=5 * DAY)
    machine.steady = noted.steady_ms + 1
    assert machine.clock(noted).check() == machine.wall
    unknown = noted._replace(boot_id=UNKNOWN_BOOT)
    machine.boot = UNKNOWN_BOOT
    assert machine.clock(unknown).check() == machine.wall


def test_start_on_a_steady_clock_that_went_back_compares_with_the_noted_time_alone() -> None:
    """A boot id may be the same after a boot, in some sandboxes; then nothing is known of the time between."""
    machine = Machine()
    noted = Moment(START - DAY, machine.boot, machine.steady + 1)
    assert machine.clock(noted).check() == START


def test_start_that_waits_has_nothing_to_note() -> None:
    """Else the noted time would run away from a clock that is behind, at each start."""
    machine = Machine()
    clock = machine.clock(Moment(START + HOUR))
    assert clock.moment() is None
    clock.trust()
    assert clock.moment() == Moment(START, machine.boot, machine.steady)


# --- any sequence -----------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["leap", "creep", "right", "wait", "run", "restart"]),
        st.integers(-400 * DAY, 400 * DAY),
        st.integers(0, 200_000),
    ),
    min_size=10,
    max_size=30,
)


@settings(max_examples=300)
@given(EVENTS)
def test_clock_after_any_events_is_never_far_from_the_true_time_and_recovers(
    events: list[tuple[str, int, int]],
) -> None:
    """
    Whatever the wall clock does while it runs, also over restarts, and whenever it is right again.

    The model: a clock is called synchronised only while it is right. Small steps are followed, so the trusted time may
    be wrong by the bound, and by the bound once more for each minute and each restart; never by more. A restart may
    also be behind by as much as the service was stopped, and then waited, because it goes on from the time that was
    noted. A clock that is right is trusted at once, or after it has been steady.
    """
    machine = Machine()
    machine.is_synchronised = False
    clock, restarts, stopped = machine.clock(), 0, 0

    def check() -> None:
        passed = machine.true - START
        bound = LEAP_MS * (2 + restarts + passed // FOLLOW_MS) + passed * DRIFT_PPM // 1_000_000
        assert -bound - stopped <= clock.now_ms() - machine.true <= bound
        if clock.distrust() is None:
            assert clock.check() == machine.wall

    for kind, size, pause in events:
        is_waiting, before = clock.moment() is None, machine.true
        if kind == "leap":
            machine.leap(size)
        elif kind == "creep":
            machine.leap(size % (2 * LEAP_MS) - LEAP_MS)
        elif kind == "right":
            machine.error = 0
        elif kind == "wait":
            machine.wait(pause)
        elif kind == "run":
            machine.run(pause, clock)
        else:
            noted = clock.moment()
            machine.wait(pause)
            if noted is not None:
                clock, restarts, stopped = machine.clock(noted), restarts + 1, stopped + pause
        stopped += machine.true - before if is_waiting else 0
        check()
    machine.error, machine.is_synchronised = 0, True
    clock.now_ms()
    machine.run(STEADY_MS, clock)
    assert clock.check() == machine.true


# --- the parts --------------------------------------------------------------------------------------


def test_believed_clock_is_trusted_whatever_it_shows() -> None:
    """Tests and databases have a time of their own."""
    times = count(5, -1)
    clock = Clock(lambda: next(times))
    assert [clock.now_ms(), clock.check(), clock.state().now_ms] == [5, 4, 3]
    clock.trust()
    assert (clock.distrust(), clock.moment(), clock.wall_if_untrusted_ms()) == (None, None, None)


def test_system_clocks_are_read_in_milliseconds() -> None:
    """The real clocks answer: 1970 and the boot are both in the past, and the kernel says whether it is in step."""
    assert now_ms() > START
    assert 0 < boot_ms() < now_ms()
    assert is_synchronised() in {True, False}
    assert boot_id() == boot_id()
    assert len(boot_id()) == len(UNKNOWN_BOOT)


def test_clock_of_this_machine_is_trusted_and_known_to_the_next_start() -> None:
    """With the real sources, the next start on the same boot goes on from what was noted."""
    clock = TrustedClock()
    noted = clock.moment()
    assert noted is not None
    assert TimeSources().boot_id() == noted.boot_id
    assert TrustedClock(noted).check() >= noted.time_ms - LEAP_MS


# --- how far the time has come, for requests that are not remembered ---------------------------------


@given(
    ran=st.integers(0, 10 * MINUTE),
    unnoted=st.integers(0, MINUTE),
    leap=st.sampled_from([0, -1, -LEAP_MS, LEAP_MS, -HOUR, HOUR, -30_000]),
)
@settings(max_examples=200, deadline=None)
def test_time_reached_at_a_start_is_never_before_what_was_told(ran: int, unnoted: int, leap: int) -> None:
    """On one boot, whatever the wall clock does meanwhile: the next start counts from no earlier than the last told."""
    machine = Machine()
    clock = machine.clock()
    machine.wait(ran)
    noted = clock.moment()
    machine.wait(unnoted)
    last_told = clock.now_ms()
    machine.leap(leap)
    again = machine.clock(noted)
    assert again.reached_ms() >= last_told
    assert again.reached_ms() >= again.now_ms()


def test_time_reached_after_another_boot_is_at_least_the_noted_time() -> None:
    """The steady clock begins anew with a boot, so the noted time is what is known."""
    machine = Machine()
    clock = machine.clock()
    machine.wait(MINUTE)
    noted = clock.moment()
    machine.reboot()
    machine.leap(-LEAP_MS)
    again = machine.clock(noted)
    assert again.reached_ms() == START + MINUTE
    assert Clock(lambda: 7).reached_ms() == 7
