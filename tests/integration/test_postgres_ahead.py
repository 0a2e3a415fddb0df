"""What a node on PostgreSQL decides before it has the write lock: one round trip, and again if the head is another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import spotledger
from spotledger.domain.accounts import DUST, EXTERNAL, FEES, ZERO, Balance, receivable_of
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    OpenHouseAccount,
    Operation,
    RegisterCustomer,
    Reverse,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import (
    AlreadyReversed,
    CoinAlreadyListed,
    HoldClosed,
    HoldExpired,
    HouseAccountAlreadyOpen,
    IdempotencyConflict,
    InsufficientAvailable,
    StoreUnavailable,
    UnknownCustomer,
)
from spotledger.ledger.group import Group
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from spotledger.ledger.writer import Writer
from spotledger.storage.base import StaleDecision
from spotledger.storage.postgres.ahead.groups import ALONE_GROUPS
from spotledger.storage.postgres.store import PostgresStore
from spotledger.storage.steps import Steps, drive
from support_core import Clock, seed, spot
from support_database_books import check_database
from support_postgres import end_sessions

PATIENCE_SECONDS = 60
ONE = 10**8


class Counts:
    """How often groups took the lock first, and how often they were decided before it and compared under it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.locked = self.compared = 0
        begin, take = PostgresStore._begin, PostgresStore._take_stands

        def counted_begin(store: Any, *arguments: Any) -> Any:
            self.locked += 1
            return begin(store, *arguments)

        def counted_take(store: Any, *arguments: Any) -> None:
            self.compared += 1
            take(store, *arguments)

        monkeypatch.setattr(PostgresStore, "_begin", counted_begin)
        monkeypatch.setattr(PostgresStore, "_take_stands", counted_take)

    def since(self, act: Callable[[], Any]) -> tuple[int, int]:
        """Return how many groups took the lock first, and how many were compared, in *act*."""
        locked, compared = self.locked, self.compared
        act()
        return self.locked - locked, self.compared - compared


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Count how groups begin."""
    return Counts(monkeypatch)


@pytest.fixture
def clock() -> Clock:
    """Give a clock that the test moves."""
    return Clock()


@pytest.fixture
def node(postgres_url: str, clock: Clock) -> Iterator[Ledger]:
    """Give a seeded node that does not hear of others, and has all accounts in memory; its books are checked."""
    with spotledger.open(postgres_url, clock_ms=clock, follow_seconds=None) as opened:
        seed(opened)
        warm(opened, "node")
        yield opened
    check_database(postgres_url)


@pytest.fixture
def other(node: Ledger, postgres_url: str, clock: Clock) -> Iterator[Ledger]:
    """Give another node of the same ledger."""
    with spotledger.open(postgres_url, clock_ms=clock, follow_seconds=None) as opened:
        warm(opened, "other")
        node.execute([])
        warm(node, "again")
        yield opened


def warm(ledger: Ledger, name: str) -> None:
    """Have the accounts in memory, and enough groups that found memory at the head."""
    for number in range(2):
        ledger.execute([Deposit(f"{name}-{number}-{who}", who, "btc", "1") for who in ("ann", "bob")])
    store: Any = ledger._store
    store._alone_groups = ALONE_GROUPS


def seq_of(outcome: Outcome) -> int:
    """Return the entry of an operation that was booked now."""
    assert isinstance(outcome, Receipt), outcome
    assert not outcome.replayed
    return outcome.seq


def deposits(name: str, count: int) -> list[Operation]:
    """Return *count* deposits of bob."""
    return [Deposit(f"{name}-{number}", "bob", "btc", "1") for number in range(count)]


@pytest.mark.parametrize("count", [1, 64, 200])
def test_group_that_memory_knows_takes_one_round_trip(node: Any, counts: Counts, count: int) -> None:
    """Lock, comparison, entries and commit are sent together; the connection has one answer to wait for."""
    session, trips = node._store._writing, 0
    answers = session.answers

    def counted(*arguments: Any) -> Any:
        nonlocal trips
        trips += 1
        return answers(*arguments)

    session.answers = counted
    assert counts.since(lambda: node.execute(deposits("d", count))) == (0, 1)
    assert trips == 1


def test_memory_that_lacks_something_takes_the_lock_first_and_once(node: Ledger, counts: Counts) -> None:
    """An account, a customer or an entry that memory does not have is looked up with the lock."""
    node.execute([RegisterCustomer("carol", "carol")])
    for operation in (Deposit("a", "carol", "btc", "1", account="fiat"), Reverse("r", 2 + 1, "a mistake")):
        assert counts.since(lambda operation=operation: node.execute([operation])) == (1, 0)
    assert isinstance(node.execute([Deposit("u", "nobody", "btc", "1")])[0], UnknownCustomer)


def test_refusal_that_is_not_kept_is_compared_under_the_lock(node: Ledger, other: Ledger, counts: Counts) -> None:
    """The key may be known: then its kept result is the answer, not what memory says."""
    node.execute([ListCoin("l", "eth", 2)])
    warm(node, "l")
    seq_of(other.execute([Deposit("d", "ann", "eth", "5")])[0])
    [conflict] = node.execute([Deposit("d", "ann", "eth", "0.001")])
    assert isinstance(conflict, IdempotencyConflict)
    warm(node, "m")
    counted = counts.since(lambda: node.execute([Deposit("e", "ann", "eth", "0.001")]))
    assert counted == (0, 1)


def test_repeat_is_answered_with_its_kept_result(node: Ledger, counts: Counts) -> None:
    """The server finds the key, so nothing is written, and the group is decided again with the lock."""
    first = node.execute([Deposit("d", "ann", "btc", "5")])[0]
    assert counts.since(lambda: node.execute(deposits("x", 1))) == (0, 1)
    again, other = node.execute([Deposit("d", "ann", "btc", "5"), Deposit("n", "ann", "btc", "1")])
    assert isinstance(again, Receipt)
    assert (again.replayed, again.seq) == (True, seq_of(first))
    seq_of(other)
    conflict = node.execute([Deposit("d", "ann", "btc", "6")])[0]
    assert isinstance(conflict, IdempotencyConflict)


def test_node_that_is_alone_decides_before_the_lock_after_some_groups(node: Any, counts: Counts) -> None:
    """It takes the lock first until so many groups found memory at the head."""
    node._store._alone_groups = 0
    for number in range(ALONE_GROUPS):
        assert counts.since(lambda number=number: node.execute(deposits(f"a{number}", 1))) == (1, 0)
    assert counts.since(lambda: node.execute(deposits("b", 1))) == (0, 1)


def moved(node: Ledger, other: Ledger, operations: Sequence[Operation]) -> Outcome:
    """Let *other* write, and return what *node* answers to the last of *operations* afterwards."""
    for operation in operations[:-1]:
        seq_of(other.execute([operation])[0])
    return node.execute([operations[-1]])[0]


CASES: dict[str, tuple[list[Operation], type[Outcome] | None]] = {
    "balance spent": (
        [Transfer("a", "ann", "bob", "btc", "1007"), Freeze("b", "ann", "btc", "1")],
        InsufficientAvailable,
    ),
    "balance gained": ([Deposit("a", "ann", "btc", "500"), Freeze("b", "ann", "btc", "1400")], None),
    "hold used up": ([Unfreeze("a", HoldKey("hold"), None), Unfreeze("b", HoldKey("hold"), None)], HoldClosed),
    "coin listed": ([ListCoin("a", "eth", 2), ListCoin("b", "eth", 2)], CoinAlreadyListed),
    "coin to use": ([ListCoin("a", "eth", 2), Deposit("b", "ann", "eth", "0.01")], None),
    "house account opened": (
        [OpenHouseAccount("a", "vault"), OpenHouseAccount("b", "vault")],
        HouseAccountAlreadyOpen,
    ),
    "house account to use": ([OpenHouseAccount("a", "vault"), Deposit("b", "@vault", "btc", "1")], None),
    "customer registered": ([RegisterCustomer("a", "carol"), Deposit("b", "carol", "btc", "1")], None),
    "entry reversed": ([Reverse("a", 3, "a mistake"), Reverse("b", 3, "a mistake")], AlreadyReversed),
    "key used": ([Deposit("a", "ann", "btc", "1"), Deposit("a", "ann", "btc", "2")], IdempotencyConflict),
}


@pytest.mark.parametrize("case", CASES)
def test_what_another_node_wrote_meanwhile_counts(node: Ledger, other: Ledger, case: str) -> None:
    """The node's memory says something else; under the lock it is found out, and decided again."""
    operations, refusal = CASES[case]
    node.freeze("ann", "btc", "1", key="hold")
    warm(node, case.replace(" ", "-"))
    head = node.head.seq
    outcome = moved(node, other, operations)
    if refusal is None:
        assert seq_of(outcome) == head + len(operations)
    else:
        assert isinstance(outcome, refusal)
    keys = [entry.key for entry in node.entries(0, 1_000)]
    assert len(keys) == len(set(keys))


def test_debt_that_was_made_elsewhere_is_repaid(node: Ledger, other: Ledger, counts: Counts) -> None:
    """By the group that has to be decided again, and by the next one, which is decided before the lock."""
    other.withdraw(str(other.balances(spot("ann"))["btc"].available // ONE), customer="ann", coin="btc", key="w")
    other.reverse(3, "a mistake", key="r")
    owed = other.balances(receivable_of("ann"))["btc"].available
    assert owed < 0
    for name, expected in (("d", (1, 1)), ("e", (0, 1))):
        counted = counts.since(lambda name=name: node.execute([Deposit(name, "ann", "btc", "5")]))
        assert counted == expected
        owed += 5 * ONE
        assert (node.balances(spot("ann"))["btc"], node.balances(receivable_of("ann"))["btc"]) == (ZERO, (owed, 0))
        warm(node, name)
        owed += 2 * ONE


def test_epoch_that_began_elsewhere_counts(node: Ledger, other: Ledger) -> None:
    """The entry is booked in the epoch under the lock."""
    other.begin_epoch("the machine was set back")
    [outcome] = node.execute([Deposit("d", "ann", "btc", "1")])
    assert isinstance(outcome, Receipt)
    assert outcome.epoch == 2


def test_nodes_that_alternate_decide_again_and_then_take_the_lock_first(
    node: Ledger, other: Ledger, counts: Counts
) -> None:
    """After one group that was decided in vain a node takes the lock first, until it was alone with the journal."""
    counts.locked = counts.compared = 0
    for number in range(6):
        for name, ledger in (("n", node), ("o", other)):
            [outcome] = ledger.execute([Freeze(f"{name}{number}", "ann", "btc", "1")])
            assert seq_of(outcome) == ledger.head.seq
    assert (counts.locked, counts.compared) == (11, 3)
    warm(node, "alone")
    assert counts.since(lambda: node.execute(deposits("alone", 1))) == (0, 1)


def test_hold_that_is_due_expires_first(node: Ledger, clock: Clock) -> None:
    """A hold whose time has come before the group is decided is not usable, and its funds are."""
    node.freeze("ann", "btc", "1000", key="h", expires_ms=clock.now_ms + 1_000)
    warm(node, "before")
    clock.now_ms += 2_000
    used, frozen = node.execute([Unfreeze("u", HoldKey("h"), None), Freeze("f", "ann", "btc", "1000")])
    assert isinstance(used, HoldExpired)
    seq_of(frozen)


def test_due_hold_that_only_the_tables_have_expires_first(postgres_url: str, clock: Clock) -> None:
    """A node that never saw the hold is told by the server that one is due, and decides again."""
    options: dict[str, Any] = {"clock_ms": clock, "segment_entries": 8, "follow_seconds": None}
    with spotledger.open(postgres_url, **options) as first:
        seed(first)
        first.freeze("ann", "btc", "1000", key="h", expires_ms=clock.now_ms + 1_000)
        warm(first, "fill")
        first.execute(deposits("fill", 12))
        first.execute([])
    with spotledger.open(postgres_url, **options) as ledger:
        warm(ledger, "new")
        clock.now_ms += 2_000
        seq_of(ledger.execute([Freeze("f", "ann", "btc", "1000")])[0])
    check_database(postgres_url)


def test_time_under_the_lock_that_is_too_late_decides_again(
    postgres_url: str, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that waited for the lock for longer than a second is booked at the time of the lock."""
    with spotledger.open(postgres_url, follow_seconds=None) as ledger:
        seed(ledger)
        warm(ledger, "a")
        assert counts.since(lambda: ledger.execute(deposits("b", 1))) == (0, 1)
        store: Any = ledger._store
        store._reading = store._reading._replace(server_ms=store._reading.server_ms - 1_500)
        assert counts.since(lambda: ledger.execute(deposits("c", 1))) == (1, 1)
        store._reading = store._reading._replace(server_ms=store._reading.server_ms + 500)
        warm(ledger, "d")
        booked = [entry.booked_ms for entry in ledger.entries(0, 100)]
        assert booked == sorted(booked)
    check_database(postgres_url)


def test_accounts_that_are_evicted_are_looked_up_again(postgres_url: str) -> None:
    """With hardly any cache, each group finds what is true, whether memory has it or not."""
    names = [f"c{number}" for number in range(9)]
    with spotledger.open(postgres_url, segment_entries=8, cache_accounts=4) as ledger:
        seed(ledger, " ".join(names))
        for turn in range(4):
            for number, name in enumerate(names):
                other = names[(number + turn) % 9]
                seq_of(ledger.execute([Freeze(f"{turn}-{name}", name, "btc", "1")])[0])
                seq_of(ledger.execute([Deposit(f"d{turn}-{name}", other, "btc", "2")])[0])
        assert {name: ledger.balances(spot(name))["btc"] for name in names} == dict.fromkeys(
            names, Balance(1004 * ONE, 4 * ONE)
        )
    check_database(postgres_url)


# --- groups that overlap ------------------------------------------------------------------------------


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run *test* to its end; one that hangs fails."""
    asyncio.run(asyncio.wait_for(test, PATIENCE_SECONDS))


@contextmanager
def lock_taken(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Hold the write lock, as another node would, for the length of a ``with`` block."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT ledger_id FROM ledger FOR UPDATE")
        yield connection


async def met(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    while not condition():
        await asyncio.sleep(0.002)


def asked(writer: Writer, *operations: Operation) -> asyncio.Task[list[Outcome]]:
    """Submit *operations* in a task."""
    return asyncio.ensure_future(writer.submit(operations))


async def overlapped(writer: Writer) -> tuple[asyncio.Task[list[Outcome]], asyncio.Task[list[Outcome]]]:
    """Return the answers to a group that is being committed, and to one that was decided on top of it."""
    first = asked(writer, Transfer("t", "bob", "ann", "btc", "1002"), Freeze("h", "ann", "btc", "1"))
    await met(lambda: writer._ledger._store._is_ending)  # type: ignore[attr-defined]
    second = asked(writer, Freeze("f", "ann", "btc", "2006"), Unfreeze("u", HoldKey("h"), None))
    await met(lambda: writer.waiting == 0)
    await asyncio.sleep(0.05)
    return first, second


def test_next_group_is_decided_while_the_last_is_committed_and_nobody_sees_it(
    node: Ledger, postgres_url: str, counts: Counts
) -> None:
    """Each costs one round trip; nothing is answered or visible before its own commit has returned."""
    head = node.head.seq

    async def test() -> None:
        writer = Writer(node)
        await writer.start()
        with lock_taken(postgres_url):
            first, second = await overlapped(writer)
            assert not first.done()
            assert not second.done()
            assert node.head.seq == head
            assert node.balances(spot("ann"))["btc"] == Balance(1002 * ONE, 0)
        assert [seq_of(outcome) for outcome in await first] == [head + 1, head + 2]
        frozen, opened = await second
        assert isinstance(frozen, InsufficientAvailable)
        assert frozen.seq == head + 3
        assert seq_of(opened) == head + 4
        await writer.stop()

    counted = counts.since(lambda: run(test()))
    assert counted == (0, 2)
    assert node.balances(spot("ann"))["btc"] == Balance(2004 * ONE, 0)


def test_group_that_another_node_was_quicker_than_is_decided_again_with_what_is_on_top(
    node: Ledger, other: Ledger, postgres_url: str
) -> None:
    """The first finds another head under the lock; both are decided again, on what the other node wrote."""

    async def test() -> None:
        head = node.head.seq
        writer = Writer(node)
        await writer.start()
        seq_of(other.execute([Withdraw("w", "1000", customer="bob", coin="btc")])[0])
        with lock_taken(postgres_url):
            first, second = await overlapped(writer)
        short, opened = await first
        assert isinstance(short, InsufficientAvailable)
        assert (short.seq, seq_of(opened)) == (head + 2, head + 3)
        frozen, closed = await second
        assert isinstance(frozen, InsufficientAvailable)
        assert seq_of(closed) == head + 5
        await writer.stop()

    run(test())


def until_piece(steps: Steps[Group]) -> None:
    """Run *steps* until a piece of the group is decided and the next one is not."""
    answer: Any = None
    while (step := steps.send(answer)) is not None:
        answer = step() if callable(step) else drive(at_last(step))


def at_last(step: Any) -> Steps[Any]:
    """Wait for one step, and return its answer."""
    return (yield step)


def waited(steps: Steps[None]) -> Steps[None]:
    """Go on with *steps*, whose first step was for an answer that may be there."""
    answer: Any = True
    while True:
        answer = yield steps.send(answer)


def test_group_on_top_of_one_that_is_decided_again_moves_no_more_balances(node: Ledger, other: Ledger) -> None:
    """It is half decided when the other one is decided again: both would move the same lines."""
    other.execute(deposits("between", 1))
    first = drive(node.deciding(deposits("first", 150)))
    committing = node.committing(first)
    next(committing)
    second = node.deciding(deposits("second", 150), after=first)
    until_piece(second)
    with pytest.raises(StaleDecision):
        drive(waited(committing))
    again = node.booking(deposits("first", 150))
    until_piece(again)
    assert drive(second).is_void
    seqs = [seq_of(outcome) for outcome in node.finish(drive(again))]
    assert seqs == list(range(seqs[0], seqs[0] + 150))
    assert node.balances(spot("bob"))["btc"].available == (1006 + 151) * ONE


def test_commit_that_fails_takes_with_it_what_was_decided_on_top(node: Ledger, postgres_url: str) -> None:
    """Whoever was in it is told so; whoever was decided on top is decided again, without it, and answered."""

    async def test() -> None:
        head = node.head.seq
        writer = Writer(node)
        await writer.start()
        with lock_taken(postgres_url):
            first, second = await overlapped(writer)
            assert await asyncio.to_thread(end_sessions, postgres_url) == 1
            await asyncio.sleep(0.2)
        with pytest.raises(StoreUnavailable):
            await first
        frozen, unknown = await second
        assert isinstance(frozen, InsufficientAvailable)
        assert frozen.seq == head + 1
        assert not isinstance(unknown, Receipt)
        await writer.stop()

    run(test())


def test_memory_that_was_built_anew_meanwhile_is_not_trusted(node: Any, postgres_url: str) -> None:
    """The lines of the old memory have what the group under way changed, those of the new one do not."""

    async def test() -> None:
        writer = Writer(node)
        await writer.start()
        store = node._store
        with lock_taken(postgres_url):
            first = asked(writer, Transfer("t", "ann", "bob", "btc", "1002"))
            await met(lambda: store._is_ending)
            store._head_cache.sealed_seq = store._head_cache.base = 1  # as after a failover that lost a sealing
            await asyncio.to_thread(store._ask)
            assert store._head_cache is not store._used
            for account in (spot("ann"), EXTERNAL, FEES, DUST):  # all that the next group needs
                store.account(account)
            second = asked(writer, Freeze("f", "ann", "btc", "1"))
            await asyncio.sleep(0.1)
        seq_of((await first)[0])
        assert isinstance((await second)[0], InsufficientAvailable)
        await writer.stop()

    run(test())


def test_reads_evict_no_account_that_a_group_under_way_has_changed(postgres_url: str) -> None:
    """An account that was evicted and read again would be what it was before the group."""
    names = [f"c{number}" for number in range(20)]
    with spotledger.open(postgres_url, cache_accounts=8, follow_seconds=None) as ledger:
        seed(ledger, " ".join(("ann", "bob", *names)))
        warm(ledger, "ann")
        store: Any = ledger._store

        async def test() -> None:
            writer = Writer(ledger)
            await writer.start()
            with lock_taken(postgres_url):
                first = asked(writer, Transfer("t", "ann", "bob", "btc", "1002"))
                await met(lambda: store._is_ending)
                for account in (*map(spot, names), spot("ann"), EXTERNAL, FEES, DUST):
                    store.account(account)
                second = asked(writer, Freeze("f", "ann", "btc", "1"))
                await asyncio.sleep(0.1)
            seq_of((await first)[0])
            assert isinstance((await second)[0], InsufficientAvailable)
            await writer.stop()

        run(test())
        ledger.execute(deposits("later", 1))
        assert len(store._head_cache.accounts) <= 10
    check_database(postgres_url)
