"""Entries read for what they changed: the same as the whole entry says, whatever else stands in it."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account
from spotledger.domain.journal import BalanceAfter, Entry, Hold, HoldAfter, Posting, opened_hold
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import encode_entry
from spotledger.storage.postgres.foreign_entries import ForeignEntries, change_in

ANN = Account("ann", "spot")
HUGE = 10**38 - 1
FREEZE: dict[str, Any] = {"format": 1, "op": "freeze", "customer": "ann", "account": "spot", "coin": "btc"}


def entry(**changes: Any) -> Entry:
    """Return a freeze of a huge amount."""
    values: dict[str, Any] = {
        "seq": 7,
        "kind": "freeze",
        "key": "null",
        "booked_ms": 1_700_000_000_000,
        "request": {**FREEZE, "units": str(HUGE), "reference": "order ✓"},
        "postings": (Posting(ANN, "btc", "available", -HUGE), Posting(ANN, "btc", "freeze", HUGE, 7)),
        "balances": (BalanceAfter(ANN, "btc", 0, HUGE),),
        "holds": (HoldAfter(7, HUGE),),
        **changes,
    }
    values["request"] = {**values["request"], "format": 1, "op": values["kind"]}
    return Entry(**values)


@pytest.mark.parametrize("more", [{}, {"reference": "null"}, {"reference": "17", "expires_ms": 2**53}])
def test_freeze_read_for_its_changes_opens_the_same_hold(more: dict[str, Any]) -> None:
    """Account, amounts beyond 64 bits, reference and time are those of the whole entry, of the domain's types."""
    whole = entry(request={**FREEZE, "units": str(HUGE), **more})
    hold = change_in(encode_entry(whole)).opened_hold()
    assert hold == opened_hold(whole)
    assert type(hold) is Hold
    assert type(hold.account) is Account


@pytest.mark.parametrize(
    "changes",
    [
        {
            "kind": "settle",
            "request": {"buyer": {"hold": "3", "fee": {"coin": "btc", "units": "1"}}, "seller": [1, {}]},
        },
        {"kind": "withdraw", "request": {"hold": {"key": "k"}}, "happened_ms": 5, "holds": (HoldAfter(3, 0),)},
        {
            "kind": "deposit",
            "holds": (),
            "balances": (BalanceAfter(EXTERNAL, "usdt", -HUGE, 0), BalanceAfter(ANN, "btc", HUGE, 0)),
        },
    ],
)
def test_movement_read_for_its_changes_leaves_the_same_balances_and_holds(changes: dict[str, Any]) -> None:
    """Balances equal those of the entry, and nothing but a freeze opens a hold; what is unknown is passed over."""
    whole = entry(**changes)
    change = change_in(encode_entry(whole))
    assert change.balances == whole.balances
    assert change.holds == whole.holds
    assert (change.seq, change.kind, change.booked_ms) == (whole.seq, whole.kind, whole.booked_ms)
    assert change.opened_hold() is None
    assert change.refusal is None


def test_refused_freeze_read_for_its_changes_changed_nothing() -> None:
    """A refusal that was kept has no balances, and opens no hold."""
    refusal = {"code": "unknown_coin", "detail": "so", "details": {"n": [1]}}
    change = change_in(encode_entry(entry(postings=(), balances=(), holds=(), refusal=refusal)))
    assert change.refusal is not None
    assert change.opened_hold() is None
    assert change.balances == ()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"seq":"x"}', encode_entry(entry())[:-9]])
def test_bytes_that_are_no_entry_are_damage(body: bytes) -> None:
    """What cannot be read is said to be damage of the journal, not an error of the reader."""
    with pytest.raises(LedgerCorrupt, match="cannot be read"):
        change_in(body)


@pytest.mark.parametrize(("known", "left"), [(0, [7, 8, 9]), (6, [7, 8, 9]), (7, [8, 9]), (9, []), (12, [])])
def test_news_after_an_entry_are_those_that_follow_it(known: int, left: list[int]) -> None:
    """Changes and bytes that memory has already are left out together."""
    bodies = [encode_entry(entry(seq=seq)) for seq in (7, 8, 9)]
    news = ForeignEntries([change_in(body) for body in bodies], bodies).after(known)
    assert [change.seq for change in news.changes] == left
    assert news.bodies == bodies[3 - len(left) :]
