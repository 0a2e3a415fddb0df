"""What memory holds of the journal: what it takes over, what it may let go of, and what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from spotledger.domain.accounts import Account, Balance, Coin
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import key_digest
from spotledger.storage.sqlite import working_set
from spotledger.storage.sqlite.working_set import WorkingSet

SEGMENT = 8
NEVER = (0, 0)


@pytest.fixture
def memory() -> WorkingSet:
    """Give an empty memory with segments of 8 entries, room for 3 accounts, and bitcoin listed."""
    made = WorkingSet(SEGMENT, 3)
    made.list_coin(Coin("btc", 8))
    return made


def spot(customer: str) -> Account:
    """Return the spot account of *customer*."""
    return Account(customer, "spot")


def deposit(seq: int, customer: str, available: int, **changes: Any) -> Entry:
    """Return an entry that leaves *customer* with so much available."""
    values: dict[str, Any] = {
        "seq": seq,
        "kind": "deposit",
        "key": f"k{seq}",
        "booked_ms": seq,
        "request": {},
        "balances": ((spot(customer), "btc", available, 0),),
        **changes,
    }
    return Entry(**values)


def freeze(seq: int, customer: str, units: int, expires_ms: int | None = None) -> Entry:
    """Return an entry that opens a hold."""
    account = spot(customer)
    return deposit(
        seq,
        customer,
        0,
        kind="freeze",
        request={"expires_ms": expires_ms},
        moves=((0, "available", -units, None), (0, "freeze", units, seq)),
        balances=((account, "btc", 0, units),),
        holds=((seq, units),),
    )


def use(seq: int, hold: int, customer: str, remaining: int) -> Entry:
    """Return an entry that leaves so much of a hold."""
    return deposit(seq, customer, 0, kind="unfreeze", holds=((hold, remaining),))


def test_apply_takes_over_keys_balances_and_touches(memory: WorkingSet) -> None:
    """After an entry its key is known, the balance is its, and the account says which entry changed it."""
    memory.apply(deposit(1, "ann", 5))
    memory.apply(deposit(2, "ann", 7))
    state = memory.accounts[spot("ann")]
    assert (state.balances["btc"], state.changed_seq) == (Balance(7, 0), 2)
    assert memory.key_seq(key_digest("k1")) == 1
    assert memory.key_seq(key_digest("stranger")) is None
    assert [memory.last_touch(spot("ann"), "btc", seq) for seq in (0, 1, 2, 99)] == [None, 1, 2, 2]


def test_apply_of_a_refusal_takes_over_its_key_alone(memory: WorkingSet) -> None:
    """A kept refusal changes nothing but that its key is known."""
    memory.apply(Entry(1, "register_customer", "k1", 1, {"customer": "ann"}, refusal={"code": "x"}))
    assert memory.key_seq(key_digest("k1")) == 1
    assert not memory.has_customer("ann")
    assert memory.accounts == {}


def test_hold_that_nobody_opened_is_corrupt(memory: WorkingSet) -> None:
    """A journal that uses a hold which no entry opened does not hold together."""
    with pytest.raises(LedgerCorrupt, match="hold 5"):
        memory.apply(use(6, 5, "ann", 0))


def test_holds_follow_their_entries_across_segments(memory: WorkingSet) -> None:
    """A hold opened in one segment and used in the next stands as the last entry left it."""
    memory.apply(freeze(1, "ann", 5))
    memory.apply(use(9, 1, "ann", 3))
    assert memory.hold(1) == Hold(1, spot("ann"), "btc", 5, 3, None, None, 1)
    assert memory.changed_holds_of("ann") == {1: memory.hold(1)}
    memory.drop_sealed(8, NEVER)
    assert memory.hold(1).remaining == 3  # type: ignore[union-attr]
    memory.apply(use(10, 1, "ann", 0))
    assert memory.changed_holds_of("ann")[1].state == "closed"
    assert memory.changed_holds_of("bob") == {}


def test_drop_sealed_forgets_whole_segments_only(memory: WorkingSet) -> None:
    """Keys and touches of sealed segments go; those of the segment that is open stay."""
    for seq in range(1, 18):
        memory.apply(deposit(seq, "ann", seq))
    memory.drop_sealed(8, NEVER)
    assert [memory.key_seq(key_digest(f"k{seq}")) for seq in (8, 9, 17)] == [None, 9, 17]
    memory.drop_sealed(8, NEVER)
    assert memory.key_seq(key_digest("k9")) == 9
    memory.drop_sealed(16, NEVER)
    assert [segment.number for segment in memory.segments] == [2]
    assert memory.last_touch(spot("ann"), "btc", 16) is None


def test_shrink_never_lets_go_of_what_is_not_sealed(memory: WorkingSet) -> None:
    """Accounts that the tables do not have as they are stay, however many; the others go, oldest first."""
    for seq in range(1, 9):
        memory.apply(deposit(seq, f"c{seq}", seq))
    memory.shrink(0)
    assert len(memory.accounts) == 8
    memory.apply(deposit(9, "c1", 100))
    memory.drop_sealed(8, NEVER)
    memory.shrink(8)
    assert spot("c1") in memory.accounts, "changed after what is sealed"
    assert set(memory.accounts) == {spot("c1"), spot("c7"), spot("c8")}


def test_shrink_looks_at_a_bounded_number_and_evicts_the_rest_later(
    memory: WorkingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group does not pay for all that has to go; accounts that stay are not in the way of the others."""
    monkeypatch.setattr(working_set, "LOOKED_AT", 2)
    for seq in range(1, 9):
        memory.apply(deposit(seq, f"c{seq}", seq))
    memory.apply(deposit(9, "c1", 100))
    memory.drop_sealed(8, NEVER)
    sizes = []
    for _ in range(6):
        memory.shrink(8)
        sizes.append(len(memory.accounts))
    assert sizes[0] >= 6
    assert sizes[-1] == 3
    assert set(memory.accounts) == {spot("c1"), spot("c7"), spot("c8")}


def test_shrink_looks_again_once_a_segment_is_sealed(memory: WorkingSet) -> None:
    """What could not go while its segment was open goes when it is sealed."""
    for seq in range(1, 41):
        memory.apply(deposit(seq, f"c{seq}", seq))
        memory.shrink(0)
    assert len(memory.accounts) == 40
    memory.drop_sealed(40, NEVER)
    memory.shrink(40)
    assert len(memory.accounts) == 3


def test_known_customers_are_bounded(memory: WorkingSet) -> None:
    """Customers of sealed segments are remembered up to the bound; those of open segments always."""
    for seq in range(1, 21):
        memory.apply(Entry(seq, "register_customer", f"k{seq}", seq, {"customer": f"c{seq}"}))
    memory.drop_sealed(16, NEVER)
    memory.shrink(16)
    assert len(memory.known_customers) <= 3
    assert all(memory.has_customer(f"c{seq}") for seq in range(17, 21))


def test_due_holds_come_out_in_time_and_once(memory: WorkingSet) -> None:
    """Each hold with an expiry up to now is taken out once; later ones and those without stay."""
    for seq, expires in ((1, 30), (2, 10), (3, None), (4, 20), (9, 15)):
        memory.apply(freeze(seq, "ann", 1, expires))
    assert memory.pop_due(9) is None
    taken = []
    while (hold := memory.pop_due(20)) is not None:
        taken.append(hold)
    assert sorted(taken) == [2, 4, 9]
    assert memory.pop_due(29) is None
    assert memory.pop_due(30) == 1


def test_expiries_of_sealed_segments_are_left_to_the_tables(memory: WorkingSet) -> None:
    """Memory forgets them with their segment, but for those that the look through the table has already passed."""
    for seq, expires in ((1, 100), (2, 200), (3, 300)):
        memory.apply(freeze(seq, "ann", 1, expires))
    memory.apply(freeze(9, "ann", 1, 400))
    memory.drop_sealed(8, (200, 1))
    assert memory.pop_due(399) == 1
    assert memory.pop_due(399) is None
    assert memory.pop_due(400) == 9


def test_overdue_hold_is_given_again_until_it_is_not_watched(memory: WorkingSet) -> None:
    """A hold that is given back is due at the next look as well."""
    memory.apply(freeze(1, "ann", 1, 5))
    assert memory.pop_due(5) == 1
    hold = memory.hold(1)
    assert hold is not None
    memory.watch_overdue(hold)
    assert memory.pop_due(5) == 1


def test_listing_makes_another_mapping(memory: WorkingSet) -> None:
    """Readers compare the mapping of coins by identity; the old one never changes."""
    before = memory.coins
    memory.list_coin(Coin("aaa", 0))
    assert list(memory.coins) == ["aaa", "btc"]
    assert list(before) == ["btc"]
