"""Operator tokens: 256 random bits, of which only the SHA-256 is stored."""

from __future__ import annotations

import hashlib
import re
import secrets
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

from spotledger.errors import (
    InvalidRequest,
    LastAdminToken,
    LedgerCorrupt,
    NotFound,
    ScopeMissing,
    SpotledgerError,
    TokenRefused,
)
from spotledger.security.access_keys import (
    Trust,
    checked_addresses,
    checked_expiry,
    checked_label,
    checked_names,
    flush_used,
)
from spotledger.security.addresses import NO_ADDRESS, IpAddress, IpNetwork, parse_network
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.cipher import AccessKeyDamaged

SCOPES = ("ledger:read", "ledger:write", "ledger:control", "keys:write", "metrics:read", "admin")
TOKEN_BYTES = 32
FINGERPRINT_DIGITS = 16
#: Half the number of tokens that are kept in memory.
TOKENS_GENERATION = 1_000
#: How many tokens that were used lately are found without a hash.
RECENT_TOKENS = 64
#: The longest value of ``Authorization`` that is kept for that; the usual one has 71.
RECENT_CHARACTERS = 128
#: How many tokens are read at a time.
TOKENS_PAGE = 1_000
#: An admin token that expires sooner does not count as the other one that has to be in use when one is revoked.
LAST_ADMIN_MARGIN_MS = 24 * 3_600_000

_TOKEN = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
_BEARER = re.compile(r"bearer +([!-~]+)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """
    One operator token as it is stored: its SHA-256, never the token itself.

    ``addresses`` are CIDR, empty for anywhere; times are ms since 1970, None for never.
    """

    token_id: str
    digest: bytes = field(repr=False)
    scopes: tuple[str, ...]
    label: str
    created_ms: int
    expires_ms: int | None = None
    addresses: tuple[str, ...] = ()
    revoked_ms: int | None = None
    last_used_ms: int | None = None

    def is_in_use(self, at_ms: int) -> bool:
        """Say whether the token is neither revoked nor expired at *at_ms*."""
        return self.revoked_ms is None and (self.expires_ms is None or at_ms < self.expires_ms)


class TokenRecords(Protocol):
    """Where operator tokens are stored."""

    def together(self) -> AbstractContextManager[object]:
        """Read and write in one transaction for the length of a ``with`` block; other writes wait."""

    def get(self, token_id: str) -> TokenRecord | None:
        """Return the record of the token with this id, or None."""

    def by_digest(self, digest: bytes) -> TokenRecord | None:
        """Return the record of the token whose SHA-256 is *digest*, or None."""

    def insert(self, record: TokenRecord) -> None:
        """Store a new record."""

    def list(self, after: str, limit: int) -> list[TokenRecord]:
        """Return at most *limit* records after the id *after*, in order of their ids."""

    def revoke(self, token_id: str, now_ms: int) -> bool:
        """Mark the token as revoked at *now_ms*; return whether it existed and was not revoked before."""

    def labels(self, token_ids: Sequence[str]) -> dict[str, str]:
        """Return the labels of the tokens with these ids, by id, of those that exist."""

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when tokens were last used: token id → ms since 1970."""


class Tokens:
    """
    Makes, revokes and checks operator tokens. Other processes have to `forget` a token that is revoked here.

    When tokens were last used is collected in memory until `flush_used` stores it.
    """

    def __init__(self, records: TokenRecords, clock_ms: Callable[[], int]) -> None:
        self._records = records
        self._clock_ms = clock_ms
        self._known: BoundedDict[bytes, TokenRecord] = BoundedDict(TOKENS_GENERATION)
        #: Records of tokens not revoked, by the value of ``Authorization``; all of them are in `_known` too.
        self._recent: dict[str, TokenRecord] = {}
        # Held from reading a record until it is in memory, so that a record read before a revocation is not kept.
        self._changing = threading.Lock()
        #: Token id → when it was last used, since the last flush.
        self.used: dict[str, int] = {}
        #: As `KeyRing.trust`.
        self.trust: Trust | None = None

    @property
    def now_ms(self) -> int:
        """The time by which tokens expire."""
        return self._clock_ms()

    def create(
        self,
        scopes: Iterable[str],
        label: str = "",
        addresses: Iterable[str] = (),
        expires_ms: int | None = None,
        *,
        token: str | None = None,
    ) -> tuple[TokenRecord, str]:
        """
        Make a token with *scopes* and store its hash.

        Args:
            scopes: At least one of `SCOPES`; ``admin`` includes all of them.
            label: A line of at most 100 characters.
            addresses: Addresses or networks (``10.1.0.0/16``) that it may be used from; none for anywhere.
            expires_ms: When it expires, in ms since 1970, later than now; None for never.
            token: Use this token (64 hex digits), such as one from ``operator.token``, instead of a random one.

        Returns:
            The record and the token, which cannot be read again.

        Raises:
            InvalidRequest: One of the arguments is not as above; ``field`` names it.
        """
        now_ms = self._clock_ms()
        text = secrets.token_hex(TOKEN_BYTES) if token is None else token
        if not _TOKEN.fullmatch(text):
            raise InvalidRequest("token: 64 hex digits would pass.", field="token")
        record = TokenRecord(
            token_id=str(uuid.uuid4()),
            digest=digest_of(text),
            scopes=checked_scopes(scopes),
            label=checked_label(label),
            created_ms=now_ms,
            expires_ms=checked_expiry(expires_ms, now_ms),
            addresses=checked_addresses(addresses),
        )
        self._records.insert(record)
        return record, text

    def check(
        self, header: str | None, scope: str | None, address: Callable[[], IpAddress] = lambda: NO_ADDRESS
    ) -> TokenRecord:
        """
        Return the record of the token in *header*, if it has *scope*.

        Args:
            header: The value of ``Authorization``, or None if it is missing.
            scope: The scope that it needs; None: any token passes.
            address: Returns where the request comes from; called if the token may not be used from anywhere.

        Raises:
            TokenRefused: There is no bearer token, or it is unknown, revoked, expired, or not for this address.
            ScopeMissing: The token has neither *scope* nor ``admin``.
        """
        record = self._recent.get(header or "")
        if record is None:
            record = self._found(header or "")
        elif self.trust is not None:
            self.trust.check()
        now_ms = self._clock_ms()
        if not record.is_in_use(now_ms):
            raise token_refused("token_expired" if record.revoked_ms is None else "token_revoked")
        if record.addresses and not _is_within(record.addresses, address()):
            raise token_refused("token_address")
        if scope is not None:
            check_scope(record.scopes, scope)
        self.used[record.token_id] = now_ms
        return record

    def _found(self, header: str) -> TokenRecord:
        """Return the record of the token in *header*, to be found without a hash from now on."""
        token = _bearer_token(header)
        if token is None:
            raise token_refused("token_missing")
        if self.trust is not None:
            self.trust.check()
        with self._changing:
            record = self._read(token)
            if record is None:
                raise token_refused("token_unknown")
            if record.revoked_ms is None and len(header) <= RECENT_CHARACTERS:
                if len(self._recent) >= RECENT_TOKENS:
                    self._recent.clear()
                self._recent[header] = record
            return record

    def find(self, token: str) -> TokenRecord | None:
        """
        Return the record of *token*, revoked and expired ones too; None if it is unknown.

        Raises:
            StoreUnavailable: Whether the token was revoked cannot be determined now.
        """
        if self.trust is not None:
            self.trust.check()
        with self._changing:
            return self._read(token)

    def _read(self, token: str) -> TokenRecord | None:
        """Return the record of *token*, and keep it in memory unless it is revoked."""
        # The look-up is by hash, so its duration says nothing about the token.
        digest = digest_of(token)
        record = self._known.get(digest)
        if record is None:
            record = self._records.by_digest(digest)
            if record is not None and record.revoked_ms is None:
                self._known.put(digest, record)
        return record

    def named_in(self, header: str | None) -> TokenRecord | None:
        """Return the record of the token in *header*, in use or not; None if it is unknown, or cannot be looked up."""
        token = _bearer_token(header or "")
        try:
            return None if token is None else self.find(token)
        except (SpotledgerError, LedgerCorrupt):
            return None

    def list(self, after: str = "", limit: int = 1000) -> list[TokenRecord]:
        """Return at most *limit* records after the id *after*."""
        return self._records.list(after, limit)

    def labels(self, token_ids: Sequence[str]) -> dict[str, str]:
        """Return the labels of the tokens with these ids, by id, of those that exist."""
        return self._records.labels(token_ids)

    def revoke(self, token_id: str) -> TokenRecord:
        """
        Revoke the token for ever, and return its record; revoking it again changes nothing.

        Raises:
            NotFound: There is no such token.
            LastAdminToken: It is in use, and no other token with the scope ``admin`` is good for more than a day.
        """
        try:
            # In one transaction, so that the last two admin tokens cannot both be revoked at the same time.
            with self._records.together():
                record = self._records.get(token_id)
                if record is None:
                    raise NotFound("There is no such operator token; the list of tokens has those that exist.")
                if record.revoked_ms is None:
                    now_ms = self._clock_ms()
                    is_admin = "admin" in record.scopes and record.is_in_use(now_ms)
                    if is_admin and not self._is_other_admin(token_id, now_ms + LAST_ADMIN_MARGIN_MS):
                        raise LastAdminToken
                    self._records.revoke(token_id, now_ms)
                    record = replace(record, revoked_ms=now_ms)
        finally:
            self.forget()
        return record

    def _is_other_admin(self, token_id: str, at_ms: int) -> bool:
        """Say whether a token other than *token_id* is in use at *at_ms* and has the scope ``admin``."""
        page = self.list(limit=TOKENS_PAGE)
        while page:
            if any("admin" in it.scopes and it.is_in_use(at_ms) and it.token_id != token_id for it in page):
                return True
            page = self.list(page[-1].token_id, TOKENS_PAGE)
        return False

    def forget(self) -> None:
        """Read each token from the store again before its next use, because another process may have revoked it."""
        with self._changing:
            self._known.clear()
            self._recent.clear()

    def flush_used(self) -> int:
        """Store in one write when tokens were last used; return how many. After an error they are kept for a retry."""
        return flush_used(self, self._records.note_used)


def token_refused(cause: str) -> TokenRefused:
    """Return the refusal of a token; *cause* is for the operator, and not part of the answer."""
    refused = TokenRefused()
    refused.cause = cause
    return refused


def check_scope(scopes: Iterable[str], needed: str) -> None:
    """Raise ScopeMissing if *scopes*, those of a token, have neither *needed* nor ``admin``."""
    if needed not in scopes and "admin" not in scopes:
        raise ScopeMissing(f"The operator token lacks the scope {needed}.", scope=needed)


@lru_cache(TOKENS_GENERATION)
def _networks(addresses: tuple[str, ...]) -> tuple[IpNetwork, ...]:
    """Return the networks that a token may be used from."""
    try:
        return tuple(parse_network(text) for text in addresses)
    except ValueError as error:
        raise AccessKeyDamaged("the addresses of an operator token are none") from error


def _is_within(addresses: tuple[str, ...], address: IpAddress) -> bool:
    return any(address in network for network in _networks(addresses))


def _bearer_token(header: str) -> str | None:
    """Return the token in the value of ``Authorization``, or None if it is malformed."""
    match = _BEARER.fullmatch(header.strip())
    return None if match is None else match[1]


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of *token*, which is what is stored; 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def fingerprint_of(record: TokenRecord) -> str:
    """Return the first 16 hex digits of the token's SHA-256, enough to identify a token by."""
    return record.digest.hex()[:FINGERPRINT_DIGITS]


def checked_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """Return *scopes* in the order of `SCOPES`, each once; raise InvalidRequest if one is unknown, or there is none."""
    return checked_names(scopes, SCOPES, "scopes")
