"""The clients, the examples and the samples of the reference page against the service in its own process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from spotledger import errors
from spotledger.client import AsyncSpotClient, Balances, OperatorLedger, SignedRequestAPI, SpotClient
from support_client_service import Service, started_service

ROOT = Path(__file__).resolve().parents[2]
USDT = {"freeze": "3062.17437341", "available": "3867.43650012"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that does not count requests: several tests share it."""
    folder = tmp_path_factory.mktemp("service") / "data"
    unlimited = dict.fromkeys(("asset_limit_per_second", "account_limit_per_second", "address_limit_per_minute"), "0")
    with started_service(folder, **unlimited) as started:
        yield started


def test_spot_client_reads_the_service(service: Service) -> None:
    """Every call is understood; amounts are exact to the eighteenth decimal."""
    with SpotClient(service.accesskey, service.secretkey, service.public_url) as client:
        balances = client.balances()
        assert balances == client.funds(2)
        assert client.funds(1)["usdt"].total == 0
        assert client.accounts() == {1: "wallet account", 2: "trading account", 3: "fiat account"}
        assert client.server_time() > 10**12
    assert balances["usdt"].available == Decimal(USDT["available"])
    assert balances["usdt"].total == Decimal("6929.61087353")
    assert str(balances["eth"].available) == "12345678901234567890.123456789012345678"
    assert list(balances) == ["btc", "eth", "forth", "usdt"]
    assert balances.seq is not None


def test_async_client_reads_the_service_many_times_at_once(service: Service) -> None:
    """Fifty calls at once on one async client all have the same answer."""

    async def run() -> list[Balances]:
        async with AsyncSpotClient(service.accesskey, service.secretkey, service.public_url) as client:
            return await asyncio.gather(*[client.balances() for _ in range(50)])

    answers = asyncio.run(run())
    assert all(answer == answers[0] for answer in answers)


def test_threads_share_one_client_of_the_service(service: Service) -> None:
    """Eight threads on one client all read the balance."""
    read: list[Decimal] = []
    with SpotClient(service.accesskey, service.secretkey, service.public_url) as client:
        threads = [
            threading.Thread(target=lambda: read.extend([client.balances()["usdt"].total for _ in range(10)]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert read == [Decimal("6929.61087353")] * 80


def test_write_is_in_the_next_read(service: Service) -> None:
    """What the operator API acknowledged is in the trader's next answer, at that position or later."""
    service.call("POST", "/v1/customers", {"customer": "bob"}, "bob")
    made = service.call("POST", "/v1/keys", {"customer": "bob", "permissions": ["read"]}, "key-bob")
    with SpotClient(made["accesskey"], made["secretkey"], service.public_url) as client:
        for number in range(1, 6):
            deposit = {"customer": "bob", "coin": "btc", "amount": "0.1"}
            written = service.call("POST", "/v1/deposits", deposit, f"bob-{number}")
            balances = client.balances()
            assert balances["btc"].available == Decimal(number) / 10
            assert balances.seq is not None
            assert balances.seq >= written["seq"]


def test_revoked_key_is_refused_as_such(service: Service) -> None:
    """A key that the operator took away stops working, and the client says that it was revoked."""
    made = service.call("POST", "/v1/keys", {"customer": "alice", "permissions": ["read"]}, "key-to-revoke")
    with SpotClient(made["accesskey"], made["secretkey"], service.public_url) as client:
        client.balances()
        service.call("DELETE", f"/v1/keys/{made['accesskey']}")
        with pytest.raises(errors.AccessKeyRevoked):
            client.balances()


def test_wrong_secret_is_code_308_for_the_documents_class(service: Service) -> None:
    """A wrong secret gives the documents' class the decoded refusal."""
    with SignedRequestAPI(service.accesskey, "0" * 64, service.public_url) as api:
        status, data, _ = api.get_balance()
    assert status is True
    assert data is not None
    assert data["code"] == 308
    assert "data" not in data


def test_operator_ledger_raises_the_refusals_of_the_service(service: Service) -> None:
    """A kept refusal has its seq; the same again is marked as a repeat; a wrong token is refused."""
    body = {"customer": "alice", "coin": "usdt", "amount": "1000000", "reference": "too-much"}
    for replayed in (False, True):
        with pytest.raises(errors.InsufficientAvailable) as raised:
            service.call("POST", "/v1/holds", body, "hold-too-much")
        assert raised.value.seq is not None
        assert raised.value.replayed is replayed
    with pytest.raises(errors.IdempotencyConflict):
        service.call("POST", "/v1/holds", body | {"amount": "2000000"}, "hold-too-much")
    with OperatorLedger(service.operator_url, "0" * 64) as ledger, pytest.raises(errors.TokenRefused):
        ledger.call("GET", "/v1/coins")


# --- the examples and samples ---------------------------------------------------------------------


def run(command: list[str], service: Service, **changed: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | service.variables | changed
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False
    )


def samples(language: str) -> list[str]:
    text = (ROOT / "docs" / "reference" / "get-balance.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_python_samples_read_the_service(number: int, service: Service) -> None:
    """The Python samples of the reference page work as they stand."""
    done = run([sys.executable, "-c", samples("python")[number]], service)
    assert done.stdout.split()[:1] == [USDT["available"]], done.stderr


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="needs curl and python3")
def test_curl_sample_reads_the_service(service: Service) -> None:
    """The curl sample of the reference page works as it stands."""
    done = run(["sh", "-eu", "-c", samples("sh")[0]], service)
    assert json.loads(done.stdout)["data"]["usdt"] == USDT


def test_python_example_reads_the_service(service: Service) -> None:
    """The Python example prints each coin."""
    done = run([sys.executable, str(ROOT / "examples" / "get_balance.py")], service)
    assert done.returncode == 0, done.stderr
    assert USDT["freeze"] in done.stdout


@pytest.mark.skipif(shutil.which("java") is None, reason="needs a JDK")
def test_java_example_reads_the_service_and_is_refused_with_a_wrong_secret(service: Service) -> None:
    """The Java example prints the answer and ends with 0; with a wrong secret, the refusal, and ends with 1."""
    command = ["java", str(ROOT / "examples" / "GetBalance.java")]
    done = run(command, service)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["usdt"] == USDT
    refused = run(command, service, SPOTLEDGER_SECRETKEY="0" * 64)
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["code"] == 308
