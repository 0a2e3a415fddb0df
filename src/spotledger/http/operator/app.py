"""
The operator API as an application: the routes, and the one shape in which every error is said.

Every answer has a request id and may not be stored by anyone on its way; every error, expected or not, is problem
details (RFC 9457) out of the table in ``http/wire.py``.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from spotledger.errors import LedgerCorrupt, NotFound, SpotledgerError, StoreUnavailable
from spotledger.http.h1.request import Reply, Request, RequestGone
from spotledger.http.operator.answers import AliveAnswer, ReadyAnswer
from spotledger.http.operator.audits import AuditCalls, show_audits
from spotledger.http.operator.backups import BackupCalls
from spotledger.http.operator.batches import BatchCalls
from spotledger.http.operator.calls import Call, Endpoint, TokenCheck, answer, problem_answer, route
from spotledger.http.operator.docs import doc_routes
from spotledger.http.operator.feed import Feed
from spotledger.http.operator.keys import KeyCalls
from spotledger.http.operator.ledger import LedgerCalls
from spotledger.http.operator.metrics import METRICS_MEDIA_TYPE, Metrics
from spotledger.http.operator.reads import ReadCalls
from spotledger.ops.runtime import Runtime

_NO_STORE: Final = (b"cache-control", b"no-store")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_log = logging.getLogger("spotledger.operator")


class OperatorApp:
    """
    Reply the operator API over *runtime*.

    Args:
        runtime: The joined parts, started.
        local_token: One more token that is let in, with every scope: for the process itself.
    """

    def __init__(self, runtime: Runtime, local_token: str | None = None) -> None:
        self._runtime = runtime
        self._token_check = TokenCheck(runtime.tokens, local_token)
        self.feed = Feed(runtime.ledger)
        self.metrics = Metrics(runtime.siblings)
        self._show_metrics()
        self._prefix = os.urandom(6).hex()
        self._asked = 0
        self.routes = self._routes()
        #: Most calls go to a path without parameters, which need not be looked for.
        self._fixed = {endpoint.path: endpoint for endpoint in self.routes if endpoint.pattern is None}
        self._named = [(endpoint.pattern, endpoint) for endpoint in self.routes if endpoint.pattern is not None]

    def _routes(self) -> list[Endpoint]:
        runtime = self._runtime
        read_calls = ReadCalls(runtime.ledger, self.feed)
        ledger_calls = LedgerCalls(runtime.ledger, runtime.writer, read_calls)
        key_calls = KeyCalls(
            runtime.ledger, runtime.writer, runtime.key_ring, runtime.tokens, runtime.access_key_writes
        )
        batch_calls = BatchCalls(runtime.ledger, runtime.writer)
        return [
            *batch_calls.routes(self._token_check),
            *BackupCalls(runtime.backups).routes(self._token_check),
            *AuditCalls(runtime.audits).routes(self._token_check),
            *ledger_calls.routes(self._token_check),
            *read_calls.routes(self._token_check),
            *key_calls.routes(self._token_check),
            *doc_routes(lambda: self.routes),
            route(self._token_check, "/metrics", GET=Call(None, self._metrics, media_type="text/plain")),
            route(None, "/healthz", GET=Call(None, self._alive, gives=AliveAnswer, guarded=False)),
            route(None, "/readyz", GET=Call(None, self._ready, gives=ReadyAnswer, guarded=False)),
        ]

    def _show_metrics(self) -> None:
        runtime, writer = self._runtime, self._runtime.writer
        self.metrics.show("head_seq", "The last entry of the journal.", lambda: runtime.head_seq)
        self.metrics.show("waiting_operations", "Operations that wait for the writer.", lambda: writer.waiting)
        self.metrics.show("open_feeds", "Readers of the journal's feed.", lambda: self.feed.open)
        self.metrics.show("can_write", "1 while writes are taken, else 0.", lambda: int(writer.can_write))
        standby, watch = runtime.standby, runtime.revocation_watch
        if standby is not None:
            self.metrics.show("staleness_ms", "How old what is read may be.", lambda: standby.staleness_ms)
        if watch is not None:
            self.metrics.show(
                "database_silent_seconds", "How long ago the database was heard of.", lambda: watch.silent_seconds
            )
        show_audits(self.metrics, self._runtime.audits)

    async def answer(self, request: Request) -> Reply:
        """
        Reply one request, whatever it is.

        Raises:
            RequestGone: The caller went before it had come whole.
        """
        self._asked += 1
        request_id = f"{self._prefix}-{self._asked:x}"
        path = "other"
        try:
            endpoint = self._endpoint(request)
            path = endpoint.path
            said = await endpoint.answer(request)
        except RequestGone:
            raise
        except Exception as error:  # noqa: BLE001 - whatever happens, an answer in the one shape
            said = problem_answer(_public_error(error, request_id), request_id)
        self._mark(said, request_id)
        method = request.method
        self.metrics.count(method if method in _METHODS else "other", path, said.status)
        return said

    def refusal(self, error: SpotledgerError) -> Reply:
        """Return the answer to what could not be read as a request, and count it."""
        self._asked += 1
        request_id = f"{self._prefix}-{self._asked:x}"
        said = problem_answer(error, request_id)
        self._mark(said, request_id)
        self.metrics.count("other", "other", said.status)
        return said

    def _mark(self, said: Reply, request_id: str) -> None:
        """Put into an answer what all have."""
        said.headers += [(b"x-request-id", request_id.encode()), _NO_STORE]
        if self._runtime.standby is not None:
            said.headers.append((b"x-ledger-staleness-ms", b"%d" % self._runtime.standby.staleness_ms))

    def _endpoint(self, request: Request) -> Endpoint:
        """Return what answers the path of *request*, in which the values of its parameters are put."""
        path = request.path
        fixed = self._fixed.get(path)
        if fixed is not None:
            return fixed
        for pattern, endpoint in self._named:
            match = pattern.match(path)
            if match is not None:
                request.parameters = match.groupdict()
                return endpoint
        self._token_check.check(request, None)
        raise NotFound("There is nothing at this path.")

    async def _alive(self, request: Request) -> Reply:
        """Say that the service runs."""
        return answer({"status": "alive"})

    async def _ready(self, request: Request) -> Reply:
        """Say whether the service takes writes."""
        if not self._runtime.writer.can_write:
            raise StoreUnavailable("The ledger takes no writes now.")
        return answer({"status": "ready", "seq": self._runtime.ledger.head.seq})

    async def _metrics(self, request: Request) -> Reply:
        """Give numbers about the service, for Prometheus."""
        return Reply(200, self.metrics.text(), [(b"content-type", METRICS_MEDIA_TYPE.encode())])


def _public_error(error: Exception, request_id: str) -> SpotledgerError:
    """Return *error* as one that a caller may be told; the log has the rest under the request id."""
    if isinstance(error, SpotledgerError):
        return error
    if isinstance(error, LedgerCorrupt):
        _log.critical("request %s: %s", request_id, error)
        return StoreUnavailable("The ledger is damaged and takes no writes until a person has looked at it.")
    _log.error("request %s ended in an unexpected error", request_id, exc_info=error)
    return SpotledgerError(f"Something unexpected happened; the log of the service has it under {request_id}.")
