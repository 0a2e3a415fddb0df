"""A restore into a folder that had a ledger: what was revoked stays so, and a kill leaves no half of a ledger."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import MasterKeySource, Restored, restore
from spotledger.clock import now_ms
from spotledger.errors import (
    DataFolderUnusable,
    InvalidRequest,
    SetupError,
)
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import Tokens
from spotledger.storage.sqlite import copy as sqlite_copy
from spotledger.storage.sqlite.noted_head import NotedHead, read_note
from support_archive import (
    MASTER_KEY,
    RESTORED_FILES,
    filled,
    flip_bit,
    names_in,
    write_some,
)
from support_books import check_books
from support_core import raw


class Old:
    """A folder whose ledger went on after its backup, and then lost its journal."""

    def __init__(self, place: Path) -> None:
        self.folder, self.file = place / "data", place / "b"
        self.environ = {"SPOTLEDGER_MASTER_KEY": MASTER_KEY}
        with filled(self.folder, entries=80) as ledger:
            tables = ledger.key_tables
            tables.master_key_fingerprint = Cipher(bytes.fromhex(MASTER_KEY)).fingerprint
            ring = KeyRing(tables.access_keys, Cipher(bytes.fromhex(MASTER_KEY)), now_ms)
            tokens = Tokens(tables.tokens, now_ms)
            self.good, self.leaked = (ring.create("c1", ["read"])[0] for _ in range(2))
            self.good_token, self.leaked_token = (
                tokens.create(["ledger:read"], label)[0].token_id for label in ("good", "leaked")
            )
            back_up(ledger, self.file, now_ms)
            self.backup_seq = ledger.head.seq
            ring.revoke(self.leaked)
            tokens.revoke(self.leaked_token)
            self.new = ring.create("c2", ["read"])[0]
            write_some(ledger, "later", 0, 40)
        (self.folder / "journal.db").unlink()

    def restore(self, **options: Any) -> Restored:
        """Restore the backup into the folder."""
        return restore(self.file, self.folder, MasterKeySource(None, self.environ), **options)

    def revoked(self) -> dict[str, bool]:
        """Return of each access key and token whether it is revoked."""
        with spotledger.open(self.folder) as ledger:
            keys, tokens = ledger.key_tables.access_keys, ledger.key_tables.tokens
            found = {key.accesskey: key.revoked_ms is not None for key in keys.list(None, "", 10)}
            return found | {token.token_id: token.revoked_ms is not None for token in tokens.list("", 10)}


@pytest.fixture
def old(tmp_path: Path) -> Old:
    """A folder without its journal, beside a backup of its ledger."""
    return Old(tmp_path)


def test_start_on_a_folder_that_lost_its_journal_is_refused_and_makes_none(old: Old) -> None:
    """A ledger is not begun anew beside the access keys and the noted head of another: restore is named."""
    before = names_in(old.folder)
    with pytest.raises(SetupError, match=r"journal\.db is missing.*spotledger restore"):
        spotledger.open(old.folder)
    (old.folder / "keys.db").unlink()
    with pytest.raises(SetupError, match=r"journal\.db is missing.*noted-head.*spotledger restore"):
        spotledger.open(old.folder)
    assert names_in(old.folder) == [name for name in before if name != "keys.db"]


def test_restore_keeps_revoked_what_the_folder_knows_to_be_revoked(old: Old) -> None:
    """Access keys and tokens that were revoked since the backup stay so; the others are those of the backup."""
    found = old.restore()
    assert found.kept_revoked == 2
    assert [key.accesskey for key in found.good.access_keys] == [old.good]
    assert old.revoked() == {old.good: False, old.leaked: True, old.good_token: False, old.leaked_token: True}
    assert [name for name in RESTORED_FILES if not (old.folder / name).exists()] == []
    check_books(old.folder)


def test_restore_can_take_the_credentials_of_the_backup(old: Old) -> None:
    """Where it is asked for, the backup's revocations alone count, and what came back is listed."""
    found = old.restore(credentials_from_backup=True)
    assert found.kept_revoked is None
    assert {key.accesskey for key in found.good.access_keys} == {old.good, old.leaked}
    assert {token.token_id for token in found.good.tokens} == {old.good_token, old.leaked_token}
    assert not any(old.revoked().values())


def test_restore_without_the_old_access_keys_lists_what_came_back(old: Old) -> None:
    """In a folder that knows nothing of revocations, all credentials that are good again are listed."""
    (old.folder / "keys.db").unlink()
    found = old.restore()
    assert found.kept_revoked is None
    assert {key.accesskey for key in found.good.access_keys} == {old.good, old.leaked}
    assert old.leaked_token in json.dumps(found.good.as_json())


def test_restore_counts_on_from_the_change_that_was_noted(old: Old) -> None:
    """A file of access keys that is put back later, from before the restore, is behind the note and is refused."""
    kept = (old.folder / "keys.db").read_bytes()
    noted = read_note(old.folder / "noted-head")
    old.restore()
    after = read_note(old.folder / "noted-head")
    assert noted is not None
    assert after is not None
    assert after.keys_change > noted.keys_change
    old.revoked()
    (old.folder / "keys.db").write_bytes(kept)
    with pytest.raises(SetupError, match="come back to life"):
        spotledger.open(old.folder)


@pytest.mark.parametrize("damage", ["flipped", "log", "behind", "another"])
def test_restore_beside_access_keys_that_say_nothing_is_refused(old: Old, damage: str, tmp_path: Path) -> None:
    """Where nobody can say what was revoked, restore does not guess; the backup's can be taken by name."""
    keys = old.folder / "keys.db"
    if damage == "flipped":
        flip_bit(keys, keys.stat().st_size - 3000)
        for page in range(1, keys.stat().st_size // 4096):
            flip_bit(keys, 4096 * page + 4000)
    elif damage == "log":
        keys.with_name("keys.db-wal").write_bytes(b"no log at all" * 500)
    elif damage == "behind":
        with raw(old.folder, "keys.db") as connection:
            connection.execute("UPDATE keys_of SET change = change - 1")
    else:
        with raw(old.folder, "keys.db") as connection:
            connection.execute("UPDATE keys_of SET ledger_id = 'another'")
    before = {name: (old.folder / name).read_bytes() for name in names_in(old.folder)}
    with pytest.raises(DataFolderUnusable, match=r"keys\.db.*--credentials-from-backup"):
        old.restore()
    assert {name: (old.folder / name).read_bytes() for name in names_in(old.folder)} == before
    assert old.restore(credentials_from_backup=True).kept_revoked is None
    assert not any(old.revoked().values())
    check_books(old.folder)


def test_restore_begins_an_epoch_above_the_one_that_the_folder_was_in(old: Old) -> None:
    """A backup of epoch 1 in a folder that was in epoch 6 begins epoch 7, so that no position stands twice."""
    noted = read_note(old.folder / "noted-head")
    assert noted is not None
    file = NotedHead(old.folder / "noted-head")
    file.write(noted._replace(epoch=6))
    file.close()
    with pytest.raises(InvalidRequest, match=r"7 or more.*epoch 6"):
        old.restore(epoch=6)
    assert old.restore().epoch == 7
    with spotledger.open(old.folder) as ledger:
        assert (ledger.epoch, ledger.head.seq) == (7, old.backup_seq + 1)


def test_restore_beside_a_damaged_note_asks_for_the_epoch(old: Old) -> None:
    """A note that nobody can read may be of any epoch: the operator names one above it."""
    (old.folder / "noted-head").write_bytes(b"x" * 8192)
    with pytest.raises(DataFolderUnusable, match=r"noted-head.*--epoch"):
        old.restore()
    assert old.restore(epoch=9).epoch == 9
    with spotledger.open(old.folder) as ledger:
        assert ledger.epoch == 9


def test_restored_note_is_the_head_of_the_backup(old: Old) -> None:
    """The note has the entry that began the epoch, and no time before one that was trusted."""
    noted = read_note(old.folder / "noted-head")
    old.restore()
    after = read_note(old.folder / "noted-head")
    facts = sqlite_copy.read_facts(old.file)
    assert noted is not None
    assert after is not None
    with spotledger.open(old.folder) as ledger:
        assert after[:4] == (facts.ledger_id, 2, *ledger.head[:2])
        assert ledger.head.seq == facts.seq + 1
    assert after.time_ms >= max(noted.time_ms, facts.made_ms)


# --- kills ---------------------------------------------------------------------------------------------

_RESTORING = """
import os, shutil, signal, sys
from pathlib import Path
from spotledger.archive import restore
backup, place = Path(sys.argv[1]), Path(sys.argv[2])
source = restore.MasterKeySource(None, {"SPOTLEDGER_MASTER_KEY": sys.argv[3]})
names = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
def run(folder, left):
    def count(event, arguments):
        nonlocal left
        if event in names and str(folder) in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)
    restore.restore(backup, folder, source)
number, killed = 0, True
while killed:
    number += 1
    folder = place / f"new-{number}"
    shutil.copytree(sys.argv[4], folder)
    child = os.fork()
    if child == 0:
        try:
            run(folder, number)
        finally:
            os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_restore_killed_at_any_instant_leaves_no_ledger_or_a_whole_one(old: Old, tmp_path: Path) -> None:
    """
    Killed before each step on the disk: a start refuses and makes nothing, or has the whole ledger.

    The next restore does what is left to do, and what was revoked is revoked in the end.
    """
    (old.folder / "books.db").write_bytes(b"what an earlier ledger left" * 500)
    (old.folder / "keys.db-shm").write_bytes(bytes(32768))
    (tmp_path / "killed").mkdir()
    arguments = [_RESTORING, str(old.file), str(tmp_path / "killed"), MASTER_KEY, str(old.folder)]
    subprocess.run([sys.executable, "-c", *arguments], check=True, timeout=240)
    states = []
    places = sorted((tmp_path / "killed").iterdir(), key=lambda place: int(place.name[4:]))
    for place in places:
        old.folder = place
        had_ledger = (place / "journal.db").exists()
        if had_ledger or (place / "restored").exists():
            states.append("whole" if had_ledger else "goes on")
            with spotledger.open(place) as ledger:
                assert (ledger.epoch, ledger.head.seq) == (2, old.backup_seq + 1)
            with pytest.raises(DataFolderUnusable, match="has a ledger already"):
                old.restore()
        else:
            states.append("none")
            with pytest.raises(SetupError, match=r"do it again|spotledger restore"):
                spotledger.open(place)
            assert not (place / "journal.db").exists()
            assert old.restore().epoch == 2
        assert old.revoked() == {old.good: False, old.leaked: True, old.good_token: False, old.leaked_token: True}
        assert check_books(place).head == old.backup_seq + 1
        assert set(names_in(place)) <= {*RESTORED_FILES, "owner.lock"}
    assert states == sorted(states, key=["none", "goes on", "whole"].index)
    assert {states.count(state) > 2 for state in ("none", "goes on", "whole")} == {True}


def test_killed_restore_that_revoked_all_does_not_stand_in_the_way_of_the_master_key(old: Old, tmp_path: Path) -> None:
    """What a killed restore without the master key has done to the access keys is nothing the next one believes."""
    folder = tmp_path / "other"
    shutil.copytree(old.folder, folder)
    script = _RESTORING.replace("folder, source)", "folder, None)")
    (tmp_path / "killed").mkdir()
    arguments = [script, str(old.file), str(tmp_path / "killed"), MASTER_KEY, str(folder)]
    subprocess.run([sys.executable, "-c", *arguments], check=True, timeout=240)
    checked = 0
    for place in (tmp_path / "killed").iterdir():
        old.folder = place
        if not (place / "journal.db").exists() and not (place / "restored").exists():
            assert old.restore().access_keys
            assert old.revoked() == {old.good: False, old.leaked: True, old.good_token: False, old.leaked_token: True}
            checked += 1
    assert checked > 5
