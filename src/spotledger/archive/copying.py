"""
Copying an embedded ledger into an empty PostgreSQL database: the same id, entries and hashes, access keys and tokens.

The journal is written again entry by entry, and what is derived from it is sealed behind it. A mark in the database
says that a copy is going on, so that no node starts on half of a ledger; the same command goes on where one was broken
off. Both sides are audited before the mark is taken away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.archive.credentials import PAGE, in_pages
from spotledger.audit.embedded import audit_file
from spotledger.audit.postgres import audit_database
from spotledger.audit.report import CLEAN, KnownHead, Progress, Report
from spotledger.domain.journal import Entry, opened_hold
from spotledger.errors import LedgerCorrupt, SchemaMismatch
from spotledger.storage.base import Head, Wanted
from spotledger.storage.encoding import decode_entry, encode_entry
from spotledger.storage.folder import LEDGER_FILE
from spotledger.storage.journal_reader import JournalReader, JournalRow
from spotledger.storage.postgres.connection import Connection, connect, translated
from spotledger.storage.postgres.keys import PostgresKeyTables
from spotledger.storage.postgres.right_server import RightServer
from spotledger.storage.postgres.schema import make_ledger, make_schema
from spotledger.storage.postgres.sealing.sealer import Sealer
from spotledger.storage.postgres.store import PostgresStore
from spotledger.storage.seen_head import Seen, SeenHead
from spotledger.storage.sqlite.file import KEYS_FILE
from spotledger.storage.sqlite.journal import SqliteJournal
from spotledger.storage.sqlite.keys import SqliteKeyTables
from spotledger.storage.steps import drive

#: Entries that are written in one transaction.
GROUP_ENTRIES: Final = 2_000
#: What the reports of both audits have to agree on.
COMPARED: Final = (
    *("ledger_id", "epoch", "audited_to", "hash", "head_seq", "entries", "postings", "refusals"),
    *("coins", "customers", "balances", "open_holds"),
)
_NOTHING: Final = Wanted((), (), (), (), ())

#: Told what is being done, how much of it is done, and how much there is.
Tell = Callable[[str, int, int], None]


class Copied(NamedTuple):
    """What was copied, and what both audits agree on."""

    ledger_id: str
    epoch: int
    head: Head
    #: Entries that this run has written; fewer than the journal has where an earlier run was broken off.
    entries: int
    access_keys: int
    tokens: int
    open_holds: int
    balances: int


def copy_ledger(
    folder: Path, address: str, tell: Tell = lambda what, done, total: None, seen: Seen | None = None
) -> Copied:
    """
    Copy the embedded ledger in *folder*, which the caller owns, into the database at *address*.

    Args:
        folder: The data folder; no server runs in it. It is left as it is.
        address: A database that is empty, or into which the same ledger was being copied.
        tell: Told how far it is.
        seen: What a node with this folder saw last in a database. What came after the copy is there only, so an empty
            database is refused.

    Raises:
        OtherHistory: The database lacks what was seen; nothing was made there.
        SchemaMismatch: The database has another ledger, or something else.
        LedgerCorrupt: One of the two is damaged, or they are not equal; the mark stays, and no node starts.
        StoreUnavailable: The file or the database is in the way; the same command goes on from there.
    """
    right = RightServer(address, SeenHead(seen=seen))
    with right.connect() as connection:
        address = right.address_of(connection)  # all of it goes to one server
    make_schema(address)
    with SqliteJournal(folder / LEDGER_FILE) as source:
        with connect(address) as connection:
            _mark(connection, source)
        entries = _copy_entries(source, address, tell)
        report = _audit_both(folder / LEDGER_FILE, address, source, tell)
        keys, tokens = _copy_keys(folder / KEYS_FILE, source, address)
        return Copied(
            source.ledger_id,
            source.epochs.current,
            source.head,
            entries,
            keys,
            tokens,
            report.open_holds,
            report.balances,
        )


def _mark(connection: Connection, source: JournalReader) -> None:
    """Make the ledger of *source* in an empty database with the mark; refuse where there is anything but its copy."""
    head = source.head
    with translated("copied"), connection.transaction():
        if make_ledger(connection, source.ledger_id):
            connection.execute("INSERT INTO copy_going_on VALUES (1, %s, %s)", (head.seq, head.hash))
            return
        ledger_id, seq = connection.execute(
            "SELECT ledger_id, coalesce((SELECT max(seq) FROM entry), 0) FROM ledger"
        ).fetchall()[0]
        going_on = connection.execute("SELECT seq, hash FROM copy_going_on").fetchall()
    if not going_on:
        raise SchemaMismatch(
            f"The database has a ledger: {ledger_id}, at entry {seq}."
            " An embedded ledger is copied into an empty database."
        )
    if ledger_id != source.ledger_id or (int(going_on[0][0]), bytes(going_on[0][1])) != (head.seq, head.hash):
        raise SchemaMismatch(
            f"Another ledger was being copied into the database: {ledger_id} up to entry {going_on[0][0]}; this one is"
            f" {source.ledger_id} up to entry {head.seq}. Copy into another, empty database."
        )


def _copy_entries(source: JournalReader, address: str, tell: Tell) -> int:
    """Write what the database lacks of the journal; return how many entries that were."""
    sealer = Sealer(partial(connect, address, application="spotledger seal"))
    store = PostgresStore(address, follow_seconds=None, seals=False)
    try:
        start = store.head
        rows = source.rows(start.seq)
        if start.seq and next(source.rows(start.seq - 1)).hash != start.hash:
            raise LedgerCorrupt(f"the database has another entry {start.seq} than the ledger that is copied")
        for group in _groups(rows):
            drive(store.begin(_NOTHING))
            entries = [_entry_of(row) for row in group]
            store.write(entries)
            drive(store.commit())
            store.publish(entries)
            if store.head.hash != group[-1].hash:
                raise LedgerCorrupt(f"entry {store.head.seq} has another hash in the database")
            if store.sealing_lag:
                sealer.seal_all()
            tell("copy", store.head.seq, source.head.seq)
        sealer.seal_all(to_head=True)
        return store.head.seq - start.seq
    finally:
        sealer.close()
        store.close()


def _groups(rows: Iterator[JournalRow]) -> Iterator[list[JournalRow]]:
    while group := list(islice(rows, GROUP_ENTRIES)):
        yield group


def _entry_of(row: JournalRow) -> Entry:
    entry = decode_entry(row.body)
    if encode_entry(entry) != row.body:
        raise LedgerCorrupt(f"entry {row.seq} would be written with other bytes than it has")
    return entry


def _audit_both(file: Path, address: str, source: JournalReader, tell: Tell) -> Report:
    """Audit the file, compare the database with it, audit that too; return the report, which both agree on."""

    def told(progress: Progress) -> None:
        tell("audit of the file", progress.seq, progress.last_seq)

    head = source.head
    report = audit_file(file, progress=told, known_heads=[KnownHead(head.seq, head.hash)] if head.seq else [])
    if report.verdict != CLEAN:
        found = ", ".join(report.counts) or "; ".join(report.unexamined)
        raise LedgerCorrupt(f"the audit of the file says {report.verdict}: {found}")
    with connect(address, steady_plans=False) as connection, translated("audited"), connection.transaction():
        _check_database(connection, source, tell)
    known_heads = [KnownHead(head.seq, head.hash)] if head.seq else []
    theirs = audit_database(address, known_heads=known_heads, while_copied=True)
    if theirs.verdict != CLEAN:
        found = ", ".join(theirs.counts) or "; ".join(theirs.unexamined)
        raise LedgerCorrupt(f"the audit of the database says {theirs.verdict}: {found}")
    for name in COMPARED:
        if getattr(report, name) != getattr(theirs, name):
            raise LedgerCorrupt(
                f"the audits do not agree: {name} is {getattr(report, name)} in the file and {getattr(theirs, name)} in"
                " the database"
            )
    return report


def _check_database(connection: Connection, source: JournalReader, tell: Tell) -> None:
    """Check that the database has the journal of *source*, and the balances and open holds that come of it."""
    balances: dict[tuple[str, str, str], tuple[int, int]] = {}
    remaining: dict[int, int] = {}
    with connection.cursor(name="journal") as theirs:
        theirs.itersize = GROUP_ENTRIES
        theirs.execute("SELECT seq, body, hash FROM entry ORDER BY seq")
        for ours, (seq, body, kept_hash) in zip_longest(source.rows(), theirs, fillvalue=(0, "", b"")):
            if (ours[0], ours[1], ours[2]) != (seq, body.encode(), bytes(kept_hash)):
                raise LedgerCorrupt(f"entry {ours[0] or seq} is not the same in the file and in the database")
            entry = decode_entry(body)
            for account, coin, available, freeze in entry.balances:
                balances[account.customer, account.kind, coin] = (available, freeze)
            remaining.update(entry.holds)
            opened = opened_hold(entry)
            if opened is not None:
                remaining[opened.hold_id] = opened.remaining
            if seq % GROUP_ENTRIES == 0 or seq == source.head.seq:
                tell("audit of the database", seq, source.head.seq)
    rows = connection.execute('SELECT customer, account, coin, available, "freeze" FROM balance')
    _check_same("balances", balances, {row[:3]: (int(row[3]), int(row[4])) for row in rows})
    open_holds = connection.execute("SELECT hold_id, remaining FROM open_hold JOIN hold USING (hold_id)")
    _check_same(
        "open holds", {hold: units for hold, units in remaining.items() if units}, {h: int(u) for h, u in open_holds}
    )


def _check_same(what: str, ours: Mapping[Any, Any], theirs: Mapping[Any, Any]) -> None:
    if ours != theirs:
        different = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        raise LedgerCorrupt(
            f"the {what} in the database are not those that the journal says: {len(different)} differ,"
            f" the first is {different[0]}"
        )


def _copy_keys(file: Path, journal: SqliteJournal, address: str) -> tuple[int, int]:
    """Copy access keys and tokens with all that goes with them, and take the mark away, in one transaction."""
    source = SqliteKeyTables(file, journal.ledger_id, 0 if journal.note is None else journal.note.keys_change)
    tables = PostgresKeyTables(lambda: connect(address))
    try:
        keys = tokens = 0
        with tables.together() as write:
            for record in in_pages(lambda after: source.access_keys.list(None, after, PAGE), "accesskey"):
                tables.access_keys.insert(record)
                keys += 1
            for record in in_pages(lambda after: source.tokens.list(after, PAGE), "token_id"):
                tables.tokens.insert(record)
                tokens += 1
            for kept in source.rows("SELECT idempotency_key, request_json, answer_json FROM kept_key_requests"):
                tables.kept_requests.keep(*kept)
            if source.master_key_fingerprint is not None:
                tables.master_key_fingerprint = source.master_key_fingerprint
            for fingerprint, retired_ms in source.retired_master_keys.items():
                tables.retire_master_key(fingerprint, retired_ms)
            write.execute("DELETE FROM copy_going_on")
        return keys, tokens
    finally:
        tables.close()
        source.close()
