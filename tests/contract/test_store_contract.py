"""What every store promises, asked through its port and through the ledger on top of it."""

from __future__ import annotations

from itertools import pairwise
from threading import Thread
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account, Balance
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
from spotledger.errors import InsufficientAvailable, InvalidRequest, Refused
from spotledger.ledger.group import Group, wanted_of
from spotledger.ledger.ledger import Ledger, Receipt
from spotledger.storage.base import Store
from spotledger.storage.steps import drive
from support_core import fill, seed, spot

UNIT = "0.00000001"


def store_of(ledger: Ledger) -> Store:
    """Return the store below the ledger."""
    return ledger._store


def wide_group(head: int) -> list[Operation]:
    """Return one operation of each kind and then many more, so that the group spans several segments."""
    group: list[Operation] = [
        ListCoin("list-eth", "eth", 18),
        RegisterCustomer("register-cy", "cy"),
        Deposit("in", "cy", "eth", "3"),
        Freeze("hold", "ann", "btc", "2", reference="order 1"),
        Unfreeze("part", HoldKey("hold"), "0.5"),
        Withdraw("out", "1", hold=HoldKey("hold")),
        Transfer("move", "ann", "bob", "btc", "1"),
        Withdraw("too-much", "9999", "bob", "btc"),
    ]
    return group + [Deposit(f"more-{n}", "ann", "btc", UNIT) for n in range(40)]


def decided(ledger: Ledger) -> list[Entry]:
    """Take the turn and decide a wide group; return its entries, which are not written yet."""
    store, operations = store_of(ledger), wide_group(ledger.head.seq)
    wanted = wanted_of(operations)
    drive(store.begin(wanted))
    group = Group(store, ledger.head.booked_ms)
    group.add(operations)
    for _ in group.load(wanted, 2):
        pass  # in pieces, as large groups are loaded
    group.decide(len(operations))
    assert group.is_decided
    return group.take_entries()


def picture(ledger: Ledger) -> dict[str, Any]:
    """Return all that reads say now."""
    names = [spot("ann"), spot("bob"), spot("cy"), EXTERNAL]
    head = ledger.head
    return {
        "head": head,
        "coins": dict(ledger.coins),
        "customers": ledger.customers(),
        "registered": [ledger.has_customer(name) for name in ("ann", "bob", "cy")],
        "balances": [ledger.balances(name) for name in names],
        "past": [ledger.balances(name, at_seq=head.seq) for name in names],
        "changed": [ledger.account(name).changed_seq for name in names],
        "holds": [ledger.holds("ann", state) for state in (None, "open", "closed")],
        "hold": [ledger.hold(seq) for seq in range(head.seq + 60)],
        "entries": ledger.entries(),
        "keys": [ledger.entry_of_key(key) for key in ("list-eth", "register-cy", "in", "hold", "more-7")],
        "due": store_of(ledger).due_holds(10**15, 10),
    }


# --- visible at publish, and not before --------------------------------------------------------------


@pytest.mark.parametrize("filled", range(8, 17))
def test_group_before_publish_is_invisible(ledger: Ledger, filled: int) -> None:
    """What is written shows in no read before it is durable, nor, in this process, published; then all of it does."""
    store = store_of(ledger)
    fill(ledger, filled - ledger.head.seq)
    before = picture(ledger)
    entries = decided(ledger)
    store.write(entries)
    assert picture(ledger) == before
    assert picture(ledger) == before
    drive(store.commit())
    # What is durable on a server, other nodes see at once, and so may a read here.
    assert store.remote or picture(ledger) == before
    store.publish(entries)
    after = picture(ledger)
    assert after["head"].seq == before["head"].seq + len(entries)
    assert after["customers"] == ["ann", "bob", "cy"]
    assert after["entries"][-len(entries) :] == entries
    assert None not in after["keys"]


def test_recover_throws_away_what_was_written(ledger: Ledger) -> None:
    """After recover all reads are as if the group had never been, and it can be done anew."""
    store = store_of(ledger)
    fill(ledger, 20)
    before = picture(ledger)
    for _ in range(3):
        entries = decided(ledger)
        store.write(entries)
        store.recover()
        assert picture(ledger) == before
    assert all(isinstance(o, Receipt) or o.kept for o in ledger.execute(wide_group(ledger.head.seq)))


def test_recover_after_commit_shows_what_is_durable(ledger: Ledger) -> None:
    """A commit whose answer was lost is found by recover, whole."""
    store = store_of(ledger)
    entries = decided(ledger)
    store.write(entries)
    drive(store.commit())
    store.recover()
    assert ledger.head.seq == entries[-1].seq
    outcomes = ledger.execute(wide_group(0))
    assert all(outcome.replayed for outcome in outcomes)


def test_reopened_ledger_says_the_same(place: Any) -> None:
    """What reads say is the same after the store was closed and opened again, at any fill of its segments."""
    with place.open() as ledger:
        seed(ledger)
        ledger.execute(wide_group(0))
        before = picture(ledger)
    for number in range(20):
        with place.open() as ledger:
            assert picture(ledger) == before
            fill(ledger, 1, f"step-{number}")
            before = picture(ledger)
    place.check()


# --- keys -------------------------------------------------------------------------------------------


def test_find_keys_in_open_and_sealed_segments_finds_each(ledger: Ledger) -> None:
    """Every key ever used is found with its entry, refusals too; no other is."""
    ledger.execute(wide_group(0))
    fill(ledger, 100)
    expected = {entry.key: entry.seq for entry in ledger.entries(limit=10_000)}
    assert len(expected) == ledger.head.seq
    strangers = [f"stranger-{n}" for n in range(2_000)]
    assert store_of(ledger).find_keys([*expected, *strangers]) == expected
    assert store_of(ledger).find_keys([]) == {}


def test_known_key_after_many_segments_is_answered_as_first(ledger: Ledger) -> None:
    """The same request after a hundred segments gives the same entry, marked; another content is a conflict."""
    first = ledger.execute(wide_group(0))
    fill(ledger, 100)
    head = ledger.head
    for once, again in zip(first, ledger.execute(wide_group(0)), strict=True):
        assert again.replayed
        assert again.seq == once.seq
        if isinstance(once, Receipt):
            assert again.entry == once.entry
        else:
            assert isinstance(again, Refused)
            assert (again.code, again.message, again.details) == (once.code, once.message, once.details)
    with pytest.raises(Refused, match="another amount"):
        ledger.deposit("cy", "eth", "4", key="in")
    assert ledger.head == head


# --- holds ------------------------------------------------------------------------------------------


def open_holds(ledger: Ledger) -> dict[int, str]:
    """Open thirty holds of ann and one of bob between; use some in part and some whole; return their states."""
    states = {}
    for number in range(30):
        receipt = ledger.freeze("ann", "btc", "3", key=f"hold-{number}")
        assert receipt.hold is not None
        states[receipt.hold] = "open"
        if number % 3 == 0:
            ledger.unfreeze(receipt.hold, "1", key=f"part-{number}")
        if number % 3 == 1:
            ledger.withdraw("3", hold=receipt.hold, key=f"whole-{number}")
            states[receipt.hold] = "closed"
    ledger.freeze("bob", "btc", "1", key="of-bob")
    for number, hold in enumerate([hold for hold, state in states.items() if state == "open"]):
        if number % 5 == 0:
            ledger.unfreeze(hold, key=f"late-{hold}")
            states[hold] = "closed"
    return states


@pytest.mark.parametrize("state", [None, "open", "closed"])
@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_holds_by_pages_give_each_once_in_order(ledger: Ledger, state: str | None, limit: int) -> None:
    """Pages of any size, joined, are all holds of the customer in that state, in the order of their ids."""
    states = open_holds(ledger)
    for _ in range(10):
        found: list[int] = []
        while page := ledger.holds("ann", state, found[-1] if found else 0, limit):
            assert len(page) <= limit
            assert all(hold == ledger.hold(hold.hold_id) for hold in page)
            found += [hold.hold_id for hold in page]
        assert found == [hold for hold, its in states.items() if state in (None, its)]
        newest = ledger.freeze("ann", "btc", "1", key=f"newest-{ledger.head.seq}").seq
        states |= {newest: "open", ledger.freeze("ann", "btc", "1", key=f"newest-{newest}").seq: "open"}


def test_holds_of_nobody_are_none(ledger: Ledger) -> None:
    """A customer without holds, or one that is unknown, has an empty list; an id that is no hold's is None."""
    open_holds(ledger)
    assert ledger.holds("nobody") == []
    assert [ledger.hold(hold) for hold in (0, -1, 1, 2, 10**9, 2**63, 10**30)] == [None] * 7


def test_due_holds_are_given_until_they_are_closed(place: Any) -> None:
    """A hold whose time has come is due, whether its segment is open or sealed, and after a restart too."""
    with place.open() as ledger:
        seed(ledger)
        start = place.clock.now_ms
        for number in range(20):
            ledger.freeze("ann", "btc", "1", key=f"h{number}", expires_ms=start + 1_000 + number)
            ledger.freeze("ann", "btc", "1", key=f"never{number}")
        assert store_of(ledger).due_holds(start + 999, 100) == []
        ledger.unfreeze(HoldKey("h3"), key="u3")
    with place.open() as ledger:
        place.clock.now_ms = start + 1_009
        ledger.execute([])
        expired = [entry.request["hold"] for entry in ledger.entries(limit=1000) if entry.kind == "expire"]
        assert sorted(map(int, expired)) == [ledger.entry_of_key(f"h{n}").seq for n in range(10) if n != 3]  # type: ignore[union-attr]
        place.clock.now_ms = start + 5_000
    with place.open() as ledger:
        fill(ledger, 1, "any")
        assert [hold.state for hold in ledger.holds("ann") if hold.expires_ms] == ["closed"] * 20
        assert ledger.account(spot("ann")).balances["btc"].freeze == 20 * 10**8
        assert store_of(ledger).due_holds(10**15, 100) == []
    place.check()


@pytest.mark.parametrize("apart", [0, 20])
def test_hold_past_its_time_is_read_as_due_without_a_server(place: Any, apart: int) -> None:
    """A library shows it as due at once, until something is written; a closed hold and one without a time never are."""
    with place.open() as ledger:
        seed(ledger)
        expires_ms = place.clock.now_ms + 1_000
        hold = ledger.freeze("ann", "btc", "1", key="h", expires_ms=expires_ms).seq
        ledger.freeze("ann", "btc", "1", key="never")
        ledger.freeze("ann", "btc", "1", key="used", expires_ms=expires_ms)
        ledger.unfreeze(HoldKey("used"), key="u")
        fill(ledger, apart)
        for now_ms, due in ((expires_ms - 1, []), (expires_ms, [hold])):
            place.clock.now_ms = now_ms
            assert [one.hold_id for one in ledger.holds("ann") if one.due] == due
            assert [one.hold_id for one in ledger.old_holds(now_ms) if one.due] == due
            found = ledger.hold(hold)
            assert found is not None
            assert (found.due, found.state) == (bool(due), "open")
        ledger.execute([])
        assert not any(one.due for one in ledger.holds("ann"))


def test_more_holds_due_than_a_group_takes_expire_in_the_next(place: Any) -> None:
    """A thousand and more holds that expire at once do so in turns, each once, whatever is sealed meanwhile."""
    with place.open() as ledger:
        seed(ledger, amount="10000")
        due = place.clock.now_ms + 10
        ledger.execute([Freeze(f"h{n}", "ann", "btc", "1", expires_ms=due + n % 3) for n in range(1_300)])
        ledger.execute([Unfreeze(f"u{n}", HoldKey(f"h{n}")) for n in range(0, 1_300, 10)])
        place.clock.now_ms = due + 3
        refused = ledger.execute([Withdraw("late", "1", hold=HoldKey("h1299"))])[0]
        assert isinstance(refused, Refused)
        rounds = 1
        while ledger.account(spot("ann")).balances["btc"].freeze:
            head = ledger.head.seq
            ledger.execute([])
            assert ledger.head.seq > head, "holds are due and none expired"
            rounds += 1
        assert rounds == 3
        assert len([e for e in ledger.entries(limit=10_000) if e.kind == "expire"]) == 1_170
    place.check()


# --- accounts and customers -------------------------------------------------------------------------


def test_account_is_the_same_object_until_it_is_dropped(place: Any) -> None:
    """Asked twice, an account is one object; a change shows in it, as another balance, with the entry's seq."""
    with place.open() as ledger:
        seed(ledger)
        ledger.list_coin("eth", 18, key="list-eth")
        view = ledger.account(spot("ann"))
        btc, changed_seq = view.balances["btc"], view.changed_seq
        assert ledger.account(spot("ann")) is view
        assert changed_seq == ledger.entry_of_key("seed:ann").seq  # type: ignore[union-attr]
        receipt = ledger.deposit("ann", "eth", "1", key="d")
        assert ledger.account(spot("ann")) is view
        assert view.changed_seq == receipt.seq
        assert view.balances["btc"] is btc, "an untouched balance stays the same object"
        assert view.balances["eth"] == Balance(10**18, 0)
        ledger.freeze("ann", "btc", "1", key="f")
        assert btc == Balance(1000 * 10**8, 0), "a balance once given never changes"
        assert view.balances["btc"] == Balance(999 * 10**8, 10**8)


@pytest.mark.parametrize("apart", [0, 3, 30])
@pytest.mark.parametrize("again", [False, True])
def test_hold_is_found_by_its_key_wherever_it_is(place: Any, apart: int, again: bool) -> None:
    """In the group before, in a segment that is sealed, after a start; and what opened no hold is none by its key."""
    nothing = ["list:btc", "seed:ann", "register:ann", "short", "unfrozen", "nobody's"]
    with place.open() as ledger:
        seed(ledger)
        ledger.execute([Freeze("short", "ann", "btc", "9999"), Freeze("f", "ann", "btc", "2")])
        ledger.execute([Freeze("g", "ann", "btc", "1"), Unfreeze("unfrozen", HoldKey("g"))])
        fill(ledger, apart)
        if not again:
            check_holds_by_key(ledger, nothing)
    if again:
        with place.open() as ledger:
            check_holds_by_key(ledger, nothing)
    place.check()


def check_holds_by_key(ledger: Ledger, nothing: list[str]) -> None:
    """Use the holds of the keys f and g, and each of those that name *nothing*."""
    asked: list[Operation] = [Unfreeze(f"none-{number}", HoldKey(key)) for number, key in enumerate(nothing)]
    asked += [Unfreeze("part", HoldKey("f"), "0.5"), Unfreeze("closed", HoldKey("g")), Freeze("f", "ann", "btc", "2")]
    asked += [Withdraw("rest", "1.5", hold=HoldKey("f")), Freeze("f2", "ann", "btc", "1"), Unfreeze("u", HoldKey("f2"))]
    outcomes = ledger.execute(asked)
    codes = [outcome.code if isinstance(outcome, Refused) else "done" for outcome in outcomes]
    assert codes == ["unknown_hold"] * len(nothing) + ["done", "hold_closed", "done", "done", "done", "done"]
    assert [outcome.replayed for outcome in outcomes].index(True) == len(nothing) + 2, "the repeat, and nothing else"
    assert ledger.holds("ann", "open") == []


@pytest.mark.parametrize("account", ["ann", ("ann", "spot"), None])
def test_what_is_no_account_is_told_what_would_pass(ledger: Ledger, account: Any) -> None:
    """A customer's name alone, which everybody tries first, does not say which of the accounts is meant."""
    for read in (ledger.balances, ledger.account):
        with pytest.raises(InvalidRequest, match=r"an Account\(customer, kind\) would pass"):
            read(account)


def test_what_reads_hand_out_cannot_change_the_books(ledger: Ledger) -> None:
    """A caller who writes into a mapping he was given gets an error; a copy of balances is his own."""
    view: Any = ledger.account(spot("ann"))
    coins: Any = ledger.coins
    for mapping in (view.balances, coins):
        with pytest.raises(TypeError):
            mapping["btc"] = None
    ledger.balances(spot("ann"))["btc"] = Balance(10**30, 0)
    with pytest.raises(InsufficientAvailable):
        ledger.withdraw("1000000", customer="ann", coin="btc", key="too-much")


def test_account_dropped_and_loaded_again_says_the_same(ledger: Ledger) -> None:
    """An account that memory let go of comes back with the same balances and the same changed_seq."""
    before = {kind: ledger.account(Account("bob", kind)) for kind in ("spot", "wallet")}
    said = {kind: (view.changed_seq, dict(view.balances)) for kind, view in before.items()}
    for number in range(30):
        ledger.register_customer(f"other{number}", key=f"r{number}")
        ledger.deposit(f"other{number}", "btc", "1", key=f"d{number}")
    views = {kind: ledger.account(Account("bob", kind)) for kind in before}
    assert views["spot"] is not before["spot"], "this test has not seen what it is about"
    assert {kind: (view.changed_seq, dict(view.balances)) for kind, view in views.items()} == said


def test_account_of_nobody_is_empty_and_not_kept(ledger: Any) -> None:
    """Reading accounts that nobody has costs no memory for good, and neither does reading many that are there."""
    for number in range(500):
        view = ledger.account(spot(f"ghost{number}"))
        assert (view.changed_seq, dict(view.balances)) == (0, {})
    memory = ledger._store._head_cache if ledger.remote else ledger._store._memory
    assert len(memory.accounts) < 50


def test_balances_at_every_past_entry_are_those_after_it(ledger: Ledger) -> None:
    """As-of reads give, for each entry that touched an account, the balance that the entry itself says."""
    open_holds(ledger)
    ledger.execute(wide_group(0))
    said: dict[tuple[Account, str], Balance] = {}
    entries = ledger.entries(limit=10_000)
    for entry in entries:
        said.update({(name, coin): Balance(*sides) for name, coin, *sides in entry.balances})
        for account in (spot("ann"), spot("bob"), EXTERNAL):
            expected = {coin: balance for (name, coin), balance in said.items() if name == account}
            assert ledger.balances(account, at_seq=entry.seq) == expected
    assert ledger.balances(spot("ann"), at_seq=0) == {}


@pytest.mark.parametrize("at_seq", [-1, 10**6, 10**30])
def test_balances_at_no_entry_are_refused(ledger: Ledger, at_seq: int) -> None:
    """A position before the first or after the last entry is refused, and the message says what would pass."""
    with pytest.raises(InvalidRequest, match="would pass"):
        ledger.balances(spot("ann"), at_seq=at_seq)


def test_customers_by_pages_give_each_once_in_order(ledger: Ledger) -> None:
    """Pages of customers, in open and sealed segments, are in the order of their ids' bytes."""
    names = ["Zed", "ann", "bob", "a.b", "a_b", "a-b", "0", "00", *(f"c{n}" for n in range(30))]
    for name in names:
        if not ledger.has_customer(name):
            ledger.register_customer(name, key=f"new:{name}")
    for limit in (1, 3, 1000):
        found: list[str] = []
        while page := ledger.customers(found[-1] if found else "", limit):
            assert len(page) <= limit
            found += page
        assert found == sorted(names)


# --- the journal as a feed ----------------------------------------------------------------------------


def test_entries_are_a_feed_without_gaps(ledger: Ledger) -> None:
    """Pages of entries follow one another; after the last there is nothing, and time never falls."""
    ledger.execute(wide_group(0))
    found: list[Entry] = []
    while page := ledger.entries(found[-1].seq if found else 0, 7):
        found += page
    assert [entry.seq for entry in found] == list(range(1, ledger.head.seq + 1))
    assert all(earlier.booked_ms <= later.booked_ms for earlier, later in pairwise(found))
    assert [ledger.entry(entry.seq) for entry in found] == found


@pytest.mark.parametrize("seq", [0, -1, 10**6, 2**63, 10**30])
def test_entry_that_is_not_there_is_none(ledger: Ledger, seq: int) -> None:
    """Positions outside the journal hold nothing, however large the number."""
    assert ledger.entry(seq) is None
    assert ledger.reversal_of(seq) is None
    assert ledger.entries(max(seq, ledger.head.seq)) == []
    assert ledger.holds("ann", after=max(seq, 0)) == []
    assert ledger.statement("ann", after_seq=max(seq, ledger.head.seq)) == []


def test_page_from_before_the_first_begins_at_the_first(ledger: Ledger) -> None:
    """A position below zero is the beginning."""
    assert ledger.entries(-(10**30), 2) == ledger.entries(0, 2)
    assert ledger.statement("ann", after_seq=-(10**30)) == ledger.statement("ann")


@pytest.mark.parametrize("limit", [0, -1, True, "5"])
def test_page_of_no_size_is_refused(ledger: Ledger, limit: Any) -> None:
    """A limit below one, or none at all, is refused: it must not mean everything."""
    for read in (
        lambda: ledger.entries(0, limit),
        lambda: ledger.holds("ann", limit=limit),
        lambda: ledger.customers("", limit),
        lambda: ledger.statement("ann", limit=limit),
    ):
        with pytest.raises(InvalidRequest, match="limit"):
            read()


def test_holds_in_no_known_state_are_refused(ledger: Ledger) -> None:
    """A state that holds cannot have is refused rather than answered with nothing."""
    with pytest.raises(InvalidRequest, match="state"):
        ledger.holds("ann", "opened")


def test_entry_of_any_text_as_key_is_none(ledger: Ledger) -> None:
    """A text that can be nobody's key was never used, whatever is in it."""
    fill(ledger, 30)
    assert [ledger.entry_of_key(key) for key in ("", " ", "ключ", "\ud800", "k" * 10_000, "\x00")] == [None] * 6


def test_coins_are_another_object_after_a_listing_only(ledger: Ledger) -> None:
    """The mapping of coins stays the same object until a coin is listed, and is sorted by name."""
    coins = ledger.coins
    fill(ledger, 30)
    assert ledger.coins is coins
    ledger.list_coin("aaa", 0, key="list-aaa")
    assert ledger.coins is not coins
    assert list(ledger.coins) == ["aaa", "btc"]
    assert list(coins) == ["btc"]


# --- time, threads, and whatever is handed in ---------------------------------------------------------


def test_house_accounts_are_open_as_they_were_opened(place: Any) -> None:
    """In an open segment, in a sealed one and after a start; a customer is none of them."""
    with place.open() as ledger:
        seed(ledger)
        before = ledger.house_accounts
        ledger.open_house_account("credit", key="open-credit", may_be_negative=True)
        assert before is not ledger.house_accounts
        fill(ledger, 12)
        ledger.open_house_account("bank", key="open-bank")
        ledger.transfer("@credit", "ann", "btc", "5", key="lent")
        opened = {name: account.may_be_negative for name, account in ledger.house_accounts.items()}
        assert opened == {"@bank": False, "@credit": True, "@dust": False, "@external": True, "@fees": False}
        assert ledger.customers(after="0", limit=1) == ["ann"]
    with place.open() as ledger:
        assert {name: account.may_be_negative for name, account in ledger.house_accounts.items()} == opened
        assert "@bank" not in ledger.customers()
        with pytest.raises(InsufficientAvailable):
            ledger.transfer("@bank", "ann", "btc", "1", key="short")
        ledger.transfer("@credit", "@bank", "btc", "1", key="short")
        assert ledger.balances(Account("@credit", "house"))["btc"].available == -6 * 10**8


def test_seq_at_a_time_is_the_last_entry_booked_by_then(place: Any) -> None:
    """At a time means the last entry booked at or before it; before the first there is none, the future is refused."""
    with place.open() as ledger:
        start = place.clock.now_ms
        assert ledger.seq_at(start) == 0
        place.clock.now_ms = start + 10
        seed(ledger)
        for number in range(20):
            place.clock.now_ms = start + 20 + number // 2
            fill(ledger, 1, f"n{number}")
        entries = ledger.entries()
        for time_ms in range(start, place.clock.now_ms + 1):
            expected = max((entry.seq for entry in entries if entry.booked_ms <= time_ms), default=0)
            assert ledger.seq_at(time_ms) == expected
        with pytest.raises(InvalidRequest):
            ledger.seq_at(place.clock.now_ms + 1)
    place.check()


def test_threads_share_a_ledger_and_each_key_is_taken_once(ledger: Ledger) -> None:
    """Many threads that write the same keys and read at once get whole answers, and each key is booked once."""
    receipts: list[Receipt] = []
    wrong: list[str] = []

    def work() -> None:
        for number in range(40):
            receipts.append(ledger.freeze("ann", "btc", "1", key=f"shared-{number}"))
            held = sum(hold.remaining for hold in ledger.holds("ann", "open"))
            if held % 10**8 or not ledger.balances(spot("ann"))["btc"].freeze:
                wrong.append(f"{held}")

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(receipts) == 160
    assert sum(not receipt.replayed for receipt in receipts) == 40
    assert ledger.account(spot("ann")).balances["btc"] == Balance(960 * 10**8, 40 * 10**8)


def test_operations_that_can_be_read_once_are_all_done(ledger: Ledger) -> None:
    """A generator of operations is done like a list; nothing is lost in silence."""
    outcomes = ledger.execute(Deposit(f"g{n}", "ann", "btc", "1") for n in range(3))  # type: ignore[arg-type]
    assert [outcome.seq for outcome in outcomes] == [ledger.head.seq - 2, ledger.head.seq - 1, ledger.head.seq]


def test_empty_group_does_nothing(ledger: Ledger) -> None:
    """No operations, no outcomes, no entry."""
    head = ledger.head
    assert ledger.execute([]) == []
    assert ledger.head == head


def test_epoch_begins_with_an_entry_and_stays(place: Any) -> None:
    """Epochs are entries: over starts, in reads of the past and in the audit's books nothing else changes."""
    with place.open() as ledger:
        seed(ledger)
        before = ledger.head.seq
        assert ledger.begin_epoch("set back") == before + 1
        assert ledger.begin_epoch("again", 7) == before + 2
        opened = ledger.freeze("ann", "btc", "1", key="f").seq
        assert [ledger.epochs.text(seq) for seq in (before, before + 1, opened)] == [
            str(before),
            f"2-{before + 1}",
            f"7-{opened}",
        ]
        with pytest.raises(InvalidRequest):
            ledger.begin_epoch("back", 7)
        assert ledger.head.seq == opened
        assert ledger.unfreeze(f"7-{opened}", "0.5", key="u").replayed is False
        assert ledger.unfreeze(f"7-{opened}", "0.5", key="u", epoch=3).replayed is True
        fill(ledger, 20)
        epochs, balances = ledger.epochs, ledger.balances(spot("ann"))
    with place.open() as ledger:
        assert (ledger.epochs, ledger.epoch, ledger.balances(spot("ann"))) == (epochs, 7, balances)
        entry = ledger.entry(before + 2)
        assert entry is not None
        assert (entry.kind, entry.actor, entry.request["epoch"], entry.postings) == ("begin_epoch", "ledger", 7, ())
        assert ledger.balances(spot("ann"), before + 2) == ledger.balances(spot("ann"), before)
    place.check()
