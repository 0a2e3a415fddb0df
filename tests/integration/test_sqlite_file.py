"""The files of the ledger: what SQLite refuses on its own, and what a start finds out, makes good, or names."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import apsw
import pytest

from spotledger.archive.recover import look
from spotledger.domain.accounts import EXTERNAL, Balance
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation
from spotledger.errors import (
    AlreadyReversed,
    DataFolderInUse,
    JournalShorter,
    LedgerCorrupt,
    SchemaMismatch,
    SetupError,
    StoreUnavailable,
)
from spotledger.ledger.finding import Criteria
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.storage.steps import drive
from support_audit import audited
from support_books import check_books, opened
from support_core import Clock, booked_up_to_commit, fill, open_small, past_triggers, raw, seed, spot

HUGE = "99999999999999999999.999999999999999999"
HUGE_UNITS = 10**38 - 1
EXPIRY = 1_800_000_000_000


def sealed_to(folder: Path) -> int:
    """Return the last sealed entry, as the file has it."""
    with raw(folder, "books.db") as connection:
        return int(connection.execute("SELECT sealed_to FROM books").fetchone()[0])


def operations_of(count: int) -> list[Operation]:
    """Return deposits and freezes of ann, each under a key of its own."""
    deposits = [Deposit(f"deposit-{n}", "ann", "btc", "2") for n in range(count)]
    freezes = [Freeze(f"freeze-{n}", "ann", "btc", "1", reference=f"order {n}") for n in range(count)]
    return [operation for pair in zip(deposits, freezes, strict=True) for operation in pair]


def assert_nothing_twice(ledger: Ledger, operations: list[Operation]) -> None:
    """Ask for everything again, and for each key with other content: the head does not move."""
    head = ledger.head
    outcomes = ledger.execute(operations)
    assert all(isinstance(outcome, Receipt) and outcome.replayed for outcome in outcomes)
    others = ledger.execute([Deposit(operation.key, "bob", "btc", "5") for operation in operations])
    assert {getattr(outcome, "code", "booked") for outcome in others} == {"idempotency_conflict"}
    assert ledger.head == head


# --- what SQLite refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entry SET body = '{}' WHERE seq = 2",
        "UPDATE entry SET seq = 100 WHERE seq = 2",
        "DELETE FROM entry WHERE seq = 2",
        "DELETE FROM entry",
        "INSERT OR REPLACE INTO entry VALUES (2, '{}', x'00')",
        "REPLACE INTO entry VALUES (2, '{}', x'00')",
        "INSERT INTO entry VALUES (2, '{}', x'00') ON CONFLICT DO UPDATE SET body = '{}'",
        "UPDATE OR REPLACE entry SET seq = 3 WHERE seq = 2",
        "UPDATE head SET seq = seq - 1",
        "UPDATE head SET seq = seq",
        "UPDATE head SET seq = seq + 1, booked_ms = booked_ms - 1",
        "DELETE FROM head",
        "INSERT OR REPLACE INTO head VALUES (1, 0, x'00', 0)",
    ],
)
def test_journal_changed_by_sql_is_refused(tmp_path: Path, statement: str) -> None:
    """No statement updates, deletes or replaces an entry, or takes the head back."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
    with raw(tmp_path) as connection, pytest.raises(apsw.ConstraintError):
        connection.execute(statement)
    check_books(tmp_path)


def test_entry_that_is_there_is_not_appended_again(tmp_path: Path) -> None:
    """The connection that appends asks no triggers; the primary key refuses the entry all the same."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        store: Any = ledger._store
        with pytest.raises(apsw.ConstraintError):
            store._write.execute("INSERT INTO entry (seq, body, hash) VALUES (2, '{}', x'00')")
    check_books(tmp_path)


def test_journal_in_use_is_not_changed_by_others(tmp_path: Path) -> None:
    """Only the connection that appends has no triggers: any other one is refused while the ledger is open, too."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        with raw(tmp_path) as connection, pytest.raises(apsw.ConstraintError):
            connection.execute("REPLACE INTO entry VALUES (2, '{}', x'00')")
    check_books(tmp_path)


# --- what a start names ---------------------------------------------------------------------------


DAMAGES = [
    "DELETE FROM entry WHERE seq = (SELECT max(seq) FROM entry)",
    "DELETE FROM entry WHERE seq > (SELECT max(seq) - 3 FROM entry)",
    "DELETE FROM entry",
    "DELETE FROM entry WHERE seq = :sealed",
    "DELETE FROM entry WHERE seq = :sealed + 1",
    "UPDATE entry SET body = replace(body, 'deposit', 'devosit') WHERE seq = (SELECT max(seq) FROM entry)",
    "UPDATE entry SET body = body || ' ' WHERE seq = :sealed + 1",
    "UPDATE entry SET body = '{' WHERE seq = :sealed + 1",
    "UPDATE entry SET hash = x'00' WHERE seq = :sealed + 1",
    "UPDATE entry SET hash = x'00' WHERE seq = (SELECT max(seq) FROM entry)",
    "UPDATE head SET hash = x'00'",
    "UPDATE head SET seq = seq - 1",
    "UPDATE head SET seq = seq + 1",
    "DELETE FROM head",
    "DELETE FROM ledger",
    "UPDATE ledger SET ledger_id = 'another'",
    "DROP TRIGGER entry_is_never_deleted",
    "DROP VIEW posting",
]


@pytest.mark.parametrize("with_note", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_start_with_a_damaged_journal_is_named(tmp_path: Path, damage: str, with_note: bool) -> None:
    """A journal that was cut, changed or has a hole at its end is refused by name, and nothing is written to it."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 33)
    sealed = sealed_to(tmp_path)
    assert sealed % 8 == 0
    with raw(tmp_path) as connection:
        assert connection.execute("SELECT max(seq) FROM entry").fetchone()[0] - sealed >= 4
        past_triggers(connection, damage.replace(":sealed", str(sealed)))
        before = connection.execute("SELECT count(*), max(seq) FROM entry").fetchone()
    if not with_note:
        (tmp_path / "noted-head").unlink()
    for _ in range(2):
        with pytest.raises((LedgerCorrupt, JournalShorter)):
            open_small(tmp_path)
    with raw(tmp_path) as connection:
        assert connection.execute("SELECT count(*), max(seq) FROM entry").fetchone() == before


def test_start_with_a_journal_that_ends_before_the_noted_head_names_both(tmp_path: Path) -> None:
    """An earlier copy of the journal, whole in itself, is not served in the place of the one that went on."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 10)
        early = ledger.head.seq
    kept = {name: (tmp_path / name).read_bytes() for name in ("journal.db", "books.db")}
    with open_small(tmp_path) as ledger:
        fill(ledger, 20, "late")
        late = ledger.head.seq
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(JournalShorter, match="spotledger recover") as refused:
        open_small(tmp_path)
    assert (refused.value.details["found"], refused.value.details["noted"]) == (early, late)


def test_start_with_another_history_of_the_same_length_is_named(tmp_path: Path) -> None:
    """A journal that has other entries than those that were acknowledged is damage, however whole it is."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
    kept = {name: (tmp_path / name).read_bytes() for name in ("journal.db", "books.db", "noted-head")}
    with open_small(tmp_path) as ledger:
        fill(ledger, 20, "one")
    noted = (tmp_path / "noted-head").read_bytes()
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    with open_small(tmp_path) as ledger:
        fill(ledger, 20, "other")
    (tmp_path / "noted-head").write_bytes(noted)
    with pytest.raises(LedgerCorrupt, match="not the one that was acknowledged"):
        open_small(tmp_path)


def test_start_with_a_log_that_is_damaged_or_cut_is_refused(tmp_path: Path) -> None:
    """After a kill, a flipped bit in the log, or a log cut or gone, loses no acknowledged entry in silence."""
    live, killed = tmp_path / "live", tmp_path / "killed"
    with open_small(live, segment_entries=1024) as ledger:
        seed(ledger)
        for number in range(12):
            ledger.deposit("ann", "btc", "1", key=f"k{number}")
        head = ledger.head
        shutil.copytree(live, killed)
    whole = (killed / "journal.db-wal").read_bytes()
    places = range(100, len(whole), len(whole) // 25)
    contents = [_flipped(whole, place) for place in places]
    contents += [whole[: len(whole) // 2], whole[:-4120], b""]
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder)
        (folder / "journal.db-wal").write_bytes(content)
        with pytest.raises((JournalShorter, LedgerCorrupt)):
            open_small(folder)
    with open_small(killed) as ledger:
        assert ledger.head == head


def _flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 4
    return bytes(changed)


def test_start_with_a_file_of_noise_is_refused(tmp_path: Path) -> None:
    """A file that is no SQLite file is named as that, and left as it is."""
    (tmp_path / "journal.db").write_bytes(b"this is a diary, not a ledger " * 300)
    with pytest.raises(SchemaMismatch, match="nor an SQLite file"):
        open_small(tmp_path)
    assert (tmp_path / "journal.db").read_bytes().startswith(b"this is a diary")


def test_start_with_a_ledger_in_one_file_is_refused_by_name(tmp_path: Path) -> None:
    """A ledger of the earlier form is named, and no empty one is made beside it."""
    (tmp_path / "ledger.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(SchemaMismatch, match=r"ledger\.db is a ledger in one file"):
        open_small(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".db"] == ["ledger.db"]


@pytest.mark.parametrize(
    ("pragma", "message"),
    [
        ("application_id = 7", "no journal of spotledger"),
        ("user_version = 1", "schema version 1"),
        ("user_version = 0", "schema version 0"),
    ],
)
def test_start_with_another_kind_of_file_is_refused(tmp_path: Path, pragma: str, message: str) -> None:
    """A file of another application or of another version is refused by name, and the folder is let go."""
    open_small(tmp_path).close()
    with raw(tmp_path) as connection:
        connection.execute(f"PRAGMA {pragma}")
    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=message):
            open_small(tmp_path)


def test_start_with_somebodys_database_is_refused(tmp_path: Path) -> None:
    """An SQLite file with tables of somebody else gets none of ours."""
    with raw(tmp_path) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(SchemaMismatch):
        open_small(tmp_path)
    with raw(tmp_path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("recipes",)]


def test_open_twice_is_refused(tmp_path: Path) -> None:
    """A folder has one owner; the second is told who it is, and the first goes on."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        with pytest.raises(DataFolderInUse, match="process"):
            open_small(tmp_path)
        fill(ledger, 3)
    open_small(tmp_path).close()


# --- what a start makes good ----------------------------------------------------------------------


def test_restart_again_and_again_keeps_all(tmp_path: Path) -> None:
    """However often a ledger is opened and closed, the books stay whole and no key is taken twice."""
    operations = operations_of(120)
    with open_small(tmp_path, segment_entries=32) as ledger:
        seed(ledger)
    for start in range(0, len(operations), 3):
        with open_small(tmp_path, segment_entries=32) as ledger:
            ledger.execute(operations[start : start + 2])
            ledger.execute(operations[start + 2 : start + 3])
            held = sum(hold.remaining for hold in ledger.holds("ann", "open"))
            assert ledger.account(spot("ann")).balances["btc"].freeze == held
            assert len(ledger.holds("ann")) == len(range(1, start + 3, 2))
        check_books(tmp_path)
    with open_small(tmp_path) as ledger:
        assert_nothing_twice(ledger, operations)


BOOKS_DAMAGES = [
    "DELETE FROM books",
    "UPDATE books SET sealed_to = sealed_to + 8",
    "UPDATE books SET sealed_hash = x'00'",
    "UPDATE books SET ledger_id = 'another'",
    "UPDATE books SET segment_entries = 9",
    "DELETE FROM key_bucket WHERE id = (SELECT min(id) FROM key_bucket WHERE length(packed) > 16)",
    "UPDATE key_bucket SET packed = zeroblob(length(packed))",
    "DELETE FROM reference_bucket",
    "UPDATE reference_bucket SET packed = zeroblob(length(packed))",
    "DELETE FROM history_bucket",
    "UPDATE history_bucket SET packed = substr(packed, 2)",
    "DELETE FROM balance WHERE customer = 'ann'",
    "UPDATE balance SET available = available + 1 WHERE customer = 'ann'",
    "UPDATE balance SET customer = 'anm' WHERE customer = 'ann'",
    "DELETE FROM customer WHERE customer = 'ann'",
    "DELETE FROM owner_bucket",
    "UPDATE hold SET remaining = 1 WHERE closed_seq IS NOT NULL",
    "UPDATE hold SET closed_seq = NULL",
    "DELETE FROM hold",
    "UPDATE hold SET customer = 'bob'",
    "DELETE FROM hold_bucket",
    "DELETE FROM coin WHERE coin = 'btc'",
    "UPDATE coin SET scale = 2 WHERE coin = 'btc'",
    "DELETE FROM reversal",
    "DROP INDEX hold_due",
    "DROP TABLE balance",
]


@pytest.mark.parametrize("damage", BOOKS_DAMAGES)
def test_books_that_are_damaged_are_made_again_and_nothing_wrong_is_said(tmp_path: Path, damage: str) -> None:
    """Whatever somebody did to the books, every answer is the journal's, and no key is taken twice."""
    operations = operations_of(40)
    folders = tmp_path / "damaged", tmp_path / "twin"
    for folder in folders:
        with open_small(folder, clock_ms=Clock()) as ledger:
            seed(ledger)
            ledger.execute(operations)
            deposit = ledger.deposit("bob", "btc", "3", key="to-be-reversed")
            ledger.reverse(deposit.seq, "a test", key="reversal")
            for number in range(0, 40, 3):
                ledger.unfreeze(HoldKey(f"freeze-{number}"), key=f"release-{number}")
            fill(ledger, 20)
    with raw(folders[0], "books.db") as connection:
        connection.execute(damage)
    answers = []
    for folder in folders:
        with open_small(folder, clock_ms=Clock()) as ledger:
            assert_nothing_twice(ledger, operations)
            answers.append(everything_of(ledger))
            with pytest.raises(AlreadyReversed):
                ledger.reverse(deposit.seq, "a test", key="another-reversal")
            mended = ledger._store.repairs  # type: ignore[attr-defined]
            assert bool(mended) == (folder is folders[0])
            fill(ledger, 20, "more")
    assert answers[0] == answers[1]
    assert check_books(folders[0]).balances == check_books(folders[1]).balances


def everything_of(ledger: Ledger) -> list[object]:
    """Ask a ledger for all that can be asked of ann and bob, and of the whole."""
    found: list[object] = [ledger.customers(), ledger.trial_balance(), dict(ledger.coins)]
    for customer in ("ann", "bob", "nobody"):
        account = spot(customer)
        found += [dict(ledger.account(account).balances), ledger.holds(customer), ledger.holds(customer, "open")]
        found += [ledger.balances(account, at_seq=seq) for seq in range(0, ledger.head.seq + 1, 7)]
    found += [ledger.hold(seq) for seq in range(1, ledger.head.seq + 1)]
    for reference in ("order 0", "order 5", "never"):
        found.append([entry.seq for entry in ledger.find(Criteria(reference=reference)).entries])
    return found


FILTER_DAMAGES = [
    "DELETE FROM key_filter",
    "DELETE FROM key_filter_page",
    "DELETE FROM key_filter WHERE level = (SELECT max(level) FROM key_filter)",
    "DELETE FROM key_filter_page WHERE level = 0",
    "UPDATE key_filter_page SET bits = zeroblob(length(bits))",
    "UPDATE key_filter_page SET bits = x''",
    "UPDATE key_filter_page SET bits = substr(bits, 2)",
    "UPDATE key_filter_page SET checksum = x'00'",
    "UPDATE key_filter_page SET page = page + 1",
    "UPDATE key_filter_page SET level = level + 100",
    "UPDATE key_filter SET covered_to = covered_to + 1",
    "UPDATE key_filter SET covered_to = covered_to - 1",
    "UPDATE key_filter SET covered_to = 1000000",
    "UPDATE key_filter SET covered_to = -5",
    "UPDATE key_filter SET checksum = x''",
]


@pytest.mark.parametrize("damage", FILTER_DAMAGES)
def test_filter_of_keys_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    """A filter that is damaged, missing, behind or ahead is made good: no key is ever taken twice."""
    operations = operations_of(60)
    with open_small(tmp_path) as ledger:
        seed(ledger)
        for operation in operations:
            ledger.execute([operation])
    with raw(tmp_path, "books.db") as connection:
        assert connection.execute("SELECT count(*) FROM key_filter").fetchone()[0] >= 2
        connection.execute(damage)
    for round_number in range(2):
        with open_small(tmp_path) as ledger:
            assert_nothing_twice(ledger, operations)
            fill(ledger, 20, f"more-{round_number}")
            assert_nothing_twice(ledger, operations)
    check_books(tmp_path)


def test_filter_level_that_is_complete_and_damaged_is_written_again_by_the_next_sealing(tmp_path: Path) -> None:
    """A level to which no segment will be added is not left damaged until the books are made again."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 40)
    with raw(tmp_path, "books.db") as connection:
        [(covered_to,)] = connection.execute("SELECT covered_to FROM key_filter WHERE level = 0").fetchall()
        connection.execute("UPDATE key_filter_page SET bits = zeroblob(length(bits)) WHERE level = 0")
    assert {finding.code for finding in audited(tmp_path).findings} == {"filter_page_damaged"}
    with open_small(tmp_path) as ledger:
        assert ["level 0" in text for text in ledger._store.repairs] == [True]  # type: ignore[attr-defined]
        fill(ledger, 8, "more")
    assert audited(tmp_path).verdict == "clean"
    with raw(tmp_path, "books.db") as connection:
        assert connection.execute("SELECT covered_to FROM key_filter WHERE level = 0").fetchall() == [(covered_to,)]
    with open_small(tmp_path) as ledger:
        assert ledger._store.repairs == ()  # type: ignore[attr-defined]
        assert ledger.deposit("ann", "btc", "0.00000001", key="fill:3").replayed


def test_filter_of_keys_older_than_the_journal_is_brought_up(tmp_path: Path) -> None:
    """A filter that stands as it did many segments ago, all its checksums right, lets no key through."""
    operations = operations_of(60)
    with open_small(tmp_path) as ledger:
        seed(ledger)
        ledger.execute(operations[:40])
        fill(ledger, 20, "early")
    with raw(tmp_path, "books.db") as connection:
        levels = connection.execute("SELECT * FROM key_filter").fetchall()
        pages = connection.execute("SELECT * FROM key_filter_page").fetchall()
        assert levels
    with open_small(tmp_path) as ledger:
        ledger.execute(operations[40:])
        fill(ledger, 20, "late")
    with raw(tmp_path, "books.db") as connection:
        connection.execute("DELETE FROM key_filter")
        connection.execute("DELETE FROM key_filter_page")
        connection.executemany("INSERT INTO key_filter VALUES (?, ?, ?)", levels)
        connection.executemany("INSERT INTO key_filter_page VALUES (?, ?, ?, ?)", pages)
    with open_small(tmp_path) as ledger:
        assert_nothing_twice(ledger, operations)
    check_books(tmp_path)


def test_filter_of_keys_when_written_half_way_is_made_good(tmp_path: Path) -> None:
    """Pages of the filter that are newer than its row, as a cut sealing leaves them, say nothing untrue."""
    operations = operations_of(30)
    with open_small(tmp_path) as ledger:
        seed(ledger)
        for operation in operations[:30]:
            ledger.execute([operation])
        with raw(tmp_path, "books.db") as connection:
            levels = connection.execute("SELECT * FROM key_filter").fetchall()
        for operation in operations[30:]:
            ledger.execute([operation])
    with raw(tmp_path, "books.db") as connection:
        connection.execute("DELETE FROM key_filter")
        connection.executemany("INSERT INTO key_filter VALUES (?, ?, ?)", levels)
    with open_small(tmp_path) as ledger:
        assert_nothing_twice(ledger, operations)


def test_start_logs_what_it_repaired(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged level of the filter is named in the log of the start that fills it again."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 40)
    with raw(tmp_path, "books.db") as connection:
        connection.execute("UPDATE key_filter_page SET bits = zeroblob(length(bits)) WHERE level = 0")
    open_small(tmp_path).close()
    assert ["level 0" in text for text in caplog.messages] == [True]


# --- groups that did not come to their end ----------------------------------------------------------


def test_group_left_between_two_pieces_is_given_up_by_the_next(tmp_path: Path) -> None:
    """Whoever begins a group and never goes on with it holds up nobody, and nothing of it is booked."""
    with open_small(tmp_path) as ledger:
        seed(ledger, "ann")
        head = ledger.head.seq
        left = ledger.booking([Deposit(f"left{number}", "ann", "btc", "1") for number in range(200)])
        assert next(left) is None
        assert ledger.deposit("ann", "btc", "1", key="next").seq == head + 1
        assert ledger.entry_of_key("left0") is None
    check_books(tmp_path)


def test_commit_that_failed_cannot_be_repeated_without_its_entries(tmp_path: Path) -> None:
    """After the disk failed, another commit of the same group moves no head; the file opens with what was durable."""
    with open_small(tmp_path) as ledger:
        seed(ledger, "ann")
        head = ledger.head
        group = booked_up_to_commit(ledger, [Deposit(f"k{number}", "ann", "btc", "1") for number in range(200)])
        ledger._store._write.execute("ROLLBACK")  # type: ignore[attr-defined]  # as SQLite does it by itself
        for commit in (ledger._store.commit(), group):
            with pytest.raises(StoreUnavailable):
                drive(commit)
        assert ledger.head == head
    with open_small(tmp_path) as ledger:
        assert ledger.head == head
    check_books(tmp_path)


# --- what people read ------------------------------------------------------------------------------


def test_posting_view_shows_the_journal_one_line_a_row(tmp_path: Path) -> None:
    """Anyone with an SQLite shell reads the journal as postings, with exact units, and they add up to zero."""
    with open_small(tmp_path) as ledger:
        seed(ledger, "ann")
        hold = ledger.freeze("ann", "btc", "1.5", key="freeze").hold
        ledger.withdraw("0.5", key="out", hold=hold)
    with raw(tmp_path) as connection:
        cursor = connection.execute("SELECT * FROM posting WHERE seq > 3 ORDER BY seq, units")
        assert [column[0] for column in cursor.description] == (
            ["seq", "kind", "customer", "account", "coin", "side", "units", "hold", "key", "actor", "booked"]
        )
        rows = [row[:8] for row in cursor.fetchall()]
        total = connection.execute("SELECT sum(units) FROM posting").fetchone()[0]
        plan = str(connection.execute("EXPLAIN QUERY PLAN SELECT * FROM posting LIMIT 20").fetchall())
    assert rows == [
        (4, "freeze", "ann", "spot", "btc", "available", "-150000000", None),
        (4, "freeze", "ann", "spot", "btc", "freeze", "150000000", 4),
        (5, "withdraw", "ann", "spot", "btc", "freeze", "-50000000", 4),
        (5, "withdraw", "@external", "house", "btc", "available", "50000000", None),
    ]
    assert total == 0
    assert "TEMP B-TREE" not in plan, "a first page of the journal reads all of it"


def test_amounts_beyond_64_bits_are_exact_everywhere(tmp_path: Path) -> None:
    """A coin of scale 18 with a balance of 10**38 - 1 units is exact in memory, in every table, and after a restart."""

    def look(ledger: Ledger) -> None:
        held = HUGE_UNITS - 1
        assert ledger.balances(spot("ann"))["vast"] == Balance(1, held)
        assert ledger.balances(EXTERNAL)["vast"] == Balance(-HUGE_UNITS, 0)
        assert ledger.balances(spot("ann"), at_seq=5)["vast"] == Balance(HUGE_UNITS, 0)
        assert [hold.remaining for hold in ledger.holds("ann", "open")] == [held]
        assert ledger.entry(6).postings[1].units == held  # type: ignore[union-attr]

    with open_small(tmp_path) as ledger:
        seed(ledger, "ann")
        ledger.list_coin("vast", 18, key="list:vast")
        ledger.deposit("ann", "vast", HUGE, key="all-there-is")
        ledger.freeze("ann", "vast", "99999999999999999999.999999999999999998", key="held")
        look(ledger)
        fill(ledger, 40)
        look(ledger)
    assert sealed_to(tmp_path) >= 8
    with open_small(tmp_path) as ledger:
        look(ledger)
    with raw(tmp_path, "books.db") as connection:
        query = "SELECT available, \"freeze\" FROM balance WHERE customer = 'ann' AND coin = 'vast'"
        assert connection.execute(query).fetchone() == (1, str(HUGE_UNITS - 1))
        assert connection.execute("SELECT amount, remaining FROM hold").fetchone() == (str(HUGE_UNITS - 1),) * 2
    with raw(tmp_path) as connection:
        body = json.loads(connection.execute("SELECT body FROM entry WHERE seq = 5").fetchone()[0])
        assert body["request"]["units"] == str(HUGE_UNITS)
    check_books(tmp_path)


@pytest.mark.parametrize("units", [2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**19])
def test_balance_at_the_border_of_64_bits_is_exact(tmp_path: Path, units: int) -> None:
    """Around the largest integer that SQLite holds nothing is rounded, neither on the way up nor back down."""
    with open_small(tmp_path) as ledger:
        seed(ledger, "ann")
        ledger.list_coin("unit", 0, key="list:unit")
        for key, amount in (("a", units - 1), ("b", 1), ("c", 1)):
            ledger.deposit("ann", "unit", str(amount), key=key)
        ledger.withdraw("1", customer="ann", coin="unit", key="d")
        fill(ledger, 20)
    with open_small(tmp_path) as ledger:
        assert [ledger.balances(spot("ann"), at_seq=seq)["unit"].available for seq in (5, 6, 7, 8)] == (
            [units - 1, units, units + 1, units]
        )
    check_books(tmp_path)


@pytest.mark.parametrize("word", ["null", "true", "0", "1e5", "9223372036854775808"])
def test_names_that_look_like_other_values_stay_text(tmp_path: Path, word: str) -> None:
    """A customer, key or reference that could be read as a number or as nothing is the same text after a restart."""
    with open_small(tmp_path) as ledger:
        seed(ledger, f"ann {word}")
        ledger.freeze(word, "btc", "1", key=word, reference=word)
        fill(ledger, 20)
    with open_small(tmp_path) as ledger:
        entry = ledger.entry_of_key(word)
        assert entry is not None
        assert (entry.key, entry.request["reference"], entry.happened_ms) == (word, word, None)
        assert [hold.reference for hold in ledger.holds(word)] == [word]
        assert ledger.freeze(word, "btc", "1.0", key=word, reference=word).replayed
        assert ledger.customers() == sorted(["ann", word])


def _mixed_up(path: Path) -> list[tuple[str, str, bytes]]:
    """Return the file at *path* with the first pages of two tables or indexes swapped, or one copied to the other."""
    with opened(path) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        roots = connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0").fetchall()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    made = []
    for (one, first), (other, second) in permutations(roots, 2):
        a, b = slice((first - 1) * size, first * size), slice((second - 1) * size, second * size)
        mixed = bytearray(content)
        mixed[a] = content[b]
        made.append((one, other, bytes(mixed)))
        if first < second:
            mixed[b] = content[a]
            made.append((one, other, bytes(mixed)))
    return made


def _everything(ledger: Ledger) -> tuple[Any, ...]:
    """Return what the books are asked for."""
    holds = [ledger.holds(name, state) for name in ("ann", "bob") for state in (None, "open")]
    balances = [ledger.balances(spot(name)) for name in ("ann", "bob")]
    return balances, holds, ledger.old_holds(2**60), ledger.customers(), ledger.statement("bob"), ledger.head


@pytest.mark.parametrize("file", ["journal.db", "books.db", "keys.db"])
def test_tables_whose_pages_are_mixed_up_are_named_or_made_again(tmp_path: Path, file: str) -> None:
    """A row of another table in the place of the head, of the ledger, or of any other is damage, not a wrong value."""
    folder = tmp_path / "whole"
    with open_small(folder) as ledger:
        seed(ledger)
        for number in range(5):
            ledger.freeze(("ann", "bob")[number % 2], "btc", "1", key=f"hold-{number}", expires_ms=EXPIRY + number)
        ledger.unfreeze(HoldKey("hold-3"), key="release")
        fill(ledger, 20)
        KeyRing(ledger.key_tables.access_keys, Cipher(bytes(32)), lambda: 1).create("ann", ["read"])
    with open_small(folder) as ledger:
        expected = _everything(ledger)
    mixed = _mixed_up(folder / file)
    assert len(mixed) > 6
    for one, other, content in mixed:
        shutil.rmtree(tmp_path / "mixed", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "mixed")
        (tmp_path / "mixed" / file).write_bytes(content)
        try:
            ledger = open_small(tmp_path / "mixed")
        except (LedgerCorrupt, SetupError):
            assert file != "books.db", (one, other)
            continue
        with ledger:
            try:
                assert _everything(ledger) == expected, (one, other)
            except LedgerCorrupt:
                assert file == "journal.db", (one, other)
        audited(tmp_path / "mixed")
        with suppress(LedgerCorrupt, SetupError):
            look(tmp_path / "mixed")
