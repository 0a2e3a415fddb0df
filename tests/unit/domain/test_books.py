"""Posting: the one place where balances change; and the checks of holds that the rules share."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account, receivable_of
from spotledger.domain.amounts import UNITS_LIMIT
from spotledger.domain.books import Decision, Line, LineMove, post, shift, usable_hold
from spotledger.domain.journal import AVAILABLE, FREEZE, Hold
from spotledger.domain.operations import Unfreeze
from spotledger.errors import BalanceTooLarge, HoldClosed, HoldExpired, LedgerCorrupt, UnknownHold

ANN = Account("ann", "spot")
HOLD = Hold(1, ANN, "btc", 9, 2, None, None, 5)

NAMED = Unfreeze("k", "7")
STATE: Any = None  # nothing is asked of it without a precondition


def line(available: int, freeze: int = 0, account: Account = ANN) -> Line:
    """Return a line of bitcoin with such a balance."""
    return Line(account, "btc", available, freeze)


def balance(line: Line) -> tuple[int, int]:
    """Return what is on *line*."""
    return line.available, line.freeze


def test_moves_of_one_line_add_up() -> None:
    """Several moves of one line see each other, on either side, and it has one balance after them."""
    ann = line(10, 1)
    decision = post([(ann, AVAILABLE, -7, None), (ann, FREEZE, 7, 1), (ann, FREEZE, -2, 1)])
    assert decision.balances == ((ANN, "btc", 3, 6),)
    assert decision.moves == ((0, AVAILABLE, -7, None), (0, FREEZE, 7, 1), (0, FREEZE, -2, 1))
    assert (decision.lines, balance(ann)) == ([ann], (3, 6))


def test_lines_are_named_by_the_order_of_their_first_move() -> None:
    """Each move names the place of its line among the balances, and spelled out it is a posting on that account."""
    ann, outside = line(10), line(-10, account=EXTERNAL)
    moves = [(ann, AVAILABLE, -1, None), (outside, AVAILABLE, 3, None), (ann, AVAILABLE, -2, None)]
    decision = post(moves)
    assert [posting.account for posting in decision.postings] == [ANN, EXTERNAL, ANN]
    assert decision.balances == ((ANN, "btc", 7, 0), (EXTERNAL, "btc", -7, 0))


def test_moves_of_no_units_are_left_out() -> None:
    """A move of zero units is no posting, and names no balance."""
    assert post([(line(10), AVAILABLE, 0, None)]) == Decision(lines=[])


def test_undoing_decisions_in_reverse_leaves_what_was_there() -> None:
    """Both sides of every line are set back, also where two decisions moved the same."""
    ann, bob = line(10, 5), line(0, account=Account("bob", "spot"))
    first = post([(ann, AVAILABLE, -7, None), (bob, AVAILABLE, 7, None)])
    second = post([(bob, AVAILABLE, -7, None), (ann, FREEZE, -5, 1), (ann, AVAILABLE, 12, None)])
    assert (balance(ann), balance(bob)) == ((15, 0), (0, 0))
    second.undo()
    assert (balance(ann), balance(bob)) == ((3, 5), (7, 0))
    first.undo()
    assert (balance(ann), balance(bob)) == ((10, 5), (0, 0))


@pytest.mark.parametrize("side", [AVAILABLE, FREEZE])
def test_balance_below_zero_is_damage(side: str) -> None:
    """The rules refuse before it comes to that: here it is a broken invariant, not a refusal."""
    ann, outside = line(10, 10), line(0, account=EXTERNAL)
    with pytest.raises(LedgerCorrupt):
        post([(outside, AVAILABLE, 11, None), (ann, side, -11, None)])
    assert (balance(ann), balance(outside)) == ((10, 10), (0, 0))
    assert post([(ann, side, -10, None)]).balances


def moves_of_shift(source: str, ann: Line) -> list[LineMove]:
    """Return the moves of 7 units of the hold 1 from the side *source* of *ann* to the other."""
    if source == AVAILABLE:
        return [(ann, AVAILABLE, -7, None), (ann, FREEZE, 7, 1)]
    return [(ann, FREEZE, -7, 1), (ann, AVAILABLE, 7, None)]


@pytest.mark.parametrize("source", [AVAILABLE, FREEZE])
def test_shift_does_what_posting_the_two_moves_does(source: str) -> None:
    """The short way for one line decides the same, and is undone in the same way."""
    shifted, posted = line(10, 9), line(10, 9)
    decision = shift(shifted, 7, source, 1, HOLD)
    expected = post(moves_of_shift(source, posted), (HOLD,))
    assert decision[:3] == expected[:3]
    assert (list(decision.lines), balance(shifted)) == ([shifted], balance(posted))
    decision.undo()
    assert balance(shifted) == (10, 9)


@pytest.mark.parametrize("source", [AVAILABLE, FREEZE])
def test_shift_of_more_than_there_is_is_damage(source: str) -> None:
    """A side that would fall below zero is a broken invariant, and the line stays as it was."""
    ann = line(6, 6)
    with pytest.raises(LedgerCorrupt):
        shift(ann, 7, source, 1, HOLD)
    assert balance(ann) == (6, 6)


def test_shift_to_a_side_below_zero_passes() -> None:
    """Only the side that pays is looked at: an account that may owe gets back what it has frozen."""
    outside = line(-50, 8, account=EXTERNAL)
    assert shift(outside, 7, FREEZE, 1, HOLD).balances == ((EXTERNAL, "btc", -43, 1),)
    assert shift(outside, 2, AVAILABLE, 1, HOLD).balances == ((EXTERNAL, "btc", -45, 3),)


@pytest.mark.parametrize("account", [EXTERNAL, receivable_of("ann")])
def test_balance_of_what_is_owed_may_be_negative_down_to_the_limit(account: Account) -> None:
    """The outside world and what customers owe go below zero on the available side, short of 10**38 units."""
    assert post([(line(0, account=account), AVAILABLE, 1 - UNITS_LIMIT, None)]).balances
    with pytest.raises(BalanceTooLarge):
        post([(line(0, account=account), AVAILABLE, -UNITS_LIMIT, None)])
    with pytest.raises(LedgerCorrupt):
        post([(line(0, account=account), FREEZE, -1, None)])


def test_limit_of_a_balance_counts_both_sides() -> None:
    """Available and freeze together stay below the limit, and a refusal leaves every line as it was."""
    assert post([(line(UNITS_LIMIT - 3, 1), AVAILABLE, 1, None)]).balances
    ann, outside = line(UNITS_LIMIT - 3, 1), line(0, account=EXTERNAL)
    with pytest.raises(BalanceTooLarge):
        post([(outside, AVAILABLE, -2, None), (ann, AVAILABLE, 2, None)])
    assert (balance(ann), balance(outside)) == ((UNITS_LIMIT - 3, 1), (0, 0))


def hold(remaining: int = 5, expires_ms: int | None = 1_000) -> Hold:
    """Return the hold 7 with *remaining* units."""
    return Hold(7, ANN, "btc", 5, remaining, None, expires_ms, 1, None if remaining else 8)


def test_hold_past_its_time_is_expired_even_when_it_is_closed() -> None:
    """Whether the ledger has let a hold expire already makes no difference to the answer."""
    for remaining in (5, 0):
        with pytest.raises(HoldExpired):
            usable_hold(NAMED, hold(remaining), STATE, 1_000)
    assert usable_hold(NAMED, hold(), STATE, 999) == hold()
    with pytest.raises(HoldClosed):
        usable_hold(NAMED, hold(0), STATE, 999)
    with pytest.raises(UnknownHold):
        usable_hold(NAMED, None, STATE, 999)
