"""The library against a model of its rules, driven by Hypothesis through whatever order of things it thinks of."""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_right
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import spotledger
import support_books
from spotledger.domain.accounts import Account, Balance
from spotledger.domain.journal import Entry
from spotledger.domain.operations import (
    Deposit,
    Expire,
    ListCoin,
    OpenHouseAccount,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Unfreeze,
    Withdraw,
)
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import CUSTOMERS as ALL_CUSTOMERS, Ledger, Receipt
from support_core import START_MS, Clock, full_disk
from support_ledger_draws import CUSTOMERS, HOUSES, KINDS, SCALES, Draws
from support_ledger_model import Known, Model

CUSTOMER_ACCOUNTS = [Account(name, kind) for name in CUSTOMERS for kind in KINDS]
HOUSE_ACCOUNTS = [Account(f"@{name}", "house") for name in ("external", "fees", "dust")]
HOUSE_ACCOUNTS += [Account(name, "house") for name in HOUSES[1:]]
HOUSE_ACCOUNTS += [Account(f"@receivable:{name}", "house") for name in CUSTOMERS]
ACCOUNTS = [*CUSTOMER_ACCOUNTS, *HOUSE_ACCOUNTS]


class LedgerMachine(RuleBasedStateMachine):
    """Operations, chains, groups, repeats, time, restarts, failing disks; after each step all is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.make_place()
        self.clock = Clock()
        self.model = Model()
        self.draws = Draws(self.model, self.clock)
        self.seen = 0
        self.booked_ms = 0
        self.times: list[int] = []

    @initialize(segment=st.sampled_from([1, 3, 8]), seeded=st.sampled_from([True] * 7 + [False]))
    def open(self, segment: int, seeded: bool) -> None:
        self.segment = segment
        self.ledger = self.open_ledger()
        if seeded:
            seeds: list[Any] = [ListCoin(f"list-{coin}", coin, scale) for coin, scale in SCALES.items()]
            seeds += [RegisterCustomer(f"customer-{name}", name) for name in CUSTOMERS]
            seeds += [
                Deposit(f"seed-{n}{c}{a}", n, c, "50", a) for n in CUSTOMERS for c in SCALES for a in ("spot", "fiat")
            ]
            seeds += [OpenHouseAccount("open-treasury", "treasury"), Deposit("seed-treasury", "@treasury", "btc", "50")]
            self.run(seeds, [None] * len(seeds))

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            books = self.check_place()
            assert books.head == self.model.seq
            assert {name: tuple(sides) for name, sides in books.balances.items()} == self.model.past[-1]
        self.remove_place()

    # --- where the ledger is ------------------------------------------------------------------------

    def make_place(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ledger-machine-"))

    def open_ledger(self) -> Ledger:
        return spotledger.open(self.folder, segment_entries=self.segment, cache_accounts=2, clock_ms=self.clock)

    def failing(self, data: st.DataObject) -> AbstractContextManager[Any]:
        return full_disk(self.folder)

    def check_place(self) -> support_books.Books:
        return support_books.check_books(self.folder)

    def remove_place(self) -> None:
        shutil.rmtree(self.folder)

    # --- what is done -------------------------------------------------------------------------------

    def run(self, operations: list[Any], chains: list[Any]) -> None:
        head = self.ledger.head.seq
        self.compare(head, operations, chains, self.execute(operations, chains))

    def execute(self, operations: list[Any], chains: list[Any]) -> list[Any]:
        operations = [self.positioned(operation) for operation in operations]
        if operations and all(chain is True for chain in chains):
            return self.ledger.execute(operations, atomic=True)
        return self.ledger.execute(operations, chains=chains if any(chains) else None)

    def positioned(self, named: Any) -> Any:
        """Name the holds and the entry in an operation, or in a side of a fill, as the ledger gives them out."""
        if self.ledger.epoch == 1:
            return named
        text = self.ledger.epochs.text
        match named:
            case Unfreeze(hold=str(hold)) | Withdraw(hold=str(hold)) | SettleSide(hold=str(hold)):
                return replace(named, hold=text(int(hold)))
            case Settle():
                return replace(named, buyer=self.positioned(named.buyer), seller=self.positioned(named.seller))
            case Reverse():
                return replace(named, seq=text(int(named.seq)))
        return named

    def compare(self, head: int, operations: list[Any], chains: list[Any], outcomes: list[Any]) -> None:
        now_ms = max(self.clock.now_ms, self.booked_ms)
        self.let_expire(head, now_ms)
        answers = self.model.group(operations, chains, now_ms)
        for operation, outcome, answer in zip(operations, outcomes, answers, strict=True):
            found = "ok" if isinstance(outcome, Receipt) else outcome.code
            assert (found, outcome.seq, outcome.replayed) == answer, (operation, outcome)
            if isinstance(outcome, Receipt):
                assert outcome.entry == self.ledger.entry(outcome.seq)
        assert self.ledger.head.seq == self.model.seq
        self.draws.asked += operations
        if operations:
            self.draws.groups.append((operations, chains))

    def let_expire(self, head: int, now_ms: int) -> None:
        """Take the expiries from the head of the group; their order among themselves is free."""
        due = self.model.due(now_ms)
        for entry in self.ledger.entries(head, len(due)) if due else ():
            assert entry.kind == "expire"
            assert entry.refusal is None
            hold_id = int(entry.request["hold"])
            due.remove(hold_id)
            self.model.expire(hold_id)
            self.model.booked(Expire(str(hold_id)), None, "ok")
        assert not due, "a hold whose time had come did not expire"

    @rule(data=st.data(), count=st.integers(1, 12))
    def execute_a_group(self, data: st.DataObject, count: int) -> None:
        self.run(*self.draws.group(data, count))

    @rule(data=st.data())
    def execute_one(self, data: st.DataObject) -> None:
        self.run([self.draws.operation(data)], [None])

    @rule(data=st.data(), count=st.integers(1, 3))
    def reverse(self, data: st.DataObject, count: int) -> None:
        group = [self.draws.reverse(data) for _ in range(count)]
        self.run(group, self.draws.chains(data, count))

    @rule(data=st.data())
    def execute_a_trade(self, data: st.DataObject) -> None:
        trade = self.draws.trade(data)
        self.run(trade, self.draws.chains(data, len(trade)))

    @rule(data=st.data(), count=st.integers(1, 4))
    def do_what_was_undone(self, data: st.DataObject, count: int) -> None:
        self.run(*self.draws.undone(data, count))

    @rule(data=st.data(), count=st.integers(1, 5))
    def move_riches(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.run([self.draws.riches(data)], [None])

    @precondition(lambda self: self.draws.groups)
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        self.run(*self.draws.again(data))

    @rule(data=st.data(), count=st.integers(1, 5))
    def fail_to_commit(self, data: st.DataObject, count: int) -> None:
        group, chains = self.draws.group(data, count)
        head = self.ledger.head
        try:
            with self.failing(data):
                outcomes = self.execute(group, chains)
        except StoreUnavailable:
            assert self.ledger.head == head
        else:
            self.compare(head.seq, group, chains, outcomes)

    @rule(step_ms=st.sampled_from([1, 49, 1_000, 5_000, -1_000, -3_600_000]))
    def move_the_clock(self, step_ms: int) -> None:
        self.clock.now_ms = max(START_MS, self.clock.now_ms + step_ms)

    @rule(data=st.data())
    def use_a_hold_just_past_its_time(self, data: st.DataObject) -> None:
        due = [h.expires_ms for h in self.model.holds.values() if h.remaining and h.expires_ms]
        self.clock.now_ms = max([self.clock.now_ms, *due[-1:]]) + data.draw(st.sampled_from([0, 0, -1, 1]))
        self.run(*self.draws.group(data, 2))

    @rule()
    def let_time_pass_alone(self) -> None:
        self.run([], [])

    @precondition(lambda self: self.ledger.epoch < 4)
    @rule(skipped=st.integers(1, 3))
    def begin_an_epoch(self, skipped: int) -> None:
        epoch = self.ledger.epoch + skipped
        seq = self.ledger.begin_epoch("set back", epoch)
        self.model.seq += 1
        self.model.kinds[seq] = "begin_epoch"
        self.model.keys[f" begin_epoch:{epoch}"] = Known(None, {}, "ok", seq)
        self.model.past.append(self.model.past[-1])
        assert (seq, self.ledger.head.seq, self.ledger.epoch) == (self.model.seq, self.model.seq, epoch)

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = self.open_ledger()

    # --- what is read -------------------------------------------------------------------------------

    @precondition(lambda self: self.model.seq)
    @rule(data=st.data())
    def read_the_past(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(0, self.model.seq), "seq")
        for account in ACCOUNTS:
            expected = {name[2]: Balance(*b) for name, b in self.model.past[seq].items() if name[:2] == account}
            assert self.ledger.balances(account, at_seq=seq) == expected

    @precondition(lambda self: self.times)
    @rule(data=st.data())
    def read_a_time(self, data: st.DataObject) -> None:
        time_ms = data.draw(st.sampled_from(self.times)) + data.draw(st.sampled_from([-1, 0, 1]))
        if time_ms <= self.ledger.now_ms:
            assert self.ledger.seq_at(time_ms) == bisect_right(self.times, time_ms)

    @rule(data=st.data())
    def read_holds(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([*CUSTOMERS, *HOUSES]))
        state = data.draw(st.sampled_from([None, "open", "closed"]))
        limit = data.draw(st.sampled_from([1, 2, 1000]))
        after = data.draw(st.integers(0, self.model.seq))
        mine = [(i, h.remaining) for i, h in self.model.holds.items() if h.name[0] == name and i > after]
        mine = [(i, left) for i, left in mine if state in (None, "open" if left else "closed")]
        found = self.ledger.holds(name, state, after, limit)
        assert [(hold.hold_id, hold.remaining) for hold in found] == mine[:limit]
        assert all(self.ledger.hold(hold.hold_id) == hold for hold in found)
        before_ms = data.draw(st.sampled_from([*self.times, START_MS - 1]))
        old = [i for i, h in self.model.holds.items() if h.remaining and i > after and h.opened_ms <= before_ms]
        assert [hold.hold_id for hold in self.ledger.old_holds(before_ms, after, limit)] == old[:limit]

    @rule(data=st.data())
    def read_a_key(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*self.model.keys, "never"]))
        entry = self.ledger.entry_of_key(key)
        assert (entry.seq if entry else None) == (self.model.keys[key].seq if key in self.model.keys else None)

    @rule(data=st.data())
    def read_a_statement(self, data: st.DataObject) -> None:
        owner, coin = data.draw(st.sampled_from([*CUSTOMERS, *HOUSES])), data.draw(st.sampled_from([None, *SCALES]))
        limit, after = data.draw(st.sampled_from([1, 3, 1000])), data.draw(st.integers(0, self.model.seq))
        owners = (owner, f"@receivable:{owner}")
        mine = [
            seq
            for seq, names in self.model.touched.items()
            if any(n[0] in owners and coin in (None, n[2]) for n in names)
        ]
        found = self.ledger.statement(owner, coin, after, limit)
        assert [entry.seq for entry in found] == [seq for seq in mine if seq > after][:limit]

    @rule()
    def read_the_whole(self) -> None:
        found = {seq: self.ledger.reversal_of(seq) for seq in range(1, self.model.seq + 2)}
        assert {seq: by for seq, by in found.items() if by is not None} == self.model.reversed
        expected: dict[tuple[str, str], list[int]] = {}
        for (owner, kind, coin), sides in self.model.balances.items():
            who = owner.partition(":")[0] if kind == "house" else ALL_CUSTOMERS
            total = expected.setdefault((who, coin), [0, 0])
            total[0], total[1] = total[0] + sides[0], total[1] + sides[1]
        trial = self.ledger.trial_balance()
        assert trial.seq == self.model.seq
        assert dict(trial.sums) == {name: tuple(sides) for name, sides in expected.items()}

    @rule()
    def read_house_accounts(self) -> None:
        found = {name: account.may_be_negative for name, account in self.ledger.house_accounts.items()}
        assert found == {"@external": True, **self.model.houses}

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
        for account in ACCOUNTS:
            expected = {name[2]: tuple(b) for name, b in self.model.balances.items() if name[:2] == account}
            view = self.ledger.account(account)
            assert dict(view.balances) == expected
            assert view.changed_seq == self.model.changed.get(account, 0)
            assert all(freeze >= 0 for _, freeze in expected.values())
            if account.customer in (*CUSTOMERS, "@fees", "@dust", "@treasury"):
                assert all(available >= 0 for available, _ in expected.values())
            if account.customer.startswith("@receivable"):
                assert all(available <= 0 for available, _ in expected.values())

    @invariant()
    def nobody_has_what_they_owe(self) -> None:
        for name in CUSTOMERS if hasattr(self, "ledger") else ():
            owed = self.ledger.account(Account(f"@receivable:{name}", "house")).balances
            for coin in (coin for coin, balance in owed.items() if balance.available):
                has = [self.ledger.account(Account(name, kind)).balance(coin).available for kind in KINDS]
                assert has == [0, 0, 0], f"{name} has {has} {coin} and owes {owed[coin]}"

    @invariant()
    def every_coin_adds_up_to_zero(self) -> None:
        if not hasattr(self, "ledger"):
            return
        sums: dict[str, int] = {}
        for account in ACCOUNTS:
            for coin, balance in self.ledger.account(account).balances.items():
                sums[coin] = sums.get(coin, 0) + sum(balance)
        assert not any(sums.values())

    @invariant()
    def freeze_is_the_sum_of_open_holds(self) -> None:
        for name in (*CUSTOMERS, *HOUSES) if hasattr(self, "ledger") else ():
            held: dict[tuple[str, str], int] = {}
            for hold in self.ledger.holds(name, "open"):
                held[hold.account.kind, hold.coin] = held.get((hold.account.kind, hold.coin), 0) + hold.remaining
            for kind in ("house",) if name[0] == "@" else KINDS:
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
            self.times.append(entry.booked_ms)

    def check_after(self, entry: Entry) -> None:
        past, kept = self.model.past[entry.seq], self.model.keys[entry.key]
        for account, coin, available, freeze in entry.balances:
            assert past[account.customer, account.kind, coin] == (available, freeze)
        touched = {(*posting.account, posting.coin) for posting in entry.postings}
        assert touched == {(*after[0], after[1]) for after in entry.balances}
        assert touched == self.model.touched.get(entry.seq, set())
        assert (entry.seq, "ok" if entry.refusal is None else entry.refusal["code"]) == (kept.seq, kept.code)


LedgerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestLedgerMachine(LedgerMachine.TestCase):  # type: ignore[misc, valid-type]
    """Whatever is asked in whatever order, the ledger answers and keeps what the model does."""
