"""The v1 client and the public listener understand one another: every refusal arrives as what it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import httpx2
import pytest

import spotledger
from spotledger import errors
from spotledger.client import SignedRequestAPI, SpotClient
from spotledger.http.public.app import PublicApp, PublicSettings
from spotledger.ledger.ledger import Ledger
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from support_public import at_once


class AskedHeaders:
    """The headers of a request, as the listener asks for them."""

    def __init__(self, headers: httpx2.Headers) -> None:
        self._headers = headers

    def get(self, key: str, /) -> str | None:
        return self._headers.get(key)

    def get_all(self, key: str, /) -> list[str]:
        return self._headers.get_list(key)


class Service(httpx2.BaseTransport):
    """A ledger, its access keys and the public listener, called without a network."""

    def __init__(self, folder: Path) -> None:
        self.ahead_ms = 0
        self.stopped_at_ms: int | None = None
        self.address = "127.0.0.1"
        self.settings = PublicSettings()
        self.ledger: Ledger = spotledger.open(folder)
        self.key_ring = KeyRing(self.ledger.key_tables.access_keys, Cipher(bytes(32)), self.clock_ms)
        self.requests = 0
        self._app: PublicApp | None = None

    def clock_ms(self) -> int:
        if self.stopped_at_ms is not None:
            return self.stopped_at_ms
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests += 1
        if self._app is None:
            self._app = PublicApp(self.ledger, self.key_ring, self.settings, self.clock_ms)
        query = request.url.query.decode()
        headers = AskedHeaders(request.headers)
        answer = at_once(self._app.answer(request.method, request.url.path, query, headers, f"{self.address}:4711"))
        return httpx2.Response(answer.status, headers=answer.headers, stream=httpx2.ByteStream(answer.body))

    def spot(self, credentials: tuple[str, str]) -> SpotClient:
        return SpotClient(*credentials, base_url="http://service", transport=self)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A service with a customer who has something available and something in freeze."""
    started = Service(tmp_path / "data")
    with started.ledger as ledger:
        for coin, scale in (("usdt", 8), ("forth", 18), ("btc", 8)):
            ledger.list_coin(coin, scale, key=f"list-{coin}")
        ledger.register_customer("alice", key="alice")
        ledger.deposit("alice", "usdt", "6929.61087353", key="d-1")
        ledger.freeze("alice", "usdt", "3062.17437341", key="f-1")
        ledger.deposit("alice", "forth", "12345678901234567890.123456789012345678", key="d-2")
        yield started


@pytest.fixture
def credentials(service: Service) -> tuple[str, str]:
    """An access key of that customer that may read."""
    return service.key_ring.create("alice", ["read"])


def test_balances_of_the_service_are_read_exactly(service: Service, credentials: tuple[str, str]) -> None:
    """Available, freeze, total and position are those of the ledger, to the last of eighteen decimals."""
    with service.spot(credentials) as client:
        balances = client.balances()
    assert balances["usdt"].available == Decimal("3867.43650012")
    assert balances["usdt"].freeze == Decimal("3062.17437341")
    assert balances["forth"].total == Decimal("12345678901234567890.123456789012345678")
    assert balances["btc"].total == 0
    assert balances.seq == service.ledger.head.seq
    assert service.requests == 1


def test_other_calls_of_the_service_are_read(service: Service, credentials: tuple[str, str]) -> None:
    """Funds of the three accounts, the names of accounts and the time are understood."""
    with service.spot(credentials) as client:
        assert client.funds(1)["usdt"].total == 0
        assert client.funds(2)["usdt"].available == Decimal("3867.43650012")
        assert client.accounts() == {1: "wallet account", 2: "trading account", 3: "fiat account"}
        assert abs(client.server_time() - service.clock_ms()) < 60_000


Refusing = Callable[[Service, tuple[str, str]], tuple[str, str]]


def wrong_secret(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    return credentials[0], credentials[1][::-1]


def unknown_key(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    return "22222222-2222-4333-8444-555555555555", credentials[1]


def revoked_key(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    service.key_ring.revoke(credentials[0])
    return credentials


def expired_key(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    made = service.key_ring.create("alice", ["read"], expires_ms=service.clock_ms() + 60_000)
    service.ahead_ms = 61_000
    return made


def other_address(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    return service.key_ring.create("alice", ["read"], addresses=["10.0.0.0/8"])


def no_permission(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    return service.key_ring.create("alice", ["trade"])


def secret_sent_as_key(service: Service, credentials: tuple[str, str]) -> tuple[str, str]:
    return credentials[1], credentials[1]


REFUSALS: dict[Refusing, tuple[int, type[errors.SpotledgerError]]] = {
    wrong_secret: (308, errors.SignatureRefused),
    unknown_key: (307, errors.AccessKeyUnknown),
    revoked_key: (307, errors.AccessKeyRevoked),
    expired_key: (307, errors.AccessKeyExpired),
    other_address: (307, errors.AddressNotAllowed),
    no_permission: (307, errors.PermissionMissing),
    secret_sent_as_key: (307, errors.AccessKeyUnknown),
}


@pytest.mark.parametrize("refusing", REFUSALS, ids=lambda refusing: refusing.__name__)
def test_refusal_of_the_service_arrives_as_its_own_error(
    refusing: Refusing, service: Service, credentials: tuple[str, str]
) -> None:
    """The typed client raises the very class, after one request, and shows no secret."""
    used = refusing(service, credentials)
    with service.spot(used) as client, pytest.raises(errors.SpotledgerError) as raised:
        client.balances()
    assert type(raised.value) is REFUSALS[refusing][1]
    assert service.requests == 1
    assert used[1] not in f"{raised.value}{raised.value.details}"


@pytest.mark.parametrize("refusing", REFUSALS, ids=lambda refusing: refusing.__name__)
def test_refusal_of_the_service_has_its_code_for_the_documents_class(
    refusing: Refusing, service: Service, credentials: tuple[str, str]
) -> None:
    """The documents' class gives True, the refusal with its code and text, and HTTP 200."""
    used = refusing(service, credentials)
    with SignedRequestAPI(*used, base_url="http://service", transport=service) as api:
        status, data, response = api.get_balance()
    assert status is True
    assert data is not None
    assert data["code"] == REFUSALS[refusing][0]
    assert data["info"] == data["msg"] == data["msgInfo"]
    assert "data" not in data
    assert response is not None
    assert response.status_code == 200


@pytest.mark.parametrize("ahead_ms", [-3_600_000, 40_000, -10_000, 3_600_000])
@pytest.mark.parametrize("kind", [SpotClient, SignedRequestAPI])
def test_wrong_clock_is_corrected_with_the_service(
    kind: type[SpotClient] | type[SignedRequestAPI],
    ahead_ms: int,
    service: Service,
    credentials: tuple[str, str],
) -> None:
    """Both clients find the service's time after its refusal of the nonce, and are let in."""
    service.ahead_ms = ahead_ms
    with kind(*credentials, base_url="http://service", transport=service) as client:
        if isinstance(client, SpotClient):
            assert client.balances()["usdt"].freeze == Decimal("3062.17437341")
        else:
            data = client.get_balance()[1]
            assert data is not None
            assert data["code"] == 200
    assert service.requests == 3


def test_limit_of_the_service_is_told_with_its_wait(service: Service, credentials: tuple[str, str]) -> None:
    """Over the limit the error says how long to wait, and nothing more is sent."""
    with service.spot(credentials) as client:
        service.stopped_at_ms = service.clock_ms()
        for _ in range(service.settings.asset_limit_per_second):
            client.balances()
        with pytest.raises(errors.LimitExceeded) as raised:
            client.balances()
        before = service.requests
        with pytest.raises(errors.LimitExceeded):
            client.balances()
    assert raised.value.details["retry_after_s"] == service.settings.lock_seconds
    assert service.requests == before + 1


def test_short_lock_of_the_service_is_waited_out(service: Service, credentials: tuple[str, str]) -> None:
    """Where the lock lasts a second, the client waits it out by itself."""
    service.settings = PublicSettings(asset_limit_per_second=1, lock_seconds=1)
    with service.spot(credentials) as client:
        for _ in range(3):
            assert len(client.balances()) == 3


def test_strict_replay_of_the_service_lets_quick_calls_pass(service: Service, credentials: tuple[str, str]) -> None:
    """Where each signed request is taken once, calls of one millisecond still differ."""
    service.settings = PublicSettings(replay="strict", asset_limit_per_second=0)
    with service.spot(credentials) as client:
        for _ in range(200):
            client.balances()
    assert service.requests == 200


def test_unknown_path_of_the_service_is_not_found(service: Service, credentials: tuple[str, str]) -> None:
    """A wrong base_url is told as a path that is not there."""
    with (
        SpotClient(*credentials, base_url="http://service/elsewhere", transport=service) as client,
        pytest.raises(errors.NotFound),
    ):
        client.balances()
    assert service.requests == 1
