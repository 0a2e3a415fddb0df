"""
What customers owe, and how it is repaid.

Only a reversal makes a debt. Whatever afterwards leaves a customer something available of a coin that they owe repays
the debt at once, in whichever account and by whichever operation. So nobody ever has available of a coin and owes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from spotledger.domain.accounts import HOUSE_KIND, RECEIVABLE, Account, is_receivable, receivable_of
from spotledger.domain.books import Decision, Line, LineMove, State, post
from spotledger.domain.journal import AVAILABLE, new_tuple


def repay(decision: Decision, state: State) -> Decision:
    """
    Return *decision*, followed by what repays the debts of those to whom it leaves something available.

    Look only at those who may owe: a decision about others is returned as it is.
    """
    debtors = state.debtors
    moves: list[LineMove] = []
    left: dict[Line, int] = {}
    for line in decision.lines:
        customer, kind = line.account
        if customer not in debtors or kind == HOUSE_KIND or line.available <= 0:
            continue
        owed = state.line(receivable_of(customer), line.coin)
        repaid = min(line.available, left.get(owed, -owed.available))
        left[owed] = left.get(owed, -owed.available) - repaid
        moves += [(line, AVAILABLE, -repaid, None), (owed, AVAILABLE, repaid, None)]
    return _joined(decision, post(moves)) if any(units for _, _, units, _ in moves) else decision


def _joined(first: Decision, then: Decision) -> Decision:
    """Return two decisions, of which *then* was made right after *first*, as one."""
    lines = list(dict.fromkeys([*first.lines, *then.lines]))
    places = [lines.index(line) for line in then.lines]
    balances = [*first.balances, *[None] * (len(lines) - len(first.lines))]
    for place, balance in zip(places, then.balances, strict=True):
        balances[place] = balance
    moves = first.moves + tuple([(places[place], *more) for place, *more in then.moves])
    return new_tuple(Decision, (moves, tuple(balances), first.holds, lines))


def debtors_in(balances: Iterable[tuple[Any, ...]]) -> set[str]:
    """Return the customers who owe something according to *balances* after an entry: account, coin, available, …"""
    return {
        account[0].removeprefix(f"{RECEIVABLE}:")
        for account, _, available, *_ in balances
        if available < 0 and account[1] == HOUSE_KIND and is_receivable(account[0])
    }


def accounts_of_debt(customer: str) -> tuple[Account, ...]:
    """Return the accounts from which *customer* pays what is taken back, in that order, and their receivable."""
    return (*(Account(customer, kind) for kind in PAYING_KINDS), receivable_of(customer))


#: The accounts of a customer in the order in which they pay what a reversal takes back.
PAYING_KINDS: Final = ("wallet", "spot", "fiat")
