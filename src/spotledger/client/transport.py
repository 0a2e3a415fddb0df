"""What the blocking and the async driver share: addresses, timeouts, requests, bodies, reasons for a failure."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import httpx2

from spotledger.client.exchange import Answer, Failure, Send

URL_VARIABLE = "SPOTLEDGER_URL"
DEFAULT_URL = "http://127.0.0.1:8080"

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 5.0
#: The longest silence while waiting for an answer or for its next piece.
READ_TIMEOUT_S = 10.0
#: The longest wait for a free connection of the pool.
POOL_TIMEOUT_S = 10.0
#: The longest time in which a body may arrive, however steadily it drips.
BODY_TIMEOUT_S = 30.0
#: The longest body that is read. The balances of 200 coins are 14 KiB.
BODY_LIMIT_BYTES = 4 * 1024 * 1024

#: Identity encoding only, so that a small answer cannot decompress to a huge one.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "spotledger-client"}


def timeouts(read_s: float = READ_TIMEOUT_S) -> httpx2.Timeout:
    """Return the time limits of one attempt, in seconds."""
    return httpx2.Timeout(connect=CONNECT_TIMEOUT_S, write=WRITE_TIMEOUT_S, read=read_s, pool=POOL_TIMEOUT_S)


def open_http(owner: object, transport: httpx2.BaseTransport | None, proxy: str | None, read_s: float) -> httpx2.Client:
    """
    Return an HTTP client for *owner*; its connections are closed at the latest when *owner* is garbage-collected.

    Args:
        owner: The object whose client it is.
        transport: Used in place of the network.
        proxy: The URL of a proxy, or None. The environment's proxies are never used: a request carries a credential.
        read_s: The longest silence while waiting for an answer, in seconds.
    """
    used = transport or httpx2.HTTPTransport(proxy=check_proxy(proxy))
    client = httpx2.Client(transport=used, timeout=timeouts(read_s), trust_env=False)
    weakref.finalize(owner, client.close)
    return client


def open_http_async(
    owner: object, transport: httpx2.AsyncBaseTransport | None, proxy: str | None, read_s: float
) -> httpx2.AsyncClient:
    """Return what ``open_http`` does, for asyncio. *owner* closes it: closing is a coroutine."""
    used = transport or httpx2.AsyncHTTPTransport(proxy=check_proxy(proxy))
    return httpx2.AsyncClient(transport=used, timeout=timeouts(read_s), trust_env=False)


def check_proxy(proxy: str | None) -> str | None:
    """
    Return *proxy*, the URL of an HTTP proxy, which may have a user name and a password.

    Raises:
        ValueError: It has another form. The message does not repeat it, because it may contain a password.
    """
    if proxy is None:
        return None
    try:
        parts = urlsplit(proxy)
        named = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port is not None
    except ValueError:
        named = False
    if not named or not proxy.isprintable() or " " in proxy:
        raise ValueError("proxy must look like http://host:port or http://user:password@host:port")
    return proxy


def choose_base_url(base_url: str | None) -> str:
    """Return *base_url*, else ``SPOTLEDGER_URL``, else this machine; checked as ``check_base_url`` does."""
    return check_base_url(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)


def check_base_url(base_url: str) -> str:
    """
    Return *base_url* without a trailing slash.

    Raises:
        ValueError: It is not ``http://`` or ``https://`` with a host, or it has a user name, a query or a fragment.
            The message does not repeat it, because it may contain a password.
    """
    wanted = "base_url must look like http://host:port or https://host/path"
    try:
        parts = urlsplit(base_url)
        _ = parts.port
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(wanted)
    if parts.username is not None or not base_url.isprintable() or any(sign in base_url for sign in "?# "):
        raise ValueError(f"{wanted}, with no user name, query or fragment in it")
    return base_url.rstrip("/")


class Started(NamedTuple):
    """The status and headers of an answer whose body is streamed."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]


def request_of(client: httpx2.Client | httpx2.AsyncClient, outgoing: Send) -> httpx2.Request:
    """Build the HTTP request; names and values of the query are percent-encoded and keep their order."""
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in outgoing.params)
    url = f"{outgoing.url}?{query}" if query else outgoing.url
    headers = {**_HEADERS, **outgoing.headers}
    return client.build_request(outgoing.method, url, content=outgoing.content, headers=headers)


class BodyReader:
    """Collect the pieces of one body, up to a limit of bytes and of time."""

    def __init__(self, response: httpx2.Response, limit: int) -> None:
        self._response = response
        self._limit = limit
        self._deadline = time.monotonic() + BODY_TIMEOUT_S
        self._pieces: list[bytes] = []
        self._size = 0
        self._usable = response.headers.get("content-encoding", "identity").lower() == "identity"

    def take(self, piece: bytes) -> bool:
        """Add *piece*; return whether to go on reading."""
        self._size += len(piece)
        if self._size > self._limit:
            self._usable = False
        if time.monotonic() > self._deadline:
            raise httpx2.ReadTimeout("the body took too long")
        if self._usable:
            self._pieces.append(piece)
        return self._usable

    def answer(self) -> Answer:
        """Return the answer, without a body if it was too long or encoded."""
        body = b"".join(self._pieces) if self._usable else None
        return Answer(self._response.status_code, dict(self._response.headers), body)


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (httpx2.ConnectTimeout, "no connection in time"),
    (httpx2.PoolTimeout, "every connection was in use for too long"),
    (httpx2.WriteTimeout, "the request could not be written in time"),
    (httpx2.ReadTimeout, "no whole answer in time"),
    (httpx2.ProxyError, "the proxy refused"),
    (httpx2.RemoteProtocolError, "the connection ended before a whole HTTP answer came"),
    (httpx2.NetworkError, "the connection broke"),
)


def failure_of(error: Exception) -> Failure:
    """
    Return a failure whose reason is our own text.

    The library's exceptions carry the request with its URL, so none of them is kept or chained. Only the text of a
    failed connection is repeated: it comes from the operating system, before anything was sent.
    """
    if isinstance(error, httpx2.ConnectError):
        return Failure(f"could not connect: {error}")
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return Failure(reason)
    return Failure(f"the HTTP library gave up ({type(error).__name__})")
