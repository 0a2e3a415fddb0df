"""Copying an embedded ledger into PostgreSQL: all of it, once, and refused or gone on with where it was broken off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

import spotledger
from spotledger.archive.copying import copy_ledger
from spotledger.domain.operations import Deposit
from spotledger.errors import LedgerCorrupt, SchemaMismatch, SetupError
from spotledger.ops.runtime import claim_folder, open_runtime
from spotledger.ops.settings import ServerUrl, Settings
from spotledger.storage.encoding import decode_entry
from spotledger.storage.postgres.schema import make_ready
from support_archive import MASTER_KEY, filled, write_some
from support_core import past_triggers, raw

ENVIRON = {"SPOTLEDGER_MASTER_KEY": MASTER_KEY}


class BrokenOff(Exception):
    """What a test raises in the middle of a copy, as a kill would end it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a data folder with a ledger of several segments, access keys, one of them revoked, and a token."""
    data = tmp_path / "data"
    filled(data, entries=4_000).close()
    with claim_folder(data) as lock, open_runtime(Settings(data=data), ENVIRON, lock) as runtime:
        ring = runtime.key_ring
        runtime.access_key_writes.once("key-1", {"op": "x"}, lambda: {"accesskey": ring.create("c1", ["read"])[0]})
        dead, _ = ring.create("c2", ["read", "trade"], "bot", ["10.0.0.0/8"])
        ring.revoke(dead)
    return data


def rows(source: Path | str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement, of the ledger file or of the database."""
    if isinstance(source, str):
        with psycopg.connect(source) as connection:
            return connection.execute(statement).fetchall()
    with raw(source) as file:
        found: list[tuple[Any, ...]] = file.execute(statement).fetchall()
        return found


def test_copy_has_the_same_journal_byte_for_byte(folder: Path, postgres_url: str) -> None:
    """Id, bodies and hashes are those of the file, and the audits of both sides agree."""
    done = copy_ledger(folder, postgres_url)
    journal = "SELECT seq, body, hash FROM entry ORDER BY seq"
    assert rows(postgres_url, journal) == rows(folder, journal)
    assert done.entries == done.head.seq == len(rows(folder, journal))
    with spotledger.open(folder) as ours, spotledger.open(postgres_url) as theirs:
        assert theirs.ledger_id == ours.ledger_id == done.ledger_id
        assert theirs.head == ours.head == done.head
        assert theirs.trial_balance() == ours.trial_balance()
        assert theirs.customers() == ours.customers()
        for customer in ours.customers():
            assert theirs.holds(customer) == ours.holds(customer)
            assert theirs.statement(customer) == ours.statement(customer)


def test_copy_brings_keys_and_tokens_along(folder: Path, postgres_url: str) -> None:
    """Access keys work as before, revoked ones stay revoked, kept requests answer again, the token lets in."""
    done = copy_ledger(folder, postgres_url)
    assert (done.access_keys, done.tokens) == (2, 1)
    settings = Settings(data=folder, database=ServerUrl(postgres_url))
    with claim_folder(folder) as lock, open_runtime(settings, ENVIRON, lock) as runtime:
        records = {record.customer: record for record in runtime.key_ring.list()}
        alive, dead = (runtime.key_ring.ready(records[name].accesskey) for name in ("c1", "c2"))
        assert alive is not None
        assert dead is not None
        assert (alive.revoked, dead.revoked) == (False, True)
        assert (records["c2"].addresses, records["c2"].label) == (("10.0.0.0/8",), "bot")
        again = runtime.access_key_writes.once("key-1", {"op": "x"}, dict)
        assert (again.replayed, again.answer["accesskey"]) == (True, records["c1"].accesskey)
        assert runtime.tokens.find((folder / "operator.token").read_text().strip()) is not None


def test_copy_that_was_broken_off_keeps_nodes_out_and_goes_on(folder: Path, postgres_url: str) -> None:
    """Half of a ledger is served by nobody; the same command writes what is missing and nothing twice."""
    steps: list[int] = []

    def break_off(what: str, done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            raise BrokenOff

    with pytest.raises(BrokenOff):
        copy_ledger(folder, postgres_url, break_off)
    with pytest.raises(SetupError, match="run the same spotledger copy again"):
        make_ready(postgres_url)
    with pytest.raises(SetupError, match="the copy has not ended"):
        spotledger.open(postgres_url)
    done = copy_ledger(folder, postgres_url)
    assert done.entries == done.head.seq - steps[1] > 0
    make_ready(postgres_url)
    assert rows(postgres_url, "SELECT seq, hash FROM journal_head") == rows(folder, "SELECT seq, hash FROM head")


def test_copy_that_was_broken_off_before_the_keys_ends_with_them(folder: Path, postgres_url: str) -> None:
    """Broken off in the audits, the copy still lacks its keys; the next run brings them, once."""

    def break_off(what: str, done: int, total: int) -> None:
        if what == "audit of the file":
            raise BrokenOff

    with pytest.raises(BrokenOff):
        copy_ledger(folder, postgres_url, break_off)
    assert rows(postgres_url, "SELECT count(*) FROM access_keys") == [(0,)]
    done = copy_ledger(folder, postgres_url)
    assert (done.entries, done.access_keys) == (0, 2)


def test_copy_into_a_database_with_a_ledger_is_refused(folder: Path, postgres_url: str) -> None:
    """A ledger that is there is never written into, be it another one or a copy that is done."""
    with spotledger.open(postgres_url) as ledger:
        theirs = ledger.ledger_id
    with pytest.raises(SchemaMismatch, match=f"has a ledger: {theirs}, at entry 0"):
        copy_ledger(folder, postgres_url)


def test_copy_a_second_time_is_refused(folder: Path, postgres_url: str) -> None:
    """A copy that is done is a ledger of its own; doing it again changes nothing."""
    done = copy_ledger(folder, postgres_url)
    with pytest.raises(SchemaMismatch, match=f"at entry {done.head.seq}"):
        copy_ledger(folder, postgres_url)
    with spotledger.open(postgres_url) as ledger:
        assert ledger.head == done.head


def test_copy_of_a_ledger_that_went_on_meanwhile_is_refused(folder: Path, postgres_url: str) -> None:
    """Half of a copy goes on only with the very ledger that it was begun with."""

    def break_off(what: str, done: int, total: int) -> None:
        raise BrokenOff

    with pytest.raises(BrokenOff):
        copy_ledger(folder, postgres_url, break_off)
    with spotledger.open(folder) as ledger:
        write_some(ledger, "later", 0, 4)
    with pytest.raises(SchemaMismatch, match="Another ledger was being copied"):
        copy_ledger(folder, postgres_url)


def test_copy_of_a_damaged_ledger_is_refused_and_served_by_nobody(folder: Path, postgres_url: str) -> None:
    """An entry that was changed breaks the chain: the copy stops before it, and its mark stays."""
    with raw(folder) as file:
        past_triggers(file, "UPDATE entry SET body = replace(body, '2', '3') WHERE seq = 3000")
    with pytest.raises(LedgerCorrupt, match="broken at entry 3000"):
        copy_ledger(folder, postgres_url)
    with pytest.raises(SetupError):
        make_ready(postgres_url)


def test_copy_of_what_was_set_back_is_refused(folder: Path, postgres_url: str) -> None:
    """A journal, or a file of access keys, that lacks what was noted as acknowledged is copied nowhere."""
    kept = {name: (folder / name).read_bytes() for name in ("journal.db", "keys.db", "noted-head")}
    with spotledger.open(folder) as ledger:
        write_some(ledger, "later", 0, 4)
    later = (folder / "journal.db").read_bytes()
    (folder / "journal.db").write_bytes(kept["journal.db"])
    with pytest.raises(LedgerCorrupt, match="was acknowledged"):
        copy_ledger(folder, postgres_url)
    (folder / "journal.db").write_bytes(later)
    with raw(folder, "keys.db") as file:
        file.execute("UPDATE keys_of SET change = change - 1")
    with pytest.raises((SetupError, LedgerCorrupt), match=r"access_keys_behind|come back to life"):
        copy_ledger(folder, postgres_url)
    with pytest.raises(SetupError, match="run the same spotledger copy again"):
        make_ready(postgres_url)


def test_copied_ledger_goes_on_where_it_was(folder: Path, postgres_url: str) -> None:
    """The next entry follows the last one copied; a key that was used before the copy is answered as it was."""
    done = copy_ledger(folder, postgres_url)
    with spotledger.open(postgres_url) as ledger:
        known, new = ledger.execute([Deposit("first-0", "c0", "usdt", "2"), Deposit("new", "c0", "usdt", "2")])
        assert getattr(known, "replayed", None) is True
        assert getattr(new, "seq", None) == done.head.seq + 1
    last = rows(postgres_url, f"SELECT body FROM entry WHERE seq = {done.head.seq + 1}")
    assert decode_entry(last[0][0]).key == "new"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE balance SET available = available + 1 WHERE customer = 'c3' AND coin = 'usdt'", "balances"),
        ("DELETE FROM open_hold WHERE hold_id = (SELECT min(hold_id) FROM open_hold)", "open holds"),
    ],
)
def test_copy_that_differs_from_its_journal_is_not_given_free(
    folder: Path, postgres_url: str, damage: str, said: str
) -> None:
    """Where the tables of the database are not what the journal says, the mark stays and no node starts."""

    def break_off(what: str, done: int, total: int) -> None:
        if what == "audit of the file":
            raise BrokenOff

    with pytest.raises(BrokenOff):
        copy_ledger(folder, postgres_url, break_off)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(damage.encode())
    with pytest.raises(
        LedgerCorrupt, match=f"the {said} in the database are not those that the journal says: 1 differ"
    ):
        copy_ledger(folder, postgres_url)
    with pytest.raises(SetupError):
        make_ready(postgres_url)
