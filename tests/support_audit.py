"""What the tests of the audit share: a ledger with every kind of entry, and ways to damage its file."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from spotledger.audit.embedded import audit_file
from spotledger.audit.report import Report
from spotledger.domain.operations import CoinAmount, HoldKey, SettleSide, Withdraw
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger
from spotledger.storage.sqlite.books import BALANCE_COLUMNS, HOLD_COLUMNS
from spotledger.storage.sqlite.buckets import (
    OF_KEYS,
    OF_REFERENCES,
    HistoryLine,
    HoldsOpened,
    RowSum,
    pack_digests,
    pack_history,
    sum_of,
    unpack_digests,
    unpack_history,
)
from spotledger.storage.sqlite.noted_head import NOTE_FILE, NotedHead
from support_core import Clock, open_small, raw, without_triggers

#: The files of a ledger that nobody has open.
FILES = ("journal.db", "books.db", "keys.db", "noted-head")


def every_kind(ledger: Ledger, clock: Clock, prefix: str = "") -> None:
    """Book entries of every kind, kept refusals among them; a second time with another *prefix*."""

    def key(name: str) -> str:
        return f"{prefix}{name}"

    if not prefix:
        ledger.list_coin("btc", 8, key="list:btc")
        ledger.list_coin("usdt", 18, key="list:usdt")
        for customer in ("ann", "bob", "cid"):
            ledger.register_customer(customer, key=f"register:{customer}")
    ledger.deposit("ann", "btc", "1000", key=key("d1"), reference="block 7", happened_ms=clock.now_ms - 1)
    ledger.deposit("bob", "usdt", "500000000", key=key("d2"))
    ledger.deposit("cid", "btc", "5", key=key("d3"), account="wallet")
    ledger.transfer("cid", "cid", "btc", "1", key=key("t1"), from_account="wallet")
    transferred = ledger.transfer("ann", "bob", "btc", "2", key=key("t2"), reference="gift")
    clock.now_ms += 10
    sells = ledger.freeze("ann", "btc", "10", key=key("f1"), reference="order 1")
    buys = ledger.freeze("bob", "usdt", "1000", key=key("f2"), reference="order 2")
    settle = ("btc", "usdt", "1", "90.5")
    ledger.settle(
        *settle, SettleSide(HoldKey(key("f2")), CoinAmount("btc", "0.01")), SettleSide(str(sells.hold)), key=key("s1")
    )
    buyer = SettleSide(str(buys.hold), CoinAmount("usdt", "1"), "rest", CoinAmount("btc", "0.00000001"))
    settled = ledger.settle(*settle, buyer, SettleSide(str(sells.hold), CoinAmount("usdt", "2"), "3"), key=key("s2"))
    ledger.unfreeze(sells.hold or 0, "1", key=key("u1"))
    ledger.withdraw("1.5", key=key("w1"), hold=sells.hold)
    ledger.withdraw("1", key=key("w2"), customer="ann", coin="btc")
    ledger.unfreeze(HoldKey(key("f1")), key=key("u2"))
    ledger.freeze("cid", "btc", "0.5", key=key("f3"), expires_ms=clock.now_ms + 5)
    clock.now_ms += 10
    for refused in (
        lambda: ledger.freeze("ann", "btc", "100000000", key=key("r1")),
        lambda: ledger.withdraw("100000000", key=key("r2"), customer="cid", coin="btc"),
        lambda: ledger.transfer("ann", "bob", "btc", "100000000", key=key("r3")),
        lambda: ledger.withdraw("1", key=key("r4"), hold=sells.hold),
    ):
        with suppress(Refused):
            refused()
    chained = [Withdraw(key("c1"), "1", "ann", "btc"), Withdraw(key("c2"), "99999999", "ann", "btc")]
    ledger.execute(chained, atomic=True)
    ledger.reverse(transferred.seq, "a mistake", key=key("v1"))
    ledger.reverse(settled.seq, "a wrong fill", key=key("v2"))
    paid_in = ledger.deposit("cid", "btc", "7", key=key("d4"))
    ledger.withdraw("7", key=key("w3"), customer="cid", coin="btc")
    ledger.reverse(paid_in.seq, "never came", key=key("v3"))
    ledger.deposit("cid", "btc", "20", key=key("d5"))
    ledger.freeze("cid", "btc", "2", key=key("f4"), reference="stays open")


def make(folder: Path, **options: Any) -> Path:
    """Make a ledger with every kind of entry twice, and return its folder."""
    clock = Clock()
    with open_small(folder, clock, **options) as ledger:
        every_kind(ledger, clock)
        every_kind(ledger, clock, "again:")
    return folder


def audited(folder: Path, **options: Any) -> Report:
    """Audit the ledger in *folder*."""
    return audit_file(folder / "journal.db", **options)


@contextmanager
def damaging(folder: Path) -> Iterator[Damage]:
    """Let a test change what it likes in the files; page checksums stay right, and the triggers are there again."""
    with raw(folder) as connection:
        for name in ("books", "keys"):
            if (folder / f"{name}.db").exists():
                connection.execute(f"ATTACH '{folder / name}.db' AS {name}_file")
        triggers = connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        without_triggers(connection)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        yield Damage(folder, connection)
        for (sql,) in triggers:
            connection.execute(sql)


class Damage:
    """Ways to change the files of a ledger."""

    def __init__(self, folder: Path, connection: Any) -> None:
        self.folder = folder
        self.sql = connection.execute

    def one(self, query: str, *values: Any) -> Any:
        """Return the first column of the first row."""
        return self.sql(query, values).fetchone()[0]

    # --- the journal ------------------------------------------------------------------------------------

    def seq_of(self, key: str) -> int:
        """Return the entry that has *key*."""
        return int(self.one("SELECT seq FROM entry WHERE body ->> '$.key' = ?", key))

    def entry(self, seq: int) -> dict[str, Any]:
        """Return an entry."""
        return dict(json.loads(self.one("SELECT body FROM entry WHERE seq = ?", seq)))

    def put(self, seq: int, entry: dict[str, Any]) -> None:
        """Replace the body of an entry."""
        body = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        self.sql("UPDATE entry SET body = ? WHERE seq = ?", (body, seq))

    def change(self, seq: int, change: Callable[[dict[str, Any]], object]) -> None:
        """Change an entry in place."""
        entry = self.entry(seq)
        change(entry)
        self.put(seq, entry)

    def rehash(self) -> None:
        """Make the chain fit the entries as they are; head, noted head and books say that it is right."""
        link = hashlib.sha256(b"spotledger ledger " + self.one("SELECT ledger_id FROM ledger").encode()).digest()
        seq, booked_ms = 0, 0
        for seq, body in self.sql("SELECT seq, body FROM entry ORDER BY seq").fetchall():
            link = hashlib.sha256(link + body.encode()).digest()
            self.sql("UPDATE entry SET hash = ? WHERE seq = ?", (link, seq))
            booked_ms = json.loads(body)["booked_ms"]
        self.sql("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", (seq, link, booked_ms))
        self.sql("UPDATE books SET sealed_hash = coalesce((SELECT hash FROM entry WHERE seq = sealed_to), sealed_hash)")
        with closing(NotedHead(self.folder / NOTE_FILE)) as noted:
            assert noted.note is not None
            noted.write(noted.note._replace(seq=seq, hash=link))

    def remove(self, seq: int) -> None:
        """Take an entry out and move those after it up, in their rows and in what they say."""
        self.sql("DELETE FROM entry WHERE seq = ?", (seq,))
        for later, body in self.sql("SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq", (seq,)).fetchall():
            entry = json.loads(body)
            entry["seq"] = later - 1
            self.sql("UPDATE entry SET seq = ?, body = ? WHERE seq = ?", (later - 1, json.dumps(entry), later))

    # --- the books --------------------------------------------------------------------------------------

    def keys(self, bucket: int) -> list[tuple[bytes, int]]:
        """Return digest and place of the keys in a bucket."""
        return unpack_digests(OF_KEYS, bucket, self.one("SELECT packed FROM key_bucket WHERE id = ?", bucket))

    def put_keys(self, bucket: int, keys: list[tuple[bytes, int]]) -> None:
        """Replace the keys in a bucket, with a checksum that fits."""
        self.sql("INSERT OR REPLACE INTO key_bucket VALUES (?, ?)", (bucket, pack_digests(OF_KEYS, bucket, keys)))

    def bucket_with_keys(self, segment: int, table: str = "key_bucket") -> int:
        """Return a bucket of *segment* with keys, or references, in it."""
        for bucket, packed in self.sql(f"SELECT id, packed FROM {table} WHERE id / 512 = ?", (segment,)).fetchall():
            if len(packed) > 16:
                return int(bucket)
        raise AssertionError("no keys")

    def change_references(self, change: Callable[[list[tuple[bytes, int]]], list[tuple[bytes, int]]]) -> None:
        """Change a bucket of the segment 0 with references in it; its checksum fits afterwards."""
        bucket = self.bucket_with_keys(0, "reference_bucket")
        rows = unpack_digests(
            OF_REFERENCES, bucket, self.one("SELECT packed FROM reference_bucket WHERE id = ?", bucket)
        )
        packed = pack_digests(OF_REFERENCES, bucket, change(rows))
        self.sql("UPDATE reference_bucket SET packed = ? WHERE id = ?", (packed, bucket))

    def change_history(self, bucket: int, change: Callable[[list[HistoryLine], list[HoldsOpened]], object]) -> None:
        """Change lines and holds of a bucket of the history in place; its checksum fits afterwards."""
        lines, holds = unpack_history(bucket, self.one("SELECT packed FROM history_bucket WHERE id = ?", bucket))
        change(lines, holds)
        self.sql("UPDATE history_bucket SET packed = ? WHERE id = ?", (pack_history(bucket, lines, holds), bucket))

    def add_up(self) -> None:
        """Make counts and digests of the books fit the rows as they are."""
        for table, query in {
            "owner_bucket": (
                ("balance", f"SELECT {BALANCE_COLUMNS} FROM balance WHERE bucket = ?"),
                ("customer", "SELECT bucket, customer, seq FROM customer WHERE bucket = ?"),
            ),
            "hold_bucket": (("hold", f"SELECT {HOLD_COLUMNS} FROM hold WHERE hold_id / 256 = ?"),),
        }.items():
            self.sql(f"DELETE FROM {table}")
            column = "hold_id / 256" if table == "hold_bucket" else "bucket"
            source = (
                "hold" if table == "hold_bucket" else "(SELECT bucket FROM balance UNION SELECT bucket FROM customer)"
            )
            for (bucket,) in self.sql(f"SELECT DISTINCT {column} FROM {source}").fetchall():
                rows = [(name, row) for name, text in query for row in self.sql(text, (bucket,)).fetchall()]
                self.sql(f"INSERT INTO {table} VALUES (?, ?, ?)", (bucket, *sum_of(rows).kept()))
        self._add_up_small()

    def _add_up_small(self) -> None:
        sums: list[RowSum] = []
        for table, columns in (("coin", "coin, scale, seq"), ("reversal", "seq, by_seq")):
            sums.append(sum_of((table, row) for row in self.sql(f"SELECT {columns} FROM {table}").fetchall()))
        is_open = "SELECT count(*) FROM hold WHERE closed_seq IS NULL"
        counts = [
            self.one("SELECT count(*) FROM customer"),
            self.one(is_open),
            self.one(f"{is_open} AND expires_ms IS NOT NULL"),
        ]
        tables = ("owner_bucket", "hold_bucket")
        sums.append(sum_of((table, row) for table in tables for row in self.sql(f"SELECT * FROM {table}").fetchall()))
        self.sql(
            "UPDATE books SET coins = ?, coins_digest = ?, reversals = ?, reversals_digest = ?, buckets = ?,"
            " buckets_digest = ?, customers = ?, open_holds = ?, expiring_holds = ?",
            (*sums[0].kept(), *sums[1].kept(), *sums[2].kept(), *counts),
        )


def copy_of(folder: Path, target: Path) -> Path:
    """Copy a ledger that nobody has open."""
    target.mkdir()
    for name in FILES:
        shutil.copy(folder / name, target / name)
    return target
