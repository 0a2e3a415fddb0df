"""
The reads of the embedded store: from memory what is not sealed, from the books what is, from the journal the entries.

Entries are checked against the chain of hashes as they are read. What the books say is checked by :mod:`books`; where
it does not check they are made again, and the read is answered then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeVar

from spotledger.domain.accounts import Account, Balance, Coin, HouseAccount
from spotledger.domain.journal import Entry, Hold
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import BooksDamaged, Head, Looked, TrialBalance
from spotledger.storage.encoding import chain_hash, decode_entry, genesis_hash, key_digest
from spotledger.storage.idempotency_filter import IdempotencyFilter
from spotledger.storage.sealing_process import SealingProcess
from spotledger.storage.sqlite.books import Books
from spotledger.storage.sqlite.file import BOOKS_FILE, JOURNAL_FILE, Connection
from spotledger.storage.sqlite.journal import entry_rows
from spotledger.storage.sqlite.trial import trial_balance
from spotledger.storage.sqlite.working_set import AccountState, WorkingSet

T = TypeVar("T")
#: Digests of keys that are kept from their look-up until the group is published.
DIGESTS_KEPT: Final = 4_000
#: Sealed segments in which a reference is looked up at once.
SEGMENTS_A_LOOK: Final = 128


class SqliteReads(ABC):
    """What the embedded store is asked; its state is the store's."""

    ledger_id: str
    _folder: Path
    _read: Connection
    _segment_entries: int
    _head: Head
    _sealed_to: int
    _books: Books | None
    _sealing: SealingProcess | None
    _memory: WorkingSet
    _filter: IdempotencyFilter
    #: The digests of the keys that were looked up last.
    _digests: dict[str, bytes]
    #: Up to which expiry, and which hold of that time, the books were looked through for due holds.
    _due_cursor: tuple[int, int]
    _next_due_ms: int | None

    #: Whether memory has what it should; not so at a start without books, until they are made again.
    _is_built: bool

    @property
    @abstractmethod
    def rebuilding(self) -> str | None:
        """How far the books have been made again, in words; None where they are whole."""

    @abstractmethod
    def _suspect(self, damage: BooksDamaged) -> None:
        """Have the books made again at the next call that needs them; for other threads than the one that writes."""

    @abstractmethod
    def _need_books(self) -> Books:
        """Return the books; raise StoreUnavailable while they are being made again."""

    @abstractmethod
    def _from_books(self, read: Callable[[Books], T]) -> T:
        """Read from the books; where they do not check, begin to make them again."""

    @property
    def head(self) -> Head:
        """The last durable entry."""
        return self._head

    @property
    def sealing_lag(self) -> int:
        """Entries of full segments that are not read from the books yet; while they are made again, of all of them."""
        full_to = self._head.seq // self._segment_entries * self._segment_entries
        if self._books is not None or self._sealing is None:
            return full_to - self._sealed_to
        return full_to - self._sealing.sealed_segments * self._segment_entries

    @property
    def sealing_restarts(self) -> int:
        """How often the process that seals ended and was started again, or is about to be."""
        return 0 if self._sealing is None else self._sealing.restarts

    @property
    def coins(self) -> Mapping[str, Coin]:
        """The listed coins by name, sorted; another object after each listing."""
        return self._memory.coins

    @property
    def debtors(self) -> set[str]:
        """The customers who owe something, and maybe others."""
        return self._memory.debtors

    @property
    def house_accounts(self) -> Mapping[str, HouseAccount]:
        """The open house accounts by name, sorted; another object after one is opened."""
        return self._memory.house_accounts

    # --- what the rules ask for ---------------------------------------------------------------------

    def find_keys(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the ``seq`` of the entry of each key that is known."""
        known, digests = {}, self._digests
        if len(digests) > DIGESTS_KEPT:
            digests.clear()
        memory, sealed = self._memory, not (self._is_built and self._filter.is_empty())
        for key in keys:
            digest = digests[key] = key_digest(key)
            seq = memory.key_seq(digest)
            if seq is None:
                if not sealed or (seq := self._sealed_key(key, digest)) is None:
                    continue
            elif memory.opened_by(key) != seq:  # an open segment has the key itself of each hold that it opened
                self._check_key(seq, key, LedgerCorrupt)
            known[key] = seq
        return known

    def _sealed_key(self, key: str, digest: bytes) -> int | None:
        """Return the entry of the sealed segments that has *key*, or None."""
        segments = self._filter.segments_that_may_hold(digest)
        if not segments and self._is_built:
            return None

        def find(books: Books) -> int | None:
            seqs = books.seqs_of_digest(segments, digest)
            for seq in seqs:
                self._check_key(seq, key, BooksDamaged)
            return seqs[0] if seqs else None

        return self._from_books(find)

    def _check_key(self, seq: int, key: str, damage: type[LedgerCorrupt]) -> None:
        """Make sure that the entry *seq* has *key*: 128 bits of digest agree by damage only."""
        entry = self.entry(seq)
        if entry is None or entry.key != key:
            raise damage(f"entry {seq} has another idempotency key than the one by which it was found")

    def load(self, customers: Iterable[str], accounts: Iterable[Account], holds: Iterable[int]) -> None:
        """Bring into memory what the rules will ask for, in a few queries whatever the number."""
        memory = self._memory
        states, registered = memory.accounts, memory.known_customers
        unknown, missing = [], []
        for customer in customers:
            if customer not in registered and not memory.has_customer(customer):
                unknown.append(customer)
        for account in accounts:
            state = states.get(account)
            if state is None or not state.complete:
                missing.append(account)
        if unknown:
            found = self._from_books(lambda books: books.known_customers(unknown))
            memory.known_customers.update(dict.fromkeys(found))
        if missing:
            self._load_accounts(missing)
        if holds:
            self._load_holds(holds)

    def _load_accounts(self, accounts: Sequence[Account]) -> None:
        rows = self._from_books(lambda books: books.balances_of(accounts))
        states = {account: self._memory.state_of(account) for account in accounts}
        for account, coin, balance, seq in rows:
            state = states[account]
            state.by_coin.setdefault(coin, balance)  # what an open segment has changed is newer
            state.changed_seq = max(state.changed_seq, seq)
        for state in states.values():
            state.complete = True

    def _load_holds(self, holds: Iterable[int]) -> None:
        missing = [hold_id for hold_id in holds if self._memory.hold(hold_id) is None]
        if missing:
            for hold in self._from_books(lambda books: books.holds_of_ids(missing)):
                self._memory.loaded_holds[hold.hold_id] = hold

    def has_customer(self, customer: str) -> bool:
        """Say whether *customer* is registered."""
        if self._memory.has_customer(customer):
            return True
        self.load([customer], (), ())
        self._memory.shrink(self._sealed_to)
        return self._memory.has_customer(customer)

    def account(self, account: Account) -> AccountState:
        """Return the account as it stands at the head."""
        state = self._memory.accounts.get(account)
        if state is None or not state.complete:
            self._load_accounts([account])
            state = self._memory.accounts[account]
            self._memory.shrink(self._sealed_to)
        return state

    def hold(self, hold_id: int) -> Hold | None:
        """Return the hold as it stands at the head."""
        hold = self._memory.hold(hold_id)
        if hold is None and (hold_id <= self._sealed_to or not self._is_built):
            hold = next(iter(self._from_books(lambda books: books.holds_of_ids([hold_id]))), None)
        return hold

    # --- other reads --------------------------------------------------------------------------------

    def balances_now(self, account: Account) -> Mapping[str, Balance]:
        """Return the balances of the account at the head, by coin; the mapping may change later."""
        return self.account(account).balances

    def at_one_head(self, read: Callable[[], T]) -> tuple[int, T]:
        """Return the head and what *read* returns; the caller excludes writes meanwhile."""
        return self.head.seq, read()

    def balances_at(self, account: Account, seq: int, coin: str | None = None) -> dict[str, Balance]:
        """Return the balances of the account, or that of *coin*, after the entry *seq*, at most the head's."""
        touches: dict[str, int] = {}
        sealed: list[str] = []
        for name in self.account(account).balances:
            if coin in (None, name):
                touch = self._memory.last_touch(account, name, seq)
                if touch is None:
                    sealed.append(name)
                else:
                    touches[name] = touch
        up_to = min(seq, self._sealed_to)
        if sealed and up_to:
            touches |= self._from_books(lambda books: books.last_touches(account, frozenset(sealed), up_to))
        return {name: self._balance_after(touches[name], account, name) for name in sorted(touches)}

    def _balance_after(self, seq: int, account: Account, coin: str) -> Balance:
        """Return what the account has of *coin* after the entry *seq*, which touched it."""
        entry = self.entry(seq)
        for owner, name, available, freeze in entry.balances if entry is not None else ():
            if owner == account and name == coin:
                return Balance(available, freeze)
        raise LedgerCorrupt(f"entry {seq} does not say what {account.customer} has of {coin} after it")

    def holds(self, customer: str, state: str | None, after: int, limit: int) -> list[Hold]:
        """Return holds of *customer* with ids above *after*, in order of their ids."""
        changed = self._memory.changed_holds_of(customer)
        found: list[Hold] = []
        sealed_to = self._sealed_to
        sealed = self._sealed_holds(customer, state == "open", after, sealed_to, limit)
        newer = (changed[hold_id] for hold_id in sorted(changed) if hold_id > max(after, sealed_to))
        for hold in chain(sealed, newer):
            current = changed.get(hold.hold_id, hold)
            if state in (None, current.state):
                found.append(current)
            if len(found) == limit:
                break
        return found

    def _sealed_holds(self, customer: str, only_open: bool, after: int, sealed_to: int, limit: int) -> Iterator[Hold]:
        """Give the holds of *customer* that sealed segments opened, as the books have them, in order."""

        def read(books: Books) -> list[Hold]:
            if only_open:
                return books.open_holds_of_customer(customer, after, sealed_to, limit)
            return books.holds_of_customer(customer, after, limit)

        while page := [hold for hold in self._from_books(read) if hold.hold_id <= sealed_to]:
            yield from page
            after = page[-1].hold_id

    def old_holds(self, before_ms: int, after: int, limit: int) -> list[Hold]:
        """Return open holds of anybody that were opened at or before *before_ms*, in order of their ids."""
        found: list[Hold] = []
        sealed = self._sealed_open_holds(after, limit)
        for hold in chain(sealed, self._memory.holds_opened_after(max(after, self._sealed_to))):
            if hold.opened_ms > before_ms or len(found) == limit:
                break
            current = self._memory.hold(hold.hold_id) or hold
            if current.closed_seq is None:
                found.append(current)
        return found

    def _sealed_open_holds(self, after: int, limit: int) -> Iterator[Hold]:
        def read(books: Books) -> list[Hold]:
            return books.open_holds(after, self._sealed_to, limit)

        while page := self._from_books(read):
            yield from page
            after = page[-1].hold_id

    def trial_balance(self, at_seq: int | None = None) -> TrialBalance:
        """Add up what there was after the entry *at_seq*. Blocks; may run in another thread while others write."""
        if self.rebuilding is not None:
            raise StoreUnavailable(f"{self.rebuilding}; try again later")
        try:
            return trial_balance(self._folder / JOURNAL_FILE, self._folder / BOOKS_FILE, at_seq)
        except BooksDamaged as damage:
            self._suspect(damage)  # making them again is for the thread that writes
            raise StoreUnavailable(f"{damage}; they are made again from the journal") from damage

    def due_holds(self, now_ms: int, limit: int) -> list[int]:
        """Return ids of open holds whose time has come, *limit* at the most; the others at the next call."""
        due: dict[int, Hold] = {}
        try:
            while len(due) < limit and (hold_id := self._memory.pop_due(now_ms)) is not None:
                self._add_if_open(hold_id, due)
            if self._next_due_ms is not None and now_ms >= self._next_due_ms:
                self._add_due_of_books(now_ms, limit, due)
        finally:
            for hold in due.values():
                self._memory.watch_overdue(hold)
        return list(due)

    def _add_due_of_books(self, now_ms: int, limit: int, due: dict[int, Hold]) -> None:
        """Add to *due* what the books have, and remember up to where; if that fails, it is read again."""
        cursor, next_due_ms = self._due_cursor, self._next_due_ms
        while len(due) < limit and next_due_ms is not None and now_ms >= next_due_ms:
            rows = self._from_books(lambda books: books.due_rows(cursor, now_ms, limit - len(due)))  # noqa: B023
            cursor = rows[-1] if rows else cursor
            next_due_ms = self._from_books(lambda books: books.next_due_ms(cursor))  # noqa: B023
            for _, hold_id in rows:
                self._add_if_open(hold_id, due)
        self._due_cursor, self._next_due_ms = cursor, next_due_ms

    def _add_if_open(self, hold_id: int, due: dict[int, Hold]) -> None:
        try:
            hold = self.hold(hold_id)
        except BaseException:
            self._memory.put_back_due([hold_id])
            raise
        if hold is not None and hold.remaining:
            due[hold_id] = hold

    def customers(self, after: str, limit: int) -> list[str]:
        """Return customers in the order of their ids."""
        names = set(self._from_books(lambda books: books.customers_after(after, limit)))
        for segment in self._memory.segments:
            names.update(name for name in segment.customers if name > after)
        return sorted(names)[:limit]

    def entry(self, seq: int) -> Entry | None:
        """Return one entry; None where the journal does not go that far."""
        found = self.entries(seq - 1, 1) if seq > 0 else []
        return found[0] if found else None

    def entries(self, after_seq: int, limit: int) -> list[Entry]:
        """
        Return entries in order; none that is not yet acknowledged.

        Raises:
            LedgerCorrupt: One is missing, is another one, or does not fit the chain of hashes.
        """
        last = min(after_seq + limit, self._head.seq)
        if last <= after_seq:
            return []
        rows = entry_rows(self._read, after_seq, last)
        return [decode_entry(body) for body in checked_bodies(rows, after_seq, last, self.ledger_id)]

    def reversal_of(self, seq: int) -> int | None:
        """Return the entry that reversed the entry *seq*, or None."""
        found = self._memory.reversal_of(seq)
        if found is None:
            found = self._from_books(lambda books: books.reversal_of(seq))
        return found

    def seq_at(self, time_ms: int) -> int:
        """Return the last entry booked at or before *time_ms*; 0 where there is none."""
        if time_ms >= self._head.booked_ms:
            return self._head.seq
        return bisect_right(range(1, self._head.seq), time_ms, key=self._booked_ms)

    def _booked_ms(self, seq: int) -> int:
        entry = self.entry(seq)
        if entry is None:
            raise LedgerCorrupt(f"entry {seq} is missing from the journal")
        return entry.booked_ms

    def entries_of(self, seqs: Sequence[int]) -> list[Entry]:
        """Return the entries *seqs*, which rise and exist, in order; neighbours are read together."""
        found: list[Entry] = []
        begin = 0
        for end in range(1, len(seqs) + 1):
            if end == len(seqs) or seqs[end] != seqs[end - 1] + 1:
                found += self.entries(seqs[begin] - 1, end - begin)
                begin = end
        return found

    def account_seqs(self, accounts: Sequence[Account], coin: str | None, after_seq: int, limit: int) -> list[int]:
        """Return the entries after *after_seq* that touched *coin*, or any, of *accounts*, in order."""
        found: list[int] = []
        sealed_to = self._sealed_to
        for segment in self._from_books(lambda books: books.segments_of(accounts, coin)):
            first = segment * self._segment_entries + 1
            if first > sealed_to or first + self._segment_entries <= after_seq + 1:
                continue
            wanted = limit - len(found)
            places = self._from_books(
                lambda books: books.places(segment, accounts, coin, after_seq - first, wanted)  # noqa: B023
            )
            found += [first + place for place in places]
            if len(found) == limit:
                return found
        return found + self._memory.seqs_touching(accounts, coin, after_seq, limit - len(found))

    def entries_with_reference(self, reference: str, after_seq: int, limit: int) -> Looked:
        """Return entries after *after_seq* with this *reference*; looks at `SEGMENTS_A_LOOK` sealed segments."""
        if not self._is_built:
            self._need_books()
        size, sealed_to = self._segment_entries, self._sealed_to
        found: list[Entry] = []
        if after_seq < sealed_to:
            first = after_seq // size
            segments = range(first, min(sealed_to // size, first + SEGMENTS_A_LOOK))
            found = self._sealed_with_reference(segments, reference, after_seq, limit)
            if len(found) == limit:
                return Looked(found, found[-1].seq)
            if segments.stop * size < sealed_to:
                return Looked(found, segments.stop * size)
        newer = self._memory.seqs_with_reference(reference, max(after_seq, sealed_to))
        wanted = limit - len(found)
        found += self.entries_of(newer[:wanted])
        return Looked(found, found[-1].seq if len(newer) > wanted else self._head.seq)

    def _sealed_with_reference(self, segments: range, reference: str, after_seq: int, limit: int) -> list[Entry]:
        digest = key_digest(reference)

        def find(books: Books) -> list[Entry]:
            found = self.entries_of(books.seqs_with_reference(segments, digest, after_seq, limit))
            for entry in found:
                if entry.request.get("reference") != reference:
                    raise BooksDamaged(f"entry {entry.seq} has another reference than the one by which it was found")
            return found

        return self._from_books(find)


def checked_bodies(rows: Sequence[tuple[Any, ...]], after_seq: int, last: int, ledger_id: str) -> Iterator[bytes]:
    """
    Give the bodies of the entries after *after_seq* up to *last*.

    Args:
        rows: ``seq``, body and hash of the entries from *after_seq* to *last*; there is no entry 0.
        after_seq: The entry before the first that is wanted.
        last: The last one.
        ledger_id: The ledger, whose id begins the chain.

    Raises:
        LedgerCorrupt: One is missing, is another one, or does not fit the chain of hashes.
    """
    expected = range(max(after_seq, 1), last + 1)
    found = [row[0] for row in rows]
    if found != list(expected):
        missing = next((seq for seq in expected if seq not in set(found)), last)
        raise LedgerCorrupt(f"entry {missing} is missing from the journal")
    link = rows[0][2] if after_seq else genesis_hash(ledger_id)
    for seq, body, kept_hash in rows[1 if after_seq else 0 :]:
        link = chain_hash(link, body)
        if kept_hash != link:
            raise LedgerCorrupt(f"entry {seq} does not fit the chain of hashes")
        yield body
