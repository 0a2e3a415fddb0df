"""An ASGI application that returns fixed bytes and headers, for uvicorn; ``BENCH_ANSWER`` names the file with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_answer = json.loads(Path(os.environ["BENCH_ANSWER"]).read_text())
_body = _answer["body"].encode()
_headers = [(name.encode(), value.encode()) for name, value in _answer["headers"]]
_headers.append((b"content-length", b"%d" % len(_body)))


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer one request."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _headers})
        await send({"type": "http.response.body", "body": _body})
