"""The spool of key digests: which keys stand in more than one segment."""

from __future__ import annotations

import random
from hashlib import blake2b

from spotledger.audit.keys import KeySpool


def digests(numbers: range) -> list[bytes]:
    """Return digests of *numbers*, in no order."""
    return [blake2b(str(number).encode(), digest_size=16).digest() for number in numbers]


def test_spool_of_keys_without_a_repetition_finds_none() -> None:
    """Many segments of different keys have none in common."""
    spool = KeySpool()
    for segment in range(10):
        spool.put(digests(range(segment * 1000, segment * 1000 + 1000)))
    spool.put([])
    assert list(spool.repeated()) == []
    spool.close()


def test_spool_of_keys_finds_each_repetition_once() -> None:
    """A key that stands in several segments is found, wherever its digest falls."""
    spool = KeySpool()
    chance = random.Random(7)
    everything = digests(range(5000))
    twice = set(chance.sample(everything, 50))
    spool.put(everything)
    spool.put(twice)
    spool.put(sorted(twice)[:10])
    found = list(spool.repeated())
    assert len(found) == len(twice)
    assert set(found) == twice
    spool.close()


def test_spool_of_keys_with_the_same_beginning_tells_them_apart() -> None:
    """Two digests that share their first half are two keys."""
    spool = KeySpool()
    spool.put([b"a" * 16])
    spool.put([b"a" * 8 + b"b" * 8])
    assert list(spool.repeated()) == []
    spool.close()
