"""What the contract tests share: for each store a place to keep a ledger in, and a seeded ledger; a public listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

import spotledger
from spotledger.ledger.ledger import Ledger
from support_books import check_books
from support_core import Clock, seed
from support_database_books import check_database
from support_public import Service, service

#: A role that may do what a ledger needs, and its password.
UNHINTED = "unhinted"


class Place(Protocol):
    """Where one store keeps one ledger; it can be opened again after it was closed."""

    clock: Clock

    def open(self) -> Ledger:
        """Open the ledger that is here, with tiny segments and hardly any cache."""

    def check(self) -> None:
        """Let an independent reader check what is kept here."""


class EmbeddedPlace:
    """A data folder with a ledger file."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self._folder = folder

    def open(self) -> Ledger:
        """Open the ledger that is here, with tiny segments and hardly any cache."""
        return spotledger.open(self._folder, segment_entries=8, cache_accounts=2, clock_ms=self.clock)

    def check(self) -> None:
        """Let an independent reader check what is kept here."""
        check_books(self._folder)


class PostgresPlace:
    """A database of a PostgreSQL server."""

    def __init__(self, url: str) -> None:
        self.clock = Clock()
        self._url = url

    def open(self) -> Ledger:
        """Open the ledger that is here, with tiny segments and hardly any cache."""
        return spotledger.open(self._url, segment_entries=8, cache_accounts=6, clock_ms=self.clock)

    def check(self) -> None:
        """Let an independent reader check what is kept here."""
        check_database(self._url)


class UnhintedPlace(PostgresPlace):
    """A database in which the role may neither notify nor take advisory locks: both only make things quicker."""

    def __init__(self, url: str) -> None:
        parts, name = urlsplit(url), urlsplit(url).path.lstrip("/")
        with psycopg.connect(url, autocommit=True) as connection:
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(f"CREATE ROLE {UNHINTED} LOGIN PASSWORD '{UNHINTED}'".encode())
            connection.execute(f"ALTER DATABASE {name} OWNER TO {UNHINTED}".encode())
            for function in ("pg_notify(text, text)", *_advisory_locks(connection)):
                connection.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC".encode())
        super().__init__(urlunsplit(parts._replace(netloc=f"{UNHINTED}:{UNHINTED}@{parts.hostname}:{parts.port}")))


def _advisory_locks(connection: psycopg.Connection[Any]) -> list[str]:
    found = connection.execute("SELECT oid::regprocedure::text FROM pg_proc WHERE proname ~ 'advisory_(xact_)?lock'")
    return [name for (name,) in found]


def _embedded(request: pytest.FixtureRequest) -> Place:
    return EmbeddedPlace(request.getfixturevalue("tmp_path"))


def _postgres(request: pytest.FixtureRequest) -> Place:
    return PostgresPlace(request.getfixturevalue("postgres_url"))


def _unhinted(request: pytest.FixtureRequest) -> Place:
    return UnhintedPlace(request.getfixturevalue("postgres_url"))


PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {
    "embedded": _embedded,
    "postgres": _postgres,
    "postgres_without_hints": _unhinted,
}


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    """Give an empty place of each store in turn."""
    return PLACES[request.param](request)


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    """Give a seeded ledger of each store; its books are checked at the end."""
    with place.open() as opened:
        seed(opened)
        yield opened
    place.check()


@pytest.fixture
def public(tmp_path: Path) -> Iterator[Service]:
    """Run a listener without limits, so that a test can ask as often as it likes."""
    with service(tmp_path, asset_limit_per_second=0, account_limit_per_second=0, address_limit_per_minute=0) as made:
        yield made
