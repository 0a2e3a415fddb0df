"""
Keeping the note of the head: compared at a start, written after each commit, synced once a second.

A note that cannot be written still lets its commit be answered; then writes stop, because the next one would be lost
without a trace if the journal lost its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from spotledger.errors import JournalShorter, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.sqlite.file import JOURNAL_FILE
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, NotedHead

SYNC_SECONDS: Final = 1.0

_log = logging.getLogger("spotledger.store")


class HeadNote:
    """The note of one ledger's head."""

    def __init__(self, folder: Path, ledger_id: str, epoch: int) -> None:
        """
        Open the note in *folder*, or make it.

        Raises:
            LedgerCorrupt: Both of its slots are damaged.
            StoreUnavailable: It can be neither read nor made.
        """
        self._folder = folder
        self._ledger_id = ledger_id
        self._epoch = epoch
        path = folder / NOTE_FILE
        try:
            self._file = NotedHead(path)
        except OSError as problem:
            raise StoreUnavailable(f"{path} cannot be used: {problem.strerror}") from problem
        #: Why the head could not be noted; None where it was.
        self.failure: str | None = None
        self._stopped = threading.Event()
        self._syncing = threading.Thread(target=self._sync, name="note-sync", daemon=True)
        self._syncing.start()

    @property
    def noted_ms(self) -> int | None:
        """The time that was noted last, in ms since 1970; None where nothing was."""
        return None if self._file.note is None else self._file.note.time_ms

    @property
    def keys_change(self) -> int:
        """The number of the last change of access keys that was noted."""
        return 0 if self._file.note is None else self._file.note.keys_change

    def check(self, head_seq: int, hash_of: Callable[[int], bytes]) -> None:
        """
        Compare the journal, which ends with the entry *head_seq*, with the note.

        Raises:
            JournalShorter: The journal ends before the noted entry, or is of another ledger or epoch.
            LedgerCorrupt: It has another entry in the place of the noted one.
        """
        note, path, journal = self._file.note, self._file.path, self._folder / JOURNAL_FILE
        recover = f"spotledger recover --data {self._folder}"
        if self._file.damaged_slot is not None:
            _log.warning("slot %d of %s is damaged; the other one counts", self._file.damaged_slot, path)
        if note is None:
            if head_seq:
                _log.warning("%s is missing and is made again: nobody knows what it would have shown", path)
            return
        if (note.ledger_id, note.epoch) != (self._ledger_id, self._epoch):
            raise JournalShorter(
                f"{path} is of the ledger {note.ledger_id}, epoch {note.epoch}; {journal} is {self._ledger_id}, epoch"
                f" {self._epoch}. Put the right files together, or look at them with: {recover}"
            )
        if note.seq > head_seq:
            raise JournalShorter(
                f"{journal} ends with entry {head_seq}, but entry {note.seq} was acknowledged. Put the file back that"
                f" has it, or see what is missing with: {recover}",
                found=head_seq,
                noted=note.seq,
            )
        if hash_of(note.seq) != note.hash:
            raise LedgerCorrupt(f"entry {note.seq} of {journal} is not the one that was acknowledged")

    def write(self, head: Head, keys_change: int, time_ms: int = 0) -> None:
        """
        Note the *head*.

        Args:
            head: The last acknowledged entry.
            keys_change: The number of the last change of access keys.
            time_ms: The time now, in ms since 1970; that of the head where it is later.
        """
        at_ms = max(head.booked_ms, time_ms, self.noted_ms or 0)
        try:
            self._file.write(Note(self._ledger_id, self._epoch, head.seq, head.hash, at_ms, keys_change))
        except OSError as problem:
            self.failure = f"the head could not be noted in {self._file.path}: {problem.strerror}"
            _log.error("%s; writes stop", self.failure)
        else:
            self.failure = None

    def close(self) -> None:
        """Sync and close the file."""
        self._stopped.set()
        self._syncing.join()
        self._file.close()

    def _sync(self) -> None:
        while not self._stopped.wait(SYNC_SECONDS):
            try:
                self._file.sync()
            except OSError as problem:
                _log.warning("the noted head could not be synced: %s", problem.strerror)
