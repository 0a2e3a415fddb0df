"""The public listener over a real ledger in a temporary folder, without a server; and requests for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import spotledger
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.server import HttpServer
from spotledger.http.public.answers import Answer
from spotledger.http.public.app import PublicApp, PublicSettings
from spotledger.http.public.listener import PublicListener, public_limits
from spotledger.ledger.ledger import Ledger
from spotledger.security.access_keys import AccessKeyRecord, KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.fleet_gate import FleetGate

#: The key, secret and nonce of the published vectors (wire-v1, section 5).
KEY = "11111111-2222-4333-8444-555555555555"
SECRET = "0123456789abcdef0123456789abcdef01234567"
NONCE = 1562919832183
BALANCE = "/trade/api/v1/getBalance"
FUNDS = "/trade/api/v1/getFunds"
PEER = "192.0.2.7:40000"
OTHER_PEER = "198.51.100.1:1"
ALICE = {
    "btc": {"freeze": "0.00", "available": "0.00"},
    "usdt": {"freeze": "3062.17437341", "available": "3867.43650012"},
}
MASTER_KEY = bytes(range(32))


class Headers:
    """The headers of a request, as the server hands them over: asked for by names in lower case."""

    def __init__(self, *pairs: tuple[str, str]) -> None:
        self._pairs = [(name.lower(), value) for name, value in pairs]

    def get(self, key: str, /) -> str | None:
        return next((value for name, value in self._pairs if name == key), None)

    def get_all(self, key: str, /) -> list[str]:
        return [value for name, value in self._pairs if name == key]

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: int = NONCE) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def at_once(answering: Coroutine[Any, Any, Answer]) -> Answer:
    """Return the answer of a listener that waits for nobody, without an event loop."""
    try:
        answering.send(None)
    except StopIteration as ended:
        answer = ended.value
        assert isinstance(answer, Answer)
        return answer
    answering.close()
    raise AssertionError("the listener waits for something; it needs an event loop")


#: The Redis over which the gates of services count; None: each counts by itself.
REDIS: ContextVar[str | None] = ContextVar("redis", default=None)


class Service:
    """One public listener with its ledger, its keys and its clock."""

    def __init__(self, ledger: Ledger, settings: PublicSettings) -> None:
        self.ledger = ledger
        self.clock = Clock()
        self.cipher = Cipher(MASTER_KEY)
        self.tables = ledger.key_tables
        self.key_ring = KeyRing(self.tables.access_keys, self.cipher, self.clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        gate = None
        if redis := REDIS.get():
            self._loop = asyncio.new_event_loop()
            gate = FleetGate(
                self.key_ring, settings, redis, when_down="refuse", timeout_ms=2_000, shared_clock_ms=self.clock
            )
            self._loop.run_until_complete(gate.start())
        self.app = PublicApp(ledger, self.key_ring, settings, self.clock, request_prefix="test-", gate=gate)
        self.ready = True

    def close(self) -> None:
        """End the connection to Redis, if there is one."""
        if self._loop is not None:
            self._loop.run_until_complete(self.app.gate.stop())
            self._loop.close()

    async def _settled(self, answering: Coroutine[Any, Any, Answer]) -> Answer:
        answer = await answering
        await asyncio.sleep(0)
        assert isinstance(self.app.gate, FleetGate)
        await asyncio.gather(*self.app.gate.counts._in_flight)
        return answer

    def add_key(self, accesskey: str = KEY, secret: str = SECRET, customer: str = "alice", **fields: Any) -> None:
        """Store an access key with a known secret."""
        record = AccessKeyRecord(
            accesskey=accesskey,
            customer=customer,
            permissions=fields.pop("permissions", ("read",)),
            label="",
            addresses=fields.pop("addresses", ()),
            sealed_secret=self.cipher.seal(accesskey, secret),
            created_ms=0,
            **fields,
        )
        self.tables.access_keys.insert(record)

    def ask(
        self,
        query: str = "",
        path: str = BALANCE,
        *,
        method: str = "GET",
        headers: Iterable[tuple[str, str]] = (),
        peer: str = PEER,
        body: bytes = b"",
    ) -> Answer:
        """Send one request to the listener's function."""
        answering = self.app.answer(method, path, query, Headers(*headers), peer, body)
        return self._loop.run_until_complete(self._settled(answering)) if self._loop else at_once(answering)

    def code(self, query: str = "", path: str = BALANCE, **how: Any) -> int:
        """Send one request and return the ``code`` of the answer."""
        return int(document(self.ask(query, path, **how))["code"])


@contextmanager
def service(folder: Path, **settings: Any) -> Iterator[Service]:
    """Run a listener over a new ledger with two coins, where alice has the balances of the documents."""
    with spotledger.open(folder) as ledger:
        ledger.list_coin("btc", 8, key="coin-btc")
        ledger.list_coin("usdt", 8, key="coin-usdt")
        ledger.register_customer("alice", key="customer-alice")
        ledger.register_customer("bob", key="customer-bob")
        ledger.deposit("alice", "usdt", "6929.61087353", key="deposit-1")
        ledger.freeze("alice", "usdt", "3062.17437341", key="freeze-1")
        made = Service(ledger, PublicSettings(**settings))
        made.add_key()
        try:
            yield made
        finally:
            made.close()


def sign(text: str, secret: str = SECRET) -> str:
    """Return the HMAC-SHA256 of *text* as hex digits."""
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def raw_text(parameters: dict[str, str]) -> str:
    """Return the text to sign, values as they are."""
    return "&".join(f"{name}={parameters[name]}" for name in sorted(parameters, key=str.encode))


def encoded_text(parameters: dict[str, str]) -> str:
    """Return the text to sign, encoded as a form."""
    return "&".join(f"{quote_plus(name)}={quote_plus(parameters[name])}" for name in sorted(parameters, key=str.encode))


def signed_query(parameters: dict[str, str] | None = None, *, secret: str = SECRET, nonce: int = NONCE) -> str:
    """Return a query signed as most clients do; accesskey and nonce are added where they are missing."""
    everything = {"accesskey": KEY, "nonce": str(nonce), **(parameters or {})}
    return f"{encoded_text(everything)}&signature={sign(raw_text(everything), secret)}"


def document(answer: Answer) -> dict[str, Any]:
    """Return the decoded body of *answer*."""
    decoded = json.loads(answer.body)
    assert isinstance(decoded, dict)
    return decoded


def header(answer: Answer, name: str) -> str | None:
    """Return a header of *answer*; it is there once at most."""
    found = [value for key, value in answer.headers if key == name]
    assert len(found) < 2, f"{name} was sent {len(found)} times"
    return found[0] if found else None


class Listening:
    """A real server over the listener of a `Service`, in a thread of its own, and raw connections to it."""

    def __init__(self, made: Service) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._made = made
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))

    async def _serve(self) -> None:
        limits = public_limits(Limits(head_seconds=2, body_seconds=0.5, check_seconds=0.1))
        server = HttpServer(PublicListener(self._made.app), self._listener, limits)
        await server.start()
        await self._stop.wait()
        await server.stop(1)

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"
        self._loop.close()
        self._listener.close()

    def connect(self, patience_s: float = 3.0) -> socket.socket:
        """Open a raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=patience_s)

    def send(self, data: bytes, patience_s: float = 3.0) -> bytes:
        """Send *data* and return what comes back until the server closes, or has nothing more to say for a moment."""
        with self.connect(patience_s) as connection:
            received = b""
            with contextlib.suppress(OSError):
                connection.sendall(data)
            with contextlib.suppress(OSError):
                while chunk := connection.recv(65536):
                    received += chunk
                    connection.settimeout(0.3)
            return received

    def get(self, target: str, headers: str = "", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        """Send one request and return status, headers and body of the answer."""
        request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        return parsed(self.send(request.encode()))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers (names in lower case) and body of an HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(first.split(" ")[1]), headers, body
