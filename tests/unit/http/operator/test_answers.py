"""What the operator API answers about entries: amounts as text, and the balance of each side after each posting."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from spotledger.domain.accounts import EXTERNAL, FEES, Account, Coin
from spotledger.domain.amounts import format_amount
from spotledger.domain.journal import AVAILABLE, FREEZE, BalanceAfter, Entry, HoldAfter, Posting
from spotledger.domain.positions import Epochs, EpochStart
from spotledger.http.operator.actors import ActorLabels
from spotledger.http.operator.answers import CoinTexts, entry_answer, write_answer
from spotledger.ledger.reads import LedgerReads
from spotledger.security.tokens import Tokens
from support_core import moved

ALICE, BOB = Account("alice", "spot"), Account("bob", "spot")
SCALES = {"usdt": 8, "btc": 8, "shib": 18, "gem": 1, "whole": 0}
Json = dict[str, Any]


def texts_of(epochs: Epochs | None = None) -> CoinTexts:
    """Return the formatters of a ledger with the coins of `SCALES`."""
    coins = {name: Coin(name, scale) for name, scale in SCALES.items()}
    ledger = SimpleNamespace(coins=coins, epochs=epochs or Epochs())
    return CoinTexts(cast(LedgerReads, ledger), ActorLabels(cast(Tokens, None)))


def entry_of(
    postings: tuple[Posting, ...],
    balances: tuple[BalanceAfter, ...],
    request: Mapping[str, Any] | None = None,
    holds: tuple[HoldAfter, ...] = (),
) -> Entry:
    """Return an entry with these postings and balances after it."""
    moves = moved(postings, balances)
    return Entry(7, "post", "key-7", 1_700_000_000_000, dict(request or {"op": "post"}), moves, balances, holds)


def said(answer: object) -> Json:
    """Return what an answer says once it is encoded."""
    return cast(Json, msgspec.json.decode(msgspec.json.encode(answer)))


def after_each(entry: Entry) -> list[tuple[str, str]]:
    """Return amount and balance after of each posting in the answer for *entry*."""
    return [(line["amount"], line["after"]) for line in said(entry_answer(entry, texts_of()))["postings"]]


def test_deposit_is_answered_with_its_postings_and_balances() -> None:
    """What comes in is taken from the outside world, whose balance is below zero."""
    postings = (Posting(EXTERNAL, "usdt", AVAILABLE, -150_000_000), Posting(ALICE, "usdt", AVAILABLE, 150_000_000))
    balances = ((EXTERNAL, "usdt", -400_000_001, 0), (ALICE, "usdt", 250_000_000, 100_000_000))
    request = {"format": 1, "op": "deposit", "customer": "alice", "coin": "usdt", "units": "150000000"}
    answer = said(write_answer(entry_of(postings, balances, request), None, texts_of()))
    assert answer["entry"]["request"] == {"op": "deposit", "customer": "alice", "coin": "usdt", "amount": "1.50"}
    assert [(line["amount"], line["after"]) for line in answer["entry"]["postings"]] == [
        ("-1.50", "-4.00000001"),
        ("1.50", "2.50"),
    ]
    assert [(line["customer"], line["available"], line["freeze"]) for line in answer["balances"]] == [
        ("@external", "-4.00000001", "0.00"),
        ("alice", "2.50", "1.00"),
    ]


def test_each_posting_of_a_side_says_the_balance_right_after_it() -> None:
    """Several postings of one entry touch one side: the last one has the balance after the entry."""
    postings = (
        Posting(ALICE, "usdt", AVAILABLE, -300),
        Posting(BOB, "usdt", AVAILABLE, 300),
        Posting(ALICE, "usdt", AVAILABLE, -50),
        Posting(FEES, "usdt", AVAILABLE, 50),
        Posting(ALICE, "usdt", AVAILABLE, 350),
        Posting(BOB, "usdt", AVAILABLE, -350),
    )
    balances = tuple((account, "usdt", units, 0) for account, units in ((ALICE, 1000), (BOB, 0), (FEES, 50)))
    expected = [
        ("-0.000003", "0.000007"),
        ("0.000003", "0.0000035"),
        ("-0.0000005", "0.0000065"),
        ("0.0000005", "0.0000005"),
        ("0.0000035", "0.00001"),
        ("-0.0000035", "0.00"),
    ]
    assert after_each(entry_of(postings, balances)) == expected


def test_both_sides_of_one_account_are_told_apart() -> None:
    """A freeze moves from one side of a line to the other, and names its hold on that."""
    postings = (Posting(ALICE, "usdt", AVAILABLE, -(10**8)), Posting(ALICE, "usdt", FREEZE, 10**8, 7))
    entry = entry_of(postings, ((ALICE, "usdt", 2 * 10**8, 10**8),), holds=((7, 10**8),))
    answer = said(write_answer(entry, 7, texts_of()))
    assert [
        (line["side"], line["amount"], line["after"], line.get("hold")) for line in answer["entry"]["postings"]
    ] == [
        ("available", "-1.00", "2.00", None),
        ("freeze", "1.00", "1.00", "7"),
    ]
    assert (answer["hold"], answer["entry"]["holds"]) == ("7", [{"hold": "7", "remaining": "1.00"}])


@pytest.mark.parametrize(("coin", "other"), [("usdt", "shib"), ("shib", "usdt"), ("gem", "whole"), ("whole", "gem")])
def test_opposite_units_of_coins_with_other_scales_are_other_amounts(coin: str, other: str) -> None:
    """Five units out and five in are the same amount only within one scale."""
    postings = (Posting(ALICE, coin, AVAILABLE, -5), Posting(ALICE, other, AVAILABLE, 5))
    balances = ((ALICE, coin, 1, 0), (ALICE, other, 5, 0))
    amounts = [
        format_amount(-5, SCALES[coin], min(2, SCALES[coin])),
        format_amount(5, SCALES[other], min(2, SCALES[other])),
    ]
    assert [amount for amount, _ in after_each(entry_of(postings, balances))] == amounts


def test_same_units_with_the_same_sign_twice_keep_their_sign() -> None:
    """Two customers receive the same amount, and one posting has no units."""
    postings = (
        Posting(EXTERNAL, "usdt", AVAILABLE, -2 * 10**8),
        Posting(ALICE, "usdt", AVAILABLE, 10**8),
        Posting(BOB, "usdt", AVAILABLE, 10**8),
        Posting(FEES, "usdt", AVAILABLE, 0),
    )
    balances = tuple((account, "usdt", 10**8, 0) for account in (EXTERNAL, ALICE, BOB, FEES))
    assert [amount for amount, _ in after_each(entry_of(postings, balances))] == ["-2.00", "1.00", "1.00", "0.00"]


def test_request_of_a_settlement_has_amounts_of_the_coins_that_are_paid() -> None:
    """The buyer releases and pays the quote coin, the seller the base coin; other fields are as they were sent."""
    request = {
        "format": 1,
        "op": "settle",
        "base": "shib",
        "quote": "usdt",
        "base_units": str(10**18),
        "quote_units": "250000000",
        "buyer": {"hold": {"key": "b"}, "fee": {"coin": "shib", "units": str(10**16)}, "release_units": "100000000"},
        "seller": {"hold": "3", "release_units": str(10**17), "dust": {"coin": "usdt", "units": "1"}},
        "reference": "fill-1",
    }
    assert said(entry_answer(entry_of((), (), request), texts_of()))["request"] == {
        "op": "settle",
        "base": "shib",
        "quote": "usdt",
        "base_amount": "1.00",
        "quote_amount": "2.50",
        "buyer": {"hold": {"key": "b"}, "fee": {"coin": "shib", "amount": "0.01"}, "release": "1.00"},
        "seller": {"hold": "3", "release": "0.10", "dust": {"coin": "usdt", "amount": "0.00000001"}},
        "reference": "fill-1",
    }


def test_request_of_a_kept_refusal_keeps_amounts_of_a_coin_that_is_not_listed() -> None:
    """There is no scale to read them with, so they were kept as text."""
    deposit = {"format": 1, "op": "deposit", "customer": "alice", "coin": "none", "amount": "1.5"}
    side = {"hold": "1", "fee": {"coin": "none", "amount": "0.1"}, "release_amount": "2"}
    settle = {"format": 1, "op": "settle", "base": "none", "quote": "usdt", "base_amount": "1", "quote_amount": "2"}
    settle |= {"buyer": side, "seller": {"hold": "2", "release": "rest"}}
    asked = [said(entry_answer(entry_of((), (), request), texts_of()))["request"] for request in (deposit, settle)]
    assert asked[0] == {"op": "deposit", "customer": "alice", "coin": "none", "amount": "1.5"}
    assert asked[1]["base_amount"] == "1"
    assert asked[1]["buyer"] == {"hold": "1", "fee": {"coin": "none", "amount": "0.1"}, "release": "2"}
    assert asked[1]["seller"] == {"hold": "2", "release": "rest"}


def test_request_that_the_journal_keeps_is_not_changed_by_its_answer() -> None:
    """The entry stays in memory, and is answered again."""
    request = {"format": 1, "op": "deposit", "customer": "alice", "coin": "usdt", "units": "5"}
    entry = entry_of((), (), request)
    first, second = (said(entry_answer(entry, texts_of())) for _ in range(2))
    assert (first, entry.request) == (second, request)


def test_positions_have_their_epoch_in_later_ones() -> None:
    """The hold that an entry opened is named with the epoch of the entry."""
    epochs = Epochs([EpochStart(2, 5)])
    postings = (Posting(ALICE, "usdt", AVAILABLE, -1), Posting(ALICE, "usdt", FREEZE, 1, 7))
    entry = entry_of(postings, ((ALICE, "usdt", 0, 1),), holds=((7, 1),))
    answer = said(write_answer(entry, 7, texts_of(epochs)))
    assert (answer["epoch"], answer["hold"], answer["entry"]["postings"][1]["hold"]) == (2, "2-7", "2-7")
