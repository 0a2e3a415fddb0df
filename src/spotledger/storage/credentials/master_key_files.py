"""
The files of the master key in the data folder, and how a new key takes the place of the old one.

    master.key              the key in force, unless it comes from elsewhere
    master.key.next         the next one: written before the secrets are sealed with it, renamed afterwards
    master.key.offered      one that a command hands over, until the owner of the folder has taken it
    master.key.old-<name>   one that was in force before, by the first digits of its fingerprint: old backups need it

Whenever the process or the machine stops, one of the first two is the key that the secrets are sealed with: the next
start renames it if that is left to do (:mod:`spotledger.ops.master_keys`). Only the owner of the folder writes these
two: a command that offers another key during a rotation would replace one that is just coming into force.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from spotledger.errors import MasterKeyRefused
from spotledger.security.cipher import Cipher, load_master_key
from spotledger.storage.atomic_file import sync
from spotledger.storage.folder import MASTER_KEY_FILE, unusable, write_secret_file
from spotledger.storage.private import check_private, folder_lock

NEXT_FILE: Final = f"{MASTER_KEY_FILE}.next"
OFFERED_FILE: Final = f"{MASTER_KEY_FILE}.offered"
OLD_PREFIX: Final = f"{MASTER_KEY_FILE}.old-"
#: Digits of the fingerprint in the name of an old key.
NAME_DIGITS: Final = 8


def old_file(fingerprint: str) -> str:
    """Return the name under which the key with this fingerprint is kept once it was replaced."""
    return f"{OLD_PREFIX}{fingerprint[:NAME_DIGITS]}"


def read_own(folder: Path, name: str = MASTER_KEY_FILE) -> bytes | None:
    """
    Return the key in the file *name* of *folder*; None if there is no such file.

    Raises:
        MasterKeyRefused: It holds no key.
        FileUnusable: It is a link, belongs to somebody else, or others may use it.
    """
    file = folder / name
    check_private(file, is_secret=True)
    return load_master_key(file) if os.path.lexists(file) else None


def write_next(folder: Path, key: bytes) -> None:
    """
    Write *key* to ``master.key.next`` of *folder*, synced; one that is there is replaced.

    The caller owns the folder, and makes sure that no secret is sealed with the key that is replaced.

    Raises:
        FileUnusable: The file there is a link or belongs to somebody else.
        DataFolderUnusable: The disk is full or read-only.
    """
    with _with_lock(folder):
        _write(folder, NEXT_FILE, key)


def offer(folder: Path, key: bytes) -> None:
    """Write *key* to ``master.key.offered`` of *folder*, as :func:`write_next` does; the caller need not own it."""
    with _with_lock(folder):
        _write(folder, OFFERED_FILE, key)


def _write(folder: Path, name: str, key: bytes) -> None:
    drop(folder, name)
    write_secret_file(folder / name, key.hex())


def drop(folder: Path, name: str) -> None:
    """Remove the file *name* of *folder*, if it is there; raises like :func:`write_next`."""
    file = folder / name
    check_private(file, is_secret=True)
    try:
        file.unlink(missing_ok=True)
        sync(folder)
    except OSError as problem:
        raise unusable(folder, problem) from problem


def take_over(folder: Path, key: bytes) -> Path | None:
    """
    Make *key* the one in ``master.key`` of *folder*; the one before is kept beside it, as old backups need it.

    Several processes may do so at once. Interrupted, it goes on when it is called again.

    Returns:
        The file of the key before; None if there was none, or *key* was in place.

    Raises:
        MasterKeyRefused, FileUnusable: A file there is no key, or not ours alone.
        DataFolderUnusable: The disk is full or read-only.
    """
    own = folder / MASTER_KEY_FILE
    with _with_lock(folder):
        before = read_own(folder)
        if before == key:
            if _read_next(folder) == key:
                drop(folder, NEXT_FILE)
            return None
        if _read_next(folder) != key:
            _write(folder, NEXT_FILE, key)
        kept = None
        try:
            if before is not None:
                kept = folder / old_file(Cipher(before).fingerprint)
                with contextlib.suppress(FileExistsError):
                    kept.hardlink_to(own)
            (folder / NEXT_FILE).replace(own)
            sync(folder)
        except OSError as problem:
            raise unusable(folder, problem) from problem
        return kept


def _read_next(folder: Path) -> bytes | None:
    """Return the next key; None too if the file holds none, which is then replaced."""
    try:
        return read_own(folder, NEXT_FILE)
    except MasterKeyRefused:
        return None


@contextlib.contextmanager
def _with_lock(folder: Path) -> Iterator[None]:
    """Keep other workers with the same folder out for the length of a ``with`` block."""
    try:
        with folder_lock(folder):
            yield
    except OSError as problem:
        raise unusable(folder, problem) from problem
