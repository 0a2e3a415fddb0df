"""
The journal as files for other programs: JSON lines, and Parquet.

Both are read from the ledger file itself, beside whoever owns it, or from the database of a fleet
(:mod:`spotledger.archive.exports_postgres`), in short transactions and bounded memory, up to the head as it was at the
beginning. The chain of hashes is checked on the way, so a damaged journal is not passed on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from spotledger.domain.journal import Entry, Posting
from spotledger.domain.operations import ListCoin
from spotledger.errors import DataFolderUnusable, SettingInvalid
from spotledger.storage.atomic_file import write_atomically
from spotledger.storage.encoding import decode_entry
from spotledger.storage.folder import LEDGER_FILE
from spotledger.storage.journal_reader import JournalReader, JournalRow
from spotledger.storage.sqlite.journal import SqliteJournal

JSONL: Final = "jsonl"
PARQUET: Final = "parquet"
FORMATS: Final = (JSONL, PARQUET)
#: Postings in a row group of a Parquet file; all of a group is in memory at once.
GROUP_ROWS: Final = 65_536
#: Every amount and balance has fewer digits.
UNITS_DIGITS: Final = 38
#: Entries between two calls of ``progress``.
PROGRESS_ENTRIES: Final = 10_000

Progress = Callable[[int, int], None]


class Exported(NamedTuple):
    """What was written: the ledger and its epoch, how many entries, and ``seq`` and hash of the last one covered."""

    ledger_id: str
    epoch: int
    entries: int
    after_seq: int
    seq: int
    hash: bytes


def export_journal(
    folder: Path,
    file: Path,
    file_format: str,
    after_seq: int = 0,
    progress: Progress = lambda done, entries: None,
) -> Exported:
    """
    Write the entries after *after_seq* of the ledger in *folder* to the new file *file*.

    Args:
        folder: The data folder; whether a server owns it does not matter.
        file: A name that is not taken. It appears once it is whole.
        file_format: ``"jsonl"``, one line an entry, or ``"parquet"``, one row a posting.
        after_seq: Where to begin; the ``seq`` of an earlier export, or 0.
        progress: Called now and then with the entries that are done and those in all.

    Raises:
        InvalidRequest: *file* cannot be made, or *after_seq* is beyond the head.
        SettingInvalid: Parquet is asked for, and the extra that writes it is not installed.
        LedgerCorrupt: The journal's chain is broken; no file is left.
        StoreUnavailable: The disk is full, or answers with an error.
    """

    def opened() -> JournalReader:
        path = folder / LEDGER_FILE
        if not path.is_file():
            raise DataFolderUnusable(f"There is no ledger in {folder}; name its folder with --data.", path=str(folder))
        return SqliteJournal(path)

    return export_from(opened, file, file_format, after_seq, progress)


def export_from(
    open_journal: Callable[[], JournalReader], file: Path, file_format: str, after_seq: int, progress: Progress
) -> Exported:
    """Write the entries after *after_seq* of the journal that *open_journal* gives, like :func:`export_journal`."""
    writer = _write_jsonl if file_format == JSONL else _parquet_writer()
    with open_journal() as journal, write_atomically(file, "export") as partial:
        head = journal.head
        writer(journal, _told(journal.rows(after_seq), head.seq - after_seq, progress), after_seq, partial)
    return Exported(journal.ledger_id, journal.epochs.current, head.seq - after_seq, after_seq, head.seq, head.hash)


def _told(rows: Iterator[JournalRow], entries: int, progress: Progress) -> Iterator[JournalRow]:
    for done, row in enumerate(rows, 1):
        yield row
        if done % PROGRESS_ENTRIES == 0 or done == entries:
            progress(done, entries)


def _write_jsonl(journal: JournalReader, rows: Iterator[JournalRow], after_seq: int, file: Path) -> None:
    """Write each body as it is stored, with the hash as one more member at its end: without it, it can be hashed."""
    with file.open("wb") as opened:
        for row in rows:
            opened.write(b'%s,"hash":"%s"}\n' % (row.body[:-1], row.hash.hex().encode()))


def _parquet_writer() -> Callable[[JournalReader, Iterator[JournalRow], int, Path], None]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise SettingInvalid(
            "Parquet is written by pyarrow, which is not installed; install spotledger[parquet], or export as jsonl."
        ) from None

    def write(journal: JournalReader, rows: Iterator[JournalRow], after_seq: int, file: Path) -> None:
        facts = {"ledger_id": journal.ledger_id, "epoch": journal.epochs.current, "after_seq": after_seq}
        facts |= {"seq": journal.head.seq, "hash": journal.head.hash.hex()}
        schema = _schema(arrow).with_metadata({f"spotledger.{name}": str(value) for name, value in facts.items()})
        with file.open("wb") as opened, parquet.ParquetWriter(opened, schema, compression="zstd") as writer:
            for group in _groups(_lines(rows, journal.scales(after_seq))):
                columns = [arrow.array(column, field.type) for column, field in zip(group, schema, strict=True)]
                writer.write_table(arrow.Table.from_arrays(columns, schema=schema))

    return write


def _schema(arrow: Any) -> Any:
    """Return the columns of a Parquet file: those of an entry, then those of its posting."""
    name, units = arrow.dictionary(arrow.int32(), arrow.string()), arrow.decimal128(UNITS_DIGITS, 0)
    columns = [
        ("seq", arrow.int64(), False),
        ("line", arrow.int32(), False),  # the posting's place in its entry, from 0
        ("kind", name, False),
        ("key", arrow.string(), False),
        ("booked_ms", arrow.int64(), False),
        ("happened_ms", arrow.int64(), True),
        ("reference", arrow.string(), True),
        ("customer", arrow.string(), False),
        ("account", name, False),
        ("coin", name, False),
        ("scale", arrow.int8(), False),
        ("side", name, False),
        ("units", units, False),
        ("after", units, False),  # the balance of this side after the posting
        ("hold", arrow.int64(), True),
    ]
    return arrow.schema([arrow.field(*column) for column in columns])


Line = tuple[Any, ...]


def _lines(rows: Iterator[JournalRow], scales: dict[str, int]) -> Iterator[Line]:
    """Give the postings of *rows*; *scales* are those of the coins listed before them, and are brought up to date."""
    for row in rows:
        entry = decode_entry(row.body)
        if entry.kind == ListCoin.kind and entry.refusal is None:
            scales[entry.request["coin"]] = entry.request["scale"]
        after = entry.posting_balances()
        for number, posting in enumerate(entry.postings):
            yield _line(entry, number, posting, after[number], scales[posting.coin])


def _line(entry: Entry, number: int, posting: Posting, after: int, scale: int) -> Line:
    (customer, account), coin, side, units, hold = posting
    return (
        entry.seq,
        number,
        entry.kind,
        entry.key,
        entry.booked_ms,
        entry.happened_ms,
        entry.request.get("reference"),
        customer,
        account,
        coin,
        scale,
        side,
        Decimal(units),
        Decimal(after),
        hold,
    )


def _groups(lines: Iterator[Line]) -> Iterator[list[tuple[Any, ...]]]:
    """Give the columns of each row group."""
    group: list[Line] = []
    for line in lines:
        group.append(line)
        if len(group) == GROUP_ROWS:
            yield list(zip(*group, strict=True))
            group.clear()
    if group:
        yield list(zip(*group, strict=True))
