"""Finding entries over HTTP: what each parameter finds, pages, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.http.operator import reads
from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}


@pytest.fixture(params=[65_536, 8], ids=["in-memory", "sealed"])
def api(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Api]:
    """An API over a ledger with some entries; its segments large, or sealed again and again."""
    with operator_api(tmp_path / "data", segment_entries=request.param) as made:
        made.set_up()
        for number in range(30):
            body = {**ALICE_USDT, "amount": "2", "reference": f"batch {number % 3}"}
            made.must("/v1/deposits", body, f"d{number}")
        made.must("/v1/holds", {**ALICE_USDT, "amount": "1", "reference": "batch 1"}, "h")
        refused = made.post("/v1/holds", {**ALICE_USDT, "amount": "10000000", "reference": "batch 2"}, "refused")
        assert refused.status_code == 422
        made.must("/v1/house-accounts", {"name": "treasury"}, "open")
        made.must("/v1/deposits", {"customer": "@treasury", "coin": "usdt", "amount": "5"}, "paid-in")
        legs = [{**ALICE_USDT, "amount": "2"}, {"customer": "@treasury", "coin": "usdt", "amount": "-2"}]
        made.must("/v1/postings", {"legs": legs, "reference": "batch 1"}, "gift")
        yield made


def keys(api: Api, **params: Any) -> list[str]:
    """Return the keys of the entries in all pages."""
    found: list[str] = []
    after = 0
    while True:
        answer = api.get("/v1/entries", after_seq=after, **params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert page["next"] == str(page["next_after_seq"])
        assert len(page["entries"]) <= params.get("limit", 1000)
        found += [entry["key"] for entry in page["entries"]]
        if page["next_after_seq"] == after:
            return found
        after = page["next_after_seq"]


def test_each_parameter_finds_its_entries(api: Api) -> None:
    """By key one entry or none; by reference all of them, kept refusals among them; the others narrow it down."""
    assert keys(api, key="d7") == ["d7"]
    assert keys(api, key="never") == []
    batch = [f"d{number}" for number in range(1, 30, 3)]
    assert keys(api, reference="batch 1") == [*batch, "h", "gift"]
    assert keys(api, reference="batch 2")[-1] == "refused"
    assert keys(api, reference="batch 1", kind="freeze") == ["h"]
    assert keys(api, reference="batch 1", customer="bob") == []
    assert keys(api, customer="alice", coin="usdt", kind="freeze") == ["first-hold", "h"]
    assert keys(api, kind="list_coin") == keys(api, kind="list_coin", actor=actor(api))
    assert keys(api, customer="@external", coin="usdt", limit=7)[-31:-1] == [f"d{number}" for number in range(30)]
    assert keys(api, customer="@treasury", limit=1) == ["paid-in", "gift"]
    assert keys(api, customer="@treasury", reference="batch 1") == keys(api, kind="post") == ["gift"]
    assert keys(api, kind="open_house_account", customer="@treasury") == []
    assert keys(api, customer="@receivable") == keys(api, customer="@vault") == []
    assert keys(api, actor="ledger") == []


def actor(api: Api) -> str:
    """Return the actor of the first entry."""
    found: str = api.get("/v1/entries", limit=1).json()["entries"][0]["actor"]
    return found


def test_pages_of_any_size_have_each_entry_once(api: Api) -> None:
    """Also where a call looks at fewer entries than the journal has, and while entries are written."""
    whole = keys(api, reference="batch 0")
    for limit in (1, 2, 9):
        assert keys(api, reference="batch 0", limit=limit) == whole
    first = api.get("/v1/entries", reference="batch 0", limit=4).json()
    api.must("/v1/deposits", {**ALICE_USDT, "amount": "2", "reference": "batch 0"}, "late")
    rest = api.get("/v1/entries", reference="batch 0", after_seq=first["next"]).json()
    assert [entry["key"] for entry in first["entries"] + rest["entries"]] == [*whole, "late"]


def test_page_that_finds_nothing_within_its_work_says_where_to_go_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be empty before the end of the journal; its next is after what was looked at."""
    monkeypatch.setattr(reads, "SCANNED_ENTRIES", 10)
    monkeypatch.setattr(reads, "PIECE_ROWS", 5)
    page = api.get("/v1/entries", kind="transfer").json()
    assert (page["entries"], page["next"]) == ([], "10")
    assert keys(api, kind="freeze") == ["first-hold", "h", "refused"]


def test_period_is_inclusive_at_its_start_and_exclusive_at_its_end(api: Api) -> None:
    """Entries of one time are on the same side of a bound."""
    times = {entry["key"]: entry["booked_ms"] for entry in api.get("/v1/entries").json()["entries"]}
    for bound in sorted(set(times.values())):
        before = [key for key, time in times.items() if time < bound]
        assert keys(api, to_ms=bound) == before
        assert keys(api, from_ms=bound) == list(times)[len(before) :]
    assert keys(api, from_ms=0, to_ms=10**14) == list(times)
    assert keys(api, from_ms=10**14) == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"key": ""}, "key"),
        ({"key": "x" * 300}, "key"),
        ({"key": "é"}, "key"),
        ({"reference": ""}, "reference"),
        ({"reference": "a\nb"}, "reference"),
        ({"customer": "a b"}, "customer"),
        ({"coin": "BTC"}, "coin"),
        ({"kind": "deposits"}, "kind"),
        ({"actor": "me"}, "actor"),
        ({"from_ms": "yesterday"}, "from_ms"),
        ({"from_ms": 10**12, "to_ms": 10**12 - 1}, "to_ms"),
        ({"from_ms": 1_700_000_000}, "from_ms"),
        ({"to_ms": 1_700_000_000}, "to_ms"),
        ({"references": "x"}, "references"),
        ({"limit": 0}, "limit"),
    ],
)
def test_what_can_find_nothing_is_refused(api: Api, params: dict[str, Any], field: str) -> None:
    """A parameter of another form names its field; a search for nothing that can be would look like an absence."""
    answer = api.get("/v1/entries", **params)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
