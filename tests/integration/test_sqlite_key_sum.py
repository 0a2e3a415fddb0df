"""Pages of ``keys.db`` whose checksums are right and whose place or time is wrong: nothing is read from them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.errors import LedgerCorrupt
from spotledger.security.access_keys import KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import Tokens
from support_core import Clock, raw

PAGE = 4096
CIPHER = Cipher(bytes(32))
#: So many that the table and its index have several pages.
KEYS = 60


def _ring(ledger: Any) -> KeyRing:
    return KeyRing(ledger.key_tables.access_keys, CIPHER, Clock())


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[str]]:
    """Make a closed ledger with access keys and tokens; return its folder and the keys."""
    with spotledger.open(tmp_path / "ledger") as ledger:
        ring, tokens = _ring(ledger), Tokens(ledger.key_tables.tokens, Clock())
        keys = [ring.create(f"customer-{number:02}", ["read"], "x" * 80)[0] for number in range(KEYS)]
        for number in range(KEYS):
            tokens.create(["admin"], f"token {number} {'y' * 80}")
    return tmp_path / "ledger", keys


def _pages(content: bytes) -> list[bytes]:
    return [content[start : start + PAGE] for start in range(0, len(content), PAGE)]


def _ask_everything(ledger: Any, keys: list[str]) -> list[Callable[[], Any]]:
    tables = ledger.key_tables
    reads = [lambda key=key: tables.access_keys.get(key) for key in (*keys, "00000000-0000-4000-8000-000000000000")]
    more: list[Callable[[], Any]] = [
        lambda: tables.access_keys.list(None, "", 1000),
        lambda: tables.access_keys.list("customer-07", "", 1000),
        lambda: tables.tokens.list("", 1000),
        lambda: tables.tokens.by_digest(bytes(32)),
        lambda: tables.access_keys.revoke(keys[0], 1),
    ]
    return [*reads, *more]


def _assert_all_refused(folder: Path, keys: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with spotledger.open(folder) as ledger:
        for ask in _ask_everything(ledger, keys):
            with pytest.raises(LedgerCorrupt, match=r"keys\.db cannot be read"):
                ask()
        assert ledger.list_coin("btc", 8, key="list").seq == 1, "the journal is not in doubt"
    assert [record.levelname for record in caplog.records if "keys.db" in record.getMessage()] == ["ERROR"]


def test_page_set_back_does_not_bring_a_revoked_key_back_to_life(
    made: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    """A lost write of the page with the revocation: the key is not accepted, whatever the counter of changes says."""
    folder, keys = made
    before = (folder / "keys.db").read_bytes()
    with spotledger.open(folder) as ledger:
        _ring(ledger).revoke(keys[7])
    after = (folder / "keys.db").read_bytes()
    changed = [number for number, page in enumerate(_pages(before)) if page != _pages(after)[number]]
    with raw(folder, "keys.db") as connection:
        [(counter,)] = connection.execute("SELECT rootpage - 1 FROM sqlite_schema WHERE name = 'keys_of'").fetchall()
    set_back = [number for number in changed if number not in (0, counter)]
    assert set_back
    pages = _pages(after)
    for number in set_back:
        pages[number] = _pages(before)[number]
    (folder / "keys.db").write_bytes(b"".join(pages))
    _assert_all_refused(folder, keys, caplog)


def test_pages_swapped_hide_no_key(made: tuple[Path, list[str]], caplog: pytest.LogCaptureFixture) -> None:
    """Two leaves of one tree swapped: a key that SQLite would not find is not taken for one that never was."""
    folder, keys = made
    pages = _pages((folder / "keys.db").read_bytes())
    kinds: dict[int, list[int]] = {}
    for number, page in enumerate(pages[1:], 1):
        kinds.setdefault(page[0], []).append(number)
    leaves = max(kinds.values(), key=len)
    pages[leaves[0]], pages[leaves[-1]] = pages[leaves[-1]], pages[leaves[0]]
    (folder / "keys.db").write_bytes(b"".join(pages))
    _assert_all_refused(folder, keys, caplog)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM access_keys WHERE customer = 'customer-03'",
        "UPDATE access_keys SET permissions = '[\"read\", \"withdraw\"]' WHERE customer = 'customer-03'",
        "UPDATE operator_tokens SET revoked_ms = NULL, scopes = '[\"admin\"]', label = 'mine'",
        "INSERT INTO kept_key_requests VALUES ('k', '{}', '{}')",
        "UPDATE keys_of SET digest = x'00'",
        "UPDATE keys_of SET rows = rows + 1",
        "DELETE FROM keys_of",
    ],
)
def test_row_changed_past_the_service_is_refused(made: tuple[Path, list[str]], statement: str) -> None:
    """Somebody with a shell gave a key more rights, or took one away: nothing is read, and the message says so."""
    folder, keys = made
    with raw(folder, "keys.db") as connection:
        connection.execute(statement)
    if statement.startswith("DELETE FROM keys_of"):
        with pytest.raises(LedgerCorrupt, match="does not say which ledger"):
            spotledger.open(folder)
        return
    with spotledger.open(folder) as ledger, pytest.raises(LedgerCorrupt, match="not as they were written last"):
        ledger.key_tables.access_keys.get(keys[0])


def test_sum_follows_every_write(made: tuple[Path, list[str]]) -> None:
    """Keys made, used, rotated, revoked, in one transaction or rolled back: after each start all of it checks."""
    folder, keys = made
    for number in range(3):
        with spotledger.open(folder) as ledger:
            ring, tokens = _ring(ledger), Tokens(ledger.key_tables.tokens, Clock())
            ring.rotate(keys[number])
            ring.revoke(keys[number + 10])
            ledger.key_tables.access_keys.note_used({keys[20]: 5 + number, "unknown": 1})
            ledger.key_tables.kept_requests.keep(f"once-{number}", "{}", "{}")
            ledger.key_tables.master_key_fingerprint = f"fingerprint {number}"
            with suppress(RuntimeError), ledger.key_tables.together():
                tokens.create(["admin"], "rolled back")
                raise RuntimeError
            assert len(tokens.list()) == KEYS + number
            with ledger.key_tables.together():
                tokens.create(["admin"], "together")
                ring.create("ann", ["read"])
            assert len(ring.list()) == KEYS + 2 * (number + 1)
