"""The clock of a node of a fleet: it books at the database's time only while that agrees with the node's own."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from spotledger.clock import ADOPTED_LEAP_MS, LEAP_MS, STEADY_MS
from spotledger.errors import ClockUntrusted, LedgerCorrupt
from spotledger.ops.fleet_clock import CLOCK_FILE, FRESH_MS, SLOW_MS, FleetClock
from support_clock import DAY, HOUR, START, Machine

MINUTE = 60_000
LEDGER = "00000000-0000-4000-8000-000000000000"


class Fleet:
    """A node on a machine, and a database whose clock may be wrong by ``error`` ms."""

    def __init__(self, folder: Path | None = None) -> None:
        self.machine = Machine()
        self.error = 0
        self.folder = folder
        self.clock = self.start()

    def start(self, worker: int = 0, not_before_ms: int = 0) -> FleetClock:
        """Start a process of the node, which asks the database for its time at once."""
        self.clock = FleetClock(
            LEDGER, self.folder, worker, not_before_ms=not_before_ms, sources=self.machine.sources
        )  # fmt: skip
        self.look()
        return self.clock

    @property
    def server_ms(self) -> int:
        """What the database's clock shows."""
        return self.machine.true + self.error

    def look(self, took_ms: int = 0) -> None:
        """Ask the database for its time, which it reads at once; the answer takes *took_ms*."""
        server_ms = self.server_ms
        self.machine.wait(took_ms)
        self.clock.observe(server_ms, took_ms)

    def run(self, ms: int) -> None:
        """Let time pass, while the node asks the database every second."""
        for _ in range(ms // 1_000):
            self.machine.wait(1_000)
            self.look()

    def book(self, before_ms: int = 0, after_ms: int = 0) -> int:
        """Return when a group is booked whose lock is granted after *before_ms* and answered *after_ms* later."""
        asked_ms = self.clock.before_asking()
        self.machine.wait(before_ms)
        server_ms = self.server_ms
        self.machine.wait(after_ms)
        return self.clock.check_server(server_ms, asked_ms)

    def recovered(self) -> int:
        """Return when a group is booked after the next answer of the database."""
        self.look()
        return self.book()

    def is_refused(self) -> bool:
        """Say whether a group is refused by what the database answers now."""
        self.machine.wait(FRESH_MS)
        try:
            self.book()
        except ClockUntrusted:
            return True
        return False


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Give a node that agrees with its database."""
    return Fleet(tmp_path)


# --- agreement and disagreement ---------------------------------------------------------------------


@pytest.mark.parametrize("error", [0, 1, -1, LEAP_MS, -LEAP_MS])
def test_group_is_booked_at_the_time_of_a_database_that_agrees(error: int) -> None:
    """Within the bound the database's clock counts, not the node's."""
    fleet = Fleet()
    fleet.error = error
    assert fleet.book() == START + error
    assert fleet.clock.distrust() is None


@pytest.mark.parametrize("error", [LEAP_MS + 1, -LEAP_MS - 1, 5 * HOUR, -5 * HOUR, 365 * DAY])
def test_database_whose_clock_leaps_is_refused_until_it_is_right(fleet: Fleet, error: int) -> None:
    """The time that counts goes on as if there had been no leap, and nobody has to help afterwards."""
    fleet.error = error
    assert fleet.is_refused()
    fleet.run(10 * MINUTE if abs(error) > ADOPTED_LEAP_MS else STEADY_MS - 2_000)
    assert fleet.is_refused()
    assert fleet.clock.now_ms() == fleet.machine.true
    fleet.error = 0
    assert fleet.recovered() == fleet.machine.true
    assert fleet.clock.distrust() is None


def test_refusal_names_both_times_and_the_cure(fleet: Fleet) -> None:
    """Whoever reads it knows which clock to look at, and what would pass."""
    fleet.error = -HOUR
    with pytest.raises(ClockUntrusted) as refused:
        fleet.book()
    for part in (
        "the database's clock, 2023-11-14T21:13:20Z, is 60.0 min behind this node's, 2023-11-14T22:13:20Z",
        "spotledger clock trust",
        "the same idempotency key",
    ):
        assert part in refused.value.message
    state = fleet.clock.state()
    assert (state.now_ms, state.wall_ms, state.offset_ms) == (START, START - HOUR, -HOUR)


@pytest.mark.parametrize("leap", [5 * HOUR, -5 * HOUR])
def test_node_whose_clock_leaps_refuses_until_it_is_right(fleet: Fleet, leap: int) -> None:
    """The database's clock is right all the while, and so is the time that counts."""
    fleet.machine.leap(leap)
    assert fleet.is_refused()
    assert fleet.clock.now_ms() == fleet.machine.true
    assert fleet.clock.wall_if_untrusted_ms() == fleet.machine.wall
    fleet.machine.leap(-leap)
    assert fleet.recovered() == fleet.machine.true
    assert fleet.clock.wall_if_untrusted_ms() is None


def test_nonce_passes_by_the_databases_clock_while_that_is_not_trusted(fleet: Fleet) -> None:
    """A client may have its time from there; the time that counts is the node's."""
    fleet.error = HOUR
    fleet.look()
    fleet.machine.wait(500)
    assert fleet.clock.wall_if_untrusted_ms() == fleet.machine.true + HOUR
    assert fleet.clock.now_ms() == fleet.machine.true


def test_group_is_refused_before_the_lock_while_the_last_answer_is_fresh(fleet: Fleet) -> None:
    """A node that cannot book does not hold up those that can; where nobody asks, a group asks again."""
    fleet.error = HOUR
    fleet.look()
    with pytest.raises(ClockUntrusted):
        fleet.clock.before_asking()
    fleet.machine.wait(FRESH_MS)
    fleet.error = 0
    assert fleet.book() == fleet.machine.true


def test_each_leap_is_logged_when_it_begins_and_ends(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """However often the clocks are compared."""
    with caplog.at_level(logging.INFO):
        for error in (HOUR, 2 * HOUR, 0):
            fleet.error = error
            fleet.run(10_000)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "the database's clock is 60.0 min ahead of this node's" in caplog.text


def test_slow_drift_of_the_database_is_not_followed(fleet: Fleet) -> None:
    """Small steps add up to a wrong clock."""
    fleet.machine.is_synchronised = False
    for _ in range(5):
        fleet.error += 500
        fleet.run(5 * MINUTE)
    assert fleet.is_refused()


# --- slow answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [0, 8_000])
@pytest.mark.parametrize("after", [0, 8_000, HOUR])
def test_slow_round_trip_is_no_disagreement(fleet: Fleet, before: int, after: int) -> None:
    """The lock may be waited for, the network slow, and the node frozen: the database's time fits in between."""
    began = fleet.machine.true
    assert fleet.book(before, after) == began + before
    assert fleet.clock.distrust() is None


def test_slow_round_trip_hides_no_larger_leap(fleet: Fleet) -> None:
    """A time that fits no moment of the round trip is refused."""
    fleet.error = HOUR
    with pytest.raises(ClockUntrusted):
        fleet.book(4_000, 4_000)


def test_slow_answer_does_not_end_a_disagreement(fleet: Fleet) -> None:
    """It fits, but so would a wrong clock; the next quick answer tells."""
    fleet.error = 5_000
    fleet.look()
    fleet.look(took_ms=10_000)
    assert fleet.clock.distrust() is not None
    fleet.look(took_ms=SLOW_MS)
    assert fleet.clock.distrust() is not None
    fleet.error = 0
    fleet.look(took_ms=SLOW_MS)
    assert fleet.clock.distrust() is None


# --- an offset that stays ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ADOPTED_LEAP_MS, -ADOPTED_LEAP_MS, 5_000])
def test_small_steady_offset_is_taken_over_by_itself(fleet: Fleet, error: int) -> None:
    """After a minute, where the kernel says that the node's clock is synchronised; then the database's time counts."""
    fleet.error = error
    fleet.look()
    fleet.run(STEADY_MS - 1_000)
    assert fleet.clock.distrust() is not None
    fleet.run(1_000)
    assert fleet.book() == fleet.clock.now_ms() == fleet.machine.true + error
    fleet.error = 0
    assert fleet.recovered() == fleet.clock.now_ms() == fleet.machine.true


def test_steady_offset_is_taken_over_although_answers_are_slow(fleet: Fleet) -> None:
    """Round trips that differ by more than the jitter do not begin the minute anew."""
    fleet.error = 5_000
    fleet.look()
    for took in (10, 400, 50, 800) * 20:
        fleet.machine.wait(1_000 - took)
        fleet.look(took)
    assert fleet.clock.distrust() is None


@pytest.mark.parametrize(("error", "is_synchronised"), [(ADOPTED_LEAP_MS + 1, True), (5_000, False)])
def test_other_offsets_wait_for_an_operator(fleet: Fleet, error: int, is_synchronised: bool) -> None:
    """A large one, or one of a node that nobody keeps right; the operator's word makes the database's time count."""
    fleet.error, fleet.machine.is_synchronised = error, is_synchronised
    fleet.look()
    fleet.run(10 * STEADY_MS)
    assert fleet.is_refused()
    fleet.clock.trust()
    assert fleet.book() == fleet.clock.now_ms() == fleet.machine.true + error
    assert fleet.clock.distrust() is None


# --- which clock was wrong --------------------------------------------------------------------------


def test_node_that_started_wrong_goes_on_once_its_clock_is_set() -> None:
    """The wall clock leaps then, but to the time of the database, with which this node never agreed."""
    fleet = Fleet()
    fleet.machine.leap(5 * HOUR)
    fleet.start()
    assert fleet.is_refused()
    fleet.machine.leap(-5 * HOUR)
    assert fleet.recovered() == fleet.machine.true


def test_node_whose_wrong_clock_an_operator_passed_over_goes_on_once_it_is_set(fleet: Fleet) -> None:
    """The operator trusted the database's clock; the node's own follows."""
    fleet.machine.leap(5 * HOUR)
    fleet.look()
    fleet.clock.trust()
    assert fleet.book() == fleet.clock.now_ms() == fleet.machine.true
    fleet.machine.leap(-5 * HOUR)
    assert fleet.recovered() == fleet.clock.now_ms() == fleet.machine.true


@pytest.mark.parametrize("is_restarted", [False, True])
def test_both_clocks_leap_together_is_refused(fleet: Fleet, is_restarted: bool) -> None:
    """Node and database on one machine have one wall clock; only the boot clock tells, also after a restart."""
    fleet.run(5_000)
    for error in (5 * HOUR, -5 * HOUR):
        fleet.machine.error = fleet.error = error
        if is_restarted:
            fleet.start()
        fleet.look()
        assert fleet.is_refused()
        assert fleet.clock.now_ms() == fleet.machine.true
        fleet.machine.error = fleet.error = 0
        assert fleet.recovered() == fleet.machine.true


def test_both_clocks_in_the_past_after_a_boot_wait(fleet: Fleet) -> None:
    """They agree, but the last entry was booked later."""
    fleet.folder = None
    fleet.machine.reboot()
    fleet.machine.error = fleet.error = -HOUR
    fleet.start(not_before_ms=fleet.machine.true)
    assert fleet.is_refused()
    fleet.machine.error = fleet.error = 0
    assert fleet.recovered() == fleet.machine.true


# --- restarts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("error", [5 * HOUR, -5 * HOUR])
def test_restart_while_one_clock_is_wrong_is_not_fooled(fleet: Fleet, error: int, boots: bool) -> None:
    """Whichever it is; it goes on by itself when the clock is right."""
    fleet.run(5_000)
    for place in (fleet.machine, fleet):
        place.error = error
        if boots:
            fleet.machine.reboot()
        fleet.start()
        assert fleet.is_refused()
        place.error = 0
        assert fleet.recovered() == fleet.machine.true


@pytest.mark.parametrize("boots", [False, True])
@pytest.mark.parametrize("error", [HOUR, -HOUR])
def test_what_an_operator_trusted_is_known_after_a_restart(fleet: Fleet, error: int, boots: bool) -> None:
    """Nobody has to say it again; and a clock that is set right afterwards is still one that agrees."""
    fleet.error = error
    fleet.look()
    fleet.clock.trust()
    if boots:
        fleet.machine.reboot(off_ms=30 * DAY)
    fleet.start(not_before_ms=fleet.server_ms)
    assert fleet.book() == fleet.machine.true + error
    fleet.error = 0
    assert fleet.recovered() == fleet.machine.true


def test_node_that_was_off_for_a_month_needs_nobody(fleet: Fleet) -> None:
    """The database knows what time it is."""
    fleet.machine.reboot(off_ms=30 * DAY)
    fleet.start()
    assert fleet.book() == fleet.machine.true


def test_what_an_operator_trusts_in_one_worker_all_of_them_trust(tmp_path: Path) -> None:
    """The call reaches one process of the node; the others find it in the folder."""
    fleet = Fleet(tmp_path)
    workers = [fleet.clock, fleet.start(1), fleet.start(2)]
    fleet.error = HOUR
    for worker in workers:
        fleet.clock = worker
        fleet.look()
    fleet.machine.wait(1_000)
    workers[1].trust()
    for worker in workers:
        fleet.clock = worker
        fleet.look()
        assert fleet.book() == fleet.machine.true + HOUR


def test_what_was_trusted_in_another_worker_before_is_no_word_about_a_later_leap(tmp_path: Path) -> None:
    """An operator trusts what they have seen."""
    fleet = Fleet(tmp_path)
    first, _ = fleet.clock, fleet.start(1)
    fleet.clock.trust()
    fleet.clock = first
    fleet.machine.wait(1_000)
    fleet.error = HOUR
    fleet.run(5_000)
    assert fleet.is_refused()


def test_restart_takes_what_any_worker_noted_last(tmp_path: Path) -> None:
    """Whichever of them an operator told."""
    fleet = Fleet(tmp_path)
    fleet.start(1)
    fleet.error = HOUR
    fleet.look()
    fleet.clock.trust()
    fleet.clock.close()
    fleet.start(0)
    assert fleet.book() == fleet.machine.true + HOUR


# --- any story --------------------------------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["node", "database", "right", "run", "restart", "boot"]),
        st.sampled_from([3_000, 5 * MINUTE, HOUR, 5 * DAY, 30 * DAY]).flatmap(
            lambda size: st.sampled_from([size, -size])
        ),
    ),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_any_story_in_which_one_clock_is_right_books_at_the_true_time_or_not_at_all(
    events: list[tuple[str, int]],
) -> None:
    """A group is booked while both clocks are right, whatever happened before, and never while one is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder))
        machine = fleet.machine
        machine.is_synchronised = False
        for number, (kind, size) in enumerate(events, 1):
            machine.wait(1_000)
            if kind == "node" and not fleet.error:
                machine.error = size
            elif kind == "database" and not machine.error:
                fleet.error = size
            elif kind == "right":
                machine.error = fleet.error = 0
            elif kind == "run":
                fleet.run(90_000)
            elif kind == "restart":
                fleet.start()
            elif kind == "boot":
                machine.reboot(off_ms=abs(size))
                machine.boot = number.to_bytes(16, "big")
                fleet.start()
            assert fleet.is_refused() is bool(machine.error or fleet.error), (events, fleet.clock.distrust())


# --- the note ---------------------------------------------------------------------------------------


def test_note_that_is_damaged_stops_the_start_and_says_what_to_do(fleet: Fleet, tmp_path: Path) -> None:
    """What it knew cannot be guessed."""
    fleet.clock.close()
    path = tmp_path / CLOCK_FILE
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(LedgerCorrupt, match="if its clock is right, remove it"):
        fleet.start()


def test_note_of_another_worker_that_is_damaged_counts_for_nothing(fleet: Fleet, tmp_path: Path) -> None:
    """Each process depends on its own."""
    (tmp_path / f"{CLOCK_FILE}-7").write_bytes(b"x" * 8192)
    fleet.start()
    assert fleet.book() == fleet.machine.true


def test_note_is_renewed_once_a_minute(fleet: Fleet, tmp_path: Path) -> None:
    """Not with each answer of the database."""
    path = tmp_path / CLOCK_FILE

    def changes(act: Callable[[], None]) -> bool:
        before = path.read_bytes()
        act()
        return path.read_bytes() != before

    assert not changes(lambda: fleet.run(59_000))
    assert changes(lambda: fleet.run(1_000))
    assert not changes(lambda: fleet.run(59_000))


def test_word_about_the_databases_clock_is_heeded_by_every_node_that_disagrees(fleet: Fleet) -> None:
    """A number that rises while the node disagrees; not one that was there before, and not for its own wall clock."""
    fleet.clock.heed(7)
    fleet.error = HOUR
    fleet.look()
    assert fleet.is_refused()
    fleet.clock.heed(7)
    assert fleet.is_refused()
    fleet.clock.heed(8)
    assert not fleet.is_refused()
    assert fleet.clock.now_ms() == fleet.server_ms
    fleet.machine.leap(DAY)
    fleet.look()
    fleet.clock.heed(9)
    assert fleet.is_refused()


def test_operator_who_trusts_the_clock_of_a_node_tells_the_others(fleet: Fleet) -> None:
    """They are told once, after the node itself trusts it."""
    told: list[str | None] = []
    clock = FleetClock(
        LEDGER, None, sources=fleet.machine.sources, tell_others=lambda: told.append(clock.distrust())
    )  # fmt: skip
    clock.observe(fleet.machine.true + HOUR, 0)
    assert clock.distrust() is not None
    clock.trust()
    assert told == [None]
