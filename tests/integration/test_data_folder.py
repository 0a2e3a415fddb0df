"""A data folder that somebody else could have touched is refused, before anything in it is believed or changed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from spotledger.cli.main import program
from spotledger.errors import FileUnusable
from spotledger.storage.folder import make_folder
from spotledger.storage.packed_file import replace_packed
from support_json_server import JsonServer

NOBODY = 65534
#: Only a start of the service reads these.
OF_SERVICE = ("operator.token", "replay-memory", "locks")
SECRETS = ("owner.lock", "master.key", *OF_SERVICE)
FILES = ("journal.db", "books.db", "keys.db", "noted-head", "access-log.db", *SECRETS)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(program, [*(arguments or ("coin", "list")), "--data", str(folder)])


def run_using(name: str, folder: Path) -> Result:
    """Run a command that uses the file *name*."""
    if name not in OF_SERVICE:
        return run(folder)
    command = [str(Path(sys.executable).with_name("spotledger")), "serve", "--data", str(folder)]
    listen = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")
    done = subprocess.run([*command, *listen], capture_output=True, timeout=20, check=False)
    return Result(CliRunner(), done.stdout, done.stderr, done.stdout + done.stderr, None, done.returncode, None)


def refused(result: Result, *texts: str) -> None:
    """The command ended with one line that says what was found and what would pass, and exit code 3."""
    assert result.exit_code == 3, result.output
    assert re.fullmatch(r"spotledger: .* would pass.*\[file_unusable\]\n", result.output), result.output
    for text in texts:
        assert text in result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a ledger in it."""
    made = tmp_path / "data"
    assert run(made, "coin", "add", "btc", "--scale", "8").exit_code == 0
    assert run(made, "token", "create", "--scope", "ledger:read").exit_code == 0
    replace_packed(made / "locks", b"SpoL\x01\x00\x00\x00", [])  # as the last lock leaves it
    assert {file.name for file in made.iterdir()} >= set(FILES)
    return made


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_folder_that_others_may_write_in_is_refused(mode: int, folder: Path) -> None:
    """Whoever may write in the folder may replace what is in it."""
    folder.chmod(mode)
    refused(run(folder), f"{mode:04o}", "chmod 700")
    empty = folder.parent / "empty"
    empty.mkdir()
    empty.chmod(mode)
    refused(run(empty, "coin", "add", "btc", "--scale", "8"), f"{mode:04o}")
    assert list(empty.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755, 0o711])
def test_folder_that_others_may_only_read_is_used(mode: int, folder: Path) -> None:
    """Its files are closed to them by their own modes."""
    folder.chmod(mode)
    assert run(folder).exit_code == 0


def test_folder_that_is_a_link_of_the_operator_is_used(folder: Path) -> None:
    """What the operator names may be a link."""
    (folder.parent / "link").symlink_to(folder)
    assert run(folder.parent / "link").exit_code == 0


@needs_root
def test_folder_of_somebody_else_is_refused(folder: Path) -> None:
    """Its owner may do with it what they like."""
    os.chown(folder, NOBODY, NOBODY)
    refused(run(folder), "belongs to the user nobody", "the user root would pass")


@needs_root
@pytest.mark.parametrize("name", FILES)
def test_file_of_somebody_else_is_refused(name: str, folder: Path) -> None:
    """A planted token, key, lock or ledger is not believed."""
    os.chown(folder / name, NOBODY, NOBODY)
    before = (folder / name).read_bytes()
    refused(run_using(name, folder), str(folder / name), "belongs to the user nobody")
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_file_that_others_may_use_is_refused(name: str, mode: int, folder: Path) -> None:
    """A file whose mode was changed later is noticed at the next open; an auditor may be let read a ledger."""
    if mode == 0o644 and name not in SECRETS:
        (folder / name).chmod(mode)
        assert run(folder).exit_code == 0
        return
    (folder / name).chmod(mode)
    refused(run_using(name, folder), f"{folder / name} has mode {mode:04o}", "chmod 600")


@pytest.mark.parametrize("name", [*FILES, "journal.db-wal", "keys.db-shm", "books.db-journal"])
@pytest.mark.parametrize("kind", ["of ours", "precious", "dangling"])
def test_link_in_place_of_a_file_is_refused_and_its_target_untouched(name: str, kind: str, folder: Path) -> None:
    """The service neither reads nor writes nor makes a file that a link points to."""
    target = folder.parent / "target"
    file = folder / name
    if kind == "of ours" and file.exists():
        file.rename(target)
    else:
        file.unlink(missing_ok=True)
        if kind != "dangling":
            target.write_bytes(b"precious" * 100)
            target.chmod(0o600)
    file.symlink_to(target)
    before = target.read_bytes() if target.exists() else None
    refused(run_using(name, folder), f"{file} is a symbolic link")
    assert (target.read_bytes() if target.exists() else None) == before


@pytest.mark.parametrize("name", [*SECRETS, "noted-head", "journal.db"])
def test_pipe_in_place_of_a_file_is_refused_at_once(name: str, folder: Path) -> None:
    """What is no file is neither read nor waited for."""
    (folder / name).unlink()
    os.mkfifo(folder / name, 0o600)
    refused(run_using(name, folder), f"{folder / name} is no regular file")


def test_folder_of_a_restore_that_is_a_link_is_refused(folder: Path) -> None:
    """A link in place of a folder that a start takes files from is not followed."""
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    (folder / "restored").symlink_to(folder.parent / "elsewhere")
    refused(run(folder), "is a symbolic link")


def test_folder_of_backups_may_be_a_link_but_not_one_where_others_write(folder: Path) -> None:
    """The operator may put backups on another disk; the folder there is checked like the others."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (folder / "backups").symlink_to(elsewhere)
    make_folder(folder / "backups", may_be_link=True)
    elsewhere.chmod(0o777)
    with pytest.raises(FileUnusable, match="0700 would pass"):
        make_folder(folder / "backups", may_be_link=True)


@pytest.fixture
def stranger() -> Iterator[JsonServer]:
    """Give a server at the address in a note."""
    with JsonServer() as started:
        yield started
        started.shutdown()


@pytest.mark.parametrize("proof_key", [None, "", "ab" * 32])
@pytest.mark.parametrize("proof", [None, "", "00" * 32, 7])
def test_service_that_does_not_prove_that_it_wrote_the_note_gets_no_token(
    proof_key: str | None, proof: object, folder: Path, stranger: JsonServer
) -> None:
    """A note that a killed service left, under a lock that a stranger holds, sends no token anywhere."""
    stranger.answer = lambda: {"proof": proof}
    url = stranger.url
    note = {"pid": 4711, "operator": url} | ({} if proof_key is None else {"proof_key": proof_key})
    with (folder / "owner.lock").open("r+") as lock:
        lock.write(json.dumps(note))
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run(folder)
    assert result.exit_code == 3, result.output
    assert "does not prove that it owns" in result.output
    assert "no token was sent" in result.output
    token = (folder / "operator.token").read_text().strip()
    assert not [head for head in stranger.heads if "authorization" in head.lower() or token in head]
