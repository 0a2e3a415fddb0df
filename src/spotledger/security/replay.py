"""
The memory of signed requests (rule R12).

The first use of a signature binds it to its address for as long as its nonce can be in the window. So a retry of the
same client passes, and a URL copied from a log does not. Each access key has a memory of its own, so that nobody pushes
out what others sent. :mod:`spotledger.ops.replay_files` keeps it over a restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Final, Literal, Protocol

ReplayMode = Literal["address", "strict", "off"]

#: So many bytes of a signature, or of the hash of an access key, tell it from others; no request can be made of them.
MARK_BYTES: Final = 16
#: How many memories of idle access keys are looked at, to be dropped, each time that one begins.
SWEPT_AT_ONCE: Final = 2

#: The hash of an access key → the mark of a signature → the address that it is bound to.
Uses = dict[bytes, dict[bytes, str]]


class OtherUses(Protocol):
    """The uses of signatures in the other processes of a machine."""

    def first_use(self, mark: bytes, address: str) -> str | None:
        """Return the address that a signature is bound to elsewhere; None if it is new, and then tell the others."""


class _KeyMemory:
    """The signatures of one access key, in two generations; times are by the clock that counts, and by a steady one."""

    __slots__ = ("begun_at_ms", "begun_ms", "older", "younger")

    def __init__(self, older: dict[bytes, str], now_ms: int, steady_ms: int) -> None:
        self.younger: dict[bytes, str] = {}
        self.older = older
        #: When the younger generation began.
        self.begun_ms = now_ms
        self.begun_at_ms = steady_ms


class ReplayMemory:
    """
    Remember each signature for the length of the window, and at most *capacity* signatures of one access key.

    A generation is closed when it is as old as the window, or full; the one before it is dropped then. Its age is
    measured by a steady clock: a wall clock that leaps must not let go of what is still in the window.
    """

    __slots__ = (
        "_by_key",
        "_restored",
        "_restored_at_ms",
        "_steady_ms",
        "_to_sweep",
        "forgotten",
        "generation_limit",
        "mode",
        "others",
        "window_ms",
    )

    def __init__(
        self, mode: ReplayMode, window_ms: int, capacity: int, steady_ms: Callable[[], int] | None = None
    ) -> None:
        """
        Begin with an empty memory.

        Args:
            mode: ``address`` binds a signature to its first address, ``strict`` accepts it once, ``off`` always.
            window_ms: How long a nonce can be in the window: past and future together.
            capacity: How many signatures are remembered of one access key; at least 2.
            steady_ms: A clock that never leaps; None if the times given to `passes` do not.
        """
        self.mode = mode
        self.window_ms = window_ms
        self.generation_limit = max(1, capacity // 2)
        #: How many signatures were dropped to make room while their nonces could still be in the window.
        self.forgotten = 0
        #: The uses in the other workers of this machine; None if there are none.
        self.others: OtherUses | None = None
        self._steady_ms = steady_ms
        self._by_key: dict[str, _KeyMemory] = {}
        self._to_sweep: deque[str] = deque()
        self._restored: Uses = {}
        self._restored_at_ms: int | None = None

    def passes(self, accesskey: str, signature: bytes, address: str, now_ms: int, *, strict: bool = False) -> bool:
        """
        Say whether this use of *signature* may pass, and remember it.

        Args:
            accesskey: Whose signature it is.
            signature: The 32 bytes, already verified, so that only the key's owner can take up room here.
            address: Where the request came from, as limits count it.
            now_ms: The time.
            strict: Accept the signature once whatever the mode, as for a call that changes something.
        """
        if self.mode == "off" and not strict:
            return True
        memory = self._by_key.get(accesskey) or self._begin_key(accesskey, now_ms)
        younger = memory.younger
        if not 0 <= now_ms - memory.begun_ms < self.window_ms or len(younger) >= self.generation_limit:
            younger = self._begin_generation(memory, now_ms)
        mark = signature[:MARK_BYTES]
        bound = memory.older.get(mark) or younger.get(mark)
        if bound is None and self.others is not None:
            bound = self.others.first_use(mark, address)
        if bound is None:
            younger[mark] = address
            return True
        return bound == address and not strict and self.mode != "strict"

    def _begin_key(self, accesskey: str, now_ms: int) -> _KeyMemory:
        at_ms = self._at(now_ms)
        self._sweep(at_ms)
        if self._restored_at_ms is not None and at_ms - self._restored_at_ms > 2 * self.window_ms:
            self._restored, self._restored_at_ms = {}, None
        memory = _KeyMemory(self._restored.pop(key_mark(accesskey), {}) if self._restored else {}, now_ms, at_ms)
        self._by_key[accesskey] = memory
        self._to_sweep.append(accesskey)
        return memory

    def _begin_generation(self, memory: _KeyMemory, now_ms: int) -> dict[bytes, str]:
        """Begin a new generation, unless only the clock leapt; return the younger one."""
        at_ms = self._at(now_ms)
        age_ms = at_ms - memory.begun_at_ms
        is_full = len(memory.younger) >= self.generation_limit
        if is_full or age_ms >= self.window_ms:
            if age_ms < self.window_ms:
                self.forgotten += len(memory.older)
            # What was closed a window ago is out of the window.
            memory.older, memory.younger = memory.younger, {}
            age_ms, memory.begun_at_ms = 0, at_ms
            self._sweep(at_ms)
        memory.begun_ms = now_ms - age_ms
        return memory.younger

    def _at(self, now_ms: int) -> int:
        return now_ms if self._steady_ms is None else self._steady_ms()

    def _sweep(self, at_ms: int) -> None:
        """Drop the memories of a few access keys that were idle for so long that nothing in them counts."""
        for _ in range(min(SWEPT_AT_ONCE, len(self._to_sweep))):
            accesskey = self._to_sweep.popleft()
            # Whoever uses a generation that is older than the window closes it; the clock that counts may have been set
            # back by less than a window meanwhile.
            if at_ms - self._by_key[accesskey].begun_at_ms > 3 * self.window_ms:
                del self._by_key[accesskey]
            else:
                self._to_sweep.append(accesskey)

    def uses(self) -> Uses:
        """Return everything that is remembered here, for the next start."""
        found: Uses = {key: dict(marks) for key, marks in self._restored.items()}
        for accesskey, memory in self._by_key.items():
            found[key_mark(accesskey)] = {**memory.older, **memory.younger}
        return found

    def restore(self, uses: Mapping[bytes, Mapping[bytes, str]], now_ms: int) -> None:
        """Remember *uses* of before the start, for two windows from now on."""
        for key, marks in uses.items():
            self._restored.setdefault(key, {}).update(marks)
        self._restored_at_ms = self._at(now_ms)

    def __len__(self) -> int:
        here = sum(len(memory.younger) + len(memory.older) for memory in self._by_key.values())
        return here + sum(map(len, self._restored.values()))


def key_mark(accesskey: str) -> bytes:
    """Return the hash of *accesskey* that stands for it in a file, where the access key itself must not be."""
    return blake2b(accesskey.encode(), digest_size=MARK_BYTES, person=b"spotledger.used").digest()
