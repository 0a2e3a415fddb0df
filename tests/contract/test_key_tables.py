"""Access keys and operator tokens: made, listed, rotated, revoked, and kept, in every store alike."""

from __future__ import annotations

import ipaddress
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.errors import (
    AccessKeyRevoked,
    AccessKeyUnknown,
    InvalidRequest,
    LastAdminToken,
    NotFound,
    ScopeMissing,
    StoreUnavailable,
    TokenRefused,
)
from spotledger.security.access_keys import NEVER_MS, KeyRing
from spotledger.security.cipher import Cipher
from spotledger.security.tokens import LAST_ADMIN_MARGIN_MS, SCOPES, TokenRecord, Tokens
from spotledger.storage.postgres.connection import connect
from spotledger.storage.postgres.keys import PostgresKeyTables
from spotledger.storage.postgres.schema import migrate
from spotledger.storage.sqlite.keys import SqliteKeyTables

NOW = 1_562_919_832_183
Tables = SqliteKeyTables | PostgresKeyTables
Open = Callable[[], Tables]


def open_embedded(tmp_path: Path) -> Iterator[Open]:
    """Give what opens the key tables of a ledger file, again and again."""
    opened: list[Any] = []

    def open_them() -> SqliteKeyTables:
        for ledger in opened:
            ledger.close()
        opened.append(spotledger.open(tmp_path))
        return opened[-1].key_tables  # type: ignore[no-any-return]

    yield open_them
    for ledger in opened:
        ledger.close()


def open_postgres(url: str) -> Iterator[Open]:
    """Give what opens the key tables of a database, again and again."""
    opened: list[PostgresKeyTables] = []
    with connect(url) as connection:
        migrate(connection)

    def open_them() -> PostgresKeyTables:
        opened.append(PostgresKeyTables(lambda: connect(url)))
        return opened[-1]

    yield open_them
    for tables in opened:
        tables.close()


@pytest.fixture(params=["embedded", "postgres"])
def open_tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Give what opens the key tables of a new ledger, in each store in turn."""
    if request.param == "embedded":
        yield from open_embedded(tmp_path)
    else:
        yield from open_postgres(request.getfixturevalue("postgres_url"))


@pytest.fixture
def tables(open_tables: Open) -> Tables:
    """Open the key tables of a new ledger."""
    return open_tables()


@pytest.fixture
def ring(tables: Tables) -> KeyRing:
    """Make a key ring over the tables, with a clock that stands still."""
    return KeyRing(tables.access_keys, Cipher(bytes(32)), lambda: NOW)


def test_create_stores_what_was_asked_and_never_the_secret(ring: KeyRing, tables: Tables) -> None:
    """The record has every field; the secret is nowhere in the file but sealed."""
    accesskey, secret = ring.create("alice", ["withdraw", "read"], "my bot", ["10.0.0.0/8", "::1"], NOW + 5)
    record = ring.get(accesskey)
    assert record is not None
    assert (record.customer, record.permissions, record.label) == ("alice", ("read", "withdraw"), "my bot")
    assert (record.addresses, record.created_ms, record.expires_ms) == (("10.0.0.0/8", "::1/128"), NOW, NOW + 5)
    assert (record.revoked_ms, record.last_used_ms) == (None, None)
    assert secret.encode() not in record.sealed_secret
    assert bytes.fromhex(secret) not in record.sealed_secret
    assert secret not in str(tables.rows("SELECT * FROM access_keys"))
    ready = ring.ready(accesskey)
    assert ready is not None
    assert ready.dead_from_ms == NOW + 5


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("permissions", {"permissions": []}),
        ("permissions", {"permissions": ["read", "admin"]}),
        ("permissions", {"permissions": [7]}),
        ("label", {"label": "x" * 101}),
        ("label", {"label": "a\nb"}),
        ("label", {"label": None}),
        ("addresses", {"addresses": ["10.0.0.1/8"]}),
        ("addresses", {"addresses": ["localhost"]}),
        ("addresses", {"addresses": [None]}),
        ("addresses", {"addresses": [7]}),
        ("addresses", {"addresses": [b"\x0a\0\0\1"]}),
        ("addresses", {"addresses": ["10.0.0.1"] * 101}),
        ("expires_ms", {"expires_ms": NOW}),
        ("expires_ms", {"expires_ms": True}),
        ("expires_ms", {"expires_ms": NOW + 0.5}),
        ("expires_ms", {"expires_ms": NEVER_MS}),
    ],
)
def test_create_with_a_wrong_field_is_refused_naming_it(ring: KeyRing, field: str, asked: dict[str, Any]) -> None:
    """Each argument that is not as documented is refused by its name, and nothing is stored."""
    with pytest.raises(InvalidRequest) as refused:
        ring.create(**{"customer": "alice", "permissions": ["read"], **asked})
    assert refused.value.details["field"] == field
    assert ring.list() == []


def test_mapped_network_in_an_address_list_is_its_ipv4_network(ring: KeyRing) -> None:
    """An IPv4 network in IPv6 clothes lets in what the IPv4 one would, since addresses are compared as IPv4."""
    accesskey, _ = ring.create("alice", ["read"], addresses=["::ffff:10.0.0.0/104", "::ffff:192.0.2.1", "::/0"])
    record, ready = ring.get(accesskey), ring.ready(accesskey)
    assert record is not None
    assert record.addresses == ("10.0.0.0/8", "192.0.2.1/32", "::/0")
    assert ready is not None
    allowed = [ready.allows(ipaddress.ip_address(text)) for text in ("10.9.9.9", "192.0.2.1", "192.0.2.2", "2001::")]
    assert allowed == [True, True, False, True]


def test_list_goes_page_by_page_and_by_customer(ring: KeyRing) -> None:
    """Pages follow each other in the order of the access keys, of all customers or of one."""
    made = sorted(ring.create(customer, ["read"])[0] for customer in ("alice", "bob") * 5)
    first = ring.list(limit=4)
    rest = ring.list(after=first[-1].accesskey)
    assert [record.accesskey for record in first + rest] == made
    assert {record.customer for record in ring.list("bob")} == {"bob"}
    assert len(ring.list("bob")) == 5
    assert ring.list("carol") == []


def test_revoke_is_for_ever_and_told_once(ring: KeyRing) -> None:
    """The first revocation says that the key was alive, the second that it was not, an unknown key is refused."""
    accesskey, _ = ring.create("alice", ["read"])
    assert ring.revoke(accesskey)
    assert not ring.revoke(accesskey)
    ready = ring.ready(accesskey)
    assert ready is not None
    assert (ready.revoked, ready.dead_from_ms) == (True, 0)
    with pytest.raises(AccessKeyUnknown):
        ring.revoke(str(uuid.uuid4()))


def test_revoked_key_is_not_revived_by_a_reader_that_came_first(ring: KeyRing, tables: Tables) -> None:
    """After revoking, the dead key stays in memory, so that a record read a moment before can't replace it."""
    accesskey, _ = ring.create("alice", ["read"])
    ring.revoke(accesskey)
    with tables.together() as write:
        write.execute("UPDATE access_keys SET revoked_ms = NULL")
    ready = ring.ready(accesskey)
    assert ready is not None
    assert ready.revoked


def test_rotate_keeps_everything_but_key_and_secret(ring: KeyRing) -> None:
    """The new key may do what the old one could, and the old one is dead; a dead one can't be rotated."""
    old, old_secret = ring.create("alice", ["trade"], "bot", ["10.0.0.0/8"], NOW + 9)
    new, new_secret = ring.rotate(old)
    assert old != new
    assert old_secret != new_secret
    before, after = ring.get(old), ring.get(new)
    assert before is not None
    assert after is not None
    assert before.revoked_ms == NOW
    assert (after.customer, after.permissions, after.label, after.addresses, after.expires_ms) == (
        *("alice", ("trade",), "bot", ("10.0.0.0/8",)),
        NOW + 9,
    )
    with pytest.raises(AccessKeyRevoked):
        ring.rotate(old)
    with pytest.raises(AccessKeyUnknown):
        ring.rotate("no-such-key")
    assert len(ring.list()) == 2


def test_ready_keys_are_bounded_and_still_all_usable(tables: Tables) -> None:
    """More keys than fit into memory work all the same; what was forgotten is read again."""
    ring = KeyRing(tables.access_keys, Cipher(bytes(32)), lambda: NOW, generation_limit=2)
    keys = [ring.create("alice", ["read"])[0] for _ in range(10)]
    for _ in range(3):
        assert all(ring.ready(key) is not None for key in keys)
        assert len(ring._ready) <= 4
    assert ring.ready("unknown") is None


def test_flush_used_stores_in_bulk_and_never_goes_back(ring: KeyRing) -> None:
    """When keys were last used is stored at once for all; an earlier time does not replace a later one."""
    keys = [ring.create("alice", ["read"])[0] for _ in range(3)]
    ring.used.update({keys[0]: NOW, keys[1]: NOW + 1, "unknown": 5})
    assert ring.flush_used() == 3
    assert ring.flush_used() == 0
    ring.used[keys[0]] = NOW - 100
    ring.flush_used()
    used = {record.accesskey: record.last_used_ms for record in ring.list()}
    assert used == {keys[0]: NOW, keys[1]: NOW + 1, keys[2]: None}


def test_flush_used_that_fails_loses_nothing(ring: KeyRing, tables: Tables) -> None:
    """What could not be stored is kept for the next time, and newer times win over it."""
    accesskey, _ = ring.create("alice", ["read"])
    ring.used[accesskey] = NOW
    with tables.together() as write:
        write.execute("ALTER TABLE access_keys RENAME TO gone")
    with pytest.raises(StoreUnavailable):
        ring.flush_used()
    assert ring.used == {accesskey: NOW}


def write_twice(ring: KeyRing, tables: Tables) -> None:
    """Make an access key and keep one request twice, which fails, all in one block."""
    with tables.together():
        ring.create("alice", ["read"])
        tables.kept_requests.keep("k2", "{}", "{}")
        tables.kept_requests.keep("k2", "{}", "{}")


def test_together_is_all_or_nothing(ring: KeyRing, tables: Tables) -> None:
    """Writes inside one block are one transaction, which reads inside it see and an exception undoes."""
    with tables.together():
        accesskey, _ = ring.create("alice", ["read"])
        tables.kept_requests.keep("k1", "{}", "{}")
        assert tables.kept_requests.get("k1") == ("{}", "{}")
        assert ring.get(accesskey) is not None
    with pytest.raises(StoreUnavailable):
        write_twice(ring, tables)
    assert [record.accesskey for record in ring.list()] == [accesskey]
    assert tables.kept_requests.get("k2") is None
    with pytest.raises(StoreUnavailable):
        tables.kept_requests.keep("k1", "{}", "{}")


def test_master_key_mark_is_kept_across_a_restart(open_tables: Open) -> None:
    """The fingerprint of the master key stays with the ledger, and so do the keys."""
    tables = open_tables()
    assert tables.master_key_fingerprint is None
    tables.master_key_fingerprint = "abc"
    accesskey, _ = KeyRing(tables.access_keys, Cipher(bytes(32)), lambda: NOW).create("alice", ["read"])
    again = open_tables()
    assert again.master_key_fingerprint == "abc"
    ring = KeyRing(again.access_keys, Cipher(bytes(32)), lambda: NOW)
    assert ring.ready(accesskey) is not None


@pytest.fixture
def tokens(tables: Tables) -> Tokens:
    """Make the operator tokens over the tables."""
    return Tokens(tables.tokens, lambda: NOW)


def test_token_lets_in_by_its_scopes(tokens: Tokens) -> None:
    """A token may do what its scopes say, admin everything, and the rest is refused naming the scope."""
    _, reader = tokens.create(["ledger:read"], "reader")
    _, admin = tokens.create(["admin"])
    assert tokens.check(f"Bearer {reader}", "ledger:read").label == "reader"
    for scope in SCOPES:
        assert tokens.check(f"bearer  {admin}", scope).scopes == ("admin",)
    with pytest.raises(ScopeMissing, match="ledger:write"):
        tokens.check(f"Bearer {reader}", "ledger:write")


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer \ud800", "é" * 64]
)
def test_token_header_of_another_form_is_refused(tokens: Tokens, header: str | None) -> None:
    """Only a known bearer token lets in."""
    with pytest.raises(TokenRefused):
        tokens.check(header, "ledger:read")
    with pytest.raises(TokenRefused):
        tokens.check(f"Bearer {'0' * 64}", "ledger:read")


def test_token_is_kept_as_its_hash_alone(tokens: Tokens, tables: Tables) -> None:
    """The token can't be read back from the file or from its record."""
    record, token = tokens.create(["admin"])
    stored = str(tables.rows("SELECT * FROM operator_tokens"))
    assert token not in stored
    assert token not in repr(record)
    assert bytes.fromhex(token) != record.digest


def test_revoked_token_is_refused_at_once(tokens: Tokens) -> None:
    """A token that was in use a moment ago is refused from its revocation on."""
    record, token = tokens.create(["ledger:read"])
    tokens.check(f"Bearer {token}", "ledger:read")
    revoked = tokens.revoke(record.token_id)
    assert (revoked.token_id, revoked.revoked_ms) == (record.token_id, NOW)
    assert tokens.revoke(record.token_id) == revoked
    with pytest.raises(TokenRefused):
        tokens.check(f"Bearer {token}", "ledger:read")
    assert tokens.list() == [revoked]


@pytest.mark.parametrize("token_id", ["", "nobody", "x\0y", "é", "00000000-0000-0000-0000-000000000000"])
def test_token_that_is_not_there_cannot_be_revoked(tokens: Tokens, token_id: str) -> None:
    """An id that names no token is said to be none, whatever is in it, and nothing is revoked."""
    tokens.create(["admin"])
    with pytest.raises(NotFound):
        tokens.revoke(token_id)
    assert [listed.revoked_ms for listed in tokens.list()] == [None]


def test_last_admin_token_cannot_be_revoked(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that may make tokens stays: others count only if they are in use and may do it too, on whatever page."""
    monkeypatch.setattr("spotledger.security.tokens.TOKENS_PAGE", 1)
    last, token = tokens.create(["admin", "ledger:read"])
    for _ in range(3):
        tokens.create(["ledger:read", "ledger:write", "keys:write"])
        tokens.revoke(tokens.create(["admin"])[0].token_id)
    with pytest.raises(LastAdminToken):
        tokens.revoke(last.token_id)
    assert tokens.check(f"Bearer {token}", "admin") == last
    following, _ = tokens.create(["admin"])
    assert tokens.revoke(last.token_id).revoked_ms == NOW
    with pytest.raises(LastAdminToken):
        tokens.revoke(following.token_id)


def test_token_that_is_there_already_can_be_taken_over(tokens: Tokens) -> None:
    """A text from operator.token can be made a token; one of another form, or without scopes, can't."""
    tokens.create(SCOPES, token="ab" * 32)
    assert tokens.check(f"Bearer {'ab' * 32}", "admin").scopes == SCOPES
    for wrong in ({"scopes": [], "token": None}, {"scopes": ["root"], "token": None}, {"scopes": SCOPES, "token": "x"}):
        with pytest.raises(InvalidRequest):
            tokens.create(**wrong)


def refusal(tokens: Tokens, token: str, address: str = "192.0.2.1") -> str | None:
    """Return why *token* is refused at *address*; check that the answer says no more than of an unknown token."""
    try:
        tokens.check(f"Bearer {token}", "ledger:read", lambda: ipaddress.ip_address(address))
    except TokenRefused as error:
        refused = error
    else:
        return None
    assert (str(refused), refused.details) == (str(TokenRefused()), {})
    return refused.cause


def test_token_has_every_field_that_was_asked_for(open_tables: Open) -> None:
    """Label, scopes, addresses and expiry are stored, and read again from the store alike."""
    tokens = Tokens(open_tables().tokens, lambda: NOW)
    made, _ = tokens.create(["ledger:control"], "desk", ["10.0.0.0/8", "::1", "10.0.0.0/8"], NOW + 5)
    assert made == TokenRecord(
        made.token_id, made.digest, ("ledger:control",), "desk", NOW, NOW + 5, ("10.0.0.0/8", "::1/128")
    )
    assert Tokens(open_tables().tokens, lambda: NOW).list() == [made]


@pytest.mark.parametrize(
    ("field", "asked"),
    [
        ("label", {"label": "a\nb"}),
        ("addresses", {"addresses": ["10.0.0.1/8"]}),
        ("addresses", {"addresses": ["localhost"]}),
        ("addresses", {"addresses": [7]}),
        ("addresses", {"addresses": ["10.0.0.1"] * 101}),
        ("expires_ms", {"expires_ms": NOW}),
        ("expires_ms", {"expires_ms": True}),
        ("expires_ms", {"expires_ms": NEVER_MS}),
        ("expires_ms", {"expires_ms": "1"}),
    ],
)
def test_token_with_a_malformed_field_is_not_made(tokens: Tokens, field: str, asked: dict[str, Any]) -> None:
    """A field of another form is refused by its name, and no token is made."""
    with pytest.raises(InvalidRequest) as refused:
        tokens.create(["ledger:read"], **asked)
    assert refused.value.details["field"] == field
    assert tokens.list() == []


def test_token_is_refused_from_its_expiry_on(tables: Tables) -> None:
    """The last millisecond before the expiry passes and the next one does not, by the clock of the ledger."""
    now = [NOW]
    tokens = Tokens(tables.tokens, lambda: now[0])
    _, token = tokens.create(["ledger:read"], expires_ms=NOW + 1_000)
    for now_ms, cause in (
        (NOW, None),
        (NOW + 999, None),
        (NOW + 1_000, "token_expired"),
        (NOW + 9_999, "token_expired"),
    ):
        now[0] = now_ms
        assert refusal(tokens, token) == cause
        assert refusal(Tokens(tables.tokens, lambda: now[0]), token) == cause


def test_token_is_refused_from_another_address(tokens: Tokens) -> None:
    """A token passes from the addresses and networks that it has and from no other; one without a list from any."""
    _, limited = tokens.create(["ledger:read"], addresses=["10.1.0.0/16", "192.0.2.7", "2001:db8::/32"])
    _, free = tokens.create(["ledger:read"])
    for address in ("10.1.255.255", "192.0.2.7", "2001:db8::9"):
        assert refusal(tokens, limited, address) is None
    for address in ("10.2.0.0", "192.0.2.8", "2001:db9::1", "::", "255.255.255.255"):
        assert refusal(tokens, limited, address) == "token_address"
        assert refusal(tokens, free, address) is None
    with pytest.raises(TokenRefused):
        tokens.check(f"Bearer {limited}", "ledger:read")


def test_causes_of_a_refused_token_come_in_order(tables: Tables) -> None:
    """Revoked comes before expired, expired before the address, and the address before a missing scope."""
    now = [NOW]
    tokens = Tokens(tables.tokens, lambda: now[0])
    record, token = tokens.create(["keys:write"], addresses=["10.0.0.1"], expires_ms=NOW + 10)
    assert refusal(tokens, token) == "token_address"
    with pytest.raises(ScopeMissing):
        tokens.check(f"Bearer {token}", "ledger:read", lambda: ipaddress.ip_address("10.0.0.1"))
    now[0] = NOW + 10
    assert refusal(tokens, token) == "token_expired"
    tokens.revoke(record.token_id)
    assert refusal(tokens, token) == "token_revoked"
    assert refusal(tokens, "0" * 64) == "token_unknown"


def test_admin_token_that_expires_within_a_day_does_not_count_as_another(tables: Tables) -> None:
    """The last admin token stays unless another one is in use for a day; one that has expired can be revoked."""
    now = [NOW]
    tokens = Tokens(tables.tokens, lambda: now[0])
    last, _ = tokens.create(["admin"])
    short, _ = tokens.create(["admin"], expires_ms=NOW + LAST_ADMIN_MARGIN_MS)
    with pytest.raises(LastAdminToken):
        tokens.revoke(last.token_id)
    long, _ = tokens.create(["admin"], expires_ms=NOW + LAST_ADMIN_MARGIN_MS + 2)
    now[0] = NOW + 2
    with pytest.raises(LastAdminToken):
        tokens.revoke(last.token_id)
    now[0] = NOW + 1
    assert tokens.revoke(last.token_id).revoked_ms == NOW + 1
    with pytest.raises(LastAdminToken):
        tokens.revoke(long.token_id)
    now[0] = NOW + LAST_ADMIN_MARGIN_MS
    assert tokens.revoke(short.token_id).revoked_ms == now[0]
    with pytest.raises(LastAdminToken):
        tokens.revoke(long.token_id)


def test_labels_are_those_of_the_tokens_that_exist(tokens: Tokens) -> None:
    """Ids of tokens that are not there, and texts that are no ids, have no label; revoked tokens keep theirs."""
    first, second = tokens.create(["admin"], "first")[0], tokens.create(["ledger:read"])[0]
    tokens.revoke(second.token_id)
    ids = [first.token_id, "nobody", second.token_id, "x\0y", "é", "' OR 1=1 --"]
    assert tokens.labels(ids) == {first.token_id: "first", second.token_id: ""}
    for nothing in ([], ["é"], ["x\0y", "é"], ["nobody"]):
        assert tokens.labels(nothing) == {}


def test_last_use_of_a_token_is_stored_by_the_flush(tables: Tables) -> None:
    """Who was let in is collected in memory, stored by the flush, never set back, and kept after a failure."""
    now = [NOW]
    tokens, others = Tokens(tables.tokens, lambda: now[0]), Tokens(tables.tokens, lambda: NOW - 7)
    record, token = tokens.create(["ledger:read"])
    for wrong in ("0" * 64, "x"):
        assert refusal(tokens, wrong) == "token_unknown"
    with pytest.raises(ScopeMissing):
        tokens.check(f"Bearer {token}", "admin")
    assert tokens.flush_used() == 0
    assert refusal(tokens, token) is None
    assert refusal(others, token) is None
    assert tokens.used == {record.token_id: NOW}
    assert [listed.last_used_ms for listed in tokens.list()] == [None]
    assert (tokens.flush_used(), others.flush_used(), tokens.flush_used()) == (1, 1, 0)
    assert [listed.last_used_ms for listed in tokens.list()] == [NOW]
    now[0] = NOW + 3
    assert refusal(tokens, token) is None
    with tables.together() as write:
        write.execute("ALTER TABLE operator_tokens RENAME TO gone")
    with pytest.raises(StoreUnavailable):
        tokens.flush_used()
    assert tokens.used == {record.token_id: NOW + 3}
