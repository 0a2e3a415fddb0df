"""Settling fills: who pays and receives, where fees, price improvement and dust go, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import support_core
from spotledger.domain.accounts import DUST, FEES, Account, Balance
from spotledger.domain.operations import CoinAmount, Freeze, HoldKey, Settle, SettleSide
from spotledger.errors import (
    HoldClosed,
    HoldExpired,
    HoldShort,
    IdempotencyConflict,
    InvalidAmount,
    InvalidRequest,
    Refused,
    UnknownCoin,
    UnknownHold,
)
from spotledger.ledger.ledger import Ledger, Receipt
from support_books import check_books

COIN = 10**8


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in which ann has bid 500 usdt (hold key ``bid``) and bob has asked with 2 btc (``ask``)."""
    with support_core.open_small(tmp_path) as ledger:
        for coin in ("btc", "usdt"):
            ledger.list_coin(coin, 8, key=f"list:{coin}")
        for customer in ("ann", "bob"):
            ledger.register_customer(customer, key=f"register:{customer}")
            for coin in ("btc", "usdt"):
                ledger.deposit(customer, coin, "1000", key=f"seed:{customer}:{coin}")
        ledger.freeze("ann", "usdt", "500", key="bid")
        ledger.freeze("bob", "btc", "2", key="ask")
        yield ledger
    check_books(tmp_path)


def _fill(ledger: Ledger, key: str = "fill", base: str = "1", quote: str = "200", **sides: Any) -> Receipt:
    buyer = SettleSide(**{"hold": HoldKey("bid"), **sides.get("buyer", {})})
    seller = SettleSide(**{"hold": HoldKey("ask"), **sides.get("seller", {})})
    return ledger.settle("btc", "usdt", base, quote, buyer, seller, key=key)


def _has(ledger: Ledger, customer: str, coin: str) -> Balance:
    return ledger.balances(support_core.spot(customer))[coin]


def test_fill_without_fees_moves_both_coins(ledger: Ledger) -> None:
    """The buyer's hold pays the seller, the seller's hold delivers to the buyer, and the rest of both stays held."""
    _fill(ledger)
    assert _has(ledger, "ann", "usdt") == Balance(500 * COIN, 300 * COIN)
    assert _has(ledger, "ann", "btc") == Balance(1001 * COIN, 0)
    assert _has(ledger, "bob", "btc") == Balance(998 * COIN, 1 * COIN)
    assert _has(ledger, "bob", "usdt") == Balance(1200 * COIN, 0)


def test_fee_in_the_coin_received_is_taken_from_it(ledger: Ledger) -> None:
    """Each side receives less by its fee, and ``@fees`` has both."""
    fees = {"buyer": {"fee": CoinAmount("btc", "0.001")}, "seller": {"fee": CoinAmount("usdt", "0.4")}}
    _fill(ledger, **fees)
    assert _has(ledger, "ann", "btc").available == 1001 * COIN - 100_000
    assert _has(ledger, "bob", "usdt").available == 1200 * COIN - 40_000_000
    assert ledger.balances(FEES) == {"btc": Balance(100_000, 0), "usdt": Balance(40_000_000, 0)}


def test_fee_in_the_coin_paid_comes_from_the_hold_on_top(ledger: Ledger) -> None:
    """The hold pays price and fee; what is received is untouched."""
    _fill(ledger, buyer={"fee": CoinAmount("usdt", "3")}, seller={"fee": CoinAmount("btc", "0.5")})
    assert _has(ledger, "ann", "usdt") == Balance(500 * COIN, 297 * COIN)
    assert _has(ledger, "ann", "btc").available == 1001 * COIN
    assert _has(ledger, "bob", "btc") == Balance(998 * COIN, 50_000_000)
    assert ledger.balances(FEES) == {"btc": Balance(50_000_000, 0), "usdt": Balance(3 * COIN, 0)}


def test_price_improvement_is_released_and_the_hold_closed(ledger: Ledger) -> None:
    """``rest`` frees what the better price left of the hold, in the same entry."""
    receipt = _fill(ledger, buyer={"release": "rest"}, seller={"release": "0.25"})
    assert _has(ledger, "ann", "usdt") == Balance(800 * COIN, 0)
    assert _has(ledger, "bob", "btc") == Balance(998 * COIN + 25_000_000, 75_000_000)
    bid = ledger.holds("ann")[0]
    assert (bid.state, bid.closed_seq) == ("closed", receipt.seq)


def test_release_of_the_rest_where_none_is_left_is_no_posting_and_no_error(ledger: Ledger) -> None:
    """A fill that uses the whole hold may say ``rest`` all the same."""
    receipt = _fill(ledger, base="2", quote="500", buyer={"release": "rest"}, seller={"release": "rest"})
    assert all(posting.units for posting in receipt.entry.postings)
    assert {hold.remaining for customer in ("ann", "bob") for hold in ledger.holds(customer)} == {0}


def test_dust_goes_to_the_house(ledger: Ledger) -> None:
    """What is named as dust is taken from what that side receives, to ``@dust``."""
    _fill(ledger, buyer={"dust": CoinAmount("btc", "0.00000001")}, seller={"dust": CoinAmount("usdt", "0")})
    assert _has(ledger, "ann", "btc").available == 1001 * COIN - 1
    assert ledger.balances(DUST) == {"btc": Balance(1, 0)}


def test_hold_is_used_in_parts_by_many_fills_of_one_group(ledger: Ledger) -> None:
    """Ten fills in one group use both holds up, each entry saying what remains."""
    sides = (SettleSide(HoldKey("bid")), SettleSide(HoldKey("ask")))
    fills = [Settle(f"part:{n}", "btc", "usdt", "0.2", "50", *sides) for n in range(10)]
    outcomes = ledger.execute(fills)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert [outcome.entry.holds[0][1] for outcome in outcomes] == [(450 - 50 * n) * COIN for n in range(10)]
    with pytest.raises(HoldClosed):
        _fill(ledger, "one-more", "0.2", "50")


def test_both_holds_of_one_customer_come_out_even(ledger: Ledger) -> None:
    """A customer with both sides of a fill has the same as before, less the fee."""
    ledger.freeze("ann", "btc", "3", key="own-ask")
    before = (_has(ledger, "ann", "btc"), _has(ledger, "ann", "usdt"))
    buyer = SettleSide(HoldKey("bid"), release="rest", fee=CoinAmount("btc", "0.1"))
    ledger.settle("btc", "usdt", "3", "100", buyer, SettleSide(HoldKey("own-ask")), key="self")
    assert sum(_has(ledger, "ann", "btc")) == sum(before[0]) - 10_000_000
    assert sum(_has(ledger, "ann", "usdt")) == sum(before[1])


@pytest.mark.parametrize(
    ("sides", "amounts", "error", "field"),
    [
        ({"buyer": {"fee": CoinAmount("usdt", "301")}}, ("1", "200"), HoldShort, "buyer.hold"),
        ({}, ("2.1", "200"), HoldShort, "seller.hold"),
        ({"seller": {"release": "1.5"}}, ("1", "200"), HoldShort, "seller.hold"),
    ],
)
def test_fill_that_a_hold_is_too_short_for_is_refused_whole_and_kept(
    ledger: Ledger, sides: dict[str, Any], amounts: tuple[str, str], error: type[Refused], field: str
) -> None:
    """Nothing of it is done, the refusal has a place in the journal, and is given again."""
    before = [ledger.balances(support_core.spot(name)) for name in ("ann", "bob")]
    with pytest.raises(error) as refused:
        _fill(ledger, "short", *amounts, **sides)
    assert refused.value.details["field"] == field
    assert [ledger.balances(support_core.spot(name)) for name in ("ann", "bob")] == before
    with pytest.raises(error) as again:
        _fill(ledger, "short", *amounts, **sides)
    assert again.value.replayed
    assert again.value.seq == refused.value.seq == ledger.head.seq


@pytest.mark.parametrize(
    ("sides", "error", "field"),
    [
        ({"buyer": {"fee": CoinAmount("eth", "1")}}, InvalidRequest, "buyer.fee.coin"),
        ({"buyer": {"fee": CoinAmount("btc", "1.1")}}, InvalidRequest, "buyer.fee"),
        ({"seller": {"dust": CoinAmount("btc", "0.1")}}, InvalidRequest, "seller.dust.coin"),
        ({"seller": {"fee": CoinAmount("usdt", "0.123456789")}}, InvalidAmount, "seller.fee.amount"),
        ({"buyer": {"release": "0.000000001"}}, InvalidAmount, "buyer.release"),
        # Of two faults the first in order is named: release, fee, dust, and the buyer's before the seller's.
        (
            {"buyer": {"release": "0.000000001", "fee": CoinAmount("eth", "1"), "dust": CoinAmount("eth", "1")}},
            InvalidAmount,
            "buyer.release",
        ),
        (
            {"buyer": {"dust": CoinAmount("eth", "1")}, "seller": {"release": "0.000000001"}},
            InvalidRequest,
            "buyer.dust.coin",
        ),
    ],
)
def test_fill_that_is_wrong_in_itself_is_refused_and_leaves_no_trace(
    ledger: Ledger, sides: dict[str, Any], error: type[Refused], field: str
) -> None:
    """The message names the field; no entry is written, and the key is free."""
    head = ledger.head.seq
    with pytest.raises(error) as refused:
        _fill(ledger, "wrong", **sides)
    assert refused.value.details["field"] == field
    assert ledger.head.seq == head
    assert _fill(ledger, "wrong").seq == head + 1


def test_hold_of_the_wrong_coin_is_refused(ledger: Ledger) -> None:
    """Buyer and seller mixed up is an error that names the hold."""
    with pytest.raises(InvalidRequest) as refused:
        ledger.settle("btc", "usdt", "1", "1", SettleSide(HoldKey("ask")), SettleSide(HoldKey("bid")), key="mixed")
    assert refused.value.details["field"] == "buyer.hold"


def test_unknown_coin_and_hold_leave_the_key_unused(ledger: Ledger) -> None:
    """They could be there another day: once they are, the same fill passes under the same key."""
    head = ledger.head.seq
    buyer, seller = SettleSide(HoldKey("bid")), SettleSide(HoldKey("doge"))
    for unknown in (UnknownCoin, UnknownHold):
        with pytest.raises(unknown) as refused:
            ledger.settle("doge", "usdt", "1", "1", buyer, seller, key="fill")
        assert (refused.value.seq, ledger.head.seq) == (None, head)
        if unknown is UnknownCoin:
            head = ledger.list_coin("doge", 8, key="list:doge").seq
    ledger.deposit("bob", "doge", "1", key="in")
    ledger.freeze("bob", "doge", "1", key="doge")
    assert not ledger.settle("doge", "usdt", "1", "1", buyer, seller, key="fill").replayed


def test_expired_hold_pays_no_more(tmp_path: Path) -> None:
    """From its time on a hold is not used, and goes back to available by an entry of its own."""
    clock = support_core.Clock()
    with support_core.open_small(tmp_path, clock) as ledger:
        ledger.list_coin("btc", 8, key="b")
        ledger.list_coin("usdt", 8, key="u")
        ledger.register_customer("ann", key="a")
        ledger.deposit("ann", "btc", "1", key="d1")
        ledger.deposit("ann", "usdt", "1", key="d2")
        ledger.freeze("ann", "usdt", "1", key="bid", expires_ms=clock.now_ms + 1)
        ledger.freeze("ann", "btc", "1", key="ask")
        clock.now_ms += 1
        with pytest.raises(HoldExpired):
            _fill(ledger, base="1", quote="1")
        assert ledger.balances(support_core.spot("ann"))["usdt"] == Balance(COIN, 0)
    check_books(tmp_path)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"quote": "201"}, "quote_amount"),
        ({"base": "1.00000001"}, "base_amount"),
        ({"buyer": {"release": "rest"}}, "buyer.release"),
        ({"buyer": {"release": "0.5"}}, "buyer.release"),
        ({"seller": {"fee": CoinAmount("usdt", "1")}}, "seller.fee"),
        ({"seller": {"hold": "7"}}, "seller.hold"),
        ({"seller": {"dust": CoinAmount("usdt", "1")}}, "seller.dust"),
        ({"base": "1.000000001"}, "base_amount"),
    ],
)
def test_same_key_with_another_fill_is_a_conflict_naming_the_field(
    ledger: Ledger, change: dict[str, Any], field: str
) -> None:
    """A repeat with equal amounts in other digits is the same request; anything else is named."""
    _fill(ledger)
    assert _fill(ledger, base="1.0", quote="200.00", seller={"fee": CoinAmount("usdt", "0")}).replayed
    with pytest.raises(IdempotencyConflict) as conflict:
        _fill(ledger, **{"base": "1", "quote": "200", **change})
    assert conflict.value.details["field"] == field
    assert f"with another {field};" in conflict.value.message


def test_conflict_within_a_fee_names_its_coin_or_its_amount(ledger: Ledger) -> None:
    """Where both have a fee, the field within it is named."""
    _fill(ledger, buyer={"fee": CoinAmount("btc", "0.001")})
    for fee, field in ((CoinAmount("btc", "0.002"), "amount"), (CoinAmount("usdt", "0.001"), "coin")):
        with pytest.raises(IdempotencyConflict) as conflict:
            _fill(ledger, buyer={"fee": fee})
        assert conflict.value.details["field"] == f"buyer.fee.{field}"


def test_fill_on_holds_opened_in_the_same_group(ledger: Ledger) -> None:
    """Freezes and the fill that uses them may come in one group, the holds named by their keys."""
    sides = (SettleSide(HoldKey("g-bid"), release="rest"), SettleSide(HoldKey("g-ask")))
    outcomes = ledger.execute(
        [
            Freeze("g-bid", "ann", "usdt", "10"),
            Freeze("g-ask", "bob", "btc", "1"),
            Settle("g-fill", "btc", "usdt", "1", "9", *sides),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 3
    assert _has(ledger, "ann", "usdt").freeze == 500 * COIN


def test_fill_between_accounts_of_other_kinds_stays_in_them(ledger: Ledger) -> None:
    """What a hold's owner receives goes to the account that the hold is of."""
    ledger.transfer("bob", "bob", "btc", "5", key="t", to_account="wallet")
    ledger.freeze("bob", "btc", "5", key="wallet-ask", account="wallet")
    ledger.settle("btc", "usdt", "5", "100", SettleSide(HoldKey("bid")), SettleSide(HoldKey("wallet-ask")), key="w")
    assert ledger.balances(Account("bob", "wallet"))["usdt"] == Balance(100 * COIN, 0)


def test_late_use_is_told_that_the_hold_expired_whoever_was_first(tmp_path: Path) -> None:
    """The same answer before and after the ledger has written the expiry."""
    clock = support_core.Clock()
    with support_core.open_small(tmp_path, clock) as ledger:
        support_core.seed(ledger, "ann")
        ledger.freeze("ann", "btc", "1", key="f", expires_ms=clock.now_ms + 5)
        clock.now_ms += 5
        for key in ("first", "second"):
            with pytest.raises(HoldExpired):
                ledger.unfreeze(HoldKey("f"), key=key)
    check_books(tmp_path)


def test_files_of_a_library_ledger_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """The ledger file and its log are made with mode 0600, whatever the umask."""
    with support_core.open_small(tmp_path / "data") as ledger:
        support_core.seed(ledger)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    assert set(modes.values()) == {0o600}
