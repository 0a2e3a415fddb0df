"""How much the embedded store keeps in memory, whatever its callers ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.operations import Deposit, Unfreeze
from spotledger.errors import StoreUnavailable
from spotledger.storage.sqlite.books import Books
from support_books import check_books
from support_core import Clock, fill, open_small, seed


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


@pytest.mark.parametrize("failing", ["due_rows", "next_due_ms", "holds_of_ids"])
def test_hold_that_is_due_while_the_books_cannot_be_read_expires_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """It was found due, and the group that would have expired it failed: it is found again, wherever it is."""
    clock = Clock()
    with open_small(tmp_path, clock, cache_accounts=8) as ledger:
        seed(ledger)
        expires_ms = clock.now_ms + 1
        sealed = ledger.freeze("ann", "btc", "1", key="sealed", expires_ms=expires_ms).seq
        fill(ledger, 20)
        recent = ledger.freeze("ann", "btc", "1", key="recent", expires_ms=expires_ms).seq
        clock.now_ms += 1

        def unreadable(*_: Any) -> Any:
            raise StoreUnavailable("the books cannot be read, in a test")

        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(Books, failing, unreadable)
                with pytest.raises(StoreUnavailable):
                    ledger.execute([])
        ledger.execute([])
        assert [hold.hold_id for hold in ledger.holds("ann", state="closed")] == [sealed, recent]
    check_books(tmp_path)
