"""The data folder: its one owner, and the secret files in it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spotledger.errors import DataFolderInUse, DataFolderUnusable, FileUnusable, MasterKeyRefused
from spotledger.storage.folder import (
    FolderLock,
    Owner,
    first_token,
    load_master_key,
    proof_of,
    read_note,
    read_owner,
    read_token,
    write_secret_file,
)

HOLD_AND_WAIT = """
import sys
from spotledger.storage.folder import FolderLock
lock = FolderLock(sys.argv[1])
lock.acquire('{"pid": 4711, "operator": "http://127.0.0.1:9"}')
print("held", flush=True)
sys.stdin.read()
"""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folder_lock_makes_the_folder_for_its_owner_only(tmp_path: Path) -> None:
    """The folder is made with its parents, mode 0700, and the lock file with mode 0600."""
    lock = FolderLock(tmp_path / "a" / "b")
    lock.acquire()
    assert mode_of(tmp_path / "a" / "b") == 0o700
    assert mode_of(tmp_path / "a" / "b" / "owner.lock") == 0o600
    lock.release()


def test_folder_lock_second_in_one_process_is_refused(tmp_path: Path) -> None:
    """Two owners in one process are no better than in two."""
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    first.acquire()
    with pytest.raises(DataFolderInUse) as refusal:
        second.acquire()
    assert f"process {os.getpid()}" in refusal.value.message
    assert not second.held
    first.release()
    second.acquire()
    second.release()


def test_folder_lock_second_process_is_told_who_and_where_until_the_first_is_killed(tmp_path: Path) -> None:
    """The refusal names process and address; a kill frees the folder at once, with the note still in the file."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_AND_WAIT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataFolderInUse) as refusal:
            FolderLock(tmp_path).acquire()
        assert "process 4711, which listens at http://127.0.0.1:9" in refusal.value.message
        assert refusal.value.details["pid"] == 4711
        assert read_owner(tmp_path)[:3] == Owner(4711, None, "http://127.0.0.1:9")[:3]
        holder.kill()
    assert (tmp_path / "owner.lock").read_text() != ""
    assert read_owner(tmp_path) is None
    lock = FolderLock(tmp_path)
    lock.acquire()
    lock.release()


@pytest.mark.parametrize("note", ["", "library", "[1]", '{"pid": "x"', "\x00\x01"])
def test_folder_lock_with_an_odd_note_is_refused_all_the_same(note: str, tmp_path: Path) -> None:
    """A note that says nothing readable never opens the folder, and breaks nothing."""
    first = FolderLock(tmp_path)
    first.acquire()
    first.write_note(note)
    with pytest.raises(DataFolderInUse, match="another process"):
        FolderLock(tmp_path).acquire()
    assert read_owner(tmp_path) == Owner(0)
    first.release()


def test_folder_note_is_replaced_whole_and_gone_after_release(tmp_path: Path) -> None:
    """A shorter note leaves nothing of the longer one; nobody owns a folder that was released."""
    lock = FolderLock(tmp_path)
    assert read_note(tmp_path) is None
    lock.acquire(json.dumps({"pid": 1, "public": "x" * 200}))
    lock.write_note('{"pid": 2}')
    note = json.loads(str(read_note(tmp_path)))
    assert (set(note), note["pid"]) == ({"pid", "proof_key"}, 2)
    lock.release()
    lock.release()
    assert read_note(tmp_path) is None


def test_folder_note_read_at_the_same_time_keeps_nobody_out(tmp_path: Path) -> None:
    """Whoever only looks who owns the folder does not stand in the way of one who takes it."""
    looker = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib\nfrom spotledger.storage.folder import read_note\n"
            "print('looking', flush=True)\nwhile True: read_note(pathlib.Path(sys.argv[1]))",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )
    with looker:
        assert looker.stdout is not None
        assert looker.stdout.readline() == b"looking\n"
        for _ in range(50):
            lock = FolderLock(tmp_path)
            lock.acquire()
            lock.release()
        looker.kill()


def test_folder_lock_proves_to_who_read_the_note_that_it_wrote_it(tmp_path: Path) -> None:
    """Each holder has a key of its own, and each challenge another answer."""
    lock, proofs = FolderLock(tmp_path), set()
    for _ in range(2):
        lock.acquire()
        owner = read_owner(tmp_path)
        assert owner is not None
        assert lock.prove("one") == proof_of(owner.proof_key, "one") != lock.prove("two")
        assert owner.proof_key not in repr(owner)
        proofs.add(lock.prove("one"))
        lock.release()
    assert len(proofs) == 2


def test_token_file_that_the_operator_names_may_be_a_link_or_a_pipe_and_no_open_file(tmp_path: Path) -> None:
    """A secret that others may read is refused wherever it is; the path to it is the operator's."""
    write_secret_file(tmp_path / "token", "ab" * 32)
    (tmp_path / "link").symlink_to(tmp_path / "token")
    assert read_token(tmp_path / "link", named_by_us=False) == "ab" * 32
    reading, writing = os.pipe()
    os.write(writing, b"cd" * 32)
    os.close(writing)
    assert read_token(Path(f"/dev/fd/{reading}"), named_by_us=False) == "cd" * 32
    os.close(reading)
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(FileUnusable, match="has mode 0640"):
        read_token(tmp_path / "link", named_by_us=False)


def test_folder_lock_on_a_file_is_unusable(tmp_path: Path) -> None:
    """A file in place of the folder, or of its parent, is named as what it is."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataFolderUnusable, match="not a folder"):
            FolderLock(path).acquire()


def test_folder_lock_with_a_folder_in_place_of_the_lock_file_is_unusable(tmp_path: Path) -> None:
    """What stands in the way inside the folder is named too."""
    (tmp_path / "owner.lock").mkdir()
    with pytest.raises(DataFolderUnusable, match=r"owner\.lock"):
        FolderLock(tmp_path).acquire()


def test_folder_note_written_without_the_lock_is_a_mistake(tmp_path: Path) -> None:
    """Only the owner may say who the owner is."""
    with pytest.raises(RuntimeError):
        FolderLock(tmp_path).write_note("{}")


def test_secret_file_is_whole_and_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    """Mode 0600 from the start, and nothing is left beside it."""
    before = os.umask(0)
    try:
        write_secret_file(tmp_path / "secret", "s" * 64)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "secret") == 0o600
    assert (tmp_path / "secret").read_text() == "s" * 64 + "\n"
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_secret_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """A secret is never written over."""
    (tmp_path / "secret").write_text("first")
    with pytest.raises(FileExistsError):
        write_secret_file(tmp_path / "secret", "second")
    assert (tmp_path / "secret").read_text() == "first"


def test_secret_file_after_a_start_that_was_killed_is_written_anew(tmp_path: Path) -> None:
    """What a killed start left half-written is no secret file, and does not stand in the way of one."""
    (tmp_path / ".secret.new").write_text("ha")
    write_secret_file(tmp_path / "secret", "whole")
    assert (tmp_path / "secret").read_text() == "whole\n"
    assert not (tmp_path / ".secret.new").exists()


def test_secret_file_in_a_folder_that_is_gone_is_unusable(tmp_path: Path) -> None:
    """A folder that cannot take the file is named."""
    with pytest.raises(DataFolderUnusable):
        write_secret_file(tmp_path / "gone" / "secret", "s")


def test_master_key_of_an_empty_folder_is_made_once(tmp_path: Path) -> None:
    """The first start makes a key, and the next one reads the same."""
    made = load_master_key(tmp_path, None, {}, may_make=True)
    assert len(made) == 32
    assert mode_of(tmp_path / "master.key") == 0o600
    assert load_master_key(tmp_path, None, {}, may_make=False) == made


def test_master_key_missing_when_secrets_are_sealed_is_refused(tmp_path: Path) -> None:
    """No new key is made beside secrets that it could not open."""
    with pytest.raises(MasterKeyRefused, match=r"master\.key is missing"):
        load_master_key(tmp_path, None, {}, may_make=False)
    assert list(tmp_path.iterdir()) == []


def test_master_key_variable_before_named_file_before_own_file(tmp_path: Path) -> None:
    """The environment counts first, then the named file, then the folder's own."""
    write_secret_file(tmp_path / "named", "22" * 32)
    write_secret_file(tmp_path / "master.key", "33" * 32)
    environ = {"SPOTLEDGER_MASTER_KEY": "11" * 32}
    assert load_master_key(tmp_path, tmp_path / "named", environ, may_make=False) == b"\x11" * 32
    assert load_master_key(tmp_path, tmp_path / "named", {}, may_make=False) == b"\x22" * 32
    assert load_master_key(tmp_path, None, {}, may_make=False) == b"\x33" * 32


@pytest.mark.parametrize("text", ["", "11" * 31, "11" * 33, "zz" * 32, "１" * 64])
def test_master_key_malformed_is_refused_without_a_word_of_it(text: str, tmp_path: Path) -> None:
    """A malformed key is refused wherever it comes from; a variable that is set but empty is malformed too."""
    with pytest.raises(MasterKeyRefused) as refusal:
        load_master_key(tmp_path, None, {"SPOTLEDGER_MASTER_KEY": text}, may_make=True)
    assert not text or text not in refusal.value.message
    assert list(tmp_path.iterdir()) == []


def test_first_token_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    """The token is made once; a file with another one is read and kept."""
    made = first_token(tmp_path)
    assert first_token(tmp_path) == made
    assert mode_of(tmp_path / "operator.token") == 0o600
    (tmp_path / "operator.token").write_text("ab" * 32)
    assert first_token(tmp_path) == "ab" * 32


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"ab" * 33, b"ab" * 16 + b"\n" + b"ab" * 16])
def test_token_file_without_a_token_is_refused_without_a_word_of_it(content: bytes, tmp_path: Path) -> None:
    """A file that holds no token is named; its content is not repeated."""
    (tmp_path / "operator.token").write_bytes(content)
    (tmp_path / "operator.token").chmod(0o600)
    with pytest.raises(DataFolderUnusable) as refusal:
        read_token(tmp_path / "operator.token")
    assert "64 hex digits" in refusal.value.message
    with pytest.raises(FileUnusable, match="does not exist"):
        read_token(tmp_path / "none")
