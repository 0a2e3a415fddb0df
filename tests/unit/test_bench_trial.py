"""The trial of the benches does the work that it is a measure of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from bench.exchange_work import FUNDED, ONE, Work
from bench.peers import trial_books
from bench.peers.trial_books import COINS_LIMIT, EXTERNAL, FEES, TrialBooks
from bench.peers.trial_rows import TrialRounds, TrialWork

CUSTOMERS, COINS, UNITS = 5, 2, 10_000
ALICE, BOB = 0, COINS_LIMIT
OTHER_COIN = 1


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a segment as small as 16 entries, and each slice one row."""
    monkeypatch.setattr(trial_books, "SEGMENT_BITS", 4)
    monkeypatch.setattr(trial_books, "SLICE", 8)
    monkeypatch.setattr(trial_books, "STEPS_PER_ENTRY", 4)


def made(folder: Path) -> TrialBooks:
    """Make the trial's books."""
    return TrialBooks(folder, CUSTOMERS, COINS, UNITS)


def rows(folder: Path, question: str) -> list[Any]:
    """Ask the trial's file."""
    connection = apsw.Connection(str(folder / "trial.db"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute(question))
    finally:
        connection.close()


def deposits(first: int, count: int) -> list[tuple[Any, ...]]:
    """Make deposits of one unit under keys of their own."""
    return [("deposit", f"d{number}", ALICE, 1) for number in range(first, first + count)]


def total(books: TrialBooks, coin: int) -> int:
    """Add up everybody's units of *coin*."""
    return sum(sum(balance) for account, balance in books.balances.items() if account % COINS_LIMIT == coin)


def test_settlement_pays_both_sides_and_the_fees(tmp_path: Path) -> None:
    """Each side receives what the other's hold pays, less a thousandth, and no unit is made or lost."""
    books = made(tmp_path)
    books.execute([("freeze", "a", ALICE, 5_000, 1), ("freeze", "b", BOB + OTHER_COIN, 3_000, 2)])
    books.execute([("settle", "s", 1, 5_000, 2, 2_000)])
    assert books.balances[ALICE] == [5_000, 0]
    assert books.balances[BOB] == [UNITS + 4_995, 0]
    assert books.balances[ALICE + OTHER_COIN] == [UNITS + 1_998, 0]
    assert books.balances[BOB + OTHER_COIN] == [7_000, 1_000]
    assert (books.balances[FEES], books.balances[FEES + OTHER_COIN]) == ([5, 0], [2, 0])
    assert books.holds == {2: [BOB + OTHER_COIN, 1_000]}
    assert [total(books, coin) for coin in range(COINS)] == [CUSTOMERS * UNITS] * COINS


def test_unfreeze_and_withdrawal_give_back_and_take_out(tmp_path: Path) -> None:
    """What is left of a hold is available again; a withdrawal goes outside."""
    books = made(tmp_path)
    books.execute([("freeze", "a", ALICE, 600, 1), ("unfreeze", "b", 1, 600), ("withdraw", "c", ALICE, 1_000)])
    assert books.balances[ALICE] == [UNITS - 1_000, 0]
    assert books.balances[EXTERNAL] == [1_000, 0]
    assert not books.holds


def test_hold_with_too_little_ends_the_run(tmp_path: Path) -> None:
    """Operations that do not fit are a mistake of the bench, never skipped."""
    books = made(tmp_path)
    books.execute([("freeze", "a", ALICE, 600, 1)])
    with pytest.raises(ValueError, match="has 600 units, not 601"):
        books.execute([("unfreeze", "b", 1, 601)])


def test_what_is_too_much_is_refused_and_kept(tmp_path: Path) -> None:
    """A refusal makes no entry, and its key is known afterwards."""
    books = made(tmp_path)
    refused = ("freeze", "a", ALICE, UNITS + 1, 1)
    assert books.execute([refused, refused]) == [("refused", 0), ("repeated", 0)]
    assert books.execute([refused])[0][0] == "repeated"
    assert (books.seq, books.balances[ALICE]) == (0, [UNITS, 0])
    assert rows(tmp_path, "SELECT key, why FROM refusals") == [("a", "insufficient")]


def test_entries_are_a_hash_chain_of_json(tmp_path: Path) -> None:
    """Each hash is of the one before and the body, which holds the request and the postings with balances after."""
    books = made(tmp_path)
    books.execute([*deposits(0, 3), ("freeze", "a", ALICE, 600, 1)])
    before = bytes(32)
    found = rows(tmp_path, "SELECT seq, body, hash FROM entries ORDER BY seq")
    for _, body, kept in found:
        before = hashlib.sha256(before + body).digest()
        assert kept == before
    assert books.hash == before
    last = json.loads(found[-1][1])
    assert (last["seq"], last["kind"], last["key"]) == (4, "freeze", "a")
    assert last["request"] == {"op": "freeze", "n": ["0", "600", "1"]}
    assert last["postings"] == [[ALICE, 0, "-600", "9403", 1], [ALICE, 1, "600", "600", 1]]


@pytest.mark.usefixtures("small_segments")
def test_key_is_known_wherever_it_is(tmp_path: Path) -> None:
    """A repeat is found in its own group, in the open segment, in the one being sealed, and in sealed ones."""
    books = made(tmp_path)
    for first in range(0, 80, 5):
        outcomes = books.execute([*deposits(first, 5), *deposits(0, first + 5)])
        assert outcomes[:5] == [("booked", seq) for seq in range(first + 1, first + 6)]
        assert outcomes[5:] == [("repeated", seq) for seq in range(1, first + 6)]
    assert books.seq == 80


@pytest.mark.usefixtures("small_segments")
def test_sealed_segments_hold_what_the_entries_say(tmp_path: Path) -> None:
    """Keys, history, balances and holds of the sealed segments are those that the entries give."""
    books = made(tmp_path)
    for number in range(6):
        books.execute([*deposits(5 * number, 5), ("freeze", f"f{number}", BOB, 10, number + 1)])
    # A group is of one segment: the first ends with the group in which entry 16 is.
    assert rows(tmp_path, "SELECT seq FROM keys WHERE segment = 0 ORDER BY seq") == [(seq,) for seq in range(1, 19)]
    deposited = [(seq, UNITS + seq - seq // 6, None) for seq in range(1, 19) if seq % 6]
    frozen = [(6, UNITS - 10, 10), (12, UNITS - 20, 20), (18, UNITS - 30, 30)]
    for account, wanted in ((ALICE, deposited), (BOB, frozen)):
        question = f"SELECT seq, available, freeze FROM history WHERE segment = 0 AND account = {account} ORDER BY seq"
        assert rows(tmp_path, question) == wanted
    assert rows(tmp_path, f"SELECT available, freeze FROM balances WHERE account = {BOB}") == [(UNITS - 30, 30)]
    assert rows(tmp_path, "SELECT * FROM holds") == [(hold, BOB, 10) for hold in (1, 2, 3)]


def of_the_ledger(groups: Sequence[Sequence[Any]]) -> list[str]:
    """Name the kinds of the operations in *groups*."""
    return [operation.kind for group in groups for operation in group]


def test_trial_is_given_the_operations_of_the_ledger() -> None:
    """With the same seed both get the same kinds in the same order, repeats among them."""
    ledger, trial = Work(1, 1, 50), TrialWork(1, 1, 50)
    said = [operation for _ in range(30) for operation in trial.group(100)]
    assert [operation[0] for operation in said] == of_the_ledger([ledger.group(100) for _ in range(30)])
    keys = [operation[1] for operation in said]
    assert 0 < len(keys) - len(set(keys)) < 100


@pytest.mark.parametrize("kind", ["mix", "settle"])
def test_round_of_the_trial_books_what_was_meant(tmp_path: Path, kind: str) -> None:
    """All but repeats and the operations that are refused by intention become entries, and no unit is lost."""
    rounds = TrialRounds(tmp_path, 50)
    rounds.round("mix", 100, 1_000)
    figures = rounds.round(kind, 10, 1_000)
    assert figures.operations == 1_000
    assert figures.kib_written_per_operation is None or figures.kib_written_per_operation > 0
    books = rounds._books
    assert {total(books, coin) for coin in range(20)} == {50 * int(FUNDED) * ONE}
    assert all(balance[side] >= 0 for a, balance in books.balances.items() if a < FEES for side in (0, 1))
