"""Reading the journal of an embedded ledger in order, beside the process that writes to it; its epochs."""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from spotledger.domain.journal import EPOCH_ID_BYTES, begin_epoch
from spotledger.domain.operations import ListCoin
from spotledger.domain.positions import Epochs
from spotledger.errors import LedgerCorrupt, StoreUnavailable
from spotledger.storage.base import Head
from spotledger.storage.encoding import chain_hash, encode_entry, epochs_of_row, genesis_hash
from spotledger.storage.journal_reader import PAGE_ENTRIES, JournalReader, JournalRow
from spotledger.storage.sqlite.file import JOURNAL, Connection, only_row, open_reader, translated
from spotledger.storage.sqlite.noted_head import NOTE_FILE, Note, read_note


class SqliteJournal(JournalReader):
    """The journal in a file; a transaction is short, so the write-ahead log can be folded into the file."""

    def __init__(self, path: Path, page_entries: int = PAGE_ENTRIES) -> None:
        """
        Open the journal at *path*; another process may own it and write to it.

        Args:
            path: The journal.
            page_entries: How many entries are read in one transaction.

        Raises:
            SchemaMismatch: It is no journal, or of another version.
            StoreUnavailable: It cannot be read.
            LedgerCorrupt: It is damaged, or ends before the head that was noted beside it.
        """
        self._page_entries = page_entries
        #: What was noted before the journal was looked at, so that it is never ahead of it; None where nothing was.
        self.note = _read_note(path.with_name(NOTE_FILE))
        self._connection = open_reader(path, JOURNAL)
        try:
            self._read_head(path)
            self._check_note(path)
        except BaseException:
            self._connection.close()
            raise

    def _read_head(self, path: Path) -> None:
        with translated("read"):
            self.ledger_id, self.segment_entries = only_row(
                self._connection, "SELECT ledger_id, segment_entries FROM ledger", str, int
            )
            *fields, last_seq = only_row(
                self._connection,
                "SELECT seq, hash, booked_ms, (SELECT coalesce(max(seq), 0) FROM entry) FROM head",
                *(int, bytes, int, int),
            )
            self.epochs = read_epochs(self._connection)
        self.head = Head(*fields)
        if last_seq != self.head.seq:
            raise LedgerCorrupt(f"the head of {path} is entry {self.head.seq}, but its last entry is {last_seq}")

    def _check_note(self, path: Path) -> None:
        note = self.note
        if note is None:
            return
        if note.ledger_id != self.ledger_id or note.epoch > self.epochs.current:
            raise LedgerCorrupt(
                f"{path} is ledger {self.ledger_id}, epoch {self.epochs.current}, but the head that was noted beside it"
                f" is of ledger {note.ledger_id}, epoch {note.epoch}"
            )
        if note.epoch < self.epochs.current:
            return  # a later epoch began, and so the journal is right and the note is old
        if note.seq > self.head.seq:
            raise LedgerCorrupt(f"{path} ends with entry {self.head.seq}, but entry {note.seq} was acknowledged")
        if self._link(note.seq) != note.hash:
            raise LedgerCorrupt(f"entry {note.seq} of {path} is not the one that was acknowledged")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _listings(self, up_to_seq: int) -> list[bytes]:
        marker = msgspec.json.encode({"kind": ListCoin.kind})[1:-1].decode()
        with translated("read"):
            found = self._connection.execute(
                "SELECT CAST(body AS BLOB) FROM entry WHERE seq <= ? AND instr(body, ?) > 0"
                " AND body ->> '$.kind' = ? ORDER BY seq",
                (up_to_seq, marker, ListCoin.kind),
            )
            return [body for (body,) in found]

    def _read_page(self, after_seq: int) -> list[JournalRow]:
        with translated("read"):
            found = self._connection.execute(
                "SELECT seq, coalesce(CAST(body AS BLOB), x''), hash FROM entry WHERE seq > ? AND seq <= ?"
                " ORDER BY seq LIMIT ?",
                (after_seq, self.head.seq, self._page_entries),
            ).fetchall()
        return [JournalRow(*row) for row in found]

    def _read_hash(self, seq: int) -> bytes | None:
        with translated("read"):
            rows = self._connection.execute("SELECT hash FROM entry WHERE seq = ?", (seq,)).fetchall()
        return rows[0][0] if rows and isinstance(rows[0][0], bytes) else None


def _read_note(path: Path) -> Note | None:
    try:
        return read_note(path)
    except OSError as problem:
        raise StoreUnavailable(f"{path} cannot be read: {problem.strerror}") from problem


def entry_rows(journal: Connection, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
    """
    Return ``seq``, body and hash of the entries from *first* to *last* that are there, in order.

    Raises:
        LedgerCorrupt: A page of the journal does not check; the message names the first entry that cannot be read.
        StoreUnavailable: The disk is in the way.
    """
    try:
        return _rows_between(journal, first, last)
    except LedgerCorrupt as damage:
        for seq in range(first, last + 1):
            try:
                _rows_between(journal, seq, seq)
            except LedgerCorrupt as found:
                raise LedgerCorrupt(f"entry {seq}: {found}") from damage
        raise


def _rows_between(journal: Connection, first: int, last: int) -> list[tuple[int, bytes, bytes]]:
    with translated("read"):
        found: list[tuple[int, bytes, bytes]] = journal.execute(
            "SELECT seq, CAST(body AS BLOB), hash FROM entry WHERE seq BETWEEN ? AND ? ORDER BY seq", (first, last)
        ).fetchall()
        return found


def read_epochs(connection: Connection) -> Epochs:
    """
    Return the epochs of the journal behind *connection*.

    Raises:
        LedgerCorrupt: The entry with which the newest one began is missing or damaged, or it begins no epoch.
        apsw.Error: The journal cannot be read.
    """
    ledger_id, seq = only_row(connection, "SELECT ledger_id, epoch_seq FROM ledger", str, int)
    if seq == 0:
        return Epochs()
    rows = {found: (body, kept_hash) for found, body, kept_hash in _rows_between(connection, seq - 1, seq)}
    body, kept_hash = rows.get(seq, (None, b""))
    if body is not None:
        previous = genesis_hash(ledger_id) if seq == 1 else rows.get(seq - 1, (b"", None))[1]
        if not isinstance(previous, bytes) or chain_hash(previous, body) != kept_hash:
            raise LedgerCorrupt(f"entry {seq}, with which the epoch began, is damaged")
    return epochs_of_row(seq, body)


def read_head(connection: Connection) -> Head:
    """Return the head of the journal behind *connection*; raise LedgerCorrupt if its row is not of the right form."""
    return Head(*only_row(connection, "SELECT seq, hash, booked_ms FROM head", int, bytes, int))


def append_epoch(connection: Connection, epoch: int, reason: str, now_ms: int) -> Head:
    """
    Append the entry that begins *epoch* to a journal that nobody else uses, within the transaction of *connection*.

    Args:
        connection: Opened for writing.
        epoch: The new epoch, above all others.
        reason: Why it begins.
        now_ms: The time now, in ms since 1970; the entry is booked then, or with the head if that is later.

    Returns:
        The new head.
    """
    head, epochs = read_head(connection), read_epochs(connection)
    booked_ms, random_id = max(now_ms, head.booked_ms), secrets.token_hex(EPOCH_ID_BYTES)
    body = encode_entry(begin_epoch(epochs, head.seq + 1, epoch, booked_ms, reason, random_id))
    new = Head(head.seq + 1, chain_hash(head.hash, body), booked_ms)
    connection.execute("INSERT INTO entry (seq, body, hash) VALUES (?, ?, ?)", (new.seq, body.decode(), new.hash))
    connection.execute("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", new)
    connection.execute("UPDATE ledger SET epoch_seq = ?", (new.seq,))
    return new
