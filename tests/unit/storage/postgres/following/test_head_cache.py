"""A node's memory: whatever is sealed, dropped and loaded when, what it says is the state at its head."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import spotledger
from spotledger.domain.accounts import Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold, opened_hold
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import decode_changes, encode_entry
from spotledger.storage.postgres.following.head_cache import HeadCache, Snapshot
from support_audit import every_kind
from support_core import Clock

SIZE = 8


class State:
    """What the entries up to one lead to, read from the whole entries."""

    def __init__(self, entries: list[Entry]) -> None:
        self.balances: dict[Account, tuple[int, dict[str, Balance]]] = {}
        self.holds: dict[int, Hold] = {}
        self.coins: list[Coin] = []
        self.customers: set[str] = set()
        for entry in entries:
            if entry.refusal is None:
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        for account, coin, available, freeze in entry.balances:
            balances = self.balances.get(account, (0, {}))[1]
            self.balances[account] = (entry.seq, {**balances, coin: Balance(available, freeze)})
        opened = opened_hold(entry)
        if opened is not None:
            self.holds[entry.seq] = opened
        else:
            self.holds.update((hold_id, self.holds[hold_id].after(left, entry.seq)) for hold_id, left in entry.holds)
        if entry.kind == "list_coin":
            self.coins.append(Coin(entry.request["coin"], entry.request["scale"]))
        if entry.kind == "register_customer":
            self.customers.add(entry.request["customer"])


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    """Give entries of every kind."""
    return list(booked(tmp_path_factory.mktemp("ledger")))


def booked(folder: Path) -> Iterator[Entry]:
    clock = Clock()
    with spotledger.open(folder, clock_ms=clock) as ledger:
        for prefix in ("", "again-"):
            every_kind(ledger, clock, prefix)
        ledger.freeze("ann", "btc", "1", key="open", expires_ms=clock.now_ms + 1_000)
        yield from ledger.entries(0, 10_000)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_joined_with_memory_are_the_state_at_its_head(entries: list[Entry], data: st.DataObject) -> None:
    """Rows of any snapshot that memory covers, loaded at any time, and followed or written from then on."""
    base = data.draw(st.integers(0, len(entries) - 1), "sealed at the start")
    start = State(entries[:base])
    memory = HeadCache(Head(base, b"", 0), start.coins, Epochs(), segment_entries=SIZE, cache_accounts=4)
    sealed = base
    while memory.head.seq < len(entries):
        head = data.draw(st.integers(memory.head.seq + 1, min(memory.head.seq + 12, len(entries))), "head")
        new = entries[memory.head.seq : head]
        is_own = data.draw(st.booleans(), "own")
        memory.apply(
            new if is_own else [decode_changes(encode_entry(entry)) for entry in new], Head(head, b"%d" % head, 0)
        )
        sealed = data.draw(st.integers(sealed, head), "sealed")
        if data.draw(st.booleans(), "noticed"):
            memory.note_sealed(sealed)
            memory.drop_sealed()
        read_at = data.draw(st.integers(max(0, sealed - 10), sealed), "snapshot")
        snapshot = Snapshot(Head(max(read_at, head - 1), b"", 0), read_at, [], 0)
        rows, now = State(entries[:read_at]), State(entries[:head])
        assert memory.covers(snapshot) == (read_at >= memory.base)
        if memory.covers(snapshot):
            memory.take_accounts({account: rows.balances.get(account, (0, {})) for account in now.balances})
            asked = data.draw(st.lists(st.sampled_from([*now.holds, 1]), max_size=6), "holds")
            memory.take_holds([rows.holds[hold_id] for hold_id in asked if hold_id in rows.holds])
            assert all(memory.hold(hold_id) == now.holds.get(hold_id) for hold_id in asked)
            assert {row.hold_id: memory.newest(row) for row in rows.holds.values()} == {
                hold_id: now.holds[hold_id] for hold_id in rows.holds
            }
            assert rows.customers | memory.customers_after("") == now.customers
        for account, view in memory.accounts.items():
            assert (view.changed_seq, dict(view.balances)) == now.balances.get(account, (0, {})), account
        for hold_id in range(head + 1):
            assert memory.hold(hold_id) in (None, now.holds.get(hold_id)), hold_id
        assert sorted(memory.coins.values()) == sorted(now.coins)
        memory.shrink()


def test_memory_that_was_changed_by_halves_covers_nothing(entries: list[Entry]) -> None:
    """After an error in the midst of a change no row is joined with it."""
    memory = HeadCache(Head(0, b"", 0), [], Epochs(), segment_entries=SIZE, cache_accounts=4)
    snapshot = Snapshot(Head(0, b"", 0), 0, [], 0)
    assert memory.covers(snapshot)
    with pytest.raises(LedgerCorrupt, match="entry 2 of the journal"):
        memory.apply([entries[0], None], Head(2, b"", 0))  # type: ignore[list-item]
    assert not memory.covers(snapshot)
