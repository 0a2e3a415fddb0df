"""A reader of server-sent events over the operator's application; a test decides how fast it reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from spotledger.http.h1.request import Request
from support_operator import Api


class FeedReader:
    """One open stream; use it within the event loop of the API."""

    def __init__(self, api: Api, query: str = "", headers: dict[str, str] | None = None) -> None:
        self.status = 0
        self.comments = 0
        self.start: dict[str, Any] = {}
        self.sent = 0
        self.ended = False
        self._events: asyncio.Queue[tuple[Any, dict[str, Any]] | None] = asyncio.Queue()
        self._gate = asyncio.Event()
        self._gate.set()
        self._gone = asyncio.Event()
        self._text = b""
        named = {**api.headers(), "Accept": "text/event-stream", **(headers or {})}
        request = Request(
            "GET", "/v1/entries", query, [(name.lower().encode(), value.encode()) for name, value in named.items()]
        )
        self._task = asyncio.ensure_future(self._run(api, request))

    async def _run(self, api: Api, request: Request) -> None:
        reply = await api.app.answer(request)
        self.status = reply.status
        self.media_type = dict(reply.headers)[b"content-type"].decode()
        if reply.stream is None:
            return
        self.ended = await reply.stream(self)
        if self.ended:
            self._events.put_nowait(None)

    async def gone(self) -> None:
        """Return when this reader has left."""
        await self._gone.wait()

    async def send(self, piece: bytes) -> None:
        """Take a piece, unless this reader takes nothing."""
        await self._gate.wait()
        self.sent += 1
        self._text += piece
        *events, self._text = self._text.split(b"\n\n")
        for event in events:
            self._take(event.decode())

    def _take(self, event: str) -> None:
        if event.startswith(":"):
            self.comments += 1
            return
        fields = dict(line.split(": ", 1) for line in event.split("\n"))
        if fields.get("event") == "start":
            self.start = json.loads(fields["data"])
        else:
            event_id = fields["id"]
            self._events.put_nowait((int(event_id) if event_id.isdecimal() else event_id, json.loads(fields["data"])))

    async def take(self, count: int) -> list[tuple[Any, dict[str, Any]]]:
        """Return the next *count* events."""
        found = []
        async with asyncio.timeout(20):
            for _ in range(count):
                event = await self._events.get()
                assert event is not None, "the stream ended"
                found.append(event)
        return found

    def read_no_more(self) -> None:
        """Take nothing from now on, as a reader does whose buffers are full."""
        self._gate.clear()

    def read_on(self) -> None:
        """Take again what comes."""
        self._gate.set()

    async def leave(self) -> None:
        """Close the connection."""
        self._gone.set()
        self._gate.set()
        async with asyncio.timeout(20):
            await self._task

    async def end(self) -> None:
        """Wait until the service has ended the stream."""
        async with asyncio.timeout(20):
            await self._task
