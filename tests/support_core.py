"""What the tests of the core share: a clock that they move, a disk that they fill, and short ways to seed a ledger."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import spotledger
from spotledger.domain.accounts import Account
from spotledger.domain.journal import BalanceAfter, Move, Posting
from spotledger.domain.operations import Operation
from spotledger.ledger.group import Group
from spotledger.ledger.ledger import Ledger
from spotledger.storage.sqlite.file import JOURNAL, schema_of
from spotledger.storage.steps import Steps, drive
from support_books import opened

START_MS = 1_700_000_000_000
#: Changes the document of an entry.
Change = Callable[[dict[str, Any]], None]


class Clock:
    """A clock that stands until a test moves it, forwards or back."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


def open_small(folder: Path, clock: Clock | None = None, **options: Any) -> Ledger:
    """Open a ledger with segments of 8 entries and room for 2 accounts, so that every border is near."""
    options = {"segment_entries": 8, "cache_accounts": 2, "clock_ms": clock or Clock(), **options}
    return spotledger.open(folder, **options)


def seed(ledger: Ledger, customers: str = "ann bob", amount: str = "1000") -> None:
    """List btc with 8 decimals, register *customers*, and deposit *amount* for each."""
    ledger.list_coin("btc", 8, key="list:btc")
    for customer in customers.split():
        ledger.register_customer(customer, key=f"register:{customer}")
        ledger.deposit(customer, "btc", amount, key=f"seed:{customer}")


def spot(customer: str) -> Account:
    """Return the spot account of *customer*."""
    return Account(customer, "spot")


def fill(ledger: Ledger, count: int, prefix: str = "fill") -> None:
    """Book *count* small deposits, one a group, so that segments fill and are sealed."""
    for number in range(count):
        ledger.deposit("ann", "btc", "0.00000001", key=f"{prefix}:{number}")


def booked_up_to_commit(ledger: Ledger, operations: Sequence[Operation]) -> Steps[Group]:
    """
    Book *operations* until the commit is the next thing to do: they are decided and written, and not durable.

    Returns the other steps. Driving them commits the group, closing them gives it up; keep them to leave it as it is.
    """
    store: Any = ledger._store
    commit, stop = store.commit, object()

    def stopping() -> Any:
        yield stop
        yield from commit()

    def until_stop() -> Steps[None]:
        step = next(steps)
        while step is not stop:
            step = steps.send((yield step))

    steps = ledger.booking(operations)
    store.commit = stopping
    try:
        drive(until_stop())
    finally:
        del store.commit
    return steps


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Let no file of this process grow beyond the write-ahead log as it is: commits fail with a real error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((folder / "journal.db-wal").stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def raw(folder: Path, file: str = "journal.db") -> Iterator[Any]:
    """Give a plain connection to a file of the ledger, in autocommit; it keeps the checksums of pages right."""
    with opened(folder / file) as connection:
        yield connection


def without_triggers(connection: Any) -> None:
    """Drop the triggers, as somebody would who means to cheat."""
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for (name,) in names:
        connection.execute(f"DROP TRIGGER {name}")


def past_triggers(connection: Any, statement: str) -> None:
    """Execute *statement* with the triggers out of the way; afterwards the schema is as it was, but for *statement*."""
    triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    if statement.startswith("DROP"):
        connection.execute(statement)
        return
    without_triggers(connection)
    connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)


def alter_last(folder: Path, change: Change) -> int:
    """Let *change* alter the last entry of a journal, put its hash right, and return its seq."""
    with raw(folder) as connection:
        [(seq, body)] = connection.execute("SELECT seq, body FROM entry ORDER BY seq DESC LIMIT 1").fetchall()
        [(link,)] = connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq - 1,)).fetchall()
        entry = json.loads(body)
        change(entry)
        altered = json.dumps(entry, separators=(",", ":"))
        digest = hashlib.sha256(link + altered.encode()).digest()
        without_triggers(connection)
        connection.execute("UPDATE entry SET body = ?, hash = ? WHERE seq = ?", (altered, digest, seq))
        connection.execute("UPDATE head SET hash = ?", (digest,))
        for sql in schema_of(JOURNAL).values():
            if sql.startswith("CREATE TRIGGER"):
                connection.execute(sql)
    (folder / "noted-head").unlink()
    return int(seq)


def moved(postings: Iterable[Posting], balances: Iterable[BalanceAfter]) -> tuple[Move, ...]:
    """Return *postings* as an entry with these *balances* has them."""
    places = {after[:2]: place for place, after in enumerate(balances)}
    return tuple((places[account, coin], side, units, hold) for account, coin, side, units, hold in postings)
