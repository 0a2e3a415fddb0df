"""A server that lacks what a node has seen is the wrong one: it is refused, is no damage, and leaves no trace."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

import spotledger
import support_service
from servers.kept import until
from servers.postgres import PostgresServer
from spotledger.errors import JournalShorter, LedgerCorrupt, StoreUnavailable
from spotledger.ledger.ledger import Ledger
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.following.head_cache import Snapshot
from spotledger.storage.postgres.store import PostgresStore
from spotledger.storage.seen_head import SeenHead
from support_core import fill, seed, spot
from support_database_books import check_database
from support_put_back import keep_state, named, swap

PORTS = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")


@pytest.fixture
def earlier(postgres_url: str) -> Iterator[str]:
    """Give a ledger at `postgres_url`, and what was kept of it before its last three entries."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
        kept = keep_state(postgres_url)
        fill(ledger, 3, "lost")
    yield kept
    with psycopg.connect(named(postgres_url, "postgres"), autocommit=True) as connection:
        name = urlsplit(kept).path.lstrip("/")
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


def seen_in(folder: Path, url: str) -> None:
    """Have a node with the data *folder* see the head of the ledger at *url*, and stop."""
    folder.mkdir(exist_ok=True)
    seen = SeenHead(folder)
    PostgresStore(url, seen=seen).close()
    seen.close()


def test_database_that_was_put_back_is_refused_and_is_no_damage(postgres_url: str, earlier: str) -> None:
    """Reads of the server and writes are refused with both positions; once it is back they go on without help."""
    with spotledger.open(postgres_url) as ledger:
        assert ledger.head.seq == 8
        swap(postgres_url, earlier)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=r"ends at entry 5 of epoch 1.* seen entry 8 of epoch 1"):
                ledger.deposit("ann", "btc", "1", key="on-the-wrong-one")
            with pytest.raises(StoreUnavailable):
                ledger.entries(0, 10)
        assert ledger.corrupt is None
        swap(postgres_url, earlier)
        until(lambda: can_deposit(ledger), 10, "the node does not recover")
        assert ledger.head.seq == 9
    assert check_database(earlier).head == 5


def can_deposit(ledger: Ledger) -> bool:
    """Try a deposit, always the same one."""
    try:
        ledger.deposit("ann", "btc", "1", key="once")
    except StoreUnavailable:
        return False
    return True


def test_longer_history_that_is_another_one_is_refused(postgres_url: str, earlier: str) -> None:
    """What counts is the entry that was seen, not how far a journal goes."""
    with spotledger.open(earlier) as other:
        fill(other, 20, "another")
    with spotledger.open(postgres_url) as ledger:
        assert ledger.head.seq == 8
        swap(postgres_url, earlier)
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=r"another entry 8 .*ends at entry 25 of epoch 1"):
                ledger.deposit("ann", "btc", "1", key="on-the-wrong-one")
        assert ledger.corrupt is None
        assert ledger.head.seq == 8
    assert check_database(postgres_url).head == 25


def test_other_history_on_a_session_that_stays_is_refused(postgres_url: str, earlier: str) -> None:
    """A pooler, or a server that was put back beneath its sessions: what is read shows it, not only a connection."""
    with spotledger.open(earlier) as other:
        fill(other, 20, "another")
    with spotledger.open(postgres_url, follow_seconds=None) as ledger:
        store: Any = ledger._store
        assert ledger.head.seq == 8
        with psycopg.connect(earlier) as connection:
            rows = connection.execute("SELECT seq, body, hash, key_digest FROM entry WHERE seq > 5").fetchall()
        with psycopg.connect(postgres_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("DELETE FROM entry WHERE seq > 5")
            for row in rows:
                connection.execute("INSERT INTO entry (seq, body, hash, key_digest) VALUES (%s, %s, %s, %s)", row)
        with pytest.raises(StoreUnavailable, match="another entry 8"):
            store.recover()
        with pytest.raises(StoreUnavailable, match="another entry 8"):
            ledger.deposit("ann", "btc", "1", key="on-the-wrong-one")
        assert ledger.corrupt is None


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE entry SET body = body || ' ' WHERE seq = 9", "chain is broken at entry 9"),
        ("UPDATE entry SET hash = sha256('other') WHERE seq = 9", "chain is broken at entry 9"),
        ("DELETE FROM entry WHERE seq = 9", "chain is broken at entry 9"),
    ],
)
def test_damage_of_the_right_server_stays_damage(postgres_url: str, earlier: str, damage: str, found: str) -> None:
    """What has the entry that was seen is the right server, and what does not fit there is damage."""
    with (
        spotledger.open(postgres_url, follow_seconds=None) as ledger,
        spotledger.open(postgres_url, follow_seconds=None) as other,
    ):
        assert ledger.head.seq == 8
        fill(other, 2, "more")
        with psycopg.connect(postgres_url) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(damage.encode())
        with pytest.raises(LedgerCorrupt, match=found):
            ledger.deposit("ann", "btc", "1", key="on-damage")


def test_restarted_node_refuses_what_is_behind_and_makes_nothing(
    postgres_url: str, earlier: str, tmp_path: Path
) -> None:
    """A start compares with what was seen before the stop; nothing is written to the wrong database."""
    seen_in(tmp_path, postgres_url)
    swap(postgres_url, earlier)
    seen = SeenHead(tmp_path)
    with pytest.raises(JournalShorter, match=r"ends at entry 5.* seen entry 8.*epoch begin --database") as refused:
        PostgresStore(postgres_url, seen=seen)
    assert refused.value.details == {"noted": 8, "found": 5}
    swap(postgres_url, earlier)
    PostgresStore(postgres_url, seen=seen).close()
    seen.close()


def test_restarted_node_refuses_an_empty_database_and_another_ledger(
    postgres_url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """No new ledger is made where this node served one before."""
    with spotledger.open(postgres_url) as ledger:
        seed(ledger)
    started = support_service.start(tmp_path / "node", database=postgres_url)
    assert started.stop() == 0
    with postgres_server.database() as empty:
        refused = support_service.run(
            "serve", "--data", tmp_path / "node", "--database", empty, "--listen", "127.0.0.1:0"
        )
        assert refused.returncode == 3
        assert "has no ledger" in refused.stderr
        with psycopg.connect(empty) as connection:
            assert connection.execute("SELECT to_regclass('entry')").fetchall() == [(None,)]
        with spotledger.open(empty) as other:
            seed(other)
        refused = support_service.run(
            "serve", "--data", tmp_path / "node", "--database", empty, "--listen", "127.0.0.1:0"
        )
        assert "has the ledger" in refused.stderr
        assert refused.returncode != 0


def test_epoch_begun_after_a_recovery_lets_everybody_go_on(
    postgres_url: str, earlier: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is meant: running nodes go on from the new head without a restart, and stopped ones start."""
    seen_in(tmp_path, postgres_url)
    with spotledger.open(postgres_url) as ledger:
        assert ledger.balances(spot("ann"))["btc"].available == 100_000_000_003
        swap(postgres_url, earlier)
        with pytest.raises(StoreUnavailable, match="ends at entry 5"):
            ledger.deposit("ann", "btc", "1", key="too-early")
        begun = support_service.run("epoch", "begin", "--database", postgres_url, "--reason", "put back on purpose")
        assert begun.returncode == 0, begun.stderr
        with caplog.at_level(logging.WARNING, "spotledger.store"):
            until(lambda: can_deposit(ledger), 10, "the node does not go on")
        assert "epoch 2, which is later than the 1 of entry 8" in caplog.text
        assert ledger.corrupt is None
        assert (ledger.head.seq, ledger.epoch) == (7, 2)
        assert ledger.balances(spot("ann"))["btc"].available == 100_100_000_000
        assert ledger.deposit("ann", "btc", "0.00000001", key="lost:0").replayed is False
    seen = SeenHead(tmp_path)
    store = PostgresStore(postgres_url, seen=seen)
    assert store.head.seq == 8
    store.close()
    seen.close()
    check_database(postgres_url)
    # And now what was right before is the wrong one, for a node that went on as for one that is started.
    swap(postgres_url, earlier)
    seen = SeenHead(tmp_path)
    with pytest.raises(StoreUnavailable, match="another entry 8"):
        PostgresStore(postgres_url, seen=seen)
    seen.close()


def test_old_connection_neither_advances_nor_joins_memory_that_was_put_back(postgres_url: str, earlier: str) -> None:
    """An answer of the history before, which arrives late, is given up: its numbers mean other entries."""
    with spotledger.open(postgres_url, follow_seconds=None) as ledger:
        store: Any = ledger._store
        memory, since = store._head_cache, store._head_cache.head
        fill(ledger, 1, "late")
        with psycopg.connect(postgres_url) as connection:
            news = connection.pgconn.exec_params(
                sql.NEW_ENTRIES.text.encode(), [b"%d" % since.seq, b"10"], result_format=1
            )
        late = store._head_cache.head
        swap(postgres_url, earlier)
        with spotledger.open(postgres_url) as other:
            other.begin_epoch("put back")
            fill(other, 10, "another")
        until(lambda: can_deposit(ledger), 10, "the node does not go on")
        assert store._head_cache.history == memory.history + 1
        before = store._head_cache.head
        with pytest.raises(StoreUnavailable, match="put back"):
            store._apply_page(memory, since, news, late)
        assert store._head_cache.head == before
        assert not store._head_cache.covers(Snapshot(late, 0, [], memory.history))
        assert store._head_cache.covers(Snapshot(before, 0, [], store._head_cache.history))


@pytest.mark.parametrize("says", [True, False])
def test_ordinary_role_learns_which_server_it_is_unless_that_is_revoked(
    postgres_url: str, postgres_server: PostgresServer, says: bool
) -> None:
    """Where the server does not say, the entry alone counts, and everything works."""
    database = urlsplit(postgres_url).path.lstrip("/")
    role = f"plain_{database}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'".encode())
        connection.execute(f"ALTER DATABASE {database} OWNER TO {role}".encode())
        if not says:
            connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    try:
        with spotledger.open(f"postgresql://{role}:plain@127.0.0.1:{postgres_server.port}/{database}") as ledger:
            seed(ledger)
            store: Any = ledger._store
            seen = store._right.seen.seen
            assert (seen.epoch, seen.seq, seen.hash) == (1, ledger.head.seq, ledger.head.hash)
            assert (seen.system > 0, seen.timeline) == (says, int(says))
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {database} OWNER TO CURRENT_USER".encode())
            connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
            connection.execute(f"DROP OWNED BY {role}".encode())
            connection.execute(f"DROP ROLE {role}".encode())
