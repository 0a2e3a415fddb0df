"""
Secrets at rest: AES-256-GCM under a master key that is not stored in the ledger file.

A process may hold several master keys: the one in force, the next one, and those that were in force before
(`MasterKeys`). The store says which one is in force, by its fingerprint.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spotledger.errors import LedgerCorrupt, MasterKeyRefused, StoreUnavailable

MASTER_KEY_BYTES = 32
MASTER_KEY_FILE_MAX_BYTES = 256

# A sealed secret is one byte for the format, the nonce, the ciphertext, and its 16-byte tag.
_FORMAT = b"\x01"
_NONCE_BYTES = 12
_MASTER_KEY_TEXT = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)


def parse_master_key(text: str) -> bytes:
    """
    Return the 32 bytes of *text*, 64 hex digits; blanks around them are ignored.

    Raises:
        MasterKeyRefused: *text* is anything else. The message contains no part of it.
    """
    stripped = text.strip()
    if not _MASTER_KEY_TEXT.fullmatch(stripped):
        raise MasterKeyRefused(
            f"The master key has {len(stripped)} characters; 64 hex digits would pass, as from openssl rand -hex 32."
        )
    return bytes.fromhex(stripped)


def load_master_key(path: Path) -> bytes:
    """
    Read the master key from the file *path*.

    Raises:
        MasterKeyRefused: The file is missing, is not a regular file, is accessible to others than its owner (its mode
            must be 0600 or 0400), or does not hold 64 hex digits.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise MasterKeyRefused(f"The master key file {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise MasterKeyRefused(f"The master key {path} is not a regular file.")
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o177:
            raise MasterKeyRefused(
                f"The master key file {path} has mode {mode:04o}; 0600 would pass: only its owner may read it."
            )
        content = os.read(descriptor, MASTER_KEY_FILE_MAX_BYTES)
    except OSError as error:
        raise MasterKeyRefused(f"The master key file {path} cannot be read: {error.strerror}.") from error
    finally:
        os.close(descriptor)
    return parse_master_key(content.decode("ascii", "replace"))


class AccessKeyDamaged(LedgerCorrupt):
    """An access key as it is stored cannot be used, although the master key is the right one, which a start checks."""

    stops_writes = False


class SecretSeal(Protocol):
    """What encrypts and decrypts the secrets of access keys."""

    def seal(self, accesskey: str, secret: str) -> bytes:
        """Return *secret* encrypted for *accesskey*."""

    def open(self, accesskey: str, sealed: bytes) -> str:
        """Return the secret that was sealed for *accesskey*; raises AccessKeyDamaged."""


class Cipher:
    """
    Encrypts and decrypts the secrets of access keys with AES-256-GCM.

    The access key is the associated data, so a sealed secret does not open for another access key.
    """

    __slots__ = ("_aead", "fingerprint")

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) != MASTER_KEY_BYTES:
            raise MasterKeyRefused(f"The master key has {len(master_key)} bytes; {MASTER_KEY_BYTES} would pass.")
        self._aead = AESGCM(master_key)
        #: Identifies the master key without revealing it: 32 hex digits.
        self.fingerprint = hmac.new(master_key, b"spotledger fingerprint", hashlib.sha256).hexdigest()[:32]

    def __repr__(self) -> str:
        return f"Cipher(fingerprint={self.fingerprint!r})"

    def seal(self, accesskey: str, secret: str) -> bytes:
        """Return *secret* encrypted for *accesskey*, under a fresh random nonce."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _FORMAT + nonce + self._aead.encrypt(nonce, secret.encode(), accesskey.encode())

    def open(self, accesskey: str, sealed: bytes) -> str:
        """
        Return the secret that was sealed for *accesskey*.

        Raises:
            AccessKeyDamaged: It was sealed with another master key or for another access key, or it was altered.
        """
        if sealed[:1] != _FORMAT:
            raise AccessKeyDamaged(f"the secret of the access key {accesskey[:8]}… is sealed in an unknown format")
        nonce, text = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._aead.decrypt(nonce, text, accesskey.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise AccessKeyDamaged(f"the secret of the access key {accesskey[:8]}… does not open") from error


class MasterKeys:
    """
    The master keys that a process holds.

    It seals with the one in force, which it asks the store for each time, and opens with whichever fits: another
    process may rotate the master key at any moment.
    """

    def __init__(self, ciphers: Iterable[Cipher], in_force: Callable[[], str | None]) -> None:
        """
        Hold the keys of *ciphers*.

        Args:
            ciphers: At least one; those named first are tried first.
            in_force: Returns the fingerprint of the master key that the store is sealed with; None if with none yet.
                Within a transaction it sees what the transaction sees.
        """
        self._ciphers: tuple[Cipher, ...] = ()
        self._adding = threading.Lock()
        self._in_force = in_force
        for cipher in reversed(list(ciphers)):
            self.add(cipher)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of the keys."""
        return tuple(cipher.fingerprint for cipher in self._ciphers)

    def add(self, cipher: Cipher) -> None:
        """Hold one more key, which is tried first from now on."""
        with self._adding:
            others = (each for each in self._ciphers if each.fingerprint != cipher.fingerprint)
            self._ciphers = (cipher, *others)

    def cipher(self, fingerprint: str | None) -> Cipher | None:
        """Return the cipher of the key with this fingerprint, or None if the process does not hold it."""
        return next((cipher for cipher in self._ciphers if cipher.fingerprint == fingerprint), None)

    def seal(self, accesskey: str, secret: str) -> bytes:
        """
        Return *secret* encrypted for *accesskey*; call it in the transaction that stores it.

        Raises:
            StoreUnavailable: This process does not hold the key in force.
        """
        in_force = self._in_force()
        cipher = self._ciphers[0] if in_force is None else self.cipher(in_force)
        if cipher is None:
            raise self._missing(in_force)
        return cipher.seal(accesskey, secret)

    def open(self, accesskey: str, sealed: bytes) -> str:
        """
        Return the secret that was sealed for *accesskey*.

        Raises:
            AccessKeyDamaged: No key opens it, although this process holds the key in force.
            StoreUnavailable: This process does not hold the key in force.
        """
        damage: AccessKeyDamaged | None = None
        for cipher in self._ciphers:
            try:
                return cipher.open(accesskey, sealed)
            except AccessKeyDamaged as error:
                damage = error
        in_force = self._in_force()
        if in_force is not None and self.cipher(in_force) is None:
            raise self._missing(in_force)
        assert damage is not None, "there is at least one key"  # noqa: S101
        raise damage

    def _missing(self, fingerprint: str | None) -> StoreUnavailable:
        return StoreUnavailable(
            f"The master key was rotated: the secrets are sealed with {fingerprint}, which this node does not have. Its"
            " operator has to give it that key and start it again; other nodes answer."
        )
