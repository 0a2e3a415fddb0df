"""Entries are checked before they are written, independently of the rules that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotledger.domain import rules
from spotledger.domain.books import Decision, State
from spotledger.domain.journal import AVAILABLE
from spotledger.domain.operations import Deposit, Expire
from spotledger.errors import LedgerCorrupt
from support_core import Clock, open_small, seed, spot


def one_sided(operation: Any, subject: Any, state: State, seq: int, now_ms: int) -> Decision:
    """Give ann a unit that comes from nowhere, as a broken rule might."""
    line = state.line(spot("ann"), "btc")
    return Decision(((0, AVAILABLE, 1, None),), ((line.account, line.coin, line.available + 1, line.freeze),))


@pytest.mark.parametrize("operation", [Deposit, Expire])
def test_postings_that_do_not_add_up_are_never_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: type
) -> None:
    """Whether a caller asked for the operation, or the ledger writes it by itself."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        ledger.freeze("ann", "btc", "1", key="h", expires_ms=clock.now_ms + 1)
        head = ledger.head
        clock.now_ms += 1
        monkeypatch.setitem(rules._RULES, operation, one_sided)
        with pytest.raises(LedgerCorrupt, match="do not add up to zero"):
            ledger.execute([Deposit("d", "ann", "btc", "1")])
        assert ledger.head == head
