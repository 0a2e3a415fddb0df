"""The overlay of a group: what later operations see, what nobody else sees, and a chain that is undone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account
from spotledger.domain.journal import Entry
from spotledger.domain.operations import Deposit, Freeze, ListCoin, Operation, RegisterCustomer, Reverse, Unfreeze
from spotledger.domain.rules import decide, request_of, subject_of
from spotledger.errors import LedgerCorrupt
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.overlay import Overlay, found
from support_core import open_small, seed

ANN = Account("ann", "spot")
COIN = 10**8
NOW_MS = 1_700_000_000_000


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Give a ledger with btc listed, and ann and bob with 1000 each."""
    with open_small(tmp_path) as made:
        seed(made)
        yield made


@pytest.fixture
def overlay(ledger: Ledger) -> Overlay:
    """Give an overlay on the head of the ledger."""
    store: Any = ledger._store
    return Overlay(store, [], [])


def take(overlay: Overlay, operation: Operation, seq: int) -> Entry:
    """Decide *operation* on *overlay* and let the overlay take its entry *seq*."""
    subject = subject_of(operation, overlay)
    decision = decide(operation, subject, overlay, seq, NOW_MS)
    request = request_of(operation, subject)
    entry = Entry(seq, operation.kind, operation.key, NOW_MS, request, decision.moves, decision.balances)
    overlay.take(entry, decision)
    return entry


def balance(overlay: Overlay, account: Account) -> tuple[int, int]:
    """Return what *account* has of bitcoin, as the overlay tells it."""
    line = overlay.line(account, "btc")
    return line.available, line.freeze


def seen(overlay: Overlay, first: int) -> list[object]:
    """Return all that the tests change, as the overlay tells it; *first* is the first entry of the group."""
    names = [overlay.coin("eth"), overlay.has_customer("carol"), overlay.reversal_of(3)]
    entries = [overlay.entry(seq) for seq in range(first, first + 6)]
    keys = [overlay.entry_of_key(key) for key in ("k-deposit", "k-freeze", "k-list")]
    holds = [overlay.hold(first + 1), overlay.hold_id_of_key("k-freeze")]
    return [balance(overlay, ANN), balance(overlay, EXTERNAL), *names, *entries, *keys, *holds]


def take_one_of_each(overlay: Overlay) -> None:
    """Deposit, freeze, release a part, list, register and reverse."""
    first = overlay.head.seq + 1
    take(overlay, Deposit("k-deposit", "ann", "btc", "5"), first)
    take(overlay, Freeze("k-freeze", "ann", "btc", "2"), first + 1)
    take(overlay, Unfreeze("k-unfreeze", str(first + 1), "0.5"), first + 2)
    take(overlay, ListCoin("k-list", "eth", 18), first + 3)
    take(overlay, RegisterCustomer("k-register", "carol"), first + 4)
    take(overlay, Reverse("k-reverse", 3, "a mistake"), first + 5)


def test_what_a_group_did_is_seen_by_its_later_operations_alone(ledger: Ledger, overlay: Overlay) -> None:
    """Balances, holds, names, keys, entries and reversals are those after the group; the ledger's stay as they were."""
    first = overlay.head.seq + 1
    take_one_of_each(overlay)
    # 1000 of the seed, 5 deposited, 1.5 in the hold; the reversal takes the 1000 back.
    assert balance(overlay, ANN) == (3.5 * COIN, 1.5 * COIN)
    hold = overlay.hold(first + 1)
    assert hold is not None
    assert hold.remaining == 1.5 * COIN
    assert (overlay.hold_id_of_key("k-freeze"), overlay.hold_id_of_key("k-deposit")) == (first + 1, None)
    assert (overlay.coin("eth"), overlay.has_customer("carol")) == (("eth", 18), True)
    assert overlay.reversal_of(3) == first + 5
    listing = overlay.entry(first + 3)
    assert listing is not None
    assert listing is overlay.entry_of_key("k-list")
    assert overlay.entry(first + 6) is None
    assert ledger.account(ANN).balances["btc"] == (1000 * COIN, 0)
    assert "eth" not in ledger.coins


def test_chain_that_is_undone_leaves_what_was_there_before(overlay: Overlay) -> None:
    """Whatever a refused chain did is gone, and what the group did before it stays, also where both changed it."""
    first = overlay.head.seq + 1
    take(overlay, Deposit("before", "ann", "btc", "1"), first)
    before = seen(overlay, first + 1)
    overlay.begin_chain()
    take(overlay, Deposit("k-deposit", "ann", "btc", "5"), first + 1)
    take(overlay, Freeze("k-freeze", "ann", "btc", "2"), first + 2)
    take(overlay, Unfreeze("k-unfreeze", str(first + 2), None), first + 3)
    take(overlay, ListCoin("k-list", "eth", 18), first + 4)
    take(overlay, RegisterCustomer("k-register", "carol"), first + 5)
    take(overlay, Reverse("k-reverse", 3, "a mistake"), first + 6)
    assert seen(overlay, first + 1) != before
    overlay.end_chain(undo=True)
    assert seen(overlay, first + 1) == before
    assert balance(overlay, ANN) == (1001 * COIN, 0)


def test_chain_that_is_kept_is_not_undone_by_the_next(overlay: Overlay) -> None:
    """Undoing a chain never reaches into the one before it."""
    first = overlay.head.seq + 1
    overlay.begin_chain()
    take(overlay, Deposit("one", "ann", "btc", "5"), first)
    overlay.end_chain(undo=False)
    overlay.begin_chain()
    overlay.end_chain(undo=True)
    assert balance(overlay, ANN) == (1005 * COIN, 0)
    assert overlay.entry(first) is not None


def test_entry_that_the_journal_refers_to_and_does_not_have_is_damage() -> None:
    """A contradiction is never taken for an absence."""
    assert found(0) == 0
    with pytest.raises(LedgerCorrupt):
        found(None)


def test_group_that_was_given_up_leaves_nothing_to_the_next(ledger: Ledger, overlay: Overlay) -> None:
    """What a group decided and never wrote is gone for the next one, although both use the same lines."""
    first = overlay.head.seq + 1
    take(overlay, Deposit("k-deposit", "ann", "btc", "5"), first)
    take(overlay, Freeze("k-freeze", "ann", "btc", "2"), first + 1)
    line = overlay.line(ANN, "btc")
    store: Any = ledger._store
    later = Overlay(store, [], [])
    assert balance(later, ANN) == (1000 * COIN, 0)
    assert later.line(ANN, "btc") is line
    assert balance(later, EXTERNAL) == (-2000 * COIN, 0)
