"""
Statements of a period: what was there before it, each change with the balance after it, and what is there at its end.

Opening, changes and closing are read independently of each other, and compared: they add up, or it is damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from spotledger.domain.accounts import ZERO, Account, Balance
from spotledger.domain.journal import AVAILABLE, FREEZE, Entry
from spotledger.errors import LedgerCorrupt
from spotledger.ledger.finding import Span, up_to
from spotledger.storage.base import Store

#: An account and a coin of it.
LineName: TypeAlias = tuple[Account, str]


@dataclass(frozen=True, slots=True)
class Scope:
    """The lines that a statement is about: those of some accounts, of one coin or, with None, of all."""

    accounts: tuple[Account, ...]
    coin: str | None = None

    def has(self, account: Account, coin: str) -> bool:
        """Say whether the statement is about this account and coin."""
        return account in self.accounts and self.coin in (None, coin)


class StatementLine(NamedTuple):
    """What an entry changed of one account and coin, in units, and the balance after it."""

    entry: Entry
    account: Account
    coin: str
    available: int
    freeze: int
    after: Balance


class LinesRead(NamedTuple):
    """Some lines of a statement, in order, and the last entry that was looked at."""

    lines: list[StatementLine]
    to_seq: int


def balances_at(store: Store, scope: Scope, seq: int) -> dict[LineName, Balance]:
    """Return the balances that *scope* is about, as they stood after the entry *seq*."""
    return {
        (account, coin): balance
        for account in scope.accounts
        for coin, balance in store.balances_at(account, seq, scope.coin).items()
    }


def lines_of(store: Store, scope: Scope, span: Span, count: int) -> LinesRead:
    """Return the lines of the next entries of *span*, *count* entries at most."""
    seqs = store.account_seqs(scope.accounts, scope.coin, span.after_seq, count)
    looked_to = span.to_seq if len(seqs) < count else min(seqs[-1], span.to_seq)
    entries = store.entries_of(up_to(seqs, span.to_seq))
    return LinesRead([line for entry in entries for line in _lines_of_entry(entry, scope)], looked_to)


def _lines_of_entry(entry: Entry, scope: Scope) -> Iterator[StatementLine]:
    """Yield a line for each balance of *entry* that *scope* is about."""
    for place, (account, coin, available, freeze) in enumerate(entry.balances):
        if scope.has(account, coin):
            moved = {AVAILABLE: 0, FREEZE: 0}
            for moved_place, side, units, _ in entry.moves:
                if moved_place == place:
                    moved[side] += units
            yield StatementLine(entry, account, coin, moved[AVAILABLE], moved[FREEZE], Balance(available, freeze))


class RunningBalances:
    """The balances after each line of a statement; begins with its opening."""

    def __init__(self, opening: Mapping[LineName, Balance]) -> None:
        """Begin with *opening*."""
        self.balances = dict(opening)

    def take(self, lines: Iterable[StatementLine]) -> None:
        """
        Add *lines*.

        Raises:
            LedgerCorrupt: A line does not lead from the balance before it to the one after it.
        """
        for line in lines:
            name = (line.account, line.coin)
            before = self.balances.get(name, ZERO)
            if (before.available + line.available, before.freeze + line.freeze) != line.after:
                raise LedgerCorrupt(
                    f"entry {line.entry.seq} says that {line.account.customer} has {line.after.available} and"
                    f" {line.after.freeze} units of {line.coin} after it; the statement leads to"
                    f" {before.available + line.available} and {before.freeze + line.freeze}"
                )
            self.balances[name] = line.after

    def check_closing(self, closing: Mapping[LineName, Balance]) -> None:
        """Compare what the lines led to with *closing*; raise LedgerCorrupt if they differ."""
        for name, balance in closing.items():
            if self.balances.get(name, ZERO) != balance:
                (customer, kind), coin = name
                raise LedgerCorrupt(
                    f"the statement of {customer} {kind} leads to {self.balances.get(name, ZERO)} units of {coin};"
                    f" the books had {balance} then"
                )
