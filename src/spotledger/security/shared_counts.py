"""
Counts that all nodes of a fleet share, in Redis or Valkey: limits, locks and the replay memory (rules R12 and R20).

The requests of one iteration of the event loop are sent in one batch, as one atomic call of a script
(``shared_counts.lua``); those that come meanwhile are sent in the next. If Redis does not answer in time, or answers
with an error, every waiting request gets None at once, and so does each later one, while a probe is sent twice a second
until Redis answers again. The gate decides what None means.
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
from spotledger.security.limits import Lock, WindowLimit

#: How many batches may be in flight at a time, and the most requests in one.
IN_FLIGHT_LIMIT: Final = 4
BATCH_LIMIT: Final = 256
PROBE_SECONDS: Final = 0.5
#: How many times the timeout a probe may take, which may open a connection and load the script.
CONNECT_TIMES: Final = 4
NUMBERS_PER_ASK: Final = 5
#: What the keys of locks begin with; then come the name of the locks and who is locked.
LOCK_PREFIX: Final = "spotledger:lock:"

_SCRIPT: Final = (files("spotledger.security") / "shared_counts.lua").read_text(encoding="utf-8")
_SHA: Final = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
#: What a call raises where Redis does not answer; the end of a timeout is an OSError, too.
_AWAY: Final = (RedisError, OSError)
_log = logging.getLogger("spotledger.redis")


class Ask(NamedTuple):
    """One request to be counted."""

    #: Whom the limit of addresses counts it against.
    address: str
    #: In hex digits; "" if it is not to be remembered.
    signature: str = ""
    #: Whether the signature is accepted once, from whichever address.
    strict: bool = False
    #: "" for an unsigned request.
    customer: str = ""
    #: The place of the account's limit among the limits.
    limit: int = 0
    #: The address that its signature is bound to; "" for an unsigned request.
    sender: str = ""


def _lock_of(value: bytes) -> Lock:
    """Return the lock in a value that the script wrote."""
    until_ms, _, limit = value.decode().partition(":")
    return Lock(int(until_ms), limit, is_shared=True)


#: What a probe counts: an address that nobody has.
_PROBE: Final = Ask("probe")


class SharedVerdict(NamedTuple):
    """The shared counts' answer to one request. ``…left`` is negative if it is refused: the ms to wait."""

    address_left: int
    address_reset_ms: int
    passes: bool
    left: int
    reset_ms: int


class SharedCounts:
    """The connection to Redis, and the requests that wait for it. Use it in one event loop."""

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
            url: ``redis://``, ``rediss://`` or ``unix://``, with the password if there is one.
            limits: The limits, that of addresses first; `Ask.limit` is a place in it.
            replay_ms: How long a signature is remembered.
            timeout_ms: How long Redis may take to answer.
            clock_ms: The time in ms since 1970; if it is 0, Redis's own time.

        Raises:
            SettingInvalid: *url* is not a URL of Redis.
        """
        seconds = timeout_ms / 1000
        try:
            # Each call has a timeout of its own, so a connection needs one only to open and to close.
            self._redis: Any = Redis.from_url(
                url, socket_timeout=None, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0),
                max_connections=IN_FLIGHT_LIMIT + 1,
            )  # fmt: skip
        except ValueError:  # its message may contain the password
            raise SettingInvalid(
                "The setting redis is not a URL of Redis; redis://, rediss:// or unix:// with a host would pass.",
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
        self._in_flight: set[asyncio.Task[None]] = set()
        self._probing: asyncio.Task[None] | None = None
        #: Whether Redis answers, as far as is known.
        self.is_up = False
        #: How often it stopped answering, and how many requests were decided without it.
        self.failures = 0
        self.unshared = 0

    async def start(self) -> None:
        """Connect; if that fails, keep trying. No error of Redis is raised."""
        await self._probe()
        if not self.is_up:
            _log.warning("redis cannot be reached; limits are not shared until it answers")
            self._keep_probing()

    async def stop(self) -> None:
        """Close the connection; waiting requests get None."""
        self.is_up = False
        self._answer_none()  # before the end of a batch in flight would send them
        tasks = [*self._in_flight, *([self._probing] if self._probing else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._redis.aclose()

    async def ask(self, ask: Ask) -> SharedVerdict | None:
        """Count one request, and return the verdict; None if Redis does not answer."""
        if not self.is_up:
            self.unshared += 1
            return None
        future: asyncio.Future[SharedVerdict | None] = asyncio.get_running_loop().create_future()
        self._put(ask, future)
        return await future

    def note(self, ask: Ask) -> None:
        """Count one request without waiting for the verdict; do nothing if Redis does not answer."""
        if self.is_up:
            self._put(ask, None)

    async def locks(self) -> dict[str, Lock] | None:
        """Return the shared locks by their keys in Redis; None if Redis does not answer."""
        names: list[bytes] = []
        found: dict[bytes, bytes | None] = {}
        try:
            async with asyncio.timeout(CONNECT_TIMES * self._seconds):
                async for name in self._redis.scan_iter(match=f"{LOCK_PREFIX}*", count=1_000):
                    names.append(name)
                for start in range(0, len(names), BATCH_LIMIT):
                    some = names[start : start + BATCH_LIMIT]
                    found.update(zip(some, await self._redis.mget(some), strict=True))
        except _AWAY:
            return None
        return {name.decode(): _lock_of(value) for name, value in found.items() if value is not None}

    async def still_locked(self, keys: Sequence[str]) -> list[bool] | None:
        """Say of each of these keys of locks whether the lock is still there; None if Redis does not answer."""
        try:
            async with asyncio.timeout(self._seconds):
                return [value is not None for value in await self._redis.mget(keys)] if keys else []
        except _AWAY:
            return None

    async def lift(self, key: str) -> bool:
        """Lift the lock of this key; return False if Redis does not answer."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._redis.delete(key)
        except _AWAY:
            return False
        return True

    def _put(self, ask: Ask, future: asyncio.Future[SharedVerdict | None] | None) -> None:
        self._waiting.append((ask, future))
        if len(self._waiting) == 1:
            asyncio.get_running_loop().call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        """Send what waits, as far as it may; the end of a batch in flight sends the rest."""
        while self._waiting and len(self._in_flight) < IN_FLIGHT_LIMIT:
            batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            sending = asyncio.get_running_loop().create_task(self._send(batch))
            self._in_flight.add(sending)
            sending.add_done_callback(self._sent)

    def _sent(self, sending: asyncio.Task[None]) -> None:
        self._in_flight.discard(sending)
        self._send_waiting()

    async def _send(self, batch: list[tuple[Ask, asyncio.Future[SharedVerdict | None] | None]]) -> None:
        verdicts: list[SharedVerdict] | None = None
        try:
            async with asyncio.timeout(self._seconds):
                verdicts = await self._call([ask for ask, _ in batch])
        except (*_AWAY, msgspec.MsgspecError) as problem:
            self._note_down(problem)
        finally:
            for place, (_, future) in enumerate(batch):
                if future is not None and not future.done():
                    self.unshared += verdicts is None
                    future.set_result(None if verdicts is None else verdicts[place])

    async def _call(self, asks: list[Ask]) -> list[SharedVerdict]:
        told = msgspec.msgpack.encode((self._clock_ms(), self._replay_ms, self._limits, asks))
        try:
            answer = await self._redis.evalsha(_SHA, 0, told)
        except NoScriptError:  # Redis was restarted, or its scripts were flushed
            answer = await self._redis.eval(_SCRIPT, 0, told)
        numbers = msgspec.msgpack.decode(answer, type=list[int])
        if len(numbers) != NUMBERS_PER_ASK * len(asks):
            raise msgspec.DecodeError  # that is another script's answer
        rows = (numbers[start : start + NUMBERS_PER_ASK] for start in range(0, len(numbers), NUMBERS_PER_ASK))
        return [SharedVerdict(address, reset, bool(ok), left, end) for address, reset, ok, left, end in rows]

    def _note_down(self, problem: Exception) -> None:
        if not self.is_up:
            return
        self.is_up = False
        self.failures += 1
        _log.warning("redis does not answer (%s); limits are not shared until it does", type(problem).__name__)
        self._answer_none()
        self._keep_probing()

    def _answer_none(self) -> None:
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
        """Find out whether Redis answers, and accepts writes."""
        with contextlib.suppress(*_AWAY, msgspec.MsgspecError):  # is_up stays False
            async with asyncio.timeout(CONNECT_TIMES * self._seconds):
                await self._call([_PROBE])
            self.is_up = True
