"""What the contract tests share: for each store a place to keep a ledger in, and a seeded ledger; a public listener."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

import spotledger
from spotledger.ledger.ledger import Ledger
from support_books import check_books
from support_core import Clock, seed
from support_database_books import check_database
from support_public import Service, service


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
        """Open the ledger that is here, with hardly any cache."""
        return spotledger.open(self._url, cache_accounts=6, clock_ms=self.clock)

    def check(self) -> None:
        """Let an independent reader check what is kept here."""
        check_database(self._url)


def _embedded(request: pytest.FixtureRequest) -> Place:
    return EmbeddedPlace(request.getfixturevalue("tmp_path"))


def _postgres(request: pytest.FixtureRequest) -> Place:
    return PostgresPlace(request.getfixturevalue("postgres_url"))


PLACES: dict[str, Callable[[pytest.FixtureRequest], Place]] = {"embedded": _embedded, "postgres": _postgres}


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
