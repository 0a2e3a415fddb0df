"""Every entry names the credential behind it, and is answered with the label of the token, in both stores."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import StoreUnavailable
from spotledger.http.operator import reads
from spotledger.ops.settings import ServerUrl
from support_feed import FeedReader
from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}
FIRST = "operator.token"


@pytest.fixture(params=["embedded", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances, in each store in turn."""
    settings: dict[str, Any] = {}
    if request.param == "postgres":
        settings["database"] = ServerUrl(request.getfixturevalue("postgres_url"))
    with operator_api(tmp_path / "data", **settings) as made:
        made.set_up()
        yield made


def engine(api: Api, label: str = "engine", *scopes: str) -> tuple[str, str]:
    """Make a token that writes; return the actor that it is, and the token."""
    answer = api.must("/v1/tokens", {"scopes": list(scopes or ["ledger:write", "ledger:read"]), "label": label})
    return f"token:{answer['token_id']}", answer["token"]


class Runner:
    """Runs what another API over the same runtime does, in the loop of the first."""

    def __init__(self, run: Any) -> None:
        self.run = run


def actors(api: Api, **params: Any) -> list[tuple[int, str, Any]]:
    """Return seq, actor and label of each entry of a page."""
    answer = api.get("/v1/entries", **params)
    assert answer.status_code == 200, answer.text
    return [(entry["seq"], entry["actor"], entry.get("actor_label")) for entry in answer.json()["entries"]]


def test_every_way_of_writing_names_its_token(api: Api) -> None:
    """Single calls, batches, chains and kept refusals name the token of their request, and the page its label."""
    actor, token = engine(api)
    start = api.seq
    assert api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=token).status_code == 200
    assert api.post("/v1/withdrawals", {**ALICE_USDT, "amount": "999"}, token=token).status_code == 422
    deposit = {"op": "deposit", **ALICE_USDT, "amount": "1"}
    short = {"op": "withdraw", **ALICE_USDT, "amount": "999"}
    operations = [
        {**deposit, "key": "b1"},
        {**short, "key": "b2"},
        {**deposit, "key": "c1", "chain": "c"},
        {**deposit, "key": "c2", "chain": "c"},
        {**deposit, "key": "f1", "chain": "f"},
        {**short, "key": "f2", "chain": "f"},
    ]
    batch = api.post("/v1/batches", {"operations": operations}, token=token)
    assert batch.status_code == 200
    shown = [result["entry"] for result in batch.json()["results"] if "entry" in result]
    assert [(entry["actor"], entry["actor_label"]) for entry in shown] == [(actor, "engine")] * 3
    assert api.post("/v1/coins", {"coin": "eth", "scale": 18}, token=token).status_code == 200
    assert api.post("/v1/customers", {"customer": "carol"}, token=token).status_code == 200
    found = actors(api, after_seq=start)
    assert found == [(seq, actor, "engine") for seq in range(start + 1, start + 11)]
    assert all(label == FIRST for _, _, label in actors(api, limit=start))


def test_two_tokens_at_once_are_each_named(api: Api) -> None:
    """Writes of two tokens in one group of the writer are not mixed up."""
    made = [engine(api, f"engine {number}") for number in range(2)]
    start = api.seq

    async def write() -> None:
        posts = (
            api.http.post(
                "/v1/deposits",
                json={**ALICE_USDT, "amount": "1", "reference": made[number % 2][0]},
                headers=api.headers(f"at-once-{number}", made[number % 2][1]),
            )
            for number in range(20)
        )
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}

    api.run(write())
    entries = api.get("/v1/entries", after_seq=start).json()["entries"]
    assert len(entries) == 20
    assert all(entry["actor"] == entry["request"]["reference"] for entry in entries)
    assert {entry["actor_label"] for entry in entries} == {"engine 0", "engine 1"}


def test_expiry_is_of_the_ledger_and_has_no_label(api: Api) -> None:
    """What the ledger does by itself names no credential."""
    api.must("/v1/holds", {**ALICE_USDT, "amount": "1", "expires_ms": api.clock() + 1_000})
    api.clock.ahead_ms += 2_000
    give_up = time.monotonic() + 20
    while (last := api.get("/v1/entries", after_seq=api.seq - 1).json()["entries"][-1])["kind"] != "expire":
        assert time.monotonic() < give_up, "the hold has not expired"
        api.run(asyncio.sleep(0.01))
    assert last["actor"] == "ledger"
    assert "actor_label" not in last


def test_label_is_in_every_answer_that_shows_an_entry(api: Api) -> None:
    """The write and its repeat by another token, the entry, the statement, the page and the feed agree."""
    actor, token = engine(api, "desk 7")
    written = api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, "k1", token).json()
    again = api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, "k1").json()
    assert again == written
    entry, seq = written["entry"], written["seq"]
    assert (entry["actor"], entry["actor_label"]) == (actor, "desk 7")
    assert api.get(f"/v1/entries/{seq}").json()["entry"] == entry
    assert api.get("/v1/entries", after_seq=seq - 1).json()["entries"] == [entry]
    assert api.get("/v1/customers/alice/entries", after_seq=seq - 1).json()["entries"] == [entry]

    async def read() -> None:
        reader = FeedReader(api, f"after_seq={seq - 1}")
        assert await reader.take(1) == [(seq, entry)]
        await reader.leave()

    api.run(read())


def test_label_of_a_revoked_token_is_still_shown(api: Api) -> None:
    """Who moved money is known after the end of the token, and an empty label is shown as one."""
    actor, token = engine(api, "")
    api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=token)
    assert api.delete(f"/v1/tokens/{actor.removeprefix('token:')}").status_code == 200
    assert actors(api, after_seq=api.seq - 1) == [(api.seq, actor, "")]


def test_labels_are_read_with_one_query_a_page_and_then_none(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens a page names, they are looked up together, once, and not in the event loop."""
    for number in range(5):
        api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=engine(api, f"engine {number}")[1])
    asked: list[list[str]] = []
    tokens = type(api.runtime.tokens)
    labels = tokens.labels

    def counted(self: Any, token_ids: list[str]) -> dict[str, str]:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        asked.append(token_ids)
        return labels(self, token_ids)

    monkeypatch.setattr(tokens, "labels", counted)
    fresh = Api(api.runtime, Runner(api.run), api.clock)  # type: ignore[arg-type]
    for _ in range(3):
        assert len({label for _, _, label in actors(fresh)}) == 6
    assert [len(each) for each in asked] == [6]


def test_repeat_by_another_token_after_a_start_names_who_was_first(api: Api) -> None:
    """The label of the first is not in memory, so the repeat waits for it, and is counted once all the same."""
    _, token = engine(api, "desk 7")
    deposit = {**ALICE_USDT, "amount": "1"}
    written = api.post("/v1/deposits", deposit, "k1", token)
    fresh = Api(api.runtime, Runner(api.run), api.clock)  # type: ignore[arg-type]
    again = fresh.post("/v1/deposits", deposit, "k1")
    assert again.json() == written.json()
    assert again.json()["entry"]["actor_label"] == "desk 7"
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in written.headers
    assert fresh.app.metrics._counts == {("POST", "/v1/deposits", 200): 1}


def test_label_of_who_writes_is_known_without_a_query(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with the check of the token, and what was forgotten meanwhile makes no repeat of a new write."""
    actor, token = engine(api, "desk 7")
    monkeypatch.setattr(type(api.runtime.tokens), "labels", None)  # a call of it fails
    for _ in range(2):
        answer = api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=token)
        assert (answer.json()["entry"]["actor"], answer.json()["entry"]["actor_label"]) == (actor, "desk 7")
        assert "Idempotency-Replayed" not in answer.headers
        api.app._texts.labels._known.clear()


def test_entries_are_answered_where_labels_cannot_be_read(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A repeat is answered without the label when the tokens cannot be read just then, which is logged."""
    actor, token = engine(api)
    deposit = {**ALICE_USDT, "amount": "1"}
    api.post("/v1/deposits", deposit, "k1", token)
    fresh = Api(api.runtime, Runner(api.run), api.clock)  # type: ignore[arg-type]

    def unavailable(self: Any, token_ids: list[str]) -> dict[str, str]:
        raise StoreUnavailable

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(type(api.runtime.tokens), "labels", unavailable)
        entry = fresh.post("/v1/deposits", deposit, "k1").json()["entry"]
    assert entry["actor"] == actor
    assert "actor_label" not in entry
    assert "the labels of 1 operator tokens could not be read" in caplog.text
    assert actors(fresh, after_seq=api.seq - 1) == [(api.seq, actor, "engine")]


def pages(api: Api, actor: str, limit: int, between: Any = lambda: None) -> tuple[list[int], int]:
    """Return the entries of *actor* over all pages, and how many pages there were."""
    found: list[int] = []
    after, count = "0", 0
    while True:
        answer = api.get("/v1/entries", actor=actor, after_seq=after, limit=limit).json()
        count += 1
        found += [entry["seq"] for entry in answer["entries"]]
        assert {entry["actor"] for entry in answer["entries"]} <= {actor}
        assert answer["next"] == str(answer["next_after_seq"])
        assert answer["next_after_seq"] <= answer["seq"]
        if answer["next"] == after:
            return found, count
        after = answer["next"]
        between()


@pytest.mark.parametrize(("scanned", "limit"), [(5_000, 1000), (3, 1000), (3, 2), (1, 1), (250, 2)])
def test_entries_of_an_actor_come_once_while_others_are_written(
    api: Api, monkeypatch: pytest.MonkeyPatch, scanned: int, limit: int
) -> None:
    """Whatever the sizes of pages and looks, nothing is skipped or repeated, and pages without a match go on."""
    monkeypatch.setattr(reads, "SCANNED_ENTRIES", scanned)
    actor, token = engine(api)
    for number in range(4):
        for _ in range(number):
            api.must("/v1/deposits", {**ALICE_USDT, "amount": "1"})
        api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=token)
    left = [token, api.token, api.token, token]

    def write() -> None:
        if left:
            api.post("/v1/deposits", {**ALICE_USDT, "amount": "1"}, token=left.pop())

    found, count = pages(api, actor, limit, write)
    assert found == [seq for seq, who, _ in actors(api) if who == actor]
    assert count >= api.seq // scanned
    assert not left or scanned == 5_000


def test_entries_of_an_actor_are_bounded_per_call(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call looks at so many entries and no more, and says where the next one goes on although none matched."""
    monkeypatch.setattr(reads, "SCANNED_ENTRIES", 4)
    answer = api.get("/v1/entries", actor="library").json()
    assert (answer["entries"], answer["next_after_seq"], answer["next"]) == ([], 4, "4")
    assert api.get("/v1/entries", actor="library", after_seq=4).json()["next_after_seq"] == api.seq
    assert api.get("/v1/entries", actor="library", after_seq=api.seq).json()["next_after_seq"] == api.seq


@pytest.mark.parametrize("actor", ["", "alice", "token:", "key:123456789", "Ledger", "token:a b", "x" * 500, "é"])
def test_text_that_is_no_actor_is_refused(api: Api, actor: str) -> None:
    """It would find nothing, after a look at everything."""
    answer = api.get("/v1/entries", actor=actor)
    assert (answer.status_code, answer.json()["field"]) == (422, "actor")
