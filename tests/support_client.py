"""
A small HTTP server that speaks v1, checks signatures by itself, and misbehaves when told to.

It shares no code with the client: what both take for right was written twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

ACCESSKEY = "11111111-2222-4333-8444-555555555555"
SECRETKEY = "0123456789abcdef0123456789abcdef01234567"
OTHER_ACCESSKEY = "99999999-8888-4777-8666-555555555555"
OTHER_SECRETKEY = "76543210fedcba9876543210fedcba9876543210"
NONCE = "1562919832183"

DATA = {
    "btc": {"freeze": "0.00", "available": "0.00"},
    "forth": {"freeze": "0.00", "available": "12.50"},
    "usdt": {"freeze": "3062.17437341", "available": "3867.43650012"},
}
ACCOUNTS = [
    {"name": "wallet account", "id": 1},
    {"name": "trading account", "id": 2},
    {"name": "fiat account", "id": 3},
]


@dataclass(frozen=True)
class Reply:
    """One answer, byte for byte; a text body is sent in UTF-8, anything else as JSON."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()


Behaviour = Reply | Callable[["Handler"], None]


def refusal(code: object, text: str, status: int = 200, **headers: str) -> Reply:
    """Make a refusal in the shape of v1."""
    body = {"code": code, "info": text, "msg": text, "msgInfo": text}
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def success(data: object, **headers: str) -> Reply:
    """Make a success in the shape of v1."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply({"code": 200, "data": data, "info": "success"}, 200, named)


def close_at_once(handler: Handler) -> None:
    """End the connection without an answer."""
    handler.close_connection = True
    handler.connection.close()


def answer_half(handler: Handler) -> None:
    """Promise a hundred bytes and end after ten."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"code":200')
    close_at_once(handler)


def answer_garbage(handler: Handler) -> None:
    """Send what is no HTTP."""
    handler.wfile.write(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
    close_at_once(handler)


def never_answer(handler: Handler) -> None:
    """Keep the connection open and say nothing until the server is stopped."""
    handler.scripted.stopping.wait(30)
    close_at_once(handler)


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    path: str
    query: str
    headers: Mapping[str, str]

    @property
    def params(self) -> dict[str, str]:
        return dict(parse_qsl(self.query, keep_blank_values=True))


class ScriptedServer(ThreadingHTTPServer):
    """Answer as documented, except where ``script`` holds what to do with the next request but getServerTime."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.secrets = {ACCESSKEY: SECRETKEY, OTHER_ACCESSKEY: OTHER_SECRETKEY}
        self.info = "success"
        self.ahead_ms = 0
        self.script: deque[Behaviour] = deque()
        self.time_script: deque[Behaviour] = deque()
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self.stopping.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: most of what goes wrong here is meant to."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_ms

    def calls(self, name: str) -> list[Seen]:
        """Give the requests for the call *name*, in order."""
        return [seen for seen in self.seen if seen.path.endswith("/" + name)]

    def answer(self, seen: Seen) -> Reply:
        """Answer as documented."""
        call = seen.path.removeprefix("/trade/api/v1/").rstrip("/")
        if call == "getServerTime":
            return success({"serverTime": self.now_ms()})
        if call == "getAccounts":
            return success(ACCOUNTS)
        if call not in {"getBalance", "getFunds"}:
            return refusal(404, "no such path")
        return self._refusal_of(seen) or Reply(
            {"code": 200, "data": DATA, "info": self.info}, headers={"X-Ledger-Seq": "42"}
        )

    def _refusal_of(self, seen: Seen) -> Reply | None:
        params = seen.params
        secret = self.secrets.get(params.get("accesskey", ""))
        if secret is None:
            return refusal(307, "the access key is unknown")
        pairs = sorted((name, value) for name, value in params.items() if name != "signature")
        text = "&".join(name + "=" + value for name, value in pairs)
        expected = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        if params.get("signature") != expected:
            return refusal(308, "the signature does not fit")
        if not -5_000 <= self.now_ms() - int(params["nonce"]) <= 30_000:
            return refusal(400, "the nonce is outside the window around the server's time")
        return None


class Handler(BaseHTTPRequestHandler):
    """Read a request, keep it, and answer it as scripted or as documented."""

    protocol_version = "HTTP/1.1"
    timeout = 10
    server: ScriptedServer

    @property
    def scripted(self) -> ScriptedServer:
        return self.server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        seen = Seen(parts.path, parts.query, {name.lower(): value for name, value in self.headers.items()})
        self.server.seen.append(seen)
        is_time = parts.path.endswith("/getServerTime")
        script = self.server.time_script if is_time else self.server.script
        behaviour = script.popleft() if script else self.server.answer(seen)
        if isinstance(behaviour, Reply):
            self.reply(behaviour)
        else:
            behaviour(self)

    def reply(self, reply: Reply) -> None:
        """Send *reply* with its length."""
        body = reply.encoded()
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **reply.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
