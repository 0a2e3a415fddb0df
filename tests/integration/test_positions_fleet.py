"""A node that has not heard of an epoch yet never says that a position of it is of another history."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.ops.settings import ServerUrl
from support_feed import FeedReader
from support_operator import Api, operator_api

PAGES = [
    ("/v1/entries", "after_seq"),
    ("/v1/customers/bob/entries", "after_seq"),
    ("/v1/customers/bob/balances", "at_seq"),
    ("/v1/customers/bob/holds", "after"),
    ("/v1/holds", "after"),
]


@pytest.fixture
def behind(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Give a node that is at entry 8, while another one has begun epoch 2 with entry 9; it follows when told to."""
    with operator_api(tmp_path / "node", database=ServerUrl(postgres_url)) as api:
        api.set_up()
        monkeypatch.setattr("spotledger.http.operator.calls.MIN_SEQ_WAIT_SECONDS", 0.05)
        store: Any = api.runtime.ledger._store
        store._follower.stop()
        store._follower = None
        with spotledger.open(postgres_url, follow_seconds=None) as other:
            assert other.begin_epoch("set back") == 9
        assert api.runtime.ledger.epoch == 1
        yield api


@pytest.mark.parametrize(("path", "name"), PAGES)
def test_page_after_an_entry_of_a_new_epoch_waits_for_it(behind: Api, path: str, name: str) -> None:
    """A cursor that another node gave out a moment ago is good here too."""
    assert behind.get(path, **{name: "2-9"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/entries/2-9", *(f"{path}?{name}=2-9" for path, name in PAGES)])
def test_reader_that_does_not_reach_the_new_epoch_says_try_again(
    behind: Api, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A standby that lags answers 503: a follower that is told to undo what it has would do so."""
    monkeypatch.setattr(behind.runtime.ledger, "to_head", lambda: None)
    answer = behind.request("GET", path, headers=behind.headers())
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "last_common" not in answer.json()
    assert behind.runtime.ledger.epoch == 1


def test_stream_goes_on_after_an_entry_of_a_new_epoch(behind: Api) -> None:
    """A stream that another node began is resumed on one that has not heard of its last event."""

    async def read() -> None:
        reader = FeedReader(behind, headers={"Last-Event-ID": "2-9"})
        while not reader.status:
            await asyncio.sleep(0.001)
        assert reader.status == 200
        await reader.leave()

    behind.run(read())
