"""What a group leaves in memory, with the lines that it found, is what its entries alone lead to at a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.operations import (
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import Refused
from spotledger.storage.open_segments import OpenSegment
from spotledger.storage.sqlite.working_set import WorkingSet
from support_core import Clock, open_small, seed

SEGMENT = 8


def everything(first_seq: int, later_ms: int) -> list[Operation]:
    """Return one of each operation, and refusals that are kept; the first becomes the entry *first_seq*."""
    buyer = SettleSide(HoldKey("bid"), fee=CoinAmount("eth", "0.1"))
    seller = SettleSide(HoldKey("ask"), fee=CoinAmount("btc", "1"), release="rest")
    return [
        Deposit("d", "ann", "btc", "5"),
        ListCoin("eth", "eth", 8),
        RegisterCustomer("carol", "carol"),
        Deposit("e", "bob", "eth", "7"),
        Freeze("bid", "ann", "btc", "20", reference="bid"),
        Freeze("ask", "bob", "eth", "3", expires_ms=later_ms),
        Settle("fill", "eth", "btc", "2", "20", buyer, seller),
        Withdraw("short", "9999", "bob", "btc"),
        Unfreeze("gone", HoldKey("bid"), None),
        Transfer("t", "ann", "bob", "btc", "1"),
        Reverse("r", first_seq, "a mistake"),
        Reverse("unknown", 10**6, "a mistake"),
        ListCoin("eth-again", "eth", 8),
        RegisterCustomer("carol-again", "carol"),
        Freeze("f", "bob", "eth", "1"),
        Withdraw("w", "1", hold=HoldKey("f")),
    ]


def told(segment: OpenSegment) -> dict[str, Any]:
    """Return all that *segment* has, as values that can be compared."""
    found = {name: getattr(segment, name) for name in OpenSegment.__slots__ if name != "touched"}
    found["touched"] = {
        account: {coin: (list(line.places), line.closing) for coin, line in lines.items()}
        for account, lines in segment.touched.items()
    }
    return found


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("segment_entries", [SEGMENT, 64])
def test_memory_after_groups_is_that_of_the_same_entries_one_by_one(
    tmp_path: Path, size: int, segment_entries: int
) -> None:
    """Keys, holds, expiries, reversals, balances and what touched them agree, also where a segment ends in a group."""
    clock = Clock()
    with open_small(tmp_path, clock, segment_entries=segment_entries, cache_accounts=1_000) as ledger:
        seed(ledger)
        operations = everything(ledger.head.seq + 1, clock.now_ms + 1_000)
        outcomes = [
            outcome
            for start in range(0, len(operations), size)
            for outcome in ledger.execute(operations[start : start + size])
        ]
        assert sum(isinstance(outcome, Refused) for outcome in outcomes) == 5
        store: Any = ledger._store
        memory, alone = store._memory, WorkingSet(segment_entries, 1_000)
        for entry in ledger.entries(0, 1_000):
            alone.apply(entry)
        open_segments = {segment.number: told(segment) for segment in memory.segments}
        assert open_segments
        for segment in alone.segments:
            if segment.number in open_segments:
                assert told(segment) == open_segments[segment.number]
        balances = {account: dict(state.balances) for account, state in alone.accounts.items()}
        for account, state in memory.accounts.items():
            assert dict(state.balances) == balances.get(account, {})
            assert state.changed_seq == (alone.accounts[account].changed_seq if account in balances else 0)
        assert dict(memory.coins) == dict(alone.coins)
        assert memory.known_customers.keys() == alone.known_customers.keys()
