"""
The operator API's reads: each stands for one position of the journal, which its answer names.

A page is read in small pieces, and other tasks may run between them. A piece either has data that never changes, or
belongs to the position that the answer names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from msgspec import UNSET

from spotledger import paths
from spotledger.domain.accounts import (
    HOUSE_KIND,
    ZERO,
    Account,
    Balance,
    Coin,
    account_of,
    check_account_kind,
    check_coin,
    is_house_name,
    receivable_of,
)
from spotledger.domain.journal import Entry, Hold
from spotledger.domain.positions import parse_position
from spotledger.errors import InvalidRequest, NotFound
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import (
    AfterAnswer,
    BalancesAnswer,
    CoinAnswer,
    CoinsAnswer,
    CoinTexts,
    CustomersAnswer,
    EntriesAnswer,
    EntryAnswer,
    EntryReadAnswer,
    HoldAnswer,
    HoldReadAnswer,
    HoldsAnswer,
    HouseAccountAnswer,
    HouseAccountsAnswer,
    StatementAnswer,
    TrialBalanceAnswer,
    TrialCoinAnswer,
    after_answer,
    amount_text,
    balance_answer,
    entry_answer,
    hold_answer,
)
from spotledger.http.operator.calls import (
    LEDGER_READ,
    PIECE_ROWS,
    Call,
    Endpoint,
    TokenCheck,
    answer,
    await_seq,
    encoded_in_pieces,
    json_answer,
    limit_in,
    number_in,
    position_in,
    positioned,
    query_of,
    route,
    seq_of,
)
from spotledger.http.operator.feed import EVENT_STREAM_MEDIA_TYPE, Feed
from spotledger.http.operator.history.search import criteria_in, times_in
from spotledger.ledger.finding import SCANNED_ENTRIES, Criteria, Span
from spotledger.ledger.ledger import CUSTOMERS, Ledger, TrialBalance

HOLD_STATES: Final = ("open", "closed")
_EVENT_STREAM: Final = EVENT_STREAM_MEDIA_TYPE.encode()


class ReadCalls:
    """The calls that read coins, customers, balances, holds, entries and the trial balance."""

    def __init__(self, ledger: Ledger, feed: Feed, texts: CoinTexts) -> None:
        self._ledger = ledger
        self._feed = feed
        self._adding_up = asyncio.Lock()
        self._texts = texts

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes, the most frequent ones first, without those of paths that also take writes."""
        holds = ("state", "older_than_ms", "hold:after", "limit", "min_seq")
        pages = (
            *(f"find:{name}" for name in self.SEARCH),
            "find:from_ms",
            "find:to_ms",
            "after_seq",
            "limit",
            "min_seq",
        )
        entries = Call(LEDGER_READ, self.entries, gives=EntriesAnswer, query=pages, streams=True)
        return [
            self._route(token_check, paths.CUSTOMER_BALANCES, self.balances, BalancesAnswer, *self.BALANCES),
            self._route(token_check, paths.CUSTOMER_HOLDS, self.holds, HoldsAnswer, *holds),
            self._route(token_check, paths.CUSTOMER_ENTRIES, self.statement, StatementAnswer, *self.STATEMENT),
            self._route(token_check, paths.HOLD, self.hold, HoldReadAnswer, "min_seq"),
            route(token_check, paths.ENTRIES, GET=entries),
            self._route(token_check, paths.ENTRY, self.entry, EntryReadAnswer, "min_seq"),
            self._route(token_check, paths.TRIAL_BALANCE, self.trial_balance, TrialBalanceAnswer, *self.TRIAL),
        ]

    BALANCES: Final = ("account", "at_seq", "at_ms", "min_seq")
    TRIAL: Final = ("at_seq", "at_ms", "min_seq")
    STATEMENT: Final = ("coin", "after_seq", "limit", "min_seq")

    def _route(
        self, token_check: TokenCheck, path: str, read: Callable[[Request], Awaitable[Reply]], gives: type, *query: str
    ) -> Endpoint:
        return route(token_check, path, GET=Call(LEDGER_READ, read, gives=gives, query=query))

    # --- coins and customers ----------------------------------------------------------------------

    async def coins(self, request: Request) -> Reply:
        """List the coins with their scales."""
        await self._await_seq(query_of(request, "min_seq"))
        seq, listed = self._ledger.at_one_head(lambda: self._ledger.coins)
        coins = [CoinAnswer(coin.name, coin.scale) for coin in listed.values()]
        return answer(CoinsAnswer(seq, self._ledger.epochs.of(seq), coins))

    async def customers(self, request: Request) -> Reply:
        """List the customers in the order of their ids, a page at a time."""
        query = query_of(request, "after", "limit", "min_seq")
        limit = limit_in(query)
        await self._await_seq(query)
        seq, found = self._ledger.at_one_head(lambda: self._ledger.customers(query.get("after", ""), limit))
        following = found[-1] if len(found) == limit else None
        return answer(CustomersAnswer(seq, self._ledger.epochs.of(seq), found, following))

    async def house_accounts(self, request: Request) -> Reply:
        """List the house accounts, without what each customer owes."""
        await self._await_seq(query_of(request, "min_seq"))
        seq, opened = self._ledger.at_one_head(lambda: self._ledger.house_accounts)
        found = [HouseAccountAnswer(account.name, account.may_be_negative) for account in opened.values()]
        return answer(HouseAccountsAnswer(seq, self._ledger.epochs.of(seq), found))

    # --- balances -----------------------------------------------------------------------------------

    async def balances(self, request: Request) -> Reply:
        """Return the balances of one account, now or at a past moment, and what the customer owes."""
        query = query_of(request, *self.BALANCES)
        account = self._account(request.parameters["customer"], query.get("account"))
        await self._await_seq(query)
        self._check_there(account)
        at_seq = self._past_in(query)

        def read() -> tuple[Mapping[str, Coin], dict[str, Balance], dict[str, Balance]]:
            house = account.kind == HOUSE_KIND
            owed = {} if house else self._ledger.balances(receivable_of(account.customer), at_seq)
            return self._ledger.coins, self._ledger.balances(account, at_seq), owed

        if at_seq is None:
            seq, (coins, balances, owed) = self._ledger.at_one_head(read)
        else:
            seq, (coins, balances, owed) = at_seq, read()
        listed = {name: balance_answer(balances.get(name, ZERO), coin.scale) for name, coin in coins.items()}
        owes = UNSET if account.kind == HOUSE_KIND else _owes(owed, coins)
        return answer(BalancesAnswer(seq, self._ledger.epochs.of(seq), account.customer, account.kind, listed, owes))

    def _past_in(self, query: Mapping[str, str]) -> int | None:
        """Return the entry that ``at_seq`` or ``at_ms`` names; None for now."""
        if "at_seq" in query and "at_ms" in query:
            raise InvalidRequest("at_seq is given beside at_ms; one of them would pass", field="at_seq")
        if "at_ms" in query:
            return self._ledger.seq_at(number_in(query, "at_ms", 0))
        return position_in(query, "at_seq", self._ledger, 0) if "at_seq" in query else None

    def _account(self, customer: str, kind: str | None) -> Account:
        if is_house_name(customer):
            if kind is not None:
                raise InvalidRequest(f"account is given for {customer}, which has none; leave it out", field="account")
            return account_of(customer)
        return Account(customer, check_account_kind("spot" if kind is None else kind))

    async def named_account(self, request: Request, query: dict[str, str]) -> Account:
        """Wait for ``min_seq``, and return the account that *request* names; raise NotFound if there is none."""
        account = self._account(request.parameters["customer"], query.get("account"))
        await self._await_seq(query)
        self._check_there(account)
        return account

    def _check_there(self, account: Account) -> None:
        if account.kind == HOUSE_KIND:
            if account.customer not in self._ledger.house_accounts:
                raise NotFound(f"There is no house account {account.customer[:64]}; one that is open would pass.")
        elif not self._ledger.has_customer(account.customer):
            raise NotFound(f"There is no customer {account.customer[:64]}; a registered one would pass.")

    # --- holds ----------------------------------------------------------------------------------------

    async def holds(self, request: Request) -> Reply:
        """List a customer's holds in the order in which they were opened, a page at a time."""
        query = query_of(request, "state", "older_than_ms", "after", "limit", "min_seq")
        state, limit = query.get("state"), limit_in(query)
        before_ms = self._opened_before(query)
        if state is not None and state not in HOLD_STATES:
            raise InvalidRequest(f"state is {state[:64]!r}; open or closed would pass", field="state")
        await self._await_seq(query)
        after = position_in(query, "after", self._ledger, 0)
        customer = request.parameters["customer"]
        self._check_there(account_of(customer))

        def read(after: int, limit: int) -> list[Hold]:
            found = self._ledger.holds(customer, state, after, limit)
            return [hold for hold in found if before_ms is None or hold.opened_ms <= before_ms]

        return await self._holds_page(read, after, limit)

    async def old_holds(self, request: Request) -> Reply:
        """List the open holds of all customers that are older than a given age, oldest first, a page at a time."""
        query = query_of(request, "older_than_ms", "after", "limit", "min_seq")
        limit, before_ms = limit_in(query), self._opened_before(query)
        await self._await_seq(query)
        after = position_in(query, "after", self._ledger, 0)
        before = self._ledger.now_ms if before_ms is None else before_ms
        return await self._holds_page(lambda after, limit: self._ledger.old_holds(before, after, limit), after, limit)

    def _opened_before(self, query: dict[str, str]) -> int | None:
        """Return the time that ``older_than_ms`` stands for, or None if it is not given."""
        if "older_than_ms" not in query:
            return None
        return self._ledger.now_ms - number_in(query, "older_than_ms", 0)

    async def _holds_page(self, read: Callable[[int, int], list[Hold]], after: int, limit: int) -> Reply:
        seq, found = await self._holds_at_head(read, after, limit)
        following = self._ledger.epochs.text(found[-1].hold_id) if len(found) == limit else None
        body = HoldsAnswer(seq, self._ledger.epochs.of(seq), [], following)
        return positioned(json_answer(await encoded_in_pieces(body, "holds", found, self._hold_answer)), body)

    async def _holds_at_head(
        self, read: Callable[[int, int], list[Hold]], after: int, limit: int
    ) -> tuple[int, list[Hold]]:
        """Read a page of holds, and the position for which all stand: in pieces, at once if an entry comes between."""
        seq = self._ledger.head.seq
        found = read(after, min(limit, PIECE_ROWS))
        while found and len(found) % PIECE_ROWS == 0 and len(found) < limit:
            await asyncio.sleep(0)
            if self._ledger.head.seq != seq:
                return self._ledger.head.seq, read(after, limit)
            piece = read(found[-1].hold_id, min(limit - len(found), PIECE_ROWS))
            if not piece:
                break
            found += piece
        return seq, found

    def _hold_answer(self, hold: Hold) -> HoldAnswer:
        opened_by = self._ledger.entry(hold.hold_id)
        key = UNSET if opened_by is None else opened_by.key
        position = self._ledger.epochs.text(hold.hold_id)
        return hold_answer(hold, position, self._ledger.coins[hold.coin].scale, key, self._ledger.now_ms)

    async def hold(self, request: Request) -> Reply:
        """Return one hold, open or closed."""
        await self._await_seq(query_of(request, "min_seq"))
        hold_id = self._located(request.parameters["hold"], "hold")
        seq, hold = self._ledger.at_one_head(lambda: self._ledger.hold(hold_id))
        if hold is None:
            raise NotFound("There is no such hold; the id of a hold would pass.")
        return answer(HoldReadAnswer(seq, self._ledger.epochs.of(seq), self._hold_answer(hold)))

    # --- entries --------------------------------------------------------------------------------------

    async def entries(self, request: Request) -> Reply:
        """
        Return the journal, numbered without gaps: a page of it, or a stream of server-sent events.

        Other parameters search: a page has the entries that match all of them. An entry matches a `customer`, who may
        be a house account, or a `coin`, if it changes a balance of theirs. Keys, references and customers have an
        index. One call looks at 5,000 entries at most, so a page may be short or empty before the end of the journal:
        go on after `next` until it is where the page began or, as others may write all the time, has reached the `seq`
        of the first page. Pages neither skip nor repeat an entry while others are written.
        """
        if request.method == "GET" and _EVENT_STREAM in (request.header(b"accept") or b""):
            await self._await_seq({})
            return self._feed.answer(request)
        query = query_of(request, *self.SEARCH, "from_ms", "to_ms", "after_seq", "limit", "min_seq")
        limit, criteria = limit_in(query), criteria_in(query)
        from_ms, to_ms = times_in(query)
        await self._await_seq(query)
        after_seq = position_in(query, "after_seq", self._ledger, 0)
        span = self._ledger.between(from_ms, to_ms)
        span = span._replace(after_seq=max(after_seq, span.after_seq))
        found, following = await _looked_up(self._ledger, criteria, span, limit)
        await self._texts.labels.learn(found)
        seq = max(self._ledger.head.seq, following)
        body = EntriesAnswer(seq, self._ledger.epochs.of(seq), [], following, self._ledger.epochs.text(following))
        return positioned(json_answer(await encoded_in_pieces(body, "entries", found, self._entry_answer)), body)

    SEARCH: Final = Criteria.__match_args__

    def _entry_answer(self, entry: Entry) -> EntryAnswer:
        return entry_answer(entry, self._texts)

    async def entry(self, request: Request) -> Reply:
        """Return one entry of the journal, and the entry that reversed it."""
        await self._await_seq(query_of(request, "min_seq"))
        number = self._located(request.parameters["seq"], "seq")
        entry = self._ledger.entry(number)
        if entry is None:
            raise NotFound("There is no such entry; the seq of an entry would pass.")
        await self._texts.labels.learn((entry,))
        seq, reversed_by = self._ledger.at_one_head(lambda: self._ledger.reversal_of(number))
        found = entry_answer(entry, self._texts)
        return answer(EntryReadAnswer(seq, self._ledger.epochs.of(seq), found, reversed_by))

    async def statement(self, request: Request) -> Reply:
        """Return the entries of a customer as a statement, with the balances before and after the page."""
        query = query_of(request, *self.STATEMENT)
        limit, coin = limit_in(query), query.get("coin")
        if coin is not None:
            check_coin(coin)
        await self._await_seq(query)
        after_seq = position_in(query, "after_seq", self._ledger, 0)
        customer = request.parameters["customer"]
        self._check_there(account_of(customer))
        seq = self._ledger.head.seq

        def read(after: int, limit: int) -> list[Entry]:
            return self._ledger.statement(customer, coin, after, limit)

        found = await _in_pieces(read, after_seq, limit)
        await self._texts.labels.learn(found)
        opening, closing = _page_balances(found, (customer, receivable_of(customer).customer), coin)
        following = found[-1].seq if found else after_seq
        seq = max(seq, found[-1].seq if found else 0)
        body = StatementAnswer(
            seq,
            self._ledger.epochs.of(seq),
            customer,
            self._after_answers(opening),
            [],
            self._after_answers(closing),
            following,
            self._ledger.epochs.text(following),
        )
        return positioned(json_answer(await encoded_in_pieces(body, "entries", found, self._entry_answer)), body)

    def _after_answers(self, balances: dict[tuple[Account, str], Balance]) -> list[AfterAnswer]:
        return [after_answer((account, coin, *balance), self._texts) for (account, coin), balance in balances.items()]

    # --- the trial balance ----------------------------------------------------------------------------

    async def trial_balance(self, request: Request) -> Reply:
        """
        Return the sum of all customers and the balance of each house account by coin; the total is zero.

        With `at_seq` or `at_ms` as of then: the service adds up the entries between that and now, or from the first
        entry on, whichever are fewer, which takes some 10 seconds for a million of them.
        """
        query = query_of(request, *self.TRIAL)
        await self._await_seq(query)
        at_seq = self._past_in(query)
        async with self._adding_up:
            found = await asyncio.to_thread(self._ledger.trial_balance, at_seq)
        coins = {name: self._trial_coin(found, name) for name in self._ledger.coins}
        balanced = all(not any(part.total.strip("-0.")) for part in coins.values())
        return answer(TrialBalanceAnswer(found.seq, self._ledger.epochs.of(found.seq), balanced, coins))

    def _trial_coin(self, found: TrialBalance, coin: str) -> TrialCoinAnswer:
        scale = self._ledger.coins[coin].scale
        house = sorted(
            (owner, both) for (owner, name), both in found.sums.items() if name == coin and is_house_name(owner)
        )
        customers = found.sums.get((CUSTOMERS, coin), ZERO)
        total = sum(sum(both) for _, both in house) + sum(customers)
        return TrialCoinAnswer(
            balance_answer(customers, scale),
            {owner: amount_text(both.available, scale) for owner, both in house},
            amount_text(total, scale),
            {owner: amount_text(both.freeze, scale) for owner, both in house if both.freeze},
        )

    def _now(self) -> tuple[int, int]:
        """Return ``seq`` and epoch of the head."""
        seq = self._ledger.head.seq
        return seq, self._ledger.epochs.of(seq)

    def _located(self, text: str, field: str) -> int:
        """Return the ``seq`` that a parameter of the path names, or 0, where nothing is, if it is no position."""
        try:
            position = parse_position(text, field)
        except InvalidRequest:
            return 0
        return seq_of(position, field, self._ledger)

    async def _await_seq(self, query: dict[str, str]) -> None:
        """
        Wait until the ledger has the entry ``min_seq``, or by default the head of all nodes.

        Positions are looked up afterwards: a node that follows others may not know their epoch before.
        """
        if self._ledger.remote and "min_seq" not in query:
            await asyncio.to_thread(self._ledger.to_head)
        await await_seq(self._ledger, query)


def _owes(owed: Mapping[str, Balance], coins: Mapping[str, Coin]) -> dict[str, str]:
    """Return what a customer owes the house, as amounts above zero."""
    return {
        coin: amount_text(-balance.available, coins[coin].scale) for coin, balance in owed.items() if balance.available
    }


async def _looked_up(ledger: Ledger, criteria: Criteria, span: Span, limit: int) -> tuple[list[Entry], int]:
    """
    Return at most *limit* of the next entries of *span* that match, and the last entry that was looked at.

    Looks at `SCANNED_ENTRIES` entries at most, in pieces; other tasks may run between two pieces.
    """
    found: list[Entry] = []
    scanned = limit if criteria == Criteria() else SCANNED_ENTRIES
    for start in range(0, scanned, PIECE_ROWS):
        page = ledger.look(criteria, span, limit - len(found), min(PIECE_ROWS, scanned - start))
        found += page.entries
        is_end = page.to_seq >= span.to_seq or len(found) == limit
        span = span._replace(after_seq=page.to_seq)
        if is_end:
            break
        await asyncio.sleep(0)
    return found, span.after_seq


async def _in_pieces(read: Callable[[int, int], list[Entry]], after: int, limit: int) -> list[Entry]:
    """Read a page of entries in pieces; other tasks may run between two pieces."""
    found = read(after, min(limit, PIECE_ROWS))
    while found and len(found) % PIECE_ROWS == 0 and len(found) < limit:
        await asyncio.sleep(0)
        piece = read(found[-1].seq, min(limit - len(found), PIECE_ROWS))
        if not piece:
            break
        found += piece
    return found


def _page_balances(
    entries: Iterable[Entry], owners: tuple[str, str], coin: str | None
) -> tuple[dict[tuple[Account, str], Balance], dict[tuple[Account, str], Balance]]:
    """Return the balances of *owners* before the first and after the last of *entries* that touched them."""
    opening: dict[tuple[Account, str], Balance] = {}
    closing: dict[tuple[Account, str], Balance] = {}
    for entry in entries:
        for account, name, available, freeze in entry.balances:
            if account.customer not in owners or coin not in (None, name):
                continue
            closing[account, name] = Balance(available, freeze)
            if (account, name) not in opening:
                moved = {"available": 0, "freeze": 0}
                for posting in entry.postings:
                    if posting.account == account and posting.coin == name:
                        moved[posting.side] += posting.units
                opening[account, name] = Balance(available - moved["available"], freeze - moved["freeze"])
    return opening, closing
