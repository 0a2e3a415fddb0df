"""Rotation of the master key as an operator does it: the command, beside a running service, its workers and a fleet."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

import support_service
from servers import kept
from spotledger.client import SpotClient
from spotledger.errors import Unavailable
from support_master_key import key_file
from support_service import Service, Trader, run

Start = Callable[..., Service]
until = partial(kept.until, seconds=90)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give what starts a service in a folder of this name; all are stopped at the end."""
    started: list[Service] = []

    def start_it(name: str = "data", **settings: object) -> Service:
        started.append(support_service.start(tmp_path / name, **settings))
        return started[-1]

    yield start_it
    for service in started:
        with suppress(ProcessLookupError):
            service.process.send_signal(signal.SIGCONT)
        service.stop()


def command(*arguments: str | Path, **more: Any) -> dict[str, Any]:
    """Run ``spotledger master-key`` with *arguments*, which must pass; return its document."""
    ended = run("master-key", *arguments, "--json", **more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def refusal(*arguments: str | Path) -> str:
    """Run ``spotledger master-key`` with *arguments*, which must be refused; return the message."""
    ended = run("master-key", *arguments)
    assert ended.returncode == 1, ended.stdout
    return ended.stderr


def can_read(trader: Trader, url: str) -> bool:
    """Say whether the trader gets balances; a refusal for any other reason than the master key fails the test."""
    with SpotClient(trader.accesskey, trader.secretkey, url) as client:
        try:
            return client.balances() is not None
        except Unavailable:
            return False


class Readers:
    """Traders who read all the time, each over a connection of its own, and what refused them."""

    def __init__(self, traders: list[Trader], url: str) -> None:
        self.answers = [0] * len(traders)
        self.refused: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._read, args=(n, each, url)) for n, each in enumerate(traders)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Wait until each has been answered ten times more."""
        wanted = [count + 10 for count in self.answers]
        until(lambda: self.refused or all(count >= w for count, w in zip(self.answers, wanted, strict=True)))

    def _read(self, number: int, trader: Trader, url: str) -> None:
        with SpotClient(trader.accesskey, trader.secretkey, url) as client:
            while not self._stop.is_set():
                try:
                    client.balances()
                    self.answers[number] += 1
                except Exception as problem:  # noqa: BLE001 - any is one too many
                    self.refused.append(problem)
                    return


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_signed_reads_go_on_while_the_command_rotates(start: Start, tmp_path: Path, end: signal.Signals) -> None:
    """No read is refused, new keys work at once, and however the service ends, the next start finds the new key."""
    service = start(asset_limit_per_second=0, account_limit_per_second=0, address_limit_per_minute=0)
    traders = [service.trader(name) for name in ("alice", "bob", "carol")]
    with Readers(traders, service.public_url) as readers:
        first = command("rotate", "--data", service.folder)
        readers.wait()
        named = key_file(tmp_path / "new.key")
        second = command("rotate", "--data", service.folder, "--new-key-file", named)
        made = service.trader("dave")
        readers.wait()
    assert readers.refused == []
    assert [first["erased"], second["erased"]] == [True, True]
    assert [key["fingerprint"] for key in second["retired"]][1:] == [first["fingerprint"]]
    assert (service.folder / "master.key").read_text() == named.read_text()
    service.stop(end)
    again = start()
    assert all(can_read(trader, again.public_url) for trader in (*traders, made))


def test_command_rotates_without_a_service(start: Start) -> None:
    """A folder that nobody serves is rotated by the command itself, and shown."""
    service = start()
    alice = service.trader("alice")
    service.stop()
    rotated = command("rotate", "--data", service.folder)
    assert command("show", "--data", service.folder) == rotated
    audited = run("audit", "--data", service.folder, "--json")
    assert json.loads(audited.stdout)["verdict"] == "clean"
    assert can_read(alice, start().public_url)


def test_rotation_needs_the_scope_admin_and_takes_no_path(start: Start) -> None:
    """A token with another scope is refused; a caller can name a fingerprint and nothing else."""
    service = start()
    client = service.client()
    weak = service.write("/v1/tokens", {"scopes": ["ledger:read", "ledger:write", "keys:write"]})["token"]
    for method, path in (("GET", "/v1/master-key"), ("POST", "/v1/master-key/rotate")):
        answer = client.request(method, path, headers={"Authorization": f"Bearer {weak}"})
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    before = client.get("/v1/master-key").json()
    for body in ({"file": "/etc/passwd"}, {"fingerprint": "../x"}, {"fingerprint": 7}, {"fingerprint": ["f" * 32]}):
        answer = client.post("/v1/master-key/rotate", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    answer = client.post("/v1/master-key/rotate", json={"fingerprint": "f" * 32})
    assert (answer.status_code, answer.json()["code"]) == (422, "rotation_refused")
    assert client.get("/v1/master-key").json() == before


def test_workers_rotate_together_and_one_that_is_killed_comes_back(
    start: Start, tmp_path: Path, postgres_url: str
) -> None:
    """Workers that were not given the next key are named; with it, each goes on, and a new one starts."""
    service = start(database=postgres_url, workers=2)
    alice = service.trader("alice")
    assert "--next-master-key-file" in refusal("rotate", "--data", service.folder)
    named = key_file(tmp_path / "next.key")
    message = refusal("rotate", "--data", service.folder, "--new-key-file", named)
    assert "do not hold the master key" in message
    assert "worker" in message
    service.stop()
    no_limits = {"asset_limit_per_second": 0, "account_limit_per_second": 0, "address_limit_per_minute": 0}
    service = start(database=postgres_url, workers=2, next_master_key_file=named, **no_limits)
    with Readers([alice] * 4, service.public_url) as readers:
        rotated = command("rotate", "--data", service.folder)
        readers.wait()
    assert readers.refused == []
    assert len(rotated["nodes"]) == 2
    assert (service.folder / "master.key").read_text() == named.read_text()
    children = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children")
    before = set(children.read_text().split())
    os.kill(int(min(before)), signal.SIGKILL)
    until(lambda: len(now := set(children.read_text().split())) == 2 and now != before)

    def all_answer() -> bool:
        return len(command("show", "--data", service.folder)["nodes"]) >= 2

    until(all_answer)
    made = service.trader("bob")
    for _ in range(10):
        assert can_read(made, service.public_url)


def test_fleet_rotates_past_dead_and_frozen_nodes(start: Start, tmp_path: Path, postgres_url: str) -> None:
    """
    A node that lacks the next key holds the rotation up while it is alive, and not for ever once it is dead or frozen.

    The frozen one damages nothing when it wakes up: it serves the keys in its memory, and says why it loads no others.
    """
    old, following = key_file(tmp_path / "old.key"), key_file(tmp_path / "next.key")
    common = {"database": postgres_url, "master_key_file": old}
    ready = start("one", **common, next_master_key_file=following)
    dead, frozen = start("dead", **common), start("frozen", **common)
    alice, bob = ready.trader("alice"), ready.trader("bob")
    assert can_read(alice, frozen.public_url)
    assert {Path(node["place"].split()[1]).name for node in command("show", "--data", ready.folder)["nodes"]} == {
        "one", "dead", "frozen",
    }  # fmt: skip
    message = refusal("rotate", "--data", ready.folder)
    assert "/dead worker 0" in message
    assert "/frozen worker 0" in message
    assert "/one worker 0" not in message
    dead.process.kill()
    frozen.process.send_signal(signal.SIGSTOP)
    until(lambda: run("master-key", "rotate", "--data", ready.folder).returncode == 0)
    assert can_read(bob, ready.public_url)
    frozen.process.send_signal(signal.SIGCONT)
    until(lambda: "the master key was rotated" in frozen.stderr.read_text())
    until(lambda: can_read(alice, frozen.public_url))
    assert not can_read(bob, frozen.public_url)
    assert frozen.process.poll() is None
    with pytest.raises(RuntimeError, match="was rotated"):
        start("dead", **common)
    frozen.stop()
    again = start("frozen", database=postgres_url, master_key_file=following)
    assert can_read(bob, again.public_url)
    with psycopg.connect(postgres_url) as connection:
        [(verdict,)] = connection.execute("SELECT is_swept FROM master_key_mark").fetchall()
    assert verdict == 1


def test_two_commands_at_once_bring_one_key_into_force(start: Start, tmp_path: Path, postgres_url: str) -> None:
    """Whichever workers they reach, at the same moment, the key is rotated once, and each secret opens."""
    named = key_file(tmp_path / "next.key")
    service = start(database=postgres_url, workers=2, next_master_key_file=named)
    alice = service.trader("alice")
    with ThreadPoolExecutor(4) as pool:
        both = list(pool.map(lambda _: command("rotate", "--data", service.folder), range(4)))
    assert len({rotated["fingerprint"] for rotated in both}) == 1
    assert len(command("show", "--data", service.folder)["retired"]) == 1
    service.stop()
    again = start(database=postgres_url)
    assert can_read(alice, again.public_url)


def test_master_keys_are_in_nothing_that_a_rotation_says(start: Start, tmp_path: Path) -> None:
    """Neither the log at its lowest level, nor answers, arguments or any other file has a digit of the keys."""
    service = start(log_level="debug")
    service.trader("alice")
    named = key_file(tmp_path / "new.key")
    keys = [(service.folder / "master.key").read_text().strip(), named.read_text().strip()]
    refused = run("master-key", "rotate", "--data", service.folder, "--new-key-file", service.folder / "operator.token")
    answers = [refused.stdout + refused.stderr]
    for arguments in (["rotate", "--new-key-file", named], ["show"], ["rotate"]):
        ended = run("master-key", *arguments, "--data", service.folder)
        assert ended.returncode == 0, ended.stderr
        answers.append(ended.stdout + ended.stderr)
    keys.append((service.folder / "master.key").read_text().strip())
    assert len(set(keys)) == 3
    places = {file.name: file.read_bytes() for file in service.folder.rglob("*") if file.is_file()}
    places |= {"log": service.stderr.read_bytes(), "answers": "".join(answers).encode()}
    places["argv"] = Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
    for key in keys:
        for spelling in (key.encode(), key.upper().encode(), bytes.fromhex(key), base64.b64encode(bytes.fromhex(key))):
            found = {name for name, content in places.items() if spelling in content}
            assert all(name.startswith("master.key") for name in found), found


def test_command_rotates_a_database_that_no_node_serves(start: Start, tmp_path: Path, postgres_url: str) -> None:
    """With --database the command opens the ledger itself, and hands the next key over in its folder."""
    service = start(database=postgres_url)
    alice = service.trader("alice")
    service.stop()
    named = key_file(tmp_path / "next.key")
    where = ("--data", service.folder, "--database", postgres_url)
    assert "every node needs the new master key" in refusal("rotate", *where)
    rotated = command("rotate", *where, "--new-key-file", named)
    assert len(rotated["nodes"]) == 1
    assert (service.folder / "master.key").read_text() == named.read_text()
    assert can_read(alice, start(database=postgres_url).public_url)
