"""Nodes of a fleet, each ``spotledger serve`` in a process of its own, and the proxy in front of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from servers import kept
from servers.programs import find_program
from support_service import PROGRAM, environment, run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "fleet"
READY_SECONDS = 30
#: How long a caller may wait for an answer, and what a busy machine adds to that.
ANSWER_SECONDS = 10.0
SLACK_SECONDS = 2.0


@dataclass
class Node:
    """One node: where it answers, and its process while it runs."""

    name: str
    settings: Mapping[str, str]
    host: str = "127.0.0.1"
    #: What its command begins with, such as ``ip netns exec NAME``.
    prefix: Sequence[str | Path] = ()
    public_port: int = field(default_factory=kept.free_port)
    operator_port: int = field(default_factory=kept.free_port)
    folder: Path = field(default_factory=lambda: kept.make_folder({}))
    process: kept.Kept | None = None

    @property
    def public(self) -> str:
        """Where traders are answered, as HOST:PORT."""
        return f"{self.host}:{self.public_port}"

    @property
    def operator(self) -> str:
        """Where the exchange's own systems are answered, as HOST:PORT."""
        return f"{self.host}:{self.operator_port}"

    @property
    def token_file(self) -> Path:
        """The first operator token, on the node that made the ledger."""
        return self.folder / "data" / "operator.token"

    def start(self, *, wait: bool = True) -> None:
        """Start the node, and wait until it can write."""
        self.process = kept.start(
            [*self.prefix, *PROGRAM, "serve", "--json", "--data", self.folder / "data"],
            folder=self.folder, environment=self._environment(), name=self.name, remove=False,
        )  # fmt: skip
        if wait:
            kept.until_ready(self.process, self.is_ready, READY_SECONDS)

    def start_and_end(self) -> subprocess.CompletedProcess[str]:
        """Start the node, which must refuse, and wait for its end."""
        return run("serve", "--json", "--data", self.folder / "data", env=self._environment(), timeout=READY_SECONDS)

    def _environment(self) -> dict[str, str]:
        told = {"listen": self.public, "operator_listen": self.operator, **self.settings}
        return environment(**{f"SPOTLEDGER_{name.upper()}": value for name, value in told.items()})

    def is_ready(self) -> bool:
        """Whether it says that it can write."""
        try:
            return httpx2.get(f"http://{self.operator}/readyz", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def is_alive(self) -> bool:
        """Whether it answers, if only that it cannot write."""
        try:
            return httpx2.get(f"http://{self.operator}/healthz", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def wait_until_alive(self, seconds: float) -> None:
        """Wait until it answers; raise `kept.ServerDidNotStart` with what it wrote if it ends, or does not in time."""
        assert self.process is not None
        kept.until_ready(self.process, self.is_alive, seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process is not None
        self.process.signal(number)

    def stop(self) -> None:
        """Stop the node as an operator does, and wait for its end."""
        if self.process is not None:
            self.process.let_go()
            self.process = None

    def metric(self, name: str, token: str) -> float:
        """Return a number of its ``/metrics``."""
        answer = httpx2.get(f"http://{self.operator}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=5)
        return next(float(line.split()[1]) for line in answer.text.splitlines() if line.startswith(f"{name} "))

    def written(self) -> str:
        """Return what it wrote."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace")


@dataclass
class Proxy:
    """HAProxy with the configuration of ``examples/fleet``, which is thereby tried."""

    nodes: Sequence[Node]
    public_port: int = field(default_factory=kept.free_port)
    operator_port: int = field(default_factory=kept.free_port)
    process: kept.Kept | None = None

    @property
    def public_url(self) -> str:
        """Where traders are answered."""
        return f"http://127.0.0.1:{self.public_port}"

    @property
    def operator_url(self) -> str:
        """Where the exchange's own systems are answered."""
        return f"http://127.0.0.1:{self.operator_port}"

    def start(self) -> None:
        """Start the proxy, and wait until it has found a node for each port."""
        addresses = {"TRADERS": f"127.0.0.1:{self.public_port}", "OPERATORS": f"127.0.0.1:{self.operator_port}"}
        for number, node in enumerate(self.nodes, 1):
            addresses |= {f"NODE{number}_PUBLIC": node.public, f"NODE{number}_OPERATOR": node.operator}
        self.process = kept.start(
            [find_program("haproxy"), "-db", "-f", EXAMPLES / "haproxy.cfg"],
            folder=kept.make_folder({}), environment={**os.environ, **addresses}, name="haproxy",
        )  # fmt: skip
        kept.until_ready(self.process, self._answers)

    def _answers(self) -> bool:
        try:
            urls = (self.public_url, self.operator_url)
            return all(httpx2.get(f"{url}/readyz", timeout=2).status_code == 200 for url in urls)
        except httpx2.TransportError:
            return False

    def stop(self) -> None:
        """Stop the proxy."""
        if self.process is not None:
            self.process.let_go()
            self.process = None


def remove_folders(nodes: Sequence[Node]) -> None:
    """Remove what the nodes had on disk."""
    for node in nodes:
        shutil.rmtree(node.folder, ignore_errors=True)


def try_to_write(
    node: Node, token: str, path: str, body: Mapping[str, Any], key: str | None, timeout: float = 30
) -> httpx2.Response:
    """Send one write to *node*, whatever comes of it."""
    return _send(f"http://{node.operator}", token, path, body, key, timeout)


def balance(node: Node, token: str, customer: str, **parameters: Any) -> dict[str, Any]:
    """Return what *node* answers about the spot balances of *customer*."""
    url = f"http://{node.operator}/v1/customers/{customer}/balances"
    answer = httpx2.get(url, params=parameters, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    assert answer.status_code == httpx2.codes.OK, f"{node.name}: {answer.text}"
    return dict(answer.json())


def post(url: str, token: str, path: str, body: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Do one write that must succeed at once."""
    answer = _send(url, token, path, body, key, 30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _send(url: str, token: str, path: str, body: Mapping[str, Any], key: str | None, timeout: float) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {token}", **({"Idempotency-Key": key} if key else {})}
    return httpx2.post(f"{url}{path}", content=json.dumps(body), headers=headers, timeout=timeout)
