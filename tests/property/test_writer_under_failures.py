"""Random requests, repeats and failures through the writer: whatever overlaps, keys, balances and books are right."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.domain.accounts import Account, Balance
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation, Reverse, Transfer, Unfreeze, Withdraw
from spotledger.errors import StoreBusy, StoreUnavailable
from spotledger.ledger.ledger import Ledger, Outcome
from spotledger.ledger.writer import Writer
from spotledger.storage.sqlite.working_set import WorkingSet
from support_books import check_books
from support_core import Clock, open_small, seed, spot
from support_database_books import check_database
from support_postgres import COMMIT_ASKED, COMMITTED, Proxy, proxy_to

PATIENCE_SECONDS = 120
NAMES = [f"c{number}" for number in range(12)]
CALLERS = 9
#: How often each caller sends, by the size of its requests: small ones book few entries, as many refusals leave none.
TURNS = {3: 16, 90: 10}


class Caller:
    """Sends what a dice says, repeats what failed, and remembers which entry it was told of for each key."""

    def __init__(self, writer: Writer, clock: Clock, number: int, dice: random.Random, told: dict[str, int]) -> None:
        self._writer, self._clock, self._number, self._dice, self._told = writer, clock, number, dice, told
        self._sent = 0

    def operation(self) -> Operation:
        """Return another operation; some have a key that others use, too."""
        self._sent += 1
        dice, key, name = self._dice, f"{self._number}-{self._sent}", self._dice.choice(NAMES)
        hold = HoldKey(f"{self._number}-{max(1, self._sent - dice.randint(1, 9))}")
        other = dice.choice([one for one in NAMES if one != name])
        expires_ms = self._clock.now_ms + dice.choice([5, 50, 10**9])
        kinds: list[Callable[[], Operation]] = [
            lambda: Deposit(key, name, "btc", "3"),
            lambda: Freeze(key, name, "btc", "2", expires_ms=expires_ms),
            lambda: Unfreeze(key, hold, dice.choice([None, "1"])),
            lambda: Withdraw(key, "1", hold=hold),
            lambda: Transfer(key, name, other, "btc", "2"),
            lambda: Reverse(key, dice.randint(1, 400), "a mistake"),
            lambda: Deposit(f"shared-{dice.randint(1, 60)}", "c0", "btc", "1"),
        ]
        return dice.choice(kinds)()

    async def send(self, operations: list[Operation], *, atomic: bool) -> list[Outcome]:
        """Send *operations* until they are answered."""
        while True:
            try:
                return await self._writer.submit(operations, atomic=atomic)
            except (StoreUnavailable, StoreBusy):
                await asyncio.sleep(0)

    async def run(self, size: int) -> None:
        """Send requests of up to *size* operations; now and then one twice at the same time."""
        dice = self._dice
        for _ in range(TURNS[size]):
            operations = [self.operation() for _ in range(dice.randint(1, size))]
            is_unique = len({operation.key for operation in operations}) == len(operations)
            atomic = is_unique and dice.random() < 0.2
            times = 2 if dice.random() < 0.4 else 1
            for outcomes in await asyncio.gather(*(self.send(operations, atomic=atomic) for _ in range(times))):
                for operation, outcome in zip(operations, outcomes, strict=True):
                    if outcome.seq is not None:
                        assert self._told.setdefault(operation.key, outcome.seq) == outcome.seq
            self._clock.now_ms += dice.randint(0, 3)
            await asyncio.sleep(dice.choice([0, 0, 0.001, 0.003]))


async def load(ledger: Any, clock: Clock, seed_number: int, size: int, told: dict[str, int]) -> None:
    """Let all callers send, beside reads that evict accounts."""
    writer = Writer(ledger, gather_seconds=0.0003)
    await writer.start()

    async def read() -> None:
        while True:
            for name in NAMES:
                ledger.account(spot(name))
                ledger.holds(name)
            await asyncio.sleep(0.001)

    reading = asyncio.create_task(read())
    callers = [
        Caller(writer, clock, number, random.Random(seed_number * 100 + number), told) for number in range(CALLERS)
    ]
    await asyncio.gather(*(caller.run(size) for caller in callers))
    reading.cancel()
    await writer.stop()


def check_journal(ledger: Ledger, told: dict[str, int]) -> None:
    """Check that each key has one entry, the one its callers were told of, and that balances follow from postings."""
    entries = ledger.entries(0, 100_000)
    seqs = {entry.key: entry.seq for entry in entries}
    assert len(seqs) == len(entries)
    assert {key: seqs[key] for key in told} == told
    sums: dict[tuple[Account, str], list[int]] = {}
    for entry in entries:
        for posting in entry.postings:
            sums.setdefault((posting.account, posting.coin), [0, 0])[posting.side == "freeze"] += posting.units
        for account, coin, *sides in entry.balances:
            assert sums[account, coin] == sides
    for (account, coin), (available, freeze) in sums.items():
        assert ledger.account(account).balance(coin) == Balance(available, freeze)


@pytest.mark.parametrize("seed_number", range(3))
@pytest.mark.parametrize("size", [3, 90])
def test_whatever_fails_each_key_is_booked_once_and_the_books_are_right(
    tmp_path: Path, seed_number: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits fail, groups cannot be made visible, reads evict, segments end; groups overlap all the time."""
    chance, clock, told = random.Random(seed_number), Clock(), dict[str, int]()

    def commit(_: Any, statement: str, __: Any) -> bool:
        if statement == "COMMIT":
            time.sleep(chance.choice([0, 0.001, 0.004]))
            if chance.random() < 0.08:
                raise StoreUnavailable("the disk of the test failed")
        return True

    def failing(name: str) -> None:
        """Let a step of making a group visible fail now and then."""
        step = getattr(WorkingSet, name)

        def tried(self: WorkingSet, *arguments: Any) -> None:
            if self.groups and chance.random() < 0.03:
                raise RuntimeError("the group could not be made visible")
            step(self, *arguments)

        monkeypatch.setattr(WorkingSet, name, tried)

    sizes = {"segment_entries": chance.choice([8, 64, 4_000]), "cache_accounts": chance.choice([2, 30, 100])}
    with open_small(tmp_path, clock, **sizes) as ledger:
        seed(ledger, " ".join(NAMES))
        store: Any = ledger._store
        failing("take_group")
        store._write.set_exec_trace(commit)
        asyncio.run(asyncio.wait_for(load(ledger, clock, seed_number, size, told), PATIENCE_SECONDS))
        store._write.set_exec_trace(None)
        assert ledger.corrupt is None
        assert store._memory.groups == 0
        check_journal(ledger, told)
    assert len(told) > 100
    check_books(tmp_path)


class Trouble:
    """Cuts connections at a commit, and lets another node write between, until it is cancelled."""

    def __init__(self, proxy: Proxy, other: Ledger, dice: random.Random) -> None:
        self._proxy, self._other, self._dice = proxy, other, dice
        self.written = 0

    def write(self) -> None:
        """Let the other node move what the callers move, too."""
        self.written += 1
        key, name = f"other-{self.written}", self._dice.choice(NAMES)
        kinds: list[Operation] = [
            Deposit(key, name, "btc", "1"),
            Freeze(key, name, "btc", "1"),
            Deposit(f"shared-{self._dice.randint(1, 60)}", "c0", "btc", "1"),
        ]
        self._other.execute([self._dice.choice(kinds)])

    async def run(self) -> None:
        """Make trouble now and then."""
        while True:
            await asyncio.sleep(self._dice.choice([0, 0.005, 0.02]))
            kind = self._dice.random()
            if kind < 0.5:
                await asyncio.to_thread(self.write)
            elif kind < 0.6:
                self._proxy.cut_client_at = COMMIT_ASKED
            elif kind < 0.7:
                self._proxy.cut_server_at = COMMITTED
            elif kind < 0.75:
                self._proxy.cut_all()


@pytest.mark.parametrize("seed_number", range(2))
@pytest.mark.parametrize("size", [3, 90])
def test_whatever_fails_on_postgres_each_key_is_booked_once_and_the_books_are_right(
    postgres_url: str, seed_number: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits are lost on their way there or back, another node writes between, reads evict; groups overlap."""
    monkeypatch.setattr("spotledger.storage.postgres.ahead.groups.ALONE_GROUPS", 1)  # so that many are decided in vain
    chance, clock, told = random.Random(seed_number), Clock(), dict[str, int]()
    options: dict[str, Any] = {"clock_ms": clock, "cache_accounts": chance.choice([4, 30, 100])}

    async def run(ledger: Ledger, trouble: Trouble) -> None:
        making = asyncio.create_task(trouble.run())
        await load(ledger, clock, seed_number, size, told)
        making.cancel()

    with proxy_to(postgres_url) as proxy:
        with spotledger.open(postgres_url, segment_entries=chance.choice([8, 64]), **options) as other:
            seed(other, " ".join(NAMES))
            with spotledger.open(proxy.url, **options) as ledger:
                trouble = Trouble(proxy, other, chance)
                asyncio.run(asyncio.wait_for(run(ledger, trouble), PATIENCE_SECONDS))
                proxy.cut_client_at = proxy.cut_server_at = None
                assert ledger.corrupt is None
                assert not ledger._store.is_writing  # type: ignore[attr-defined]
            other.execute([])  # its connections were not cut
            check_journal(other, told)
        assert trouble.written
    assert len(told) > 100
    check_database(postgres_url)
