"""
A node that does one step at a time, as its standard input says, and answers each with a line.

``begin COUNT`` takes the turn and sends a group of COUNT deposits, ``commit`` commits it, ``execute COUNT`` does both
with the keys of the last group. Run as ``python postgres_node.py URL NAME``, with the folder ``tests`` on its path.
"""

from __future__ import annotations

import sys

import spotledger
from spotledger.domain.operations import Deposit
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Receipt
from spotledger.storage.steps import drive
from support_core import booked_up_to_commit


def main() -> None:
    """Open the ledger, and do what is said."""
    url, name = sys.argv[1:]
    ledger = spotledger.open(url)
    steps = None
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        step, _, count = line.strip().partition(" ")
        operations = [Deposit(f"{name}-{number}", "ann", "btc", "1") for number in range(int(count or 0))]
        try:
            if step == "begin":
                steps = booked_up_to_commit(ledger, operations)
                answer = "begun"
            elif step == "commit":
                assert steps is not None
                ledger.finish(drive(steps))
                answer = "committed"
            else:
                outcomes = ledger.execute(operations)
                answer = f"new {sum(isinstance(o, Receipt) and not o.replayed for o in outcomes)}"
        except StoreUnavailable:
            answer = "unavailable"
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
