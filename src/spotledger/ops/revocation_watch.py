"""
Keeps the access keys and tokens that a node has in memory current while other nodes revoke them.

While the database answers, a revocation on any node reaches this one within a second. A node that has lost the database
cannot know of revocations: for a time that is a setting it accepts the keys and tokens in memory, after that none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol

from spotledger.clock import steady_s
from spotledger.errors import StoreUnavailable
from spotledger.security.access_keys import KeyRing
from spotledger.security.tokens import Tokens

#: How long to wait after the database did not answer.
RETRY_SECONDS: Final = 0.2
#: A database that answers is silent for less than this; a node that was silent for longer had frozen.
ANSWERING_SECONDS: Final = 2.0

_log = logging.getLogger("spotledger.keys")


class Revocations(Protocol):
    """What the nodes revoked since the last answer of the database."""

    @property
    def at_s(self) -> float:
        """The answer is as of this time (`steady_s`) or later."""

    @property
    def head_seq(self) -> int:
        """The last entry of the journal at that time."""

    @property
    def server_ms(self) -> int:
        """The time of the database, in ms since 1970."""

    @property
    def clock_trusts(self) -> int:
        """How often an operator has said that this time is right."""

    @property
    def accesskeys(self) -> tuple[str, ...]:
        """The access keys that were revoked."""

    @property
    def tokens(self) -> bool:
        """Whether a token was revoked."""

    @property
    def everything(self) -> bool:
        """Whether any key or token may have been revoked."""


class RevocationSource(Protocol):
    """Follows the revocations of all nodes."""

    def wait(self) -> Revocations:
        """Wait for a moment, and return what was revoked; raises StoreUnavailable."""


class RevocationWatch:
    """Drops what *source* says was revoked from *key_ring* and *tokens*, and stops them if it is silent too long."""

    def __init__(
        self,
        source: RevocationSource,
        key_ring: KeyRing,
        tokens: Tokens,
        trust_seconds: float,
        on_answer: Callable[[Revocations], None] = lambda found: None,
    ) -> None:
        """
        Prepare the watch; `start` begins it.

        Args:
            source: The revocations, from the database.
            key_ring: The access keys of this node.
            tokens: The operator tokens of this node.
            trust_seconds: How long they are accepted after the last answer of the database.
            on_answer: Called with each answer.
        """
        self._on_answer = on_answer
        self._source = source
        self._key_ring = key_ring
        self._tokens = tokens
        self._trust_seconds = trust_seconds
        self._answered_s = steady_s()
        self._is_lost = self._said_so = False
        key_ring.trust = tokens.trust = self
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-watch")
        self._task: asyncio.Task[None] | None = None

    @property
    def silent_seconds(self) -> float:
        """How long ago the database last answered."""
        return steady_s() - self._answered_s

    def check(self) -> None:
        """
        Check that revocations are known well enough to let somebody in; a node that froze knows them no longer.

        Raises:
            StoreUnavailable: The database has been silent for too long.
        """
        if self.silent_seconds > max(self._trust_seconds, 0 if self._is_lost else ANSWERING_SECONDS):
            raise StoreUnavailable(
                "The database has not answered for too long to know which keys are revoked; try again later."
            )

    async def start(self) -> None:
        """Begin the watch."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End the watch."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                revocations = await loop.run_in_executor(self._thread, self._source.wait)
            except StoreUnavailable:
                self._say_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as problem:  # noqa: BLE001 - no error may end the watch unnoticed
                _log.error("revocations could not be read: %s; retrying", problem)
                self._say_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._apply(revocations)

    def _apply(self, revocations: Revocations) -> None:
        self._answered_s, self._is_lost = revocations.at_s, False
        self._on_answer(revocations)
        if revocations.everything:
            self._key_ring.forget()
        self._key_ring.revoked_elsewhere(revocations.accesskeys)
        if revocations.tokens or revocations.everything:
            self._tokens.forget()
        if self._said_so:
            _log.warning("the database answers again: access keys and tokens are accepted")
        self._said_so = False

    def _say_if_silent(self) -> None:
        self._is_lost = True
        if self.silent_seconds > self._trust_seconds and not self._said_so:
            self._said_so = True
            _log.error(
                "the database has not answered for %.1f s: no access key or token is accepted until it does",
                self.silent_seconds,
            )
