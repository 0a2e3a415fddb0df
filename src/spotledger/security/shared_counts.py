"""
Counts that all nodes of a fleet share, in Redis or Valkey: limits, locks and the replay memory (rules R12 and R20).

What the requests of one turn of the event loop ask for goes out in one trip, and what comes meanwhile in the next:
one call of a script (``shared_counts.lua``), atomic. When Redis does not answer in time, or answers with an error,
everything that waits is let go at once, nobody asks any more, and one probe tries again twice a second; then sharing
goes on by itself. Until then `SharedCounts.ask` gives None, and the gate goes by its own rule.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any, Final, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from spotledger.errors import SettingInvalid
from spotledger.security.limits import WindowLimit

#: Trips under way at a time, and requests in one trip.
TRIPS: Final = 4
TRIP_ASKS: Final = 256
PROBE_SECONDS: Final = 0.5
#: How much longer than for one trip Redis may take to open a connection and load the script.
CONNECT_TIMES: Final = 4
NUMBERS_PER_ASK: Final = 5

_SCRIPT: Final = (files("spotledger.security") / "shared_counts.lua").read_text(encoding="utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
#: What a probe counts: nobody's address.
_PROBE: Final = ("probe", "", False, "", 0)
_log = logging.getLogger("spotledger.redis")

Ask = tuple[str, str, bool, str, int]


class SharedVerdict(NamedTuple):
    """What the shared counts say of one request; what is left is below 0 where it is refused: the ms to wait."""

    address_left: int
    address_reset_ms: int
    passes: bool
    left: int
    reset_ms: int


class SharedCounts:
    """The connection to Redis, and what waits for it. Use it in one event loop."""

    def __init__(
        self,
        url: str,
        limits: Sequence[WindowLimit],
        replay_ms: int,
        *,
        timeout_ms: int,
        clock_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Prepare the connection; `start` opens it.

        Args:
            url: ``redis://``, ``rediss://`` or ``unix://``, with the password in it if there is one.
            limits: The limits, that of addresses first. An ask names the account's by its place here.
            replay_ms: How long a signature is remembered.
            timeout_ms: How long Redis may take for an answer.
            clock_ms: The time in ms since 1970; where it is 0, Redis's own.

        Raises:
            SettingInvalid: *url* is none.
        """
        seconds = timeout_ms / 1000
        try:
            self._redis: Any = Redis.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0),
                max_connections=TRIPS + 1,
            )  # fmt: skip
        except ValueError:  # its text may hold the password
            raise SettingInvalid(
                "The setting redis is no address of Redis; redis://, rediss:// or unix:// with a host would pass.",
                setting="redis",
            ) from None
        locks = {id(limit.locks): limit.name for limit in reversed(limits)}
        self._limits = [
            (limit.name, limit.limit, limit.window_ms, limit.locks.lock_ms, locks[id(limit.locks)]) for limit in limits
        ]
        self._replay_ms = replay_ms
        self._seconds = seconds
        self._clock_ms = clock_ms
        self._waiting: list[tuple[Ask, asyncio.Future[SharedVerdict | None] | None]] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._due = False
        self._probing: asyncio.Task[None] | None = None
        #: Whether Redis answers, as far as is known.
        self.is_up = False
        #: How often it stopped answering, and how many requests were decided without it.
        self.failures = 0
        self.unshared = 0

    async def start(self) -> None:
        """Connect, and go on trying if that fails; never raises for Redis's sake."""
        await self._probe()
        if not self.is_up:
            _log.warning("redis cannot be reached yet")
            self._keep_probing()

    async def stop(self) -> None:
        """End the connection; whoever waits is let go."""
        self.is_up = False
        tasks = [*self._trips, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._let_go()
        await self._redis.aclose()

    async def ask(self, ask: Ask) -> SharedVerdict | None:
        """
        Count one request.

        Args:
            ask: Its address; its signature as hex digits, or ``""`` if that is not to be remembered; whether the
                signature is good once; the customer, or ``""``; the place of the account's limit in the limits.

        Returns:
            The verdict, or None if Redis does not answer.
        """
        if not self.is_up:
            self.unshared += 1
            return None
        future: asyncio.Future[SharedVerdict | None] = asyncio.get_running_loop().create_future()
        self._put(ask, future)
        return await future

    def note(self, ask: Ask) -> None:
        """Count one request without waiting for the verdict; nothing is done if Redis does not answer."""
        if self.is_up:
            self._put(ask, None)

    def _put(self, ask: Ask, future: asyncio.Future[SharedVerdict | None] | None) -> None:
        self._waiting.append((ask, future))
        if not self._due and len(self._trips) < TRIPS:
            self._due = True
            asyncio.get_running_loop().call_soon(self._set_out)

    def _set_out(self) -> None:
        self._due = False
        while self._waiting and len(self._trips) < TRIPS:
            batch, self._waiting = self._waiting[:TRIP_ASKS], self._waiting[TRIP_ASKS:]
            trip = asyncio.get_running_loop().create_task(self._trip(batch))
            self._trips.add(trip)
            trip.add_done_callback(self._come_back)

    def _come_back(self, trip: asyncio.Task[None]) -> None:
        self._trips.discard(trip)
        if self._waiting and not self._due:
            self._set_out()

    async def _trip(self, batch: list[tuple[Ask, asyncio.Future[SharedVerdict | None] | None]]) -> None:
        verdicts: list[SharedVerdict] | None = None
        try:
            async with asyncio.timeout(self._seconds):
                verdicts = await self._call([ask for ask, _ in batch])
        except (RedisError, OSError, TimeoutError, msgspec.MsgspecError) as problem:
            self._broke(problem)
        finally:
            for place, (_, future) in enumerate(batch):
                if future is not None and not future.done():
                    self.unshared += verdicts is None
                    future.set_result(None if verdicts is None else verdicts[place])

    async def _call(self, asks: list[Ask]) -> list[SharedVerdict]:
        told = msgspec.msgpack.encode((self._clock_ms(), self._replay_ms, self._limits, asks))
        try:
            answer = await self._redis.evalsha(_SHA, 0, told)
        except NoScriptError:  # Redis was started anew, or its scripts were flushed
            answer = await self._redis.eval(_SCRIPT, 0, told)
        numbers = msgspec.msgpack.decode(answer, type=list[int])
        if len(numbers) != NUMBERS_PER_ASK * len(asks):
            raise msgspec.DecodeError(f"{len(numbers)} numbers came for {len(asks)} requests")
        rows = zip(*[iter(numbers)] * NUMBERS_PER_ASK, strict=True)
        return [SharedVerdict(address, reset, bool(ok), left, end) for address, reset, ok, left, end in rows]

    def _broke(self, problem: Exception) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self.failures += 1
        _log.warning("redis does not answer (%s); limits are not shared until it does", type(problem).__name__)
        self._let_go()
        self._keep_probing()

    def _let_go(self) -> None:
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if future is not None and not future.done():
                self.unshared += 1
                future.set_result(None)

    def _keep_probing(self) -> None:
        if self._probing is None or self._probing.done():
            self._probing = asyncio.get_running_loop().create_task(self._probe_until_up())

    async def _probe_until_up(self) -> None:
        while not self.is_up:
            await asyncio.sleep(PROBE_SECONDS)
            await self._probe()
        _log.warning("redis answers again; limits are shared")

    async def _probe(self) -> None:
        """Find out whether Redis does what it is asked for, writing included."""
        with contextlib.suppress(RedisError, OSError, TimeoutError, msgspec.MsgspecError):  # still away, is_up says so
            async with asyncio.timeout(CONNECT_TIMES * self._seconds):
                await self._call([_PROBE])
            self.is_up = True
