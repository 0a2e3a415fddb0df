"""The audit over whole ledgers: clean where they are, while they are written, and incomplete where it cannot look."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit import journal as audit_journal
from spotledger.audit.embedded import audit_file
from spotledger.audit.report import Progress
from spotledger.domain.operations import Deposit
from spotledger.storage.sqlite.audit import TABLES
from support_audit import audited, copy_of, damaging, every_kind, make
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
    assert report.sealed_to == 32


def test_audit_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """No file is changed, and none is left beside the ledger."""
    folder = make(tmp_path / "ledger")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert audited(folder).verdict == "clean"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_audit_after_each_group_is_clean_at_every_step_of_a_sealing(tmp_path: Path) -> None:
    """Rows of a segment that is half sealed are no fault: the audit is clean after each commit, the ledger open."""
    clock = Clock()
    with open_small(tmp_path, clock, segment_entries=64) as ledger:
        seed(ledger)
        sealing = 0
        for number in range(150):
            ledger.deposit("ann", "btc", "1", key=f"d{number}")
            held = ledger.freeze("bob", "btc", "0.5", key=f"f{number}")
            if number % 3:
                ledger.unfreeze(held.hold or 0, key=f"u{number}")
            report = audited(tmp_path)
            assert (report.verdict, report.findings) == ("clean", [])
            with raw(tmp_path) as connection:
                beyond = connection.execute("SELECT count(*) FROM key_seq WHERE seq > ?", (report.sealed_to,))
                sealing += beyond.fetchone()[0] > 0
    assert sealing > 0, "no sealing was ever half done"


def test_audit_of_rows_written_before_their_sealing_ended_is_clean(tmp_path: Path) -> None:
    """Whatever a sealing had written when it was cut off may be there."""
    folder = make(tmp_path / "ledger")
    whole = audited(folder)
    with damaging(folder) as damage:
        damage.sql("UPDATE ledger SET sealed_to = sealed_to - 8")
    report = audited(folder)
    assert (report.verdict, report.findings) == ("clean", [])
    assert report.sealed_to == whole.sealed_to - 8


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
    """A missing file, a folder, text, another SQLite file, and an empty file are never clean."""
    assert "does not exist" in incomplete(tmp_path / "nothing.db")
    assert "not a file" in incomplete(tmp_path)
    text = tmp_path / "text.db"
    text.write_text("not a database, by far" * 100)
    assert "not a database" in incomplete(text)
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE entry (seq INTEGER)")
    connection.close()
    assert "not a ledger" in incomplete(other)
    empty = tmp_path / "empty.db"
    empty.touch()
    assert "not a ledger" in incomplete(empty)


def test_audit_of_another_version_is_incomplete(tmp_path: Path) -> None:
    """A schema that this version does not know is not judged."""
    folder = make(tmp_path / "ledger")
    with raw(folder) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "version 99" in incomplete(folder / "ledger.db")


@pytest.mark.parametrize("table", sorted(TABLES))
def test_audit_without_a_table_is_not_clean(tmp_path: Path, table: str) -> None:
    """A table that is missing could not be looked at, and is named."""
    folder = make(tmp_path / "ledger")
    with raw(folder) as connection:
        connection.execute("DROP VIEW posting")
        connection.execute(f"DROP TABLE {table}")
    report = audited(folder)
    assert report.verdict != "clean"
    assert any(table in why for why in report.unexamined)


def test_audit_of_a_file_with_overwritten_pages_is_not_clean(tmp_path: Path) -> None:
    """Whichever page of the file is overwritten, the audit never says clean of what it could not read."""
    folder = make(tmp_path / "ledger")
    size = (folder / "ledger.db").stat().st_size
    whole = audited(folder).as_json()
    verdicts = set()
    for page in range(1, size // 4096):
        copy = copy_of(folder, tmp_path / f"copy{page}")
        with (copy / "ledger.db").open("r+b") as file:
            file.seek(page * 4096)
            file.write(os.urandom(4096))
        report = audited(copy)
        verdicts.add(report.verdict)
        if report.verdict == "clean":
            said = {**report.as_json(), "seconds": 0, "path": ""}
            assert said == {**whole, "seconds": 0, "path": ""}
    assert "incomplete" in verdicts


def test_audit_that_is_interrupted_is_incomplete(tmp_path: Path) -> None:
    """Ctrl-C ends it with what it had; that is not clean."""
    folder = make(tmp_path / "ledger")

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    assert "interrupted" in incomplete(folder / "ledger.db", progress=interrupt)


def test_audit_beyond_its_time_is_incomplete(tmp_path: Path) -> None:
    """It stops where its time is over and says how far it came."""
    folder = make(tmp_path / "ledger")
    assert "0 seconds" in incomplete(folder / "ledger.db", limit_seconds=0)


def test_audit_without_the_ledgers_own_row_is_damaged_and_says_what_it_left(tmp_path: Path) -> None:
    """Without the ledger's id the chain has no beginning."""
    folder = make(tmp_path / "ledger")
    with damaging(folder) as damage:
        damage.sql("DELETE FROM ledger")
    report = audited(folder)
    assert report.verdict == "damaged"
    assert set(report.counts) == {"ledger_row_missing"}
    assert report.unexamined


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
    damaged = run("audit", "--file", folder / "ledger.db")
    assert damaged.returncode == 1
    assert "DAMAGED" in damaged.stdout
    assert "balance_row_differs" in damaged.stdout
    missing = run("audit", "--data", tmp_path / "nowhere")
    assert missing.returncode == 3
    assert "INCOMPLETE" in missing.stdout


def test_audit_of_a_damaged_page_of_a_derived_table_still_reads_the_journal(tmp_path: Path) -> None:
    """What cannot be read is named, and the rest is looked at all the same."""
    folder = make(tmp_path / "ledger")
    with raw(folder) as connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'history'").fetchone()[0]
        connection.execute("PRAGMA journal_mode = DELETE")
    with (folder / "ledger.db").open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(os.urandom(4096))
    with damaging(folder) as damage:
        damage.sql("UPDATE reversal SET by_seq = 5")
    report = audited(folder)
    assert set(report.counts) == {"reversal_row_differs"}
    assert any("the history could not be read" in why for why in report.unexamined)
    assert report.audited_to == report.head_seq


def test_audit_of_what_a_killed_process_left_reads_its_log_and_changes_nothing(tmp_path: Path) -> None:
    """The entries that are only in the write-ahead log count, and the log is not folded into the file."""
    clock = Clock()
    left = tmp_path / "left"
    left.mkdir()
    with open_small(tmp_path / "ledger", clock) as ledger:
        every_kind(ledger, clock)
        for name in ("ledger.db", "ledger.db-wal"):
            (left / name).write_bytes((tmp_path / "ledger" / name).read_bytes())
        head = ledger.head.seq
    before = {file.name: file.read_bytes() for file in left.iterdir()}
    report = audited(left)
    assert (report.verdict, report.entries) == ("clean", head)
    assert {name: (left / name).read_bytes() for name in before} == before
