"""Commits that fail half-way: the callers are told, reads never showed it, and writes go on once there is room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import spotledger
from spotledger.domain.accounts import Account
from spotledger.domain.operations import Deposit
from spotledger.errors import DataFolderUnusable, StoreUnavailable
from spotledger.ledger.ledger import Ledger, Receipt
from support_books import check_books
from support_full_disk import fill

SPOT = Account("alice", "spot")


def _prepared(folder: Path) -> Ledger:
    ledger = spotledger.open(folder, segment_entries=64)
    ledger.list_coin("usdt", 8, key="coin")
    ledger.register_customer("alice", key="alice")
    ledger.deposit("alice", "usdt", "100", key="first")
    return ledger


def _deposit_until_refused(ledger: Ledger, start: int) -> int:
    """Deposit 1 usdt in groups until the disk is full; return the first that failed."""
    for number in range(start, 1_000_000, 10):
        try:
            ledger.execute([Deposit(f"d{n}", "alice", "usdt", "1") for n in range(number, number + 10)])
        except StoreUnavailable:
            return number
    raise AssertionError("the disk never became full")


def test_disk_that_fills_up_tells_callers_and_goes_on_once_there_is_room(small_disk: Path) -> None:
    """Filled in the middle of writes: the failed group is nowhere, and is booked once when it is sent again."""
    with _prepared(small_disk / "data") as ledger:
        ballast = fill(small_disk)
        for attempt in range(3):
            failed = _deposit_until_refused(ledger, 1000 * attempt)
            seq = ledger.head.seq
            expected = ledger.balances(SPOT)["usdt"].available
            with pytest.raises(StoreUnavailable) as refused:
                ledger.execute([Deposit(f"d{failed}", "alice", "usdt", "1")])
            assert "full" in str(refused.value)
            assert ledger.head.seq == seq
            assert ledger.balances(SPOT)["usdt"].available == expected
            assert ledger.entry_of_key(f"d{failed}") is None
            assert ledger.entries(seq) == []
            ballast.unlink()
            outcomes = ledger.execute([Deposit(f"d{n}", "alice", "usdt", "1") for n in range(failed, failed + 10)])
            assert [type(outcome) for outcome in outcomes] == [Receipt] * 10
            assert not any(outcome.replayed for outcome in outcomes)
            assert ledger.head.seq == seq + 10
            assert ledger.balances(SPOT)["usdt"].available == expected + 10 * 10**8
            ballast = fill(small_disk)
        ballast.unlink()
    assert check_books(small_disk / "data").balances["alice", "spot", "usdt"][0] > 100 * 10**8


def test_start_on_a_full_disk_is_refused_in_words(small_disk: Path) -> None:
    """A ledger whose disk is full cannot be opened, says so, and opens once there is room."""
    _prepared(small_disk / "data").close()
    ballast = fill(small_disk)
    with pytest.raises(DataFolderUnusable, match="full"):
        spotledger.open(small_disk / "data")
    ballast.unlink()
    with spotledger.open(small_disk / "data") as ledger:
        assert ledger.balances(SPOT)["usdt"].available == 100 * 10**8


_LIMITED = """
import resource, signal, sys
import spotledger
from spotledger.domain.accounts import Account
from spotledger.domain.operations import Deposit
from spotledger.errors import StoreUnavailable
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = sys.argv[1]
ledger = spotledger.open(folder)
ledger.list_coin("usdt", 8, key="coin")
ledger.register_customer("alice", key="alice")
size = (__import__("pathlib").Path(folder) / "journal.db-wal").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, resource.RLIM_INFINITY))
number, failures = 0, 0
while failures < 3:
    try:
        ledger.execute([Deposit(f"d{number}", "alice", "usdt", "1")])
        number += 1
    except StoreUnavailable as error:
        failures += 1
        held = ledger.balances(Account("alice", "spot"))["usdt"].available
        assert held == number * 10**8, (held, number)
        assert ledger.entry_of_key(f"d{number}") is None
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.execute([Deposit(f"d{number}", "alice", "usdt", "1")])
assert ledger.balances(Account("alice", "spot"))["usdt"].available == (number + 1) * 10**8
ledger.close()
print(number + 1)
"""


def test_write_errors_of_the_system_leave_nothing_half_done(tmp_path: Path) -> None:
    """A file that may not grow makes commits fail with an I/O error; nothing of them is left, and writes go on."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    books = check_books(tmp_path)
    assert books.balances["alice", "spot", "usdt"] == [int(done.stdout) * 10**8, 0]
