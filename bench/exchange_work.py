"""
The work of an exchange, made ahead of the measurement.

Of a hundred operations 45 freeze, 35 settle a fill with two fees, 15 unfreeze, 5 deposit or withdraw; one is a repeat
of an earlier one, one is refused. Customers and markets are chosen by Zipf's law, keys are random, and holds are those
that were opened before: named by their ids, or by the key that opened them where that happens in the same group.
"""

from __future__ import annotations

import random
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from spotledger.domain.operations import (
    REST,
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Settle,
    SettleSide,
    Unfreeze,
    Withdraw,
)

SCALE: Final = 8
ONE: Final = 10**SCALE
QUOTE: Final = "usdt"
BASES: Final = ("btc", "eth", *(f"coin{number:02}" for number in range(3, 20)))
COINS: Final = (*BASES, QUOTE)
#: What each customer has of each coin at first: enough that nothing but what is meant to be is refused.
FUNDED: Final = "1000000000"
#: More than anybody has.
TOO_MUCH: Final = "900000000000"
FEE_PER_MILLE: Final = 1
#: Quote units for one base unit, market by market: whole numbers, so that every price is exact.
PRICES: Final = tuple(max(1, 60_000 // (rank + 1) ** 3) for rank in range(len(BASES)))
#: Earlier operations that one is picked from to be repeated.
REPEATABLE: Final = 20_000
#: Fills that an order of the settlements alone is good for.
FILLS: Final = 12
SHARES: Final = {"freeze": 45, "settle": 35, "unfreeze": 15, "deposit": 2.5, "withdraw": 2.5}


def customer_name(number: int) -> str:
    """Name the customer with this *number*."""
    return f"customer-{number:06}"


def opening(customers: int) -> Iterator[Operation]:
    """List the coins, register *customers*, and give each of them enough of every coin."""
    for coin in COINS:
        yield ListCoin(f"list-{coin}", coin, SCALE)
    for number in range(customers):
        yield RegisterCustomer(f"register-{number}", customer_name(number))
    for number in range(customers):
        for coin in COINS:
            yield Deposit(f"fund-{number}-{coin}", customer_name(number), coin, FUNDED)


@dataclass(slots=True)
class Order:
    """A hold as the generator knows it: the key that opened it, its entry, and what remains in units."""

    key: str
    seq: int
    remaining: int


class Zipf:
    """Chooses among *count* ranks, the first the most often."""

    def __init__(self, count: int) -> None:
        """Weigh rank n with 1/n."""
        self._ranks = range(count)
        self._weights = list(accumulate(1 / (rank + 1) for rank in self._ranks))

    def choose(self, chance: random.Random) -> int:
        """Choose one rank."""
        return chance.choices(self._ranks, cum_weights=self._weights)[0]


class Work:
    """Makes groups of operations one after the other, and knows which entry each of them becomes."""

    def __init__(self, seed: int, first_seq: int, customers: int) -> None:
        """
        Begin on a ledger that holds what :func:`opening` made.

        Args:
            seed: The same seed makes the same choices; keys are random all the same.
            first_seq: The entry that the first operation becomes.
            customers: How many there are.
        """
        self.seq = first_seq
        self._chance = random.Random(seed)
        self._customers = Zipf(customers)
        self._markets = Zipf(len(BASES))
        self._buys: list[list[Order]] = [[] for _ in BASES]
        self._sells: list[list[Order]] = [[] for _ in BASES]
        self._group_first = first_seq
        self._earlier: list[Operation] = []
        self._kinds = list(SHARES)
        self._shares = list(accumulate(SHARES.values()))

    def group(self, size: int) -> list[Operation]:
        """Make *size* operations that are executed as one group."""
        self._group_first = self.seq
        return [self._next() for _ in range(size)]

    def orders(self, size: int, fills: int) -> list[Operation]:
        """Make *size* freezes, each good for some *fills*."""
        self._group_first = self.seq
        return [self._booked(self._freeze(fills)) for _ in range(size)]

    def settlements(self, size: int) -> list[Operation]:
        """Make *size* settlements as one group; there have to be orders enough."""
        self._group_first = self.seq
        return [self._booked(self._settle()) for _ in range(size)]

    def _next(self) -> Operation:
        chance = self._chance
        if self._earlier and chance.random() < 0.01:
            return chance.choice(self._earlier)
        if chance.random() < 0.01:
            return self._booked(Freeze(new_key(), self._customer(), self._coin(), TOO_MUCH, reference=new_key()))
        kind = chance.choices(self._kinds, cum_weights=self._shares)[0]
        operation = self._booked(self._of_kind(kind))
        if len(self._earlier) < REPEATABLE:
            self._earlier.append(operation)
        else:
            self._earlier[chance.randrange(REPEATABLE)] = operation
        return operation

    def _booked(self, operation: Operation) -> Operation:
        self.seq += 1
        return operation

    def _of_kind(self, kind: str) -> Operation:
        match kind:
            case "settle":
                return self._settle()
            case "unfreeze":
                return self._unfreeze()
            case "deposit":
                return Deposit(new_key(), self._customer(), self._coin(), self._amount(), reference=new_key())
            case "withdraw":
                return Withdraw(new_key(), self._amount(), self._customer(), self._coin(), reference=new_key())
        return self._freeze(2)

    def _customer(self) -> str:
        return customer_name(self._customers.choose(self._chance))

    def _coin(self) -> str:
        return COINS[self._chance.randrange(len(COINS))]

    def _amount(self) -> str:
        return decimal(self._chance.randrange(1, 10**11))

    def _freeze(self, fills: int, market: int | None = None, buys: bool | None = None) -> Operation:
        """Open an order of some market on the side that has fewer, for about *fills* fills."""
        chance = self._chance
        if market is None:
            market = self._markets.choose(chance)
        if buys is None:
            buys = len(self._buys[market]) <= len(self._sells[market])
        key = new_key()
        units = chance.randrange(10**4, 10**7) * fills
        coin = BASES[market]
        if buys:
            units, coin = units * PRICES[market], QUOTE
        self._rest((self._buys if buys else self._sells)[market], Order(key, self.seq, units))
        return Freeze(key, self._customer(), coin, decimal(units), reference=f"order-{key}")

    def _unfreeze(self) -> Operation:
        """Cancel an order: free what remains of it."""
        market = self._markets.choose(self._chance)
        side = self._buys[market] if len(self._buys[market]) > len(self._sells[market]) else self._sells[market]
        if not side:
            return self._freeze(2, market)
        return Unfreeze(new_key(), self._name(taken(side, self._chance)))

    def _settle(self) -> Operation:
        """Fill a buy with a sell of one market: most of the time one of them whole, else both in part."""
        chance = self._chance
        market = self._markets.choose(chance)
        buys, sells = self._buys[market], self._sells[market]
        if not buys or not sells:
            return self._freeze(2, market, not buys)
        price = PRICES[market]
        buy, sell = taken(buys, chance), taken(sells, chance)
        units = min(buy.remaining // price, sell.remaining)
        if units > 10_000 and chance.random() < 0.2:
            units //= 2
        buyer, seller = self._name(buy), self._name(sell)
        buy.remaining -= units * price
        sell.remaining -= units
        release = self._released(buy.remaining)
        if buy.remaining >= price and release is None:
            self._rest(buys, buy)
        if sell.remaining:
            self._rest(sells, sell)
        return Settle(
            new_key(),
            BASES[market],
            QUOTE,
            decimal(units),
            decimal(units * price),
            SettleSide(buyer, CoinAmount(BASES[market], fee_of(units)), release),
            SettleSide(seller, CoinAmount(QUOTE, fee_of(units * price))),
            reference=f"fill-{self.seq}",
        )

    def _rest(self, side: list[Order], order: Order) -> None:
        """Put *order* on its side of the market, where it waits to be filled or cancelled."""
        side.append(order)

    def _released(self, left: int) -> str | None:
        """Say that the rest of a buy is freed, one time in ten: its price was better than expected."""
        return REST if left and self._chance.random() < 0.1 else None

    def _name(self, order: Order) -> HoldName:
        return HoldKey(order.key) if order.seq >= self._group_first else str(order.seq)


class InterleavedWork(Work):
    """
    The same mix for many connections at once: holds are named by the keys of their orders, and what an operation
    needs was asked for long before it.
    """

    def __init__(self, seed: int, first_seq: int, customers: int, apart: int) -> None:
        """Begin like :class:`Work`; no order is used by two of *apart* operations that follow one another."""
        super().__init__(seed, first_seq, customers)
        self._apart = apart
        self._made = 0
        #: Orders that were used a short while ago, with the operation from which on they may be used again.
        self._resting: deque[tuple[int, list[Order], Order]] = deque()

    def operations(self, count: int) -> list[Operation]:
        """Make *count* operations."""
        return [self._next() for _ in range(count)]

    def _next(self) -> Operation:
        self._made += 1
        while self._resting and self._resting[0][0] <= self._made:
            _, side, order = self._resting.popleft()
            side.append(order)
        return super()._next()

    def _rest(self, side: list[Order], order: Order) -> None:
        self._resting.append((self._made + self._apart, side, order))

    def _freeze(self, fills: int, market: int | None = None, buys: bool | None = None) -> Operation:
        # Which side has fewer is not known of those that rest.
        return super()._freeze(fills, market, self._chance.random() < 0.5 if buys is None else buys)

    def _name(self, order: Order) -> HoldName:
        return HoldKey(order.key)


class AnyOrderWork(Work):
    """The same mix for nodes that know nothing of one another: each operation can be done before or after any other."""

    def __init__(self, seed: int, first_seq: int, customers: int) -> None:
        """Begin like :class:`Work`; the orders that :meth:`prepare` opens are filled or cancelled, never both."""
        super().__init__(seed, first_seq, customers)
        self._to_cancel: list[int] = []

    def prepare(self, count: int) -> list[Operation]:
        """Make the freezes that *count* operations need before them; their ids are known, so this comes first."""
        cancels = int(count * SHARES["unfreeze"] / 100 * 1.2) + 100
        self._to_cancel += range(self.seq, self.seq + cancels)
        plain = [self._booked(self._freeze_only()) for _ in range(cancels)]
        return plain + self.orders(count // 4 + 2_000, 20)

    def operations(self, count: int) -> list[Operation]:
        """Make *count* operations."""
        self._group_first = self.seq + 1
        return [self._next() for _ in range(count)]

    def _freeze_only(self) -> Operation:
        key = new_key()
        return Freeze(key, self._customer(), self._coin(), self._amount(), reference=f"order-{key}")

    def _freeze(self, fills: int, market: int | None = None, buys: bool | None = None) -> Operation:
        opening = fills > 2
        return super()._freeze(fills, market, buys) if opening else self._freeze_only()

    def _unfreeze(self) -> Operation:
        return Unfreeze(new_key(), str(self._to_cancel.pop()))

    def _released(self, left: int) -> str | None:
        return None


def taken(orders: list[Order], chance: random.Random) -> Order:
    """Take a random one out of *orders*; the last takes its place."""
    place = chance.randrange(len(orders))
    orders[place], orders[-1] = orders[-1], orders[place]
    return orders.pop()


def orders_for(settlements: int) -> int:
    """Return how many orders are opened for so many *settlements*: more than enough."""
    return 2 * settlements // FILLS + 2_000


def new_key() -> str:
    """Make a random key."""
    return str(uuid.uuid4())


def decimal(units: int) -> str:
    """Write *units* as decimal text."""
    whole, rest = divmod(units, ONE)
    return f"{whole}.{rest:08}"


def fee_of(units: int) -> str:
    """Return the fee on *units* as decimal text; zero where they are few."""
    return decimal(units * FEE_PER_MILLE // 1000)


def shares_of(operations: Sequence[Operation]) -> dict[str, float]:
    """Return which part of *operations* each kind is."""
    counts: dict[str, int] = {}
    for operation in operations:
        counts[operation.kind] = counts.get(operation.kind, 0) + 1
    return {kind: round(number / len(operations), 3) for kind, number in sorted(counts.items())}
