"""The operator listener of a test on a real socket, and connections to it on which a test sends bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.server import HttpServer
from support_operator import Api

DEPOSIT = json.dumps({"customer": "alice", "coin": "usdt", "amount": "1"}).encode()


class Said(NamedTuple):
    """One answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class Wire:
    """One connection to the listener, on which a test sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read the head of an answer."""
        async with asyncio.timeout(20):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = text.strip().split("\r\n")
        return int(first.split()[1]), dict(line.split(": ", 1) for line in lines)

    async def answer(self, method: str = "POST") -> Said:
        """Read one answer that has a length."""
        status, headers = await self.head()
        length = 0 if method == "HEAD" else int(headers["content-length"])
        async with asyncio.timeout(20):
            return Said(status, headers, await self.reader.readexactly(length))

    def finish(self) -> None:
        """Send no more; the listener may have closed the connection already."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.write_eof()

    async def ended(self) -> bytes:
        """Return what still comes until the connection is closed."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


class Listener:
    """The operator API of a test, on a socket."""

    def __init__(self, api: Api, loop_socket: socket.socket) -> None:
        self.api = api
        self.socket = loop_socket
        self.wires: list[Wire] = []
        self.limits = Limits()

    def run(self, talk: Callable[[Listener], Awaitable[None]]) -> bool:
        """Serve while *talk* goes on; return whether all was answered at the end."""

        async def serve() -> bool:
            self.server = HttpServer(self.api.app, self.socket, self.limits)
            await self.server.start()
            try:
                async with asyncio.timeout(60):
                    await talk(self)
            finally:
                whole = await self.server.stop(0.5)
                for wire in self.wires:
                    wire.writer.close()
            return whole

        return self.api.run(serve())

    async def connect(self, limit: int = 2**22) -> Wire:
        """Open a connection."""
        wire = Wire(*await asyncio.open_connection(*self.socket.getsockname(), limit=limit))
        self.wires.append(wire)
        return wire

    def post(self, key: str, body: bytes = DEPOSIT, *more: str) -> bytes:
        """Return a deposit as bytes."""
        return (
            self.head("POST", "/v1/deposits", f"Idempotency-Key: {key}", f"Content-Length: {len(body)}", *more) + body
        )

    def head(self, method: str, target: str, *more: str, version: str = "1.1") -> bytes:
        """Return the head of a request with a good token."""
        lines = [f"{method} {target} HTTP/{version}", "Host: x", f"Authorization: Bearer {self.api.token}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
