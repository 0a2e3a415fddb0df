"""The journal as JSON lines and as Parquet, compared with the ledger file to the unit."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.archive import exports
from spotledger.archive.exports import export_journal
from spotledger.domain.accounts import Account
from spotledger.errors import DataFolderUnusable, InvalidRequest, LedgerCorrupt, SettingInvalid, StoreUnavailable
from support_archive import Writing, disk_of, filled, flip_bit, write_some
from support_core import past_triggers, raw

parquet = importlib.import_module("pyarrow.parquet")


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with some entries, whose @external has far more than 64 bits of shib."""
    folder = tmp_path_factory.mktemp("books") / "data"
    filled(folder, entries=600).close()
    return folder


def stored(folder: Path) -> list[tuple[int, str, bytes]]:
    """Read the journal as it is in the file."""
    with raw(folder) as connection:
        found: list[tuple[int, str, bytes]] = connection.execute(
            "SELECT seq, body, hash FROM entry ORDER BY seq"
        ).fetchall()
    return found


def postings(folder: Path, after_seq: int = 0) -> list[tuple[Any, ...]]:
    """Derive from the file what a Parquet export has to hold, with nothing of our own code."""
    found, scales = [], {}
    for seq, body, _ in stored(folder):
        entry = json.loads(body)
        if entry["kind"] == "list_coin":
            scales[entry["request"]["coin"]] = entry["request"]["scale"]
        lines = entry.get("postings", []) if seq > after_seq else []
        for line, (place, side, units, *hold) in enumerate(lines):
            (customer, account), coin = entry["balances"][place][:2]
            name = (customer, account, coin, scales[coin], side)
            rest = (int(units), hold[0] if hold else None)
            found.append((seq, line, entry["kind"], entry["key"], entry["booked_ms"], *name, *rest))
    return found


def rows_of(file: Path) -> list[tuple[Any, ...]]:
    """Read a Parquet export as the same rows."""
    names = ["seq", "line", "kind", "key", "booked_ms", "customer", "account", "coin", "scale", "side", "units", "hold"]
    rows = parquet.read_table(file).to_pylist()
    return [tuple(int(row[name]) if name == "units" else row[name] for name in names) for row in rows]


def test_jsonl_is_the_journal_and_its_chain_can_be_checked_from_it(tmp_path: Path, books: Path) -> None:
    """Each line without its hash is the stored body, byte for byte, and hashing them in order gives the hashes."""
    done = export_journal(books, tmp_path / "journal.jsonl", "jsonl")
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines()
    link = hashlib.sha256(b"spotledger ledger " + done.ledger_id.encode()).digest()
    for line, (seq, body, kept) in zip(lines, stored(books), strict=True):
        document = json.loads(line)
        assert document["seq"] == seq
        bare = line[: line.rindex(b',"hash"')] + b"}"
        assert bare == body.encode()
        link = hashlib.sha256(link + bare).digest()
        assert document["hash"] == kept.hex() == link.hex()
    assert (done.entries, done.seq, done.hash) == (len(lines), len(lines), link)


def test_parquet_is_the_postings_to_the_unit(tmp_path: Path, books: Path) -> None:
    """Every posting is a row with its exact units, far beyond 64 bits, and the balance after it."""
    done = export_journal(books, tmp_path / "journal.parquet", "parquet")
    assert rows_of(tmp_path / "journal.parquet") == postings(books)
    table = parquet.read_table(tmp_path / "journal.parquet")
    assert min(table["after"].to_pylist()) < -(2**64)
    assert str(table.schema.field("units").type) == "decimal128(38, 0)"
    with spotledger.open(books) as ledger:
        last = {}
        for row in table.to_pylist():
            last[row["customer"], row["account"], row["coin"], row["side"]] = int(row["after"])
        for (customer, account, coin, side), after in last.items():
            balance = ledger.balances(Account(customer, account))[coin]
            assert getattr(balance, side) == after
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert facts["spotledger.seq"] == str(done.seq)
    assert facts["spotledger.hash"] == done.hash.hex()
    assert facts["spotledger.epoch"] == "1"


@pytest.mark.parametrize("after_seq", [1, 2, 64, 100, 130])
def test_exports_after_an_entry_continue_where_an_earlier_one_ended(
    tmp_path: Path, books: Path, after_seq: int
) -> None:
    """An export after an entry has exactly what follows, with the scales of coins that were listed before it."""
    export_journal(books, tmp_path / "rest.jsonl", "jsonl", after_seq)
    first = json.loads((tmp_path / "rest.jsonl").read_bytes().splitlines()[0])
    assert first["seq"] == after_seq + 1
    export_journal(books, tmp_path / "rest.parquet", "parquet", after_seq)
    assert rows_of(tmp_path / "rest.parquet") == postings(books, after_seq)


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_from_the_head_are_empty_and_beyond_it_refused(tmp_path: Path, books: Path, file_format: str) -> None:
    """Nothing new is an empty file that can be read; a position that is not there yet is refused."""
    head = len(stored(books))
    done = export_journal(books, tmp_path / "none", file_format, head)
    assert (done.entries, done.seq) == (0, head)
    assert file_format == "jsonl" or rows_of(tmp_path / "none") == []
    with pytest.raises(InvalidRequest, match="after_seq"):
        export_journal(books, tmp_path / "beyond", file_format, head + 1)
    assert not (tmp_path / "beyond").exists()


def test_parquet_in_many_row_groups_is_the_same(tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are written group by group, so memory does not grow with the journal."""
    monkeypatch.setattr(exports, "GROUP_ROWS", 100)
    export_journal(books, tmp_path / "journal.parquet", "parquet")
    assert parquet.ParquetFile(tmp_path / "journal.parquet").num_row_groups == -(-len(postings(books)) // 100)
    assert rows_of(tmp_path / "journal.parquet") == postings(books)


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_beside_a_writer_end_at_the_head_of_their_beginning(tmp_path: Path, file_format: str) -> None:
    """While another thread writes, an export is the journal up to the head as it was when it began."""
    with filled(tmp_path / "data") as ledger, Writing(ledger).going_on():
        before = ledger.head.seq
        done = export_journal(tmp_path / "data", tmp_path / "out", file_format)
        after = ledger.head.seq
    assert before <= done.seq <= after
    if file_format == "jsonl":
        seqs = [json.loads(line)["seq"] for line in (tmp_path / "out").read_bytes().splitlines()]
        assert seqs == list(range(1, done.seq + 1))
    else:
        assert rows_of(tmp_path / "out") == [row for row in postings(tmp_path / "data") if row[0] <= done.seq]


def test_exports_of_a_ledger_without_entries_are_empty(tmp_path: Path) -> None:
    """A ledger that was only made can be exported."""
    spotledger.open(tmp_path / "data").close()
    assert export_journal(tmp_path / "data", tmp_path / "x", "jsonl").entries == 0
    assert (tmp_path / "x").read_bytes() == b""


DAMAGES = [
    """UPDATE entry SET body = replace(body, 'booked_ms":1', 'booked_ms":2') WHERE seq = 300""",
    "UPDATE entry SET hash = zeroblob(32) WHERE seq = 300",
    "DELETE FROM entry WHERE seq = 300",
    "DELETE FROM entry WHERE seq >= 300",
]


@pytest.mark.parametrize("file_format", exports.FORMATS)
@pytest.mark.parametrize("statement", DAMAGES)
def test_exports_of_a_damaged_journal_are_refused(tmp_path: Path, file_format: str, statement: str) -> None:
    """A journal whose chain is broken is not passed on, and no file is left."""
    filled(tmp_path / "data", entries=600).close()
    with raw(tmp_path / "data") as connection:
        past_triggers(connection, statement)
    with pytest.raises(LedgerCorrupt, match=r"entry \d+"):
        export_journal(tmp_path / "data", tmp_path / "out", file_format)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_of_a_journal_that_lost_its_end_are_refused(tmp_path: Path, file_format: str) -> None:
    """A file that was set back is whole by itself; the noted head shows that acknowledged entries are missing."""
    filled(tmp_path / "data", entries=80).close()
    kept = (tmp_path / "data" / "journal.db").read_bytes()
    with spotledger.open(tmp_path / "data") as ledger:
        head = ledger.head.seq
        write_some(ledger, "later", 0, 40)
    (tmp_path / "data" / "journal.db").write_bytes(kept)
    with pytest.raises(LedgerCorrupt, match=rf"ends with entry {head}, but entry \d+ was acknowledged"):
        export_journal(tmp_path / "data", tmp_path / "out", file_format)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_of_a_journal_with_a_flipped_bit_are_refused(tmp_path: Path, file_format: str) -> None:
    """A bit that flipped in a page of entries is found by the page's checksum, and no file is left."""
    filled(tmp_path / "data", entries=600).close()
    flip_bit(tmp_path / "data" / "journal.db", 4096 * 20 + 2000)
    with pytest.raises(LedgerCorrupt, match="journal could not be read: it is damaged"):
        export_journal(tmp_path / "data", tmp_path / "out", file_format)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_exports_over_a_file_or_without_a_ledger_are_refused(tmp_path: Path, books: Path) -> None:
    """A file that is there is left as it is; a folder without a ledger is named."""
    (tmp_path / "out").write_text("precious")
    with pytest.raises(InvalidRequest, match="there already"):
        export_journal(books, tmp_path / "out", "jsonl")
    assert (tmp_path / "out").read_text() == "precious"
    with pytest.raises(DataFolderUnusable, match="no ledger"):
        export_journal(tmp_path, tmp_path / "other", "jsonl")


def test_parquet_without_the_extra_says_what_to_install(
    tmp_path: Path, books: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow is not installed, the message names the extra; JSON lines need nothing."""

    def missing(name: str) -> Callable[..., Any]:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SettingInvalid, match=r"spotledger\[parquet\]"):
        export_journal(books, tmp_path / "x", "parquet")
    assert list(tmp_path.iterdir()) == []
    assert export_journal(books, tmp_path / "x", "jsonl").entries


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 64 KiB."""
    with disk_of(tmp_path / "disk", 64) as place:
        yield place


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_exports_on_a_full_disk_say_so_and_leave_nothing(tmp_path: Path, file_format: str, small_disk: Path) -> None:
    """A disk without room for the export is named, and no part of a file is left."""
    with filled(tmp_path / "data", entries=4000) as ledger:
        write_some(ledger, "more", 0, 400)
    with pytest.raises(StoreUnavailable, match="full"):
        export_journal(tmp_path / "data", small_disk / "out", file_format)
    assert list(small_disk.iterdir()) == []
