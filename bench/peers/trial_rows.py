"""
Runs the trial as a peer of the ledger: in a process of its own, on the same operations in the trial's words.

``python -m bench.peers.trial_rows FOLDER CUSTOMERS`` reads what a round is from each line, and answers with what it
came to, as lines of JSON.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench.exchange_work import COINS, FILLS, FUNDED, TOO_MUCH, Work, orders_for
from bench.harness import ROOT, Cores, pinned, stop, wait_for_sealing
from bench.peers.books_rows import units_of
from bench.peers.trial_books import COINS_LIMIT, TrialBooks
from bench.rounds import Round, Row, run_groups
from spotledger.domain.operations import Freeze, Operation, Settle, Unfreeze

#: What is refused for its amount is cut to what fits: the trial keeps 64 bits, and nobody has this much.
UNITS_LIMIT: Final = 2**63 - 1
ORDERS: Final = 1_000
WARM_UP: Final = ("mix", 1_000, 20_000)

Said = tuple[Any, ...]


class Trial:
    """The trial in its own process, as the bench sees it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Give rounds to *process*."""
        self._process = process

    def round(self, row: Row) -> Round:
        """Take one round of *row*, after any sealing of the ledger's that is still under way."""
        wait_for_sealing()
        return self.take(row.title, row.group, row.operations)

    def take(self, kind: str, group: int, operations: int) -> Round:
        """Take one round of the ``mix``, or to ``settle`` alone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kind, group, operations]) + "\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"the trial ended with code {self._process.wait()}")
        return Round(**json.loads(said))


@contextmanager
def running_trial(folder: Path, cores: Cores, customers: int) -> Iterator[Trial]:
    """Run the trial on the ledger's core, with its file in *folder*, for the length of the block."""
    place = folder / "trial"
    place.mkdir()
    command = [sys.executable, "-m", "bench.peers.trial_rows", str(place), str(customers)]
    process = subprocess.Popen(
        pinned(command, cores.server), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        trial = Trial(process)
        trial.take(*WARM_UP)
        yield trial
    finally:
        stop(process)


# --- in the trial's process ---------------------------------------------------------------------------------


class TrialWork:
    """Makes the groups that :class:`Work` makes, in the trial's words."""

    def __init__(self, seed: int, first_seq: int, customers: int) -> None:
        """Begin like :class:`Work`; a hold's number is the entry that opens it there."""
        self._work = Work(seed, first_seq, customers)
        self._remaining: dict[int, int] = {}
        #: How many of the operations so far become entries: no repeats, and none that are refused.
        self.booked = 0

    @property
    def seq(self) -> int:
        """The entry that the next operation becomes in a ledger."""
        return self._work.seq

    def group(self, size: int) -> list[Said]:
        """Make *size* operations of the mix."""
        return [self._say(lambda: self._work.group(1)) for _ in range(size)]

    def orders(self, size: int, fills: int) -> list[Said]:
        """Make *size* freezes, each good for some *fills*."""
        return [self._say(lambda: self._work.orders(1, fills)) for _ in range(size)]

    def settlements(self, size: int) -> list[Said]:
        """Make *size* settlements."""
        return [self._say(lambda: self._work.settlements(1)) for _ in range(size)]

    def _say(self, make: Callable[[], Sequence[Operation]]) -> Said:
        # Made one by one, holds are named by their entries and a repeat is one that becomes no entry.
        seq = self.seq
        operation = make()[0]
        if self.seq == seq:
            return (operation.kind, operation.key, 0)
        self.booked += 1
        if isinstance(operation, Settle):
            buyer, seller = int(str(operation.buyer.hold)), int(str(operation.seller.hold))
            quote, base = units_of(operation.quote_amount), units_of(operation.base_amount)
            self._take(buyer, quote)
            self._take(seller, base)
            return ("settle", operation.key, buyer, quote, seller, base)
        if isinstance(operation, Unfreeze):
            hold = int(str(operation.hold))
            return ("unfreeze", operation.key, hold, self._remaining.pop(hold))
        return self._say_amount(operation, seq)

    def _say_amount(self, operation: Any, seq: int) -> Said:
        number = int(operation.customer.rpartition("-")[2])
        account = number * COINS_LIMIT + COINS.index(operation.coin)
        units = min(units_of(operation.amount), UNITS_LIMIT)
        if not isinstance(operation, Freeze):
            return (operation.kind, operation.key, account, units)
        if operation.amount == TOO_MUCH:
            self.booked -= 1
        else:
            self._remaining[seq] = units
        return ("freeze", operation.key, account, units, seq)

    def _take(self, hold: int, units: int) -> None:
        self._remaining[hold] -= units
        if not self._remaining[hold]:
            del self._remaining[hold]


class TrialRounds:
    """Takes rounds on one file, which grows."""

    def __init__(self, folder: Path, customers: int) -> None:
        """Make the file in *folder*."""
        self._customers = customers
        self._books = TrialBooks(folder, customers, len(COINS), units_of(FUNDED))
        self._kind = "mix"
        self._work = TrialWork(1, 1, customers)

    def round(self, kind: str, group: int, operations: int) -> Round:
        """Take one round; raise RuntimeError unless as many entries were made as are meant."""
        if kind != self._kind:
            self._kind, self._work = kind, TrialWork(2, self._work.seq, self._customers)
        seq, booked = self._books.seq, self._work.booked
        result = run_groups(self._books, list(self._groups(group, operations)))
        if self._books.seq - seq != self._work.booked - booked:
            raise RuntimeError(f"{self._books.seq - seq} entries were made; {self._work.booked - booked} were meant")
        return result

    def _groups(self, group: int, operations: int) -> Iterator[list[Said]]:
        if self._kind == "mix":
            return (self._work.group(group) for _ in range(operations // group))
        for _ in range(0, orders_for(operations), ORDERS):
            self._books.execute(self._work.orders(ORDERS, FILLS))
        return (self._work.settlements(group) for _ in range(operations // group))


def main() -> None:
    """Take the rounds that are asked for."""
    gc.disable()
    rounds = TrialRounds(Path(sys.argv[1]), int(sys.argv[2]))
    for line in sys.stdin:
        print(json.dumps(asdict(rounds.round(*json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
