"""
What one answer says comes from one snapshot, whatever other nodes write between any two steps of a read.

The schedule is the test's: at each step of a read it lets another node write nothing, a little, or more than a page,
with or without segments that are sealed by it, and lets another thread of the node follow or not. Every schedule of the
first steps is tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import psycopg
import pytest

import spotledger
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation, RegisterCustomer, Unfreeze
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.session import Session
from support_core import seed, spot
from support_database_books import check_database

#: How many entries of other nodes are read at once.
FOLLOW_ENTRIES = 3
#: What happens at a step: entries that another node writes, and whether another thread of the node follows then.
ACTIONS = ((0, False), (0, True), (2, False), (2, True), (5, False), (5, True))
#: Entries in a segment: so many that nothing is sealed, or so few that each write seals some of those before it.
SEGMENTS = (65_536, 2)
#: The steps of a read at which something may happen: before each round trip, of which there are several where one page
#: is not enough, and before the rows are joined with memory.
STEPS = 3
#: The id of ann's first hold.
HELD = 6


class Table:
    """A node that reads, another that writes, and what happens between the steps of a read."""

    def __init__(self, url: str, writer: Ledger, reader: Ledger) -> None:
        self.writer, self.reader = writer, reader
        self.store: Any = reader._store
        self.follower = Session(connect(url), sql.FOLLOWING, 10)
        self.number = 0
        self.left: list[tuple[int, bool]] = []
        #: Whose balance and holds the other node changes.
        self.owner = "ann"
        #: At which step, counted from the end, the other node pays out all that ann has; 0: never.
        self.pays_at = 0

    def operations(self, count: int) -> list[Operation]:
        """Return *count* operations that change a balance, holds and the customers: ann's, until all is paid out."""
        self.number += 1
        n, owner = self.number, self.owner
        choices: list[Operation] = [
            Deposit(f"d{n}", owner, "btc", "1"),
            Freeze(f"f{n}", owner, "btc", "2"),
            Unfreeze(f"u{n}", HoldKey(f"held:{owner}"), "0.00000001"),
            RegisterCustomer(f"r{n}", f"new-{n:06}"),
            Freeze(f"g{n}", owner, "btc", "0.5"),
        ]
        return [choices[(n + step) % 5] for step in range(count)]

    def step(self) -> None:
        """Do what the schedule has for this step."""
        pays = len(self.left) == self.pays_at
        if self.left:
            count, follows = self.left.pop(0)
            if count:
                self.writer.execute(self.operations(count))
            if pays:
                self.pay()
            if follows:
                self.store.follow(self.follower)

    def pay(self) -> None:
        """Let the other node pay out all that ann has, unless it has done so."""
        self.pays_at, is_due = 0, bool(self.pays_at)
        if is_due:
            self.owner = "bob"
            available = self.writer.balances(spot("ann"))["btc"].available
            self.number += 1
            self.writer.withdraw(_decimals(available), customer="ann", coin="btc", key=f"all-{self.number}")

    def restart(self, *, remembers: bool) -> None:
        """Let the reader begin at the head: knowing nothing, or knowing ann and her hold."""
        self.left, self.pays_at, self.owner = [], 0, "ann"
        self.store._reader.ask(self.store._open)
        if remembers:
            self.reader.balances(spot("ann"))
            self.reader.hold(HELD)


@pytest.fixture(params=SEGMENTS)
def table(request: pytest.FixtureRequest, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Table]:
    """Give the table with a seeded ledger, whose books are checked at the end."""
    options = {"follow_seconds": None, "follow_entries": FOLLOW_ENTRIES}
    with (
        spotledger.open(postgres_url, segment_entries=request.param) as writer,
        spotledger.open(postgres_url, **options) as reader,
    ):
        seed(writer, "ann bob")
        assert writer.freeze("ann", "btc", "100", key="held:ann").hold == HELD
        writer.freeze("bob", "btc", "100", key="held:bob")
        made = Table(postgres_url, writer, reader)
        collect, ask = Session.collect, made.store._ask

        def stepping(session: Session) -> Any:
            if session is made.store._reader._session:
                made.step()
            return collect(session)

        def joining(*questions: Any) -> Any:
            found = ask(*questions)
            made.step()
            return found

        monkeypatch.setattr(Session, "collect", stepping)
        made.store._ask = joining
        yield made
        made.follower.close()
    check_database(postgres_url)


def states(url: str) -> list[tuple[tuple[int, int], dict[int, int], list[str]]]:
    """Derive from the entries alone, for each ``seq``: ann's balance, what remains of the holds, and the customers."""
    with psycopg.connect(url) as connection:
        rows = connection.execute("SELECT body::json FROM entry ORDER BY seq").fetchall()
    found: list[tuple[tuple[int, int], dict[int, int], list[str]]] = [((0, 0), {}, [])]
    for (entry,) in rows:
        balance, holds, customers = found[-1]
        for (owner, _), _, available, freeze in entry.get("balances", ()):
            balance = (int(available), int(freeze)) if owner == "ann" else balance
        holds = {**holds, **{int(hold): int(left) for hold, left in entry.get("holds", ())}}
        if entry["kind"] == "register_customer":
            customers = sorted([*customers, entry["request"]["customer"]])
        found.append((balance, holds, customers))
    return found


Read = Callable[[Ledger], Any]


def balance_of(ledger: Ledger) -> Any:
    """Return ann's balance."""
    return tuple(ledger.balances(spot("ann"))["btc"])


def holds_of(ledger: Ledger) -> Any:
    """Return what remains of each of ann's holds."""
    return {hold.hold_id: hold.remaining for hold in ledger.holds("ann", limit=10_000)}


def one_hold(ledger: Ledger) -> Any:
    """Return what remains of the first hold."""
    hold = ledger.hold(HELD)
    assert hold is not None
    return hold.remaining


def customers_of(ledger: Ledger) -> Any:
    """Return all customers."""
    return ledger.customers(limit=10_000)


def all_of(ledger: Ledger) -> Any:
    """Return several of these, which have to stand for one entry together."""
    return balance_of(ledger), one_hold(ledger), holds_of(ledger)


READS: dict[Read, Callable[[tuple[Any, Any, Any]], Any]] = {
    balance_of: lambda state: state[0],
    holds_of: lambda state: {hold_id: left for hold_id, left in state[1].items() if hold_id != HELD + 1},
    one_hold: lambda state: state[1][HELD],
    customers_of: lambda state: state[2],
    all_of: lambda state: (state[0], state[1][HELD], READS[holds_of](state)),
}


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__)
def test_answer_stands_for_the_entry_that_it_states_in_every_interleaving(
    table: Table, postgres_url: str, read: Read, remembers: bool
) -> None:
    """Each schedule of what others write between the steps of a read: the answer is exact at its seq, memory too."""
    found = []
    for schedule in product(ACTIONS, repeat=STEPS):
        table.restart(remembers=remembers)
        before = table.writer.head.seq
        table.left = list(schedule)
        seq, answer = table.reader.at_one_head(lambda: read(table.reader))
        memory = table.store._head_cache
        kept = memory.accounts.get(spot("ann"))
        known = ((hold_id, memory.hold(hold_id)) for hold_id in range(memory.head.seq + 1))
        holds = {hold_id: hold.remaining for hold_id, hold in known if hold is not None}
        now = None if kept is None else tuple(kept.balance("btc"))
        assert before <= seq <= memory.head.seq
        found.append((schedule, seq, answer, memory.head.seq, now, holds))
    truth = states(postgres_url)
    for schedule, seq, answer, head_seq, now, holds in found:
        assert answer == READS[read](truth[seq]), (schedule, seq)
        assert now in (None, truth[head_seq][0]), schedule
        assert {hold_id: truth[head_seq][1].get(hold_id) for hold_id in holds} == holds, schedule


@pytest.mark.parametrize("paid_at", range(STEPS))
@pytest.mark.parametrize("remembers", [False, True])
def test_money_is_paid_out_once_in_every_interleaving(table: Table, remembers: bool, paid_at: int) -> None:
    """Another node pays out all that ann has at one of the steps of a read: this node does not pay it once more."""
    for number, schedule in enumerate(product(ACTIONS, repeat=STEPS)):
        table.restart(remembers=remembers)
        table.left, table.pays_at = list(schedule), STEPS - paid_at
        table.reader.balances(spot("ann"))
        table.pay()  # if the read had fewer steps
        with pytest.raises(Refused, match="available"):
            table.reader.withdraw("0.00000001", customer="ann", coin="btc", key=f"again-{number}")
        table.writer.deposit("ann", "btc", "1000", key=f"refill-{number}")


def _decimals(units: int) -> str:
    return f"{units // 10**8}.{units % 10**8:08}"
