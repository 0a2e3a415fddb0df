"""
The gate of one node of a fleet: limits, locks and the replay memory are those of all nodes (rules R12 and R20).

What the shared counts answer is written into the node's own limits. So the headers tell it, who is known to be locked
is refused without asking, and a node that is left alone goes on from what it knew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from spotledger.errors import ReplayRefused, SpotledgerError, StoreUnavailable
from spotledger.security.access_keys import KeyRing, ReadyKey
from spotledger.security.gate import Gate, GateSettings, Peer, SignedRequest
from spotledger.security.limits import WindowLimit
from spotledger.security.shared_counts import SharedCounts, SharedVerdict

#: What a node does when Redis is away: go by its own counts, or refuse.
WhenDown = Literal["local", "refuse"]


class FleetGate(Gate):
    """A gate that counts together with the other nodes; start and stop it with the listener."""

    def __init__(
        self,
        key_ring: KeyRing,
        settings: GateSettings,
        redis: str,
        *,
        when_down: WhenDown,
        timeout_ms: int,
        shared_clock_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Join the gate to Redis.

        Args:
            key_ring: The access keys.
            settings: The same on all nodes.
            redis: The URL of Redis.
            when_down: What to do while Redis does not answer.
            timeout_ms: How long it may take for an answer.
            shared_clock_ms: The clock of the shared counts; where it gives 0, Redis's own.

        Raises:
            SettingInvalid: *redis* is no URL of Redis.
        """
        super().__init__(key_ring, settings)
        limits = (self.address_limit, self.asset_limit, self.account_limit)
        self._places = {limit.name: place for place, limit in enumerate(limits)}
        self._when_down = when_down
        self.counts = SharedCounts(
            redis, limits, self.replay.window_ms, timeout_ms=timeout_ms, clock_ms=shared_clock_ms
        )
        self.shared = self.counts

    async def start(self) -> None:
        """Connect to Redis; if it is away, `when_down` holds until it answers."""
        await self.counts.start()

    async def stop(self) -> None:
        """End the connection."""
        await self.counts.stop()

    def count(self, peer: Peer, now_ms: int) -> None:
        """Count a request against the limit of its address, not asking whether it may pass: it is refused anyway."""
        if not self.counts.is_up:
            super().count(peer, now_ms)
        elif not self.address_limit.locks.remaining_ms(peer.text, now_ms):
            self.counts.note((peer.text, "", False, "", 0))

    async def enter(self, peer: Peer, now_ms: int) -> None:
        """Let in a request that nobody signed, as `Gate.enter` does."""
        self._refuse_if_locked(peer, now_ms)
        verdict = await self.counts.ask((peer.text, "", False, "", 0))
        if verdict is None:
            self._refuse_if_told_to()
            await super().enter(peer, now_ms)
        else:
            self._judge_address(verdict, peer, now_ms)

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
        Let in a signed request, as `Gate.admit` does and in the same order of precedence.

        Whatever can be known without counting is found out first, so that one trip to Redis is enough.

        Raises:
            StoreUnavailable: Redis is away, and the node refuses then.
        """
        self._refuse_if_locked(peer, now_ms)
        if not self.counts.is_up:
            self._refuse_if_told_to()
            self.counts.unshared += 1
            return await super().admit(request, peer, permission, limit, now_ms, past_ms=past_ms, changes=changes)
        try:
            key = self.check(request, peer, permission, now_ms, past_ms)
        except SpotledgerError:
            await self.enter(peer, now_ms)
            raise
        mode = self.replay.mode
        remembered = changes or mode != "off"
        strict = changes or mode == "strict"
        signature = request.signature.hex() if remembered else ""
        verdict = await self.counts.ask((peer.text, signature, strict, key.customer, self._places[limit.name]))
        if verdict is None:
            self._refuse_if_told_to()
            return await super().admit(request, peer, permission, limit, now_ms, past_ms=past_ms, changes=changes)
        self._judge_address(verdict, peer, now_ms)
        # The node remembers it too, for a time when Redis is away or has been started anew.
        if not verdict.passes or not self.replay.passes(request.signature, peer.text, now_ms, strict=changes):
            raise ReplayRefused
        left = verdict.left
        if left >= 0:  # a lock that this node gave while Redis was away still holds on this node
            left = -limit.locks.remaining_ms(key.customer, now_ms) or left
        if left == verdict.left:
            limit.follow(key.customer, left, verdict.reset_ms, now_ms)
        if left < 0:
            raise self._account_refused(limit, left)
        self.key_ring.used[request.accesskey] = now_ms
        return key, left

    def _judge_address(self, verdict: SharedVerdict, peer: Peer, now_ms: int) -> None:
        self.address_limit.follow(peer.text, verdict.address_left, verdict.address_reset_ms, now_ms)
        if verdict.address_left < 0:
            raise self._address_refused(verdict.address_left)

    def _refuse_if_locked(self, peer: Peer, now_ms: int) -> None:
        locked_ms = self.address_limit.locks.remaining_ms(peer.text, now_ms)
        if locked_ms:
            raise self._address_refused(-locked_ms)

    def _refuse_if_told_to(self) -> None:
        if self._when_down == "refuse":
            raise StoreUnavailable("The limits that all nodes share cannot be counted now; try again in a moment.")
