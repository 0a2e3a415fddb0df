# Generated from async_driver.py by tools/generate_blocking_client.py (`make generate`). Do not edit.

"""Send requests over httpx2, blocking: one at a time, as a stream, or as the steps of a call."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import cast

import httpx2

from spotledger.client.exchange import Answer, Failure, Result, Send, Sleep, Steps
from spotledger.client.quiet import quiet
from spotledger.client.transport import BODY_LIMIT_BYTES, BodyReader, Started, failure_of, request_of
from spotledger.errors import TransportError


def send(client: httpx2.Client, outgoing: Send, body_limit: int = BODY_LIMIT_BYTES) -> Answer | Failure:
    """Send *outgoing* once; follow no redirect; read at most *body_limit* bytes."""
    with quiet():
        try:
            response = client.send(request_of(client, outgoing), stream=True, follow_redirects=False)
            try:
                reader = BodyReader(response, body_limit)
                for chunk in response.iter_raw():
                    if not reader.take(chunk):
                        break
            finally:
                response.close()
        except (httpx2.HTTPError, OSError) as error:
            return failure_of(error)
        return reader.answer()


def stream(client: httpx2.Client, outgoing: Send) -> Generator[Started | bytes, None, None]:
    """
    Send *outgoing* once; yield the head of the answer, then each piece of its body as it arrives.

    Raises:
        TransportError: The connection could not be made, or broke.
    """
    try:
        with quiet():
            response = client.send(request_of(client, outgoing), stream=True, follow_redirects=False)
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
        reason = failure_of(error).reason
    raise TransportError(reason)


def drive(client: httpx2.Client, steps: Steps[Result], body_limit: int = BODY_LIMIT_BYTES) -> Result:
    """Do each of *steps* and return their result."""
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
