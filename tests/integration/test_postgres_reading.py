"""Reads of a node whose server is there, gone, or silent: none of them waits for a connection to come about."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

import spotledger
from servers.kept import until
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Ledger
from support_core import seed, spot
from support_postgres import Proxy, proxy_to


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """Run a proxy to an empty database."""
    with proxy_to(postgres_url) as made:
        yield made


@pytest.fixture
def ledger(proxy: Proxy) -> Iterator[Ledger]:
    """Open a ledger with two customers through the proxy; what it remembers of accounts is dropped."""
    with spotledger.open(proxy.url) as first:
        seed(first)
    with spotledger.open(proxy.url) as opened:
        opened.account(spot("ann"))
        yield opened


def can_read(ledger: Ledger, customer: str) -> bool:
    """Say whether the balances of *customer* can be read."""
    try:
        ledger.account(spot(customer))
    except StoreUnavailable:
        return False
    return True


def test_reads_do_not_wait_for_a_server_that_swallows_what_it_is_sent(ledger: Ledger, proxy: Proxy) -> None:
    """While one attempt to connect hangs, any number of reads are answered: from memory, or as unavailable."""
    proxy.swallows = True
    proxy.cut_all()
    assert not can_read(ledger, "bob")
    reader: Any = ledger._store._reader  # type: ignore[attr-defined]
    until(lambda: not can_read(ledger, "bob") and reader._connecting is not None)
    attempt = reader._connecting
    for _ in range(1_000):
        assert not can_read(ledger, "bob")
        assert can_read(ledger, "ann")
    assert reader._connecting is attempt
    proxy.swallows = False
    until(lambda: can_read(ledger, "bob"))
    assert ledger.account(spot("bob")).balance("btc").available == 1000 * 10**8


def test_server_that_froze_holds_up_one_read_only(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The read that finds the server frozen waits for its answer, and is not repeated; those after it do not wait."""
    monkeypatch.setattr("spotledger.storage.postgres.reads.READ_PATIENCE_SECONDS", 0.5)
    with spotledger.open(proxy.url, follow_seconds=None) as ledger:
        seed(ledger)
        reader: Any = ledger._store._reader  # type: ignore[attr-defined]
        backend = reader.ask(lambda session: session.connection.info.backend_pid)
        os.kill(backend, signal.SIGSTOP)
        try:
            proxy.swallows = True
            with pytest.raises(StoreUnavailable, match="in time"):
                ledger.holds("ann")
            with pytest.raises(StoreUnavailable, match="is away"):
                ledger.holds("ann")
            proxy.swallows = False
            until(lambda: can_read(ledger, "bob"))
        finally:
            os.kill(backend, signal.SIGCONT)


def test_connection_that_was_lost_while_idle_costs_no_read(ledger: Ledger, proxy: Proxy) -> None:
    """A read that finds its connection cut is made again on a new one, and answered."""
    proxy.cut_all()
    assert can_read(ledger, "bob")


def test_reads_after_closing_say_that_the_ledger_is_closed(proxy: Proxy) -> None:
    """A ledger that is closed makes no new connection."""
    ledger = spotledger.open(proxy.url)
    ledger.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        ledger.account(spot("ann"))
