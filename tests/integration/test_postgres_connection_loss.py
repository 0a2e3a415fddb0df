"""A connection that is lost at any step of a write: nothing is guessed, lost or doubled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import spotledger
from spotledger.domain.accounts import Balance
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation, Unfreeze, Withdraw
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.steps import drive
from support_core import booked_up_to_commit, seed, spot
from support_database_books import check_database
from support_postgres import COMMIT_ASKED, COMMITTED, Proxy, end_sessions, proxy_to


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    """Give a proxy to a fresh database."""
    with proxy_to(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def ledger(proxy: Proxy, postgres_url: str) -> Iterator[Ledger]:
    """Give a seeded ledger behind the proxy; its books are checked at the end."""
    with spotledger.open(proxy.url) as opened:
        seed(opened)
        yield opened
    check_database(postgres_url)


def group(number: int) -> list[Operation]:
    """Return a group that opens, uses and closes holds."""
    return [
        Deposit(f"d{number}", "ann", "btc", "2"),
        Freeze(f"f{number}", "ann", "btc", "2"),
        Unfreeze(f"u{number}", HoldKey(f"f{number}"), "0.5"),
        Withdraw(f"w{number}", "1.5", hold=HoldKey(f"f{number}")),
    ]


def assert_all_new(outcomes: list[object], replayed: bool = False) -> None:
    assert all(isinstance(outcome, Receipt) and outcome.replayed is replayed for outcome in outcomes)


def test_answer_of_commit_lost_is_looked_up_and_found(ledger: Ledger, proxy: Proxy) -> None:
    """The server committed and its answer never came: the group is found in the journal, and answered as booked."""
    proxy.cut_server_at = COMMITTED
    before = ledger.head.seq
    assert_all_new(ledger.execute(group(1)))
    assert proxy.cuts == 1
    assert ledger.head.seq == before + 4
    assert ledger.balances(spot("ann"))["btc"] == Balance(100_050_000_000, 0)
    assert_all_new(ledger.execute(group(1)), replayed=True)
    assert ledger.head.seq == before + 4


def test_connection_lost_before_commit_reached_the_server_is_looked_up_and_not_there(
    ledger: Ledger, proxy: Proxy
) -> None:
    """All of a group but its commit reached the server: it is looked up, nothing is there, and nothing is guessed."""
    proxy.cut_client_at = COMMIT_ASKED
    before = ledger.head
    with pytest.raises(StoreUnavailable, match="same idempotency key"):
        ledger.execute(group(1))
    assert proxy.cuts == 1
    assert ledger.head == before
    assert_all_new(ledger.execute(group(1)))


def test_outcome_that_cannot_be_looked_up_is_unknown_until_the_server_is_back(
    ledger: Ledger, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is away nobody says yes or no; reads go on; the same keys later give what was booked."""
    monkeypatch.setattr("spotledger.storage.postgres.store.LOOK_UP_SECONDS", 0.5)
    proxy.cut_server_at, proxy.refuses = COMMITTED, True
    before = ledger.head
    with pytest.raises(StoreUnavailable, match="could not be asked"):
        ledger.execute(group(1))
    assert ledger.head == before
    assert ledger.balances(spot("ann"))["btc"] == Balance(100_000_000_000, 0)
    with pytest.raises(StoreUnavailable):
        ledger.execute(group(2))
    proxy.refuses = False
    outcomes = ledger.execute([*group(1), *group(2)])
    assert_all_new(outcomes[:4], replayed=True)
    assert_all_new(outcomes[4:])


def test_connection_lost_while_idle_is_made_anew_unseen(ledger: Ledger, proxy: Proxy) -> None:
    """Connections that were lost between two writes cost nobody an error, neither a writer nor a reader."""
    for number in range(3):
        proxy.cut_all()
        assert ledger.holds("ann") == ledger.holds("ann")
        proxy.cut_all()
        assert_all_new(ledger.execute(group(number)))


def test_session_ended_by_the_server_at_each_step_leaves_all_or_nothing(ledger: Ledger, postgres_url: str) -> None:
    """pg_terminate_backend after the turn was taken, after the entries were sent, and between two writes."""
    store = ledger._store
    before = ledger.head
    before_commit = booked_up_to_commit(ledger, group(1))
    assert end_sessions(postgres_url) == 1
    with pytest.raises(StoreUnavailable):
        drive(before_commit)
    assert ledger.head == before
    drive(store.begin(_nothing()))
    assert end_sessions(postgres_url) == 1
    with pytest.raises(StoreUnavailable):
        drive(store.leave(repeated=True))
    assert_all_new(ledger.execute(group(1)))
    end_sessions(postgres_url)
    assert_all_new(ledger.execute(group(2)))


def _nothing():  # type: ignore[no-untyped-def]
    from spotledger.ledger.group import wanted_of

    return wanted_of([])


def test_reads_go_on_from_memory_while_the_server_is_away(ledger: Ledger, proxy: Proxy) -> None:
    """What memory has is answered without the server; what it has not is said to be unavailable, not to be nothing."""
    ledger.account(spot("ann"))
    proxy.refuses = True
    proxy.cut_all()
    assert ledger.balances(spot("ann"))["btc"] == Balance(100_000_000_000, 0)
    assert list(ledger.coins) == ["btc"]
    with pytest.raises(StoreUnavailable):
        ledger.holds("ann")
    with pytest.raises(StoreUnavailable):
        ledger.balances(spot("nobody"))
    proxy.refuses = False


def test_server_that_lacks_what_was_acknowledged_is_not_served(proxy: Proxy, postgres_url: str) -> None:
    """A standby that was promoted without acknowledged entries gets no write, and is the wrong server, not damage."""
    import psycopg

    with spotledger.open(proxy.url, follow_seconds=None) as ledger:
        seed(ledger)
        head = ledger.head
        with psycopg.connect(postgres_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("DELETE FROM entry WHERE seq = %s", (head.seq,))
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=r"ends at entry 4.* seen entry 5"):
                ledger.execute(group(1))
        with pytest.raises(StoreUnavailable, match=r"ends at entry 4.* seen entry 5"):
            ledger.holds("ann")
        assert ledger.corrupt is None
        with psycopg.connect(postgres_url) as connection:
            assert connection.execute("SELECT max(seq) FROM entry").fetchall() == [(head.seq - 1,)]
