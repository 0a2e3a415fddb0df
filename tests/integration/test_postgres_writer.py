"""The writer on PostgreSQL: it waits for the server on the event loop, and everything else goes on meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

import spotledger
from spotledger.domain.accounts import Balance
from spotledger.domain.operations import Deposit
from spotledger.errors import StoreUnavailable
from spotledger.ledger import ledger as ledger_module
from spotledger.ledger.ledger import Ledger, Outcome, Receipt
from spotledger.ledger.writer import Writer
from support_core import seed, spot
from support_database_books import check_database
from support_postgres import COMMIT_ASKED, COMMITTED, Proxy, proxy_to

PATIENCE_SECONDS = 30


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """Give a proxy to a fresh database."""
    with proxy_to(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def ledger(proxy: Proxy, postgres_url: str) -> Iterator[Ledger]:
    """Give a seeded ledger behind the proxy; its books are checked at the end."""
    with spotledger.open(proxy.url) as opened:
        seed(opened)
        yield opened
    check_database(postgres_url)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run *test* to its end; one that hangs fails."""
    asyncio.run(asyncio.wait_for(test, PATIENCE_SECONDS))


def deposit(key: str) -> list[Deposit]:
    """Return one deposit of bob."""
    return [Deposit(key, "bob", "btc", "1")]


def is_booked(outcomes: list[Outcome], replayed: bool = False) -> bool:
    """Say whether all *outcomes* are receipts, of now or, *replayed*, of earlier."""
    return all(isinstance(outcome, Receipt) and outcome.replayed is replayed for outcome in outcomes)


@contextmanager
def turn_taken(url: str) -> Iterator[None]:
    """Hold the journal's turn, as another node would, for the length of a ``with`` block."""
    with psycopg.connect(url) as connection:
        connection.execute("SELECT ledger_id FROM ledger FOR UPDATE")
        yield


async def turns_of_loop(count: int = 20) -> None:
    """Return after the loop has gone round so often, with time between for others."""
    for _ in range(count):
        await asyncio.sleep(0.005)


def test_callers_at_once_are_each_answered_for_their_own(ledger: Ledger) -> None:
    """Many single operations share groups that are decided in several pieces; each caller has its own outcome."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        count = 3 * ledger_module.PIECE_OPERATIONS + 7
        before = ledger.head.seq
        answers = await asyncio.gather(*(writer.submit(deposit(f"k{number}")) for number in range(count)))
        assert [answer[0].entry.key for answer in answers] == [f"k{number}" for number in range(count)]
        assert ledger.head.seq == before + count
        assert ledger.account(spot("bob")).balance("btc") == Balance((1000 + count) * 10**8, 0)
        await writer.stop()

    run(test())


def test_loop_goes_on_and_reads_are_answered_while_a_group_waits(ledger: Ledger, postgres_url: str) -> None:
    """While another node has the turn, the loop turns, what memory has is read, and more callers are gathered."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        ledger.account(spot("ann"))
        with turn_taken(postgres_url):
            first = asyncio.create_task(writer.submit(deposit("first")))
            await turns_of_loop()
            others = [asyncio.create_task(writer.submit(deposit(f"k{number}"))) for number in range(5)]
            await turns_of_loop()
            assert ledger.balances(spot("ann"))["btc"] == Balance(1000 * 10**8, 0)
            assert [hold.hold_id for hold in ledger.holds("ann")] == []
            assert writer.waiting == 5
            assert not first.done()
        assert is_booked(await first)
        assert all(is_booked(answer) for answer in await asyncio.gather(*others))
        await writer.stop()

    run(test())


def test_stop_waits_for_the_server_and_answers_all(ledger: Ledger, postgres_url: str) -> None:
    """A stop while a group waits for its turn ends with everybody answered."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        with turn_taken(postgres_url):
            tasks = [asyncio.create_task(writer.submit(deposit(f"k{number}"))) for number in range(5)]
            await turns_of_loop(5)
            stopping = asyncio.create_task(writer.stop())
            await turns_of_loop(5)
            assert not stopping.done()
        await stopping
        assert all(is_booked(answer) for answer in await asyncio.gather(*tasks))

    run(test())


def test_loop_that_ends_while_the_server_is_busy_leaves_memory_right(ledger: Ledger, postgres_url: str) -> None:
    """Where all tasks are cancelled in the middle of a group, it is done to its end, and the next write goes on."""
    before = ledger.head.seq
    taken = turn_taken(postgres_url)

    async def test() -> None:
        writer = Writer(ledger, group_limit=1)
        await writer.start()
        taken.__enter__()
        tasks = [asyncio.create_task(writer.submit(deposit(f"k{number}"))) for number in range(3)]
        await turns_of_loop(5)
        asyncio.get_running_loop().call_later(0.1, taken.__exit__, None, None, None)
        assert len(tasks) == 3

    run(test())
    assert ledger.head.seq == before + 1
    assert is_booked(ledger.execute(deposit("k0")), replayed=True)
    assert is_booked(ledger.execute(deposit("k1")))


@pytest.mark.parametrize("cut_at", ["answer", "commit"])
def test_connection_lost_at_the_commit_is_looked_up_beside_the_loop(ledger: Ledger, proxy: Proxy, cut_at: str) -> None:
    """A lost answer is found in the journal, a lost commit is told as such; either way each key is booked once."""

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        before = ledger.head.seq
        if cut_at == "answer":
            proxy.cut_server_at = COMMITTED
            assert is_booked(await writer.submit(deposit("k")))
            assert is_booked(await writer.submit(deposit("k")), replayed=True)
        else:
            proxy.cut_client_at = COMMIT_ASKED
            with pytest.raises(StoreUnavailable, match="same idempotency key"):
                await writer.submit(deposit("k"))
            assert is_booked(await writer.submit(deposit("k")))
        assert proxy.cuts == 1
        assert ledger.head.seq == before + 1
        await writer.stop()

    run(test())


def test_server_that_goes_away_and_comes_back_is_found_again(
    ledger: Ledger, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is away callers are told so and the loop goes on; once it is back the writer finds out by itself."""
    monkeypatch.setattr("spotledger.ledger.writer.EXPIRY_SECONDS", 0.05)

    async def test() -> None:
        writer = Writer(ledger)
        await writer.start()
        assert is_booked(await writer.submit(deposit("before")))
        proxy.refuses = True
        proxy.cut_all()
        refused = await asyncio.gather(*(writer.submit(deposit(f"k{n}")) for n in range(5)), return_exceptions=True)
        assert {type(answer) for answer in refused} == {StoreUnavailable}
        assert not writer.can_write
        await turns_of_loop()
        proxy.refuses = False
        while not writer.can_write:
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(*(writer.submit(deposit(f"k{n}")) for n in range(5)))
        assert all(is_booked(answer) for answer in answers)
        await writer.stop()

    run(test())
