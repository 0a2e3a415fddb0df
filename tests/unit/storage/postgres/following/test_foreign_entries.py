"""Entries read for what they changed: the same as the whole entry says, whatever else stands in it."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account
from spotledger.domain.journal import Entry, Hold, opened_hold
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import decode_changes, encode_entry
from spotledger.storage.postgres.following.foreign_entries import ForeignEntries
from spotledger.storage.postgres.following.head_cache import HeadCache

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
        "moves": ((0, "available", -HUGE, None), (0, "freeze", HUGE, 7)),
        "balances": ((ANN, "btc", 0, HUGE),),
        "holds": ((7, HUGE),),
        **changes,
    }
    values["request"] = {**values["request"], "format": 1, "op": values["kind"]}
    return Entry(**values)


def opened(body: bytes) -> Hold | None:
    """Return the hold that memory has after the entry with this *body*."""
    memory = HeadCache(Head(6, b"", 0), [], Epochs(), segment_entries=8, cache_accounts=4)
    memory.apply([decode_changes(body)], Head(7, b"", 0))
    return memory.hold(7)


@pytest.mark.parametrize("more", [{}, {"reference": "null"}, {"reference": "17", "expires_ms": 2**53}])
def test_freeze_read_for_its_changes_opens_the_same_hold(more: dict[str, Any]) -> None:
    """Account, amounts beyond 64 bits, reference and time are those of the whole entry, of the domain's types."""
    whole = entry(request={**FREEZE, "units": str(HUGE), **more})
    hold = opened(encode_entry(whole))
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
        {"kind": "withdraw", "request": {"hold": {"key": "k"}}, "happened_ms": 5, "holds": ((3, 0),)},
        {
            "kind": "deposit",
            "holds": (),
            "balances": ((EXTERNAL, "usdt", -HUGE, 0), (ANN, "btc", HUGE, 0)),
        },
    ],
)
def test_movement_read_for_its_changes_leaves_the_same_balances_and_holds(changes: dict[str, Any]) -> None:
    """Balances equal those of the entry, and nothing but a freeze opens a hold; what is unknown is passed over."""
    whole = entry(**changes)
    change = decode_changes(encode_entry(whole))
    assert change.balances == whole.balances
    assert change.holds == whole.holds
    assert (change.seq, change.kind, change.booked_ms) == (whole.seq, whole.kind, whole.booked_ms)
    assert opened(encode_entry(whole)) is None
    assert change.refusal is None


def test_refused_freeze_read_for_its_changes_changed_nothing() -> None:
    """A refusal that was kept has no balances, and opens no hold."""
    refusal = {"code": "unknown_coin", "detail": "so", "details": {"n": [1]}}
    body = encode_entry(entry(moves=(), balances=(), holds=(), refusal=refusal))
    change = decode_changes(body)
    assert change.refusal is not None
    assert opened(body) is None
    assert change.balances == ()


@pytest.mark.parametrize("body", [b"", b"{}", b'{"seq":"x"}', encode_entry(entry())[:-9]])
def test_bytes_that_are_no_entry_are_damage(body: bytes) -> None:
    """What cannot be read is said to be damage of the journal, not an error of the reader."""
    with pytest.raises(LedgerCorrupt, match="cannot be read"):
        decode_changes(body)


@pytest.mark.parametrize(("known", "left"), [(0, [7, 8, 9]), (6, [7, 8, 9]), (7, [8, 9]), (9, []), (12, [])])
def test_news_after_an_entry_are_those_that_follow_it(known: int, left: list[int]) -> None:
    """Changes that memory has already are left out."""
    changes = [decode_changes(encode_entry(entry(seq=seq))) for seq in (7, 8, 9)]
    news = ForeignEntries(changes, Head(9, b"", 0), None).after(known)
    assert [change.seq for change in news.changes] == left
    assert news.last.seq == 9
