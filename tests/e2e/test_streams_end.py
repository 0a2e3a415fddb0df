"""Open streams of real services end with the token that opened them: one node, workers, a fleet, a lost database."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

import support_service
from servers import kept, postgres
from spotledger.clock import now_ms
from support_service import Service

Start = Callable[..., Service]
MASTER_KEY = "5a" * 32
#: Beyond this a wait has failed.
WAIT_SECONDS = 30
until = partial(kept.until, seconds=WAIT_SECONDS)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Give what starts a service in a folder of its own; all are stopped at the end."""
    started: list[Service] = []
    key_file = tmp_path / "master.key"
    key_file.write_text(MASTER_KEY + "\n")
    key_file.chmod(0o600)

    def started_in(name: str = "one", **settings: object) -> Service:
        started.append(support_service.start(tmp_path / name, master_key_file=key_file, **settings))
        return started[-1]

    yield started_in
    for service in started:
        service.stop()


class Reader:
    """An open stream with a connection of its own, read in a thread."""

    def __init__(self, url: str, token: str) -> None:
        self.status = 0
        self.begun = threading.Event()
        #: Set at the end of the stream; `is_whole` says whether it was not cut off.
        self.ended = threading.Event()
        self.is_whole = False
        self.text = ""
        self._url, self._token = url, token
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self.begun.wait(WAIT_SECONDS)

    def _read(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "text/event-stream"}
        try:
            with httpx2.stream("GET", f"{self._url}/v1/entries", headers=headers, timeout=60) as answer:
                self.status = answer.status_code
                for piece in answer.iter_text():
                    self.text += piece
                    self.begun.set()
            self.is_whole = True
        except httpx2.TransportError:
            self.is_whole = False
        finally:
            self.begun.set()
            self.ended.set()


def token_of(service: Service, **more: object) -> tuple[str, str]:
    """Make a token that reads; return its id and itself."""
    made = service.write("/v1/tokens", {"scopes": ["ledger:read"], **more})
    return made["token_id"], made["token"]


def revoke(service: Service, token_id: str) -> None:
    """Revoke a token by one call of *service*."""
    answer = httpx2.delete(
        f"{service.operator_url}/v1/tokens/{token_id}", headers={"Authorization": f"Bearer {service.token}"}
    )
    assert answer.status_code == 200, answer.text


def test_streams_of_a_revoked_token_end_and_those_of_others_go_on(start: Start) -> None:
    """The stream ends whole, its next request is refused, and another token's stream gets the next entry."""
    service = start()
    token_id, token = token_of(service)
    _, other = token_of(service)
    revoked, left = Reader(service.operator_url, token), Reader(service.operator_url, other)
    assert (revoked.status, left.status) == (200, 200)
    revoke(service, token_id)
    assert revoked.ended.wait(WAIT_SECONDS)
    assert revoked.is_whole
    service.list_coins(usdt=8)
    until(lambda: '"list_coin"' in left.text)
    assert not left.ended.is_set()
    assert '"list_coin"' not in revoked.text
    assert Reader(service.operator_url, token).status == 401


def test_stream_ends_when_its_token_expires(start: Start) -> None:
    """Nobody revokes anything: the time of the token is over, and nothing that comes later is sent."""
    service = start()
    for lifetime_ms in (2_000, 10_000, 30_000):  # on a busy machine a short one may be over before the stream opens
        _, token = token_of(service, expires_ms=now_ms() + lifetime_ms)
        reader = Reader(service.operator_url, token)
        if reader.status == 200:
            break
    assert reader.status == 200
    assert reader.ended.wait(WAIT_SECONDS)
    assert reader.is_whole
    assert Reader(service.operator_url, token).status == 401


def test_stream_of_a_reader_that_takes_nothing_ends_too(start: Start) -> None:
    """A full buffer does not keep a stream of a revoked token open."""
    service = start()
    service.list_coins(usdt=8)
    service.trader("alice", {"usdt": ("1", "0")})
    deposit = {"op": "deposit", "customer": "alice", "coin": "usdt", "amount": "1", "reference": "x" * 200}
    client = service.client()
    for batch in range(10):
        operations = [{**deposit, "key": f"{batch}:{number}"} for number in range(1_000)]
        assert client.post("/v1/batches", json={"operations": operations}).status_code == 200
    token_id, token = token_of(service)
    host, _, port = service.operator_url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as reader:
        head = (
            f"GET /v1/entries HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nAccept: text/event-stream\r\n\r\n"
        )
        reader.sendall(head.encode())

        def open_feeds() -> str:
            lines = client.get("/metrics").text.splitlines()
            return next(line.rpartition(" ")[2] for line in lines if line.startswith("spotledger_open_feeds"))

        until(lambda: open_feeds() == "1.0")
        revoke(service, token_id)
        until(lambda: open_feeds() == "0.0")


def test_token_bound_to_another_address_opens_no_stream(start: Start) -> None:
    """The address of the connection counts, and a header that anybody can send does not."""
    service = start()
    _, elsewhere = token_of(service, addresses=["192.0.2.0/24"])
    _, here = token_of(service, addresses=["127.0.0.0/8"])
    for header in ({}, {"X-Forwarded-For": "192.0.2.7"}):
        for token, status in ((elsewhere, 401), (here, 200)):
            headers = {"Authorization": f"Bearer {token}", **header}
            assert httpx2.get(f"{service.operator_url}/v1/coins", headers=headers).status_code == status
    assert Reader(service.operator_url, elsewhere).status == 401
    proxied = start("two", trusted_proxies="127.0.0.1")
    _, elsewhere = token_of(proxied, addresses=["192.0.2.0/24"])
    for forwarded, status in (("192.0.2.7", 200), ("192.0.2.7, 198.51.100.1", 401), ("198.51.100.1, 192.0.2.7", 200)):
        headers = {"Authorization": f"Bearer {elsewhere}", "X-Forwarded-For": forwarded}
        assert httpx2.get(f"{proxied.operator_url}/v1/coins", headers=headers).status_code == status


def test_streams_on_every_worker_end(start: Start, postgres_url: str) -> None:
    """One worker takes the revocation, and the streams of both end."""
    service = start(database=postgres_url, workers=2)
    token_id, token = token_of(service)
    readers = [Reader(service.operator_url, token) for _ in range(8)]
    assert {reader.status for reader in readers} == {200}
    revoke(service, token_id)
    assert all(reader.ended.wait(WAIT_SECONDS) for reader in readers)
    assert all(reader.is_whole for reader in readers)


def test_streams_on_every_node_end(start: Start, postgres_url: str) -> None:
    """A revocation by a call of one node ends the streams on both, and those of another token go on."""
    first, second = start("one", database=postgres_url), start("two", database=postgres_url)
    shutil.copy(first.folder / "operator.token", second.folder / "operator.token")
    token_id, token = token_of(first)
    _, other = token_of(second)
    readers = [Reader(node.operator_url, token) for node in (first, second, first, second)]
    left = [Reader(node.operator_url, other) for node in (first, second)]
    assert {reader.status for reader in (*readers, *left)} == {200}
    revoke(first, token_id)
    assert all(reader.ended.wait(WAIT_SECONDS) for reader in readers)
    second.list_coins(usdt=8)
    for reader in left:
        until(lambda reader=reader: '"list_coin"' in reader.text)  # type: ignore[misc]
        assert not reader.ended.is_set()
    assert all('"list_coin"' not in reader.text for reader in readers)


def test_streams_end_when_revocations_cannot_be_known(start: Start) -> None:
    """A node whose database is gone for longer than it trusts its memory ends all streams, although nothing is sent."""
    with postgres.own_cluster(postgres.QUICK) as cluster:
        service = start(database=cluster.url(), keys_trust_seconds=1)
        _, token = token_of(service)
        reader = Reader(service.operator_url, token)
        assert reader.status == 200
        cluster.kill()
        assert reader.ended.wait(WAIT_SECONDS)
        until(lambda: "a stream of the journal for token:" in service.stderr.read_text())
        assert Reader(service.operator_url, token).status == 503


def test_last_use_of_a_token_outlives_the_service(start: Start, postgres_url: str) -> None:
    """When a token was last used is stored at the stop, by each worker, and shown by the next start."""
    for settings in ({}, {"database": postgres_url, "workers": 2}):
        name = f"{len(settings)}"
        service = start(name, **settings)
        used_id, used = token_of(service)
        unused_id, _ = token_of(service)
        headers = {"Authorization": f"Bearer {used}"}
        assert httpx2.get(f"{service.operator_url}/v1/coins", headers=headers).status_code == 200
        assert service.stop() == 0
        found = start(name, **settings).client().get("/v1/tokens").json()["tokens"]
        last_used = {token["token_id"]: token["last_used_ms"] for token in found}
        assert last_used[used_id] is not None
        assert last_used[unused_id] is None
