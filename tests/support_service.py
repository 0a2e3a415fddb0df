"""Starts the real service as a process of its own, on free ports, for tests that call it from outside."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

PROGRAM = (str(Path(sys.executable).with_name("spotledger")),)
START_SECONDS = 30
STOP_SECONDS = 20


class Trader(NamedTuple):
    """A customer with an access key."""

    customer: str
    accesskey: str
    secretkey: str


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a started program: ours without any setting of spotledger, and *more*."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPOTLEDGER_")}
    return {**kept, **more}


def run(*arguments: str | Path, env: Mapping[str, str] | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run ``spotledger`` with *arguments* to its end."""
    command = [*PROGRAM, *map(str, arguments)]
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False, **more}
    return subprocess.run(command, env=env or environment(), **options)


@dataclass
class Service:
    """A running ``spotledger serve``."""

    folder: Path
    process: subprocess.Popen[bytes]
    public_url: str
    operator_url: str
    stderr: Path
    _clients: list[httpx2.Client] = field(default_factory=list)

    @property
    def token(self) -> str:
        """The first operator token."""
        return (self.folder / "operator.token").read_text().strip()

    def client(self) -> httpx2.Client:
        """Return a client of the operator API that sends the token; ``stop`` closes it."""
        headers = {"Authorization": f"Bearer {self.token}"}
        self._clients.append(httpx2.Client(base_url=self.operator_url, headers=headers, timeout=30))
        return self._clients[-1]

    def write(self, path: str, body: Mapping[str, Any], key: str | None = None) -> dict[str, Any]:
        """Do one write that must succeed, and return its answer."""
        client = self._clients[0] if self._clients else self.client()
        answer = client.post(path, json=body, headers={"Idempotency-Key": key or str(uuid.uuid4())})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def list_coins(self, **scales: int) -> None:
        """List coins, by their scales; one that is listed already is left as it is."""
        for coin, scale in scales.items():
            self.write("/v1/coins", {"coin": coin, "scale": scale}, f"coin-add-{coin}")

    def trader(
        self,
        customer: str,
        balances: Mapping[str, tuple[str, str]] | None = None,
        permissions: Sequence[str] = ("read",),
        **key: Any,
    ) -> Trader:
        """
        Register *customer* with an access key.

        Args:
            customer: The customer.
            balances: By coin, what is available and what is frozen, as decimal text; the coins must be listed.
            permissions: Of the access key.
            **key: More of the access key: ``addresses``, ``expires_ms``, ``label``.
        """
        self.write("/v1/customers", {"customer": customer}, f"customer-add-{customer}")
        for coin, (available, freeze) in (balances or {}).items():
            for amount in (available, freeze):
                if amount.strip("0."):
                    self.write("/v1/deposits", {"customer": customer, "coin": coin, "amount": amount})
            if freeze.strip("0."):
                self.write("/v1/holds", {"customer": customer, "coin": coin, "amount": freeze})
        made = self.write("/v1/keys", {"customer": customer, "permissions": list(permissions), **key})
        return Trader(customer, made["accesskey"], made["secretkey"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the process with a signal and return its exit code."""
        for client in self._clients:
            client.close()
        self._clients.clear()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def start(folder: Path, env: Mapping[str, str] | None = None, **settings: object) -> Service:
    """
    Start ``spotledger serve`` on *folder* and free ports, and wait until it answers.

    Args:
        folder: The data folder.
        env: Added to the environment.
        **settings: By name.
    """
    values = {"listen": "127.0.0.1:0", "operator_listen": "127.0.0.1:0", **settings}
    flags = [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    handle, stderr = tempfile.mkstemp(prefix="serve-", suffix=".log", dir=folder.parent)
    with os.fdopen(handle, "wb") as log:
        process = subprocess.Popen(
            [*PROGRAM, "serve", "--json", "--data", str(folder), *flags],
            # so few connections that no limit of descriptors has to be raised, which would be logged
            env=environment(**{"SPOTLEDGER_CONNECTIONS": "500", **(env or {})}),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    with process.stdout as output:
        ready, _, _ = select.select([output], [], [], START_SECONDS)
        line = output.readline() if ready else b""
    if not line:
        process.kill()
        process.wait()
        raise RuntimeError(f"the service did not start: {Path(stderr).read_text()}")
    told = json.loads(line)
    return Service(folder, process, told["public_url"], told["operator_url"], Path(stderr))
