"""
Keeps the access keys and tokens that a node has in memory current while other nodes revoke them.

While the database answers, a revocation on any node reaches this one within a second. A node that has lost the database
cannot know of revocations: for a time that is a setting it accepts the keys and tokens in memory, after that none.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, Protocol

from spotledger.errors import StoreUnavailable
from spotledger.security.access_keys import KeyRing
from spotledger.security.tokens import Tokens

#: How long to wait after the database did not answer.
RETRY_SECONDS: Final = 0.2

_log = logging.getLogger("spotledger.keys")


class Revocations(Protocol):
    """What the nodes revoked since the last answer of the database."""

    @property
    def at_s(self) -> float:
        """The answer is as of this time (monotonic) or later."""

    @property
    def head_seq(self) -> int:
        """The last entry of the journal at that time."""

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
        on_answer: Callable[[float, int], None] = lambda at_s, head_seq: None,
    ) -> None:
        """
        Prepare the watch; `start` begins it.

        Args:
            source: The revocations, from the database.
            key_ring: The access keys of this node.
            tokens: The operator tokens of this node.
            trust_seconds: How long they are accepted after the last answer of the database.
            on_answer: Called with each answer's time (monotonic) and its last entry of the journal.
        """
        self._on_answer = on_answer
        self._source = source
        self._key_ring = key_ring
        self._tokens = tokens
        self._trust_seconds = trust_seconds
        self._answered_s = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-watch")
        self._task: asyncio.Task[None] | None = None

    @property
    def silent_seconds(self) -> float:
        """How long ago the database last answered."""
        return time.monotonic() - self._answered_s

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
                self._distrust_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as problem:  # noqa: BLE001 - no error may end the watch unnoticed
                _log.error("revocations could not be read: %s; retrying", problem)
                self._distrust_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._apply(revocations)

    def _apply(self, revocations: Revocations) -> None:
        self._answered_s = revocations.at_s
        self._on_answer(revocations.at_s, revocations.head_seq)
        if revocations.everything:
            self._key_ring.forget()
        self._key_ring.revoked_elsewhere(revocations.accesskeys)
        if revocations.tokens or revocations.everything:
            self._tokens.forget()
        if self._key_ring.distrusted is not None:
            _log.warning("the database answers again: access keys and tokens are accepted")
        self._key_ring.distrusted = self._tokens.distrusted = None

    def _distrust_if_silent(self) -> None:
        if self.silent_seconds <= self._trust_seconds or self._key_ring.distrusted is not None:
            return
        _log.error(
            "the database has not answered for %.1f s: no access key or token is accepted until it does",
            self.silent_seconds,
        )
        reason = "The database has not answered for too long to know which keys are revoked; try again later."
        self._key_ring.distrusted = self._tokens.distrusted = reason
