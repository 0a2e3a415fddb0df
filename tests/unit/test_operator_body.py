"""Reading the body of a request of the operator API: whole, of bounded size, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from spotledger.errors import MalformedRequest
from spotledger.http import operator_calls
from spotledger.http.operator_calls import read_body


class Sender:
    """Gives the pieces of a body, and then nothing more where the last of them is not the end."""

    def __init__(self, pieces: Iterable[bytes], *, ends: bool = True) -> None:
        self.pieces = list(pieces)
        self.ends = ends

    async def __call__(self) -> dict[str, Any]:
        if not self.pieces:
            await asyncio.Event().wait()
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or not self.ends}


def test_body_in_pieces_is_read_whole() -> None:
    """Pieces are put together in their order."""
    assert asyncio.run(read_body(Sender([b"ab", b"", b"c"]))) == b"abc"
    assert asyncio.run(read_body(Sender([b""]))) == b""


def test_body_over_the_limit_is_refused() -> None:
    """As many bytes as the limit says pass, and one more does not."""
    assert asyncio.run(read_body(Sender([b"ab", b"cd"]), 4)) == b"abcd"
    with pytest.raises(MalformedRequest, match="longer than 4 bytes"):
        asyncio.run(read_body(Sender([b"ab", b"cde"], ends=False), 4))


def test_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops half-way is refused after the time limit, and its task is not left as cancelled."""
    monkeypatch.setattr(operator_calls, "BODY_TIMEOUT_SECONDS", 0.01)

    async def read() -> int:
        with pytest.raises(MalformedRequest, match="did not come whole"):
            await read_body(Sender([b"ab"], ends=False))
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(read()) == 0


def test_cancelling_from_elsewhere_is_passed_on() -> None:
    """A task that somebody else cancels while it reads ends as cancelled, and its timer with it."""

    async def read() -> bool:
        task = asyncio.create_task(read_body(Sender([b"ab"], ends=False)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert asyncio.run(read())
