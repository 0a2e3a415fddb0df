"""The operator API's calls that write to the ledger; each is one operation, with the idempotency key of its header."""

from __future__ import annotations

from spotledger import paths
from spotledger.domain.operations import Operation, Unfreeze
from spotledger.errors import Refused
from spotledger.http.h1.request import Reply
from spotledger.http.operator.answers import (
    CoinsAnswer,
    CoinTexts,
    CustomersAnswer,
    HoldsAnswer,
    WriteAnswer,
    write_answer,
)
from spotledger.http.operator.bodies import decode
from spotledger.http.operator.calls import LEDGER_READ, Call, Caller, Endpoint, TokenCheck, Write, answer, route
from spotledger.http.operator.credentials.scopes import SCOPE_OF, check_scopes
from spotledger.http.operator.operation_bodies import BODIES, RELEASE_BODY, OperationBody, about, path_of
from spotledger.http.operator.reads import ReadCalls
from spotledger.ledger.writer import Writer


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
        old = ("older_than_ms", "hold:after", "limit", "min_seq")
        old_holds = Call(LEDGER_READ, reads.old_holds, gives=HoldsAnswer, query=old)
        release = Call(SCOPE_OF[Unfreeze], write=self.release, takes=RELEASE_BODY.struct, gives=WriteAnswer)
        calls = {paths.COINS: {"GET": coins}, paths.CUSTOMERS: {"GET": customers}}
        for kind, body in BODIES.items():
            calls.setdefault(path_of(kind), {})["POST"] = self._writes(body)
        calls[paths.HOLDS]["GET"] = old_holds
        return [
            *(route(token_check, path, **made) for path, made in calls.items()),
            route(token_check, paths.HOLD_RELEASE, POST=release),
        ]

    def _writes(self, body: OperationBody) -> Call:
        async def write(call: Write) -> Reply:
            return await self._submit(body.make(call.key, decode(call.body, body.struct)), call.caller)

        kind = body.kind
        return Call(SCOPE_OF[kind], write=write, takes=body.struct, gives=WriteAnswer, about=about(kind))

    async def release(self, call: Write) -> Reply:
        """Release all or part of a hold."""
        body = decode(call.body or b"{}", RELEASE_BODY.struct)
        return await self._submit(RELEASE_BODY.make(call.key, body, call.request.parameters["hold"]), call.caller)

    async def _submit(self, operation: Operation, caller: Caller) -> Reply:
        check_scopes((operation,), caller.scopes)
        result = (await self._writer.submit((operation,), actor=caller.actor))[0]
        if isinstance(result, Refused):
            raise result
        labels = self._texts.labels
        if labels.lacks(result.entry.actor):
            await labels.learn((result.entry,))
        body = write_answer(result.entry, result.hold, self._texts)
        return answer(body, replayed=result.replayed)
