"""
A raw handler on granian that returns fixed bytes and headers: a peer of the HTTP server of spotledger.

Its bounds are those of ``spotledger.http.h1``, as far as granian has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop
from granian.constants import HTTPModes
from granian.http import HTTP1Settings
from granian.server.embed import Server


class FixedAnswer:
    """Answers every request with *body* and *headers*."""

    def __init__(self, headers: list[tuple[str, str]], body: bytes) -> None:
        self.headers = headers
        self.body = body

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one request."""
        protocol.response_bytes(200, self.headers, self.body)


async def serve(port: int, application: FixedAnswer) -> None:
    """Serve *application* on *port* until SIGTERM."""
    server = Server(
        application,
        address="127.0.0.1",
        port=port,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=10_000, max_buffer_size=64 * 1024),
        websockets=False,
        backlog=1024,
        backpressure=10_000,
        log_enabled=False,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.stop)
    with contextlib.suppress(asyncio.CancelledError):
        await server.serve()


def main() -> None:
    """Take the port and the file with headers and body from the command line."""
    answer = json.loads(Path(sys.argv[2]).read_text())
    headers = [(name, value) for name, value in answer["headers"]]
    uvloop.run(serve(int(sys.argv[1]), FixedAnswer(headers, answer["body"].encode())))


if __name__ == "__main__":
    main()
