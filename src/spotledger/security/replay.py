"""
The memory of signed requests (rule R12).

The first use of a signature binds it to the address that it came from, for as long as its nonce is
in the window. A client's own retry passes; a URL lifted from a log does not.
"""

from __future__ import annotations

from typing import Literal

ReplayMode = Literal["address", "strict", "off"]


class ReplayMemory:
    """
    Remember each signature for the length of the window, and *capacity* of them at the most.

    Two generations: when the younger is as old as the window, or full, it becomes the older, and what the
    older held is forgotten at once. What was forgotten for want of room is counted in ``forgotten``.
    """

    __slots__ = ("_begun_ms", "_generation_limit", "_older", "_younger", "forgotten", "mode", "window_ms")

    def __init__(self, mode: ReplayMode, window_ms: int, capacity: int) -> None:
        """
        Begin with an empty memory.

        Args:
            mode: ``address`` binds a signature to its first address, ``strict`` takes it once, ``off`` always.
            window_ms: How long a nonce can be in the window: past and future together.
            capacity: How many signatures are remembered; at least 2.
        """
        self.mode = mode
        self.window_ms = window_ms
        self.forgotten = 0
        self._generation_limit = max(1, capacity // 2)
        self._younger: dict[bytes, str] = {}
        self._older: dict[bytes, str] = {}
        self._begun_ms = 0

    def passes(self, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        """
        Tell whether this use of *signature*, whose nonce is in the window, may pass, and remember it.

        Args:
            signature: The 32 bytes, found valid before: only what its owner signed takes up room here.
            address: Where the request came from.
            now_ms: The time.
            strict: Take the signature once whatever the mode, as for a call that changes something.
        """
        if self.mode == "off" and not strict:
            return True
        younger = self._younger
        age_ms = now_ms - self._begun_ms
        if age_ms >= self.window_ms or len(younger) >= self._generation_limit:
            younger = self._rotate(now_ms, age_ms)
        bound = self._older.get(signature) if self._older else None
        if bound is None:
            bound = younger.get(signature)
            if bound is None:
                younger[signature] = address
                return True
        return bound == address and not strict and self.mode != "strict"

    def _rotate(self, now_ms: int, age_ms: int) -> dict[bytes, str]:
        # The older generation was closed when the younger began; if that is a whole window ago, no nonce of it
        # can be in the window any more.
        if age_ms < self.window_ms:
            self.forgotten += len(self._older)
        self._older = self._younger
        self._younger = {}
        self._begun_ms = now_ms
        return self._younger

    def __len__(self) -> int:
        return len(self._younger) + len(self._older)
