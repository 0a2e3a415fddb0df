"""Entries as bytes: JSON with units as decimal text, and the hash that chains each entry to the one before it."""

from __future__ import annotations

import sys
from array import array
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec

from spotledger.domain.journal import Entry
from spotledger.errors import LedgerCorrupt

DIGEST_BYTES: Final = 16
_INTEGER_LIMIT: Final = 2**63


_encode = msgspec.json.Encoder().encode
# Not strict: the units stand in the journal as decimal text.
_decode = msgspec.json.Decoder(Entry, strict=False).decode


def encode_entry(entry: Entry) -> bytes:
    """Write *entry* as JSON; these bytes are stored and hashed, the same in every store."""
    document: dict[str, Any] = {
        "seq": entry.seq,
        "kind": entry.kind,
        "key": entry.key,
        "booked_ms": entry.booked_ms,
    }
    if entry.happened_ms is not None:
        document["happened_ms"] = entry.happened_ms
    document["request"] = entry.request
    if entry.postings:
        document["postings"] = [(a, coin, side, str(units), hold) for a, coin, side, units, hold in entry.postings]
        document["balances"] = [(a, coin, str(av), str(fr)) for a, coin, av, fr in entry.balances]
    if entry.holds:
        document["holds"] = [(hold, str(remaining)) for hold, remaining in entry.holds]
    if entry.refusal is not None:
        document["refusal"] = entry.refusal
    return _encode(document)


def decode_entry(body: bytes | str) -> Entry:
    """
    Read the bytes of an entry.

    Raises:
        LedgerCorrupt: They are none.
    """
    try:
        return _decode(body)
    except msgspec.DecodeError as error:
        raise LedgerCorrupt(f"an entry of the journal cannot be read: {error}") from error


def chain_hash(previous: bytes, body: bytes) -> bytes:
    """Return the hash of the entry with this *body* that follows the entry with the hash *previous*."""
    return sha256(previous + body).digest()


def genesis_hash(ledger_id: str) -> bytes:
    """Return the hash that the first entry of the ledger is chained to."""
    return sha256(b"spotledger ledger " + ledger_id.encode()).digest()


def key_digest(key: str) -> bytes:
    """Return the 128 bits by which sealed segments and the filter know an idempotency key."""
    return blake2b(key.encode(), digest_size=DIGEST_BYTES).digest()


def column(units: int) -> int | str:
    """Return *units* as SQLite can hold them: an integer of 64 bits, or decimal text."""
    return units if -_INTEGER_LIMIT <= units < _INTEGER_LIMIT else str(units)


def pack_places(places: array[int]) -> bytes:
    """Return places within a segment, 0 to 65,535, as the tables have them: two bytes each, the low one first."""
    if sys.byteorder == "big":
        places = places[:]
        places.byteswap()
    return places.tobytes()


def unpack_places(packed: bytes) -> array[int]:
    """
    Return the places that :func:`pack_places` packed.

    Raises:
        LedgerCorrupt: They are none.
    """
    places = array("H")
    try:
        places.frombytes(packed)
    except (TypeError, ValueError) as error:
        raise LedgerCorrupt(f"a row of the history cannot be read: {error}") from error
    if sys.byteorder == "big":
        places.byteswap()
    return places
