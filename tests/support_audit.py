"""What the tests of the audit share: a ledger with every kind of entry, and ways to damage its file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spotledger.audit.embedded import audit_file
from spotledger.audit.report import Report
from spotledger.domain.operations import CoinAmount, HoldKey, SettleSide, Withdraw
from spotledger.errors import Refused
from spotledger.ledger.ledger import Ledger
from support_core import Clock, open_small, without_triggers


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
        lambda: ledger.deposit("nobody", "btc", "1", key=key("r2")),
        lambda: ledger.deposit("ann", "eth", "1", key=key("r3")),
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
    return audit_file(folder / "ledger.db", **options)


@contextmanager
def damaging(folder: Path) -> Iterator[Damage]:
    """Let a test change what it likes in the file; the triggers are there again afterwards."""
    connection = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    try:
        triggers = connection.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        without_triggers(connection)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        yield Damage(connection)
        for (sql,) in triggers:
            connection.execute(sql)
    finally:
        connection.close()


class Damage:
    """Ways to change a ledger file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sql = connection.execute

    def one(self, query: str, *values: Any) -> Any:
        """Return the first column of the first row."""
        return self.sql(query, values).fetchone()[0]

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
        """Make the chain fit the entries as they are, and the head the last of them."""
        link = hashlib.sha256(b"spotledger ledger " + self.one("SELECT ledger_id FROM ledger").encode()).digest()
        seq, booked_ms = 0, 0
        for seq, body in self.sql("SELECT seq, body FROM entry ORDER BY seq").fetchall():
            link = hashlib.sha256(link + body.encode()).digest()
            self.sql("UPDATE entry SET hash = ? WHERE seq = ?", (link, seq))
            booked_ms = json.loads(body)["booked_ms"]
        self.sql("UPDATE head SET seq = ?, hash = ?, booked_ms = ?", (seq, link, booked_ms))

    def remove(self, seq: int) -> None:
        """Take an entry out and move those after it up, in their rows and in what they say."""
        self.sql("DELETE FROM entry WHERE seq = ?", (seq,))
        for later, body in self.sql("SELECT seq, body FROM entry WHERE seq > ? ORDER BY seq", (seq,)).fetchall():
            entry = json.loads(body)
            entry["seq"] = later - 1
            self.sql("UPDATE entry SET seq = ?, body = ? WHERE seq = ?", (later - 1, json.dumps(entry), later))


def copy_of(folder: Path, target: Path) -> Path:
    """Copy a ledger that nobody has open."""
    target.mkdir()
    shutil.copy(folder / "ledger.db", target / "ledger.db")
    return target
