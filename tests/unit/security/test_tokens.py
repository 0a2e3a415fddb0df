"""Operator tokens in memory: which are read from the store again, how a refusal is called, whom a header names."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import spotledger
from spotledger.errors import (
    InvalidRequest,
    LastAdminToken,
    LedgerCorrupt,
    NotFound,
    ScopeMissing,
    StoreUnavailable,
    TokenRefused,
)
from spotledger.security import tokens as module
from spotledger.security.addresses import parse_address
from spotledger.security.cipher import AccessKeyDamaged
from spotledger.security.tokens import (
    RECENT_CHARACTERS,
    RECENT_TOKENS,
    SCOPES,
    TokenRecords,
    Tokens,
    check_scope,
    digest_of,
    fingerprint_of,
    token_refused,
)

NOW = 1_562_919_832_183


class Stored:
    """The stored tokens, which note what is looked up and listed."""

    def __init__(self, records: TokenRecords) -> None:
        self._records = records
        self.read: list[bytes] = []
        self.listed: list[tuple[Any, ...]] = []

    def by_digest(self, digest: bytes) -> Any:
        self.read.append(digest)
        return self._records.by_digest(digest)

    def list(self, *asked: Any) -> Any:
        self.listed.append(asked)
        return self._records.list(*asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._records, name)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Stored]:
    """The tokens of a new ledger."""
    with spotledger.open(tmp_path / "data") as ledger:
        yield Stored(ledger.key_tables.tokens)


@pytest.fixture
def tokens(stored: Stored) -> Tokens:
    """What checks them, with a clock that stands still."""
    return Tokens(stored, lambda: NOW)


class Judge:
    """Trusts nobody for the reason that is given."""

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def check(self) -> None:
        raise self.reason


def cause_of(tokens: Tokens, header: str | None) -> str:
    """Return why *header* is refused."""
    with pytest.raises(TokenRefused) as refused:
        tokens.check(header, None)
    return refused.value.cause


def test_token_in_use_is_read_from_the_store_once(tokens: Tokens, stored: Stored) -> None:
    """Then it is in memory, however many are used besides."""
    _, token = tokens.create(["admin"])
    for _ in range(3):
        assert tokens.check(f"Bearer {token}", None).scopes == ("admin",)
    assert stored.read == [digest_of(token)]
    others = [tokens.create(["ledger:read"])[1] for _ in range(RECENT_TOKENS)]
    for other in others:
        tokens.check(f"Bearer {other}", None)
    assert tokens.check(f"Bearer {token}", None).scopes == ("admin",)
    assert stored.read == [digest_of(it) for it in (token, *others)]


def test_tokens_found_without_a_hash_are_bounded(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 at most, none of them long; the one that does not fit any more begins anew."""
    monkeypatch.setattr(module, "RECENT_TOKENS", 3)
    made = [tokens.create(["ledger:read"])[1] for _ in range(4)]
    found = []
    for token in made:
        tokens.check(f"Bearer {token}", None)
        found.append([header.removeprefix("Bearer ") for header in tokens._recent])
    assert found == [made[:1], made[:2], made[:3], made[3:]]
    longest = f"Bearer {made[0]:>{RECENT_CHARACTERS - 7}}"
    tokens.check(f" {longest}", None)
    assert list(tokens._recent) == [f"Bearer {made[3]}"]
    record = tokens.check(longest, None)
    assert tokens._recent[longest] == record


def test_token_that_was_used_lately_is_found_without_a_hash(tokens: Tokens, stored: Stored) -> None:
    """By the whole value of the header: nothing is looked up for one that is kept, and anything else is."""
    record, token = tokens.create(["ledger:read"])
    tokens._recent["Bearer kept"] = record
    assert tokens.check("Bearer kept", "ledger:read") == record
    assert stored.read == []
    assert cause_of(tokens, "Bearer other") == "token_unknown"
    assert cause_of(tokens, "bearer kept") == "token_unknown"
    assert tokens.check(f"Bearer {token}", None) == record
    assert stored.read == [digest_of("other"), digest_of("kept"), digest_of(token)]


def test_revoked_and_unknown_tokens_are_read_each_time(tokens: Tokens, stored: Stored) -> None:
    """They take no room in memory, however often somebody tries them."""
    record, token = tokens.create(["ledger:read"])
    tokens.revoke(record.token_id)
    for _ in range(2):
        assert cause_of(tokens, f"Bearer {token}") == "token_revoked"
        assert cause_of(tokens, "Bearer unknown") == "token_unknown"
    assert stored.read == [digest_of(token), digest_of("unknown")] * 2
    assert (len(tokens._known), tokens._recent) == (0, {})


def test_token_is_read_again_after_everything_was_forgotten(tokens: Tokens, stored: Stored) -> None:
    """Another process may have revoked it meanwhile."""
    record, token = tokens.create(["ledger:read"])
    tokens.check(f"Bearer {token}", None)
    stored.revoke(record.token_id, NOW)
    tokens.check(f"Bearer {token}", None)
    tokens.forget()
    assert cause_of(tokens, f"Bearer {token}") == "token_revoked"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "Bearer é", "XXXX"])
def test_header_without_a_token_is_refused_for_that(tokens: Tokens, stored: Stored, header: str | None) -> None:
    """Nothing is looked up for it."""
    assert cause_of(tokens, header) == "token_missing"
    assert stored.read == []


@pytest.mark.parametrize("header", ["Bearer {}", "Bearer  {}", "bearer  {}", " BEARER {} ", "\tBearer {}"])
def test_header_may_be_written_in_several_ways(tokens: Tokens, header: str) -> None:
    """The name of the scheme has no case, and blanks around it and behind it do not count."""
    record, token = tokens.create(["ledger:read"])
    assert tokens.check(header.format(token), "ledger:read") == record


def test_refused_scope_is_named_in_words_and_for_programs() -> None:
    """The scope that is missing, not those that are there."""
    with pytest.raises(ScopeMissing) as refused:
        check_scope(("ledger:read",), "keys:write")
    assert refused.value.message == "The operator token lacks the scope keys:write."
    assert refused.value.details == {"scope": "keys:write"}
    check_scope(("keys:write",), "keys:write")
    check_scope(("admin",), "keys:write")


def test_cause_of_a_refusal_is_the_one_that_is_given() -> None:
    """And not in the answer."""
    refused = token_refused("token_expired")
    assert refused.cause == "token_expired"
    assert (refused.message, refused.details) == (TokenRefused().message, {})


def test_tokens_are_refused_while_revocations_are_not_known(tokens: Tokens) -> None:
    """Those in memory too; the fault is passed on as it is."""
    _, token = tokens.create(["admin"])
    tokens.check(f"Bearer {token}", None)
    tokens.trust = Judge(StoreUnavailable("not now"))
    with pytest.raises(StoreUnavailable, match="not now"):
        tokens.check(f"Bearer {token}", None)
    tokens.trust = None
    tokens.check(f"Bearer {token}", None)


def test_header_names_its_token_in_use_or_not(tokens: Tokens) -> None:
    """For the access log, which lets nobody in; a name that cannot be looked up is none."""
    record, token = tokens.create(["ledger:read"], "desk")
    assert tokens.named_in(f"Bearer {token}") == record
    for header in (None, "", "Bearer", "Basic abc", "Bearer unknown"):
        assert tokens.named_in(header) is None
    revoked = tokens.revoke(record.token_id)
    assert tokens.named_in(f"Bearer {token}") == revoked
    assert tokens.used == {}
    for reason in (StoreUnavailable(), LedgerCorrupt("the tokens are damaged")):
        tokens.trust = Judge(reason)
        assert tokens.named_in(f"Bearer {token}") is None


def test_addresses_of_a_token_that_are_none_are_damage() -> None:
    """Whoever altered them did not do so through the service; nobody is let in."""
    address = parse_address("10.0.0.1")
    assert address is not None
    with pytest.raises(AccessKeyDamaged, match=r"^the addresses of an operator token are none$"):
        module._is_within(("10.0.0.0/8", "nowhere"), address)


def test_token_that_is_only_given_scopes_has_no_label_and_ends_never(tokens: Tokens) -> None:
    """It may be used from anywhere, and is made of 32 random bytes."""
    record, token = tokens.create(["ledger:read"])
    assert (record.label, record.addresses, record.expires_ms, record.created_ms) == ("", (), None, NOW)
    assert uuid.UUID(record.token_id).version == 4
    assert len(bytes.fromhex(token)) == 32


def test_list_has_a_thousand_tokens_unless_told_otherwise(tokens: Tokens, stored: Stored) -> None:
    """From the first one on."""
    tokens.list()
    tokens.list("id", 5)
    assert stored.listed == [("", 1_000), ("id", 5)]


def test_other_admin_tokens_are_looked_for_page_by_page(
    tokens: Tokens, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the last page, and each from the last token of the one before."""
    monkeypatch.setattr(module, "TOKENS_PAGE", 2)
    admin = tokens.create(["admin"])[0].token_id
    ids = sorted([admin, *(tokens.create(["ledger:read"])[0].token_id for _ in range(4))])
    with pytest.raises(LastAdminToken):
        tokens.revoke(admin)
    assert stored.listed == [("", 2), (ids[1], 2), (ids[3], 2), (ids[4], 2)]


def test_refusal_of_an_id_that_is_none_says_where_ids_are(tokens: Tokens) -> None:
    """In words that help to go on."""
    with pytest.raises(NotFound) as refused:
        tokens.revoke("nobody")
    assert refused.value.message == "There is no such operator token; the list of tokens has those that exist."


def test_fingerprint_is_the_beginning_of_the_hash(tokens: Tokens) -> None:
    """16 hex digits of the SHA-256."""
    record, _ = tokens.create(["ledger:read"], token="ab" * 32)
    assert record.digest == digest_of("ab" * 32)
    assert fingerprint_of(record) == record.digest.hex()[:16]
    assert len(fingerprint_of(record)) == 16


def test_times_that_were_not_stored_are_kept_with_those_that_came_meanwhile(
    tokens: Tokens, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer time of a token wins, and whatever broke off the write is passed on."""
    ids = [tokens.create(["ledger:read"])[0].token_id for _ in range(3)]
    tokens.used.update({ids[0]: NOW, ids[1]: NOW + 1})

    def fail(used: dict[str, int]) -> None:
        tokens.used.update({ids[1]: NOW + 5, ids[2]: NOW + 6})
        raise KeyboardInterrupt

    monkeypatch.setattr(stored, "note_used", fail, raising=False)
    with pytest.raises(KeyboardInterrupt):
        tokens.flush_used()
    assert tokens.used == {ids[0]: NOW, ids[1]: NOW + 5, ids[2]: NOW + 6}
    monkeypatch.undo()
    assert (tokens.flush_used(), tokens.used) == (3, {})
    assert {it.token_id: it.last_used_ms for it in tokens.list()} == {ids[0]: NOW, ids[1]: NOW + 5, ids[2]: NOW + 6}


@pytest.mark.parametrize(("scopes", "found"), [([], "none"), (["root", "admin"], "root")])
def test_token_without_scopes_that_there_are_is_refused_naming_them(
    tokens: Tokens, scopes: list[str], found: str
) -> None:
    """Which were found, and which there are."""
    with pytest.raises(InvalidRequest) as refused:
        tokens.create(scopes)
    assert refused.value.message == f"scopes: found {found}; one or more of {', '.join(SCOPES)} would pass."
    assert refused.value.details == {"field": "scopes"}


@pytest.mark.parametrize("text", ["é", "\ud800", "x\0y", ""])
def test_text_that_is_no_token_is_unknown(tokens: Tokens, text: str) -> None:
    """Whatever is in it, such as what a damaged file of a token may hold."""
    assert tokens.find(text) is None


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "xy" * 32, "ab" * 32 + "\n"])
def test_token_of_another_form_is_not_taken_over(tokens: Tokens, text: str) -> None:
    """64 hex digits would pass."""
    with pytest.raises(InvalidRequest) as refused:
        tokens.create(["admin"], token=text)
    assert (refused.value.message, refused.value.details) == ("token: 64 hex digits would pass.", {"field": "token"})
