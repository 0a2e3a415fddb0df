"""
The HTTP server of spotledger without spotledger: one handler that returns fixed bytes and headers.

What it reaches is what any handler on this server could reach.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import uvloop

from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest, Reply, Request
from spotledger.http.h1.server import HttpServer


class FixedAnswer:
    """Answers every request with *body* and *headers*."""

    def __init__(self, headers: list[tuple[str, str]], body: bytes) -> None:
        self.lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode()
        self.body = body

    def at_once(self, request: Request) -> Reply:
        """Answer one request."""
        reply = Reply(200, self.body)
        reply.lines = self.lines
        return reply

    async def answer(self, request: Request) -> Reply:
        """Answer one request."""
        return self.at_once(request)

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Refuse one request."""
        return Reply(400, problem.reason.encode())


async def serve(port: int, application: FixedAnswer) -> None:
    """Serve *application* on *port* until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = HttpServer(application, listener, Limits())
        await server.start()
        await stop.wait()
        await server.stop(1)


def main() -> None:
    """Take the port and the file with headers and body from the command line."""
    answer = json.loads(Path(sys.argv[2]).read_text())
    headers = [(name, value) for name, value in answer["headers"]]
    uvloop.run(serve(int(sys.argv[1]), FixedAnswer(headers, answer["body"].encode())))


if __name__ == "__main__":
    main()
