"""The operator API's calls that write to the ledger; each is one operation, with the idempotency key of its header."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from spotledger import paths
from spotledger.domain.operations import Operation
from spotledger.errors import Refused
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import (
    CoinsAnswer,
    CoinTexts,
    CustomersAnswer,
    HoldsAnswer,
    HouseAccountsAnswer,
    WriteAnswer,
    write_answer,
)
from spotledger.http.operator.bodies import decode
from spotledger.http.operator.calls import (
    DRY_RUN,
    LEDGER_READ,
    Call,
    Caller,
    Endpoint,
    TokenCheck,
    Write,
    answer,
    is_dry_run,
    route,
)
from spotledger.http.operator.credentials.scopes import SCOPE_OF, check_scopes
from spotledger.http.operator.operation_bodies import BODIES, RELEASE_BODY, OperationBody, about, path_of
from spotledger.http.operator.reads import ReadCalls
from spotledger.ledger.ledger import Outcome
from spotledger.ledger.writer import Writer


def _released(call: Write) -> Operation:
    """Return the release of the hold that the path names."""
    body = decode(call.body or b"{}", RELEASE_BODY.struct)
    return RELEASE_BODY.make(call.key, body, call.request.parameters["hold"])


class LedgerCalls:
    """The calls for single operations, and the reads on the same paths."""

    def __init__(self, writer: Writer, reads: ReadCalls, texts: CoinTexts) -> None:
        self._texts = texts
        self._writer = writer
        self._reads = reads

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        reads = self._reads
        coins = Call(LEDGER_READ, reads.coins, gives=CoinsAnswer, query=("min_seq",))
        customers = Call(LEDGER_READ, reads.customers, gives=CustomersAnswer, query=("after", "limit", "min_seq"))
        house_accounts = Call(LEDGER_READ, reads.house_accounts, gives=HouseAccountsAnswer, query=("min_seq",))
        old = ("older_than_ms", "hold:after", "limit", "min_seq")
        old_holds = Call(LEDGER_READ, reads.old_holds, gives=HoldsAnswer, query=old)
        calls: dict[str, dict[str, Any]] = {paths.COINS: {"GET": coins}, paths.CUSTOMERS: {"GET": customers}}
        for kind, body in BODIES.items():
            calls.setdefault(path_of(kind), {})["POST"] = self._writes(body)
        calls[paths.HOLDS]["GET"] = old_holds
        calls[paths.HOUSE_ACCOUNTS]["GET"] = house_accounts
        release = self._one(RELEASE_BODY, _released, "Release all or part of a hold.")
        return [
            *(route(token_check, path, **made) for path, made in calls.items()),
            route(token_check, paths.HOLD_RELEASE, POST=release),
        ]

    def _writes(self, body: OperationBody) -> Call:
        def asked(call: Write) -> Operation:
            return body.make(call.key, decode(call.body, body.struct))

        return self._one(body, asked, about(body.kind))

    def _one(self, body: OperationBody, asked: Callable[[Write], Operation], about: str) -> Call:
        """Return the call for the one operation that *asked* reads from a request."""

        def begin(call: Write) -> asyncio.Future[list[Outcome]]:
            operation = asked(call)
            check_scopes((operation,), call.caller.scopes)
            return self._writer.enqueue(operation, call.caller.actor)

        async def write(call: Write) -> Reply:
            if is_dry_run(call.request):
                return await self._tried(asked(call), call.caller)
            outcomes = await begin(call)
            await self._texts.labels.learn(it.entry for it in outcomes if not isinstance(it, Refused))
            return self._answer(outcomes[0])

        scope, query = SCOPE_OF[body.kind], (DRY_RUN,)
        return Call(
            scope,
            write=write,
            begin=begin,
            end=self._end,
            takes=body.struct,
            gives=WriteAnswer,
            query=query,
            about=about,
        )

    async def _tried(self, operation: Operation, caller: Caller) -> Reply:
        """Return the answer that *operation* would get; it is marked, and names no position of the journal."""
        check_scopes((operation,), caller.scopes)
        (outcome,) = await self._writer.dry_runs.execute((operation,), actor=caller.actor)
        if isinstance(outcome, Refused):
            outcome.details[DRY_RUN] = True
            raise outcome
        await self._texts.labels.learn([outcome.entry])
        said = write_answer(outcome.entry, outcome.hold, self._texts)
        said.dry_run = True
        return answer(said, replayed=outcome.replayed)

    def _end(self, request: Request, outcomes: Sequence[Outcome]) -> Reply | None:
        """Return the answer; None if it repeats that of another token, whose label is not in memory."""
        outcome, labels = outcomes[0], self._texts.labels
        if not isinstance(outcome, Refused) and labels.lacks(actor := outcome.entry.actor):
            if request.caller is None or request.caller[0] != actor:
                return None
            labels.note(*request.caller)
        return self._answer(outcome)

    def _answer(self, outcome: Outcome) -> Reply:
        if isinstance(outcome, Refused):
            raise outcome
        return answer(write_answer(outcome.entry, outcome.hold, self._texts), replayed=outcome.replayed)
