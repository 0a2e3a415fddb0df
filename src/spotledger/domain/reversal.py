"""
Reversing one earlier deposit, withdrawal, transfer or settlement, at most once and with a reason.

A reversal posts the opposite of what the entry did to each account and coin, on the available side only. It never
touches freeze or a hold, so what came out of a hold returns to available. What a customer no longer has is booked to
the house's receivable of that customer, which later deposits repay first.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from spotledger.domain.accounts import DUST, FEES, Account, may_be_negative, receivable_of
from spotledger.domain.books import Decision, LineMove, State, check_meant, post
from spotledger.domain.journal import AVAILABLE, Entry
from spotledger.domain.operations import Deposit, Reverse, Settle, Transfer, Withdraw
from spotledger.errors import AlreadyReversed, HouseShort, InvalidRequest, UnknownEntry

REVERSIBLE: Final = frozenset({Deposit.kind, Withdraw.kind, Transfer.kind, Settle.kind})


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
        UnknownEntry, HouseShort, BalanceTooLarge: There is no such entry, or it cannot be taken back.
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
            f"entry {operation.seq} is {kind}; a deposit, withdraw, transfer or settle would pass", field="seq"
        )
    if target.reversed_by is not None:
        raise AlreadyReversed(
            f"entry {operation.seq} was reversed by entry {target.reversed_by}", field="seq", by=target.reversed_by
        )
    moves: list[LineMove] = []
    for (account, coin), units in _net(entry).items():
        moves += _opposite(account, coin, units, state)
    return post(moves)


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


def _opposite(account: Account, coin: str, units: int, state: State) -> list[LineMove]:
    line = state.line(account, coin)
    if units <= 0 or may_be_negative(account):
        return [(line, AVAILABLE, -units, None)]
    taken = min(units, line.available)
    if taken == units:
        return [(line, AVAILABLE, -units, None)]
    if account in (FEES, DUST):
        raise HouseShort(f"{account.customer} has less {coin} than the reversal would take back", field="seq")
    owed = state.line(receivable_of(account.customer), coin)
    return [(line, AVAILABLE, -taken, None), (owed, AVAILABLE, taken - units, None)]
