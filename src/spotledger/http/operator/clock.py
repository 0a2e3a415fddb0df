"""The operator API's calls about the clock of the service, and its metrics."""

from __future__ import annotations

from spotledger import paths
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer, TimeMs
from spotledger.http.operator.calls import ADMIN, Call, Endpoint, TokenCheck, answer, query_of, route
from spotledger.http.operator.metrics import Metrics
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer


class ClockAnswer(Answer):
    """
    The clock of the service: the time that counts, and that of the wall clock.

    ``offset_ms`` is how far the wall clock is ahead. While ``trusted`` is false, nothing is booked, and ``reason`` says
    why. In a fleet ``wall_ms`` is the time of the database, unless the wall clock of the node has leapt.
    """

    trusted: bool
    now_ms: TimeMs
    wall_ms: TimeMs
    offset_ms: int
    reason: str | None = None


class ClockCalls:
    """The calls about the clock. They need no idempotency key: to trust a clock that is trusted changes nothing."""

    def __init__(self, ledger: Ledger, writer: Writer) -> None:
        self._ledger = ledger
        self._writer = writer

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        return [
            route(token_check, paths.CLOCK, GET=Call(ADMIN, self.show, gives=ClockAnswer)),
            route(token_check, paths.CLOCK_TRUST, POST=Call(ADMIN, self.trust, gives=ClockAnswer)),
        ]

    async def show(self, request: Request) -> Reply:
        """Return what the clock of the service shows, and whether it is trusted."""
        query_of(request)
        return answer(self._state())

    async def trust(self, request: Request) -> Reply:
        """Trust the wall clock as it stands, in a fleet the database's too; look first, for expiries follow at once."""
        query_of(request)
        await self._writer.beside(self._ledger.trust_clock)
        return answer(self._state())

    def _state(self) -> ClockAnswer:
        state = self._ledger.clock.state()
        return ClockAnswer(state.distrust is None, state.now_ms, state.wall_ms, state.offset_ms, state.distrust)


def show_clock(metrics: Metrics, ledger: Ledger) -> None:
    """Show whether the clock is trusted, and how far the wall clock is from the time that counts."""
    clock = ledger.clock
    metrics.show("clock_trusted", "1 while the wall clock is trusted, else 0.", lambda: int(clock.distrust() is None))
    metrics.show("clock_offset_ms", "The wall clock less the time that counts.", lambda: clock.state().offset_ms)
