"""The operator API's calls that write to the ledger; each is one operation, with the idempotency key of its header."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from spotledger import paths
from spotledger.domain.operations import (
    Deposit,
    Freeze,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    Transfer,
    Unfreeze,
    Withdraw,
)
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
from spotledger.http.operator.bodies import (
    Body,
    CoinBody,
    CustomerBody,
    DepositBody,
    HoldBody,
    ReleaseBody,
    ReversalBody,
    SettlementBody,
    TransferBody,
    UnfreezeBody,
    WithdrawalBody,
    decode,
)
from spotledger.http.operator.calls import LEDGER_READ, Call, Endpoint, TokenCheck, Write, answer, route
from spotledger.http.operator.credentials.scopes import SCOPE_OF, check_scopes
from spotledger.http.operator.reads import ReadCalls
from spotledger.ledger.ledger import Outcome
from spotledger.ledger.writer import Writer

OperationBody = (
    CoinBody
    | CustomerBody
    | DepositBody
    | HoldBody
    | UnfreezeBody
    | WithdrawalBody
    | TransferBody
    | SettlementBody
    | ReversalBody
)

#: What the calls do, for the OpenAPI document.
_ABOUT: Final[dict[type[OperationBody], str]] = {
    SettlementBody: "Book one fill of a trade as one entry. "
    "Both holds pay, both fees go to @fees, and what is released goes back to available. The whole fill is refused if a"
    " hold is short, closed or of the wrong coin.",
    HoldBody: "Freeze what a customer has available, and open a hold for it. The answer has the hold's id.",
    UnfreezeBody: "Release all or part of a hold. The hold is named by its id or by the key that opened it.",
    DepositBody: "Book money that came in from outside. What the customer owes is repaid first.",
    WithdrawalBody: "Book money that went outside. It comes out of a hold, or directly out of what is available.",
    TransferBody: "Move available money to another account. It may belong to the same customer or to another.",
    ReversalBody: "Reverse an earlier deposit, withdrawal, transfer or settlement. "
    "An entry can be reversed once, with a reason; what the customer no longer has is booked as owed.",
    CoinBody: "List a coin. A listing never changes.",
    CustomerBody: "Register a customer. The customer gets a wallet, a spot and a fiat account.",
}


def _released(call: Write) -> Operation:
    """Return the release of the hold that the path names."""
    body = decode(call.body or b"{}", ReleaseBody)
    return body.release(call.key, call.request.parameters["hold"])


class LedgerCalls:
    """The calls for single operations, and the reads on the same paths."""

    def __init__(self, writer: Writer, reads: ReadCalls, texts: CoinTexts) -> None:
        self._texts = texts
        self._writer = writer
        self._reads = reads

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes, the most frequent ones first."""
        reads = self._reads
        coins = Call(LEDGER_READ, reads.coins, gives=CoinsAnswer, query=("min_seq",))
        customers = Call(LEDGER_READ, reads.customers, gives=CustomersAnswer, query=("after", "limit", "min_seq"))
        old = ("older_than_ms", "hold:after", "limit", "min_seq")
        old_holds = Call(LEDGER_READ, reads.old_holds, gives=HoldsAnswer, query=old)
        release = self._one(SCOPE_OF[Unfreeze], _released, ReleaseBody, "Release all or part of a hold.")
        return [
            route(token_check, paths.SETTLEMENTS, POST=self._writes(SettlementBody, Settle)),
            route(token_check, paths.HOLDS, POST=self._writes(HoldBody, Freeze), GET=old_holds),
            route(token_check, paths.RELEASES, POST=self._writes(UnfreezeBody, Unfreeze)),
            route(token_check, paths.HOLD_RELEASE, POST=release),
            route(token_check, paths.DEPOSITS, POST=self._writes(DepositBody, Deposit)),
            route(token_check, paths.WITHDRAWALS, POST=self._writes(WithdrawalBody, Withdraw)),
            route(token_check, paths.TRANSFERS, POST=self._writes(TransferBody, Transfer)),
            route(token_check, paths.REVERSALS, POST=self._writes(ReversalBody, Reverse)),
            route(token_check, paths.COINS, GET=coins, POST=self._writes(CoinBody, ListCoin)),
            route(token_check, paths.CUSTOMERS, GET=customers, POST=self._writes(CustomerBody, RegisterCustomer)),
        ]

    def _writes(self, kind: type[OperationBody], operation: type[Operation]) -> Call:
        def asked(call: Write) -> Operation:
            return decode(call.body, kind).operation(call.key)

        return self._one(SCOPE_OF[operation], asked, kind, _ABOUT[kind])

    def _one(self, scope: str, asked: Callable[[Write], Operation], takes: type[Body], about: str) -> Call:
        """Return the call for the one operation that *asked* reads from a request."""

        def begin(call: Write) -> asyncio.Future[list[Outcome]]:
            operation = asked(call)
            check_scopes((operation,), call.caller.scopes)
            return self._writer.enqueue(operation, call.caller.actor)

        async def write(call: Write) -> Reply:
            outcomes = await begin(call)
            await self._texts.labels.learn(it.entry for it in outcomes if not isinstance(it, Refused))
            return self._answer(outcomes[0])

        return Call(scope, write=write, begin=begin, end=self._end, takes=takes, gives=WriteAnswer, about=about)

    def _end(self, outcomes: Sequence[Outcome]) -> Reply | None:
        """Return the answer; None if it names a token whose label is not in memory."""
        outcome = outcomes[0]
        if not isinstance(outcome, Refused) and self._texts.labels.lacks(outcome.entry.actor):
            return None  # of an earlier request: this one's own label is known, so asking again changes nothing
        return self._answer(outcome)

    def _answer(self, outcome: Outcome) -> Reply:
        if isinstance(outcome, Refused):
            raise outcome
        return answer(write_answer(outcome.entry, outcome.hold, self._texts), replayed=outcome.replayed)
