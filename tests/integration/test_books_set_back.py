"""Pages of the books that are whole and older than the rest: lost writes, which no checksum of a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from spotledger.domain.operations import HoldKey
from spotledger.errors import StoreUnavailable
from spotledger.ledger.ledger import Ledger
from support_books import check_books
from support_core import fill, open_small, raw, seed, spot

PAGE = 4096


def _book(ledger: Ledger, prefix: str) -> None:
    """Move balances and holds of both customers, and fill segments, so that all of it is sealed."""
    for customer in ("ann", "bob"):
        ledger.deposit(customer, "btc", "7", key=f"{prefix}in:{customer}")
        ledger.freeze(customer, "btc", "2", key=f"{prefix}hold:{customer}")
    ledger.unfreeze(HoldKey(f"{prefix}hold:ann"), "1", key=f"{prefix}part")
    fill(ledger, 17, prefix)


@pytest.fixture
def early_and_late(tmp_path: Path) -> tuple[Path, bytes]:
    """Make a closed ledger; return its folder, and its books as they were some segments earlier."""
    folder = tmp_path / "ledger"
    with open_small(folder) as ledger:
        seed(ledger)
        _book(ledger, "early:")
    early = (folder / "books.db").read_bytes()
    with open_small(folder) as ledger:
        _book(ledger, "late:")
    return folder, early


def _set_back(folder: Path, early: bytes, *tables: str) -> None:
    """Set the pages of *tables*, which have one each, back to what they were."""
    with raw(folder, "books.db") as connection:
        rows = connection.execute("SELECT name, rootpage FROM sqlite_schema").fetchall()
    content, roots = bytearray((folder / "books.db").read_bytes()), dict(rows)
    for table in tables:
        start = (roots[table] - 1) * PAGE
        assert content[start] in (10, 13), "a leaf"
        assert content[start : start + PAGE] != early[start : start + PAGE]
        content[start : start + PAGE] = early[start : start + PAGE]
    (folder / "books.db").write_bytes(content)


@pytest.mark.parametrize(
    "tables",
    [
        ("balance",),
        ("owner_bucket",),
        ("balance", "owner_bucket"),
        ("balance", "owner_bucket", "books"),
        ("hold",),
        ("hold", "hold_bucket"),
        ("hold", "hold_bucket", "hold_open", "hold_age"),
        ("books",),
    ],
)
def test_tables_set_back_together_are_made_again(early_and_late: tuple[Path, bytes], tables: tuple[str, ...]) -> None:
    """An older balance with the older sum of its bucket is not believed: every answer is that of the journal."""
    folder, early = early_and_late
    with open_small(folder) as ledger:
        expected = [ledger.balances(spot("ann")), ledger.holds("ann"), ledger.hold(7), ledger.trial_balance()]
    _set_back(folder, early, *tables)
    with open_small(folder) as ledger:
        found = [ledger.balances(spot("ann")), ledger.holds("ann"), ledger.hold(7)]
        assert ledger._store.repairs, tables  # type: ignore[attr-defined]
        assert [*found, ledger.trial_balance()] == expected
        fill(ledger, 9, "more")
    check_books(folder)


def test_trial_balance_of_balances_set_back_is_refused_until_the_books_are_made_again(tmp_path: Path) -> None:
    """It reads all balances past those that were asked for; what does not add up is named, and mended."""
    folder = tmp_path / "ledger"
    with open_small(folder) as ledger:
        seed(ledger)
        _book(ledger, "early:")
        expected = ledger.trial_balance()
        with raw(folder, "books.db") as connection:
            connection.execute("UPDATE balance SET available = available - 1 WHERE customer = 'bob'")
        with pytest.raises(StoreUnavailable, match="made again"):
            ledger.trial_balance()
        assert ledger.has_customer("bob")
        assert ledger.trial_balance() == expected
        assert ledger._store.repairs  # type: ignore[attr-defined]
    check_books(folder)


@pytest.mark.parametrize("change", ["available = 'many'", "bucket = bucket + 1", "coin = 'eth'"])
def test_trial_balance_of_a_balance_that_is_none_is_refused(tmp_path: Path, change: str) -> None:
    """A row that cannot be read is damage, not an error of Python."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 9)
        with raw(tmp_path, "books.db") as connection:
            connection.execute(f"UPDATE balance SET {change} WHERE customer = 'bob'")
        with pytest.raises(StoreUnavailable, match="made again"):
            ledger.trial_balance()


@pytest.mark.parametrize("table", ["key_filter", "key_filter_page"])
def test_start_with_a_damaged_page_of_the_filter_makes_the_books_again(tmp_path: Path, table: str) -> None:
    """A flipped bit in a page of the filter of known keys is found at the start, and no key is taken twice."""
    with open_small(tmp_path) as ledger:
        seed(ledger)
        fill(ledger, 40)
        head = ledger.head
    with raw(tmp_path, "books.db") as connection:
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
    with (tmp_path / "books.db").open("r+b") as file:
        file.seek((root - 1) * PAGE + 2000)
        file.write(b"\x55")
    with open_small(tmp_path) as ledger:
        assert ledger._store.repairs  # type: ignore[attr-defined]
        assert ledger.deposit("ann", "btc", "0.00000001", key="fill:3").replayed
        assert ledger.head == head
    check_books(tmp_path)
