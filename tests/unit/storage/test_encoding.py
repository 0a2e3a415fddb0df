"""Entries as bytes: the same bytes for the same entry, exact on the way back, and chained."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from spotledger.domain.accounts import EXTERNAL, Account
from spotledger.domain.journal import Entry
from spotledger.errors import LedgerCorrupt
from spotledger.storage.encoding import (
    chain_hash,
    column,
    decode_changes,
    decode_entry,
    encode_entry,
    genesis_hash,
    key_digest,
)

ANN = Account("ann", "spot")
HUGE = 10**38 - 1


def entry(**changes: Any) -> Entry:
    """Return a freeze of a huge amount, with a request in another script, which has its format and operation."""
    values: dict[str, Any] = {
        "seq": 7,
        "kind": "freeze",
        "key": 'k"\\',
        "booked_ms": 1_700_000_000_000,
        "happened_ms": 5,
        "request": {"reference": "引用 ✓", "units": str(HUGE), "deep": {"key": "a"}},
        "moves": ((0, "available", -HUGE, None), (0, "freeze", HUGE, 7)),
        "balances": ((ANN, "btc", 0, HUGE), (EXTERNAL, "btc", -HUGE, 0)),
        "holds": ((7, HUGE),),
        **changes,
    }
    values["request"] = {"format": 1, "op": values["kind"], **values["request"]}
    return Entry(**values)


#: What is no place among the two balances of the entry.
PLACES = (b"2", b"-1", b"1.5", b"null", b'["ann","spot"]', b"99999999999999999999")
REFUSED: dict[str, Any] = {
    "refusal": {"code": "hold_short", "detail": "so", "details": {"remaining": "1", "n": 3}},
    "moves": (),
    "balances": (),
    "holds": (),
    "happened_ms": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"happened_ms": None},
        {"moves": (), "balances": (), "holds": (), "kind": "list_coin", "request": {"coin": "a", "scale": 18}},
        REFUSED,
        {"key": "null", "request": {"reference": "null", "x": "true", "y": "1.0", "z": None, "n": 2**62}},
    ],
)
def test_entry_written_and_read_again_is_the_same(changes: dict[str, Any]) -> None:
    """Every field comes back with its value and its type, amounts beyond 64 bits too."""
    written = entry(**changes)
    read = decode_entry(encode_entry(written))
    assert read == written
    assert all(isinstance(posting.account, Account) for posting in read.postings)
    assert all(type(posting.units) is int for posting in read.postings)
    assert encode_entry(read) == encode_entry(written)


def test_entry_is_json_with_units_as_text() -> None:
    """Whoever reads it with other tools loses no digit: no amount is a JSON number."""
    document = json.loads(encode_entry(entry()))
    assert document["postings"] == [[0, "available", str(-HUGE)], [0, "freeze", str(HUGE), 7]]
    assert document["balances"][1] == [["@external", "house"], "btc", str(-HUGE), "0"]
    assert document["holds"] == [[7, str(HUGE)]]
    assert document["request"] == {"reference": "引用 ✓", "units": str(HUGE), "deep": {"key": "a"}}
    assert "引用".encode() in encode_entry(entry())
    assert "refusal" not in document
    assert {"postings", "balances", "holds", "happened_ms"}.isdisjoint(json.loads(encode_entry(entry(**REFUSED))))


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"7", b'"x"', b"{}", b"\xff", b'{"seq":1}'),
        encode_entry(entry()).replace(b'"seq":7', b'"seq":"x"'),
        encode_entry(entry()).replace(b'["ann","spot"]', b'["ann"]'),
        *(encode_entry(entry()).replace(b'[0,"freeze"', b'[%s,"freeze"' % place) for place in PLACES),
        encode_entry(entry()).replace(b'"balances":[[["ann","spot"]', b'"other":[[["ann","spot"]'),
        encode_entry(entry()).replace(b'"request":{', b'"request":{"format":2,'),
        encode_entry(entry()).replace(b'"request":{', b'"request":{"op":"freeze",'),
        encode_entry(entry()).replace(str(-HUGE).encode(), b"1.5"),
        encode_entry(entry()).replace(str(-HUGE).encode(), b"many"),
        encode_entry(entry())[:-1],
    ],
)
def test_bytes_that_are_no_entry_are_named(body: bytes) -> None:
    """Anything but an entry is LedgerCorrupt, and no other error."""
    with pytest.raises(LedgerCorrupt):
        decode_entry(body)


@pytest.mark.parametrize("changes", [{}, REFUSED, {"request": {"reference": "r", "expires_ms": 8, "coin": "btc"}}])
def test_changes_of_an_entry_are_those_of_the_whole_entry(changes: dict[str, Any]) -> None:
    """What sealing decodes of an entry is what a reader of it sees, whatever else stands in the entry."""
    whole = entry(**changes)
    found = decode_changes(encode_entry(whole).replace(b'{"seq"', b'{"of a later version":[{}],"seq"'))
    assert (found.seq, found.kind, found.key, found.booked_ms) == (whole.seq, whole.kind, whole.key, whole.booked_ms)
    assert found.balances == whole.balances
    assert found.holds == whole.holds
    assert found.refusal == whole.refusal
    postings = [(*found.balances[place][:2], side, units, hold) for place, side, units, hold in found.postings]
    assert postings == list(whole.postings)
    for name in ("reference", "expires_ms", "coin", "customer", "seq", "scale"):
        assert getattr(found.request, name) == whole.request.get(name)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"null", b"[]", b"{}", b"\xff"),
        *(encode_entry(entry()).replace(b'[0,"freeze"', b'[%s,"freeze"' % place) for place in PLACES[1:-1]),
        encode_entry(entry()).replace(b'["ann","spot"]', b'["ann"]'),
        encode_entry(entry()).replace(b'"request":{', b'"request":{"format":2,'),
        encode_entry(entry()).replace(b'"request":{', b'"request":{"op":"freeze",'),
        encode_entry(entry()).replace(b'"reference":', b'"reference":7,"other":'),
        encode_entry(entry()).replace(str(-HUGE).encode(), b"1.5"),
    ],
)
def test_bytes_that_are_no_changes_are_named(body: bytes) -> None:
    """Sealing takes nothing for an entry that is none."""
    with pytest.raises(LedgerCorrupt):
        decode_changes(body)


def test_entry_that_does_not_say_a_balance_after_is_not_written() -> None:
    """A posting whose balance the entry leaves out has nowhere to point: that is damage, and named as such."""
    with pytest.raises(LedgerCorrupt, match="does not say"):
        encode_entry(entry(moves=((0, "available", -HUGE, None), (2, "available", HUGE, None))))


@pytest.mark.parametrize("request_", [{"op": "deposit"}, {"format": 2}])
def test_entry_whose_request_is_of_another_kind_is_not_written(request_: dict[str, Any]) -> None:
    """What is left out has to be what a reader will put in again."""
    with pytest.raises(LedgerCorrupt, match="is not a freeze of format 1"):
        encode_entry(entry(request=request_))


def test_chain_is_sha256_over_hash_and_body() -> None:
    """Anyone can check the chain: SHA-256 of the hash before it and the bytes, from a first hash of the ledger's id."""
    first = genesis_hash("id")
    assert first == hashlib.sha256(b"spotledger ledger id").digest()
    assert chain_hash(first, b"body") == hashlib.sha256(first + b"body").digest()
    assert genesis_hash("other") != first


def test_key_digest_is_of_the_exact_key() -> None:
    """128 bits of the key as it is: capitals and every character count."""
    assert len(key_digest("k")) == 16
    assert len({key_digest(key) for key in ("k", "K", "k1", "1k", " expire:1", "expire:1")}) == 6


@pytest.mark.parametrize(
    ("units", "value"),
    [
        (0, 0),
        (-1, -1),
        (2**63 - 1, 2**63 - 1),
        (2**63, str(2**63)),
        (-(2**63), -(2**63)),
        (-(2**63) - 1, str(-(2**63) - 1)),
        (HUGE, str(HUGE)),
    ],
)
def test_column_is_an_integer_while_it_fits_64_bits(units: int, value: int | str) -> None:
    """Beyond 64 bits a column holds the decimal text; int() of it is the units either way."""
    assert column(units) == value
    assert type(column(units)) is type(value)
    assert int(column(units)) == units
