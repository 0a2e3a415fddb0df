"""
The audit of a ledger on PostgreSQL: derive everything about money from the journal again, and compare.

The journal is read in short transactions, a segment at a time, and what is final of a segment (keys, history, closed
holds) is compared as it is read. The rest of the journal, and the tables that change with it (balances, open holds),
are read at the end in one snapshot. So an audit runs beside the nodes that write, and blocks none of them. An audit
with a pace catches up until little is left for the snapshot, which then takes no longer than without a pace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from spotledger.audit.books import Line, stored_units
from spotledger.audit.driver import Driver
from spotledger.audit.keys import KeySpool
from spotledger.audit.report import KnownHead, Pace, Progress, Report
from spotledger.audit.tables import compare_with_itself
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.postgres.connection import Connection, any_server, connect, translated
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES

#: Entries that are read at once.
PAGE_ENTRIES: Final = 2_000
#: How many entries an audit with a pace leaves for the snapshot.
SNAPSHOT_ENTRIES: Final = 10_000
#: An audit with a pace gives up if more than this share of what it read has been written meanwhile: it would not end.
OUTGROWN_SHARE: Final = 0.8
#: What protects the journal: triggers that have to be enabled, and indexes that have to be unique and valid.
_TRIGGERS: Final = ("entry_is_never_changed", "head_is_never_deleted", "head_never_goes_back")
_TABLES: Final = ["entry", "head", "ledger", "history", "balance", "hold", "open_hold", "coin", "customer", "reversal"]
_INDEXES: Final = ("entry_pkey", "entry_key")

Row = tuple[Any, ...]


def audit_database(
    url: str,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    known_heads: Iterable[KnownHead] = (),
    entries_per_second: int = 0,
    limit_seconds: float | None = None,
) -> Report:
    """
    Audit the ledger in the database at *url*.

    Memory is bounded by the accounts and coins that were ever used, the open holds, the customers and one segment;
    the keys go to a temporary file, 16 bytes an entry. Writes nothing to the database.

    Args:
        url: A PostgreSQL URL, of a standby too.
        progress: Called after each page of entries.
        known_heads: Entries as noted earlier, to be compared.
        entries_per_second: The highest rate of reading entries; 0 for no limit. The tables that change with the
            journal are read without a limit, at the end. Incomplete if the ledger grows nearly as fast.
        limit_seconds: Stop, incomplete, after this time.

    Returns:
        The report; no state of the database makes it raise.
    """
    return _DatabaseAudit(url, progress, known_heads, Pace(entries_per_second, limit_seconds)).run()


def _shown_address(url: str) -> str:
    """Return where the database is, without its password."""
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


class _DatabaseAudit(Driver):
    """One audit of one database."""

    _connection: Connection

    def __init__(
        self, url: str, progress: Callable[[Progress], None], known_heads: Iterable[KnownHead], pace: Pace
    ) -> None:
        super().__init__(_shown_address(url), progress, known_heads, pace)
        self._url = url
        self._digests: dict[bytes, int] = {}
        self._first = 1

    def _examine(self) -> None:
        try:
            connection = connect(any_server(self._url), application="spotledger audit")
            with connection as self._connection, translated("audited"):
                self._examine_database()
        except StoreUnavailable as error:
            self._findings.leave_out(f"the rest: {error.message}")
        except LedgerCorrupt as error:
            self._findings.leave_out(f"the rest: {error}")

    def _examine_database(self) -> None:
        # Between two queries the audit may compute for longer than a node that writes may be silent.
        self._connection.execute("SET idle_in_transaction_session_timeout = 0")
        missing = [name for name in _TABLES if self._rows("SELECT to_regclass(%s)", name) == [(None,)]]
        if missing:
            self._leave_out_tables(missing)
            return
        self._check_guards()
        ledger = self._rows("SELECT ledger_id, epoch_seq FROM ledger WHERE only_row = 1")
        if not ledger:
            self._leave_out_entries()
            return
        ledger_id, self._epoch_seq = ledger[0]
        self._begin(ledger_id, self._body_of)
        try:
            with closing(KeySpool()) as spool:
                self._examine_entries(spool)
        finally:
            self._count()

    def _examine_entries(self, spool: KeySpool) -> None:
        # Whole segments only: the last one is read in the snapshot, with the tables that change while it is written.
        if self._pace.is_set:
            self._catch_up(spool)
        else:
            last_seq = self._last_seq()
            self._read_to((last_seq // SEGMENT_ENTRIES) * SEGMENT_ENTRIES, last_seq, spool)
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            last_seq = self._last_seq()
            self._read_to(last_seq, last_seq, spool, in_snapshot=True)
            self._check_head(last_seq)
            self._check_epoch(self._epoch_seq)
            self._compare_whole_tables()
        for digest in spool.repeated():
            self._note("key_repeated", None, "key", f"twice: {digest.hex()}", "once")

    def _rows(self, query: str, *values: Any) -> list[Row]:
        return self._connection.execute(query.encode(), values or None).fetchall()

    def _last_seq(self) -> int:
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM entry")[0][0])

    def _body_of(self, seq: int) -> bytes | None:
        rows = self._rows("SELECT body FROM entry WHERE seq = %s", seq)
        return rows[0][0].encode() if rows else None

    def _check_guards(self) -> None:
        """Check that the triggers and indexes of the schema exist, are enabled and valid."""
        enabled = {name for (name,) in self._rows("SELECT tgname FROM pg_trigger WHERE tgenabled IN ('O', 'A')")}
        for name in _TRIGGERS:
            if name not in enabled:
                self._note("trigger_changed", None, name, "missing or disabled", "the trigger of the schema")
        sound = self._rows(
            "SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid"
            " WHERE indisunique AND indisvalid AND indrelid = 'entry'::regclass"
        )
        for name in _INDEXES:
            if (name,) not in sound:
                self._note("trigger_changed", None, name, "missing or invalid", "the unique index of the schema")

    # --- the journal ------------------------------------------------------------------------------------

    def _catch_up(self, spool: KeySpool) -> None:
        """Read at the pace that is set until few enough entries are left for the snapshot."""
        before: int | None = None
        while (left := (last_seq := self._last_seq()) - self._journal.seq) > SNAPSHOT_ENTRIES:
            if before is not None and left > before * OUTGROWN_SHARE:
                raise StoreUnavailable(
                    f"{left} entries were written while {before} were read at the pace that is set;"
                    " a higher audit_entries_per_second would let the audit end"
                )
            before = left
            self._read_to(last_seq, last_seq, spool)

    def _read_to(self, last: int, last_seq: int, spool: KeySpool, *, in_snapshot: bool = False) -> None:
        """Read the entries up to *last*, and compare each whole segment; *in_snapshot*, the unfinished one too."""
        journal = self._journal
        page = PAGE_ENTRIES if in_snapshot else self._pace.chunk(PAGE_ENTRIES)
        if in_snapshot and journal.seq == last > self._first - 1:
            self._compare_segment(spool)
        while journal.seq < last:
            border = (journal.seq // SEGMENT_ENTRIES + 1) * SEGMENT_ENTRIES
            self._take_page(journal.seq + 1, min(journal.seq + page, border, last))
            self._tell_progress(last_seq)
            if journal.seq == border or (in_snapshot and journal.seq == last):
                self._compare_segment(spool)
            if in_snapshot:
                self._pace.check_time(journal.seq)
            else:
                self._pace.rest(journal.seq)

    def _take_page(self, first: int, last: int) -> None:
        query = "SELECT seq, body, hash, key_digest FROM entry WHERE seq >= %s AND seq <= %s ORDER BY seq"
        found = self._rows(query, first, last)
        self._digests.update((digest.bytes, seq) for seq, _, _, digest in found)
        rows = [(seq, body.encode(), bytes(kept_hash)) for seq, body, kept_hash, _ in found]
        self._check_known_heads(rows)
        self._journal.take(rows, last)

    def _compare_segment(self, spool: KeySpool) -> None:
        """Compare keys, history and holds of the entries since the last comparison, which are of one segment."""
        journal, first, last = self._journal, self._first, self._journal.seq
        for digest in journal.keys.keys() - self._digests.keys():
            self._note("key_row_missing", journal.keys[digest], "entry", "another digest", digest)
        for digest in self._digests.keys() - journal.keys.keys():
            self._note("key_row_extra", self._digests[digest], "entry", digest, "the digest of the entry's key")
        self._digests.clear()
        spool.put(sorted(journal.keys))
        self._compare_history((last - 1) // SEGMENT_ENTRIES)
        self._compare_holds(first, last)
        self._first = last + 1
        journal.forget_collected()
        journal.closed_otherwise.clear()

    def _compare_history(self, segment: int) -> None:
        expected: set[Row] = set()
        for line in self._journal.touched:
            (customer, kind), coin = line.name
            expected.update((customer, kind, coin, seq) for seq in (line.rows or [])[3::3])
        rows = self._rows("SELECT customer, account, coin, seq FROM history WHERE segment = %s", segment)
        found = {row for row in rows if row[3] <= self._journal.seq}
        for row in sorted(expected - found):
            self._note("history_row_missing", row[3], f"history {' '.join(row[:3])}", "no row", "a row")
        for row in sorted(found - expected):
            self._note("history_row_extra", row[3], f"history {' '.join(row[:3])}", "a row", "no row")

    def _compare_holds(self, first: int, last: int) -> None:
        """Compare the holds that the entries *first* to *last* opened or closed."""
        journal = self._journal
        query = (
            "SELECT hold_id, customer, account, coin, amount, reference, expires_ms, opened_ms FROM hold"
            " WHERE hold_id >= %s AND hold_id <= %s"
        )
        found = {row[0]: (*row[:4], stored_units(row[4]), *row[5:]) for row in self._rows(query, first, last)}
        self._compare("hold", {seq: tuple(row) for seq, row in journal.opened.items()}, found)
        closed = {**journal.closed, **journal.closed_otherwise}
        ids = list(closed)
        for start in range(0, len(ids), PAGE_ENTRIES):
            batch = ids[start : start + PAGE_ENTRIES]
            rows = self._rows("SELECT hold_id, remaining, closed_seq FROM hold WHERE hold_id = ANY (%s)", batch)
            states = {row[0]: (stored_units(row[1]), row[2]) for row in rows}
            self._compare("hold", {hold_id: (0, closed[hold_id]) for hold_id in batch if hold_id in states}, states)

    def _check_head(self, last_seq: int) -> None:
        self._report.sealed_to = last_seq
        rows = self._rows("SELECT seq, hash, booked_ms FROM head WHERE only_row = 1")
        head = (rows[0][0], bytes(rows[0][1]), rows[0][2]) if rows else None
        self._check_end()
        self._check_head_seq(head, last_seq)
        self._check_head_hash(head)
        stray = self._rows("SELECT count(*) FROM entry WHERE seq < 1")[0][0]
        if stray:
            self._note("entry_out_of_place", None, "entry", f"{stray} entries before the first", "entry 1 as the first")

    # --- the tables that change with the journal ----------------------------------------------------------

    def _compare_whole_tables(self) -> None:
        journal = self._journal
        compare_with_itself(journal, self._findings)
        balances = {_name_of(line): (line.available, line.freeze, line.seq) for line in journal.lines.values()}
        rows = self._rows('SELECT customer, account, coin, available, "freeze", seq FROM balance')
        found = {row[:3]: (stored_units(row[3]), stored_units(row[4]), row[5]) for row in rows}
        self._compare("balance", balances, found)
        open_ones = {hold_id: (_name_of(hold.line)[0], hold.remaining) for hold_id, hold in journal.holds.items()}
        rows = self._rows("SELECT hold_id, customer, remaining FROM hold WHERE closed_seq IS NULL")
        self._compare("hold", open_ones, {row[0]: (row[1], stored_units(row[2])) for row in rows})
        owners = {(hold_id, customer): () for hold_id, (customer, _) in open_ones.items()}
        rows = self._rows("SELECT hold_id, customer FROM open_hold")
        self._compare("hold_owner", owners, dict.fromkeys(rows, ()))
        due = self._rows(
            "SELECT hold_id FROM open_hold JOIN hold USING (hold_id) WHERE open_hold.expires_ms"
            " IS DISTINCT FROM hold.expires_ms"
        )
        for (hold_id,) in due:
            self._note("hold_row_differs", hold_id, f"open_hold {hold_id}", "another expiry", "that of the hold")
        self._compare("coin", dict(journal.coins), _by_first(self._rows("SELECT coin, scale, seq FROM coin")))
        customers = {customer: (seq,) for customer, seq in journal.customers.items()}
        self._compare("customer", customers, _by_first(self._rows("SELECT customer, seq FROM customer")))
        reversals = {seq: (by_seq,) for seq, by_seq in journal.reversals.items()}
        self._compare("reversal", reversals, _by_first(self._rows("SELECT seq, by_seq FROM reversal")))
        self._check_extremes()

    def _check_extremes(self) -> None:
        """Look for rows of entries that do not exist."""
        last_seq = self._journal.seq
        for table, column, low, high in (
            ("hold", "hold_id", 1, last_seq),
            ("history", "segment", 0, max(0, last_seq - 1) // SEGMENT_ENTRIES),
            ("history", "seq", 1, last_seq),
        ):
            query = f"SELECT count(*) FROM {table} WHERE {column} < %s OR {column} > %s"
            count = self._rows(query, low, high)[0][0]
            if count:
                found = f"{count} rows with {column} elsewhere"
                self._note("rows_beyond_journal", None, table, found, f"from {low} to {high}")

    def _compare(self, table: str, expected: dict[Any, Row], found: dict[Any, Row]) -> None:
        """Compare the rows *found*, by name, with those *expected* from the journal."""
        for name, row in found.items():
            if name not in expected:
                self._note(f"{table}_row_extra", None, f"{table} {name}", row, "no row")
            elif row != expected[name]:
                self._note(f"{table}_row_differs", None, f"{table} {name}", row, expected[name])
        for name in sorted(expected.keys() - found.keys()):
            self._note(f"{table}_row_missing", None, f"{table} {name}", "no row", expected[name])


def _name_of(line: Line) -> tuple[str, str, str]:
    (customer, kind), coin = line.name
    return customer, kind, coin


def _by_first(rows: Iterable[Row]) -> dict[Any, Row]:
    return {row[0]: tuple(row[1:]) for row in rows}
