"""Debts: nobody has available of a coin and owes it, whatever the order, the account and the operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import pytest

import support_core
from spotledger.domain import debts
from spotledger.domain.accounts import Account, receivable_of
from spotledger.domain.operations import CoinAmount, Deposit, HoldKey, Leg, SettleSide, Withdraw
from spotledger.errors import InsufficientAvailable
from spotledger.ledger.ledger import Ledger
from support_audit import audited
from support_books import check_books

COIN = 10**8


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in which ann owes 10 btc and has none available, and bob has 1,000; checked and audited at the end."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        ledger.open_house_account("treasury", key="open")
        ledger.deposit("@treasury", "btc", "500", key="treasury")
        paid_in = ledger.deposit("ann", "btc", "10", key="in")
        ledger.withdraw("1010", customer="ann", coin="btc", key="out")
        ledger.reverse(paid_in.seq, "chargeback", key="undo")
        assert owes(ledger) == 10
        yield ledger
    check_books(tmp_path)
    assert not audited(tmp_path).findings


def owes(ledger: Ledger, customer: str = "ann") -> float:
    return -ledger.account(receivable_of(customer)).balance("btc").available / COIN


def has(ledger: Ledger, kind: str = "spot", customer: str = "ann") -> float:
    return ledger.account(Account(customer, kind)).balance("btc").available / COIN


def test_reversed_deposit_and_reversed_withdrawal_leave_nothing_in_either_order(tmp_path: Path) -> None:
    """Before, one order left 100 available and 100 owed, and the 100 could be withdrawn."""
    for number, order in enumerate(permutations(("in", "out"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with support_core.open_small(folder) as ledger:
            ledger.list_coin("btc", 8, key="list")
            ledger.register_customer("ann", key="ann")
            seqs = {"in": ledger.deposit("ann", "btc", "100", key="in").seq}
            seqs["out"] = ledger.withdraw("100", customer="ann", coin="btc", key="out").seq
            for name in order:
                ledger.reverse(seqs[name], "mistake", key=f"undo-{name}")
            assert (has(ledger), owes(ledger)) == (0, 0)
            with pytest.raises(InsufficientAvailable):
                ledger.withdraw("1", customer="ann", coin="btc", key="again")
        assert not audited(folder).findings


WAYS: dict[str, Callable[[Ledger], object]] = {
    "deposit": lambda ledger: ledger.deposit("ann", "btc", "4", key="way"),
    "deposit to another account": lambda ledger: ledger.deposit("ann", "btc", "4", key="way", account="fiat"),
    "transfer of another": lambda ledger: ledger.transfer("bob", "ann", "btc", "4", key="way", to_account="wallet"),
    "transfer of the house": lambda ledger: ledger.transfer("@treasury", "ann", "btc", "4", key="way"),
    "post": lambda ledger: ledger.post(
        [Leg("ann", "btc", "5"), Leg("@treasury", "btc", "-4"), Leg("ann", "btc", "-1")], key="way"
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_whatever_comes_in_repays_first(ledger: Ledger, way: str) -> None:
    """In the same entry, whose last postings say so; nothing is left available."""
    WAYS[way](ledger)
    assert owes(ledger) == 6
    assert [has(ledger, kind) for kind in ("wallet", "spot", "fiat")] == [0, 0, 0]
    *_, paid, repaid = ledger.entries(ledger.head.seq - 1)[0].postings
    assert (paid.account.customer, paid.units, repaid.account, repaid.units) == (
        "ann", -4 * COIN, receivable_of("ann"), 4 * COIN,
    )  # fmt: skip
    ledger.deposit("ann", "btc", "7", key="more")
    assert (owes(ledger), has(ledger)) == (0, 1)


def test_post_is_repaid_from_its_net(ledger: Ledger) -> None:
    """What a leg gives and another takes again is no money that came in."""
    ledger.post(
        [Leg("ann", "btc", "9"), Leg("ann", "btc", "-9"), Leg("bob", "btc", "1"), Leg("@treasury", "btc", "-1")],
        key="p",
    )
    assert (owes(ledger), has(ledger)) == (10, 0)
    ledger.post([Leg("ann", "btc", "8"), Leg("@treasury", "btc", "-14"), Leg("ann", "btc", "6", "wallet")], key="q")
    assert (owes(ledger), has(ledger), has(ledger, "wallet")) == (0, 0, 4)


@pytest.mark.parametrize("way", ["release", "expiry", "fill", "rebate", "reversed withdrawal"])
def test_release_expiry_fill_and_reversal_repay_too(tmp_path: Path, way: str) -> None:
    """Whatever the operation and whoever asked for it."""
    clock = support_core.Clock()
    with support_core.open_small(tmp_path, clock) as ledger:
        support_core.seed(ledger)
        ledger.list_coin("usdt", 8, key="usdt")
        ledger.deposit("ann", "usdt", "50", key="quote")
        ledger.deposit("@fees", "btc", "1", key="fees")
        paid_in = ledger.deposit("ann", "btc", "10", key="in")
        ledger.freeze("ann", "usdt", "50", key="bid")
        ledger.freeze("bob", "btc", "6", key="ask")
        ledger.freeze("ann", "btc", "6", key="held", expires_ms=clock.now_ms + 1_000)
        out = ledger.withdraw("1004", customer="ann", coin="btc", key="out")
        ledger.reverse(paid_in.seq, "chargeback", key="undo")
        assert (owes(ledger), has(ledger)) == (10, 0)
        if way == "release":
            ledger.unfreeze(HoldKey("held"), key="way")
        elif way == "expiry":
            clock.now_ms += 2_000
            ledger.execute([])
        elif way == "reversed withdrawal":
            ledger.reverse(out.seq, "came back", key="way")
        else:
            fee = CoinAmount("btc", "-0.5") if way == "rebate" else None
            buyer = SettleSide(HoldKey("bid"), fee)
            ledger.settle("btc", "usdt", "6", "50", buyer, SettleSide(HoldKey("ask")), key="way")
        left = {"rebate": 3.5, "reversed withdrawal": 0}.get(way, 4)
        assert (owes(ledger), has(ledger)) == (left, 994 if way == "reversed withdrawal" else 0)
    check_books(tmp_path)
    assert not audited(tmp_path).findings


def test_reversal_takes_from_the_account_concerned_then_wallet_spot_and_fiat(tmp_path: Path) -> None:
    """Only what is in none of them is owed."""
    with support_core.open_small(tmp_path) as ledger:
        ledger.list_coin("btc", 8, key="list")
        ledger.register_customer("ann", key="ann")
        paid_in = ledger.deposit("ann", "btc", "10", key="in", account="fiat")
        ledger.withdraw("8", customer="ann", coin="btc", account="fiat", key="out")
        ledger.deposit("ann", "btc", "3", key="wallet", account="wallet")
        ledger.deposit("ann", "btc", "4", key="spot")
        taken = ledger.reverse(paid_in.seq, "chargeback", key="undo").entry
        assert [(line.account.kind, line.units // COIN) for line in taken.postings] == [
            ("house", 10), ("fiat", -2), ("wallet", -3), ("spot", -4), ("house", -1),
        ]  # fmt: skip
        assert owes(ledger) == 1
    check_books(tmp_path)
    assert not audited(tmp_path).findings


def test_reversed_repayment_takes_what_is_available_before_it_is_owed_again(ledger: Ledger) -> None:
    """A deposit that repaid is taken back as a whole, from wherever the customer has it."""
    repaid = ledger.deposit("ann", "btc", "12", key="repaid")
    ledger.deposit("ann", "btc", "5", key="wallet", account="wallet")
    assert (owes(ledger), has(ledger), has(ledger, "wallet")) == (0, 2, 5)
    ledger.reverse(repaid.seq, "chargeback too", key="undo-2")
    assert (owes(ledger), has(ledger), has(ledger, "wallet")) == (5, 0, 0)


def test_debt_is_forgiven_by_a_transfer_of_the_house(ledger: Ledger) -> None:
    """The house account pays, and nothing becomes available."""
    ledger.transfer("@treasury", "ann", "btc", "10", key="forgiven")
    assert (owes(ledger), has(ledger)) == (0, 0)
    assert ledger.account(Account("@treasury", "house")).balance("btc").available == 490 * COIN


def test_debt_within_one_group_and_an_undone_chain(ledger: Ledger) -> None:
    """What a refused chain repaid is owed again."""
    chain = [Deposit("c1", "ann", "btc", "4"), Withdraw("c2", "1", "ann", "btc")]
    refused = ledger.execute(chain, atomic=True)
    assert [outcome.code for outcome in refused if not hasattr(outcome, "entry")] == [
        "chain_failed", "insufficient_available",
    ]  # fmt: skip
    assert (owes(ledger), has(ledger)) == (10, 0)
    ledger.execute([Deposit("d1", "ann", "btc", "4"), Deposit("d2", "ann", "btc", "7", "wallet")])
    assert (owes(ledger), has(ledger, "wallet")) == (0, 1)


@pytest.mark.parametrize("more", [0, 8, 40])
def test_debt_is_known_after_a_start(tmp_path: Path, more: int) -> None:
    """Whether the reversal is sealed or not; somebody who has repaid is not looked at."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        for name in ("ann", "bob"):
            paid_in = ledger.deposit(name, "btc", "10", key=f"in-{name}")
            ledger.withdraw("1010", customer=name, coin="btc", key=f"out-{name}")
            ledger.reverse(paid_in.seq, "chargeback", key=f"undo-{name}")
        ledger.deposit("bob", "btc", "10", key="repaid")
        for number in range(more):
            ledger.deposit("bob", "btc", "1", key=f"more-{number}")
    with support_core.open_small(tmp_path) as ledger:
        ledger.deposit("ann", "btc", "4", key="way")
        assert (owes(ledger), has(ledger)) == (6, 0)
        assert "ann" in ledger._store.debtors
        assert more < 40 or "bob" not in ledger._store.debtors
    check_books(tmp_path)
    assert not audited(tmp_path).findings


WRONG: dict[str, Callable[[Ledger], object]] = {
    **WAYS,
    "release": lambda ledger: ledger.unfreeze(HoldKey("held"), key="way"),
}


@pytest.mark.parametrize("way", WRONG)
def test_audit_finds_who_has_what_they_owe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A ledger that did not repay is damaged, whichever entry left it so, and is so at each later entry."""
    with support_core.open_small(tmp_path) as ledger:
        support_core.seed(ledger)
        ledger.open_house_account("treasury", key="open")
        ledger.deposit("@treasury", "btc", "500", key="treasury")
        paid_in = ledger.deposit("ann", "btc", "10", key="in")
        ledger.freeze("ann", "btc", "5", key="held")
        ledger.withdraw("1005", customer="ann", coin="btc", key="out")
        ledger.reverse(paid_in.seq, "chargeback", key="undo")
        monkeypatch.setattr(debts, "repay", lambda decision, state: decision)
        WRONG[way](ledger)
    found = audited(tmp_path).findings
    assert ("owes_and_has", ledger_seq(tmp_path)) in {(finding.code, finding.seq) for finding in found}


def ledger_seq(folder: Path) -> int:
    with support_core.open_small(folder) as ledger:
        return ledger.head.seq
