"""How much the embedded store keeps in memory, whatever its callers ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.operations import Deposit, Unfreeze
from support_core import fill, open_small, seed


@pytest.mark.parametrize("dry_run", [False, True])
def test_groups_without_entries_let_go_of_what_they_loaded(tmp_path: Path, dry_run: bool) -> None:
    """Refusals that are not kept, and dry runs, name more accounts and holds than memory may have."""
    with open_small(tmp_path, cache_accounts=8) as opened:
        ledger: Any = opened
        seed(ledger)
        holds = [ledger.freeze("ann", "btc", "1", key=f"h{number}").seq for number in range(20)]
        fill(ledger, 20)
        for number in range(50):
            ledger.execute([Deposit(f"d{number}", f"nobody{number}", "btc", "1")], dry_run=dry_run)
        for hold in holds:
            ledger.execute([Unfreeze(f"u{hold}", str(hold), None)], dry_run=True)
        memory = ledger._store._memory
        assert len(memory.accounts) <= 16
        assert len(memory.loaded_holds) <= 1
