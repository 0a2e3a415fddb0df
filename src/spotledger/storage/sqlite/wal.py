"""
The write-ahead log of an SQLite file, looked at before SQLite opens it.

SQLite takes the log up to the first frame that does not check and passes over the rest in silence, which is right after
a power cut and wrong after damage: acknowledged commits are lost. A commit is synced before the next one begins, so a
power cut can only spoil the last transaction. Where a frame does not check and others follow the end of its
transaction, the log is damaged.

Source: the file format of SQLite, https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_MAGIC_LITTLE: Final = 0x377F0682
_MAGIC_BIG: Final = 0x377F0683
_FORMAT: Final = 3_007_000
_WORD: Final = 0xFFFF_FFFF


class WalDamage(NamedTuple):
    """Where a log is damaged."""

    #: The first frame that does not check, from 1; 0 for the header.
    frame: int
    #: Where it begins in the file, in bytes.
    offset: int
    #: What is wrong, in words.
    reason: str


class _Frame(NamedTuple):
    """One frame of the running log: it has the salts of the header."""

    number: int
    offset: int
    checks: bool
    commits: bool


def find_damage(wal: Path) -> WalDamage | None:
    """
    Return where the log *wal* is damaged, or None: it is whole, its last transaction was cut off, or it is not there.

    A log that was shortened to the end of an earlier transaction is whole by itself; only the noted head shows it.

    Raises:
        OSError: The file cannot be read.
    """
    try:
        content = wal.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) < _HEADER_BYTES:
        return None
    header = struct.unpack(">8I", content[:_HEADER_BYTES])
    magic, version, page_bytes = header[:3]
    is_big = magic == _MAGIC_BIG
    known = magic in (_MAGIC_LITTLE, _MAGIC_BIG) and version == _FORMAT and 512 <= page_bytes <= 65_536
    if not known or running_checksum(content[:24], (0, 0), is_big=is_big) != header[6:8]:
        # A header is written whole with the first frame; one that does not check hides all that follows.
        if len(content) >= _HEADER_BYTES + _FRAME_HEADER_BYTES + 512:
            return WalDamage(0, 0, "its header does not check")
        return None
    return _damage_of(_frames(content, page_bytes, is_big=is_big))


def _damage_of(frames: Iterator[_Frame]) -> WalDamage | None:
    """Return the first frame that does not check, if frames follow the end of its transaction."""
    bad: _Frame | None = None
    has_ended = False
    for frame in frames:
        if bad is None:
            if not frame.checks:
                bad, has_ended = frame, frame.commits
        elif has_ended:
            return WalDamage(bad.number, bad.offset, "a frame does not check, and commits follow it")
        else:
            has_ended = frame.commits
    return None


def _frames(content: bytes, page_bytes: int, *, is_big: bool) -> Iterator[_Frame]:
    """Give the frames with the salts of the header; whether each checks is known up to the first that does not."""
    salts = content[16:24]
    sums = struct.unpack(">2I", content[24:32])
    size = _FRAME_HEADER_BYTES + page_bytes
    checks = True
    for number, offset in enumerate(range(_HEADER_BYTES, len(content) - size + 1, size), 1):
        head = content[offset : offset + _FRAME_HEADER_BYTES]
        has_salts = head[8:16] == salts
        if checks:
            sums = running_checksum(head[:8], sums, is_big=is_big)
            sums = running_checksum(content[offset + _FRAME_HEADER_BYTES : offset + size], sums, is_big=is_big)
            if has_salts and sums == struct.unpack(">2I", head[16:24]):
                yield _Frame(number, offset, True, head[4:8] != b"\0\0\0\0")
                continue
            if not has_salts and not _any_with(content, salts, offset + size, size):
                return  # the rest of an earlier log, over which this one has not been written yet
            checks = False
            yield _Frame(number, offset, False, head[4:8] != b"\0\0\0\0")
        elif has_salts:
            yield _Frame(number, offset, False, head[4:8] != b"\0\0\0\0")


def _any_with(content: bytes, salts: bytes, start: int, size: int) -> bool:
    """Say whether a frame from *start* on has these *salts*."""
    return any(content[offset + 8 : offset + 16] == salts for offset in range(start, len(content) - size + 1, size))


def running_checksum(data: bytes, sums: tuple[int, int], *, is_big: bool) -> tuple[int, int]:
    """Go on with the two running sums of the log over *data*, a multiple of 8 bytes."""
    words = array("I", data)
    if is_big != (array("I", b"\0\0\0\1")[0] == 1):
        words.byteswap()
    first, second = sums
    pairs = iter(words)
    for word, following in zip(pairs, pairs, strict=True):
        first = (first + word + second) & _WORD
        second = (second + following + first) & _WORD
    return first, second
