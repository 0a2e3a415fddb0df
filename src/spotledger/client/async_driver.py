"""Send requests over httpx2, for asyncio: one at a time, as a stream, or as the steps of a call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import cast

import httpx2

from spotledger.client.exchange import Answer, Failure, Result, Send, Sleep, Steps
from spotledger.client.quiet import quiet
from spotledger.client.transport import BODY_LIMIT_BYTES, BodyReader, Started, failure_of, request_of
from spotledger.errors import TransportError


async def send_async(
    client: httpx2.AsyncClient, outgoing: Send, body_limit: int = BODY_LIMIT_BYTES
) -> Answer | Failure:
    """Send *outgoing* once; follow no redirect; read at most *body_limit* bytes."""
    with quiet():
        try:
            response = await client.send(request_of(client, outgoing), stream=True, follow_redirects=False)
            try:
                reader = BodyReader(response, body_limit)
                async for chunk in response.aiter_raw():
                    if not reader.take(chunk):
                        break
            finally:
                await response.aclose()
        except (httpx2.HTTPError, OSError) as error:
            return failure_of(error)
        return reader.answer()


async def stream_async(client: httpx2.AsyncClient, outgoing: Send) -> AsyncGenerator[Started | bytes, None]:
    """
    Send *outgoing* once; yield the head of the answer, then each piece of its body as it arrives.

    Raises:
        TransportError: The connection could not be made, or broke.
    """
    try:
        with quiet():
            response = await client.send(request_of(client, outgoing), stream=True, follow_redirects=False)
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
        reason = failure_of(error).reason
    raise TransportError(reason)


async def drive_async(client: httpx2.AsyncClient, steps: Steps[Result], body_limit: int = BODY_LIMIT_BYTES) -> Result:
    """Do each of *steps* and return their result."""
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
