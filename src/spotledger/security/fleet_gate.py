"""
The gate of a node in a fleet: limits, locks and the replay memory are shared by all nodes (rules R12 and R20).

The answers of the shared counts are written into the node's own limits. So headers can show them, an address known to
be locked is refused without asking Redis, and a node that loses Redis continues with what it knew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from spotledger.errors import ReplayRefused, SpotledgerError, StoreUnavailable
from spotledger.security.access_keys import KeyRing, ReadyKey
from spotledger.security.addresses import Peer
from spotledger.security.gate import Gate, GateSettings, Locked, SignedRequest, limit_exceeded
from spotledger.security.limits import Lock, WindowLimit
from spotledger.security.shared_counts import LOCK_PREFIX, Ask, SharedCounts, SharedVerdict

#: What a node does while Redis is unavailable: use its own counts, or refuse requests.
WhenDown = Literal["local", "refuse"]
#: How often the locks in Redis are looked at, and how many at once.
CHECK_SECONDS: Final = 1.0
CHECKED_AT_ONCE: Final = 256

#: The name of the locks of each kind in Redis: that of their first limit.
_LOCKS_NAMES: Final[dict[Locked, str]] = {"customer": "assets", "address": "address"}


class FleetGate(Gate):
    """A gate that shares its counts with the other nodes; start and stop it with the listener."""

    def __init__(
        self,
        key_ring: KeyRing,
        settings: GateSettings,
        redis: str,
        *,
        when_down: WhenDown,
        timeout_ms: int,
        shared_clock_ms: Callable[[], int] = lambda: 0,
        wall_ms: Callable[[], int | None] = lambda: None,
        steady_ms: Callable[[], int] | None = None,
    ) -> None:
        """
        Prepare the connection to Redis; `start` opens it.

        Args:
            key_ring: The access keys.
            settings: The settings of the gate, the same on all nodes.
            redis: The URL of Redis.
            when_down: What to do while Redis does not answer.
            timeout_ms: How long Redis may take to answer.
            shared_clock_ms: The clock of the shared counts; if it returns 0, Redis's own clock.
            wall_ms, steady_ms: As for `Gate`.

        Raises:
            SettingInvalid: *redis* is not a URL of Redis.
        """
        super().__init__(key_ring, settings, wall_ms, steady_ms)
        limits = (self.address_limit, self.asset_limit, self.account_limit)
        self._places = {limit.name: place for place, limit in enumerate(limits)}
        self._when_down = when_down
        self._checking: asyncio.Task[None] | None = None
        self.counts = SharedCounts(
            redis, limits, self.replay.window_ms, timeout_ms=timeout_ms, clock_ms=shared_clock_ms
        )
        self.shared = self.counts

    async def start(self) -> None:
        """Connect to Redis; until it answers, *when_down* applies."""
        await self.counts.start()
        self._checking = asyncio.get_running_loop().create_task(self._check_locks_regularly())

    async def stop(self) -> None:
        """Close the connection."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.gather(self._checking, return_exceptions=True)
        await self.counts.stop()

    async def shared_locks(self) -> list[tuple[Locked, str, Lock]] | None:
        """Return the locks in Redis; None if it does not answer."""
        found = await self.counts.locks() if self.counts.is_up else None
        if found is None:
            return None
        kinds = [(kind, _lock_key(kind, "")) for kind in self.locks]
        return [
            (kind, key.removeprefix(prefix), lock)
            for key, lock in found.items()
            for kind, prefix in kinds
            if key.startswith(prefix)
        ]

    async def lift(self, kind: Locked, who: str) -> None:
        """Lift the lock of *who* in Redis and here; the other nodes follow within about a second."""
        if not await self.counts.lift(_lock_key(kind, who)):
            raise StoreUnavailable("Redis, where all nodes have their locks, does not answer; try again later.")
        await super().lift(kind, who)

    async def _check_locks_regularly(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await self._check_locks()

    async def _check_locks(self) -> None:
        """Lift here what another node lifted in Redis."""
        for kind, locks in self.locks.items():
            shared = [who for who, lock in locks.all() if lock.is_shared]
            for start in range(0, len(shared), CHECKED_AT_ONCE):
                some = shared[start : start + CHECKED_AT_ONCE]
                still = await self.counts.still_locked([_lock_key(kind, who) for who in some])
                for who, is_locked in zip(some, still or [True] * len(some), strict=True):
                    if not is_locked:
                        locks.end(who)

    def count(self, peer: Peer, now_ms: int) -> None:
        """Count a request that is refused for another reason against the limit of its address."""
        if not self.counts.is_up:
            super().count(peer, now_ms)
        elif not self.address_limit.locks.remaining_ms(peer.counted, now_ms):
            self.counts.note(Ask(peer.counted))

    async def enter(self, peer: Peer, now_ms: int) -> None:
        """Admit an unsigned request, as `Gate.enter` does."""
        self._refuse_if_locked(peer, now_ms)
        verdict = await self.counts.ask(Ask(peer.counted))
        if verdict is None:
            self._refuse_without_redis()
            await super().enter(peer, now_ms)
        else:
            self._follow_address(verdict, peer, now_ms)

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
        Admit a signed request, as `Gate.admit` does and in the same order of precedence.

        The checks that count nothing come first, so that one round trip to Redis is enough.

        Raises:
            StoreUnavailable: Redis does not answer, and the node refuses requests meanwhile.
        """
        self._refuse_if_locked(peer, now_ms)
        if not self.counts.is_up:
            self._refuse_without_redis()
            self.counts.unshared += 1
            return await super().admit(request, peer, permission, limit, now_ms, past_ms=past_ms, changes=changes)
        try:
            key = self.check(request, peer, permission, now_ms, past_ms)
        except SpotledgerError:
            await self.enter(peer, now_ms)
            raise
        mode = self.replay.mode
        strict = changes or mode == "strict"
        signature = request.signature.hex() if changes or mode != "off" else ""
        place = self._places[limit.name]
        verdict = await self.counts.ask(Ask(peer.counted, signature, strict, key.customer, place, peer.counted))
        if verdict is None:
            self._refuse_without_redis()
            return await super().admit(request, peer, permission, limit, now_ms, past_ms=past_ms, changes=changes)
        self._follow_address(verdict, peer, now_ms)
        # The node remembers the signature too, in case Redis goes away or is restarted.
        if not verdict.passes or not self.replay.passes(
            request.accesskey, request.signature, peer.counted, now_ms, strict=changes
        ):
            raise ReplayRefused
        left = verdict.left
        if left >= 0:  # a lock that this node set while Redis was away still applies on this node
            left = -limit.locks.remaining_ms(key.customer, now_ms) or left
        if left == verdict.left:
            limit.follow(key.customer, left, verdict.reset_ms, now_ms)
        if left < 0:
            raise limit_exceeded(limit, left)
        self.key_ring.used[request.accesskey] = now_ms
        return key, left

    def _follow_address(self, verdict: SharedVerdict, peer: Peer, now_ms: int) -> None:
        self.address_limit.follow(peer.counted, verdict.address_left, verdict.address_reset_ms, now_ms)
        if verdict.address_left < 0:
            raise limit_exceeded(self.address_limit, verdict.address_left)

    def _refuse_if_locked(self, peer: Peer, now_ms: int) -> None:
        locked_ms = self.address_limit.locks.remaining_ms(peer.counted, now_ms)
        if locked_ms:
            raise limit_exceeded(self.address_limit, -locked_ms)

    def _refuse_without_redis(self) -> None:
        if self._when_down == "refuse":
            raise StoreUnavailable("The limits that all nodes share cannot be counted now; try again later.")


def _lock_key(kind: Locked, who: str) -> str:
    """Return the key of a lock in Redis."""
    return f"{LOCK_PREFIX}{_LOCKS_NAMES[kind]}:{who}"
