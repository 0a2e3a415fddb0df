"""kill -9 at random moments: what was acknowledged is there once, and the books are whole."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spotledger
from spotledger.domain.operations import Deposit
from spotledger.ledger.ledger import Receipt
from support_books import check_books, opened

SCRIPT = Path(__file__).with_name("stream_of_writes.py")
START_SECONDS = 20
KILLS = 12


@pytest.mark.parametrize("segment_entries", [32, 256])
def test_killed_writer_loses_no_acknowledged_entry_and_doubles_none(tmp_path: Path, segment_entries: int) -> None:
    """A process that is killed again and again, also while it seals a segment, leaves whole books each time."""
    choose = random.Random(segment_entries)
    acknowledged: dict[str, bool] = {}
    half_sealed = 0
    for seed in range(KILLS):
        acknowledged |= _write_until_killed(tmp_path, seed, segment_entries, choose.uniform(0.02, 0.5))
        books = check_books(tmp_path)
        for key, refused in acknowledged.items():
            assert key in books.keys, f"the acknowledged {key} is lost after kill {seed}"
            assert (key in books.refusals) == refused
        half_sealed += _is_behind(tmp_path, segment_entries)
    assert len(acknowledged) > KILLS
    assert half_sealed, "no kill fell into a sealing; the test has lost its point"


def test_reopened_ledger_answers_acknowledged_keys_as_repeats(tmp_path: Path) -> None:
    """After a kill, each acknowledged key is known, and sent with another content it is a conflict."""
    acknowledged = _write_until_killed(tmp_path, 7, 64, 0.4)
    with spotledger.open(tmp_path) as ledger:
        before = ledger.head.seq
        for key in acknowledged:
            entry = ledger.entry_of_key(key)
            assert entry is not None
            outcome = ledger.execute([Deposit(key, "c0", "usdt", "123456")])[0]
            assert not isinstance(outcome, Receipt)
            assert outcome.code == "idempotency_conflict"
        assert ledger.head.seq == before
    check_books(tmp_path)


def _write_until_killed(folder: Path, seed: int, segment_entries: int, seconds: float) -> dict[str, bool]:
    """Start a writer, kill it *seconds* after its first answer, and return the keys that it acknowledged."""
    arguments = [sys.executable, str(SCRIPT), str(folder), str(seed), str(segment_entries)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        assert ready, "the writer did not start"
        time.sleep(seconds)
    finally:
        process.kill()
    output = process.stdout.read().decode()
    process.stdout.close()
    assert process.wait() == -9
    whole_lines = output.split("\n")[:-1]
    acknowledged = {}
    for name in (name for line in whole_lines for name in line.split(",")):
        acknowledged[name.removeprefix("refused ")] = name.startswith("refused ")
    return acknowledged


def _is_behind(folder: Path, segment_entries: int) -> bool:
    """Say whether a full segment is not in the books: the kill fell into its sealing, or before it."""
    with opened(folder / "journal.db") as journal, opened(folder / "books.db") as books:
        [(head_seq,)] = journal.execute("SELECT seq FROM head").fetchall()
        [(sealed_to,)] = books.execute("SELECT sealed_to FROM books").fetchall()
    return head_seq - sealed_to >= segment_entries


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_sealing_process_is_started_again_and_seals_all(tmp_path: Path, signal_number: int) -> None:
    """However often the process that seals is killed, writes go on, and in the end every full segment is sealed."""
    size = 4096
    with spotledger.open(tmp_path, segment_entries=size) as ledger:
        store = ledger._store
        ledger.list_coin("btc", 8, key="coin")
        ledger.register_customer("ann", key="customer")
        kills = group = 0
        deadline = time.monotonic() + 60
        while (group < 4 * size // 100 or kills < 3) and time.monotonic() < deadline:
            if group < 4 * size // 100:  # segments enough to be sealed, and not so many that writes are refused
                ledger.execute([Deposit(f"k{group}-{n}", "ann", "btc", "1") for n in range(100)])
                group += 1
            else:  # the pause before the next start may outlast them
                ledger.deposit("ann", "btc", "1", key=f"after-{time.monotonic_ns()}")
                time.sleep(0.005)
            child = store._sealing._child
            if child is not None and kills < 3:
                os.kill(child.pid, signal_number)
                child.wait()
                kills += 1
        assert (group, kills) == (4 * size // 100, 3)
        while store.sealed_to < ledger.head.seq // size * size and time.monotonic() < deadline:
            ledger.deposit("ann", "btc", "1", key=f"more-{time.monotonic_ns()}")
            time.sleep(0.005)
        assert store.sealed_to == ledger.head.seq // size * size
        assert store.rebuilds == 0
        assert ledger.execute([Deposit("k0-0", "ann", "btc", "1")])[0].replayed
    check_books(tmp_path)


def test_sealing_process_ends_with_its_parent(tmp_path: Path) -> None:
    """A service that is killed leaves no process behind, and none that holds the folder's lock."""
    program = (
        "import sys, spotledger, time\n"
        "from spotledger.domain.operations import Deposit\n"
        "ledger = spotledger.open(sys.argv[1], segment_entries=4096)\n"
        "ledger.list_coin('btc', 8, key='coin'); ledger.register_customer('ann', key='customer')\n"
        "for g in range(42): ledger.execute([Deposit(f'k{g}-{n}', 'ann', 'btc', '1') for n in range(100)])\n"
        "print(ledger._store._sealing._child.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()
    spotledger.open(tmp_path).close()
    check_books(tmp_path)
