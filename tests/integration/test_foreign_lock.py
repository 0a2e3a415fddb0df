"""Another program that holds a lock of the ledger's files: writes are refused in words, and pass once it is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotledger.errors import StoreUnavailable
from support_books import check_books
from support_core import open_small, raw, seed, spot


def test_lock_of_another_program_refuses_writes_and_passes(tmp_path: Path) -> None:
    """Nothing of the refused write remains, reads go on, and the same request passes as soon as the lock is gone."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        head = ledger.head
        with raw(tmp_path) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="another process is writing to it"):
                ledger.deposit("ann", "btc", "1", key="waits")
            assert ledger.head == head
            assert ledger.balances(spot("ann"))["btc"].available == 1000 * 10**8
            assert ledger.entry_of_key("waits") is None
            other.execute("ROLLBACK")
        receipt = ledger.deposit("ann", "btc", "1", key="waits")
        assert (receipt.replayed, receipt.seq) == (False, head.seq + 1)
    check_books(tmp_path)
