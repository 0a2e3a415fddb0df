"""
The public listener: the signed v1 API of traders, and the few v4 calls.

``getBalance`` is called far more often than anything else, so its path is short: no framework, the parameters read
once, one HMAC, one look-up, a ready body. The calls are coroutines because a gate that shares its counts with other
nodes waits for them; the gate of a single node never waits. ``listener.py`` puts it on the HTTP server.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from spotledger import paths
from spotledger.clock import now_ms
from spotledger.errors import (
    ClockUntrusted,
    LedgerCorrupt,
    LedgerDamaged,
    LimitExceeded,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    SpotledgerError,
)
from spotledger.http import wire
from spotledger.http.public import v4
from spotledger.http.public.answers import (
    Answer,
    BalanceBodies,
    Call,
    Header,
    LedgerSight,
    answered,
    answered_with_body,
    encode,
    limit_headers,
    refused,
    v1_form,
    v1_refusal,
)
from spotledger.http.public.request import (
    Read,
    Request,
    RequestBody,
    RequestHeaders,
    parameters_text,
    read_parameters,
    read_signed,
    signed_of,
)
from spotledger.security.access_keys import KeyRing, ReadyKey
from spotledger.security.access_log import OTHER, AccessCounts
from spotledger.security.addresses import Peer
from spotledger.security.gate import ADDRESS_LIMIT, Gate, GateSettings

KINDS_BY_ID = {"1": "wallet", "2": "spot", "3": "fiat"}
METHODS = frozenset({"GET", "POST"})

_ACCOUNTS = [
    {"name": "wallet account", "id": 1},
    {"name": "trading account", "id": 2},
    {"name": "fiat account", "id": 3},
]
_CLOCK_UNTRUSTED = {"status": "cannot write", "code": ClockUntrusted.code}
_SIGNED_NAMES = frozenset({"accesskey", "accessKey", "signature"})


class _NoHeaders:
    """The headers of a request that could not be read."""

    def get(self, key: str, /) -> None:
        """Return None: there is none."""

    def get_all(self, key: str, /) -> list[str]:
        """Return nothing."""
        return []


_NO_HEADERS = _NoHeaders()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PublicSettings(GateSettings):
    """The settings of the public listener, named as in the reference."""

    success_info: str = "success"


class PublicApp:
    """
    Answer the requests of traders.

    Keeps rules R1 to R22: whatever is sent, the answer has a documented form. Of a request only its id is logged.
    """

    def __init__(
        self,
        ledger: LedgerSight,
        key_ring: KeyRing,
        settings: PublicSettings | None = None,
        clock_ms: Callable[[], int] = now_ms,
        *,
        is_ready: Callable[[], bool] = lambda: True,
        sealing_lag: Callable[[], int | None] = lambda: None,
        clock_distrust: Callable[[], str | None] = lambda: None,
        request_prefix: str | None = None,
        gate: Gate | None = None,
        age_ms: Callable[[], int] | None = None,
        access: AccessCounts | None = None,
    ) -> None:
        """
        Connect a ledger and its access keys to a listener.

        Args:
            ledger: The ledger that balances are read from.
            key_ring: The access keys; share it with the code that revokes them.
            settings: Limits, windows and texts; None: the documented defaults.
            clock_ms: Returns the time in ms since 1970.
            is_ready: Returns whether the service can write; for ``/readyz``.
            sealing_lag: Returns how many entries wait to be sealed, None where nothing is sealed; for ``/readyz``.
            clock_distrust: Returns why nothing is booked because of the clock, or None; for ``/readyz``.
            request_prefix: What request ids begin with; None: random.
            gate: Admits requests; None: one that counts in this process only.
            age_ms: On a node that follows others, returns the maximum age of *ledger*; each answer has it.
            access: Counts for the access log; somebody else takes the counts from it.
        """
        self.settings = settings or PublicSettings()
        self.gate = gate or Gate(key_ring, self.settings)
        #: Requests so far, and the refused ones among them by the code of their error.
        self.requests = 0
        self.refusals: dict[str, int] = {}
        self.access = access or AccessCounts()
        self._ledger = ledger
        self._age_ms = age_ms
        self._clock_ms = clock_ms
        self._is_ready = is_ready
        self._sealing_lag = sealing_lag
        self._clock_distrust = clock_distrust
        self._prefix = os.urandom(6).hex() + "-" if request_prefix is None else request_prefix
        form = v1_form(self.settings.success_info)
        self._bodies = {kind: BalanceBodies(ledger, kind, form) for kind in KINDS_BY_ID.values()}
        self._calls = self._all_calls()
        #: What each path is called in the access log.
        self._names = {path: path.removeprefix(paths.TRADER_PREFIX).strip("/") for path in self._calls}

    def _all_calls(self) -> dict[str, Call]:
        calls: dict[str, Call] = {
            paths.GET_BALANCE: self._balances,
            paths.GET_FUNDS: partial(self._balances, in_funds=True),
            paths.GET_ACCOUNTS: self._get_accounts,
            paths.GET_SERVER_TIME: self._get_server_time,
            **v4.V4Calls(self._ledger, self.gate, self._count_passed).calls,
            paths.HEALTHZ: self._healthz,
            paths.READYZ: self._readyz,
            paths.READYZ_READS: self._readyz_reads,
        }
        return calls | {f"{path}/": call for path, call in calls.items()}

    async def answer(
        self, method: str, path: str, query: str, headers: RequestHeaders, peer: str, body: RequestBody = b""
    ) -> Answer:
        """Answer one request and never raise; the arguments are those of `Request`."""
        self.requests += 1
        request_id = f"{self._prefix}{self.requests:x}"
        request = Request(method, path, query, headers, peer, body, self._clock_ms(), request_id)
        found = await self._answered(request)
        if self._age_ms is not None:
            found = found._replace(lines=f"{found.lines}x-ledger-age-ms: {self._age_ms()}\r\n")
        return found

    def refuse_unread(self, error: MalformedRequest, peer: str) -> Answer:
        """Return the answer to a request of *peer* that could not be read, and count it."""
        self.requests += 1
        now_ms = self._clock_ms()
        request = Request("", "", "", _NO_HEADERS, peer, b"", now_ms, f"{self._prefix}{self.requests:x}")
        self.gate.count(self.gate.peer(peer, request.forwarded_for), now_ms)
        return self._refusal(request, error)

    async def _answered(self, request: Request) -> Answer:
        try:
            call = self._calls.get(request.path)
            if call is None or request.method not in METHODS:
                return await self._no_such_call(request, call)
            return await call(request)
        except MalformedRequest as error:  # counted here, because the gate has not seen the request yet
            self.gate.count(self.gate.peer(request.connection, request.forwarded_for), request.now_ms)
            return self._refusal(request, error)
        except SpotledgerError as error:
            return self._refusal(request, error)
        except Exception as error:  # noqa: BLE001 - rule R17: whatever happens, answer in the documented form
            return self._unexpected(request, error)

    # --- the calls ----------------------------------------------------------------------------------

    # Must not change anything: the signature does not cover method or path (rule R22).
    async def _balances(self, request: Request, in_funds: bool = False) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        read = read_signed(parameters_text(request))
        kind = _kind_of(read) if in_funds else "spot"
        limit = gate.asset_limit
        request.accesskey = read.signed.accesskey
        key, left = await gate.admit(read.signed, peer, "read", limit, now_ms)
        seq = self._ledger.head.seq
        limits = f'{limit.policy_line}ratelimit: "assets";r={left};t=1\r\n' if limit.limit else ""
        body = self._bodies[kind].of(key.customer, seq)
        # As _count_passed does, without one call more on the way of every read.
        counts, access = self.access.counts, (key.actor, key.label, peer.counted, self._names[request.path], "")
        counts[access] = counts.get(access, 0) + 1
        return answered_with_body(request, seq, body, limits)

    async def _get_accounts(self, request: Request) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        parameters = read_parameters(parameters_text(request))
        read = signed_of(parameters) if _SIGNED_NAMES & parameters.keys() else None
        if read is None:
            await gate.enter(peer, now_ms)
            return self._v1_answer(request, _ACCOUNTS, limit_headers(None, gate, peer, now_ms))
        request.accesskey = read.signed.accesskey
        key, _ = await gate.admit(read.signed, peer, "read", gate.account_limit, now_ms)
        found = self._v1_answer(request, _ACCOUNTS, gate.account_limit.headers(key.customer, now_ms))
        self._count_passed(request, key, peer)
        return found

    # Takes any parameters, signed or not: a client whose clock is wrong gets the time here.
    async def _get_server_time(self, request: Request) -> Answer:
        gate, now_ms = self.gate, request.now_ms
        peer = gate.peer(request.connection, request.forwarded_for)
        parameters_text(request)
        await gate.enter(peer, now_ms)
        limits = limit_headers(None, gate, peer, now_ms)
        return self._v1_answer(request, {"serverTime": now_ms}, limits)

    def _v1_answer(self, request: Request, data: Any, limits: list[Header]) -> Answer:
        content = encode({"code": 200, "data": data, "info": self.settings.success_info})
        return answered(request, self._ledger.head.seq, content, limits)

    async def _healthz(self, request: Request) -> Answer:
        return answered(request, self._head_seq(), b'{"status":"alive"}', [])

    async def _readyz(self, request: Request) -> Answer:
        is_ready, lag_entries = self._is_ready(), self._sealing_lag()
        body: dict[str, Any] = {"status": "ready" if is_ready else "cannot write"}
        if not is_ready and self._clock_distrust() is not None:
            body.update(_CLOCK_UNTRUSTED)
        if lag_entries is not None:
            body["sealing"] = {"lag_entries": lag_entries}
        found = answered(request, self._head_seq(), encode(body), [])
        return found if is_ready else found._replace(status=503)

    async def _readyz_reads(self, request: Request) -> Answer:
        """Answer whether signed reads work: the ledger can be read, and the access keys are trusted."""
        seq = self._head_seq()
        if seq is not None and self.gate.key_ring.is_trusted:
            return answered(request, seq, b'{"status":"ready"}', [])
        return answered(request, seq, b'{"status":"cannot read"}', [])._replace(status=503)

    # --- the access log -----------------------------------------------------------------------------

    def _count_passed(self, request: Request, key: ReadyKey, peer: Peer) -> None:
        """Count a request that the gate admitted."""
        self.access.count((key.actor, key.label, peer.counted, self._names[request.path], ""))

    def _count_refused(self, request: Request, error: SpotledgerError) -> None:
        """Count a refused request; it names an access key only if the gate looked for that and found it."""
        is_of_address = isinstance(error, LimitExceeded) and error.details.get("limit") == ADDRESS_LIMIT
        named = None if is_of_address else request.accesskey
        key = None if named is None else self.gate.key_ring.in_memory(named)
        actor, label = ("", "") if key is None else (key.actor, key.label)
        peer = self.gate.peer(request.connection, request.forwarded_for)
        self.access.count((actor, label, peer.counted, self._names.get(request.path, OTHER), error.code))

    # --- refusals -----------------------------------------------------------------------------------

    async def _no_such_call(self, request: Request, call: Call | None) -> Answer:
        gate = self.gate
        await gate.enter(gate.peer(request.connection, request.forwarded_for), request.now_ms)
        if call is None:
            raise NotFound(f"There is nothing at this path; the calls of this API begin with {paths.TRADER_PREFIX}/.")
        raise MethodNotAllowed("This path takes GET, or POST with a form body.")

    def _refusal(self, request: Request, error: SpotledgerError) -> Answer:
        if wire.row_of(error).status == 500:
            return self._unexpected(request, error)
        peer = self.gate.peer(request.connection, request.forwarded_for)
        limits = limit_headers(error, self.gate, peer, request.now_ms)
        return self._refused(request, error, limits)

    def _unexpected(self, request: Request, error: Exception) -> Answer:
        if isinstance(error, LedgerCorrupt):
            _log.critical("request %s: %s", request.request_id, error)
            return self._refused(request, LedgerDamaged(), [])
        _log.error("request %s: unexpected %s\n%s", request.request_id, type(error).__name__, wire.places_of(error))
        public_error = SpotledgerError(f"An unexpected error occurred; the request id is {request.request_id}.")
        return self._refused(request, public_error, [])

    def _refused(self, request: Request, error: SpotledgerError, limits: list[Header]) -> Answer:
        self.refusals[error.code] = self.refusals.get(error.code, 0) + 1
        self._count_refused(request, error)
        content = (v4.v4_refusal if request.path.startswith(paths.V4_PREFIXES) else v1_refusal)(error)
        return refused(request, self._head_seq(), error, content, limits)

    def _head_seq(self) -> int | None:
        try:
            return self._ledger.head.seq
        except Exception:  # noqa: BLE001 - a refusal is sent even if the ledger fails
            return None


def _kind_of(read: Read) -> str:
    kind = KINDS_BY_ID.get(read.account or "")
    if kind is None:
        raise MalformedRequest("account is missing or unknown; 1 (wallet), 2 (spot) or 3 (fiat) would pass.")
    return kind
