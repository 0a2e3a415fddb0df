"""Two PostgreSQL servers that Patroni and etcd look after, and the drill in which the primary's machine is lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import psycopg

from fleet.drills import AFTER_SECONDS, Fleet, Report, drill
from fleet.nodes import EXAMPLES
from fleet.pair import LEDGER
from servers import kept, postgres
from servers.programs import find_program

START_SECONDS = 90.0
REJOIN_SECONDS = 90.0


def _port_and_url() -> tuple[int, str]:
    port = kept.free_port()
    return port, f"http://127.0.0.1:{port}"


@dataclass
class Etcd:
    """One etcd, where Patroni keeps who is the primary."""

    process: kept.Kept | None = None
    url: str = ""

    def start(self) -> None:
        """Start it, and wait until it is healthy."""
        _, self.url = _port_and_url()
        _, peer = _port_and_url()
        identity = kept.ordinary_identity()
        folder = kept.make_folder(identity)
        self.process = kept.start(
            [
                find_program("etcd"), "--data-dir", folder / "data", "--listen-client-urls", self.url,
                "--advertise-client-urls", self.url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}", "--unsafe-no-fsync",
            ],
            folder=folder, identity=identity, name="etcd",
        )  # fmt: skip
        kept.until_ready(self.process, self._healthy)

    def _healthy(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=2).json().get("health") == "true"
        except (httpx2.TransportError, ValueError):
            return False

    def stop(self) -> None:
        """Stop it."""
        if self.process is not None:
            self.process.let_go()


@dataclass
class Member:
    """One Patroni with its PostgreSQL."""

    name: str
    etcd: Etcd
    passwords: tuple[str, str]
    port: int = field(default_factory=kept.free_port)
    rest_port: int = field(default_factory=kept.free_port)
    folder: Path = field(default_factory=lambda: kept.make_folder(kept.ordinary_identity()))
    process: kept.Kept | None = None

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL."""
        superuser, replication = self.passwords
        here, rest = f"127.0.0.1:{self.port}", f"127.0.0.1:{self.rest_port}"
        told = {
            "NAME": self.name, "ETCD3_HOSTS": self.etcd.url.removeprefix("http://"),
            "RESTAPI_LISTEN": rest, "RESTAPI_CONNECT_ADDRESS": rest,
            "POSTGRESQL_LISTEN": here, "POSTGRESQL_CONNECT_ADDRESS": here,
            "POSTGRESQL_DATA_DIR": str(self.folder / "data"), "POSTGRESQL_BIN_DIR": str(postgres.find_postgres()),
            "POSTGRESQL_PGPASS": str(self.folder / "pgpass"),
            "SUPERUSER_USERNAME": postgres.ROLE, "SUPERUSER_PASSWORD": superuser,
            "REPLICATION_USERNAME": "replicator", "REPLICATION_PASSWORD": replication,
        }  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {f"PATRONI_{name}": value for name, value in told.items()}
        configuration = self.folder / "patroni.yml"
        shutil.copy(EXAMPLES / "patroni.yml", configuration)
        kept.give(configuration, kept.ordinary_identity())
        with configuration.open("a") as lines:
            lines.write(f"  parameters:\n    unix_socket_directories: {self.folder}\n")
        self.process = kept.start(
            [find_program("patroni"), configuration], folder=self.folder, identity=kept.ordinary_identity(),
            environment=environment, name="patroni", remove=False,
        )  # fmt: skip

    def says(self, what: str) -> bool:
        """Ask Patroni whether its server is the ``primary``, or a ``replica``, or the ``synchronous`` standby."""
        try:
            return httpx2.get(f"http://127.0.0.1:{self.rest_port}/{what}", timeout=2).status_code == 200
        except httpx2.TransportError:
            return False

    def kill(self) -> None:
        """Kill Patroni and the postmaster with -9, as if the machine were gone."""
        assert self.process is not None
        postmaster = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        self.process.signal(signal.SIGKILL)
        os.kill(postmaster, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """Stop both."""
        if self.process is not None:
            self.process.let_go()
            self.process = None


class Guarded:
    """An etcd and two members, the second a synchronous standby."""

    def __init__(self) -> None:
        """Start them, and make the empty database of the ledger."""
        find_program("patroni")
        self.etcd = Etcd()
        self.etcd.start()
        self._passwords = (secrets.token_urlsafe(16), secrets.token_urlsafe(16))
        self.members = [Member(f"member{number}", self.etcd, self._passwords) for number in (1, 2)]
        try:
            self._start_members()
        except BaseException:
            self.stop()
            raise

    def _start_members(self) -> None:
        one, other = self.members
        one.start()
        kept.until(lambda: one.says("primary"), START_SECONDS, f"Patroni made no primary: {self.written()}")
        other.start()
        kept.until(lambda: other.says("synchronous"), START_SECONDS, "there is no synchronous standby")
        with psycopg.connect(self._url(one, "postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {LEDGER}")

    def _url(self, member: Member, database: str) -> str:
        return f"postgresql://{postgres.ROLE}:{self._passwords[0]}@127.0.0.1:{member.port}/{database}"

    def url(self, name: str) -> str:
        """Return the URL of the ledger as a node takes it."""
        hosts = ",".join(f"127.0.0.1:{member.port}" for member in self.members)
        login = self._url(self.members[0], LEDGER).split("@")[0]
        return f"{login}@{hosts}/{LEDGER}?target_session_attrs=read-write&application_name={name}"

    @property
    def primary(self) -> Member:
        """The member that is the primary."""
        return next(member for member in self.members if member.says("primary"))

    def written(self) -> str:
        """Return what the members wrote last."""
        return " | ".join(member.process.written()[-800:] for member in self.members if member.process)

    def stop(self) -> None:
        """Stop everything, and remove what was on disk."""
        for member in reversed(self.members):
            with contextlib.suppress(ProcessLookupError):
                member.stop()
            shutil.rmtree(member.folder, ignore_errors=True)
        self.etcd.stop()


@drill
def primary_lost_with_patroni() -> Report:
    """Kill the primary and its Patroni with -9: the standby is promoted, the nodes follow, the lost one rejoins."""
    with contextlib.ExitStack() as stack:
        guarded = Guarded()
        stack.callback(guarded.stop)
        fleet = Fleet(guarded.url)
        stack.enter_context(fleet.loaded())
        lost = guarded.primary
        moment = time.monotonic()
        lost.kill()
        other = next(member for member in guarded.members if member is not lost)
        kept.until(lambda: other.says("primary"), REJOIN_SECONDS, f"nobody was promoted: {guarded.written()}")
        promoted = time.monotonic() - moment
        # In the strict mode the new primary waits for a standby too: the lost member comes back.
        lost.stop()
        lost.start()
        fleet.wait_for_writes(time.monotonic())
        kept.until(lambda: lost.says("replica"), REJOIN_SECONDS, f"the lost member did not rejoin: {guarded.written()}")
        time.sleep(AFTER_SECONDS)
        details = {"promoted_seconds": round(promoted, 2)}
        return fleet.report("primary_lost_with_patroni", moment, guarded._url(other, LEDGER), **details)
