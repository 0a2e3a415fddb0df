"""The public listener on the HTTP server: its requests become those of `PublicApp`, and its answers replies."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Final

from spotledger.errors import MalformedRequest
from spotledger.http.h1.limits import Limits
from spotledger.http.h1.request import BadRequest, BodySource, Header, Reply, Request
from spotledger.http.public.answers import Answer
from spotledger.http.public.app import PublicApp
from spotledger.http.public.request import QUERY_MAX_BYTES, RequestBody

BODY_TIMEOUT_SECONDS: Final = 10.0


def public_limits(limits: Limits) -> Limits:
    """Return *limits* for this listener: a body beyond what any call takes is refused before it has arrived."""
    return dataclasses.replace(limits, body_ahead_bytes=QUERY_MAX_BYTES)


class PublicListener:
    """Serve *app* as an application of the HTTP server."""

    def __init__(self, app: PublicApp) -> None:
        self._app = app
        #: A gate that shares its counts with other nodes waits for them; without one no call waits.
        self._waits = app.gate.shared is not None

    def at_once(self, request: Request) -> Reply | None:
        """Answer without a task, unless the answer has to be waited for."""
        body = request.body
        if self._waits or not isinstance(body, bytes) or len(body) > QUERY_MAX_BYTES:
            return None
        answering = self._app.answer(
            request.method, request.path, request.query, HeaderView(request.headers), request.peer, body
        )
        try:
            answering.send(None)
        except StopIteration as ended:
            return _reply(ended.value)
        answering.close()
        raise AssertionError("a call waits for something; it needs a task")

    async def answer(self, request: Request) -> Reply:
        """Answer one request; its body may still have to arrive."""
        body = await _arrived(request.body)
        headers = HeaderView(request.headers)
        return _reply(await self._app.answer(request.method, request.path, request.query, headers, request.peer, body))

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Return the answer to a request that could not be read: the documented form, with status 400."""
        answer = self._app.refuse_unread(MalformedRequest(problem.reason), peer)
        return _reply(answer._replace(status=400))


class HeaderView:
    """The headers of a request as text, decoded only if they are asked for."""

    __slots__ = ("_headers",)

    def __init__(self, headers: Sequence[Header]) -> None:
        self._headers = headers

    def get(self, key: str, /) -> str | None:
        """Return the value of the first header *key*, or None."""
        wanted = key.encode()
        return next((value.decode("latin-1") for name, value in self._headers if name == wanted), None)

    def get_all(self, key: str, /) -> list[str]:
        """Return the values of all headers *key*."""
        wanted = key.encode()
        return [value.decode("latin-1") for name, value in self._headers if name == wanted]


async def _arrived(body: bytes | BodySource) -> RequestBody:
    """Return a body once it is complete, or why it was not read: too long, too slow, or cut off."""
    try:
        if not isinstance(body, bytes):
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                body = await body.read(QUERY_MAX_BYTES)
    except TimeoutError:
        return MalformedRequest(f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s.")
    except BadRequest as problem:
        return MalformedRequest(problem.reason)
    if len(body) > QUERY_MAX_BYTES:
        return MalformedRequest(f"The body is longer than {QUERY_MAX_BYTES} bytes; that many would pass.")
    return body


def _reply(answer: Answer) -> Reply:
    reply = Reply(answer.status, answer.body)
    reply.lines = answer.lines.encode("latin-1")
    return reply
