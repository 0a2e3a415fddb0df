"""
An independent reading of a ledger: SQLite, JSON and MessagePack, none of our own code.

``check_books`` derives everything about money from the entries again and compares it with what the file says beside
them. Tests call it after every bad day.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import apsw.sqlite_extra
import msgspec

EXTERNAL = "@external"
RECEIVABLE = "@receivable:"


@dataclass
class Books:
    """What the entries of a ledger add up to."""

    head: int = 0
    keys: dict[str, int] = field(default_factory=dict)
    balances: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    holds: dict[int, dict[str, Any]] = field(default_factory=dict)
    history: dict[int, list[tuple[str, str, str, int, int]]] = field(default_factory=dict)
    references: list[tuple[str, int]] = field(default_factory=list)
    customers: dict[str, int] = field(default_factory=dict)
    overdrafts: set[str] = field(default_factory=set)
    coins: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


def check_books(folder: Path) -> Books:
    """Read the ledger in *folder*, assert that every promise about the books holds, and return what they say."""
    with opened(folder / "journal.db") as connection:
        books = _read_journal(connection)
        check_holds(books)
        size = connection.execute("SELECT segment_entries FROM ledger").fetchall()[0][0]
    with opened(folder / "books.db") as connection:
        _check_tables(connection, books, size)
    return books


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Give a plain connection to a file of the ledger; its pages are checked as they are read."""
    with closing(apsw.Connection(":memory:")) as any_connection:
        apsw.sqlite_extra.load(any_connection, "cksumvfs")
    with closing(apsw.Connection(str(file), vfs="cksmvfs")) as connection:
        connection.set_busy_timeout(5_000)
        yield connection


def _read_journal(connection: Any) -> Books:
    ledger_id = connection.execute("SELECT ledger_id FROM ledger").fetchall()[0][0]
    rows = connection.execute("SELECT seq, body, hash FROM entry ORDER BY seq")
    [head] = connection.execute("SELECT seq, hash, booked_ms FROM head").fetchall()
    return read_journal(ledger_id, rows, head)


def read_journal(
    ledger_id: str,
    rows: Iterable[tuple[int, str, bytes]],
    head: tuple[int, bytes, int],
    each: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> Books:
    """Read entries in order, assert what is promised of each and of the last, and return what they add up to."""
    books = Books()
    link = hashlib.sha256(b"spotledger ledger " + ledger_id.encode()).digest()
    booked_ms = 0
    for seq, body, kept_hash in rows:
        books.head += 1
        assert seq == books.head, f"a gap before entry {seq}"
        link = hashlib.sha256(link + body.encode()).digest()
        assert kept_hash == link, f"the chain is broken at entry {seq}"
        entry = json.loads(body)
        assert entry["seq"] == seq
        assert entry["booked_ms"] >= booked_ms, f"time falls at entry {seq}"
        booked_ms = entry["booked_ms"]
        assert entry["key"] not in books.keys, f"key {entry['key']} is taken twice"
        books.keys[entry["key"]] = seq
        if "reference" in entry["request"]:
            books.references.append((entry["request"]["reference"], seq))
        _post(books, entry)
        each(entry)
    assert head == (books.head, link, booked_ms), "the head is not the last entry"
    return books


def _post(books: Books, entry: dict[str, Any]) -> None:
    if "refusal" in entry:
        assert not entry.get("postings")
        books.refusals[entry["key"]] = entry["refusal"]["code"]
        return
    if entry["kind"] == "list_coin":
        books.coins[entry["request"]["coin"]] = entry["request"]["scale"]
    if entry["kind"] == "register_customer":
        books.customers[entry["request"]["customer"]] = entry["seq"]
    if entry["kind"] == "open_house_account":
        name = "@" + entry["request"]["name"]
        assert name not in books.customers
        books.customers[name] = entry["seq"]
        books.overdrafts |= {name} if entry["request"]["may_be_negative"] else set()
    sums: dict[str, int] = {}
    touched = {}
    for place, side, units_text, *rest in entry.get("postings", ()):
        assert place >= 0
        (customer, account), coin = entry["balances"][place][:2]
        units, hold = int(units_text), rest[0] if rest else None
        sums[coin] = sums.get(coin, 0) + units
        name = (customer, account, coin)
        balance = books.balances.setdefault(name, [0, 0])
        balance[0 if side == "available" else 1] += units
        touched[name] = balance
        if side == "freeze":
            _use_hold(books, entry, name, hold, units)
    assert not any(sums.values()), f"entry {entry['seq']} does not add up to zero"
    for name, (available, freeze) in touched.items():
        assert freeze >= 0, f"freeze below zero at entry {entry['seq']}"
        negative_allowed = name[0] == EXTERNAL or name[0].startswith(RECEIVABLE) or name[0] in books.overdrafts
        assert available >= 0 or negative_allowed, f"available below zero at entry {entry['seq']}"
    after = {(c, a, coin): [int(av), int(fr)] for (c, a), coin, av, fr in entry.get("balances", ())}
    assert after == touched, f"the balances after entry {entry['seq']} are not what its postings lead to"
    books.history[entry["seq"]] = [(*name, *balance) for name, balance in touched.items()]
    for hold, remaining in entry.get("holds", ()):
        assert books.holds[hold]["remaining"] == int(remaining)


def _use_hold(books: Books, entry: dict[str, Any], name: tuple[str, str, str], hold: int, units: int) -> None:
    if entry["kind"] == "freeze":
        assert hold == entry["seq"]
        books.holds[hold] = {"name": name, "amount": units, "remaining": units, "closed_seq": None}
        return
    found = books.holds[hold]
    assert found["name"] == name
    found["remaining"] += units
    assert found["remaining"] >= 0, f"hold {hold} is used for more than it has at entry {entry['seq']}"
    if found["remaining"] == 0:
        found["closed_seq"] = entry["seq"]


def check_holds(books: Books) -> None:
    frozen: dict[tuple[str, str, str], int] = {}
    for hold in books.holds.values():
        frozen[hold["name"]] = frozen.get(hold["name"], 0) + hold["remaining"]
    for name, (_, freeze) in books.balances.items():
        assert freeze == frozen.get(name, 0), f"freeze of {name} is not the sum of its open holds"
    sums: dict[str, int] = {}
    for (_, _, coin), (available, freeze) in books.balances.items():
        sums[coin] = sums.get(coin, 0) + available + freeze
    assert not any(sums.values()), "a coin does not add up to zero"


def _check_tables(connection: Any, books: Books, size: int) -> None:
    """Compare what is derived, up to ``sealed_to``, with the journal."""
    [(sealed_to, own_size)] = connection.execute("SELECT sealed_to, segment_entries FROM books").fetchall()
    assert own_size == size
    assert sealed_to % size == 0
    assert sealed_to <= books.head
    digests = {hashlib.blake2b(key.encode(), digest_size=16).digest(): seq for key, seq in books.keys.items()}
    found_keys = {}
    for bucket, packed in connection.execute("SELECT id, packed FROM key_bucket"):
        first, payload = bucket // 512 * size + 1, packed[16:]
        count = len(payload) // 18
        for number, seq in enumerate(_seqs_in_any_order(first, payload[16 * count :])):
            found_keys[payload[16 * number : 16 * number + 16]] = seq
    assert found_keys == {digest: seq for digest, seq in digests.items() if seq <= sealed_to}
    _check_references(connection, books, sealed_to, size)
    found: dict[int, set[tuple[str, str, str]]] = {}
    owned: set[tuple[str, int]] = set()
    for bucket, packed in connection.execute("SELECT id, packed FROM history_bucket"):
        first = bucket // 512 * size + 1
        lines, holds = msgspec.msgpack.decode(packed[16:])
        for *name, places in lines:
            for seq in _seqs(first, places):
                found.setdefault(seq, set()).add((name[0], name[1], name[2]))
        owned |= {(customer, seq) for customer, places in holds for seq in _seqs(first, places)}
    expected = {seq: {line[:3] for line in lines} for seq, lines in books.history.items() if seq <= sealed_to and lines}
    assert found == expected
    assert owned == {(hold["name"][0], seq) for seq, hold in books.holds.items() if seq <= sealed_to}
    sealed = {name for (name,) in connection.execute("SELECT customer FROM customer")}
    assert sealed == {name for name, seq in books.customers.items() if seq <= sealed_to}
    _check_balances_and_holds(connection, books, sealed_to)


def _seqs_in_any_order(first: int, places: bytes) -> list[int]:
    return [first + place for (place,) in struct.iter_unpack("<H", places)]


def _seqs(first: int, places: bytes) -> list[int]:
    """Return the entries at *places*, two bytes each and rising, of the segment that begins with *first*."""
    seqs = [first + place for (place,) in struct.iter_unpack("<H", places)]
    assert seqs == sorted(set(seqs)), "places do not rise"
    return seqs


def _check_references(connection: Any, books: Books, sealed_to: int, size: int) -> None:
    found = []
    for bucket, packed in connection.execute("SELECT id, packed FROM reference_bucket"):
        first, payload = bucket // 512 * size + 1, packed[16:]
        count = len(payload) // 18
        for number, seq in enumerate(_seqs_in_any_order(first, payload[16 * count :])):
            found.append((payload[16 * number : 16 * number + 16], seq))
    expected = [
        (hashlib.blake2b(reference.encode(), digest_size=16).digest(), seq)
        for reference, seq in books.references
        if seq <= sealed_to
    ]
    assert sorted(found) == sorted(expected)


def _check_balances_and_holds(connection: Any, books: Books, sealed_to: int) -> None:
    """Compare the tables of balances and holds, where no sealing is half done, with the journal at ``sealed_to``."""
    at_seal: dict[tuple[str, str, str], tuple[int, int]] = {}
    for seq in range(1, sealed_to + 1):
        for *name, available, freeze in books.history.get(seq, ()):
            at_seal[tuple(name)] = (available, freeze)
    rows = connection.execute('SELECT customer, account, coin, available, "freeze" FROM balance')
    assert {(c, a, coin): (int(av), int(fr)) for c, a, coin, av, fr in rows} == at_seal
    held: dict[tuple[str, str, str], int] = {}
    for customer, account, coin, remaining in connection.execute(
        "SELECT customer, account, coin, remaining FROM hold WHERE closed_seq IS NULL"
    ):
        held[customer, account, coin] = held.get((customer, account, coin), 0) + int(remaining)
    assert held == {name: freeze for name, (_, freeze) in at_seal.items() if freeze}
