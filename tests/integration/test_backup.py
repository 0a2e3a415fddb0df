"""Backups made while the ledger is written to, and what is restored from them."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import MasterKeySource, restore
from spotledger.clock import now_ms
from spotledger.domain.accounts import Account
from spotledger.domain.operations import Deposit
from spotledger.errors import (
    BackupDamaged,
    DataFolderUnusable,
    IdempotencyConflict,
    InvalidRequest,
    MasterKeyRefused,
    SchemaMismatch,
    StoreUnavailable,
)
from spotledger.security.cipher import Cipher
from spotledger.storage.sqlite import copy as sqlite_copy
from support_archive import MASTER_KEY, Writing, damaged_copy, disk_of, filled, restored, write_some
from support_books import check_books
from support_core import booked_up_to_commit

SPOT = Account("c1", "spot")


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a small ledger; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("backup")
    with filled(folder / "data") as ledger:
        back_up(ledger, folder / "first.backup", now_ms)
    return folder / "first.backup"


def names_in(folder: Path) -> list[str]:
    """List what is in *folder*."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [1, 5, 200])
def test_backup_under_writes_is_whole_and_has_what_was_acknowledged_before(tmp_path: Path, size: int) -> None:
    """A copy made while another thread writes is a whole ledger with all that was acknowledged before it began."""
    with filled(tmp_path / "data", entries=4000) as ledger:
        with Writing(ledger, size).going_on() as writing:
            before = dict(writing.acknowledged)
            facts = back_up(ledger, tmp_path / "live.backup", now_ms)
            after = ledger.head.seq
        assert facts.seq <= after
        assert facts.hash == next(iter(_hashes(tmp_path / "data", facts.seq)))
    assert restored(tmp_path / "live.backup", tmp_path / "new").epoch == 2
    books = check_books(tmp_path / "new")
    assert books.head == facts.seq
    assert before.keys() <= books.keys.keys()
    assert {key: seq for key, seq in writing.acknowledged.items() if seq <= facts.seq}.items() <= books.keys.items()
    check_books(tmp_path / "data")


def _hashes(folder: Path, seq: int) -> list[bytes]:
    connection = sqlite3.connect(folder / "ledger.db")
    try:
        return [row[0] for row in connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,))]
    finally:
        connection.close()


def test_backup_goes_on_where_a_commit_failed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is given up in the middle of the copying is neither in the ledger nor in the backup."""
    monkeypatch.setattr(sqlite_copy, "STEP_PAGES", 8)
    with filled(tmp_path / "data", entries=2000) as ledger:
        steps = 0

        def between(left: int, pages: int) -> None:
            nonlocal steps
            steps += 1
            if steps == 5:
                booked_up_to_commit(ledger, [Deposit(f"lost-{n}", "c1", "usdt", "1") for n in range(50)]).close()
                write_some(ledger, "kept", 0, 40)

        facts = back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert steps > 10
        assert facts.seq == ledger.head.seq
    restored(tmp_path / "x.backup", tmp_path / "new")
    books = check_books(tmp_path / "new")
    assert "kept-0" in books.keys
    assert not any(key.startswith("lost") for key in books.keys)


def test_backup_waits_for_a_group_that_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a group is written and not committed nothing is copied, and where that never ends it is said."""
    monkeypatch.setattr(sqlite_copy, "STALL_SECONDS", 0.2)
    with filled(tmp_path / "data") as ledger:
        waiting = booked_up_to_commit(ledger, [Deposit("waiting", "c1", "usdt", "1")])
        with pytest.raises(StoreUnavailable, match="nothing could be copied"):
            back_up(ledger, tmp_path / "x.backup", now_ms)
        waiting.close()
        back_up(ledger, tmp_path / "x.backup", now_ms)
    assert names_in(tmp_path) == ["data", "x.backup"]


def test_backup_gives_up_where_another_program_writes_on_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits of another connection make the copying begin again; after some times it is given up, in words."""
    monkeypatch.setattr(sqlite_copy, "STEP_PAGES", 8)
    with filled(tmp_path / "data", entries=800) as ledger:
        other = sqlite3.connect(tmp_path / "data" / "ledger.db", isolation_level=None)
        try:
            with pytest.raises(StoreUnavailable, match="another program"):
                back_up(
                    ledger,
                    tmp_path / "x.backup",
                    now_ms,
                    lambda left, pages: other.execute("UPDATE ledger SET starts = starts + 1") and None,
                )
        finally:
            other.close()
    assert names_in(tmp_path) == ["data"]


def test_backup_is_one_private_file_that_says_what_it_is(backup: Path) -> None:
    """A backup has no log beside it, is its owner's alone, and names ledger, epoch and head."""
    assert names_in(backup.parent) == ["data", "first.backup"]
    assert backup.stat().st_mode & 0o777 == 0o600
    facts = sqlite_copy.read_facts(backup)
    with spotledger.open(backup.parent / "data") as ledger:
        assert (facts.ledger_id, facts.epoch) == (ledger.ledger_id, 1)
        assert facts[2:5] == ledger.head
    assert facts.master_key_fingerprint is None
    assert facts.schema_version == 3
    assert names_in(backup.parent) == ["data", "first.backup"]


def test_backup_over_an_existing_file_is_refused(tmp_path: Path, backup: Path) -> None:
    """Neither a file, nor a folder, nor a link that points nowhere is written over."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with spotledger.open(tmp_path / "data") as ledger:
        for name in ("file", "folder", "link"):
            with pytest.raises(InvalidRequest, match="there already"):
                back_up(ledger, tmp_path / name, now_ms)
        with pytest.raises(InvalidRequest, match="does not exist"):
            back_up(ledger, tmp_path / "absent" / "x", now_ms)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_backup_in_place_of_a_ledger_is_not_opened(tmp_path: Path, backup: Path) -> None:
    """A backup that is merely copied to ledger.db would keep its epoch, so it is refused and restore is named."""
    shutil.copyfile(backup, tmp_path / "ledger.db")
    with pytest.raises(SchemaMismatch, match="spotledger restore"):
        spotledger.open(tmp_path)


def test_restored_ledger_goes_on_in_a_new_epoch(tmp_path: Path, backup: Path) -> None:
    """Keys from before the backup are answered as repeats or conflicts; those from after it are booked again."""
    with spotledger.open(backup.parent / "data") as old:
        head = old.head
        later = old.deposit("c1", "usdt", "3", key="after-the-backup")
        assert old.epoch == 1
    found = restored(backup, tmp_path / "new")
    assert (found.epoch, found.backup.seq) == (2, head.seq)
    with spotledger.open(tmp_path / "new") as ledger:
        assert (ledger.epoch, ledger.ledger_id, ledger.head) == (2, old.ledger_id, head)
        known = ledger.deposit("c0", "usdt", "2", key="first-0")
        assert known.replayed
        with pytest.raises(IdempotencyConflict):
            ledger.deposit("c0", "usdt", "3", key="first-0")
        again = ledger.deposit("c1", "usdt", "3", key="after-the-backup")
        assert not again.replayed
        assert again.seq == later.seq == head.seq + 1
        write_some(ledger, "on", 0, 120)
    with spotledger.open(tmp_path / "new") as ledger:
        assert ledger.epoch == 2
        back_up(ledger, tmp_path / "second.backup", now_ms)
    check_books(tmp_path / "new")
    assert restored(tmp_path / "second.backup", tmp_path / "third").epoch == 3


def test_restore_of_one_backup_twice_can_be_given_an_epoch_of_its_own(tmp_path: Path, backup: Path) -> None:
    """Two restores of one backup would share an epoch; a higher one may be given, but none that was there before."""
    assert restored(backup, tmp_path / "a").epoch == 2
    assert restored(backup, tmp_path / "b", epoch=3).epoch == 3
    with spotledger.open(tmp_path / "b") as ledger:
        assert ledger.epoch == 3
    with pytest.raises(InvalidRequest, match="2 or more"):
        restored(backup, tmp_path / "c", epoch=1)
    assert names_in(tmp_path / "c") == []


def test_restore_into_a_folder_with_a_ledger_is_refused_and_names_it(tmp_path: Path, backup: Path) -> None:
    """The ledger that is there is named by id and head, and left as it is."""
    with filled(tmp_path / "data", entries=40) as ledger:
        head, ledger_id = ledger.head, ledger.ledger_id
    with pytest.raises(DataFolderUnusable, match=f"{ledger_id}, epoch 1, at entry {head.seq}"):
        restore(backup, tmp_path / "data", None)
    (tmp_path / "rest").mkdir()
    (tmp_path / "rest" / "ledger.db-wal").write_bytes(b"what a crash left")
    with pytest.raises(DataFolderUnusable, match=r"ledger\.db-wal"):
        restore(backup, tmp_path / "rest", None)
    with spotledger.open(tmp_path / "data") as ledger:
        assert ledger.head == head


# --- what is no backup, or a damaged one -------------------------------------------------------------


def _refused(file: Path, folder: Path, kind: type[Exception], match: str) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.raises(kind, match=match):
        restore(file, folder, None)
    assert names_in(folder) == []


def test_restore_of_what_is_no_backup_is_refused(tmp_path: Path, backup: Path) -> None:
    """Other files, other databases, a ledger itself, and backups of another version are named for what they are."""
    (tmp_path / "text").write_text("no database at all, but long enough to have a header of one hundred bytes" * 9)
    (tmp_path / "empty").write_bytes(b"")
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    newer = damaged_copy(backup, tmp_path / "newer")
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    _refused(tmp_path / "text", tmp_path / "new", SchemaMismatch, "not a backup")
    _refused(tmp_path / "empty", tmp_path / "new", SchemaMismatch, "not a backup")
    _refused(tmp_path / "other", tmp_path / "new", SchemaMismatch, "not a backup")
    _refused(newer, tmp_path / "new", SchemaMismatch, "version 99")
    _refused(backup.parent / "data" / "ledger.db", tmp_path / "new", SchemaMismatch, "a ledger, not a backup")
    _refused(tmp_path / "absent", tmp_path / "new", InvalidRequest, "not there")
    _refused(tmp_path, tmp_path / "new", InvalidRequest, "no file")


DAMAGES = {
    "head": ("UPDATE backup SET seq = seq - 1", "what it says about itself"),
    "epoch": ("UPDATE ledger SET epoch = 7", "what it says about itself"),
    "mark": ("DELETE FROM backup", "does not say what it is"),
    "balance": ("UPDATE balance SET available = available + 1 WHERE customer = 'c1'", "audit .* damaged: .*balance"),
    "hold": ("DELETE FROM hold WHERE rowid = (SELECT max(rowid) FROM hold)", "audit .* damaged"),
    "history": ("UPDATE history SET places = x'0000' WHERE segment = 2", "audit .* damaged"),
    "entry": (
        "UPDATE entry SET body = replace(body, '200000000', '200000001') WHERE seq ="
        " (SELECT max(seq) FROM entry WHERE body LIKE '%200000000%')",
        "audit .* chain_broken",
    ),
    "last": ("DELETE FROM entry WHERE seq = (SELECT max(seq) FROM entry)", "audit .* damaged"),
    "trigger": ("SELECT 1", "audit .* trigger_changed"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_restore_of_a_damaged_backup_is_refused_with_the_finding(tmp_path: Path, backup: Path, name: str) -> None:
    """What was changed in a backup is found before anything has the ledger's name, and nothing is left."""
    statement, match = DAMAGES[name]
    file = damaged_copy(backup, tmp_path / "bad.backup")
    connection = sqlite3.connect(file, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for trigger, _ in triggers:
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.execute(statement)
    for _, sql in triggers if name != "trigger" else triggers[1:]:
        connection.execute(sql)
    connection.close()
    _refused(file, tmp_path / "new", BackupDamaged, match)


@pytest.mark.parametrize("where", ["cut", "flipped", "zeroed"])
def test_restore_of_a_file_the_disk_has_damaged_is_refused(tmp_path: Path, backup: Path, where: str) -> None:
    """A backup that is cut short or has other bytes in its pages is refused."""
    content = bytearray(backup.read_bytes())
    if where == "cut":
        del content[len(content) // 2 :]
    elif where == "flipped":
        for place in range(4096 * 3, len(content), 4096):
            content[place + 5] ^= 0x41
    else:
        content[4096 * 4 : 4096 * 6] = bytes(8192)
    (tmp_path / "bad.backup").write_bytes(content)
    _refused(tmp_path / "bad.backup", tmp_path / "new", BackupDamaged, "damaged")


# --- the master key ------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A backup of a ledger whose access keys are sealed."""
    with filled(tmp_path / "data", entries=40) as ledger:
        tables = ledger.key_tables
        tables.master_key_fingerprint = Cipher(bytes.fromhex(MASTER_KEY)).fingerprint
        from spotledger.security.access_keys import KeyRing

        KeyRing(tables.access_keys, Cipher(bytes.fromhex(MASTER_KEY)), now_ms).create("c1", ["read"])
        back_up(ledger, tmp_path / "sealed.backup", now_ms)
    return tmp_path / "sealed.backup"


def test_restore_asks_for_the_master_key_that_secrets_are_sealed_with(tmp_path: Path, sealed: Path) -> None:
    """A missing master key and another one are refused by the fingerprint; the right one passes, wherever it is."""
    assert MASTER_KEY.encode() not in sealed.read_bytes()
    assert bytes.fromhex(MASTER_KEY) not in sealed.read_bytes()
    fingerprint = sqlite_copy.read_facts(sealed).master_key_fingerprint
    folder = tmp_path / "new"
    folder.mkdir()
    with pytest.raises(MasterKeyRefused, match=f"{fingerprint}.* there is none.*--without-master-key"):
        restore(sealed, folder, MasterKeySource(None, {}))
    with pytest.raises(MasterKeyRefused, match=f"another one, {fingerprint}"):
        restore(sealed, folder, MasterKeySource(None, {"SPOTLEDGER_MASTER_KEY": "00" * 32}))
    assert names_in(folder) == []
    assert restore(sealed, folder, MasterKeySource(None, {"SPOTLEDGER_MASTER_KEY": MASTER_KEY})).access_keys
    other = tmp_path / "other"
    other.mkdir()
    (other / "master.key").write_text(MASTER_KEY)
    (other / "master.key").chmod(0o600)
    assert restore(sealed, other, MasterKeySource(None, {})).access_keys
    with spotledger.open(other) as ledger:
        assert [record.revoked_ms for record in ledger.key_tables.access_keys.list(None, "", 10)] == [None]


def test_restore_without_the_master_key_revokes_all_access_keys(tmp_path: Path, sealed: Path) -> None:
    """Where the master key is lost the books are restored, no access key is good, and a new master key may be made."""
    folder = tmp_path / "new"
    folder.mkdir()
    assert not restore(sealed, folder, None).access_keys
    with spotledger.open(folder) as ledger:
        assert ledger.key_tables.master_key_fingerprint is None
        records = ledger.key_tables.access_keys.list(None, "", 10)
        assert [record.revoked_ms is not None for record in records] == [True]
    check_books(folder)


# --- kills and full disks --------------------------------------------------------------------------------

_BACKING_UP = """
import sys, time
from pathlib import Path
import spotledger
from spotledger.archive.backup import back_up
from spotledger.storage.sqlite import copy as sqlite_copy
sqlite_copy.STEP_PAGES = 4
folder = Path(sys.argv[1])
def between(left, pages):
    print(left, flush=True)
    time.sleep(0.01)
back_up(spotledger.open(folder / "data"), folder / "x.backup", lambda: 1, between)
"""


def test_killed_backup_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    """kill -9 in the middle leaves no file of that name, and what it left does not stand in the way of the next."""
    filled(tmp_path / "data", entries=2000).close()
    arguments = [sys.executable, "-c", _BACKING_UP, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(6):
            assert process.stdout.readline()
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.backup").exists()
    assert ".x.backup.partial" in names_in(tmp_path)
    with spotledger.open(tmp_path / "data") as ledger:
        back_up(ledger, tmp_path / "x.backup", now_ms)
    assert names_in(tmp_path) == ["data", "x.backup"]
    restored(tmp_path / "x.backup", tmp_path / "new")


_RESTORING = """
import sys, time
from pathlib import Path
from spotledger.archive import restore
real = restore.check_structure
def slow(path):
    print("copied", flush=True)
    time.sleep(60)
restore.check_structure = slow
restore.restore(Path(sys.argv[1]), Path(sys.argv[2]), None)
"""


def test_killed_restore_leaves_no_ledger_and_can_be_done_again(tmp_path: Path, backup: Path) -> None:
    """A restore that is killed before its audit leaves no ledger.db; the next one clears up and does it."""
    (tmp_path / "new").mkdir()
    arguments = [sys.executable, "-c", _RESTORING, str(backup), str(tmp_path / "new")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"copied\n"
        process.kill()
    assert names_in(tmp_path / "new") == ["restoring"]
    assert restore(backup, tmp_path / "new", None).epoch == 2
    assert names_in(tmp_path / "new") == ["ledger.db"]
    check_books(tmp_path / "new")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 512 KiB."""
    with disk_of(tmp_path / "disk", 512) as place:
        yield place


def test_backup_and_restore_on_a_full_disk_say_so_and_leave_nothing(tmp_path: Path, small_disk: Path) -> None:
    """A disk without room for the backup, or for what is restored, is named; the ledger goes on writing."""
    with filled(tmp_path / "data", entries=3000) as ledger:
        with Writing(ledger).going_on(), pytest.raises(StoreUnavailable, match="full"):
            back_up(ledger, small_disk / "x.backup", now_ms)
        assert names_in(small_disk) == []
        assert ledger.deposit("c1", "usdt", "1", key="on").seq == ledger.head.seq
        back_up(ledger, tmp_path / "x.backup", now_ms)
    (small_disk / "new").mkdir()
    with pytest.raises(DataFolderUnusable, match="full"):
        restore(tmp_path / "x.backup", small_disk / "new", None)
    assert names_in(small_disk / "new") == []
    check_books(tmp_path / "data")


def test_backup_of_a_growing_ledger_keeps_the_log_small(tmp_path: Path) -> None:
    """No snapshot is held while the copying goes on, so the write-ahead log is folded into the file as always."""
    from spotledger.storage.sqlite.file import CHECKPOINT_PAGES

    largest = 0
    log = tmp_path / "data" / "ledger.db-wal"
    with filled(tmp_path / "data", entries=2000) as ledger:
        pages_before = (tmp_path / "data" / "ledger.db").stat().st_size // 4096

        def between(left: int, pages: int) -> None:
            nonlocal largest
            largest = max(largest, log.stat().st_size)
            if pages < pages_before + 3 * CHECKPOINT_PAGES:
                write_some(ledger, f"p{pages}-{left}-{time.monotonic_ns()}", 0, 400)

        back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert largest < 2 * CHECKPOINT_PAGES * 4096
