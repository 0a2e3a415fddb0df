"""Entries are found by key, reference, customer, coin, kind, actor and time, in both stores, sealed or not."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL
from spotledger.domain.journal import Entry
from spotledger.domain.operations import Leg
from spotledger.errors import Refused
from spotledger.ledger.finding import Criteria
from spotledger.ledger.ledger import Ledger
from spotledger.storage.sqlite import reads
from support_core import Clock

REFERENCES = ("order 1", "order 2", "=1+1", "Straße 7", "repeated")


def busy(ledger: Ledger, clock: Clock) -> None:
    """Do some sixty operations, each a minute after the one before, so that eight entries make a segment."""
    ledger.list_coin("usdt", 2, key="c1")
    for number in range(40):
        clock.now_ms += 60_000
        name, coin = ("ann", "bob")[number % 3 == 0], ("btc", "usdt")[number % 4 == 0]
        ledger.deposit(name, coin, "10", key=f"d{number}", reference=REFERENCES[number % 5])
    for number in range(12):
        clock.now_ms += 60_000
        ledger.freeze("ann", "btc", "1", key=f"f{number}", reference="repeated")
    with suppress(Refused):
        ledger.freeze("bob", "btc", "1000000", key="refused", reference="order 1")
    ledger.transfer("ann", "bob", "btc", "1", key="no-reference")
    ledger.open_house_account("treasury", key="open")
    for number in range(12):
        ledger.deposit("@treasury", "usdt", "1", key=f"h{number}", reference=REFERENCES[number % 5])
    ledger.post([Leg("@treasury", "usdt", "-1"), Leg("ann", "usdt", "1")], key="gift", reference="order 1")


def pages(ledger: Ledger, criteria: Criteria, limit: int, *, look_at: int = 7) -> list[int]:
    """Return what all pages of *limit* entries have, where one look is at a few entries only."""
    found: list[int] = []
    after_seq, span = 0, ledger.between()
    while True:
        page = ledger.look(criteria, span._replace(after_seq=after_seq), limit, look_at)
        assert len(page.entries) <= limit
        assert all(after_seq < entry.seq <= page.to_seq for entry in page.entries)
        found += [entry.seq for entry in page.entries]
        if page.to_seq == after_seq:
            return found
        after_seq = page.to_seq


def expected(ledger: Ledger, criteria: Criteria) -> list[int]:
    """Return the same from all entries."""
    return [entry.seq for entry in ledger.entries() if is_meant(entry, criteria)]


def is_meant(entry: Entry, wanted: Criteria) -> bool:
    """Say whether *entry* has what is wanted, with the postings as the only source of customers and coins."""
    lines = {(posting.account.customer, posting.coin) for posting in entry.postings}
    owners = {wanted.customer, f"@receivable:{wanted.customer}"}
    return all(
        (
            wanted.key in (None, entry.key),
            wanted.reference in (None, entry.request.get("reference")),
            wanted.kind in (None, entry.kind),
            wanted.actor in (None, entry.actor),
            wanted.customer is wanted.coin is None
            or any((wanted.customer is None or name in owners) and wanted.coin in (None, coin) for name, coin in lines),
        )
    )


CRITERIA = [
    *(Criteria(reference=reference) for reference in (*REFERENCES, "order", "never", "\0", "x" * 300)),
    *(Criteria(key=key) for key in ("d0", "f11", "refused", "c1", "never", "é")),
    *(Criteria(customer=name) for name in ("ann", "bob", "nobody", EXTERNAL.customer, "@treasury", "@nothing", "\0")),
    *(Criteria(coin=coin) for coin in ("btc", "usdt", "nothing")),
    *(Criteria(kind=kind) for kind in ("freeze", "transfer", "list_coin", "open_house_account", "post")),
    Criteria(customer="ann", coin="usdt"),
    Criteria(customer="ann", reference="repeated", kind="freeze"),
    Criteria(key="d3", customer="ann"),
    Criteria(customer="@treasury", reference="order 1"),
    Criteria(key="d3", customer="bob"),
    Criteria(actor="library", kind="deposit", coin="usdt"),
    Criteria(actor="ledger"),
    Criteria(),
]


def test_search_finds_all_entries_that_match_and_no_other(ledger: Ledger, place: Any) -> None:
    """Whatever is asked for, in pages of any size, sealed and not sealed: each entry once and in order."""
    busy(ledger, place.clock)
    for criteria in CRITERIA:
        wanted = expected(ledger, criteria)
        for limit in (1, 3, 1000):
            assert pages(ledger, criteria, limit) == wanted, criteria


def test_search_that_looks_at_few_segments_at_once_finds_all(
    ledger: Ledger, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up that ends in the midst of what is sealed says so, and goes on from there."""
    monkeypatch.setattr(reads, "SEGMENTS_A_LOOK", 1)
    busy(ledger, place.clock)
    for reference in (*REFERENCES, "never"):
        criteria = Criteria(reference=reference)
        for limit in (1, 1000):
            assert pages(ledger, criteria, limit) == expected(ledger, criteria)


def test_search_after_each_entry_finds_the_rest(ledger: Ledger, place: Any) -> None:
    """A page may begin anywhere, within a segment and at its ends."""
    busy(ledger, place.clock)
    for criteria in (Criteria(reference="repeated"), Criteria(customer="bob"), Criteria(kind="deposit")):
        wanted = expected(ledger, criteria)
        for after in range(ledger.head.seq + 1):
            page = ledger.find(criteria, after_seq=after, limit=4)
            assert [entry.seq for entry in page.entries] == [seq for seq in wanted if seq > after][:4]


def test_search_while_entries_are_written_neither_skips_nor_repeats(ledger: Ledger, place: Any) -> None:
    """Entries that are written, and segments that are sealed, between two pages change nothing of what was read."""
    busy(ledger, place.clock)
    found: list[int] = []
    after_seq, more = 0, 0
    while more < 60:
        page = ledger.find(Criteria(reference="repeated"), after_seq=after_seq, limit=2)
        found += [entry.seq for entry in page.entries]
        after_seq = page.to_seq
        for _ in range(5):
            ledger.deposit("ann", "btc", "1", key=f"more-{more}", reference=REFERENCES[more % 5])
            more += 1
    found += pages(ledger, Criteria(reference="repeated"), 1000)[len(found) :]
    assert found == expected(ledger, Criteria(reference="repeated"))


def test_search_of_a_period_includes_its_start_and_not_its_end(ledger: Ledger, place: Any) -> None:
    """Times become positions: from is inclusive, to is exclusive, and either may lie outside of the journal."""
    busy(ledger, place.clock)
    entries = ledger.entries()
    times = [0, *sorted({entry.booked_ms for entry in entries})[::7], entries[-1].booked_ms, 10**14]
    for begin in times:
        for end in times:
            for from_ms, to_ms in ((begin, end), (begin + 1, end + 1), (begin, None), (None, end)):
                page = ledger.find(Criteria(), from_ms=from_ms, to_ms=to_ms)
                assert [entry.seq for entry in page.entries] == [
                    entry.seq
                    for entry in entries
                    if (from_ms is None or entry.booked_ms >= from_ms) and (to_ms is None or entry.booked_ms < to_ms)
                ]


@pytest.mark.parametrize("filled", [0, 4, 5, 6, 13])
def test_reference_is_found_at_once_and_after_a_restart(place: Any, filled: int) -> None:
    """What is in memory after a write is there after a start, too, wherever the segment ends."""
    with place.open() as ledger:
        ledger.list_coin("btc", 8, key="c")
        ledger.register_customer("ann", key="a")
        for number in range(filled):
            ledger.deposit("ann", "btc", "1", key=f"x{number}", reference="other")
        seq = ledger.deposit("ann", "btc", "1", key="it", reference="it").seq
        assert pages(ledger, Criteria(reference="it"), 1) == [seq]
    with place.open() as ledger:
        assert pages(ledger, Criteria(reference="it"), 1) == [seq]
        assert len(pages(ledger, Criteria(reference="other"), 5)) == filled
