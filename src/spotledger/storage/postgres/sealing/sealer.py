"""
Sealing: writing to the tables what follows from the entries behind the last sealed one, a segment at a time.

One node at a time seals: the one that has locked the row of the table ``sealed``. It checks under that lock that its
segment is the next, and a node that froze loses the lock with its session. A segment is written in one transaction, so
a sealing that was cut off has not happened. The sums are those of the embedded store (`segment_sums`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import psycopg

from spotledger.errors import LedgerCorrupt
from spotledger.storage.base import Head
from spotledger.storage.encoding import EntryChanges, chain_hash, decode_changes
from spotledger.storage.gc_pause import gc_paused
from spotledger.storage.postgres import statements as sql
from spotledger.storage.postgres.connection import Connection, translate
from spotledger.storage.postgres.right_server import name_of
from spotledger.storage.postgres.rows import ROWS_A_TRIP, found_in, holds_in, ledger_in
from spotledger.storage.postgres.session import (
    Parameter,
    Session,
    Statement,
    hash_of,
    number,
    numbers,
    plain_texts,
    rows_of,
    texts,
)
from spotledger.storage.seen_head import OtherHistory
from spotledger.storage.segment_sums import (
    HOLD_CLOSED_SEQ,
    HOLD_CUSTOMER,
    HOLD_EXPIRES_MS,
    HOLD_REMAINING,
    Before,
    Line,
    LineName,
    SegmentSums,
)

#: How long one round trip may take before the connection counts as lost.
PATIENCE_SECONDS: Final = 60.0
#: A node that seals and is silent for this long has frozen: the server ends its session, and another node may seal.
IDLE_SECONDS: Final = 10
#: Rows that are written with one statement.
ROWS_A_STATEMENT: Final = 10_000

T = TypeVar("T")


class Sealed(NamedTuple):
    """The last sealed entry and the last segment that is sealed as a whole, and whether another node was sealing."""

    seq: int
    segment: int
    is_busy: bool = False


class Sealer:
    """Seals the journal of one database over one connection. One thread at a time may use it."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        """Prepare; *connect* makes a connection in autocommit to the server that takes writes."""
        self._connect = connect
        self._session: Session | None = None

    def close(self) -> None:
        """Close the connection."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def seal_next(self, known: Head | None = None, *, to_head: bool = False) -> Sealed:
        """
        Seal the entries up to the end of the next segment if that is full; or, *to_head*, as far as it is.

        Args:
            known: An entry that the right server has.
            to_head: Whether to seal a segment that is not full.

        Returns:
            The last sealed entry now.

        Raises:
            LedgerCorrupt: The journal is damaged, or an entry carries other balances than its postings lead to, or
                what was derived before does not match the journal.
            OtherHistory: The server does not have the entry *known*.
            StoreUnavailable: The server is in the way.
        """
        try:
            session = self._opened()
            session.send(sql.BEGIN)
            session.collect()
            # What is derived is written again if it is lost, so no standby has to have it.
            session.execute("SET LOCAL synchronous_commit = local")
            session.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'")
            sealed = self._seal(session, known, to_head=to_head)
            session.send(sql.COMMIT)
            session.collect()
        except psycopg.Error as error:
            self.close()
            raise translate(error, "sealed", checked=True) from error
        except BaseException:
            self.close()  # which rolls back
            raise
        return sealed

    def seal_all(self, *, to_head: bool = False) -> Sealed:
        """Seal every full segment, or *to_head*, all entries; raise like :meth:`seal_next`."""
        last: Sealed | None = None
        while (sealed := self.seal_next(to_head=to_head)) != last and not sealed.is_busy:
            last = sealed
        return sealed

    def _opened(self) -> Session:
        if self._session is None or not self._session.is_open:
            self._session = Session(self._connect(), sql.SEALING, PATIENCE_SECONDS)
        return self._session

    def _seal(self, session: Session, known: Head | None, *, to_head: bool) -> Sealed:
        for statement in (sql.LEDGER, sql.LEASE, sql.HEAD):
            session.send(statement)
        session.send(sql.HASH, number(0 if known is None else known.seq))
        ledger, lease, now, kept = session.collect()
        if known is not None and (not kept.ntuples or hash_of(rows_of(kept)[0][0]) != known.hash):
            name = name_of(session.connection)
            raise OtherHistory(f"the server {name} is not the right one: it lacks entry {known.seq} as it was seen")
        ledger_id, _, segment_entries = ledger_in(ledger)
        found = found_in(now, ledger_id)
        if not lease.ntuples:
            return Sealed(found.sealed_seq, found.sealed_seq // segment_entries - 1, is_busy=True)
        seq, link = rows_of(lease)[0]
        sealed = Head(int(seq), hash_of(link), 0)
        last_seq = (sealed.seq // segment_entries + 1) * segment_entries
        if found.head.seq < last_seq:
            last_seq = found.head.seq if to_head else sealed.seq
        if last_seq > sealed.seq:
            seal_range(session, sealed, last_seq)
        return Sealed(last_seq, last_seq // segment_entries - 1)


@gc_paused
def seal_range(session: Session, sealed: Head, last_seq: int) -> bytes:
    """
    Write what follows from the entries after *sealed*, up to *last_seq*, within a transaction; return the last hash.

    Raises:
        LedgerCorrupt: The journal is damaged, or an entry carries other balances than its postings lead to.
        psycopg.Error: The server is in the way, or a row that is derived is not as it was written.
    """
    sums = SegmentSums(_RowsOfTables(session), sealed.seq + 1)
    link = sealed.hash
    for start in range(sealed.seq, last_seq, ROWS_A_TRIP):
        entries, link = _read(session, start, min(ROWS_A_TRIP, last_seq - start), link)
        sums.load(entries)
        for entry in entries:
            try:
                sums.take(entry)
            except LedgerCorrupt as corrupt:
                raise LedgerCorrupt(f"{corrupt} {_blamed(session, sums, entry)}") from corrupt
    for statement, parameters in _orders(sums):
        session.send(statement, *parameters)
        session.collect()
    session.send(sql.MOVE_SEALED, number(last_seq), b"\\x" + link.hex().encode())
    session.collect()
    return link


def _read(session: Session, after_seq: int, count: int, link: bytes) -> tuple[list[EntryChanges], bytes]:
    """Return *count* entries after *after_seq*, whose hash is *link*, and the hash of the last."""
    session.send(sql.NEW_ENTRIES, number(after_seq), number(count))
    [page] = session.collect()
    entries = []
    for row in range(page.ntuples):
        body = page.get_value(row, 2) or b""
        link = chain_hash(link, body)
        entry = decode_changes(body)
        if entry.seq != after_seq + row + 1 or page.get_value(row, 1) != link:
            raise LedgerCorrupt(f"the journal's chain is broken at entry {after_seq + row + 1}")
        entries.append(entry)
    if len(entries) != count:
        raise LedgerCorrupt(f"the journal lacks entries between {after_seq} and {after_seq + count + 1}")
    return entries, link


def _blamed(session: Session, sums: SegmentSums, entry: EntryChanges) -> str:
    """Return what an operator can do about *entry*, which contradicts its postings."""
    for account, coin, _, _ in entry.balances:
        before = sums.lines[account, coin].before
        if before is None:
            continue
        session.send(sql.NEW_ENTRIES, number(before.row - 1), number(1))
        [page] = session.collect()
        said = decode_changes(page.get_value(0, 2) or b"") if page.ntuples else None
        if said is None or (account, coin, before.available, before.freeze) not in said.balances:
            return (
                f"The balance of {account[0]} {account[1]} {coin} in the tables is not the one of entry {before.row}:"
                " run spotledger rebuild --database URL, which derives the tables from the journal again."
            )
    return "Run spotledger audit to find out whether the journal or what is derived from it is damaged."


class _RowsOfTables:
    """The rows of the tables before the segment that is sealed; satisfies `RowsBefore`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lines(self, names: Iterable[LineName]) -> Mapping[LineName, Before]:
        found = {}
        for part in _parts(sorted(names)):
            columns = zip(*((customer, kind, coin) for (customer, kind), coin in part), strict=True)
            self._session.send(sql.LINES, *map(texts, columns))
            [rows] = self._session.collect()
            for customer, kind, coin, available, freeze, seq in rows_of(rows):
                name = ((customer.decode(), kind.decode()), coin.decode())
                found[name] = Before(int(available), int(freeze), int(seq))
        return found

    def holds(self, ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for part in _parts(ids):
            self._session.send(sql.HOLDS, numbers(part))
            [rows] = self._session.collect()
            for hold_id, (customer, kind), *rest in holds_in(rows):
                yield (hold_id, customer, kind, *rest)


def _parts(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield *items* in parts that suit one statement."""
    rest = iter(items)
    while part := list(islice(rest, ROWS_A_STATEMENT)):
        yield part


# --- what a segment adds up to, as statements ------------------------------------------------------------


def _orders(sums: SegmentSums) -> Iterator[tuple[Statement, tuple[Parameter, ...]]]:
    """Yield the statements that write what *sums* add up to."""
    lines = sorted(sums.lines.items())  # in the order of the index, so that neighbouring rows are written together
    for touched in _parts(_history(lines, sums.first_seq)):
        yield sql.ADD_HISTORY, _plain(*zip(*touched, strict=True))
    for part in _parts(lines):
        names = zip(*((*account, coin) for (account, coin), _ in part), strict=True)
        after = zip(*((line.available, line.freeze, sums.first_seq + line.places[-1]) for _, line in part), strict=True)
        yield sql.PUT_BALANCES, (*_plain(*names), *map(numbers, after))
    yield from _orders_of_holds(sums)
    for found in _parts(sorted(sums.references)):
        references, places = zip(*found, strict=True)
        yield sql.ADD_REFERENCES, (texts(references), numbers([sums.first_seq + place for place in places]))
    named: tuple[tuple[Statement, Sequence[tuple[Any, ...]], tuple[Callable[..., bytes], ...]], ...] = (
        (sql.ADD_COINS, sums.coins, (texts, numbers, numbers)),
        (sql.ADD_CUSTOMERS, sums.customers, (texts, numbers)),
        (sql.ADD_REVERSALS, sums.reversals, (numbers, numbers)),
    )
    for statement, rows, columns in named:
        for some in _parts(rows):
            values = zip(*some, strict=True)
            yield statement, tuple(encode(column) for encode, column in zip(columns, values, strict=True))


def _history(lines: Iterable[tuple[LineName, Line]], first_seq: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield customer, kind, coin, and entries that changed the line, at most so many that a statement stays small."""
    for ((customer, kind), coin), line in lines:
        for start in range(0, len(line.places), ROWS_A_STATEMENT):
            seqs = [str(first_seq + place) for place in line.places[start : start + ROWS_A_STATEMENT]]
            yield customer, kind, coin, "{" + ",".join(seqs) + "}"


def _orders_of_holds(sums: SegmentSums) -> Iterator[tuple[Statement, tuple[Parameter, ...]]]:
    rows = [row for _, row in sorted(sums.holds.items())]
    opened = [row for row in rows if row[0] >= sums.first_seq]
    changed = [row for row in rows if row[0] < sums.first_seq]
    for part in _parts(opened):
        ids, owners, kinds, coins, amounts, remaining, references, expiries, opened_ms, closed = zip(*part, strict=True)
        yield (
            sql.ADD_HOLDS,
            (
                *(numbers(ids), *_plain(owners, kinds, coins), numbers(amounts), numbers(remaining)),
                *(texts(references), _or_null(expiries), numbers(opened_ms), _or_null(closed)),
            ),
        )
    for part in _parts(row for row in opened if row[HOLD_CLOSED_SEQ] is None):
        columns = zip(*((row[0], row[HOLD_CUSTOMER], row[HOLD_EXPIRES_MS]) for row in part), strict=True)
        ids, owners, expiries = columns
        yield sql.ADD_OPEN_HOLDS, (numbers(ids), plain_texts(owners), _or_null(expiries))
    for part in _parts(changed):
        ids, remaining, closed = zip(
            *((row[0], row[HOLD_REMAINING], row[HOLD_CLOSED_SEQ]) for row in part), strict=True
        )
        yield sql.CHANGE_HOLDS, (numbers(ids), numbers(remaining), _or_null(closed))
    for closed_ids in _parts(row[0] for row in changed if row[HOLD_CLOSED_SEQ] is not None):
        yield sql.DROP_OPEN_HOLDS, (numbers(closed_ids),)


def _plain(*columns: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(map(plain_texts, columns))


def _or_null(items: Sequence[int | None]) -> bytes:
    """Encode an array of whole numbers or NULLs as text."""
    return ("{" + ",".join(["NULL" if item is None else str(item) for item in items]) + "}").encode()
