"""
The master key of a service: which keys a start holds, and how the one in force is replaced while the service runs.

A rotation has these steps, and may be cut off between any two of them:

1. The next key is made sure of: ``master.key.next`` in the data folder, synced, or a file of the operator.
2. In one transaction every secret is sealed anew, and the fingerprint of the key in force is replaced. Processes hold
   both keys by then, and open each secret with the one that fits.
3. ``master.key.next`` is renamed to ``master.key``, where the key is in the data folder. A start does it if it is left.
4. The sweep: what was sealed with the key before is removed from the files of the store. It is repeated until it is
   done, also after a new start.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeVar

from spotledger.errors import MasterKeyRefused, RotationRefused, SetupError, StoreUnavailable
from spotledger.ops.settings import Settings, flag_of, variable_of
from spotledger.security.cipher import (
    MASTER_KEY_BYTES,
    AccessKeyDamaged,
    Cipher,
    MasterKeys,
    load_master_key as read_key_file,
)
from spotledger.storage.access_key_rows import Holder, KeyTables
from spotledger.storage.credentials.master_key_files import (
    NEXT_FILE,
    OFFERED_FILE,
    drop,
    offer,
    read_own,
    take_over,
    write_next,
)
from spotledger.storage.folder import MASTER_KEY_FILE, MASTER_KEY_VARIABLE, load_master_key

T = TypeVar("T")

FOLDER: Final = "folder"
FILE: Final = "file"
ENVIRONMENT: Final = "environment"

#: The pauses between the attempts to sweep while somebody waits for it.
SWEEP_PAUSES_SECONDS: Final = (0.2, 0.8, 2.0)
#: How many access keys a message names.
NAMED_KEYS: Final = 10

_TO_PLACE: Final = "the master key was rotated: %s has the key before; put %s there before the next start"
_log = logging.getLogger("spotledger.keys")


class Announcer(Protocol):
    """Tells the other processes of a fleet which master keys this one holds."""

    def announce(self) -> None:
        """Tell them now; raises StoreUnavailable."""


#: Begins to announce the fingerprints that a function returns.
Announce = Callable[[Callable[[], tuple[str, ...]]], Announcer]


class MasterKeyState(NamedTuple):
    """What is known of the master key; times are ms since 1970."""

    fingerprint: str
    #: Where this process has it from: ``folder``, ``file`` or ``environment``.
    source: str
    #: The fingerprint of the key that the next rotation would bring into force, if this process has it.
    next: str | None
    #: Earlier keys, and when each was replaced.
    retired: dict[str, int]
    is_swept: bool
    #: Why the last sweep failed.
    sweep_problem: str | None
    #: What the operator has to do, as sentences.
    to_do: list[str]
    holders: list[Holder]


def source_of(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return where the master key comes from."""
    if MASTER_KEY_VARIABLE in environ:
        return ENVIRONMENT
    return FOLDER if settings.master_key_file is None else FILE


def place_of(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return what an operator calls the place where the master key comes from."""
    source = source_of(settings, environ)
    if source == ENVIRONMENT:
        return MASTER_KEY_VARIABLE
    return str(settings.data / MASTER_KEY_FILE if source == FOLDER else settings.master_key_file)


# --- at a start -----------------------------------------------------------------------------------


class HeldKeys(NamedTuple):
    """The master keys that a process holds."""

    keys: MasterKeys
    #: The fingerprint of the key in the place where the next start looks for it.
    placed: str
    announcer: Announcer | None


def hold_master_keys(
    settings: Settings, environ: Mapping[str, str], tables: KeyTables, announce: Announce | None = None
) -> HeldKeys:
    """
    Return the master keys that a start holds, and finish a rotation that was cut off.

    Args:
        settings: The settings in force.
        environ: The environment, which may contain the master key.
        tables: The access keys. The first start stores the fingerprint.
        announce: Begins to announce what is held; None for an embedded ledger.

    Raises:
        MasterKeyRefused: A key is missing or malformed, or none is the one in force.
        FileUnusable: A file in the folder is not ours alone.
        StoreUnavailable: The database is in the way.
    """
    may_make = tables.master_key_fingerprint is None
    found = _keys_at_hand(settings, environ, may_make=may_make)
    by_fingerprint = {Cipher(key).fingerprint: key for key in found}
    keys = MasterKeys([Cipher(key) for key in found], lambda: tables.master_key_fingerprint)
    # In this order: a rotation that did not wait for this process is seen below.
    announcer = None if announce is None else announce(lambda: keys.fingerprints)
    in_force = tables.master_key_fingerprint
    placed = keys.fingerprints[0]
    if in_force is None:
        tables.master_key_fingerprint = placed
    elif in_force not in by_fingerprint:
        raise _refusal(settings, placed, in_force, tables)
    elif source_of(settings, environ) == FOLDER:
        _place(settings, by_fingerprint[in_force], in_force)
        placed = in_force
    elif in_force != placed:
        _log.warning(_TO_PLACE, place_of(settings, environ), in_force)
    # Of a rotation that did not happen. In a database another worker may be about to put the next key in place.
    for name in (OFFERED_FILE, NEXT_FILE) if settings.database is None else (OFFERED_FILE,):
        if os.path.lexists(settings.data / name):
            drop(settings.data, name)
    return HeldKeys(keys, placed, announcer)


def _place(settings: Settings, key: bytes, fingerprint: str) -> None:
    """Make *key* the one in the data folder."""
    before = take_over(settings.data, key)
    if before is not None:
        _log.warning("%s now holds the master key %s; the one before is in %s", MASTER_KEY_FILE, fingerprint, before)


def _keys_at_hand(settings: Settings, environ: Mapping[str, str], *, may_make: bool) -> list[bytes]:
    """Return the key that is set, then those that may have taken its place."""
    others = []
    if settings.next_master_key_file is not None:
        others.append(read_key_file(settings.next_master_key_file))
    if source_of(settings, environ) == FOLDER:
        following = read_own(settings.data, NEXT_FILE)
        if following is not None:
            others.append(following)
        if others and not os.path.lexists(settings.data / MASTER_KEY_FILE) and not may_make:
            return others
    return [load_master_key(settings.data, settings.master_key_file, environ, may_make=may_make), *others]


def _refusal(settings: Settings, found: str, in_force: str, tables: KeyTables) -> MasterKeyRefused:
    where = settings.data if settings.database is None else settings.database
    if found in tables.retired_master_keys:
        return MasterKeyRefused(
            f"The master key was rotated: the one with the fingerprint {found} is not in force any more, and the access"
            f" keys in {where} are sealed with {in_force}. Give that one; the old one is needed only for backups that"
            " were made before."
        )
    return MasterKeyRefused(
        f"This master key has the fingerprint {found}; the access keys in {where} were sealed "
        f"with another one, {in_force}. That one would pass."
    )


def offer_key(folder: Path, file: Path, in_force: str) -> str:
    """
    Hand the key in *file* over to the owner of *folder*, for a rotation; return its fingerprint.

    Args:
        folder: The data folder.
        file: The file with the key.
        in_force: The fingerprint of the key that is in force.

    Raises:
        MasterKeyRefused: *file* holds no key, or others may read it.
        FileUnusable, DataFolderUnusable: The folder cannot be written.
    """
    key = read_key_file(file)
    fingerprint = Cipher(key).fingerprint
    if fingerprint != in_force:
        offer(folder, key)
    return fingerprint


# --- a rotation -----------------------------------------------------------------------------------


class MasterKeyRotation:
    """
    Replaces the master key, and says what is known of it.

    Call it in the thread of ``Writer.beside``: it reads files, and may wait for the store.
    """

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        tables: KeyTables,
        held: HeldKeys,
        clock_ms: Callable[[], int],
    ) -> None:
        """Rotate the master key of *tables*; the arguments are those of a start, and the keys that it holds."""
        self._settings = settings
        self._source = source_of(settings, environ)
        self._place = place_of(settings, environ)
        self._tables = tables
        self._keys, self._placed, self._announcer = held
        self._started_with = held.placed
        self._clock_ms = clock_ms
        self._rotating = threading.Lock()
        self._is_due = not tables.is_swept
        self._sweep_problem: str | None = None

    def state(self) -> MasterKeyState:
        """Return what is known of the master key."""
        tables = self._tables
        in_force, retired = tables.master_key_fingerprint or "", tables.retired_master_keys
        held = [each for each in self._keys.fingerprints if each != in_force and each not in retired]
        is_swept = tables.is_swept
        return MasterKeyState(
            in_force,
            self._source,
            held[0] if held else None,
            retired,
            is_swept,
            None if is_swept else self._sweep_problem,
            self._to_do(in_force, retired),
            tables.holders(),
        )

    def rotate(self, fingerprint: str | None = None) -> MasterKeyState:
        """
        Bring the next master key into force, and seal every secret with it.

        That key is the one in ``next_master_key_file``; or one that was offered, if *fingerprint* names it;
        without either, a new one, where the key is in the data folder of an embedded ledger. If it is in force already,
        what is left of its rotation is done.

        Raises:
            RotationRefused: There is no such key, it was in force before, a node does not hold it, or a secret does
                not open; nothing was changed.
            StoreUnavailable: The store is in the way. The rotation happened completely or not at all: do it again with
                the same *fingerprint*.
        """
        with self._rotating:
            in_force = self._tables.master_key_fingerprint
            if fingerprint is None or fingerprint != in_force:
                self._finish_earlier(in_force)
                key = self._next_key(fingerprint)
                if Cipher(key).fingerprint != in_force:
                    self._seal_with(key, in_force)
            self._put_in_place()
            if fingerprint is not None:
                self._drop_offered(fingerprint)
            self._is_due = not self._tables.is_swept
            self._sweep_soon()
            return self.state()

    def tend(self) -> None:
        """Do what is left of a rotation, of one by another node too; call it now and then."""
        is_fleet = self._settings.database is not None
        if not (self._is_due or is_fleet) or not self._rotating.acquire(blocking=False):
            return
        try:
            if is_fleet:
                self._follow()
            if self._is_due:
                self._sweep()
        finally:
            self._rotating.release()

    def _follow(self) -> None:
        """Put the key in place that another node has brought into force."""
        in_force = self._tables.master_key_fingerprint
        if in_force is None or in_force == self._placed:
            return
        if self._source != FOLDER:
            _log.warning(_TO_PLACE, self._place, in_force)
            self._placed = in_force  # it is said once
        elif self._settings.next_master_key_file is not None:
            key = read_key_file(self._settings.next_master_key_file)
            if Cipher(key).fingerprint == in_force:
                _place(self._settings, key, in_force)
                self._placed = in_force

    def _finish_earlier(self, in_force: str | None) -> None:
        """Rename the key of a rotation that was cut off, before its file is used for another one."""
        if self._source == FOLDER and in_force is not None:
            following = self._read(NEXT_FILE)
            if following is not None and Cipher(following).fingerprint == in_force:
                self._put_in_place()

    def _next_key(self, fingerprint: str | None) -> bytes:
        """Return the next key, and make sure that it is on disk."""
        settings = self._settings
        found: list[bytes] = []
        if settings.next_master_key_file is not None:
            found.append(_unless_refused(partial(read_key_file, settings.next_master_key_file)))
        if fingerprint is not None:
            offered = self._read(OFFERED_FILE)
            found += [] if offered is None else [offered]
        elif not found:
            found = [self._new_key()]
        for key in found:
            if fingerprint is None or Cipher(key).fingerprint == fingerprint:
                if self._source == FOLDER:
                    _unless_refused(partial(write_next, settings.data, key))
                return key
        raise RotationRefused(
            f"No master key with the fingerprint {fingerprint} is at hand: put it into the file that"
            f" {flag_of('next_master_key_file')} names, or give it with --new-key-file.",
            field="fingerprint",
        )

    def _new_key(self) -> bytes:
        named = f"{flag_of('next_master_key_file')} ({variable_of('next_master_key_file')})"
        if self._settings.database is not None:
            raise RotationRefused(f"In a fleet every node needs the new master key first: name its file with {named}.")
        if self._source != FOLDER:
            raise RotationRefused(
                f"The master key comes from {self._place}, which this service does not change: name a file with the new"
                f" key with --new-key-file, or with {named}."
            )
        return secrets.token_bytes(MASTER_KEY_BYTES)

    def _read(self, name: str) -> bytes | None:
        return _unless_refused(partial(read_own, self._settings.data, name))

    def _seal_with(self, key: bytes, in_force: str | None) -> None:
        """Seal every secret with *key* in one transaction."""
        cipher, tables = Cipher(key), self._tables
        if cipher.fingerprint in tables.retired_master_keys:
            raise RotationRefused(f"The master key {cipher.fingerprint} was in force before; a new one would pass.")
        self._keys.add(cipher)
        if self._announcer is not None:
            self._announcer.announce()
        self._check_holders(cipher.fingerprint)  # before the work, and again where none can join them any more
        with tables.long_together():
            found = tables.master_key_fingerprint
            if found == cipher.fingerprint:
                return  # another node did it just now
            before = self._keys.cipher(found)
            if before is None or found is None or found != in_force:
                raise RotationRefused(f"The master key was rotated by another node just now: {found} is in force.")
            anew = _SealedAnew(before, cipher)
            count = tables.reseal(anew)
            if anew.damaged:
                raise _not_opening(anew.damaged)
            self._check_holders(cipher.fingerprint)  # near the end: announcements wait for it
            tables.retire_master_key(found, self._clock_ms())
            tables.mark_rotated(cipher.fingerprint)
        _log.warning("the master key was rotated from %s to %s: %d access keys", found, cipher.fingerprint, count)

    def _check_holders(self, fingerprint: str) -> None:
        lacking = [holder.place for holder in self._tables.holders() if fingerprint not in holder.fingerprints]
        if lacking:
            raise RotationRefused(
                f"These nodes do not hold the master key {fingerprint} yet: {'; '.join(lacking)}. Start each with"
                f" {flag_of('next_master_key_file')}; one that is down counts for half a minute."
            )

    def _put_in_place(self) -> None:
        """Make the key in force the one in ``master.key``, unless it is kept elsewhere."""
        in_force = self._tables.master_key_fingerprint
        following = self._read(NEXT_FILE) if self._source == FOLDER else None
        if following is not None and Cipher(following).fingerprint == in_force:
            _unless_refused(partial(_place, self._settings, following, in_force))
            self._placed = in_force

    def _drop_offered(self, fingerprint: str) -> None:
        """Remove the copy of the key that was handed over."""
        offered = self._read(OFFERED_FILE)
        if offered is not None and Cipher(offered).fingerprint == fingerprint:
            _unless_refused(partial(drop, self._settings.data, OFFERED_FILE))

    def _sweep_soon(self) -> None:
        for pause_seconds in (0.0, *SWEEP_PAUSES_SECONDS):
            if self._is_due:
                time.sleep(pause_seconds)
                self._sweep()
        if self._is_due:
            _log.warning("%s; it is tried again later", self._sweep_problem)

    def _sweep(self) -> None:
        try:
            if not self._tables.is_swept:  # another node may have done it
                self._tables.sweep()
        except StoreUnavailable as problem:
            self._sweep_problem = problem.message
        else:
            self._is_due, self._sweep_problem = False, None

    def _to_do(self, in_force: str, retired: Mapping[str, int]) -> list[str]:
        """Return what is left to the operator."""
        to_do = []
        if self._source != FOLDER and in_force != self._started_with:
            to_do.append(
                f"Put the master key {in_force} into {self._place} before the next start: one with the key before is"
                " refused."
            )
        if self._sweep_problem is not None:
            to_do.append(f"What was sealed with the old key is still in files of the store: {self._sweep_problem}.")
        if retired:
            last = list(retired)[-1]
            to_do.append(f"Backups made before need the old master key, {last}: make a new backup.")
        return to_do


def _unless_refused(function: Callable[[], T]) -> T:
    """Return the result of *function*; an error about the set-up becomes one that a caller of the API gets."""
    try:
        return function()
    except SetupError as problem:
        raise RotationRefused(problem.message) from problem


class _SealedAnew:
    """Seals secrets anew, and notes those that do not open."""

    def __init__(self, before: Cipher, cipher: Cipher) -> None:
        self._before = before
        self._cipher = cipher
        self.damaged: list[str] = []

    def __call__(self, accesskey: str, sealed: bytes, is_revoked: bool) -> bytes:
        if is_revoked:
            return self._cipher.seal(accesskey, "")  # nobody needs it any more
        try:
            return self._cipher.seal(accesskey, self._before.open(accesskey, sealed))
        except AccessKeyDamaged:
            self.damaged.append(accesskey)
            return sealed


def _not_opening(accesskeys: list[str]) -> RotationRefused:
    named = ", ".join(f"{accesskey[:8]}…" for accesskey in accesskeys[:NAMED_KEYS])
    more = f" and {len(accesskeys) - NAMED_KEYS} more" if len(accesskeys) > NAMED_KEYS else ""
    return RotationRefused(
        f"The secrets of these access keys do not open: {named}{more}. Revoke them, and rotate again; a revoked one is"
        " passed over."
    )
