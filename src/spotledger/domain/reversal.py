"""
Reversing one earlier deposit, withdrawal, transfer, post or settlement, at most once and with a reason.

A reversal posts the opposite of what the entry did to each account and coin, on the available side only. It never
touches freeze or a hold, so what came out of a hold returns to available. What a customer no longer has in the account
concerned is taken from their others, and the rest is booked to the house's receivable of that customer
(:mod:`spotledger.domain.debts`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from spotledger.domain.accounts import EXTERNAL, HOUSE_KIND, RECEIVABLE, Account, is_receivable
from spotledger.domain.books import Decision, Line, LineMove, State, check_meant, is_overdraft, post
from spotledger.domain.debts import accounts_of_debt
from spotledger.domain.journal import AVAILABLE, Entry
from spotledger.domain.operations import Deposit, Post, Reverse, Settle, Transfer, Withdraw
from spotledger.errors import AlreadyReversed, HouseShort, InvalidRequest, UnknownEntry

REVERSIBLE: Final = frozenset({Deposit.kind, Withdraw.kind, Transfer.kind, Post.kind, Settle.kind})


class Target(NamedTuple):
    """The entry to reverse and the entry that already reversed it; each None if there is none."""

    entry: Entry | None
    reversed_by: int | None


def target_of(operation: Reverse, state: State) -> Target:
    """Look up the entry that a reversal names."""
    seq = int(operation.seq)
    return Target(state.entry(seq), state.reversal_of(seq))


def reverse(operation: Reverse, target: Target, state: State, seq: int, now_ms: int) -> Decision:
    """
    Decide a reversal.

    Raises:
        UnknownEntry: There is no such entry.
        HouseShort: A house account cannot pay what it would have to give back.
        BalanceTooLarge: A balance would grow too large.
        PreconditionFailed: The entry is not the one that was meant.
        AlreadyReversed, InvalidRequest: The entry was reversed before, or is of a kind that cannot be.
    """
    entry = target.entry
    if operation.epoch is not None:
        state.epochs.require(int(operation.seq), operation.epoch, "seq")
    if entry is None:
        raise UnknownEntry(f"there is no entry {operation.seq}; the seq of an entry would pass", field="seq")
    _check_meant(operation, entry)
    if entry.kind not in REVERSIBLE or entry.refusal is not None:
        kind = "a kept refusal" if entry.refusal is not None else f"of kind {entry.kind}"
        raise InvalidRequest(
            f"entry {operation.seq} is {kind}; a deposit, withdraw, transfer, post or settle would pass", field="seq"
        )
    if target.reversed_by is not None:
        raise AlreadyReversed(
            f"entry {operation.seq} was reversed by entry {target.reversed_by}", field="seq", by=target.reversed_by
        )
    return post(_Opposite(state).moves(_net(entry)))


def _check_meant(operation: Reverse, entry: Entry) -> None:
    if operation.customer is None and operation.coin is None:
        return
    customers = {posting.account.customer for posting in entry.postings}
    coins = {posting.coin for posting in entry.postings}
    check_meant(f"entry {entry.seq}", customers, coins, operation.customer, operation.coin, "seq")


def _net(entry: Entry) -> dict[tuple[Account, str], int]:
    """Return by how many units *entry* changed each account and coin, both sides together."""
    net: dict[tuple[Account, str], int] = {}
    for account, coin, _, units, _ in entry.postings:
        net[account, coin] = net.get((account, coin), 0) + units
    return net


class _Opposite:
    """The opposite of what an entry did, move by move, with what is on each line in the course of it."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._moves: list[LineMove] = []
        self._left: dict[Line, int] = {}

    def moves(self, net: dict[tuple[Account, str], int]) -> list[LineMove]:
        """Return the moves; what is given back comes first, so that it can pay what is taken."""
        given_back = [name for name, units in net.items() if units <= 0 or self._pays_all(name[0])]
        for account, coin in given_back:
            self._add(account, coin, -net[account, coin])
        for (account, coin), units in net.items():
            if (account, coin) not in given_back:
                self._take(account, coin, units)
        return self._moves

    def _pays_all(self, account: Account) -> bool:
        """Say whether *account* gives whatever it is asked for, even if it does not have that."""
        return account == EXTERNAL or is_overdraft(account, self._state)

    def _take(self, account: Account, coin: str, units: int) -> None:
        """Take *units* from *account*, then from the other accounts of the customer; the rest is owed."""
        if account.kind == HOUSE_KIND and not is_receivable(account.customer):
            if self._add(account, coin, -units) < 0:
                raise HouseShort(f"{account.customer} has less {coin} than the reversal would take back", field="seq")
            return
        customer = account.customer.removeprefix(f"{RECEIVABLE}:")
        *accounts, receivable = accounts_of_debt(customer)
        own = [] if account == receivable else [account]
        for payer in dict.fromkeys([*own, *accounts]):
            taken = min(units, self._on(self._state.line(payer, coin)))
            self._add(payer, coin, -taken)
            units -= taken
        self._add(receivable, coin, -units)

    def _on(self, line: Line) -> int:
        return self._left.get(line, line.available)

    def _add(self, account: Account, coin: str, units: int) -> int:
        """Add a move, and return what is available after it."""
        line = self._state.line(account, coin)
        left = self._left[line] = self._on(line) + units
        self._moves.append((line, AVAILABLE, units, None))
        return left
