"""What a node knows of what others wrote: all of it, exactly, however far behind it lies; and great groups."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

import spotledger
from spotledger.domain.accounts import EXTERNAL, Account, Balance
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
from spotledger.errors import LedgerCorrupt, Refused, StoreUnavailable
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.postgres.following.head_cache import HeadCache
from support_core import Clock, seed, spot
from support_database_books import check_database
from support_postgres import proxy_to

CUSTOMERS = ("ann", "bob", "cy", "dan", "eve")
HUGE = "9" * 19
Open = Callable[..., Ledger]


@pytest.fixture
def open_node(postgres_url: str) -> Iterator[Open]:
    """Give what opens one more node on the same database; the books are checked at the end."""
    with ExitStack() as nodes:
        yield lambda **options: nodes.enter_context(spotledger.open(postgres_url, segment_entries=8, **options))
    check_database(postgres_url)


def begin(ledger: Ledger) -> None:
    """List two coins and give everybody plenty of both."""
    seed(ledger, " ".join(CUSTOMERS))
    ledger.list_coin("usdt", 18, key="list:usdt")
    ledger.execute([Deposit(f"usdt:{name}", name, "usdt", HUGE) for name in CUSTOMERS])


def mix(seed_number: int, count: int) -> list[Operation]:
    """Return operations of all kinds that a trading day has, some of which are refused or repeat others."""
    chance = random.Random(seed_number)
    made: list[Operation] = []
    for number in range(count):
        key = f"{seed_number}-{number}"
        ann, bob = chance.sample(CUSTOMERS, 2)
        price = f"{chance.randrange(1, 50)}.5"
        choices: list[Operation] = [
            Deposit(f"{key}d", ann, "btc", "0.5", reference="null"),
            Transfer(f"{key}t", ann, bob, "usdt", price),
            Freeze(f"{key}buy", ann, "usdt", price, reference=f"order {key} ✓", expires_ms=4_000_000_000_000),
            Freeze(f"{key}sell", bob, "btc", "0.1"),
            Freeze(f"{key}too", bob, "btc", "99999999"),
            RegisterCustomer(f"{key}new", f"new-{key}"),
        ]
        made.append(chance.choice(choices))
        if number % 3 == 0:
            made += [Freeze(f"{key}b", ann, "usdt", price), Freeze(f"{key}s", bob, "btc", "0.2", reference="NULL")]
            buyer, seller = SettleSide(HoldKey(f"{key}b"), CoinAmount("btc", "0.0001")), SettleSide(HoldKey(f"{key}s"))
            made.append(Settle(f"{key}fill", "btc", "usdt", "0.1", "0.25", buyer, seller))
            made.append(Unfreeze(f"{key}u", HoldKey(f"{key}s")))
        if number % 5 == 0:
            made += [Withdraw(f"{key}w", "0.01", ann, "btc"), made[chance.randrange(len(made))]]
        if number % 11 == 0:
            made.append(ListCoin(f"{key}list", f"coin{seed_number}x{number}", number % 18))
    return made


def holds_in_memory(memory: HeadCache) -> set[int]:
    """Return the holds of which *memory* knows everything."""
    known = {*memory.holds, *(hold_id for segment in memory.segments for hold_id in segment.holds)}
    return {hold_id for hold_id in known if memory.hold(hold_id) is not None}


def assert_same(node: Ledger, fresh: Ledger) -> None:
    """Check all that *node* has in memory against a node that has read everything from the tables."""
    memory = node._store._head_cache  # type: ignore[attr-defined]
    assert node.head == fresh.head
    assert dict(node.coins) == dict(fresh.coins)
    for account in list(memory.accounts):
        mine, other = node.account(account), fresh.account(account)
        assert (mine.changed_seq, dict(mine.balances)) == (other.changed_seq, dict(other.balances)), account
        assert all(type(balance) is Balance for balance in mine.balances.values())
    for hold_id in holds_in_memory(memory):
        hold = memory.hold(hold_id)
        if hold is not None:  # else its segment was dropped meanwhile
            assert hold == fresh.hold(hold_id)
            assert type(hold.account) is Account
    assert all(fresh.has_customer(customer) for customer in memory.customers)


def test_node_that_follows_has_all_that_others_changed(open_node: Open) -> None:
    """After entries of every kind, followed in pieces, accounts, holds, coins and customers are as in the tables."""
    writer, reader = open_node(), open_node(follow_seconds=None)
    begin(writer)
    for name in CUSTOMERS:
        reader.account(spot(name))
    reader.account(EXTERNAL)
    for number in range(6):
        writer.execute(mix(number, 40))
        deposit = writer.deposit("ann", "btc", "3", key=f"undone{number}")
        writer.reverse(deposit.seq, "mistake", key=f"undo{number}")
        reader.execute([])
        assert_same(reader, open_node(follow_seconds=None))
    assert reader.account(EXTERNAL).balance("usdt").available == -5 * int(HUGE) * 10**18
    holds = reader.holds("ann", limit=1_000)
    assert len(holds) > 20
    assert any(hold.reference == "NULL" for name in CUSTOMERS for hold in reader.holds(name, limit=1_000))
    assert reader._store.sealing_lag < 8


def test_node_that_only_follows_keeps_no_more_than_it_may(open_node: Open) -> None:
    """What others open and register does not heap up in a node that writes nothing, and is there when asked for."""
    writer, reader = open_node(), open_node(cache_accounts=4, follow_seconds=None)
    begin(writer)
    for step in range(5):
        writer.execute([Freeze(f"f{step}-{n}", "ann", "btc", "0.1") for n in range(20)])
        writer.execute([RegisterCustomer(f"r{step}-{n}", f"more-{step}-{n}") for n in range(20)])
        assert len(reader.holds("ann", limit=100)) == 20 * (step + 1)
    memory = reader._store._head_cache  # type: ignore[attr-defined]
    assert len(memory.holds) <= 9
    assert len(memory.customers) <= 4
    oldest = writer.holds("ann", limit=1)[0]
    assert reader.hold(oldest.hold_id) == oldest
    assert_same(reader, open_node(follow_seconds=None))


@pytest.mark.parametrize("follow_entries", [10, 20_000])
def test_node_far_behind_with_little_room_decides_as_others_would(open_node: Open, follow_entries: int) -> None:
    """Nodes with room for two accounts, one of which never follows, use each other's holds, coins and customers."""
    ahead = open_node(cache_accounts=2)
    behind = open_node(cache_accounts=2, follow_seconds=None, follow_entries=follow_entries)
    begin(ahead)
    for number in range(5):
        ahead.execute(mix(number, 25))
        name, coin = f"of-ahead-{number}", f"coin{number}"
        undone = ahead.deposit("bob", "btc", "2", key=f"undone{number}")
        registered = [ListCoin(f"l{number}", coin, 4), RegisterCustomer(f"r{number}", name)]
        ahead.execute(
            [*registered, Freeze(f"held{number}", "cy", "usdt", "7.5"), Freeze(f"s{number}", "dan", "btc", "1")]
        )
        sides = SettleSide(HoldKey(f"held{number}")), SettleSide(HoldKey(f"s{number}"))
        outcomes = behind.execute(
            [
                Deposit(f"own{number}", name, coin, "1.25"),
                Settle(f"fill{number}", "btc", "usdt", "0.5", "2.5", *sides),
                Unfreeze(f"rest{number}", HoldKey(f"held{number}")),
                Reverse(f"undo{number}", undone.seq, "mistake"),
                Freeze(f"s{number}", "dan", "btc", "1"),
            ]
        )
        assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
        assert [outcome.replayed for outcome in outcomes] == [False] * 4 + [True]
        assert_same(behind, open_node(follow_seconds=None))
        again = ahead.execute([Unfreeze(f"late{number}", HoldKey(f"held{number}")), *mix(100 + number, 5)])
        assert isinstance(again[0], Refused)
        assert again[0].code == "hold_closed"


@pytest.mark.parametrize("follow_entries", [5, 20_000])
def test_nodes_that_wait_for_their_turn_are_brought_along_meanwhile(
    open_node: Open, monkeypatch: pytest.MonkeyPatch, follow_entries: int
) -> None:
    """Four nodes that write much at once, each waiting for the others, end with the same memory and lose nothing."""
    monkeypatch.setattr("spotledger.storage.postgres.store.CROWD_ENTRIES", 3)
    nodes = [open_node(follow_entries=follow_entries) for _ in range(4)]
    begin(nodes[0])

    def work(number: int) -> int:
        booked = 0
        for step in range(8):
            outcomes = nodes[number].execute(mix(1_000 * number + step, 25))
            booked += sum(isinstance(outcome, Receipt) and not outcome.replayed for outcome in outcomes)
            booked += sum(isinstance(outcome, Refused) and outcome.seq is not None for outcome in outcomes)
        return booked

    before = nodes[0].head.seq
    with ThreadPoolExecutor(4) as pool:
        booked = sum(pool.map(work, range(4)))
    for node in nodes:
        node.execute([])
        assert_same(node, open_node(follow_seconds=None))
    # A refusal that was kept before is answered again with its entry, so there may be more of these than entries.
    assert before + booked >= nodes[0].head.seq > before + 4 * 8 * 25


def test_node_that_waits_for_its_turn_goes_on_following(
    open_node: Open, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a group waits behind others, what these commit is seen by reads of the node, before it has its turn."""
    monkeypatch.setattr("spotledger.storage.postgres.store.CROWD_ENTRIES", 0)
    first, second = open_node(), open_node(follow_seconds=0.02)
    begin(first)
    second.deposit("ann", "btc", "1", key="s0")
    first.deposit("bob", "btc", "1", key="f0")
    second.deposit("ann", "btc", "1", key="s1")  # finds an entry of another: from now on it waits alone
    # Whom of those that wait the server lets in first is its own choice: again, until it is not the node at once.
    assert any(_is_seen_while_waiting(first, second, postgres_url, attempt) for attempt in range(50))


def _is_seen_while_waiting(first: Ledger, second: Ledger, url: str, attempt: int) -> bool:
    """Let *first* write while *second* waits; return whether *second* has it in memory before it has its turn."""
    lock = "SELECT ledger_id FROM ledger FOR UPDATE"
    with psycopg.connect(url) as holder, psycopg.connect(url) as between, ThreadPoolExecutor(3) as pool:
        holder.execute(lock)
        deposit = pool.submit(first.deposit, "bob", "btc", "1", key=f"f-{attempt}")
        _wait_for_waiters(url, 1)
        behind = pool.submit(between.execute, lock)
        _wait_for_waiters(url, 2)
        waiting = pool.submit(second.deposit, "ann", "btc", "1", key=f"s-{attempt}")
        _wait_for_waiters(url, 3)
        holder.rollback()
        booked = deposit.result(20)
        deadline = time.monotonic() + 20
        while second.head.seq < booked.seq:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        changed_seq = second.account(spot("bob")).changed_seq
        is_waiting = behind.done() and not waiting.done()
        behind.result(20)
        between.rollback()
        assert waiting.result(20).seq == booked.seq + 1
        assert not is_waiting or changed_seq == booked.seq
        return is_waiting


def _wait_for_waiters(url: str, count: int) -> None:
    question = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + 20
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(question).fetchall()[0][0] < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("UPDATE entry SET body = replace(body, '1000', '9000') WHERE seq = {seq}", "chain is broken at entry {seq}"),
        ("UPDATE entry SET hash = sha256('other') WHERE seq = {seq}", "chain is broken at entry {seq}"),
        ("DELETE FROM entry WHERE seq = {seq}", "chain is broken at entry {seq}"),
    ],
)
def test_entry_of_another_node_that_does_not_fit_the_chain_stops_writing(
    postgres_url: str, damage: str, named: str
) -> None:
    """What others wrote is followed only as far as its numbers and hashes lead from what was seen to the head."""
    with spotledger.open(postgres_url) as writer, spotledger.open(postgres_url, follow_seconds=None) as reader:
        seed(writer)
        seq = writer.head.seq - 2
        with psycopg.connect(postgres_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(damage.format(seq=seq).encode())
        with pytest.raises(LedgerCorrupt, match=named.format(seq=seq)):
            reader.deposit("ann", "btc", "1", key="d")


# --- groups that are written in parts ------------------------------------------------------------------


def great_group(count: int) -> list[Operation]:
    """Return a group of many parts whose holds are opened in one part, and used and closed in later ones."""
    opened: list[Operation] = [Freeze(f"g{n}", CUSTOMERS[n % 5], "usdt", "3", reference=f"o{n}") for n in range(count)]
    used: list[Operation] = [Unfreeze(f"part{n}", HoldKey(f"g{n}"), "1") for n in range(0, count, 2)]
    closed: list[Operation] = [Withdraw(f"rest{n}", "2", hold=HoldKey(f"g{n}")) for n in range(0, count, 4)]
    return [*opened, *mix(77, count // 4), *used, *closed, *opened[:3]]


@pytest.mark.parametrize("in_chains", [False, True])
def test_group_written_in_parts_is_what_the_embedded_ledger_makes_of_it(
    open_node: Open, tmp_path: Path, in_chains: bool
) -> None:
    """A great group, of which the server has most before the rest is decided, has the same entries as ever."""
    clock = Clock()
    ledger, follower = open_node(clock_ms=clock), open_node(follow_seconds=None, clock_ms=clock)
    operations = great_group(500)
    chains = [None if n % 7 else n // 14 for n in range(len(operations))] if in_chains else None
    with spotledger.open(tmp_path / "data", clock_ms=clock) as embedded:
        for each in (ledger, embedded):
            begin(each)
            outcomes = each.execute(operations, chains=chains)
            assert sum(isinstance(outcome, Receipt) for outcome in outcomes) > 1_000
        assert _all_of(ledger) == _all_of(embedded)
    follower.execute([])
    assert_same(ledger, open_node(follow_seconds=None))
    assert_same(follower, open_node(follow_seconds=None))


def _all_of(ledger: Ledger) -> Sequence[Any]:
    found: list[Any] = []
    while entries := ledger.entries(len(found), 1_000):
        found += entries
    return found


@pytest.mark.parametrize("at", [b"add_entries", b"commit"])
def test_connection_lost_after_a_part_was_sent_leaves_nothing(postgres_url: str, at: bytes) -> None:
    """Parts of a group reached the server and the rest did not: nothing of it is there, and it can be done again."""
    with proxy_to(postgres_url) as proxy, spotledger.open(proxy.url) as ledger:
        begin(ledger)
        before, operations = ledger.head, great_group(300)
        proxy.cut_client_at = at + b"\x00"
        with pytest.raises(StoreUnavailable, match="same idempotency key"):
            ledger.execute(operations)
        proxy.cut_client_at = None
        assert proxy.cuts == 1
        assert ledger.head == before
        assert [entry.seq for entry in ledger.entries(before.seq, 5)] == []
        outcomes = ledger.execute(operations)
        assert not any(outcome.replayed for outcome in outcomes[:300])
        assert ledger.head.seq > before.seq + 500
    check_database(postgres_url)
