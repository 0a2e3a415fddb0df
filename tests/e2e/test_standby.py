"""A node that reads from a standby: what it answers, how old that may be, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psycopg
import pytest

import support_service
from fleet.pair import Pair
from servers.kept import until
from servers.missing import ServerMissing, skip_or_fail
from spotledger.client import SpotClient
from spotledger.errors import AccessKeyRefused
from support_service import Service, Trader

AGE = "x-ledger-age-ms"


@dataclass
class Site:
    """A primary with a node that writes, and its standby with a node that reads."""

    pair: Pair
    writer: Service
    reader: Service
    alice: Trader

    def on_standby(self, statement: str) -> None:
        """Run a statement on the standby."""
        with psycopg.connect(self.pair.standby.url(), autocommit=True) as connection:
            connection.execute(statement)

    def deposit(self, amount: str) -> int:
        """Book a deposit for alice on the node that writes; return its seq."""
        body = {"customer": "alice", "coin": "usdt", "amount": amount}
        return int(self.writer.write("/v1/deposits", body)["seq"])

    def balances(self, **params: object) -> httpx2.Response:
        """Ask the node that reads for alice's balances."""
        return self.reader.client().get("/v1/customers/alice/balances", params=params)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give a site with one customer who has 100 usdt."""
    try:
        pair = Pair(fsync="off")
    except ServerMissing as problem:
        skip_or_fail(problem)
    services: list[Service] = []
    try:
        services.append(support_service.start(tmp_path / "writer", database=pair.url()))
        writer = services[0]
        writer.list_coins(usdt=8)
        alice = writer.trader("alice", {"usdt": ("100", "0")})
        (tmp_path / "reader").mkdir()
        for name in ("master.key", "operator.token"):
            shutil.copy(writer.folder / name, tmp_path / "reader" / name)
        standby = pair.standby.url("ledger")
        services.append(
            support_service.start(
                tmp_path / "reader", database=pair.url(), read_database=standby, read_age_limit_ms=3000
            )
        )
        until(lambda: httpx2.get(f"{services[1].public_url}/readyz/reads").status_code == 200)
        yield Site(pair, writer, services[1], alice)
    finally:
        for service in services:
            service.stop()
        pair.stop()


def test_standby_node_answers_reads_and_says_how_old_they_may_be(site: Site) -> None:
    """Signed reads and the operator's come from the standby, each with its seq and its age."""
    seq = site.deposit("7")
    answer = site.balances(min_seq=seq)
    assert answer.status_code == 200
    assert answer.json()["balances"]["usdt"]["available"] == "107.00"
    assert answer.json()["seq"] >= seq
    assert int(answer.headers[AGE]) < 3000
    with SpotClient(site.alice.accesskey, site.alice.secretkey, site.reader.public_url) as client:
        assert str(client.balances()["usdt"].available) == "107.00"
    told = httpx2.get(f"{site.reader.public_url}/trade/api/v1/getServerTime")
    assert int(told.headers["x-ledger-seq"]) >= seq
    assert 0 <= int(told.headers[AGE]) < 3000
    assert 0 <= int(httpx2.get(f"{site.writer.public_url}/trade/api/v1/getServerTime").headers[AGE]) < 3000


def test_standby_node_takes_no_writes_and_says_so(site: Site) -> None:
    """A write is refused as unavailable here, and the node is not ready for writes but for reads."""
    body = {"customer": "alice", "coin": "usdt", "amount": "1"}
    refused = site.reader.client().post("/v1/deposits", json=body, headers={"Idempotency-Key": "d"})
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert "takes no writes" in refused.json()["detail"]
    for url in (site.reader.public_url, site.reader.operator_url):
        assert httpx2.get(f"{url}/readyz").status_code == 503
        assert httpx2.get(f"{url}/healthz").status_code == 200
    assert httpx2.get(f"{site.writer.public_url}/readyz/reads").status_code == 200
    assert site.reader.client().get("/metrics").status_code == 200


def test_standby_that_lags_is_answered_from_within_the_bound_and_refused_beyond(site: Site) -> None:
    """While it lags, what it has is said with its age; beyond the bound nothing is, until it has caught up."""
    site.on_standby("SELECT pg_wal_replay_pause()")
    seq = site.deposit("7")
    old = site.balances(at_seq=seq - 1)
    assert old.json()["balances"]["usdt"]["available"] == "100.00"
    until(lambda: site.balances().status_code == 503)
    assert "more than 3000 ms behind" in site.balances().json()["detail"]
    refused = httpx2.get(f"{site.reader.public_url}/readyz/reads")
    assert (refused.status_code, refused.json()) == (503, {"status": "cannot read"})
    assert httpx2.get(f"{site.reader.public_url}/healthz").status_code == 200
    assert site.reader.client().get("/metrics").status_code == 200
    site.on_standby("SELECT pg_wal_replay_resume()")
    until(lambda: site.balances().status_code == 200)
    assert site.balances().json()["balances"]["usdt"]["available"] == "107.00"


def test_standby_waits_for_min_seq_for_a_bounded_time(site: Site) -> None:
    """A reader who names an entry gets it when it has come, and is told to try again where it does not come."""
    site.on_standby("SELECT pg_wal_replay_pause()")
    seq = site.deposit("7")
    assert site.balances(min_seq=seq).status_code == 503
    site.on_standby("SELECT pg_wal_replay_resume()")
    until(lambda: site.balances().status_code == 200)
    assert site.balances(min_seq=seq).json()["balances"]["usdt"]["available"] == "107.00"


def test_revocation_reaches_a_standby_node_whose_standby_lags(site: Site) -> None:
    """Who may ask is known from the server that takes writes, however far the standby is behind."""
    with SpotClient(site.alice.accesskey, site.alice.secretkey, site.reader.public_url) as client:
        client.balances()
        site.on_standby("SELECT pg_wal_replay_pause()")
        site.writer.client().delete(f"/v1/keys/{site.alice.accesskey}")

        def is_refused() -> bool:
            try:
                client.balances()
            except AccessKeyRefused:
                return True
            return False

        until(is_refused)
    site.on_standby("SELECT pg_wal_replay_resume()")


def test_standby_of_another_ledger_is_refused(site: Site, postgres_url: str, tmp_path: Path) -> None:
    """A node does not mix the access keys of one ledger with the balances of another."""
    other = support_service.start(tmp_path / "other", database=postgres_url)
    other.stop()
    refused = support_service.run(
        "serve", "--data", site.reader.folder.with_name("third"), "--database", site.pair.url(), "--read-database",
        postgres_url, "--master-key-file", site.writer.folder / "master.key",
    )  # fmt: skip
    assert refused.returncode == 1
    assert "a standby of this database would pass" in refused.stderr
