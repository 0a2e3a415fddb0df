"""
The operator API as an application: its routes, and its answers to errors.

Every answer has a request id and forbids caching. Every error, expected or not, is answered with problem details
(RFC 9457) from the table in ``http/wire.py``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from functools import partial
from typing import Final, NoReturn

from msgspec import UNSET

from spotledger import paths
from spotledger.errors import (
    ClockUntrusted,
    InvalidRequest,
    LedgerCorrupt,
    MalformedRequest,
    NotFound,
    SpotledgerError,
    StoreUnavailable,
)
from spotledger.http import wire
from spotledger.http.h1.request import BadRequest, ClientDisconnected, LateReply, Reply, Request
from spotledger.http.operator.actors import ActorLabels
from spotledger.http.operator.answers import AliveAnswer, CoinTexts, ReadyAnswer, SealingAnswer
from spotledger.http.operator.audits import AuditCalls, show_audits
from spotledger.http.operator.backups import BackupCalls
from spotledger.http.operator.batches import BatchCalls
from spotledger.http.operator.calls import (
    METHODS,
    METRICS_READ,
    Call,
    Endpoint,
    TokenCheck,
    answer,
    problem_answer,
    query_of,
    route,
)
from spotledger.http.operator.clock import ClockCalls, show_clock
from spotledger.http.operator.credentials.access_log import AccessCalls, AccessNotes, cause_of, show_access_log
from spotledger.http.operator.credentials.keys import KeyCalls
from spotledger.http.operator.credentials.locks import LockCalls
from spotledger.http.operator.credentials.master_key import MasterKeyCalls
from spotledger.http.operator.docs import doc_routes
from spotledger.http.operator.feed import Feed
from spotledger.http.operator.history.statement import StatementCalls
from spotledger.http.operator.ledger import LedgerCalls
from spotledger.http.operator.metrics import METRICS_MEDIA_TYPE, Metrics
from spotledger.http.operator.reads import ReadCalls
from spotledger.ledger.ledger import Outcome
from spotledger.ops.runtime import Runtime
from spotledger.security.access_log import DISCONNECTED, OTHER

_CHALLENGE: Final = re.compile(r"\A[0-9a-f]{64}\Z")
_log = logging.getLogger("spotledger.operator")


class OperatorApp:
    """
    Serve the operator API over *runtime*.

    Args:
        runtime: The parts of the service, started.
        local_token: One more accepted token, with every scope, for the process itself.
    """

    def __init__(self, runtime: Runtime, local_token: str | None = None) -> None:
        self._runtime = runtime
        self._token_check = TokenCheck(runtime.tokens, local_token, runtime.settings.trusted_proxies)
        self._access = AccessNotes(runtime, self._token_check)
        self._texts = CoinTexts(runtime.ledger, ActorLabels(runtime.tokens))
        self.feed = Feed(runtime.ledger, self._texts, self._token_check)
        self.metrics = Metrics(runtime.siblings)
        self._show_metrics()
        self._prefix = os.urandom(6).hex()
        self._requests = 0
        self.routes = self._routes()
        #: Most calls have a path without parameters, which is found in a mapping.
        self._fixed = {endpoint.path: endpoint for endpoint in self.routes if endpoint.pattern is None}
        self._named = [(endpoint.pattern, endpoint) for endpoint in self.routes if endpoint.pattern is not None]

    def _routes(self) -> list[Endpoint]:
        runtime = self._runtime
        read_calls = ReadCalls(runtime.ledger, self.feed, self._texts)
        ledger_calls = LedgerCalls(runtime.writer, read_calls, self._texts)
        key_calls = KeyCalls(
            runtime.ledger, runtime.writer, runtime.key_ring, runtime.tokens, runtime.access_key_writes
        )
        batch_calls = BatchCalls(runtime.writer, self._texts)
        return [
            *batch_calls.routes(self._token_check),
            *BackupCalls(runtime.backups).routes(self._token_check),
            *AuditCalls(runtime.audits).routes(self._token_check),
            *ClockCalls(runtime.ledger, runtime.writer).routes(self._token_check),
            *ledger_calls.routes(self._token_check),
            *read_calls.routes(self._token_check),
            *StatementCalls(runtime.ledger, read_calls, self._texts).routes(self._token_check),
            *key_calls.routes(self._token_check),
            *MasterKeyCalls(runtime.master_key, runtime.writer).routes(self._token_check),
            *LockCalls(runtime.locks).routes(self._token_check),
            *AccessCalls(runtime.access_log).routes(self._token_check),
            *doc_routes(lambda: self.routes),
            route(self._token_check, paths.METRICS, GET=Call(METRICS_READ, self._metrics, media_type="text/plain")),
            route(None, paths.OWNER, GET=Call(None, self._owner, guarded=False, page=True)),
            route(None, paths.HEALTHZ, GET=Call(None, self._alive, gives=AliveAnswer, guarded=False)),
            route(None, paths.READYZ, GET=Call(None, self._ready, gives=ReadyAnswer, guarded=False)),
        ]

    def _show_metrics(self) -> None:
        runtime, writer = self._runtime, self._runtime.writer
        self.metrics.show("head_seq", "The last entry of the journal.", lambda: runtime.head_seq)
        self.metrics.show("waiting_operations", "Operations that wait for the writer.", lambda: writer.waiting)
        self.metrics.show("open_feeds", "Open streams of the journal.", lambda: self.feed.open)
        self.metrics.show("can_write", "1 while writes are accepted, else 0.", lambda: int(writer.can_write))
        ledger = runtime.ledger
        self.metrics.show("damaged", "1 once the journal was found damaged, else 0.", lambda: int(bool(ledger.corrupt)))
        self.metrics.show("rebuilding", "1 while the books are made again.", lambda: int(bool(ledger.rebuilding)))
        self.metrics.show_total("rebuilds", "How often the books were made again.", lambda: ledger.rebuilds)
        followed, watch = runtime.followed, runtime.revocation_watch
        if followed is not None:
            self.metrics.show("age_ms", "The maximum age of what is read.", lambda: followed.age_ms)
        if watch is not None:
            self.metrics.show(
                "database_silent_seconds", "Seconds since the database last answered.", lambda: watch.silent_seconds
            )
        self._show_sealing()
        show_clock(self.metrics, runtime.ledger)
        show_audits(self.metrics, self._runtime.audits)
        show_access_log(self.metrics, self._runtime.access_log)

    def _show_sealing(self) -> None:
        ledger, metrics = self._runtime.ledger, self.metrics
        if ledger.sealing_lag is None:
            return  # what is derived is written with the entries
        metrics.show("sealing_lag_entries", "Entries of full segments not sealed yet.", lambda: ledger.sealing_lag or 0)
        metrics.show_total(
            "sealing_restarts", "How often the process that seals was restarted.", lambda: ledger.sealing_restarts
        )

    def at_once(self, request: Request) -> Reply | LateReply | None:
        """Begin a write of one operation that waits for the ledger only; leave others, and dry runs, to `answer`."""
        endpoint = self._found(request) if request.method == "POST" and not request.query else None
        if endpoint is None:
            return None
        try:
            future = endpoint.begin(request)
        except Exception as error:  # noqa: BLE001 - every error is answered with problem details
            return self._refused(request, endpoint, error)
        return None if future is None else LateReply(future, partial(self._ended, request, endpoint))

    def _ended(self, request: Request, endpoint: Endpoint, future: asyncio.Future[list[Outcome]]) -> Reply | None:
        """Return the answer to a write that was begun, or None if :meth:`answer` has to wait for it."""
        try:
            reply = endpoint.end(request, future.result())
        except Exception as error:  # noqa: BLE001 - every error is answered with problem details
            return self._refused(request, endpoint, error)
        return None if reply is None else self._counted(request, endpoint, reply, self._next_id(), "")

    async def answer(self, request: Request) -> Reply:
        """
        Answer one request, whatever it is.

        Raises:
            ClientDisconnected: The client disconnected before the request was complete.
        """
        endpoint = self._found(request)
        try:
            reply = self._nothing_at(request) if endpoint is None else await endpoint.answer(request)
        except ClientDisconnected:
            self._access.note(request, endpoint, DISCONNECTED)
            raise
        except Exception as error:  # noqa: BLE001 - every error is answered with problem details
            return self._refused(request, endpoint, error)
        return self._counted(request, endpoint, reply, self._next_id(), "")

    def _nothing_at(self, request: Request) -> NoReturn:
        """Refuse a request where no call is, after checking its token: nothing else is told without one."""
        self._token_check.check(request, None)
        raise NotFound("There is nothing at this path.")

    def _next_id(self) -> str:
        """Return the id of a request."""
        self._requests += 1
        return f"{self._prefix}-{self._requests:x}"

    def _refused(self, request: Request, endpoint: Endpoint | None, error: Exception) -> Reply:
        """Return the problem details of *error*."""
        request_id = self._next_id()
        public_error = _public_error(error, request_id)
        reply = problem_answer(public_error, request_id)
        return self._counted(request, endpoint, reply, request_id, cause_of(public_error))

    def _counted(
        self, request: Request, endpoint: Endpoint | None, reply: Reply, request_id: str, refused: str
    ) -> Reply:
        """Return *reply* with the headers that every answer has, and count it; *refused* is the code of its error."""
        self._add_headers(reply, request_id)
        self._access.note(request, endpoint, refused)
        method, path = request.method, OTHER if endpoint is None else endpoint.path
        self.metrics.count(method if method in METHODS else OTHER, path, reply.status)
        return reply

    def refusal(self, problem: BadRequest, peer: str) -> Reply:
        """Return the answer to a request that could not be read, and count it."""
        request_id = self._next_id()
        self._access.note_unread(peer)
        reply = problem_answer(MalformedRequest(problem.reason), request_id)
        self._add_headers(reply, request_id)
        self.metrics.count("other", "other", reply.status)
        return reply

    def _add_headers(self, reply: Reply, request_id: str) -> None:
        """Add the headers that every answer has."""
        reply.lines += b"x-request-id: %b\r\ncache-control: no-store\r\n" % request_id.encode()
        if self._runtime.followed is not None:
            reply.headers.append((b"x-ledger-age-ms", b"%d" % self._runtime.followed.age_ms))

    def _found(self, request: Request) -> Endpoint | None:
        """Return the endpoint of the path of *request*, and set its path parameters; None if nothing is there."""
        path = request.path
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        for pattern, endpoint in self._named:
            match = pattern.match(path)
            if match is not None:
                request.parameters = match.groupdict()
                return endpoint
        return None

    async def _alive(self, request: Request) -> Reply:
        """Answer that the service runs."""
        return answer({"status": "alive"})

    async def _ready(self, request: Request) -> Reply:
        """Answer whether the service accepts writes."""
        ledger = self._runtime.ledger
        if ledger.corrupt is not None:
            raise wire.damage_of(ledger.corrupt)
        if not self._runtime.writer.can_write:
            distrust = ledger.clock_distrust
            if distrust is not None:
                raise ClockUntrusted(f"Nothing is booked now: {distrust}.")
            reason = ledger.rebuilding or "try again later"
            raise StoreUnavailable(f"The ledger accepts no writes now: {reason}.")
        lag_entries = ledger.sealing_lag
        sealing = UNSET if lag_entries is None else SealingAnswer(lag_entries)
        return answer(ReadyAnswer("ready", ledger.head.seq, sealing, ledger.rebuilding or UNSET))

    async def _owner(self, request: Request) -> Reply:
        """Prove to a command, before it sends a token, that this service wrote the note in its data folder."""
        challenge = query_of(request, "challenge").get("challenge", "")
        if not _CHALLENGE.match(challenge):
            raise InvalidRequest("challenge is no challenge; 64 hex digits would pass", field="challenge")
        return answer({"proof": self._runtime.prove(challenge)})

    async def _metrics(self, request: Request) -> Reply:
        """Return metrics of the service, for Prometheus."""
        return Reply(200, self.metrics.text(), [(b"content-type", METRICS_MEDIA_TYPE.encode())])


def _public_error(error: Exception, request_id: str) -> SpotledgerError:
    """Return an error that callers may see for *error*; the rest goes to the log, with the request id."""
    if isinstance(error, SpotledgerError):
        return error
    if isinstance(error, BadRequest):
        return MalformedRequest(error.reason)
    if isinstance(error, LedgerCorrupt):
        _log.critical("request %s: %s", request_id, error)
        return wire.damage_of(error)
    _log.error("request %s: unexpected %s\n%s", request_id, type(error).__name__, wire.places_of(error))
    return SpotledgerError(f"An unexpected error occurred; the log of the service has it under {request_id}.")
