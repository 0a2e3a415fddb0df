"""The audit over whole ledgers: clean where they are, while they are written, and incomplete where it cannot look."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import journal as audit_journal
from spotledger.audit.embedded import audit_file
from spotledger.audit.report import Progress
from spotledger.domain.operations import Deposit
from spotledger.storage.sqlite.file import BOOKS, JOURNAL, KEYS, schema_of
from support_audit import FILES, audited, copy_of, damaging, every_kind, make
from support_core import Clock, open_small, raw, seed
from support_service import run


@pytest.mark.parametrize("segment_entries", [8, 9, 16, 65_536])
def test_audit_of_every_kind_of_entry_is_clean(tmp_path: Path, segment_entries: int) -> None:
    """A ledger with every operation and kept refusal is clean, whatever lies on the borders of its segments."""
    report = audited(make(tmp_path / "ledger", segment_entries=segment_entries))
    assert (report.verdict, report.counts, report.unexamined) == ("clean", {}, [])
    assert report.entries == report.audited_to == report.head_seq > 50
    assert report.refusals == 12
    assert (report.customers, report.coins) == (3, 2)


def test_audit_of_an_empty_ledger_is_clean(tmp_path: Path) -> None:
    """A ledger in which nothing was booked is whole."""
    open_small(tmp_path).close()
    report = audited(tmp_path)
    assert (report.verdict, report.entries) == ("clean", 0)


def test_audit_of_amounts_beyond_64_bits_is_clean(tmp_path: Path) -> None:
    """Balances that the tables hold as text are compared as numbers."""
    with open_small(tmp_path) as ledger:
        ledger.list_coin("shib", 18, key="list")
        ledger.register_customer("ann", key="register")
        for number in range(20):
            ledger.deposit("ann", "shib", "900000000000000000", key=f"d{number}")
            ledger.freeze("ann", "shib", "800000000000000000", key=f"f{number}")
    report = audited(tmp_path)
    assert (report.verdict, report.counts) == ("clean", {})
    assert report.sealed_to == 40


def test_audit_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """No file is changed, and none is left beside the ledger."""
    folder = make(tmp_path / "ledger")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert audited(folder).verdict == "clean"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_audit_after_each_group_is_clean_at_every_step_of_a_sealing(tmp_path: Path) -> None:
    """Whatever the books are sealed to, the audit is clean after each commit, the ledger open."""
    clock = Clock()
    with open_small(tmp_path, clock, segment_entries=64) as ledger:
        seed(ledger)
        sealed = set()
        for number in range(90):
            ledger.deposit("ann", "btc", "1", key=f"d{number}")
            held = ledger.freeze("bob", "btc", "0.5", key=f"f{number}")
            if number % 3:
                ledger.unfreeze(held.hold or 0, key=f"u{number}")
            report = audited(tmp_path)
            assert (report.verdict, report.findings, report.unexamined) == ("clean", [], [])
            sealed.add(report.sealed_to)
    assert len(sealed) > 3, "no segment was sealed between two audits"


def test_audit_of_books_that_are_behind_the_journal_is_clean(tmp_path: Path) -> None:
    """Books of an earlier day, which lack whole segments, are not wrong: the service goes on sealing them."""
    folder = tmp_path / "ledger"
    clock = Clock()
    with open_small(folder, clock) as ledger:
        every_kind(ledger, clock)
    before = audited(folder)
    behind = (folder / "books.db").read_bytes()
    with open_small(folder, clock) as ledger:
        every_kind(ledger, clock, "again:")
    (folder / "books.db").write_bytes(behind)
    report = audited(folder)
    assert (report.verdict, report.findings) == ("clean", [])
    assert report.head_seq > before.head_seq + 16
    assert report.sealed_to == before.sealed_to


def test_audit_while_segments_are_sealed_between_its_steps_is_clean(tmp_path: Path) -> None:
    """What is sealed beyond the bound of the audit, and holds that are used there, are no fault."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        every_kind(ledger, clock)
        open_hold = ledger.freeze("ann", "btc", "1", key="used:later").hold or 0
        number = 0

        def write(progress: Progress) -> None:
            nonlocal number
            number += 1
            ledger.execute([Deposit(f"w{number}-{n}", "bob", "usdt", "1") for n in range(9)])
            if number < 5:
                ledger.unfreeze(open_hold, "0.1" if number < 4 else None, key=f"later:{number}")

        report = audited(tmp_path, progress=write, entries_per_second=1_000)
        assert number > 4
        assert (report.verdict, report.findings, report.unexamined) == ("clean", [], [])
        assert report.audited_to == report.entries < ledger.head.seq - 40


def test_audit_beside_a_writer_is_clean_and_keeps_no_log_from_shrinking(tmp_path: Path) -> None:
    """While groups are committed one after the other, each audit finds what stood when it began to be whole."""
    clock = Clock()
    stop = threading.Event()
    with open_small(tmp_path, clock, segment_entries=64) as ledger:
        every_kind(ledger, clock)

        def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                ledger.execute([Deposit(f"w{number}:{each}", "ann", "btc", "1") for each in range(5)])
                held = ledger.freeze("ann", "btc", "1", key=f"wf{number}")
                ledger.unfreeze(held.hold or 0, None if number % 2 else "0.25", key=f"wu{number}")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            reports = [audited(tmp_path) for _ in range(12)]
        finally:
            stop.set()
            writer.join()
    assert [(report.verdict, report.findings) for report in reports] == [("clean", [])] * 12
    assert reports[-1].entries > reports[0].entries
    assert audited(tmp_path).verdict == "clean"


def test_audit_of_the_long_way_says_the_same_as_the_short_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short way through entries of the usual kinds derives what the general way does."""
    folder = make(tmp_path / "ledger")
    short = audited(folder)
    monkeypatch.setattr(audit_journal, "SHORTCUTS", {})
    long = audited(folder)
    assert {**long.as_json(), "seconds": 0} == {**short.as_json(), "seconds": 0}


def test_audit_with_a_pace_rests_and_tells_how_far_it_is(tmp_path: Path) -> None:
    """The slow audit reads in small steps, and says after each where it is."""
    folder = make(tmp_path / "ledger")
    told: list[Progress] = []
    report = audited(folder, entries_per_second=100, progress=told.append)
    assert report.verdict == "clean"
    assert report.seconds > 0.3
    assert told[-1] == Progress(report.head_seq, report.head_seq)


# --- incomplete ---------------------------------------------------------------------------------------------


def incomplete(path: Path, **options: Any) -> str:
    """Audit *path*, which cannot be done, and return what was not looked at."""
    report = audit_file(path, **options)
    assert (report.verdict, report.counts) == ("incomplete", {})
    assert report.unexamined
    return "; ".join(report.unexamined)


def test_audit_of_what_is_no_ledger_is_incomplete(tmp_path: Path) -> None:
    """A missing file, a folder, another SQLite file, and an empty file are never clean."""
    assert "does not exist" in incomplete(tmp_path / "nothing.db")
    assert "not a file" in incomplete(tmp_path)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE entry (seq INTEGER)")
    connection.close()
    assert "no journal" in incomplete(other)
    empty = tmp_path / "empty.db"
    empty.touch()
    assert "is empty" in incomplete(empty)


def test_audit_of_what_is_no_database_is_damaged(tmp_path: Path) -> None:
    """Bytes that no database begins with are damage, and nothing else is said of them."""
    text = tmp_path / "text.db"
    text.write_text("not a database, by far" * 100)
    report = audit_file(text)
    assert (report.verdict, report.counts) == ("damaged", {"file_damaged": 1})
    assert "text.db" in report.findings[0].where
    assert "not a database" in report.findings[0].where
    done = run("audit", "--file", text)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["journal.db", "books.db", "keys.db"])
@pytest.mark.parametrize("content", [b"", b"not a database" * 1000, bytes(8192), b"SQLite format 3\0" + bytes(9000)])
def test_audit_of_a_ledger_with_a_file_that_is_none_is_damaged(tmp_path: Path, name: str, content: bytes) -> None:
    """Where a ledger has its file there is a file of it; what the other files say is looked at all the same."""
    folder = make(tmp_path / "ledger")
    whole = audited(folder)
    (folder / name).write_bytes(content)
    report = audited(folder)
    assert report.verdict == "damaged"
    assert "file_damaged" in report.counts
    assert name in report.findings[0].where
    assert report.entries == (0 if name == "journal.db" else whole.entries)


def test_audit_of_a_file_that_may_not_be_read_is_incomplete_and_says_so_in_a_line(tmp_path: Path) -> None:
    """Without the permission to read a file nothing is known of it: exit code 3, one line, no traceback."""
    folder = make(tmp_path / "ledger")
    for name in FILES:
        (folder / name).chmod(0o644)
    assert (found := _as_nobody(folder)).returncode == 0, found.stdout + found.stderr
    for name in FILES[:3]:
        (folder / name).chmod(0)
        found = _as_nobody(folder)
        assert found.returncode == 3, found.stderr
        assert found.stderr == ""
        assert f"{name} may not be read" in found.stdout
        assert "DAMAGED" not in found.stdout
        (folder / name).chmod(0o644)
    folder.chmod(0)
    found = _as_nobody(folder)
    folder.chmod(0o700)
    assert (found.returncode, found.stderr) == (3, "")
    assert "could not be looked at" in found.stdout


def _as_nobody(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as somebody who owns nothing of the ledger, where this process may become one."""
    program = (
        "import os, sys, spotledger.cli.audit; from spotledger.cli.main import main\n"
        "if os.geteuid() == 0:\n    os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv[0] = 'spotledger'; main()"
    )
    command = [sys.executable, "-c", program, "audit", "--data", str(folder), "--processes", "1"]
    if os.geteuid() == 0:
        for parent in (folder, *folder.parents):
            if parent.stat().st_mode & 0o777:  # only what is locked on purpose stays so
                parent.chmod(parent.stat().st_mode | 0o055)
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env={"HOME": "/"})


def test_audit_of_another_version_is_incomplete(tmp_path: Path) -> None:
    """A schema that this version does not know is not judged."""
    folder = make(tmp_path / "ledger")
    with raw(folder) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "version 99" in incomplete(folder / "journal.db")


def test_audit_of_books_of_another_version_says_how_they_are_made_again(tmp_path: Path) -> None:
    """What an update leaves until the first start is no damage, and needs no other spotledger."""
    folder = make(tmp_path / "ledger")
    with raw(folder, "books.db") as connection:
        connection.execute("PRAGMA user_version = 7")
    told = incomplete(folder / "journal.db")
    assert "version 7" in told
    assert "spotledger rebuild" in told


@pytest.mark.parametrize(
    ("file", "table"),
    [
        (file, name)
        for file, kind in (("journal.db", JOURNAL), ("books.db", BOOKS), ("keys.db", KEYS))
        for name, sql in schema_of(kind).items()
        if sql.startswith("CREATE TABLE")
    ],
)
def test_audit_without_a_table_is_damaged_and_names_it(tmp_path: Path, file: str, table: str) -> None:
    """A table that is missing is damage; what could not be looked at for it is said."""
    folder = make(tmp_path / "ledger")
    with raw(folder, file) as connection:
        connection.execute("DROP VIEW IF EXISTS posting")
        connection.execute(f"DROP TABLE {table}")
    report = audited(folder)
    assert report.verdict == "damaged"
    assert f"{file}: table {table}" in [finding.where for finding in report.findings]
    assert any(table in why for why in report.unexamined)


@pytest.mark.parametrize("name", ["journal.db", "books.db", "keys.db"])
def test_audit_of_a_file_with_overwritten_pages_names_each(tmp_path: Path, name: str) -> None:
    """Whichever page of a file is overwritten, the audit says which, or that the whole file is none."""
    folder = make(tmp_path / "ledger", segment_entries=32)
    pages = (folder / name).stat().st_size // 4096
    for page in range(pages):
        copy = copy_of(folder, tmp_path / f"copy{page}")
        with (copy / name).open("r+b") as file:
            file.seek(page * 4096)
            file.write(os.urandom(4096))
        report = audited(copy)
        assert report.verdict == "damaged"
        places = [finding.where for finding in report.findings]
        assert f"{name}: page {page + 1}" in places or ("file_damaged" in report.counts and page == 0)
        shutil.rmtree(copy)


def test_audit_that_is_interrupted_is_incomplete(tmp_path: Path) -> None:
    """Ctrl-C ends it with what it had; that is not clean."""
    folder = make(tmp_path / "ledger")

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    assert "interrupted" in incomplete(folder / "journal.db", progress=interrupt)


def test_audit_beyond_its_time_is_incomplete(tmp_path: Path) -> None:
    """It stops where its time is over and says how far it came."""
    folder = make(tmp_path / "ledger")
    assert "0 seconds" in incomplete(folder / "journal.db", limit_seconds=0)


def test_audit_without_the_ledgers_own_row_is_damaged_and_says_what_it_left(tmp_path: Path) -> None:
    """Without the ledger's id the chain has no beginning."""
    folder = make(tmp_path / "ledger")
    with damaging(folder) as damage:
        damage.sql("DELETE FROM ledger")
    report = audited(folder)
    assert report.verdict == "damaged"
    assert set(report.counts) == {"ledger_row_missing"}
    assert report.unexamined


@pytest.mark.parametrize(("column", "value"), [("segment_entries", 0), ("segment_entries", 65_537), ("epoch_seq", 3)])
def test_audit_of_a_ledgers_own_row_that_cannot_be_is_damaged(tmp_path: Path, column: str, value: int) -> None:
    """Sizes of segments and epochs have bounds."""
    folder = make(tmp_path / "ledger")
    with damaging(folder) as damage:
        damage.sql(f"UPDATE ledger SET {column} = {value}")
    report = audited(folder)
    assert report.verdict == "damaged"
    assert "ledger_row_wrong" in report.counts


def test_audit_without_books_or_note_is_incomplete_and_says_so(tmp_path: Path) -> None:
    """What the service makes again is not damaged where it is missing, but it could not be looked at."""
    folder = make(tmp_path / "ledger")
    (folder / "books.db").unlink()
    assert "the books: there are none" in incomplete(folder / "journal.db")
    (folder / "noted-head").unlink()
    assert "noted-head: there is none" in incomplete(folder / "journal.db")


def test_audit_of_a_noted_ledger_without_its_journal_is_damaged(tmp_path: Path) -> None:
    """A folder with a noted head had a journal."""
    folder = make(tmp_path / "ledger")
    (folder / "journal.db").unlink()
    report = audited(folder)
    assert (report.verdict, report.counts) == ("damaged", {"file_damaged": 1})
    assert "does not exist" in report.findings[0].where


# --- the command --------------------------------------------------------------------------------------------


def test_audit_command_exits_by_what_it_found(tmp_path: Path) -> None:
    """0 is clean, 1 is damaged, 3 is incomplete, 2 is wrong usage; --json prints the report."""
    folder = make(tmp_path / "ledger")
    clean = run("audit", "--data", folder, "--json")
    assert clean.returncode == 0, clean.stderr
    report = json.loads(clean.stdout)
    assert report["verdict"] == "clean"
    noted = f"{report['audited_to']}:{report['hash']}"
    assert run("audit", "--data", folder, "--known-head", noted).returncode == 0
    assert run("audit", "--data", folder, "--known-head", "5").returncode == 2
    with damaging(folder) as damage:
        damage.sql("UPDATE balance SET available = 1 WHERE customer = 'ann'")
    damaged = run("audit", "--file", folder / "journal.db")
    assert damaged.returncode == 1
    assert "DAMAGED" in damaged.stdout
    assert "balance_row_differs" in damaged.stdout
    assert "what to do: The books are derived" in damaged.stdout
    missing = run("audit", "--data", tmp_path / "nowhere")
    assert missing.returncode == 3
    assert "INCOMPLETE" in missing.stdout


def test_audit_of_a_damaged_page_of_a_derived_table_still_reads_the_journal(tmp_path: Path) -> None:
    """What cannot be read is named, and the rest is looked at all the same."""
    folder = make(tmp_path / "ledger")
    with damaging(folder) as damage:
        damage.sql("UPDATE reversal SET by_seq = 5")
    with raw(folder, "books.db") as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'history_bucket'").fetchone()[0]
    with (folder / "books.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    report = audited(folder)
    assert set(report.counts) == {"page_damaged", "structure_damaged", "reversal_row_differs", "count_differs"}
    places = [finding.where for finding in report.findings]
    assert f"books.db: page {page}" in places
    assert any("books.db: history_bucket of segment 0 could not be read" in place for place in places)
    assert report.audited_to == report.head_seq


def test_audit_of_a_damaged_page_of_the_journal_reads_the_entries_around_it(tmp_path: Path) -> None:
    """The entries that cannot be read are missing, and those after them are looked at."""
    folder = tmp_path / "ledger"
    with open_small(folder, segment_entries=64) as ledger:
        seed(ledger)
        for number in range(300):
            ledger.deposit("ann", "btc", "1", key=f"d{number}", reference="x" * 100)
    whole = audited(folder)
    with (folder / "journal.db").open("r+b") as file:
        file.seek(20 * 4096 + 5)
        file.write(b"!")
    report = audited(folder)
    assert set(report.counts) >= {"page_damaged", "entry_missing"}
    assert "journal.db: page 21" in [finding.where for finding in report.findings]
    missing = [finding for finding in report.findings if finding.code == "entry_missing"]
    assert len(missing) == 1
    assert report.audited_to == report.head_seq
    assert report.hash == whole.hash
    assert whole.postings - 40 < report.postings < whole.postings


def test_audit_of_what_a_killed_process_left_reads_its_log_and_changes_nothing(tmp_path: Path) -> None:
    """The entries that are only in the write-ahead log count, and the log is not folded into the file."""
    clock = Clock()
    left = tmp_path / "left"
    left.mkdir()
    with open_small(tmp_path / "ledger", clock) as ledger:
        every_kind(ledger, clock)
        for name in (*FILES, *(f"{name}-wal" for name in FILES[:3])):
            if (tmp_path / "ledger" / name).exists():
                (left / name).write_bytes((tmp_path / "ledger" / name).read_bytes())
        head = ledger.head.seq
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    report = audited(left)
    assert (report.verdict, report.entries) == ("clean", head)
    assert {name: (left / name).read_bytes() for name in before} == before
