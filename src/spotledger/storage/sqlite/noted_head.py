"""
The noted head: the last acknowledged entry, in a small file beside the journal.

A journal can lose its end without any of its bytes being wrong: a log that is cut, a file that was set back. The note
shows it. It has two slots in blocks of their own, each with a checksum; a note goes into the older one by one write, so
one whole slot is left whatever happens during it. The write goes to the system, which outlives the process; a thread
syncs it once a second, so after a power cut the note may be a second old. It is a lower bound of the head, never more.
"""

from __future__ import annotations

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from spotledger.errors import LedgerCorrupt

NOTE_FILE: Final = "noted-head"
BLOCK_BYTES: Final = 4096
_MAGIC: Final = b"SpoN\x01\x00\x00\x00"
#: Magic, count of notes, ledger id, epoch, seq, hash, time in ms, number of the last change of the access keys.
_SLOT: Final = struct.Struct("<8sQ36sQQ32sQQ")
_CHECKSUM_BYTES: Final = 16


class Note(NamedTuple):
    """What was noted last."""

    ledger_id: str
    epoch: int
    seq: int
    #: The hash of the entry *seq*.
    hash: bytes
    #: The trusted time in ms since 1970.
    time_ms: int
    #: The number of the last change of access keys and tokens.
    keys_change: int


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
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return _read(descriptor, path)[1]
    finally:
        os.close(descriptor)


def damaged_slot(path: Path) -> int | None:
    """
    Return which slot of the note at *path* is damaged while the other one is whole, or None.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        return _read(descriptor, path)[2]
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
    fields = (_MAGIC, count, ledger_id, note.epoch, note.seq, note.hash, note.time_ms, note.keys_change)
    content = _SLOT.pack(*fields)
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
