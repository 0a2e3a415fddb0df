"""`spotledger recover` and `spotledger rebuild`: what is missing is said, and nothing is lost without a word."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from spotledger.archive.recover import accept_loss, look, rebuild
from spotledger.cli.main import program
from spotledger.errors import DataFolderUnusable, JournalShorter, LedgerCorrupt
from support_books import check_books
from support_core import fill, open_small, past_triggers, raw, seed, spot


def run(*arguments: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(program, [str(argument) for argument in arguments])


def files_of(folder: Path) -> dict[str, bytes]:
    """Read every file of the ledger but SQLite's index of the log."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}


@pytest.fixture
def shortened(tmp_path: Path) -> Path:
    """Give a ledger whose journal and books are those of an earlier time, and whose note is of a later one."""
    folder = tmp_path / "data"
    with open_small(folder) as ledger:
        seed(ledger)
        fill(ledger, 10)
    kept = {name: (folder / name).read_bytes() for name in ("journal.db", "books.db")}
    with open_small(folder) as ledger:
        fill(ledger, 12, "late")
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    return folder


def test_recover_of_a_whole_ledger_finds_nothing(tmp_path: Path) -> None:
    """Neither looking at it nor accepting a loss changes a ledger that lacks nothing."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        head = ledger.head
    before = files_of(tmp_path)
    assert look(tmp_path).problems == accept_loss(tmp_path).problems == ()
    done = run("recover", "--data", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["head_seq"] == head.seq
    after = files_of(tmp_path)
    assert {name: after[name] for name in before} == before


def test_recover_says_what_is_missing_and_changes_nothing(shortened: Path) -> None:
    """Both positions are named, the exit code says that something is missing, and every byte stays."""
    before = files_of(shortened)
    done = run("recover", "--data", shortened, "--json")
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert said["missing"] == said["noted_seq"] - said["head_seq"] == 12
    assert said["new_epoch"] is None
    assert "was acknowledged" in said["problems"][0]
    after = files_of(shortened)
    assert {name: after[name] for name in before} == before
    with pytest.raises(JournalShorter):
        open_small(shortened)


def test_recover_that_accepts_the_loss_goes_on_in_a_new_epoch(shortened: Path) -> None:
    """Afterwards the ledger starts from where its journal ends, and what was noted is put aside."""
    found = accept_loss(shortened)
    assert found.new_epoch == 2
    assert (shortened / "noted-head.before-recover").exists()
    with open_small(shortened) as ledger:
        assert (ledger.head.seq, ledger.epoch) == (found.head_seq + 1, 2)
        fill(ledger, 5, "again")
    assert look(shortened).problems == ()
    check_books(shortened)


def test_recover_of_a_damaged_log_keeps_what_checks_and_a_copy_of_the_log(tmp_path: Path) -> None:
    """Entries before the damage stay, those after it are lost by word of the operator only."""
    live, killed = tmp_path / "live", tmp_path / "killed"
    with open_small(live, segment_entries=1024) as ledger:
        seed(ledger)
        for number in range(20):
            ledger.deposit("ann", "btc", "1", key=f"k{number}")
        shutil.copytree(live, killed)
        balance = ledger.balances(spot("ann"))["btc"].available
    log = killed / "journal.db-wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    before = files_of(killed)
    found = look(killed)
    assert "is damaged at byte" in found.problems[0]
    after = files_of(killed)
    assert {name: after[name] for name in before} == before
    with pytest.raises(JournalShorter, match="spotledger recover"):
        open_small(killed)
    (killed / "owner.lock").unlink(missing_ok=True)
    assert accept_loss(killed).new_epoch == 2
    assert (killed / "journal.db-wal.before-recover").read_bytes() == bytes(content)
    with open_small(killed) as ledger:
        assert 0 < ledger.balances(spot("ann"))["btc"].available < balance
    check_books(killed)


def test_recover_of_two_damaged_slots_needs_the_word_of_the_operator(tmp_path: Path) -> None:
    """Nobody knows how far the journal went, so a start waits until somebody has looked."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
    (tmp_path / "noted-head").write_bytes(bytes(8192))
    with pytest.raises(LedgerCorrupt, match="spotledger recover"):
        open_small(tmp_path)
    assert "both slots" in look(tmp_path).problems[0]
    accept_loss(tmp_path)
    open_small(tmp_path).close()


@pytest.mark.parametrize("loss", ["set back", "removed"])
def test_recover_of_access_keys_that_are_behind_says_so_and_goes_on(tmp_path: Path, loss: str) -> None:
    """A start refuses keys in which a revocation would be undone, and so they come back by word only."""
    keys = tmp_path / "keys.db"
    with open_small(tmp_path) as ledger:
        seed(ledger)
        ledger.key_tables.kept_requests.keep("first", "{}", "{}")
    before = keys.read_bytes()
    with open_small(tmp_path) as ledger:
        ledger.key_tables.kept_requests.keep("second", "{}", "{}")
        head = ledger.head.seq
    if loss == "removed":
        keys.unlink()
    else:
        keys.write_bytes(before)
    with pytest.raises(JournalShorter, match="spotledger recover"):
        open_small(tmp_path)
    if loss == "removed":
        keys.unlink()
    found = look(tmp_path)
    assert ["those revoked since work again" in problem for problem in found.problems] == [True]
    assert accept_loss(tmp_path).new_epoch == 2
    assert look(tmp_path).problems == ()
    with open_small(tmp_path) as ledger:
        assert (ledger.head.seq, ledger.epoch) == (head + 1, 2)
        assert (ledger.key_tables.kept_requests.get("first") is None) == (loss == "removed")
    check_books(tmp_path)


def test_recover_of_a_damaged_log_of_the_access_keys_keeps_what_checks(tmp_path: Path) -> None:
    """The log of keys.db is looked at as that of the journal is, and a copy of it is kept."""
    live, killed = tmp_path / "live", tmp_path / "killed"
    with open_small(live, segment_entries=1024) as ledger:
        seed(ledger)
        for number in range(20):
            ledger.key_tables.kept_requests.keep(f"k{number}", "{}", "{}")
        shutil.copytree(live, killed)
    log = killed / "keys.db-wal"
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 1
    log.write_bytes(content)
    with pytest.raises(JournalShorter, match=r"keys\.db-wal is damaged.*spotledger recover"):
        open_small(killed)
    assert "keys.db-wal is damaged" in look(killed).problems[0]
    assert accept_loss(killed).new_epoch == 2
    assert (killed / "keys.db-wal.before-recover").read_bytes() == bytes(content)
    with open_small(killed) as ledger:
        kept = [ledger.key_tables.kept_requests.get(f"k{number}") is not None for number in range(20)]
        assert kept == sorted(kept, reverse=True)
        assert kept[0]
        assert not kept[-1]


def test_recover_where_there_is_no_ledger_says_so(tmp_path: Path) -> None:
    """A folder without a journal is named, and none is made."""
    for act in (look, accept_loss, rebuild):
        with pytest.raises(DataFolderUnusable, match=r"no journal\.db"):
            act(tmp_path)
    assert not list(tmp_path.iterdir())


def test_rebuild_derives_the_same_books_again(tmp_path: Path) -> None:
    """The books of a rebuild are those that sealing wrote, bucket for bucket."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 60)
    before = rows_of(tmp_path)
    with raw(tmp_path, "books.db") as connection:
        connection.execute("UPDATE balance SET available = 0")
    done = run("rebuild", "--data", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    assert rows_of(tmp_path) == before
    check_books(tmp_path)


def test_rebuild_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """Segments that are done stay done; a service that starts meanwhile has whole books too."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 60)
    before = rows_of(tmp_path)

    class Cut(Exception):
        """Stands for a power cut."""

    def cut(done: int, total: int) -> None:
        if done == 3:
            raise Cut

    with pytest.raises(Cut):
        rebuild(tmp_path, cut)
    told: list[tuple[int, int]] = []
    rebuild(tmp_path, lambda done, total: told.append((done, total)))
    assert told[0][0] == 4
    assert rows_of(tmp_path) == before


def test_rebuild_of_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    """Books are never derived from a journal that does not check."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 30)
    with raw(tmp_path) as connection:
        past_triggers(connection, "UPDATE entry SET body = replace(body, 'ann', 'bob') WHERE seq = 9")
    with pytest.raises(LedgerCorrupt, match="chain is broken at entry 9"):
        rebuild(tmp_path)


def rows_of(folder: Path) -> dict[str, list[Any]]:
    """Read every table of the books."""
    with raw(folder, "books.db") as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall()) for name in names}


def test_epoch_begin_tells_a_ledger_that_was_set_back_from_the_one_before(tmp_path: Path) -> None:
    """The command writes one entry; numbers given again afterwards have another position, over starts."""
    folder = tmp_path / "data"
    with open_small(folder) as ledger:
        seed(ledger)
        fill(ledger, 10)
        head = ledger.head.seq
    done = run("epoch", "begin", "--data", folder, "--reason", "the disk was set back", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"ledger_id": ledger.ledger_id, "epoch": 2, "seq": head + 1}
    assert run("epoch", "begin", "--data", folder, "--reason", "r", "--epoch", "2").exit_code == 1
    assert run("epoch", "begin", "--data", folder, "--reason", "r", "--epoch", "9").exit_code == 0
    with open_small(folder) as ledger:
        assert [ledger.epochs.text(seq) for seq in (head, head + 1, head + 2)] == [
            str(head),
            f"2-{head + 1}",
            f"9-{head + 2}",
        ]
        assert ledger.entry(head + 1).request["reason"] == "the disk was set back"  # type: ignore[union-attr]
    check_books(folder)


def test_epoch_begin_makes_no_ledger_and_takes_none_from_its_owner(tmp_path: Path) -> None:
    """A folder without a ledger stays as it is; one that a process owns is refused, naming that."""
    done = run("epoch", "begin", "--data", tmp_path, "--reason", "r")
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    with open_small(tmp_path / "data") as ledger:
        seed(ledger)
        head = ledger.head
        done = run("epoch", "begin", "--data", tmp_path / "data", "--reason", "r")
        assert (done.exit_code, ledger.head) == (1, head)
        assert "data_folder_in_use" in done.output


def test_note_of_the_epoch_before_passes_and_one_of_a_later_epoch_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A kill between an epoch's commit and its note does no harm; a journal of an earlier epoch is refused."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
    before = files_of(tmp_path)
    with open_small(tmp_path) as ledger:
        ledger.begin_epoch("set back")
        fill(ledger, 3)
    (tmp_path / "noted-head").write_bytes(before["noted-head"])
    with open_small(tmp_path) as ledger:
        assert ledger.epoch == 2
        assert "epoch 2 began since" in caplog.text
    caplog.clear()
    with open_small(tmp_path):
        assert not caplog.text
    for name in ("journal.db", "books.db"):
        (tmp_path / name).write_bytes(before[name])
    with pytest.raises(JournalShorter, match="epoch 2"):
        open_small(tmp_path)
    assert "epoch 2" in look(tmp_path).problems[0]
    assert accept_loss(tmp_path).new_epoch == 3
    with open_small(tmp_path) as ledger:
        assert ledger.epoch == 3
    check_books(tmp_path)
