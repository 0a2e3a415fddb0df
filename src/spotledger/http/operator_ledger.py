"""The operator API's calls about money: a write is one operation, a read stands for one position of the journal."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spotledger.domain.accounts import DUST, EXTERNAL, FEES, HOUSE_KIND, ZERO, Account, check_account_kind
from spotledger.domain.operations import Operation
from spotledger.errors import InvalidRequest, NotFound, Refused
from spotledger.http.operator_answers import balance_answer, entry_answer, hold_answer, write_answer
from spotledger.http.operator_bodies import (
    CoinBody,
    CustomerBody,
    DepositBody,
    HoldBody,
    ReleaseBody,
    TransferBody,
    UnfreezeBody,
    WithdrawalBody,
    decode,
)
from spotledger.http.operator_calls import (
    LEDGER_READ,
    LEDGER_WRITE,
    Call,
    Door,
    Write,
    answer,
    await_seq,
    limit_in,
    number_in,
    query_of,
    route,
)
from spotledger.http.operator_trades import ReversalBody, SettlementBody
from spotledger.ledger import Ledger
from spotledger.writer import Writer

HOLD_STATES = ("open", "closed")
#: The house's accounts that are one each, whoever they deal with.
HOUSE_ACCOUNTS = {account.customer: account for account in (EXTERNAL, FEES, DUST)}
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


class LedgerCalls:
    """The calls about coins, customers, balances, holds and entries."""

    def __init__(self, ledger: Ledger, writer: Writer) -> None:
        self._ledger = ledger
        self._writer = writer

    def routes(self, door: Door) -> list[Route]:
        """Return the routes, those that are called most first."""
        return [
            route(door, "/v1/deposits", POST=self._writes(DepositBody)),
            route(door, "/v1/holds", POST=self._writes(HoldBody)),
            route(door, "/v1/holds/{hold}/release", POST=Call(LEDGER_WRITE, write=self.release)),
            route(door, "/v1/withdrawals", POST=self._writes(WithdrawalBody)),
            route(door, "/v1/transfers", POST=self._writes(TransferBody)),
            route(door, "/v1/settlements", POST=self._writes(SettlementBody)),
            route(door, "/v1/reversals", POST=self._writes(ReversalBody)),
            route(door, "/v1/releases", POST=self._writes(UnfreezeBody)),
            route(door, "/v1/customers/{customer}/balances", GET=Call(LEDGER_READ, self.balances)),
            route(door, "/v1/customers/{customer}/holds", GET=Call(LEDGER_READ, self.holds)),
            route(door, "/v1/entries", GET=Call(LEDGER_READ, self.entries)),
            route(door, "/v1/coins", GET=Call(LEDGER_READ, self.coins), POST=self._writes(CoinBody)),
            route(door, "/v1/customers", GET=Call(LEDGER_READ, self.customers), POST=self._writes(CustomerBody)),
        ]

    def _writes(self, kind: type[OperationBody]) -> Call:
        async def write(call: Write) -> Response:
            return await self._submit(decode(call.body, kind).operation(call.key))

        return Call(LEDGER_WRITE, write=write)

    async def release(self, call: Write) -> Response:
        """Free all of a hold, or a part of it."""
        body = decode(call.body or b"{}", ReleaseBody)
        return await self._submit(body.release(call.key, call.request.path_params["hold"]))

    async def _submit(self, operation: Operation) -> Response:
        result = (await self._writer.submit((operation,)))[0]
        if isinstance(result, Refused):
            raise result
        body = write_answer(result.entry, result.hold, self._ledger.coins)
        return answer(body, replayed=result.replayed)

    async def coins(self, request: Request) -> Response:
        """List the coins with their scales."""
        await self._await_seq(query_of(request, "min_seq"))
        coins = [{"coin": coin.name, "scale": coin.scale} for coin in self._ledger.coins.values()]
        return answer({"seq": self._ledger.head.seq, "coins": coins})

    async def customers(self, request: Request) -> Response:
        """List the customers in the order of their ids, a page at a time."""
        query = query_of(request, "after", "limit", "min_seq")
        limit = limit_in(query)
        await self._await_seq(query)
        found = self._ledger.customers(query.get("after", ""), limit)
        following = found[-1] if len(found) == limit else None
        return answer({"seq": self._ledger.head.seq, "customers": found, "next_after": following})

    async def balances(self, request: Request) -> Response:
        """Give every listed coin's balance in one account."""
        query = query_of(request, "account", "min_seq")
        account = self._account(request.path_params["customer"], query.get("account"))
        await self._await_seq(query)
        account = self._existing(account)
        seq, balances = self._ledger.head.seq, self._ledger.account(account).balances
        listed = {
            name: balance_answer(balances.get(name, ZERO), coin.scale) for name, coin in self._ledger.coins.items()
        }
        return answer({"seq": seq, "customer": account.customer, "account": account.kind, "balances": listed})

    def _account(self, customer: str, kind: str | None) -> Account:
        house = HOUSE_ACCOUNTS.get(customer)
        if house is not None:
            if kind is not None:
                raise InvalidRequest(f"account is given for {customer}, which has none; leave it out", field="account")
            return house
        return Account(customer, check_account_kind("spot" if kind is None else kind))

    def _existing(self, account: Account) -> Account:
        if account.kind != HOUSE_KIND and not self._ledger.has_customer(account.customer):
            raise NotFound(f"There is no customer {account.customer[:64]}.")
        return account

    async def holds(self, request: Request) -> Response:
        """List a customer's holds in the order in which they were opened, a page at a time."""
        query = query_of(request, "state", "after", "limit", "min_seq")
        state, limit, after = query.get("state"), limit_in(query), number_in(query, "after", 0)
        if state is not None and state not in HOLD_STATES:
            raise InvalidRequest(f"state is {state[:64]!r}; open or closed would pass", field="state")
        await self._await_seq(query)
        customer = self._existing(Account(request.path_params["customer"], "spot")).customer
        found = self._ledger.holds(customer, state, after, limit)
        coins = self._ledger.coins
        body: dict[str, Any] = {
            "seq": self._ledger.head.seq,
            "holds": [hold_answer(hold, coins[hold.coin].scale) for hold in found],
            "next_after": str(found[-1].hold_id) if len(found) == limit else None,
        }
        return answer(body)

    async def entries(self, request: Request) -> Response:
        """Give the journal as a numbered feed without gaps, a page at a time."""
        query = query_of(request, "after_seq", "limit", "min_seq")
        after_seq, limit = number_in(query, "after_seq", 0), limit_in(query)
        await self._await_seq(query)
        found = self._ledger.entries(after_seq, limit)
        coins = self._ledger.coins
        body = {
            "seq": self._ledger.head.seq,
            "entries": [entry_answer(entry, coins) for entry in found],
            "next_after_seq": found[-1].seq if found else after_seq,
        }
        return answer(body)

    def _await_seq(self, query: dict[str, str]) -> Awaitable[None]:
        return await_seq(lambda: self._ledger.head.seq, query)
