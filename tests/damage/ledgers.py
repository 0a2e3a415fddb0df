"""The ledgers that are damaged: their files as bytes, closed or as a killed process left them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from damage.questions import CIPHER
from spotledger.ledger.ledger import Ledger
from spotledger.security.access_keys import KeyRing
from spotledger.security.tokens import Tokens
from support_audit import every_kind
from support_core import Clock, open_small

Files = dict[str, bytes]

#: Entries in a segment: several are sealed, and one is open.
SEGMENT_ENTRIES = 64
#: Names so long that the tables and the indexes of customers and holds have several pages.
CUSTOMERS = tuple(f"customer-{number:02}-{'x' * 48}" for number in range(24))
IDLE = tuple(f"idle-{number:03}-{'y' * 52}" for number in range(120))


@dataclass(frozen=True)
class Subject:
    """A ledger that is damaged again and again."""

    name: str
    files: Mapping[str, bytes]
    #: The same files some hundred entries earlier, for pages that are set back.
    early: Mapping[str, bytes]
    #: The files of another ledger, for files that are mixed up.
    other: Mapping[str, bytes]
    #: The time at which it is opened again.
    now_ms: int


def read_files(folder: Path) -> Files:
    """Return the files of a ledger as bytes; the lock and the shared memory of SQLite are nobody's truth."""
    left_out = ("-shm", ".lock")
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith(left_out)}


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write *files* to the new folder *folder*, and return it."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_subjects(folder: Path, seed: str) -> list[Subject]:
    """
    Make, in *folder*, a ledger that was closed and one that was killed, both of every kind of entry.

    The same *seed* gives the same ids and secrets, and so the same files, but for the salts of SQLite's logs.
    """
    with _seeded(seed):
        return _make_subjects(folder)


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Let what the system gives as randomness follow from *seed*."""
    chance = random.Random(seed)
    with mock.patch("os.urandom", chance.randbytes), mock.patch("random._urandom", chance.randbytes):
        yield


def _make_subjects(folder: Path) -> list[Subject]:
    clock, place = Clock(), folder / "ledger"
    with open_small(folder / "other", Clock(), segment_entries=SEGMENT_ENTRIES) as ledger:
        _fill(ledger, clock, "")
    with open_small(place, clock, segment_entries=SEGMENT_ENTRIES) as ledger:
        _fill(ledger, clock, "")
    early = read_files(place)
    with open_small(place, clock, segment_entries=SEGMENT_ENTRIES) as ledger:
        _fill(ledger, clock, "late:")
        _change_keys(ledger, clock)
    closed = read_files(place)
    with open_small(place, clock, segment_entries=SEGMENT_ENTRIES) as ledger:
        _fill(ledger, clock, "last:")
        _change_keys(ledger, clock)
        killed = read_files(place)
    other = read_files(folder / "other")
    now_ms = clock.now_ms + 1_000
    return [Subject("closed", closed, early, other, now_ms), Subject("killed", killed, early, other, now_ms)]


def _fill(ledger: Ledger, clock: Clock, prefix: str) -> None:
    """Book entries of every kind and of many customers, and make access keys and tokens."""
    every_kind(ledger, clock, prefix)
    if not prefix:
        for customer in CUSTOMERS + IDLE:
            ledger.register_customer(customer, key=f"register:{customer[:12]}")
    ring, tokens = KeyRing(ledger.key_tables.access_keys, CIPHER, clock), Tokens(ledger.key_tables.tokens, clock)
    for number, customer in enumerate(CUSTOMERS):
        clock.now_ms += 7
        ledger.deposit(customer, "btc", "10", key=f"{prefix}in:{customer[:12]}")
        held = ledger.freeze(customer, "btc", "3", key=f"{prefix}hold:{customer[:12]}", reference=f"order {number}")
        if number % 3 == 0:
            ledger.unfreeze(held.hold or 0, "1", key=f"{prefix}part:{customer[:12]}")
        if number % 4 == 0:
            ledger.withdraw("1.5", key=f"{prefix}out:{customer[:12]}", customer=customer, coin="btc")
        if number % 5 == 0:
            expires_ms = clock.now_ms + 3_600_000
            ledger.freeze(customer, "btc", "0.5", key=f"{prefix}due:{customer[:12]}", expires_ms=expires_ms)
        ring.create(customer, ["read", "trade"], f"{prefix}{customer}", ["10.0.0.0/8", "192.0.2.1"])
    for number in range(4):
        tokens.create(["ledger:read", "admin"], f"{prefix}{number} " + "y" * 60)
    ledger.key_tables.kept_requests.keep(f"{prefix}kept", '{"a":1}', '{"b":2}')


def _change_keys(ledger: Ledger, clock: Clock) -> None:
    """Revoke an access key in every three that are in use, and a token."""
    ring, tokens = KeyRing(ledger.key_tables.access_keys, CIPHER, clock), Tokens(ledger.key_tables.tokens, clock)
    for record in [record for record in ring.list() if record.revoked_ms is None][::3]:
        ring.revoke(record.accesskey)
    tokens.revoke(next(record.token_id for record in tokens.list() if record.revoked_ms is None))
