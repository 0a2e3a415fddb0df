"""
The noted head: the last acknowledged entry, in a small file beside the journal.

A journal can lose its end without any of its bytes being wrong: a log that is cut, a file that was set back. The note
shows it. It has two slots in blocks of their own, each with a checksum; a note goes into the older one by one write, so
one whole slot is left whatever happens during it. The write goes to the system, which outlives the process; a thread
syncs it once a second, so after a power cut the note may be a second old. It is a lower bound of the head, never more.

A note that cannot be written still lets its commit be answered; then writes stop, because the next one would be lost
without a trace if the journal lost its end.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.clock import UNKNOWN_BOOT, Moment
from spotledger.domain.positions import Epochs
from spotledger.errors import JournalShorter, LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.sqlite.file import JOURNAL_FILE

NOTE_FILE: Final = "noted-head"
BLOCK_BYTES: Final = 4096
SYNC_SECONDS: Final = 1.0
_MAGIC: Final = b"SpoN\x01\x00\x00\x00"
#: Magic, count of notes, ledger id, epoch, seq, hash, time in ms, number of the last change of the access keys, boot,
#: time in ms since the boot.
_SLOT: Final = struct.Struct("<8sQ36sQQ32sQQ16sQ")
_CHECKSUM_BYTES: Final = 16


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


class NotedHead:
    """The file with the note. One process writes it; the service's own lock on the folder sees to that."""

    def __init__(self, path: Path) -> None:
        """
        Open the note at *path*, or make it, and read it.

        Raises:
            LedgerCorrupt: Both slots are damaged: nobody knows how far the journal went.
            OSError: The file can be neither read nor made.
        """
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._count, self.note, self.damaged_slot = _read(self._descriptor, path)
        except BaseException:
            os.close(self._descriptor)
            raise
        #: Written since the last sync.
        self._unsynced = False

    def write(self, note: Note) -> None:
        """
        Note *note* in the older slot.

        Raises:
            OSError: It could not be written; the note before is still there.
        """
        count = self._count + 1
        content = _packed(count, note)
        if os.pwrite(self._descriptor, content, count % 2 * BLOCK_BYTES) != len(content):
            raise OSError(f"{self.path}: the note was written in part")
        self._count, self.note, self._unsynced = count, note, True

    def sync(self) -> None:
        """Have the disk take what was noted; blocks. May run in another thread than :meth:`write`."""
        if self._unsynced:
            self._unsynced = False
            os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Sync and close the file."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def read_note(path: Path) -> Note | None:
    """
    Return the note at *path*, or None where there is no file.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    return _look(path)[1]


def read_slots(path: Path) -> tuple[Note | None, int | None]:
    """
    Return what :func:`read_note` does, and which slot is damaged while the other one is whole, or None.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    return _look(path)[1:]


def _look(path: Path) -> tuple[int, Note | None, int | None]:
    """Return what ``_read`` returns of the file at *path*, which is left as it is and may be missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0, None, None
    try:
        return _read(descriptor, path)
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path) -> tuple[int, Note | None, int | None]:
    """Return the count of notes, the newest note, and which slot is damaged where one is."""
    content = os.pread(descriptor, 2 * BLOCK_BYTES, 0)
    if not content:
        return 0, None, None
    slots = [_unpacked(content[start : start + BLOCK_BYTES]) for start in (0, BLOCK_BYTES)]
    # After the first note of all, slot 0 is still empty; that is no damage.
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise LedgerCorrupt(
            f"both slots of {path} are damaged, so nobody knows how far the journal went; look at it with: "
            "spotledger recover"
        )
    count, note = max(whole, key=lambda slot: slot[0])
    is_first = count == 1 and not content[:BLOCK_BYTES].strip(b"\0")
    damaged = None if is_first else next((number for number, slot in enumerate(slots) if slot is None), None)
    return count, note, damaged


def _packed(count: int, note: Note) -> bytes:
    ledger_id = note.ledger_id.encode("ascii")
    content = _SLOT.pack(_MAGIC, count, ledger_id, *note[1:])
    return (content + _checksum(content)).ljust(BLOCK_BYTES, b"\0")


def _unpacked(block: bytes) -> tuple[int, Note] | None:
    """Return the count and the note of one slot, or None where it is damaged: a bit anywhere in the block counts."""
    content, end = block[: _SLOT.size], _SLOT.size + _CHECKSUM_BYTES
    if len(block) != BLOCK_BYTES or block[_SLOT.size : end] != _checksum(content) or block[end:].strip(b"\0"):
        return None
    magic, count, ledger_id, *rest = _SLOT.unpack(content)
    if magic != _MAGIC:
        return None
    return count, Note(ledger_id.decode("ascii"), *rest)


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM_BYTES).digest()


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
        note = Note(self._ledger_id, self.epochs.current, head.seq, head.hash, time_ms, keys_change, boot_id, steady_ms)
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
