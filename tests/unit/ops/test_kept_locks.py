"""The locks of the gate in the data folder: they outlive the process, are seen, and are lifted for good."""

from __future__ import annotations

import asyncio
import functools
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import FileUnusable, NotFound, StoreUnavailable
from spotledger.ops.kept_locks import LOCKS_FILE, KeptLocks
from spotledger.security.access_keys import KeyRing
from spotledger.security.addresses import parse_address, peer_at
from spotledger.security.gate import Gate, GateSettings
from spotledger.security.limits import Lock

NOW = 1_700_000_000_000
LIMITS = GateSettings(asset_limit_per_second=1, address_limit_per_minute=1, lock_seconds=600)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in an event loop."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_ms = NOW

    def __call__(self) -> int:
        return self.now_ms


class NoKeys(KeyRing):
    """A key ring that nobody asks."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}


class Node:
    """One process: its gate and its locks."""

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        has_siblings: bool = False,
        limits: GateSettings = LIMITS,
    ) -> None:
        self.gate = Gate(NoKeys(), limits)
        self.locks = KeptLocks(folder, clock, has_siblings=has_siblings)
        self.clock = clock

    def exceed_account(self, customer: str) -> None:
        """Have *customer* send more than the limit."""
        while self.gate.asset_limit.hit(customer, self.clock()) >= 0:
            pass

    def exceed_address(self, text: str) -> None:
        """Have an address send more than the limit."""
        address = parse_address(text)
        assert address is not None
        while self.gate.address_limit.hit(peer_at(address).counted, self.clock()) >= 0:
            pass

    def is_locked(self, customer: str) -> bool:
        return self.gate.account_limit.locks.remaining_ms(customer, self.clock()) > 0


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.01)


async def in_file(folder: Path, clock: Clock) -> list[str]:
    """Return the names of the locks in the file, as a command without a server reads them."""
    return [lock.name for lock in await KeptLocks(folder, clock).all()]


@in_loop
async def test_lock_is_in_the_file_as_soon_as_it_begins(tmp_path: Path) -> None:
    """A lock is written at once, so that kill -9 does not lift it; the file is private."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    node.exceed_address("192.0.2.7")
    node.exceed_address("2001:db8:1:2:3:4:5:6")

    async def is_there() -> bool:
        return len(await in_file(tmp_path, clock)) == 3

    await until(is_there)  # without a stop
    assert stat.S_IMODE((tmp_path / LOCKS_FILE).stat().st_mode) == 0o600
    again = Node(tmp_path, clock)
    await again.locks.start(again.gate)
    assert again.is_locked("alice")
    assert not again.is_locked("bob")
    assert again.gate.address_limit.hit("192.0.2.7", clock()) == -600_000
    found = [(lock.name, lock.kind, lock.who, lock.limit, lock.until_ms) for lock in await again.locks.all()]
    assert found == [
        ("address-192.0.2.7", "address", "192.0.2.7", "address", NOW + 600_000),
        ("address-2001:db8:1:2::-64", "address", "2001:db8:1:2::/64", "address", NOW + 600_000),
        ("customer-alice", "customer", "alice", "assets", NOW + 600_000),
    ]
    for one in (node, again):
        await one.locks.stop()


@in_loop
async def test_lock_ends_at_its_time_also_after_a_restart(tmp_path: Path) -> None:
    """A restart makes no lock longer, and what has ended is neither shown nor kept."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    await node.locks.stop()
    clock.now_ms += 599_999
    again = Node(tmp_path, clock)
    await again.locks.start(again.gate)
    assert again.is_locked("alice")
    clock.now_ms += 1
    assert not again.is_locked("alice")
    assert await again.locks.all() == []
    await again.locks.stop()


@in_loop
async def test_lock_that_is_lifted_is_lifted_in_the_gate_and_in_the_file(tmp_path: Path) -> None:
    """Who is let go may go on at once, and is not locked again by a restart; a second time nothing is found."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    node.exceed_account("bob")
    lifted = await node.locks.lift("customer-alice")
    assert (lifted.who, lifted.limit) == ("alice", "assets")
    assert node.gate.asset_limit.hit("alice", clock()) == 0
    with pytest.raises(NotFound):
        await node.locks.lift("customer-alice")
    await node.locks.stop()
    again = Node(tmp_path, clock)
    await again.locks.start(again.gate)
    assert (again.is_locked("alice"), again.is_locked("bob")) == (False, True)
    await again.locks.stop()


@in_loop
async def test_command_without_a_server_lifts_for_the_next_start(tmp_path: Path) -> None:
    """Locks are seen and lifted also while nothing runs."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    await node.locks.stop()
    command = KeptLocks(tmp_path, clock)
    assert [lock.name for lock in await command.all()] == ["customer-alice"]
    await command.lift("customer-alice")
    assert await in_file(tmp_path, clock) == []


@in_loop
async def test_workers_of_one_folder_lock_and_lift_together(tmp_path: Path) -> None:
    """What one worker locks the others refuse soon, and what one lifts the others let go; no lock is lost meanwhile."""
    clock = Clock()
    nodes = [Node(tmp_path, clock, has_siblings=True) for _ in range(3)]
    for node in nodes:
        await node.locks.start(node.gate)
    for number, node in enumerate(nodes):
        for one in range(5):
            node.exceed_account(f"customer-{number}-{one}")

    async def all_locked() -> bool:
        return all(node.is_locked(f"customer-{n}-{one}") for node in nodes for n in range(3) for one in range(5))

    await until(all_locked)
    await nodes[0].locks.lift("customer-customer-2-4")

    async def all_lifted() -> bool:
        return not any(node.is_locked("customer-2-4") for node in nodes)

    await until(all_lifted)
    assert len(await nodes[1].locks.all()) == 14
    for node in nodes:
        await node.locks.stop()


@pytest.mark.parametrize("content", [b"", b"SpoL", b"\0" * 5_000, os.urandom(500), b"SpoL\x01\0\0\0\x90" + bytes(32)])
def test_damaged_locks_are_said_and_never_a_crash(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage lifts the locks that were there, is logged once, and the next lock is kept as ever."""
    file = tmp_path / LOCKS_FILE
    file.touch(mode=0o600)
    file.write_bytes(content)

    async def run() -> None:
        node = Node(tmp_path, Clock())
        await node.locks.start(node.gate)
        assert caplog.text.count("locks is damaged") == 1
        node.exceed_account("alice")
        assert [lock.name for lock in await node.locks.all()] == ["customer-alice"]
        assert caplog.text.count("locks is damaged") == 1
        await node.locks.stop()

    asyncio.run(run())


@in_loop
async def test_planted_file_is_refused_at_the_start_and_left_alone(tmp_path: Path) -> None:
    """A link, a folder or an open file in its place is named; its target is not touched."""
    target = tmp_path / "precious"
    target.write_text("as it was")
    file = tmp_path / LOCKS_FILE
    file.symlink_to(target)
    node = Node(tmp_path, Clock())
    with pytest.raises(FileUnusable, match="symbolic link"):
        await node.locks.start(node.gate)
    assert target.read_text() == "as it was"
    file.unlink()
    file.mkdir()
    with pytest.raises(FileUnusable, match="is a folder"):
        await node.locks.start(node.gate)
    file.rmdir()
    file.touch()
    file.chmod(0o666)
    with pytest.raises(FileUnusable, match="has mode 0666"):
        await node.locks.start(node.gate)


@in_loop
async def test_lock_that_cannot_be_written_holds_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full or broken disk lifts nothing: the lock holds here, and lifting one says that it may come back."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    (tmp_path / LOCKS_FILE).mkdir()
    node.exceed_account("alice")

    async def is_logged() -> bool:
        return "could not be written" in caplog.text

    await until(is_logged)
    assert node.is_locked("alice")
    (tmp_path / LOCKS_FILE).rmdir()

    async def is_there() -> bool:
        return await in_file(tmp_path, clock) == ["customer-alice"]

    await until(is_there)  # it is tried again
    (tmp_path / LOCKS_FILE).unlink()
    node.exceed_account("bob")
    await until(lambda: _named(tmp_path, clock, "customer-bob"))
    (tmp_path / f".{LOCKS_FILE}.partial").mkdir()
    with pytest.raises(StoreUnavailable, match="holds again after a restart"):
        await node.locks.lift("customer-bob")
    assert not node.is_locked("bob")
    (tmp_path / f".{LOCKS_FILE}.partial").rmdir()
    await node.locks.stop()


async def _named(folder: Path, clock: Clock, name: str) -> bool:
    return name in await in_file(folder, clock)


@in_loop
async def test_clock_that_was_set_back_makes_no_lock_longer(tmp_path: Path) -> None:
    """A lock that would last longer than any lock does was set by a clock that is wrong now, and does not hold."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    await node.locks.stop()
    clock.now_ms -= 1
    again = Node(tmp_path, clock)
    await again.locks.start(again.gate)
    assert not again.is_locked("alice")
    await again.locks.stop()


@in_loop
async def test_lock_longer_than_the_setting_is_gone_for_good(tmp_path: Path) -> None:
    """A start with shorter locks heeds none of before that are longer, so it shows none, and they do not come back."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.exceed_account("alice")
    await node.locks.stop()
    shorter = Node(tmp_path, clock, limits=GateSettings(lock_seconds=5))
    await shorter.locks.start(shorter.gate)
    assert not shorter.is_locked("alice")
    assert await shorter.locks.all() == []
    await shorter.locks.stop()
    again = Node(tmp_path, clock)
    await again.locks.start(again.gate)
    assert not again.is_locked("alice")
    await again.locks.stop()


@in_loop
async def test_lock_that_another_node_lifted_does_not_come_back(tmp_path: Path) -> None:
    """What was lifted in Redis leaves the file of each node: no look at the locks, and no start, revives it."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    node.gate.locks["customer"].begin("alice", Lock(NOW + 60_000, "assets", is_shared=True))
    assert [lock.name for lock in await node.locks.all()] == ["customer-alice"]
    node.gate.locks["customer"].end("alice")
    assert await node.locks.all() == []
    assert not node.is_locked("alice")
    assert await in_file(tmp_path, clock) == []
    await node.locks.stop()


@in_loop
async def test_lock_that_another_node_lifted_is_written_without_a_look(tmp_path: Path) -> None:
    """The file follows by itself; a customer who is locked anew meanwhile stays locked."""
    clock = Clock()
    node = Node(tmp_path, clock)
    await node.locks.start(node.gate)
    for who in ("alice", "bob"):
        node.gate.locks["customer"].begin(who, Lock(NOW + 60_000, "assets", is_shared=True))
        node.gate.locks["customer"].end(who)
    node.gate.locks["customer"].begin("bob", Lock(NOW + 90_000, "assets", is_shared=True))

    async def is_written() -> bool:
        return await in_file(tmp_path, clock) == ["customer-bob"]

    await until(is_written)
    assert node.is_locked("bob")
    assert not node.is_locked("alice")
    await node.locks.stop()
