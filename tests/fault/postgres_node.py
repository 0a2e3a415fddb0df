"""
A node that does one step at a time, as its standard input says, and answers each with a line.

``prepare COUNT`` takes the turn and sends a group of COUNT deposits, ``commit`` commits it, ``execute COUNT`` does both
with the keys of the last group. Run as ``python postgres_node.py URL NAME``.
"""

from __future__ import annotations

import sys

import spotledger
from spotledger.domain.operations import Deposit
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Receipt


def main() -> None:
    """Open the ledger, and do what is said."""
    url, name = sys.argv[1:]
    ledger = spotledger.open(url)
    group = None
    print("ready", flush=True)  # noqa: T201
    for line in sys.stdin:
        step, _, count = line.strip().partition(" ")
        operations = [Deposit(f"{name}-{number}", "ann", "btc", "1") for number in range(int(count or 0))]
        try:
            if step == "prepare":
                group = ledger.prepare(operations)
                answer = "prepared"
            elif step == "commit":
                assert group is not None
                ledger.commit(group)
                ledger.finish(group)
                answer = "committed"
            else:
                outcomes = ledger.execute(operations)
                answer = f"new {sum(isinstance(o, Receipt) and not o.replayed for o in outcomes)}"
        except StoreUnavailable:
            ledger.abandon()
            answer = "unavailable"
        print(answer, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
