"""
Writes to the ledger in a folder without end, and says on standard output what was acknowledged, a line a group.

A refusal that is not kept leaves no trace, so it is not said.

Started, and killed, by ``test_kill.py`` and ``test_kill_postgres.py``. Run as ``python stream_of_writes.py FOLDER SEED
SEGMENT_ENTRIES``, or with the URL of a database as FOLDER. What the store could not do is asked again with its keys.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence

import spotledger
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import Refused, StoreUnavailable
from spotledger.ledger.ledger import Ledger, Outcome

CUSTOMERS = 20
GROUP_SIZES = (1, 3, 40)


def main() -> None:
    """Write groups of random operations, each key made of the seed and a counter."""
    folder, seed, segment_entries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    choose = random.Random(seed)
    options = {} if "://" in folder else {"segment_entries": segment_entries}
    ledger = spotledger.open(folder, **options)
    setup = [ListCoin("coin", "usdt", 8), *(RegisterCustomer(f"customer-{n}", f"c{n}") for n in range(CUSTOMERS))]
    _execute(ledger, setup)
    count = 0
    frozen: list[str] = []
    while True:
        group = []
        for _ in range(choose.choice(GROUP_SIZES)):
            count += 1
            group.append(_operation(f"{seed}-{count}", choose, frozen))
        outcomes = _execute(ledger, group)
        known = [
            ("refused " if isinstance(outcome, Refused) else "") + operation.key
            for operation, outcome in zip(group, outcomes, strict=True)
            if not isinstance(outcome, Refused) or outcome.kept
        ]
        if known:
            sys.stdout.write(",".join(known) + "\n")
            sys.stdout.flush()


def _execute(ledger: Ledger, group: Sequence[Operation]) -> list[Outcome]:
    while True:
        try:
            return ledger.execute(group)
        except StoreUnavailable:
            time.sleep(0.05)


def _operation(key: str, choose: random.Random, frozen: list[str]):  # type: ignore[no-untyped-def]
    customer, other = (f"c{choose.randrange(CUSTOMERS)}" for _ in range(2))
    amount = f"{choose.randrange(1, 10_000)}.{choose.randrange(10**8):08d}"
    match choose.randrange(10):
        case 0 | 1 | 2:
            return Deposit(key, customer, "usdt", amount)
        case 3 | 4 | 5:
            frozen.append(key)
            return Freeze(key, customer, "usdt", amount, reference=f"order-{key}")
        case 6 if frozen:
            return Unfreeze(key, HoldKey(choose.choice(frozen)), None if choose.random() < 0.7 else "0.5")
        case 7 if frozen:
            return Withdraw(key, "0.25", hold=HoldKey(choose.choice(frozen)))
        case 8 if customer != other:
            return Transfer(key, customer, other, "usdt", amount)
        case _:
            return Withdraw(key, amount, customer=customer, coin="usdt")


if __name__ == "__main__":
    main()
