"""
The trusted clock of a node of a fleet: the clock of the database, compared with the node's own.

The node cannot know which of the two is wrong. So nothing is booked while they disagree by more than the bound, nor
while the node's wall clock disagrees with its boot clock. A server's time is read between two looks at the node's; it
disagrees only if it fits no moment between them. See ``docs/decisions/0014-fleet-clock.md``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.clock import (
    FOLLOW_MS,
    LEAP_MS,
    SYSTEM,
    UNKNOWN_BOOT,
    Clock,
    ClockState,
    Moment,
    TimeSources,
    TrustedClock,
    span,
    untrusted,
)
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.two_slots import Form, TwoSlots, read_two_slots

CLOCK_FILE: Final = "noted-clock"
#: While nothing is booked because of the clock, a group asks the server for its time only if nobody did for so long.
FRESH_MS: Final = 1_000
#: An answer that took longer may show that the clocks disagree, but not that they agree again.
SLOW_MS: Final = 1_000
#: The last second that can be written as a date: the end of the year 9999.
LAST_SECOND: Final = 253_402_300_799

_log = logging.getLogger("spotledger.clock")


class ClockNote(NamedTuple):
    """What a node knew of the time."""

    ledger_id: str
    #: The node's own trusted time in ms since 1970, by the steady clock *steady_ms* of the boot *boot_id*.
    time_ms: int
    boot_id: bytes
    steady_ms: int
    #: How far the database's clock is ahead of it and trusted all the same.
    offset_ms: int
    #: 1 if the two agreed last, else 0.
    agreed: int
    #: When an operator last trusted the clock, by the steady clock of this boot; 0 for never.
    trusted_ms: int


#: The fields after the ledger id.
_FORM: Final = Form(
    b"SpoC\x01\x00\x00\x00", "Q16sQqQQ", ClockNote, "what this node knew of the time; if its clock is right, remove it"
)


class NodeClock(TrustedClock):
    """The clock of the node itself. The database tells whether it was set back to the right time."""

    resumes = True


class ServerClock(TrustedClock):
    """
    The database's clock, compared with the trusted time of the node, which is the steady clock here.

    It is compared as it stands and never followed: both are set by others, so a drift is as wrong as a leap.
    """

    name = "the database's clock"
    compared_with = "this node's"

    def __init__(self, own: TrustedClock, leap_ms: int, sources: TimeSources) -> None:
        """Compare with *own*."""
        super().__init__(leap_ms=leap_ms, sources=sources._replace(wall_ms=own.now_ms, steady_ms=own.now_ms))
        self.go_on_from(0, agreed=False)

    def go_on_from(self, offset_ms: int, *, agreed: bool) -> None:
        """Start with what was trusted before."""
        #: How far the server's clock is ahead of the node's and trusted all the same.
        self._offset = offset_ms
        #: Whether the two agreed when they were last trusted.
        self.agreed = agreed

    @property
    def offset_ms(self) -> int:
        """How far the trusted time of the fleet is ahead of the node's own."""
        return self._offset

    @property
    def why(self) -> str | None:
        """Why it is not trusted, as far as is known; None while it is."""
        return self._distrust

    def read(self, server_ms: int, least_ms: int, most_ms: int) -> None:
        """Take the time of the server, which was read while the node's time was from *least_ms* to *most_ms*."""
        low, high = server_ms - most_ms, server_ms - least_ms
        is_slow = high - low > SLOW_MS
        with self._guard:
            # A clock that was trusted at some offset and is right again is as good.
            target = min((self._offset, 0), key=lambda offset: abs(_nearest(offset, low, high) - offset))
            if is_slow and self._distrust is not None:
                return
            if abs(_nearest(target, low, high) - target) > self._leap_ms:
                last = self._offset if self._leapt_to is None else self._leapt_to
                self._watch(_nearest(last, low, high), most_ms)
                self.agreed = self.agreed and self._distrust is not None
                return
            if self._distrust is not None:
                _log.warning("the database's clock and this node's agree again; writes go on")
            self._offset, self.agreed = target, self.agreed or (target == 0 and not is_slow)
            self._trust_again(most_ms)

    def accept(self, offset_ms: int) -> None:
        """Trust a server whose clock is *offset_ms* ahead of the node's."""
        with self._guard:
            self.agreed = abs(offset_ms) <= self._leap_ms
            self._accept(0 if self.agreed else offset_ms, 0)


def _nearest(value: int, low: int, high: int) -> int:
    return min(max(value, low), high)


class FleetClock(Clock):
    """The clock of a node: the database's, while it agrees with the node's own trusted clock. Any thread may use it."""

    def __init__(
        self,
        ledger_id: str,
        folder: Path | None = None,
        worker: int = 0,
        *,
        not_before_ms: int = 0,
        leap_ms: int = LEAP_MS,
        sources: TimeSources = SYSTEM,
        tell_others: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Start from the wall clock of this machine, if it fits what was noted.

        Args:
            ledger_id: The ledger.
            folder: Where to note what is known of the time for the next start; None for nowhere.
            worker: The number of this process among those that share the folder.
            not_before_ms: Where nothing was noted: a time that is over, in ms since 1970.
            leap_ms: How far the clocks may differ, in ms, > 0.
            sources: Where the time comes from.
            tell_others: Tells all nodes that an operator trusts the clock of the database.

        Raises:
            LedgerCorrupt: Both slots of a note are damaged.
            StoreUnavailable: The note can be neither read nor made.
        """
        super().__init__(sources.wall_ms)
        self._sources = sources
        self._leap_ms = leap_ms
        self._ledger_id = ledger_id
        self._lock = threading.RLock()
        self._tell_others = tell_others
        #: How often an operator had said to any node that the database's clock is right; None before it was read.
        self._heeded: int | None = None
        self._folder = folder
        self._file = None if folder is None else _opened(folder / (f"{CLOCK_FILE}-{worker}" if worker else CLOCK_FILE))
        note = self._latest()
        #: A time that is over, and when an operator last trusted the clock; by the steady clock, 0 for never.
        self._least_ms, self._trusted_ms = not_before_ms, 0
        noted = None
        if note is not None:
            self._least_ms, self._trusted_ms = note.time_ms + min(0, note.offset_ms), note.trusted_ms
            noted = Moment(note.time_ms, note.boot_id, note.steady_ms) if note.boot_id != UNKNOWN_BOOT else None
        # After another boot the database tells whether a clock is too far ahead.
        self._own = NodeClock(noted, not_before_ms=self._least_ms, leap_ms=leap_ms, sources=sources)
        self._server = ServerClock(self._own, leap_ms, sources)
        if note is not None:
            self._server.go_on_from(note.offset_ms, agreed=bool(note.agreed))
        #: The time of the server that was read last, and the steady clock then; None before.
        self._reading: tuple[int, int] | None = None
        #: Since when the clock is not trusted, by the steady clock; None while it is.
        self._distrusted_at: int | None = None
        #: What was noted last beside the time, and when.
        self._noted: tuple[int, bool] | None = None
        self._noted_at = 0
        self._is_failing = False

    # --- the time ---------------------------------------------------------------------------------------

    def reached_ms(self) -> int:
        """Return the greatest time that it has ever been: now, or what was noted."""
        return max(self.now_ms(), self._least_ms)

    def now_ms(self) -> int:
        """Return the time that counts, in milliseconds since 1970."""
        return self._own.now_ms() + self._server.offset_ms

    def before_asking(self) -> int:
        """Return the steady time; raise if a recent answer of the server has shown that nothing may be booked."""
        steady, reading = self._sources.steady_ms(), self._reading
        if reading is not None and steady - reading[1] < FRESH_MS:
            self._refuse()
        return steady

    def check(self) -> int:
        """Return the time that counts; raise ClockUntrusted if nothing may be booked, as far as is known."""
        self._refuse()
        return self.now_ms()

    def check_server(self, server_ms: int, asked_ms: int) -> int:
        """
        Return the time of the database, *server_ms*, for what is about to be booked.

        Raises:
            ClockUntrusted: It disagrees with the node's clock, or that one leapt; nothing may be booked.
        """
        with self._lock:
            self._take(server_ms, asked_ms)
            self._refuse()
        return server_ms

    def observe(self, server_ms: int, age_ms: int) -> None:
        """Compare the time of the database, *server_ms*, which was read at most *age_ms* ago."""
        with self._lock:
            self._take(server_ms, self._sources.steady_ms() - age_ms)

    def _refuse(self) -> None:
        distrust = self.distrust()
        if distrust is not None:
            raise untrusted(distrust)

    def _take(self, server_ms: int, asked_ms: int) -> None:
        # In this order: a process that is stopped between the two only makes the span longer.
        now = self._own.now_ms()
        steady = self._sources.steady_ms()
        took = max(0, steady - asked_ms)
        self._server.read(server_ms, now - took, now)
        self._reading = server_ms, steady
        if self.distrust() is None:
            self._distrusted_at = None
        else:
            self._distrusted_at = self._distrusted_at or steady
            self._follow_siblings(self._distrusted_at)
            self._correct(took)
        if self._noted != self._to_note() or steady - self._noted_at >= FOLLOW_MS:
            self._note()

    def _correct(self, took_ms: int) -> None:
        """
        Trust a wall clock that was set to the time of the database, if the two have not agreed before.

        Where they had agreed before, both may have leapt together, as they do on one machine.
        """
        wall, server = self._wall_ms(), self._server_now()
        is_set = self._own.distrust() is not None and wall + self._leap_ms >= self._least_ms
        if self._server.agreed or not is_set or server is None:
            return
        if took_ms <= SLOW_MS and abs(server - wall) <= self._leap_ms:
            self._own.trust("the wall clock was set to the time of the database, and is trusted")
            self._server.accept(0)

    def _server_now(self) -> int | None:
        """Return the time of the database now, as far as is known."""
        reading = self._reading
        return None if reading is None else reading[0] + self._sources.steady_ms() - reading[1]

    # --- what is not trusted ----------------------------------------------------------------------------

    def distrust(self) -> str | None:
        """Return why nothing may be booked now, in words; None while it may."""
        own = self._own.distrust()
        if own is not None or self._server.why is None:
            return own
        now, server = self._own.now_ms(), self._server_now() or 0
        side = "ahead of" if server > now else "behind"
        return f"the database's clock, {_text(server)}, is {span(abs(server - now))} {side} this node's, {_text(now)}"

    def state(self) -> ClockState:
        """Return what the clock shows; as the wall clock's time that of the database, unless the node's own leapt."""
        own, offset, distrust = self._own.state(), self._server.offset_ms, self.distrust()
        wall = own.wall_ms if own.distrust is not None else self._server_now() or own.wall_ms
        return ClockState(own.now_ms + offset, wall, distrust)

    def trust(self) -> None:
        """
        Trust the clock of the database as it stands, and the wall clock, on the word of an operator; note it.

        The other nodes are told that the clock of the database is right.

        Raises:
            StoreUnavailable: They could not be told; this node trusts it all the same.
        """
        with self._lock:
            self._own.trust()
            self._trust_server()
            file = self._file
        if file is not None:
            with suppress(OSError):
                file.sync()
        self._tell_others()

    def heed(self, trusts: int) -> None:
        """
        Trust the clock of the database if an operator has said to any node that it is right, *trusts* times by now.

        It counts for a disagreement that this node has at that moment, and only of the database's clock: whether the
        wall clock of this node is right, nobody has said.
        """
        with self._lock:
            is_new, self._heeded = self._heeded is not None and trusts > self._heeded, trusts
            if is_new and self._server.why is not None:
                self._trust_server()

    def _trust_server(self) -> None:
        server = self._server_now()
        if server is not None:
            ahead = server - self._own.now_ms()
            _log.warning("an operator trusts the database's clock, which is %s ahead of this node's", span(ahead))
            self._server.accept(ahead)
        self._trusted_ms = self._sources.steady_ms()
        self._note()

    # --- what is noted ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Note the time, and close the file."""
        with self._lock:
            self._note()
            file, self._file = self._file, None
            if file is not None:
                with suppress(OSError):
                    file.close()

    def _to_note(self) -> tuple[int, bool]:
        return self._server.offset_ms, self._server.agreed

    def _note(self) -> None:
        """Note what is known; while the clocks disagree, what was noted before is still what is known."""
        moment, (offset, agreed) = self._own.moment(), self._to_note()
        self._noted = offset, agreed
        if moment is None or self._file is None or self.distrust() is not None:
            return
        self._noted_at = moment.steady_ms
        note = ClockNote(self._ledger_id, *moment, offset, int(agreed), self._trusted_ms)
        try:
            self._file.write(note)
        except OSError as problem:
            if not self._is_failing:
                _log.error("the time could not be noted in %s: %s", self._file.path, problem.strerror or problem)
            self._is_failing = True
        else:
            self._is_failing = False

    def _follow_siblings(self, since_ms: int) -> None:
        """Trust what an operator has trusted in another process of this machine *since* then, by the steady clock."""
        note = self._latest()
        if note is None or note.trusted_ms < since_ms or note.trusted_ms == self._trusted_ms:
            return
        self._trusted_ms = note.trusted_ms
        self._own.trust()
        self._server.accept(note.offset_ms)

    def _latest(self) -> ClockNote | None:
        """Return what this process, or another one of this machine, noted last; that of this boot first."""
        if self._folder is None:
            return None
        found = []
        for path in self._folder.glob(f"{CLOCK_FILE}*"):
            with suppress(OSError, LedgerCorrupt):
                note = read_two_slots(path, _FORM).note
                if note is not None:
                    found.append(self._of_this_boot(note))
        return max(found, key=lambda note: (note.boot_id != UNKNOWN_BOOT, note.trusted_ms, note.time_ms), default=None)

    def _of_this_boot(self, note: ClockNote) -> ClockNote:
        """Return *note*; one of another boot without what counts in that boot only."""
        if note.boot_id == self._sources.boot_id() and note.steady_ms <= self._sources.steady_ms():
            return note
        return note._replace(boot_id=UNKNOWN_BOOT, agreed=0, trusted_ms=0)


def _opened(path: Path) -> TwoSlots[ClockNote]:
    try:
        return TwoSlots(path, _FORM)
    except OSError as problem:
        raise StoreUnavailable(f"{path} cannot be used: {problem.strerror}") from problem


def _text(time_ms: int) -> str:
    """Write a time for people, in UTC."""
    seconds = _nearest(time_ms // 1000, 0, LAST_SECOND)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
