"""What the machine that tests the ledger asks for: operations drawn so that many fit the books, and some do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from spotledger.domain.amounts import format_amount
from spotledger.domain.operations import (
    CoinAmount,
    Deposit,
    Freeze,
    HoldKey,
    Leg,
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
from support_core import Clock
from support_ledger_model import Model, Name

SCALES = {"btc": 8, "vast": 18, "whole": 0}
CUSTOMERS = ("ann", "bob", "cy.d")
KINDS = ("wallet", "spot", "fiat")
#: House accounts, the last of which is opened as one that may be below zero.
HOUSES = ("@fees", "@treasury", "@credit")
AMOUNTS = st.sampled_from(
    ["1"] * 6
    + ["2"] * 6
    + ["7", "7", "11", "40", "90", "1.0", "0.5", "0.50", "2.10", "3.00000001", "0.000000000000000001"]
    + ["4.000000000000000020", "123456789"]
    + ["9" * 19 + ".5", "7" * 37, "7" * 38]
)
PARTS = st.sampled_from(["1", "1", "1", "0.5", "0.25", "0.00000001", "0", "0.0", "0.000000000", "0.000000000000000001"])
RICHES = "6" + "0" * 37
PARTS_FREED = st.sampled_from(["1", "1", "0.5", "0.000000001"])
ASKED = (
    "list register open deposit deposit freeze freeze freeze freeze unfreeze unfreeze withdraw withdraw withdraw"
    " transfer transfer transfer post post settle settle settle settle reverse reverse reverse reverse"
)
NOTES = st.sampled_from([None, None, "order 7", "zh 冻结 ✓"])


class Draws:
    """Draws operations against the *model*'s books and the *clock*; knows what was asked before."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self.model = model
        self.clock = clock
        self.asked: list[Any] = []
        self.groups: list[tuple[list[Any], list[Any]]] = []
        self._fresh = 0

    def group(self, data: st.DataObject, count: int) -> tuple[list[Any], list[Any]]:
        """Draw a group of at least *count* operations, later ones knowing of earlier ones, and their chains."""
        before = len(self.asked)
        while len(self.asked) - before < count:
            self.asked += self.trade(data) if data.draw(st.integers(0, 5), "trade") == 3 else [self.operation(data)]
        operations = self.asked[before:]
        del self.asked[before:]
        return operations, self.chains(data, len(operations))

    def chains(self, data: st.DataObject, count: int) -> list[Any]:
        """Draw a group's chains: none, all in one, or anything."""
        how = data.draw(st.sampled_from(["none", "none", "atomic", "any"]), "chains")
        if how != "any":
            return [None if how == "none" else True] * count
        return data.draw(st.lists(st.sampled_from([None, "x", "x", "y"]), min_size=count, max_size=count))

    def undone(self, data: st.DataObject, count: int) -> tuple[list[Any], list[Any]]:
        """Draw a chain that fails at its end, and after it the same once more, and uses of what it would have left."""
        undone = [self.operation(data) for _ in range(count)]
        if data.draw(st.integers(0, 5), "a listing") == 4:
            undone.append(ListCoin(self._fresh_key(), "nix", 2))
        undone = [op for number, op in enumerate(undone) if op.key not in self.model.keys and op not in undone[:number]]
        too_much = data.draw(st.sampled_from(["9" * 19, "0.0000000001"]), "kept or not")
        failing = Withdraw(self._fresh_key(), too_much, "ann", "btc")
        after: list[Any] = [replace(op, key=self._fresh_key()) for op in undone]
        for _ in range(2):
            seq = self.model.seq + data.draw(st.integers(1, count + 3))
            after.append(Reverse(self._fresh_key(), seq, "chargeback"))
            after.append(Unfreeze(self._fresh_key(), str(seq)))
        after = data.draw(st.permutations(after))
        return [*undone, failing, *after], ["x"] * (len(undone) + 1) + [None] * len(after)

    def again(self, data: st.DataObject) -> tuple[list[Any], list[Any]]:
        """Draw a group that was sent before: as it was, or with an operation more, less, moved or another in it."""
        operations, chains = (list(part) for part in data.draw(st.sampled_from(self.groups[-8:]), "group"))
        how = data.draw(st.sampled_from(["same", "same", "less", "other", "more", "twice", "turned"]), "how")
        place = data.draw(st.integers(0, len(operations) - 1))
        if how == "less" and len(operations) > 1:
            del operations[place], chains[place]
        elif how == "other":
            operations[place] = self.operation(data)
        elif how in ("more", "twice"):
            operations.insert(place, self.operation(data) if how == "more" else operations[-1])
            chains.insert(place, chains[place])
        elif how == "turned":
            operations.reverse()
        return operations, chains

    def operation(self, data: st.DataObject) -> Any:
        if self.asked and data.draw(st.integers(0, 9), "repeat") == 4:
            return self._repeat(data, data.draw(st.sampled_from(self.asked)))
        kind = data.draw(st.sampled_from(ASKED.split()))
        key = self._key(data)
        if kind == "settle":
            return self._settle(data, key)
        if kind == "reverse":
            return self.reverse(data)
        if kind == "post":
            return self._post(data, key)
        return self._plain(data, kind, key)

    def _fit(self, data: st.DataObject, coin: str, amounts: st.SearchStrategy[str]) -> str:
        """Draw an amount that mostly has no more digits than the coin."""
        amount = data.draw(amounts)
        too_many = len(amount.partition(".")[2]) > SCALES.get(coin, 18)
        return "1" if too_many and data.draw(st.integers(0, 7), "too many digits") != 4 else amount

    def _all_of(self, name: Name) -> str | None:
        """Return all that is available there, or None."""
        units = self.model.available(name)
        return format_amount(units, self.model.coins[name[2]], 0) if units else None

    def reverse(self, data: st.DataObject) -> Reverse:
        return Reverse(self._key(data), self._seq(data), data.draw(st.sampled_from(["chargeback", "错 ✓"])))

    def _repeat(self, data: st.DataObject, op: Any) -> Any:
        """Ask for the same in other digits, or for a little more."""
        how = data.draw(st.sampled_from(["same", "same", "digits", "more"]), "how")
        field = "base_amount" if isinstance(op, Settle) else "amount"
        amount = getattr(op, field, None)
        if amount is None or how == "same" or len(amount) > 15:
            return op
        text = amount + ("0" if "." in amount else ".0")
        if how == "more" and isinstance(op, Settle) and data.draw(st.booleans(), "a side"):
            side = data.draw(st.sampled_from(["buyer", "seller"]))
            return replace(op, **{side: replace(getattr(op, side), release="2")})
        if how == "more":
            text = text[:-1] + "1"
        elif isinstance(op, Settle) and op.buyer.fee is None:
            op = replace(op, buyer=replace(op.buyer, fee=CoinAmount(op.base, "0")))
        return replace(op, **{field: text})

    def _key(self, data: st.DataObject) -> str:
        if self.asked and data.draw(st.integers(0, 9), "old key") == 4:
            return str(data.draw(st.sampled_from(self.asked)).key)
        return self._fresh_key()

    def _fresh_key(self) -> str:
        self._fresh += 1
        return f"k{self._fresh}"

    def _seq(self, data: st.DataObject) -> int:
        """Draw an entry to reverse: one that can be, or any, or one that is yet to come."""
        reversible = [
            seq
            for seq, kind in self.model.kinds.items()
            if kind in ("deposit", "withdraw", "transfer", "post", "settle")
            and (seq not in self.model.reversed or seq % 5 == 0)
        ]
        traded = [seq for seq in reversible if self.model.kinds[seq] in ("settle", "transfer", "post")]
        which = data.draw(st.integers(0, 9), "which entry")
        if traded and which < 4:
            return data.draw(st.sampled_from(traded[-10:]))
        if reversible and which < 7:
            return data.draw(st.sampled_from(reversible))
        return data.draw(st.integers(1, self.model.seq + 12))

    def _hold(self, data: st.DataObject) -> str | HoldKey:
        recent = [op.key for op in self.asked[-30:] if isinstance(op, Freeze)]
        held = [h for h, hold in self.model.holds.items() if hold.remaining or h % 3 == 0][-30:]
        names: list[Any] = [str(h) for h in held] + [HoldKey(key) for key in recent]
        if not names or data.draw(st.integers(0, 9), "no hold") == 4:
            names = [str(self.model.seq + 1), HoldKey("never"), HoldKey("customer-ann")]
        return data.draw(st.sampled_from(names))  # type: ignore[no-any-return]

    def _settle(self, data: st.DataObject, key: str) -> Settle:
        held = [(str(h), hold.name[2]) for h, hold in self.model.holds.items() if hold.remaining or h % 7 == 0]
        held += [(HoldKey(op.key), op.coin) for op in self.asked[-30:] if isinstance(op, Freeze)]  # type: ignore[misc]
        coins = list(dict.fromkeys(coin for _, coin in held)) or list(SCALES)
        base, quote = data.draw(st.permutations([*coins, *[coin for coin in SCALES if coin not in coins]]))[:2]
        if quote != "nix" and data.draw(st.integers(0, 19), "coin") == 4:
            base = "nix"
        holds = []
        for coin in (quote, base):
            fit: Sequence[Any] = [name for name, of in held if of == coin]
            if not fit or data.draw(st.integers(0, 9), "any hold") == 4:
                fit = [self._hold(data)]
            holds.append(data.draw(st.sampled_from(fit)))
        return self._settle_of(data, key, base, quote, holds)

    def _settle_of(self, data: st.DataObject, key: str, base: str, quote: str, holds: Sequence[Any]) -> Settle:
        buyer = self._side(data, holds[0], base, quote)
        seller = self._side(data, holds[1], quote, base)
        amounts = self._fit(data, base, AMOUNTS), self._fit(data, quote, AMOUNTS)
        note, happened = data.draw(NOTES), data.draw(st.sampled_from([None, 1_600_000_000_000]))
        fee_account = data.draw(st.sampled_from([None] * 6 + list(HOUSES)))
        return Settle(key, base, quote, *amounts, buyer, seller, note, happened, fee_account)

    def _side(self, data: st.DataObject, hold: Any, receives: str, pays: str) -> SettleSide:
        fee = dust = None
        fee_coin = data.draw(st.sampled_from([None] * 3 + [receives] * 5 + [pays] * 4 + ["whole", "nix"]))
        if fee_coin is not None:
            text = self._fit(data, fee_coin, PARTS)
            is_rebate = text.strip("0.") and data.draw(st.integers(0, 3), "rebate") == 3
            fee = CoinAmount(fee_coin, f"-{text}" if is_rebate else text)
        dust_coin = data.draw(st.sampled_from([None] * 9 + [receives] * 5 + [pays, "btc"]))
        if dust_coin is not None:
            dust = CoinAmount(dust_coin, self._fit(data, dust_coin, PARTS))
        release = data.draw(st.sampled_from([None] * 4 + ["rest"] * 4 + ["amount"] * 2))
        return SettleSide(hold, fee, self._fit(data, pays, PARTS_FREED) if release == "amount" else release, dust)

    def trade(self, data: st.DataObject) -> list[Any]:
        """Draw two freezes and the fill that uses them, the holds named by their keys."""
        base, quote = data.draw(st.permutations(list(SCALES)))[:2]
        bid, ask, fill = self._fresh_key(), self._fresh_key(), self._fresh_key()
        names = data.draw(st.sampled_from(CUSTOMERS)), data.draw(st.sampled_from(CUSTOMERS))
        amount = data.draw(st.sampled_from(["2", "7", "11", "40"]))
        wait = data.draw(st.sampled_from([None, None, None, 1, 50]))
        return [
            Freeze(bid, names[0], quote, amount, expires_ms=None if wait is None else self.clock.now_ms + wait),
            Freeze(ask, names[1], base, amount, data.draw(st.sampled_from(["spot", "fiat"]))),
            self._settle_of(data, fill, base, quote, [HoldKey(bid), HoldKey(ask)]),
        ]

    def riches(self, data: st.DataObject) -> Any:
        """Draw a movement of so much that a few of its kind reach the bounds of a balance."""
        names = data.draw(st.permutations(list(CUSTOMERS)))
        large = [
            seq for seq, effect in self.model.effects.items() if max(map(abs, effect.values()), default=0) > 10**37
        ]
        large = [seq for seq in large if self.model.kinds[seq] == "deposit" and seq not in self.model.reversed]
        kind = data.draw(st.sampled_from(["deposit", "transfer", "reverse"]))
        if kind == "reverse" and large:
            return Reverse(self._fresh_key(), large[-1], "chargeback")
        if kind == "transfer":
            return Transfer(self._fresh_key(), names[0], names[1], "whole", RICHES)
        return Deposit(self._fresh_key(), names[0], "whole", RICHES)

    def _post(self, data: st.DataObject, key: str) -> Post:
        """Draw legs that mostly sum to zero: each is taken from one account and given to another, in any order."""
        legs: list[Leg] = []
        for _ in range(data.draw(st.integers(1, 4), "pairs of legs")):
            coin = data.draw(st.sampled_from([*[*SCALES] * 3, "nix"]))
            amount = self._fit(data, coin, st.sampled_from(["1", "1.0", "2", "7", "0.5", "40"]))
            for text in ("-" + amount, amount):
                name, kind = self._owner(data), data.draw(st.sampled_from(["spot", *KINDS]))
                legs.append(Leg(name, coin, text, None if name[0] == "@" else kind))
        if data.draw(st.integers(0, 9), "unbalanced") == 4:
            legs.append(Leg("ann", "btc", "1"))
        return Post(key, data.draw(st.permutations(legs)), data.draw(NOTES), data.draw(NOTES))

    def _owner(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from([*CUSTOMERS * 3, *HOUSES]))

    def _plain(self, data: st.DataObject, kind: str, key: str) -> Any:
        name, account = self._owner(data), data.draw(st.sampled_from(["spot", *KINDS]))
        account = "house" if name[0] == "@" else account
        coin = data.draw(st.sampled_from([*[*SCALES] * 3, "nix"]))
        amount, note = self._fit(data, coin, AMOUNTS), data.draw(NOTES)
        if kind in ("freeze", "withdraw", "transfer") and data.draw(st.integers(0, 5), "all of it") == 4:
            amount = self._all_of((name, account, coin)) or amount
        if kind == "list":
            return ListCoin(key, coin, SCALES.get(coin, 2))
        if kind == "register":
            return RegisterCustomer(key, data.draw(st.sampled_from(CUSTOMERS)))
        if kind == "open":
            opened = data.draw(st.sampled_from(["treasury", "credit", "credit", "credit"]))
            return OpenHouseAccount(key, opened, opened == "credit")
        if kind == "unfreeze":
            return Unfreeze(key, self._hold(data), data.draw(st.sampled_from([None, amount])))
        happened = data.draw(st.sampled_from([None, 1_600_000_000_000]))
        if kind == "withdraw" and data.draw(st.booleans()):
            return Withdraw(key, amount, hold=self._hold(data), reference=note, happened_ms=happened)
        if kind == "withdraw":
            return Withdraw(key, amount, name, coin, account, reference=note, happened_ms=happened)
        if kind == "deposit":
            return Deposit(key, name, coin, amount, account, note, happened)
        if kind == "freeze":
            wait = data.draw(st.sampled_from([None, None, 0, 1, 50, 1_000]))
            expires = None if wait is None else self.clock.now_ms + wait
            return Freeze(key, name, coin, amount, account, note, expires)
        other, target = self._owner(data), data.draw(st.sampled_from(KINDS))
        if other == name and name[0] == "@":
            other = CUSTOMERS[0]
        if other[0] == "@":
            target = "house"
        elif (other, target) == (name, account):
            target = next(kind for kind in KINDS if kind != account)
        return Transfer(key, name, other, coin, amount, account, target, note)
