"""The write-ahead log is moved into the file beside the commits, which never wait for it nor fail by it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spotledger.storage import sqlite_checkpoint
from support_books import check_books
from support_core import fill, open_small, seed, spot

PAGE_BYTES = 4096 + 24
MOVE = sqlite_checkpoint._move


@pytest.fixture(autouse=True)
def _due_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_checkpoint, "DUE_PAGES", 100)
    monkeypatch.setattr(sqlite_checkpoint, "REST_PAGES", 40)


class Passes:
    """Takes the place of a pass: counts those beside the commits and those within one, and holds the former up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.beside = self.within = 0
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()
        monkeypatch.setattr(sqlite_checkpoint, "_move", self.move)

    def move(self, connection: sqlite3.Connection) -> None:
        if threading.current_thread() is threading.main_thread():
            self.within += 1
        else:
            self.beside += 1
            self.begun.set()
            assert self.may_go_on.wait(30)
        MOVE(connection)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    """Watch the passes of a test; none of them is left waiting."""
    watched = Passes(monkeypatch)
    yield watched
    watched.may_go_on.set()


def test_log_begins_again_at_its_start_while_commits_go_on(tmp_path: Path, passes: Passes) -> None:
    """However many commits follow one another, the log stays as small as a few passes of it."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        for number in range(40):
            fill(ledger, 25, f"fill {number}".replace(" ", "-"))
        assert passes.beside > 5
        assert passes.within > 5
        assert (tmp_path / "ledger.db-wal").stat().st_size < 500 * PAGE_BYTES
    check_books(tmp_path)


def test_commits_do_not_wait_for_a_pass(tmp_path: Path, passes: Passes) -> None:
    """A pass that takes long holds nobody up: what is logged meanwhile is moved by the pass that follows it."""
    passes.may_go_on.clear()
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 60, "before")
        assert passes.begun.wait(30)
        fill(ledger, 60, "during")
        assert (passes.beside, passes.within) == (1, 0)
        passes.may_go_on.set()
        for number in range(1000):
            if passes.beside > 1:
                break
            fill(ledger, 1, f"after-{number}")
        assert passes.beside > 1
        assert ledger.balances(spot("ann"))["btc"].available == 1000 * 10**8 + ledger.head.seq - 5
    check_books(tmp_path)


def test_pass_that_the_disk_refuses_fails_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said in the log, nothing is lost, and the next one tries again."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        monkeypatch.setattr(sqlite_checkpoint, "_PASSIVE", "SELECT * FROM a_table_that_is_not_there")
        with caplog.at_level(logging.WARNING):
            fill(ledger, 60, "refused")
        while "could not be moved" not in caplog.text:
            fill(ledger, 1, f"more-{ledger.head.seq}")
        monkeypatch.undo()
        fill(ledger, 60, "moved")
    check_books(tmp_path)


def test_closing_waits_for_the_pass(tmp_path: Path, passes: Passes) -> None:
    """The file is whole and its log gone when the ledger is closed in the middle of a pass."""
    passes.may_go_on.clear()
    ledger = open_small(tmp_path)
    seed(ledger)
    fill(ledger, 60)
    assert passes.begun.wait(30)
    closing = threading.Thread(target=ledger.close)
    closing.start()
    passes.may_go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert not (tmp_path / "ledger.db-wal").exists()
    check_books(tmp_path)
