"""Several workers behind the same two ports: they are restarted, stopped, and never left behind."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

import support_service
from servers.kept import until
from spotledger.client import SpotClient
from support_service import Service

StartWorkers = Callable[..., Service]


@pytest.fixture
def workers(tmp_path: Path, postgres_url: str) -> Iterator[StartWorkers]:
    """Return a function that starts a service of two workers; all are stopped at the end."""
    started: list[Service] = []

    def start(**settings: object) -> Service:
        started.append(support_service.start(tmp_path / "data", **{"database": postgres_url, "workers": 2, **settings}))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def children_of(service: Service) -> set[int]:
    """Return the processes that the service has started and that run."""
    listed = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return {int(pid) for pid in listed.split()}


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second while it is read
        return False


def test_workers_answer_on_the_same_ports_and_know_each_other_s_writes(workers: StartWorkers) -> None:
    """Whichever worker takes a call, it knows what the others wrote; the folder names the parent as its owner."""
    service = workers()
    assert len(children_of(service)) == 2
    service.list_coins(usdt=8)
    alice = service.trader("alice", {"usdt": ("100", "0")})
    for number in range(20):
        with httpx2.Client(base_url=service.operator_url) as client:
            body = {"customer": "alice", "coin": "usdt", "amount": "1"}
            headers = {"Authorization": f"Bearer {service.token}", "Idempotency-Key": f"d{number}"}
            assert client.post("/v1/deposits", json=body, headers=headers).status_code == 200
        with httpx2.Client(base_url=service.operator_url, headers=headers) as client:
            answer = client.get("/v1/customers/alice/balances").json()
        assert answer["balances"]["usdt"]["available"] == f"{101 + number}.00"
    with SpotClient(alice.accesskey, alice.secretkey, service.public_url) as client:
        assert str(client.balances()["usdt"].freeze) == "0.00"
    done = support_service.run("balances", "alice", "--data", service.folder, "--json")
    assert done.returncode == 0
    assert "120.00" in done.stdout


def numbers(service: Service) -> dict[str, dict[str, float]]:
    """Return the metrics that one worker shows, by name and labels but the worker, and by the worker."""
    with httpx2.Client(base_url=service.operator_url) as client:
        text = client.get("/metrics", headers={"Authorization": f"Bearer {service.token}"}).text
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        name = re.fullmatch(r'(\w+){(?:(.*),)?worker="(\d)"} (\S+)', line)
        if name:
            found.setdefault(f"{name[1]} {name[2] or ''}".strip(), {})[name[3]] = float(name[4])
        else:
            assert line.startswith("#")
    return found


def test_worker_that_is_asked_shows_the_numbers_of_all(workers: StartWorkers) -> None:
    """What both answered adds up in the metrics of either, and it is seen that one is down."""
    service = workers()
    for number in range(30):
        service.list_coins(**{f"coin{number}": 8})
        with httpx2.Client(base_url=service.operator_url) as client:
            assert client.get("/v1/coins", headers={"Authorization": f"Bearer {service.token}"}).status_code == 200
    counted = 'spotledger_operator_requests_total method="GET",path="/v1/coins",status="200"'
    until(lambda: sum(numbers(service).get(counted, {}).values()) == 30)
    for _ in range(10):
        shown = numbers(service)
        assert shown["spotledger_worker_up"] == {"0": 1, "1": 1}
        assert shown["spotledger_head_seq"].keys() == {"0", "1"}
    os.kill(max(children_of(service)), signal.SIGSTOP)
    until(lambda: any(0 in numbers(service)["spotledger_worker_up"].values() for _ in range(3)))
    os.kill(max(children_of(service)), signal.SIGCONT)
    until(lambda: numbers(service)["spotledger_worker_up"] == {"0": 1, "1": 1})


def test_audit_that_one_worker_runs_is_known_to_the_other(workers: StartWorkers) -> None:
    """Every worker answers how far the audit is and what it found, and no second audit is started beside it."""
    service = workers()
    service.list_coins(usdt=8)
    headers = {"Authorization": f"Bearer {service.token}"}

    def ask(method: str, path: str) -> dict[str, object]:
        with httpx2.Client(base_url=service.operator_url, headers=headers) as client:
            answer = client.request(method, path)
        assert answer.status_code in (200, 202), answer.text
        return dict(answer.json())

    began = last = ask("POST", "/v1/audits")
    for _ in range(6):
        before, last = last, ask("POST", "/v1/audits")
        assert last["audit"] == before["audit"] or ask("GET", f"/v1/audits/{before['audit']}")["state"] == "done"
    path = f"/v1/audits/{began['audit']}"
    until(lambda: ask("GET", path)["state"] == "done")
    until(lambda: {ask("GET", path)["state"] for _ in range(8)} == {"done"})
    assert {str(ask("GET", path)["report"]) for _ in range(8)} == {str(ask("GET", path)["report"])}


def test_worker_that_is_killed_is_started_again_while_the_other_answers(workers: StartWorkers) -> None:
    """The parent notices, says so, and starts another; the ports take connections all the time."""
    service = workers()
    before = children_of(service)
    killed = min(before)
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(children_of(service) - {killed}) == 2)
    for _ in range(20):
        assert httpx2.get(f"{service.public_url}/healthz").json() == {"status": "alive"}
    assert re.search(rf"worker \d \(process {killed}\) ended with SIGKILL", service.stderr.read_text())
    assert before - {killed} < children_of(service)


def test_workers_told_to_stop_end_with_0_and_leave_nothing(workers: StartWorkers) -> None:
    """SIGTERM to the parent ends all of them in order; the folder can be used again at once."""
    service = workers()
    service.list_coins(usdt=8)
    left = children_of(service)
    assert service.stop() == 0
    assert not any(is_running(pid) for pid in left)
    said = service.stderr.read_text().splitlines()
    assert all("standby = none" in line or "no Redis is named" in line for line in said)
    assert sum("no Redis is named" in line for line in said) == 1
    again = workers()
    assert len(children_of(again)) == 2


def test_workers_whose_parent_was_killed_end_by_themselves(workers: StartWorkers) -> None:
    """A parent that is killed -9 leaves no worker that would hold the ports and the folder for ever."""
    service = workers()
    left = children_of(service)
    service.process.kill()
    service.process.wait()
    until(lambda: not any(is_running(pid) for pid in left))
    assert len(children_of(workers())) == 2


def test_workers_on_a_database_that_is_away_do_not_start(tmp_path: Path) -> None:
    """An error that keeps the first worker from starting is printed once and ends the service."""
    url = "postgresql://spot@127.0.0.1:1/none"
    refused = support_service.run("serve", "--data", tmp_path / "data", "--database", url, "--workers", "3")
    assert refused.returncode == 1
    assert refused.stderr.count("ledger could not be reached") == 1
    assert "The first worker did not start" in refused.stderr
    assert "Traceback" not in refused.stderr
