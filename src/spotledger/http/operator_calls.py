"""
One call of the operator API: who may make it, what it needs, and how its answer is written.

A path has one :class:`Call` a method. A request is checked in this order: its token (before anything else is told),
its path and method, the token's scope, then the idempotency key and the body of a write, or the query of a read.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

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

JSON: Final = JSON_MEDIA_TYPE.encode()
_PROBLEM: Final = wire.PROBLEM_MEDIA_TYPE.encode()
_REPLAYED: Final = ((REPLAYED_HEADER.lower().encode(), b"true"),)

_TOO_LATE: Final = "the body did not come in time"

_SEQ = re.compile(r"\A[0-9]{1,18}\Z")
_encode = msgspec.json.Encoder().encode

Header = tuple[bytes, bytes]


class Write(NamedTuple):
    """What a call that writes is given: the scope of its request, its idempotency key, its body."""

    scope: Scope
    key: str
    body: bytes

    @property
    def request(self) -> Request:
        """The request, for calls that look at more of it."""
        return Request(self.scope)


class Bytes(Response):
    """An answer whose bytes are there: like its base, without what that does to find out what it was given."""

    def __init__(self, body: bytes, media_type: bytes, status: int = 200, headers: Iterable[Header] = ()) -> None:
        self.status_code = status
        self.body = body
        self.raw_headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body)), *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body})


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
    read: Callable[[Request], Awaitable[Response]] | None = None
    write: Callable[[Write], Awaitable[Response]] | None = None
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


class Door:
    """
    Let in who has a token.

    Args:
        tokens: The operator tokens.
        local_token: One more token, good for this object only: for a process that owns the ledger and asks itself.
    """

    def __init__(self, tokens: Tokens, local_token: str | None = None) -> None:
        self._tokens = tokens
        self._local = None if local_token is None else f"Bearer {local_token}".encode()

    def check(self, scope: Scope, needed: str | None) -> None:
        """
        Check the token of a request.

        Raises:
            TokenRefused: There is none, or it is unknown or revoked.
            ScopeMissing: It lacks the scope *needed*.
        """
        header = _header_once(scope, b"authorization")
        if header is not None and self._local is not None and secrets.compare_digest(header, self._local):
            return
        try:
            self._tokens.check(
                None if header is None else header.decode("latin-1"), ADMIN if needed is None else needed
            )
        except ScopeMissing:
            if needed is not None:
                raise


def _header_once(scope: Scope, wanted: bytes) -> bytes | None:
    """Return the value of a header, or None where there is none or more than one."""
    found: bytes | None = None
    for name, value in scope["headers"]:
        if name == wanted:
            if found is not None:
                return None
            found = value
    return found


class Endpoint:
    """One path of the operator API: a call for each of its methods, behind *door* or open."""

    def __init__(self, door: Door | None, path: str, calls: Mapping[str, Call]) -> None:
        self.path = path
        self._door = door
        self.calls = {**calls, "HEAD": calls["GET"]} if "GET" in calls else dict(calls)

    async def __call__(self, scope: Scope, receive: Receive) -> Response:
        """Check the token, then make the call and return its answer."""
        call = self.calls.get(scope["method"])
        if self._door is not None:
            self._door.check(scope, call.scope if call else None)
        if call is None:
            allowed = ", ".join(self.calls)
            raise MethodNotAllowed(f"{scope['method']} is not for this path; {allowed} would pass.", allow=allowed)
        if call.write is not None:
            key = idempotency_key(scope) if call.needs_key else ""
            return await call.write(Write(scope, key, await read_body(receive, call.body_limit)))
        assert call.read is not None, "a call reads or writes"  # noqa: S101
        return await call.read(Request(scope, receive))


def route(door: Door | None, path: str, **calls: Call) -> Route:
    """Return the route of *path*; *calls* by method, such as ``GET=Call(…)``. Without a door it is open to all."""
    return Route(path, Endpoint(door, path, calls), name=path)


def idempotency_key(scope: Scope) -> str:
    """Return the one idempotency key of a write."""
    found = _header_once(scope, b"idempotency-key")
    if found is None:
        count = sum(name == b"idempotency-key" for name, _ in scope["headers"])
        raise InvalidRequest(
            f"{KEY_HEADER} is given {count} times; a write needs it once, as the name of this write for ever",
            field=KEY_HEADER,
        )
    return check_key(found.decode("latin-1"), KEY_HEADER)


async def read_body(receive: Receive, limit: int = BODY_LIMIT_BYTES) -> bytes:
    """
    Return the body, at most *limit* bytes of it.

    Raises:
        MalformedRequest: It is longer, or did not come whole in time.
    """
    task = asyncio.current_task()
    assert task is not None, "requests are answered in tasks"  # noqa: S101
    # What asyncio.timeout does, for less than half of its cost: most bodies are there already.
    timer = asyncio.get_running_loop().call_later(BODY_TIMEOUT_SECONDS, task.cancel, _TOO_LATE)
    pieces: list[bytes] = []
    size = 0
    try:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            piece, more = message.get("body", b""), message.get("more_body", False)
            size += len(piece)
            if size > limit:
                raise MalformedRequest(f"The body is longer than {limit} bytes; that many would pass.")
            pieces.append(piece)
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (_TOO_LATE,) or task.uncancel():
            raise
        raise MalformedRequest(f"The body did not come whole within {BODY_TIMEOUT_SECONDS:g} seconds.") from None
    finally:
        timer.cancel()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def answer(body: object, *, replayed: bool = False) -> Response:
    """Return *body* as the answer 200, marked where it is the repeat of an earlier one."""
    return Bytes(_encode(body), JSON, headers=_REPLAYED if replayed else ())


def problem_answer(error: SpotledgerError, request_id: str) -> Response:
    """Return *error* as problem details, with its true status."""
    headers: list[Header] = []
    row = wire.row_of(error)
    if isinstance(error, Unavailable):
        headers.append((b"retry-after", b"%d" % error.details.get("retry_after_s", RETRY_AFTER_SECONDS)))
    if isinstance(error, Refused) and error.replayed:
        headers += _REPLAYED
    if isinstance(error, MethodNotAllowed) and "allow" in error.details:
        headers.append((b"allow", error.details["allow"].encode()))
    if row.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Bytes(_encode(wire.problem(error, request_id)), _PROBLEM, row.status, headers)


def query_of(request: Request, *names: str) -> dict[str, str]:
    """
    Return the query, in which only *names* may be, each once.

    Raises:
        InvalidRequest: Another name is in it, or one twice: what is not understood is never passed over.
    """
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
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
