"""
The filter of known idempotency keys, which recognises most new keys without a look-up.

It is a Bloom filter whose blocks are 64-bit words, in levels that double in size, so that it grows without a rebuild:
level 0 covers the first 2 segments, level 1 the next 4, level 2 the next 8, and so on. It covers sealed segments only.
Bits are only ever set, so a page written halfway through a sealing is still right about earlier segments. Each page has
a checksum, and a level that is damaged or behind is filled again from the keys.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any, Final, Protocol

from spotledger.storage.encoding import DIGEST_BYTES

BITS_PER_KEY: Final = 16


class Connection(Protocol):
    """What the filter needs of a connection to the file that it is kept in."""

    def execute(self, statement: str, values: Any = ..., /) -> Any:
        """Execute a statement, and return a cursor."""


_WORD_BITS: Final = 64
PAGE_WORDS: Final = 8192
_FIRST_LEVEL_SEGMENTS: Final = 2
#: How often a level is written to the file while it fills; a start adds the segments since the last time again.
_WRITES_A_LEVEL: Final = 16


#: A mask of two bits for each value of the twelve bits that select them.
_PAIRS: Final = [1 << (number & 63) | 1 << (number >> 6) for number in range(1 << 12)]


class _Level:
    """The filter of the segments *first_segment* to *last_segment*."""

    __slots__ = ("covered_to", "first_segment", "last_segment", "number", "words", "written_to")

    def __init__(self, number: int, segment_entries: int) -> None:
        self.number = number
        self.first_segment, self.last_segment, words = level_extent(number, segment_entries)
        self.words = array("Q", bytes(8 * words))
        self.covered_to = self.written_to = self.first_segment - 1

    def add(self, digests: Iterable[bytes]) -> None:
        """Set the bits of each of *digests*, all at once: a sealing has many."""
        heads = array("Q", b"".join(digests))[:: DIGEST_BYTES // 8]
        if sys.byteorder == "big":
            heads.byteswap()
        words, count, pairs = self.words, len(self.words), _PAIRS
        for h in heads:
            words[(h >> 30) % count] |= pairs[h & 4095] | pairs[h >> 12 & 4095] | 1 << (h >> 24 & 63)

    @property
    def is_complete(self) -> bool:
        return self.covered_to == self.last_segment

    def wants_writing(self) -> bool:
        behind = self.covered_to - self.written_to
        segments = self.last_segment - self.first_segment + 1
        return self.is_complete or behind >= max(1, segments // _WRITES_A_LEVEL)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        for page, start in enumerate(range(0, len(self.words), PAGE_WORDS)):
            yield page, self.words[start : start + PAGE_WORDS].tobytes()


class IdempotencyFilter:
    """The filter in memory, and its pages in the ledger file."""

    def __init__(self, segment_entries: int) -> None:
        """Create an empty filter for segments of *segment_entries* entries."""
        self._segment_entries = segment_entries
        self._levels: list[_Level] = []
        #: What :meth:`load` found damaged and filled again, in words.
        self.repairs: list[str] = []

    def segments_that_may_hold(self, digest: bytes) -> list[int]:
        """Return the segments, newest first, that may have the key with this *digest*; none if it was never seen."""
        h = int.from_bytes(digest[:8], "little")
        bits = _PAIRS[h & 4095] | _PAIRS[h >> 12 & 4095] | 1 << (h >> 24 & 63)
        found: list[int] = []
        for level in reversed(self._levels):
            words = level.words
            if words[(h >> 30) % len(words)] & bits == bits:
                found += range(level.covered_to, level.first_segment - 1, -1)
        return found

    def is_empty(self) -> bool:
        """Return whether no segment is covered yet."""
        return not self._levels

    def add(self, segment: int, digests: Iterable[bytes]) -> None:
        """Add keys of *segment*; it is not covered until :meth:`write` is called."""
        self._level_of(segment).add(digests)

    def cover(self, segment: int) -> None:
        """Mark *segment*, whose keys are all in, as covered."""
        self._level_of(segment).covered_to = segment

    def write(self, connection: Connection, segment: int) -> Iterator[None]:
        """
        Mark *segment* as covered and, if it is time, write its level; yields after each page.

        Complete levels that :meth:`load` found damaged are written, too.
        """
        level = self._level_of(segment)
        level.covered_to = segment
        for other in self._levels:
            if other.is_complete and other.written_to < other.covered_to:
                yield from self._write_level(connection, other)
        if level.written_to < segment and level.wants_writing():
            yield from self._write_level(connection, level)

    def _write_level(self, connection: Connection, level: _Level) -> Iterator[None]:
        for page, bits in level.pages():
            connection.execute(
                "INSERT OR REPLACE INTO key_filter_page VALUES (?, ?, ?, ?)",
                (level.number, page, bits, page_checksum(level.number, page, bits)),
            )
            yield
        connection.execute(
            "INSERT OR REPLACE INTO key_filter VALUES (?, ?, ?)",
            (level.number, level.covered_to, level_checksum(level.number, level.covered_to)),
        )
        level.written_to = level.covered_to

    def load(self, connection: Connection, sealed_segments: int, digests_of: Callable[[int], Iterable[bytes]]) -> None:
        """
        Read the filter from the file, and add the keys of those of the *sealed_segments* that it lacks (*digests_of*).

        A level that is damaged or ahead of the journal is filled again, and :attr:`repairs` says so.
        """
        last = sealed_segments - 1
        while last >= 0 and (not self._levels or self._levels[-1].last_segment < last):
            level = _Level(len(self._levels), self._segment_entries)
            self._levels.append(level)
            self._read_level(connection, level, min(last, level.last_segment))
        for level in self._levels:
            target = min(last, level.last_segment)
            for segment in range(level.covered_to + 1, target + 1):
                level.add(digests_of(segment))
            level.covered_to = target

    def _read_level(self, connection: Connection, level: _Level, last: int) -> None:
        row = connection.execute(
            "SELECT covered_to, checksum FROM key_filter WHERE level = ?", (level.number,)
        ).fetchone()
        if row is None:
            return
        covered_to, checksum = row
        words = array("Q")
        # Rows of another table may stand here, if pages were swapped.
        sound = isinstance(covered_to, int) and level.first_segment <= covered_to <= last
        sound = sound and checksum == level_checksum(level.number, covered_to)
        pages = connection.execute(
            "SELECT page, bits, checksum FROM key_filter_page WHERE level = ? ORDER BY page", (level.number,)
        )
        for expected_page, (page, bits, kept_checksum) in enumerate(pages):
            sound = sound and page == expected_page and isinstance(bits, bytes)
            sound = sound and kept_checksum == page_checksum(level.number, page, bits)
            if sound:
                words.frombytes(bits)
        if sound and len(words) == len(level.words):
            level.words, level.covered_to, level.written_to = words, covered_to, covered_to
        else:
            self.repairs.append(f"level {level.number} of the filter of known keys was damaged and was filled again")

    def _level_of(self, segment: int) -> _Level:
        while not self._levels or self._levels[-1].last_segment < segment:
            self._levels.append(_Level(len(self._levels), self._segment_entries))
        return next(level for level in self._levels if segment <= level.last_segment)


def level_extent(number: int, segment_entries: int) -> tuple[int, int, int]:
    """Return the first and the last segment of the level *number*, and its size in words."""
    segments = _FIRST_LEVEL_SEGMENTS << number
    first = segments - _FIRST_LEVEL_SEGMENTS
    return first, first + segments - 1, max(1, segments * segment_entries * BITS_PER_KEY // _WORD_BITS)


def page_checksum(level: int, page: int, bits: bytes) -> bytes:
    """Return the checksum that is stored with a page."""
    return blake2b(bits, digest_size=8, salt=level.to_bytes(8, "little") + page.to_bytes(8, "little")).digest()


def level_checksum(level: int, covered_to: int) -> bytes:
    """Return the checksum that is stored with the extent of a level."""
    return blake2b(f"level {level} covers {covered_to}".encode(), digest_size=8).digest()
