"""The filter of known idempotency keys in an audit: no key that it covers is missing, so none can be booked twice."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Final

from spotledger.audit.findings import Findings
from spotledger.storage.idempotency_filter import PAGE_WORDS, level_checksum, level_extent, page_checksum
from spotledger.storage.sqlite.audit import BooksFile
from spotledger.storage.sqlite.raw import Unreadable

#: The filter never has more levels.
LEVELS: Final = 32
_TWO_BITS: Final = [1 << (number & 63) | 1 << (number >> 6) for number in range(4096)]


class FilterCheck:
    """Checks that the levels of the filter, as stored, know every key that they cover."""

    def __init__(self, books: BooksFile | None, findings: Findings, segment_entries: int) -> None:
        """
        Read which levels there are, and check their checksums.

        Args:
            books: The books, or None if there are none.
            findings: Faults are added to it.
            segment_entries: The number of entries in a segment.
        """
        self._books = books
        self._note = findings.add
        self.segment_entries = segment_entries
        self._words: array[int] | None = None
        self._number = -1
        self._covered: dict[int, int] = {}
        if books is None:
            return
        try:
            sealed_to, levels, with_pages = books.filter_levels()
        except Unreadable as error:
            findings.unreadable(error)
            return
        last_sealed = sealed_to // segment_entries - 1
        for number, covered_to, checksum in levels:
            sound = 0 <= number < LEVELS and checksum == level_checksum(number, covered_to)
            first, last, _ = level_extent(number, segment_entries) if sound else (0, -1, 0)
            if sound and first <= covered_to <= min(last, last_sealed):
                self._covered[number] = covered_to
            else:
                expected = f"up to one of the segments {first} to {min(last, last_sealed)}, with its checksum"
                self._note("filter_level_damaged", None, f"key_filter {number}", f"covers to {covered_to}", expected)
        self._check_presence({row[0] for row in levels}, with_pages, last_sealed)

    def _check_presence(self, numbers: set[int], with_pages: list[int], last_sealed: int) -> None:
        """Check that there is each level whose segments are all sealed, and that each page belongs to a level."""
        for number in range(LEVELS):
            _, last, _ = level_extent(number, self.segment_entries)
            if last > last_sealed:
                break
            if number not in numbers:
                self._note("filter_level_damaged", None, f"key_filter {number}", "no row", f"covers to {last}")
        for number in with_pages:
            if number not in numbers:
                self._note("filter_page_damaged", None, f"key_filter_page {number}", "pages", "none without a level")

    def check(self, segment: int, keys: Mapping[bytes, int]) -> None:
        """Check that the filter knows the *keys* of *segment*: their digests, each with its ``seq``."""
        number = (segment // 2 + 1).bit_length() - 1
        if segment > self._covered.get(number, -1):
            return
        if number != self._number:
            self._number, self._words = number, None
            self._words = None if self._books is None else self._read(self._books, number)
        words = self._words
        if words is None:
            return
        count = len(words)
        two_bits = _TWO_BITS
        heads = array("Q", b"".join(keys))[::2]
        for position, h in enumerate(heads):
            bits = two_bits[h & 4095] | two_bits[h >> 12 & 4095] | 1 << (h >> 24 & 63)
            if words[(h >> 30) % count] & bits != bits:
                digest, seq = list(keys.items())[position]
                where = f"key_filter level {number}"
                self._note("filter_key_missing", seq, where, "not known", f"the key with the digest {digest.hex()}")

    def _read(self, books: BooksFile, number: int) -> array[int] | None:
        """Return the words of a level, or None if a page is damaged."""
        words = array("Q")
        _, _, count = level_extent(number, self.segment_entries)
        pages = -(-count // PAGE_WORDS)
        expected = 0
        sound = True
        for page, bits, checksum in books.filter_pages(number):
            good = page == expected and checksum == page_checksum(number, page, bits) and not len(bits) % 8
            if not good:
                where = f"key_filter_page {number} {expected}"
                self._note("filter_page_damaged", None, where, f"page {page} of {len(bits)} bytes", "with its checksum")
                sound = False
            expected = page + 1
            if sound:
                words.frombytes(bits)
        if sound and (expected != pages or len(words) != count):
            where = f"key_filter_page {number}"
            self._note("filter_page_damaged", None, where, f"{expected} pages, {len(words)} words", f"{pages}, {count}")
            sound = False
        return words if sound else None
