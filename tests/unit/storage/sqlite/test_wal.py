"""The look at a write-ahead log before SQLite opens it: damage is told from a transaction that was cut off."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from spotledger.storage.sqlite.wal import find_damage

PAGE = 4096
FRAME = 24 + PAGE


@pytest.fixture
def wal(tmp_path: Path) -> Path:
    """Give the log of a database that was not closed: twelve commits of a few pages each."""
    live = tmp_path / "live.db"
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
    for number in range(11):
        connection.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 3 * PAGE))
    copied = tmp_path / "copied.db-wal"
    shutil.copy(f"{live}-wal", copied)
    connection.close()
    return copied


def frames(wal: Path) -> int:
    """Count the frames."""
    return (wal.stat().st_size - 32) // FRAME


def flip(wal: Path, offset: int, bit: int = 0) -> None:
    """Change one bit."""
    content = bytearray(wal.read_bytes())
    content[offset] ^= 1 << bit
    wal.write_bytes(content)


def test_wal_that_is_whole_has_no_damage(wal: Path) -> None:
    """What SQLite wrote checks to its end; so does a log that is empty or not there."""
    assert frames(wal) > 30
    assert find_damage(wal) is None
    wal.write_bytes(b"")
    assert find_damage(wal) is None
    wal.unlink()
    assert find_damage(wal) is None


@pytest.mark.parametrize("part", ["page number", "size", "salt", "sum", "page"])
@pytest.mark.parametrize("where", [0, 0.3, 0.7])
def test_wal_with_a_flipped_bit_before_its_last_transaction_is_damaged(wal: Path, part: str, where: float) -> None:
    """A bit anywhere in a frame that commits follow is found, and its frame named."""
    number = int(frames(wal) * where)
    places = {"page number": 3, "size": 7, "salt": 9, "sum": 17, "page": 24 + 100}
    flip(wal, 32 + number * FRAME + places[part])
    damage = find_damage(wal)
    assert damage is not None
    assert (damage.frame, damage.offset) == (number + 1, 32 + number * FRAME)


def test_wal_with_a_flipped_bit_in_its_header_is_damaged(wal: Path) -> None:
    """A header that does not check would hide the whole log."""
    for offset in range(32):
        flip(wal, offset)
        damage = find_damage(wal)
        assert damage is not None, offset
        assert damage.frame in (0, 1), offset
        flip(wal, offset)
    assert find_damage(wal) is None


def test_wal_whose_last_transaction_was_cut_off_is_not_damaged(wal: Path) -> None:
    """As after a power cut: what was not acknowledged may be missing, in part, or garbage."""
    whole = wal.read_bytes()
    for cut in (1, 100, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME + 5):
        wal.write_bytes(whole[:-cut])
        assert find_damage(wal) is None, cut
    wal.write_bytes(whole[:-FRAME] + bytes(FRAME))
    assert find_damage(wal) is None
    wal.write_bytes(whole[:-500] + b"\xff" * 500)
    assert find_damage(wal) is None


def test_wal_that_was_begun_again_over_an_earlier_one_is_whole(tmp_path: Path) -> None:
    """Frames of an earlier round, with other salts, stand behind the current ones and mean nothing."""
    live = tmp_path / "live.db"
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, text TEXT)")
    for number in range(20):
        connection.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 3 * PAGE))
    connection.execute("PRAGMA wal_checkpoint(RESTART)")
    connection.execute("INSERT INTO t VALUES (100, 'one more')")
    connection.execute("INSERT INTO t VALUES (101, 'and one')")
    copied = tmp_path / "copied.db-wal"
    shutil.copy(f"{live}-wal", copied)
    connection.close()
    assert frames(copied) > 20
    assert find_damage(copied) is None
    flip(copied, 32 + 30)
    damage = find_damage(copied)
    assert damage is not None
    assert damage.frame == 1
