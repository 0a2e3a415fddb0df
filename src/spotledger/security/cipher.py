"""Secrets at rest: AES-256-GCM under a master key that is not stored in the ledger file."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from spotledger.errors import LedgerCorrupt, MasterKeyRefused

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
