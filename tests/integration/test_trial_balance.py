"""The trial balance and the report of old holds, against what the entries say, across segment borders."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from spotledger.domain.journal import Hold
from spotledger.ledger.ledger import Ledger
from spotledger.storage.base import CUSTOMERS
from support_core import START_MS, Clock, open_small, seed


def sums_of_entries(ledger: Ledger, to_seq: int) -> dict[tuple[str, str], tuple[int, int]]:
    """Add up all postings up to *to_seq*."""
    sums: dict[tuple[str, str], Counter[str]] = {}
    for entry in ledger.entries(0, to_seq):
        for (customer, kind), coin, side, units, _ in entry.postings:
            owner = CUSTOMERS if kind != "house" else customer.partition(":")[0]
            sums.setdefault((owner, coin), Counter())[side] += units
    return {name: (both["available"], both["freeze"]) for name, both in sums.items()}


def work(ledger: Ledger, clock: Clock, seed_of: int, steps: int, prefix: str) -> None:
    """Do random operations, one a group, so that segments of 8 entries fill and are sealed again and again."""
    rng = random.Random(seed_of)
    holds: list[int] = []
    for step in range(steps):
        clock.now_ms += rng.randrange(1000)
        key, customer = f"{prefix}{step}", rng.choice(["ann", "bob"])
        if holds and rng.random() < 0.4:
            ledger.unfreeze(holds.pop(rng.randrange(len(holds))), key=key)
        elif rng.random() < 0.7:
            found = ledger.freeze(customer, "btc", f"0.{rng.randrange(1, 10**6):06}", key=key).hold
            assert found is not None
            holds.append(found)
        else:
            ledger.deposit(customer, "btc", "1", key=key)


@pytest.mark.parametrize("steps", [0, 1, 5, 9, 40, 100, 203])
def test_trial_balance_is_what_the_entries_add_up_to(tmp_path: Path, steps: int) -> None:
    """Whatever is sealed, half sealed or only in memory, the sums are those of all postings, and add up to zero."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        work(ledger, clock, steps, steps, "k")
        found = ledger.trial_balance()
        assert found.seq == ledger.head.seq
        assert {name: tuple(both) for name, both in found.sums.items()} == sums_of_entries(ledger, found.seq)
        assert sum(available + freeze for available, freeze in found.sums.values()) == 0


def test_trial_balance_names_what_customers_owe_as_one(tmp_path: Path) -> None:
    """All that customers owe is one line, below zero."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        for customer in ("ann", "bob"):
            receipt = ledger.deposit(customer, "btc", "5", key=f"d{customer}")
            ledger.withdraw("1005", customer=customer, coin="btc", key=f"w{customer}")
            ledger.reverse(receipt.seq, "never came", key=f"r{customer}")
        sums = ledger.trial_balance().sums
        assert sums["@receivable", "btc"] == (-10 * 10**8, 0)
        assert sums[CUSTOMERS, "btc"] == (0, 0)


def test_trial_balance_beside_writes_stands_for_one_entry(tmp_path: Path) -> None:
    """Taken again and again in a thread while another one writes, each is exact for the entry that it names."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        taken = []
        writing = threading.Thread(target=work, args=(ledger, clock, 7, 400, "w"))
        writing.start()
        while writing.is_alive():
            taken.append(ledger.trial_balance())
        writing.join()
        assert len({found.seq for found in taken}) > 1
        for found in taken:
            assert {name: tuple(both) for name, both in found.sums.items()} == sums_of_entries(ledger, found.seq)


def every_open_hold(ledger: Ledger) -> list[Hold]:
    return sorted(hold for customer in ledger.customers() for hold in ledger.holds(customer, "open"))


@pytest.mark.parametrize("steps", [3, 30, 150])
def test_old_holds_are_the_open_ones_opened_before(tmp_path: Path, steps: int) -> None:
    """At every age, by pages of any size, the report has exactly the open holds that are that old, oldest first."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        work(ledger, clock, steps, steps, "k")
        everything = every_open_hold(ledger)
        for before_ms in range(START_MS - 1, clock.now_ms + 1, max(1, (clock.now_ms - START_MS) // 7)):
            expected = [hold for hold in everything if hold.opened_ms <= before_ms]
            assert ledger.old_holds(before_ms) == expected
            paged: list[Hold] = []
            while page := ledger.old_holds(before_ms, paged[-1].hold_id if paged else 0, 2):
                paged += page
            assert paged == expected


def test_old_holds_after_a_start_are_the_same(tmp_path: Path) -> None:
    """The report does not rest on what a process remembers."""
    clock = Clock()
    with open_small(tmp_path, clock) as ledger:
        seed(ledger)
        work(ledger, clock, 3, 90, "k")
        before = ledger.old_holds(clock.now_ms)
        assert before
    with open_small(tmp_path, clock) as ledger:
        assert ledger.old_holds(clock.now_ms) == before
        assert ledger.now_ms == clock.now_ms
