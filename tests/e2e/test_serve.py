"""The service as a process: how it starts, who may start it, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

import spotledger
import support_service
from spotledger.client import SpotClient
from spotledger.domain.operations import Deposit
from spotledger.storage.sqlite.store import PROCESS_ENTRIES
from support_core import alter_last, seed
from support_service import Service

StartService = Callable[..., Service]


def test_serve_on_an_empty_folder_answers_on_both_listeners(service: StartService) -> None:
    """The first start makes everything that is needed, and both listeners say that they are alive and ready."""
    started = service()
    for url in (started.public_url, started.operator_url):
        assert httpx2.get(f"{url}/healthz").json() == {"status": "alive"}
        assert httpx2.get(f"{url}/readyz").json()["status"] == "ready"


def test_serve_makes_secret_files_that_only_their_owner_reads(service: StartService) -> None:
    """The folder has mode 0700, and no file in it may be read by anyone else."""
    started = service()
    assert stat.S_IMODE(started.folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in started.folder.iterdir()}
    assert modes["master.key"] == modes["operator.token"] == 0o600
    assert {name for name, mode in modes.items() if mode & 0o077} == set()


def test_serve_again_finds_its_data_and_leaves_its_files_as_they_are(service: StartService, tmp_path: Path) -> None:
    """A second start knows the balances and access keys of the first, and changes neither key file nor token."""
    first = service(folder=tmp_path / "data")
    first.list_coins(usdt=8)
    trader = first.trader("alice", {"usdt": ("3867.43650012", "3062.17437341")})
    files = [(first.folder / name).read_bytes() for name in ("master.key", "operator.token")]
    assert first.stop() == 0
    second = service(folder=tmp_path / "data")
    assert [(second.folder / name).read_bytes() for name in ("master.key", "operator.token")] == files
    with SpotClient(trader.accesskey, trader.secretkey, second.public_url) as client:
        usdt = client.balances()["usdt"]
    assert (str(usdt.available), str(usdt.freeze)) == ("3867.43650012", "3062.17437341")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_told_to_stop_ends_with_0_and_nothing_on_stderr(service: StartService, number: int) -> None:
    """Both signals end the service in order."""
    started = service()
    started.list_coins(btc=8)
    assert started.stop(number) == 0
    assert started.stderr.read_text() == ""


@pytest.mark.parametrize("rest", [b"", b"Content-Length: 100\r\n\r\n{"], ids=["half a head", "half a body"])
def test_serve_told_to_stop_does_not_wait_for_ever_for_a_slow_request(service: StartService, rest: bytes) -> None:
    """Idle connections end at once, and requests that never come whole are cut off after a while, without a trace."""
    started = service()
    head = f"POST /v1/deposits HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {started.token}\r\nIdempotency-Key: k\r\n"
    port = int(started.operator_url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(head.encode() + rest)
        assert httpx2.get(f"{started.operator_url}/healthz").status_code == 200
        assert started.stop() == 0
    assert "Traceback" not in started.stderr.read_text()


def test_serve_told_to_stop_while_writes_come_answers_all_it_took(service: StartService, tmp_path: Path) -> None:
    """Each write that was answered with yes before, during and after the signal is there after the next start."""
    started = service(folder=tmp_path / "data")
    started.list_coins(usdt=8)
    started.trader("alice")
    acknowledged: list[str] = []
    begun = threading.Event()

    def write(worker: int) -> None:
        with httpx2.Client(base_url=started.operator_url, headers={"Authorization": f"Bearer {token}"}) as client:
            for number in range(10_000):
                key = f"w{worker}-{number}"
                try:
                    answer = client.post(
                        "/v1/deposits",
                        json={"customer": "alice", "coin": "usdt", "amount": "0.01"},
                        headers={"Idempotency-Key": key},
                    )
                except httpx2.HTTPError:
                    return
                if answer.status_code != 200:
                    return
                acknowledged.append(key)
                begun.set()

    token = started.token
    workers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    assert begun.wait(30)
    assert started.stop() == 0
    for worker in workers:
        worker.join(60)
    second = service(folder=tmp_path / "data")
    with second.client() as client:
        keys: list[str] = []
        page = client.get("/v1/entries").json()
        while page["entries"]:
            keys += [entry["key"] for entry in page["entries"] if entry["kind"] == "deposit"]
            page = client.get("/v1/entries", params={"after_seq": page["next_after_seq"]}).json()
    assert set(acknowledged) <= set(keys)
    assert len(keys) == len(set(keys))


def test_serve_second_on_a_folder_is_refused_and_names_the_first(service: StartService) -> None:
    """One process owns a data folder; the second is told which one, and where it answers."""
    first = service()
    done = support_service.run("serve", "--data", first.folder, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"process {first.process.pid}" in done.stderr
    assert first.operator_url in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_after_a_kill_starts_without_cleaning_up(service: StartService, tmp_path: Path) -> None:
    """A killed owner leaves nothing behind that keeps the next one out."""
    first = service(folder=tmp_path / "data")
    first.list_coins(usdt=8)
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    second = service(folder=tmp_path / "data")
    assert second.client().get("/v1/coins").json()["coins"] == [{"coin": "usdt", "scale": 8}]


@pytest.mark.parametrize("flag", ["--listen", "--operator-listen"])
def test_serve_on_a_port_that_is_taken_names_it_and_its_flag(tmp_path: Path, flag: str) -> None:
    """A taken port is a clear message and a non-zero exit."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        other = {"--listen": "--operator-listen", "--operator-listen": "--listen"}[flag]
        done = support_service.run("serve", "--data", tmp_path / "data", flag, address, other, "127.0.0.1:0")
    assert done.returncode == 1
    assert address in done.stderr
    assert f"{flag} HOST:PORT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_with_another_master_key_is_refused_and_says_why(service: StartService, tmp_path: Path) -> None:
    """Secrets sealed with one master key are never met with another."""
    first = service(folder=tmp_path / "data")
    first.stop()
    env = support_service.environment(SPOTLEDGER_MASTER_KEY="ab" * 32)
    done = support_service.run("serve", "--data", first.folder, "--listen", "127.0.0.1:0", env=env)
    assert done.returncode == 1
    assert "fingerprint" in done.stderr
    assert "ab" * 32 not in done.stderr


def test_serve_without_its_master_key_is_refused_and_makes_no_new_one(service: StartService, tmp_path: Path) -> None:
    """A lost master key is named, and not replaced by one that opens nothing."""
    first = service(folder=tmp_path / "data")
    first.stop()
    (first.folder / "master.key").unlink()
    done = support_service.run("serve", "--data", first.folder, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "master.key is missing" in done.stderr
    assert not (first.folder / "master.key").exists()


def test_serve_with_a_master_key_others_may_read_is_refused(service: StartService, tmp_path: Path) -> None:
    """A key file with a wider mode than 0600 is refused, with the mode that would pass."""
    first = service(folder=tmp_path / "data")
    first.stop()
    (first.folder / "master.key").chmod(0o644)
    done = support_service.run("serve", "--data", first.folder, "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert "0600" in done.stderr


def test_serve_with_the_master_key_in_the_environment_writes_no_key_file(tmp_path: Path) -> None:
    """A master key that is given otherwise is never written to the folder."""
    env = support_service.environment(SPOTLEDGER_MASTER_KEY="cd" * 32)
    done = support_service.run("coin", "add", "btc", "--scale", "8", "--data", tmp_path / "data", env=env)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "data" / "master.key").exists()


def test_serve_on_a_file_in_place_of_the_folder_says_so(tmp_path: Path) -> None:
    """A path that is no folder is a clear message and a non-zero exit."""
    (tmp_path / "data").write_text("not a folder")
    done = support_service.run("serve", "--data", tmp_path / "data")
    assert done.returncode == 3
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_on_a_file_that_is_no_ledger_says_so(tmp_path: Path) -> None:
    """A journal.db of another kind is left alone and named."""
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "journal.db").write_bytes(b"something else entirely" * 500)
    (tmp_path / "data" / "journal.db").chmod(0o600)
    done = support_service.run("serve", "--data", tmp_path / "data", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "journal.db" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "data" / "journal.db").read_bytes().startswith(b"something else")


@pytest.fixture
def mounted(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Mount small file systems in memory; skipped where this process may not."""
    mounts: list[Path] = []

    def mount(options: str) -> Path:
        where = tmp_path / f"mount-{len(mounts)}"
        where.mkdir()
        if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o {options} tmpfs '{where}' 2>/dev/null") != 0:  # noqa: S605
            pytest.skip("mounting a small file system needs root and the right to mount")
        mounts.append(where)
        return where

    yield mount
    for where in mounts:
        os.system(f"umount '{where}'")  # noqa: S605


@pytest.mark.parametrize(("options", "told"), [("ro", "read-only"), ("size=16k", "full")])
def test_serve_on_a_folder_that_cannot_be_written_says_why(mounted, options: str, told: str) -> None:  # type: ignore[no-untyped-def]
    """A read-only folder and a full one are clear messages and a non-zero exit."""
    done = support_service.run("serve", "--data", mounted(options) / "data", "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_serve_with_a_wrong_setting_says_what_would_pass(tmp_path: Path) -> None:
    """A setting out of bounds is named with what was found and what would pass."""
    done = support_service.run("serve", "--data", tmp_path / "data", "--nonce-past-ms", "999")
    assert done.returncode == 1
    assert "nonce_past_ms (--nonce-past-ms) is 999" in done.stderr
    assert "1000 to 60000" in done.stderr
    assert not (tmp_path / "data").exists()


def test_serve_error_with_json_is_one_problem_document(tmp_path: Path) -> None:
    """With --json an error is a document that programs can read."""
    done = support_service.run("serve", "--data", tmp_path / "data", "--replay", "maybe", "--json")
    assert done.returncode == 1
    assert json.loads(done.stderr)["code"] == "setting_invalid"


def test_serve_setting_of_the_wire_is_in_force_on_the_public_listener(service: StartService) -> None:
    """success_info is what a success says."""
    started = service(success_info="Success")
    answer = httpx2.get(f"{started.public_url}/trade/api/v1/getServerTime").json()
    assert answer["info"] == "Success"


def test_serve_over_the_limit_shows_refusals_in_the_metrics(service: StartService) -> None:
    """What the public listener refuses is counted by code, for Prometheus."""
    started = service()
    httpx2.get(f"{started.public_url}/trade/api/v1/getBalance")
    metrics = started.client().get("/metrics").text
    assert 'spotledger_public_refusals_total{code="malformed_request"} 1.0' in metrics
    assert "spotledger_replay_forgotten_total 0.0" in metrics


def test_serve_stops_writing_where_sealing_finds_other_balances_than_an_entry_carries(
    service: StartService, tmp_path: Path
) -> None:
    """The process that seals is a second witness: both listeners say so, reads go on, and the log names the entry."""
    folder = tmp_path / "data"
    with spotledger.open(folder, segment_entries=PROCESS_ENTRIES) as ledger:
        seed(ledger)
        for start in range(ledger.head.seq, PROCESS_ENTRIES - 1, 500):
            count = min(500, PROCESS_ENTRIES - 1 - start)
            ledger.execute([Deposit(f"{start}-{n}", "ann", "btc", "1") for n in range(count)])

    def another_balance(entry: dict[str, Any]) -> None:
        entry["balances"][0][2] = str(int(entry["balances"][0][2]) + 1)

    altered = alter_last(folder, another_balance)
    started = service(folder=folder)
    assert httpx2.get(f"{started.operator_url}/readyz").json()["sealing"] == {"lag_entries": 0}
    deposit = {"customer": "bob", "coin": "btc", "amount": "1"}
    started.write("/v1/deposits", deposit, "fills-the-segment")
    urls = (f"{started.operator_url}/readyz", f"{started.public_url}/readyz")
    deadline = time.monotonic() + 60
    while [httpx2.get(url).status_code for url in urls] != [500, 503]:
        assert time.monotonic() < deadline, "the service goes on writing"
        time.sleep(0.05)
    assert httpx2.get(urls[1]).json() == {"status": "cannot write", "sealing": {"lag_entries": PROCESS_ENTRIES}}
    client = started.client()
    refused = client.post("/v1/deposits", json=deposit, headers={"Idempotency-Key": "another"})
    assert (refused.status_code, refused.json()["code"]) == (500, "ledger_damaged")
    assert client.get("/v1/customers/bob/balances").status_code == 200
    assert f"entry {altered} says" in started.stderr.read_text()
    started.stop()
