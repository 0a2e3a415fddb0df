"""Sealing: it derives everything from the journal by itself, and stops what does not fit."""

from __future__ import annotations

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.ledger.ledger import Ledger
from spotledger.storage.encoding import EntryChanges
from spotledger.storage.sqlite.buckets import SEGMENT_BUCKETS, BooksDamaged
from spotledger.storage.sqlite.sealing import Sealer
from support_books import check_books
from support_core import Change, alter_last, fill, open_small, raw, seed


def open_up_to_a_hold(folder: Path) -> None:
    """Make a ledger of segments of 8 whose last entry, the one before the next sealing, frees a part of a hold."""
    with open_small(folder) as ledger:
        seed(ledger)
        hold = ledger.freeze("ann", "btc", "5", key="hold").hold
        assert hold is not None
        fill(ledger, 10)
        fill_to(ledger, 6)
        ledger.unfreeze(hold, "2", key="altered")


def fill_to(ledger: Ledger, rest: int) -> None:
    """Fill *ledger* until its last entry is the one at *rest* of a segment of 8."""
    while ledger.head.seq % 8 != rest:
        ledger.deposit("bob", "btc", "1", key=f"to-{ledger.head.seq}")


def more_of_the_hold(entry: dict[str, Any]) -> None:
    entry["holds"][0][1] = str(int(entry["holds"][0][1]) + 1)


def another_balance(entry: dict[str, Any]) -> None:
    entry["balances"][0][2] = str(int(entry["balances"][0][2]) + 1)


def another_freeze(entry: dict[str, Any]) -> None:
    entry["balances"][0][3] = str(int(entry["balances"][0][3]) + 1)


def another_posting(entry: dict[str, Any]) -> None:
    entry["postings"][1][2] = str(int(entry["postings"][1][2]) + 1)


def a_hold_of_nobody(entry: dict[str, Any]) -> None:
    entry["postings"][0][3] = 2


def a_line_that_is_not_there(entry: dict[str, Any]) -> None:
    entry["postings"][0][0] = 1


def a_line_before_the_first(entry: dict[str, Any]) -> None:
    entry["postings"][0][0] = -1


def no_balances(entry: dict[str, Any]) -> None:
    entry["balances"] = []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (more_of_the_hold, "its postings lead to"),
        (another_balance, "its postings lead to"),
        (another_freeze, "its postings lead to"),
        (another_posting, "its postings lead to"),
        (a_hold_of_nobody, "is not there"),
        (a_line_that_is_not_there, "is not there"),
        (a_line_before_the_first, "cannot be read"),
        (no_balances, "is not there"),
    ],
)
def test_entry_that_contradicts_its_postings_is_damage(tmp_path: Path, change: Change, said: str) -> None:
    """What an entry says of balances and holds is compared with what the postings so far add up to."""
    open_up_to_a_hold(tmp_path)
    seq = alter_last(tmp_path, change)
    with raw(tmp_path) as connection:
        assert seq % 8 == 7
        [(size,)] = connection.execute("SELECT segment_entries FROM ledger").fetchall()
        assert size == 8
    one_more(tmp_path)
    with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as sealer:
        before = sealer.sealed_to
        with pytest.raises(LedgerCorrupt, match=said) as caught:
            sealer.seal_all()
        assert not isinstance(caught.value, BooksDamaged)
        assert sealer.sealed_to == before


def one_more(folder: Path) -> None:
    """Append a listing to the journal, past every rule, so that its last segment is full."""
    with raw(folder) as connection:
        [(seq, link, booked_ms)] = connection.execute("SELECT seq, hash, booked_ms FROM head").fetchall()
        request = {"coin": "eth", "scale": 8}
        entry = {
            "seq": seq + 1,
            "kind": "list_coin",
            "key": "eth",
            "booked_ms": booked_ms,
            "actor": "library",
            "request": request,
        }
        body = json.dumps(entry)
        digest = hashlib.sha256(link + body.encode()).digest()
        connection.execute("INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)", (seq + 1, body, digest))
        connection.execute("UPDATE head SET seq = ?, hash = ?", (seq + 1, digest))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE balance SET available = available + 1 WHERE customer = 'ann'",
        "DELETE FROM balance WHERE customer = 'ann'",
        "UPDATE hold SET remaining = remaining + 1",
        "DELETE FROM hold",
    ],
)
def test_sealing_onto_rows_that_do_not_check_blames_the_books(tmp_path: Path, statement: str) -> None:
    """A contradiction whose cause lies in the books is no fault of the journal: the books are made again for it."""
    open_up_to_a_hold(tmp_path)
    one_more(tmp_path)
    with raw(tmp_path, "books.db") as connection:
        connection.execute(statement)
        assert connection.changes() > 0
    with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as sealer, pytest.raises(BooksDamaged):
        sealer.seal_all()
    with open_small(tmp_path) as ledger:
        ledger.unfreeze(ledger.holds("ann")[0].hold_id, key="rest")
        fill(ledger, 20)
        assert ledger._store.rebuilds == 1
    check_books(tmp_path)


def full_segments(folder: Path, count: int) -> None:
    """Make a ledger with *count* full segments of 8 that are not sealed yet."""
    with open_small(folder) as ledger:
        seed(ledger)
        fill(ledger, 8 * count - ledger.head.seq)
    for file in folder.glob("books.db*"):
        file.unlink()


def test_sealer_that_was_overtaken_seals_nothing_twice(tmp_path: Path) -> None:
    """Of two that seal one ledger, the one that comes second sees under the lock that its segment is not the next."""
    full_segments(tmp_path, 2)
    files = (tmp_path / "journal.db", tmp_path / "books.db")
    with closing(Sealer(*files)) as first, closing(Sealer(*files)) as second:
        first.seal_next()
        with pytest.raises(StoreUnavailable, match="has sealed up to entry 8"):
            second.seal_next()
        assert (first.sealed_to, second.sealed_to) == (8, 0)
        first.seal_next()
    with raw(tmp_path, "books.db") as connection:
        [(buckets,)] = connection.execute("SELECT count(*) FROM key_bucket").fetchall()
    assert buckets == 2 * SEGMENT_BUCKETS
    open_small(tmp_path).close()
    check_books(tmp_path)


def test_sealer_whose_books_were_set_back_says_so(tmp_path: Path) -> None:
    """Books that have lost a segment since they were opened are damaged: it is not sealed on top of what is left."""
    full_segments(tmp_path, 2)
    with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as sealer:
        sealer.seal_next()
        with raw(tmp_path, "books.db") as connection:
            connection.execute("UPDATE books SET sealed_to = 0")
        with pytest.raises(BooksDamaged, match="sealed to entry 0"):
            sealer.seal_next()


def test_sealing_waits_for_no_other_writer_of_the_books_beyond_its_bound(tmp_path: Path) -> None:
    """While another process holds the write lock of the books, a sealing is refused, and passes afterwards."""
    full_segments(tmp_path, 1)
    with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as sealer:
        with raw(tmp_path, "books.db") as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="another process is writing"):
                sealer.seal_next()
        sealer.seal_next()
        assert sealer.sealed_to == 8


def test_sealing_keeps_no_read_transaction_open_on_the_journal(tmp_path: Path) -> None:
    """Between two of its reads the log of the journal can be moved to the file as a whole: nothing holds it back."""
    full_segments(tmp_path, 2)
    with closing(Sealer(tmp_path / "journal.db", tmp_path / "books.db")) as sealer:
        reads, read = [], sealer._read

        def watched(first: int, last: int) -> list[EntryChanges]:
            entries = read(first, last)
            with raw(tmp_path) as writer:
                writer.execute("UPDATE ledger SET starts = starts + 1")
                [(busy, left, _)] = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            reads.append((busy, left))
            return entries

        sealer._read = watched  # type: ignore[method-assign]
        sealer.seal_all()
    assert reads == [(0, 0)] * 2
