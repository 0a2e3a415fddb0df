"""Reads of the operator API: any moment, statements, holds and their age, the trial balance."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}


@pytest.fixture(params=[65_536, 8], ids=["in-memory", "sealed"])
def api(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances; its segments large, or sealed again and again."""
    with operator_api(tmp_path / "data", segment_entries=request.param) as made:
        made.set_up()
        yield made


def story(api: Api) -> list[dict[str, Any]]:
    """Do some of everything with alice and bob; return each write's answer."""
    written = []
    for number in range(4):
        written.append(api.must("/v1/deposits", {**ALICE_USDT, "amount": f"{number + 1}.5"}, f"d{number}"))
        written.append(api.must("/v1/holds", {**ALICE_USDT, "amount": "2", "reference": f"o{number}"}, f"h{number}"))
        transfer = {"from": {"customer": "alice"}, "to": {"customer": "bob"}, "coin": "usdt", "amount": "0.25"}
        written.append(api.must("/v1/transfers", transfer, f"t{number}"))
        written.append(api.must("/v1/releases", {"hold": {"key": f"h{number}"}, "amount": "1.5"}, f"r{number}"))
    return written


def get(api: Api, path: str, **params: Any) -> dict[str, Any]:
    answer = api.get(path, **params)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_balances_at_any_seq_are_those_that_stood_then(api: Api) -> None:
    """At each position the balances are what the entries up to it add up to; the answer names the position."""
    story(api)
    entries = get(api, "/v1/entries")["entries"]
    expected: dict[str, dict[str, Decimal]] = {}
    for at_seq in range(api.seq + 1):
        if at_seq:
            for posting in entries[at_seq - 1]["postings"]:
                if (posting["customer"], posting["account"]) == ("alice", "spot"):
                    sides = expected.setdefault(posting["coin"], {"available": Decimal(), "freeze": Decimal()})
                    sides[posting["side"]] += Decimal(posting["amount"])
        found = get(api, "/v1/customers/alice/balances", at_seq=at_seq)
        assert (found["seq"], found["epoch"]) == (at_seq, 1)
        nothing = {"available": Decimal(), "freeze": Decimal()}
        for coin, balance in found["balances"].items():
            assert {side: Decimal(text) for side, text in balance.items()} == expected.get(coin, nothing)


def test_balances_at_a_time_are_those_of_the_last_entry_by_then(api: Api) -> None:
    """A time means the last entry booked at or before it; before the first entry there is nothing."""
    first = api.must("/v1/deposits", {**ALICE_USDT, "amount": "1"})
    api.clock.ahead_ms += 60_000
    api.must("/v1/deposits", {**ALICE_USDT, "amount": "1"})
    booked_ms = first["entry"]["booked_ms"]
    at_ms = get(api, "/v1/customers/alice/balances", at_ms=booked_ms + 59_000)
    assert (at_ms["seq"], at_ms["balances"]["usdt"]["available"]) == (first["seq"], "101.00")
    assert get(api, "/v1/customers/alice/balances", at_ms=0)["seq"] == 0
    assert api.get("/v1/customers/alice/balances", at_ms=api.clock() + 60_000).json()["field"] == "at_ms"


def test_balances_show_what_the_customer_owes_until_it_is_repaid(api: Api) -> None:
    """A reversal of what is spent is owed; deposits repay it first; the past shows it as it was."""
    received = api.must("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "10"})
    api.must("/v1/withdrawals", {"customer": "bob", "coin": "usdt", "amount": "7"})
    reversed_seq = api.must("/v1/reversals", {"seq": received["seq"], "reason": "never arrived"})["seq"]
    assert get(api, "/v1/customers/bob/balances")["owes"] == {"usdt": "7.00"}
    assert get(api, "/v1/customers/bob/balances", account="wallet")["owes"] == {"usdt": "7.00"}
    api.must("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "9"})
    now = get(api, "/v1/customers/bob/balances")
    assert (now["owes"], now["balances"]["usdt"]["available"]) == ({}, "2.00")
    assert get(api, "/v1/customers/bob/balances", at_seq=reversed_seq)["owes"] == {"usdt": "7.00"}
    assert get(api, "/v1/customers/alice/balances")["owes"] == {}
    assert "owes" not in get(api, "/v1/customers/@fees/balances")


@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_statement_pages_join_by_their_balances(api: Api, limit: int) -> None:
    """Each page opens with what the one before closed with, and closes with what its entries lead to."""
    story(api)
    after, last, seqs = 0, {}, []
    while (page := get(api, "/v1/customers/alice/entries", after_seq=after, limit=limit, coin="usdt"))["entries"]:
        after = page["next_after_seq"]
        seqs += [entry["seq"] for entry in page["entries"]]
        moved = {"available": Decimal(), "freeze": Decimal()}
        for entry in page["entries"]:
            for posting in entry["postings"]:
                if posting["customer"] == "alice":
                    moved[posting["side"]] += Decimal(posting["amount"])
        (opening,), (closing,) = page["opening"], page["closing"]
        for side, units in moved.items():
            assert Decimal(opening[side]) + units == Decimal(closing[side])
            assert Decimal(opening[side]) == last.get(side, 0)
            last[side] = Decimal(closing[side])
    touching = [
        entry["seq"]
        for entry in get(api, "/v1/entries")["entries"]
        if any(posting["customer"] == "alice" for posting in entry["postings"])
    ]
    assert seqs == touching
    now = api.balances("alice")["usdt"]
    assert {side: Decimal(text) for side, text in now.items()} == last


def test_statement_of_nothing_is_empty(api: Api) -> None:
    """A customer without entries, or a coin never held, has an empty page; an unknown customer is not found."""
    page = get(api, "/v1/customers/bob/entries")
    assert (page["entries"], page["opening"], page["closing"], page["next_after_seq"]) == ([], [], [], 0)
    assert get(api, "/v1/customers/alice/entries", coin="btc")["entries"] == []
    assert api.get("/v1/customers/nobody/entries").status_code == 404


def test_statement_has_what_is_owed_too(api: Api) -> None:
    """Entries of the customer's debt are part of the statement."""
    seq = api.must("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "10"})["seq"]
    api.must("/v1/withdrawals", {"customer": "bob", "coin": "usdt", "amount": "10"})
    api.must("/v1/reversals", {"seq": seq, "reason": "never arrived"})
    closing = get(api, "/v1/customers/bob/entries")["closing"]
    assert {(line["customer"], line["available"]) for line in closing} == {
        ("bob", "0.00"),
        ("@receivable:bob", "-10.00"),
    }


def test_hold_says_why_since_when_and_under_which_key(api: Api) -> None:
    """One hold by its id: its reference, its age, and the write that opened it; closed ones stay readable."""
    hold = api.must("/v1/holds", {**ALICE_USDT, "amount": "5", "reference": "order-9"}, "opening")["hold"]
    api.clock.ahead_ms += 90_000
    found = get(api, f"/v1/holds/{hold}")
    assert (found["hold"]["reference"], found["hold"]["key"], found["hold"]["state"]) == ("order-9", "opening", "open")
    assert found["hold"]["age_ms"] >= 90_000
    closed_seq = api.must("/v1/releases", {"hold": hold})["seq"]
    found = get(api, f"/v1/holds/{hold}", min_seq=closed_seq)
    assert (found["hold"]["state"], found["hold"]["closed_seq"], found["seq"]) == ("closed", closed_seq, closed_seq)
    for nothing in ("0", "1", "999999", "9" * 18, "9" * 40, "x", "１", "-1"):
        assert api.get(f"/v1/holds/{nothing}").status_code == 404


def test_old_holds_of_all_customers_are_the_oldest_first(api: Api) -> None:
    """The report has the open holds that are older than an age, whoever has them, by pages."""
    api.must("/v1/deposits", {"customer": "bob", "coin": "usdt", "amount": "50"})
    holds = []
    for number in range(12):
        body = {"customer": ("alice", "bob")[number % 2], "coin": "usdt", "amount": "1", "reference": f"o{number}"}
        holds.append(api.must("/v1/holds", body)["hold"])
        api.clock.ahead_ms += 1_000_000
    api.must("/v1/releases", {"hold": holds[3]})
    found = get(api, "/v1/holds", older_than_ms=6_500_000)
    assert [hold["hold"] for hold in found["holds"]][1:] == [*holds[:3], *holds[4:6]]  # the first is of the set-up
    assert all(hold["age_ms"] >= 6_500_000 for hold in found["holds"])
    paged: list[str] = []
    after = "0"
    while after is not None:
        page = get(api, "/v1/holds", older_than_ms=6_500_000, limit=2, after=after)
        paged += [hold["hold"] for hold in page["holds"]]
        after = page["next_after"]
    assert paged == [hold["hold"] for hold in found["holds"]]
    of_bob = get(api, "/v1/customers/bob/holds", older_than_ms=6_500_000, state="open")["holds"]
    assert [hold["hold"] for hold in of_bob] == [holds[1], holds[5]]
    assert len(get(api, "/v1/holds")["holds"]) == 12


def test_entry_says_what_it_was_and_by_which_it_was_reversed(api: Api) -> None:
    """One entry of the journal, as the feed has it, and its reversal."""
    written = api.must("/v1/deposits", {**ALICE_USDT, "amount": "1"})
    assert get(api, f"/v1/entries/{written['seq']}") == {
        "seq": written["seq"],
        "epoch": 1,
        "entry": written["entry"],
        "reversed_by": None,
    }
    by = api.must("/v1/reversals", {"seq": written["seq"], "reason": "twice"})["seq"]
    assert get(api, f"/v1/entries/{written['seq']}")["reversed_by"] == by
    for nothing in ("0", "999999", "9" * 40, "x", "-1"):
        assert api.get(f"/v1/entries/{nothing}").status_code == 404


def test_trial_balance_adds_up_to_nothing(api: Api) -> None:
    """All customers and the house together are zero for every coin, as of the named entry."""
    story(api)
    found = get(api, "/v1/trial-balance")
    assert (found["seq"], found["epoch"], found["balanced"]) == (api.seq, 1, True)
    usdt = found["coins"]["usdt"]
    assert usdt["customers"] == {"available": "110.00", "freeze": "22.00"}
    assert usdt["house"] == {"@external": "-132.00"}
    assert {coin["total"].strip("0.") for coin in found["coins"].values()} == {""}


def test_trial_balance_beside_writes_is_of_one_entry(api: Api) -> None:
    """Taken while writes go on, several at once, each is whole."""

    async def both() -> list[httpx2.Response]:
        writes = [
            api.http.post("/v1/deposits", json={**ALICE_USDT, "amount": "1"}, headers=api.headers(f"w{number}"))
            for number in range(60)
        ]
        reads = [api.http.get("/v1/trial-balance", headers=api.headers()) for _ in range(3)]
        return await asyncio.gather(*reads, *writes)

    for answer in api.run(both())[:3]:
        found = answer.json()
        deposits = found["seq"] - 8
        assert found["balanced"]
        assert found["coins"]["usdt"]["customers"]["available"] == f"{100 + deposits}.00"


def test_hold_expires_on_time_even_if_nobody_calls(api: Api) -> None:
    """The ledger lets a hold expire by itself: an ordinary entry, on time, and a late use is refused."""
    body = {**ALICE_USDT, "amount": "5", "expires_ms": api.clock() + 1500}
    hold = api.must("/v1/holds", body, "short")["hold"]
    seq = api.seq
    api.run(asyncio.sleep(3.2))
    found = get(api, f"/v1/holds/{hold}")["hold"]
    assert (found["state"], found["closed_seq"]) == ("closed", seq + 1)
    entry = get(api, f"/v1/entries/{seq + 1}")["entry"]
    assert (entry["kind"], entry["key"][0]) == ("expire", " ")
    assert entry["booked_ms"] - body["expires_ms"] < 2000
    assert entry["booked_ms"] >= body["expires_ms"]
    assert api.balances("alice")["usdt"] == {"available": "100.00", "freeze": "20.00"}
    assert api.post("/v1/withdrawals", {"hold": hold, "amount": "1"}).json()["code"] == "hold_expired"


def test_hold_past_its_time_is_due_at_once(api: Api) -> None:
    """Every read shows it as due before its expiry is booked, and only then; it is still open, and cannot be used."""
    body = {**ALICE_USDT, "amount": "5", "expires_ms": api.clock() + 600_000}
    hold = api.must("/v1/holds", body, "short")["hold"]

    def shown() -> list[dict[str, Any]]:
        found = get(api, "/v1/customers/alice/holds")["holds"] + get(api, "/v1/holds")["holds"]
        return [*(one for one in found if one["hold"] == hold), get(api, f"/v1/holds/{hold}")["hold"]]

    assert [(one["state"], "due" in one) for one in shown()] == [("open", False)] * 3
    api.clock.ahead_ms = 600_000
    assert [(one["state"], one.get("due")) for one in shown()] == [("open", True)] * 3
    assert api.post(f"/v1/holds/{hold}/release", {}).json()["code"] == "hold_expired"
    assert (get(api, f"/v1/holds/{hold}")["hold"]["state"], "due" in shown()[0]) == ("closed", False)


@pytest.mark.parametrize("path", ["coins", "customers", "holds", "entries", "entries/1", "trial-balance"])
def test_read_with_min_seq_waits_for_the_entry(api: Api, path: str) -> None:
    """A read that is sent before the write that it waits for answers after it."""

    async def both() -> httpx2.Response:
        reading = asyncio.ensure_future(
            api.http.get(f"/v1/{path}", params={"min_seq": api.seq + 1}, headers=api.headers())
        )
        await asyncio.sleep(0.05)
        assert not reading.done()
        await api.http.post("/v1/deposits", json={**ALICE_USDT, "amount": "1"}, headers=api.headers("later"))
        return await reading

    found = api.run(both()).json()
    assert found["seq"] == api.seq
    assert found["epoch"] == 1


def test_trial_balance_of_then_is_what_it_was_then(api: Api) -> None:
    """By position and by time; each answer is the one that was given at that moment."""
    given = []
    for number in range(6):
        api.must("/v1/deposits", {**ALICE_USDT, "amount": f"{number + 1}.5"}, f"d{number}")
        held = api.must("/v1/holds", {**ALICE_USDT, "amount": "2"}, f"h{number}")
        given.append((held["entry"]["booked_ms"], get(api, "/v1/trial-balance")))
        api.clock.ahead_ms += 1000
    for time_ms, answer in given:
        assert get(api, "/v1/trial-balance", at_seq=answer["seq"]) == answer
        assert get(api, "/v1/trial-balance", at_ms=time_ms) == answer
    assert get(api, "/v1/trial-balance", at_seq=0)["balanced"]


@pytest.mark.parametrize(
    ("params", "field"),
    [({"at_seq": 10**6}, "at_seq"), ({"at_seq": 1, "at_ms": 1}, "at_seq"), ({"at_ms": 10**15}, "at_ms")],
)
def test_trial_balance_of_a_moment_that_is_not_past_is_refused(api: Api, params: dict[str, int], field: str) -> None:
    """Nor are two moments taken at once."""
    refused = api.get("/v1/trial-balance", **params)
    assert (refused.status_code, refused.json()["field"]) == (422, field)
