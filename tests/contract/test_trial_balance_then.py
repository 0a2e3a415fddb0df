"""The trial balance of any past entry is the sum of the postings up to it, in both stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, ZERO, Balance
from spotledger.domain.journal import AVAILABLE
from spotledger.errors import InvalidRequest
from spotledger.ledger.ledger import CUSTOMERS, Ledger
from spotledger.storage.trial_sums import way_to
from support_audit import every_kind
from support_core import Clock, fill, open_small
from support_database_books import seal


def check_each(ledger: Ledger) -> None:
    """Compare the trial balance of every entry with the postings up to it."""
    sums: dict[tuple[str, str], Balance] = {}
    entries = {entry.seq: entry for entry in ledger.entries()}
    for seq in range(ledger.head.seq + 1):
        for (customer, kind), coin, side, units, _ in entries[seq].postings if seq else ():
            owner = CUSTOMERS if kind != HOUSE_KIND else RECEIVABLE if customer.startswith(RECEIVABLE) else customer
            before = sums.get((owner, coin), ZERO)
            both = (units, 0) if side == AVAILABLE else (0, units)
            sums[owner, coin] = Balance(before.available + both[0], before.freeze + both[1])
        found = ledger.trial_balance(seq)
        assert found.seq == seq
        assert {name: both for name, both in found.sums.items() if any(both)} == {
            name: both for name, both in sums.items() if any(both)
        }
    assert ledger.trial_balance().seq == ledger.head.seq


def test_trial_balance_of_any_entry_is_the_sum_up_to_it(ledger: Ledger) -> None:
    """Before and after what is sealed, whichever is the nearest way."""
    fill(ledger, 30)
    check_each(ledger)


def test_trial_balance_of_every_kind_of_entry(tmp_path: Path) -> None:
    """Holds, fills, debts and reversals are added up and taken away alike."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        every_kind(ledger, clock)
        check_each(ledger)


def test_trial_balance_on_postgres_goes_back_from_what_is_sealed(place: Any) -> None:
    """After sealing, the sums of an earlier entry are the sealed ones without the entries in between."""
    with place.open() as ledger:
        every_kind(ledger, place.clock)
        if hasattr(place, "_url"):
            seal(place._url)
        ledger.deposit("ann", "btc", "1", key="not-sealed")
        check_each(ledger)


def test_entry_that_does_not_exist_yet_is_refused(ledger: Ledger) -> None:
    """Nobody knows what there will be."""
    for at_seq in (-1, ledger.head.seq + 1):
        with pytest.raises(InvalidRequest) as refused:
            ledger.trial_balance(at_seq)
        assert refused.value.details["field"] == "at_seq"


@pytest.mark.parametrize(
    ("at_seq", "sealed", "expected"),
    [
        (0, 0, (True, 0, 0, 1)),
        (5, 0, (True, 0, 5, 1)),
        (5, 5, (True, 5, 5, 1)),
        (7, 5, (True, 5, 7, 1)),
        (0, 5, (False, 0, 0, 1)),
        (2, 5, (False, 0, 2, 1)),
        (3, 5, (True, 3, 5, -1)),
        (4, 5, (True, 4, 5, -1)),
    ],
)
def test_nearest_way_is_taken(at_seq: int, sealed: int, expected: tuple[bool, int, int, int]) -> None:
    """From the sealed balances on or back, or from the first entry on."""
    assert way_to(at_seq, sealed) == expected
