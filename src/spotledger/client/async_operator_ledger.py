"""
The ledger of a running service, called from Python without blocking the event loop.

The methods have the names of the library (:class:`spotledger.ledger.Ledger`). A call whose answer was lost, or that the
service could not take now, is made again with the same key, a bounded number of times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx2

from spotledger.client.ledger_answers import (
    Entry,
    EntryPage,
    Hold,
    HoldPage,
    LedgerBalances,
    MadeToken,
    OperatorToken,
    Statement,
    TokenPage,
    TrialBalance,
    Written,
)
from spotledger.client.operations import (
    Amount,
    Deposit,
    Freeze,
    HoldName,
    ListCoin,
    Operation,
    RegisterCustomer,
    Reverse,
    Settle,
    SettleSide,
    Transfer,
    Unfreeze,
    Withdraw,
)
from spotledger.client.operator import OPERATOR_BODY_LIMIT_BYTES, OPERATOR_READ_TIMEOUT_S
from spotledger.client.operator_core import ATTEMPTS, FeedCore, OperatorCore
from spotledger.client.steps import Result, Steps
from spotledger.client.transport import Started, drive_async, stream_async, timeouts
from spotledger.errors import Refused, TransportError, Unavailable


class AsyncOperatorLedger:
    """
    The ledger of a service, without blocking.

    Use it as a context manager, or call ``aclose`` at the end. Use it within one event loop.
    """

    def __init__(
        self, base_url: str, token: str, *, attempts: int = ATTEMPTS, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """
        Take the address of the operator listener and a token.

        Args:
            base_url: Such as ``http://127.0.0.1:8081``.
            token: An operator token. It is shown by no message, ``repr`` or log line of this client.
            attempts: How often a call is made that got no answer, 1 or more.
            transport: Used in place of the network.

        Raises:
            ValueError: An argument is not of the right form.
        """
        self._core = OperatorCore(base_url, token, attempts)
        self._http = httpx2.AsyncClient(transport=transport, timeout=timeouts(OPERATOR_READ_TIMEOUT_S))

    def __repr__(self) -> str:
        return f"AsyncOperatorLedger({self._core.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _drive(self, steps: Steps[Result]) -> Result:
        return await drive_async(self._http, steps, OPERATOR_BODY_LIMIT_BYTES)

    # --- operations ---------------------------------------------------------------------------------

    async def do(self, operation: Operation) -> Written:
        """
        Do one operation.

        Raises:
            Refused: Why it was not done; in the class whose ``code`` the service named.
            Denied: The token is not let in.
            Unavailable: The service could not take it, however often it was asked; try again with the same key.
            TransportError: No answer came; whether it was done is learnt by trying again with the same key.
            ProtocolError: An answer came that is not of the documented form.
        """
        return await self._drive(self._core.do(operation))

    async def list_coin(self, coin: str, scale: int, *, key: str) -> Written:
        """List *coin* with *scale* decimals (0–18)."""
        return await self.do(ListCoin(key, coin, scale))

    async def register_customer(self, customer: str, *, key: str) -> Written:
        """Register *customer*."""
        return await self.do(RegisterCustomer(key, customer))

    async def deposit(self, customer: str, coin: str, amount: Amount, *, key: str, **more: Any) -> Written:
        """Book what came in from outside; takes ``account``, ``reference`` and ``happened_ms`` too."""
        return await self.do(Deposit(key, customer, coin, amount, **more))

    async def freeze(self, customer: str, coin: str, amount: Amount, *, key: str, **more: Any) -> Written:
        """Freeze what is available, and open a hold; takes ``account``, ``reference`` and ``expires_ms`` too."""
        return await self.do(Freeze(key, customer, coin, amount, **more))

    async def unfreeze(self, hold: HoldName, amount: Amount | None = None, *, key: str) -> Written:
        """Free *amount* of *hold*, or all that remains of it."""
        return await self.do(Unfreeze(key, hold, amount))

    async def withdraw(self, amount: Amount, *, key: str, **more: Any) -> Written:
        """Book what went outside: out of ``hold``, or of what ``customer`` has of ``coin`` available."""
        return await self.do(Withdraw(key, amount, **more))

    async def transfer(
        self, from_customer: str, to_customer: str, coin: str, amount: Amount, *, key: str, **more: Any
    ) -> Written:
        """Move what is available; takes ``from_account``, ``to_account`` and ``reference`` too."""
        return await self.do(Transfer(key, from_customer, to_customer, coin, amount, **more))

    async def settle(
        self,
        base: str,
        quote: str,
        base_amount: Amount,
        quote_amount: Amount,
        buyer: SettleSide,
        seller: SettleSide,
        *,
        key: str,
        **more: Any,
    ) -> Written:
        """Book one fill of a trade as one entry; takes ``reference`` and ``happened_ms`` too."""
        return await self.do(Settle(key, base, quote, base_amount, quote_amount, buyer, seller, **more))

    async def reverse(self, seq: int, reason: str, *, key: str) -> Written:
        """Undo the deposit, withdrawal, transfer or settlement of the entry *seq*, once."""
        return await self.do(Reverse(key, seq, reason))

    async def execute(
        self, operations: Sequence[Operation], *, chains: Sequence[str | None] | None = None, atomic: bool = False
    ) -> list[Written | Refused]:
        """
        Do up to 10,000 *operations* in order as one batch; later ones see the effects of earlier ones.

        Args:
            operations: What is to be done.
            chains: One text an operation, or None: neighbours with the same one are done all or not at all.
            atomic: Do all of them or none.

        Returns:
            One outcome an operation, in order. Raises like :meth:`do` where the batch as a whole was not taken.
        """
        return await self._drive(self._core.execute(operations, chains, atomic))

    # --- reads --------------------------------------------------------------------------------------

    async def balances(
        self,
        customer: str,
        account: str | None = None,
        *,
        at_seq: int | None = None,
        at_ms: int | None = None,
        min_seq: int | None = None,
    ) -> LedgerBalances:
        """Return what *customer* has, now, or after the entry *at_seq*, or at the time *at_ms*."""
        query = {"account": account, "at_seq": at_seq, "at_ms": at_ms, "min_seq": min_seq}
        return await self._drive(self._core.balances(customer, **query))

    async def hold(self, hold: str, *, min_seq: int | None = None) -> Hold:
        """Return one hold by its id, open or closed."""
        return await self._drive(self._core.hold(hold, min_seq=min_seq))

    async def holds(
        self,
        customer: str,
        state: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        *,
        older_than_ms: int | None = None,
        min_seq: int | None = None,
    ) -> HoldPage:
        """Return a page of the holds of *customer*: ``open``, ``closed``, or both."""
        query = {"state": state, "after": after, "limit": limit, "older_than_ms": older_than_ms, "min_seq": min_seq}
        return await self._drive(self._core.holds(customer, **query))

    async def old_holds(self, older_than_ms: int, after: str | None = None, limit: int | None = None) -> HoldPage:
        """Return a page of everybody's open holds that are at least so old, the oldest first."""
        return await self._drive(self._core.old_holds(older_than_ms=older_than_ms, after=after, limit=limit))

    async def statement(
        self,
        customer: str,
        coin: str | None = None,
        after_seq: int = 0,
        limit: int | None = None,
        *,
        min_seq: int | None = None,
    ) -> Statement:
        """Return a page of the entries about *customer* (and *coin*), with the balances before and after it."""
        query = {"coin": coin, "after_seq": after_seq, "limit": limit, "min_seq": min_seq}
        return await self._drive(self._core.statement(customer, **query))

    async def entry(self, seq: int) -> Entry:
        """Return the entry *seq*."""
        return await self._drive(self._core.entry(seq))

    async def entries(self, after_seq: int = 0, limit: int | None = None, *, min_seq: int | None = None) -> EntryPage:
        """Return a page of the journal, in order and without gaps."""
        return await self._drive(self._core.entries(after_seq=after_seq, limit=limit, min_seq=min_seq))

    async def trial_balance(self) -> TrialBalance:
        """Return what all customers and each house account have of each coin."""
        return await self._drive(self._core.trial_balance())

    # --- operator tokens ----------------------------------------------------------------------------

    async def tokens(self, after: str | None = None, limit: int | None = None) -> TokenPage:
        """Return a page of the operator tokens, revoked ones too."""
        return await self._drive(self._core.tokens(after=after, limit=limit))

    async def create_token(self, scopes: Sequence[str], label: str = "", *, key: str) -> MadeToken:
        """Make an operator token with *scopes*. A repeat under the same *key* says all of it but the token."""
        return await self._drive(self._core.create_token(scopes, label, key))

    async def revoke_token(self, token_id: str) -> OperatorToken:
        """
        Make a token stop working, at once and for ever; it may be the one that this client has.

        Raises:
            NotFound: There is no such token.
            LastAdminToken: No other token in use has the scope ``admin``.
        """
        return await self._drive(self._core.revoke_token(token_id))

    # --- the feed -----------------------------------------------------------------------------------

    async def feed(self, after_seq: int = 0) -> AsyncIterator[Entry]:
        """
        Give every entry after *after_seq*, those that are there and those that come, each once and in order.

        Goes on by itself where the connection breaks.

        Raises:
            TransportError, Unavailable: The service could not be reached, however often it was tried.
            Refused, Denied: It lets nobody in, or there is no such entry: after a restore, read from the start.
            ProtocolError: An entry is missing, or came twice.
        """
        feed = FeedCore(self._core, after_seq)
        problem: TransportError | Unavailable
        while True:
            try:
                body = b""
                refused: Started | None = None
                async with aclosing(stream_async(self._http, feed.request())) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, Started):
                            refused = None if piece.status == 200 else piece
                        elif refused is not None:
                            body += piece
                        else:
                            for entry in feed.take(piece):
                                yield entry
                if refused is not None:
                    feed.check(refused.status, refused.headers, body)
                problem = TransportError("the feed ended")
            except (TransportError, Unavailable) as error:
                problem = error
            await asyncio.sleep(feed.failed(problem))
