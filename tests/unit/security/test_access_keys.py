"""Access keys in memory: which are read from the store again, how they are named, and what a new one is made of."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.errors import InvalidRequest, StoreUnavailable
from spotledger.security.access_keys import (
    NEVER_MS,
    AccessKeyRecord,
    AccessKeyRecords,
    KeyRing,
    ReadyKey,
    checked_addresses,
    checked_expiry,
    checked_label,
    checked_names,
    checked_permissions,
    hint_of,
)
from spotledger.security.addresses import parse_address
from spotledger.security.cipher import AccessKeyDamaged, Cipher
from spotledger.security.signing import UNKNOWN_SECRET
from spotledger.texts import FIT

NOW = 1_562_919_832_183
ACCESSKEY = "11111111-2222-4333-8444-555555555555"


class Stored:
    """The stored access keys, which note what is looked up and listed."""

    def __init__(self, records: AccessKeyRecords) -> None:
        self._records = records
        self.read: list[str] = []
        self.listed: list[tuple[Any, ...]] = []

    def get(self, accesskey: str) -> Any:
        self.read.append(accesskey)
        return self._records.get(accesskey)

    def list(self, *asked: Any) -> Any:
        self.listed.append(asked)
        return self._records.list(*asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


class Clock:
    """A clock that stands still until it is moved."""

    now_ms = NOW

    def __call__(self) -> int:
        return self.now_ms


class Judge:
    """Trusts nobody."""

    def check(self) -> None:
        raise StoreUnavailable("not now")


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    """The access keys of a new ledger."""
    with spotledger.open(tmp_path / "data") as ledger:
        yield Stored(ledger.key_tables.access_keys)


@pytest.fixture
def clock() -> Clock:
    """The clock of the key ring."""
    return Clock()


@pytest.fixture
def ring(stored: Stored, clock: Clock) -> KeyRing:
    """A key ring over them."""
    return KeyRing(stored, Cipher(bytes(32)), clock)


def record_of(**fields: Any) -> AccessKeyRecord:
    """Return a record with these fields."""
    made: dict[str, Any] = {"permissions": ("read",), "label": "bot", "addresses": (), "sealed_secret": b""}
    return AccessKeyRecord(ACCESSKEY, "alice", **{**made, "created_ms": NOW, **fields})


def test_access_key_is_named_by_its_beginning_only() -> None:
    """Wherever it is shown; what is too short to be cut is not shown at all."""
    assert hint_of(ACCESSKEY) == "11111111…"
    assert hint_of("12345678abcdefghi") == "12345678…"
    assert hint_of("12345678abcdefgh") == "…"
    ready = ReadyKey(record_of(), UNKNOWN_SECRET)
    assert repr(ready) == "ReadyKey(11111111…, customer='alice')"
    assert ready.actor == "key:11111111"
    assert ACCESSKEY not in repr(record_of())


def test_ready_key_is_what_its_record_says() -> None:
    """With one time from which it is dead."""
    ready = ReadyKey(record_of(expires_ms=NOW + 5), UNKNOWN_SECRET)
    assert (ready.accesskey, ready.customer, ready.label, ready.created_ms) == (ACCESSKEY, "alice", "bot", NOW)
    assert (ready.permissions, ready.networks, ready.secret) == ({"read"}, (), UNKNOWN_SECRET)
    assert (ready.revoked, ready.dead_from_ms) == (False, NOW + 5)
    assert ReadyKey(record_of(), UNKNOWN_SECRET).dead_from_ms == NEVER_MS
    revoked = ReadyKey(record_of(expires_ms=NOW + 5, revoked_ms=NOW), UNKNOWN_SECRET)
    assert (revoked.revoked, revoked.dead_from_ms) == (True, 0)


def test_addresses_of_an_access_key_that_are_none_are_damage() -> None:
    """It is named by its beginning only."""
    with pytest.raises(AccessKeyDamaged, match=r"^the addresses of the access key 11111111… are none$"):
        ReadyKey(record_of(addresses=("10.0.0.0/8", "nowhere")), UNKNOWN_SECRET)


def test_access_key_without_addresses_may_be_used_from_anywhere() -> None:
    """One with addresses from those only."""
    address = parse_address("192.0.2.1")
    assert address is not None
    for addresses, is_allowed in [((), True), (("10.0.0.0/8", "192.0.2.0/24"), True), (("10.0.0.0/8",), False)]:
        assert ReadyKey(record_of(addresses=addresses), UNKNOWN_SECRET).allows(address) is is_allowed


def test_access_key_that_is_only_given_permissions_has_no_label_and_ends_never(ring: KeyRing) -> None:
    """It may be used from anywhere, and is a UUID of random bits with a secret of 32 bytes."""
    accesskey, secret = ring.create("alice", ["read"])
    record = ring.get(accesskey)
    assert record is not None
    assert (record.label, record.addresses, record.expires_ms, record.created_ms) == ("", (), None, NOW)
    assert uuid.UUID(accesskey).version == 4
    assert len(bytes.fromhex(secret)) == 32


def test_rotated_access_key_begins_anew(ring: KeyRing, clock: Clock) -> None:
    """It was made when it was rotated, and nobody used it yet: the use of the old one is not its own."""
    old, _ = ring.create("alice", ["read"])
    ring.used[old] = NOW + 1
    ring.flush_used()
    clock.now_ms = NOW + 60_000
    new, secret = ring.rotate(old)
    before, after = ring.get(old), ring.get(new)
    assert before is not None
    assert after is not None
    assert (before.revoked_ms, before.last_used_ms) == (NOW + 60_000, NOW + 1)
    assert (after.created_ms, after.revoked_ms, after.last_used_ms) == (NOW + 60_000, None, None)
    assert uuid.UUID(new).version == 4
    assert len(bytes.fromhex(secret)) == 32


def test_list_has_a_thousand_of_all_customers_unless_told_otherwise(ring: KeyRing, stored: Stored) -> None:
    """From the first one on."""
    ring.list()
    ring.list("alice", "key", 5)
    assert stored.listed == [(None, "", 1_000), ("alice", "key", 5)]


def test_access_key_in_use_is_read_from_the_store_once(ring: KeyRing, stored: Stored) -> None:
    """One that does not exist is read each time, so that it takes no room."""
    accesskey, _ = ring.create("alice", ["read"])
    assert ring.in_memory(accesskey) is None
    first = ring.ready(accesskey)
    assert first is not None
    assert [ring.ready(accesskey), ring.in_memory(accesskey)] == [first, first]
    for _ in range(2):
        assert ring.ready("unknown") is None
    assert stored.read == [accesskey, "unknown", "unknown"]


def test_access_key_of_the_older_generation_is_in_memory_still(stored: Stored, clock: Clock) -> None:
    """It is found there without the store; one that was never used is not."""
    ring = KeyRing(stored, Cipher(bytes(32)), clock, generation_limit=2)
    made = [ring.create("alice", ["read"])[0] for _ in range(4)]
    keys = [ring.ready(accesskey) for accesskey in made[:3]]
    assert ring._ready.older
    stored.read.clear()
    assert [ring.in_memory(accesskey) for accesskey in made] == [*keys, None]
    assert [ring.ready(accesskey) for accesskey in made[:3]] == keys
    assert stored.read == []


def test_access_key_that_another_process_revoked_is_read_again(ring: KeyRing, stored: Stored) -> None:
    """And no other one; one that is not in memory need not be."""
    revoked, other = (ring.create("alice", ["read"])[0] for _ in range(2))
    ready = [ring.ready(accesskey) for accesskey in (revoked, other)]
    assert all(key is not None and not key.revoked for key in ready)
    stored.revoke(revoked, NOW)
    stored.read.clear()
    ring.revoked_elsewhere([revoked, "unknown"])
    again = ring.ready(revoked)
    assert again is not None
    assert (again.revoked, again.secret) == (True, UNKNOWN_SECRET)
    assert ring.ready(other) is ready[1]
    assert stored.read == [revoked]


def test_every_access_key_is_read_again_after_everything_was_forgotten(ring: KeyRing, stored: Stored) -> None:
    """Another process may have revoked any of them."""
    accesskey, _ = ring.create("alice", ["read"])
    ring.ready(accesskey)
    stored.revoke(accesskey, NOW)
    ring.forget()
    again = ring.ready(accesskey)
    assert again is not None
    assert again.revoked


def test_revoked_access_key_has_no_secret_in_memory(ring: KeyRing, stored: Stored, clock: Clock) -> None:
    """It stays in memory as revoked, at the time of its revocation, without a look into the store."""
    accesskey, _ = ring.create("alice", ["read"])
    before = ring.ready(accesskey)
    assert before is not None
    assert before.secret is not UNKNOWN_SECRET
    clock.now_ms = NOW + 7
    assert ring.revoke(accesskey)
    stored.read.clear()
    ready = ring.ready(accesskey)
    assert ready is not None
    assert (ready.revoked, ready.secret, stored.read) == (True, UNKNOWN_SECRET, [])
    record = ring.get(accesskey)
    assert record is not None
    assert record.revoked_ms == NOW + 7


def test_no_access_key_is_accepted_while_revocations_are_not_known(ring: KeyRing) -> None:
    """One in memory neither; the fault is passed on as it is."""
    accesskey, _ = ring.create("alice", ["read"])
    assert ring.ready(accesskey) is not None
    assert ring.is_trusted
    ring.trust = Judge()
    assert not ring.is_trusted
    with pytest.raises(StoreUnavailable, match="not now"):
        ring.ready(accesskey)
    ring.trust = None
    assert ring.ready(accesskey) is not None


def test_times_that_were_not_stored_are_kept_with_those_that_came_meanwhile(
    ring: KeyRing, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer time of a key wins, and whatever broke off the write is passed on."""
    keys = [ring.create("alice", ["read"])[0] for _ in range(3)]
    ring.used.update({keys[0]: NOW, keys[1]: NOW + 1})

    def fail(used: dict[str, int]) -> None:
        ring.used.update({keys[1]: NOW + 5, keys[2]: NOW + 6})
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "note_used", fail, raising=False)
    with pytest.raises(KeyboardInterrupt):
        ring.flush_used()
    assert ring.used == {keys[0]: NOW, keys[1]: NOW + 5, keys[2]: NOW + 6}
    monkeypatch.undo()
    assert (ring.flush_used(), ring.used) == (3, {})


def refusal(check: Callable[..., Any], *asked: Any) -> tuple[str, dict[str, Any]]:
    """Return the message and the details of a refusal."""
    with pytest.raises(InvalidRequest) as refused:
        check(*asked)
    return refused.value.message, refused.value.details


def test_addresses_are_kept_as_networks_each_once() -> None:
    """A hundred at most; one text is one address."""
    assert checked_addresses(["10.0.0.1", "10.1.0.0/16", "10.0.0.1/32"]) == ("10.0.0.1/32", "10.1.0.0/16")
    assert checked_addresses("10.0.0.1") == ("10.0.0.1/32",)
    assert checked_addresses(["10.0.0.1"] * 100) == ("10.0.0.1/32",)
    about = {"field": "addresses"}
    assert refusal(checked_addresses, ["10.0.0.1"] * 101) == ("addresses: found 101; at most 100 would pass.", about)
    assert refusal(checked_addresses, ["10.0.0.1/8"]) == (
        "addresses: an address (10.1.2.3) or a network without host bits (10.1.0.0/16) would pass.",
        about,
    )


def test_names_are_kept_in_their_order_each_once() -> None:
    """Whoever asks for others, or for none, is told which there are."""
    known = ("one", "two", "three")
    assert checked_names(["three", "one", "three"], known, "words") == ("one", "three")
    assert checked_names("two", known, "words") == ("two",)
    about = {"field": "words"}
    would_pass = "one or more of one, two, three would pass."
    assert refusal(checked_names, ["z", "one", 7], known, "words") == (f"words: found 7, z; {would_pass}", about)
    assert refusal(checked_names, [], known, "words") == (f"words: found none; {would_pass}", about)
    assert refusal(checked_names, "on", known, "words") == (f"words: found on; {would_pass}", about)
    assert refusal(checked_permissions, []) == (
        "permissions: found none; one or more of read, trade, withdraw would pass.",
        {"field": "permissions"},
    )


def test_label_is_a_line_of_a_hundred_characters_at_most() -> None:
    """It may be empty."""
    for label in ("", "my bot", "é" * 100):
        assert checked_label(label) == label
    for label in ("x" * 101, "a\nb", None, 7):
        assert refusal(checked_label, label) == (f"label: at most 100 {FIT} would pass.", {"field": "label"})


def test_expiry_is_a_time_to_come() -> None:
    """None is for ever, and what is meant as for ever is none."""
    for expires_ms in (None, NOW + 1, NEVER_MS - 1):
        assert checked_expiry(expires_ms, NOW) == expires_ms
    for expires_ms in (NOW, 0, NEVER_MS, True, NOW + 0.5, str(NOW + 1)):
        assert refusal(checked_expiry, expires_ms, NOW) == (
            f"expires_ms: a time in ms since 1970 would pass, later than now ({NOW}) and below 2**62, or none.",
            {"field": "expires_ms"},
        )
    with pytest.raises(InvalidRequest):
        checked_expiry(True, -5)
