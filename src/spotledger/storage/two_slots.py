"""
A small file with two slots, of which one is whole whatever happens while the other is written.

The slots are in blocks of their own, each with a checksum; a note goes into the older one by one write. The write goes
to the system, which outlives the process; who needs it on the disk syncs it, in another thread.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from spotledger.errors import LedgerCorrupt
from spotledger.storage.private import open_no_link, open_private

BLOCK_BYTES: Final = 4096
_CHECKSUM_BYTES: Final = 16
#: A named tuple whose first field is the ledger id, as text.
N = TypeVar("N", bound=tuple[Any, ...])


class Form(Generic[N]):
    """What the notes of a file are."""

    def __init__(self, magic: bytes, fields: str, make: Callable[..., N], advice: str) -> None:
        """
        Describe the notes of a file.

        Args:
            magic: Eight bytes that mark the format.
            fields: The fields after the ledger id as for :mod:`struct`, without an order.
            make: Makes a note of its fields.
            advice: What is lost when both slots are damaged, and what to do.
        """
        self.magic = magic
        self.slot = struct.Struct(f"<8sQ36s{fields}")
        self.make = make
        self.advice = advice


class Slots(NamedTuple, Generic[N]):
    """What a file has: how many notes were written, the last one, and the slot that is damaged; None for none."""

    written: int = 0
    note: N | None = None
    damaged_slot: int | None = None


class TwoSlots(Generic[N]):
    """The file, open. One process at a time writes it; one thread may sync it while another one writes."""

    def __init__(self, path: Path, form: Form[N]) -> None:
        """
        Open the file at *path*, or make it, and read it.

        Raises:
            LedgerCorrupt: Both slots are damaged.
            OSError: The file can be neither read nor made.
        """
        self.path = path
        self._form = form
        self._descriptor = open_private(path, os.O_RDWR | os.O_CREAT, is_secret=False)
        try:
            self._count, self.note, self.damaged_slot = _read(self._descriptor, path, form)
        except BaseException:
            os.close(self._descriptor)
            raise
        #: Written since the last sync.
        self._unsynced = False

    def write(self, note: N) -> None:
        """
        Note *note* in the older slot.

        Raises:
            OSError: It could not be written; the note before is still there.
        """
        count = self._count + 1
        content = _packed(self._form, count, note)
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


def read_two_slots(path: Path, form: Form[N]) -> Slots[N]:
    """
    Return what the file at *path* has, which is left as it is and may be missing.

    Raises:
        LedgerCorrupt: Both slots are damaged.
        OSError: The file cannot be read.
    """
    try:
        descriptor = open_no_link(path, os.O_RDONLY)
    except FileNotFoundError:
        return Slots()
    try:
        return _read(descriptor, path, form)
    finally:
        os.close(descriptor)


def _read(descriptor: int, path: Path, form: Form[N]) -> Slots[N]:
    content = os.pread(descriptor, 2 * BLOCK_BYTES, 0)
    if not content:
        return Slots()
    slots = [_unpacked(form, content[start : start + BLOCK_BYTES]) for start in (0, BLOCK_BYTES)]
    # After the first note of all, slot 0 is still empty; that is no damage.
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise LedgerCorrupt(f"both slots of {path} are damaged, so nobody knows {form.advice}")
    count, note = max(whole, key=lambda slot: slot[0])
    is_first = count == 1 and not content[:BLOCK_BYTES].strip(b"\0")
    damaged = None if is_first else next((number for number, slot in enumerate(slots) if slot is None), None)
    return Slots(count, note, damaged)


def _packed(form: Form[N], count: int, note: N) -> bytes:
    content = form.slot.pack(form.magic, count, note[0].encode("ascii"), *note[1:])
    return (content + _checksum(content)).ljust(BLOCK_BYTES, b"\0")


def _unpacked(form: Form[N], block: bytes) -> tuple[int, N] | None:
    """Return the count and the note of one slot, or None where it is damaged: a bit anywhere in the block counts."""
    size = form.slot.size
    content, end = block[:size], size + _CHECKSUM_BYTES
    if len(block) != BLOCK_BYTES or block[size:end] != _checksum(content) or block[end:].strip(b"\0"):
        return None
    magic, count, ledger_id, *rest = form.slot.unpack(content)
    return (count, form.make(ledger_id.decode("ascii"), *rest)) if magic == form.magic else None


def _checksum(content: bytes) -> bytes:
    return blake2b(content, digest_size=_CHECKSUM_BYTES).digest()
