"""Locks over the life of a real service: seen, lifted, and not ended by a kill."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import support_service
from spotledger.client import OperatorLedger, SignedRequestAPI
from support_service import Service, Trader

LIMITS = {"asset_limit_per_second": 1, "lock_seconds": 3_600}


def is_locked(service: Service, trader: Trader) -> bool:
    """Say whether a signed read of *trader* is refused for their lock."""
    with SignedRequestAPI(trader.accesskey, trader.secretkey, service.public_url) as api:
        status, data, _ = api.get_balance()
    assert status
    assert data is not None
    return data["code"] == 404 and "This account sent more than" in data["info"]


def lock(service: Service, trader: Trader) -> None:
    """Have *trader* ask too often."""
    until_s = time.monotonic() + 30
    while not is_locked(service, trader):
        assert time.monotonic() < until_s


def locks_json(*arguments: object) -> list[dict[str, Any]]:
    done = support_service.run("locks", "--json", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["locks"]  # type: ignore[no-any-return]


def test_lock_outlives_kill_9_and_is_seen_and_lifted_by_command(tmp_path: Path) -> None:
    """A lock that was in force when the service was killed is in force after it, until an operator lifts it."""
    data = tmp_path / "data"
    service = support_service.start(data, **LIMITS)
    alice, bob = service.trader("alice"), service.trader("bob")
    lock(service, alice)
    [seen] = locks_json("--data", data)
    assert (seen["name"], seen["customer"], seen["limit"]) == ("customer-alice", "alice", "assets")
    assert 0 < seen["until_ms"] - time.time_ns() // 1_000_000 <= 3_600_000
    service.stop(signal.SIGKILL)
    assert [found["name"] for found in locks_json("--data", data)] == ["customer-alice"]
    service = support_service.start(data, **LIMITS)
    try:
        assert is_locked(service, alice)
        assert not is_locked(service, bob)
        with OperatorLedger(service.operator_url, service.token) as ledger:
            assert [found.customer for found in ledger.locks().locks] == ["alice"]
        lifted = support_service.run("locks", "lift", "customer-alice", "--data", data)
        assert (lifted.returncode, lifted.stdout) == (0, "the lock on alice is lifted\n")
        assert not is_locked(service, alice)
        again = support_service.run("locks", "lift", "customer-alice", "--data", data)
        assert again.returncode == 1
        assert "There is no lock of this name now" in again.stderr
    finally:
        service.stop()
    assert locks_json("--data", data) == []


def test_locks_are_seen_and_lifted_with_the_scope_admin_only(tmp_path: Path) -> None:
    """No other scope shows who is locked, or lets anybody go."""
    service = support_service.start(tmp_path / "data", **LIMITS)
    try:
        made = service.write("/v1/tokens", {"scopes": ["ledger:read", "ledger:write", "keys:write"]})
        lock(service, service.trader("alice"))
        client = service.client()
        for method, path in (("GET", "/v1/locks"), ("DELETE", "/v1/locks/customer-alice")):
            weak = client.request(method, path, headers={"Authorization": f"Bearer {made['token']}"})
            assert (weak.status_code, weak.json()["code"]) == (403, "scope_missing")
        assert client.get("/v1/locks?limit=1").status_code == 422
        assert client.delete("/v1/locks/customer-%2e%2e%2f").status_code == 404
        lifted = client.delete("/v1/locks/customer-alice")
        assert (lifted.status_code, lifted.json()["customer"]) == (200, "alice")
        assert client.get("/v1/locks").json() == {"locks": []}
    finally:
        service.stop()
