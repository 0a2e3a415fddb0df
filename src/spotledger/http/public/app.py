"""
The public listener: the signed v1 API of traders, and the newer one beside it.

``getBalance`` is asked for far more often than anything else, so its path is short and owns its
cost: no framework, the parameters read once, one HMAC, one look-up, a body that is ready. The calls are
coroutines because a gate that shares its counts with other nodes has to wait for them; a gate of one node
waits for nobody. `PublicApp.answer` depends on the request alone, and ``__rsgi__`` is a thin shell over it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from spotledger.clock import now_ms
from spotledger.errors import MalformedRequest, MethodNotAllowed, NotFound, SpotledgerError
from spotledger.http import wire
from spotledger.http.public import answers as public_answers, v4
from spotledger.http.public.answers import Answer, Call, Request, RequestHeaders, answered, answered_with_body, encode
from spotledger.http.public.bodies import BalanceBodies, LedgerSight, v1_form
from spotledger.http.public.request import QUERY_MAX_BYTES, Read, read_parameters, read_signed, signed_of
from spotledger.security.access_keys import KeyRing
from spotledger.security.gate import Gate, GateSettings

BODY_TIMEOUT_S = 10.0
PREFIX = "/trade/api/v1"
KINDS_BY_ID = {"1": "wallet", "2": "spot", "3": "fiat"}
METHODS = frozenset({"GET", "POST"})

_ACCOUNTS = [
    {"name": "wallet account", "id": 1},
    {"name": "trading account", "id": 2},
    {"name": "fiat account", "id": 3},
]
_SIGNED_NAMES = frozenset({"accesskey", "accessKey", "signature"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublicSettings(GateSettings):
    """The settings of the public wire, named as in the reference."""

    success_info: str = "success"


class PublicApp:
    """
    Answer the requests of traders, as an RSGI application.

    Keeps rules R1 to R22: whatever is sent, an answer in the documented shape comes back. Logs nothing of a
    request but its id.
    """

    def __init__(
        self,
        ledger: LedgerSight,
        key_ring: KeyRing,
        settings: PublicSettings | None = None,
        clock_ms: Callable[[], int] = now_ms,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        request_prefix: str | None = None,
        gate: Gate | None = None,
        staleness_ms: Callable[[], int] | None = None,
    ) -> None:
        """
        Join a ledger and its access keys to a listener.

        Args:
            ledger: Where balances are read.
            key_ring: The access keys; share it with whatever revokes them.
            settings: Limits, windows and texts; the documented ones where None.
            clock_ms: The time in ms since 1970.
            is_ready: Whether the service can write; for ``/readyz``.
            request_prefix: What request ids begin with; random where None.
            gate: Who lets requests in; one that counts in this process alone where None.
            staleness_ms: How old what *ledger* has may be, on a node that reads from a standby; each answer says it.
        """
        self.settings = settings or PublicSettings()
        self.gate = gate or Gate(key_ring, self.settings)
        #: Requests answered so far, and those of them that were refused, by the code of their error.
        self.requests = 0
        self.refusals: dict[str, int] = {}
        self._ledger = ledger
        self._staleness_ms = staleness_ms
        self._clock_ms = clock_ms
        self._is_ready = is_ready
        self._prefix = os.urandom(6).hex() + "-" if request_prefix is None else request_prefix
        form = v1_form(self.settings.success_info)
        self._bodies = {kind: BalanceBodies(ledger, kind, form) for kind in KINDS_BY_ID.values()}
        self._calls = self._all_calls()

    def _all_calls(self) -> dict[str, Call]:
        calls: dict[str, Call] = {
            f"{PREFIX}/getBalance": self._get_balance,
            f"{PREFIX}/getFunds": self._get_funds,
            f"{PREFIX}/getAccounts": self._get_accounts,
            f"{PREFIX}/getServerTime": self._get_server_time,
            **v4.V4Calls(self._ledger, self.gate).calls,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/readyz/reads": self._readyz_reads,
        }
        return calls | {f"{path}/": call for path, call in calls.items()}

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        """Answer one HTTP request of an RSGI server."""
        method, headers = scope.method, scope.headers
        body: bytes | MalformedRequest = b""
        if method != "GET" or "content-length" in headers or "transfer-encoding" in headers:
            body = await read_body(headers, protocol)
        status, sent, content = await self.answer(method, scope.path, scope.query_string, headers, scope.client, body)
        protocol.response_bytes(status, sent, content)

    async def answer(
        self,
        method: str,
        path: str,
        query: str,
        headers: RequestHeaders,
        connection: str,
        body: bytes | MalformedRequest = b"",
    ) -> Answer:
        """Answer one request and never raise; the arguments are those of `Request`."""
        found = await self._answered(method, path, query, headers, connection, body)
        if self._staleness_ms is not None:
            found.headers.append(("x-ledger-staleness-ms", str(self._staleness_ms())))
        return found

    async def _answered(
        self,
        method: str,
        path: str,
        query: str,
        headers: RequestHeaders,
        connection: str,
        body: bytes | MalformedRequest,
    ) -> Answer:
        self.requests += 1
        request_id = f"{self._prefix}{self.requests:x}"
        request = Request(method, path, query, headers, connection, body, self._clock_ms(), request_id)
        try:
            call = self._calls.get(path)
            if call is None or method not in METHODS:
                return await self._no_such_call(request, call)
            return await call(request)
        except MalformedRequest as error:  # of whatever shape it is, it counts; the gate has not seen it yet
            self.gate.count(self.gate.peer(connection, request.forwarded_for), request.now_ms)
            return self._refusal(request, error)
        except SpotledgerError as error:
            return self._refusal(request, error)
        except Exception as error:  # noqa: BLE001 - rule R17: whatever happens, an answer in the shape
            return self._unexpected(request, error)

    # --- the calls ----------------------------------------------------------------------------------

    def _get_balance(self, request: Request) -> Coroutine[Any, Any, Answer]:
        return self._balances(request, in_funds=False)

    def _get_funds(self, request: Request) -> Coroutine[Any, Any, Answer]:
        return self._balances(request, in_funds=True)

    # Changes nothing, and with parameters that need be no more than accesskey and nonce must not (rule R22).
    async def _balances(self, request: Request, *, in_funds: bool) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        read = read_signed(parameters_text(request))
        kind = _kind_of(read) if in_funds else "spot"
        limit = gate.asset_limit
        key, left = await gate.admit(read.signed, peer, "read", limit, now_ms)
        seq = self._ledger.head.seq
        limits = [limit.policy_header, ("ratelimit", f'"assets";r={left};t=1')] if limit.limit else []
        return answered_with_body(request, seq, self._bodies[kind].of(key.customer, seq), limits)

    async def _get_accounts(self, request: Request) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        parameters = read_parameters(parameters_text(request))
        read = signed_of(parameters) if _SIGNED_NAMES & parameters.keys() else None
        if read is None:
            await gate.enter(peer, now_ms)
            limits = public_answers.limit_headers(None, gate, peer, now_ms)
        else:
            key, _ = await gate.admit(read.signed, peer, "read", gate.account_limit, now_ms)
            limits = gate.account_limit.headers(key.customer, now_ms)
        return self._v1_answer(request, _ACCOUNTS, limits)

    # Takes any parameters, signed or not: a client whose clock is wrong asks here for the right one.
    async def _get_server_time(self, request: Request) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        parameters_text(request)
        await gate.enter(peer, now_ms)
        limits = public_answers.limit_headers(None, gate, peer, now_ms)
        return self._v1_answer(request, {"serverTime": now_ms}, limits)

    def _v1_answer(self, request: Request, data: Any, limits: list[public_answers.Header]) -> Answer:
        content = encode({"code": 200, "data": data, "info": self.settings.success_info})
        return answered(request, self._ledger.head.seq, content, limits)

    async def _healthz(self, request: Request) -> Answer:
        return answered(request, self._head_seq(), b'{"status":"alive"}', [])

    async def _readyz(self, request: Request) -> Answer:
        if self._is_ready():
            return answered(request, self._head_seq(), b'{"status":"ready"}', [])
        _, headers, content = answered(request, self._head_seq(), b'{"status":"cannot write"}', [])
        return Answer(503, headers, content)

    async def _readyz_reads(self, request: Request) -> Answer:
        """Say whether signed reads are answered: what is known is fresh enough, and so is who may ask."""
        seq = self._head_seq()
        if seq is not None and self.gate.key_ring.distrusted is None:
            return answered(request, seq, b'{"status":"ready"}', [])
        _, headers, content = answered(request, seq, b'{"status":"cannot read"}', [])
        return Answer(503, headers, content)

    # --- refusals -----------------------------------------------------------------------------------

    async def _no_such_call(self, request: Request, call: Call | None) -> Answer:
        gate = self.gate
        await gate.enter(gate.peer(request.connection, request.forwarded_for), request.now_ms)
        if call is None:
            raise NotFound(f"There is nothing at this path; the calls of this API begin with {PREFIX}/.")
        raise MethodNotAllowed("This path takes GET, or POST with a form body.")

    def _refusal(self, request: Request, error: SpotledgerError) -> Answer:
        if wire.row_of(error).status == 500:
            return self._unexpected(request, error)
        peer = self.gate.peer(request.connection, request.forwarded_for)
        limits = public_answers.limit_headers(error, self.gate, peer, request.now_ms)
        return self._refused(request, error, limits)

    def _unexpected(self, request: Request, error: Exception) -> Answer:
        # The error's own text and its locals may hold what was sent: only its kind and the places are told.
        places = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))
        _log.error("request %s: unexpected %s\n%s", request.request_id, type(error).__name__, places)
        told = SpotledgerError(f"Something went wrong inside; the request id is {request.request_id}.")
        return self._refused(request, told, [])

    def _refused(self, request: Request, error: SpotledgerError, limits: list[public_answers.Header]) -> Answer:
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        content = (v4.v4_refusal if request.path.startswith(v4.PATHS) else public_answers.v1_refusal)(error)
        return public_answers.refused(request, self._head_seq(), error, content, limits)

    def _head_seq(self) -> int | None:
        try:
            return self._ledger.head.seq
        except Exception:  # noqa: BLE001 - a refusal is said even if the ledger is what failed
            return None


def parameters_text(request: Request) -> str:
    """
    Return the text that holds the parameters: the query of a GET, the body of a POST (rule R1).

    Raises:
        MalformedRequest: There are parameters in the other one too, or the body can't be read.
    """
    if request.method == "GET" and not request.body:
        return request.query
    if isinstance(request.body, MalformedRequest):
        raise request.body
    try:
        body = request.body.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest("The body is not UTF-8.") from error
    text, other = (request.query, body) if request.method == "GET" else (body, request.query)
    if read_parameters(other):
        raise MalformedRequest("A GET has its parameters in the query, a POST in a form body, and neither in both.")
    return text


def _kind_of(read: Read) -> str:
    kind = KINDS_BY_ID.get(read.account or "")
    if kind is None:
        raise MalformedRequest("account is missing or unknown; 1 (wallet), 2 (spot) or 3 (fiat) would pass.")
    return kind


async def read_body(headers: RequestHeaders, protocol: Any) -> bytes | MalformedRequest:
    """Return the body of a request, or why it was not read: too long, too slow, or broken off."""
    announced = headers.get("content-length") or "0"
    too_long = MalformedRequest(f"The body is longer than {QUERY_MAX_BYTES} bytes.")
    if len(announced) > 5 or not announced.isdecimal() or int(announced) > QUERY_MAX_BYTES:
        return too_long
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in protocol:
                body += chunk
                if len(body) > QUERY_MAX_BYTES:
                    return too_long
    except TimeoutError:
        return MalformedRequest(f"The body did not arrive within {BODY_TIMEOUT_S:g} s.")
    except Exception:  # noqa: BLE001 - the server's own kinds of a connection that broke off
        return MalformedRequest("The body broke off.")
    return body
