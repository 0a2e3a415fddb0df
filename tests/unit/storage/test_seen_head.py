"""Which server is right: every combination of what a node saw and what a server has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.seen_head import (
    SEEN_FILE,
    NotCaughtUp,
    OtherHistory,
    Place,
    Seen,
    SeenHead,
    ServerId,
    check_place,
    read_seen,
)

LEDGER = "11111111-2222-4333-8444-555555555555"
OTHER = "99999999-2222-4333-8444-555555555555"
HASH, ANOTHER = b"h" * 32, b"a" * 32
SEEN = Seen(LEDGER, 2, 100, HASH, 7, 3)


def place(
    *,
    ledger_id: str = LEDGER,
    epoch: int = 2,
    seq: int = 100,
    kept: bytes | None = HASH,
    server: ServerId = ServerId(7, 3),  # noqa: B008 - it is immutable
    is_standby: bool = False,
) -> Place:
    """Return what a server has; without arguments, just what was seen."""
    return Place("db1:5432", ledger_id, epoch, seq, kept, server, is_standby)


@pytest.mark.parametrize(
    "right",
    [
        place(),
        place(seq=5000),
        place(server=ServerId(7, 4)),
        place(server=ServerId(8, 1)),  # a dump that was loaded into another cluster
        place(server=ServerId()),  # a server that does not say
        place(server=ServerId(7, 0)),
        place(epoch=3, seq=60, kept=None),  # put back, and an epoch begun
        place(epoch=3, seq=600, kept=ANOTHER),
        place(epoch=3, seq=60, kept=None, server=ServerId(7, 1)),
        place(seq=200, kept=None),  # damage, which is for whoever reads it to find
        place(is_standby=True, server=ServerId()),
    ],
)
def test_server_that_goes_on_from_what_was_seen_is_right(right: Place) -> None:
    """It has the entry, or a later epoch."""
    check_place(SEEN, right)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (place(seq=99, kept=None), "ends at entry 99 of epoch 2, and this node has seen entry 100 of epoch 2"),
        (
            place(seq=0, kept=None, epoch=1),
            r"ends at entry 0 of epoch 1.*epoch begin --database … --epoch 3 --accept-loss --reason",
        ),
        (place(kept=ANOTHER), "another entry 100 .*; its journal ends at entry 100"),
        (place(seq=5000, kept=ANOTHER), "another entry 100 .*; its journal ends at entry 5000"),
        (place(server=ServerId(7, 2)), "on timeline 2, at entry 100, .* seen timeline 3"),
        (place(server=ServerId(7, 2), seq=5000), "on timeline 2"),
        (place(ledger_id=OTHER, epoch=9), f"has the ledger {OTHER}"),
        (place(kept=ANOTHER, is_standby=True), "another entry 100"),
    ],
)
def test_server_that_does_not_is_wrong_and_both_positions_are_named(wrong: Place, message: str) -> None:
    """It is unavailable, not damaged."""
    with pytest.raises(OtherHistory, match=message) as refused:
        check_place(SEEN, wrong)
    assert isinstance(refused.value, StoreUnavailable)
    assert refused.value.code == "store_unavailable"


def test_standby_that_is_behind_has_not_caught_up() -> None:
    """It is no wrong server."""
    with pytest.raises(NotCaughtUp, match="at entry 99, behind entry 100"):
        check_place(SEEN, place(seq=99, kept=None, is_standby=True))


def test_what_was_seen_is_there_after_a_restart(tmp_path: Path) -> None:
    """Only later entries and servers replace it, whatever the order in which threads note them."""
    seen = SeenHead(tmp_path)
    assert seen.seen is None
    seen.note_server(ServerId(7, 3))
    for epoch, seq in ((1, 5), (2, 100), (2, 99), (1, 5000)):
        seen.note(LEDGER, epoch, Head(seq, HASH, 0))
    seen.note_server(ServerId(7, 2))
    assert seen.seen == SEEN
    seen.close()
    again = SeenHead(tmp_path)
    assert again.seen == SEEN
    again.note_server(ServerId(7, 4))  # with nothing new in the journal
    again.close()
    last = SeenHead(tmp_path)
    assert last.seen == SEEN._replace(timeline=4)
    last.close()


def test_older_timeline_with_a_later_epoch_is_taken(tmp_path: Path) -> None:
    """A server that was put back with its files may be on an older timeline; the epoch counts."""
    seen = SeenHead(tmp_path)
    seen.note_server(ServerId(7, 3))
    assert seen.is_current(ServerId(7, 3))
    seen.note_server(ServerId(7, 2), later_epoch=True)
    assert seen.is_current(ServerId(7, 2))
    assert not seen.is_current(ServerId(7, 3))
    assert seen.is_current(ServerId())
    seen.close()


def test_what_one_worker_saw_counts_for_all_at_a_start(tmp_path: Path) -> None:
    """Each has its own file, and a start takes the latest entry and timeline of them."""
    one, two = SeenHead(tmp_path), SeenHead(tmp_path, 2)
    one.note_server(ServerId(7, 4))
    two.note_server(ServerId(7, 3))
    one.note(LEDGER, 2, Head(90, ANOTHER, 0))
    two.note(LEDGER, 2, Head(100, HASH, 0))
    one.close()
    two.close()
    assert {path.name for path in tmp_path.iterdir()} == {SEEN_FILE, f"{SEEN_FILE}-2"}
    for worker in (0, 1, 2):
        seen = SeenHead(tmp_path, worker)
        assert seen.seen == SEEN._replace(timeline=4)
        seen.close()


def test_file_that_is_damaged_throughout_is_refused(tmp_path: Path) -> None:
    """Nobody knows then which server is right."""
    (tmp_path / SEEN_FILE).write_bytes(bytes(8192))
    with pytest.raises(LedgerCorrupt, match="both slots"):
        SeenHead(tmp_path)


def test_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The message has the path."""
    with pytest.raises(StoreUnavailable, match=SEEN_FILE):
        SeenHead(tmp_path / "missing")


def test_note_that_cannot_be_written_is_logged_once_and_kept_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The node goes on, and says what a restart may do."""
    seen = SeenHead(tmp_path)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spotledger.storage.two_slots.os.pwrite", full)
    with caplog.at_level(logging.ERROR, "spotledger.store"):
        seen.note(LEDGER, 1, Head(1, HASH, 0))
        seen.note(LEDGER, 1, Head(2, HASH, 0))
    assert [record.getMessage() for record in caplog.records if "No space left" in record.getMessage()] == [
        caplog.records[0].getMessage()
    ]
    assert seen.seen is not None
    assert seen.seen.seq == 2
    monkeypatch.undo()
    seen.note(LEDGER, 1, Head(3, HASH, 0))
    seen.close()
    again = SeenHead(tmp_path)
    assert again.seen == Seen(LEDGER, 1, 3, HASH)
    again.close()


def test_what_was_seen_is_read_beside_the_node_and_nothing_is_written(tmp_path: Path) -> None:
    """A command reads what the latest worker saw, while all of them run; no folder and no file are nothing seen."""
    for missing in (tmp_path / "missing", tmp_path):
        assert read_seen(missing) is None
    assert list(tmp_path.iterdir()) == []
    one, two = SeenHead(tmp_path), SeenHead(tmp_path, 1)
    assert read_seen(tmp_path) is None
    two.note(LEDGER, 1, Head(9, HASH, 0))
    one.note(LEDGER, 1, Head(8, ANOTHER, 0))
    assert read_seen(tmp_path) == Seen(LEDGER, 1, 9, HASH)
    two.close()
    one.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [SEEN_FILE, f"{SEEN_FILE}-1"]


def test_what_was_seen_and_cannot_be_read_is_no_absence(tmp_path: Path) -> None:
    """A file that is damaged throughout, or is none, is named."""
    (tmp_path / SEEN_FILE).write_bytes(b"x" * 8192)
    with pytest.raises(LedgerCorrupt, match="both slots"):
        read_seen(tmp_path)
    (tmp_path / SEEN_FILE).unlink()
    (tmp_path / SEEN_FILE).mkdir()
    with pytest.raises(StoreUnavailable, match="cannot be read: Is a directory"):
        read_seen(tmp_path)
    (tmp_path / "file").touch()
    assert read_seen(tmp_path / "file") is None
