"""The rules of the ledger once more, said plainly, over its own operations: what each answers and what it moves."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    OpenHouseAccount,
    Post,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)

LIMIT = 10**38
EXTERNAL, FEES, DUST = "@external", "@fees", "@dust"
#: Codes of refusals that leave no trace.
NOT_KEPT = {
    "invalid_request",
    "invalid_amount",
    "coin_already_listed",
    "customer_already_registered",
    "house_account_already_open",
    "unknown_house_account",
    "house_short",
    "legs_unbalanced",
    "fees_short",
    "already_reversed",
    "idempotency_conflict",
    "chain_partly_known",
    "unknown_coin",
    "unknown_customer",
    "unknown_hold",
    "unknown_entry",
    "balance_too_large",
}

Name = tuple[str, str, str]  # customer, kind of account, coin
Line = tuple[Name, int, int]  # 0 for available and 1 for freeze, units


class Answer(NamedTuple):
    """What the ledger has to say: the outcome's code, its seq (None where nothing is kept), whether it is a repeat."""

    code: str
    seq: int | None = None
    replayed: bool = False


class Refusal(Exception):
    """Carries the code of a refusal."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.kept = code not in NOT_KEPT


@dataclass
class Held:
    """A hold as it stands."""

    name: Name
    remaining: int
    expires_ms: int | None
    opened_ms: int


class Known(NamedTuple):
    """What is kept of a key: scales by field where the amounts were read as units, or None where they stay text."""

    op: Any  # None: the beginning of an epoch
    scales: dict[str, int] | None
    code: str
    seq: int


def house(owner: str, coin: str) -> Name:
    """Return the name of a balance of the house."""
    return owner, "house", coin


def receivable(customer: str, coin: str) -> Name:
    """Return the name of what *customer* owes."""
    return house(f"@receivable:{customer}", coin)


def units_of(text: str, scale: int) -> int:
    """Read an amount, or refuse."""
    if len(text.partition(".")[2]) > scale or Fraction(text) * 10**scale >= LIMIT:
        raise Refusal("invalid_amount")
    return int(Fraction(text) * 10**scale)


class Model:
    """The books: balances as [available, freeze], holds, keys, what each entry did, and how it all was after each."""

    def __init__(self) -> None:
        self.seq = 0
        self.coins: dict[str, int] = {}
        self.customers: set[str] = set()
        #: House accounts, and whether they may be negative.
        self.houses = {"@fees": False, "@dust": False}
        self.balances: dict[Name, list[int]] = {}
        self.holds: dict[int, Held] = {}
        self.keys: dict[str, Known] = {}
        self.effects: dict[int, dict[Name, int]] = {}
        self.touched: dict[int, set[Name]] = {}
        self.changed: dict[tuple[str, str], int] = {}
        self.kinds: dict[int, str] = {}
        self.reversed: dict[int, int] = {}
        self.past: list[dict[Name, tuple[int, int]]] = [{}]

    # --- once only, and all or nothing ----------------------------------------------------------------

    def group(self, operations: list[Any], chains: list[Any], now_ms: int) -> list[Answer]:
        """Do a group in order, neighbours with the same text in *chains* all or not at all."""
        answers: list[Answer] = []
        while len(answers) < len(operations):
            start = end = len(answers)
            while end < len(chains) and chains[end] == chains[start]:
                end += 1
            if chains[start] is None:
                answers.append(self.do(operations[start], now_ms))
            else:
                answers += self.chain(operations[start:end], now_ms)
        return answers

    def do(self, op: Any, now_ms: int) -> Answer:
        """Do one operation, or find that it was done before."""
        if op.key in self.keys:
            kept = self.keys[op.key]
            return Answer(kept.code, kept.seq, True) if same(kept, op) else Answer("idempotency_conflict")
        scales = self.scales(op)
        try:
            self.move(op, now_ms)
        except Refusal as refusal:
            return self.booked(op, scales, refusal.code) if refusal.kept else Answer(refusal.code)
        return self.booked(op, scales, "ok")

    def chain(self, operations: list[Any], now_ms: int) -> list[Answer]:
        """Do operations all or not at all."""
        keys = [op.key for op in operations]
        known = [key in self.keys for key in keys]
        if len(set(keys)) < len(keys):
            return [Answer("invalid_request")] * len(keys)
        if any(known) and not all(known):
            return [Answer("chain_partly_known")] * len(keys)
        before = self.snapshot()
        answers: list[Answer] = []
        for op in operations:
            answers.append(self.do(op, now_ms))
            if not all(known) and answers[-1].code != "ok":
                vars(self).update(before)
                return self.undone(operations, len(answers) - 1, answers[-1])
        return answers

    def snapshot(self) -> dict[str, Any]:
        changed_in_place = ("balances", "holds")
        books = vars(self)
        return {
            name: copy.deepcopy(books[name]) if name in changed_in_place else copy.copy(books[name]) for name in books
        }

    def undone(self, operations: list[Any], failed: int, cause: Answer) -> list[Answer]:
        codes = [cause.code if number == failed else "chain_failed" for number in range(len(operations))]
        if cause.seq is None:
            return [Answer(each) for each in codes]
        return [self.booked(op, self.scales(op), each) for op, each in zip(operations, codes, strict=True)]

    def booked(self, op: Any, scales: dict[str, int] | None, code: str) -> Answer:
        """Note the next entry, whatever it did."""
        self.seq += 1
        self.keys[op.key] = Known(op, scales, code, self.seq)
        self.kinds[self.seq] = op.kind if code == "ok" else "refusal"
        self.past.append({name: (available, freeze) for name, (available, freeze) in self.balances.items()})
        return Answer(code, self.seq)

    def scales(self, op: Any) -> dict[str, int] | None:
        """Return the scales by which a request is kept as units, or None where it is kept as text."""
        if isinstance(op, Settle):
            names = {"base": op.base, "quote": op.quote}
        elif isinstance(op, Post):
            names = {leg.coin: leg.coin for leg in op.legs}
        else:
            held = self.named(getattr(op, "hold", None))
            names = {"amount": held.name[2] if held else getattr(op, "coin", None) or ""}
        if not all(name in self.coins for name in names.values()):
            return None
        found = {field: self.coins[name] for field, name in names.items()}
        try:
            read(op, found)
        except Refusal:
            return None
        return found

    def named(self, name: Any) -> Held | None:
        if isinstance(name, HoldKey):
            kept = self.keys.get(name.key)
            return self.holds.get(kept.seq) if kept else None
        return None if name is None else self.holds.get(int(name))

    # --- what moves -------------------------------------------------------------------------------------

    def move(self, op: Any, now_ms: int) -> None:
        match op:
            case ListCoin():
                if op.coin in self.coins:
                    raise Refusal("coin_already_listed")
                self.coins[op.coin] = op.scale
            case RegisterCustomer():
                if op.customer in self.customers:
                    raise Refusal("customer_already_registered")
                self.customers.add(op.customer)
            case OpenHouseAccount():
                if f"@{op.name}" in self.houses:
                    raise Refusal("house_account_already_open")
                self.houses[f"@{op.name}"] = op.may_be_negative
            case Settle():
                self.settle(op, now_ms)
            case Post():
                self.post_legs(op)
            case Reverse():
                self.reverse(op)
            case Unfreeze() | Withdraw(hold=str() | HoldKey()):
                self.use(op, now_ms)
            case _:
                self.plain(op, now_ms)

    def post(self, *lines: Line) -> None:
        """Book lines that add up to zero, or refuse where a balance grows beyond all bounds."""
        after = {name: list(self.balances.get(name, (0, 0))) for name, _, units in lines if units}
        for name, side, units in lines:
            if units:
                after[name][side] += units
        if any(sum(sides) >= LIMIT or sides[0] <= -LIMIT for sides in after.values()):
            raise Refusal("balance_too_large")
        lines += self.repay(after)
        self.balances.update(after)
        self.touched[self.seq + 1] = set(after)
        self.changed.update({name[:2]: self.seq + 1 for name in after})
        effect = self.effects[self.seq + 1] = {}
        for name, _, units in lines:
            effect[name] = effect.get(name, 0) + units

    def repay(self, after: dict[Name, list[int]]) -> tuple[Line, ...]:
        """Repay debts in *after* with all that is available there to who owes, and return the lines."""
        lines: list[Line] = []
        for (customer, kind, coin), sides in list(after.items()):
            owes = receivable(customer, coin)
            debt = after.get(owes) or list(self.balances.get(owes, (0, 0)))
            repaid = 0 if kind == "house" else min(sides[0], -debt[0])
            if repaid > 0:
                after[owes] = [debt[0] + repaid, 0]
                sides[0] -= repaid
                lines += [((customer, kind, coin), 0, -repaid), (owes, 0, repaid)]
        return tuple(lines)

    def plain(self, op: Any, now_ms: int) -> None:
        if op.coin not in self.coins:
            raise Refusal("unknown_coin")
        units = units_of(op.amount, self.coins[op.coin])
        outside = house(EXTERNAL, op.coin)
        source = target = outside
        if isinstance(op, Transfer):
            source, target = (op.from_customer, op.from_account, op.coin), (op.to_customer, op.to_account, op.coin)
        elif isinstance(op, Deposit):
            target = (op.customer, op.account, op.coin)
        else:
            source = (op.customer, op.account, op.coin)
        for owner in (source[0], target[0]):
            if owner not in {EXTERNAL, *self.customers, *self.houses}:
                raise Refusal("unknown_house_account" if owner[0] == "@" else "unknown_customer")
        if isinstance(op, Freeze) and op.expires_ms is not None and op.expires_ms <= now_ms:
            raise Refusal("invalid_request")
        self.enough(source, units)
        if isinstance(op, Freeze):
            self.post((source, 0, -units), (source, 1, units))
            self.holds[self.seq + 1] = Held(source, units, op.expires_ms, now_ms)
        elif isinstance(op, Deposit):
            self.post((outside, 0, -units), (target, 0, units))
        else:
            self.post((source, 0, -units), (target, 0, units))

    def enough(self, source: Name, units: int) -> None:
        """Refuse what would take *source* below zero; a house account may have its money tomorrow."""
        if source[0] == EXTERNAL or self.houses.get(source[0]) or self.available(source) >= units:
            return
        refusal = Refusal("insufficient_available")
        refusal.kept = source[1] != "house"
        raise refusal

    def post_legs(self, op: Post) -> None:
        if any(leg.coin not in self.coins for leg in op.legs):
            raise Refusal("unknown_coin")
        read(op, {leg.coin: self.coins[leg.coin] for leg in op.legs})
        lines: list[Line] = []
        net: dict[Name, int] = {}
        for leg in op.legs:
            if leg.customer not in {*self.customers, *self.houses}:
                raise Refusal("unknown_house_account" if leg.customer[0] == "@" else "unknown_customer")
            name = (leg.customer, leg.account or "", leg.coin)
            units = signed(leg.amount, self.coins[leg.coin])
            lines.append((name, 0, units))
            net[name] = net.get(name, 0) + units
        if any(sum(units for name, units in net.items() if name[2] == coin) for coin in self.coins):
            raise Refusal("legs_unbalanced")
        for name, units in net.items():
            self.enough(name, -units)
            if sum(self.balances.get(name, (0, 0))) + units >= LIMIT:
                raise Refusal("balance_too_large")
        self.post(*lines)

    def available(self, name: Name) -> int:
        return self.balances.get(name, [0])[0]

    def usable(self, name: Any, now_ms: int) -> Held:
        held = self.named(name)
        if held is not None and held.expires_ms is not None and now_ms >= held.expires_ms:
            raise Refusal("hold_expired")
        if held is None:
            raise Refusal("unknown_hold")
        if not held.remaining:
            raise Refusal("hold_closed")
        return held

    def use(self, op: Any, now_ms: int) -> None:
        held = self.named(op.hold)
        units = None
        if held is not None and op.amount is not None:
            units = units_of(op.amount, self.coins[held.name[2]])
        held = self.usable(op.hold, now_ms)
        units = held.remaining if units is None else units
        if units > held.remaining:
            raise Refusal("hold_short")
        target = held.name if isinstance(op, Unfreeze) else house(EXTERNAL, held.name[2])
        self.post((held.name, 1, -units), (target, 0, units))
        held.remaining -= units

    def expire(self, hold_id: int) -> None:
        """Free what remains of a hold whose time has come."""
        held = self.holds[hold_id]
        self.post((held.name, 1, -held.remaining), (held.name, 0, held.remaining))
        held.remaining = 0

    def due(self, now_ms: int) -> set[int]:
        return {i for i, h in self.holds.items() if h.remaining and h.expires_ms and h.expires_ms <= now_ms}

    def settle(self, op: Settle, now_ms: int) -> None:
        if not {op.base, op.quote} <= self.coins.keys():
            raise Refusal("unknown_coin")
        read(op, {"base": self.coins[op.base], "quote": self.coins[op.quote]})
        price = {op.base: units_of(op.base_amount, self.coins[op.base])}
        price[op.quote] = units_of(op.quote_amount, self.coins[op.quote])
        fee_account = op.fee_account or FEES
        if fee_account not in self.houses:
            raise Refusal("unknown_house_account")
        trade = [(op.buyer, op.quote, op.base), (op.seller, op.base, op.quote)]
        held = [self.usable_of(side.hold, pays, now_ms) for side, pays, _ in trade]
        freed = [self.freed(side, hold, price[pays]) for (side, pays, _), hold in zip(trade, held, strict=True)]
        lines: list[Line] = []
        for (side, pays, receives), hold, released in zip(trade, held, freed, strict=True):
            lines += self.side(side, hold, released, pays, receives, price, fee_account)
        if any(side.fee and side.fee.amount[0] == "-" for side, _, _ in trade) and not self.houses[fee_account]:
            for coin in price:
                fees = house(fee_account, coin)
                if self.available(fees) + sum(units for name, side, units in lines if (name, side) == (fees, 0)) < 0:
                    raise Refusal("fees_short")
        self.post(*lines)
        for name, side, units in lines:
            if side == 1:
                next(hold for hold in held if hold.name == name).remaining += units

    def usable_of(self, name: Any, coin: str, now_ms: int) -> Held:
        held = self.usable(name, now_ms)
        if held.name[2] != coin:
            raise Refusal("invalid_request")
        return held

    def fee(self, side: SettleSide, coin: str) -> int:
        return signed(side.fee.amount, self.coins[coin]) if side.fee and side.fee.coin == coin else 0

    def freed(self, side: SettleSide, held: Held, price: int) -> int:
        """Return what goes back to available of a hold that pays, or refuse."""
        left = held.remaining - price - max(self.fee(side, held.name[2]), 0)
        if side.release in (None, "rest"):
            released = max(left, 0) if side.release else 0
        else:
            released = units_of(str(side.release), self.coins[held.name[2]])
        if released > left:
            raise Refusal("hold_short")
        return released

    def side(
        self,
        side: SettleSide,
        held: Held,
        released: int,
        pays: str,
        receives: str,
        price: dict[str, int],
        fee_account: str,
    ) -> list[Line]:
        """Return the lines of one side; what the other side gives it is among them."""
        account = held.name[:2]
        dust = 0
        if side.dust and Fraction(side.dust.amount):
            if side.dust.coin != receives:
                raise Refusal("invalid_request")
            dust = units_of(side.dust.amount, self.coins[receives])
        on_top, off = self.fee(side, pays), self.fee(side, receives)
        if off + dust > price[receives]:
            raise Refusal("invalid_request")
        return [
            (held.name, 1, -price[pays] - max(on_top, 0) - released),
            (held.name, 0, released),
            (held.name, 0, max(-on_top, 0)),
            (house(fee_account, pays), 0, on_top),
            ((*account, receives), 0, price[receives] - off - dust),
            (house(fee_account, receives), 0, off),
            (house(DUST, receives), 0, dust),
        ]

    def reverse(self, op: Reverse) -> None:
        if op.seq > self.seq:
            raise Refusal("unknown_entry")
        if self.kinds[op.seq] not in ("deposit", "withdraw", "transfer", "post", "settle"):
            raise Refusal("invalid_request")
        if op.seq in self.reversed:
            raise Refusal("already_reversed")
        has = {name: sides[0] for name, sides in self.balances.items()}
        lines: list[Line] = []

        def add(name: Name, units: int) -> None:
            has[name] = has.get(name, 0) + units
            lines.append((name, 0, units))

        takes: list[tuple[Name, int]] = []
        for name, units in self.effects[op.seq].items():
            if units > 0 and (name[1] != "house" or name[0].startswith("@receivable")):
                takes.append((name, units))
            else:
                add(name, -units)
        if any(has[name] < 0 for name, _, units in lines if units < 0 and self.houses.get(name[0]) is False):
            raise Refusal("house_short")
        for (owner, kind, coin), units in takes:
            customer = owner.removeprefix("@receivable:")
            for payer in dict.fromkeys([kind, "wallet", "spot", "fiat"]):
                taken = 0 if payer == "house" else min(units, has.get((customer, payer, coin), 0))
                add((customer, payer, coin), -taken)
                units -= taken
            add(receivable(customer, coin), -units)
        self.post(*lines)
        self.reversed[op.seq] = self.seq + 1


def signed(text: str, scale: int) -> int:
    """Read an amount that may have a minus sign, or refuse."""
    return -units_of(text[1:], scale) if text[0] == "-" else units_of(text, scale)


def read(op: Any, scales: dict[str, int]) -> None:
    """Refuse an operation of whose amounts one does not fit its coin, in the order of the fields."""
    if isinstance(op, Post):
        for leg in op.legs:
            signed(leg.amount, scales[leg.coin])
        return
    if not isinstance(op, Settle):
        if getattr(op, "amount", None) is not None:
            units_of(op.amount, scales["amount"])
        return
    units_of(op.base_amount, scales["base"])
    units_of(op.quote_amount, scales["quote"])
    coins = {op.base: scales["base"], op.quote: scales["quote"]}
    for side, pays in ((op.buyer, op.quote), (op.seller, op.base)):
        if side.release not in (None, "rest"):
            units_of(str(side.release), coins[pays])
        for amount in (side.fee, side.dust):
            if amount is None:
                continue
            if amount.coin in coins:
                signed(amount.amount, coins[amount.coin])
            elif Fraction(amount.amount):
                raise Refusal("invalid_request")


def same(kept: Known, op: Any) -> bool:
    """Say whether *op* asks for what was asked for under its key before."""
    if kept.scales is not None and isinstance(op, type(kept.op)):
        if isinstance(op, Settle) and (op.base, op.quote) != (kept.op.base, kept.op.quote):
            return False
        if isinstance(op, Post) and [leg.coin for leg in op.legs] != [leg.coin for leg in kept.op.legs]:
            return False
        try:
            read(op, kept.scales)
        except Refusal:
            return False
    return asked(kept.op) == asked(op)


def asked(op: Any) -> Any:
    """Return what *op* asks for, whatever digits it is written with."""
    if isinstance(op, Post):
        legs = [(leg.customer, leg.account, leg.coin, Fraction(leg.amount)) for leg in op.legs]
        return legs, op.reason, op.reference
    if not isinstance(op, Settle):
        fields = {name: getattr(op, name) for name in type(op).__dataclass_fields__}
        if fields.get("amount") is not None:
            fields["amount"] = Fraction(fields["amount"])
        return type(op), fields
    amounts = (Fraction(op.base_amount), Fraction(op.quote_amount))
    sides = _side(op.buyer), _side(op.seller)
    return op.base, op.quote, amounts, *sides, op.reference, op.happened_ms, op.fee_account or FEES


def _side(side: SettleSide) -> Any:
    given = [(a.coin, Fraction(a.amount)) if a and Fraction(a.amount) else None for a in (side.fee, side.dust)]
    release = side.release if side.release in (None, "rest") else Fraction(str(side.release))
    return side.hold, release, *given
