"""The filter of known keys: it may be wrong about strangers, never about keys that it was given."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator

import pytest

from spotledger.storage.encoding import key_digest
from spotledger.storage.idempotency_filter import IdempotencyFilter, _Level

SEGMENT_ENTRIES = 64
TABLES = """
CREATE TABLE key_filter (level INTEGER PRIMARY KEY, covered_to INTEGER NOT NULL, checksum BLOB NOT NULL) STRICT;
CREATE TABLE key_filter_page (level INTEGER NOT NULL, page INTEGER NOT NULL, bits BLOB NOT NULL, checksum BLOB NOT NULL,
    PRIMARY KEY (level, page)) STRICT;
CREATE TABLE key_seq (segment INTEGER NOT NULL, digest BLOB NOT NULL, seq INTEGER NOT NULL,
    PRIMARY KEY (segment, digest, seq)) STRICT, WITHOUT ROWID;
"""


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    """Give the tables that the filter reads and writes, in memory."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.executescript(TABLES)
    yield made
    made.close()


def digests(segment: int) -> list[bytes]:
    """Return the digests of the keys of one segment."""
    return [key_digest(f"{segment}-{n}") for n in range(SEGMENT_ENTRIES)]


def digests_in(connection: sqlite3.Connection) -> Callable[[int], list[bytes]]:
    """Return what gives the digests that the table of keys has of a segment."""

    def read(segment: int) -> list[bytes]:
        rows = connection.execute("SELECT digest FROM key_seq WHERE segment = ?", (segment,))
        return [digest for (digest,) in rows]

    return read


def seal(connection: sqlite3.Connection, idempotency_filter: IdempotencyFilter, segment: int) -> None:
    """Add a segment as a sealing does."""
    rows = [(segment, digest, n) for n, digest in enumerate(digests(segment))]
    connection.executemany("INSERT INTO key_seq VALUES (?, ?, ?)", rows)
    idempotency_filter.add(segment, digests(segment))
    for _ in idempotency_filter.write(connection, segment):
        pass


def may_hold(idempotency_filter: IdempotencyFilter, digest: bytes) -> list[int]:
    """Return the segments in which the filter cannot rule the key out."""
    return idempotency_filter.segments_that_may_hold(digest)


def test_bits_of_many_keys_are_those_of_each_key() -> None:
    """Adding keys all at once sets the bits that a look-up probes, and no others."""
    level = _Level(0, SEGMENT_ENTRIES)
    expected = [0] * len(level.words)
    for digest in digests(0):
        number = int.from_bytes(digest[:8], "little")
        for shift in (0, 6, 12, 18, 24):
            expected[(number >> 30) % len(expected)] |= 1 << (number >> shift & 63)
    level.add(digests(0)[:7])
    level.add(iter(digests(0)[7:]))
    level.add([])
    assert list(level.words) == expected


@pytest.mark.parametrize("segments", [1, 2, 3, 6, 7, 14, 15, 40])
def test_filter_never_denies_a_key_that_it_was_given(connection: sqlite3.Connection, segments: int) -> None:
    """Over all levels, as it grows and after it was loaded again, each key's own segment is among the candidates."""
    grown = IdempotencyFilter(SEGMENT_ENTRIES)
    assert grown.is_empty()
    for segment in range(segments):
        seal(connection, grown, segment)
    loaded = IdempotencyFilter(SEGMENT_ENTRIES)
    loaded.load(connection, segments, digests_in(connection))
    assert loaded.repairs == []
    for idempotency_filter in (grown, loaded):
        assert not idempotency_filter.is_empty()
        for segment in range(segments):
            for digest in digests(segment):
                found = may_hold(idempotency_filter, digest)
                assert segment in found
                assert found == sorted(found, reverse=True)
                assert max(found) < segments


def test_filter_says_of_most_strangers_that_they_are_new(connection: sqlite3.Connection) -> None:
    """Of keys that were never used nearly all need no look-up, at every size."""
    idempotency_filter = IdempotencyFilter(SEGMENT_ENTRIES)
    for segment in range(31):
        seal(connection, idempotency_filter, segment)
    strangers = [key_digest(f"stranger {n}") for n in range(4_000)]
    assert sum(bool(may_hold(idempotency_filter, digest)) for digest in strangers) < 200


def test_filter_with_more_keys_than_planned_still_denies_none(connection: sqlite3.Connection) -> None:
    """A level that is fuller than it was made for is wrong more often about strangers, and never about its own."""
    idempotency_filter = IdempotencyFilter(SEGMENT_ENTRIES)
    crowd = [key_digest(f"crowd {n}") for n in range(20 * SEGMENT_ENTRIES)]
    idempotency_filter.add(0, crowd)
    for _ in idempotency_filter.write(connection, 0):
        pass
    assert all(may_hold(idempotency_filter, digest) == [0] for digest in crowd)


def test_filter_before_the_segment_is_covered_names_it_not(connection: sqlite3.Connection) -> None:
    """Keys of a segment that is being sealed are found elsewhere; the filter speaks of whole segments only."""
    idempotency_filter = IdempotencyFilter(SEGMENT_ENTRIES)
    seal(connection, idempotency_filter, 0)
    idempotency_filter.add(1, digests(1)[:10])
    assert may_hold(idempotency_filter, digests(1)[0]) in ([], [0])
    assert 0 in may_hold(idempotency_filter, digests(0)[0])


def test_filter_loaded_from_nothing_is_made_from_the_keys(connection: sqlite3.Connection) -> None:
    """With no rows in the file all is added again from the keys, and nothing is called damage."""
    for segment in range(7):
        rows = [(segment, digest, n) for n, digest in enumerate(digests(segment))]
        connection.executemany("INSERT INTO key_seq VALUES (?, ?, ?)", rows)
    idempotency_filter = IdempotencyFilter(SEGMENT_ENTRIES)
    idempotency_filter.load(connection, 7, digests_in(connection))
    assert idempotency_filter.repairs == []
    assert all(segment in may_hold(idempotency_filter, digest) for segment in range(7) for digest in digests(segment))


def test_empty_filter_loads_and_denies_everything(connection: sqlite3.Connection) -> None:
    """A new ledger has no sealed segment, and no key is known."""
    idempotency_filter = IdempotencyFilter(SEGMENT_ENTRIES)
    idempotency_filter.load(connection, 0, digests_in(connection))
    assert idempotency_filter.is_empty()
    assert may_hold(idempotency_filter, key_digest("k")) == []


@pytest.mark.parametrize("bit", [0, 7, 1_000])
def test_filter_with_one_bit_turned_is_noticed(connection: sqlite3.Connection, bit: int) -> None:
    """One bit lost on the disk would let a key through twice: it is noticed, named and made good."""
    grown = IdempotencyFilter(SEGMENT_ENTRIES)
    for segment in range(6):
        seal(connection, grown, segment)
    bits = bytearray(connection.execute("SELECT bits FROM key_filter_page WHERE level = 1").fetchone()[0])
    bits[bit // 8 % len(bits)] ^= 1 << bit % 8
    connection.execute("UPDATE key_filter_page SET bits = ? WHERE level = 1", (bytes(bits),))
    loaded = IdempotencyFilter(SEGMENT_ENTRIES)
    loaded.load(connection, 6, digests_in(connection))
    assert len(loaded.repairs) == 1
    assert "level 1" in loaded.repairs[0]
    assert all(segment in may_hold(loaded, digest) for segment in range(6) for digest in digests(segment))


def test_filter_ahead_of_the_journal_is_made_again(connection: sqlite3.Connection) -> None:
    """A filter that covers segments which are not sealed, all its checksums right, is not believed."""
    grown = IdempotencyFilter(SEGMENT_ENTRIES)
    for segment in range(2):
        seal(connection, grown, segment)
    loaded = IdempotencyFilter(SEGMENT_ENTRIES)
    loaded.load(connection, 1, digests_in(connection))
    assert ["level 0" in text for text in loaded.repairs] == [True]
    assert all(may_hold(loaded, digest) == [0] for digest in digests(0))
