"""What is restored from a backup: the same ledger in a new epoch, or nothing where the backup is damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import MasterKeySource, restore
from spotledger.clock import now_ms
from spotledger.errors import (
    BackupDamaged,
    DataFolderUnusable,
    IdempotencyConflict,
    InvalidRequest,
    MasterKeyRefused,
    SchemaMismatch,
    SetupError,
)
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.storage.sqlite import copy as sqlite_copy
from support_archive import (
    MASTER_KEY,
    damaged_copy,
    filled,
    flip_bit,
    names_in,
    rehash,
    restored,
    small_backup,
    write_some,
)
from support_books import check_books, opened
from support_core import past_triggers, without_triggers


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a small ledger; tests leave it as it is."""
    return small_backup(tmp_path_factory.mktemp("backup"))


def test_restored_ledger_goes_on_in_a_new_epoch(tmp_path: Path, backup: Path) -> None:
    """Keys from before the backup are answered as repeats or conflicts; those from after it are booked again."""
    with spotledger.open(backup.parent / "data") as old:
        head = old.head
        later = old.deposit("c1", "usdt", "3", key="after-the-backup")
        assert old.epoch == 1
    found = restored(backup, tmp_path / "new")
    assert (found.epoch, found.backup.seq) == (2, head.seq)
    with spotledger.open(tmp_path / "new") as ledger:
        assert (ledger.epoch, ledger.ledger_id, ledger.head.seq) == (2, old.ledger_id, head.seq + 1)
        assert ledger.epochs.later == ((2, head.seq + 1),)
        known = ledger.deposit("c0", "usdt", "2", key="first-0")
        assert known.replayed
        with pytest.raises(IdempotencyConflict):
            ledger.deposit("c0", "usdt", "3", key="first-0")
        again = ledger.deposit("c1", "usdt", "3", key="after-the-backup")
        assert not again.replayed
        assert (again.seq, later.seq) == (head.seq + 2, head.seq + 1)
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
    (tmp_path / "rest" / "journal.db-wal").write_bytes(b"what a crash left")
    with pytest.raises(DataFolderUnusable, match=r"journal\.db-wal"):
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
    with opened(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE x (y)")
    newer = damaged_copy(backup, tmp_path / "newer")
    with opened(newer) as connection:
        connection.execute("PRAGMA user_version = 99")
    _refused(tmp_path / "text", tmp_path / "new", SchemaMismatch, "no backup")
    _refused(tmp_path / "empty", tmp_path / "new", SchemaMismatch, "no backup")
    _refused(tmp_path / "other", tmp_path / "new", SchemaMismatch, "no backup")
    _refused(newer, tmp_path / "new", SchemaMismatch, "version 99")
    for name in ("journal.db", "books.db", "keys.db"):
        _refused(backup.parent / "data" / name, tmp_path / "new", SchemaMismatch, "a ledger, not a backup")
    _refused(tmp_path / "absent", tmp_path / "new", InvalidRequest, "not there")
    _refused(tmp_path, tmp_path / "new", InvalidRequest, "no file")


DAMAGES = {
    "head": ("UPDATE backup SET seq = seq - 1", "what it says about itself"),
    "time": ("UPDATE head SET booked_ms = booked_ms + 1", "what it says about itself"),
    "epoch": ("UPDATE ledger SET epoch_seq = 7", "damaged|does not say which epochs"),
    "mark": ("DELETE FROM backup", "does not say what it is"),
    "shorter": ("UPDATE head SET seq = seq - 1; UPDATE backup SET seq = seq - 1", "audit .* entry_beyond_head"),
    "entry": (
        "UPDATE entry SET body = replace(body, '200000000', '200000001') WHERE seq ="
        " (SELECT min(seq) FROM entry WHERE body LIKE '%200000000%' AND seq > 100)",
        "broken at entry 10",
    ),
    "missing": ("DELETE FROM entry WHERE seq = 100", "missing"),
    "last": ("DELETE FROM entry WHERE seq = (SELECT max(seq) FROM entry)", "audit .* journal_cut"),
    "last changed": (
        "UPDATE entry SET body = replace(body, '200000000', '200000001') WHERE seq ="
        " (SELECT max(seq) FROM entry WHERE body LIKE '%200000000%')",
        "audit .* chain_broken",
    ),
    "trigger": ("DROP TRIGGER entry_is_never_updated", "schema .* changed: entry_is_never_updated"),
    "column": ("ALTER TABLE access_keys ADD COLUMN more TEXT", "schema .* changed: access_keys"),
    "access key": (
        """INSERT INTO access_keys VALUES ('k', 'c1', '{}', '', '[]', x'00', 0, NULL, NULL, NULL)""",
        "not as they were written last",
    ),
    "keys of another": ("UPDATE keys_of SET ledger_id = 'another'", "what it says about itself"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_restore_of_a_damaged_backup_is_refused_with_the_finding(tmp_path: Path, backup: Path, name: str) -> None:
    """What was changed in a backup is found before anything has the ledger's name, and nothing is left."""
    statement, match = DAMAGES[name]
    file = damaged_copy(backup, tmp_path / "bad.backup")
    with opened(file) as connection:
        past_triggers(connection, statement)
    _refused(file, tmp_path / "new", BackupDamaged, match)


@pytest.mark.parametrize("which", ["min", "max"])
def test_restore_of_a_backup_with_wrong_balances_is_refused_where_the_hashes_are_right(
    tmp_path: Path, backup: Path, which: str
) -> None:
    """Balances that are not what the postings lead to are found, in a sealed segment and after the last one."""
    file = damaged_copy(backup, tmp_path / "bad.backup")
    with opened(file) as connection:
        without_triggers(connection)
        [(seq, body)] = connection.execute(
            f"SELECT {which}(seq), body FROM entry WHERE body LIKE '%\"balances\"%'"
        ).fetchall()
        entry = json.loads(body)
        entry["balances"][0][2] = str(int(entry["balances"][0][2]) + 1)
        changed = json.dumps(entry, separators=(",", ":"))
        connection.execute("UPDATE entry SET body = ? WHERE seq = ?", (changed, seq))
        rehash(connection)
        _restore_triggers(connection, backup)
    _refused(file, tmp_path / "new", BackupDamaged, f"entry {seq}.*(postings|balance)")


def _restore_triggers(connection: Any, backup: Path) -> None:
    with opened(backup) as whole:
        for (sql,) in whole.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(sql)


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


def test_restore_of_a_backup_with_a_flipped_bit_is_refused_or_the_same_ledger(tmp_path: Path, backup: Path) -> None:
    """One bit anywhere: the backup is refused, or the bit meant nothing and the ledger is the very same."""
    draw = random.Random(71)
    size = backup.stat().st_size
    whole = check_books_of(backup, tmp_path / "whole")
    refused = 0
    for number, place in enumerate([*range(0, 100, 3), *(draw.randrange(size) for _ in range(60))]):
        file = flip_bit(damaged_copy(backup, tmp_path / "bad.backup"), place, draw.randrange(8))
        folder = tmp_path / f"new-{number}"
        try:
            assert check_books_of(file, folder) == whole
        except SetupError:
            refused += 1
            assert names_in(folder) == []
    assert refused > 80


def check_books_of(file: Path, folder: Path) -> Any:
    """Restore a backup, and return what its entries add up to."""
    restored(file, folder)
    return check_books(folder)


# --- the master key ------------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A backup of a ledger whose access keys are sealed."""
    with filled(tmp_path / "data", entries=40) as ledger:
        tables = ledger.key_tables
        tables.master_key_fingerprint = Cipher(bytes.fromhex(MASTER_KEY)).fingerprint
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
