"""Backups made while the ledger is written to, and of a ledger that is damaged."""

from __future__ import annotations

import json
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
from spotledger.archive.restore import restore
from spotledger.clock import now_ms
from spotledger.domain.operations import Deposit
from spotledger.errors import (
    DataFolderUnusable,
    FileUnusable,
    InvalidRequest,
    LedgerCorrupt,
    SchemaMismatch,
    StoreUnavailable,
)
from spotledger.ledger.ledger import Ledger
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.storage.sqlite import copy as sqlite_copy, file as sqlite_file
from spotledger.storage.sqlite.file import JOURNAL, schema_of
from spotledger.storage.steps import drive
from support_archive import (
    MASTER_KEY,
    Writing,
    disk_of,
    filled,
    flip_bit,
    names_in,
    restored,
    small_backup,
    write_some,
)
from support_books import check_books, opened
from support_core import booked_up_to_commit, past_triggers, raw, without_triggers


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of a small ledger; tests leave it as it is."""
    return small_backup(tmp_path_factory.mktemp("backup"))


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
    assert books.head == facts.seq + 1  # and the entry that begins the epoch
    assert before.keys() <= books.keys.keys()
    assert {key: seq for key, seq in writing.acknowledged.items() if seq <= facts.seq}.items() <= books.keys.items()
    check_books(tmp_path / "data")


def _hashes(folder: Path, seq: int) -> list[bytes]:
    with raw(folder) as connection:
        return [row[0] for row in connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,))]


def test_backup_goes_on_where_a_commit_failed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that is given up in the middle of the copying is neither in the ledger nor in the backup."""
    monkeypatch.setattr(sqlite_copy, "STEP_ENTRIES", 8)
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
    monkeypatch.setattr(sqlite_copy, "STEP_ENTRIES", 8)
    steps = []
    with filled(tmp_path / "data", entries=800) as ledger, raw(tmp_path / "data") as other:

        def between(left: int, entries: int) -> None:
            steps.append(left)
            other.execute("UPDATE ledger SET starts = starts + 1")

        facts = back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert facts.seq == ledger.head.seq
    assert steps == [*range(facts.seq - 8, 0, -8), 0]
    restored(tmp_path / "x.backup", tmp_path / "new")
    assert check_books(tmp_path / "new").head == facts.seq + 1


def test_backup_ends_where_writes_are_faster_than_the_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not run after the head for ever, and ends with a whole commit: no group is cut in two."""
    monkeypatch.setattr(sqlite_copy, "STEP_ENTRIES", 32)
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
    assert check_books(tmp_path / "new").head == facts.seq + 1


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
    assert facts.schema_version == sqlite_file.SCHEMA_VERSION
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
        with pytest.raises(FileUnusable, match="does not exist"):
            back_up(ledger, tmp_path / "absent" / "x", now_ms)
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_backup_in_place_of_a_ledger_is_not_opened(tmp_path: Path, backup: Path) -> None:
    """A backup that is merely copied to journal.db would keep its epoch, so it is refused and restore is named."""
    shutil.copyfile(backup, tmp_path / "journal.db")
    with pytest.raises(SchemaMismatch, match="spotledger restore"):
        spotledger.open(tmp_path)


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
        for sql in schema_of(JOURNAL).values():
            if sql.startswith("CREATE TRIGGER"):
                connection.execute(sql)


def change_head_time(folder: Path, ledger: Ledger) -> None:
    """Give the head another time than its entry has."""
    with raw(folder) as connection:
        past_triggers(connection, "UPDATE head SET booked_ms = booked_ms + 1")


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
    change_head_time: r"the time of entry \d+, the last, is not the one that the head has",
    flip_journal: r"journal.*damaged .*SQLITE_IOERR_DATA",
    flip_keys: r"access keys.*damaged .*SQLITE_IOERR_DATA",
    set_keys_back: r"access keys .* at change 0; .* change 1 or later",
}


@pytest.mark.parametrize("damage", BAD_LEDGERS, ids=lambda damage: damage.__name__)
def test_backup_of_a_damaged_ledger_is_refused_and_names_it(tmp_path: Path, damage: Any) -> None:
    """A running service whose files were damaged behind its back gives no backup, and says what is wrong where."""
    with filled(tmp_path / "data", entries=800) as ledger:
        damage(tmp_path / "data", ledger)
        with pytest.raises(LedgerCorrupt, match=BAD_LEDGERS[damage]):
            back_up(ledger, tmp_path / "x.backup", now_ms)
    assert names_in(tmp_path) == ["data"]


# --- kills and full disks --------------------------------------------------------------------------------

_BACKING_UP = """
import sys, time
from pathlib import Path
import spotledger
from spotledger.archive.backup import back_up
from spotledger.storage.sqlite import copy as sqlite_copy
sqlite_copy.STEP_ENTRIES = 4
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


def test_backup_of_a_growing_ledger_keeps_the_log_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No snapshot is held while the copying goes on, so the write-ahead log is folded into the file as always."""
    pages = 300
    monkeypatch.setattr(sqlite_file, "CHECKPOINT_PAGES", pages)
    largest = steps = 0
    log, journal = tmp_path / "data" / "journal.db-wal", tmp_path / "data" / "journal.db"
    with filled(tmp_path / "data", entries=2000) as ledger:
        bytes_before = journal.stat().st_size

        def between(left: int, entries: int) -> None:
            nonlocal largest, steps
            steps += 1
            largest = max(largest, log.stat().st_size)
            if journal.stat().st_size < bytes_before + 2 * pages * 4096:
                write_some(ledger, f"p{steps}-{time.monotonic_ns()}", 0, 400)

        back_up(ledger, tmp_path / "x.backup", now_ms, between)
        assert journal.stat().st_size > bytes_before + 2 * pages * 4096, "the log was folded meanwhile"
        assert largest < 2 * pages * 4096
