"""Groups that are decided and written in several pieces: one group all the same, whatever lies across a cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from spotledger.domain.accounts import Balance
from spotledger.domain.journal import Entry
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation, Unfreeze, Withdraw
from spotledger.errors import ChainFailed, Refused, StoreUnavailable
from spotledger.ledger import ledger as ledger_module
from spotledger.ledger.group import Group
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.steps import Steps, drive
from support_core import spot

SIZE = ledger_module.PIECE_OPERATIONS


def deposits(name: str, count: int) -> list[Operation]:
    """Return so many deposits of 1 btc for ann."""
    return [Deposit(f"{name}{number}", "ann", "btc", "1") for number in range(count)]


def test_hold_that_pieces_of_one_group_open_use_and_close_is_right(ledger: Ledger) -> None:
    """What one piece opens the next ones use and close; the tables, memory and another node agree."""
    group: list[Operation] = [Freeze("f", "ann", "btc", "3"), Freeze("open", "ann", "btc", "5"), *deposits("a", SIZE)]
    group += [Unfreeze("u", HoldKey("f"), "1"), Unfreeze("part", HoldKey("open"), "2"), *deposits("b", SIZE)]
    group += [Withdraw("w", "2", hold=HoldKey("f")), Unfreeze("late", HoldKey("f"))]
    outcomes = ledger.execute(group)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes[:-1])
    assert isinstance(outcomes[-1], Refused)
    opened = outcomes[1].seq or 0
    found = [ledger.hold(outcomes[0].seq or 0), ledger.hold(opened)]
    assert [hold.remaining for hold in found if hold is not None] == [0, 3 * 10**8]
    assert [hold.hold_id for hold in ledger.holds("ann", "open")] == [opened]
    assert ledger.account(spot("ann")).balance("btc") == Balance((1000 + 2 * SIZE - 2 - 3) * 10**8, 3 * 10**8)


def test_chain_across_a_cut_of_pieces_is_kept_whole(ledger: Ledger) -> None:
    """A chain that begins at the end of one piece and fails in what would be the next one leaves nothing behind."""
    group = deposits("k", 2 * SIZE)
    group[SIZE + 5] = Withdraw("too-much", "999999", "bob", "btc")
    chains = ["one" if SIZE - 5 <= number <= SIZE + 5 else None for number in range(2 * SIZE)]
    outcomes = ledger.execute(group, chains=chains)
    assert sum(isinstance(outcome, ChainFailed) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, Receipt) for outcome in outcomes) == 2 * SIZE - 11
    assert ledger.account(spot("ann")).balance("btc").available == (1000 + 2 * SIZE - 11) * 10**8


def test_same_key_in_two_pieces_is_done_once(ledger: Ledger) -> None:
    """An operation that a group asks for again, pieces later, is answered with what was done the first time."""
    group = [*deposits("k", 2 * SIZE), *deposits("k", 3)]
    outcomes = ledger.execute(group)
    again = [outcome for outcome in outcomes[-3:] if isinstance(outcome, Receipt) and outcome.replayed]
    assert [receipt.seq for receipt in again] == [outcome.seq for outcome in outcomes[:3]]
    assert ledger.account(spot("ann")).balance("btc").available == (1000 + 2 * SIZE) * 10**8


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_group_whose_later_piece_cannot_be_written_leaves_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """If any of the pieces fails, no read shows one of the others, and the same group can be asked for again."""
    head, before = ledger.head, ledger.account(spot("ann")).balance("btc")
    store, written = ledger._store, 0
    write = store.write

    def broken(entries: Sequence[Entry]) -> None:
        nonlocal written
        written += 1
        if written == failing:
            raise StoreUnavailable("it was full")
        write(entries)

    monkeypatch.setattr(store, "write", broken)
    with pytest.raises(StoreUnavailable):
        ledger.execute(deposits("k", 3 * SIZE))
    monkeypatch.undo()
    assert written == failing
    assert (ledger.head, ledger.entry_of_key("k0")) == (head, None)
    assert ledger.account(spot("ann")).balance("btc") == before
    outcomes = ledger.execute(deposits("k", 3 * SIZE))
    assert [outcome.seq for outcome in outcomes] == list(range(head.seq + 1, head.seq + 3 * SIZE + 1))
    assert not any(isinstance(outcome, Receipt) and outcome.replayed for outcome in outcomes)


def test_reads_between_two_pieces_see_none_of_them(ledger: Ledger) -> None:
    """A group that is half decided shows in no read; who reads meanwhile changes nothing of what comes of it."""
    head, before = ledger.head, ledger.account(spot("ann")).balance("btc")
    looks = []

    def look() -> None:
        # More accounts than the cache has room for, so that some of the group's are let go of.
        others = [ledger.account(spot(name)).balance("btc").available for name in ("bob", "cy", "dan", "eve")]
        own = ledger.account(spot("ann")).balance("btc")
        looks.append((ledger.head, ledger.entry_of_key("k0"), ledger.holds("ann"), own, others[0]))

    ledger.finish(drive(watched(ledger.booking([*deposits("k", 3 * SIZE), Freeze("f", "ann", "btc", "5")]), look)))
    assert len(looks) >= 3
    assert all(seen == (head, None, [], before, 1000 * 10**8) for seen in looks)
    assert ledger.account(spot("ann")).balance("btc") == Balance((1000 + 3 * SIZE - 5) * 10**8, 5 * 10**8)


def watched(steps: Steps[Group], look: Callable[[], None]) -> Steps[Group]:
    """Do *steps*, and *look* whenever others may have their turn."""
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if step is None:
            look()
        answer = yield step
