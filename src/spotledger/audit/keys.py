"""
Idempotency keys in an audit: no key occurs twice in the journal.

The keys of all segments do not fit into memory. Their digests go to a temporary file, 16 bytes an entry, those of each
segment by their first byte; at the end they are read back one 256th at a time.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Final

_DIGEST_BYTES: Final = 16


class KeySpool:
    """The digests of all keys, in a temporary file until the end of the audit."""

    def __init__(self, descriptor: int | None = None) -> None:
        """
        Make the temporary file, or write to the open file *descriptor*, which stays the caller's.

        Raises:
            OSError: The file cannot be made.
        """
        self._file = None
        if descriptor is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by close
            descriptor = self._file.fileno()
        self.descriptor = descriptor
        self._size = 0
        #: For each run of digests: its file, its offset there, and the offsets of each first byte within it.
        self._runs: list[tuple[int, int, list[int]]] = []

    def put(self, digests: Iterable[bytes]) -> None:
        """Write *digests* to the file as one run; raises OSError if the disk is full."""
        parts: list[list[bytes]] = [[] for _ in range(256)]
        for digest in digests:
            parts[digest[0]].append(digest)
        data = b"".join([digest for part in parts for digest in part])
        view = memoryview(data)
        while view:
            view = view[os.pwrite(self.descriptor, view, self._size + len(data) - len(view)) :]
        cuts = [0, *accumulate(len(part) * _DIGEST_BYTES for part in parts)]
        self._runs.append((self.descriptor, self._size, cuts))
        self._size += len(data)

    def run_count(self) -> int:
        """Return how many runs there are."""
        return len(self._runs)

    def runs_from(self, count: int) -> list[tuple[int, list[int]]]:
        """Return the runs after the first *count*, each as its offset and its cuts."""
        return [(start, cuts) for _, start, cuts in self._runs[count:]]

    def forget_from(self, count: int) -> None:
        """Forget the runs after the first *count*, and reuse their space in the file."""
        if count < len(self._runs):
            self._size = self._runs[count][1]
            del self._runs[count:]

    def adopt(self, descriptor: int, runs: Iterable[tuple[int, list[int]]]) -> None:
        """Add *runs* that another spool wrote to the file *descriptor*."""
        self._runs += [(descriptor, start, cuts) for start, cuts in runs]

    def repeated(self) -> Iterator[bytes]:
        """Yield each digest that was put more than once."""
        for first in range(256):
            part = b"".join(
                os.pread(descriptor, cuts[first + 1] - cuts[first], start + cuts[first])
                for descriptor, start, cuts in self._runs
            )
            heads = array("Q", part)[::2]
            if len(set(heads)) < len(heads):
                digests = (part[at : at + _DIGEST_BYTES] for at in range(0, len(part), _DIGEST_BYTES))
                yield from (digest for digest, count in Counter(digests).items() if count > 1)

    def close(self) -> None:
        """Delete the temporary file, if this spool made one."""
        if self._file is not None:
            self._file.close()
