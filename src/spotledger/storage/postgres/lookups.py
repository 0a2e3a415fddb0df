"""What the store on PostgreSQL looks up for a group in the round trip that takes the write lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from psycopg.pq.abc import PGresult

from spotledger.domain.accounts import HOUSE_KIND, Account, Balance
from spotledger.domain.journal import Entry, opens_hold
from spotledger.storage.base import Wanted
from spotledger.storage.encoding import decode_entry, key_digest
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.following.head_cache import HeadCache, Question
from spotledger.storage.postgres.rows import add_balances, customers_in, entries_of_keys, holds_in
from spotledger.storage.postgres.session import (
    UUID,
    Parameter,
    Session,
    Statement,
    array,
    number,
    numbers,
    rows_of,
    texts,
)

_BIGINT_LIMIT = 2**63
Accounts: TypeAlias = dict[Account, tuple[int, dict[str, Balance]]]


class Lookups:
    """What was looked up for one group; true while the head is the entry *head_seq*."""

    def __init__(self, head_seq: int) -> None:
        """Start with nothing looked up."""
        self.head_seq = head_seq
        #: What was looked up, whether it exists or not.
        self.keys_asked: set[str] = set()
        self.reversals_asked: set[int] = set()
        #: What was looked up and does not exist. What exists is in memory, unless other reads evicted it.
        self.holds_absent: set[int] = set()
        self.customers_absent: set[str] = set()
        self.keys: dict[str, int] = {}
        self.entries: dict[int, Entry] = {}
        self.reversals: dict[int, int] = {}


class LookupBatch:
    """The queries for one group, given what memory has, and how their results are added to memory."""

    def __init__(self, memory: HeadCache, wanted: Wanted, now_ms: int | None) -> None:
        """
        Decide what to query.

        Args:
            memory: What is loaded already.
            wanted: What the rules will read.
            now_ms: The time at which holds are due, in ms since 1970, or None for the server's time.
        """
        self._asked: list[tuple[Statement, tuple[Parameter, ...], Callable[[PGresult], None]]] = []
        self._lookups = Lookups(0)
        self._accounts: Accounts = {}
        self._keys: dict[bytes, str] = {}
        self._head_cache = memory
        head_ms = memory.head.booked_ms
        self._now, self._head_ms = None if now_ms is None else number(max(now_ms, head_ms)), number(head_ms)
        #: Whether the tables may have further holds that are due: so at first, and after a full page.
        self._has_more_due = True
        due, parameters = self._due()
        self._ask(due, *parameters, take=self.take_due)
        named = self._ask_for_keys(wanted) if wanted.keys or wanted.hold_keys else set()
        self._ask_for_accounts(wanted, named)
        if wanted.entries:
            self._ask_for_entries([seq for seq in wanted.entries if 0 < seq < _BIGINT_LIMIT])

    def _ask(self, statement: Statement, *parameters: Parameter, take: Callable[[PGresult], None]) -> None:
        self._asked.append((statement, parameters, take))

    def _ask_for_keys(self, wanted: Wanted) -> set[Account]:
        """Query the entries of the keys, except of holds that memory has; return the accounts of these."""
        lookups, own = self._lookups, dict.fromkeys(wanted.keys)
        lookups.keys_asked.update(own, wanted.hold_keys)
        named: set[Account] = set()
        earlier = []
        # A hold that is named by a key of this group is most likely opened by the group.
        for key in set(wanted.hold_keys).difference(own):
            hold = self._head_cache.hold_of_key(key)
            if hold is None:
                earlier.append((key_digest(key), key))
            else:
                lookups.keys[key] = hold.hold_id
                named.add(hold.account)
        self._keys = {key_digest(key): key for key in own} | dict(earlier)
        self._ask(sql.ENTRIES_OF_KEYS, array(UUID, list(self._keys)), take=self._take_keys)
        if earlier:
            digests = array(UUID, [digest for digest, _ in earlier])
            self._ask(sql.HOLDS_OF_KEYS, digests, take=self._take_holds)
            self._ask(sql.BALANCES_OF_KEYS, digests, take=self._take_balances)
        return named

    def _ask_for_accounts(self, wanted: Wanted, named: set[Account]) -> None:
        memory = self._head_cache
        accounts = named.union(wanted.accounts)
        missing = []
        for hold_id in wanted.holds:
            hold = memory.hold(hold_id)
            if hold is not None:
                accounts.add(hold.account)
            elif hold_id < _BIGINT_LIMIT:
                missing.append(hold_id)
        if missing:
            self._lookups.holds_absent.update(missing)
            ids = numbers(missing)
            self._ask(sql.HOLDS, ids, take=self._take_holds)
            self._ask(sql.BALANCES_OF_HOLDS, ids, take=self._take_balances)
        unknown = [account for account in accounts if account not in memory.accounts]
        if unknown:
            self._accounts = {account: (0, {}) for account in unknown}
            owners, kinds = zip(*unknown, strict=True)
            self._ask(sql.BALANCES, texts(owners), texts(kinds), take=self._take_balances)
        customers = {customer for customer, kind in accounts if kind != HOUSE_KIND}
        new = [customer for customer in customers if not memory.has_customer(customer)]
        if new:
            self._lookups.customers_absent.update(new)
            self._ask(sql.CUSTOMERS, texts(new), take=self._take_customers)

    def _ask_for_entries(self, seqs: Sequence[int]) -> None:
        self._lookups.reversals_asked.update(seqs)
        self._ask(sql.ENTRIES_OF_SEQS, numbers(seqs), take=self._take_entries)
        self._ask(sql.REVERSALS, numbers(seqs), take=self._take_reversals)

    def is_about(self, memory: HeadCache) -> bool:
        """Return whether the queries and *memory* together have all that is wanted."""
        return memory is self._head_cache and memory.is_whole

    def due_question(self) -> Question | None:
        """Return the query for further due holds, if there may be some behind those that were found; else None."""
        return self._due() if self._has_more_due else None

    def _due(self) -> Question:
        seen_ms, seen_id = self._head_cache.due_seen
        return sql.DUE, (self._now, number(sql.DUE_LIMIT), number(seen_ms), number(seen_id), self._head_ms)

    def send(self, session: Session) -> None:
        """Send the queries."""
        for statement, parameters, _ in self._asked:
            session.send(statement, *parameters)

    def lookups(self, answers: Sequence[PGresult], memory: HeadCache) -> Lookups:
        """Add *answers* to *memory*, which stands at the locked head and covers them; return what else was found."""
        lookups = self._lookups
        lookups.head_seq = memory.head.seq
        for (_, _, take), answer in zip(self._asked, answers, strict=True):
            take(answer)
        memory.take_accounts(self._accounts)
        lookups.holds_absent = {hold_id for hold_id in lookups.holds_absent if memory.hold(hold_id) is None}
        lookups.customers_absent = {name for name in lookups.customers_absent if not memory.has_customer(name)}
        for seq in lookups.reversals_asked:
            by_seq = memory.reversal_of(seq)
            if by_seq is not None:
                lookups.reversals[seq] = by_seq
        return lookups

    # --- results ------------------------------------------------------------------------------------

    def take_due(self, result: PGresult) -> None:
        """Add a page of due holds to memory."""
        self._has_more_due = result.ntuples == sql.DUE_LIMIT
        self._head_cache.take_due(holds_in(result))

    def _take_keys(self, result: PGresult) -> None:
        for entry in entries_of_keys(result, self._keys):
            self._lookups.keys[entry.key] = entry.seq
            self._lookups.entries[entry.seq] = entry
            if not opens_hold(entry):
                self._lookups.holds_absent.add(entry.seq)

    def _take_holds(self, result: PGresult) -> None:
        self._head_cache.take_holds(holds_in(result))

    def _take_balances(self, result: PGresult) -> None:
        add_balances(result, self._accounts)

    def _take_customers(self, result: PGresult) -> None:
        self._head_cache.take_customers(customers_in(result))

    def _take_entries(self, result: PGresult) -> None:
        for seq, body in rows_of(result):
            self._lookups.entries[int(seq)] = decode_entry(body)

    def _take_reversals(self, result: PGresult) -> None:
        for seq, by_seq in rows_of(result):
            self._lookups.reversals[int(seq)] = int(by_seq)
