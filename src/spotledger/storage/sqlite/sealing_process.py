"""The process that seals an embedded ledger: ``python -m`` this module with the journal and the books."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from spotledger.storage.sealing_process import serve
from spotledger.storage.sqlite.sealing import Sealer


def main(journal: Path, books: Path) -> None:
    """Seal *journal* into *books*, as the parent asks."""
    opened: list[Sealer] = []

    def seal(segment: int, _: str) -> Iterator[int]:
        if not opened:
            opened.append(Sealer(journal, books))
        sealer = opened[0]
        while sealer.sealed_segments <= segment:
            sealer.seal_next()
            yield sealer.sealed_segments - 1
        yield sealer.sealed_segments - 1

    serve(seal)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
