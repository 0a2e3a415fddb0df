"""The process that seals a ledger on PostgreSQL: ``python -m`` this module; the first line it reads is the address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial

from spotledger.storage.base import Head
from spotledger.storage.postgres.right_server import RightServer
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.sealing_process import serve
from spotledger.storage.seen_head import Seen


def main() -> None:
    """Seal as the parent asks; where another node is sealing, that is left to it."""
    address = sys.stdin.buffer.readline().decode().strip()
    right = RightServer(address)
    sealer = Sealer(partial(right.connect, "spotledger seal"))

    def seal(segment: int, known: str) -> Iterator[int]:
        ledger_id, epoch, seq, link, system, timeline = known.split()
        seen = Seen(ledger_id, int(epoch), int(seq), bytes.fromhex(link), int(system), int(timeline))
        right.seen.seen = seen
        right.seen.note_server(seen.server, later_epoch=True)
        head = Head(seen.seq, seen.hash, 0)
        while (sealed := sealer.seal_next(head)).segment < segment and not sealed.is_busy:
            yield sealed.segment
        yield sealed.segment

    serve(seal)


if __name__ == "__main__":
    main()
