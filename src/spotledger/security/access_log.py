"""
The access log before it is written: what the listeners count, and the lines that it becomes.

A listener adds one to a count for each request, and does nothing else. Once a second :class:`MinuteLines` makes lines
of the counts, one for each minute, actor, address, call and outcome. What strangers can send is without end, so each
minute has room for a bounded number of lines of each sort; what does not fit is summed in a line with ``*`` in place of
what differs. No sort takes the room of another: refusals do not displace what passed, and refusals without a known
credential do not displace those of a known one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

MINUTE_MS: Final = 60_000
#: Stands for several addresses, calls or known credentials.
SEVERAL: Final = "*"
#: The reason of a line that sums refusals that have no line of their own.
LEFT_OUT: Final = "left_out"
#: The address of a command that works in the process of the ledger.
LOCAL: Final = "local"
#: The call of a request that has no route.
OTHER: Final = "other"
#: The reason of a call whose client disconnected before its request was complete.
DISCONNECTED: Final = "client_disconnected"

#: Lines of one address in one minute: refusals without a known credential, and as many with one.
LINES_PER_ADDRESS: Final = 20
#: Lines of one actor in one minute, of calls that passed.
LINES_PER_ACTOR: Final = 100
#: Lines of one minute, by sort: what passed, refusals with a known credential, refusals without.
PASSED_LINES: Final = 50_000
NAMED_LINES: Final = 10_000
UNNAMED_LINES: Final = 2_000

#: Actor, its label, address, call, and the code of the refusal; no code if the call passed.
Access: TypeAlias = tuple[str, str, str, str, str]


class AccessLine(NamedTuple):
    """One line of the access log as it is stored: how often something happened in one minute."""

    #: Its place in the log; lines that are written later have a greater one.
    line: int
    #: When the minute began, in ms since 1970.
    minute_ms: int
    actor: str
    actor_label: str
    address: str
    call: str
    #: The code of the refusal; empty if the call passed.
    reason: str
    times: int


class AccessFilter(NamedTuple):
    """Which lines are wanted: all that are not None hold. Times are ms since 1970; the minute of *from_ms* is in."""

    actor: str | None = None
    address: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None


class AccessCounts:
    """How often each access happened since the counts were taken last. Only the event loop uses it."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        """Begin with nothing counted; a listener may add to :attr:`counts` itself."""
        self.counts: dict[Access, int] = {}

    def count(self, access: Access) -> None:
        """Count one access."""
        self.counts[access] = self.counts.get(access, 0) + 1

    def take(self) -> dict[Access, int]:
        """Return what was counted, and begin again."""
        taken, self.counts = self.counts, {}
        return taken


@dataclass(slots=True)
class PendingLine:
    """A line of the running minute: what was counted, how much of it is in the file, and where."""

    minute_ms: int
    access: Access
    count: int = 0
    written: int = 0
    #: Its place in the file; 0 before it is there.
    line: int = 0


class MinuteLines:
    """The lines of one minute."""

    def __init__(self, minute_ms: int) -> None:
        """Begin the minute that begins at *minute_ms*."""
        self.minute_ms = minute_ms
        self._lines: dict[Access, PendingLine] = {}
        #: How many lines each sort has, and within it each actor or address.
        self._taken: dict[tuple[str, str], int] = {}

    def add(self, counts: Mapping[Access, int]) -> None:
        """Add *counts* to the lines."""
        for access, count in counts.items():
            line = self._lines.get(access) or self._line_for(access)
            line.count += count

    def unwritten(self) -> Iterator[PendingLine]:
        """Yield the lines of which the file does not have everything."""
        return (line for line in self._lines.values() if line.written < line.count)

    def forget_places(self) -> None:
        """Forget where the lines are: the file is another one, or may be."""
        for line in self._lines.values():
            line.line = 0

    def __len__(self) -> int:
        return len(self._lines)

    def _line_for(self, access: Access) -> PendingLine:
        """Return a new line for *access*, or the one that sums what does not fit."""
        found = self._lines.get(fitting := self._fitting(access))
        if found is None:
            found = self._lines[fitting] = PendingLine(self.minute_ms, fitting)
        return found

    def _fitting(self, access: Access) -> Access:
        """Return *access* if there is room for one more line of its sort, else the access that it is summed with."""
        actor, label, address, _, reason = access
        if reason:
            sort, room, owner, owner_room = "unnamed", UNNAMED_LINES, address, LINES_PER_ADDRESS
            if actor:
                sort, room = "named", NAMED_LINES
            whose = SEVERAL if actor else ""
            summed = (whose, "", address, SEVERAL, LEFT_OUT)
        else:
            sort, room, owner, owner_room, whose = "passed", PASSED_LINES, actor, LINES_PER_ACTOR, SEVERAL
            summed = (actor, label, SEVERAL, SEVERAL, "")
        taken, owner_taken = self._taken.get((sort, ""), 0), self._taken.get((sort, owner), 0)
        if taken >= room and not owner_taken:
            return (whose, "", SEVERAL, SEVERAL, LEFT_OUT if reason else "")
        if taken >= room or owner_taken >= owner_room:
            return summed
        self._taken[sort, ""] = taken + 1
        self._taken[sort, owner] = owner_taken + 1
        return access
