"""A server that answers every request with JSON and remembers what it was asked, for clients that must not trust it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JsonServer(ThreadingHTTPServer):
    """Answers what *answer* returns; serves in a thread until it is shut down."""

    daemon_threads = True

    def __init__(self, answer: Callable[[], dict[str, object]] = dict) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        #: The paths that were asked for, and each with its headers.
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.answer = answer
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.heads.append(f"{self.path} {self.headers}")
        body = json.dumps(self.server.answer()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
