"""kill -9 at random moments: what was acknowledged is there once, and the books are whole."""

from __future__ import annotations

import random
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

import spotledger
from spotledger.domain.operations import Deposit
from spotledger.ledger.ledger import Receipt
from support_books import check_books

SCRIPT = Path(__file__).with_name("stream_of_writes.py")
START_SECONDS = 20
#: The refusals of a stream that are not kept have no entry; there are none in it, so each answered key has one.
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
        half_sealed += _rows_beyond_the_seal(tmp_path)
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


def _rows_beyond_the_seal(folder: Path) -> int:
    import sqlite3

    connection = sqlite3.connect(folder / "ledger.db")
    try:
        query = "SELECT count(*) > 0 FROM key_seq, ledger WHERE key_seq.seq > ledger.sealed_to"
        return int(connection.execute(query).fetchone()[0])
    finally:
        connection.close()
