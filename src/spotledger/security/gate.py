"""
The checks of a signed request, in the order of rule R10.

The wire has checked the request's form before. The gate checks: the limit of the address, the access key, whether it
is revoked or expired, the address it is used from, the signature, the permission, the nonce, replay, and the limit of
the account. The last limit counts only requests with a valid signature that are no replay, so that knowing an access
key, or finding a URL in a log, is not enough to lock out its owner.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from spotledger.errors import (
    AccessKeyExpired,
    AccessKeyRevoked,
    AccessKeyUnknown,
    AddressNotAllowed,
    LimitExceeded,
    NonceRefused,
    PermissionMissing,
    ReplayRefused,
    SignatureRefused,
)
from spotledger.security.access_keys import KeyRing, ReadyKey
from spotledger.security.addresses import AddressResolver, Peer, peer_at
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.limits import Lock, Locks, WindowLimit, whole_seconds
from spotledger.security.replay import ReplayMemory, ReplayMode
from spotledger.security.signing import UNKNOWN_SECRET

SECOND_MS = 1_000
MINUTE_MS = 60_000
#: Half the number of peers whose addresses are kept in memory.
PEERS_GENERATION = 10_000
#: The name of the limit of addresses.
ADDRESS_LIMIT = "address"

#: What a lock locks.
Locked = Literal["customer", "address"]

_ISSUED = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)
_LIKE_A_SECRET = re.compile(r"[0-9a-fA-F]{40,}", re.ASCII)


@dataclass(frozen=True, slots=True)
class GateSettings:
    """The settings of the gate, named as in the reference of settings. A limit of 0 is off."""

    asset_limit_per_second: int = 3
    account_limit_per_second: int = 10
    address_limit_per_minute: int = 1_000
    lock_seconds: int = 600
    nonce_past_ms: int = 30_000
    nonce_future_ms: int = 5_000
    replay: ReplayMode = "address"
    replay_capacity: int = 10_000
    trusted_proxies: tuple[str, ...] = ()


class SignedRequest(NamedTuple):
    """A well-formed signed request."""

    accesskey: str
    stamp_ms: int
    signature: bytes
    texts: tuple[bytes, ...]


class Unremembered(NamedTuple):
    """
    Up to which times requests may have been admitted that are not remembered (rule R12).

    Nonces of the requests before are at most the future part of the window above it.
    """

    #: By the clock that counts.
    until_ms: int = 0
    #: By the wall clock, while that was not trusted.
    wall_until_ms: int = 0


class SharedCountsState(Protocol):
    """The state of the counts that several nodes share, for the metrics."""

    is_up: bool
    #: How often the connection was lost, and how many requests were decided without the shared counts.
    failures: int
    unshared: int


class Gate:
    """Admits requests, or raises why not. A process has one gate for all its public listeners."""

    #: The counts shared with other nodes, if there are any.
    shared: SharedCountsState | None = None

    def __init__(
        self,
        key_ring: KeyRing,
        settings: GateSettings,
        wall_ms: Callable[[], int | None] = lambda: None,
        steady_ms: Callable[[], int] | None = None,
    ) -> None:
        """
        Admit requests by the access keys of *key_ring*.

        Args:
            key_ring: The access keys.
            settings: Limits and windows.
            wall_ms: Returns the wall clock's time while that is not trusted, else None: a nonce passes by either.
            steady_ms: As for `ReplayMemory`.
        """
        self.key_ring = key_ring
        self.settings = settings
        self._wall_ms = wall_ms
        self._past_ms = settings.nonce_past_ms
        self._future_ms = settings.nonce_future_ms
        lock_ms = settings.lock_seconds * SECOND_MS
        self._resolver = AddressResolver(settings.trusted_proxies)
        self._behind_proxies = bool(settings.trusted_proxies)
        self._peers: BoundedDict[str, Peer] = BoundedDict(PEERS_GENERATION)
        window_ms = self._past_ms + self._future_ms
        self.replay = ReplayMemory(settings.replay, window_ms, settings.replay_capacity, steady_ms)
        self.unremembered = Unremembered()
        #: A nonce below it may belong to a request that is not remembered.
        self._unremembered_ms = 0
        account_locks, address_locks = Locks(lock_ms), Locks(lock_ms)
        #: The locks by what they lock.
        self.locks: dict[Locked, Locks] = {"customer": account_locks, "address": address_locks}
        self.address_limit = WindowLimit(ADDRESS_LIMIT, settings.address_limit_per_minute, MINUTE_MS, address_locks)
        self.asset_limit = WindowLimit("assets", settings.asset_limit_per_second, SECOND_MS, account_locks)
        self.account_limit = WindowLimit("account", settings.account_limit_per_second, SECOND_MS, account_locks)

    async def start(self) -> None:
        """Connect to the shared counts, if there are any; called before the listener starts."""

    async def stop(self) -> None:
        """Disconnect from them."""

    async def shared_locks(self) -> list[tuple[Locked, str, Lock]] | None:
        """Return the locks that all nodes of a fleet share; None if none are shared, or they cannot be read now."""
        return None

    async def lift(self, kind: Locked, who: str) -> None:
        """
        Lift the lock of *who* here, and where it is shared, if there is one.

        Raises:
            StoreUnavailable: The locks are shared, and cannot be changed now.
        """
        self.locks[kind].lift(who)

    def peer(self, connection: str, forwarded_for: Callable[[], Iterable[str]]) -> Peer:
        """Return where a request on *connection*, ``host:port``, comes from; see `AddressResolver.resolve`."""
        peer = self._peers.get(host := connection.rpartition(":")[0])
        if peer is None:
            peer = peer_at(self._resolver.resolve(connection, list))
            self._peers.put(host, peer)
        if self._behind_proxies and self._resolver.is_trusted(peer.address):
            return peer_at(self._resolver.resolve(connection, forwarded_for))
        return peer

    def count(self, peer: Peer, now_ms: int) -> None:
        """Count a request that is refused for another reason against the limit of its address."""
        self.address_limit.hit(peer.counted, now_ms)

    async def enter(self, peer: Peer, now_ms: int) -> None:
        """
        Admit an unsigned request: count it against the limit of its address.

        Raises:
            LimitExceeded: The address sent too many requests.
        """
        left = self.address_limit.hit(peer.counted, now_ms)
        if left < 0:
            raise limit_exceeded(self.address_limit, left)

    async def admit(
        self,
        request: SignedRequest,
        peer: Peer,
        permission: str,
        limit: WindowLimit,
        now_ms: int,
        *,
        past_ms: int | None = None,
        changes: bool = False,
    ) -> tuple[ReadyKey, int]:
        """
        Admit a well-formed signed request: count it, and make all checks.

        Args:
            request: The request.
            peer: Where it comes from.
            permission: What the access key must permit: ``read``, ``trade`` or ``withdraw``.
            limit: The limit of the account that it counts against.
            now_ms: The time.
            past_ms: How old the nonce may be, if less than the setting allows.
            changes: Whether the call changes anything; then its signature is accepted once.

        Returns:
            The access key, and how many more requests fit into the limit's window.

        Raises:
            LimitExceeded (of the address), AccessKeyUnknown, AccessKeyRevoked, AccessKeyExpired, AddressNotAllowed,
            SignatureRefused, PermissionMissing, NonceRefused, ReplayRefused, LimitExceeded (of the account): in this
            order of precedence.
        """
        left = self.address_limit.hit(peer.counted, now_ms)
        if left < 0:
            raise limit_exceeded(self.address_limit, left)
        key = self.check(request, peer, permission, now_ms, past_ms)
        if request.stamp_ms < self._unremembered_ms:
            self._refuse_if_unremembered(request.stamp_ms, key, now_ms, changes=changes)
        if not self.replay.passes(request.accesskey, request.signature, peer.counted, now_ms, strict=changes):
            raise ReplayRefused
        left = limit.hit(key.customer, now_ms)
        if left < 0:
            raise limit_exceeded(limit, left)
        self.key_ring.used[request.accesskey] = now_ms
        return key, left

    def check(
        self, request: SignedRequest, peer: Peer, permission: str, now_ms: int, past_ms: int | None = None
    ) -> ReadyKey:
        """Make the checks of `admit` that count nothing: access key, address, signature, permission, nonce."""
        accesskey, stamp_ms, signature, texts = request
        key = self.key_ring.ready(accesskey) if _ISSUED.fullmatch(accesskey) else None
        secret = UNKNOWN_SECRET if key is None else key.secret
        fits = False
        for text in texts:
            fits |= hmac.compare_digest(secret.sign(text), signature)
        if key is None:
            raise _unknown(accesskey)
        if now_ms >= key.dead_from_ms:
            raise AccessKeyRevoked if key.revoked else AccessKeyExpired
        if key.networks and not key.allows(peer.address):
            raise AddressNotAllowed
        if not fits:
            raise SignatureRefused
        if permission not in key.permissions:
            raise PermissionMissing(f"The access key lacks the permission {permission}, which this call needs.")
        past = self._past_ms if past_ms is None or past_ms > self._past_ms else past_ms
        if not -self._future_ms <= now_ms - stamp_ms <= past and not self._fits_wall_clock(stamp_ms, past):
            raise self._nonce_refused(stamp_ms, now_ms, past)
        return key

    def forget(self, until_ms: int, wall_until_ms: int | None = None) -> None:
        """
        Refuse nonces that may have been used before, because what was admitted up to now is not remembered.

        Args:
            until_ms: A time before which all of that was admitted, by the clock that counts.
            wall_until_ms: The same by the wall clock, if that is not trusted.
        """
        before = self.unremembered
        self.unremembered = Unremembered(max(before.until_ms, until_ms), max(before.wall_until_ms, wall_until_ms or 0))
        self._unremembered_ms = max(self.unremembered) + self._future_ms

    def _refuse_if_unremembered(self, stamp_ms: int, key: ReadyKey, now_ms: int, *, changes: bool) -> None:
        """Raise NonceRefused if a request with this nonce may have been admitted and is not remembered."""
        until_ms, wall_until_ms = self.unremembered
        if key.created_ms >= until_ms or (self.replay.mode == "off" and not changes):
            return
        if stamp_ms > now_ms + self._future_ms:  # it passed by the wall clock
            until_ms = max(until_ms, wall_until_ms)
        least_ms = until_ms + self._future_ms
        if stamp_ms < least_ms:
            wait_s = whole_seconds(least_ms - now_ms)
            raise NonceRefused(
                f"The nonce is {stamp_ms}. The service started recently and does not remember earlier requests; a nonce"
                f" of at least {least_ms} would pass: use that, or sign again in {wait_s} s.",
                server_time_ms=now_ms,
                nonce_from_ms=least_ms,
                retry_after_s=wait_s,
            )

    def _fits_wall_clock(self, stamp_ms: int, past_ms: int) -> bool:
        """Say whether a nonce fits a wall clock that is not trusted: the client may have its time from there."""
        wall_ms = self._wall_ms()
        return wall_ms is not None and -self._future_ms <= wall_ms - stamp_ms <= past_ms

    def _nonce_refused(self, stamp_ms: int, now_ms: int, past_ms: int) -> NonceRefused:
        side = "behind" if stamp_ms < now_ms else "ahead of"
        return NonceRefused(
            f"The nonce is {abs(now_ms - stamp_ms)} ms {side} the server's time, {now_ms}; at most {past_ms} ms "
            f"behind and {self._future_ms} ms ahead would pass.",
            server_time_ms=now_ms,
        )


def _unknown(accesskey: str) -> AccessKeyUnknown:
    if _LIKE_A_SECRET.fullmatch(accesskey):
        return AccessKeyUnknown(
            "The accesskey sent looks like a secret; send the access key, which is a UUID such as "
            "11111111-2222-4333-8444-555555555555. If it is your secret, have its access key revoked."
        )
    return AccessKeyUnknown()


def limit_exceeded(limit: WindowLimit, left: int) -> LimitExceeded:
    """Return the refusal of a request over *limit*; ``-left`` is the ms to wait."""
    whose = "This address" if limit.name == ADDRESS_LIMIT else "This account"
    wait_s = whole_seconds(-left)
    # A limit that is off refuses if another limit locked the account.
    which = f"{limit.limit} requests in {limit.window_ms // SECOND_MS} s" if limit.limit else "another limit allows"
    return LimitExceeded(
        f"{whose} sent more than {which}; wait {wait_s} s.",
        retry_after_s=wait_s,
        limit=limit.name,
    )
