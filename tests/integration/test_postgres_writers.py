"""Several nodes that write to one PostgreSQL at once: one journal, each key once, no update lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg
import pytest

import spotledger
from servers import kept
from spotledger.domain.accounts import Account, Balance
from spotledger.domain.journal import Entry
from spotledger.domain.operations import Deposit, Freeze, HoldKey, Operation, Reverse, Transfer, Unfreeze, Withdraw
from spotledger.errors import LedgerCorrupt, Refused, SchemaMismatch, SettingInvalid, StoreUnavailable
from spotledger.ledger.group import Group
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.base import Wanted
from spotledger.storage.postgres.ahead.groups import ALONE_GROUPS
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.lookups import LookupBatch
from spotledger.storage.postgres.reads import PostgresReads
from spotledger.storage.postgres.schema import check_schema, make_ledger, migrate
from support_core import Clock, seed, spot
from support_database_books import check_database
from support_postgres import end_sessions

NODES = 4
#: What other nodes do is seen a moment later.
until = partial(kept.until, seconds=20, step=0.005)
Open = Callable[..., Ledger]


@pytest.fixture
def open_node(postgres_url: str) -> Iterator[Open]:
    """Give what opens one more node on the same database; the books are checked at the end."""
    with ExitStack() as nodes:
        yield lambda **options: nodes.enter_context(spotledger.open(postgres_url, **options))
    check_database(postgres_url)


def at_once(work: Callable[[int], Any], count: int = NODES) -> list[Any]:
    """Do *work* in that many threads at once; return what each returned."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def test_nodes_that_send_the_same_keys_book_each_once(open_node: Open) -> None:
    """Four nodes send the same groups, in different order: each key is new on one node only, and the same to all."""
    nodes = [open_node() for _ in range(NODES)]
    seed(nodes[0])
    before = nodes[0].head.seq

    def work(number: int) -> dict[str, tuple[int, bool]]:
        answers = {}
        for step in range(30):
            group: list[Operation] = [Freeze(f"f{step}-{n}", "ann", "btc", "0.1") for n in range(5)]
            group += [Unfreeze(f"u{step}-{n}", HoldKey(f"f{step}-{n}")) for n in range(5)]
            for operation, outcome in zip(group, nodes[number].execute(group), strict=True):
                answers[operation.key] = (outcome.seq, outcome.replayed)
        return answers

    answers = at_once(work)
    for key in answers[0]:
        assert len({found[key][0] for found in answers}) == 1
        assert sum(not found[key][1] for found in answers) == 1
    until(lambda: all(node.head.seq == before + 300 for node in nodes))
    assert {node.account(spot("ann")).balance("btc") for node in nodes} == {Balance(1000 * 10**8, 0)}


def test_nodes_that_spend_from_one_account_never_overdraw_it(open_node: Open) -> None:
    """What four nodes move in and out at once adds up exactly, and no more goes out than was there."""
    nodes = [open_node(cache_accounts=8) for _ in range(NODES)]
    seed(nodes[0], "ann bob cy dan", amount="10")

    def work(number: int) -> int:
        moved = 0
        for step in range(60):
            group: list[Operation] = [Withdraw(f"w{number}-{step}", "0.3", "ann", "btc")]
            group += [Transfer(f"t{number}-{step}", "bob", "cy", "btc", "0.1")]
            outcomes = nodes[number].execute(group)
            moved += isinstance(outcomes[0], Receipt)
            balance = nodes[number].account(spot("ann")).balance("btc")
            assert 0 <= balance.available <= 10 * 10**8 - 3 * 10**7 * moved
        return moved

    assert sum(at_once(work)) == 33
    until(lambda: len({node.head for node in nodes}) == 1)
    for node in nodes:
        assert node.account(spot("ann")).balance("btc") == Balance(10**7, 0)
        assert node.account(spot("bob")).balance("btc").available == 0
        assert node.account(spot("cy")).balance("btc").available == 20 * 10**8


def test_read_after_write_on_the_same_node_is_never_older(open_node: Open) -> None:
    """While others write and are followed, each node finds in memory what it has just been acknowledged."""
    nodes = [open_node() for _ in range(3)]
    names = ["ann", "bob", "cy"]
    seed(nodes[0], " ".join(names), amount="1")
    for node in nodes[1:]:
        until(lambda node=node: node.head == nodes[0].head)  # type: ignore[misc]

    def work(number: int) -> None:
        node, name = nodes[number], names[number]
        for step in range(80):
            receipt = node.deposit(name, "btc", "1", key=f"{name}-{step}")
            view = node.account(spot(name))
            assert view.balance("btc") == Balance((step + 2) * 10**8, 0)
            assert view.changed_seq == receipt.seq <= node.head.seq

    at_once(work, 3)


def test_commits_of_another_node_are_seen_whole(open_node: Open) -> None:
    """A node that follows sees all coins of an account after one commit, never some of them."""
    writer, reader = open_node(), open_node()
    seed(writer)
    for coin in ("eth", "usdt"):
        writer.list_coin(coin, 8, key=f"list-{coin}")
    until(lambda: len(reader.coins) == 3)
    seen: set[int] = set()
    for step in range(1, 120):
        writer.execute([Deposit(f"{coin}-{step}", "bob", coin, "1") for coin in ("eth", "usdt", "btc")])
        balances = reader.account(spot("bob")).balances
        units = {balances[coin].available for coin in ("eth", "usdt") if coin in balances}
        assert len(units) < 2, balances
        seen |= units
    until(lambda: reader.account(spot("bob")).balance("eth") == Balance(119 * 10**8, 0))
    assert len(seen) > 2


def test_node_far_behind_begins_its_memory_anew(open_node: Open) -> None:
    """More entries of others than a page, and more than are not sealed: what is answered is right."""
    ahead = open_node(segment_entries=8)
    behind = open_node(follow_entries=5, follow_seconds=None)
    seed(ahead)
    hold = behind.freeze("ann", "btc", "2", key="f").hold
    assert hold is not None
    view = behind.account(spot("ann"))
    for step in range(10):
        ahead.execute([Deposit(f"d{step}", "ann", "btc", "1"), Unfreeze(f"u{step}", HoldKey("f"), "0.1")])
    assert view.balance("btc") == Balance(998 * 10**8, 2 * 10**8)
    behind.deposit("bob", "btc", "1", key="wakes")
    assert behind.account(spot("ann")).balance("btc") == Balance(1009 * 10**8, 10**8)
    assert [held.remaining for held in behind.holds("ann")] == [10**8]
    ahead.execute([Deposit(f"more{step}", "ann", "btc", "1") for step in range(10)])
    assert len(behind.holds("ann")) == 1
    assert behind.hold(hold) == ahead.hold(hold)
    assert behind.head == ahead.head


def test_repeat_of_what_another_node_booked_is_synced_before_it_is_answered(open_node: Open, postgres_url: str) -> None:
    """A kept result that this node has not committed itself is answered after a synced commit of its own."""
    first, second = open_node(), open_node()
    seed(first)
    first.deposit("ann", "btc", "1", key="once")
    before = _syncs(postgres_url)
    assert second.deposit("ann", "btc", "1", key="once").replayed
    assert _syncs(postgres_url) == before + 1
    assert second.deposit("ann", "btc", "1", key="once").replayed
    assert first.deposit("ann", "btc", "1", key="once").replayed
    assert _syncs(postgres_url) == before + 1, "what is known to be durable needs no further commit"


def _syncs(url: str) -> int:
    with psycopg.connect(url) as connection:
        return int(connection.execute("SELECT syncs FROM ledger").fetchall()[0][0])


def test_holds_and_reversals_of_another_node_are_found(open_node: Open) -> None:
    """A node decides on holds, keys and entries that another one wrote and it has never seen."""
    first, second = open_node(), open_node(follow_seconds=None)
    seed(first)
    freeze = first.freeze("ann", "btc", "3", key="f")
    deposit = first.deposit("bob", "btc", "7", key="d")
    uses = [Withdraw("w", "1", hold=HoldKey("f")), Unfreeze("u", str(freeze.hold), "1")]
    outcomes = second.execute([*uses, Reverse("r", deposit.seq, "mistake"), Freeze("f", "ann", "btc", "3")])
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [True] * 4
    assert outcomes[3].replayed
    again = first.execute([Reverse("r2", deposit.seq, "again"), Withdraw("w2", "1.5", hold=HoldKey("f"))])
    assert [outcome.code for outcome in again if isinstance(outcome, Refused)] == ["already_reversed", "hold_short"]
    assert first.reversal_of(deposit.seq) == second.reversal_of(deposit.seq) == outcomes[2].seq


def test_holds_named_by_keys_are_asked_for_only_where_memory_has_not_got_them(
    open_node: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that this node opened, and those of others that it followed, cost no question and no entry that is read."""
    asked: list[int] = []
    ask = LookupBatch._ask_for_keys

    def counted(self: LookupBatch, wanted: Wanted) -> set[Account]:
        named = ask(self, wanted)
        asked.append(len(self._keys))
        return named

    monkeypatch.setattr(LookupBatch, "_ask_for_keys", counted)
    first, second = open_node(), open_node(follow_seconds=None)
    seed(first)
    second.deposit("bob", "btc", "1", key="here")
    first.execute([Freeze(f"f{n}", "ann", "btc", "1") for n in range(4)])

    def use(node: Ledger, number: int) -> None:
        assert isinstance(node.execute([Unfreeze(f"u{number}", HoldKey(f"f{number}"))])[0], Receipt)

    asked.clear()
    takes_lock_first(first)
    use(first, 0)
    use(second, 1)
    use(second, 2)
    use(open_node(), 3)
    assert asked == [1, 2, 1, 1], "the key of the operation, and that of a hold which memory does not know yet"
    assert first.holds("ann", "open") == second.holds("ann", "open") == []


def test_keys_that_opened_no_hold_are_not_asked_about_again(open_node: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """To cancel what was refused is no more than one trip, however often it is asked for in a group."""
    node = open_node()
    seed(node)
    node.execute([Freeze(f"no{n}", "ann", "btc", "99999999") for n in range(20)])
    asked: list[Any] = []
    ask = PostgresReads._ask
    monkeypatch.setattr(
        PostgresReads, "_ask", lambda self, *questions: asked.append(questions) or ask(self, *questions)
    )
    names = [*(f"no{n}" for n in range(20)), *["no1"] * 20, *["seed:ann"] * 20, *["never"] * 20]
    outcomes = node.execute([Unfreeze(f"u{n}", HoldKey(name)) for n, name in enumerate(names)])
    outcomes += node.execute([Unfreeze(f"by-id{n}", "3") for n in range(20)])
    assert {outcome.code for outcome in outcomes if isinstance(outcome, Refused)} == {"unknown_hold"}
    assert len(outcomes) == 100
    assert asked == []


def takes_lock_first(node: Any) -> None:
    """Have the next group of *node* decided under the lock, as after a group of another node."""
    node._store._alone_groups = 0


@pytest.mark.parametrize("broken", [False, True])
def test_turn_that_was_lost_while_the_node_decided_is_unavailable_and_no_damage(
    open_node: Open, postgres_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """Another node wrote meanwhile, and memory knows: nothing of the group is written, and the node goes on."""
    node, other = open_node(), open_node()
    seed(node)
    takes_lock_first(node)
    decide = Group.decide

    def lose_lock(self: Group, count: int) -> list[Entry]:
        monkeypatch.undo()
        end_sessions(postgres_url)
        other.deposit("ann", "btc", "1", key="between", reference="another node")
        until(lambda: node.account(spot("ann")).balance("btc").available == 1001 * 10**8)
        if broken:
            raise LedgerCorrupt("what was decided does not fit")
        return decide(self, count)

    monkeypatch.setattr(Group, "decide", lose_lock)
    group = [Deposit("d", "ann", "btc", "1"), Freeze("f", "ann", "btc", "2")]
    with pytest.raises(StoreUnavailable, match="the write lock was lost"):
        node.execute(group)
    assert node.corrupt is None
    outcomes = node.execute(group)
    assert all(isinstance(outcome, Receipt) and not outcome.replayed for outcome in outcomes)
    until(lambda: other.head == node.head)


@pytest.mark.parametrize("broken", [False, True])
def test_head_that_moved_while_the_node_decided_without_the_lock_costs_nobody_an_error(
    open_node: Open, postgres_url: str, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    """It had no lock to lose: the group is decided again under the lock, although its connection is gone."""
    node, other = open_node(), open_node()
    seed(node)
    for number in range(ALONE_GROUPS + 1):
        node.deposit("bob", "btc", "1", key=f"known{number}")
    decide = Group.decide

    def be_slower(self: Group, count: int) -> list[Entry]:
        monkeypatch.undo()
        end_sessions(postgres_url)
        other.deposit("ann", "btc", "1", key="between", reference="another node")
        until(lambda: node.account(spot("ann")).balance("btc").available == 1001 * 10**8)
        if broken:
            raise LedgerCorrupt("what was decided does not fit")
        return decide(self, count)

    monkeypatch.setattr(Group, "decide", be_slower)
    outcomes = node.execute([Deposit("d", "ann", "btc", "1"), Freeze("f", "ann", "btc", "1002")])
    assert node.corrupt is None
    assert all(isinstance(outcome, Receipt) and not outcome.replayed for outcome in outcomes)
    until(lambda: other.head == node.head)


def test_holds_expire_once_whoever_writes_next(open_node: Open) -> None:
    """A hold that is due on every node is let expire by one of them."""
    clock = Clock()
    nodes = [open_node(clock_ms=clock) for _ in range(3)]
    seed(nodes[0])
    group = [Freeze(f"f{n}", "ann", "btc", "1", expires_ms=clock.now_ms + 5) for n in range(20)]
    nodes[1].execute(group)
    clock.now_ms += 5
    at_once(lambda number: nodes[number].execute([]), 3)
    entries = [entry for entry in nodes[2].entries() if entry.kind == "expire"]
    assert len(entries) == len({entry.key for entry in entries}) == 20


def test_trial_balance_of_a_journal_with_great_sums_is_exact(open_node: Open) -> None:
    """Sums beyond 64 bits, down to minus 10**38, are added up to the unit."""
    ledger = open_node()
    ledger.list_coin("big", 18, key="list")
    most = "16" + "0" * 18
    for name in ("ann", "bob", "cy"):
        ledger.register_customer(name, key=f"register-{name}")
        ledger.execute([Deposit(f"{name}-{n}", name, "big", most) for n in range(1, 3)])
    sums = ledger.trial_balance().sums
    assert sums["customers", "big"] == Balance(6 * int(most) * 10**18, 0)
    assert sums["@external", "big"] == Balance(-6 * int(most) * 10**18, 0)
    assert ledger.balances(Account("@external", "house"))["big"].available == -6 * int(most) * 10**18


# --- schema, and wrong addresses ---------------------------------------------------------------------


def test_starters_at_once_migrate_once_and_make_one_ledger(postgres_url: str) -> None:
    """Several processes that open an empty database at once find one schema and one ledger."""

    def work(_: int) -> str:
        with spotledger.open(postgres_url) as ledger:
            return ledger.ledger_id

    assert len(set(at_once(work))) == 1
    with connect(postgres_url) as connection:
        assert migrate(connection, after=True) == []
        assert make_ledger(connection) is False


def test_schema_that_is_missing_or_newer_is_refused(postgres_url: str) -> None:
    """A database without the schema, or with one that only a newer program reads, is named; a newer half is fine."""
    with connect(postgres_url) as connection:
        with pytest.raises(SchemaMismatch, match="spotledger migrate"):
            check_schema(connection)
        migrate(connection)
        connection.execute("INSERT INTO schema_version (number, phase, name) VALUES (9000, 'before', 'newer')")
        check_schema(connection)
        connection.execute("INSERT INTO schema_version (number, phase, name) VALUES (9000, 'after', 'newer')")
        for look in (check_schema, migrate):
            with pytest.raises(SchemaMismatch, match="9000"):
                look(connection)


def test_journal_is_never_changed_by_a_statement(open_node: Open, postgres_url: str) -> None:
    """UPDATE, DELETE and TRUNCATE of the journal are refused by the database itself."""
    seed(open_node())
    for statement in (
        "UPDATE entry SET body = body",
        "DELETE FROM entry",
        "TRUNCATE entry",
        "TRUNCATE entry, coin",
        "TRUNCATE entry CASCADE",
    ):
        refused = (psycopg.errors.RestrictViolation, psycopg.errors.FeatureNotSupported)
        with psycopg.connect(postgres_url) as connection, pytest.raises(refused, match=r"journal|referenced"):
            connection.execute(statement)


@pytest.mark.parametrize("url", ["postgresql://%", "postgresql://host/db?no_such_setting=1"])
def test_address_that_is_none_is_a_setting_that_is_wrong(url: str) -> None:
    """What the driver cannot read as an address is refused with what would pass."""
    with pytest.raises(SettingInvalid, match="would pass"):
        spotledger.open(url)


def test_server_that_is_not_there_is_unavailable() -> None:
    """A port where nobody listens is a server that is away."""
    with pytest.raises(StoreUnavailable, match="reached"):
        spotledger.open("postgresql://nobody@127.0.0.1:1/none")


@pytest.mark.parametrize(
    ("damage", "repair", "found"),
    [
        (
            "DELETE FROM open_hold RETURNING hold_id, customer, expires_ms",
            "INSERT INTO open_hold VALUES (%s, %s, %s)",
            "another number of rows",
        ),
        (
            "UPDATE balance SET available = available + 1 WHERE customer = 'ann' RETURNING customer",
            "UPDATE balance SET available = available - 1 WHERE customer = %s",
            "ann spot btc in the tables is not the one of entry 4.*spotledger rebuild",
        ),
    ],
)
def test_damaged_derived_row_stops_writing_when_the_next_segment_is_sealed(
    open_node: Open, postgres_url: str, damage: str, repair: str, found: str
) -> None:
    """Sealing adds up from the rows: one that is missing or wrong is seen, and writing stops."""
    ledger = open_node(segment_entries=4)
    seed(ledger, "ann")
    hold = ledger.freeze("ann", "btc", "1", key="f").hold
    ledger.deposit("ann", "btc", "1", key="seals")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT seq FROM sealed").fetchall() == [(4,)]
        kept = connection.execute(damage.encode()).fetchall()[0]
    ledger.unfreeze(hold or 0, key="u")
    for number in range(2):
        ledger.deposit("ann", "btc", "1", key=f"d{number}")
    for number in range(2):
        with pytest.raises(LedgerCorrupt, match=found):
            ledger.deposit("ann", "btc", "1", key=f"e{number}")
    with psycopg.connect(postgres_url) as connection:
        connection.execute(repair.encode(), kept)  # and all is as it was


# --- what people read ------------------------------------------------------------------------------


def test_posting_view_shows_the_journal_one_line_a_row(open_node: Open, postgres_url: str) -> None:
    """Anyone with an SQL shell reads the journal as postings in their order, and they add up to zero."""
    node = open_node()
    seed(node, "ann")
    hold = node.freeze("ann", "btc", "1.5", key="freeze").hold
    node.withdraw("0.5", key="out", hold=hold)
    with psycopg.connect(postgres_url) as connection:
        columns = "seq, kind, customer, account, coin, side, units, hold, key"
        rows = connection.execute(f"SELECT {columns} FROM posting WHERE seq > 3").fetchall()
        total = connection.execute("SELECT sum(units) FROM posting").fetchone()
    assert rows == [
        (4, "freeze", "ann", "spot", "btc", "available", -150_000_000, None, "freeze"),
        (4, "freeze", "ann", "spot", "btc", "freeze", 150_000_000, 4, "freeze"),
        (5, "withdraw", "ann", "spot", "btc", "freeze", -50_000_000, 4, "out"),
        (5, "withdraw", "@external", "house", "btc", "available", 50_000_000, None, "out"),
    ]
    assert total == (0,)
