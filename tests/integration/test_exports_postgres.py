"""The journal of a ledger on PostgreSQL as JSON lines and Parquet: the same as of the embedded one it is a copy of."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

import spotledger
from spotledger.archive import exports
from spotledger.archive.copying import copy_ledger
from spotledger.archive.exports import export_journal
from spotledger.archive.exports_postgres import export_database
from spotledger.cli.main import program
from spotledger.errors import InvalidRequest, LedgerCorrupt, SchemaMismatch, SetupError, StoreUnavailable
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.journal import PostgresJournal
from support_archive import Writing, filled, write_some
from support_core import seed

parquet = importlib.import_module("pyarrow.parquet")
READ_ONLY = "options=-c%20default_transaction_read_only%3Don"


@pytest.fixture
def books(tmp_path: Path, postgres_url: str) -> Path:
    """Give the data folder of an embedded ledger that was copied into the database."""
    folder = tmp_path / "data"
    filled(folder, entries=600).close()
    copy_ledger(folder, postgres_url)
    return folder


def read_only(url: str) -> str:
    """Return *url* with a session in which nothing can be written, as on a standby."""
    return f"{url}{'&' if '?' in url else '?'}{READ_ONLY}"


@pytest.mark.parametrize("after_seq", [0, 1, 299, 600])
def test_jsonl_of_a_copy_is_that_of_the_file_byte_for_byte(
    tmp_path: Path, books: Path, postgres_url: str, after_seq: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever store holds the journal, its lines are the same, from wherever they begin, on a standby too."""
    monkeypatch.setattr("spotledger.storage.postgres.journal.PAGE_ENTRIES", 128)
    ours = export_journal(books, tmp_path / "file", "jsonl", after_seq)
    theirs = export_database(read_only(postgres_url), tmp_path / "database", "jsonl", after_seq)
    assert theirs == ours
    assert (tmp_path / "database").read_bytes() == (tmp_path / "file").read_bytes()
    assert ours.entries == len((tmp_path / "file").read_bytes().splitlines())


@pytest.mark.parametrize("after_seq", [0, 300])
def test_parquet_of_a_copy_is_that_of_the_file(tmp_path: Path, books: Path, postgres_url: str, after_seq: int) -> None:
    """Rows, columns, scales and what the file says of itself are the same."""
    export_journal(books, tmp_path / "file", "parquet", after_seq)
    export_database(postgres_url, tmp_path / "database", "parquet", after_seq)
    tables = [parquet.read_table(tmp_path / name) for name in ("file", "database")]
    assert tables[0].num_rows > 100
    assert tables[1].schema.equals(tables[0].schema, check_metadata=True)
    assert tables[1].equals(tables[0])


def test_export_holds_no_transaction_open(
    tmp_path: Path, books: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pages the server has nothing of it under way, so it keeps nobody from tidying up."""
    monkeypatch.setattr(exports, "PROGRESS_ENTRIES", 100)
    states: list[tuple[str, str | None]] = []

    def look(done: int, entries: int) -> None:
        with psycopg.connect(postgres_url) as connection:
            states.extend(
                connection.execute(
                    "SELECT state, backend_xmin::text FROM pg_stat_activity"
                    " WHERE application_name = 'spotledger export' AND datname = current_database()"
                ).fetchall()
            )

    export_database(postgres_url, tmp_path / "out", "jsonl", progress=look)
    assert len(states) >= 6
    assert set(states) == {("idle", None)}


@pytest.mark.parametrize("file_format", exports.FORMATS)
def test_export_beside_writers_ends_at_the_head_of_its_beginning(
    tmp_path: Path, postgres_url: str, file_format: str
) -> None:
    """While a node writes, an export is the journal up to the head as it was when it began."""
    with spotledger.open(postgres_url) as ledger:
        ledger.list_coin("usdt", 8, key="usdt")
        for number in range(10):
            ledger.register_customer(f"c{number}", key=f"c{number}")
        write_some(ledger, "some", 0, 100)
        with Writing(ledger).going_on():
            before = ledger.head.seq
            done = export_database(postgres_url, tmp_path / "out", file_format)
        after = ledger.head.seq  # once nobody writes: a node learns of its own commit after the database has it
    assert before <= done.seq <= after
    if file_format == "jsonl":
        seqs = [json.loads(line)["seq"] for line in (tmp_path / "out").read_bytes().splitlines()]
        assert seqs == list(range(1, done.seq + 1))
    else:
        assert max(parquet.read_table(tmp_path / "out")["seq"].to_pylist()) == done.seq


def test_export_knows_coins_whose_listing_is_not_sealed(postgres_url: str) -> None:
    """The scale of a coin is found wherever in the journal the coin was listed."""
    with spotledger.open(postgres_url, segment_entries=4) as ledger:
        seed(ledger, "ann")  # one sealed coin
        ledger.deposit("ann", "btc", "1", key="fills:list_coin")
        ledger.list_coin("tiny", 2, key="late")
        last = ledger.deposit("ann", "tiny", "1.25", key="d").seq
    with PostgresJournal(connect(postgres_url)) as journal:
        assert journal.scales(last) == {"btc": 8, "tiny": 2}
        assert journal.scales(last - 2) == {"btc": 8}


@contextmanager
def behind_the_triggers(url: str) -> Iterator[psycopg.Connection]:
    """Give a connection on which no trigger keeps the journal as it is."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        yield connection


DAMAGES = {
    "an entry changed": "UPDATE entry SET body = replace(body, 'booked_ms\":1', 'booked_ms\":2') WHERE seq = 300",
    "a hash changed": "UPDATE entry SET hash = decode(repeat('00', 32), 'hex') WHERE seq = 300",
    "an entry removed": "DELETE FROM entry WHERE seq = 300",
    "the sealed end cut off": "DELETE FROM entry WHERE seq >= 300",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_export_of_a_damaged_journal_is_refused(tmp_path: Path, books: Path, postgres_url: str, damage: str) -> None:
    """A journal whose chain is broken is not passed on, and no file is left."""
    with behind_the_triggers(postgres_url) as connection:
        connection.execute(DAMAGES[damage].encode())
    with pytest.raises(LedgerCorrupt):
        export_database(postgres_url, tmp_path / "out", "jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_export_without_a_whole_ledger_is_refused(tmp_path: Path, books: Path, postgres_url: str) -> None:
    """A position beyond the head, half of a copy, something else, and a server that is away are each named."""
    with pytest.raises(InvalidRequest, match="after_seq"):
        export_database(postgres_url, tmp_path / "out", "jsonl", 10_000)
    with psycopg.connect(postgres_url) as connection:
        connection.execute("INSERT INTO copy_going_on VALUES (1, 5, 'x')")
    with pytest.raises(SetupError, match="the copy has not ended"):
        export_database(postgres_url, tmp_path / "out", "jsonl")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("DROP TABLE schema_version")
    with pytest.raises(SchemaMismatch, match="something else"):
        export_database(postgres_url, tmp_path / "out", "jsonl")
    with pytest.raises(StoreUnavailable):
        export_database("postgresql://spot@127.0.0.1:1/none", tmp_path / "out", "jsonl")
    assert not (tmp_path / "out").exists()


def test_export_from_an_empty_database_makes_nothing_there(tmp_path: Path, postgres_url: str) -> None:
    """A database without a ledger is told apart from a ledger without entries, and stays empty."""
    with pytest.raises(SchemaMismatch, match="no ledger"):
        export_database(postgres_url, tmp_path / "out", "jsonl")
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_class WHERE relname = 'entry'").fetchall() == [(0,)]
    spotledger.open(postgres_url).close()
    assert export_database(postgres_url, tmp_path / "out", "jsonl").entries == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_export_by_command_reads_the_database_that_is_named(tmp_path: Path, books: Path, postgres_url: str) -> None:
    """With --database the folder is not looked at; without it, it is the folder's ledger."""

    def told(name: str, *where: str | Path) -> dict[str, object]:
        arguments = ["export", "journal", str(tmp_path / name), "--json", *map(str, where)]
        done = CliRunner().invoke(program, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        found: dict[str, object] = json.loads(done.stdout)
        return {**found, "file": ""}

    assert told("a", "--database", postgres_url, "--data", tmp_path / "none") == told("b", "--data", books)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
