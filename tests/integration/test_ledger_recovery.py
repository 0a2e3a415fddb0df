"""A ledger whose disk or file fails it: what it tells, what it has left in memory, and how it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from spotledger.domain.accounts import Balance
from spotledger.domain.operations import Deposit, Freeze, HoldKey, ListCoin, RegisterCustomer, Unfreeze
from spotledger.errors import HoldClosed, LedgerCorrupt, StoreUnavailable
from spotledger.ledger.ledger import Ledger
from support_books import check_books
from support_core import (
    Clock,
    alter_last,
    booked_up_to_commit,
    fill,
    full_disk,
    open_small,
    raw,
    seed,
    spot,
    without_triggers,
)

UNIT = "0.00000001"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Give a seeded ledger with some sealed segments."""
    with open_small(tmp_path) as opened:
        seed(opened)
        fill(opened, 20)
        yield opened
        damaged = opened.corrupt is not None
    if not damaged:
        check_books(tmp_path)


@contextmanager
def broken_off_reads(ledger: Any, steps: int) -> Iterator[None]:
    """Let SQLite break off what the ledger reads after some *steps* of its machine, with its own error."""
    connection = ledger._store._read
    connection.set_progress_handler(lambda: 1, steps)
    try:
        yield
    finally:
        connection.set_progress_handler(None, 0)


def test_commit_on_a_full_disk_leaves_nothing_and_passes_later(ledger: Ledger, tmp_path: Path) -> None:
    """Callers get an error, reads never show the group, and the same keys pass once there is space."""
    group = [
        ListCoin("new-coin", "eth", 18),
        RegisterCustomer("new-customer", "cy"),
        Deposit("d", "cy", "eth", "3"),
        Freeze("f", "cy", "eth", "1"),
        Unfreeze("u", HoldKey("f"), "0.5"),
        Deposit("x", "ann", "btc", "7"),
    ]
    before = (ledger.head, dict(ledger.account(spot("ann")).balances), ledger.customers(), dict(ledger.coins))
    for _ in range(3):
        with full_disk(tmp_path), pytest.raises(StoreUnavailable, match="same idempotency key"):
            ledger.execute(group)
        now = (ledger.head, dict(ledger.account(spot("ann")).balances), ledger.customers(), dict(ledger.coins))
        assert now == before
        assert ledger.entry_of_key("d") is None
        assert ledger.hold(before[0].seq + 4) is None
        assert ledger.corrupt is None
    assert [outcome.seq - before[0].seq for outcome in ledger.execute(group)] == [1, 2, 3, 4, 5, 6]
    assert ledger.account(spot("cy")).balances == {"eth": Balance(25 * 10**17, 5 * 10**17)}


def test_commit_on_a_full_disk_while_sealing_goes_on_later(ledger: Ledger, tmp_path: Path) -> None:
    """A sealing that was under way when the disk filled is begun anew, and ends."""
    for number in range(40):
        if number % 3 == 0:
            with full_disk(tmp_path), pytest.raises(StoreUnavailable):
                ledger.deposit("ann", "btc", UNIT, key=f"n{number}")
        ledger.deposit("ann", "btc", UNIT, key=f"n{number}")
    with raw(tmp_path, "books.db") as connection:
        sealed_to = connection.execute("SELECT sealed_to FROM books").fetchone()[0]
    assert ledger.head.seq - sealed_to < 8


def test_reads_while_memory_cannot_be_built_are_refused_not_wrong(ledger: Ledger, tmp_path: Path) -> None:
    """After a failed commit whose recovery breaks off anywhere, a read is refused or right, and later all is there."""
    reads: list[Callable[[], Any]] = [
        lambda: ledger.balances(spot("ann")),
        lambda: dict(ledger.account(spot("bob")).balances),
        lambda: ledger.holds("ann"),
        lambda: ledger.hold(6),
        lambda: [ledger.has_customer("ann"), ledger.customers()],
        lambda: [ledger.entry_of_key("seed:ann"), ledger.entry_of_key("k")],
        lambda: ledger.entries(),
        lambda: [ledger.head, dict(ledger.coins)],
    ]
    ledger.freeze("ann", "btc", "1", key="f")
    right = [read() for read in reads]
    refused = 0
    for steps in range(1, 150, 4):
        with broken_off_reads(ledger, steps):
            with full_disk(tmp_path), pytest.raises(StoreUnavailable):
                ledger.deposit("ann", "btc", "5", key="k")
            for read, expected in zip(reads, right, strict=True):
                try:
                    assert read() == expected
                except StoreUnavailable:
                    refused += 1
        assert [read() for read in reads] == right
    assert refused
    assert ledger.deposit("ann", "btc", "5", key="k").seq == right[-1][0].seq + 1


def test_recovery_that_finds_damage_stops_reads_and_writes(ledger: Ledger, tmp_path: Path) -> None:
    """Where the journal turns out to be damaged, nothing is written and no balance is made up from what is left."""
    with raw(tmp_path) as connection:
        without_triggers(connection)
        connection.execute("UPDATE entry SET body = replace(body, 'ann', 'bob') WHERE seq = ?", (ledger.head.seq,))
    with full_disk(tmp_path), pytest.raises(StoreUnavailable):
        ledger.deposit("ann", "btc", "5", key="k")
    for _ in range(2):
        with pytest.raises(LedgerCorrupt):
            ledger.account(spot("ann"))
        with pytest.raises(LedgerCorrupt):
            ledger.deposit("ann", "btc", "5", key="k")
    assert ledger.corrupt is not None


def test_sealing_that_finds_the_books_damaged_makes_them_again(ledger: Any, tmp_path: Path) -> None:
    """Books in which a segment cannot be written are thrown away and made again; writes go on."""
    with raw(tmp_path, "books.db") as connection:
        connection.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON key_bucket BEGIN SELECT RAISE(ABORT, 'a broken rule'); END"
        )
    fill(ledger, 30, "until-seen")
    assert ledger.corrupt is None
    assert any("made again" in text for text in ledger._store.repairs)


def test_sealing_that_finds_other_balances_than_the_postings_lead_to_stops_writing(tmp_path: Path) -> None:
    """The balances that entries carry are added up by a second path; where they differ, nothing more is written."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        while ledger.head.seq % 8 != 5:
            ledger.deposit("ann", "btc", "1", key=f"k{ledger.head.seq}")
        last = ledger.deposit("ann", "btc", "1", key="altered").seq

    def another_balance(entry: dict[str, Any]) -> None:
        [balance] = [each for each in entry["balances"] if each[0][0] == "ann"]
        balance[2] = str(int(balance[2]) + 1)

    assert alter_last(tmp_path, another_balance) == last
    with open_small(tmp_path) as ledger:
        with pytest.raises(LedgerCorrupt, match="its postings lead to"):
            fill(ledger, 30, "until-seen")
        with pytest.raises(LedgerCorrupt):
            ledger.deposit("ann", "btc", "5", key="k")
        assert ledger.corrupt is not None


def test_publishing_that_fails_is_made_good_from_the_journal(ledger: Any) -> None:
    """What is durable is answered with yes even if memory could not take it over; memory is then built again."""
    ledger.freeze("ann", "btc", "1", key="f")
    group = ledger.book([Unfreeze("u", HoldKey("f")), Freeze("g", "ann", "btc", "1"), Deposit("d", "bob", "btc", "1")])
    del ledger._store._memory.segments
    outcomes = ledger.finish(group)
    assert [outcome.replayed for outcome in outcomes] == [False, False, False]
    assert list(ledger.coins) == ["btc"]
    assert ledger.head.seq == outcomes[2].seq
    assert ledger.account(spot("bob")).balances["btc"] == Balance(1001 * 10**8, 0)
    assert ledger.unfreeze(HoldKey("f"), key="u").replayed


def test_group_left_before_its_commit_does_not_stop_the_next(ledger: Ledger) -> None:
    """A group that its caller never committed is forgotten by the next; no transaction stays open."""
    head = ledger.head
    left = [booked_up_to_commit(ledger, [Deposit("d", "bob", "btc", "1")])]
    receipt = ledger.deposit("bob", "btc", "1", key="d")
    assert (receipt.seq, receipt.replayed) == (head.seq + 1, False)
    for number in range(60):
        left.append(booked_up_to_commit(ledger, [Deposit(f"left-{number}", "bob", "btc", "1")]))
        ledger.deposit("bob", "btc", "1", key=f"done-{number}")


def test_operation_that_breaks_the_program_leaves_nothing(ledger: Any) -> None:
    """An error that is not ours, in the middle of a group, leaves no trace, and the next group passes."""
    head = ledger.head
    with pytest.raises((TypeError, AttributeError, KeyError)):
        ledger.execute([Deposit("d", "bob", "btc", "1"), object()])
    assert ledger.head == head
    assert ledger.deposit("bob", "btc", "1", key="d").seq == head.seq + 1


def test_use_after_close_is_said_to_be_closed(ledger: Ledger) -> None:
    """Reads and writes after the end are unavailable, not corrupt; closing again does nothing."""
    ledger.close()
    ledger.close()
    for use in (
        lambda: ledger.account(spot("ann")),
        lambda: ledger.account(spot("never seen")),
        lambda: ledger.hold(99),
        lambda: ledger.entry(1),
        lambda: ledger.entries(),
        lambda: ledger.customers(),
        lambda: ledger.entry_of_key("k"),
        lambda: ledger.deposit("ann", "btc", "1", key="k"),
    ):
        with pytest.raises(StoreUnavailable, match="closed"):
            use()


def test_clock_that_jumps_back_stands_still(tmp_path: Path) -> None:
    """Booked time never falls, and what has expired stays expired."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        start = clock.now_ms
        ledger.freeze("ann", "btc", "1", key="f", expires_ms=start + 1_000)
        clock.now_ms = start + 1_000
        assert ledger.deposit("ann", "btc", "1", key="later").entry.booked_ms == start + 1_000
        clock.now_ms = start - 86_400_000
        receipt = ledger.deposit("ann", "btc", "1", key="back")
        assert receipt.entry.booked_ms == start + 1_000
        assert ledger.account(spot("ann")).balances["btc"].freeze == 0
        assert ledger.now_ms == start + 1_000
        assert ledger.seq_at(start + 1_000) == receipt.seq
    with open_small(tmp_path, clock) as ledger:
        assert ledger.deposit("ann", "btc", "1", key="after").entry.booked_ms == start + 1_000
    check_books(tmp_path)


def test_hold_closed_in_a_segment_that_a_start_seals_stays_closed(tmp_path: Path) -> None:
    """
    A kill between a commit and the sealing of its segment does not open a hold again.

    The start reads the hold from the books, as it was before, and what closed it from the journal; then it seals that.
    """
    with open_small(tmp_path) as ledger:
        seed(ledger)
        hold = ledger.freeze("ann", "btc", "3", key="freeze").hold
        fill(ledger, 8)
    books = (tmp_path / "books.db").read_bytes()
    with open_small(tmp_path) as ledger:
        ledger.unfreeze(str(hold), key="release")
        fill(ledger, 12, "later")
        balance = ledger.balances(spot("ann"))["btc"]
    (tmp_path / "books.db").write_bytes(books)
    with open_small(tmp_path) as ledger:
        with pytest.raises(HoldClosed):
            ledger.unfreeze(str(hold), key="again")
        assert ledger.hold(hold).remaining == 0  # type: ignore[arg-type,union-attr]
        assert ledger.balances(spot("ann"))["btc"] == balance
    check_books(tmp_path)
