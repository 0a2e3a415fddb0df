"""The operator API for a client in the same process: httpx's transport, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from spotledger.http.h1.request import Answers, Request, Stream, StreamWriter


class OperatorTransport(httpx2.AsyncBaseTransport):
    """Carry requests to *app* and its answers back."""

    def __init__(self, app: Answers) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Have one request answered."""
        url = request.url
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        asked = Request(request.method, url.path, url.query.decode("latin-1"), headers, await request.aread())
        reply = await self._app.answer(asked)
        if reply.stream is not None:
            return httpx2.Response(reply.status, headers=reply.headers, stream=_Streamed(reply.stream))
        body = b"" if request.method == "HEAD" else reply.body
        length = (b"content-length", b"%d" % len(reply.body))
        return httpx2.Response(reply.status, headers=[*reply.headers, length], stream=httpx2.ByteStream(body))


class _Streamed(httpx2.AsyncByteStream, StreamWriter):
    """A streamed answer, of which one piece at a time is on its way."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._left = asyncio.Event()

    async def send(self, piece: bytes) -> None:
        """Send a piece once the one before it was taken."""
        await self._pieces.put(piece)

    async def gone(self) -> None:
        """Return when the reader has gone."""
        await self._left.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the pieces."""
        sending = asyncio.ensure_future(self._run())
        try:
            while (piece := await self._pieces.get()) is not None:
                yield piece
        finally:
            self._left.set()
            sending.cancel()

    async def _run(self) -> None:
        await self._stream(self)
        await self._pieces.put(None)

    async def aclose(self) -> None:
        """Read no more."""
        self._left.set()
