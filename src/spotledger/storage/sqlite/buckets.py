"""
The units in which the books prove what is in them, and what is not.

The keys and the history of a segment stand in buckets, each with a checksum that contains its place: every bucket
exists once a segment is sealed, so an absent key is proven by one row that checks. Rows that change later, such as
balances and holds, have for each of their buckets a count and a digest: the sum of the digests of its rows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import msgspec

from spotledger.storage.base import BooksDamaged
from spotledger.storage.encoding import DIGEST_BYTES, pack_places, unpack_places

#: Buckets of the keys, and of the history, of one segment.
SEGMENT_BUCKETS: Final = 512
#: Buckets of owners: customers and house accounts.
OWNER_BUCKETS: Final = 16_384
#: Holds in a bucket: as many neighbouring ids.
HOLD_BUCKET_IDS: Final = 256
CHECKSUM_BYTES: Final = 16
#: What buckets of digests are of.
OF_KEYS: Final = b"keys"
OF_REFERENCES: Final = b"references"
_PLACE_BYTES: Final = 2
_MODULUS: Final = 1 << 128


class HistoryLine(NamedTuple):
    """Which entries of a segment touched an account and coin: their places, packed."""

    owner: str
    account: str
    coin: str
    places: bytes


class HoldsOpened(NamedTuple):
    """Which entries of a segment opened holds of a customer: their places, packed."""

    customer: str
    places: bytes


class _History(msgspec.Struct, array_like=True, gc=False):
    lines: list[HistoryLine]
    holds: list[HoldsOpened]


_LAST_BIT: Final = bytes(value & 1 for value in range(256))
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_history: Final = msgspec.msgpack.Decoder(_History).decode


# --- where things are -------------------------------------------------------------------------------------------------


def owner_bucket(owner: str) -> int:
    """Return the bucket of an owner's balances."""
    return int.from_bytes(blake2b(owner.encode(), digest_size=2).digest(), "little") % OWNER_BUCKETS


def history_id(segment: int, owner: str) -> int:
    """Return the id of the bucket with an owner's history in *segment*."""
    return segment * SEGMENT_BUCKETS + owner_bucket(owner) % SEGMENT_BUCKETS


def key_id(segment: int, digest: bytes) -> int:
    """Return the id of the bucket in which a key, or a reference, with this *digest* is, if *segment* has it."""
    # The filter takes its bits from the other end of the digest.
    return segment * SEGMENT_BUCKETS + int.from_bytes(digest[-2:], "little") % SEGMENT_BUCKETS


def ids_of_segment(segment: int) -> range:
    """Return the ids of all buckets of *segment*."""
    return range(segment * SEGMENT_BUCKETS, (segment + 1) * SEGMENT_BUCKETS)


def by_bucket(segment: int, digests: Iterable[tuple[bytes, int]]) -> Iterator[tuple[int, list[tuple[bytes, int]]]]:
    """
    Give every bucket of *segment* with its *digests*, each with the place of its entry, sorted.

    The digests are those of keys or of references; :func:`key_id` says which bucket a digest is in.
    """
    buckets: list[list[tuple[bytes, int]]] = [[] for _ in range(SEGMENT_BUCKETS)]
    for row in digests:
        digest = row[0]
        buckets[(digest[-1] & 1) << 8 | digest[-2]].append(row)
    for bucket_id, rows in zip(ids_of_segment(segment), buckets, strict=True):
        rows.sort()
        yield bucket_id, rows


# --- buckets of a segment ---------------------------------------------------------------------------------------------


def pack_digests(table: bytes, bucket_id: int, rows: Sequence[tuple[bytes, int]]) -> bytes:
    """Return the bucket of `OF_KEYS` or `OF_REFERENCES` with these digests and the places of their entries, sorted."""
    digests = b"".join([digest for digest, _ in rows])
    return _sealed(table, bucket_id, digests + pack_places(array("H", [place for _, place in rows])))


def unpack_digests(table: bytes, bucket_id: int, packed: object) -> list[tuple[bytes, int]]:
    """
    Return each digest of a bucket of `OF_KEYS` or `OF_REFERENCES`, with the place of its entry.

    Raises:
        BooksDamaged: It does not check.
    """
    digests, places = _digests_in(table, bucket_id, packed)
    starts = range(0, len(digests), DIGEST_BYTES)
    return list(zip([digests[start : start + DIGEST_BYTES] for start in starts], unpack_places(places), strict=True))


def _digests_in(table: bytes, bucket_id: int, packed: object) -> tuple[bytes, bytes]:
    """Return the joined digests of a bucket, and the packed places; raise BooksDamaged if it does not check."""
    payload = _opened(table, bucket_id, packed)
    count, rest = divmod(len(payload), DIGEST_BYTES + _PLACE_BYTES)
    end = count * DIGEST_BYTES
    if rest or not _belong_to(bucket_id, payload[:end]):
        raise BooksDamaged(f"the {table.decode()} bucket {bucket_id} is cut, or has {table.decode()} of another one")
    return payload[:end], payload[end:]


def _belong_to(bucket_id: int, digests: bytes) -> bool:
    """Say whether all of the joined *digests* belong to a bucket, as :func:`key_id` has it, but all at once."""
    count, number = len(digests) // DIGEST_BYTES, bucket_id % SEGMENT_BUCKETS
    low, high = digests[DIGEST_BYTES - 2 :: DIGEST_BYTES], digests[DIGEST_BYTES - 1 :: DIGEST_BYTES]
    return low == bytes([number & 0xFF]) * count and high.translate(_LAST_BIT) == bytes([number >> 8]) * count


def places_of_digest(table: bytes, bucket_id: int, packed: object, digest: bytes) -> array[int]:
    """
    Return the places of the entries with this *digest* in a bucket of `OF_KEYS` or `OF_REFERENCES`, rising.

    Raises:
        BooksDamaged: The bucket does not check.
    """
    digests, places = _digests_in(table, bucket_id, packed)
    first = digests.find(digest)
    while first % DIGEST_BYTES and first > 0:  # it begins within another one
        first = digests.find(digest, first + 1)
    if first < 0:
        return array("H")
    begin = first // DIGEST_BYTES
    numbers = range(begin, len(digests) // DIGEST_BYTES)
    end = begin + bisect_right(
        numbers, digest, key=lambda number: digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
    )
    return unpack_places(places[begin * _PLACE_BYTES : end * _PLACE_BYTES])


def pack_history(bucket_id: int, lines: list[HistoryLine], holds: list[HoldsOpened]) -> bytes:
    """Return the bucket with these lines and holds."""
    return _sealed(b"history", bucket_id, _encode(_History(lines, holds)))


def unpack_history(bucket_id: int, packed: object) -> tuple[list[HistoryLine], list[HoldsOpened]]:
    """
    Return the lines and the holds of a bucket.

    Raises:
        BooksDamaged: It does not check.
    """
    payload = _opened(b"history", bucket_id, packed)
    try:
        found = _decode_history(payload)
    except msgspec.MsgspecError as error:
        raise BooksDamaged(f"the history bucket {bucket_id} cannot be read: {error}") from error
    return found.lines, found.holds


def _sealed(table: bytes, bucket_id: int, payload: bytes) -> bytes:
    return _checksum(table, bucket_id, payload) + payload


def _opened(table: bytes, bucket_id: int, packed: object) -> bytes:
    if not isinstance(packed, bytes):
        raise BooksDamaged(f"the {table.decode()} bucket {bucket_id} is missing")
    payload = packed[CHECKSUM_BYTES:]
    if packed[:CHECKSUM_BYTES] != _checksum(table, bucket_id, payload):
        raise BooksDamaged(f"the {table.decode()} bucket {bucket_id} does not check")
    return payload


def _checksum(table: bytes, bucket_id: int, payload: bytes) -> bytes:
    """Return the checksum of a bucket, which contains its table and its place."""
    place = table.ljust(16, b"\0")
    return blake2b(payload, digest_size=CHECKSUM_BYTES, salt=bucket_id.to_bytes(16, "little"), person=place).digest()


# --- rows that change -------------------------------------------------------------------------------------------------


class RowSum:
    """A count of rows, and the sum of their digests: the same whatever their order."""

    __slots__ = ("digest", "rows")

    def __init__(self, rows: int = 0, digest: bytes = bytes(16)) -> None:
        """Start with a sum as it is kept; with no rows where none is given."""
        self.rows = rows
        self.digest = int.from_bytes(digest, "little")

    def add(self, table: str, row: Sequence[Any]) -> None:
        """Count a row in."""
        self.rows += 1
        self.digest = (self.digest + row_digest(table, row)) % _MODULUS

    def remove(self, table: str, row: Sequence[Any]) -> None:
        """Count a row out."""
        self.rows -= 1
        self.digest = (self.digest - row_digest(table, row)) % _MODULUS

    def kept(self) -> tuple[int, bytes]:
        """Return count and digest as they are kept."""
        return self.rows, self.digest.to_bytes(16, "little")


def sum_of(rows: Iterable[tuple[str, Sequence[Any]]]) -> RowSum:
    """Add up *rows*, each with the name of its table."""
    found = RowSum()
    for table, row in rows:
        found.add(table, row)
    return found


def row_digest(table: str, row: Sequence[Any]) -> int:
    """Return the digest of one row, which is summed up."""
    content = _encode((table, *row))
    return int.from_bytes(blake2b(content, digest_size=16).digest(), "little")
