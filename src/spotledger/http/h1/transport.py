"""A transport of httpx for a client in the same process: it calls the application without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2

from spotledger.http.h1.request import Application, LateReply, Reply, Request, Stream, StreamWriter


class InProcessTransport(httpx2.AsyncBaseTransport):
    """Pass requests to *app* and return its answers."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to one request."""
        url = request.url
        headers = [(name.lower(), value) for name, value in request.headers.raw]
        asked = Request(request.method, url.path, url.query.decode("latin-1"), headers, await request.aread())
        reply = await self._answered(asked)
        lines = [line.partition(b": ") for line in reply.lines.split(b"\r\n") if line]
        said = [*((name, value) for name, _, value in lines), *reply.headers]
        if reply.stream is not None:
            return httpx2.Response(reply.status, headers=said, stream=_Streamed(reply.stream))
        body = b"" if request.method == "HEAD" else reply.body
        length = (b"content-length", b"%d" % len(reply.body))
        return httpx2.Response(reply.status, headers=[*said, length], stream=httpx2.ByteStream(body))

    async def _answered(self, request: Request) -> Reply:
        reply = self._app.at_once(request)
        if isinstance(reply, LateReply):
            await asyncio.wait([reply.future])
            reply = reply.make(reply.future)
        return reply or await self._app.answer(request)


class _Streamed(httpx2.AsyncByteStream, StreamWriter):
    """A streamed answer; one piece at a time is in flight."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._left = asyncio.Event()

    async def send(self, piece: bytes) -> None:
        """Send a piece once the previous one was taken."""
        await self._pieces.put(piece)

    async def gone(self) -> None:
        """Return when the client has stopped reading."""
        await self._left.wait()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces."""
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
        """Stop reading."""
        self._left.set()
