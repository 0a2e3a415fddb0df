"""Sealing goes to the right server, although an old primary stands first in the address."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import psycopg

import spotledger
from fleet.pair import LEDGER, Pair
from servers.kept import until
from spotledger.domain.operations import Deposit
from spotledger.errors import StoreUnavailable
from spotledger.storage.postgres.sealing import duty
from support_core import seed
from support_database_books import check_database

SIZE = duty.PROCESS_ENTRIES


def test_segment_is_sealed_on_the_right_server(pair: Pair) -> None:
    """The process that seals passes over an old primary, like the node itself."""
    login = pair.primary.url().split("@", 1)[0]
    url = f"{login}@127.0.0.1:{pair.primary.port},127.0.0.1:{pair.standby.port}/{LEDGER}"
    with spotledger.open(url, segment_entries=SIZE) as ledger:
        seed(ledger)
        pair.kill_primary()
        pair.promote()
        done: list[Any] = []

        def deposited() -> bool:
            with suppress(StoreUnavailable):
                done.append(ledger.deposit("ann", "btc", "1", key="after"))
            return bool(done)

        until(deposited, 20, "the node does not find the new primary")
        with suppress(ProcessLookupError):
            pair.standby.stop()
        pair.standby.configure(synchronous_standby_names="")
        pair.standby.start()
        while ledger.head.seq < SIZE + 10:
            at = ledger.head.seq
            ledger.execute([Deposit(f"d{at}-{n}", "ann", "btc", "1") for n in range(min(500, SIZE + 10 - at))])
        until(lambda: ledger.execute([]) == [] and ledger.sealing_lag == 0, 30, "it is not sealed")
        with psycopg.connect(pair.primary.url(LEDGER)) as connection:
            assert connection.execute("SELECT seq FROM sealed").fetchall() == [(SIZE,)]
    check_database(pair.primary.url(LEDGER))
