"""
The audit of a ledger on PostgreSQL: derive everything about money from the journal again, and compare.

The journal is read in short transactions, a segment at a time, and what is final of it (keys, history, closed holds)
is compared as it is read. At the end the rest of the journal, and what changes with it (balances, open holds), is read
in one snapshot. So an audit runs beside the nodes that write, and holds nobody up. One with a pace reads on until
little is left for the snapshot, which is then no longer than without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from psycopg.conninfo import conninfo_to_dict

from spotledger.audit.books import Line
from spotledger.audit.embedded import CLEAN, DAMAGED, INCOMPLETE, KnownHead, Pace, Progress, Report
from spotledger.audit.findings import Findings
from spotledger.audit.journal import JournalPass
from spotledger.audit.keys import KeySpool
from spotledger.audit.tables import compare_with_itself
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.encoding import genesis_hash
from spotledger.storage.postgres.connection import Connection, any_server, connect, translated
from spotledger.storage.postgres.statements import SEGMENT_ENTRIES

#: Entries that are read at once.
PAGE_ENTRIES: Final = 2_000
#: As many entries are left for the snapshot by an audit with a pace.
SNAPSHOT_ENTRIES: Final = 10_000
#: It gives up where as much of what it has to read is new again after it was read: it would never come to an end.
OUTGROWN_SHARE: Final = 0.8
#: What keeps the journal as it is: triggers that are to be enabled, and indexes that are to be unique and valid.
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

    Memory is bounded by the accounts and coins that ever had something, the open holds, the customers and one
    segment; the keys go to a temporary file, 16 bytes an entry. Writes nothing to the database.

    Args:
        url: A PostgreSQL URL, of a standby too.
        progress: Called after each page of entries.
        known_heads: What was noted of earlier heads.
        entries_per_second: Read entries no faster than this; 0: as fast as it goes. The tables of what changes with the
            journal are read at once, at the end. Incomplete where the ledger grows nearly as fast.
        limit_seconds: Stop, incomplete, after this time.

    Returns:
        The report; no state of the database makes it raise.
    """
    report = Report(_shown_address(url))
    pace = Pace(entries_per_second, None)
    run = _Run(report, progress, {known.seq: known.hash for known in known_heads}, pace, limit_seconds)
    began = time.monotonic()
    spool = KeySpool()
    try:
        with connect(any_server(url), application="spotledger audit") as connection, translated("audited"):
            run.examine(connection, spool)
    except StoreUnavailable as error:
        run.findings.leave_out(f"the rest: {error.message}")
    except LedgerCorrupt as error:
        run.findings.leave_out(f"the rest: {error}")
    except KeyboardInterrupt:
        run.findings.leave_out("the rest: the audit was interrupted")
    except OSError as error:
        run.findings.leave_out(f"keys that stand twice: the temporary file failed: {error.strerror}")
    finally:
        spool.close()
    report.seconds = round(time.monotonic() - began, 3)
    report.findings, report.counts = run.findings.listed, dict(run.findings.counts)
    report.unexamined = run.findings.unexamined
    report.verdict = INCOMPLETE if report.unexamined else CLEAN
    if run.findings:
        report.verdict = DAMAGED
    return report


def _shown_address(url: str) -> str:
    """Return where the database is, without its password."""
    parts = conninfo_to_dict(url)
    return f"postgresql://{parts.get('host', '')}:{parts.get('port', 5432)}/{parts.get('dbname', '')}"


class _Run:
    """One audit of one database."""

    def __init__(
        self,
        report: Report,
        progress: Callable[[Progress], None],
        known_heads: dict[int, bytes],
        pace: Pace,
        limit_seconds: float | None,
    ) -> None:
        self.findings = Findings()
        self._note = self.findings.add
        self._report = report
        self._progress = progress
        self._known_heads = known_heads
        self._pace = pace
        self._until = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._digests: dict[bytes, int] = {}
        self._first = 1

    def examine(self, connection: Connection, spool: KeySpool) -> None:
        """Read all there is."""
        self._connection = connection
        # What is worked out between two questions takes longer than a node that writes may be silent.
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        missing = [name for name in _TABLES if self._rows("SELECT to_regclass(%s)", name) == [(None,)]]
        if missing:
            self.findings.leave_out(f"the tables that are missing: {', '.join(missing)}")
            return
        self._check_guards()
        ledger = self._rows("SELECT ledger_id, epoch FROM ledger WHERE only_row = 1")
        if not ledger:
            self._note("ledger_row_missing", None, "ledger", "no row", "one row")
            self.findings.leave_out("the entries: which ledger it is, is not known")
            return
        self._report.ledger_id, self._report.epoch = ledger[0]
        self._genesis = genesis_hash(ledger[0][0])
        self._journal = JournalPass(self.findings, self._genesis, self._body_of)
        last_seq = self._last_seq()
        try:
            # Whole segments only: the last one is read in the snapshot, with what changes while it is written.
            if self._pace.is_set:
                self._catch_up(spool)
            else:
                self._read_to((last_seq // SEGMENT_ENTRIES) * SEGMENT_ENTRIES, last_seq, spool)
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                last_seq = self._last_seq()
                self._read_to(last_seq, last_seq, spool, in_snapshot=True)
                self._check_head(last_seq)
                self._compare_whole_tables()
            for digest in spool.repeated():
                self._note("key_repeated", None, "key", f"twice: {digest.hex()}", "once")
        finally:
            self._count()

    def _rows(self, query: str, *values: Any) -> list[Row]:
        return self._connection.execute(query.encode(), values or None).fetchall()

    def _last_seq(self) -> int:
        return int(self._rows("SELECT coalesce(max(seq), 0) FROM entry")[0][0])

    def _body_of(self, seq: int) -> bytes | None:
        rows = self._rows("SELECT body FROM entry WHERE seq = %s", seq)
        return rows[0][0].encode() if rows else None

    def _check_guards(self) -> None:
        """Check that the triggers and indexes of the schema are there and at work."""
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
        """Read at the pace that is set until little is left to be read in the snapshot."""
        before: int | None = None
        while (left := (last_seq := self._last_seq()) - self._journal.seq) > SNAPSHOT_ENTRIES:
            if before is not None and left > before * OUTGROWN_SHARE:
                raise StoreUnavailable(
                    f"{before} entries were read at the pace that is set, and {left} came meanwhile;"
                    " it would come to an end with a higher audit_entries_per_second"
                )
            before = left
            self._read_to(last_seq, last_seq, spool)

    def _read_to(self, last: int, last_seq: int, spool: KeySpool, *, in_snapshot: bool = False) -> None:
        """Read the entries up to *last*, and compare what is final of each segment; *in_snapshot*: of the rest too."""
        journal = self._journal
        page = self._pace.chunk if self._pace.is_set and not in_snapshot else PAGE_ENTRIES
        if in_snapshot and journal.seq == last > self._first - 1:
            self._compare_segment(spool)
        while journal.seq < last:
            border = (journal.seq // SEGMENT_ENTRIES + 1) * SEGMENT_ENTRIES
            to = min(journal.seq + page, border, last)
            self._take_page(journal.seq + 1, to)
            self._report.audited_to = journal.seq
            self._progress(Progress(journal.seq, last_seq))
            if self._until is not None and time.monotonic() > self._until:
                raise StoreUnavailable(f"the entries after {journal.seq} could not be read in the time that was given")
            if journal.seq == border or (in_snapshot and journal.seq == last):
                self._compare_segment(spool)
            if not in_snapshot:
                self._pace.rest(journal.seq)

    def _take_page(self, first: int, last: int) -> None:
        rows = []
        query = "SELECT seq, body, hash, key_digest FROM entry WHERE seq >= %s AND seq <= %s ORDER BY seq"
        for seq, body, kept_hash, digest in self._rows(query, first, last):
            rows.append((seq, body.encode(), bytes(kept_hash)))
            self._digests[digest.bytes] = seq
            known = self._known_heads.pop(seq, kept_hash)
            if known != kept_hash:
                self._note("known_head_differs", seq, "hash", bytes(kept_hash), known)
        self._journal.take(rows, last)

    def _compare_segment(self, spool: KeySpool) -> None:
        """Compare keys, history and holds of the entries since the last comparison, all of one segment."""
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
        """Compare the holds that were opened in these entries, and those that were closed by one of them."""
        journal = self._journal
        query = (
            "SELECT hold_id, customer, account, coin, amount, reference, expires_ms, opened_ms FROM hold"
            " WHERE hold_id >= %s AND hold_id <= %s"
        )
        found = {row[0]: (*row[:4], int(row[4]), *row[5:]) for row in self._rows(query, first, last)}
        self._compare("hold", {seq: tuple(row) for seq, row in journal.opened.items()}, found)
        closed = {**journal.closed, **journal.closed_otherwise}
        ids = list(closed)
        for start in range(0, len(ids), PAGE_ENTRIES):
            batch = ids[start : start + PAGE_ENTRIES]
            rows = self._rows("SELECT hold_id, remaining, closed_seq FROM hold WHERE hold_id = ANY (%s)", batch)
            states = {row[0]: (int(row[1]), row[2]) for row in rows}
            self._compare("hold", {hold_id: (0, closed[hold_id]) for hold_id in batch if hold_id in states}, states)

    def _check_head(self, last_seq: int) -> None:
        """Compare the head with the last entry."""
        report, journal = self._report, self._journal
        report.hash = None if journal.link is None else journal.link.hex()
        report.sealed_to = last_seq
        for seq, known in self._known_heads.items():
            if known != (self._genesis if seq == 0 else None):
                self._note("known_head_differs", seq, "journal", f"it ends at entry {journal.seq}", known)
        heads = self._rows("SELECT seq, hash, booked_ms FROM head WHERE only_row = 1")
        if not heads:
            self._note("head_missing", None, "head", "no row", f"entry {last_seq}")
            return
        seq, kept_hash, booked_ms = heads[0]
        report.head_seq = seq
        if seq > last_seq:
            self._note("journal_cut", last_seq, "journal", f"its last entry is {last_seq}", seq)
        elif seq < last_seq:
            self._note("entry_beyond_head", seq + 1, "journal", f"its last entry is {last_seq}", f"entry {seq}")
        elif journal.link is not None and (bytes(kept_hash), booked_ms) != (journal.link, journal.booked_ms):
            expected = f"{journal.link.hex()}, booked {journal.booked_ms}"
            self._note("head_differs", seq, "head", f"{bytes(kept_hash).hex()}, booked {booked_ms}", expected)
        stray = self._rows("SELECT count(*) FROM entry WHERE seq < 1")[0][0]
        if stray:
            self._note("entry_out_of_place", None, "entry", f"{stray} entries before the first", "entry 1 as the first")

    # --- what changes with the journal ------------------------------------------------------------------------

    def _compare_whole_tables(self) -> None:
        journal = self._journal
        compare_with_itself(journal, self.findings)
        balances = {_name_of(line): (line.available, line.freeze, line.seq) for line in journal.lines.values()}
        rows = self._rows('SELECT customer, account, coin, available, "freeze", seq FROM balance')
        self._compare("balance", balances, {row[:3]: (int(row[3]), int(row[4]), row[5]) for row in rows})
        open_ones = {hold_id: (_name_of(hold.line)[0], hold.remaining) for hold_id, hold in journal.holds.items()}
        rows = self._rows("SELECT hold_id, customer, remaining FROM hold WHERE closed_seq IS NULL")
        self._compare("hold", open_ones, {row[0]: (row[1], int(row[2])) for row in rows})
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
        """Look for rows of entries that are not there."""
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
        """Compare rows by their names, with what the journal leads to."""
        for name, row in found.items():
            if name not in expected:
                self._note(f"{table}_row_extra", None, f"{table} {name}", row, "no row")
            elif row != expected[name]:
                self._note(f"{table}_row_differs", None, f"{table} {name}", row, expected[name])
        for name in expected.keys() - found.keys():
            self._note(f"{table}_row_missing", None, f"{table} {name}", "no row", expected[name])

    def _count(self) -> None:
        report, journal = self._report, self._journal
        report.entries, report.postings, report.refusals = journal.seq, journal.postings, journal.refusals
        report.coins, report.customers = len(journal.coins), len(journal.customers)
        report.balances, report.open_holds = len(journal.lines), len(journal.holds)


def _name_of(line: Line) -> tuple[str, str, str]:
    (customer, kind), coin = line.name
    return customer, kind, coin


def _by_first(rows: Iterable[Row]) -> dict[Any, Row]:
    return {row[0]: tuple(row[1:]) for row in rows}
