"""The access log in the operator API: what is noted of each call, the call that reads it, and its metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta

from spotledger import paths
from spotledger.domain.journal import LIBRARY, TOKEN_ACTOR
from spotledger.errors import InvalidRequest, MalformedRequest, SpotledgerError, TokenRefused
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer, TimeMs
from spotledger.http.operator.calls import (
    ADMIN,
    METHODS,
    Call,
    Endpoint,
    TokenCheck,
    answer,
    limit_in,
    number_in,
    query_of,
    route,
    time_in,
)
from spotledger.http.operator.metrics import Metrics
from spotledger.ops.access_log import AccessLog
from spotledger.ops.runtime import Runtime
from spotledger.security.access_keys import ACTOR_CHARACTERS
from spotledger.security.access_log import LOCAL, MINUTE_MS, OTHER, SEVERAL, AccessFilter, AccessLine
from spotledger.security.addresses import counted_as, parse_address
from spotledger.security.bounded_dict import BoundedDict

#: Half the number of clients whose addresses are kept in memory.
PEERS_GENERATION: Final = 1_000
QUERY: Final = ("access:actor", "access:address", "access:from_ms", "access:to_ms", "access:after", "limit")

_ACTOR: Final = re.compile(rf"token:[0-9A-Za-z-]{{1,64}}|key:[0-9A-Za-z-]{{1,64}}|{LIBRARY}|\{SEVERAL}|", re.ASCII)
_COUNTED: Final = re.compile(r"[0-9A-Fa-f:]{2,40}/64", re.ASCII)

#: How a call is written, by method and route; both are few.
_CALLS: Final[dict[tuple[str, str], str]] = {}


def _call_of(method: str, path: str) -> str:
    if method not in METHODS:
        return f"{OTHER} {path}"
    return _CALLS.setdefault((method, path), f"{method} {path}")


class AccessLineAnswer(Answer):
    """How often something happened in one minute: who called what from where, and whether it was refused."""

    time: Annotated[TimeMs, Meta(description="When the minute began, in milliseconds since 1970.")]
    actor: Annotated[
        str,
        Meta(
            description="`token:ID`, `key:` and the first 8 characters of an access key, `library` for a command in the"
            " process of the ledger, `*` for several, or empty if no known credential was sent. An actor that was"
            " refused is the one whose credential was named."
        ),
    ]
    actor_label: Annotated[str, Meta(description="The label of the credential.")]
    address: Annotated[
        str,
        Meta(description="An IPv4 address, the /64 of an IPv6 address, `local` in the process, `*` for several."),
    ]
    call: Annotated[
        str,
        Meta(description="Method and route, or the trader's call; `other` where there is no route, `*` for several."),
    ]
    count: int
    outcome: Literal["allowed", "refused"]
    reason: Annotated[
        str | None,
        Meta(description="The code of the refusal; `left_out` for refusals beyond those that have lines of their own."),
    ]


class AccessLogAnswer(Answer):
    """
    A page of the access log of this node, in the order in which it was written.

    ``failure`` says why the last lines could not be written; null while everything is in the log.
    """

    lines: list[AccessLineAnswer]
    next: Annotated[str | None, Meta(description="`after` of the next page; null on the last one.")]
    failure: str | None


class AccessNotes:
    """Notes who made which call, for the access log."""

    def __init__(self, runtime: Runtime, token_check: TokenCheck) -> None:
        """Note calls for the access log of *runtime*, whose tokens *token_check* checks."""
        self._log = runtime.access_log.counts
        self._tokens = runtime.tokens
        self._address_of = token_check.address
        self._behind_proxies = bool(runtime.settings.trusted_proxies)
        #: Address and port of a client → how its address is written.
        self._peers: BoundedDict[str, str] = BoundedDict(PEERS_GENERATION)

    def note(self, request: Request, endpoint: Endpoint | None, refused: str) -> None:
        """
        Note a call that was answered, unless it is open to all and passed.

        Args:
            request: The request.
            endpoint: Where it went; None if there is nothing at its path.
            refused: The code of the error; empty if it was answered with none.
        """
        if endpoint is not None and endpoint.is_open and not refused:
            return
        method, path = request.method, OTHER if endpoint is None else endpoint.path
        call = _CALLS.get((method, path)) or _call_of(method, path)
        actor, label = request.caller or self._named(request)
        counts, access = self._log.counts, (actor, label, self._address(request), call, refused)
        counts[access] = counts.get(access, 0) + 1

    def note_unread(self, peer: str) -> None:
        """Note a request of *peer* that could not be read."""
        unread = Request("", "", "", [])
        unread.peer = peer
        self._log.count(("", "", self._address(unread), OTHER, MalformedRequest.code))

    def _named(self, request: Request) -> tuple[str, str]:
        """Return actor and label of the token that a refused *request* has, if it is known."""
        header = request.header_once(b"authorization")
        record = None if header is None else self._tokens.named_in(header.decode("latin-1"))
        return ("", "") if record is None else (TOKEN_ACTOR + record.token_id, record.label)

    def _address(self, request: Request) -> str:
        """Return how the address of *request* is written."""
        peer = request.peer
        found = self._peers.get(peer)
        if found is None:
            if not peer:
                return LOCAL
            found = counted_as(self._address_of(request))
            if not self._behind_proxies:
                self._peers.put(peer, found)
        return found


class AccessCalls:
    """The call that reads the access log."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        return [route(token_check, paths.ACCESS_LOG, GET=Call(ADMIN, self.read, gives=AccessLogAnswer, query=QUERY))]

    async def read(self, request: Request) -> Reply:
        """
        Return who used which credential from where, summed by minute, a page at a time.

        It is the log of this node, with what all its workers did until a second ago. In a fleet, ask each node.
        """
        query = query_of(request, *(name.rpartition(":")[2] for name in QUERY))
        limit, after = limit_in(query), number_in(query, "after", 0)
        from_ms, to_ms = time_in(query, "from_ms"), time_in(query, "to_ms")
        wanted = AccessFilter(
            _actor_in(query),
            _address_in(query),
            None if from_ms is None else from_ms - from_ms % MINUTE_MS,
            to_ms,
        )
        found = await self._log.page(wanted, after, limit)
        following = str(found[-1].line) if len(found) == limit else None
        return answer(AccessLogAnswer([_line_answer(line) for line in found], following, self._log.failure))


def _line_answer(line: AccessLine) -> AccessLineAnswer:
    return AccessLineAnswer(
        line.minute_ms,
        line.actor,
        line.actor_label,
        line.address,
        line.call,
        line.times,
        "refused" if line.reason else "allowed",
        line.reason or None,
    )


def _actor_in(query: Mapping[str, str]) -> str | None:
    """Return the actor that is asked for; of an access key the first characters are enough."""
    actor = query.get("actor")
    if actor is None:
        return None
    if not _ACTOR.fullmatch(actor):
        raise InvalidRequest(
            f"actor is {actor[:64]!r}; token:ID, key:FIRST-8-CHARACTERS, {LIBRARY}, {SEVERAL} or nothing would pass",
            field="actor",
        )
    return actor[: len("key:") + ACTOR_CHARACTERS] if actor.startswith("key:") else actor


def _address_in(query: Mapping[str, str]) -> str | None:
    """Return how the address that is asked for is written in the log."""
    text = query.get("address")
    if text is None or text in (LOCAL, SEVERAL):
        return text
    address = parse_address(text.removesuffix("/64") if _COUNTED.fullmatch(text) else text)
    if address is None:
        raise InvalidRequest(
            f"address is {text[:64]!r}; an IPv4 or IPv6 address, a /64 of IPv6, {LOCAL} or {SEVERAL} would pass",
            field="address",
        )
    return counted_as(address)


def cause_of(error: SpotledgerError) -> str:
    """Return the code of *error*; of a token's refusal the cause, which the answer does not tell."""
    return error.cause if isinstance(error, TokenRefused) else error.code


def show_access_log(metrics: Metrics, log: AccessLog) -> None:
    """Show how the writing of the access log goes."""
    metrics.show("access_log_writable", "1 while the access log can be written, else 0.", lambda: int(not log.failure))
    metrics.show_total("access_log_lines", "Lines written to the access log.", lambda: log.written_lines)
    metrics.show_total("access_log_dropped", "Accesses in no line, because of failures.", lambda: log.dropped)
    metrics.show_total("access_log_failures", "Attempts to write that failed.", lambda: log.failures)
