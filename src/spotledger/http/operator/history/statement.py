"""
The statement of a period: a page of it as JSON, or all of it as CSV, streamed.

A stream reads a small piece of the journal, sends it, and goes on once the reader has taken it. So a month of a busy
customer needs no more memory than a day.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from spotledger import paths
from spotledger.domain.accounts import HOUSE_KIND, ZERO, Account, Balance, accounts_about, check_coin, is_receivable
from spotledger.errors import InvalidRequest, LedgerCorrupt, SpotledgerError, Unavailable
from spotledger.http.h1.request import Reply, Request, StreamWriter
from spotledger.http.operator.answers import CoinTexts
from spotledger.http.operator.calls import (
    LEDGER_READ,
    PIECE_ROWS,
    Call,
    Endpoint,
    TokenCheck,
    encoded_in_pieces,
    json_answer,
    limit_in,
    position_in,
    positioned,
    query_of,
    route,
)
from spotledger.http.operator.history.csv_rows import BYTE_ORDER_MARK, row, text_cell
from spotledger.http.operator.history.search import times_in
from spotledger.http.operator.history.statement_answers import (
    AccountStatementAnswer,
    StatementBalanceAnswer,
    StatementLineAnswer,
)
from spotledger.ledger.finding import Span
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.statements import LineName, RunningBalances, Scope, StatementLine

CSV_MEDIA_TYPE: Final = "text/csv"
#: Statements that may be streamed at the same time.
STREAMS_LIMIT: Final = 20
#: The account of the rows about what a customer owes.
OWED: Final = "owed"
COLUMNS: Final = (
    *("epoch", "seq", "booked", "kind", "account", "coin", "available", "freeze", "owes"),
    *("available_after", "freeze_after", "owes_after", "reference", "key"),
)
_QUERY: Final = ("coin", "account", "from_ms", "to_ms", "after_seq", "limit", "bom", "min_seq")
_log = logging.getLogger("spotledger.operator")


class Accounts(Protocol):
    """Finds the account that a request names."""

    async def named_account(self, request: Request, query: dict[str, str]) -> Account:
        """Wait for ``min_seq``, and return the account; raise NotFound if there is no such owner."""


class StatementCalls:
    """The call that answers with a statement."""

    def __init__(self, ledger: Ledger, accounts: Accounts, texts: CoinTexts) -> None:
        self._ledger = ledger
        self._accounts = accounts
        self._texts = texts
        self._open = 0

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the route."""
        named = {"coin", "bom", "limit", "min_seq"}
        prefixes = {"account": "statement", "after_seq": "statement", "from_ms": "find", "to_ms": "find"}
        query = tuple(name if name in named else f"{prefixes[name]}:{name}" for name in _QUERY)
        call = Call(LEDGER_READ, self.statement, gives=AccountStatementAnswer, query=query, also=CSV_MEDIA_TYPE)
        return [route(token_check, paths.CUSTOMER_STATEMENT, GET=call)]

    async def statement(self, request: Request) -> Reply:
        """
        Return the statement of a customer or a house account, from `from_ms` on and before `to_ms`.

        Each line has the change of one account and coin by one entry, and the balance after it; opening and changes add
        up to closing. As JSON it comes in pages. With `Accept: text/csv` all of it is streamed, whatever `limit` is;
        it is complete with as many rows `closing` at its end as rows `opening` at its beginning. A customer who never
        had anything has neither.
        """
        query = query_of(request, *_QUERY)
        limit, bom = limit_in(query), _bom_in(query)
        from_ms, to_ms = times_in(query)
        scope = await self._scope(request, query)
        after_seq = position_in(query, "after_seq", self._ledger, 0)
        span = self._ledger.between(from_ms, to_ms)
        begin = min(max(span.after_seq, after_seq), self._ledger.head.seq)
        span = Span(begin, max(begin, span.to_seq))
        closing = self._ledger.statement_balances(scope, span.to_seq)
        before = self._ledger.statement_balances(scope, begin)
        opening = {name: before.get(name, ZERO) for name in closing}
        if CSV_MEDIA_TYPE.encode() in (request.header(b"accept") or b""):
            period = (_time_text(from_ms), _time_text(to_ms))
            return self._stream(_CsvStatement(self, scope, span, opening, closing, period, bom=bom), request)
        running, lines, after_seq = await self._read_page(scope, span, opening, limit)
        following = None if after_seq >= span.to_seq else self._ledger.epochs.text(after_seq)
        if following is None:
            running.check_closing(closing)
        body = AccountStatementAnswer(
            span.to_seq,
            self._ledger.epochs.of(span.to_seq),
            request.parameters["customer"],
            self._balance_answers(opening),
            [],
            self._balance_answers(running.balances),
            following,
        )
        return positioned(json_answer(await encoded_in_pieces(body, "lines", lines, self.line_answer)), body)

    async def _scope(self, request: Request, query: dict[str, str]) -> Scope:
        coin = query.get("coin")
        if coin is not None:
            check_coin(coin)
        account = await self._accounts.named_account(request, query)
        accounts = accounts_about(account.customer)
        if "account" in query:
            accounts = tuple(one for one in accounts if one.kind in (account.kind, HOUSE_KIND))
        return Scope(accounts, coin)

    # --- JSON -----------------------------------------------------------------------------------------

    async def _read_page(
        self, scope: Scope, span: Span, opening: Mapping[LineName, Balance], limit: int
    ) -> tuple[RunningBalances, list[StatementLine], int]:
        """Read the lines of at most *limit* entries in pieces; return the balances after them, and the last entry."""
        running, lines = RunningBalances(opening), list[StatementLine]()
        left = limit
        while left and span.after_seq < span.to_seq:
            count = min(left, PIECE_ROWS)
            piece = self._ledger.statement_lines(scope, span, count)
            running.take(piece.lines)
            lines += piece.lines
            left, span = left - count, span._replace(after_seq=piece.to_seq)
            await asyncio.sleep(0)
        return running, lines, span.after_seq

    def _balance_answers(self, balances: Mapping[LineName, Balance]) -> list[StatementBalanceAnswer]:
        return [
            StatementBalanceAnswer(_account_text(account), coin, *self.sides(account, coin, balance))
            for (account, coin), balance in balances.items()
        ]

    def line_answer(self, line: StatementLine) -> StatementLineAnswer:
        """Return the answer for one line."""
        entry, account, coin = line.entry, line.account, line.coin
        request = entry.request
        return StatementLineAnswer(
            entry.seq,
            self._texts.epochs.of(entry.seq),
            entry.booked_ms,
            entry.kind,
            _account_text(account),
            coin,
            *self.sides(account, coin, Balance(line.available, line.freeze)),
            *self.sides(account, coin, line.after),
            request.get("reference") or request.get("reason"),
            entry.key,
        )

    def sides(self, account: Account, coin: str, balance: Balance) -> tuple[str, str, str]:
        """Return available, freeze and what is owed, as text."""
        text = self._texts[coin]
        if is_receivable(account.customer):
            return text(0), text(0), text(-balance.available)
        return text(balance.available), text(balance.freeze), text(0)

    # --- CSV ------------------------------------------------------------------------------------------

    def _stream(self, stream: _CsvStatement, request: Request) -> Reply:
        if self._open >= STREAMS_LIMIT:
            raise Unavailable(f"{STREAMS_LIMIT} statements are being streamed, as many as may be; try again later.")
        stream.read_first()  # damage is answered as such; a stream could only break off
        file = f'attachment; filename="statement-{request.parameters["customer"]}.csv"'
        headers = [
            (b"content-type", f"{CSV_MEDIA_TYPE}; charset=utf-8; header=present".encode()),
            (b"content-disposition", file.encode()),
        ]
        return Reply(200, b"", headers, stream)

    def begun(self) -> None:
        """Count a stream that begins."""
        self._open += 1

    def ended(self) -> None:
        """Count a stream that has ended."""
        self._open -= 1

    def read(self, scope: Scope, span: Span) -> tuple[list[StatementLine], int]:
        """Return the next lines of a stream, and the last entry that was looked at."""
        return self._ledger.statement_lines(scope, span, PIECE_ROWS)

    def balance_rows(self, kind: str, seq: int, time: str, balances: Iterable[tuple[LineName, Balance]]) -> str:
        """Return a row of CSV for each of *balances*, with the name ``opening`` or ``closing`` as its kind."""
        place = (str(self._texts.epochs.of(seq)), str(seq), time, kind)
        return "".join(
            row((*place, _account_text(account), coin, "", "", "", *self.sides(account, coin, balance), "", ""))
            for (account, coin), balance in balances
        )

    def line_row(self, line: StatementLine) -> str:
        """Return the row of CSV for one line."""
        said = self.line_answer(line)
        return row(
            (
                *(str(said.epoch), str(said.seq), _time_text(said.booked_ms), said.kind, said.account, said.coin),
                *(said.available, said.freeze, said.owes, said.available_after, said.freeze_after, said.owes_after),
                *(text_cell(said.reference or ""), text_cell(said.key)),
            )
        )


class _CsvStatement:
    """One statement that is streamed as CSV."""

    def __init__(
        self,
        calls: StatementCalls,
        scope: Scope,
        span: Span,
        opening: Mapping[LineName, Balance],
        closing: Mapping[LineName, Balance],
        period: tuple[str, str],
        *,
        bom: bool,
    ) -> None:
        self._calls = calls
        self._scope = scope
        self._span = span
        self._closing = closing
        self._period = period
        self._running = RunningBalances(opening)
        head = row(COLUMNS) + calls.balance_rows("opening", span.after_seq, period[0], opening.items())
        self._piece = (BYTE_ORDER_MARK if bom else b"") + head.encode()

    def read_first(self) -> None:
        """Add the first lines to what is sent first."""
        self._piece += self._next_lines()

    async def __call__(self, writer: StreamWriter) -> bool:
        """Send all rows; return whether they were sent completely."""
        self._calls.begun()
        try:
            await writer.send(self._piece)
            while self._span.after_seq < self._span.to_seq:
                await writer.send(self._next_lines())
                await asyncio.sleep(0)
            self._running.check_closing(self._closing)
            closing = self._running.balances.items()
            await writer.send(self._calls.balance_rows("closing", self._span.to_seq, self._period[1], closing).encode())
        except OSError:
            return False  # the reader has disconnected
        except (SpotledgerError, LedgerCorrupt) as error:
            level = logging.CRITICAL if isinstance(error, LedgerCorrupt) else logging.WARNING
            _log.log(level, "a statement ended before its time: %s", error)
            return False
        finally:
            self._calls.ended()
        return True

    def _next_lines(self) -> bytes:
        lines, to_seq = self._calls.read(self._scope, self._span)
        self._running.take(lines)
        self._span = self._span._replace(after_seq=to_seq)
        return "".join(map(self._calls.line_row, lines)).encode()


def _account_text(account: Account) -> str:
    return OWED if is_receivable(account.customer) else account.kind


def _time_text(time_ms: int | None) -> str:
    """Return a time as ISO 8601 in UTC; empty for None, or a time that no calendar has."""
    if time_ms is None:
        return ""
    try:
        found = datetime.fromtimestamp(time_ms // 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return f"{found:%Y-%m-%dT%H:%M:%S}.{time_ms % 1000:03d}Z"


def _bom_in(query: Mapping[str, str]) -> bool:
    text = query.get("bom", "false")
    if text not in ("true", "false"):
        raise InvalidRequest(f"bom is {text[:64]!r}; true or false would pass", field="bom")
    return text == "true"
