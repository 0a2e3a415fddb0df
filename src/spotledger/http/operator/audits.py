"""The operator API's calls about audits, and the metrics of the continuous audit."""

from __future__ import annotations

from typing import Any

from spotledger import paths
from spotledger.errors import NotFound
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer
from spotledger.http.operator.calls import ADMIN, LEDGER_READ, Call, Endpoint, TokenCheck, answer, query_of, route
from spotledger.http.operator.metrics import Metrics
from spotledger.ops.audits import Audits


class AuditAnswer(Answer):
    """An audit, running or done; the ``verdict`` of its report is clean, damaged or incomplete."""

    audit: str
    state: str
    began_ms: int
    seq: int
    last_seq: int
    report: dict[str, Any] | None = None


class AuditCalls:
    """The calls about audits. They need no idempotency key: one audit runs at a time, and it changes nothing."""

    def __init__(self, audits: Audits) -> None:
        self._audits = audits

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        return [
            route(token_check, paths.AUDITS, POST=Call(ADMIN, self.start, gives=AuditAnswer, statuses=(202,))),
            route(token_check, paths.AUDIT, GET=Call(LEDGER_READ, self.show, gives=AuditAnswer)),
        ]

    async def start(self, request: Request) -> Reply:
        """Start an audit of the whole ledger, or return the one that is running."""
        query_of(request)
        return answer((await self._audits.start()).as_json(), 202)

    async def show(self, request: Request) -> Reply:
        """Return the progress of an audit, or its report."""
        query_of(request)
        found = self._audits.get(request.parameters["audit"])
        if found is None:
            raise NotFound("There is no such audit; only the last ones since the start of the service are kept.")
        return answer(found.as_json())


def show_audits(metrics: Metrics, audits: Audits) -> None:
    """Show the position of the continuous audit and the result of its last finished pass."""
    state = audits.continuous
    metrics.show("audit_here", "1 where this process runs the continuous audit.", lambda: int(state.is_here))
    metrics.show("audit_seq", "The last entry that the continuous audit has read.", lambda: state.progress.seq)
    metrics.show("audit_last_seq", "The last entry that its pass will read.", lambda: state.progress.last_seq)
    metrics.show("audit_audited_to", "The last entry of its last finished pass.", lambda: state.audited_to)
    metrics.show("audit_findings", "Findings of its last finished pass.", lambda: state.findings)
    metrics.show("audit_ended_seconds", "When that pass ended, in seconds since 1970; 0: never.", lambda: state.ended_s)
    metrics.show_totals("audit_passes", "Its finished passes.", "verdict", lambda: state.passes)
