"""
Keep the logs of the HTTP library silent about what this client sends.

httpx2 writes the whole URL of every request to its log at INFO, and a signed URL holds the access key and a
signature that is good for half a minute. httpcore2 writes the headers of answers at DEBUG, and a redirect
repeats the URL in them. Other code of the same process keeps its log lines: only what happens while this
client is sending is dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Every logger of the HTTP library, by name: a filter works on its own logger only, not on those below it.
SILENCED_LOGGERS = (
    "httpx2",
    "httpcore2",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
)

_sending: ContextVar[bool] = ContextVar("spotledger_client_sending", default=False)


class _DropWhileSending(logging.Filter):
    """Drop what is logged from inside ``quiet()``."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _sending.get()


_FILTER = _DropWhileSending("spotledger.client")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop log lines of the HTTP library in this thread or task until the block ends."""
    for name in SILENCED_LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)  # adding it again changes nothing
    before = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(before)
