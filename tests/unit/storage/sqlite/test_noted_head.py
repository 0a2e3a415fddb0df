"""The noted head: one whole slot is left whatever happens, and a flipped bit is never taken for a note."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from spotledger.errors import FileUnusable, LedgerCorrupt
from spotledger.storage.sqlite.noted_head import Note, NotedHead, read_note
from spotledger.storage.two_slots import BLOCK_BYTES

LEDGER = "11111111-2222-4333-8444-555555555555"


def note(seq: int) -> Note:
    """Return a note of the entry *seq*."""
    return Note(LEDGER, 1, seq, bytes([seq % 256]) * 32, 1_700_000_000_000 + seq, seq // 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name the file."""
    return tmp_path / "noted-head"


def noted(path: Path, *seqs: int) -> None:
    """Write notes one after the other, with a new start for each."""
    for seq in seqs:
        head = NotedHead(path)
        head.write(note(seq))
        head.close()


def test_note_that_was_never_made_is_missing(path: Path) -> None:
    """Before the first start nothing is noted; afterwards there is a private file without a note in it."""
    assert read_note(path) is None
    head = NotedHead(path)
    assert (head.note, head.damaged_slot) == (None, None)
    head.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_note(path) is None


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_note_read_is_the_last_that_was_written(path: Path, count: int) -> None:
    """The newest of both slots counts, in the same process and after a start, and neither is called damaged."""
    noted(path, *range(1, count + 1))
    head = NotedHead(path)
    assert (head.note, head.damaged_slot) == (note(count), None)
    head.write(note(100))
    assert head.note == note(100) == read_note(path)
    head.close()


def test_note_with_one_damaged_slot_is_the_other(path: Path) -> None:
    """A write that was cut off leaves the note before; which slot is damaged is said."""
    noted(path, 1, 2, 3)
    content = bytearray(path.read_bytes())
    content[BLOCK_BYTES + 50] ^= 1
    path.write_bytes(content)
    head = NotedHead(path)
    assert head.note == note(2)
    assert head.damaged_slot == 1
    head.write(note(4))
    head.close()
    head = NotedHead(path)
    assert (head.note, head.damaged_slot) == (note(4), None)
    head.close()


def test_note_with_two_damaged_slots_is_refused(path: Path) -> None:
    """Nobody knows then how far the journal went."""
    noted(path, 1, 2)
    path.write_bytes(bytes(2 * BLOCK_BYTES))
    with pytest.raises(LedgerCorrupt, match="spotledger recover"):
        NotedHead(path)
    with pytest.raises(LedgerCorrupt):
        read_note(path)


def test_note_with_any_flipped_bit_is_never_another_note(path: Path) -> None:
    """Whatever bit of the file is flipped, the note read is one of the two that were written."""
    noted(path, 7, 8)
    whole = path.read_bytes()
    used = 200
    draw = random.Random(15)
    bits = [*range(8 * used), *(draw.randrange(16 * BLOCK_BYTES) for _ in range(2_000))]
    for bit in [*bits, *(bit + 8 * BLOCK_BYTES for bit in bits[: 8 * used])]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        head = NotedHead(path)
        assert head.note in (note(7), note(8))
        assert head.damaged_slot == bit // 8 // BLOCK_BYTES
        head.close()


def test_note_that_is_cut_short_falls_back_or_is_refused(path: Path) -> None:
    """A file that was cut has one slot at most."""
    noted(path, 1, 2, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: BLOCK_BYTES + 100])
    assert read_note(path) == note(2)
    path.write_bytes(whole[:100])
    with pytest.raises(LedgerCorrupt):
        read_note(path)


def test_note_is_no_symbolic_link(path: Path, tmp_path: Path) -> None:
    """A link planted in the folder is not followed."""
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.raises(FileUnusable, match="noted-head is a symbolic link"):
        NotedHead(path)
    assert target.read_bytes() == b"precious"
    assert os.path.islink(path)  # noqa: PTH114 - the link itself is meant
