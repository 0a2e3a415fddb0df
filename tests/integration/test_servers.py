"""The servers of the tests themselves: they start, give fresh databases, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis as redis_client

from servers import debian, kept, postgres, redis

TESTS = Path(__file__).resolve().parents[1]


def is_alive(pid: int) -> bool:
    """Tell whether there is a process *pid*."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_postgres_of_the_tests_gives_an_empty_database_to_each_test(postgres_server: postgres.PostgresServer) -> None:
    """What is made in one database is not seen in the next, and a dropped one is gone whoever is connected."""
    with postgres_server.database() as first, postgres_server.database() as second:
        with psycopg.connect(first, autocommit=True) as connection:
            connection.execute("CREATE TABLE here (seq bigint)")
        with psycopg.connect(second) as connection:
            assert connection.execute("SELECT to_regclass('here')").fetchone() == (None,)
            version = connection.info.server_version
        assert first != second
    assert version >= postgres.VERSION_LEAST * 10_000
    names = [psycopg.conninfo.conninfo_to_dict(url)["dbname"] for url in (first, second)]
    with psycopg.connect(postgres_server.url()) as connection:
        left = connection.execute("SELECT datname FROM pg_database WHERE datname = ANY(%s)", (names,)).fetchall()
    assert left == []


def test_postgres_of_the_tests_answers_over_its_unix_socket(postgres_server: postgres.PostgresServer) -> None:
    """The same server is reached over TCP and over a socket in its folder."""
    with psycopg.connect(postgres_server.url(socket=True)) as connection:
        assert connection.execute("SELECT inet_server_addr()").fetchone() == (None,)


def test_shared_server_is_one_for_all_who_hold_it_and_ends_with_the_last(tmp_path: Path) -> None:
    """Two holders get the same process; it ends when both have let it go, and its folder goes too."""

    def make() -> tuple[kept.Kept, dict[str, object]]:
        return kept.start(["sleep", "600"], folder=kept.make_folder({})), {}

    with kept.shared(tmp_path, "sleeper", make) as facts:
        folder = Path(str(facts["folder"]))
        with kept.shared(tmp_path, "sleeper", make) as same:
            assert same["folder"] == str(folder)
        held = kept.hold(folder)
        assert held is not None
        assert held.is_alive
        held.let_go()
    assert not is_alive(held.pid)
    assert not folder.exists()


def test_server_that_is_let_go_leaves_no_zombie() -> None:
    """Its keeper is gone from the table of processes too, where whoever waits for any child would find it."""
    one = kept.start(["sleep", "600"], folder=kept.make_folder({}))
    keeper_pid = one.keeper_pid
    assert keeper_pid is not None
    assert is_alive(keeper_pid)
    one.let_go()
    assert not is_alive(keeper_pid)
    assert not is_alive(one.pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(keeper_pid, os.WNOHANG)


def test_server_of_a_killed_run_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Kill -9 of the process that started a server ends the server, and what that had started in its turn."""
    shell = tmp_path / "parent.sh"
    shell.write_text("sleep 600 &\necho $! >child.new\nmv child.new child\nwait\n")
    program = (
        "import time; from servers import kept; from pathlib import Path\n"
        f"one = kept.start(['sh', '-c', 'setsid sh {shell}'], folder=kept.make_folder({{}}))\n"
        "kept.until((one.folder / 'child').exists, 10, 'no child')\n"
        "print(one.pid, (one.folder / 'child').read_text().strip(), one.folder, flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)}
    ) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        run.send_signal(signal.SIGKILL)
    pid, child, folder = line.split()
    kept.until(lambda: not Path(folder).exists(), 30, "the folder was not removed")
    assert not is_alive(int(pid))
    if sys.platform == "linux":
        assert not is_alive(int(child))


@pytest.fixture
def only_wheels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Look for servers as on a machine where none is installed and none can be."""
    for found in (postgres.find_postgres, redis.find_redis):
        found.cache_clear()
    monkeypatch.setattr(postgres, "_installed", lambda: None)
    monkeypatch.setattr(redis, "_installed", lambda: None)
    monkeypatch.setattr(debian, "install", lambda *_: "nothing may be installed here")
    yield
    for found in (postgres.find_postgres, redis.find_redis):
        found.cache_clear()


@pytest.mark.usefixtures("only_wheels")
def test_postgres_of_the_wheel_starts_where_nothing_is_installed() -> None:
    """The binaries of the wheel run as an ordinary user and take connections."""
    cluster = postgres.start_cluster()
    try:
        assert "pginstall" in str(cluster.binaries)
        with psycopg.connect(cluster.url()) as connection:
            assert connection.info.server_version >= postgres.VERSION_LEAST * 10_000
    finally:
        cluster.stop()


@pytest.mark.usefixtures("only_wheels")
def test_redis_of_the_wheel_starts_where_nothing_is_installed() -> None:
    """The Valkey of the wheel answers, and runs Lua with msgpack as the shared limits need it."""
    server = redis.RedisServer()
    server.start()
    try:
        with redis_client.Redis.from_url(server.url) as client:
            assert client.eval("return cmsgpack.unpack(cmsgpack.pack({1, 2}))[2]", 0) == 2
    finally:
        server.stop()
