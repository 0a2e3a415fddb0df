"""What the public listener sends back: statuses, headers, and the three shapes of a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from spotledger.errors import LimitExceeded, MalformedRequest, SpotledgerError, Unavailable
from spotledger.http import wire
from spotledger.http.public.bodies import Body
from spotledger.security.gate import Gate, Peer

Header = tuple[str, str]

JSON: Header = ("content-type", "application/json")
PROBLEM: Header = ("content-type", wire.PROBLEM_MEDIA_TYPE)
NO_STORE: Header = ("cache-control", "no-store")
VARY: Header = ("vary", "accept-encoding")
GZIP: Header = ("content-encoding", "gzip")
GZIP_LEAST_BYTES = 1024
RETRY_AFTER_S = 1

_ZERO_WEIGHT = re.compile(r"\s*q\s*=\s*0(?:\.0*)?\s*", re.ASCII)


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: list[Header]
    body: bytes


class RequestHeaders(Protocol):
    """The headers of a request; names are given in lower case."""

    def get(self, key: str, /) -> str | None:
        """Return the value of the header, or None."""

    def get_all(self, key: str, /) -> list[str]:
        """Return all values of the header."""


@dataclass(slots=True)
class Request:
    """One request, and when it came."""

    method: str
    #: Percent-decoded.
    path: str
    #: As sent, without the question mark.
    query: str
    headers: RequestHeaders
    #: ``host:port`` of the peer.
    connection: str
    #: What was sent as the body, or why it was not read.
    body: bytes | MalformedRequest
    now_ms: int
    request_id: str

    def forwarded_for(self) -> list[str]:
        """Return the values of all X-Forwarded-For headers."""
        return self.headers.get_all("x-forwarded-for")


Call = Callable[[Request], Coroutine[Any, Any, Answer]]


def encode(document: Any) -> bytes:
    """Return *document* as compact JSON."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def answered(request: Request, head_seq: int | None, content: bytes, limits: list[Header]) -> Answer:
    """Return a success with *content*, which stands for the ledger at *head_seq*."""
    return Answer(200, [*_first_headers(request, JSON, head_seq), *limits], content)


def answered_with_body(request: Request, head_seq: int, body: Body, limits: list[Header]) -> Answer:
    """Return a success with a body that is ready, compressed where it is long and the client asks for that."""
    headers = [*_first_headers(request, JSON, head_seq), *limits]
    content = body.content
    if len(content) < GZIP_LEAST_BYTES:
        return Answer(200, headers, content)
    headers.append(VARY)
    if wants_gzip(request.headers):
        headers.append(GZIP)
        return Answer(200, headers, body.gzipped())
    return Answer(200, headers, content)


def refused(
    request: Request, head_seq: int | None, error: SpotledgerError, content: bytes, limits: list[Header]
) -> Answer:
    """Return a refusal: *content* with status 200, or problem details with a true status (rule R14)."""
    if wants_problem(request.headers):
        problem = wire.problem(error, request.request_id)
        headers = [*_first_headers(request, PROBLEM, head_seq), *limits]
        return Answer(problem["status"], headers, encode(problem))
    # A client takes a 2xx on CONNECT for an open tunnel.
    status = wire.row_of(error).status if request.method == "CONNECT" else 200
    return Answer(status, [*_first_headers(request, JSON, head_seq), *limits], content)


def _first_headers(request: Request, media: Header, head_seq: int | None) -> list[Header]:
    if head_seq is None:
        return [media, NO_STORE, ("x-request-id", request.request_id)]
    return [media, NO_STORE, ("x-request-id", request.request_id), ("x-ledger-seq", str(head_seq))]


def v1_refusal(error: SpotledgerError) -> bytes:
    """Return the body of a v1 refusal (rule R16): the same text three times, and no ``data``."""
    text = error.message
    return encode({"code": wire.row_of(error).v1_code, "info": text, "msg": text, "msgInfo": text})


def wants_problem(headers: RequestHeaders) -> bool:
    """Tell whether the client asks for problem details and true statuses."""
    return wire.PROBLEM_MEDIA_TYPE in (headers.get("accept") or "").lower()


def wants_gzip(headers: RequestHeaders) -> bool:
    """Tell whether ``Accept-Encoding`` asks for gzip by its name, with a weight that is not zero."""
    for part in (headers.get("accept-encoding") or "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return not _ZERO_WEIGHT.fullmatch(weight)
    return False


def limit_headers(error: SpotledgerError | None, gate: Gate, peer: Peer, now_ms: int) -> list[Header]:
    """Return ``RateLimit-Policy``, ``RateLimit`` and, where it applies, ``Retry-After`` (rule R19)."""
    if isinstance(error, LimitExceeded):
        name, wait_s = error.details["limit"], error.details["retry_after_s"]
        limits = (gate.address_limit, gate.asset_limit, gate.account_limit)
        policy = next(limit.policy_header for limit in limits if limit.name == name)
        if policy[1].startswith(f'"{name}";q=0;'):
            return [("retry-after", str(wait_s))]
        return [policy, ("ratelimit", f'"{name}";r=0;t={wait_s}'), ("retry-after", str(wait_s))]
    headers = gate.address_limit.headers(peer.text, now_ms)
    if isinstance(error, Unavailable):
        headers.append(("retry-after", str(RETRY_AFTER_S)))
    return headers
