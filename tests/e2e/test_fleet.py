"""Nodes on one PostgreSQL database, as processes: how they start, what they share, and the commands beside them."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
import psycopg
import pytest

import support_service
from servers import kept, postgres
from servers.missing import ServerMissing, skip_or_fail
from spotledger.client import SpotClient
from spotledger.errors import AccessKeyRefused, Unavailable
from support_service import Service

StartNode = Callable[..., Service]
MASTER_KEY = "5a" * 32
#: Beyond this a wait has failed.
WAIT_SECONDS = 60
until = partial(kept.until, seconds=WAIT_SECONDS)


@pytest.fixture
def node(tmp_path: Path, postgres_url: str) -> Iterator[StartNode]:
    """Give what starts a node with a data folder of its own; all are stopped at the end."""
    started: list[Service] = []
    key_file = tmp_path / "master.key"
    key_file.write_text(MASTER_KEY + "\n")
    key_file.chmod(0o600)

    def start(name: str = "one", **settings: object) -> Service:
        values = {"database": postgres_url, "master_key_file": key_file, **settings}
        if values["master_key_file"] is None:
            del values["master_key_file"]
        started.append(support_service.start(tmp_path / name, **values))
        return started[-1]

    yield start
    for service in started:
        service.stop()


def share_token(first: Service, other: Service) -> Service:
    """Give *other* the operator token that *first* has, as an operator does who deploys a node."""
    shutil.copy(first.folder / "operator.token", other.folder / "operator.token")
    return other


def test_first_node_makes_schema_ledger_and_token_and_others_join(node: StartNode) -> None:
    """An empty database is enough; a second node makes nothing, and takes the token of the first."""
    first = node("one")
    for url in (first.public_url, first.operator_url):
        assert httpx2.get(f"{url}/readyz").json()["status"] == "ready"
    assert (first.folder / "operator.token").exists()
    other = node("two")
    assert not (other.folder / "operator.token").exists()
    assert not (other.folder / "journal.db").exists()
    share_token(first, other)
    first.list_coins(usdt=8)
    alice = first.trader("alice", {"usdt": ("100.50", "20")})
    other.write("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})
    answer = first.client().get("/v1/customers/alice/balances").json()
    assert answer["balances"]["usdt"] == {"available": "101.50", "freeze": "20.00"}
    with SpotClient(alice.accesskey, alice.secretkey, other.public_url) as client:
        assert str(client.balances()["usdt"].available) == "101.50"


def test_operator_read_on_another_node_stands_for_the_head_of_the_primary(node: StartNode) -> None:
    """What one node has acknowledged is in every later answer of the operator API of another, without min_seq."""
    first = node("one")
    other = share_token(first, node("two"))
    first.list_coins(usdt=8)
    first.trader("alice")
    reader = other.client()
    for number in range(1, 30):
        seq = first.write("/v1/deposits", {"customer": "alice", "coin": "usdt", "amount": "1"})["seq"]
        answer = reader.get("/v1/customers/alice/balances").json()
        assert answer["balances"]["usdt"]["available"] == f"{number}.00"
        assert answer["seq"] >= seq


def test_node_with_another_master_key_refuses_to_start_and_says_why(node: StartNode, tmp_path: Path) -> None:
    """The secrets were sealed with one master key, whose mark is in the database."""
    node("one")
    wrong = tmp_path / "wrong.key"
    wrong.write_text("ab" * 32)
    wrong.chmod(0o600)
    with pytest.raises(RuntimeError, match=r"has the fingerprint .* sealed with another one"):
        node("two", master_key_file=wrong)
    with pytest.raises(RuntimeError, match=r"master\.key is missing, .*all nodes of a fleet use the same key"):
        node("three", master_key_file=None)


def test_start_does_not_wait_for_a_write_of_access_keys_that_is_stuck(node: StartNode, postgres_url: str) -> None:
    """A write of keys that waits for a standby holds their lock; a node that starts meanwhile writes none."""
    first = node("one")
    with psycopg.connect(postgres_url) as stuck:
        stuck.execute("SELECT version FROM key_version WHERE id = 1 FOR UPDATE")
        begun = time.monotonic()
        share_token(first, node("two")).list_coins(usdt=8)
        assert time.monotonic() - begun < 4


def test_node_does_not_tell_the_password_of_its_database(node: StartNode, postgres_url: str) -> None:
    """Neither the settings nor what a node writes on standard error has the password in it."""
    password = postgres_url.split(":")[2].split("@")[0]
    first = node("one", log_level="debug")
    first.list_coins(usdt=8)
    assert first.stop() == 0
    assert password not in first.stderr.read_text()
    for form in ([], ["--json"]):
        told = support_service.run("settings", *form, env=support_service.environment(SPOTLEDGER_DATABASE=postgres_url))
        assert password not in told.stdout + told.stderr
        assert ":***@" in told.stdout


def test_migrate_twice_changes_nothing_the_second_time(postgres_url: str) -> None:
    """The command makes an empty database ready, and can be run again at any time."""
    environ = support_service.environment(SPOTLEDGER_DATABASE=postgres_url)
    first = support_service.run("migrate", "--json", env=environ)
    assert (first.returncode, first.stderr) == (0, "")
    assert json.loads(first.stdout)["applied"][:1] == ["0001_journal.before.sql"]
    for more in ([], ["--after"]):
        again = support_service.run("migrate", "--json", *more, env=environ)
        assert (again.returncode, json.loads(again.stdout)) == (0, {"applied": []})


def test_node_on_an_older_schema_asks_for_migrate(node: StartNode, postgres_url: str) -> None:
    """A database of an older version is not changed by a start; the command does it, and then the node starts."""
    node("one").stop()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DELETE FROM schema_version WHERE number = (SELECT max(number) FROM schema_version)")
    with pytest.raises(RuntimeError, match="spotledger migrate"):
        node("two")


def test_node_on_a_newer_schema_refuses_to_start(node: StartNode, postgres_url: str) -> None:
    """What a newer version has taken away cannot be done without."""
    node("one").stop()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO schema_version (number, phase, name) VALUES (99, 'after', 'x')")
    with pytest.raises(RuntimeError, match="has version 99 of the schema"):
        node("two")


def test_node_on_a_database_of_something_else_leaves_it_alone(node: StartNode, postgres_url: str) -> None:
    """Tables of another program are neither touched nor added to."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE shop (id integer)")
    with pytest.raises(RuntimeError, match="tables of something else"):
        node("one")
    refused = support_service.run("migrate", env=support_service.environment(SPOTLEDGER_DATABASE=postgres_url))
    assert refused.returncode == 1
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
                                  ).fetchall() == [(1,)]  # fmt: skip


def test_commands_call_the_node_that_runs_and_else_the_database(node: StartNode, postgres_url: str) -> None:
    """Money and keys: by --data of a running node, and by --database where none runs."""
    first = node("one")
    first.list_coins(usdt=8)

    def run(*arguments: str | Path, **more: str) -> dict[str, object]:
        done = support_service.run(*arguments, "--json", env=support_service.environment(**more))
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    run("customer", "add", "alice", "--data", first.folder)
    run("deposit", "alice", "usdt", "5", "--key", "d1", "--data", first.folder)
    beside = first.folder.with_name("beside")
    direct = ("--data", beside, "--database", postgres_url)
    key = {"SPOTLEDGER_MASTER_KEY": MASTER_KEY}
    run("deposit", "alice", "usdt", "7", "--key", "d2", *direct, **key)
    again = run("deposit", "alice", "usdt", "5", "--key", "d1", *direct, **key)
    assert again["replayed"] is True
    made = run("key", "create", "--customer", "alice", "--permission", "read", *direct, **key)
    with SpotClient(str(made["accesskey"]), str(made["secretkey"]), first.public_url) as client:
        assert str(client.balances()["usdt"].available) == "12.00"
    assert not (beside / "journal.db").exists()


def test_command_about_a_database_without_a_ledger_makes_none(postgres_url: str, tmp_path: Path) -> None:
    """A database that is named by mistake stays as it is."""
    environ = support_service.environment(SPOTLEDGER_DATABASE=postgres_url, SPOTLEDGER_DATA=str(tmp_path / "data"))
    refused = support_service.run("balances", "alice", env=environ)
    assert refused.returncode == 1
    assert "There is no ledger in the database" in refused.stderr
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('entry')").fetchall() == [(None,)]


def test_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    """A start without a database ends at once and says so in one line."""
    url = "postgresql://spot:hidden@127.0.0.1:1/none"
    refused = support_service.run("serve", "--data", tmp_path / "data", "--database", url)
    assert refused.returncode == 3
    assert "Traceback" not in refused.stderr
    assert "ledger could not be reached" in refused.stderr
    assert "hidden" not in refused.stderr


def test_revocation_over_http_reaches_another_node(node: StartNode) -> None:
    """A key that works on one node stops working there when another node is asked to revoke it."""
    first = node("one")
    other = share_token(first, node("two"))
    first.list_coins(usdt=8)
    alice = first.trader("alice")
    with SpotClient(alice.accesskey, alice.secretkey, other.public_url) as client:
        client.balances()
    revoked = first.client().delete(f"/v1/keys/{alice.accesskey}", headers={"Idempotency-Key": str(uuid.uuid4())})
    assert revoked.status_code == 200
    refused = None
    with SpotClient(alice.accesskey, alice.secretkey, other.public_url) as client:
        for _ in range(200):
            try:
                client.balances()
            except AccessKeyRefused as refusal:
                refused = refusal
                break
            time.sleep(0.05)
    assert refused is not None


def test_token_revoked_on_one_node_is_refused_by_another(node: StartNode, tmp_path: Path) -> None:
    """A leaked token that another node knows stops working there, and says so; a new one works everywhere at once."""
    first = node("one")
    leaked = tmp_path / "leaked"
    shutil.copy(first.folder / "operator.token", leaked)
    other = share_token(first, node("two"))
    old, new = f"Bearer {other.token}", tmp_path / "new"
    assert httpx2.get(f"{other.operator_url}/v1/tokens", headers={"Authorization": old}).status_code == 200
    made = support_service.run("token", "create", "--scope", "admin", "--data", first.folder, "--write", new)
    assert made.returncode == 0, made.stderr
    new.replace(first.folder / "operator.token")
    share_token(first, other)
    tokens = first.client().get("/v1/tokens").json()["tokens"]
    (token_id,) = (found["token_id"] for found in tokens if found["label"] == "operator.token")
    assert support_service.run("token", "revoke", token_id, "--data", first.folder).returncode == 0
    until_s = time.monotonic() + 10
    while httpx2.get(f"{other.operator_url}/v1/coins", headers={"Authorization": old}).status_code != 401:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert other.client().get("/v1/coins").status_code == 200
    refused = support_service.run("coin", "list", "--operator-url", other.operator_url, "--token-file", leaked)
    assert refused.returncode == 1
    assert "is revoked, has expired" in refused.stderr


def test_copy_command_moves_an_embedded_ledger_to_nodes(node: StartNode, postgres_url: str, tmp_path: Path) -> None:
    """What was served from a folder is served from the database: balances, access keys and the operator token."""
    key = {"master_key_file": tmp_path / "master.key"}
    embedded = support_service.start(tmp_path / "embedded", **key)
    embedded.list_coins(usdt=8)
    alice = embedded.trader("alice", {"usdt": ("100", "20")})
    where = ("--data", embedded.folder, "--database", postgres_url)
    in_use = support_service.run("copy", *where)
    assert (in_use.returncode, "data_folder_in_use" in in_use.stderr) == (1, True)
    embedded.stop()
    done = support_service.run("copy", *where, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["audit"], told["access_keys"], told["open_holds"]) == ("clean", 1, 1)
    first = node("one")
    (first.folder / "operator.token").write_text(embedded.token)
    assert first.client().get("/v1/entries", params={"limit": 1}).json()["seq"] == told["seq"]
    with SpotClient(alice.accesskey, alice.secretkey, first.public_url) as client:
        assert str(client.balances()["usdt"].freeze) == "20.00"


def test_backup_of_a_file_is_refused_with_a_reason(node: StartNode) -> None:
    """What is made of a ledger file cannot be made of a database, and the answer says what can."""
    backup = node("one").client().post("/v1/backups", json={})
    assert (backup.status_code, backup.json()["code"]) == (422, "invalid_request")
    assert "pg_basebackup" in backup.json()["detail"]


def test_audit_of_the_database_by_command_and_by_call(node: StartNode, postgres_url: str) -> None:
    """Both read the database beside the node, agree, and tell no password."""
    first = node("one")
    first.list_coins(usdt=8)
    first.trader("alice", {"usdt": ("100", "20")})
    password = postgres_url.split(":")[2].split("@")[0]
    done = support_service.run("audit", "--database", postgres_url, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["verdict"], told["open_holds"]) == (0, "clean", 1)
    client = first.client()
    begun = client.post("/v1/audits")
    assert begun.status_code == 202
    for _ in range(400):
        shown = client.get(f"/v1/audits/{begun.json()['audit']}")
        if shown.json()["state"] == "done":
            break
        time.sleep(0.05)
    report = shown.json()["report"]
    assert (report["verdict"], report["hash"]) == ("clean", told["hash"])
    assert password not in done.stdout + done.stderr + shown.text


def metrics(service: Service) -> dict[str, float]:
    """Return what a node says of its audit, by name and labels."""
    lines = service.client().get("/metrics").text.splitlines()
    pairs = (line.removeprefix("spotledger_audit_").rpartition(" ") for line in lines if "spotledger_audit_" in line)
    return {name: float(value) for name, _, value in pairs if not name.startswith("#")}


def test_one_node_audits_all_the_time_and_the_other_takes_over_and_tells_of_damage(
    node: StartNode, postgres_url: str
) -> None:
    """One of two nodes is at it; when that is killed, the other is, and it says what was done to the journal."""
    nodes = [node(name, audit_pause_seconds=1) for name in ("one", "two")]
    share_token(*nodes)
    nodes[0].list_coins(usdt=8)
    nodes[0].trader("alice", {"usdt": ("100", "20")})
    seq = nodes[0].client().get("/readyz").json()["seq"]

    def passes(verdict: str) -> float:
        """Return the most passes that a node has finished; never are two of them at it."""
        found = [metrics(each) for each in nodes]
        assert sum(numbers["here"] for numbers in found) <= 1
        return max(numbers[f'passes_total{{verdict="{verdict}"}}'] for numbers in found)

    # Meanwhile the other one asks more than once whether it may.
    until(lambda: passes("clean") >= 3 and max(metrics(each)["audited_to"] for each in nodes) == seq)
    (holder,) = (each for each in nodes if metrics(each)["here"])
    told = metrics(holder)
    assert told["seq"] == told["last_seq"] == told["audited_to"] == seq
    assert (told["findings"], told["ended_seconds"] > 0) == (0, True)
    nodes.remove(holder)
    (other,) = nodes
    idle = metrics(other)
    assert [idle[name] for name in ("here", "seq", "audited_to", "ended_seconds")] == [0, 0, 0, 0]
    holder.process.kill()
    holder.process.wait()
    until(lambda: passes("clean") >= 1)
    told = metrics(other)
    assert [told[name] for name in ("here", "seq", "audited_to", "findings")] == [1, seq, seq, 0]

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # the journal's triggers refuse it otherwise
        connection.execute("UPDATE entry SET body = replace(body, '\"100', '\"900') WHERE body LIKE '%deposit%100%'")
    until(lambda: passes("damaged") >= 1)
    command = support_service.run("audit", "--database", postgres_url, "--json")
    counts = json.loads(command.stdout)["counts"]
    assert (command.returncode, "chain_broken" in counts) == (1, True)
    assert metrics(other)["findings"] == sum(counts.values())
    log = other.stderr.read_text()
    assert f"CRITICAL spotledger.audits: the continuous audit found damage: {counts}; run: spotledger audit" in log
    for url in (other.public_url, other.operator_url):
        assert httpx2.get(f"{url}/readyz").status_code == 200


@pytest.fixture
def cluster() -> Iterator[postgres.Cluster]:
    """Give a server of this test alone, which it may stop and start."""
    try:
        made = postgres.new_cluster()
    except ServerMissing as problem:
        skip_or_fail(problem)
    made.start()
    yield made
    made.stop()
    shutil.rmtree(made.folder, ignore_errors=True)


def test_node_whose_database_stops_goes_on_reading_and_finds_it_again(
    node: StartNode, cluster: postgres.Cluster
) -> None:
    """Writes are refused and readyz says so; known keys read on; both work again by themselves once it is back."""
    first = node("one", database=cluster.url())
    first.list_coins(usdt=8)
    alice = first.trader("alice", {"usdt": ("100", "0")})
    with SpotClient(alice.accesskey, alice.secretkey, first.public_url) as client:
        client.balances()
        cluster.stop()
        refused = first.client().post(
            "/v1/deposits",
            json={"customer": "alice", "coin": "usdt", "amount": "1"},
            headers={"Idempotency-Key": "during"},
        )
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        for url in (first.public_url, first.operator_url):
            assert httpx2.get(f"{url}/readyz").status_code == 503
        assert httpx2.get(f"{first.public_url}/readyz/reads").status_code == 200
        assert str(client.balances()["usdt"].available) == "100.00"
        cluster.start()
        for _ in range(400):
            if httpx2.get(f"{first.operator_url}/readyz").status_code == 200:
                break
            time.sleep(0.05)
        body = {"customer": "alice", "coin": "usdt", "amount": "1"}
        first.write("/v1/deposits", body, "during")
        assert str(client.balances()["usdt"].available) == "101.00"


def test_node_without_trust_lets_in_nobody_while_its_database_is_away(
    node: StartNode, cluster: postgres.Cluster
) -> None:
    """With keys_trust_seconds 0 a known key is refused as unavailable, not as unknown, until the database is back."""
    first = node("one", database=cluster.url(), keys_trust_seconds=0)
    first.list_coins(usdt=8)
    alice = first.trader("alice")
    with SpotClient(alice.accesskey, alice.secretkey, first.public_url, attempts=1) as client:
        client.balances()
        cluster.stop()
        for _ in range(400):
            if httpx2.get(f"{first.public_url}/readyz/reads").status_code == 503:
                break
            time.sleep(0.05)
        with pytest.raises(Unavailable):
            client.balances()
        cluster.start()
        for _ in range(400):
            if httpx2.get(f"{first.public_url}/readyz/reads").status_code == 200:
                break
            time.sleep(0.05)
        client.balances()


def test_first_nodes_that_start_together_make_one_ledger_and_one_token(node: StartNode, postgres_url: str) -> None:
    """Several nodes on an empty database at the same moment: one of them makes it, the others find it made."""
    with ThreadPoolExecutor(3) as threads:
        nodes = list(threads.map(node, ("one", "two", "three")))
    having_token = [each for each in nodes if (each.folder / "operator.token").exists()]
    assert len(having_token) == 1
    for each in nodes:
        if each is not having_token[0]:
            share_token(having_token[0], each)
        assert each.client().get("/v1/coins").status_code == 200
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM operator_tokens").fetchall() == [(1,)]


def test_demo_stays_out_of_a_database_that_is_set(postgres_url: str, tmp_path: Path) -> None:
    """The demo's customers get into its own folder, whatever the environment names."""
    environ = support_service.environment(SPOTLEDGER_DATABASE=postgres_url)
    listen = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")
    done = support_service.run("demo", "--once", "--data", tmp_path / "demo", *listen, env=environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo" / "journal.db").exists()
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regclass('entry')").fetchall() == [(None,)]
