"""
One call of the operator API: who may make it, what it needs, and how its answer is written.

A path has one :class:`Call` a method. A request is checked in this order: its token (before anything else is told),
its path and method, the token's scope, then the idempotency key and the body of a write, or the query of a read.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from spotledger.domain.operations import check_key
from spotledger.errors import (
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    Refused,
    ScopeMissing,
    SpotledgerError,
    Unavailable,
)
from spotledger.http import wire
from spotledger.http.h1.request import Header, Reply, Request, too_long
from spotledger.security.tokens import Tokens

LEDGER_READ: Final = "ledger:read"
LEDGER_WRITE: Final = "ledger:write"
KEYS_WRITE: Final = "keys:write"
ADMIN: Final = "admin"

BODY_LIMIT_BYTES: Final = 1024 * 1024
BODY_TIMEOUT_SECONDS: Final = 10.0
PAGE_LIMIT: Final = 1000
RETRY_AFTER_SECONDS: Final = 1
#: How long a read waits for the entry that ``min_seq`` names.
MIN_SEQ_WAIT_SECONDS: Final = 5.0
MIN_SEQ_PAUSE_SECONDS: Final = 0.01

JSON_MEDIA_TYPE: Final = "application/json"
KEY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"

_JSON: Final = (b"content-type", JSON_MEDIA_TYPE.encode())
_PROBLEM: Final = (b"content-type", wire.PROBLEM_MEDIA_TYPE.encode())
_REPLAYED: Final = (REPLAYED_HEADER.lower().encode(), b"true")

_PARAMETER = re.compile(r"{(\w+)}")
_SEQ = re.compile(r"\A[0-9]{1,18}\Z")
_encode = msgspec.json.Encoder().encode


class Write(NamedTuple):
    """What a call that writes is given: its request, its idempotency key, its body."""

    request: Request
    key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Call:
    """
    What one method of one path does.

    Args:
        scope: What the token must be good for; None: any token will do.
        read: Answers a request that has no body.
        write: Answers a request with a body.
        needs_key: Whether a write has to come with an idempotency key.
        body_limit: How many bytes of a body are read.
        takes: The struct of the body, for the OpenAPI document.
        gives: The struct of the answer, for the OpenAPI document.
        query: The names of the query's parameters, for the OpenAPI document.
        about: What it does, for the OpenAPI document; else the docstring of *read* or *write*.
        statuses: The statuses of a success.
        media_type: Of a success.
        streams: Whether it answers as server-sent events too.
        guarded: Whether it needs a token.
        page: Whether it is for people, and not in the OpenAPI document.
    """

    scope: str | None
    read: Callable[[Request], Awaitable[Reply]] | None = None
    write: Callable[[Write], Awaitable[Reply]] | None = None
    needs_key: bool = True
    body_limit: int = BODY_LIMIT_BYTES
    takes: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | None = None
    query: tuple[str, ...] = ()
    about: str = ""
    statuses: tuple[int, ...] = (200,)
    media_type: str = "application/json"
    streams: bool = False
    guarded: bool = True
    page: bool = False


class TokenCheck:
    """
    Let in who has a token.

    Args:
        tokens: The operator tokens.
        local_token: One more token, good for this object only: for a process that owns the ledger and asks itself.
    """

    def __init__(self, tokens: Tokens, local_token: str | None = None) -> None:
        self._tokens = tokens
        self._local = None if local_token is None else f"Bearer {local_token}".encode()

    def check(self, request: Request, needed: str | None) -> None:
        """
        Check the token of *request*.

        Raises:
            TokenRefused: There is none, or it is unknown or revoked.
            ScopeMissing: It lacks the scope *needed*.
        """
        header = request.header_once(b"authorization")
        if header is not None and self._local is not None and secrets.compare_digest(header, self._local):
            return
        try:
            self._tokens.check(
                None if header is None else header.decode("latin-1"), ADMIN if needed is None else needed
            )
        except ScopeMissing:
            if needed is not None:
                raise


class Endpoint:
    """One path of the operator API: a call for each of its methods, guarded by *token_check* or open."""

    def __init__(self, token_check: TokenCheck | None, path: str, calls: Mapping[str, Call]) -> None:
        self.path = path
        #: Of a path with parameters, what it matches.
        self.pattern = path_pattern(path) if "{" in path else None
        self._token_check = token_check
        self.calls = {**calls, "HEAD": calls["GET"]} if "GET" in calls else dict(calls)

    async def answer(self, request: Request) -> Reply:
        """Check the token, then make the call and return its answer."""
        method = request.method
        call = self.calls.get(method)
        if self._token_check is not None:
            self._token_check.check(request, call.scope if call else None)
        if call is None:
            allowed = ", ".join(self.calls)
            raise MethodNotAllowed(f"{method} is not for this path; {allowed} would pass.", allow=allowed)
        if call.write is not None:
            key = idempotency_key(request) if call.needs_key else ""
            return await call.write(Write(request, key, await read_body(request, call.body_limit)))
        assert call.read is not None, "a call reads or writes"  # noqa: S101
        return await call.read(request)


def route(token_check: TokenCheck | None, path: str, **calls: Call) -> Endpoint:
    """Return the endpoint of *path*; *calls* by method, such as ``GET=Call(…)``. With None it is open to all."""
    return Endpoint(token_check, path, calls)


def path_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a *path* with parameters such as ``/v1/holds/{hold}``: each is one part, not empty."""
    parts = _PARAMETER.split(path)
    texts = [f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)]
    return re.compile("".join(texts) + r"\Z")


def idempotency_key(request: Request) -> str:
    """Return the one idempotency key of a write."""
    found = request.header_once(b"idempotency-key")
    if found is None:
        count = sum(name == b"idempotency-key" for name, _ in request.headers)
        raise InvalidRequest(
            f"{KEY_HEADER} is given {count} times; a write needs it once, as the name of this write for ever",
            field=KEY_HEADER,
        )
    return check_key(found.decode("latin-1"), KEY_HEADER)


async def read_body(request: Request, limit: int = BODY_LIMIT_BYTES) -> bytes:
    """
    Return the body, at most *limit* bytes of it. Most are there already; the others are waited for.

    Raises:
        MalformedRequest: It is longer, cannot be read, or did not come whole in time.
        ClientDisconnected: The caller went.
    """
    body = request.body
    if not isinstance(body, bytes):
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                body = await body.read(limit)
        except TimeoutError:
            raise MalformedRequest(f"The body did not come whole within {BODY_TIMEOUT_SECONDS:g} seconds.") from None
    if len(body) > limit:
        raise too_long(limit)
    return body


def answer(body: object, status: int = 200, *, replayed: bool = False) -> Reply:
    """Return *body* as an answer, marked where it is the repeat of an earlier one."""
    return json_answer(_encode(body), status, replayed=replayed)


def json_answer(body: bytes, status: int = 200, *, replayed: bool = False) -> Reply:
    """Return JSON that is written already as an answer, marked where it is the repeat of an earlier one."""
    return Reply(status, body, (_JSON, _REPLAYED) if replayed else (_JSON,))


def problem_answer(error: SpotledgerError, request_id: str) -> Reply:
    """Return *error* as problem details, with its true status."""
    headers: list[Header] = [_PROBLEM]
    row = wire.row_of(error)
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"%d" % error.details.get("retry_after_s", RETRY_AFTER_SECONDS)))
    if isinstance(error, Refused) and error.replayed:
        headers.append(_REPLAYED)
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        headers.append((b"allow", error.details["allow"].encode()))
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(row.status, _encode(wire.problem(error, request_id)), headers)


def query_of(request: Request, *names: str) -> dict[str, str]:
    """
    Return the query, in which only *names* may be, each once.

    Raises:
        InvalidRequest: Another name is in it, or one twice: what is not understood is never passed over.
    """
    found: dict[str, str] = {}
    for name, value in parse_qsl(request.query, keep_blank_values=True):
        if name not in names or name in found:
            known = ", ".join(names) or "none"
            reason = "is given twice" if name in found else "is not a parameter of this call"
            raise InvalidRequest(f"{name[:64]} {reason}; its parameters: {known}", field=name[:64])
        found[name] = value
    return found


def number_in(query: Mapping[str, str], name: str, default: int) -> int:
    """Return the whole number that *query* has under *name*, at least 0."""
    text = query.get(name)
    if text is None:
        return default
    if not _SEQ.match(text):
        raise InvalidRequest(f"{name} is {text[:64]!r}; a whole number would pass", field=name)
    return int(text)


def limit_in(query: Mapping[str, str]) -> int:
    """Return how many things a page may hold: ``limit``, at least 1, cut at 1000."""
    limit = number_in(query, "limit", PAGE_LIMIT)
    if limit < 1:
        raise InvalidRequest(f"limit is 0; 1 to {PAGE_LIMIT} would pass", field="limit")
    return min(limit, PAGE_LIMIT)


async def await_seq(head_seq: Callable[[], int], query: Mapping[str, str]) -> None:
    """
    Wait until the ledger has the entry that ``min_seq`` names.

    Raises:
        Unavailable: It was not there within some seconds.
    """
    wanted = number_in(query, "min_seq", 0)
    if head_seq() >= wanted:
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MIN_SEQ_WAIT_SECONDS
    while head_seq() < wanted:
        if loop.time() >= deadline:
            raise Unavailable(
                f"The ledger is at entry {head_seq()}; min_seq {wanted} is not there yet. Try again later."
            )
        await asyncio.sleep(MIN_SEQ_PAUSE_SECONDS)
