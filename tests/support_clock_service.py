"""What the tests of the clock ask a real service whose wall clock is faked."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import time
from typing import Any

import httpx2

import support_service
from servers.faketime import FakeTime
from support_service import Service, Trader

HOUR = 3_600_000
DAY = 24 * HOUR
#: Python's `time.sleep`, which the audit uses, fails under libfaketime.
SETTINGS = {"audit_entries_per_second": 0, "asset_limit_per_second": 0}


def true_ms() -> int:
    """Return the time."""
    return time.time_ns() // 1_000_000


def wait_for(status: int, *urls: str) -> None:
    """Wait until each of *urls* answers with *status*."""
    until = time.monotonic() + 20
    for url in urls:
        while httpx2.get(url).status_code != status:
            assert time.monotonic() < until, f"{url} never answered with {status}"
            time.sleep(0.05)


def readiness(service: Service) -> tuple[str, str]:
    """Return what tells whether the service can write, on both listeners."""
    return f"{service.public_url}/readyz", f"{service.operator_url}/readyz"


def post(service: Service, path: str, body: dict[str, Any], key: str | None = None) -> httpx2.Response:
    """Send a write, whatever comes of it."""
    headers = {"Authorization": f"Bearer {service.token}"}
    if key is not None:
        headers["Idempotency-Key"] = key
    return httpx2.post(f"{service.operator_url}{path}", json=body, headers=headers)


def get(service: Service, path: str, **params: Any) -> httpx2.Response:
    """Read."""
    headers = {"Authorization": f"Bearer {service.token}"}
    return httpx2.get(f"{service.operator_url}{path}", params=params, headers=headers)


def freeze(service: Service, key: str, expires_ms: int) -> httpx2.Response:
    """Freeze 1 usdt of alice."""
    return post(
        service, "/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "1", "expires_ms": expires_ms}, key
    )


def balance(service: Service, trader: Trader, nonce: int) -> int:
    """Send a signed getBalance with *nonce*; return the code of the answer."""
    text = f"accesskey={trader.accesskey}&nonce={nonce}"
    signature = hmac.new(trader.secretkey.encode(), text.encode(), hashlib.sha256).hexdigest()
    answer = httpx2.get(f"{service.public_url}/trade/api/v1/getBalance?{text}&signature={signature}")
    return int(answer.json()["code"])


def server_time(service: Service) -> int:
    """Return the time that the service tells."""
    return int(httpx2.get(f"{service.public_url}/trade/api/v1/getServerTime").json()["data"]["serverTime"])


def set_up(service: Service) -> Trader:
    """List usdt, and give alice 100 of it and an access key."""
    service.list_coins(usdt=8)
    return service.trader("alice", {"usdt": ("100", "0")})


def entries(service: Service) -> list[dict[str, Any]]:
    """Return all entries."""
    found: list[dict[str, Any]] = get(service, "/v1/entries").json()["entries"]
    return found


def lines_of_clock(service: Service) -> list[str]:
    """Return what the service wrote into its log about the clock."""
    return [line for line in service.stderr.read_text().splitlines() if "spotledger.clock" in line]


def clock_command(service: Service, faketime: FakeTime, what: str) -> subprocess.CompletedProcess[str]:
    """Run ``spotledger clock``."""
    env = support_service.environment(**faketime.environment)
    return support_service.run("clock", what, "--json", "--data", service.folder, env=env)
