"""
Keep the requests of this client out of the logs of the HTTP library.

httpx2 logs the whole URL of every request at INFO, and a signed URL contains the access key and a signature that is
valid for half a minute. httpcore2 logs the headers of answers at DEBUG, and a redirect repeats the URL in them. Only
records from within a request of this client are dropped, so other code in the process keeps its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

#: Every logger of the HTTP library: a filter applies to its own logger only, not to that logger's children.
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
    """Drops records that are logged within ``quiet()``."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _sending.get()


_FILTER = _DropWhileSending("spotledger.client")


@contextmanager
def quiet() -> Iterator[None]:
    """Drop the log records of the HTTP library in this thread or task until the block ends."""
    for name in SILENCED_LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)  # a filter that is already there is not added again
    before = _sending.set(True)
    try:
        yield
    finally:
        _sending.reset(before)
