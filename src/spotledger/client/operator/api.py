"""The operator API, called from Python: over the network, or in one process through another transport."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx2

from spotledger.client.async_driver import send_async
from spotledger.client.exchange import Answer, Failure, Send
from spotledger.client.problems import error_of_problem
from spotledger.client.reading import read_object
from spotledger.client.transport import check_base_url, timeouts
from spotledger.errors import ProtocolError, TransportError

#: A thousand entries of a page, each with some postings, fit well.
OPERATOR_BODY_LIMIT_BYTES = 64 * 1024 * 1024
#: A whole batch, an audit's start or a backup may take its time.
OPERATOR_READ_TIMEOUT_S = 60.0

_SUCCESSES = range(200, 300)

Reply = tuple[int, Mapping[str, str], dict[str, Any]]


class OperatorClient:
    """
    Call the operator API.

    Use it as an async context manager, or call ``aclose`` at the end. It sends each call once: after a
    TransportError, send the same call with the same key again to learn what became of it.
    """

    def __init__(self, base_url: str, token: str, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """
        Take the address of the operator listener and a token.

        Args:
            base_url: Such as ``http://127.0.0.1:8081``; with *transport*, any host name will do.
            token: An operator token. It is shown by no message, ``repr`` or log line of this client.
            transport: Used in place of the network, such as one to the API in the same process.

        Raises:
            ValueError: *base_url* is not an http or https address, or *token* is not printable ASCII.
        """
        self._token = check_token(token)
        self._base_url = check_base_url(base_url)
        self._http = httpx2.AsyncClient(transport=transport, timeout=timeouts(OPERATOR_READ_TIMEOUT_S))

    def __repr__(self) -> str:
        return f"OperatorClient({self._base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        params: Mapping[str, str | int | None] | None = None,
    ) -> Reply:
        """
        Make one call.

        Args:
            method: ``"GET"``, ``"POST"`` or ``"DELETE"``.
            path: Begins with ``/``, already percent-encoded.
            body: Sent as JSON; amounts in it are decimal text.
            key: The idempotency key of a write.
            params: The query; what is None is left out.

        Returns:
            The HTTP status, the headers with names in lower case, and the decoded body (``{}`` for none).
            ``headers.get("idempotency-replayed") == "true"`` marks the repeat of an earlier answer.

        Raises:
            Refused, Denied, Unavailable: In the class whose ``code`` is the answer's.
            TransportError: No answer came; whether the call was carried out is unknown.
            ProtocolError: An answer came that is not of the documented form.
            ValueError: *path* has no ``/`` at its start, or holds a query or a fragment.
        """
        send = outgoing(self._base_url, self._token, method, path, body, key, params)
        answer = await send_async(self._http, send, OPERATOR_BODY_LIMIT_BYTES)
        if isinstance(answer, Failure):
            raise TransportError(f"{method} {self._base_url}: {answer.reason}")
        return read_reply(answer)


def outgoing(
    base_url: str,
    token: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    key: str | None = None,
    params: Mapping[str, str | int | None] | None = None,
) -> Send:
    """
    Return the request of one call; see :meth:`OperatorClient.call` for the arguments.

    Raises:
        ValueError: *path* has no ``/`` at its start, or holds a query or a fragment.
    """
    parts = urlsplit(path)
    if not path.startswith("/") or path.startswith("//") or parts.query or parts.fragment:
        raise ValueError("path must begin with one / and hold neither a query nor a fragment")
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
    if key is not None:
        headers["Idempotency-Key"] = key
    content = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    pairs = tuple((name, str(value)) for name, value in (params or {}).items() if value is not None)
    return Send(method, base_url + path, pairs, headers, content)


def check_token(token: str) -> str:
    """Return *token*, or raise a ValueError that does not repeat it if it can be none."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError("token must be printable ASCII without blanks")
    return token


def read_reply(answer: Answer) -> Reply:
    """Give what a success says, or raise what a problem document names."""
    if answer.status in _SUCCESSES:
        return answer.status, answer.headers, read_object(answer.body) if answer.body != b"" else {}
    problem = None
    try:
        problem = read_object(answer.body)
    except ProtocolError as error:
        unreadable = error.message
    if problem is None:
        raise ProtocolError(f"HTTP status {answer.status}, and {unreadable}")
    if not isinstance(problem.get("code"), str):
        raise ProtocolError(f"HTTP status {answer.status} with a JSON body that names no code")
    raise error_of_problem(answer.status, answer.headers, problem)
