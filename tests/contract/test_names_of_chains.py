"""Keys, coins and amounts as chains have them, on every store: long keys, marks in a coin's name, 24 decimals."""

from __future__ import annotations

import pytest

from spotledger.domain.operations import Deposit, HoldKey
from spotledger.errors import IdempotencyConflict, InvalidRequest
from spotledger.ledger.ledger import Ledger, Receipt
from support_core import fill, spot

HASH_KEY = "0x" + "9f" * 32
OUTPUT_KEY = f"{'e3' * 32}:4294967295"
LONGEST_KEY = "k" * 128
#: In the order of their bytes, which is the order of the coins in each answer.
COINS = ("0-1", "a" * 32, "lp-btc", "usdt", "usdt.e", "usdt_e", "usdte")
LEAST, MOST = "0.000000000000000000000001", "99999999999999.999999999999999999999999"


@pytest.mark.parametrize("key", [HASH_KEY, OUTPUT_KEY, LONGEST_KEY])
def test_key_of_a_chain_books_once(ledger: Ledger, key: str) -> None:
    """A hash, an output and 128 characters are keys: they repeat, conflict and name a hold, sealed or not."""
    first = ledger.freeze("ann", "btc", "1", key=key)
    fill(ledger, 20)
    again = ledger.freeze("ann", "btc", "1.0", key=key)
    assert (again.seq, again.replayed) == (first.seq, True)
    with pytest.raises(IdempotencyConflict):
        ledger.freeze("ann", "btc", "2", key=key)
    assert ledger.unfreeze(HoldKey(key), key="free").replayed is False
    assert ledger.entry_of_key(key) == first.entry


def test_keys_that_differ_in_the_last_character_are_two(ledger: Ledger) -> None:
    """No part of a long key is cut off."""
    keys = [LONGEST_KEY[:-1] + end for end in "ab"]
    outcomes = ledger.execute([Deposit(key, "ann", "btc", "1") for key in keys])
    assert [isinstance(outcome, Receipt) and not outcome.replayed for outcome in outcomes] == [True, True]


def test_key_of_129_characters_is_refused(ledger: Ledger) -> None:
    """One character more is no key."""
    with pytest.raises(InvalidRequest, match="1 to 128"):
        ledger.deposit("ann", "btc", "1", key=LONGEST_KEY + "k")


def test_coins_with_marks_are_apart_and_in_the_order_of_their_bytes(ledger: Ledger) -> None:
    """usdt, usdt.e and usdt_e are three coins; all reads have them in one order, sealed or not."""
    for number, coin in enumerate(reversed(COINS), 1):
        ledger.list_coin(coin, number, key=f"list:{coin}")
        ledger.deposit("ann", coin, str(number), key=f"in:{coin}")
    fill(ledger, 20)
    assert [coin for coin in ledger.coins if coin != "btc"] == sorted(COINS)
    assert [coin for coin in ledger.balances(spot("ann")) if coin != "btc"] == sorted(COINS)
    for number, coin in enumerate(reversed(COINS), 1):
        assert ledger.balances(spot("ann"))[coin].available == number * 10**number
        assert [entry.key for entry in ledger.statement("ann", coin)] == [f"in:{coin}"]
    sums = ledger.trial_balance().sums
    assert {coin: sums["customers", coin].available + sums["@external", coin].available for coin in COINS} == (
        dict.fromkeys(COINS, 0)
    )


def test_amounts_of_24_decimals_are_exact(ledger: Ledger) -> None:
    """The least and the greatest amount of a coin with 24 decimals are booked to the unit, sealed or not."""
    ledger.list_coin("yocto", 24, key="list:yocto")
    ledger.deposit("ann", "yocto", MOST, key="most")
    ledger.transfer("ann", "bob", "yocto", LEAST, key="least")
    fill(ledger, 20)
    assert ledger.balances(spot("ann"))["yocto"].available == 10**38 - 2
    assert ledger.balances(spot("bob"))["yocto"].available == 1
