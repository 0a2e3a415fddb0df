"""The audit over what stands beside the tables: the noted head, write-ahead logs, access keys, and backups."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit.embedded import audit_file
from spotledger.storage.sqlite.copy import copy_ledger, mark_as_backup
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, KEYS, schema_of
from spotledger.storage.sqlite.keys import store_sum
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, NotedHead
from spotledger.storage.two_slots import BLOCK_BYTES
from support_audit import FILES, audited, copy_of, damaging, every_kind, make
from support_core import Clock, open_small, raw


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one closed ledger of every kind of entry, with an access key, a token and what goes with them."""
    folder = make(tmp_path_factory.mktemp("healthy") / "ledger", segment_entries=16)
    with raw(folder, "keys.db") as keys:
        keys.execute("INSERT INTO access_keys VALUES ('k', 'ann', '[]', '', '[]', x'01', 1, NULL, NULL, NULL)")
        keys.execute("INSERT INTO operator_tokens VALUES ('t', zeroblob(32), '[]', '', 1, NULL, '[]', NULL, NULL)")
        keys.execute("INSERT INTO kept_key_requests VALUES ('i', '{}', '{}')")
        keys.execute("INSERT INTO master_key_mark VALUES (1, 'ab')")
        store_sum(keys)
    return folder


@pytest.fixture
def folder(healthy: Path, tmp_path: Path) -> Path:
    """Return a copy of the healthy ledger."""
    copy = copy_of(healthy, tmp_path / "copy")
    assert audited(copy).verdict == "clean"
    return copy


# --- the noted head -----------------------------------------------------------------------------------------


def noting(**changes: Any) -> Callable[[Path], None]:
    """Return what notes another head, in both slots."""

    def note(folder: Path) -> None:
        with closing(NotedHead(folder / NOTE_FILE)) as noted:
            assert noted.note is not None
            changed: Note = noted.note._replace(**changes)
            noted.write(changed)
            noted.write(changed)

    return note


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ledger_id": "0" * 36}, "note_differs"),
        ({"epoch": 2}, "note_differs"),
        ({"seq": 1000}, "note_differs"),
        ({"seq": 2**64 - 1}, "note_differs"),
        ({"seq": 5}, "note_differs"),
        ({"seq": 0}, "note_differs"),
        ({"hash": bytes(32)}, "note_differs"),
        ({"keys_change": 7}, "access_keys_behind"),
    ],
)
def test_audit_of_a_ledger_that_is_not_the_noted_one_is_damaged(
    folder: Path, changes: dict[str, Any], code: str
) -> None:
    """The note says which ledger it is, an entry with its hash, and the last change of the access keys."""
    noting(**changes)(folder)
    report = audited(folder)
    assert (report.verdict, report.counts) == ("damaged", {code: 1})


def test_audit_of_a_note_of_an_earlier_entry_is_clean(folder: Path) -> None:
    """The note is a lower bound: after a power cut it may be a second old."""
    with damaging(folder) as damage:
        earlier = damage.one("SELECT hash FROM entry WHERE seq = 20")
    noting(seq=20, hash=earlier)(folder)
    assert audited(folder).verdict == "clean"


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_audit_of_a_note_with_damaged_slots_names_them(folder: Path, slots: tuple[int, ...]) -> None:
    """One whole slot is enough to go on, and the other is named all the same."""
    noting()(folder)
    content = bytearray((folder / NOTE_FILE).read_bytes())
    for slot in slots:
        content[slot * BLOCK_BYTES + 3000] ^= 1
    (folder / NOTE_FILE).write_bytes(content)
    report = audited(folder)
    assert report.verdict == "damaged"
    assert report.counts == ({"note_damaged": 1} if len(slots) == 2 else {"note_slot_damaged": 1})
    if len(slots) == 1:
        assert report.findings[0].where == f"noted-head: slot {slots[0]}"


def test_audit_of_a_last_entry_that_was_replaced_with_its_hash_is_seen_by_the_note(folder: Path) -> None:
    """The journal fits itself, and is still not the one that was acknowledged."""
    note = (folder / NOTE_FILE).read_bytes()
    with damaging(folder) as damage:
        last = damage.one("SELECT max(seq) FROM entry")
        damage.change(last, lambda entry: entry["request"].__setitem__("reference", "another"))
        damage.rehash()
    (folder / NOTE_FILE).write_bytes(note)
    assert "note_differs" in audited(folder).counts


# --- write-ahead logs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["journal.db", "books.db", "keys.db"])
def test_audit_of_a_damaged_log_names_it_and_leaves_it_as_it_was(tmp_path: Path, name: str) -> None:
    """SQLite takes the log up to the first frame that does not check; the audit says that more was committed."""
    left = tmp_path / "left"
    clock = Clock()
    with open_small(tmp_path / "live", clock) as ledger:
        every_kind(ledger, clock)
        for number in range(3):
            ledger.key_tables.kept_requests.keep(f"i{number}", "{}", "{}")
        shutil.copytree(tmp_path / "live", left)
    assert audited(left).verdict == "clean"
    log = left / f"{name}-wal"
    content = bytearray(log.read_bytes())
    content[32 + 24 + 100] ^= 1
    log.write_bytes(content)
    report = audited(left)
    assert report.verdict == "damaged"
    assert [finding.where for finding in report.findings if finding.code == "log_damaged"] == [log.name]
    assert log.read_bytes() == content, "a log that is folded into the file cannot be recovered any more"


def test_audit_of_a_cut_log_of_the_journal_is_seen_by_the_noted_head(tmp_path: Path) -> None:
    """A log that was cut between two commits is whole by itself."""
    left = tmp_path / "left"
    clock = Clock()
    with open_small(tmp_path / "live", clock) as ledger:
        every_kind(ledger, clock)
        length = (tmp_path / "live" / "journal.db-wal").stat().st_size
        every_kind(ledger, clock, "again:")
        shutil.copytree(tmp_path / "live", left)
    with (left / "journal.db-wal").open("r+b") as log:
        log.truncate(length)
    found = audited(left).counts
    assert "note_differs" in found
    assert "log_damaged" not in found


# --- access keys ----------------------------------------------------------------------------------------------


def test_audit_without_the_access_keys_that_were_noted_is_damaged(folder: Path) -> None:
    """A ledger in which no key was ever made needs no file of keys; one that noted a change of them does."""
    (folder / "keys.db").unlink()
    assert audited(folder).verdict == "clean"
    noting(keys_change=1)(folder)
    assert audited(folder).counts == {"access_keys_behind": 1}


def test_audit_of_a_malformed_access_key_does_not_show_it(folder: Path) -> None:
    """A finding names the first characters of the key and the column, so that no credential is in a report."""
    with raw(folder, "keys.db") as keys:
        keys.execute("UPDATE access_keys SET accesskey = 'abcdefghijkl', sealed_secret = x'', label = 'of the bot'")
        store_sum(keys)
    [finding] = audited(folder).findings
    assert finding[:3] == ("access_key_malformed", None, "access_keys abcdefgh…")
    assert finding.found == "sealed_secret"


# --- backups --------------------------------------------------------------------------------------------------


@pytest.fixture
def backup(healthy: Path, tmp_path: Path) -> Path:
    """Make a backup of the healthy ledger."""
    file = tmp_path / "backup.db"
    file.touch()
    copy_ledger(healthy / "journal.db", healthy / "keys.db", file, lambda *_: None)
    mark_as_backup(file, 7)
    return file


def test_audit_of_a_backup_is_clean_and_makes_no_file_beside_it(backup: Path) -> None:
    """A backup has no books and no note; what is in it is looked at, the access keys too."""
    beside = sorted(backup.parent.iterdir())
    report = audit_file(backup)
    assert (report.verdict, report.unexamined) == ("clean", [])
    assert report.entries == report.head_seq > 50
    assert sorted(backup.parent.iterdir()) == beside


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("UPDATE backup SET seq = seq - 1", "backup_differs"),
        ("UPDATE backup SET epoch = 9", "backup_differs"),
        ("DELETE FROM backup", "backup_differs"),
        ("UPDATE keys_of SET ledger_id = 'another'", "access_key_malformed"),
        ("UPDATE access_keys SET customer = 'nobody'", "access_key_malformed access_keys_differ"),
        ("DROP INDEX access_keys_of_customer", "schema_changed"),
        ("DROP TRIGGER entry_is_never_deleted", "trigger_changed"),
    ],
)
def test_audit_of_a_backup_that_was_changed_names_it(backup: Path, statement: str, code: str) -> None:
    """A backup says which entry it ends with, and holds the tables of two files."""
    with raw(backup.parent, backup.name) as connection:
        connection.execute(statement)
    assert audit_file(backup).counts == dict.fromkeys(code.split(), 1)


# --- values of other types ------------------------------------------------------------------------------------

VALUES = (None, 1.5, float("inf"), "x", "", "9" * 50, b"", b"\xff\xfe", -1, 2**63 - 1, -(2**63))


@pytest.mark.parametrize(
    ("file", "table"),
    [
        pytest.param(file, name, id=name)
        for file, kind in zip(FILES, (JOURNAL, BOOKS, KEYS), strict=False)
        for name, sql in schema_of(kind).items()
        if sql.startswith("CREATE TABLE")
    ],
)
def test_audit_of_a_table_without_types_and_keys_never_fails(folder: Path, file: str, table: str) -> None:
    """A table that was made anew may hold any value in any column, and a row twice."""
    chance = random.Random(table)
    with raw(folder, file) as connection:
        columns = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
    for column in columns:
        copy = copy_of(folder, folder.parent / column)
        with raw(copy, file) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO before")
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM before")
            last = f"rowid = (SELECT max(rowid) FROM {table})"
            connection.execute(f'UPDATE {table} SET "{column}" = ? WHERE {last}', (chance.choice(VALUES),))
            connection.execute(f"INSERT INTO {table} SELECT * FROM {table} LIMIT 1")
        report = audited(copy)
        assert report.verdict == "damaged"
        assert "schema_changed" in report.counts
