"""The operator API over a real ledger in a temporary folder, called without a network."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from spotledger.clock import SYSTEM, TimeSources, now_ms
from spotledger.http.h1.transport import InProcessTransport
from spotledger.http.operator.app import OperatorApp
from spotledger.ops.runtime import Runtime, claim_folder, open_runtime
from spotledger.ops.settings import Settings
from spotledger.storage.folder import TOKEN_FILE

MASTER_KEY = {"SPOTLEDGER_MASTER_KEY": "5a" * 32}


class Clock:
    """The system's time, which a test may move on."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def __call__(self) -> int:
        return now_ms() + self.ahead_ms


class Api:
    """The operator API of one runtime; each call is made with the first operator token unless told otherwise."""

    def __init__(self, runtime: Runtime, runner: asyncio.Runner, clock: Clock) -> None:
        self.runtime = runtime
        self.clock = clock
        self.run = runner.run
        token_file = runtime.settings.data / TOKEN_FILE
        self.token = token_file.read_text().strip() if token_file.exists() else "none"
        self.app = OperatorApp(runtime)
        transport = InProcessTransport(self.app)
        self.http = httpx2.AsyncClient(base_url="http://operator", transport=transport)

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:
        """Make a call with exactly these options."""
        return self.run(self.http.request(method, path, **options))

    def headers(self, key: str | None = None, token: str | None = None) -> dict[str, str]:
        """Return the headers that a call needs."""
        found = {"Authorization": f"Bearer {token or self.token}"}
        return found if key is None else {**found, "Idempotency-Key": key}

    def get(self, path: str, **params: Any) -> httpx2.Response:
        """Read."""
        return self.request("GET", path, params=params, headers=self.headers())

    def post(self, path: str, body: object, key: str | None = None, token: str | None = None) -> httpx2.Response:
        """Write *body*, under a new key where none is given."""
        headers = self.headers(key or str(uuid.uuid4()), token)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, content=content, headers=headers)

    def delete(self, path: str, token: str | None = None) -> httpx2.Response:
        """Take away."""
        return self.request("DELETE", path, headers=self.headers(None, token))

    def must(self, path: str, body: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """Do a write that must succeed, and return its answer."""
        answer = self.post(path, body, key)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def balances(self, customer: str, **params: Any) -> dict[str, dict[str, str]]:
        """Return the balances of *customer*."""
        answer = self.get(f"/v1/customers/{customer}/balances", **params)
        assert answer.status_code == 200, answer.text
        return answer.json()["balances"]

    def at_once(self, path: str, bodies: Sequence[object], prefix: str) -> list[httpx2.Response]:
        """Send a write for each of *bodies* at the same time, under keys that begin with *prefix*."""

        async def send() -> list[httpx2.Response]:
            posts = (
                self.http.post(path, json=body, headers=self.headers(f"{prefix}{number}"))
                for number, body in enumerate(bodies)
            )
            return await asyncio.gather(*posts)

        return self.run(send())

    @property
    def seq(self) -> int:
        """The head of the journal."""
        return self.runtime.ledger.head.seq

    def set_up(self) -> None:
        """List coins and register customers; alice has 100 usdt available and 20 in freeze."""
        for coin, scale in {"btc": 8, "shib": 18, "usdt": 8, "whole": 0}.items():
            self.must("/v1/coins", {"coin": coin, "scale": scale})
        for customer in ("alice", "bob"):
            self.must("/v1/customers", {"customer": customer})
        self.must("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "120"})
        self.must("/v1/holds", {"customer": "alice", "coin": "usdt", "amount": "20"}, "first-hold")


@contextlib.contextmanager
def operator_api(
    folder: Path,
    *,
    loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
    time_sources: TimeSources | None = None,
    **settings: Any,
) -> Iterator[Api]:
    """
    Give the operator API over the ledger in *folder*.

    Args:
        folder: The data folder.
        loop: Makes the event loop.
        time_sources: The clocks of the machine; None: `Api.clock`, which is trusted whatever it shows.
        **settings: By name.
    """
    clock = Clock()
    clock_ms, sources = (clock, SYSTEM) if time_sources is None else (None, time_sources)
    given = Settings(data=folder, **settings)
    with (
        claim_folder(folder) as lock,
        open_runtime(given, MASTER_KEY, lock, clock_ms, time_sources=sources) as runtime,
        asyncio.Runner(loop_factory=loop) as runner,
    ):
        runner.run(runtime.start())
        api = Api(runtime, runner, clock)
        try:
            yield api
        finally:
            runner.run(api.http.aclose())
            runner.run(runtime.stop())
