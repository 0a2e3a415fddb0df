"""
The operator client, for asyncio: one method for each call of the operator API.

The methods have the names of the library (:class:`spotledger.ledger.ledger.Ledger`). When no answer arrives or the
service is unavailable, a call is sent again with the same key, up to ``attempts`` times.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self, TypeVar

import httpx2
from msgspec.structs import replace

from spotledger import paths
from spotledger.client.async_driver import drive_async, stream_async
from spotledger.client.operator.async_credentials import AsyncCredentialCalls
from spotledger.client.operator.async_operation_calls import AsyncOperationCalls
from spotledger.client.operator.core import ATTEMPTS, CsvCore, FeedCore, OperatorCore, outcomes_of
from spotledger.client.operator.decoding import decode
from spotledger.client.operator.ledger_answers import (
    AccountStatement,
    Coins,
    CustomerPage,
    Entry,
    EntryPage,
    EntryRead,
    Hold,
    HoldPage,
    HoldRead,
    HouseAccounts,
    LedgerBalances,
    Statement,
    TrialBalance,
    Written,
)
from spotledger.client.operator.messages import (
    OPERATOR_BODY_LIMIT_BYTES,
    OPERATOR_READ_TIMEOUT_S,
    Json,
    Params,
    Reply,
    dry_run_params,
    path_of,
    request,
)
from spotledger.client.operator.operation import Operation, Position, batch_body
from spotledger.client.operator.service_answers import Audit, Backup, ClockState, Ready
from spotledger.client.transport import open_http_async
from spotledger.errors import Refused, TransportError, Unavailable

T = TypeVar("T")


class AsyncOperatorLedger(AsyncOperationCalls, AsyncCredentialCalls):
    """
    The ledger of a running service, for asyncio.

    Use it as a context manager, or call ``aclose`` when done. Use it within one event loop.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        attempts: int = ATTEMPTS,
        proxy: str | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        on_answer: Callable[[Json], object] | None = None,
    ) -> None:
        """
        Take the address of the operator listener and a token.

        Args:
            base_url: Such as ``http://127.0.0.1:8081``.
            token: An operator token. No message, ``repr`` or log line of this client shows it.
            attempts: How often a call is sent at most, 1 or more.
            proxy: The URL of a proxy; the proxies that the environment names are never used.
            transport: Used in place of the network.
            on_answer: Called with the JSON document of each answer before it is decoded; the feed excepted.

        Raises:
            ValueError: An argument has another form. No message repeats the token or the proxy.
        """
        self._core = OperatorCore(base_url, token, attempts, on_answer)
        self._http = open_http_async(self, transport, proxy, OPERATOR_READ_TIMEOUT_S)

    def __repr__(self) -> str:
        return f"AsyncOperatorLedger({self._core.base_url!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        params: Params | None = None,
        attempts: int | None = None,
    ) -> Reply:
        """
        Make any call, for example one without a method of its own.

        Args:
            method: ``"GET"``, ``"POST"`` or ``"DELETE"``.
            path: Begins with ``/``, percent-encoded.
            body: Sent as JSON; amounts in it are decimal text.
            key: The idempotency key of a write.
            params: The query; what is None is left out.
            attempts: How often it is sent at most; None for the ``attempts`` of the client.

        Returns:
            The HTTP status, the headers and the JSON document. ``replayed`` marks the repeat of an earlier answer.

        Raises:
            ValueError: *path* does not begin with one ``/``, or has a query or a fragment. Other errors as :meth:`do`.
        """
        send = request(self._core.base_url, self._core.token, method, path, body, key, params)
        return await drive_async(self._http, self._core.call(send, attempts), OPERATOR_BODY_LIMIT_BYTES)

    async def _ask(self, kind: type[T], method: str, path: str, **more: Any) -> T:
        return decode(kind, (await self.call(method, path, **more)).document)

    async def _get(self, kind: type[T], path: str, /, **params: str | int | None) -> T:
        return await self._ask(kind, "GET", path, params=params)

    async def do(self, operation: Operation, *, dry_run: bool = False) -> Written:
        """
        Do one operation, or in a *dry_run* only try it: nothing is booked, and no key is used.

        Raises:
            Refused: The service refused it; the class has the ``code`` that the service named.
            Denied: The token is missing or not in use, is not for this address, or lacks the scope.
            Unavailable: The service was unavailable at every attempt; try again with the same key.
            TransportError: No answer arrived, so the outcome is unknown; try again with the same key.
            ProtocolError: The answer is not of the documented form.
        """
        reply = await self.call("POST", operation.path, operation.body(), operation.key, dry_run_params(dry_run))
        written = decode(Written, reply.document)
        return replace(written, replayed=True) if reply.replayed else written

    async def execute(
        self,
        operations: Sequence[Operation],
        *,
        chains: Sequence[str | None] | None = None,
        atomic: bool = False,
        dry_run: bool = False,
    ) -> list[Written | Refused]:
        """
        Do up to 10,000 *operations* in order as one batch; later ones see the effects of earlier ones.

        Args:
            operations: Of any kind but ``ListCoin``.
            chains: One text or None per operation; neighbours with the same text happen all or not at all.
            atomic: Whether all of them happen or none; then 1,000 at most.
            dry_run: Whether they are only tried: nothing is booked, and no key is used.

        Returns:
            One outcome per operation, in order.

        Raises:
            ValueError: *chains* and *operations* differ in length. Other errors, about the whole batch, as :meth:`do`.
        """
        body = batch_body(operations, chains, atomic)
        reply = await self.call("POST", paths.BATCHES, body, params=dry_run_params(dry_run))
        return outcomes_of(reply.document, len(operations))

    # --- reads --------------------------------------------------------------------------------------

    async def coins(self, *, min_seq: Position | None = None) -> Coins:
        """Return the listed coins with their scales."""
        return await self._get(Coins, paths.COINS, min_seq=min_seq)

    async def customers(
        self, after: str | None = None, limit: int | None = None, *, min_seq: Position | None = None
    ) -> CustomerPage:
        """Return a page of the customers in the order of their ids."""
        return await self._get(CustomerPage, paths.CUSTOMERS, after=after, limit=limit, min_seq=min_seq)

    async def house_accounts(self, *, min_seq: Position | None = None) -> HouseAccounts:
        """Return the house accounts by name, without what each customer owes."""
        return await self._get(HouseAccounts, paths.HOUSE_ACCOUNTS, min_seq=min_seq)

    async def balances(
        self,
        customer: str,
        account: str | None = None,
        *,
        at_seq: Position | None = None,
        at_ms: int | None = None,
        min_seq: Position | None = None,
    ) -> LedgerBalances:
        """Return the balances of *customer*: now, after the entry *at_seq*, or at the time *at_ms*."""
        path = path_of(paths.CUSTOMER_BALANCES, customer=customer)
        return await self._get(LedgerBalances, path, account=account, at_seq=at_seq, at_ms=at_ms, min_seq=min_seq)

    async def hold(self, hold: str, *, min_seq: Position | None = None) -> Hold:
        """Return one hold by its id, open or closed."""
        return (await self._get(HoldRead, path_of(paths.HOLD, hold=hold), min_seq=min_seq)).hold

    async def holds(
        self,
        customer: str,
        state: str | None = None,
        after: str | None = None,
        limit: int | None = None,
        *,
        older_than_ms: int | None = None,
        min_seq: Position | None = None,
    ) -> HoldPage:
        """Return a page of the holds of *customer*; *state* is ``open``, ``closed``, or None for both."""
        query = {"state": state, "after": after, "limit": limit, "older_than_ms": older_than_ms, "min_seq": min_seq}
        return await self._get(HoldPage, path_of(paths.CUSTOMER_HOLDS, customer=customer), **query)

    async def old_holds(
        self, older_than_ms: int, after: str | None = None, limit: int | None = None, *, min_seq: Position | None = None
    ) -> HoldPage:
        """Return a page of all customers' open holds that are at least *older_than_ms* old, the oldest first."""
        query = {"older_than_ms": older_than_ms, "after": after, "limit": limit, "min_seq": min_seq}
        return await self._get(HoldPage, paths.HOLDS, **query)

    async def statement(
        self,
        customer: str,
        coin: str | None = None,
        after_seq: Position = 0,
        limit: int | None = None,
        *,
        min_seq: Position | None = None,
    ) -> Statement:
        """Return a page of the entries about *customer* and *coin*, with the balances before and after the page."""
        path = path_of(paths.CUSTOMER_ENTRIES, customer=customer)
        return await self._get(Statement, path, coin=coin, after_seq=after_seq, limit=limit, min_seq=min_seq)

    async def account_statement(
        self,
        customer: str,
        *,
        coin: str | None = None,
        account: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        after_seq: Position | None = None,
        limit: int | None = None,
        min_seq: Position | None = None,
    ) -> AccountStatement:
        """
        Return a page of the statement of a period: opening, each change with the balance after it, and closing.

        Args:
            customer: A customer, or a house account such as ``@fees``.
            coin: Only this coin.
            account: Only this account, and what the customer owes; None: all.
            from_ms: The beginning of the period in milliseconds since 1970, inclusive.
            to_ms: Its end, exclusive.
            after_seq: The ``next`` of the page before.
            limit: The most entries on the page, 1 to 1000.
            min_seq: Wait until the journal has this entry.
        """
        path = path_of(paths.CUSTOMER_STATEMENT, customer=customer)
        asked = {"coin": coin, "account": account, "from_ms": from_ms, "to_ms": to_ms}
        return await self._get(AccountStatement, path, **asked, after_seq=after_seq, limit=limit, min_seq=min_seq)

    async def statement_csv(
        self,
        customer: str,
        *,
        coin: str | None = None,
        account: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        bom: bool = False,
    ) -> AsyncIterator[bytes]:
        """
        Yield the statement of a period as CSV, piece by piece; complete with as many rows ``closing`` as ``opening``.

        The arguments are those of :meth:`account_statement`. With *bom* it begins with a byte order mark, by which
        Excel recognises UTF-8.

        Raises:
            TransportError: The service could not be reached, or the answer broke off.
            Other errors as :meth:`do`.
        """
        asked = {"coin": coin, "account": account, "from_ms": from_ms, "to_ms": to_ms, "bom": "true" if bom else None}
        core = CsvCore(self._core, path_of(paths.CUSTOMER_STATEMENT, customer=customer), asked)
        async with aclosing(stream_async(self._http, core.request)) as pieces:
            async for piece in pieces:
                for rows in core.take(piece):
                    yield rows
        core.check_end()

    async def entry(self, seq: Position, *, min_seq: Position | None = None) -> Entry:
        """Return the entry *seq*."""
        return (await self._get(EntryRead, path_of(paths.ENTRY, seq=seq), min_seq=min_seq)).entry

    async def reversal_of(self, seq: Position, *, min_seq: Position | None = None) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        return (await self._get(EntryRead, path_of(paths.ENTRY, seq=seq), min_seq=min_seq)).reversed_by

    async def entries(
        self,
        after_seq: Position = 0,
        limit: int | None = None,
        *,
        actor: str | None = None,
        min_seq: Position | None = None,
    ) -> EntryPage:
        """
        Return a page of the journal, in order and without gaps; with *actor* only the entries of that actor.

        A page of an *actor* may be short or empty before the end of the journal, because a call looks at a bounded
        number of entries. Go on after ``next`` until it is where the page began or, as others may write all the time,
        ``next_after_seq`` has reached the ``seq`` of the first page.
        """
        return await self._get(EntryPage, paths.ENTRIES, after_seq=after_seq, limit=limit, actor=actor, min_seq=min_seq)

    async def find(
        self,
        *,
        key: str | None = None,
        reference: str | None = None,
        customer: str | None = None,
        coin: str | None = None,
        kind: str | None = None,
        actor: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        after_seq: Position = 0,
        limit: int | None = None,
        min_seq: Position | None = None,
    ) -> EntryPage:
        """
        Return a page of the entries that match all that is given, in order.

        A page may be short or empty before the end of the journal, because a call looks at a bounded number of entries.
        Go on after ``next`` until it is where the page began or, as others may write all the time, ``next_after_seq``
        has reached the ``seq`` of the first page.

        Args:
            key: The idempotency key; one entry at most has it.
            reference: The reference of the request.
            customer: Whose balances the entries change; a house account such as ``@fees`` too.
            coin: The coin whose balances they change.
            kind: Such as ``deposit``.
            actor: ``token:ID``, ``key:BEGINNING``, ``library`` or ``ledger``.
            from_ms: Booked then or later, in milliseconds since 1970.
            to_ms: Booked before.
            after_seq: Only entries after this one.
            limit: The most entries to return, 1 to 1000.
            min_seq: Wait until the journal has this entry.
        """
        asked = {"key": key, "reference": reference, "customer": customer, "coin": coin, "kind": kind, "actor": actor}
        page = {"from_ms": from_ms, "to_ms": to_ms, "after_seq": after_seq, "limit": limit, "min_seq": min_seq}
        return await self._get(EntryPage, paths.ENTRIES, **asked, **page)

    async def trial_balance(
        self, *, at_seq: Position | None = None, at_ms: int | None = None, min_seq: Position | None = None
    ) -> TrialBalance:
        """Return the sums of all customers and of each house account, by coin: now, or as of *at_seq* or *at_ms*."""
        return await self._get(TrialBalance, paths.TRIAL_BALANCE, at_seq=at_seq, at_ms=at_ms, min_seq=min_seq)

    # --- the service --------------------------------------------------------------------------------

    async def ready(self) -> Ready:
        """
        Return the head of the journal if the service takes writes. Sent once; needs no token.

        Raises:
            Unavailable: It does not take writes now.
            TransportError: No answer arrived.
        """
        return await self._ask(Ready, "GET", paths.READYZ, attempts=1)

    async def clock(self) -> ClockState:
        """Return what the clock of the service shows, and whether it is trusted."""
        return await self._get(ClockState, paths.CLOCK)

    async def trust_clock(self) -> ClockState:
        """Trust the wall clock as it stands, in a fleet the database's too; look first, for expiries follow at once."""
        return await self._ask(ClockState, "POST", paths.CLOCK_TRUST)

    async def start_audit(self) -> Audit:
        """Begin an audit of the whole ledger, or return the one that is running."""
        return await self._ask(Audit, "POST", paths.AUDITS)

    async def audit(self, audit: str) -> Audit:
        """Return the progress or the report of an audit; the service keeps the last 20 since its start."""
        return await self._get(Audit, path_of(paths.AUDIT, audit=audit))

    async def make_backup(self, file: str | None = None) -> Backup:
        """
        Make a backup in the folder ``backups`` of the service's data folder.

        Sent once, because it has no idempotency key: after a TransportError, ask :meth:`backup` for the same name.

        Args:
            file: A new name; None for one with the time in it.

        Returns:
            What the backup contains. A large one is still ``running`` after some seconds: ask :meth:`backup` until it
            is ``done``.

        Raises:
            InvalidRequest: *file* is not a valid name, or is taken.
            StoreBusy: Another backup is being made.
            StoreUnavailable: It could not be written.
        """
        return await self._ask(Backup, "POST", paths.BACKUPS, body={"file": file}, attempts=1)

    async def backup(self, file: str) -> Backup:
        """
        Return the progress of the backup *file*, or what it contains.

        Raises:
            NotFound: There is no backup of this name.
            StoreUnavailable: It could not be written.
        """
        return await self._get(Backup, path_of(paths.BACKUP, file=file))

    # --- the feed -----------------------------------------------------------------------------------

    async def feed(self, after_seq: Position = 0) -> AsyncIterator[Entry]:
        """
        Yield every entry after *after_seq*, present and future ones, each once and in order.

        Continues after the last entry when the connection breaks.

        Raises:
            TransportError, Unavailable: The service could not be reached ``attempts`` times in a row.
            Denied: The token is missing or not in use, is not for this address, or lacks the scope.
            EpochMissing, UnknownPosition: The ledger was restored; undo what came after ``last_common`` in the details.
            ProtocolError: An entry is missing, arrived twice, or is not of the documented form.
        """
        feed = FeedCore(self._core, after_seq)
        problem: TransportError | Unavailable
        while True:
            try:
                async with aclosing(stream_async(self._http, feed.request())) as pieces:
                    async for piece in pieces:
                        for entry in feed.take(piece):
                            yield entry
                problem = feed.ended()
            except (TransportError, Unavailable) as error:
                problem = error
            await asyncio.sleep(feed.pause_s(problem))
