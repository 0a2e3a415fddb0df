"""A PostgreSQL for a bench, alone or with a synchronous standby: durable, on the second core, gone after the run."""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from bench.harness import ROOT, Cores, children

#: What differs from what PostgreSQL comes with; each is in the report. Nothing here makes a commit less durable.
SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
}
SHOWN: Final = (*SETTINGS, "server_version", "wal_level", "wal_sync_method", "synchronous_standby_names", "jit")


@dataclass(frozen=True)
class Server:
    """A running server: its process, and how its databases are reached."""

    pid: int
    cluster: Any

    def database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"bench_{secrets.token_hex(4)}"
        with psycopg.connect(self.cluster.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return str(self.cluster.url(name))

    def settings(self) -> dict[str, str]:
        """Return the settings that matter, as the server itself says them."""
        with psycopg.connect(self.cluster.url(), autocommit=True) as connection:
            return {name: ask(connection, f"SHOW {name}") or "(none)" for name in SHOWN}

    def checkpoint(self) -> None:
        """Write out what is dirty, so that no round pays for what came before it."""
        with psycopg.connect(self.cluster.url(), autocommit=True) as connection:
            connection.execute("CHECKPOINT")


def ask(connection: psycopg.Connection[Any], question: str) -> Any:
    """Return the one value that *question* has for an answer."""
    row = connection.execute(question.encode()).fetchone()
    if row is None:
        raise RuntimeError(f"no answer to {question}")
    return row[0]


def of_the_tests(name: str) -> Any:
    """Import a module of the tests, which know how to find, start and end servers."""
    folder = str(ROOT / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def bind(pid: int, core: int | None) -> None:
    """Bind a server and all that it starts to *core*."""
    if core is not None:
        for each in (pid, *children(pid)):
            os.sched_setaffinity(each, {core})


@contextmanager
def alone(cores: Cores) -> Iterator[Server]:
    """Run one server for the length of a ``with`` block."""
    cluster = of_the_tests("servers.postgres").start_cluster(SETTINGS)
    try:
        bind(cluster.kept.pid, cores.load)
        yield Server(cluster.kept.pid, cluster)
    finally:
        cluster.stop()


@contextmanager
def with_standby(cores: Cores) -> Iterator[tuple[Server, int]]:
    """Run a server with a synchronous standby; give the server, and the standby's process."""
    pair = of_the_tests("fleet.pair").Pair(**SETTINGS)
    try:
        for cluster in (pair.primary, pair.standby):
            bind(cluster.kept.pid, cores.load)
        yield Server(pair.primary.kept.pid, pair.primary), pair.standby.kept.pid
    finally:
        pair.stop()
