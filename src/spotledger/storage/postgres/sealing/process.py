"""The process that seals a ledger on PostgreSQL: ``python -m`` this module; the first line it reads is the address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

from spotledger.storage.base import Head
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.sealing_process import serve


def main() -> None:
    """Seal as the parent asks; where another node is sealing, that is left to it."""
    address = sys.stdin.buffer.readline().decode().strip()
    sealer = Sealer(partial(connect, address, application="spotledger seal"))

    def seal(segment: int, known: str) -> Iterator[int]:
        seq, link = known.split()
        head = Head(int(seq), bytes.fromhex(link), 0)
        while (sealed := sealer.seal_next(head)).segment < segment and not sealed.is_busy:
            yield sealed.segment
        yield sealed.segment

    serve(seal)


if __name__ == "__main__":
    main()
