"""
The memory of signed requests (rule R12).

The first use of a signature binds it to its address for as long as its nonce can be in the window. So a retry of the
same client passes, and a URL copied from a log does not.
"""

from __future__ import annotations

from typing import Literal

from spotledger.security.bounded_dict import BoundedDict

ReplayMode = Literal["address", "strict", "off"]


class ReplayMemory:
    """
    Remember each signature for the length of the window, and at most *capacity* signatures.

    There are two generations, as in `BoundedDict`; a new one begins also when the younger is as old as the window.
    """

    __slots__ = ("_begun_ms", "_seen", "mode", "window_ms")

    def __init__(self, mode: ReplayMode, window_ms: int, capacity: int) -> None:
        """
        Begin with an empty memory.

        Args:
            mode: ``address`` binds a signature to its first address, ``strict`` accepts it once, ``off`` always.
            window_ms: How long a nonce can be in the window: past and future together.
            capacity: How many signatures are remembered; at least 2.
        """
        self.mode = mode
        self.window_ms = window_ms
        self._seen: BoundedDict[bytes, str] = BoundedDict(max(1, capacity // 2))
        self._begun_ms = 0

    @property
    def forgotten(self) -> int:
        """How many signatures were dropped to make room while their nonces could still be in the window."""
        return self._seen.forgotten

    def passes(self, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        """
        Say whether this use of *signature* may pass, and remember it.

        Args:
            signature: The 32 bytes, already verified, so that only the key's owner can take up room here.
            address: Where the request came from.
            now_ms: The time.
            strict: Accept the signature once whatever the mode, as for a call that changes something.
        """
        if self.mode == "off" and not strict:
            return True
        seen = self._seen
        if not seen.younger:
            self._begun_ms = now_ms
        elif now_ms - self._begun_ms >= self.window_ms or len(seen.younger) >= seen.generation_limit:
            self._begin_generation(now_ms)
        bound = seen.older.get(signature)
        if bound is None:
            bound = seen.younger.get(signature)
        if bound is None:
            seen.younger[signature] = address
            return True
        return bound == address and not strict and self.mode != "strict"

    def _begin_generation(self, now_ms: int) -> None:
        if now_ms - self._begun_ms >= self.window_ms:
            self._seen.older.clear()  # closed before the younger began, so all of its nonces are out of the window
        self._seen.rotate()
        self._begun_ms = now_ms

    def __len__(self) -> int:
        return len(self._seen)
