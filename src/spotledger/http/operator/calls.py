"""
One call of the operator API: who may make it, what it needs, and how its answer is made.

A path has one :class:`Call` per method. A request is checked in this order: its token, so that nothing else is revealed
without one; its path and method; the scope of the token; then the idempotency key and the body of a write, or the query
of a read.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET

from spotledger.domain.fields import check_time
from spotledger.domain.journal import LIBRARY, TOKEN_ACTOR
from spotledger.domain.operations import check_key
from spotledger.domain.positions import Position, parse_position, position_text
from spotledger.errors import (
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    Refused,
    SpotledgerError,
    Unavailable,
)
from spotledger.http import wire
from spotledger.http.h1.request import BodySource, Header, Reply, Request, too_long
from spotledger.http.operator.answers import ReadAnswer, WriteAnswer
from spotledger.ledger.ledger import Outcome
from spotledger.ledger.reads import LedgerReads
from spotledger.security.addresses import AddressResolver, IpAddress
from spotledger.security.tokens import RECENT_TOKENS, SCOPES, TokenRecord, Tokens

LEDGER_READ: Final = "ledger:read"
LEDGER_WRITE: Final = "ledger:write"
LEDGER_CONTROL: Final = "ledger:control"
KEYS_WRITE: Final = "keys:write"
METRICS_READ: Final = "metrics:read"
ADMIN: Final = "admin"

#: The methods that metrics and the access log name; any other is ``other``.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: So much is decoded in less than five milliseconds, whatever it holds.
BODY_LIMIT_BYTES: Final = 256 * 1024
BODY_TIMEOUT_SECONDS: Final = 10.0
PAGE_LIMIT: Final = 1000
#: Rows of a page that are read, or encoded, before other tasks may run.
PIECE_ROWS: Final = 100
#: Parameters of a query. No call takes so many, and thousands would take long to decode.
QUERY_LIMIT: Final = 32
RETRY_AFTER_SECONDS: Final = 1
#: How long a read waits for the entry that ``min_seq`` names.
MIN_SEQ_WAIT_SECONDS: Final = 5.0
MIN_SEQ_PAUSE_SECONDS: Final = 0.01

#: The query parameter of a write that is only to be tried.
DRY_RUN: Final = "dry_run"
JSON_MEDIA_TYPE: Final = "application/json"
KEY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"

JSON_HEADER: Final = (b"content-type", JSON_MEDIA_TYPE.encode())
_PROBLEM: Final = (b"content-type", wire.PROBLEM_MEDIA_TYPE.encode())
_REPLAYED: Final = (REPLAYED_HEADER.lower().encode(), b"true")
#: The same as they are sent.
_JSON_LINE: Final = b"%b: %b\r\n" % JSON_HEADER
_REPLAYED_JSON_LINES: Final = _JSON_LINE + b"%b: %b\r\n" % _REPLAYED

R = TypeVar("R")

_PARAMETER = re.compile(r"{(\w+)}")
_SEQ = re.compile(r"\A[0-9]{1,18}\Z")
_encode = msgspec.json.Encoder().encode


class Caller(NamedTuple):
    """Who makes a call: the actor that entries name, the scopes of its token, and the actor with the token's label."""

    actor: str
    scopes: tuple[str, ...]
    named: tuple[str, str]


class Write(msgspec.Struct, gc=False):
    """The arguments of a call that writes: its request, its idempotency key, its body, and who makes it."""

    request: Request
    key: str
    body: bytes
    caller: Caller


@dataclass(frozen=True, slots=True)
class Call:
    """
    What one method of one path does.

    Args:
        scope: The scope that the token needs; None: any token passes.
        read: Answers a request that has no body.
        write: Answers a request with a body.
        begin: Of a write that is one operation: begins it, and returns the future of its outcome.
        end: Of such a write: answers its request with its outcome; None if that has to be waited for, as *write* does.
        needs_key: Whether a write needs an idempotency key.
        body_limit: The maximum length of the body in bytes.
        takes: The struct of the body, for the OpenAPI document.
        gives: The struct of the answer, for the OpenAPI document.
        query: The names of the query parameters, for the OpenAPI document.
        about: What the call does, for the OpenAPI document; by default the docstring of *read* or *write*.
        statuses: The statuses of a success.
        media_type: The media type of a success.
        also: A further media type of a success, for the OpenAPI document.
        streams: Whether it can also answer with server-sent events.
        guarded: Whether it needs a token.
        page: Whether it is left out of the OpenAPI document.
    """

    scope: str | None
    read: Callable[[Request], Awaitable[Reply]] | None = None
    write: Callable[[Write], Awaitable[Reply]] | None = None
    begin: Callable[[Write], asyncio.Future[list[Outcome]]] | None = None
    end: Callable[[Request, Sequence[Outcome]], Reply | None] | None = None
    needs_key: bool = True
    body_limit: int = BODY_LIMIT_BYTES
    takes: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | None = None
    query: tuple[str, ...] = ()
    about: str = ""
    statuses: tuple[int, ...] = (200,)
    media_type: str = "application/json"
    also: str | None = None
    streams: bool = False
    guarded: bool = True
    page: bool = False


_LIBRARY: Final = Caller(LIBRARY, SCOPES, (LIBRARY, ""))
_NOBODY: Final = Caller("", (), ("", ""))


class TokenCheck:
    """
    Check the operator tokens of requests.

    Args:
        tokens: The operator tokens.
        local_token: One more accepted token, with every scope, for a process that calls its own API.
        trusted_proxies: The proxies whose ``X-Forwarded-For`` is trusted.
    """

    def __init__(self, tokens: Tokens, local_token: str | None = None, trusted_proxies: tuple[str, ...] = ()) -> None:
        self._tokens = tokens
        #: By the id of a token.
        self._callers: dict[str, Caller] = {}
        self._resolver = AddressResolver(trusted_proxies)
        self._local = None if local_token is None else f"Bearer {local_token}".encode()

    def check(self, request: Request, needed: str | None) -> Caller:
        """
        Check the token of *request*, and return who makes it.

        Raises:
            TokenRefused: The token is missing, unknown, revoked, expired, or not for the address of the request.
            ScopeMissing: The token lacks the scope *needed*.
        """
        header = request.header_once(b"authorization")
        if header is not None and self._local is not None and secrets.compare_digest(header, self._local):
            request.caller = _LIBRARY.named
            return _LIBRARY
        text = None if header is None else header.decode("latin-1")
        record = self._tokens.check(text, needed, lambda: self.address(request))
        caller = self._callers.get(record.token_id)
        if caller is None or caller.scopes != record.scopes:
            caller = self._caller_of(record)
        request.caller = caller.named
        return caller

    def _caller_of(self, record: TokenRecord) -> Caller:
        actor = TOKEN_ACTOR + record.token_id
        if len(self._callers) >= RECENT_TOKENS:
            self._callers.clear()
        caller = self._callers[record.token_id] = Caller(actor, record.scopes, (actor, record.label))
        return caller

    def address(self, request: Request) -> IpAddress:
        """Return the address that *request* comes from; ``NO_ADDRESS`` within the process."""
        values = (value.decode("latin-1") for name, value in request.headers if name == b"x-forwarded-for")
        return self._resolver.resolve(request.peer, lambda: values)


class Endpoint:
    """One path of the operator API, with a call for each method; *token_check* is None if it is open to all."""

    def __init__(self, token_check: TokenCheck | None, path: str, calls: Mapping[str, Call]) -> None:
        self.path = path
        self.is_open = token_check is None
        #: The pattern of a path with parameters, or None.
        self.pattern = path_pattern(path) if "{" in path else None
        self._token_check = token_check
        self.calls = {**calls, "HEAD": calls["GET"]} if "GET" in calls else dict(calls)

    async def answer(self, request: Request) -> Reply:
        """Check the token, make the call and return its answer."""
        call, caller = self._checked(request)
        if call.write is None:
            assert call.read is not None, "a call reads or writes"  # noqa: S101
            return await call.read(request)
        key = _key_of(request, call)
        return await call.write(Write(request, key, await read_body(request, call.body_limit), caller))

    def begin(self, request: Request) -> asyncio.Future[list[Outcome]] | None:
        """Check the token and begin the call, if it is one operation and its body is here; else return None."""
        call, body = self.calls.get(request.method), request.body
        if call is None or call.begin is None or not isinstance(body, bytes) or len(body) > call.body_limit:
            return None
        _, caller = self._checked(request)
        return call.begin(Write(request, _key_of(request, call), body, caller))

    def end(self, request: Request, outcomes: Sequence[Outcome]) -> Reply | None:
        """Return the answer to a call that was begun; None if that has to be waited for."""
        end = self.calls[request.method].end
        assert end is not None, "what begins has an end"  # noqa: S101
        return end(request, outcomes)

    def _checked(self, request: Request) -> tuple[Call, Caller]:
        """Return the call of *request* and who makes it, after checking the token."""
        call = self.calls.get(request.method)
        caller = _NOBODY
        if self._token_check is not None:
            caller = self._token_check.check(request, call.scope if call else None)
        if call is None:
            allowed = ", ".join(self.calls)
            raise MethodNotAllowed(f"This path does not take {request.method}; {allowed} would pass.", allow=allowed)
        return call, caller


def route(token_check: TokenCheck | None, path: str, **calls: Call) -> Endpoint:
    """Return the endpoint of *path* with *calls* by method, such as ``GET=Call(…)``; open to all with None."""
    return Endpoint(token_check, path, calls)


def path_pattern(path: str) -> re.Pattern[str]:
    """Return the pattern of a *path* with parameters such as ``/v1/holds/{hold}``; each matches one part."""
    parts = _PARAMETER.split(path)
    texts = [f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts)]
    return re.compile("".join(texts) + r"\Z")


def _key_of(request: Request, call: Call) -> str:
    """Return the idempotency key of a write, if it needs one, after checking its query."""
    if request.query:
        query_of(request, *call.query)
    return idempotency_key(request) if call.needs_key else ""


def idempotency_key(request: Request) -> str:
    """Return the idempotency key of a write, or refuse the write unless it has exactly one."""
    found = request.header_once(b"idempotency-key")
    if found is None:
        count = sum(name == b"idempotency-key" for name, _ in request.headers)
        raise InvalidRequest(
            f"{KEY_HEADER} is given {count} times; once, with a key that is unique for ever, would pass",
            field=KEY_HEADER,
        )
    return check_key(found.decode("latin-1"), KEY_HEADER)


async def read_body(request: Request, limit: int = BODY_LIMIT_BYTES) -> bytes:
    """Return the body; raise BadRequest if it is longer than *limit* bytes, or cannot be read."""
    body = request.body
    if not isinstance(body, bytes):
        body = await _arrived(body, limit)
    if len(body) > limit:
        raise too_long(limit)
    return body


async def _arrived(body: BodySource, limit: int) -> bytes:
    """Return a body once it is complete; raise MalformedRequest if that takes too long."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
            return await body.read(limit)
    except TimeoutError:
        raise MalformedRequest(
            f"The body was not complete after {BODY_TIMEOUT_SECONDS:g} seconds; sooner would pass."
        ) from None


def answer(body: object, status: int = 200, *, replayed: bool = False) -> Reply:
    """Return *body*, encoded, as an answer; *replayed* marks the repeat of an earlier answer."""
    return positioned(json_answer(_encode(body), status, replayed=replayed), body)


def positioned(reply: Reply, body: object) -> Reply:
    """Return *reply* with the position that its *body* stands for, or that of the entry that a write made."""
    if isinstance(body, ReadAnswer) or (isinstance(body, WriteAnswer) and body.dry_run is UNSET):
        reply.lines += b"x-ledger-position: %b\r\n" % position_text(body.epoch, body.seq).encode()
    return reply


def json_answer(body: bytes, status: int = 200, *, replayed: bool = False) -> Reply:
    """Return encoded JSON as an answer; *replayed* marks the repeat of an earlier answer."""
    reply = Reply(status, body)
    reply.lines = _REPLAYED_JSON_LINES if replayed else _JSON_LINE
    return reply


async def encoded_in_pieces(
    body: msgspec.Struct, member: str, rows: Sequence[R], row_answer: Callable[[R], msgspec.Struct]
) -> bytes:
    """Return *body*, encoded, with its empty list *member* filled from *rows*; other tasks may run between pieces."""
    before, empty, after = _encode(body).partition(b'"%b":[]' % member.encode())
    assert empty, "the list is there, and empty"  # noqa: S101
    pieces = []
    for start in range(0, len(rows), PIECE_ROWS):
        if start:
            await asyncio.sleep(0)
        pieces.append(_encode([row_answer(row) for row in rows[start : start + PIECE_ROWS]])[1:-1])
    return before + empty[:-1] + b",".join(pieces) + b"]" + after


def problem_answer(error: SpotledgerError, request_id: str) -> Reply:
    """Return *error* as problem details with its status."""
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
    Return the parameters of the query.

    Raises:
        InvalidRequest: The query has a name that is not one of *names*, or a name twice, or very many.
    """
    found: dict[str, str] = {}
    if request.query.count("&") >= QUERY_LIMIT:
        raise InvalidRequest(f"The query has more than {QUERY_LIMIT} parameters; no call takes so many", field="query")
    for name, value in parse_qsl(request.query, keep_blank_values=True):
        if name not in names or name in found:
            known = ", ".join(names) or "none"
            reason = "is given twice" if name in found else "is not a parameter of this call"
            raise InvalidRequest(f"{name[:64]} {reason}; its parameters are: {known}", field=name[:64])
        found[name] = value
    return found


def is_dry_run(request: Request) -> bool:
    """Return whether a write, whose only parameter is ``dry_run``, is only to be tried."""
    text = query_of(request, DRY_RUN).get(DRY_RUN, "false")
    if text not in ("true", "false"):
        raise InvalidRequest(f"{DRY_RUN} is {text[:64]!r}; true or false would pass", field=DRY_RUN)
    return text == "true"


def number_in(query: Mapping[str, str], name: str, default: int) -> int:
    """Return the parameter *name* as a whole number of at least 0, or *default* if it is not given."""
    text = query.get(name)
    if text is None:
        return default
    if not _SEQ.match(text):
        raise InvalidRequest(f"{name} is {text[:64]!r}; a whole number would pass", field=name)
    return int(text)


def time_in(query: Mapping[str, str], name: str) -> int | None:
    """Return the parameter *name* as a time in milliseconds since 1970, 0 included; None if it is not given."""
    found = number_in(query, name, 0) if name in query else None
    if found:
        check_time(found, name)
    return found


def position_in(query: Mapping[str, str], name: str, ledger: LedgerReads, default: int) -> int:
    """
    Return the ``seq`` of the position in the parameter *name*, or *default* if it is not given.

    Raises:
        InvalidRequest: It is no position.
        EpochMissing, UnknownPosition: It is not one of this journal.
        Unavailable: It is of an epoch that a node which follows others does not know, or not yet.
    """
    text = query.get(name)
    return default if text is None else seq_of(parse_position(text, name), name, ledger)


def seq_of(position: Position, field: str, ledger: LedgerReads) -> int:
    """Return the ``seq`` of *position*; raises what :func:`position_in` does."""
    if _is_ahead(ledger, position):
        raise Unavailable(
            f"{field} is of epoch {position.epoch}, and this node is at entry {ledger.epochs.text(ledger.head.seq)};"
            " try again later."
        )
    return ledger.epochs.locate(position, field)


def _is_ahead(ledger: LedgerReads, position: Position) -> bool:
    """Say whether *position* is of an epoch that another node may have begun."""
    return ledger.remote and position.epoch is not None and position.epoch > ledger.epochs.current


def limit_in(query: Mapping[str, str]) -> int:
    """Return the ``limit`` of a page: at least 1, and 1000 if it is more."""
    limit = number_in(query, "limit", PAGE_LIMIT)
    if limit < 1:
        raise InvalidRequest(f"limit is 0; 1 to {PAGE_LIMIT} would pass", field="limit")
    return min(limit, PAGE_LIMIT)


async def await_seq(ledger: LedgerReads, query: Mapping[str, str]) -> None:
    """
    Wait until the ledger has the entry ``min_seq``.

    Raises:
        Unavailable: The entry was not there after 5 seconds.
        EpochMissing, UnknownPosition: It is not an entry of this journal.
    """
    if "min_seq" not in query:
        return
    wanted = parse_position(query["min_seq"], "min_seq")
    if _has(ledger, wanted):
        return
    loop = asyncio.get_running_loop()
    deadline = loop.time() + MIN_SEQ_WAIT_SECONDS
    while not _has(ledger, wanted):
        if loop.time() >= deadline:
            raise Unavailable(
                f"The ledger is at entry {ledger.epochs.text(ledger.head.seq)} and does not have min_seq"
                f" {query['min_seq']} yet; try again later."
            )
        await asyncio.sleep(MIN_SEQ_PAUSE_SECONDS)


def _has(ledger: LedgerReads, wanted: Position) -> bool:
    """Say whether the ledger has the entry *wanted*; a node that follows others may not know its epoch yet."""
    return not _is_ahead(ledger, wanted) and ledger.epochs.locate(wanted, "min_seq") <= ledger.head.seq
