"""Servers that any test may ask for; each is started when the first test of the run wants it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.pair import Pair
from servers import postgres, redis
from servers.missing import ServerMissing, skip_or_fail


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Name a folder that all processes of this test run know."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session")
def postgres_server(run_folder: Path) -> Iterator[postgres.PostgresServer]:
    """Give the PostgreSQL server of this test run."""
    try:
        with postgres.shared_server(run_folder) as server:
            yield server
    except ServerMissing as problem:
        skip_or_fail(problem)


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer) -> Iterator[str]:
    """Give the URL of a fresh, empty database."""
    with postgres_server.database() as url:
        yield url


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Give a primary and its standby."""
    try:
        made = Pair()
    except ServerMissing as problem:
        skip_or_fail(problem)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[redis.RedisServer]:
    """Give the Redis server of this process of the test run."""
    server = redis.RedisServer()
    try:
        server.start()
    except ServerMissing as problem:
        skip_or_fail(problem)
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: redis.RedisServer) -> str:
    """Give the URL of a Redis with nothing in it."""
    redis_server.empty()
    return redis_server.url
