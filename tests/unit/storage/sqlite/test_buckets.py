"""Buckets of digests: what was packed is found, at any place; what was not is not."""

from __future__ import annotations

import random
from array import array

import pytest

from spotledger.storage.base import BooksDamaged
from spotledger.storage.sqlite.buckets import (
    OF_KEYS,
    OF_REFERENCES,
    SEGMENT_BUCKETS,
    by_bucket,
    key_id,
    pack_digests,
    places_of_digest,
    unpack_digests,
)


def digest(head: int, bucket: int = 7) -> bytes:
    """Return a digest of the bucket number *bucket* of its segment."""
    return head.to_bytes(14, "big") + bucket.to_bytes(2, "little")


def test_digest_that_stands_many_times_is_found_with_all_its_places() -> None:
    """A reference may be that of many entries; those of its neighbours are not among them."""
    rows = sorted([(digest(1), 4), (digest(3), 0), *((digest(2), place) for place in range(5, 900, 3))])
    packed = pack_digests(OF_REFERENCES, 512 + 7, rows)
    assert places_of_digest(OF_REFERENCES, 512 + 7, packed, digest(2)) == array("H", range(5, 900, 3))
    assert list(places_of_digest(OF_REFERENCES, 512 + 7, packed, digest(1))) == [4]
    assert list(places_of_digest(OF_REFERENCES, 512 + 7, packed, digest(3))) == [0]
    assert list(places_of_digest(OF_REFERENCES, 512 + 7, packed, digest(4))) == []
    assert unpack_digests(OF_REFERENCES, 512 + 7, packed) == rows


def test_digest_is_not_found_across_two_others() -> None:
    """The bytes of a digest may stand in the middle of two neighbours."""
    first, second = bytes(8) + b"abcdef\x07\x00", b"ghijklmn" + bytes(6) + b"\x07\x00"
    straddling = first[8:] + second[:8]
    packed = pack_digests(OF_KEYS, 7, [(first, 1), (second, 2)])
    assert list(places_of_digest(OF_KEYS, 7, packed, straddling)) == []
    rows = sorted([(first, 1), (second, 2), (straddling[:14] + b"\x07\x00", 3)])
    assert list(places_of_digest(OF_KEYS, 7, pack_digests(OF_KEYS, 7, rows), rows[-1][0])) == [rows[-1][1]]


def test_every_digest_of_a_segment_is_found_in_its_bucket() -> None:
    """What `by_bucket` distributes, `key_id` finds again."""
    draw = random.Random(1)
    rows = [(draw.randbytes(16), place) for place in range(5_000)]
    buckets = {bucket: pack_digests(OF_KEYS, bucket, found) for bucket, found in by_bucket(3, rows)}
    assert len(buckets) == SEGMENT_BUCKETS
    for wanted, place in rows:
        bucket = key_id(3, wanted)
        assert list(places_of_digest(OF_KEYS, bucket, buckets[bucket], wanted)) == [place]


@pytest.mark.parametrize("packed", [None, b"", b"x" * 34, "text"])
def test_bucket_that_does_not_check_proves_nothing(packed: object) -> None:
    """A missing, cut or strange bucket is damage, and not the absence of a digest."""
    with pytest.raises(BooksDamaged):
        places_of_digest(OF_REFERENCES, 7, packed, digest(1))


def test_bucket_of_another_table_or_place_does_not_check() -> None:
    """The checksum contains what the bucket is of, and where it belongs."""
    packed = pack_digests(OF_KEYS, 7, [(digest(1), 4)])
    for table, bucket in ((OF_REFERENCES, 7), (OF_KEYS, 519)):
        with pytest.raises(BooksDamaged):
            places_of_digest(table, bucket, packed, digest(1))
    with pytest.raises(BooksDamaged, match="of another one"):
        unpack_digests(OF_KEYS, 7, pack_digests(OF_KEYS, 7, [(digest(1, bucket=8), 4)]))
