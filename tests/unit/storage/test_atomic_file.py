"""Files that appear whole under their name or not at all, and never replace another."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from spotledger.errors import FileUnusable, InvalidRequest, StoreUnavailable
from spotledger.storage.atomic_file import PARTIAL, move, write_atomically


def test_file_gets_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    """While the block runs nothing has the name; afterwards the file is there, readable by its owner only."""
    file = tmp_path / "a.backup"
    with write_atomically(file, "backup") as partial:
        partial.write_bytes(b"whole")
        assert not file.exists()
    assert file.read_bytes() == b"whole"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["a.backup"]


def test_file_whose_block_fails_leaves_nothing(tmp_path: Path) -> None:
    """An exception passes through unchanged and takes the partial file with it, its database files included."""

    def fail() -> None:
        with write_atomically(tmp_path / "a", "backup") as partial:
            partial.write_bytes(b"half")
            partial.with_name(partial.name + "-wal").write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["file", "folder", "dangling link"])
def test_file_whose_name_is_taken_is_refused_and_what_is_there_stays(tmp_path: Path, taken: str) -> None:
    """A file, a folder or a link that points nowhere keeps its name."""
    place = tmp_path / "a"
    if taken == "file":
        place.write_bytes(b"before")
    elif taken == "folder":
        place.mkdir()
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = os.lstat(place)
    with pytest.raises(InvalidRequest), write_atomically(place, "backup"):
        pytest.fail("the block must not run")
    assert os.lstat(place) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_name_that_is_taken_while_the_file_is_written_is_not_replaced(tmp_path: Path) -> None:
    """Somebody else's file that appears in the meantime is kept, and the writer is refused."""
    file = tmp_path / "a"

    def write() -> None:
        with write_atomically(file, "backup") as partial:
            partial.write_bytes(b"ours")
            file.write_bytes(b"theirs")

    with pytest.raises(InvalidRequest) as refused:
        write()
    assert refused.value.details["field"] == "file"
    assert file.read_bytes() == b"theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_partial_file_of_a_killed_process_is_written_over(tmp_path: Path) -> None:
    """What a killed process left under the partial name, a link included, neither blocks nor receives the new file."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"untouched")
    (tmp_path / f".a{PARTIAL}").symlink_to(elsewhere)
    with write_atomically(tmp_path / "a", "backup") as partial:
        assert partial.read_bytes() == b""
        partial.write_bytes(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert elsewhere.read_bytes() == b"untouched"


def test_file_in_a_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    """No folder is made on the way."""
    with pytest.raises(FileUnusable), write_atomically(tmp_path / "no" / "a", "backup"):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StoreUnavailable),
        (errno.EDQUOT, StoreUnavailable),
        (errno.EIO, StoreUnavailable),
        (errno.EROFS, FileUnusable),
        (errno.EACCES, FileUnusable),
    ],
)
def test_error_of_the_disk_says_whether_another_name_would_help(tmp_path: Path, code: int, kind: type) -> None:
    """A full or failing disk is to be tried again later; a place that cannot be written is named."""
    with pytest.raises(kind, match="new-backup"), write_atomically(tmp_path / "new-backup", "backup"):
        raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []


def test_move_onto_another_file_keeps_both(tmp_path: Path) -> None:
    """A file is moved to a free name only; refused, it stays where it was."""
    source, file = tmp_path / "source", tmp_path / "file"
    source.write_bytes(b"source")
    file.write_bytes(b"file")
    with pytest.raises(InvalidRequest):
        move(source, file, "backup")
    assert (source.read_bytes(), file.read_bytes()) == (b"source", b"file")
    file.unlink()
    move(source, file, "backup")
    assert file.read_bytes() == b"source"
    assert not source.exists()


def test_move_to_another_disk_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel cannot link across two disks, the file is copied and the old name removed."""
    source, file = tmp_path / "source", tmp_path / "file"
    source.write_bytes(b"source")
    link = os.link

    def across_disks(one: Path, other: Path) -> None:
        if one == source:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        link(one, other)

    monkeypatch.setattr(os, "link", across_disks)
    move(source, file, "backup")
    assert file.read_bytes() == b"source"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
