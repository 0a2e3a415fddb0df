"""The part of the store on PostgreSQL that has sealed what is full, with each group and while it follows."""

from __future__ import annotations

from spotledger.errors import StoreBusy
from spotledger.storage.postgres.following.head_cache import Question, Snapshot
from spotledger.storage.postgres.group_reads import GroupReads
from spotledger.storage.postgres.sealing.duty import SealingDuty
from spotledger.storage.postgres.session import Session
from spotledger.storage.steps import Steps


class SealingReads(GroupReads):
    """The reads of a store that has segments sealed."""

    #: None until the store is open, and if the caller seals.
    _sealing: SealingDuty | None = None
    #: Whether a group of this node filled a segment that is not sealed yet.
    _has_filled = False

    @property
    def sealing_restarts(self) -> int:
        """How often the process that seals ended and was started again, or is about to be."""
        return 0 if self._sealing is None else self._sealing.restarts

    def _go_on_sealing(self) -> Steps[None]:
        """
        Have sealed what is full.

        Raises:
            StoreBusy: So much waits for it that writes have to.
            LedgerCorrupt: The journal or what is derived from it is damaged.
        """
        memory, sealing = self._head_cache, self._sealing
        if sealing is None:
            return
        if not sealing.is_due(memory.head.seq, memory.sealed_seq):
            self._has_filled = False
        elif sealing.seals_in_place:
            yield sealing.seal_here
        else:
            self._ask_for_sealing(sealing)
            if sealing.damage is not None:
                raise sealing.damage
            if sealing.is_behind(memory.head.seq, memory.sealed_seq):
                yield self._ask  # it may have been sealed meanwhile
                if sealing.is_behind(memory.head.seq, self._head_cache.sealed_seq):
                    raise StoreBusy("sealing is behind; try again with the same idempotency key")

    def _ask_for_sealing(self, sealing: SealingDuty) -> None:
        """Have the process seal what is full, if anything is."""
        memory, seen = self._head_cache, self._right.seen.seen
        if seen is not None and sealing.is_due(memory.head.seq, memory.sealed_seq):
            sealing.go_on(seen, memory.sealed_seq, is_own=self._has_filled)

    def follow(self, session: Session, *questions: Question) -> Snapshot:
        """Advance memory, and have sealed what nobody seals."""
        snapshot, sealing = super().follow(session, *questions), self._sealing
        # A group that begins does it by itself.
        if sealing is not None and not self.is_writing and not sealing.seals_in_place:
            self._ask_for_sealing(sealing)
        return snapshot
