"""The access log of a service that is killed, has workers, a full disk or a damaged log; and its command."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

import support_service
from servers.kept import until
from spotledger.client import SpotClient
from spotledger.errors import LedgerCorrupt
from spotledger.security.access_log import AccessFilter
from spotledger.storage.credentials.access_log import read_access_log
from support_service import Service, run

LOG_FILES = ("access-log.db", "access-log.db-wal", "access-log.db-shm")


def lines_of(service: Service, **wanted: str) -> list[dict[str, Any]]:
    """Return the lines that the service answers with."""
    answer = service.client().get("/v1/access-log", params=wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()["lines"]  # type: ignore[no-any-return]


def shown(folder: Path, *options: str) -> list[dict[str, Any]]:
    """Return the lines that the command shows of *folder*."""
    done = run("access-log", "--data", folder, "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["lines"]  # type: ignore[no-any-return]


def times(lines: list[dict[str, Any]], call: str, reason: str | None = None) -> int:
    """Return how often *lines* say that *call* happened, with this outcome."""
    return sum(line["count"] for line in lines if (line["call"], line["reason"]) == (call, reason))


def test_command_shows_the_log_while_a_server_runs_and_while_none_does(service: Callable[..., Service]) -> None:
    """The same lines come over HTTP, from the command at the server, and from the command after the server's end."""
    running = service()
    running.list_coins(usdt=8)
    alice = running.trader("alice", label="alice's bot")
    with SpotClient(alice.accesskey, alice.secretkey, base_url=running.public_url) as client:
        client.balances()
    httpx2.get(f"{running.operator_url}/v1/coins")
    actor = f"key:{alice.accesskey[:8]}"
    (line,) = lines_of(running, actor=actor)
    assert (line["call"], line["count"], line["address"]) == ("getBalance", 1, "127.0.0.1")
    assert (line["actor_label"], line["outcome"]) == ("alice's bot", "allowed")
    assert shown(running.folder, "--actor", actor) == [line]
    table = run("access-log", "--data", running.folder, "--since", "1h").stdout
    assert actor in table
    assert "token_missing" in table
    assert running.stop() == 0
    assert shown(running.folder, "--actor", actor) == [line]
    assert times(shown(running.folder), "GET /v1/coins", "token_missing") == 1
    assert [found["actor"] for found in shown(running.folder, "--address", "local")] != []
    assert shown(running.folder, "--actor", actor, "--since", str(line["time"] + 60_000)) == []
    assert shown(running.folder, "--actor", actor, "--until", str(line["time"])) == []
    assert len(shown(running.folder, "--limit", "2")) == 2
    wrong = run("access-log", "--data", running.folder, "--since", "yesterday")
    assert wrong.returncode == 2
    assert "or 12h for the last 12 hours" in " ".join(wrong.stderr.split())


def written(folder: Path) -> int:
    """Return how many calls the file of the log has; it may be made just now, and then has no checksums yet."""
    with contextlib.suppress(LedgerCorrupt):
        return sum(line.times for line in read_access_log(folder, AccessFilter(), 0, 100))
    return 0


def test_kill_loses_nothing_that_was_written_and_the_next_start_goes_on(service: Callable[..., Service]) -> None:
    """The service writes by itself, without being asked; a kill -9 takes none of it, and the file is used again."""
    running = service()
    for _ in range(7):
        httpx2.get(f"{running.operator_url}/v1/coins")
    until(lambda: written(running.folder) >= 7)
    running.stop(signal.SIGKILL)
    assert times(shown(running.folder), "GET /v1/coins", "token_missing") == 7
    again = service(running.folder)
    httpx2.get(f"{again.operator_url}/v1/coins")
    assert times(lines_of(again), "GET /v1/coins", "token_missing") == 8


def test_workers_write_one_log_and_any_of_them_answers_for_all(tmp_path: Path, postgres_url: str) -> None:
    """Calls that different workers answered are in one log, read from whichever worker; a kill takes nothing old."""
    service = support_service.start(tmp_path / "data", database=postgres_url, workers=3)
    try:
        service.list_coins(usdt=8)
        alice = service.trader("alice")
        for _ in range(40):  # each over a connection of its own, so that all workers have some
            httpx2.get(f"{service.operator_url}/v1/coins")
            httpx2.get(f"{service.public_url}/trade/api/v1/getBalance", params={"accesskey": alice.accesskey})
        until(
            lambda: (
                times(found := lines_of(service), "GET /v1/coins", "token_missing") == 40
                and times(found, "getBalance", "malformed_request") == 40
            ),
            otherwise="the lines of all workers are not in the log",
        )
        listed = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
        os.kill(int(listed[0]), signal.SIGKILL)
        assert times(lines_of(service), "GET /v1/coins", "token_missing") == 40
    finally:
        service.stop()
    # a node of a fleet shows its own log, without its server, too
    shown_lines = json.loads(
        run("access-log", "--data", tmp_path / "data", "--database", postgres_url, "--json").stdout
    )["lines"]
    assert times(shown_lines, "GET /v1/coins", "token_missing") == 40


def test_service_starts_and_serves_with_a_damaged_log(service: Callable[..., Service], tmp_path: Path) -> None:
    """A log that is garbage, or a database of something else, stops neither the start nor a call, and is left alone."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    garbage = b"garbage" * 5_000
    (folder / "access-log.db").write_bytes(garbage)
    (folder / "access-log.db").chmod(0o600)
    running = service(folder)
    running.list_coins(usdt=8)
    until(lambda: b"the access log is not written" in running.stderr.read_bytes())
    assert (folder / "access-log.db").read_bytes() == garbage
    answer = running.client().get("/v1/access-log")
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    metrics = running.client().get("/metrics").text
    assert "spotledger_access_log_writable 0.0" in metrics
    (folder / "access-log.db").rename(folder / "away.db")
    assert times(lines_of(running), "POST /v1/coins") == 1, "it goes on by itself, with what happened meanwhile"
    failed = run("access-log", "--data", folder, "--operator-url", running.operator_url)
    assert failed.returncode == 1, "a server that is named needs a token file"


@pytest.mark.parametrize("name", LOG_FILES)
def test_service_does_not_start_on_a_log_that_is_a_link(name: str, tmp_path: Path) -> None:
    """A link in place of the log is as bad as one in place of any other file, and its target stays as it is."""
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (folder / name).symlink_to(precious)
    started = run("serve", "--data", folder, "--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")
    assert started.returncode == 3
    assert "symbolic link" in started.stderr
    assert precious.read_bytes() == b"precious"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to fill; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = os.geteuid() == 0 and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=16384k", "tmpfs", str(place)], stderr=subprocess.DEVNULL
    )
    if not mounted:
        if os.environ.get("CI") == "true":
            pytest.fail("a small file system is needed, and this machine lets nobody mount one")
        pytest.skip("only root can mount a small file system to fill")
    yield place
    subprocess.check_call(["umount", "-l", str(place)])


def test_full_disk_stops_no_read_and_the_log_goes_on_once_there_is_room(small_disk: Path) -> None:
    """While the disk is full reads are answered, the metrics say that the log is not written, and nothing is lost."""
    running = support_service.start(small_disk / "data", asset_limit_per_second=0)
    try:
        running.list_coins(usdt=8)
        alice = running.trader("alice")
        lines_of(running)
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        client = running.client()

        def fails() -> bool:
            # ever new lines, because those that are there have room for more in their count
            client.get(f"/v1/coins?{secrets.token_hex(8)}")
            with SpotClient(alice.accesskey, alice.secretkey, base_url=running.public_url) as trader:
                trader.balances()
            for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "POST"):
                for path in ("/v1/coins", "/v1/customers", "/v1/keys", "/v1/tokens", "/v1/audits", "/metrics"):
                    httpx2.request(method, f"{running.operator_url}{path}")
                    client.request(method, path)
            return "spotledger_access_log_writable 0.0" in client.get("/metrics").text

        until(fails, 60)
        ballast.unlink()
        until(lambda: "spotledger_access_log_writable 1.0" in client.get("/metrics").text)
        assert times(lines_of(running), "getBalance") >= 1
        metrics = client.get("/metrics").text
        assert "spotledger_access_log_dropped_total 0.0" in metrics
    finally:
        running.stop()
