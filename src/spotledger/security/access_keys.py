"""
Access keys: their records, and the key ring, which keeps those in use in memory for checking signatures.

An access key is a UUID, its secret 64 hex digits (rule R13). The secret is shown once, when it is made; it is stored
encrypted with the master key.
"""

from __future__ import annotations

import secrets
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from spotledger.errors import AccessKeyRevoked, AccessKeyUnknown, InvalidRequest, StoreUnavailable
from spotledger.security.addresses import IpAddress, IpNetwork, parse_network
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.cipher import AccessKeyDamaged, SecretSeal
from spotledger.security.signing import UNKNOWN_SECRET, PreparedSecret
from spotledger.texts import FIT, is_line

PERMISSIONS = ("read", "trade", "withdraw")
LABEL_MAX_CHARACTERS = 100
ADDRESSES_MAX = 100
SECRET_BYTES = 32
#: How much of an access key names it where the whole must not be seen.
ACTOR_CHARACTERS = 8
#: Half the number of access keys that are kept in memory.
READY_KEYS_GENERATION = 20_000
NEVER_MS = 1 << 62


@dataclass(frozen=True, slots=True)
class AccessKeyRecord:
    """One access key as it is stored. ``addresses`` are CIDR; times are ms since 1970, None for never."""

    accesskey: str = field(repr=False)
    customer: str
    permissions: tuple[str, ...]
    label: str
    addresses: tuple[str, ...]
    sealed_secret: bytes = field(repr=False)
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    last_used_ms: int | None = None


class AccessKeyRecords(Protocol):
    """Where access keys are stored."""

    def get(self, accesskey: str) -> AccessKeyRecord | None:
        """Return the record of *accesskey*, or None."""

    def insert(self, record: AccessKeyRecord) -> None:
        """Store a new record."""

    def list(self, customer: str | None, after: str, limit: int) -> list[AccessKeyRecord]:
        """Return at most *limit* records after the access key *after*, of *customer* or of all, in order."""

    def revoke(self, accesskey: str, now_ms: int) -> bool:
        """Mark *accesskey* as revoked at *now_ms*; return whether it existed and was not revoked before."""

    def replace(self, accesskey: str, record: AccessKeyRecord, now_ms: int) -> bool:
        """Revoke *accesskey* and store *record*, or do neither; return whether both were done."""

    def note_used(self, used: Mapping[str, int]) -> None:
        """Store when access keys were last used: access key → ms since 1970."""


class Trust(Protocol):
    """Judges whether the revocations of other nodes are known well enough to let anybody in."""

    def check(self) -> None:
        """Raise StoreUnavailable if they are not."""


class ReadyKey:
    """An access key in the form in which requests are checked with it."""

    __slots__ = (
        "accesskey",
        "actor",
        "created_ms",
        "customer",
        "dead_from_ms",
        "label",
        "networks",
        "permissions",
        "revoked",
        "secret",
    )

    def __init__(self, record: AccessKeyRecord, secret: PreparedSecret) -> None:
        self.accesskey = record.accesskey
        #: How the access log names it.
        self.actor = f"key:{record.accesskey[:ACTOR_CHARACTERS]}"
        self.label = record.label
        self.customer = record.customer
        self.created_ms = record.created_ms
        self.permissions = frozenset(record.permissions)
        #: Where it may be used from; empty for anywhere.
        self.networks = _networks_of(record) if record.addresses else ()
        self.secret = secret
        self.revoked = record.revoked_ms is not None
        #: Revoked or expired from this time on, so that the hot path makes one comparison.
        self.dead_from_ms = 0 if self.revoked else NEVER_MS if record.expires_ms is None else record.expires_ms

    def __repr__(self) -> str:
        return f"ReadyKey({hint_of(self.accesskey)}, customer={self.customer!r})"

    def allows(self, address: IpAddress) -> bool:
        """Say whether the key may be used from *address*."""
        return not self.networks or any(address in network for network in self.networks)


def _networks_of(record: AccessKeyRecord) -> tuple[IpNetwork, ...]:
    """Return where the access key may be used from."""
    try:
        return tuple(parse_network(text) for text in record.addresses)
    except ValueError as error:
        raise AccessKeyDamaged(f"the addresses of the access key {hint_of(record.accesskey)} are none") from error


def hint_of(accesskey: str) -> str:
    """Return the first characters of *accesskey*, enough to find it and too few to use it (rule R21)."""
    return f"{accesskey[:8]}…" if len(accesskey) > 16 else "…"


class UsedLately(Protocol):
    """Collects when credentials were last used, in ms since 1970, until that is stored."""

    used: dict[str, int]


def flush_used(collected: UsedLately, store: Callable[[Mapping[str, int]], None]) -> int:
    """Have *store* write what was *collected*, and return how much; after an error it is kept for a retry."""
    used, collected.used = collected.used, {}
    if used:
        try:
            store(dict(used))
        except BaseException:
            collected.used = {**used, **collected.used}
            raise
    return len(used)


class KeyRing:
    """
    Makes, revokes and looks up access keys.

    Keys in use are kept in bounded memory. A revocation takes effect in this process at once; `revoked_elsewhere` takes
    over those of other processes. When keys were last used is collected in memory until `flush_used` stores it. Writes
    may come from another thread than look-ups.
    """

    def __init__(
        self,
        records: AccessKeyRecords,
        cipher: SecretSeal,
        clock_ms: Callable[[], int],
        *,
        generation_limit: int = READY_KEYS_GENERATION,
    ) -> None:
        self._records = records
        self._cipher = cipher
        self._clock_ms = clock_ms
        self._ready: BoundedDict[str, ReadyKey] = BoundedDict(generation_limit)
        # Held during each change of `_ready`, and from reading a record until it is there, so that a record read before
        # its key was revoked is never put in afterwards.
        self._changing = threading.Lock()
        #: Access key → when it was last used, since the last flush.
        self.used: dict[str, int] = {}
        #: Asked each time that somebody is let in; None if no other process revokes keys.
        self.trust: Trust | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether keys are accepted now."""
        try:
            if self.trust is not None:
                self.trust.check()
        except StoreUnavailable:
            return False
        return True

    def create(
        self,
        customer: str,
        permissions: Iterable[str],
        label: str = "",
        addresses: Iterable[str] = (),
        expires_ms: int | None = None,
    ) -> tuple[str, str]:
        """
        Make an access key for *customer* and store it.

        Args:
            customer: A registered customer; not checked here.
            permissions: At least one of ``read``, ``trade``, ``withdraw``.
            label: A line of at most 100 characters.
            addresses: Addresses or networks (``10.1.0.0/16``) that it may be used from; none for anywhere.
            expires_ms: When it expires, in ms since 1970, later than now; None for never.

        Returns:
            The access key and its secret, which cannot be read again.

        Raises:
            InvalidRequest: One of the arguments is not as above; ``field`` names it.
        """
        now_ms = self._clock_ms()
        record = AccessKeyRecord(
            accesskey=str(uuid.uuid4()),
            customer=customer,
            permissions=checked_permissions(permissions),
            label=checked_label(label),
            addresses=checked_addresses(addresses),
            sealed_secret=b"",
            created_ms=now_ms,
            expires_ms=checked_expiry(expires_ms, now_ms),
        )
        sealed, secret = self._with_new_secret(record)
        self._records.insert(sealed)
        return sealed.accesskey, secret

    def rotate(self, accesskey: str) -> tuple[str, str]:
        """
        Revoke *accesskey*, and make another one with the same customer, permissions, label, addresses and expiry.

        Returns:
            The new access key and its secret.

        Raises:
            AccessKeyUnknown: There is no such access key.
            AccessKeyRevoked: It was revoked before; nothing is made.
        """
        old = self._records.get(accesskey)
        if old is None:
            raise AccessKeyUnknown
        now_ms = self._clock_ms()
        renewed = replace(old, accesskey=str(uuid.uuid4()), created_ms=now_ms, revoked_ms=None, last_used_ms=None)
        sealed, secret = self._with_new_secret(renewed)
        if not self._records.replace(accesskey, sealed, now_ms):
            raise AccessKeyRevoked
        self._hold_as_revoked(old)
        return sealed.accesskey, secret

    def revoke(self, accesskey: str) -> bool:
        """
        Revoke *accesskey* for ever.

        Returns:
            Whether it was not revoked before.

        Raises:
            AccessKeyUnknown: There is no such access key.
        """
        record = self._records.get(accesskey)
        if record is None:
            raise AccessKeyUnknown
        is_new = self._records.revoke(accesskey, self._clock_ms())
        self._hold_as_revoked(record)
        return is_new

    def list(self, customer: str | None = None, after: str = "", limit: int = 1000) -> list[AccessKeyRecord]:
        """Return at most *limit* records after the access key *after*, of *customer* or of all."""
        return self._records.list(customer, after, limit)

    def get(self, accesskey: str) -> AccessKeyRecord | None:
        """Return the stored record of *accesskey*, or None."""
        return self._records.get(accesskey)

    def ready(self, accesskey: str) -> ReadyKey | None:
        """
        Return *accesskey* in the form for checking requests, revoked and expired ones too; None if it does not exist.

        Raises:
            AccessKeyDamaged: Its secret does not open, or its addresses are none.
            StoreUnavailable: Whether the key was revoked cannot be determined now.
        """
        if self.trust is not None:
            self.trust.check()
        return self._ready.younger.get(accesskey) or self._load(accesskey)

    def in_memory(self, accesskey: str) -> ReadyKey | None:
        """Return *accesskey* if it was looked up lately; nothing is read for it."""
        return self._ready.younger.get(accesskey) or self._ready.older.get(accesskey)

    def _load(self, accesskey: str) -> ReadyKey | None:
        with self._changing:
            ready = self._ready.get(accesskey)
            if ready is None:
                record = self._records.get(accesskey)
                if record is None:
                    return None
                ready = self._made_ready(record)
                self._ready.put(accesskey, ready)
            return ready

    def forget(self) -> None:
        """Drop all keys from memory, so that each is read from the store again."""
        with self._changing:
            self._ready.clear()

    def revoked_elsewhere(self, accesskeys: Iterable[str]) -> None:
        """Drop *accesskeys*, which another process revoked, so that each is read from the store before its next use."""
        with self._changing:
            for accesskey in accesskeys:
                self._ready.drop(accesskey)

    def flush_used(self) -> int:
        """Store in one write when keys were last used; return how many. After an error they are kept for a retry."""
        return flush_used(self, self._records.note_used)

    def _with_new_secret(self, record: AccessKeyRecord) -> tuple[AccessKeyRecord, str]:
        secret = secrets.token_hex(SECRET_BYTES)
        return replace(record, sealed_secret=self._cipher.seal(record.accesskey, secret)), secret

    def _made_ready(self, record: AccessKeyRecord) -> ReadyKey:
        if record.revoked_ms is not None:
            return ReadyKey(record, UNKNOWN_SECRET)
        return ReadyKey(record, PreparedSecret(self._cipher.open(record.accesskey, record.sealed_secret)))

    def _hold_as_revoked(self, record: AccessKeyRecord) -> None:
        # Kept as revoked instead of dropped: only a missing key is read from the store, so a look-up that read the
        # record just before the commit cannot make the key valid again.
        with self._changing:
            self._ready.put(record.accesskey, self._made_ready(replace(record, revoked_ms=self._clock_ms())))


def checked_permissions(permissions: Iterable[str]) -> tuple[str, ...]:
    """Return *permissions* in the order of `PERMISSIONS`, each once; raise InvalidRequest if one is unknown or none."""
    return checked_names(permissions, PERMISSIONS, "permissions")


def checked_names(names: Iterable[str], known: tuple[str, ...], field: str) -> tuple[str, ...]:
    """Return *names* in the order of *known*, each once; raise InvalidRequest if one is unknown, or there is none."""
    asked = {names} if isinstance(names, str) else set(names)
    unknown = sorted(str(name) for name in asked - set(known))
    if unknown or not asked:
        found = ", ".join(unknown) or "none"
        raise InvalidRequest(f"{field}: found {found}; one or more of {', '.join(known)} would pass.", field=field)
    return tuple(name for name in known if name in asked)


def checked_label(label: str) -> str:
    """Return *label*, or raise InvalidRequest if it is no line of at most 100 characters (``spotledger.texts``)."""
    if not isinstance(label, str) or len(label) > LABEL_MAX_CHARACTERS or not is_line(label):
        raise InvalidRequest(f"label: at most {LABEL_MAX_CHARACTERS} {FIT} would pass.", field="label")
    return label


def checked_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return *addresses* as CIDR, each once; raise InvalidRequest if one is neither an address nor a network."""
    texts = [addresses] if isinstance(addresses, str) else list(addresses)
    if len(texts) > ADDRESSES_MAX:
        raise InvalidRequest(f"addresses: found {len(texts)}; at most {ADDRESSES_MAX} would pass.", field="addresses")
    try:
        return tuple(dict.fromkeys(str(parse_network(text)) for text in texts))
    except ValueError as error:
        raise InvalidRequest(
            "addresses: an address (10.1.2.3) or a network without host bits (10.1.0.0/16) would pass.",
            field="addresses",
        ) from error


def checked_expiry(expires_ms: int | None, now_ms: int) -> int | None:
    """Return *expires_ms* if it is None or later than *now_ms*; raise InvalidRequest otherwise."""
    if expires_ms is None:
        return None
    if isinstance(expires_ms, bool) or not isinstance(expires_ms, int) or not now_ms < expires_ms < NEVER_MS:
        raise InvalidRequest(
            f"expires_ms: a time in ms since 1970 would pass, later than now ({now_ms}) and below 2**62, or none.",
            field="expires_ms",
        )
    return expires_ms
