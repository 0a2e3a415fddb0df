"""
The trial: the structure of the embedded store, laid bare, as the yardstick of what the library costs.

It keeps what the ledger promises about a write: idempotency keys for ever, entries of postings with the balance after
each, a hash chain, one synced commit a group, and balances, holds and their history derived in segments behind the
appends. It has one process and one core: a slice of a full segment is sealed with each group. Customers, coins and
holds are numbers, and amounts are whole units. It parses and validates nothing, limits nothing and answers nobody,
keeps all balances in memory, and cannot be started again.

An operation is a tuple: its kind, its key, and numbers, which are

- ``freeze``: account, units, and the number that the hold gets;
- ``unfreeze``: hold, units;
- ``settle``: the hold that pays and its units, twice; each side's account receives what the other pays, less the fee;
- ``deposit``, ``withdraw``: account, units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path
from struct import Struct
from typing import Any, Final

import apsw
import msgspec

#: An account is a customer's number times this, plus the coin's.
COINS_LIMIT: Final = 32
#: The first accounts of the house: fees, and the outside world.
FEES: Final = 10**6 * COINS_LIMIT
EXTERNAL: Final = FEES + COINS_LIMIT
AVAILABLE, FREEZE = 0, 1
FEE_DIVISOR: Final = 1_000
#: A segment has 2 to the power of this entries.
SEGMENT_BITS: Final = 16
FILTER_MASK: Final = (1 << 28) - 1
#: Rows that are written at a time, and how many such steps each new entry pays for.
SLICE: Final = 512
STEPS_PER_ENTRY: Final = 0.02
PRAGMAS: Final = (
    "page_size=4096",
    "journal_mode=WAL",
    "synchronous=FULL",
    "cache_size=-262144",
    "wal_autocheckpoint=10000",
    "temp_store=MEMORY",
)
SCHEMA: Final = """
CREATE TABLE entries (seq INTEGER PRIMARY KEY, body BLOB, hash BLOB) STRICT;
CREATE TABLE refusals (key TEXT, request BLOB, why TEXT) STRICT;
CREATE TABLE keys (segment INTEGER, key BLOB, seq INTEGER, PRIMARY KEY (segment, key)) STRICT, WITHOUT ROWID;
CREATE TABLE history (segment INTEGER, account INTEGER, seq INTEGER, available ANY, freeze ANY,
  PRIMARY KEY (segment, account, seq)) STRICT, WITHOUT ROWID;
CREATE TABLE balances (account INTEGER PRIMARY KEY, available ANY, freeze ANY) STRICT;
CREATE TABLE holds (hold INTEGER PRIMARY KEY, account INTEGER, remaining ANY) STRICT;
"""
INSERT_BALANCE: Final = (
    "INSERT INTO balances VALUES (?, ?, ?)"
    " ON CONFLICT (account) DO UPDATE SET available = excluded.available, freeze = excluded.freeze"
)
INSERT_HOLD: Final = (
    "INSERT INTO holds VALUES (?, ?, ?) ON CONFLICT (hold) DO UPDATE SET remaining = excluded.remaining"
)

#: Account, side, signed units, balance after, hold or 0.
Posting = tuple[int, int, int, int, int]
Postings = tuple[Posting, ...]
Operation = tuple[Any, ...]
#: Seq, digest of the key, body, hash, and postings. Tuples, because these are made for each operation.
Entry = tuple[int, bytes, bytes, bytes, Postings]

_canonical = msgspec.msgpack.Encoder().encode
_json = msgspec.json.Encoder().encode
_words = Struct("<4I").unpack


@dataclass(slots=True)
class Group:
    """What one group comes to."""

    entries: list[Entry] = field(default_factory=list)
    refusals: list[tuple[str, bytes, str]] = field(default_factory=list)
    #: The entry of each key, or 0 for a refusal.
    keys: dict[str, int] = field(default_factory=dict)
    accounts: set[int] = field(default_factory=set)
    holds: dict[int, list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class Segment:
    """What the entries of one segment come to, until it is sealed."""

    number: int
    keys: dict[bytes, int] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    balances: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    holds: dict[int, tuple[int, int, int]] = field(default_factory=dict)


class TrialBooks:
    """The rules, on balances in memory."""

    def __init__(self, folder: Path, customers: int, coins: int, units: int) -> None:
        """Make books in *folder* in which each of *customers* has *units* of each of *coins*; that is not booked."""
        self.store = TrialStore(folder)
        self.balances = {c * COINS_LIMIT + coin: [units, 0] for c in range(customers) for coin in range(coins)}
        self.balances |= {house + coin: [0, 0] for house in (FEES, EXTERNAL) for coin in range(coins)}
        #: Account and remaining units of each open hold.
        self.holds: dict[int, list[int]] = {}
        self.seq = 0
        self.hash = bytes(32)
        self._rules: dict[str, Callable[[Operation, Group], Postings | None]] = {
            "freeze": self._freeze,
            "unfreeze": self._unfreeze,
            "settle": self._settle,
            "deposit": self._deposit,
            "withdraw": self._withdraw,
        }

    def execute(self, operations: Sequence[Operation]) -> list[tuple[str, int]]:
        """Do *operations* as one group with one synced commit; return a word and an entry, or 0, for each."""
        group = Group()
        known = self.store.known([operation[1] for operation in operations])
        outcomes = []
        for operation in operations:
            kind, key = operation[0], operation[1]
            request = sha256(_canonical(operation)).digest()[:16]
            if key in known or key in group.keys:
                outcomes.append(("repeated", known.get(key) or group.keys.get(key, 0)))
            elif postings := self._rules[kind](operation, group):
                self._append(operation, postings, group)
                outcomes.append(("booked", self.seq))
            else:
                group.refusals.append((key, request, "insufficient"))
                group.keys[key] = 0
                outcomes.append(("refused", 0))
        after = [(account, self.balances[account]) for account in group.accounts]
        self.store.write(
            group,
            [(account, balance[AVAILABLE], balance[FREEZE]) for account, balance in after],
            [(hold, state[0], state[1]) for hold, state in group.holds.items()],
        )
        return outcomes

    def _append(self, operation: Operation, postings: Postings, group: Group) -> None:
        kind, key, *numbers = operation
        self.seq = seq = self.seq + 1
        body = _json(
            {
                "seq": seq,
                "kind": kind,
                "booked_ms": 1_700_000_000_000 + seq,
                "key": key,
                "request": {"op": kind, "n": [str(number) for number in numbers]},
                "postings": [
                    (account, side, str(units), str(after), hold) for account, side, units, after, hold in postings
                ],
            }
        )
        self.hash = sha256(self.hash + body).digest()
        group.entries.append((seq, self.store.digests[key], body, self.hash, postings))
        group.keys[key] = seq

    def _freeze(self, operation: Operation, group: Group) -> Postings | None:
        _, _, account, units, hold = operation
        balance = self.balances[account]
        if balance[AVAILABLE] < units:
            return None
        balance[AVAILABLE] -= units
        balance[FREEZE] += units
        self.holds[hold] = group.holds[hold] = [account, units]
        group.accounts.add(account)
        return (
            (account, AVAILABLE, -units, balance[AVAILABLE], hold),
            (account, FREEZE, units, balance[FREEZE], hold),
        )

    def _unfreeze(self, operation: Operation, group: Group) -> Postings:
        _, _, hold, units = operation
        account = self._take(hold, units, group)
        balance = self.balances[account]
        balance[AVAILABLE] += units
        balance[FREEZE] -= units
        group.accounts.add(account)
        return (
            (account, FREEZE, -units, balance[FREEZE], hold),
            (account, AVAILABLE, units, balance[AVAILABLE], hold),
        )

    def _settle(self, operation: Operation, group: Group) -> Postings:
        _, _, hold, units, other_hold, other_units = operation
        payer, other_payer = self._take(hold, units, group), self._take(other_hold, other_units, group)
        coin, other_coin = payer % COINS_LIMIT, other_payer % COINS_LIMIT
        receiver, other_receiver = other_payer - other_coin + coin, payer - coin + other_coin
        fees, other_fees = FEES + coin, FEES + other_coin
        fee, other_fee = units // FEE_DIVISOR, other_units // FEE_DIVISOR
        balances = self.balances
        paid, received, earned = balances[payer], balances[receiver], balances[fees]
        paid[FREEZE] -= units
        received[AVAILABLE] += units - fee
        earned[AVAILABLE] += fee
        other_paid, other_received, other_earned = (
            balances[other_payer],
            balances[other_receiver],
            balances[other_fees],
        )
        other_paid[FREEZE] -= other_units
        other_received[AVAILABLE] += other_units - other_fee
        other_earned[AVAILABLE] += other_fee
        group.accounts.update((payer, receiver, fees, other_payer, other_receiver, other_fees))
        return (
            (payer, FREEZE, -units, paid[FREEZE], hold),
            (receiver, AVAILABLE, units - fee, received[AVAILABLE], 0),
            (fees, AVAILABLE, fee, earned[AVAILABLE], 0),
            (other_payer, FREEZE, -other_units, other_paid[FREEZE], other_hold),
            (other_receiver, AVAILABLE, other_units - other_fee, other_received[AVAILABLE], 0),
            (other_fees, AVAILABLE, other_fee, other_earned[AVAILABLE], 0),
        )

    def _take(self, hold: int, units: int, group: Group) -> int:
        """Take *units* from *hold*; return its account."""
        state = group.holds[hold] = self.holds[hold]
        if state[1] < units:
            raise ValueError(f"hold {hold} has {state[1]} units, not {units}")
        state[1] -= units
        if not state[1]:
            del self.holds[hold]
        return state[0]

    def _deposit(self, operation: Operation, group: Group) -> Postings:
        _, _, account, units = operation
        return self._from_outside(account, units, group)

    def _withdraw(self, operation: Operation, group: Group) -> Postings | None:
        _, _, account, units = operation
        if self.balances[account][AVAILABLE] < units:
            return None
        return self._from_outside(account, -units, group)

    def _from_outside(self, account: int, units: int, group: Group) -> Postings:
        outside = EXTERNAL + account % COINS_LIMIT
        balance, external = self.balances[account], self.balances[outside]
        balance[AVAILABLE] += units
        external[AVAILABLE] -= units
        group.accounts.update((account, outside))
        return (
            (outside, AVAILABLE, -units, external[AVAILABLE], 0),
            (account, AVAILABLE, units, balance[AVAILABLE], 0),
        )


class TrialStore:
    """One file: each commit appends entries, and a full segment is sealed behind them, a slice with each group."""

    def __init__(self, folder: Path) -> None:
        """Make the file in *folder*, which is empty."""
        self._connection = apsw.Connection(str(folder / "trial.db"))
        self._cursor = self._connection.cursor()
        for pragma in PRAGMAS:
            self._cursor.execute(f"PRAGMA {pragma}")
        self._cursor.execute(SCHEMA)
        #: One bit in four places for each key of a sealed segment.
        self._filter = bytearray((FILTER_MASK + 1) // 8)
        self._open = Segment(0)
        self._full: Segment | None = None
        self._steps: Iterator[float] | None = None
        #: The steps that the entries so far have paid for, less those that were done.
        self._credit = 0.0
        #: The digests of the keys that were asked for last.
        self.digests: dict[str, bytes] = {}

    def known(self, keys: Sequence[str]) -> dict[str, int]:
        """Return the entry of each of *keys* that was used before, or -1 for a refusal."""
        found: dict[str, int] = {}
        self.digests = digests = {}
        open_keys = self._open.keys
        full_keys = self._full.keys if self._full is not None else {}
        may_be_sealed = self._may_be_sealed
        for key in keys:
            digests[key] = digest = blake2b(key.encode(), digest_size=16).digest()
            if digest in open_keys:
                found[key] = open_keys[digest] or -1
            elif digest in full_keys:
                found[key] = full_keys[digest] or -1
            elif may_be_sealed(digest) and (seq := self._sealed(digest)) is not None:
                found[key] = seq or -1
        return found

    def _may_be_sealed(self, digest: bytes) -> bool:
        bits = self._filter
        for word in _words(digest):
            place = word & FILTER_MASK
            if not bits[place >> 3] & 1 << (place & 7):
                return False
        return True

    def _sealed(self, digest: bytes) -> int | None:
        """Look for a key in the sealed segments, the newest first."""
        for number in range(self._open.number - 1, -1, -1):
            asked = self._cursor.execute("SELECT seq FROM keys WHERE segment = ? AND key = ?", (number, digest))
            if row := asked.fetchone():
                return int(row[0])
        return None

    def write(
        self, group: Group, balances: Sequence[tuple[int, int, int]], holds: Sequence[tuple[int, int, int]]
    ) -> None:
        """Append *group* and seal a slice of what is full; synced when it returns."""
        cursor, segment, entries = self._cursor, self._open, group.entries
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany(
            "INSERT INTO entries VALUES (?, ?, ?)", [(seq, body, sha) for seq, _, body, sha, _ in entries]
        )
        if group.refusals:
            cursor.executemany("INSERT INTO refusals VALUES (?, ?, ?)", group.refusals)
        for key, seq in group.keys.items():
            segment.keys[self.digests[key]] = seq
        segment.entries.extend(entries)
        for balance in balances:
            segment.balances[balance[0]] = balance
        for hold in holds:
            segment.holds[hold[0]] = hold
        if self._steps is not None:
            self._seal(len(entries))
        if entries and entries[-1][0] >> SEGMENT_BITS != segment.number:
            self._begin_segment(entries[-1][0] >> SEGMENT_BITS)
        cursor.execute("COMMIT")

    def _begin_segment(self, number: int) -> None:
        if self._steps is not None:
            raise RuntimeError("sealing fell behind")
        self._full, self._open = self._open, Segment(number)
        self._steps = self._sealing(self._full)
        self._credit = 0.0

    def _seal(self, entries: int) -> None:
        """Do as many steps as *entries* more entries pay for."""
        self._credit += entries * STEPS_PER_ENTRY
        while self._credit > 0 and self._steps is not None:
            step = next(self._steps, None)
            if step is None:
                self._steps = self._full = None
            else:
                self._credit -= step

    def _sealing(self, segment: Segment) -> Iterator[float]:
        """Write down what *segment* comes to, each table in its own order; yield what each slice costs, in steps."""
        keys = sorted((segment.number, digest, seq) for digest, seq in segment.keys.items())
        yield 4
        for some in slices(keys):
            self._add_to_filter(digest for _, digest, _ in some)
            self._cursor.executemany("INSERT INTO keys VALUES (?, ?, ?)", some)
            yield 1
        rows: list[tuple[Any, ...]] = []
        for entries in slices(segment.entries):
            rows.extend(
                (segment.number, account, seq, after[AVAILABLE], after[FREEZE])
                for seq, _, _, _, postings in entries
                for account, after in balances_after(postings).items()
            )
            yield 0.5
        rows.sort()
        yield 8
        yield from self._written("INSERT INTO history VALUES (?, ?, ?, ?, ?)", rows)
        yield from self._written(INSERT_BALANCE, sorted(segment.balances.values()))
        yield from self._written(INSERT_HOLD, sorted(segment.holds.values()))

    def _written(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> Iterator[float]:
        for some in slices(rows):
            self._cursor.executemany(statement, some)
            yield 0.5

    def _add_to_filter(self, digests: Iterator[bytes]) -> None:
        bits = self._filter
        for digest in digests:
            for word in _words(digest):
                place = word & FILTER_MASK
                bits[place >> 3] |= 1 << (place & 7)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def balances_after(postings: Postings) -> dict[int, list[int | None]]:
    """Return available and freeze of each account after an entry; None for a side that it leaves alone."""
    after: dict[int, list[int | None]] = {}
    for account, side, _, balance, _ in postings:
        after.setdefault(account, [None, None])[side] = balance
    return after


def slices(rows: Sequence[Any]) -> Iterator[Any]:
    """Cut *rows* into pieces of a slice each."""
    for start in range(0, len(rows), SLICE):
        yield rows[start : start + SLICE]
