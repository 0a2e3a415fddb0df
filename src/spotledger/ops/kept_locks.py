"""
The locks on accounts and addresses over a restart (rule R20), and for the operator to see and to lift.

They are in one file of the data folder, which all workers of a machine share: each writes the locks that begin in it,
at once and off the event loop, and takes over what the others wrote. In a fleet with Redis the locks are there, too,
and those count for the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from spotledger.errors import DataFolderUnusable, FileUnusable, NotFound, StoreUnavailable
from spotledger.security.gate import Gate, Locked
from spotledger.security.limits import Lock, Locks
from spotledger.storage.folder import unusable
from spotledger.storage.packed_file import NotAsWritten, read_packed, replace_packed
from spotledger.storage.private import folder_lock

LOCKS_FILE: Final = "locks"
LOCKS_FILE_LIMIT_BYTES: Final = 32 * 1024 * 1024
#: How often a worker looks at what the others wrote.
FOLLOW_SECONDS: Final = 0.5
#: How long to wait for another worker that changes the file.
PATIENCE_SECONDS: Final = 2.0

_MAGIC: Final = b"SpoL\x01\x00\x00\x00"
_log = logging.getLogger("spotledger.gate")


class KeptLock(msgspec.Struct, frozen=True, array_like=True):
    """One lock, as it is in the file."""

    kind: Locked
    who: str
    until_ms: int
    #: The name of the limit that was exceeded.
    limit: str
    is_shared: bool = False

    @property
    def name(self) -> str:
        """The name that lifts it; it can be a part of a path."""
        return f"{self.kind}-{self.who.replace('/', '-')}"

    @property
    def lock(self) -> Lock:
        """The same as the gate has it."""
        return Lock(self.until_ms, self.limit, self.is_shared)


class _Place(NamedTuple):
    """Whom a lock is on."""

    kind: Locked
    who: str


_Kept = dict[_Place, KeptLock]


class KeptLocks:
    """The locks in the file of a data folder, and those of the gate of this process, if there is one."""

    def __init__(self, folder: Path, clock_ms: Callable[[], int], *, has_siblings: bool = False) -> None:
        """
        Name the file; nothing is read yet.

        Args:
            folder: The data folder, which this process or its parent owns.
            clock_ms: Returns the time in ms since 1970.
            has_siblings: Whether other workers write the file too.
        """
        self._folder = folder
        self._file = folder / LOCKS_FILE
        self._clock_ms = clock_ms
        self._has_siblings = has_siblings
        self._gate: Gate | None = None
        #: Locks that began here and are not in the file yet.
        self._begun: _Kept = {}
        #: Locks that were lifted on another node and are in the file still.
        self._ended: set[_Place] = set()
        self._wake = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        #: Identifies the content of the file that was read last.
        self._version: tuple[int, ...] | None = None

    async def start(self, gate: Gate) -> None:
        """
        Have *gate* heed the locks in the file, and write those that begin from now on.

        Raises:
            FileUnusable: The file belongs to somebody else, others may use it, or it is a link.
        """
        self._gate = gate
        self._heed(await asyncio.to_thread(self._change, {}, set()), gate)
        for kind, locks in gate.locks.items():
            locks.on_lock = self._noting(kind)
            locks.on_end = self._ending(kind)
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def stop(self) -> None:
        """Write what is not in the file yet."""
        if self._following is None:
            return
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        await self._write()

    async def all(self) -> list[KeptLock]:
        """Return the locks that hold now, of all workers, and of all nodes that share them; the first to end first."""
        shared = None if self._gate is None else await self._gate.shared_locks()
        await self._write()
        found = (await asyncio.to_thread(self._read)) or {}
        if shared is not None:
            found = {place: lock for place, lock in found.items() if not lock.is_shared}
            found |= {_Place(kind, who): KeptLock(kind, who, *lock) for kind, who, lock in shared}
        now_ms = self._clock_ms()
        return sorted(
            (lock for lock in found.values() if self._holds(lock, now_ms)), key=lambda lock: (lock.until_ms, lock.name)
        )

    async def lift(self, name: str) -> KeptLock:
        """
        Lift the lock *name*, on all workers and on all nodes that share it, and return it.

        Raises:
            NotFound: There is no such lock now.
            StoreUnavailable: It cannot be lifted for good now.
        """
        found = next((lock for lock in await self.all() if lock.name == name), None)
        if found is None:
            raise NotFound("There is no lock of this name now.")
        if self._gate is not None:
            await self._gate.lift(found.kind, found.who)
        place = _Place(found.kind, found.who)
        self._begun.pop(place, None)
        await self._write({place})
        return found

    def _noting(self, kind: Locked) -> Callable[[str, Lock], None]:
        def note(who: str, lock: Lock) -> None:
            self._ended.discard(_Place(kind, who))
            self._begun[_Place(kind, who)] = KeptLock(kind, who, *lock)
            self._wake.set()

        return note

    def _ending(self, kind: Locked) -> Callable[[str], None]:
        def end(who: str) -> None:
            self._begun.pop(_Place(kind, who), None)
            self._ended.add(_Place(kind, who))
            self._wake.set()

        return end

    async def _follow(self) -> None:
        """Write each lock that begins, and take over what other workers wrote."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    FOLLOW_SECONDS if self._has_siblings or self._begun or self._ended else None
                ):
                    await self._wake.wait()
            self._wake.clear()
            if self._begun or self._ended or self._is_changed():
                await self._write()

    def _is_changed(self) -> bool:
        return self._version != _version_of(self._file)

    async def _write(self, lifted: Iterable[_Place] = ()) -> None:
        """Write what began here and what was lifted; a failure is logged, and tried again."""
        async with self._changing:
            begun, self._begun = self._begun, {}
            ended, self._ended = self._ended, set()
            try:
                kept = await asyncio.to_thread(self._change, begun, {*lifted, *ended})
            except (OSError, FileUnusable, DataFolderUnusable) as problem:
                self._begun = {**begun, **self._begun}
                self._ended |= ended - self._begun.keys()
                _log.warning("the locks could not be written to %s: %s", self._file, problem)
                if lifted:
                    raise StoreUnavailable(
                        f"The lock is lifted, but the file {self._file} could not be written: it holds again after a"
                        " restart."
                    ) from problem
                return
        if self._gate is not None:
            self._heed(kept, self._gate)

    def _change(self, begun: _Kept, lifted: set[_Place]) -> _Kept:
        """Change the file, while no other worker does, and return what it has; runs in a thread."""
        with folder_lock(self._folder, PATIENCE_SECONDS):
            before = self._read()
            now_ms = self._clock_ms()
            known = {**(before or {}), **begun}
            after = {p: lock for p, lock in known.items() if self._holds(lock, now_ms) and p not in lifted}
            if after != before:
                replace_packed(self._file, _MAGIC, list(after.values()))
                self._version = _version_of(self._file)
            return after

    def _holds(self, lock: KeptLock, now_ms: int) -> bool:
        """Say whether *lock* holds: its time is not over, and it is not longer than the gate's own locks are now."""
        remaining_ms = lock.until_ms - now_ms
        if self._gate is None or lock.is_shared:
            return remaining_ms > 0
        return 0 < remaining_ms <= self._gate.locks[lock.kind].lock_ms

    def _read(self) -> _Kept | None:
        """Return what the file has, nothing if it is missing; None if it is damaged, which is logged."""
        self._version = _version_of(self._file)
        try:
            found = read_packed(self._file, _MAGIC, list[KeptLock], LOCKS_FILE_LIMIT_BYTES)
        except FileNotFoundError:
            return {}
        except NotAsWritten as problem:
            _log.warning("%s is damaged (%s), so the locks that were in it are lifted", self._file, problem)
            return None
        except OSError as problem:
            raise unusable(self._folder, problem) from problem
        return {_Place(lock.kind, lock.who): lock for lock in found}

    def _heed(self, kept: _Kept, gate: Gate) -> None:
        """Have *gate* heed what is *kept*, and drop what another worker lifted."""
        for kind, locks in gate.locks.items():
            here = {place.who: lock.lock for place, lock in kept.items() if place.kind == kind}
            self._heed_kind(here, kind, locks)

    def _heed_kind(self, kept: dict[str, Lock], kind: Locked, locks: Locks) -> None:
        for who, lock in kept.items():
            locks.held.put(who, lock)
        if self._has_siblings:
            for who, _ in list(locks.all()):
                if who not in kept and _Place(kind, who) not in self._begun:
                    locks.lift(who)


def _version_of(file: Path) -> tuple[int, ...] | None:
    try:
        status = file.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
