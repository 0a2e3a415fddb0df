"""Two PostgreSQL servers, the second a synchronous standby of the first."""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace

import psycopg

from servers import postgres
from servers.kept import free_port, give, make_folder, ordinary_identity, until

LEDGER = "ledger"
#: What the primary waits for before it says that a commit is done.
ANY_STANDBY = "*"


class Pair:
    """A primary and its standby; which of the two is which changes on a bad day."""

    def __init__(self, *, networks: Sequence[str] = (), **settings: str) -> None:
        """
        Start both.

        Args:
            networks: From where else than this machine connections are taken, with the password.
            settings: PostgreSQL's, for both.
        """
        self._others: list[postgres.Cluster] = []
        self.primary = postgres.new_cluster({**postgres.DURABLE, "wal_keep_size": "256MB", **settings})
        with (self.primary.data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {network} scram-sha-256\n" for network in networks)
        self.primary.start()
        with psycopg.connect(self.primary.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {LEDGER}")
        self.standby = self._clone(self.primary)
        self.standby.start()
        self.wait_for_standby()
        self.primary.reload(synchronous_standby_names=ANY_STANDBY)

    def url(self, host: str = "127.0.0.1", **parameters: str) -> str:
        """Return the URL of the ledger as nodes take it: both servers, whichever takes writes."""
        one, other = sorted((self.primary, self.standby), key=lambda cluster: cluster.port)
        login = one.url().split("@", 1)[0]
        more = "&".join(["target_session_attrs=read-write", *(f"{name}={value}" for name, value in parameters.items())])
        return f"{login}@{host}:{one.port},{host}:{other.port}/{LEDGER}?{more}"

    def _clone(self, source: postgres.Cluster) -> postgres.Cluster:
        folder = make_folder(ordinary_identity())
        made = replace(source, folder=folder, port=free_port(), settings=dict(source.settings), kept=None)
        made.run("pg_basebackup", "--pgdata", made.data, "--dbname", source.url(), "--checkpoint=fast", "--no-sync")
        signal_file = made.data / "standby.signal"
        signal_file.touch()
        give(signal_file, ordinary_identity())
        made.configure(
            primary_conninfo=f"host=127.0.0.1 port={source.port} user={postgres.ROLE} password={source.password}",
            synchronous_standby_names="",
        )
        return made

    def wait_for_standby(self) -> None:
        """Wait until the standby streams from the primary."""

        def streams() -> bool:
            with psycopg.connect(self.primary.url()) as connection:
                rows = connection.execute("SELECT state FROM pg_stat_replication").fetchall()
            return ("streaming",) in rows

        until(streams, 30, "the standby does not stream")

    def kill_primary(self) -> None:
        """Kill the primary's postmaster with -9."""
        assert self.primary.kept is not None
        self.primary.kept.signal(signal.SIGKILL)
        self.primary.kept.wait()

    def kill_standby(self) -> None:
        """Kill the standby's postmaster with -9."""
        assert self.standby.kept is not None
        self.standby.kept.signal(signal.SIGKILL)
        self.standby.kept.wait()

    def freeze_standby(self) -> None:
        """Stop every process of the standby; its connections stay."""
        self._signal_standby(signal.SIGSTOP)

    def thaw_standby(self) -> None:
        """Let the standby go on."""
        self._signal_standby(signal.SIGCONT)

    def _signal_standby(self, number: signal.Signals) -> None:
        if self.standby.kept is not None:
            with contextlib.suppress(OSError):  # it was killed
                self.standby.kept.signal_all(number)

    def promote(self) -> None:
        """Make the standby the primary; the old one, which must be dead, is the next standby."""
        self.standby.run("pg_ctl", "promote", "--pgdata", self.standby.data, "--wait")
        self.primary, self.standby = self.standby, self.primary

    def rebuild_standby(self) -> None:
        """Make the standby anew from the primary, and have the primary wait for it again."""
        self.standby.stop()
        shutil.rmtree(self.standby.folder, ignore_errors=True)
        port = self.standby.port
        self.standby = self._clone(self.primary)
        self.standby.port = port
        self.standby.configure()
        self.standby.start()
        self.wait_for_standby()
        self.primary.reload(synchronous_standby_names=ANY_STANDBY)

    def add_standby(self) -> None:
        """Give the primary a new standby beside the server that was one, or was to be, and have it wait for that."""
        self._others.append(self.standby)
        self.standby = self._clone(self.primary)
        self.standby.start()
        self.wait_for_standby()
        self.primary.reload(synchronous_standby_names=ANY_STANDBY)

    def stop(self) -> None:
        """Stop all and remove their folders."""
        self.thaw_standby()
        for cluster in (*self._others, self.standby, self.primary):
            with contextlib.suppress(ProcessLookupError):
                cluster.stop()
            shutil.rmtree(cluster.folder, ignore_errors=True)
