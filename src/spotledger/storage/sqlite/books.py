"""
Reading the books: what is derived from the sealed segments of the journal.

Nothing in them is believed before it checks: a bucket of a segment by its checksum, a row that changes by the count
and the digest of its bucket, which is added up when the first row of it is asked for. What does not check raises
`BooksDamaged`; it never passes for absent.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw

from spotledger.domain.accounts import ACCOUNT_IDS, HOUSE_KIND, Account, Balance, Coin
from spotledger.domain.journal import Hold
from spotledger.errors import LedgerCorrupt, SchemaMismatch
from spotledger.storage.base import BooksDamaged
from spotledger.storage.encoding import unpack_places
from spotledger.storage.sqlite.buckets import (
    HOLD_BUCKET_IDS,
    OF_KEYS,
    OF_REFERENCES,
    HistoryLine,
    HoldsOpened,
    RowSum,
    history_id,
    key_id,
    owner_bucket,
    places_of_digest,
    sum_of,
    unpack_history,
)
from spotledger.storage.sqlite.file import BOOKS, Connection, is_damage, name_of, open_reader, place_of, translate

HOLD_COLUMNS: Final = (
    "hold_id, customer, account, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq"
)
BALANCE_COLUMNS: Final = 'bucket, customer, account, coin, available, "freeze", seq, segments'
#: Tables of what the rows of a bucket add up to.
BUCKET_TABLES: Final = ("owner_bucket", "hold_bucket")
_PAGE: Final = 500
_LAST_ID: Final = 2**63 - 1
_PAGE_MIN: Final = 100


class BooksFacts(NamedTuple):
    """The row that says what the books are."""

    ledger_id: str
    segment_entries: int
    #: The last sealed entry, and its hash.
    sealed_to: int
    sealed_hash: bytes
    coins: int
    coins_digest: bytes
    reversals: int
    reversals_digest: bytes
    #: The buckets of owners and of holds: a bucket that was set back with all its rows shows here.
    buckets: int
    buckets_digest: bytes
    customers: int
    open_holds: int
    expiring_holds: int


_KINDS: Final = (str, int, int, bytes, int, bytes, int, bytes, int, bytes, int, int, int)


def read_facts(connection: Connection) -> BooksFacts:
    """
    Return the row that says what the books are.

    Raises:
        BooksDamaged: It is missing.
    """
    rows = connection.execute(f"SELECT {', '.join(BooksFacts._fields)} FROM books").fetchall()
    if len(rows) != 1 or tuple(map(type, rows[0])) != _KINDS:
        raise BooksDamaged("the books do not say what they are")
    return BooksFacts(*rows[0])


@contextmanager
def checked() -> Iterator[None]:
    """Raise `BooksDamaged` for what says that the file is damaged, StoreUnavailable for what is in the way."""
    try:
        yield
    except (apsw.Error, UnicodeDecodeError) as error:
        if is_damage(error, checked=True):
            raise BooksDamaged(f"the books are damaged{place_of(error)}: {name_of(error)}: {error}") from error
        raise translate(error, "read", BOOKS) from error


def sum_of_buckets(connection: Connection) -> RowSum:
    """Add up what is kept of the buckets of owners and of holds."""
    found = RowSum()
    for table in BUCKET_TABLES:
        for row in connection.execute(f"SELECT bucket, rows, digest FROM {table}"):
            found.add(table, row)
    return found


def open_books(path: Path) -> Connection:
    """
    Open the books at *path* to read.

    Raises:
        BooksDamaged: They are missing, or their header or schema is damaged.
        StoreUnavailable: The disk is in the way.
    """
    try:
        return open_reader(path, BOOKS)
    except (SchemaMismatch, LedgerCorrupt) as error:
        raise BooksDamaged(str(error)) from error


class Books:
    """The books, open for reading; the process that seals may write to them meanwhile."""

    def __init__(self, path: Path, ledger_id: str, segment_entries: int) -> None:
        """
        Open the books at *path*.

        Raises:
            BooksDamaged: They are missing, of another ledger, or do not check.
            StoreUnavailable: The disk is in the way.
        """
        self._owners_believed: set[int] = set()
        self._holds_believed: set[int] = set()
        self._segment_entries = segment_entries
        self._connection = open_books(path)
        try:
            with self._one_instant():
                self._check_facts(ledger_id)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _check_facts(self, ledger_id: str) -> None:
        """Check which ledger it is of, and the small tables and indexes as a whole."""
        facts = self.facts()
        if (facts.ledger_id, facts.segment_entries) != (ledger_id, self._segment_entries):
            raise BooksDamaged(f"the books are of the ledger {facts.ledger_id}, not of {ledger_id}")
        ask = self._connection.execute
        coins = sum_of(("coin", row) for row in ask("SELECT coin, scale, seq FROM coin"))
        reversals = sum_of(("reversal", row) for row in ask("SELECT seq, by_seq FROM reversal"))
        if coins.kept() != (facts.coins, facts.coins_digest):
            raise BooksDamaged("the table of coins does not check")
        if reversals.kept() != (facts.reversals, facts.reversals_digest):
            raise BooksDamaged("the table of reversals does not check")
        if sum_of_buckets(self._connection).kept() != (facts.buckets, facts.buckets_digest):
            raise BooksDamaged("the buckets of owners and holds do not check")
        self._check_indexes(facts)

    def _check_indexes(self, facts: BooksFacts) -> None:
        """
        Check that each index has the rows that it should have, in order.

        A page of one index in the place of another's, or one that was set back, has a good checksum.
        """
        ask = self._connection.execute
        is_open = "FROM hold INDEXED BY {} WHERE closed_seq IS NULL AND"
        # The bounds are true of every row, and make SQLite look at the first column of the index.
        by_age = ask(
            f"SELECT hold_id {is_open.format('hold_age')} hold_id BETWEEN 1 AND ?", (facts.sealed_to,)
        ).fetchall()
        by_customer = ask(f"SELECT customer, hold_id {is_open.format('hold_open')} customer >= ''").fetchall()
        by_expiry = ask(f"SELECT expires_ms, hold_id {is_open.format('hold_due')} expires_ms <= {_LAST_ID}").fetchall()
        one = "SELECT customer, expires_ms, hold_id FROM hold NOT INDEXED WHERE hold_id = ? AND closed_seq IS NULL"
        held = [row for age in by_age for row in ask(one, age)]
        for index, found, expected, count in (
            ("hold_age", by_age, [(hold_id,) for _, _, hold_id in held], facts.open_holds),
            ("hold_open", by_customer, [(customer, hold_id) for customer, _, hold_id in held], facts.open_holds),
            ("hold_due", by_expiry, [row[1:] for row in held if row[1] is not None], facts.expiring_holds),
        ):
            if len(found) != count:
                raise BooksDamaged(f"the index {index} has {len(found)} rows where there are {count}")
            if found != sorted(expected):
                raise BooksDamaged(f"the index {index} has other rows than its table")
        # There may be millions of customers, so none is kept: the index is counted and summed, and so is its table.
        by_name = ask("SELECT customer FROM customer INDEXED BY customer_name WHERE customer >= ''")
        count = total = 0
        last = ""
        for (name,) in by_name:
            if not last < name:
                raise BooksDamaged("the index customer_name is not in order")
            count, total, last = count + 1, total + hash(name), name
        if count != facts.customers:
            raise BooksDamaged(f"the index customer_name has {count} rows where there are {facts.customers}")
        if sum(hash(name) for (name,) in ask("SELECT customer FROM customer NOT INDEXED")) != total:
            raise BooksDamaged("the index customer_name has other customers than its table")

    def facts(self) -> BooksFacts:
        """Return the row that says what the books are."""
        with checked():
            return read_facts(self._connection)

    @contextmanager
    def _one_instant(self) -> Iterator[None]:
        """Read all of one snapshot."""
        if self._connection.in_transaction:
            yield
            return
        with checked():
            self._connection.execute("BEGIN")
        try:
            with checked():
                yield
        finally:
            with checked():
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with checked():
            found: list[Any] = self._connection.execute(query, values).fetchall()
            return found

    # --- keys ---------------------------------------------------------------------------------------

    def seqs_of_digest(self, segments: Iterable[int], digest: bytes) -> list[int]:
        """Return the entries in *segments* whose key has this digest."""
        found = []
        for segment in segments:
            bucket = key_id(segment, digest)
            rows = self._rows("SELECT packed FROM key_bucket WHERE id = ?", (bucket,))
            places = places_of_digest(OF_KEYS, bucket, rows[0][0] if rows else None, digest)
            found += [segment * self._segment_entries + 1 + place for place in places]
        return found

    # --- references -----------------------------------------------------------------------------------

    def seqs_with_reference(self, segments: range, digest: bytes, after_seq: int, limit: int) -> list[int]:
        """
        Return entries after *after_seq* in sealed *segments* whose reference has this *digest*, in order.

        They are all that there are in these segments, or at least *limit*.
        """
        ids = [key_id(segment, digest) for segment in segments]
        rows = self._rows(
            "SELECT bucket.id, bucket.packed FROM json_each(?) AS wanted"
            " CROSS JOIN reference_bucket AS bucket ON bucket.id = wanted.value",
            (json.dumps(ids),),
        )
        if [bucket for bucket, _ in rows] != ids:
            raise BooksDamaged("buckets of references are missing")
        found: list[int] = []
        for segment, (bucket, packed) in zip(segments, rows, strict=True):
            first = segment * self._segment_entries + 1
            places = places_of_digest(OF_REFERENCES, bucket, packed, digest)
            begin = bisect_right(places, after_seq - first)
            found += [first + place for place in places[begin : begin + limit - len(found)]]
            if len(found) >= limit:
                break
        return found

    # --- owners -------------------------------------------------------------------------------------

    def known_customers(self, customers: Sequence[str]) -> list[str]:
        """Return those of *customers* whose registration is sealed."""
        with self._one_instant():
            self._believe_owners(map(owner_bucket, customers))
            rows = self._rows(
                "SELECT customer.customer FROM json_each(?) AS wanted CROSS JOIN customer"
                " ON customer.bucket = wanted.value ->> 0 AND customer.customer = wanted.value ->> 1",
                (json.dumps([(owner_bucket(customer), customer) for customer in customers]),),
            )
        return [customer for (customer,) in rows]

    def customers_after(self, after: str, limit: int) -> list[str]:
        """Return sealed customers in the order of their ids."""
        query = "SELECT customer FROM customer WHERE customer > ? AND customer NOT GLOB '@*' ORDER BY customer LIMIT ?"
        return [customer for (customer,) in self._rows(query, (after, limit))]

    def house_accounts(self, up_to: int) -> list[tuple[str, int]]:
        """Return the house accounts that entries up to *up_to* opened, with these entries."""
        query = "SELECT customer, seq FROM customer WHERE customer >= '@' AND customer < 'A' AND seq <= ?"
        return self._rows(query, (up_to,))

    def balances_of(self, accounts: Sequence[Account]) -> list[tuple[Account, str, Balance, int]]:
        """Return all balances of *accounts*, with the entry that changed each last."""
        found = []
        for _, customer, kind, coin, available, freeze, seq, _ in self._balance_rows(accounts):
            found.append((Account(customer, kind), coin, Balance(int(available), int(freeze)), seq))
        return found

    def _balance_rows(self, accounts: Sequence[Account]) -> list[Any]:
        with self._one_instant():
            self._believe_owners(owner_bucket(account.customer) for account in accounts)
            return self._rows(
                f"SELECT {', '.join('balance.' + name.strip() for name in BALANCE_COLUMNS.split(','))}"
                " FROM json_each(?) AS wanted CROSS JOIN balance ON balance.bucket = wanted.value ->> 0"
                " AND balance.customer = wanted.value ->> 1 AND balance.account = wanted.value ->> 2",
                (json.dumps([(owner_bucket(account.customer), *account) for account in accounts]),),
            )

    def _believe_owners(self, buckets: Iterable[int]) -> None:
        """Add up the buckets of owners that were not looked at yet."""
        for bucket in set(buckets) - self._owners_believed:
            balances = self._rows(f"SELECT {BALANCE_COLUMNS} FROM balance WHERE bucket = ?", (bucket,))
            customers = self._rows("SELECT bucket, customer, seq FROM customer WHERE bucket = ?", (bucket,))
            found = sum_of([*(("balance", row) for row in balances), *(("customer", row) for row in customers)])
            self._check_sum("owner_bucket", bucket, found)
            self._owners_believed.add(bucket)

    def _check_sum(self, table: str, bucket: int, found: RowSum) -> None:
        rows = self._rows(f"SELECT rows, digest FROM {table} WHERE bucket = ?", (bucket,))
        if found.kept() != (rows[0] if rows else RowSum().kept()):
            raise BooksDamaged(f"the rows of {table} {bucket} do not check")

    # --- history ------------------------------------------------------------------------------------

    def segments_of(self, accounts: Sequence[Account], coin: str | None) -> list[int]:
        """Return the sealed segments in which *coin*, or any, of *accounts* was touched, rising."""
        found: set[int] = set()
        for row in self._balance_rows(accounts):
            if coin is None or row[3] == coin:
                found.update(unpack_segments(row[7]))
        return sorted(found)

    def history(self, segment: int, owner: str) -> tuple[list[HistoryLine], list[HoldsOpened]]:
        """Return what touched accounts of *owner* in a sealed *segment*, and the holds that it opened."""
        bucket = history_id(segment, owner)
        rows = self._rows("SELECT packed FROM history_bucket WHERE id = ?", (bucket,))
        lines, holds = unpack_history(bucket, rows[0][0] if rows else None)
        return [line for line in lines if line.owner == owner], [held for held in holds if held.customer == owner]

    def places(self, segment: int, accounts: Sequence[Account], coin: str | None, after: int, limit: int) -> list[int]:
        """Return the first *limit* places beyond *after* of entries of *segment* that touched *coin* of *accounts*."""
        found: set[int] = set()
        for owner in dict.fromkeys(account.customer for account in accounts):
            for line in self.history(segment, owner)[0]:
                if (line.owner, line.account) in accounts and coin in (None, line.coin):
                    touched = unpack_places(line.places)
                    begin = bisect_right(touched, after)
                    found.update(touched[begin : begin + limit])
        return sorted(found)[:limit]

    def last_touches(self, account: Account, coins: Collection[str], seq: int) -> dict[str, int]:
        """Return the last sealed entry up to *seq* that touched each of *coins* of *account*, where one did."""
        found: dict[str, int] = {}
        last_segment = (seq - 1) // self._segment_entries
        #: The coins by the last segment, of those not looked at yet, that touched them, with the segments before it.
        to_look: defaultdict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for row in self._balance_rows([account]):
            if row[3] in coins:
                segments = unpack_segments(row[7])
                del segments[bisect_right(segments, last_segment) :]
                if segments:
                    to_look[segments.pop()].append((row[3], segments))
        while to_look:
            segment = max(to_look)
            first = segment * self._segment_entries + 1
            lines, _ = self.history(segment, account.customer)
            places_of = {line.coin: line.places for line in lines if line.account == account.kind}
            for coin, segments in to_look.pop(segment):
                places = unpack_places(places_of.get(coin, b""))
                count = bisect_right(places, seq - first)
                if count:
                    found[coin] = first + places[count - 1]
                elif segments:
                    to_look[segments.pop()].append((coin, segments))
        return found

    # --- holds --------------------------------------------------------------------------------------

    def holds_of_ids(self, ids: Sequence[int]) -> list[Hold]:
        """Return the holds with these ids that are in the books."""
        with self._one_instant():
            for bucket in {hold_id // HOLD_BUCKET_IDS for hold_id in ids} - self._holds_believed:
                first = bucket * HOLD_BUCKET_IDS
                rows = self._rows(
                    f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id BETWEEN ? AND ?",
                    (first, first + HOLD_BUCKET_IDS - 1),
                )
                self._check_sum("hold_bucket", bucket, sum_of(("hold", row) for row in rows))
                self._holds_believed.add(bucket)
            rows = self._rows(
                f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(ids)),),
            )
        return [_hold(row) for row in rows]

    def holds_of_customer(self, customer: str, after: int, limit: int) -> list[Hold]:
        """Return the next page of sealed holds of *customer* above *after*, in order."""
        accounts = [Account(customer, kind) for kind in (*ACCOUNT_IDS, HOUSE_KIND)]
        for segment in self.segments_of(accounts, None):
            first = segment * self._segment_entries + 1
            if first + self._segment_entries <= after + 1:
                continue
            for held in self.history(segment, customer)[1]:
                places = unpack_places(held.places)
                begin = bisect_right(places, after - first)
                ids = [first + place for place in places[begin : begin + _page(limit)]]
                if ids:
                    found = sorted(self.holds_of_ids(ids))
                    if len(found) != len(ids):
                        raise BooksDamaged(f"of {len(ids)} holds of {customer} in segment {segment} some are missing")
                    return found
        return []

    def open_holds_of_customer(self, customer: str, after: int, up_to: int, limit: int) -> list[Hold]:
        """Return the next page of holds of *customer* above *after* that the books have as open."""
        rows = self._rows(
            "SELECT hold_id FROM hold INDEXED BY hold_open WHERE customer = ? AND hold_id > ? AND hold_id <= ?"
            " AND closed_seq IS NULL ORDER BY hold_id LIMIT ?",
            (customer, after, up_to, _page(limit)),
        )
        return sorted(self.holds_of_ids([hold_id for (hold_id,) in rows])) if rows else []

    def open_holds(self, after: int, up_to: int, limit: int) -> list[Hold]:
        """Return the next page of holds above *after* that the books have as open."""
        rows = self._rows(
            "SELECT hold_id FROM hold INDEXED BY hold_age"
            " WHERE closed_seq IS NULL AND hold_id > ? AND hold_id <= ? ORDER BY hold_id LIMIT ?",
            (after, up_to, _page(limit)),
        )
        return sorted(self.holds_of_ids([hold_id for (hold_id,) in rows])) if rows else []

    def due_rows(self, cursor: tuple[int, int], now_ms: int, limit: int) -> list[tuple[int, int]]:
        """Return (expires_ms, hold_id) of holds that the books have as open, whose time has come, after *cursor*."""
        return self._rows(
            "SELECT expires_ms, hold_id FROM hold WHERE closed_seq IS NULL AND expires_ms IS NOT NULL"
            " AND (expires_ms, hold_id) > (?, ?) AND expires_ms <= ? ORDER BY expires_ms, hold_id LIMIT ?",
            (*cursor, now_ms, limit),
        )

    def next_due_ms(self, cursor: tuple[int, int]) -> int | None:
        """Return when the next hold after *cursor* expires, as the books have it, or None."""
        rows = self._rows(
            "SELECT expires_ms FROM hold WHERE closed_seq IS NULL AND expires_ms IS NOT NULL"
            " AND (expires_ms, hold_id) > (?, ?) ORDER BY expires_ms, hold_id LIMIT 1",
            cursor,
        )
        return int(rows[0][0]) if rows else None

    # --- the rest -----------------------------------------------------------------------------------

    def coins(self, up_to: int) -> Iterator[Coin]:
        """Give the coins that entries up to *up_to* listed."""
        for name, scale in self._rows("SELECT coin, scale FROM coin WHERE seq <= ? ORDER BY coin", (up_to,)):
            yield Coin(name, scale)

    def reversal_of(self, seq: int) -> int | None:
        """Return the sealed entry that reversed the entry *seq*, or None."""
        rows = self._rows("SELECT by_seq FROM reversal WHERE seq = ?", (seq,))
        return int(rows[0][0]) if rows else None

    def reversing_entries(self) -> list[int]:
        """Return the sealed entries that reversed another."""
        return [by_seq for (by_seq,) in self._rows("SELECT by_seq FROM reversal", ())]

    def key_buckets(self, ids: range) -> list[tuple[int, bytes]]:
        """
        Return the buckets of keys with these *ids*.

        Raises:
            BooksDamaged: One is missing.
        """
        rows = self._rows("SELECT id, packed FROM key_bucket WHERE id BETWEEN ? AND ? ORDER BY id", (ids[0], ids[-1]))
        if [bucket for bucket, _ in rows] != list(ids):
            raise BooksDamaged("buckets of keys are missing")
        return rows

    def filter_source(self) -> Connection:
        """Return the connection over which the filter of known keys is read."""
        return self._connection


def _page(limit: int) -> int:
    """Return how many holds to read where *limit* are asked for: some more than a few, as some may not be wanted."""
    return min(max(limit, _PAGE_MIN), _PAGE)


def _hold(row: Sequence[Any]) -> Hold:
    hold_id, customer, kind, coin, amount, remaining, reference, expires_ms, opened_ms, closed_seq = row
    account = Account(customer, kind)
    return Hold(hold_id, account, coin, int(amount), int(remaining), reference, expires_ms, opened_ms, closed_seq)


def pack_segments(segments: Iterable[int]) -> bytes:
    """Return numbers of segments as a balance has them: four bytes each, low one first."""
    return b"".join(segment.to_bytes(4, "little") for segment in segments)


def unpack_segments(packed: bytes) -> list[int]:
    """Return the numbers that :func:`pack_segments` packed."""
    return [int.from_bytes(packed[start : start + 4], "little") for start in range(0, len(packed), 4)]
