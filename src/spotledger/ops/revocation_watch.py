"""
Keeping what a node remembers of access keys and tokens right, while other nodes revoke them.

While the database answers, a revocation on any node reaches this one within a second. A node that has lost the database
cannot know of any: for a settable time it goes on to let in those whom it knows, beyond that nobody.
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

#: How long is waited after the database did not answer.
RETRY_SECONDS: Final = 0.2

_log = logging.getLogger("spotledger.keys")


class Revocations(Protocol):
    """What was heard of the keys, as it was at *at_s* (monotonic) or later."""

    @property
    def at_s(self) -> float:
        """When it was so."""

    @property
    def head_seq(self) -> int:
        """The last entry of the journal then."""

    @property
    def accesskeys(self) -> tuple[str, ...]:
        """The access keys that were revoked since."""

    @property
    def tokens(self) -> bool:
        """Whether a token was."""

    @property
    def everything(self) -> bool:
        """Whether all that is remembered may be wrong."""


class Changes(Protocol):
    """Follows what all nodes revoke."""

    def wait(self) -> Revocations:
        """Wait for a moment, and say what was revoked; raises StoreUnavailable."""


class RevocationWatch:
    """Drops from *key_ring* and *tokens* what *changes* says was revoked, and stops them where it says nothing."""

    def __init__(
        self,
        changes: Changes,
        key_ring: KeyRing,
        tokens: Tokens,
        trust_seconds: float,
        on_heard: Callable[[float, int], None] = lambda at_s, head_seq: None,
    ) -> None:
        """
        Join what is heard with those who need it.

        Args:
            changes: What the database says.
            key_ring: The access keys that this node remembers.
            tokens: The operator tokens that it remembers.
            trust_seconds: How long they are let in after the database was last heard of.
            on_heard: Told, each time, when (monotonic) the journal's last entry was which.
        """
        self._on_heard = on_heard
        self._changes = changes
        self._key_ring = key_ring
        self._tokens = tokens
        self._trust_seconds = trust_seconds
        self._heard_s = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="key-watch")
        self._task: asyncio.Task[None] | None = None

    @property
    def silent_seconds(self) -> float:
        """How long ago the database last said which keys are revoked."""
        return time.monotonic() - self._heard_s

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                heard = await loop.run_in_executor(self._thread, self._changes.wait)
            except StoreUnavailable:
                self._distrust_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            except Exception as problem:  # noqa: BLE001 - whatever it is, it must not end the watch in silence
                _log.error("revocations could not be followed: %s; it is tried again", problem)
                self._distrust_if_silent()
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._take(heard)

    def _take(self, heard: Revocations) -> None:
        self._heard_s = heard.at_s
        self._on_heard(heard.at_s, heard.head_seq)
        if heard.everything:
            self._key_ring.forget()
        self._key_ring.revoked_elsewhere(heard.accesskeys)
        if heard.tokens or heard.everything:
            self._tokens.forget()
        if self._key_ring.distrusted is not None:
            _log.warning("the database is back: access keys and tokens let in again")
        self._key_ring.distrusted = self._tokens.distrusted = None

    def _distrust_if_silent(self) -> None:
        if self.silent_seconds <= self._trust_seconds or self._key_ring.distrusted is not None:
            return
        _log.error(
            "the database is away for %.1f s: access keys and tokens let in nobody until it is back",
            self.silent_seconds,
        )
        reason = "The database is away for too long to know which keys are revoked; try again later."
        self._key_ring.distrusted = self._tokens.distrusted = reason
