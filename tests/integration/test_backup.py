"""Backups made while the ledger is written to, and what is restored from them."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive.backup import back_up
from spotledger.archive.restore import MasterKeySource, Restored, restore
from spotledger.clock import now_ms
from spotledger.domain.accounts import Account
from spotledger.domain.operations import Deposit
from spotledger.errors import (
    BackupDamaged,
    DataFolderUnusable,
    IdempotencyConflict,
    InvalidRequest,
    LedgerCorrupt,
    MasterKeyRefused,
    SchemaMismatch,
    SetupError,
    StoreUnavailable,
)
from spotledger.ledger.ledger import Ledger
from spotledger.security.cipher import Cipher
from spotledger.security.keys import KeyRing
from spotledger.security.tokens import Tokens
from spotledger.storage.sqlite import copy as sqlite_copy
from spotledger.storage.sqlite.noted_head import NotedHead, read_note
from spotledger.storage.steps import drive
from support_archive import (
    MASTER_KEY,
    RESTORED_FILES,
    Writing,
    damaged_copy,
    disk_of,
    filled,
    flip_bit,
    rehash,
    restored,
    write_some,
)
from support_books import check_books, opened
from support_core import booked_up_to_commit, past_triggers, raw, without_triggers

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
    with raw(folder) as connection:
        return [row[0] for row in connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,))]


def test_backup_goes_on_where_a_commit_failed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is given up in the middle of the copying is neither in the ledger nor in the backup."""
    monkeypatch.setattr(sqlite_copy, "STEP_ROWS", 8)
    with filled(tmp_path / "data", entries=2000) as ledger:
        steps = 0

        def between(left: int, entries: int) -> None:
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


def test_backup_does_not_wait_for_a_group_that_is_being_written(tmp_path: Path) -> None:
    """A group that is written and not committed holds nothing up; it is not in the backup, and commits afterwards."""
    with filled(tmp_path / "data") as ledger:
        head = ledger.head
        waiting = booked_up_to_commit(ledger, [Deposit("waiting", "c1", "usdt", "1")])
        assert back_up(ledger, tmp_path / "x.backup", now_ms).seq == head.seq
        ledger.finish(drive(waiting))
        assert ledger.head.seq == head.seq + 1
    assert names_in(tmp_path) == ["data", "x.backup"]
    restored(tmp_path / "x.backup", tmp_path / "new")
    assert "waiting" not in check_books(tmp_path / "new").keys
    assert "waiting" in check_books(tmp_path / "data").keys


def test_backup_goes_on_where_another_program_writes_on_and_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits of another connection between any two steps neither stop the copying nor make it begin again."""
    monkeypatch.setattr(sqlite_copy, "STEP_ROWS", 8)
    steps = []
    with filled(tmp_path / "data", entries=800) as ledger, raw(tmp_path / "data") as other:

        def between(left: int, entries: int) -> None:
            steps.append(left)
            other.execute("UPDATE ledger SET starts = starts + 1")

        facts = back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert facts.seq == ledger.head.seq
    assert steps == [*range(facts.seq - 8, 0, -8), 0]
    restored(tmp_path / "x.backup", tmp_path / "new")
    assert check_books(tmp_path / "new").head == facts.seq


def test_backup_ends_where_writes_are_faster_than_the_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run after the head for ever, and ends with a whole commit: no group is cut in two."""
    monkeypatch.setattr(sqlite_copy, "STEP_ROWS", 32)
    ends = {}
    with filled(tmp_path / "data", entries=80) as ledger:
        before = ledger.head.seq

        def between(left: int, entries: int) -> None:
            if len(ends) < 1000:
                write_some(ledger, f"live-{len(ends)}", 0, 40)
            ends[ledger.head.seq] = True

        facts = back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert before < facts.seq < ledger.head.seq
    assert len(ends) < 1000
    assert facts.seq in ends
    restored(tmp_path / "x.backup", tmp_path / "new")
    assert check_books(tmp_path / "new").head == facts.seq


def test_backup_has_no_access_key_of_a_customer_that_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While customers are registered and given access keys all the time, each key in a backup has its customer."""
    monkeypatch.setattr(sqlite_copy, "REST_SECONDS", 0.01)
    stop, given = threading.Event(), []
    with filled(tmp_path / "data", entries=800) as ledger:
        ring = KeyRing(ledger.key_tables.access_keys, Cipher(bytes.fromhex(MASTER_KEY)), now_ms)

        def give_keys() -> None:
            while not stop.is_set():
                customer = f"new-{len(given)}"
                ledger.register_customer(customer, key=f"register:{customer}")
                ring.create(customer, ["read"])
                given.append(customer)

        giving = threading.Thread(target=give_keys)
        giving.start()
        try:
            for number in range(4):
                back_up(ledger, tmp_path / f"{number}.backup", now_ms)
        finally:
            stop.set()
            giving.join()
    found = []
    for number in range(4):
        with opened(tmp_path / f"{number}.backup") as connection:
            keys = {name for (name,) in connection.execute("SELECT customer FROM access_keys")}
            entries = [json.loads(body) for (body,) in connection.execute("SELECT body FROM entry")]
        registered = {entry["request"]["customer"] for entry in entries if entry["kind"] == "register_customer"}
        assert keys <= registered
        found.append(len(keys))
    assert found[0] < found[-1] <= len(given), "keys were made while backups were"
    restored(tmp_path / "3.backup", tmp_path / "new")


def test_backup_is_one_private_file_that_says_what_it_is(backup: Path) -> None:
    """A backup has no log beside it, is its owner's alone, and names ledger, epoch and head."""
    assert names_in(backup.parent) == ["data", "first.backup"]
    assert backup.stat().st_mode & 0o777 == 0o600
    facts = sqlite_copy.read_facts(backup)
    with spotledger.open(backup.parent / "data") as ledger:
        assert (facts.ledger_id, facts.epoch) == (ledger.ledger_id, 1)
        assert facts[2:5] == ledger.head
    assert facts.master_key_fingerprint is None
    assert facts.schema_version == 4
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
        with pytest.raises(InvalidRequest, match="not there"):
            back_up(ledger, tmp_path / "absent" / "x", now_ms)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_backup_in_place_of_a_ledger_is_not_opened(tmp_path: Path, backup: Path) -> None:
    """A backup that is merely copied to journal.db would keep its epoch, so it is refused and restore is named."""
    shutil.copyfile(backup, tmp_path / "journal.db")
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
    "epoch": ("UPDATE ledger SET epoch = 7", "what it says about itself"),
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
        "audit .* access_key_malformed",
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


# --- a ledger that is damaged -------------------------------------------------------------------------


def damage_entry(folder: Path, ledger: Ledger) -> None:
    """Change an entry in the middle."""
    with raw(folder) as connection:
        past_triggers(connection, "UPDATE entry SET body = replace(body, 'booked_ms', 'booked_us') WHERE seq = 101")


def lose_entry(folder: Path, ledger: Ledger) -> None:
    """Remove an entry."""
    with raw(folder) as connection:
        past_triggers(connection, "DELETE FROM entry WHERE seq = 77")


def lose_end(folder: Path, ledger: Ledger) -> None:
    """Take the last entries away, with a head that fits what is left, as a file that was set back has it."""
    with raw(folder) as connection:
        without_triggers(connection)
        connection.execute("DELETE FROM entry WHERE seq > 500")
        connection.execute(
            "UPDATE head SET seq = 500, hash = entry.hash, booked_ms = entry.body ->> '$.booked_ms'"
            " FROM entry WHERE entry.seq = 500"
        )
        for sql in _triggers_of_new():
            connection.execute(sql)


def _triggers_of_new() -> list[str]:
    from spotledger.storage.sqlite.file import JOURNAL, schema_of

    return [sql for sql in schema_of(JOURNAL).values() if sql.startswith("CREATE TRIGGER")]


def change_head_time(folder: Path, ledger: Ledger) -> None:
    """Give the head another time than its entry has."""
    with raw(folder) as connection:
        connection.execute("UPDATE head SET booked_ms = booked_ms + 1, seq = seq + 0")


def flip_journal(folder: Path, ledger: Ledger) -> None:
    """Flip a bit in a page of entries."""
    with raw(folder) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    flip_bit(folder / "journal.db", 4096 * 20 + 2000)


def flip_keys(folder: Path, ledger: Ledger) -> None:
    """Flip a bit in the access keys."""
    with raw(folder, "keys.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'keys_of'").fetchall()
    flip_bit(folder / "keys.db", 4096 * page - 100)


def set_keys_back(folder: Path, ledger: Ledger) -> None:
    """Put the access keys as they were some changes ago."""
    ledger.key_tables.master_key_fingerprint = "one"
    with raw(folder, "keys.db") as connection:
        connection.execute("UPDATE keys_of SET change = change - 1")


BAD_LEDGERS = {
    damage_entry: "entry 101",
    lose_entry: "entry 77",
    lose_end: r"ends with entry 500, but entry \d+ was acknowledged",
    flip_journal: r"journal.*damaged .*SQLITE_IOERR_DATA",
    flip_keys: r"access keys.*damaged .*SQLITE_IOERR_DATA",
    set_keys_back: r"keys\.db .* change 1 or later",
}


@pytest.mark.parametrize("damage", BAD_LEDGERS, ids=lambda damage: damage.__name__)
def test_backup_of_a_damaged_ledger_is_refused_and_names_it(tmp_path: Path, damage: Any) -> None:
    """A running service whose files were damaged behind its back gives no backup, and says what is wrong where."""
    with filled(tmp_path / "data", entries=800) as ledger:
        damage(tmp_path / "data", ledger)
        with pytest.raises(LedgerCorrupt, match=BAD_LEDGERS[damage]):
            back_up(ledger, tmp_path / "x.backup", now_ms)
    assert names_in(tmp_path) == ["data"]


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


# --- a folder that had a ledger -------------------------------------------------------------------------


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
    assert (found.kept_revoked, found.came_back) == (2, None)
    assert old.revoked() == {old.good: False, old.leaked: True, old.good_token: False, old.leaked_token: True}
    assert [name for name in RESTORED_FILES if not (old.folder / name).exists()] == []
    check_books(old.folder)


def test_restore_can_take_the_credentials_of_the_backup(old: Old) -> None:
    """Where it is asked for, the backup's revocations alone count, and what came back is listed."""
    found = old.restore(credentials_from_backup=True)
    assert found.kept_revoked is None
    assert found.came_back is not None
    assert {key.accesskey for key in found.came_back.access_keys} == {old.good, old.leaked}
    assert {token.token_id for token in found.came_back.tokens} == {old.good_token, old.leaked_token}
    assert not any(old.revoked().values())


def test_restore_without_the_old_access_keys_lists_what_came_back(old: Old) -> None:
    """In a folder that knows nothing of revocations, all credentials that are good again are listed."""
    (old.folder / "keys.db").unlink()
    found = old.restore()
    assert found.kept_revoked is None
    assert found.came_back is not None
    assert {key.accesskey for key in found.came_back.access_keys} == {old.good, old.leaked}
    assert old.leaked_token in json.dumps(found.came_back.as_json())


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
    assert old.restore(credentials_from_backup=True).came_back is not None
    assert not any(old.revoked().values())
    check_books(old.folder)


def test_restore_begins_an_epoch_above_the_one_that_the_folder_was_in(old: Old) -> None:
    """A backup of epoch 1 in a folder that was in epoch 6 begins epoch 7, so that no position stands twice."""
    noted = read_note(old.folder / "noted-head")
    assert noted is not None
    file = NotedHead(old.folder / "noted-head")
    file.write(noted._replace(epoch=6))
    file.close()
    with pytest.raises(InvalidRequest, match="epoch 6, so 7 or more"):
        old.restore(epoch=6)
    assert old.restore().epoch == 7
    with spotledger.open(old.folder) as ledger:
        assert (ledger.epoch, ledger.head.seq) == (7, old.backup_seq)


def test_restore_beside_a_damaged_note_asks_for_the_epoch(old: Old) -> None:
    """A note that nobody can read may be of any epoch: the operator names one above it."""
    (old.folder / "noted-head").write_bytes(b"x" * 8192)
    with pytest.raises(DataFolderUnusable, match=r"noted-head.*--epoch"):
        old.restore()
    assert old.restore(epoch=9).epoch == 9
    with spotledger.open(old.folder) as ledger:
        assert ledger.epoch == 9


def test_restored_note_is_the_head_of_the_backup(old: Old) -> None:
    """The note has ledger, epoch and head, and no time before one that was trusted; a shorter journal is noticed."""
    noted = read_note(old.folder / "noted-head")
    old.restore()
    after = read_note(old.folder / "noted-head")
    facts = sqlite_copy.read_facts(old.file)
    assert noted is not None
    assert after is not None
    assert after[:4] == (facts.ledger_id, 2, facts.seq, facts.hash)
    assert after.time_ms >= max(noted.time_ms, facts.made_ms)


# --- kills and full disks --------------------------------------------------------------------------------

_BACKING_UP = """
import sys, time
from pathlib import Path
import spotledger
from spotledger.archive.backup import back_up
from spotledger.storage.sqlite import copy as sqlite_copy
sqlite_copy.STEP_ROWS = 4
folder = Path(sys.argv[1])
def between(left, entries):
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
                assert (ledger.epoch, ledger.head.seq) == (2, old.backup_seq)
            with pytest.raises(DataFolderUnusable, match="has a ledger already"):
                old.restore()
        else:
            states.append("none")
            with pytest.raises(SetupError, match=r"do it again|spotledger restore"):
                spotledger.open(place)
            assert not (place / "journal.db").exists()
            assert old.restore().epoch == 2
        assert old.revoked() == {old.good: False, old.leaked: True, old.good_token: False, old.leaked_token: True}
        assert check_books(place).head == old.backup_seq
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

    largest = steps = 0
    log, journal = tmp_path / "data" / "journal.db-wal", tmp_path / "data" / "journal.db"
    with filled(tmp_path / "data", entries=2000) as ledger:
        bytes_before = journal.stat().st_size

        def between(left: int, entries: int) -> None:
            nonlocal largest, steps
            steps += 1
            largest = max(largest, log.stat().st_size)
            if journal.stat().st_size < bytes_before + 2 * CHECKPOINT_PAGES * 4096:
                write_some(ledger, f"p{steps}-{time.monotonic_ns()}", 0, 400)

        back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert journal.stat().st_size > bytes_before + 2 * CHECKPOINT_PAGES * 4096, "the log was folded meanwhile"
        assert largest < 2 * CHECKPOINT_PAGES * 4096
