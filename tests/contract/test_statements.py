"""Statements of any period, in both stores: opening and changes add up to closing, as the entries say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, ZERO, Account, Balance, accounts_about
from spotledger.domain.operations import Leg
from spotledger.errors import LedgerCorrupt
from spotledger.ledger.finding import Span
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.statements import RunningBalances, Scope, StatementLine
from support_core import spot


def busy(ledger: Ledger, place: Any) -> None:
    """Move money between all accounts of ann and bob, with holds and a debt."""
    ledger.list_coin("usdt", 2, key="list:usdt")
    for number in range(12):
        place.clock.now_ms += 60_000
        ledger.deposit("ann", "usdt", "10", key=f"d{number}", account=("spot", "wallet")[number % 2])
        ledger.transfer("ann", "ann", "btc", "1", key=f"t{number}", to_account="fiat")
        held = ledger.freeze("bob", "btc", "2", key=f"f{number}")
        if number % 3:
            ledger.unfreeze(held.hold or 0, "1", key=f"u{number}")
    deposit = ledger.deposit("bob", "usdt", "50", key="to-be-reversed")
    ledger.withdraw("20", customer="bob", coin="usdt", key="out")
    ledger.reverse(deposit.seq, "a mistake", key="reversal")
    ledger.deposit("bob", "usdt", "5", key="repays")
    ledger.open_house_account("receivables", key="open", may_be_negative=True)
    ledger.post([Leg("@receivables", "usdt", "-9"), Leg("ann", "usdt", "9")], key="lent")
    for number in range(9):
        ledger.transfer("ann", "@receivables", "usdt", "1", key=f"back{number}")
    ledger.freeze("@receivables", "btc", "3", key="house-hold")


def lines_of(ledger: Ledger, scope: Scope, span: Span, count: int) -> list[StatementLine]:
    """Return all lines of a span, read in pieces of *count* entries."""
    found: list[StatementLine] = []
    while span.after_seq < span.to_seq:
        piece = ledger.statement_lines(scope, span, count)
        assert span.after_seq < piece.to_seq <= span.to_seq
        assert all(span.after_seq < line.entry.seq <= piece.to_seq for line in piece.lines)
        found += piece.lines
        span = span._replace(after_seq=piece.to_seq)
    return found


SCOPES = [
    Scope(accounts_about("ann")),
    Scope(accounts_about("bob")),
    Scope(accounts_about("bob"), "usdt"),
    Scope((spot("ann"),), "btc"),
    Scope((Account("ann", "fiat"), Account("ann", "wallet"))),
    Scope((EXTERNAL,)),
    Scope(accounts_about("@receivables")),
    Scope(accounts_about("nobody")),
]


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_opening_and_changes_add_up_to_closing(ledger: Ledger, place: Any, count: int) -> None:
    """For any period and scope; the lines are those of the entries, in order, with the balance after each."""
    busy(ledger, place)
    head, entries = ledger.head.seq, ledger.entries()
    bounds = (0, 1, 7, 8, 9, 16, 23, 24, 25, head - 1, head)
    for scope in SCOPES:
        for span in (*map(Span._make, pairwise(bounds)), Span(0, head), Span(5, 30), Span(head, head)):
            lines = lines_of(ledger, scope, span, count)
            expected = [
                (entry.seq, after)
                for entry in entries[span.after_seq : span.to_seq]
                for after in entry.balances
                if scope.has(after[0], after[1])
            ]
            assert [(line.entry.seq, (line.account, line.coin, *line.after)) for line in lines] == expected
            running = RunningBalances(ledger.statement_balances(scope, span.after_seq))
            running.take(lines)
            closing = ledger.statement_balances(scope, span.to_seq)
            running.check_closing(closing)
            assert {name: running.balances.get(name, ZERO) for name in closing} == closing
            assert running.balances.keys() <= closing.keys()


def test_balances_after_each_entry_are_what_the_entries_say(ledger: Ledger, place: Any) -> None:
    """Of all coins or of one, wherever the last change is: sealed long ago, in the same segment, or in memory."""
    for number in range(9):
        ledger.list_coin(f"rare{number}", 0, key=f"list:rare{number}")
        ledger.deposit("ann", f"rare{number}", "1", key=f"rare{number}")
    busy(ledger, place)
    accounts = (*accounts_about("ann"), *accounts_about("bob"), EXTERNAL)
    after: dict[tuple[Account, str], Balance] = {}
    for entry in ledger.entries():
        after |= {(account, coin): Balance(*sides) for account, coin, *sides in entry.balances}
        expected = {name: balance for name, balance in after.items() if name[0] in accounts}
        assert ledger.statement_balances(Scope(accounts), entry.seq) == expected
        for coin in ("usdt", "rare3"):
            of_coin = {name: balance for name, balance in expected.items() if name[1] == coin}
            assert ledger.statement_balances(Scope(accounts, coin), entry.seq) == of_coin


def test_debt_is_a_line_of_its_own(ledger: Ledger, place: Any) -> None:
    """What a customer owes, and its repayment, are changes of the account of their debts."""
    busy(ledger, place)
    scope = Scope(accounts_about("bob"), "usdt")
    lines = lines_of(ledger, scope, ledger.between(), 5)
    owed = [(line.entry.key, line.available) for line in lines if line.account.customer.startswith("@receivable:")]
    assert owed == [("reversal", -2000), ("repays", 500)]


def test_lines_that_do_not_add_up_are_damage(ledger: Ledger, place: Any) -> None:
    """A line that does not lead to its balance, or a closing that the lines do not lead to, is not shown."""
    busy(ledger, place)
    scope = Scope((spot("ann"),), "usdt")
    lines = lines_of(ledger, scope, ledger.between(), 1000)
    with pytest.raises(LedgerCorrupt, match="the statement leads to"):
        RunningBalances({}).take([lines[0]._replace(available=5)])
    with pytest.raises(LedgerCorrupt, match="the statement leads to"):
        RunningBalances({}).take(lines[1:])
    with pytest.raises(LedgerCorrupt, match="the books had"):
        RunningBalances({}).check_closing({(spot("ann"), "usdt"): Balance(1, 0)})
