"""A signed URL that was used once is of no use from elsewhere, whatever happened to the service in between."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import signal
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import support_service
from spotledger.client import SpotClient
from support_service import Service, Trader

BALANCE = "/trade/api/v1/getBalance"
OTHER = "127.0.0.2"


def signed_url(trader: Trader, nonce_ms: int | None = None) -> str:
    """Return the path and query of a signed getBalance."""
    text = f"accesskey={trader.accesskey}&nonce={nonce_ms or time.time_ns() // 1_000_000}"
    return f"{BALANCE}?{text}&signature={hmac.digest(trader.secretkey.encode(), text.encode(), hashlib.sha256).hex()}"


def ask(service: Service, url: str, address: str = "127.0.0.1") -> tuple[dict[str, Any], dict[str, str]]:
    """Send *url* from *address*; return the body and the headers of the answer."""
    parts = urlsplit(service.public_url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10, source_address=(address, 0))
    try:
        connection.request("GET", url)
        answer = connection.getresponse()
        return json.loads(answer.read()), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def code(service: Service, url: str, address: str = "127.0.0.1") -> int:
    return int(ask(service, url, address)[0]["code"])


def first_start(tmp_path: Path, **settings: object) -> tuple[Service, Trader]:
    """Start a new ledger with one trader."""
    service = support_service.start(tmp_path / "data", **settings)
    service.list_coins(usdt=6)
    return service, service.trader("alice", {"usdt": ("10", "0")})


#: Long windows, so that a slow machine does not let a nonce run out before the restart is over.
WINDOW = {"nonce_past_ms": 60_000}


def test_signed_url_is_refused_from_elsewhere_after_an_orderly_restart(tmp_path: Path) -> None:
    """The owner's own retry passes before and after the restart; the same URL from another address never does."""
    service, alice = first_start(tmp_path, **WINDOW)
    url = signed_url(alice)
    assert [code(service, url), code(service, url, OTHER), code(service, url)] == [200, 400, 200]
    assert not (tmp_path / "data" / "replay-memory").exists()
    assert service.stop() == 0
    assert (tmp_path / "data" / "replay-memory").stat().st_mode & 0o777 == 0o600
    service = support_service.start(tmp_path / "data", **WINDOW)
    try:
        assert not (tmp_path / "data" / "replay-memory").exists()
        assert code(service, url, OTHER) == 400
        assert code(service, url) == 200
        assert code(service, signed_url(alice), OTHER) == 200
    finally:
        service.stop()


@pytest.mark.parametrize("weaker", [{"replay": "off"}, {"nonce_past_ms": 1_000}])
def test_start_with_stronger_replay_protection_refuses_what_was_used_before(
    tmp_path: Path, weaker: dict[str, object]
) -> None:
    """A URL that was used while replay was off, or in a narrower window, is refused from elsewhere after the change."""
    service, alice = first_start(tmp_path, **{**WINDOW, **weaker})
    url = signed_url(alice, time.time_ns() // 1_000_000 + 4_000)
    assert code(service, url) == 200
    assert service.stop() == 0
    service = support_service.start(tmp_path / "data", **WINDOW)
    try:
        assert code(service, url, OTHER) == 400
    finally:
        service.stop()


def test_signed_url_passes_once_under_strict_whatever_restarts(tmp_path: Path) -> None:
    """With --replay strict a signed request is accepted once, not once for each start."""
    settings = {**WINDOW, "replay": "strict"}
    service, alice = first_start(tmp_path, **settings)
    url = signed_url(alice)
    assert [code(service, url), code(service, url)] == [200, 400]
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        service.stop(number)
        service = support_service.start(tmp_path / "data", **settings)
        assert code(service, url) == 400
    service.stop()


def test_nothing_used_before_a_kill_passes_after_it_and_clients_go_on(tmp_path: Path) -> None:
    """After kill -9 nothing is remembered: what may have been used is refused, saying what passes; new keys are not."""
    service, alice = first_start(tmp_path, **WINDOW)
    now_ms = time.time_ns() // 1_000_000
    used = [signed_url(alice, now_ms + ahead_ms) for ahead_ms in (-20_000, 0, 2_000)]
    assert [code(service, url) for url in used] == [200, 200, 200]
    service.stop(signal.SIGKILL)
    service = support_service.start(tmp_path / "data", **WINDOW)
    try:
        for url in used:
            refusal, headers = ask(service, url, OTHER)
            assert refusal["code"] == 400
            assert "a nonce of at least" in refusal["info"]
            assert 1 <= int(headers["retry-after"]) <= 6
        assert {code(service, url) for url in used} == {400}
        # Our client signs with the nonce that the refusal names, and so has its answer at once.
        with SpotClient(alice.accesskey, alice.secretkey, base_url=service.public_url) as client:
            assert client.balances()["usdt"].available == 10
        bob = service.trader("bob")
        assert code(service, signed_url(bob), OTHER) == 200
    finally:
        service.stop()


def test_start_after_a_kill_that_stops_at_once_still_refuses_at_the_next(tmp_path: Path) -> None:
    """Restart loops forget nothing: what a start refused to believe, the next one refuses too."""
    service, alice = first_start(tmp_path, **WINDOW)
    url = signed_url(alice, time.time_ns() // 1_000_000 + 4_000)
    assert code(service, url) == 200
    service.stop(signal.SIGKILL)
    for _ in range(3):
        service = support_service.start(tmp_path / "data", **WINDOW)
        assert code(service, url, OTHER) == 400
        assert service.stop() == 0
        assert (tmp_path / "data" / "replay-memory").exists()
    service = support_service.start(tmp_path / "data", **WINDOW)
    assert code(service, url, OTHER) == 400
    service.stop()


def test_damaged_memory_is_said_and_refused_like_a_missing_one(tmp_path: Path) -> None:
    """A file that was changed on disk is not believed, and the service starts all the same."""
    service, alice = first_start(tmp_path, **WINDOW)
    url = signed_url(alice)
    assert code(service, url) == 200
    service.stop()
    file = tmp_path / "data" / "replay-memory"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    service = support_service.start(tmp_path / "data", **WINDOW)
    try:
        assert code(service, url, OTHER) == 400
        assert "replay-memory is damaged" in service.stderr.read_text()
    finally:
        service.stop()


def test_planted_link_in_place_of_the_memory_stops_the_start(tmp_path: Path) -> None:
    """A link that somebody put there is named, and where it leads stays untouched."""
    service, _ = first_start(tmp_path)
    service.stop()
    file = tmp_path / "data" / "replay-memory"
    file.rename(tmp_path / "precious")
    file.symlink_to(tmp_path / "precious")
    with pytest.raises(RuntimeError, match=r"replay-memory is a symbolic link; the file itself would pass"):
        support_service.start(tmp_path / "data")
    assert (tmp_path / "precious").exists()


def test_ledger_that_commands_made_admits_at_its_first_start(tmp_path: Path) -> None:
    """A ledger and an access key that commands made without a server were never used, so nothing is refused."""
    data = ("--data", tmp_path / "data")
    assert support_service.run("customer", "add", "alice", *data).returncode == 0
    made = support_service.run("key", "create", "--customer", "alice", "--permission", "read", "--json", *data)
    key = json.loads(made.stdout)
    service = support_service.start(tmp_path / "data")
    try:
        assert code(service, signed_url(Trader("alice", key["accesskey"], key["secretkey"]))) == 200
    finally:
        service.stop()
