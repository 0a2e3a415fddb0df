"""
The noted head: the last acknowledged entry, in a small file beside the journal.

A journal can lose its end without any of its bytes being wrong: a log that is cut, a file that was set back. The note
shows it. The file has two slots (:mod:`spotledger.storage.two_slots`), so one whole note is left whatever happens. A
thread syncs it once a second, so after a power cut the note may be a second old. It is a lower bound of the head, never
more.

A note that cannot be written still lets its commit be answered; then writes stop, because the next one would be lost
without a trace if the journal lost its end.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.clock import UNKNOWN_BOOT, Moment
from spotledger.domain.journal import new_tuple
from spotledger.domain.positions import Epochs
from spotledger.errors import JournalShorter, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.sqlite.file import JOURNAL_FILE
from spotledger.storage.two_slots import Form, TwoSlots, read_two_slots

NOTE_FILE: Final = "noted-head"
SYNC_SECONDS: Final = 1.0
_log = logging.getLogger("spotledger.store")


class Note(NamedTuple):
    """What was noted last."""

    ledger_id: str
    epoch: int
    seq: int
    #: The hash of the entry *seq*.
    hash: bytes
    #: The trusted time in ms since 1970; 0 where it is not known.
    time_ms: int
    #: The number of the last change of access keys and tokens.
    keys_change: int
    #: Which boot of the machine it was, and the time since then in ms.
    boot_id: bytes = UNKNOWN_BOOT
    steady_ms: int = 0


#: The fields after the ledger id.
_FORM: Final = Form(
    b"SpoN\x01\x00\x00\x00", "QQ32sQQ16sQ", Note, "how far the journal went; look at it with: spotledger recover"
)


class NotedHead(TwoSlots[Note]):
    """The file with the note. One process writes it; the service's own lock on the folder sees to that."""

    def __init__(self, path: Path) -> None:
        """
        Open the note at *path*, or make it, and read it.

        Raises:
            LedgerCorrupt: Both slots are damaged: nobody knows how far the journal went.
            OSError: The file can be neither read nor made.
        """
        super().__init__(path, _FORM)


def read_note(path: Path) -> Note | None:
    """
    Return the note at *path*, or None where there is no file.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    return read_slots(path)[0]


def read_slots(path: Path) -> tuple[Note | None, int | None]:
    """
    Return what :func:`read_note` does, and which slot is damaged while the other one is whole, or None.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    return read_two_slots(path, _FORM)[1:]


class HeadNote:
    """The note of one ledger's head."""

    def __init__(self, folder: Path, ledger_id: str, epochs: Epochs) -> None:
        """
        Open the note in *folder*, or make it, for the journal of the ledger *ledger_id* with these *epochs*.

        Raises:
            LedgerCorrupt: Both of its slots are damaged.
            StoreUnavailable: It can be neither read nor made.
        """
        self._folder = folder
        self._ledger_id = ledger_id
        #: The epochs of the journal; whoever begins one sets them.
        self.epochs = epochs
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
    def moment(self) -> Moment | None:
        """The trusted time that was noted last; None where none was."""
        note = self._file.note
        return Moment(note.time_ms, note.boot_id, note.steady_ms) if note is not None and note.time_ms else None

    @property
    def keys_change(self) -> int:
        """The number of the last change of access keys that was noted."""
        return 0 if self._file.note is None else self._file.note.keys_change

    def check(self, head_seq: int, hash_of: Callable[[int], bytes]) -> None:
        """
        Compare the journal, which ends with the entry *head_seq*, with the note.

        Raises:
            JournalShorter: The journal ends before the noted entry, or is of another ledger or an earlier epoch.
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
        current = self.epochs.current
        if note.ledger_id != self._ledger_id or note.epoch > current:
            raise JournalShorter(
                f"{path} is of the ledger {note.ledger_id}, epoch {note.epoch}; {journal} is {self._ledger_id}, epoch"
                f" {current}. Put the right files together, or look at them with: {recover}"
            )
        if note.epoch < current:
            _log.warning(
                "%s is of epoch %d, entry %d; epoch %d began since, with entry %d",
                path, note.epoch, note.seq, current, self.epochs.begun_seq,
            )  # fmt: skip
            return
        if note.seq > head_seq:
            raise JournalShorter(
                f"{journal} ends with entry {head_seq}, but entry {note.seq} was acknowledged. Put the file back that"
                f" has it, or see what is missing with: {recover}",
                found=head_seq,
                noted=note.seq,
            )
        if hash_of(note.seq) != note.hash:
            raise LedgerCorrupt(f"entry {note.seq} of {journal} is not the one that was acknowledged")

    def write(self, head: Head, keys_change: int, moment: Moment | None = None) -> None:
        """
        Note the *head*.

        Args:
            head: The last acknowledged entry.
            keys_change: The number of the last change of access keys.
            moment: The trusted time now; None leaves the time as it was noted.
        """
        time_ms, boot_id, steady_ms = moment or self.moment or Moment(0)
        seq, head_hash, _ = head
        values = (self._ledger_id, self.epochs.current, seq, head_hash, time_ms, keys_change, boot_id, steady_ms)
        note = new_tuple(Note, values)
        try:
            self._file.write(note)
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
