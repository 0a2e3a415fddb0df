"""The journal as server-sent events: every entry once, in order, however often the reader breaks off."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.errors import StoreUnavailable
from spotledger.http.operator import feed as operator_feed
from support_feed import FeedReader
from support_operator import Api, operator_api

ALICE_USDT = {"customer": "alice", "coin": "usdt"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """An API over a ledger with some coins, customers and balances, whose segments are sealed along the way."""
    with operator_api(tmp_path / "data", segment_entries=64) as made:
        made.set_up()
        yield made


async def deposit(api: Api, count: int, prefix: str) -> None:
    """Book *count* deposits in batches of seven, with pauses in between."""
    for start in range(0, count, 7):
        operations = [
            {"op": "deposit", "key": f"{prefix}{number}", **ALICE_USDT, "amount": "1"}
            for number in range(start, min(start + 7, count))
        ]
        answer = await api.http.post("/v1/batches", json={"operations": operations}, headers=api.headers())
        assert answer.status_code == 200
        await asyncio.sleep(0.001)


def test_feed_says_what_is_there_and_what_comes(api: Api) -> None:
    """From the start: first where the journal stands, then each entry as the page has it, then the new ones."""

    async def read() -> None:
        reader = FeedReader(api)
        there = await reader.take(api.seq)
        assert reader.media_type == "text/event-stream; charset=utf-8"
        assert (reader.start["seq"], reader.start["epoch"]) == (8, 1)
        assert reader.start["ledger_id"] == api.runtime.ledger.ledger_id
        page = (await api.http.get("/v1/entries", headers=api.headers())).json()["entries"]
        assert [entry for _, entry in there] == page
        assert [event_id for event_id, _ in there] == list(range(1, 9))
        await deposit(api, 3, "new")
        assert [event_id for event_id, _ in await reader.take(3)] == [9, 10, 11]
        await reader.leave()
        assert not reader.ended

    api.run(read())
    assert api.app.feed.open == 0


def test_feed_resumed_in_the_middle_of_writes_has_no_gap_and_no_repeat(api: Api) -> None:
    """A reader that breaks off at random and resumes by the last id that it saw gets every entry once, in order."""

    async def read() -> list[int]:
        rng = random.Random(11)
        writing = asyncio.ensure_future(deposit(api, 700, "w"))
        seen: list[int] = []
        while len(seen) < 708:
            by_header = rng.random() < 0.5 and seen
            last = seen[-1] if seen else 0
            headers = {"Last-Event-ID": str(last)} if by_header else None
            reader = FeedReader(api, "" if by_header else f"after_seq={last}", headers)
            seen += [event_id for event_id, _ in await reader.take(min(rng.randrange(1, 90), 708 - len(seen)))]
            await reader.leave()
        await writing
        return seen

    assert api.run(read()) == list(range(1, 709))


def test_feed_last_event_id_counts_before_after_seq(api: Api) -> None:
    """A browser that connects again sends the old query with the new id."""

    async def read() -> None:
        reader = FeedReader(api, "after_seq=1", {"Last-Event-ID": "5"})
        assert [event_id for event_id, _ in await reader.take(3)] == [6, 7, 8]
        await reader.leave()

    api.run(read())


def test_feed_slow_reader_is_sent_nothing_more_and_holds_up_nobody(api: Api) -> None:
    """While one reader takes nothing, writes and another reader go on; nothing but its position is kept for it."""

    async def read() -> None:
        slow, quick = FeedReader(api), FeedReader(api)
        await slow.take(8)
        await quick.take(8)
        slow.read_no_more()
        sent = slow.sent
        await deposit(api, 500, "w")
        assert [event_id for event_id, _ in await quick.take(500)] == list(range(9, 509))
        assert slow.sent == sent
        slow.read_on()
        assert [event_id for event_id, _ in await slow.take(500)] == list(range(9, 509))
        await slow.leave()
        await quick.leave()

    api.run(read())


def test_feed_without_entries_sends_heartbeats(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments distinguish a quiet journal from a dead connection."""
    monkeypatch.setattr(operator_feed, "HEARTBEAT_SECONDS", 0.05)

    async def read() -> None:
        reader = FeedReader(api, f"after_seq={api.seq}")
        async with asyncio.timeout(20):
            while reader.comments < 3:
                await asyncio.sleep(0.01)
        await reader.leave()

    api.run(read())


def test_feed_ends_whole_when_the_service_stops(api: Api) -> None:
    """At a stop every stream ends after a complete event, and no other is opened."""

    async def read() -> None:
        readers = [FeedReader(api) for _ in range(3)]
        for reader in readers:
            await reader.take(8)
        api.app.feed.stop()
        for reader in readers:
            await reader.end()
            assert reader.ended
        late = FeedReader(api)
        await late.end()
        assert late.status == 503

    api.run(read())
    assert api.app.feed.open == 0


def test_feed_beyond_the_limit_is_refused(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of open streams is limited; one that ends makes room."""
    monkeypatch.setattr(operator_feed, "FEEDS_LIMIT", 2)

    async def read() -> None:
        first, second = FeedReader(api), FeedReader(api)
        await first.take(1)
        await second.take(1)
        third = FeedReader(api)
        await third.end()
        assert (third.status, third.media_type) == (503, "application/problem+json")
        await first.leave()
        fourth = FeedReader(api)
        await fourth.take(1)
        await fourth.leave()
        await second.leave()

    api.run(read())


def test_one_token_cannot_hold_all_streams(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that has as many as one may is refused another, other tokens are not, and one that ends makes room."""
    monkeypatch.setattr(operator_feed, "FEEDS_PER_TOKEN", 2)
    token = api.must("/v1/tokens", {"scopes": ["ledger:read"]})["token"]
    greedy = {"Authorization": f"Bearer {token}"}

    async def read() -> None:
        readers = [FeedReader(api, "", greedy) for _ in range(2)]
        for reader in readers:
            await reader.take(1)
        for _ in range(3):
            third = FeedReader(api, "", greedy)
            await third.end()
            assert (third.status, third.media_type) == (503, "application/problem+json")
        other = FeedReader(api)
        await other.take(1)
        await readers[0].leave()
        readers[0] = FeedReader(api, "", greedy)
        for reader in (*readers, other):
            await reader.take(1)
            await reader.leave()

    api.run(read())
    assert api.app.feed.open == 0


class LostTrust:
    """Judges as the watch of a node does that has lost its database."""

    def check(self) -> None:
        """Refuse everybody."""
        raise StoreUnavailable


@pytest.mark.parametrize("lost", ["revoked", "expired", "trust", "damaged"])
def test_stream_ends_whole_once_its_token_is_good_no_more(
    api: Api, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    """Whatever the reason: the stream ends by itself, also for a reader that takes nothing, and says so in the log."""
    expires_ms = api.clock() + 60_000
    made = api.must("/v1/tokens", {"scopes": ["ledger:read"], "expires_ms": expires_ms})
    tokens = api.runtime.tokens

    def lose() -> None:
        if lost == "revoked":
            tokens.revoke(made["token_id"])
        elif lost == "expired":
            api.clock.ahead_ms += 61_000
        elif lost == "trust":
            tokens.trust = LostTrust()
        else:
            with api.runtime.ledger.key_tables.together() as write:
                write.execute("UPDATE operator_tokens SET scopes = '7'")
            tokens.forget()

    async def read() -> None:
        header = {"Authorization": f"Bearer {made['token']}"}
        readers = [FeedReader(api, "", header) for _ in range(2)]
        for reader in readers:
            await reader.take(8)
        readers[0].read_no_more()
        await asyncio.to_thread(lose)
        for reader in readers:
            await reader.end()
        assert readers[1].ended

    with caplog.at_level(logging.WARNING):
        api.run(read())
    assert api.app.feed.open == 0
    cause = {"revoked": "token_revoked", "expired": "token_expired"}.get(lost, "")
    assert f"a stream of the journal for token:{made['token_id']} ended: {cause}" in caplog.text
    assert made["token"] not in caplog.text


def test_streams_of_good_tokens_go_on_while_others_are_checked(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revocations of other tokens, again and again, end no stream and lose no entry."""
    monkeypatch.setattr(operator_feed, "TOKEN_CHECK_SECONDS", 0.001)

    async def read() -> None:
        reader = FeedReader(api)
        await reader.take(8)
        for number in range(10):
            other, _ = await asyncio.to_thread(api.runtime.tokens.create, ["ledger:read"])
            await asyncio.to_thread(api.runtime.tokens.revoke, other.token_id)
            await deposit(api, 1, f"go-on-{number}")
            assert [event_id for event_id, _ in await reader.take(1)] == [9 + number]
        await reader.leave()

    api.run(read())


@pytest.mark.parametrize(
    ("query", "headers", "field"),
    [
        ("after_seq=9", {}, "after_seq"),
        ("after_seq=x", {}, "after_seq"),
        ("limit=5", {}, "limit"),
        ("", {"Last-Event-ID": "9"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": "-1"}, "Last-Event-ID"),
        ("", {"Last-Event-ID": ""}, "Last-Event-ID"),
    ],
)
def test_feed_that_cannot_be_understood_is_refused_by_name(
    api: Api, query: str, headers: dict[str, str], field: str
) -> None:
    """After an entry that is not there, as after a restore, or with another parameter, no stream begins."""
    answer = api.request(
        "GET", f"/v1/entries?{query}", headers={**api.headers(), "Accept": "text/event-stream", **headers}
    )
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem["field"]) == (422, field)


def test_feed_needs_a_token_that_reads(api: Api) -> None:
    """A stream is a read like any other."""
    answer = api.request("GET", "/v1/entries", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 401
