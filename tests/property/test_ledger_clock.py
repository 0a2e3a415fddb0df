"""A ledger on a machine whose wall clock does anything keeps to the true time, and nothing stays broken."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given, settings, strategies as st

import spotledger
from spotledger.clock import DRIFT_PPM, FOLLOW_MS, LEAP_MS, STEADY_MS
from spotledger.domain.operations import Expire
from spotledger.errors import ClockUntrusted
from spotledger.ledger.ledger import Ledger
from support_clock import DAY, HOUR, START, Machine
from support_core import seed

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["leap", "right", "wait", "run", "restart", "freeze", "deposit", "look"]),
        st.sampled_from([1_000, 1_900, 3_000, 5 * 60_000, HOUR, 5 * DAY, 30 * DAY]).flatmap(
            lambda size: st.sampled_from([size, -size])
        ),
        st.integers(0, 200_000),
    ),
    min_size=15,
    max_size=30,
)


class Story:
    """What happens to one ledger on one machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machine = Machine()
        self.machine.is_synchronised = False
        self.ledger = self._open()
        seed(self.ledger, "ann")
        self.number = 0
        self.restarts = 0
        #: The true time when each entry was booked.
        self.booked_at = {entry.seq: START for entry in self.ledger.entries()}
        #: When each open hold expires.
        self.holds: dict[int, int] = {}

    def _open(self) -> Ledger:
        return spotledger.open(self.folder, segment_entries=64, time_sources=self.machine.sources)

    @property
    def bound_ms(self) -> int:
        """How far the trusted time may be ahead of the true one, because small steps are followed."""
        passed = self.machine.true - START
        return LEAP_MS * (2 + self.restarts + passed // FOLLOW_MS) + passed * DRIFT_PPM // 1_000_000

    def happen(self, kind: str, size: int, pause: int) -> None:
        """Let one thing happen, and check the ledger."""
        machine = self.machine
        if kind == "leap":
            machine.leap(size)
        elif kind == "right":
            machine.error = 0
        elif kind == "wait":
            machine.wait(pause)
        elif kind == "run":
            machine.run(pause, self.ledger.clock)
        elif kind == "restart":
            self.ledger.note_time()
            self.ledger.close()
            machine.wait(pause)
            self.ledger, self.restarts = self._open(), self.restarts + 1
        else:
            self._write(kind, pause)
        self.check()

    def _write(self, kind: str, pause: int) -> None:
        """Write, if the clock lets us."""
        self.number += 1
        key = f"{kind}-{self.number}"
        head = self.ledger.head
        expires_ms = self.ledger.now_ms + pause + 1
        try:
            if kind == "look":
                self.ledger.execute([])
            elif kind == "deposit":
                self.ledger.deposit("ann", "btc", "1", key=key)
            else:
                receipt = self.ledger.freeze("ann", "btc", "0.1", key=key, expires_ms=expires_ms)
                self.holds[receipt.seq] = expires_ms
        except ClockUntrusted:
            assert self.ledger.clock_distrust is not None
            assert self.ledger.head == head
        else:
            assert self.ledger.clock_distrust is None

    def check(self) -> None:
        """Check every new entry: its time, and that no hold expired early."""
        after = max(self.booked_at)
        for entry in self.ledger.entries(after):
            assert entry.booked_ms >= self.ledger.entries(entry.seq - 2, 1)[0].booked_ms
            assert entry.booked_ms <= self.machine.true + self.bound_ms
            self.booked_at[entry.seq] = self.machine.true
            if entry.kind == Expire.kind:
                [(hold, _)] = entry.holds
                assert self.holds.pop(hold) <= self.machine.true + self.bound_ms
        for hold_id, expires_ms in self.holds.items():
            hold = self.ledger.hold(hold_id)
            assert hold is not None
            assert hold.state == "open"
            assert hold.expires_ms == expires_ms

    def end_well(self) -> None:
        """Set the clock right: within a minute everything works, and what was due is due."""
        machine, ledger = self.machine, self.ledger
        machine.error, machine.is_synchronised = 0, True
        ledger.clock.now_ms()
        machine.run(STEADY_MS, ledger.clock)
        machine.wait(self.bound_ms)
        soon = machine.true + self.bound_ms + 1
        receipt = ledger.freeze("ann", "btc", "0.1", key="after-all", expires_ms=soon)
        assert abs(receipt.entry.booked_ms - machine.true) <= self.bound_ms
        self.holds[receipt.seq] = soon
        assert ledger.seq_at(machine.true) == receipt.seq or receipt.entry.booked_ms > machine.true
        machine.run(HOUR, ledger.clock)
        ledger.execute([])
        self.check()
        assert self.holds == {}


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_ledger_on_any_clock_books_at_the_true_time_and_recovers(events: list[tuple[str, int, int]]) -> None:
    """
    Whatever sequence of leaps, restarts and writes.

    No entry is booked at a time that is not there yet (but for the bound), times never fall, no hold expires early, and
    once the clock is right, every write works again and every hold expires.
    """
    with ExitStack() as stack:
        story = Story(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "data")
        stack.callback(lambda: story.ledger.close())
        for kind, size, pause in events:
            story.happen(kind, size, pause)
        story.end_well()
