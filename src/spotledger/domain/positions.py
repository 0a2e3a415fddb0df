"""
Positions: which entry of the journal is meant, also after a restore gave its number again.

``2-121`` is the entry 121 of epoch 2. A restore begins a new epoch with an entry ``begin_epoch``, so what was written
between the backup and the restore has positions of the old epoch that are not in this journal any more. A plain number
means epoch 1.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from spotledger.errors import EpochMissing, InvalidRequest, UnknownPosition

_POSITION = re.compile(r"\A(?:([1-9][0-9]{0,9})-)?(0|[1-9][0-9]{0,17})\Z")


class Position(NamedTuple):
    """An entry: its epoch, from 1, and its ``seq``. Seq 0 is the place before the first entry."""

    epoch: int
    seq: int

    def __str__(self) -> str:
        """Return the text of the position: a plain number in epoch 1."""
        return str(self.seq) if self.epoch == 1 else f"{self.epoch}-{self.seq}"


def parse_position(text: str, field: str) -> tuple[int | None, int]:
    """
    Read a position; the epoch is None where the text is a plain number.

    Raises:
        InvalidRequest: *text* is none; the error names *field*.
    """
    match = _POSITION.match(text)
    if match is None:
        raise InvalidRequest(
            f"{field} is {text[:64]!r}; the number of an entry, such as 120, or a position, such as 2-120, would pass",
            field=field,
        )
    return None if match[1] is None else int(match[1]), int(match[2])


class Epochs:
    """The epochs of one journal: where each begins."""

    def __init__(self, begun: Iterable[tuple[int, int]] = ()) -> None:
        """
        Take over the epochs of a journal.

        Args:
            begun: Number of the epoch and ``seq`` of its ``begin_epoch`` entry, in order, for each epoch after 1.
        """
        self._numbers = [1]
        self._first_seqs = [1]
        for number, first_seq in begun:
            self.begin(number, first_seq)

    def begin(self, number: int, first_seq: int) -> None:
        """Begin the epoch *number*, above all before it, with the entry *first_seq*."""
        self._numbers.append(number)
        self._first_seqs.append(first_seq)

    @property
    def current(self) -> int:
        """The number of the newest epoch."""
        return self._numbers[-1]

    def of(self, seq: int) -> int:
        """Return the epoch in which the entry *seq* was written."""
        return self._numbers[max(bisect_right(self._first_seqs, seq), 1) - 1]

    def position(self, seq: int) -> Position:
        """Return the position of the entry *seq*."""
        return Position(self.of(seq), seq)

    def seq_of(self, text: str, field: str) -> int:
        """
        Return the ``seq`` that the position *text* means in this journal; it may lie beyond the newest entry.

        Raises:
            InvalidRequest: *text* is no position.
            EpochMissing: A plain number, beyond the last entry that all epochs have in common.
            UnknownPosition: This journal never had that position, or a restore took it back.
        """
        epoch, seq = parse_position(text, field)
        if epoch is None:
            return self._plain(seq, field)
        if self.of(seq) != epoch:
            common = self._last_common(epoch)
            raise UnknownPosition(
                f"{field} is {epoch}-{seq}, which is not in this journal (its epoch is {self.current}); "
                f"up to {common} both are the same, so undo what came after that and go on from there",
                field=field,
                last_common=str(common),
            )
        return seq

    def _plain(self, seq: int, field: str) -> int:
        if len(self._numbers) > 1 and seq >= self._first_seqs[1]:
            common = self.position(self._first_seqs[1] - 1)
            raise EpochMissing(
                f"{field} is {seq}, and a plain number is good up to {common}, because the ledger was restored; "
                f"name the epoch too, such as {self.current}-{seq}",
                field=field,
                last_common=str(common),
            )
        return seq

    def _last_common(self, epoch: int) -> Position:
        """Return the last entry that a follower in *epoch* shares with this journal."""
        later = [first for number, first in zip(self._numbers, self._first_seqs, strict=True) if number > epoch]
        return self.position(later[0] - 1 if later else self._first_seqs[-1])
