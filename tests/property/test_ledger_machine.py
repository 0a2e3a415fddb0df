"""The library against a model of its rules, driven by Hypothesis through whatever order of things it thinks of."""

from __future__ import annotations

import shutil
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import spotledger
import support_books
from spotledger.domain.accounts import Account, Balance
from spotledger.domain.journal import Entry
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    HoldKey,
    ListCoin,
    Operation,
    RegisterCustomer,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import StoreUnavailable
from spotledger.ledger import Receipt
from support_core import START_MS, Clock, full_disk

SCALES = {"btc": 8, "vast": 18, "whole": 0}
CUSTOMERS = ("ann", "bob", "cy.d")
KINDS = ("wallet", "spot", "fiat")


class Model:
    """The rules of the ledger once more, said plainly: what an operation answers, and what it moves."""

    def __init__(self) -> None:
        self.seq = 0
        self.coins: dict[str, int] = {}
        self.customers: set[str] = set()
        self.balances: dict[tuple[str, str, str], list[int]] = {}
        self.holds: dict[int, dict[str, Any]] = {}
        self.keys: dict[str, tuple[Operation, int | None, str, int]] = {}
        self.past: list[dict[tuple[str, str, str], tuple[int, int]]] = [{}]

    def do(self, op: Any, now_ms: int) -> tuple[str, int | None, bool]:
        """Return the outcome's code, its seq (None where nothing is kept), and whether it is a repeat."""
        scale = self.scale_of(op)
        if op.key in self.keys:
            first, first_scale, code, seq = self.keys[op.key]
            return (code, seq, True) if same(first, op, first_scale) else ("idempotency_conflict", None, False)
        amount = getattr(op, "amount", None)
        units = None if amount is None or scale is None else Fraction(amount) * 10**scale
        if units is not None and (decimals(amount) > scale or units >= 10**38):
            return "invalid_amount", None, False
        code = self.move(op, None if units is None else int(units), now_ms)
        if code in ("invalid_request", "coin_already_listed", "customer_already_registered"):
            return code, None, False
        self.booked(op.key, op, scale, code)
        return code, self.seq, False

    def booked(self, key: str, op: Any, scale: int | None, code: str) -> None:
        self.seq += 1
        self.keys[key] = (op, scale, code, self.seq)
        self.past.append({name: (av, fr) for name, (av, fr) in self.balances.items()})

    def scale_of(self, op: Any) -> int | None:
        hold = self.named(getattr(op, "hold", None))
        return self.coins.get(hold["name"][2] if hold else getattr(op, "coin", None) or "")

    def named(self, name: Any) -> dict[str, Any] | None:
        if isinstance(name, HoldKey):
            first = self.keys.get(name.key)
            return self.holds.get(first[3]) if first else None
        return None if name is None else self.holds.get(int(name))

    def move(self, op: Any, units: int | None, now_ms: int) -> str:
        match op:
            case ListCoin():
                if op.coin in self.coins:
                    return "coin_already_listed"
                self.coins[op.coin] = op.scale
                return "ok"
            case RegisterCustomer():
                if op.customer in self.customers:
                    return "customer_already_registered"
                self.customers.add(op.customer)
                return "ok"
        if getattr(op, "hold", None) is not None:
            return self.use(op, units, now_ms)
        return self.post(op, units, now_ms)

    def use(self, op: Any, units: int | None, now_ms: int) -> str:
        hold = self.named(op.hold)
        if hold is None:
            return "unknown_hold"
        if now_ms >= (hold["expires_ms"] or now_ms + 1):
            return "hold_expired"
        if not hold["remaining"]:
            return "hold_closed"
        units = hold["remaining"] if units is None else units
        if units > hold["remaining"]:
            return "hold_short"
        self.free(hold, units, back=isinstance(op, Unfreeze))
        return "ok"

    def free(self, hold: dict[str, Any], units: int, back: bool) -> None:
        hold["remaining"] -= units
        self.balances[hold["name"]][1] -= units
        if back:
            self.balances[hold["name"]][0] += units
        else:
            self.balances["@external", "house", hold["name"][2]][0] += units

    def post(self, op: Any, units: int | None, now_ms: int) -> str:
        if op.coin not in self.coins:
            return "unknown_coin"
        assert units is not None
        outside = ("@external", "house", op.coin)
        source, target = outside, outside
        if isinstance(op, Transfer):
            source, target = (op.from_customer, op.from_account, op.coin), (op.to_customer, op.to_account, op.coin)
        elif isinstance(op, Deposit):
            target = (op.customer, op.account, op.coin)
        else:
            source = (op.customer, op.account, op.coin)
        if {source[0], target[0]} - {"@external"} - self.customers:
            return "unknown_customer"
        freeze = isinstance(op, Freeze)
        if freeze and op.expires_ms is not None and op.expires_ms <= now_ms:
            return "invalid_request"
        if source != outside and self.balances.get(source, [0])[0] < units:
            return "insufficient_available"
        if source == outside and self.balances.get(outside, [0])[0] - units <= -(10**38):
            return "balance_too_large"
        self.balances.setdefault(source, [0, 0])[0] -= units
        if freeze:
            self.balances[source][1] += units
            self.holds[self.seq + 1] = {"name": source, "remaining": units, "expires_ms": op.expires_ms}
        else:
            self.balances.setdefault(target, [0, 0])[0] += units
        return "ok"

    def due(self, now_ms: int) -> set[int]:
        return {i for i, h in self.holds.items() if h["remaining"] and h["expires_ms"] and h["expires_ms"] <= now_ms}


def decimals(amount: str) -> int:
    """Return how many decimals are written."""
    return len(amount.partition(".")[2])


def same(first: Any, second: Any, scale: int | None) -> bool:
    """Say whether two operations under one key ask for the same."""
    if type(first) is not type(second):
        return False
    fields = [name for name in type(first).__dataclass_fields__ if name != "amount"]
    if any(getattr(first, name) != getattr(second, name) for name in fields):
        return False
    old, new = getattr(first, "amount", None), getattr(second, "amount", None)
    if old is None or new is None:
        return old is new
    return Fraction(old) == Fraction(new) and (scale is None or decimals(new) <= scale)


AMOUNTS = st.sampled_from(
    ["1"] * 6
    + ["2"] * 6
    + ["7", "7", "11", "40", "90", "1.0", "0.5", "0.50", "2.10", "3.00000001", "0.000000000000000001"]
    + ["4.000000000000000020", "123456789"]
    + ["9" * 19 + ".5", "7" * 37, "7" * 38]
)
ASKED = (
    "list register deposit deposit freeze freeze freeze freeze unfreeze unfreeze withdraw withdraw withdraw transfer"
)
NOTES = st.sampled_from([None, None, "order 7", "zh 冻结 ✓"])


class LedgerMachine(RuleBasedStateMachine):
    """Operations one by one and in groups, time, restarts, failing disks; after each step the books are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-"))
        self.clock = Clock()
        self.model = Model()
        self.asked: list[Any] = []
        self.fresh = 0
        self.seen = 0
        self.booked_ms = 0

    @initialize(segment=st.sampled_from([1, 3, 8]), seeded=st.sampled_from([True, True, True, False]))
    def open(self, segment: int, seeded: bool) -> None:
        self.options = {"segment_entries": segment, "cache_accounts": 2, "clock_ms": self.clock}
        self.ledger = spotledger.open(self.folder, **self.options)
        if seeded:
            seeds: list[Any] = [ListCoin(f"list-{coin}", coin, scale) for coin, scale in SCALES.items()]
            seeds += [RegisterCustomer(f"customer-{name}", name) for name in CUSTOMERS]
            seeds += [
                Deposit(f"seed-{n}{c}{a}", n, c, "50", a) for n in CUSTOMERS for c in SCALES for a in ("spot", "fiat")
            ]
            self.run(seeds)

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            books = support_books.check_books(self.folder)
            assert books.head == self.model.seq
        shutil.rmtree(self.folder)

    # --- what is drawn ------------------------------------------------------------------------------

    def draw_key(self, data: st.DataObject) -> str:
        if self.asked and data.draw(st.integers(0, 9), "old key") == 4:
            return str(data.draw(st.sampled_from(self.asked)).key)
        self.fresh += 1
        return f"k{self.fresh}"

    def draw_hold(self, data: st.DataObject) -> str | HoldKey:
        recent = [op.key for op in self.asked[-30:] if isinstance(op, Freeze)]
        held = [h for h, hold in self.model.holds.items() if hold["remaining"] or h % 3 == 0][-30:]
        names: list[Any] = [str(h) for h in held] + [HoldKey(key) for key in recent]
        if not names or data.draw(st.integers(0, 9), "no hold") == 4:
            names = [str(self.model.seq + 1), HoldKey("never"), HoldKey("customer-ann")]
        return data.draw(st.sampled_from(names))  # type: ignore[no-any-return]

    def draw_operation(self, data: st.DataObject) -> Any:
        if self.asked and data.draw(st.integers(0, 9), "repeat") == 4:
            return data.draw(st.sampled_from(self.asked))
        kind = data.draw(st.sampled_from(ASKED.split()))
        key = self.draw_key(data)
        name, account = data.draw(st.sampled_from(CUSTOMERS)), data.draw(st.sampled_from(["spot", *KINDS]))
        coin = data.draw(st.sampled_from([*[*SCALES] * 3, "nix"]))
        amount, note = data.draw(AMOUNTS), data.draw(NOTES)
        if kind == "list":
            return ListCoin(key, coin, SCALES.get(coin, 2))
        if kind == "register":
            return RegisterCustomer(key, name)
        if kind == "unfreeze":
            return Unfreeze(key, self.draw_hold(data), data.draw(st.sampled_from([None, amount])))
        happened = data.draw(st.sampled_from([None, 1]))
        if kind == "withdraw" and data.draw(st.booleans()):
            return Withdraw(key, amount, hold=self.draw_hold(data), reference=note, happened_ms=happened)
        if kind == "withdraw":
            return Withdraw(key, amount, name, coin, account, reference=note, happened_ms=happened)
        if kind == "deposit":
            return Deposit(key, name, coin, amount, account, note, happened)
        if kind == "freeze":
            wait = data.draw(st.sampled_from([None, None, 0, 1, 50, 1_000]))
            expires = None if wait is None else self.clock.now_ms + wait
            return Freeze(key, name, coin, amount, account, note, expires)
        other = data.draw(st.sampled_from([n for n in CUSTOMERS if n != name]))
        return Transfer(key, name, other, coin, amount, account, data.draw(st.sampled_from(KINDS)), note)

    # --- what is done -------------------------------------------------------------------------------

    def run(self, operations: list[Any]) -> None:
        head = self.ledger.head.seq
        outcomes = self.ledger.execute(operations)
        self.compare(head, operations, outcomes)

    def compare(self, head: int, operations: list[Any], outcomes: list[Any]) -> None:
        now_ms = max(self.clock.now_ms, self.booked_ms)
        self.let_expire(head, now_ms)
        for operation, outcome in zip(operations, outcomes, strict=True):
            code, seq, replayed = self.model.do(operation, now_ms)
            found = "ok" if isinstance(outcome, Receipt) else outcome.code
            assert (found, outcome.seq, outcome.replayed) == (code, seq, replayed), (operation, outcome)
            self.asked.append(operation)
        assert self.ledger.head.seq == self.model.seq

    def let_expire(self, head: int, now_ms: int) -> None:
        """Take the expiries from the head of the group; their order among themselves is free."""
        due = self.model.due(now_ms)
        for entry in self.ledger.entries(head, len(due)) if due else ():
            assert entry.kind == "expire"
            assert entry.refusal is None
            hold_id = int(entry.request["hold"])
            due.remove(hold_id)
            hold = self.model.holds[hold_id]
            self.model.free(hold, hold["remaining"], back=True)
            self.model.booked(entry.key, None, None, "ok")
        assert not due, "a hold whose time had come did not expire"

    @rule(data=st.data(), count=st.integers(1, 12))
    def execute_a_group(self, data: st.DataObject, count: int) -> None:
        before = len(self.asked)
        group: list[Any] = []
        for _ in range(count):
            group.append(self.draw_operation(data))
            self.asked.append(group[-1])
        del self.asked[before:]
        self.run(group)

    @rule(data=st.data())
    def execute_one(self, data: st.DataObject) -> None:
        self.run([self.draw_operation(data)])

    @rule(data=st.data(), count=st.integers(1, 5))
    def fail_to_commit(self, data: st.DataObject, count: int) -> None:
        group = [self.draw_operation(data) for _ in range(count)]
        head = self.ledger.head
        try:
            with full_disk(self.folder):
                outcomes = self.ledger.execute(group)
        except StoreUnavailable:
            assert self.ledger.head == head
        else:
            self.compare(head.seq, group, outcomes)

    @rule(step_ms=st.sampled_from([1, 49, 1_000, 5_000, -1_000, -3_600_000]))
    def move_the_clock(self, step_ms: int) -> None:
        self.clock.now_ms = max(START_MS, self.clock.now_ms + step_ms)

    @rule()
    def let_time_pass_alone(self) -> None:
        self.run([])

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = spotledger.open(self.folder, **self.options)

    # --- what is read -------------------------------------------------------------------------------

    @precondition(lambda self: self.model.seq)
    @rule(data=st.data())
    def read_the_past(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, self.model.seq), "seq")
        for account in (*[Account(n, k) for n in CUSTOMERS for k in KINDS], Account("@external", "house")):
            expected = {name[2]: Balance(*b) for name, b in self.model.past[seq].items() if name[:2] == account}
            assert self.ledger.balances(account, at_seq=seq) == expected

    @rule(data=st.data())
    def read_holds(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(CUSTOMERS))
        state = data.draw(st.sampled_from([None, "open", "closed"]))
        limit = data.draw(st.sampled_from([1, 2, 1000]))
        after = data.draw(st.integers(0, self.model.seq))
        mine = [(i, h["remaining"]) for i, h in self.model.holds.items() if h["name"][0] == name and i > after]
        mine = [(i, left) for i, left in mine if state in (None, "open" if left else "closed")]
        found = self.ledger.holds(name, state, after, limit)
        assert [(hold.hold_id, hold.remaining) for hold in found] == mine[:limit]
        assert all(self.ledger.hold(hold.hold_id) == hold for hold in found)

    @rule(data=st.data())
    def read_a_key(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*self.model.keys, "never"]))
        entry = self.ledger.entry_of_key(key)
        assert (entry.seq if entry else None) == (self.model.keys[key][3] if key in self.model.keys else None)

    @rule()
    def read_customers(self) -> None:
        names = sorted(self.model.customers)
        assert self.ledger.customers() == names
        assert [name for name in CUSTOMERS if self.ledger.has_customer(name)] == names
        for start, name in enumerate(names):
            assert self.ledger.customers(after=name, limit=1) == names[start + 1 : start + 2]

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert {name: coin.scale for name, coin in self.ledger.coins.items()} == self.model.coins
        for account in [Account(n, k) for n in CUSTOMERS for k in KINDS]:
            expected = {name[2]: tuple(b) for name, b in self.model.balances.items() if name[:2] == account}
            view = self.ledger.account(account)
            assert dict(view.balances) == expected
            assert view.changed_seq <= self.ledger.head.seq
            assert all(available >= 0 and freeze >= 0 for available, freeze in expected.values())

    @invariant()
    def freeze_is_the_sum_of_open_holds(self) -> None:
        for name in CUSTOMERS if hasattr(self, "ledger") else ():
            held: dict[tuple[str, str], int] = {}
            for hold in self.ledger.holds(name, "open"):
                held[hold.account.kind, hold.coin] = held.get((hold.account.kind, hold.coin), 0) + hold.remaining
            for kind in KINDS:
                for coin, balance in self.ledger.account(Account(name, kind)).balances.items():
                    assert balance.freeze == held.get((kind, coin), 0)

    @invariant()
    def new_entries_are_sound(self) -> None:
        for entry in self.ledger.entries(self.seen) if hasattr(self, "ledger") else ():
            assert entry.seq == self.seen + 1, "a gap"
            assert entry.booked_ms >= self.booked_ms, "time falls"
            sums: dict[str, int] = {}
            for posting in entry.postings:
                sums[posting.coin] = sums.get(posting.coin, 0) + posting.units
            assert not any(sums.values()), "postings do not add up to zero"
            self.check_after(entry)
            self.seen, self.booked_ms = entry.seq, entry.booked_ms

    def check_after(self, entry: Entry) -> None:
        past = self.model.past[entry.seq]
        for account, coin, available, freeze in entry.balances:
            assert past[account.customer, account.kind, coin] == (available, freeze)
        assert entry.key in self.model.keys
        assert (entry.refusal is None) == (self.model.keys[entry.key][2] == "ok")


LedgerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestLedgerMachine(LedgerMachine.TestCase):  # type: ignore[misc, valid-type]
    """Whatever is asked in whatever order, the ledger answers and keeps what the model does."""
