"""The rules of the ledger once more, said plainly, over requests of the operator API in the order of the journal."""

from __future__ import annotations

import copy
from decimal import Decimal
from typing import Any

SCALE = 8
EXTERNAL, FEES = "@external", "@fees"

Line = tuple[str, str, str, int]  # owner, coin, side, units


def units(amount: str) -> int:
    """Return *amount* of a coin with eight decimals as units."""
    return int(Decimal(amount).scaleb(SCALE))


class Model:
    """Balances by (owner, coin) as [available, freeze], holds by id, and what each entry did to whom."""

    def __init__(self) -> None:
        self.balances: dict[tuple[str, str], list[int]] = {}
        self.holds: dict[int, dict[str, Any]] = {}
        self.effects: dict[int, dict[tuple[str, str], int]] = {}
        self.reversed: set[int] = set()
        self.key_seq: dict[str, int] = {}

    def balance(self, owner: str, coin: str) -> list[int]:
        return self.balances.setdefault((owner, coin), [0, 0])

    def do(self, operation: dict[str, Any], seq: int) -> str:
        """Do one operation as the entry *seq*; return ``ok`` or the code of its refusal."""
        code = getattr(self, operation["op"])(operation, seq)
        if code == "ok":
            self.key_seq[operation["key"]] = seq
        return str(code)

    def chain(self, operations: list[dict[str, Any]], seq: int) -> list[str]:
        """Do operations all or not at all, the first as the entry *seq*; return the code of each."""
        before = copy.deepcopy(self.__dict__)
        for number, operation in enumerate(operations):
            code = self.do(operation, seq + number)
            if code != "ok":
                self.__dict__ = before
                return ["chain_failed" if other is not operation else code for other in operations]
        return ["ok"] * len(operations)

    def post(self, seq: int, *lines: Line) -> str:
        effect = self.effects[seq] = {}
        for owner, coin, side, delta in lines:
            self.balance(owner, coin)[side == "freeze"] += delta
            effect[owner, coin] = effect.get((owner, coin), 0) + delta
        for owner, coin in [name for name in effect if not name[0].startswith("@")]:
            has, owes = self.balance(owner, coin), self.balance(f"@receivable:{owner}", coin)
            repaid = min(has[0], -owes[0])
            has[0], owes[0] = has[0] - repaid, owes[0] + repaid
            effect[owner, coin] -= repaid
            effect[f"@receivable:{owner}", coin] = effect.get((f"@receivable:{owner}", coin), 0) + repaid
        return "ok"

    def deposit(self, o: dict[str, Any], seq: int) -> str:
        amount = units(o["amount"])
        outside = (EXTERNAL, o["coin"], "available", -amount)
        return self.post(seq, outside, (o["customer"], o["coin"], "available", amount))

    def freeze(self, o: dict[str, Any], seq: int) -> str:
        amount, owner, coin = units(o["amount"]), o["customer"], o["coin"]
        if self.balance(owner, coin)[0] < amount:
            return "insufficient_available"
        self.holds[seq] = {"owner": owner, "coin": coin, "left": amount}
        return self.post(seq, (owner, coin, "available", -amount), (owner, coin, "freeze", amount))

    def hold(self, name: Any) -> dict[str, Any] | None:
        return self.holds.get(self.key_seq.get(name["key"], 0) if isinstance(name, dict) else int(name))

    def use(self, name: Any, amount: int | None, seq: int, *more: Line) -> str:
        hold = self.hold(name)
        if hold is None:
            return "unknown_hold"
        if not hold["left"]:
            return "hold_closed"
        amount = hold["left"] if amount is None else amount
        if amount > hold["left"]:
            return "hold_short"
        hold["left"] -= amount
        owner, coin = hold["owner"], hold["coin"]
        back = more or ((owner, coin, "available", amount),)
        return self.post(seq, (owner, coin, "freeze", -amount), *back)

    def unfreeze(self, o: dict[str, Any], seq: int) -> str:
        return self.use(o["hold"], units(o["amount"]) if "amount" in o else None, seq)

    def withdraw(self, o: dict[str, Any], seq: int) -> str:
        amount = units(o["amount"])
        if "hold" in o:
            hold = self.hold(o["hold"])
            return self.use(o["hold"], amount, seq, (EXTERNAL, hold["coin"] if hold else "", "available", amount))
        if self.balance(o["customer"], o["coin"])[0] < amount:
            return "insufficient_available"
        lines = ((o["customer"], o["coin"], "available", -amount), (EXTERNAL, o["coin"], "available", amount))
        return self.post(seq, *lines)

    def transfer(self, o: dict[str, Any], seq: int) -> str:
        amount, source, target = units(o["amount"]), o["from"]["customer"], o["to"]["customer"]
        if self.balance(source, o["coin"])[0] < amount:
            return "insufficient_available"
        return self.post(seq, (source, o["coin"], "available", -amount), (target, o["coin"], "available", amount))

    def settle(self, o: dict[str, Any], seq: int) -> str:
        base, quote = units(o["base_amount"]), units(o["quote_amount"])
        fee = units(o["buyer"]["fee"]["amount"])
        buyer, seller = self.hold(o["buyer"]["hold"]), self.hold(o["seller"]["hold"])
        for hold in (buyer, seller):
            if hold is None:
                return "unknown_hold"
            if not hold["left"]:
                return "hold_closed"
        assert buyer is not None
        assert seller is not None
        if buyer["left"] < quote or seller["left"] < base:
            return "hold_short"
        rest = buyer["left"] - quote
        buyer["left"], seller["left"] = 0, seller["left"] - base
        return self.post(
            seq,
            (buyer["owner"], "usdt", "freeze", -quote - rest),
            (buyer["owner"], "usdt", "available", rest),
            (buyer["owner"], "btc", "available", base - fee),
            (FEES, "btc", "available", fee),
            (seller["owner"], "btc", "freeze", -base),
            (seller["owner"], "usdt", "available", quote),
        )

    def reverse(self, o: dict[str, Any], seq: int) -> str:
        if o["seq"] in self.reversed:
            return "already_reversed"
        net: dict[tuple[str, str], int] = {}
        for (owner, coin), delta in self.effects[o["seq"]].items():
            name = (owner.removeprefix("@receivable:"), coin)  # what was repaid is taken back like the rest
            net[name] = net.get(name, 0) + delta
        lines: list[Line] = []
        for (owner, coin), delta in net.items():
            taken = delta
            if delta > 0 and not owner.startswith("@"):
                taken = min(delta, self.balance(owner, coin)[0])
                lines.append((f"@receivable:{owner}", coin, "available", taken - delta))
            lines.append((owner, coin, "available", -taken))
        self.reversed.add(o["seq"])
        return self.post(seq, *lines)
