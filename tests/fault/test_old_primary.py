"""An old primary that comes back takes connections and writes like any other, and no node works with it."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import httpx2
import psycopg
import pytest

import spotledger
import support_service
from fleet.pair import LEDGER, Pair
from servers.kept import until
from servers.postgres import Cluster
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Ledger
from support_core import seed, spot
from support_database_books import check_database
from support_postgres import end_sessions
from support_public import signed_query
from support_service import Service, Trader

SESSIONS = ("spotledger read", "spotledger write", "spotledger follow")
PORTS = {"listen": "127.0.0.1:0", "operator_listen": "127.0.0.1:0"}
UNLIMITED = {"asset_limit_per_second": 0, "address_limit_per_minute": 0}


def url_of(*clusters: Cluster) -> str:
    """Return the address of the ledger on these servers, in this order."""
    login = clusters[0].url().split("@", 1)[0]
    return f"{login}@{','.join(f'127.0.0.1:{cluster.port}' for cluster in clusters)}/{LEDGER}"


def fail_over(pair: Pair) -> None:
    """Kill the primary and promote the standby."""
    pair.kill_primary()
    pair.promote()


def bring_back(pair: Pair) -> Cluster:
    """Start the old primary again, which waits for no standby now; return it."""
    with suppress(ProcessLookupError):
        pair.standby.stop()  # it was killed; what is left of it here
    pair.standby.configure(synchronous_standby_names="")
    pair.standby.start()
    return pair.standby


def head_of(cluster: Cluster) -> int:
    """Return the last entry on the server; 0 while a standby that lags behind has no tables yet."""
    with suppress(psycopg.errors.UndefinedTable), psycopg.connect(cluster.url(LEDGER)) as connection:
        [(seq,)] = connection.execute("SELECT seq FROM journal_head").fetchall()
        return int(seq)
    return 0


def deposit(ledger: Ledger, key: str) -> int:
    """Deposit until it is acknowledged; return the entry."""
    entries: list[int] = []

    def is_done() -> bool:
        with suppress(StoreUnavailable):
            entries.append(ledger.deposit("ann", "btc", "1", key=key).seq)
        return bool(entries)

    until(is_done, 20, "no deposit is acknowledged")
    return entries[0]


@pytest.mark.parametrize("writes", [True, False], ids=["after a write", "before any write"])
def test_old_primary_that_stands_first_in_the_address_is_passed_over(pair: Pair, writes: bool) -> None:
    """Every write is on the new one, though the driver would take the old one; by its timeline, if by nothing else."""
    with spotledger.open(url_of(pair.primary, pair.standby)) as ledger:
        seed(ledger)
        fail_over(pair)
        if writes:
            deposit(ledger, "after-the-promotion")
        else:
            until(lambda: follows(ledger), 20, "the node does not follow the new primary")
        old = bring_back(pair)
        before = head_of(old)
        for number in range(5):
            for application in SESSIONS:
                end_sessions(pair.primary.url(LEDGER), application)
            deposit(ledger, f"d{number}")
        assert ledger.corrupt is None
        assert head_of(old) == before
        assert head_of(pair.primary) == ledger.head.seq == before + 5 + writes
    check_database(pair.primary.url(LEDGER))


def follows(ledger: Ledger) -> bool:
    """Return whether the server was asked just now, and answered."""
    try:
        return bool(ledger.entries(0, 1))
    except StoreUnavailable:
        return False


def test_connections_to_the_old_primary_end_when_the_new_one_is_found(pair: Pair) -> None:
    """Both take writes, and the node's sessions with the old one are whole: one new connection is enough."""
    pair.primary.reload(synchronous_standby_names="")
    old, new = pair.primary, pair.standby
    with spotledger.open(url_of(new, old)) as ledger:
        seed(ledger)
        until(lambda: head_of(new) == ledger.head.seq, 10, "the standby does not catch up")
        pair.promote()
        assert end_sessions(old.url(LEDGER), "spotledger read") == 1
        until(lambda: follows(ledger), 10, "the node does not find the new primary")
        assert deposit(ledger, "to-the-new-one") == 6
        assert (head_of(new), head_of(old)) == (6, 5)
        assert end_sessions(old.url(LEDGER), "spotledger follow") == 0
    check_database(new.url(LEDGER))


def balance(node: Service, trader: Trader) -> bytes:
    """Return the answer to a signed getBalance of *trader*."""
    nonce = time.time_ns() // 1_000_000
    query = signed_query({"accesskey": trader.accesskey, "account": "2"}, secret=trader.secretkey, nonce=nonce)
    return httpx2.get(f"{node.public_url}/trade/api/v1/getBalance?{query}", timeout=10).content


def status(node: Service, path: str) -> int:
    """Return the status of a path of the public listener."""
    return httpx2.get(f"{node.public_url}{path}", timeout=10).status_code


def test_node_that_finds_only_the_old_primary_waits_for_the_right_server(pair: Pair, tmp_path: Path) -> None:
    """It is not ready, answers nothing old and lets no revoked key in, also after a restart; then it goes on."""
    address, folder = url_of(pair.primary, pair.standby), tmp_path / "node"
    settings = {"database": address, "read_age_limit_ms": 1100, "keys_trust_seconds": 1, **UNLIMITED}
    node = support_service.start(folder, **settings)
    try:
        node.list_coins(usdt=8)
        trader, revoked = node.trader("alice", {"usdt": ("100", "0")}), node.trader("bob", {"usdt": ("7", "0")})
        fail_over(pair)
        until(lambda: status(node, "/readyz") == 200, 20)
        node.write("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "11"})
        node.client().delete(f"/v1/keys/{revoked.accesskey}").raise_for_status()
        assert b"111.0" in balance(node, trader)
        seen = head_of(pair.primary)

        pair.primary.stop()
        old = bring_back(pair)
        found = head_of(old)
        assert found < seen
        until(lambda: status(node, "/readyz") == 503, 10)
        until(lambda: status(node, "/readyz/reads") == 503, 10)
        refused = node.client().post(
            "/v1/deposits",
            json={"customer": "alice", "coin": "usdt", "amount": "1"},
            headers={"Idempotency-Key": "on-the-old-one"},
        )
        assert refused.status_code == 503
        assert b'"code":200' not in balance(node, trader)
        assert b'"code":200' not in balance(node, revoked)
        until(
            lambda: f"ends at entry {found} of epoch 1, and this node has seen entry {seen}" in node.stderr.read_text(),
            10,
        )

        node.stop()
        again = support_service.run("serve", "--data", folder, *flags({**settings, **PORTS}))
        assert again.returncode == 3
        assert f"ends at entry {found}" in again.stderr
        assert f"seen entry {seen}" in again.stderr
        for command in (("audit",), ("export", "journal", tmp_path / "out"), ("migrate",), ("customer", "list")):
            again = support_service.run(*command, "--data", folder, "--database", address)
            assert again.returncode == 3
            assert f"ends at entry {found}" in again.stderr + again.stdout
        assert head_of(old) == found

        pair.primary.start()
        node = support_service.start(folder, **settings)
        until(lambda: status(node, "/readyz") == 200, 20)
        assert b"111.0" in balance(node, trader)
        assert b'"code":200' not in balance(node, revoked)
        old.stop()
    finally:
        node.stop()
    check_database(pair.primary.url(LEDGER))


def test_running_node_goes_on_when_the_right_server_is_back(pair: Pair) -> None:
    """Nobody restarts it, and what it refused is done once under the same key."""
    with spotledger.open(url_of(pair.primary, pair.standby)) as ledger:
        seed(ledger)
        fail_over(pair)
        deposit(ledger, "new")
        pair.primary.stop()
        old = bring_back(pair)
        before = head_of(old)
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            with pytest.raises(StoreUnavailable):
                ledger.deposit("ann", "btc", "1", key="refused")
            time.sleep(0.2)
        assert ledger.corrupt is None
        assert head_of(old) == before
        pair.primary.start()
        assert deposit(ledger, "refused") == before + 2
        assert ledger.balances(spot("ann"))["btc"].available == 100_200_000_000
    check_database(pair.primary.url(LEDGER))


def flags(settings: dict[str, object]) -> list[str]:
    """Return *settings* as flags of the command line."""
    return [text for name, value in settings.items() for text in (f"--{name.replace('_', '-')}", str(value))]
