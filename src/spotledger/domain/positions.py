"""
Positions in the journal, and the epochs that make them unambiguous after a restore.

A restore goes on from an earlier entry, so it gives numbers again that another history had. Each restore therefore
begins a new epoch with an entry of its own, and a position is ``<epoch>-<seq>``. A plain number means epoch 1.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import Final, NamedTuple

from spotledger.domain.amounts import shown
from spotledger.errors import EpochMissing, InvalidRequest, PreconditionFailed, UnknownPosition

#: An epoch is shown to readers as a JSON number.
EPOCH_LIMIT: Final = 2**53
FIRST_EPOCH: Final = 1
#: A position above zero, as text; for patterns of holds and of the API's schemas.
POSITION_PATTERN: Final = "(?:[1-9][0-9]{0,15}-)?[1-9][0-9]{0,17}"

_POSITION = re.compile(r"\A(?:([1-9][0-9]{0,15})-)?(0|[1-9][0-9]{0,17})\Z")


class Position(NamedTuple):
    """A position as somebody names it; without an epoch where it is a plain number."""

    epoch: int | None
    seq: int


def parse_position(value: object, field: str, *, least: int = 0) -> Position:
    """
    Return the position that *value* names: a number, or text such as ``"42"`` or ``"2-42"``.

    Raises:
        InvalidRequest: It is neither, or its ``seq`` is below *least*.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        found = Position(None, value) if value < 10**18 else None
    else:
        match = _POSITION.match(value) if isinstance(value, str) else None
        found = None if match is None else Position(int(match[1]) if match[1] else None, int(match[2]))
    if found is None or found.seq < least or (found.epoch or 0) >= EPOCH_LIMIT:
        raise InvalidRequest(
            f'{field} is {shown(value)}; a position such as 12, or "2-12" in epoch 2, would pass', field=field
        )
    return found


def seq_of_text(text: str) -> int:
    """Return the ``seq`` in the text of a position, whatever its epoch."""
    return int(text.rpartition("-")[2])


def position_text(epoch: int, seq: int) -> str:
    """Return the position of the entry *seq* of *epoch* as text: a plain number in epoch 1."""
    return str(seq) if epoch == FIRST_EPOCH else f"{epoch}-{seq}"


class EpochStart(NamedTuple):
    """An epoch, and the ``seq`` of its first entry."""

    epoch: int
    seq: int


class Epochs:
    """The epochs of one journal, in order; immutable."""

    __slots__ = ("_starts", "current", "is_first")

    def __init__(self, later: Iterable[EpochStart] = ()) -> None:
        """Take the epochs after the first one, whose entries begin with 1."""
        self._starts = (EpochStart(FIRST_EPOCH, 1), *later)
        self.current = self._starts[-1].epoch
        #: Whether there never was another epoch than the first.
        self.is_first = len(self._starts) == 1

    @property
    def later(self) -> tuple[EpochStart, ...]:
        """The epochs after the first one."""
        return self._starts[1:]

    @property
    def begun_seq(self) -> int:
        """The ``seq`` of the entry with which the current epoch began; 0 in the first one."""
        return 0 if self.is_first else self._starts[-1].seq

    def of(self, seq: int) -> int:
        """Return the epoch of the entry *seq*; that of the head for one that does not exist yet."""
        if self.is_first:
            return FIRST_EPOCH
        return self._starts[bisect_right(self._starts, seq, 1, key=_seq_of_start) - 1].epoch

    def text(self, seq: int) -> str:
        """Return the position of the entry *seq* as text: a plain number in epoch 1."""
        return position_text(self.of(seq), seq)

    def locate(self, position: Position, field: str) -> int:
        """
        Return the ``seq`` of *position*, which may be above the head in the current epoch.

        Raises:
            EpochMissing: A plain number is above the last entry of epoch 1.
            UnknownPosition: The position is of another history than this journal.
        """
        epoch, seq = position
        if self.is_first and (epoch is None or epoch == FIRST_EPOCH):
            return seq
        if self.of(seq) == (FIRST_EPOCH if epoch is None else epoch) or (seq == 0 and epoch in (None, FIRST_EPOCH)):
            return seq
        common = self.text(self._last_common(FIRST_EPOCH if epoch is None else epoch, seq))
        if epoch is not None and not self._has(epoch):
            raise UnknownPosition(
                f"{field} is {epoch}-{seq}, and this journal has no epoch {epoch}; an entry from before that epoch, if"
                " it is in this journal too, would pass",
                field=field,
                last_common=common,
            )
        if epoch is None:
            raise EpochMissing(
                f"{field} is {seq}, which means epoch 1, and that ended with entry {self._starts[1].seq - 1}: the"
                f" ledger was restored; {self.text(seq)} would pass, if it is what is meant",
                field=field,
                last_common=common,
            )
        raise UnknownPosition(
            f"{field} is {epoch}-{seq}, which is not in this journal; the ledger was restored, and what came after"
            f" entry {common} in that epoch is gone",
            field=field,
            last_common=common,
        )

    def _has(self, epoch: int) -> bool:
        return any(start.epoch == epoch for start in self._starts)

    def _last_common(self, epoch: int, seq: int) -> int:
        """
        Return the last entry up to *seq* that this journal surely has in common with the history of *epoch*.

        That is none if this journal never had that epoch: it may have begun anywhere, as after a backup that is older
        than the one that was restored afterwards.
        """
        if not self._has(epoch):
            return 0
        return min([seq, *(start.seq - 1 for start in self._starts if start.epoch > epoch)])

    def require(self, seq: int, epoch: int | None, field: str) -> None:
        """
        Check the precondition that the entry *seq* is of *epoch*, if one is given.

        Raises:
            PreconditionFailed: It is of another epoch.
        """
        if epoch is not None and self.of(seq) != epoch:
            raise PreconditionFailed(
                f"{field} is of epoch {self.of(seq)}, and epoch {epoch} was named; the right one would pass",
                field=field,
                epoch=self.of(seq),
                last_common=self.text(self._last_common(epoch, seq)),
            )

    def begun(self, epoch: int, seq: int) -> Epochs:
        """Return these epochs and a new one, which begins with the entry *seq*."""
        return Epochs((*self.later, EpochStart(epoch, seq)))

    def __eq__(self, other: object) -> bool:
        """Compare by what the epochs are."""
        return isinstance(other, Epochs) and self._starts == other._starts

    def __hash__(self) -> int:
        """Hash by what the epochs are."""
        return hash(self._starts)

    def __repr__(self) -> str:
        """Show the epochs after the first one."""
        return f"Epochs({self.later!r})"


def next_epoch(last: int, epoch: int | None = None) -> int:
    """
    Return the epoch to begin: *epoch* if given, else the one after *last*.

    Raises:
        InvalidRequest: *epoch* is not above *last*, or *last* was the greatest that there can be.
    """
    found = last + 1 if epoch is None else epoch
    if not isinstance(found, int) or not last < found < EPOCH_LIMIT:
        raise InvalidRequest(
            f"epoch is {shown(found)}; {last + 1} or more, below {EPOCH_LIMIT}, would pass", field="epoch"
        )
    return found


def _seq_of_start(start: EpochStart) -> int:
    return start.seq
