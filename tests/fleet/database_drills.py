"""Drills on a database whose settings, or whose other sessions, are not as the ledger would like them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from fleet.books import audit, last_entry, read_books
from fleet.drills import AFTER_SECONDS, Fleet, Report, create_database, drill, one_server
from fleet.nodes import Node, post, remove_folders
from fleet.pair import LEDGER
from servers.postgres import ROLE, Cluster

LATIN1 = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
CURE = "CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0"
#: How long there is load before each kill.
LOAD_SECONDS = 1.0
#: As long as PostgreSQL allows: what no commit syncs stays in memory for that time.
LAZY = {"wal_writer_delay": "10s"}
CONTROL_ROWS = 20
SNAPSHOT_SECONDS = 45
#: Callers while a snapshot is open: enough to keep the write lock busy.
MANY_LANES = 32
#: What must be left of the rate while a snapshot is open. The aim is 0.8; a machine that is shared is not steady.
RATIO_LEAST = 0.5


@drill
def database_in_latin1() -> Report:
    """Start a node on a database with the encoding LATIN1: it refuses, makes nothing, and names a cure that works."""
    moment = time.monotonic()
    node = Node("node1", {"audit_entries_per_second": "0"})
    try:
        with one_server() as cluster:
            url = create_database(cluster, "latin", LATIN1)
            node.settings = {**node.settings, "database": url}
            refused = node.start_and_end()
            took = time.monotonic() - moment
            assert refused.returncode == 1, f"the start ended with {refused.returncode}: {refused.stderr}"
            assert "has the encoding LATIN1" in refused.stderr, refused.stderr
            assert CURE in refused.stderr, f"the start names no cure: {refused.stderr}"
            with psycopg.connect(url) as connection:
                made = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
                assert made.fetchall() == [], "a start that refused has made tables"
            cured = create_database(cluster, "cured", "ENCODING 'UTF8' TEMPLATE template0")
            node.settings = {**node.settings, "database": cured}
            node.start()
            seqs = list(_few_writes(node))
            node.stop()
            assert read_books(cured).head == len(seqs) == seqs[-1]
            audit(cured)
        return Report("database_in_latin1", len(seqs), details={"refused_after_seconds": round(took, 2)})
    finally:
        node.stop()
        remove_folders([node])


def _few_writes(node: Node) -> Iterator[int]:
    """Write what LATIN1 could not store, and yield the numbers of the entries."""
    token, url = node.token_file.read_text().strip(), f"http://{node.operator}"
    amount = {"customer": "alice", "coin": "usdt", "amount": "1", "reference": "提现"}
    for path, body in (
        ("/v1/coins", {"coin": "usdt", "scale": 8}),
        ("/v1/customers", {"customer": "alice"}),
        ("/v1/deposits", amount),
    ):
        yield post(url, token, path, body, path)["seq"]


@drill
def synchronous_commit_off() -> Report:
    """Turn synchronous_commit off for the server, the role and the database in turn, and kill the server with -9."""
    with one_server(**LAZY) as cluster:
        lost = _rows_lost_without_syncing(cluster)
        assert lost > 0, "this drill shows nothing here: a kill lost none of what was not synced"
        fleet = Fleet(lambda name: f"{cluster.url(LEDGER)}?application_name={name}")
        with fleet.loaded():
            moment = time.monotonic()
            longest = 0.0
            for way in ("server", "role", "database"):
                with _not_synchronous(cluster, way):
                    cluster.kill()  # new sessions, which take the setting
                    _start_again(cluster)
                    fleet.wait_for_writes(time.monotonic())
                    time.sleep(LOAD_SECONDS)
                    cluster.kill()
                    time.sleep(0.2)  # what was answered before the kill has arrived
                    acknowledged = max(one.seq for one in fleet.load.acknowledged)
                    _start_again(cluster)
                    found = last_entry(cluster.url(LEDGER))
                    assert found >= acknowledged, (
                        f"{way}: entries up to {acknowledged} were acknowledged, {found} is last"
                    )
                    longest = max(longest, fleet.wait_for_writes(time.monotonic()))
            time.sleep(AFTER_SECONDS)
            details = {
                "rows_lost_by_a_session_that_does_not_sync": f"{lost} of {CONTROL_ROWS}",
                "went_on_after_seconds": round(longest, 2),
            }
            return fleet.report("synchronous_commit_off", moment, cluster.url(LEDGER), **details)


def _rows_lost_without_syncing(cluster: Cluster) -> int:
    """Commit rows without syncing and kill the server; return how many of them are lost."""
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE control (number integer)")
        connection.execute("SET synchronous_commit = off")
        for number in range(CONTROL_ROWS):
            connection.execute("INSERT INTO control VALUES (%s)", (number,))
        cluster.kill()
    _start_again(cluster)
    with psycopg.connect(cluster.url()) as connection:
        return CONTROL_ROWS - len(connection.execute("SELECT number FROM control").fetchall())


def _start_again(cluster: Cluster) -> None:
    """Start *cluster*, which was killed."""
    cluster.stop()  # what is left of it here
    cluster.start()


@contextmanager
def _not_synchronous(cluster: Cluster, way: str) -> Iterator[None]:
    """Have new sessions of the ledger's database and role not wait for the disk, for the length of a ``with`` block."""
    if way == "server":
        cluster.reload(synchronous_commit="off")
    else:
        _alter(cluster, way, "SET synchronous_commit = off")
    try:
        yield
        with psycopg.connect(cluster.url(LEDGER)) as connection:
            [(found,)] = connection.execute("SHOW synchronous_commit").fetchall()
            assert found == "off", f"{way}: the setting did not come into force"
    finally:
        cluster.reload(synchronous_commit="on")
        if way != "server":
            _alter(cluster, way, "RESET synchronous_commit")


def _alter(cluster: Cluster, way: str, change: str) -> None:
    name = ROLE if way == "role" else LEDGER
    with psycopg.connect(cluster.url(), autocommit=True) as connection:
        connection.execute(f"ALTER {way.upper()} {name} {change}".encode())


@drill
def snapshot_held(seconds: int = SNAPSHOT_SECONDS) -> Report:
    """Hold a snapshot open in another session, as pg_dump does, and compare the rate of writes with that without."""
    with one_server() as cluster:
        fleet = Fleet(lambda name: f"{cluster.url(LEDGER)}?application_name={name}", lanes=MANY_LANES)
        with fleet.loaded(), psycopg.connect(cluster.url(LEDGER)) as holder:
            earlier = _rate(fleet, seconds / 2)
            moment = time.monotonic()
            holder.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            before = holder.execute("SELECT max(seq) FROM entry").fetchone()
            during = _rate(fleet, seconds)
            assert holder.execute("SELECT max(seq) FROM entry").fetchone() == before, "the snapshot was not held"
            holder.rollback()
            later = _rate(fleet, seconds / 2)
            ratio = during / ((earlier + later) / 2)
            details = {
                "entries_a_second_before": round(earlier),
                "entries_a_second_with_the_snapshot": round(during),
                "entries_a_second_after": round(later),
                "ratio": round(ratio, 2),
            }
            report = fleet.report("snapshot_held", moment, cluster.url(LEDGER), **details)
    assert ratio >= RATIO_LEAST, f"a snapshot that is held open costs too much: {details}"
    return report


def _rate(fleet: Fleet, seconds: float) -> float:
    """Return how many entries are acknowledged in a second, as seen for *seconds*."""
    begun = time.monotonic()
    time.sleep(seconds)
    return fleet.load.since(begun) / (time.monotonic() - begun)
