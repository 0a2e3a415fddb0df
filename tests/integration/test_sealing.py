"""Sealing: it derives everything from the journal by itself, and stops what does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import LedgerCorrupt
from spotledger.ledger.ledger import Ledger
from spotledger.storage.sqlite.buckets import BooksDamaged
from spotledger.storage.sqlite.file import JOURNAL, schema_of
from spotledger.storage.sqlite.sealing import Sealer
from support_books import check_books
from support_core import fill, open_small, raw, seed, without_triggers

Change = Callable[[dict[str, Any]], None]


def alter_last(folder: Path, change: Change) -> int:
    """Let *change* alter the last entry of a journal, put its hash right, and return its seq."""
    with raw(folder) as connection:
        [(seq, body)] = connection.execute("SELECT seq, body FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        [(link,)] = connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq - 1,)).fetchall()
        entry = json.loads(body)
        change(entry)
        altered = json.dumps(entry, separators=(",", ":"))
        digest = hashlib.sha256(link + altered.encode()).digest()
        without_triggers(connection)
        connection.execute("UPDATE entry SET body = ?, hash = ? WHERE seq = ?", (altered, digest, seq))
        connection.execute("UPDATE head SET hash = ?", (digest,))
        for sql in schema_of(JOURNAL).values():
            if sql.startswith("CREATE TRIGGER"):
                connection.execute(sql)
    (folder / "noted-head").unlink()
    return int(seq)


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
        entry = {"seq": seq + 1, "kind": "list_coin", "key": "eth", "booked_ms": booked_ms, "request": request}
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
