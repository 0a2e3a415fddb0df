"""Send one request over httpx2, blocking or async; bring back an answer, or why there is none."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from typing import NamedTuple, cast
from urllib.parse import quote, urlsplit

import httpx2

from spotledger.client.exchange import Answer, Failure, Result, Send, Sleep, Steps
from spotledger.client.quiet import quiet
from spotledger.errors import TransportError

URL_VARIABLE = "SPOTLEDGER_URL"
DEFAULT_URL = "http://127.0.0.1:8080"

CONNECT_TIMEOUT_S = 5.0
WRITE_TIMEOUT_S = 5.0
#: The longest silence while waiting for an answer or for the next piece of it.
READ_TIMEOUT_S = 10.0
#: The longest wait for a free connection of the pool.
POOL_TIMEOUT_S = 10.0
#: The longest time a body may take to arrive whole, however steadily it drips.
BODY_TIMEOUT_S = 30.0
#: The longest body that is read: 200 coins are 14 KiB, so this is ample.
BODY_LIMIT_BYTES = 4 * 1024 * 1024

#: Nothing else is asked for, so that a small answer cannot unpack to a huge one.
_HEADERS = {"Accept-Encoding": "identity", "User-Agent": "spotledger-client"}


def timeouts(read_s: float = READ_TIMEOUT_S) -> httpx2.Timeout:
    """Give the time limits of one attempt, in seconds."""
    return httpx2.Timeout(connect=CONNECT_TIMEOUT_S, write=WRITE_TIMEOUT_S, read=read_s, pool=POOL_TIMEOUT_S)


def choose_base_url(base_url: str | None) -> str:
    """Give *base_url*, else what the environment names, else this machine; checked as ``check_base_url`` does."""
    return check_base_url(base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL)


def check_base_url(base_url: str) -> str:
    """
    Give *base_url* without a slash at its end.

    Raises:
        ValueError: It is not ``http://`` or ``https://`` with a host, or it carries a user name, a query or a
            fragment. The message does not repeat it, as it may hold a password.
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


def send(client: httpx2.Client, outgoing: Send, body_limit: int = BODY_LIMIT_BYTES) -> Answer | Failure:
    """Send *outgoing* once; follow no redirect; read at most *body_limit* bytes."""
    with quiet():
        try:
            response = client.send(_request(client, outgoing), stream=True, follow_redirects=False)
            try:
                reader = _BodyReader(response, body_limit)
                for chunk in response.iter_raw():
                    if not reader.take(chunk):
                        break
            finally:
                response.close()
        except (httpx2.HTTPError, OSError) as error:
            return _failure(error)
        return reader.answer()


async def send_async(
    client: httpx2.AsyncClient, outgoing: Send, body_limit: int = BODY_LIMIT_BYTES
) -> Answer | Failure:
    """Do what ``send`` does, without blocking the event loop."""
    with quiet():
        try:
            response = await client.send(_request(client, outgoing), stream=True, follow_redirects=False)
            try:
                reader = _BodyReader(response, body_limit)
                async for chunk in response.aiter_raw():
                    if not reader.take(chunk):
                        break
            finally:
                await response.aclose()
        except (httpx2.HTTPError, OSError) as error:
            return _failure(error)
        return reader.answer()


class Started(NamedTuple):
    """The head of an answer whose body comes piece by piece."""

    status: int
    #: Names in lower case.
    headers: Mapping[str, str]


def stream(client: httpx2.Client, outgoing: Send) -> Generator[Started | bytes, None, None]:
    """
    Send *outgoing* once; give the head of the answer, then its body as it comes.

    Raises:
        TransportError: The connection could not be made, or broke.
    """
    try:
        with quiet():
            response = client.send(_request(client, outgoing), stream=True, follow_redirects=False)
        try:
            yield Started(response.status_code, dict(response.headers))
            pieces = response.iter_raw()
            while True:
                with quiet():
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            response.close()
    except (httpx2.HTTPError, OSError) as error:
        reason = _failure(error).reason
    raise TransportError(reason)


async def stream_async(client: httpx2.AsyncClient, outgoing: Send) -> AsyncGenerator[Started | bytes, None]:
    """Do what ``stream`` does, without blocking the event loop."""
    try:
        with quiet():
            response = await client.send(_request(client, outgoing), stream=True, follow_redirects=False)
        try:
            yield Started(response.status_code, dict(response.headers))
            pieces = response.aiter_raw()
            while True:
                with quiet():
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            await response.aclose()
    except (httpx2.HTTPError, OSError) as error:
        reason = _failure(error).reason
    raise TransportError(reason)


def drive(client: httpx2.Client, steps: Steps[Result], body_limit: int = BODY_LIMIT_BYTES) -> Result:
    """Do what *steps* asks for, blocking, and give its result."""
    told: Answer | Failure | None = None
    while True:
        try:
            step = steps.send(told)
        except StopIteration as stop:
            return cast("Result", stop.value)
        if isinstance(step, Sleep):
            time.sleep(step.seconds)
            told = None
        else:
            told = send(client, step, body_limit)


async def drive_async(client: httpx2.AsyncClient, steps: Steps[Result], body_limit: int = BODY_LIMIT_BYTES) -> Result:
    """Do what ``drive`` does, without blocking the event loop."""
    told: Answer | Failure | None = None
    while True:
        try:
            step = steps.send(told)
        except StopIteration as stop:
            return cast("Result", stop.value)
        if isinstance(step, Sleep):
            await asyncio.sleep(step.seconds)
            told = None
        else:
            told = await send_async(client, step, body_limit)


class _BodyReader:
    """Collect the pieces of one body, up to a limit of bytes and of time."""

    def __init__(self, response: httpx2.Response, limit: int) -> None:
        self._response = response
        self._limit = limit
        self._deadline = time.monotonic() + BODY_TIMEOUT_S
        self._pieces: list[bytes] = []
        self._size = 0
        self._usable = response.headers.get("content-encoding", "identity").lower() == "identity"

    def take(self, piece: bytes) -> bool:
        """Say whether more is wanted."""
        self._size += len(piece)
        if self._size > self._limit:
            self._usable = False
        if time.monotonic() > self._deadline:
            raise httpx2.ReadTimeout("the body took too long")
        if self._usable:
            self._pieces.append(piece)
        return self._usable

    def answer(self) -> Answer:
        body = b"".join(self._pieces) if self._usable else None
        return Answer(self._response.status_code, dict(self._response.headers), body)


def _request(client: httpx2.Client | httpx2.AsyncClient, outgoing: Send) -> httpx2.Request:
    """Write names and values percent-encoded as they stand, in their order."""
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in outgoing.params)
    url = f"{outgoing.url}?{query}" if query else outgoing.url
    headers = {**_HEADERS, **outgoing.headers}
    return client.build_request(outgoing.method, url, content=outgoing.content, headers=headers)


_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (httpx2.ConnectTimeout, "no connection in time"),
    (httpx2.PoolTimeout, "every connection was in use for too long"),
    (httpx2.WriteTimeout, "the request could not be written in time"),
    (httpx2.ReadTimeout, "no whole answer in time"),
    (httpx2.ProxyError, "the proxy refused"),
    (httpx2.RemoteProtocolError, "the connection ended before a whole HTTP answer came"),
    (httpx2.NetworkError, "the connection broke"),
)


def _failure(error: Exception) -> Failure:
    """
    Name what happened in own words.

    The library's exceptions carry the request with its URL, so none of them is kept or chained. Only the text
    of a failed connection is repeated: it comes from the operating system, before anything was sent.
    """
    if isinstance(error, httpx2.ConnectError):
        return Failure(f"could not connect: {error}")
    for kind, reason in _REASONS:
        if isinstance(error, kind):
            return Failure(reason)
    return Failure(f"the HTTP library gave up ({type(error).__name__})")
