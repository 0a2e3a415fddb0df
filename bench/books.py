"""Ledgers to measure on, filled through the library, and access keys made through the operator API."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import spotledger
from bench.load import Credentials
from spotledger.domain.operations import Deposit, Freeze, HoldKey, ListCoin, Operation, RegisterCustomer, Unfreeze
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger

GROUP = 1_000
FIRST_COINS = ("btc", "eth", "ltc", "usdt")
#: The same number of digits everywhere, so that all answers have the same length.
DEPOSITED = "6929.61067353"
FROZEN = "3062.17437341"


def coin_names(count: int) -> list[str]:
    """Name *count* coins."""
    return [*FIRST_COINS, *(f"coin{number:03}" for number in range(len(FIRST_COINS), count))][:count]


def customer_name(number: int) -> str:
    """Name the customer with this *number*."""
    return f"customer-{number:05}"


def book(ledger: Ledger, operations: Iterable[Operation]) -> int:
    """Execute *operations* in groups of a thousand; return their number, or raise the first refusal."""
    done = 0
    left = iter(operations)
    while group := list(islice(left, GROUP)):
        for result in ledger.execute(group):
            if isinstance(result, Refused):
                raise result
        done += len(group)
    return done


def listed(coins: Iterable[str]) -> Iterator[Operation]:
    """List *coins* with a scale of 8."""
    for coin in coins:
        yield ListCoin(key=f"list-{coin}", coin=coin, scale=8)


def registered(customers: Iterable[str]) -> Iterator[Operation]:
    """Register *customers*."""
    for customer in customers:
        yield RegisterCustomer(key=f"register-{customer}", customer=customer)


def funded(customers: Iterable[str], coins: Iterable[str], amount: str = DEPOSITED) -> Iterator[Operation]:
    """Deposit *amount* of each of *coins* for each of *customers*."""
    coins = list(coins)
    for customer in customers:
        for coin in coins:
            yield Deposit(key=f"deposit-{customer}-{coin}", customer=customer, coin=coin, amount=amount)


def frozen(customers: Iterable[str], coins: Iterable[str], amount: str = FROZEN) -> Iterator[Operation]:
    """Freeze *amount* of each of *coins* for each of *customers*."""
    coins = list(coins)
    for customer in customers:
        for coin in coins:
            key = f"freeze-{customer}-{coin}"
            yield Freeze(key=key, customer=customer, coin=coin, amount=amount, reference=f"order-{customer}-{coin}")


def traded(customers: int, coins: Iterable[str], count: int) -> Iterator[Operation]:
    """Make *count* operations of trading: freezes and unfreezes in turn, one in ten holds staying open."""
    coins = list(coins)
    for number in range(0, count, 2):
        key = f"order-{number:09}"
        coin = coins[number // 2 % len(coins)]
        customer = customer_name((number * 7919) // 2 % customers)
        yield Freeze(key=key, customer=customer, coin=coin, amount="0.00150000", reference=key)
        if number % 20:
            yield Unfreeze(key=f"{key}-done", hold=HoldKey(key))
        else:
            yield Deposit(key=f"{key}-more", customer=customer, coin=coin, amount="1.00")


def fill_for_reading(place: str | Path, *, customers: int, keyed: int, coins: int) -> None:
    """Make a ledger of *customers* at *place*; the first *keyed* hold each of *coins*, a part of it frozen."""
    names = [customer_name(number) for number in range(customers)]
    symbols = coin_names(coins)
    ledger = spotledger.open(place)
    try:
        book(ledger, listed(symbols))
        book(ledger, registered(names))
        book(ledger, funded(names[:keyed], symbols))
        book(ledger, funded(names[keyed:], FIRST_COINS))
        book(ledger, frozen(names[:keyed], symbols))
    finally:
        ledger.close()


def fill_for_starting(folder: Path, *, entries: int, customers: int) -> int:
    """Make a ledger with *entries* entries; return their number as the ledger counts them."""
    names = [customer_name(number) for number in range(customers)]
    ledger = spotledger.open(folder)
    try:
        book(ledger, listed(FIRST_COINS))
        book(ledger, registered(names))
        book(ledger, funded(names, FIRST_COINS))
        book(ledger, traded(customers, FIRST_COINS, entries - ledger.head.seq))
        return int(ledger.head.seq)
    finally:
        ledger.close()


def make_keys(operator_port: int, folder: Path, customers: Iterable[str]) -> list[Credentials]:
    """Make an access key that may read for each of *customers*, through the operator API of the server on *folder*."""
    token = (folder / "operator.token").read_text().strip()
    made = []
    for customer in customers:
        request = urllib.request.Request(
            f"http://127.0.0.1:{operator_port}/v1/keys",
            data=json.dumps({"customer": customer, "permissions": ["read"]}).encode(),
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/json",
                "Idempotency-Key": f"bench-key-{customer}",
            },
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            document = json.loads(answer.read())
        made.append(Credentials(document["accesskey"], document["secretkey"], customer))
    return made
