"""The machine that compares the ledger with a model, on PostgreSQL: two nodes in turn, lost connections."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import precondition, rule

import spotledger
from servers.postgres import PostgresServer
from spotledger.ledger.ledger import Ledger
from support_books import Books
from support_database_books import check_database
from support_postgres import COMMIT_ASKED, COMMITTED, Proxy

sys.path.insert(0, str(Path(__file__).parent))  # tests are imported by their paths, not as packages

from test_ledger_machine import LedgerMachine


class PostgresMachine(LedgerMachine):
    """What :class:`LedgerMachine` does, on two nodes that share a database."""

    server: ClassVar[PostgresServer]

    def make_place(self) -> None:
        self.database = self.server.create_database()
        self.proxy = Proxy(self.server.url(self.database))
        self.other: Ledger | None = None

    def open_ledger(self) -> Ledger:
        size = self.segment
        return spotledger.open(
            self.proxy.url, segment_entries=size, cache_accounts=2 * size, clock_ms=self.clock
        )

    @contextmanager
    def failing(self, data: st.DataObject) -> Iterator[None]:
        """Cut the connection just before the commit reaches the server, or just before its answer comes back."""
        if data.draw(st.booleans()):
            self.proxy.cut_client_at = COMMIT_ASKED
        else:
            self.proxy.cut_server_at = COMMITTED
        try:
            yield
        finally:
            self.proxy.cut_client_at = self.proxy.cut_server_at = None

    @precondition(lambda self: hasattr(self, "ledger"))
    @rule()
    def go_on_at_the_other_node(self) -> None:
        self.other, self.ledger = self.ledger, self.other or self.open_ledger()
        deadline = time.monotonic() + 20
        while self.ledger.head.seq < self.model.seq:
            assert time.monotonic() < deadline, "the other node does not follow"
            time.sleep(0.001)

    @rule(idle=st.sampled_from(["write", "read", "all"]))
    def lose_idle_connections(self, idle: str) -> None:
        if idle == "all":
            self.proxy.cut_all()
        else:
            self.server_ends(f"spotledger {idle}")

    def server_ends(self, application: str) -> None:
        import psycopg

        with psycopg.connect(self.server.url(self.database), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = %s",
                (application,),
            )

    def teardown(self) -> None:
        if self.other is not None:
            self.other.close()
        super().teardown()

    def check_place(self) -> Books:
        return check_database(self.server.url(self.database))

    def remove_place(self) -> None:
        self.proxy.close()
        self.server.drop_database(self.database)


PostgresMachine.TestCase.settings = settings(
    max_examples=12,
    stateful_step_count=25,
    deadline=None,
    # Each run of an example has a database of its own: to shrink one takes longer than to read it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestLedgerMachineOnPostgres(PostgresMachine.TestCase):  # type: ignore[misc, valid-type]
    """Whatever is asked in whatever order of whichever node, the ledger answers and keeps what the model does."""

    @pytest.fixture(autouse=True)
    def _server(self, postgres_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        PostgresMachine.server = postgres_server
        # Groups are small here: have them decided in pieces all the same, and nodes wait for the turn alone.
        monkeypatch.setattr("spotledger.ledger.ledger.PIECE_OPERATIONS", 2)
        monkeypatch.setattr("spotledger.storage.postgres.store.CROWD_ENTRIES", 1)
